"""Fixtures that the tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import pytest

from tests.support.tiny import limited, picture, random_frames, tiny_cvae

# Two workers on two cores with two threads each would fight; set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from latent_obs.encoder.frozen import FrozenEncoder


@pytest.fixture(autouse=True)
def torchs_threads_stay() -> Iterator[None]:
    """No test leaves torch with other threads than it found: sums in another order would fail a later one, bit by
    bit."""
    before = _torchs_threads()
    yield
    if before is not None:
        assert _torchs_threads() == before


@pytest.fixture(autouse=True)
def encoders_are_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on which backend happens to be the fastest at the moment."""
    monkeypatch.setattr("latent_obs.encoder.fastest._WORTH", 0.0)
    monkeypatch.setattr("latent_obs.encoder.fastest._SLOW", float("inf"))


def _torchs_threads() -> int | None:
    """How many threads torch computes with, None where nothing has imported it yet."""
    torch = sys.modules.get("torch")
    return None if torch is None else torch.get_num_threads()


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder folder with its decoder; tests must leave it as it is, or copy it."""
    from vae_training.training.export import export_encoder

    folder = tmp_path_factory.mktemp("exported") / "encoder"
    return export_encoder(folder, tiny_cvae(), random_frames(6), provenance={"made_by": "the tests"})


@pytest.fixture(scope="session")
def encoder(encoder_folder: Path) -> FrozenEncoder:
    from latent_obs.encoder.frozen import FrozenEncoder

    return FrozenEncoder.load(encoder_folder, device="cpu")


@pytest.fixture
def frames_folder(tmp_path: Path) -> Path:
    """Three recordings of 24 frames, 16x16 RGB; pixel [0, 0, 0] of each frame is its file's number times 50."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(3):
        frames = np.stack([picture(number, step, 16, 16) for step in range(24)])
        frames[:, 0, 0, 0] = 50 * number
        np.save(folder / f"recording_{number}.npy", frames)
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def make_env() -> Callable[..., gym.Env[Any, Any]]:
    return limited
