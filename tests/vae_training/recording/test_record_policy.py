"""Recording with an agent of a run folder, or with a policy of one's own; what does not fit is one line of error."""

# ruff: noqa: F401, F811  # fixtures are imported, and arguments have their names

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from agents.play.policy import PlayPolicy
from agents.store import agent_state
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import InputError
from latent_obs.wrappers.sb3 import VecLatentObservation
from tests.support.agent_runs import change_state
from tests.support.steer_env import EPISODE, Seeded, call, evaluated, played, recorded, run_of
from vae_training.recording.recorder import RecordConfig, record


def spoilt(run: Path, tmp_path: Path, how: str) -> Path:
    """A copy of a run, or something in its place, with a mistake."""
    place = tmp_path / "place"
    if how == "nothing":
        return place
    if how == "no run":
        place.mkdir()
        return place
    shutil.copytree(run, place)
    if how == "a zip":
        return place / "last.zip"
    if how == "another run":
        (place / "config.json").write_text(json.dumps({"frames": "frames", "out": "runs/vae", "beta": 1.0}))
    elif how == "no agent":
        (place / "best.zip").unlink()
    elif how == "damaged agent":
        (place / "best.zip").write_bytes((place / "best.zip").read_bytes()[:1000])
    elif how == "no statistics":
        change_state(place, "best", observations=None)
    elif how == "damaged encoder":
        file = place / "encoder" / "encoder.safetensors"
        file.write_bytes(file.read_bytes()[:-4])
    return place


@pytest.mark.parametrize(
    ("how", "words", "message"),
    [
        ("nothing", (), "run folder"),
        ("a zip", (), "run folder"),
        ("no run", (), "config.json"),
        ("another run", (), "config.json"),
        ("no agent", (), "last"),
        ("damaged agent", (), "best.zip"),
        ("no statistics", (), "statistics"),
        ("damaged encoder", (), "encoder.safetensors"),
        ("good", ("--env-kwargs", "actions", 3), "Box(2,)"),
        ("good", ("--env-kwargs", "kind", "dict"), "inventory/log Box(1,)"),
        ("good", ("--env", "CartPole-v1", "--frame-skip", 3), "frame_skip"),
        ("good", ("--device", "cuda:63"), "cuda:63"),
        ("good", ("--which", "worst"), "worst"),
    ],
)
def test_mistakes_are_a_line_each(
    call: Callable[..., tuple[int, str, str]],
    run_of: Callable[[str], Path],
    tmp_path: Path,
    how: str,
    words: tuple[object, ...],
    message: str,
):
    agent = spoilt(run_of("latent"), tmp_path, how)
    code, _, err = call("--agent", agent, "--out", tmp_path / "out", *words)
    assert code == 2
    assert message in err
    assert err.startswith("latent-obs frames record: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


# Policies of one's own


def test_an_agent_of_ones_own_behind_its_wrappers(encoder: FrozenEncoder, tmp_path: Path):
    """Whatever wraps an environment in training wraps what is recorded: a history, statistics, each new with an
    episode."""

    def wrap(env: gym.Env[Any, Any]) -> VecEnv:
        venv = VecLatentObservation(DummyVecEnv([lambda: env]), encoder, history=3)
        wrapped = VecNormalize(venv, training=False)
        wrapped.obs_rms.mean[:] = np.linspace(-1, 1, len(wrapped.obs_rms.mean))  # pyright: ignore[reportAttributeAccessIssue]
        return wrapped

    model = PPO("MlpPolicy", wrap(gym.make("test/Steer-v0")), n_steps=8, batch_size=8, device="cpu", seed=2)
    config = RecordConfig("test/Steer-v0", tmp_path, frames=14, size=None)
    record(config, policy=PlayPolicy(model, wrap, deterministic=True, notes={"name": "mine"}))
    (found,) = recorded(tmp_path)
    assert len(found) > 2 * EPISODE
    np.testing.assert_allclose(found, played(model, wrap(Seeded(gym.make("test/Steer-v0"))), len(found)), atol=1e-5)
    (entry,) = json.loads((tmp_path / "recording.json").read_text())["files"].values()
    assert entry["agent_notes"] == {"name": "mine", "deterministic": True}


class Twice(gym.Wrapper[Any, Any, Any, Any]):
    """Skips frames, which is the environment's own business."""

    def step(self, action: Any) -> Any:
        self.env.step(action)
        return self.env.step(action)


@pytest.mark.parametrize("wrapper", [Twice, lambda env: gym.wrappers.TimeLimit(env, 2)])
def test_wrappers_that_do_more_than_show_are_refused(wrapper: Any, tmp_path: Path):
    model = PPO("MlpPolicy", gym.make("test/Steer-v0"), n_steps=8, batch_size=8, device="cpu")
    with pytest.raises(InputError, match="only"):
        record(RecordConfig("test/Steer-v0", tmp_path, frames=9), policy=PlayPolicy(model, wrapper))


class Listed:
    """Does nothing, and lists what it is asked."""

    notes, settings = {"name": "nobody"}, {}

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def begin(self, env: gym.Env[Any, Any]) -> None:
        self.asked.append("begin")

    def reset(self, seed: int | None) -> None:
        self.asked.append(seed)

    def __call__(self, observation: Any) -> Any:
        assert observation.shape == (24, 20, 3)
        self.asked.append("act")
        return np.zeros(2, np.float32)


def test_what_a_policy_is_asked(tmp_path: Path):
    policy = Listed()
    record(RecordConfig("test/Steer-v0", tmp_path, frames=13, frames_per_file=9, seed=7), policy=policy)
    assert policy.asked == ["begin", 7, *["act"] * 5, None, *["act"] * 2, 8, *["act"] * 3]
    with pytest.raises(InputError, match="env must be given"):
        record(RecordConfig(agent=tmp_path, out=tmp_path / "b"), policy=policy)
