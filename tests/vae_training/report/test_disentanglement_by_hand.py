"""Disentanglement scores against small computations by hand, and what they may not depend on: the names and scales of
axes."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.factor_tables import ROTATION, F, K, Table, table
from vae_training.report.metrics import disentanglement as disentanglement_arrays
from vae_training.report.metrics import disentanglement as disentanglement_interventions
from vae_training.report.metrics.disentanglement import (
    beta_vae_score,
    dci,
    factor_vae_score,
    mig,
    mutual_information,
    sap,
)

pytest.importorskip("sklearn")


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
    rows = [
        ([0, 0], [0.0, 1.0, 0.0]),
        ([0, 1], [0.0, 1.0, 1.0]),
        ([1, 0], [0.5, 1.0, 0.0]),
        ([1, 1], [0.5, 0.0, 1.0]),
        ([2, 0], [1.0, 0.0, 0.0]),
        ([2, 1], [1.0, 0.0, 0.0]),
    ]
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
    assert sap(np.hstack([frames[:, :1], dead]), values[:, :1], ordered=[False]) == pytest.approx(
        1
    )  # not ahead of a guess


def test_sap_counts_rare_values_as_much_as_common_ones():
    rng = np.random.default_rng(0)
    values = (rng.random(4000) < 0.1).astype(int)
    latent = values + rng.normal(size=4000)
    thresholds = np.linspace(-3, 4, 200)[:, None]
    balanced = (
        (latent > thresholds)[:, values == 1].mean(axis=1) + (latent <= thresholds)[:, values == 0].mean(axis=1)
    ) / 2
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
def test_axes_may_be_renamed_flipped_scaled_and_moved(
    seed: int, order: list[int], scales: list[float], offsets: list[float]
):
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
        assert all(
            len(np.unique(first[:, :, k])) == first[:, :, k].size for k in range(F)
        )  # ... each with its own value
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
    assert all(
        len(np.unique(batch[:, k])) == 16 for batch, s in zip(batches, same, strict=True) for k in np.flatnonzero(~s)
    )
    assert np.bincount(same.argmax(axis=1)).min() > 10


def test_encoders_get_no_more_than_they_can_hold(monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []

    def encode(x: np.ndarray) -> np.ndarray:
        sizes.append(len(x))
        return x

    monkeypatch.setattr(disentanglement_interventions, "_FRAMES_AT_ONCE", 100)
    assert (
        beta_vae_score(encode, Table(), votes=31, batch=70)
        == factor_vae_score(encode, Table(), votes=31, batch=70)
        == 1
    )
    assert max(sizes) == 100
    assert sum(sizes) == 31 * 140 + 20 * 70 + 31 * 70
