"""Tiny runs of agents, and what they leave in their folders."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("stable_baselines3")

from agents.config import AgentConfig, AlgorithmName
from agents.store import agent_file, agent_state, load_agent
from agents.training import AgentResult, train_agent
from tests.support.side_env import tiny


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def weights_of(run: Path, name: str = "last") -> dict[str, Any]:
    return {k: v.numpy() for k, v in load_agent(run, name, device="cpu").policy.state_dict().items()}


def with_state(file: Path, text: str | None) -> None:
    """Write an agent's .zip again with another state in it, or none."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name != "latent_obs.json"}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in {**members, **({} if text is None else {"latent_obs.json": text})}.items():
            archive.writestr(name, data)


def change_state(run: Path, name: str, **changes: Any) -> None:
    """Change values in the state of an agent."""
    with_state(agent_file(run, name), json.dumps({**agent_state(run, name), **changes}))


def train(config: AgentConfig, **kwargs: Any) -> AgentResult:
    return train_agent(config, say=lambda _: None, progress_bar=False, **kwargs)


def algorithm_config(algorithm: AlgorithmName, **settings: Any) -> AgentConfig:
    """Settings of a tiny agent of an algorithm."""
    values: dict[str, Any] = {"algorithm": algorithm, "env_kwargs": {"actions": "box" if algorithm == "sac" else "two"}}
    if algorithm in ("dqn", "qr-dqn", "sac"):
        values |= {"n_steps": None, "n_epochs": None, "buffer_size": 100, "learning_starts": 20, "batch_size": 16}
    return tiny(**{**values, **settings})


@pytest.fixture(scope="module")
def finished(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 64 steps with two evaluations; tests copy it before they change it."""
    run = tmp_path_factory.mktemp("agents") / "run"
    train(tiny(encoder=encoder_folder, out=run))
    return run


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copied"))
