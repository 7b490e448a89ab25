"""DCI and MIG on constructed cases whose answers are known."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from latent_obs.util.errors import InputError
from vae_training.report.metrics import disentanglement
from vae_training.report.metrics.disentanglement import dci, mig, mig_by_factor

pytest.importorskip("sklearn")

F = 4
HADAMARD = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2


def table(n: int, levels: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Codes that are the factors, centered, and the factors."""
    values = np.random.default_rng(0).integers(0, levels, (n, F))
    return values - (levels - 1) / 2, values


def test_perfect_latents_score_one_in_any_order_and_scale_and_beside_dead_ones():
    codes, values = table(4_000)
    rounding = 5 + 1e-8 * np.sin(7 * codes[:, :1] + codes[:, 1:2])
    found = np.hstack([codes[:, [2, 0, 3, 1]] * [0.001, -1, 50, -3] + 7, np.full((len(codes), 2), 3.0), rounding])
    assert mig(found, values) > 0.99
    trees = dci(found[:400], values[:400])
    assert min(trees.disentanglement, trees.completeness, trees.informativeness) > 0.98
    assert trees.by_factor == pytest.approx([1] * F, abs=0.02)


def test_entangled_latents_score_low_and_noise_nothing():
    """Each latent of the Hadamard mixture holds as much of every factor; all is there, for those who can unmix it."""
    codes, values = table(3_000)
    assert mig(codes @ HADAMARD, values) < 0.03
    trees = dci(codes[:600] @ HADAMARD, values[:600])
    assert trees.informativeness > 0.5
    assert max(trees.disentanglement, trees.completeness) < 0.2
    noise = np.random.default_rng(1).normal(size=(3_000, F))
    assert mig(noise, values) < 0.01
    assert dci(noise[:400], values[:400]).informativeness < 0.05


def test_duplicated_latents_have_no_gap_and_half_of_completeness():
    codes, values = table(700)
    codes = np.hstack([codes, -2 * codes])
    assert mig(codes, values) == pytest.approx(0, abs=1e-9)
    trees = dci(codes, values)
    assert trees.disentanglement > 0.98
    assert trees.completeness == pytest.approx(1 - np.log(2) / np.log(2 * F), abs=0.05)


def test_one_latent_for_two_factors_lowers_disentanglement_only():
    codes, values = table(400, levels=4)
    codes = np.column_stack([codes[:, 0] * 4 + codes[:, 1], codes[:, 2], codes[:, 3]])
    trees = dci(codes, values, categorical=[True] * F)
    assert trees.completeness > 0.9
    assert trees.importances.sum(axis=0) == pytest.approx(1)
    # Latent 0 has half of the weight, and its two factors in equal parts: an entropy of log 2 out of log 4.
    assert trees.disentanglement == pytest.approx(0.5 * (1 - 0.5) + 0.5, abs=0.05)


def test_a_factor_that_is_not_known_everywhere_is_measured_where_it_is():
    codes, values = table(1_000)
    some = values.astype(float)
    some[::2, 0] = np.nan
    some[:, 1] = 7.0
    some[49:, 2] = np.nan
    gaps = mig_by_factor(codes, some)
    assert gaps[0] == mig_by_factor(codes[1::2], values[1::2])[0]
    assert np.isnan(gaps).tolist() == [False, True, True, False], "constant, and known in too few samples"
    trees = dci(codes[:400], some[:400])
    assert np.isnan(trees.by_factor).tolist() == [False, True, True, False]
    assert trees.informativeness > 0.9


def test_continuous_factors_are_cut_into_bins():
    factors = np.random.default_rng(0).normal(size=(4_000, 2))
    assert mig(factors, factors) > 0.9
    assert mig(factors @ [[1, 1], [1, -1]], factors) < 0.1


def test_latents_that_never_change():
    codes, values = table(200)
    for dead in (np.full((200, 3), 4.0), 4 + 1e-9 * np.sin(99 * codes)):
        assert mig(dead, values) == 0
        trees = dci(dead, values)
        assert (trees.disentanglement, trees.completeness, trees.informativeness) == (0, 0, 0)


def test_a_seed_gives_the_same_scores_with_any_number_of_threads(monkeypatch: pytest.MonkeyPatch):
    codes, values = table(200)
    first = dci(codes @ HADAMARD, values, seed=1)
    monkeypatch.setattr(disentanglement, "cores", lambda: 1)
    again = dci(codes @ HADAMARD, values, seed=1)
    assert np.array_equal(first.importances, again.importances)
    assert first.informativeness == again.informativeness
    assert dci(codes @ HADAMARD, values, seed=2).informativeness != first.informativeness


@pytest.mark.parametrize(
    ("codes", "factors", "named"),
    [
        (np.zeros((60, 3)), np.zeros((61, 2)), "codes"),
        (np.full((60, 3), np.nan), np.zeros((60, 2)), "codes"),
        (np.zeros((49, 3)), np.arange(49.0)[:, None], "factors"),
        (np.zeros((60, 3)), np.zeros((60, 2)), "factors"),
    ],
)
@pytest.mark.parametrize("measure", [mig, dci])
def test_arrays_that_cannot_be_measured(measure: Callable[..., Any], codes: Any, factors: Any, named: str):
    with pytest.raises(InputError, match=named):
        measure(codes, factors)
