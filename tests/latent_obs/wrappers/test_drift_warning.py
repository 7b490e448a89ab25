"""The drift monitor: when it speaks and when not, in how many words, and how often."""

# ruff: noqa: F401, F811  # fixtures are imported, and arguments have their names

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.wrappers.drift import DriftMonitor, DriftWarning
from tests.support.drift_cases import gaussian_encoder, picture_encoder, quiet, smooth
from tests.support.tiny import LATENT_DIM


def slow_gaussian(steps: int, envs: int, seed: int, memory: float) -> NDArray[np.float32]:
    """Latents (steps, envs, d) of the training's distribution that change slowly: AR(1) with this correlation per
    step."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((steps, envs, LATENT_DIM)).astype(np.float32) * math.sqrt(1 - memory**2)
    x, out = rng.standard_normal((envs, LATENT_DIM)).astype(np.float32), np.empty_like(noise)
    for t in range(steps):
        x = memory * x + noise[t]
        out[t] = x
    return 3 + 2 * out


@pytest.mark.parametrize(("memory", "envs"), [(0.0, 8), (0.98, 8), (0.995, 8), (0.995, 1)])
def test_no_alarm_at_frames_as_in_training(gaussian_encoder: FrozenEncoder, memory: float, envs: int):
    said: list[str] = []
    for seed in range(3):
        monitor = DriftMonitor(gaussian_encoder, say=said.append)
        for z in slow_gaussian(40_000 // envs, envs, seed, memory).reshape(-1, 80, LATENT_DIM):
            monitor.observe(z)
            assert not said
        assert monitor.report().share_outside < 0.1


@pytest.mark.parametrize("change", ["shift", "spread", "one value", "half of the frames"])
def test_other_latents_are_told_soon(gaussian_encoder: FrozenEncoder, change: str):
    said: list[str] = []
    monitor = DriftMonitor(gaussian_encoder, say=said.append)
    z = slow_gaussian(4000, 8, 0, 0.98)
    for step in z[:2000]:
        monitor.observe(step)
    assert not said
    other = z[2000:].copy()
    if change == "shift":
        other += 6
    elif change == "spread":
        other = 3 + 4 * (other - 3)
    elif change == "one value":
        other[..., 2] += 30
    else:
        other[:, ::2] += 10
    for step in other[:1000]:
        monitor.observe(step)
    assert len(said) == 1
    assert monitor.is_drifting
    assert "frames record --agent AGENT --out FRAMES" in said[0]
    assert "--start-from RUN" in said[0]


def test_it_waits_for_enough_frames(gaussian_encoder: FrozenEncoder):
    said: list[str] = []
    monitor = DriftMonitor(gaussian_encoder, least_frames=1000, say=said.append)
    far = np.full((1, LATENT_DIM), 99.0, np.float32)
    for _ in range(999):
        monitor.observe(far)
    assert not monitor.is_drifting
    assert not said
    monitor.observe(far)
    assert monitor.is_drifting
    assert len(said) == 1


def test_pictures_that_cannot_be_decoded_are_told(picture_encoder: FrozenEncoder):
    """Frames whose latents are as in training, while the picture is another: only the decoder can tell."""
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
    assert not few.is_drifting  # 16 pictures are too few to tell


def test_one_warning_in_plain_words(gaussian_encoder: FrozenEncoder):
    monitor = DriftMonitor(gaussian_encoder, least_frames=600)
    far = np.full((600, LATENT_DIM), 99.0, np.float32)
    with pytest.warns(DriftWarning, match=r"100\.0% of recent frames[\s\S]*frames record") as caught:
        monitor.observe(np.concatenate([far] * 5))
    monitor.observe(far)  # a second warning would be an error
    assert len(caught) == 1
    monitor.reset()
    assert monitor.report().frames == 0
    with pytest.warns(DriftWarning):
        monitor.observe(np.concatenate([far] * 2))
