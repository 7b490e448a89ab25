"""Disentanglement scores on constructed cases whose answers are known, and against small computations by hand."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_obs.errors import InputError
from vae_training.report import disentanglement_arrays, disentanglement_interventions
from vae_training.report.disentanglement import (
    beta_vae_score,
    dci,
    factor_vae_score,
    mig,
    mutual_information,
    sap,
    score,
)
from vae_training.report.factor_scenes import Factor, FactorScenes

pytest.importorskip("sklearn")

F, K = 4, 8  # factors, and values of each
HADAMARD = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
ROTATION = np.linalg.qr(np.random.default_rng(5).normal(size=(F, F)))[0]


@dataclass
class Table:
    """Scenes whose frames are the values of the factors themselves; it remembers what it rendered."""

    counts: tuple[int, ...] = (K,) * F
    ordered: bool = True
    rendered: list[np.ndarray] = field(default_factory=list)

    @property
    def factors(self) -> list[Factor]:
        return [Factor(f"factor_{i}", n, self.ordered) for i, n in enumerate(self.counts)]

    def sample_values(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, self.counts, (n, len(self.counts)))

    def render(self, values: np.ndarray) -> np.ndarray:
        self.rendered.append(values.copy())
        return values - (np.array(self.counts) - 1) / 2


def table(n: int, seed: int = 0, counts: tuple[int, ...] = (K,) * F) -> tuple[np.ndarray, np.ndarray]:
    """Frames and values of a `Table`."""
    scenes = Table(counts)
    values = scenes.sample_values(n, np.random.default_rng(seed))
    return scenes.render(values), values


def noise(frames: np.ndarray) -> np.ndarray:
    """Latents that have nothing to do with the frames, yet are the same for the same ones."""
    return np.random.default_rng(abs(int(frames[:50].sum() * 2)) + len(frames)).normal(size=(len(frames), F))


PERFECT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as they are": lambda x: x,
    "permuted": lambda x: x[:, [2, 0, 3, 1]],
    "scaled, flipped and moved": lambda x: x * [0.001, -1, 50, -3] + [0, 7, -1, 1000],
    "with dead latents": lambda x: np.hstack([x, np.full((len(x), 2), 3.0), 5 + 1e-8 * np.sin(7 * x[:, :1] + x[:, 1:2])]),
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


def test_scores_of_dci_follow_from_its_importances():
    frames, values = table(600)
    trees = dci(frames @ ROTATION, values)
    r = np.array(trees.importances) + 1e-300
    rows, columns = r / r.sum(axis=1, keepdims=True), r / r.sum(axis=0)
    per_latent = 1 + (rows * np.log(rows)).sum(axis=1) / np.log(F)
    assert trees.disentanglement == pytest.approx((per_latent * r.sum(axis=1)).sum() / r.sum())
    assert trees.completeness == pytest.approx(np.mean(1 + (columns * np.log(columns)).sum(axis=0) / np.log(F)))
    found = disentanglement_arrays._concentration(np.array([[2.0, 2, 0, 0], [0, 5, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]))
    assert found == pytest.approx([0.5, 1, 0, 0])


def test_mig_by_hand():
    """A table of two factors and three latents, small enough to write out."""
    #         factor 0, 1   latents
    rows = [([0, 0], [0.0, 1.0, 0.0]),
            ([0, 1], [0.0, 1.0, 1.0]),
            ([1, 0], [0.5, 1.0, 0.0]),
            ([1, 1], [0.5, 0.0, 1.0]),
            ([2, 0], [1.0, 0.0, 0.0]),
            ([2, 1], [1.0, 0.0, 0.0])]  # fmt: skip
    values = np.array([value for value, _ in rows] * 20)
    latents = np.array([latent for _, latent in rows] * 20)

    def by_hand(joint: list[list[float]]) -> float:
        p = np.array(joint) / 6
        outer = p.sum(axis=1, keepdims=True) * p.sum(axis=0)
        return float(np.sum(p[p > 0] * np.log(p[p > 0] / outer[p > 0])))

    expected = np.array(
        [
            # factor 0 (rows 0, 1, 2)               factor 1 (rows 0, 1); columns are the values of the latent
            [np.log(3), 0],
            [by_hand([[0, 2], [1, 1], [2, 0]]), by_hand([[1, 2], [2, 1]])],
            [by_hand([[1, 1], [1, 1], [2, 0]]), by_hand([[3, 0], [1, 2]])],
        ]
    )
    assert mutual_information(latents, values) == pytest.approx(expected, abs=1e-12)
    gaps = [(np.log(3) - expected[1, 0]) / np.log(3), (expected[2, 1] - expected[1, 1]) / np.log(2)]
    assert mig(latents, values) == pytest.approx(np.mean(gaps))
    assert 0.2 < mig(latents, values) < 0.8


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), n=st.integers(50, 400), bins=st.integers(2, 30), kinds=st.integers(2, 9))
def test_information_as_numpy_counts_it(seed: int, n: int, bins: int, kinds: int):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, kinds, n)
    values[:2] = 0, 1
    latent = values * rng.normal() + rng.normal(size=n)
    p = np.histogram2d(latent, values, [bins, kinds], [[latent.min(), latent.max()], [-0.5, kinds - 0.5]])[0] / n
    outer = p.sum(axis=1, keepdims=True) * p.sum(axis=0)
    expected = np.sum(p[p > 0] * np.log(p[p > 0] / outer[p > 0]))
    shares = p.sum(axis=0)[p.sum(axis=0) > 0]
    entropy = -np.sum(shares * np.log(shares))
    assert mutual_information(latent[:, None], values[:, None], bins=bins).item() == pytest.approx(expected, abs=1e-9)
    assert mig(latent[:, None], values[:, None], bins=bins) == pytest.approx(expected / entropy, abs=1e-9)


def test_more_values_than_bins_are_out_of_reach():
    values = np.arange(4000)[:, None] % 40
    assert mig(values, values) == pytest.approx(np.log(20) / np.log(40))
    assert mig(values, values, bins=40) == pytest.approx(1)


def test_sap_of_factors_in_no_order():
    """Thresholds tell any arrangement on a line; a guess among three is right once in three times."""
    frames, values = table(6000, counts=(3, 3))
    shuffled = np.array([1.0, -4.0, 2.5])[values]  # the middle value at one end
    assert sap(shuffled, values, ordered=[False, False]) == pytest.approx(1 - 1 / 3, abs=0.03)
    line = np.corrcoef([1.0, -4.0, 2.5], [0, 1, 2])[0, 1] ** 2
    assert sap(shuffled, values) == pytest.approx(line, abs=0.02)
    assert sap(shuffled, values, ordered=[True, False]) == pytest.approx((line + 2 / 3) / 2, abs=0.03)
    two_of_three = np.array([0.0, 0.0, 1.0])[values[:, :1]]  # the first two values look the same
    assert sap(two_of_three, values[:, :1], ordered=[False]) == pytest.approx(2 / 3)
    dead = np.zeros((6000, 1))
    assert sap(np.hstack([frames[:, :1], dead]), values[:, :1], ordered=[False]) == pytest.approx(1)  # not ahead of a guess


def test_sap_counts_rare_values_as_much_as_common_ones():
    rng = np.random.default_rng(0)
    values = (rng.random(4000) < 0.1).astype(int)
    latent = values + rng.normal(size=4000)
    thresholds = np.linspace(-3, 4, 200)[:, None]
    balanced = ((latent > thresholds)[:, values == 1].mean(axis=1) + (latent <= thresholds)[:, values == 0].mean(axis=1)) / 2
    assert sap(latent[:, None], values[:, None], ordered=[False]) == pytest.approx(balanced.max(), abs=0.02)


def test_informativeness_of_factors_with_and_without_order():
    """Of three values the first two look the same."""
    values = np.random.default_rng(0).integers(0, 3, (3000, 1))
    latents = np.array([0.0, 0.0, 1.0])[values]
    # Half of the errors of a guess are left (1/3 instead of 2/3); as numbers, an error of 1/2 in two cases of three.
    assert dci(latents, values, ordered=[False]).informativeness == pytest.approx(0.5, abs=0.05)
    assert dci(latents, values, ordered=[True]).informativeness == pytest.approx(1 - (2 / 3 * 0.25) / (2 / 3), abs=0.05)


@settings(deadline=None, max_examples=10)
@given(
    seed=st.integers(0, 1000),
    order=st.permutations(range(F)),
    scales=st.lists(st.floats(0.01, 100) | st.floats(-100, -0.01), min_size=F, max_size=F),
    offsets=st.lists(st.floats(-10, 10), min_size=F, max_size=F),
)
def test_axes_may_be_renamed_flipped_scaled_and_moved(seed: int, order: list[int], scales: list[float], offsets: list[float]):
    frames, values = table(200, seed)
    latents = frames @ (ROTATION + np.eye(F)) + np.random.default_rng(seed).normal(size=frames.shape)
    other = (latents * scales + np.multiply(offsets, scales))[:, order]
    assert mig(other, values) == pytest.approx(mig(latents, values), abs=0.01)  # a sample may be on the edge of a bin
    assert sap(other, values) == pytest.approx(sap(latents, values), abs=1e-6)
    assert sap(other, values, ordered=[False] * F) == pytest.approx(sap(latents, values, ordered=[False] * F), abs=0.02)
    assert mig(latents, values[:, order]) == pytest.approx(mig(latents, values))
    names = np.random.default_rng(seed).permutation(K) * 3 - 5
    assert mig(latents, names[values]) == pytest.approx(mig(latents, values))
    assert sap(latents, 7 - 2 * values) == pytest.approx(sap(latents, values))


@pytest.mark.parametrize("measure", [beta_vae_score, factor_vae_score])
def test_axes_do_not_matter_to_scores_by_intervention(measure: Callable[..., float]):
    def encode(x: np.ndarray) -> np.ndarray:
        return x @ (0.3 * ROTATION + np.eye(F)) + 2 * np.sin(9 * x.sum(axis=1, keepdims=True))

    plain = measure(encode, Table(), votes=240, batch=8)
    moved = measure(lambda x: (encode(x) * [1e-2, -3, 20, -500] + 9)[:, [3, 1, 0, 2]], Table(), votes=240, batch=8)
    assert 1 / F + 0.1 < plain < 1
    assert moved == pytest.approx(plain, abs=0.01)


def test_axes_do_not_matter_to_trees():
    frames, values = table(500)
    latents = frames @ (ROTATION + np.eye(F))
    plain, moved = dci(latents, values), dci((latents * [0.01, -3, 20, -500] + 9)[:, [3, 1, 0, 2]], values)
    for name in ("disentanglement", "completeness", "informativeness"):
        assert getattr(moved, name) == pytest.approx(getattr(plain, name), abs=0.03)
    assert np.array(moved.importances) == pytest.approx(np.array(plain.importances)[[3, 1, 0, 2]], abs=0.03)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), latents=st.integers(1, 4), factors=st.integers(1, 3), n=st.integers(50, 120))
def test_scores_are_from_0_to_1(seed: int, latents: int, factors: int, n: int):
    rng = np.random.default_rng(seed)
    x = rng.choice([rng.normal(size=(n, latents)), rng.integers(-2, 3, (n, latents)).astype(float), np.ones((n, latents))])
    y = rng.integers(-1, rng.integers(1, 5), (n, factors))
    y[:2] = [[-1], [0]]
    kinds = rng.integers(0, 2, factors).astype(bool).tolist()
    for value in (mig(x, y), sap(x, y), sap(x, y, ordered=kinds)):
        assert -1e-9 <= value <= 1 + 1e-9


def test_pairs_share_one_factor_and_batches_too():
    """What is rendered is what Higgins et al. and Kim & Mnih define; with many values nothing is equal by chance."""
    scenes = Table((10**12,) * F)
    beta_vae_score(lambda x: x, scenes, votes=100, batch=16)
    shared = []
    for part in scenes.rendered:
        one, other = np.split(part, 2)
        same = (one == other).reshape(-1, 16, F)
        assert (same.sum(axis=2) == 1).all()
        assert (same == same[:, :1]).all()  # the same factor for all pairs of a vote ...
        shared.append(same[:, 0].argmax(axis=1))
        first = one.reshape(-1, 16, F)
        assert all(len(np.unique(first[:, :, k])) == first[:, :, k].size for k in range(F))  # ... each with its own value
    counts = np.bincount(np.concatenate(shared), minlength=F)
    assert (counts.sum(), len(counts)) == (100, F)
    assert counts.min() > 10
    scenes.rendered.clear()
    factor_vae_score(lambda x: x, scenes, votes=100, batch=16)
    anywhere, *parts = scenes.rendered
    assert all(len(np.unique(anywhere[:, k])) > 500 for k in range(F))
    batches = np.concatenate(parts).reshape(100, 16, F)
    same = (batches == batches[:, :1]).all(axis=1)
    assert (same.sum(axis=1) == 1).all()
    assert all(len(np.unique(batch[:, k])) == 16 for batch, s in zip(batches, same, strict=True) for k in np.flatnonzero(~s))
    assert np.bincount(same.argmax(axis=1)).min() > 10


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


def test_encoders_get_no_more_than_they_can_hold(monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []

    def encode(x: np.ndarray) -> np.ndarray:
        sizes.append(len(x))
        return x

    monkeypatch.setattr(disentanglement_interventions, "_FRAMES_AT_ONCE", 100)
    assert beta_vae_score(encode, Table(), votes=31, batch=70) == factor_vae_score(encode, Table(), votes=31, batch=70) == 1
    assert max(sizes) == 100
    assert sum(sizes) == 31 * 140 + 20 * 70 + 31 * 70


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
    for arguments, message in (({"samples": 49}, "samples must"), ({"dci_samples": 2}, "dci_samples"), ({"seed": -1}, "seed")):
        with pytest.raises(InputError, match=message):
            score(lambda x: x, Table(), **arguments)
