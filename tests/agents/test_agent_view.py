"""What an agent of `train_agent` sees of the encoder: history, standardized latents, other precision, and drift
watched."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.config import AgentConfig
from agents.envs import load_encoder, make_monitor, make_vec_env
from agents.evaluation import evaluate_agent
from agents.store import load_agent
from agents.training import train_agent
from latent_obs.util.errors import InputError
from latent_obs.wrappers.drift import DriftMonitor
from tests.support.agent_runs import quiet, train
from tests.support.side_env import tiny
from tests.support.tiny import LATENT_DIM, random_frames, tiny_cvae
from vae_training.training.export import export_encoder, measure_latents


@pytest.fixture(scope="module")
def with_statistics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that knows only dark noise, with its statistics."""
    model, folder = tiny_cvae(), tmp_path_factory.mktemp("encoders") / "encoder"
    return export_encoder(folder, model, random_frames(4), statistics=measure_latents(model, [random_frames(300) // 8]))


def shown(config: AgentConfig) -> Any:
    venv = make_vec_env(config, load_encoder(config))
    try:
        return venv.reset()
    finally:
        venv.close()


def test_an_agent_with_a_history_is_trained_and_evaluated(with_statistics: Path, tmp_path: Path):
    config = tiny(encoder=with_statistics, out=tmp_path / "run", history=3, standardize=True)
    train(config)
    assert load_agent(config.out, "last", device="cpu").observation_space.shape == (3 * LATENT_DIM,)
    assert len(evaluate_agent(config.out, episodes=2).returns) == 2
    encoder = load_encoder(config)
    assert encoder is not None
    assert encoder.statistics is not None
    plain = shown(tiny(encoder=with_statistics))
    np.testing.assert_allclose(shown(config), np.tile(encoder.statistics.standardize(plain), 3), atol=1e-5)


def test_bfloat16_is_near_and_not_the_same(with_statistics: Path):
    one = shown(tiny(encoder=with_statistics))
    other = shown(tiny(encoder=with_statistics, precision="bfloat16"))
    assert 0 < np.abs(one - other).max() < 0.03 * np.abs(one).max()


def test_drift_is_logged_and_told(with_statistics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monitors: list[DriftMonitor] = []

    def soon(encoder: Any, say: Any) -> DriftMonitor:
        monitors.append(DriftMonitor(encoder, say=say, least_frames=8, window=64))
        return monitors[0]

    monkeypatch.setattr("agents.envs.DriftMonitor", soon)
    said: list[str] = []
    config = tiny(encoder=with_statistics, out=tmp_path / "run", eval_every=0)
    train_agent(config, say=said.append, progress_bar=False)
    assert any("frames record" in text for text in said), monitors[0].report()  # its encoder never saw such pictures
    log = next((config.out / "logs").rglob("progress.csv")).read_text()
    assert "drift/share_outside" in log.splitlines()[0]


def test_drift_is_not_watched_where_it_cannot_be_or_need_not(with_statistics: Path, encoder_folder: Path):
    for config in (
        tiny(encoder=encoder_folder),  # from before there were statistics
        tiny(encoder=with_statistics, watch_drift=False),
        tiny(encoder=with_statistics, observation="random-latent"),
        tiny(observation="pixels"),
    ):
        assert make_monitor(config, load_encoder(config)) is None
    config = tiny(encoder=with_statistics)
    assert make_monitor(config, load_encoder(config)) is not None


def test_standardised_latents_need_statistics(encoder_folder: Path, tmp_path: Path):
    with pytest.raises(InputError, match="standardize needs the statistics"):
        train_agent(tiny(encoder=encoder_folder, out=tmp_path / "run", standardize=True), say=quiet, progress_bar=False)
