"""CyclicalBeta against a table filled by hand, and the laws that a schedule has to keep."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_obs.util.errors import InputError
from vae_training.model.beta import CyclicalBeta

QUICK = settings(max_examples=60, deadline=None)
betas = st.floats(0, 100, allow_nan=False)
halves = st.integers(1, 40)
freezes = st.integers(0, 30)


@given(fixed=betas, half=halves, freeze=freezes)
@QUICK
def test_equals_the_table(fixed: float, half: int, freeze: int):
    cycle = np.concatenate([np.arange(half) / half, np.ones(half)]) * fixed
    table = np.concatenate([np.zeros(freeze), np.tile(cycle, 3)])
    beta = CyclicalBeta(fixed, half, freeze)
    np.testing.assert_allclose([beta(step) for step in range(len(table))], table, rtol=1e-12)


@given(fixed=betas, half=halves, freeze=freezes, step=st.integers(0, 10**9))
@QUICK
def test_laws_at_any_step(fixed: float, half: int, freeze: int, step: int):
    beta = CyclicalBeta(fixed, half, freeze)
    assert 0 <= beta(step) <= fixed
    if step < freeze:
        assert beta(step) == 0.0
    else:
        assert beta(step) == beta(step + 2 * half) == beta(step + 20 * half)  # periodic
        rise = beta(step + 1) - beta(step)
        if not beta.is_cycle_end(step):  # nowhere else does it fall, and it never jumps up
            assert -1e-12 <= rise <= fixed / half + 1e-9
        else:
            assert beta(step) == fixed
            assert beta(step + 1) == 0.0
    assert beta(step) == CyclicalBeta(fixed, half, freeze)(step)  # a pure function


@given(fixed=st.floats(0.01, 100), half=halves, freeze=freezes)
@QUICK
def test_each_cycle_reaches_the_top_and_stays_for_half_of_it(fixed: float, half: int, freeze: int):
    beta = CyclicalBeta(fixed, half, freeze)
    for cycle in range(3):
        start = freeze + 2 * half * cycle
        values = [beta(step) for step in range(start, start + 2 * half)]
        assert values[0] == 0.0
        assert values.count(fixed) == half
        assert values[half:] == [fixed] * half
        assert [s for s in range(start, start + 2 * half) if beta.is_cycle_end(s)] == [start + 2 * half - 1]
    assert not any(beta.is_cycle_end(step) for step in range(freeze))


def test_without_cycles_it_is_fixed_after_the_freeze():
    beta = CyclicalBeta(3.0, half_cycle_steps=0, freeze_steps=5)
    assert [beta(step) for step in range(8)] == [0.0] * 5 + [3.0] * 3
    assert not any(beta.is_cycle_end(step) for step in range(50))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((-1.0, 1, 0), "fixed_beta"),
        ((float("nan"), 1, 0), "fixed_beta"),
        ((float("inf"), 1, 0), "fixed_beta"),
        ((1.0, -1, 0), "half_cycle_steps"),
        ((1.0, 1, -2), "freeze_steps"),
    ],
)
def test_refused(arguments: tuple[float, int, int], named: str):
    with pytest.raises(InputError, match=named):
        CyclicalBeta(*arguments)


def test_repr_says_what_it_is():
    assert repr(CyclicalBeta(2.0, 4, 1)) == "CyclicalBeta(fixed_beta=2.0, half_cycle_steps=4, freeze_steps=1)"
