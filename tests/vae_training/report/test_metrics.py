"""What a report measures, on constructed cases: reconstructions, latents, stability, disentanglement, and baselines."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from latent_obs.encoder.architecture import Architecture, Encoder
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.pixels import PixelContract
from latent_obs.util.errors import InputError
from tests.support.tiny import picture, random_frames
from vae_training.report.metrics import disentanglement
from vae_training.report.metrics.baselines import MeanImage, Pca, random_encoder
from vae_training.report.metrics.disentanglement import dci, mig, mig_by_factor
from vae_training.report.metrics.latents import brightened, describe, measure_stability, random_pairs, shifted
from vae_training.report.metrics.reconstruction import compare, measure

pytest.importorskip("skimage")
decomposition = pytest.importorskip("sklearn.decomposition")

F = 4
HADAMARD = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2


def described(mean: Any) -> Any:
    return describe(mean, np.full(mean.shape, -4.0))


def test_ssim_is_that_of_the_paper():
    """Equation 13 of Wang et al. 2004, by channel, without the border that the window does not cover."""
    frames = random_frames(2, (16, 16, 3))
    other = np.clip(frames / 255 + np.random.default_rng(0).normal(0, 0.2, frames.shape), 0, 1).astype(np.float32)
    found = measure(frames, lambda _: other).ssim
    assert found is not None

    def mean(values: Any) -> Any:
        return ndimage.gaussian_filter(values, (0, 1.5, 1.5, 0), radius=5)[:, 5:-5, 5:-5]

    a, b, c1, c2 = frames / 255, other.astype(float), 0.01**2, 0.03**2
    ma, mb = mean(a), mean(b)
    va, vb, both = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    ssim = (2 * ma * mb + c1) * (2 * both + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    assert found == pytest.approx(ssim.mean(axis=(1, 2, 3)), abs=1e-5)
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
    # What is drawn beyond white is clamped, and a perfect picture has a finite PSNR.
    perfect = measure(
        np.full((3, 12, 12, 1), 255, np.uint8), lambda batch: np.full(batch.shape, 7, np.float32)
    ).scores()
    assert (perfect.mse, perfect.ssim) == (0, pytest.approx(1))
    assert perfect.psnr_db == pytest.approx(10 * math.log10(255**2 * 12))


def test_the_error_map_shows_where():
    frames = np.zeros((4, 16, 16, 1), np.uint8)
    frames[:, 10, 3] = 255
    measured = measure(frames, lambda batch: np.zeros(batch.shape, np.float32))
    assert measured.error_map[10, 3] == measured.error_map.sum() == pytest.approx(1)
    coarse = np.array(compare({"encoder": measured}, shown=1).error_map)
    assert coarse.shape == (8, 8)
    assert coarse[5, 1] == coarse.sum() == pytest.approx(0.25)


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
    units = [described(np.array([[1.0], [-1.0]]) * math.sqrt(variance)).active_units for variance in (0.0102, 0.0098)]
    assert units == [1, 0]


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
    assert (found.neighbors, found.neighbors_pixels) == pytest.approx((2 / spread, 2 / spread))
    assert found.pairs == 80
    assert measure_stability(lambda x: 1000 * encode(x), frames, pairs).brightness == pytest.approx(found.brightness)


def test_an_encoder_of_one_column_moves_with_shifts_to_the_side_only_and_a_constant_one_never():
    frames = np.zeros((20, 8, 8, 1), np.uint8)
    frames[:, :, ::2] = 200
    frames[:, :, 4] = np.arange(20)[:, None, None] * 10
    found = measure_stability(lambda x: x[:, :, 4].astype(np.float64).mean(axis=(1, 2))[:, None], frames)
    assert found.shift_by_direction["up"] == found.shift_by_direction["down"] == 0
    assert found.shift_by_direction["left"] > 0.5
    assert (found.neighbors, found.pairs) == (None, 0)
    constant = measure_stability(lambda x: np.zeros((len(x), 3)), frames)
    assert (constant.spread, constant.shift, constant.brightness) == (0, 0, 0)


def codes_and_factors(n: int, levels: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Codes that are the factors, centered, and the factors."""
    values = np.random.default_rng(0).integers(0, levels, (n, F))
    return values - (levels - 1) / 2, values


