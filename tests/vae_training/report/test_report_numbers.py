"""What a report measures, on constructed cases: reconstruction scores, statistics of latents, stability."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tiny import picture, random_frames, tiny_architecture
from vae_training.report.metrics.latents import describe
from vae_training.report.metrics.reconstruction import compare, measure, train_autoencoder
from vae_training.report.metrics.stability import brightened, measure_stability, random_pairs, shifted

pytest.importorskip("skimage")


def described(mean: Any) -> Any:
    return describe(mean, np.full(mean.shape, -4.0))


def ssim_by_formula(one: Any, other: Any) -> float:
    """Equation 13 of Wang et al. 2004, one channel, without the border that the window does not cover."""
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = 0.01**2, 0.03**2
    values = []
    for y in range(5, one.shape[0] - 5):
        for x in range(5, one.shape[1] - 5):
            a, b = (image[y - 5 : y + 6, x - 5 : x + 6] for image in (one, other))
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * a * a).sum() - ma**2, (window * b * b).sum() - mb**2
            both = (window * a * b).sum() - ma * mb
            values.append((2 * ma * mb + c1) * (2 * both + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(values))


def test_ssim_is_that_of_the_paper():
    frames = random_frames(2, (16, 16, 3))
    other = np.clip(frames / 255 + np.random.default_rng(0).normal(0, 0.2, frames.shape), 0, 1).astype(np.float32)
    found = measure(frames, lambda _: other).ssim
    assert found is not None
    for i in range(2):
        by_channel = [ssim_by_formula(frames[i, ..., c] / 255, other[i, ..., c]) for c in range(3)]
        assert found[i] == pytest.approx(np.mean(by_channel), abs=1e-5)
    assert measure(random_frames(2, (10, 30, 3)), lambda batch: (batch / 255).astype(np.float32)).ssim is None


def test_errors_are_those_of_the_formulas():
    frames = np.full((300, 12, 12, 3), 51, np.uint8)  # 0.2
    frames[:, :6] = 102  # 0.4
    measured = measure(frames, lambda batch: np.full(batch.shape, 0.3, np.float32))
    assert measured.mse == pytest.approx(0.01, rel=1e-5)
    assert measured.error_map == pytest.approx(0.01, rel=1e-5)
    scores = measured.scores()
    assert scores.psnr_db == pytest.approx(20, abs=1e-4)
    assert (scores.mse_median, scores.mse_worst) == pytest.approx((0.01, 0.01), rel=1e-5)
    assert scores.ssim is not None
    assert scores.ssim < 0.9


def test_the_error_map_shows_where():
    frames = np.zeros((4, 16, 16, 1), np.uint8)
    frames[:, 10, 3] = 255
    measured = measure(frames, lambda batch: np.zeros(batch.shape, np.float32))
    assert measured.error_map[10, 3] == measured.error_map.sum() == pytest.approx(1)
    coarse = np.array(compare({"encoder": measured}, shown=1).error_map)
    assert coarse.shape == (8, 8)
    assert coarse[5, 1] == coarse.sum() == pytest.approx(0.25)


def test_a_perfect_picture_has_a_finite_psnr_and_what_is_drawn_beyond_white_is_clamped():
    frames = np.full((3, 12, 12, 1), 255, np.uint8)
    scores = measure(frames, lambda batch: np.full(batch.shape, 7.0, np.float32)).scores()
    assert (scores.mse, scores.ssim) == (0, pytest.approx(1))
    assert scores.psnr_db == pytest.approx(10 * math.log10(255**2 * 12))


def test_best_and_worst_frames_and_ratios():
    frames = np.zeros((100, 8, 8, 1), np.uint8)
    errors = np.random.default_rng(1).permutation(100) / 100

    def reconstruct(batch: Any) -> Any:
        return np.broadcast_to(errors[: len(batch), None, None, None], batch.shape).astype(np.float32)

    half = measure(frames, lambda batch: reconstruct(batch) / 2)
    found = compare({"encoder": measure(frames, reconstruct), "pca": half}, shown=5)
    assert (found.worst[0], found.best[0]) == (errors.argmax(), errors.argmin())
    assert list(errors[found.worst]) == sorted(errors[found.worst], reverse=True)
    for chosen in (found.best, found.worst):
        assert np.diff(sorted(chosen)).min() > 100 // 25
    assert found.ratio("pca") == pytest.approx(4, rel=1e-3)
    assert found.ratio("autoencoder") is None


def test_the_autoencoder_learns_and_leaves_torchs_random_state_alone():
    frames = np.stack([picture(0, step, 16, 16) for step in range(32)])
    before = torch.get_rng_state()
    first, _ = train_autoencoder(tiny_architecture(), frames, steps=1, progress_bar=False)
    method, seconds = train_autoencoder(tiny_architecture(), frames, steps=40, progress_bar=False)
    again, _ = train_autoencoder(tiny_architecture(), frames, steps=40, progress_bar=False)
    assert torch.equal(before, torch.get_rng_state())
    assert seconds > 0
    assert measure(frames, method).scores().mse < 0.6 * measure(frames, first).scores().mse
    assert np.array_equal(method(frames), again(frames))


def test_kl_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    mean, logvar = (torch.randn(50, 4, generator=generator) for _ in range(2))
    q = torch.distributions.Normal(mean, torch.exp(0.5 * logvar))
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).mean(0)
    found = describe(mean.numpy(), logvar.numpy())
    assert found.kl_nats_by_dimension == pytest.approx(expected.tolist(), rel=1e-5)
    assert found.kl_nats == pytest.approx(float(expected.sum()), rel=1e-5)
    assert [expected[i] for i in found.by_information] == sorted(expected, reverse=True)


def test_moments_are_those_of_samples():
    rng = np.random.default_rng(0)
    mean, variance = rng.normal(0, 1, (6, 2)) ** 3, rng.random((6, 2)) + 0.1
    draws = rng.normal(mean, np.sqrt(variance), (200_000, 6, 2)).reshape(-1, 2)
    found = describe(mean, np.log(variance))
    assert found.aggregate_mean == pytest.approx(draws.mean(0), abs=0.02)
    assert found.aggregate_std == pytest.approx(draws.std(0), rel=0.01)
    skew = (((draws - draws.mean(0)) / draws.std(0)) ** 3).mean(0)
    assert found.aggregate_skew == pytest.approx(skew, abs=0.05)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 40), st.integers(1, 6), st.integers(0, 2**16))
def test_correlations_are_numpys(frames: int, dimensions: int, seed: int):
    values = np.random.default_rng(seed).normal(size=(frames, dimensions))
    expected = np.atleast_2d(np.corrcoef(values.T))
    assert np.array(described(values).correlation) == pytest.approx(expected, abs=1e-4)


def test_a_mean_that_never_changes_is_correlated_with_nothing():
    rng = np.random.default_rng(0)
    values = np.stack([rng.normal(size=30), np.full(30, 0.1), rng.normal(size=30)], axis=1)
    found = described(values)
    assert np.isfinite(found.correlation).all()
    assert found.correlation[1] == [0, 1, 0]
    assert found.active == [True, False, True]
    assert found.strongest_pair == pytest.approx([0, 2, np.corrcoef(values[:, 0], values[:, 2])[0, 1]])
    assert found.mean_abs_correlation == pytest.approx(abs(found.strongest_pair[2]))


@pytest.mark.parametrize(("variance", "active"), [(0.0102, 1), (0.0098, 0)])
def test_active_from_a_variance_of_one_hundredth(variance: float, active: int):
    assert described(np.array([[1.0], [-1.0]]) * math.sqrt(variance)).active_units == active


@pytest.mark.parametrize(
    ("mean", "std", "logvar", "collapsed"),
    [
        (0, 0.01, -1e-4, True),
        (2, 0, -3, True),  # far from the prior, and the same for every frame
        (0, 0.2, 0, True),  # all vary a little, and carry 0.16 nats
        (0, 1, -4, False),
    ],
)
def test_a_collapsed_encoder_is_found(mean: float, std: float, logvar: float, collapsed: bool):
    means = np.random.default_rng(0).normal(mean, std, (200, 8))
    assert describe(means, np.full((200, 8), logvar)).collapsed == collapsed


def test_effective_dimensions_count_directions():
    free = np.random.default_rng(0).normal(size=(4_000, 6))
    assert described(free).effective_dimensions == pytest.approx(6, rel=0.03)
    assert described(free[:, :1] * np.ones(6)).effective_dimensions == pytest.approx(1)
    assert described(free[:, :3] @ np.kron(np.eye(3), [1, 1])).effective_dimensions == pytest.approx(3, rel=0.03)


def test_a_shift_moves_what_it_should():
    frames = np.arange(12, dtype=np.uint8).reshape(1, 3, 4, 1)
    assert shifted(frames, 1, 0)[0, :, :, 0].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert shifted(frames, 0, -1)[0, :, :, 0].tolist() == [[1, 2, 3, 3], [5, 6, 7, 7], [9, 10, 11, 11]]
    assert brightened(np.array([0, 255], np.uint8), -8).tolist() == [0, 247]
    assert brightened(np.array([0, 255], np.uint8), 8).tolist() == [8, 255]


def test_a_linear_encoder_of_brightness():
    """Latent = mean brightness, so each change is known: a shift changes nothing of an even picture, +8 changes 8."""
    levels = np.linspace(40, 200, 81).astype(np.uint8)
    frames = np.tile(levels[:, None, None, None], (1, 8, 8, 3))

    def encode(x: Any) -> Any:
        return x.astype(np.float64).mean(axis=(1, 2, 3))[:, None]

    pairs = (frames[:-1], frames[1:])
    found = measure_stability(encode, frames, pairs)
    one, other = random_pairs(len(frames), 0)
    assert (one != other).all()
    assert set(one) == set(range(len(frames)))
    spread = np.abs(levels[one].astype(float) - levels[other]).mean()
    assert found.spread == pytest.approx(spread)
    assert found.shift == 0
    assert set(found.shift_by_direction) == {"left", "right", "up", "down"}
    assert (found.brightness, found.brightness_pixels) == pytest.approx((8 / spread, 8 / spread))
    assert (found.neighbours, found.neighbors_pixels) == pytest.approx((2 / spread, 2 / spread))
    assert found.pairs == 80
    assert measure_stability(lambda x: 1000 * encode(x), frames, pairs).brightness == pytest.approx(found.brightness)


def test_an_encoder_of_one_column_moves_with_shifts_to_the_side_only():
    frames = np.zeros((20, 8, 8, 1), np.uint8)
    frames[:, :, ::2] = 200
    frames[:, :, 4] = np.arange(20)[:, None, None] * 10
    found = measure_stability(lambda x: x[:, :, 4].astype(np.float64).mean(axis=(1, 2))[:, None], frames)
    assert found.shift_by_direction["up"] == found.shift_by_direction["down"] == 0
    assert found.shift_by_direction["left"] > 0.5
    assert (found.neighbours, found.pairs) == (None, 0)


def test_equal_latents_have_no_spread():
    found = measure_stability(lambda x: np.zeros((len(x), 3)), random_frames(20))
    assert (found.spread, found.shift, found.brightness) == (0, 0, 0)
