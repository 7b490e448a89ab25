"""The drift monitor: what it measures, and what it may not do to those whose latents it is shown."""

# ruff: noqa: F401, F811  # fixtures are imported, and arguments have their names

import copy
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

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.encoder.statistics import reconstruction_errors
from latent_obs.util.errors import EncoderFolderError, InputError
from latent_obs.wrappers.drift import DriftMonitor
from tests.support.drift_cases import gaussian_encoder, latents_like_training, picture_encoder, quiet, same, smooth
from tests.support.tiny import LATENT_DIM, random_frames, tiny_architecture, tiny_cvae
from vae_training.training.export import export_encoder

# What it measures


def test_over_an_endless_window_it_is_the_plain_mean(gaussian_encoder: FrozenEncoder):
    z = np.concatenate([latents_like_training(3000), latents_like_training(1000) + 6])
    monitor = quiet(gaussian_encoder, window=10**12)
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
    far = np.full((125, LATENT_DIM), 99.0, np.float32)
    for _ in range(80):
        monitor.observe(latents_like_training(125))
    assert monitor.report().share_outside < 0.05
    for _ in range(8):  # one window
        monitor.observe(far)
    # Weights fall by e over the window: of all frames, those before it have 1/e.
    before = monitor.report().share_outside
    assert before == pytest.approx(1 - 1 / math.e, abs=0.03)
    for _ in range(80):
        monitor.observe(latents_like_training(125))
    assert monitor.report().share_outside < 0.05


@given(cuts=st.lists(st.integers(1, 300), min_size=1, max_size=30), window=st.sampled_from([1, 7, 100, 5000]))
@settings(max_examples=30, deadline=None)
def test_it_makes_no_difference_how_many_come_at_once(gaussian_encoder: FrozenEncoder, cuts: list[int], window: int):
    z = latents_like_training(sum(cuts))
    parts, single = quiet(gaussian_encoder, window=window), quiet(gaussian_encoder, window=window)
    for start, count in zip(np.cumsum([0, *cuts]), cuts, strict=False):
        parts.observe(z[start : start + count])
    single.observe(z)
    assert same(parts.report(), single.report())


def test_nothing_seen_yet(gaussian_encoder: FrozenEncoder):
    monitor = quiet(gaussian_encoder)
    monitor.observe(latents_like_training(0))
    report = monitor.report()
    assert report.frames == 0
    assert math.isnan(report.share_outside)
    assert math.isnan(report.mean_shift)
    assert not report.is_drifting


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


def test_reconstructions_of_long_ago_are_forgotten(picture_encoder: FrozenEncoder):
    white, black = (np.full((8, 16, 16, 3), value, np.uint8) for value in (255, 0))  # this decoder paints almost black
    latents = picture_encoder.encode(white)
    monitor = quiet(picture_encoder, window=640, reconstruct_every=8)
    for _ in range(640):  # 8 windows
        monitor.observe(latents, white)
    before = monitor.report().reconstruction_ratio
    for _ in range(80):  # one window
        monitor.observe(latents, black)
    after = monitor.report().reconstruction_ratio
    low = reconstruction_errors(black, picture_encoder.decode(latents)).mean()
    assert monitor.statistics.reconstruction_mean is not None
    low /= monitor.statistics.reconstruction_mean
    assert (after - low) / (before - low) == pytest.approx(1 / math.e, abs=0.03)


@pytest.mark.parametrize(("every", "envs"), [(8, 8), (100, 4), (3, 8), (50, 1), (7, 16)])
def test_one_frame_in_so_many_and_each_environment_in_turn(picture_encoder: FrozenEncoder, every: int, envs: int):
    # One environment shows white, which this decoder is far from: how often it was decoded follows from the error.
    frames = np.zeros((envs, 16, 16, 3), np.uint8)
    frames[envs // 2] = 255
    latents = picture_encoder.encode(frames)
    errors = reconstruction_errors(frames, picture_encoder.decode(latents))
    monitor = quiet(picture_encoder, window=10**12, reconstruct_every=every)
    steps = 64 * -(-every // envs) * envs
    for _ in range(steps):
        monitor.observe(latents, frames)
    report = monitor.report()
    samples = steps if every <= envs else math.ceil(steps * envs / every)
    assert abs(report.reconstructions - samples) <= 8  # those that wait to be decoded together
    assert monitor.statistics.reconstruction_mean is not None
    expected = errors.mean() / monitor.statistics.reconstruction_mean
    assert report.reconstruction_ratio == pytest.approx(expected, rel=0.05)


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


# What it may not do


def test_it_keeps_no_array(picture_encoder: FrozenEncoder):
    frames = smooth(160, 3)
    latents = picture_encoder.encode(frames)
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


def test_frames_may_be_read_only_and_latents_are_left_alone(picture_encoder: FrozenEncoder):
    frames = smooth(32)
    latents = picture_encoder.encode(frames)
    before = latents.copy()
    for array in (frames, latents):
        array.setflags(write=False)
    monitor = quiet(picture_encoder, reconstruct_every=1)
    monitor.observe(latents, frames)
    monitor.report()
    np.testing.assert_array_equal(latents, before)


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


def test_random_numbers_are_left_alone(picture_encoder: FrozenEncoder):
    import torch

    before = torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002
    monitor = quiet(picture_encoder, reconstruct_every=1)
    monitor.observe(picture_encoder.encode(smooth(32)), smooth(32))
    monitor.report()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert repr(np.random.get_state()) == before[1]  # noqa: NPY002


@pytest.mark.parametrize("shape", [(4, LATENT_DIM - 1), (4, 1), (LATENT_DIM,), (4, LATENT_DIM, 1)])
def test_latents_of_another_size_are_refused(gaussian_encoder: FrozenEncoder, shape: tuple[int, ...]):
    with pytest.raises(InputError, match="this monitor is for latents"):
        quiet(gaussian_encoder).observe(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    "setting",
    [
        {"window": 0},
        {"window": 2.5},
        {"least_frames": -1},
        {"reconstruct_every": -1},
        {"reconstruct_every": True},
        {"share_limit": 0.01},
        {"share_limit": 1.0},
        {"ratio_limit": 1.0},
        {"ratio_limit": math.nan},
    ],
)
def test_settings_that_make_no_sense(gaussian_encoder: FrozenEncoder, setting: dict[str, Any]):
    with pytest.raises(InputError, match=next(iter(setting))):
        DriftMonitor(gaussian_encoder, **setting)


def test_an_encoder_without_statistics_cannot_be_watched(encoder: FrozenEncoder):
    for without in (encoder, FrozenEncoder.random(tiny_architecture(), device="cpu")):
        with pytest.raises(InputError, match="has none"):
            DriftMonitor(without)


def test_a_damaged_decoder_is_found_before_the_first_step(picture_encoder: FrozenEncoder, tmp_path: Path):
    folder = export_encoder(tmp_path / "encoder", tiny_cvae(), smooth(4), statistics=picture_encoder.statistics)
    encoder = FrozenEncoder.load(folder, device="cpu")
    (folder / "decoder.safetensors").write_bytes(b"cut")
    with pytest.raises(EncoderFolderError, match="decoder"):
        DriftMonitor(encoder)