def test_perfect_latents_score_one_in_any_order_and_scale_and_beside_dead_ones():
    codes, values = codes_and_factors(4_000)
    rounding = 5 + 1e-8 * np.sin(7 * codes[:, :1] + codes[:, 1:2])
    found = np.hstack([codes[:, [2, 0, 3, 1]] * [0.001, -1, 50, -3] + 7, np.full((len(codes), 2), 3.0), rounding])
    assert mig(found, values) > 0.99
    trees = dci(found[:400], values[:400])
    assert min(trees.disentanglement, trees.completeness, trees.informativeness) > 0.98
    assert trees.by_factor == pytest.approx([1] * F, abs=0.02)


def test_entangled_latents_score_low_and_noise_nothing():
    """Each latent of the Hadamard mixture holds as much of every factor; all is there, for those who can unmix it."""
    codes, values = codes_and_factors(3_000)
    assert mig(codes @ HADAMARD, values) < 0.03
    trees = dci(codes[:600] @ HADAMARD, values[:600])
    assert trees.informativeness > 0.5
    assert max(trees.disentanglement, trees.completeness) < 0.2
    noise = np.random.default_rng(1).normal(size=(3_000, F))
    assert mig(noise, values) < 0.01
    assert dci(noise[:400], values[:400]).informativeness < 0.05


def test_duplicated_latents_have_no_gap_and_half_of_completeness():
    codes, values = codes_and_factors(700)
    codes = np.hstack([codes, -2 * codes])
    assert mig(codes, values) == pytest.approx(0, abs=1e-9)
    trees = dci(codes, values)
    assert trees.disentanglement > 0.98
    assert trees.completeness == pytest.approx(1 - np.log(2) / np.log(2 * F), abs=0.05)


def test_one_latent_for_two_factors_lowers_disentanglement_only():
    codes, values = codes_and_factors(400, levels=4)
    codes = np.column_stack([codes[:, 0] * 4 + codes[:, 1], codes[:, 2], codes[:, 3]])
    trees = dci(codes, values, categorical=[True] * F)
    assert trees.completeness > 0.9
    assert trees.importances.sum(axis=0) == pytest.approx(1)
    # Latent 0 has half of the weight, and its two factors in equal parts: an entropy of log 2 out of log 4.
    assert trees.disentanglement == pytest.approx(0.5 * (1 - 0.5) + 0.5, abs=0.05)


def test_a_factor_that_is_not_known_everywhere_is_measured_where_it_is():
    codes, values = codes_and_factors(1_000)
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


def test_continuous_factors_are_cut_into_bins_and_latents_that_never_change_score_nothing():
    factors = np.random.default_rng(0).normal(size=(4_000, 2))
    assert mig(factors, factors) > 0.9
    assert mig(factors @ [[1, 1], [1, -1]], factors) < 0.1
    codes, values = codes_and_factors(200)
    for dead in (np.full((200, 3), 4.0), 4 + 1e-9 * np.sin(99 * codes)):
        assert mig(dead, values) == 0
        trees = dci(dead, values)
        assert (trees.disentanglement, trees.completeness, trees.informativeness) == (0, 0, 0)


def test_a_seed_gives_the_same_scores_with_any_number_of_threads(monkeypatch: pytest.MonkeyPatch):
    codes, values = codes_and_factors(200)
    first = dci(codes @ HADAMARD, values, seed=1)
    monkeypatch.setattr(disentanglement, "cores", lambda: 1)
    again = dci(codes @ HADAMARD, values, seed=1)
    assert np.array_equal(first.importances, again.importances)
    assert first.informativeness == again.informativeness
    assert dci(codes @ HADAMARD, values, seed=2).informativeness != first.informativeness


