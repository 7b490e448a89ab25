"""The drift monitor: what it measures, when it warns, and what it may not do to the arrays that it is shown."""

# ruff: noqa: F401, F811  # fixtures are imported, and arguments have their names

import copy
import dataclasses
import gc
import math
import pickle
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.encoder.statistics import reconstruction_errors
from latent_obs.util.errors import EncoderFolderError, InputError
from latent_obs.wrappers.drift import DriftMonitor, DriftWarning
from tests.support.drift_cases import gaussian_encoder, latents_like_training, picture_encoder, quiet, same, smooth
from tests.support.tiny import LATENT_DIM, random_frames, tiny_cvae
from vae_training.training.export import export_encoder

FAR = np.full((1, LATENT_DIM), 99.0, np.float32)

# What it measures


def test_over_an_endless_window_it_is_the_plain_mean(gaussian_encoder: FrozenEncoder):
    z = np.concatenate([latents_like_training(3000), latents_like_training(1000) + 6])
    monitor = quiet(gaussian_encoder, window=10**12)
    nothing = monitor.report()
    assert nothing.frames == 0
    assert math.isnan(nothing.share_outside)
    assert math.isnan(nothing.mean_shift)
    assert not nothing.is_drifting
    for i in range(0, len(z), 8):
        monitor.observe(z[i : i + 8])
    report, statistics = monitor.report(), monitor.statistics
    outside = statistics.distances(z) > statistics.distance_limit
    assert 0.2 < outside.mean() < 0.3
    assert report.share_outside == pytest.approx(outside.mean())
    expected = np.sqrt((((z.astype(float).mean(0) - statistics.mean) / statistics.std) ** 2).mean())
    assert report.mean_shift == pytest.approx(expected, rel=1e-4)
    assert (report.frames, monitor.frames) == (4000, 4000)
    assert math.isnan(report.reconstruction_ratio)
    assert report.reconstructions == 0


def test_what_was_long_ago_is_forgotten(gaussian_encoder: FrozenEncoder):
    monitor = quiet(gaussian_encoder, window=1000)
    for _ in range(80):
        monitor.observe(latents_like_training(125))
    assert monitor.report().share_outside < 0.05
    for _ in range(8):  # one window
        monitor.observe(FAR.repeat(125, axis=0))
    # Weights fall by e over the window: of all frames, those before it have 1/e.
    assert monitor.report().share_outside == pytest.approx(1 - 1 / math.e, abs=0.03)
    for _ in range(80):
        monitor.observe(latents_like_training(125))
    assert monitor.report().share_outside < 0.05


@given(cuts=st.lists(st.integers(1, 300), min_size=1, max_size=30), window=st.sampled_from([7, 100, 5000]))
@settings(max_examples=6, deadline=None)
def test_it_makes_no_difference_how_many_come_at_once(gaussian_encoder: FrozenEncoder, cuts: list[int], window: int):
    z = latents_like_training(sum(cuts))
    parts, single = quiet(gaussian_encoder, window=window), quiet(gaussian_encoder, window=window)
    for start, count in zip(np.cumsum([0, *cuts]), cuts, strict=False):
        parts.observe(z[start : start + count])
    single.observe(z)
    several, one = (dataclasses.astuple(monitor.report()) for monitor in (parts, single))
    assert several == pytest.approx(one, rel=1e-6, nan_ok=True)


def test_the_reconstruction_error_is_that_of_the_frames(picture_encoder: FrozenEncoder):
    frames = np.concatenate([smooth(40, 3), random_frames(24)])
    latents = picture_encoder.encode(frames)
    monitor = quiet(picture_encoder, window=10**12, reconstruct_every=1)
    for i in range(len(frames)):
        monitor.observe(latents[i : i + 1], frames[i : i + 1])
    expected = reconstruction_errors(frames, picture_encoder.decode(latents)).mean()
    assert monitor.statistics.reconstruction_mean is not None
    report = monitor.report()
    assert report.reconstructions == 64
    assert report.reconstruction_ratio == pytest.approx(expected / monitor.statistics.reconstruction_mean)


