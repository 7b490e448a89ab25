"""Statistics of latents: as numpy computes them, kept in the folder, and measured by training for its encoder."""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from latent_obs.encoder.folder import read_encoder_folder
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.encoder.statistics import BAND, LEVELS, LatentStatistics, reconstruction_errors
from latent_obs.util.errors import EncoderFolderError, InputError
from tests.latent_obs.encoder.test_folder import change_tensors
from tests.support.tiny import LATENT_DIM, picture, random_frames, tiny_cvae
from vae_training import TrainConfig, train
from vae_training.data.frames import get_datasets, split_held_out
from vae_training.training.export import export_encoder, measure_latents

NAMES = ["mean", "std", "quantiles", "distance_quantiles", "reconstruction_quantiles"]


def gaussian(count: int, dim: int = LATENT_DIM, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return rng.normal(np.arange(dim), 1 + np.arange(dim), (count, dim)).astype(np.float32)


def known() -> LatentStatistics:
    errors = np.linspace(0, 0.1, 101)
    return LatentStatistics.from_latents(
        gaussian(800), gaussian(300, seed=1), training_errors=errors / 2, held_out_errors=errors
    )


def distances_one_by_one(latents: NDArray[Any], training: NDArray[Any]) -> list[float]:
    """The definition, a value at a time."""
    low, high = np.quantile(training.astype(np.float64), BAND, axis=0)
    least = 0.1 * training.std(axis=0).max() or 1.0
    found = []
    for latent in latents:
        parts = []
        for value, bottom, top in zip(latent.tolist(), low, high, strict=True):
            u = abs(value - (bottom + top) / 2) / max((top - bottom) / 2, least)
            parts.append(0.0 if u <= 1 else min(u, 2.0))
        found.append(sum(parts) / len(parts))
    return found


@given(count=st.integers(1, 60), dim=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_moments_and_quantiles_are_numpys(count: int, dim: int, seed: int):
    z = gaussian(count, dim, seed)
    found, exact = LatentStatistics.from_latents(z), z.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.std, exact.std(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.quantiles, np.quantile(exact, LEVELS, axis=0), rtol=1e-5, atol=1e-5)
    assert (found.frames, found.latent_dim, found.reconstruction_mean) == ((count, 0), dim, None)


@given(dim=st.integers(1, 6), seed=st.integers(0, 99), spread=st.floats(0.1, 20))
@settings(max_examples=40, deadline=None)
def test_distances_follow_their_definition(dim: int, seed: int, spread: float):
    z = gaussian(200, dim, seed)
    other = (gaussian(20, dim, seed + 1) * spread).astype(np.float32)
    found = LatentStatistics.from_latents(z).distances(other)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, distances_one_by_one(other, z), atol=1e-4)


def test_one_frame_in_a_hundred_as_in_training_is_beyond_the_limit():
    found = LatentStatistics.from_latents(gaussian(4000), gaussian(2000, seed=1))
    share = (found.distances(gaussian(20_000, seed=2)) > found.distance_limit).mean()
    assert 0.005 < share < 0.018
    assert (found.distances(gaussian(500, seed=2) + 20) > found.distance_limit).mean() > 0.95


def test_the_larger_of_training_and_held_out_counts():
    narrow, wide = gaussian(500), gaussian(500, seed=1) * 3
    for training, held_out in ((narrow, wide), (wide, narrow)):
        found = LatentStatistics.from_latents(
            training, held_out, training_errors=[0.1, 0.2], held_out_errors=[0.0, 0.9]
        )
        parts = [np.quantile(distances_one_by_one(part, training), LEVELS) for part in (training, held_out)]
        np.testing.assert_allclose(found.distance_quantiles, np.maximum(*parts), atol=1e-4)
        assert found.frames == (500, 500)
        assert found.reconstruction_mean == pytest.approx(0.45)
        assert found.reconstruction_quantiles is not None
        expected = np.maximum(np.quantile([0.1, 0.2], LEVELS), np.quantile([0.0, 0.9], LEVELS))
        np.testing.assert_allclose(found.reconstruction_quantiles, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("training", "held_out"),
    [
        (np.zeros((0, 3)), None),
        (np.array([[1.0, np.nan]]), None),
        (np.zeros((4, 3)), np.zeros((2, 4))),
    ],
)
def test_latents_that_cannot_be_measured_are_rejected(training: Any, held_out: Any):
    with pytest.raises(InputError, match="held_out" if held_out is not None else "training"):
        LatentStatistics.from_latents(training, held_out)


def test_reconstruction_errors_are_mean_squares():
    frames, decoded = random_frames(5), random_frames(5, seed=1)
    expected = [np.mean((a / 255.0 - b / 255.0) ** 2) for a, b in zip(frames, decoded, strict=True)]
    np.testing.assert_allclose(reconstruction_errors(frames, decoded), expected, rtol=1e-5)


# Standardizing


@given(seed=st.integers(0, 99), shape=st.sampled_from([(), (7,), (3, 4)]), dtype=st.sampled_from(["f4", "f8"]))
@settings(max_examples=20, deadline=None)
def test_standardized_latents(seed: int, shape: tuple[int, ...], dtype: Any):
    z = gaussian(300, seed=seed)
    latents = np.random.default_rng(seed).normal(2.0, 5.0, (*shape, LATENT_DIM)).astype(dtype)
    before = latents.copy()
    out = LatentStatistics.from_latents(z).standardize(latents)
    assert out.dtype == np.float32
    assert not np.shares_memory(out, latents)
    np.testing.assert_array_equal(latents, before)
    common = 2 * np.sqrt(z.var(0).mean())
    np.testing.assert_allclose(out, (before - z.mean(0)) / common, rtol=1e-3, atol=1e-4)


def test_the_noise_of_a_collapsed_value_stays_small():
    z = gaussian(1000, 3)  # deviations of 1, 2 and 3
    z[:, 0] = 5 + 0.001 * z[:, 0]
    statistics = LatentStatistics.from_latents(z)
    np.testing.assert_allclose(statistics.scale[1:], z.std(0)[1:], rtol=1e-5)
    np.testing.assert_allclose(statistics.scale[0], z.std(0).max() / 10, rtol=1e-5)
    out = statistics.standardize(z)
    assert np.abs(out[:, 0]).max() < 0.02
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(out[:, 2].std() / out[:, 1].std(), z[:, 2].std() / z[:, 1].std(), rtol=1e-4)
    # Noise such as another device's arithmetic has does not make a frame unlike those of training.
    assert statistics.distances(z + np.array([0.1, 0, 0]))[0] == statistics.distances(z)[0]


def test_frames_that_are_all_alike():
    statistics = LatentStatistics.from_latents(np.full((10, 3), 7.0))
    np.testing.assert_array_equal(statistics.standardize(np.full((2, 3), 7.5)), np.full((2, 3), 0.5))
    np.testing.assert_array_equal(statistics.distances(np.array([[7.0] * 3, [17.0] * 3])), [0, 2])


def test_latents_of_another_size_are_rejected():
    for shape in [(), (5, LATENT_DIM - 1), (LATENT_DIM, 1)]:
        for method in (known().standardize, known().distances):
            with pytest.raises(InputError, match="latents"):
                method(np.zeros(shape))


def test_statistics_cannot_be_changed():
    statistics, mean = known(), np.zeros(LATENT_DIM, np.float32)
    with pytest.raises(ValueError, match="read-only"):
        statistics.mean[0] = 1
    other = replace(statistics, mean=mean)
    mean[0] = 9
    assert other.mean[0] == 0


# In the encoder folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return export_encoder(tmp_path / "encoder", tiny_cvae(), random_frames(4), statistics=known())


@pytest.mark.parametrize("errors", [False, True])
def test_the_folder_keeps_them(tmp_path: Path, errors: bool):
    statistics = known() if errors else LatentStatistics.from_latents(gaussian(50))
    folder = export_encoder(tmp_path / "encoder", tiny_cvae(), random_frames(4), statistics=statistics)
    encoder = FrozenEncoder.load(folder, device="cpu")
    for one in (encoder.statistics, pickle.loads(pickle.dumps(encoder)).statistics):
        assert one is not None
        np.testing.assert_equal(asdict(one), asdict(statistics))
        assert one.mean.dtype == one.distance_quantiles.dtype == np.float32


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({name: change(tensors[name]).contiguous()})


@pytest.mark.parametrize(
    "change",
    [
        *(lambda t, name=name: t.pop(name) for name in ["mean", "levels", "frames", "reconstruction_mean"]),
        *(changed(name, lambda v: v * float("nan")) for name in [*NAMES, "reconstruction_mean"]),
        *(changed(name, lambda v: v[:-1]) for name in ["std", "levels", "distance_quantiles", "frames"]),
        *(changed(name, lambda v: v.flip(0)) for name in ("levels", "quantiles")),
        changed("mean", lambda v: v[None]),
        changed("std", lambda v: -v),
        changed("mean", lambda v: v.bfloat16()),
        changed("frames", lambda v: v * 0),
        lambda t: t.update({name: t[name][..., :-1].clone() for name in ("mean", "std", "quantiles")}),
    ],
)
def test_what_cannot_be_right_is_rejected(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]):
    change_tensors(folder, "statistics.safetensors", change)
    with pytest.raises(EncoderFolderError, match=r"statistics\.safetensors"):
        read_encoder_folder(folder)


