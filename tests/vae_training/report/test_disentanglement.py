"""Disentanglement scores on constructed cases whose answers are known, all of them together, and what cannot be
scored."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.factor_scenes import FactorScenes
from latent_obs.util.errors import InputError
from tests.support.factor_tables import HADAMARD, ROTATION, F, Table, noise, table
from vae_training.report.metrics import disentanglement as disentanglement_arrays
from vae_training.report.metrics.disentanglement import (
    beta_vae_score,
    dci,
    factor_vae_score,
    mig,
    mutual_information,
    sap,
    score,
)

pytest.importorskip("sklearn")

PERFECT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as they are": lambda x: x,
    "permuted": lambda x: x[:, [2, 0, 3, 1]],
    "scaled, flipped and moved": lambda x: x * [0.001, -1, 50, -3] + [0, 7, -1, 1000],
    "with dead latents": lambda x: np.hstack(
        [x, np.full((len(x), 2), 3.0), 5 + 1e-8 * np.sin(7 * x[:, :1] + x[:, 1:2])]
    ),
}


@pytest.mark.parametrize("case", PERFECT)
def test_perfect_latents_score_one(case: str):
    frames, values = table(10_000)
    latents = PERFECT[case](frames)
    assert mig(latents, values) > 0.99
    assert sap(latents, values) > 0.99
    trees = dci(latents[:1000], values[:1000])
    assert min(trees.disentanglement, trees.completeness, trees.informativeness) > 0.98
    assert trees.informativeness_per_factor == pytest.approx([1] * F, abs=0.02)
    assert beta_vae_score(PERFECT[case], Table(), votes=300, batch=32) == 1
    assert factor_vae_score(PERFECT[case], Table(), votes=300, batch=32) == 1


@pytest.mark.parametrize(("mixing", "chance"), [(HADAMARD, True), (ROTATION, False)])
def test_entangled_latents_score_low(mixing: np.ndarray, chance: bool):
    """Of the Hadamard mixture each latent holds as much of every factor; a random rotation is somewhere between."""
    frames, values = table(6000)
    latents = frames @ mixing
    trees = dci(latents[:1500], values[:1500])
    assert trees.informativeness > 0.6  # all is there, for those who can unmix it
    if chance:
        assert mig(latents, values) < 0.02
        assert sap(latents, values) < 0.04
        assert max(trees.disentanglement, trees.completeness) < 0.2
        for measure in (beta_vae_score, factor_vae_score):
            assert measure(lambda x: x @ mixing, Table(), votes=600, batch=32) == pytest.approx(1 / F, abs=0.12)
    else:
        assert mig(latents, values) < 0.4
        assert sap(latents, values) < 0.6
        assert max(trees.disentanglement, trees.completeness) < 0.7


def test_noise_scores_nothing():
    frames, values = table(6000)
    latents = noise(frames)
    assert mig(latents, values) < 0.005
    assert sap(latents, values) < 0.005
    assert sap(latents, values, ordered=[False] * F) < 0.02
    trees = dci(latents[:1500], values[:1500])
    assert trees.informativeness < 0.02
    assert all(told is not None and told >= 0 for told in trees.informativeness_per_factor)
    assert max(trees.disentanglement, trees.completeness) < 0.1
    for measure in (beta_vae_score, factor_vae_score):
        assert measure(noise, Table(), votes=600, batch=16) == pytest.approx(1 / F, abs=0.12)


def test_duplicated_latents():
    """Two latents for each factor: no gap; each tells of one factor still, but half of completeness is gone."""
    frames, values = table(6000)
    latents = np.hstack([frames, -2 * frames])
    assert mig(latents, values) == pytest.approx(0, abs=1e-9)
    assert sap(latents, values) == pytest.approx(0, abs=1e-9)
    trees = dci(latents[:1000], values[:1000])
    assert trees.disentanglement > 0.98
    assert trees.completeness == pytest.approx(1 - np.log(2) / np.log(2 * F), abs=0.05)
    assert trees.informativeness > 0.98
    for measure in (beta_vae_score, factor_vae_score):
        assert measure(lambda x: np.hstack([x, -2 * x]), Table(), votes=300, batch=32) == 1


def test_one_latent_for_two_factors():
    """Completeness cannot see it, disentanglement does."""
    frames, values = table(1000, counts=(4, 4, 4, 4))
    latents = np.column_stack([frames[:, 0] * 4 + frames[:, 1], frames[:, 2], frames[:, 3]])
    trees = dci(latents, values, ordered=[False] * 4)
    assert trees.completeness > 0.9
    importances = np.array(trees.importances)
    assert importances.shape == (3, 4)
    assert importances[0, :2].min() > 0.95
    assert importances.sum(axis=0) == pytest.approx(1)
    # Latent 0 has half of the weight, and its two factors in equal parts: an entropy of log 2 out of log 4.
    assert trees.disentanglement == pytest.approx(0.5 * (1 - 0.5) + 0.5, abs=0.05)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), latents=st.integers(1, 4), factors=st.integers(1, 3), n=st.integers(50, 120))
def test_scores_are_from_0_to_1(seed: int, latents: int, factors: int, n: int):
    rng = np.random.default_rng(seed)
    x = rng.choice(
        [rng.normal(size=(n, latents)), rng.integers(-2, 3, (n, latents)).astype(float), np.ones((n, latents))]
    )
    y = rng.integers(-1, rng.integers(1, 5), (n, factors))
    y[:2] = [[-1], [0]]
    kinds = rng.integers(0, 2, factors).astype(bool).tolist()
    for value in (mig(x, y), sap(x, y), sap(x, y, ordered=kinds)):
        assert -1e-9 <= value <= 1 + 1e-9


@pytest.mark.parametrize("dead", [lambda x: np.full((len(x), 3), 4.0), lambda x: 4 + 1e-9 * np.sin(99 * x)])
def test_latents_that_never_change(dead: Callable[[np.ndarray], np.ndarray]):
    frames, values = table(200)
    assert (mig(dead(frames), values), sap(dead(frames), values, ordered=[True, False] * 2)) == (0, 0)
    trees = dci(dead(frames), values, ordered=[True, False] * 2)
    assert (trees.disentanglement, trees.completeness, trees.informativeness) == (0, 0, 0)
    assert not np.array(trees.importances).any()
    for measure in (beta_vae_score, factor_vae_score):
        assert measure(dead, Table(), votes=60, batch=8) == 1 / F


def test_factors_that_never_change_are_left_out():
    frames, values = table(500)
    fixed = np.insert(values, 1, 6, axis=1)
    assert mig(frames @ ROTATION, fixed) == mig(frames @ ROTATION, values)
    assert sap(frames @ ROTATION, fixed) == sap(frames @ ROTATION, values)
    with_fixed, without = dci(frames @ ROTATION, fixed), dci(frames @ ROTATION, values)
    assert with_fixed.disentanglement == without.disentanglement
    assert with_fixed.completeness == without.completeness
    assert with_fixed.informativeness_per_factor[:2] == [without.informativeness_per_factor[0], None]
    scores = score(lambda x: x, Table((5, 1, 5)), samples=400, votes=60, batch=8)
    assert (scores.chance, scores.beta_vae, scores.factor_vae) == (0.5, 1, 1)
    assert list(scores.mig_per_factor) == list(scores.importances) == ["factor_0", "factor_2"]


def test_one_latent_and_one_factor():
    frames, values = table(500, counts=(4,))
    assert (mig(frames, values), sap(frames, values)) == (pytest.approx(1), pytest.approx(1))
    trees = dci(frames, values)
    assert (trees.disentanglement, trees.completeness) == (1, 1)


def test_all_scores_of_pixels():
    """An encoder that reads position and size off the picture."""
    scenes = FactorScenes(32, positions=6, sizes=4, shapes=1, hues=1, orientations=1)

    def encode(frames: np.ndarray) -> np.ndarray:
        light = (frames != frames[:, :1, :1]).any(axis=3).astype(float)
        area, place = light.sum(axis=(1, 2)), np.arange(32)
        return np.column_stack(
            [light.sum(axis=1) @ place / area, light.sum(axis=2) @ place / area, area, np.zeros(len(frames))]
        )

    scores = score(encode, scenes, samples=3000, votes=90, batch=16, dci_samples=600, seed=4)
    assert min(scores.mig, scores.sap, scores.dci_disentanglement, scores.dci_completeness) > 0.8
    assert min(scores.dci_informativeness, scores.beta_vae, scores.factor_vae) > 0.95
    assert (scores.latents, scores.live_latents, scores.samples, scores.seed, scores.chance) == (4, 3, 3000, 4, 1 / 3)
    assert list(scores.mig_per_factor) == ["position_x", "position_y", "size"]
    assert np.argmax(list(scores.importances.values()), axis=1).tolist() == [0, 1, 2]
    assert json.loads(json.dumps(scores.to_json(), allow_nan=False)) == scores.to_json()


def test_a_seed_gives_the_same_scores(monkeypatch: pytest.MonkeyPatch):
    def encode(x: np.ndarray) -> np.ndarray:
        return x @ ROTATION + np.sin(50 * x)

    settings = {"samples": 300, "votes": 90, "batch": 4}
    first = score(encode, Table(), seed=1, **settings)
    assert score(encode, Table(), seed=1, **settings) == first
    other = score(encode, Table(), seed=2, **settings)
    assert all(getattr(other, name) != getattr(first, name) for name in ("mig", "sap", "dci_completeness", "beta_vae"))
    monkeypatch.setattr(disentanglement_arrays, "cores", lambda: 1)  # one thread for the trees
    assert score(encode, Table(), seed=1, **settings) == first


@pytest.mark.parametrize(
    ("latents", "factors", "message"),
    [
        (np.zeros((60, 3)), np.zeros(60, int), r"got shapes \(60, 3\) and \(60,\)"),
        (np.zeros((60, 3)), np.zeros((61, 2), int), "a row per sample"),
        (np.zeros((60, 0)), np.zeros((60, 2), int), r"got shapes \(60, 0\)"),
        (np.zeros((60, 3)), np.zeros((60, 2)), "cut a continuous factor into a few values"),
        (np.zeros((60, 3), complex), np.zeros((60, 2), int), "latents of numbers"),
        (np.zeros((49, 3)), np.zeros((49, 2), int), "49 samples are too few.*give 50 or more"),
        (np.full((60, 3), np.nan), np.zeros((60, 2), int), "NaN or infinite"),
        (np.zeros((60, 3)), np.zeros((60, 2), int), "no factor varies"),
    ],
)
@pytest.mark.parametrize("measure", [mig, sap, dci, mutual_information])
def test_arrays_that_cannot_be_measured(measure: Callable[..., Any], latents: Any, factors: Any, message: str):
    with pytest.raises(InputError, match=message):
        measure(latents, factors)


def test_arguments_that_cannot_be():
    frames, values = table(60)
    with pytest.raises(InputError, match="ordered must say yes or no for each of 4 factors"):
        sap(frames, values, ordered=[True])
    with pytest.raises(InputError, match="bins must be a whole number of 2 or more, got 1"):
        mig(frames, values, bins=1)
    rare = np.zeros((60, 1), int)
    rare[np.random.default_rng(0).permutation(60)[-1]] = 1  # the last one is among those to test on
    with pytest.raises(InputError, match="only one value in the 40 samples"):
        dci(frames, rare)
    for measure in (beta_vae_score, factor_vae_score):
        with pytest.raises(InputError, match="at least two are needed"):
            measure(lambda x: x, Table((4, 1)))
        with pytest.raises(InputError, match="votes must be a whole number of 30 or more, got 29"):
            measure(lambda x: x, Table(), votes=29)
        with pytest.raises(InputError, match="batch must be a whole number of 2 or more, got 1"):
            measure(lambda x: x, Table(), batch=1)
        with pytest.raises(InputError, match=r"encode must give latents of shape \(\d+, D\)"):
            measure(lambda x: x[:, 0], Table())
        with pytest.raises(InputError, match="NaN or infinite"):
            measure(lambda x: x * np.nan, Table())
    for arguments, message in (
        ({"samples": 49}, "samples must"),
        ({"dci_samples": 2}, "dci_samples"),
        ({"seed": -1}, "seed"),
    ):
        with pytest.raises(InputError, match=message):
            score(lambda x: x, Table(), **arguments)
