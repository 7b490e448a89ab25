"""The drift monitor in Stable-Baselines3: its numbers are in the log, and its warning comes once."""

# ruff: noqa: F401, F811  # fixtures are imported, and arguments have their names

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.encoder.statistics import LatentStatistics
from latent_obs.util.errors import InputError
from latent_obs.wrappers.drift import DriftMonitor, DriftWarning
from tests.support.tiny import limited, tiny_cvae
from vae_training.training.export import export_encoder

pytest.importorskip("stable_baselines3")

from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.training import DriftCallback
from latent_obs.wrappers.sb3 import VecLatentObservation
from tests.support.drift_cases import latents_like_training, picture_encoder, quiet, smooth


class Rows(KVWriter):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.rows.append(dict(key_values))

    def close(self) -> None:
        pass


def learn(algorithm: str, encoder: FrozenEncoder, monitor: DriftMonitor, watched: bool = True) -> list[dict[str, Any]]:
    venv = DummyVecEnv([partial(limited, "box", 100 * i, 9) for i in range(2)])
    latents = VecLatentObservation(venv, encoder, monitor=monitor if watched else None)
    model: BaseAlgorithm
    if algorithm == "ppo":
        model = PPO("MlpPolicy", latents, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
    else:
        model = DQN("MlpPolicy", latents, learning_starts=50, buffer_size=500, seed=0, device="cpu")
    rows = Rows()
    model.set_logger(Logger(None, [rows]))
    model.learn(320, DriftCallback(monitor), log_interval=1)
    return rows.rows


@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_the_numbers_are_in_the_log(picture_encoder: FrozenEncoder, algorithm: str):
    monitor = quiet(picture_encoder, reconstruct_every=5)
    rows = [row for row in learn(algorithm, picture_encoder, monitor) if "drift/share_outside" in row]
    assert len(rows) >= 5
    report = monitor.report()
    for name in ("share_outside", "mean_shift", "reconstruction_ratio"):
        assert all(math.isfinite(row.get(f"drift/{name}", 0)) for row in rows)
        assert rows[-1][f"drift/{name}"] == pytest.approx(getattr(report, name), rel=0.2)
    assert len({row["drift/mean_shift"] for row in rows}) > 1
    assert report.frames >= 320 + 2  # every step's frames, the first ones, and the last ones of episodes


def test_a_warning_in_the_middle_of_training_comes_once(tmp_path: Path):
    statistics = LatentStatistics.from_latents(latents_like_training(500) + 50)  # those of this network are around 0
    folder = export_encoder(tmp_path / "e", tiny_cvae(), smooth(4), statistics=statistics, with_decoder=False)
    encoder = FrozenEncoder.load(folder, device="cpu")
    monitor = DriftMonitor(encoder, least_frames=50)
    with pytest.warns(DriftWarning) as caught:
        rows = learn("ppo", encoder, monitor)
    assert len(caught) == 1
    assert rows[-1]["drift/share_outside"] > 0.2
    assert "drift/reconstruction_ratio" not in rows[-1]  # no decoder


def test_a_monitor_that_is_shown_nothing_is_told(picture_encoder: FrozenEncoder):
    with pytest.raises(InputError, match="seen no frame"):
        learn("ppo", picture_encoder, quiet(picture_encoder), watched=False)