@pytest.mark.parametrize("measured_by", [mig, dci])
def test_arrays_that_cannot_be_measured(measured_by: Callable[..., Any]):
    for codes, factors, named in (
        (np.zeros((60, 3)), np.zeros((61, 2)), "codes"),
        (np.full((60, 3), np.nan), np.zeros((60, 2)), "codes"),
        (np.zeros((49, 3)), np.arange(49.0)[:, None], "factors"),
        (np.zeros((60, 3)), np.zeros((60, 2)), "factors"),
    ):
        with pytest.raises(InputError, match=named):
            measured_by(codes, factors)


@pytest.mark.parametrize("dim", [1, 40])
def test_pca_is_as_good_as_the_exact_one(dim: int):
    """Of smooth pictures with a little noise: their spectrum falls off, as that of frames does."""
    smooth = np.stack([picture(i // 30, i % 30, 12, 12) for i in range(300)]).astype(int)
    frames = (smooth + np.random.default_rng(0).integers(-20, 21, smooth.shape)).clip(0, 255).astype(np.uint8)
    flat = frames.reshape(300, -1) / 255
    exact = decomposition.PCA(dim, svd_solver="full").fit(flat)
    pca = Pca.fit([frames[:100], frames[100:101], frames[101:]], dim)
    projected = exact.inverse_transform(exact.transform(flat)).clip(0, 1)
    squared_error = np.square(pca.reconstruct(frames).reshape(300, -1) - flat).mean()
    assert squared_error == pytest.approx(np.square(projected - flat).mean(), rel=2e-2)
    assert pca(frames).var(0).sum() == pytest.approx(exact.explained_variance_.sum() * 299 / 300, rel=2e-2)
    assert np.array_equal(pca(frames), Pca.fit([frames], dim)(frames))


def test_pca_of_as_many_dimensions_as_the_frames_have_loses_nothing():
    frames = random_frames(20, (8, 8, 3))
    pca = Pca.fit([frames], 64)
    assert pca.pca.latent_dim < 20
    assert np.abs(pca.reconstruct(frames) - frames / 255).max() < 5e-3
    others = pca.reconstruct(255 * (frames > 128).astype(np.uint8))
    assert 0 <= others.min() < others.max() <= 1
    with pytest.raises(InputError, match="recordings"):
        Pca.fit([], 2)


def test_the_mean_image_is_the_mean():
    frames = random_frames(1100)
    image = MeanImage.fit([frames[:900], frames[900:]])
    assert image.image == pytest.approx(frames.mean(0) / 255, abs=1e-6)
    assert np.array_equal(image.reconstruct(frames[:5]), [image.image] * 5)


def test_a_random_encoder_has_the_same_layers_and_other_weights(encoder: FrozenEncoder):
    before = torch.random.get_rng_state()
    random = random_encoder(encoder, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    frames = random_frames(4)
    assert random.encoder.architecture == encoder.architecture
    assert not np.allclose(random(frames), encoder(frames), atol=0.01)
    assert np.array_equal(random(frames), random_encoder(encoder, seed=1)(frames))
    assert not np.allclose(random(frames), random_encoder(encoder, seed=2)(frames), atol=0.01)


def test_a_random_encoder_sees_frames_as_the_trained_one_does():
    architecture = Architecture((16, 16, 3), 4, (4,), (2,))
    contract = PixelContract(16, 16, 3, resize_filter="box", crop="center-square")
    trained = FrozenEncoder(architecture, Encoder(architecture).state_dict(), contract, device="cpu")
    frames = random_frames(2, (32, 48, 3))
    assert np.array_equal(random_encoder(trained)(frames), random_encoder(trained)(contract.convert(frames)))