# As training measures them


def rows_of(datasets: Sequence[NDArray[np.uint8]], at_most: int) -> NDArray[np.uint8]:
    frames = np.concatenate(datasets)
    return frames[np.linspace(0, len(frames) - 1, min(at_most, len(frames))).astype(int)]


def measured(encoder: FrozenEncoder, parts: Sequence[Any], decoded: Sequence[Any]) -> LatentStatistics:
    errors = [np.mean((part / 255.0 - encoder.decode(encoder(part)) / 255.0) ** 2, axis=(1, 2, 3)) for part in decoded]
    latents = [encoder(part) for part in parts]
    return LatentStatistics.from_latents(*latents, training_errors=errors[0], held_out_errors=errors[1])


def assert_close(one: LatentStatistics | None, other: LatentStatistics) -> None:
    assert one is not None
    assert one.frames == other.frames
    for name in NAMES:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=2e-3, atol=2e-4, err_msg=name)
    assert one.reconstruction_mean == pytest.approx(other.reconstruction_mean, rel=1e-3)


def test_training_writes_those_of_the_exported_weights(frames_folder: Path, tmp_path: Path):
    layers: dict[str, Any] = {"latent_dim": 16, "bottleneck": "spatial", "widths": (4, 8), "strides": (2, 2)}
    schedule: dict[str, Any] = {"epochs": 2, "batch_size": 20, "batch_freeze": 0, "half_beta_cycle": 1}
    config = TrainConfig(frames=frames_folder, out=tmp_path / "run", device="cpu", **layers, **schedule)
    encoder = FrozenEncoder.load(train(config, progress_bar=False).encoder, device="cpu")
    parts = [np.concatenate(part) for part in split_held_out(get_datasets(frames_folder), None)]
    assert [len(part) for part in parts] == [48, 24]
    expected = measured(encoder, parts, parts)
    assert_close(encoder.statistics, expected)
    assert expected.std.max() > 0.01


def test_frames_come_from_all_over_the_recordings_and_in_batches(tmp_path: Path):
    lengths = (3, 400, 1, 296)
    datasets = [random_frames(0), *(np.stack([picture(i, j, 16, 16) for j in range(n)]) for i, n in enumerate(lengths))]
    model, other = tiny_cvae(), datasets[2:3]
    encoder = FrozenEncoder.load(export_encoder(tmp_path / "encoder", model, random_frames(2)), device="cpu")
    before = torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002
    assert measure_latents(model, other).frames == (400, 0)
    found = measure_latents(model, datasets, other, training_frames=600, held_out_frames=301, decoded_frames=100)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert repr(np.random.get_state()) == before[1]  # noqa: NPY002
    training, held_out = rows_of(datasets, 600), rows_of(other, 301)
    assert found.frames == (600, 301)
    assert_close(found, measured(encoder, (training, held_out), (training[::6], held_out[::4])))