@pytest.mark.parametrize(("every", "envs"), [(8, 8), (100, 4)])
def test_one_frame_in_so_many_and_each_environment_in_turn(picture_encoder: FrozenEncoder, every: int, envs: int):
    # One environment shows white, which this decoder is far from: how often it was decoded follows from the error.
    frames = np.zeros((envs, 16, 16, 3), np.uint8)
    frames[envs // 2] = 255
    latents = picture_encoder.encode(frames)
    errors = reconstruction_errors(frames, picture_encoder.decode(latents))
    monitor = quiet(picture_encoder, window=10**12, reconstruct_every=every)
    assert monitor.statistics.reconstruction_mean is not None
    steps = 64 * -(-every // envs) * envs
    for _ in range(steps):
        monitor.observe(latents, frames)
    report = monitor.report()
    assert abs(report.reconstructions - math.ceil(steps * envs / every)) <= 8  # those that wait to be decoded together
    expected = errors.mean() / monitor.statistics.reconstruction_mean
    assert report.reconstruction_ratio == pytest.approx(expected, rel=0.05)
    monitor.window = every
    for _ in range(24 * every):  # a black one alone, for 24 windows: what was long ago is forgotten
        monitor.observe(latents[:1], frames[:1])
    low = errors[0] / monitor.statistics.reconstruction_mean
    assert monitor.report().reconstruction_ratio == pytest.approx(low, rel=0.05)


def test_no_reconstructions_where_there_can_be_none(picture_encoder: FrozenEncoder, tmp_path: Path):
    frames = smooth(64)
    latents = picture_encoder.encode(frames)
    without = export_encoder(
        tmp_path / "encoder", tiny_cvae(), smooth(4), statistics=picture_encoder.statistics, with_decoder=False
    )
    for monitor, shown in (
        (quiet(FrozenEncoder.load(without, device="cpu"), reconstruct_every=1), frames),
        (quiet(picture_encoder, reconstruct_every=0), frames),
        (quiet(picture_encoder, reconstruct_every=1), None),
    ):
        monitor.observe(latents, shown)
        assert math.isnan(monitor.report().reconstruction_ratio)
        assert monitor.report().reconstructions == 0
        assert monitor.report().share_outside <= 0.1


# When it warns


def slow_gaussian(steps: int, envs: int, seed: int, memory: float) -> NDArray[np.float32]:
    """Latents (steps, envs, d) of the training's distribution that change slowly: AR(1), this correlation per step."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((steps, envs, LATENT_DIM)).astype(np.float32) * math.sqrt(1 - memory**2)
    x, out = rng.standard_normal((envs, LATENT_DIM)).astype(np.float32), np.empty_like(noise)
    for t in range(steps):
        x = memory * x + noise[t]
        out[t] = x
    return 3 + 2 * out


@pytest.mark.parametrize(("memory", "envs"), [(0.98, 8), (0.995, 1)])
def test_no_alarm_at_frames_as_in_training(gaussian_encoder: FrozenEncoder, memory: float, envs: int):
    said: list[str] = []
    for seed in range(2):
        monitor = DriftMonitor(gaussian_encoder, say=said.append)
        for z in slow_gaussian(40_000 // envs, envs, seed, memory).reshape(-1, 80, LATENT_DIM):
            monitor.observe(z)
            assert not said
        assert monitor.report().share_outside < 0.1


@pytest.mark.parametrize("change", ["spread", "one value", "half of the frames"])
def test_other_latents_are_reported_soon(gaussian_encoder: FrozenEncoder, change: str):
    said: list[str] = []
    monitor = DriftMonitor(gaussian_encoder, say=said.append)
    z = slow_gaussian(3000, 8, 0, 0.98)
    if change == "spread":
        z[2000:] = 3 + 4 * (z[2000:] - 3)
    elif change == "one value":
        z[2000:, :, 2] += 30
    else:
        z[2000:, ::2] += 10
    for number, step in enumerate(z):
        monitor.observe(step)
        assert not said or number >= 2000
    assert len(said) == 1
    assert monitor.report().is_drifting


def test_pictures_that_cannot_be_decoded_are_reported(picture_encoder: FrozenEncoder):
    """Frames whose latents are as in training while the picture is another: only the decoder shows it."""
    said: list[str] = []
    monitor = DriftMonitor(picture_encoder, least_frames=100, reconstruct_every=1, ratio_limit=1.5, say=said.append)
    latents, wrong = picture_encoder.encode(smooth(80, 1)), 255 * (smooth(80, 1) < 128).astype(np.uint8)
    for i in range(0, 80, 2):  # the first 39 decoded: too few frames in all
        monitor.observe(latents[i : i + 2], wrong[i : i + 2])
    assert not said
    for i in range(0, 80, 2):
        monitor.observe(latents[i : i + 2], wrong[i : i + 2])
    report = monitor.report()
    assert report.reconstruction_ratio > 1.5
    assert report.share_outside < 0.2
    assert report.is_drifting
    assert len(said) == 1
    few = quiet(picture_encoder, least_frames=0, reconstruct_every=4, ratio_limit=1.5)
    for i in range(0, 64, 2):
        few.observe(latents[i : i + 2], wrong[i : i + 2])
    assert few.report().reconstructions == 16
    assert few.report().reconstruction_ratio > 1.5
    assert not few.report().is_drifting  # 16 pictures are too few


def test_one_warning_after_enough_frames(gaussian_encoder: FrozenEncoder):
    monitor = DriftMonitor(gaussian_encoder, least_frames=600)
    monitor.observe(FAR.repeat(599, axis=0))
    assert not monitor.report().is_drifting
    monitor.observe(FAR)
    with pytest.warns(DriftWarning, match="frames record") as caught:
        drifting = monitor.report().is_drifting
    assert drifting
    monitor.observe(FAR.repeat(3000, axis=0))  # a second warning would be an error
    assert len(caught) == 1


# What it may not do


def test_it_keeps_no_array(picture_encoder: FrozenEncoder):
    frames = smooth(160, 3)
    latents = picture_encoder.encode(frames)
    for array in (frames, latents):
        array.setflags(write=False)
    kept, spoiled = (quiet(picture_encoder, reconstruct_every=3) for _ in range(2))
    gone: list[weakref.ref[Any]] = []
    z, x = latents[:0], frames[:0]
    for i in range(0, 160, 4):
        z, x = latents[i : i + 4].copy(), frames[i : i + 4].copy()
        kept.observe(latents[i : i + 4], frames[i : i + 4])
        spoiled.observe(z, x)
        z[:], x[:] = 1e6, 0  # the next step overwrites them
        gone += [weakref.ref(z), weakref.ref(x)]
    del z, x
    gc.collect()
    assert all(ref() is None for ref in gone)
    assert same(kept.report(), spoiled.report())
    assert kept.report().reconstructions == 40  # one of each step


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_a_copy_goes_on_where_it_was(picture_encoder: FrozenEncoder, how: str):
    frames = smooth(200, 4)
    latents = picture_encoder.encode(frames)
    monitor = DriftMonitor(picture_encoder, reconstruct_every=3)
    for i in range(0, 100, 4):
        monitor.observe(latents[i : i + 4], frames[i : i + 4])
    other = pickle.loads(pickle.dumps(monitor)) if how == "pickle" else copy.deepcopy(monitor)
    for i in range(100, 200, 4):
        for each in (monitor, other):
            each.observe(latents[i : i + 4], frames[i : i + 4])
    assert same(other.report(), monitor.report())
    assert other.report().reconstructions > 40
    other.observe(latents, frames)
    assert monitor.frames == 200


# What is refused


def test_settings_out_of_range_and_what_cannot_be_watched(encoder: FrozenEncoder, gaussian_encoder: FrozenEncoder):
    settings: list[dict[str, Any]] = [{"window": 0}, {"share_limit": 0.01}, {"ratio_limit": math.nan}]
    for wrong in settings:
        with pytest.raises(InputError, match=next(iter(wrong))):
            DriftMonitor(gaussian_encoder, **wrong)
    with pytest.raises(InputError, match="encoder"):
        DriftMonitor(encoder)
    for shape in [(4, LATENT_DIM - 1), (LATENT_DIM,), (4, LATENT_DIM, 1)]:
        with pytest.raises(InputError, match="latents"):
            quiet(gaussian_encoder).observe(np.zeros(shape, np.float32))


def test_a_damaged_decoder_is_found_before_the_first_step(picture_encoder: FrozenEncoder, tmp_path: Path):
    folder = export_encoder(tmp_path / "encoder", tiny_cvae(), smooth(4), statistics=picture_encoder.statistics)
    encoder = FrozenEncoder.load(folder, device="cpu")
    (folder / "decoder.safetensors").write_bytes(b"cut")
    DriftMonitor(encoder).observe(np.zeros((4, LATENT_DIM), np.float32), smooth(4))  # it was read and checked
    with pytest.raises(EncoderFolderError, match="decoder"):
        FrozenEncoder.load(folder, device="cpu")
