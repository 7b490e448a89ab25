"""Schedules of beta against a table filled by hand, and the laws that they have to keep."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_obs.util.errors import InputError
from vae_training.model.beta import ConstantBeta, CyclicalBeta, MonotonicBeta, make_schedule

QUICK = settings(max_examples=50, deadline=None)
betas = st.floats(0, 100, allow_nan=False)
halves = st.integers(1, 40)
freezes = st.integers(0, 30)


@given(fixed=betas, half=halves, freeze=freezes)
@QUICK
def test_cycles_equal_the_table(fixed: float, half: int, freeze: int):
    cycle = np.concatenate([np.arange(half) / half, np.ones(half)]) * fixed
    table = np.concatenate([np.zeros(freeze), np.tile(cycle, 3)])
    beta = CyclicalBeta(fixed, half, freeze)
    np.testing.assert_allclose([beta(step) for step in range(len(table))], table, rtol=1e-12)
    ends = [step for step in range(len(table)) if beta.is_comparable(step)]
    assert ends == [freeze + 2 * half * cycle - 1 for cycle in (1, 2, 3)]


@given(fixed=betas, half=halves, freeze=freezes, step=st.integers(0, 10**9))
@QUICK
def test_laws_at_any_step(fixed: float, half: int, freeze: int, step: int):
    beta = CyclicalBeta(fixed, half, freeze)
    assert 0 <= beta(step) <= fixed
    if step < freeze:
        assert beta(step) == 0.0
        return
    assert beta(step) == beta(step + 2 * half) == beta(step + 20 * half)  # periodic
    if beta.is_comparable(step):
        assert (beta(step), beta(step + 1)) == (fixed, 0.0)
    else:
        assert -1e-12 <= beta(step + 1) - beta(step) <= fixed / half + 1e-9


@given(fixed=betas, rise=st.integers(0, 20), freeze=freezes, step=st.integers(0, 200))
@QUICK
def test_monotonic_is_the_first_rise_of_the_cycles_and_constant_has_none(
    fixed: float, rise: int, freeze: int, step: int
):
    once, cycles = MonotonicBeta(fixed, rise, freeze), CyclicalBeta(fixed, rise, freeze)
    assert once(step) == (cycles(step) if step < freeze + 2 * rise else fixed)
    assert once.is_comparable(step) is (step >= freeze + rise)
    constant = ConstantBeta(fixed, freeze)
    assert constant(step) == (0.0 if step < freeze else fixed)
    assert constant.is_comparable(step) is (step >= freeze)


def test_without_cycles_beta_is_constant_after_the_freeze():
    beta = CyclicalBeta(3.0, half_cycle_steps=0, freeze_steps=5)
    assert [beta(step) for step in range(8)] == [0.0] * 5 + [3.0] * 3
    assert not any(beta.is_comparable(step) for step in range(50))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"fixed_beta": -1.0}, "fixed_beta"),
        ({"fixed_beta": float("nan")}, "fixed_beta"),
        ({"fixed_beta": float("inf")}, "fixed_beta"),
        ({"rise_steps": -1}, "half_cycle_steps"),
        ({"freeze_steps": -2}, "freeze_steps"),
        ({"kind": "square"}, "schedule"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: dict, named: str):
    with pytest.raises(InputError, match=named):
        make_schedule(**{"kind": "cyclical", "fixed_beta": 1.0, "rise_steps": 1, **arguments})
