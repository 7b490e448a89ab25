"""Which encoder an agent was trained with: known by its weights, and found among those that a run had."""

import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("stable_baselines3")

from agents.config import AgentConfig
from agents.evaluation import evaluate_agent
from agents.store import check_encoder, encoder_of, fingerprint, load_agent
from agents.training import train_agent
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import InputError
from tests.support.agent_runs import change_state
from tests.support.side_env import tiny
from tests.support.tiny import random_frames, tiny_cvae
from vae_training.training.export import export_encoder


def train(config: AgentConfig, **kwargs: Any) -> None:
    train_agent(config, say=lambda _: None, progress_bar=False, **kwargs)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Encoder folders: of the same shape with other weights, and with another number of latents."""
    place = tmp_path_factory.mktemp("others")
    same = export_encoder(place / "same", tiny_cvae(seed=5), random_frames(6), provenance={})
    bigger = tiny_cvae()
    bigger = type(bigger)((16, 16, 3), 9, widths=(4, 8), strides=(2, 2))
    return {"same": same, "bigger": export_encoder(place / "bigger", bigger, random_frames(6), provenance={})}


@pytest.fixture
def run(encoder_folder: Path, tmp_path: Path) -> Path:
    train(tiny(encoder=encoder_folder, out=tmp_path / "run", steps=32, eval_every=0))
    return tmp_path / "run"


def test_a_fingerprint_is_of_weights_and_frames(encoder_folder: Path, others: dict[str, Path]):
    one, again, other = (FrozenEncoder.load(f, device="cpu") for f in (encoder_folder, encoder_folder, others["same"]))
    assert fingerprint(one) == fingerprint(again) != fingerprint(other)
    assert fingerprint(None) is None
    assert fingerprint(FrozenEncoder.load(encoder_folder, device="cpu", precision="bfloat16")) == fingerprint(one)


def exchange(run: Path, other: Path) -> None:
    """Give the run's last agent another encoder, as `alternate` did: the first one is kept for the best agent."""
    (run / "encoders").mkdir()
    (run / "encoder").rename(run / "encoders" / "step_000000032")
    shutil.copytree(other, run / "encoder")
    change_state(run, "last", encoder=fingerprint(FrozenEncoder.load(other, device="cpu")))


def test_each_agent_of_an_old_run_finds_its_encoder(run: Path, others: dict[str, Path]):
    old = FrozenEncoder.load(run / "encoder", device="cpu")
    exchange(run, others["same"])
    assert encoder_of(run, "best") == run / "encoders" / "step_000000032"
    assert encoder_of(run, "last") == run / "encoder"
    check_encoder(run, "best", old)
    check_encoder(run, "last", FrozenEncoder.load(others["same"], device="cpu"))
    with pytest.raises(InputError, match="was trained with an encoder whose fingerprint"):
        check_encoder(run, "last", old)
    for name in ("best", "last"):
        evaluate_agent(run, which=name, episodes=1, device="cpu")
    train(AgentConfig(out=run, steps=64), resume=True)
    assert load_agent(run, "last").num_timesteps == 64


def test_an_agent_of_none_of_the_encoders(run: Path, others: dict[str, Path]):
    exchange(run, others["same"])
    shutil.rmtree(run / "encoders" / "step_000000032")
    shutil.copytree(others["bigger"], run / "encoders" / "step_000000032")
    with pytest.raises(InputError, match="was trained with none of the encoders"):
        encoder_of(run, "best")
