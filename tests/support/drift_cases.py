"""Latents and pictures as in training, encoders with statistics of them, and a quiet monitor; the tests of drift share
them."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.encoder.statistics import LatentStatistics
from latent_obs.wrappers.drift import DriftMonitor, DriftReport
from tests.support.tiny import LATENT_DIM, picture, random_frames, tiny_cvae
from vae_training.training.export import export_encoder, measure_latents


def latents_like_training(count: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(3.0, 2.0, (count, LATENT_DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def gaussian_encoder(tmp_path_factory: pytest.TempPathFactory) -> FrozenEncoder:
    """Its statistics say that latents have mean 3 and deviation 2; no decoder."""
    statistics = LatentStatistics.from_latents(latents_like_training(4000, 0), latents_like_training(2000, 5))
    folder = tmp_path_factory.mktemp("gaussian") / "encoder"
    export_encoder(folder, tiny_cvae(), random_frames(4), statistics=statistics, with_decoder=False)
    return FrozenEncoder.load(folder, device="cpu")


def smooth(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.stack([picture(seed, step, 16, 16) for step in range(count)])


@pytest.fixture(scope="module")
def picture_encoder(tmp_path_factory: pytest.TempPathFactory) -> FrozenEncoder:
    """With the statistics of smooth pictures, and a decoder."""
    model = tiny_cvae()
    statistics = measure_latents(model, [smooth(300)], [smooth(200, 1)])
    folder = tmp_path_factory.mktemp("pictures") / "encoder"
    return FrozenEncoder.load(export_encoder(folder, model, smooth(4), statistics=statistics), device="cpu")


def quiet(encoder: FrozenEncoder, **kwargs: Any) -> DriftMonitor:
    return DriftMonitor(encoder, **{"say": lambda text: None, **kwargs})


def same(one: DriftReport, other: DriftReport) -> bool:
    return repr(one) == repr(other)  # NaN is NaN
