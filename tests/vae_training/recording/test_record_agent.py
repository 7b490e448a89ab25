"""Recording with a trained agent, or with a policy of one's own: it sees and does what it would in an evaluation."""

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

from agents.play.policy import PlayPolicy, load_policy
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import InputError
from latent_obs.wrappers.sb3 import VecLatentObservation
from tests.support.steer_env import EPISODE, VIEWS, Seeded, call, evaluated, played, recorded, run_of
from vae_training.data.rows import load_rows
from vae_training.recording.recorder import RecordConfig, record

# Actions are numbers, so that whatever an agent sees otherwise is seen in them.


@pytest.mark.parametrize("view", VIEWS)
def test_it_does_what_it_does_in_an_evaluation(
    call: Callable[..., tuple[int, str, str]], run_of: Callable[[str], Path], tmp_path: Path, view: str
):
    run, out = run_of(view), tmp_path / "frames"
    words = ("--agent", run, "--out", out, "--seed", 30, "--frames", 40, "--frames-per-file", 21, "--size", 16)
    code, out_text, err = call(*words, "--deterministic", "--device", "cpu")
    assert (code, err) == (0, "")
    assert "40 frames" in out_text
    first, second = recorded(out)
    assert len(first) == 21 - 4  # a whole episode shows a last picture that nothing is done at
    for found, seed in ((first, 30), (second, 31)):
        expected = evaluated(run, seed, len(found))
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert expected.std(axis=0).min() > 1e-3  # and not always the same


def test_the_frames_are_those_of_the_game(run_of: Callable[[str], Path], tmp_path: Path):
    """In their own size and number, whatever the agent's encoder takes: the same actions give the same frames."""
    run = run_of("latent")
    record(RecordConfig(agent=run, out=tmp_path / "a", frames=12, size=None), policy=load_policy(run, device="cpu"))
    env = gym.make("test/Steer-v0", frame_skip=3)
    frames, actions = np.load(tmp_path / "a" / "test-Steer-v0_000.npy"), iter(recorded(tmp_path / "a")[0])
    expected = [env.reset(seed=0)[0]]
    while len(expected) < 12:
        observation, _, terminated, _, _ = env.step(next(actions))
        expected += [observation, *([env.reset()[0]] if terminated else [])]
    np.testing.assert_array_equal(frames, expected[:12])


def test_it_samples_by_default_and_the_seed_decides(run_of: Callable[[str], Path], tmp_path: Path):
    run = run_of("latent")
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        config = RecordConfig(agent=run, out=tmp_path / name, frames=30, frames_per_file=15, seed=seed)
        record(config, policy=load_policy(run, device="cpu"))
    a, b, c = (recorded(tmp_path / name) for name in "abc")
    np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(a[1], c[0], atol=1e-6)  # file k is that of seed + k
    assert np.abs(a[0] - evaluated(run, 3, len(a[0]))).max() > 0.1


def test_what_the_recording_says_of_it(run_of: Callable[[str], Path], tmp_path: Path):
    run = run_of("latent")
    record(RecordConfig(agent=run, out=tmp_path, frames=6, seed=5), policy=load_policy(run, "last", device="cpu"))
    (entry,) = json.loads((tmp_path / "recording.json").read_text())["files"].values()
    assert entry["agent_notes"] == {
        "run": str(run),
        "which": "last",
        "steps": 64,
        "env": "test/Steer-v0",
        "observation": "latent",
        "encoder": str(run / "encoder"),
        "deterministic": False,
    }
    said = {key: entry[key] for key in ("env", "policy", "agent", "frame_skip", "seed")}
    assert said == {"env": "test/Steer-v0", "policy": "agent", "agent": str(run), "frame_skip": 3, "seed": 5}
    assert "deterministic" not in entry


# What is taken from the agent's run, and what contradicts it


def test_the_environment_is_made_as_in_training(
    call: Callable[..., tuple[int, str, str]], run_of: Callable[[str], Path], tmp_path: Path
):
    run = run_of("latent only")
    env = "tests.support.steer_env:test/Steer-v0"  # the same, by another name
    assert call("--agent", run, "--out", tmp_path, "--frames", 12, "--env", env)[0] == 0
    (entry,) = json.loads((tmp_path / "recording.json").read_text())["files"].values()
    assert (entry["env_kwargs"], entry["pixel_key"], entry["frame_skip"]) == ({"kind": "two"}, "pov", None)
    (file,) = tmp_path.glob("*.npy")
    assert set(load_rows(file)) > {"observation$inventory$log"}
    # Of two cameras another one may be recorded than the agent looks through.
    other = tmp_path / "back"
    assert call("--agent", run, "--out", other, "--frames", 12, "--pixel-key", "back")[0] == 0
    back, front = np.load(other / file.name), np.load(file)
    np.testing.assert_array_equal(back[0], front[0][::-1])


def test_frame_skip_is_the_agents(
    call: Callable[..., tuple[int, str, str]], run_of: Callable[[str], Path], tmp_path: Path
):
    words = ("--agent", run_of("latent"), "--out", tmp_path / "a", "--frames", 4)
    code, _, err = call(*words, "--env-kwargs", "frame_skip", 2)
    assert (code, "frame_skip" in err) == (2, True)
    assert not (tmp_path / "a").exists()
    assert call(*words, "--frame-skip", 3)[0] == 0
    code, _, err = call("--agent", run_of("vector"), "--out", tmp_path / "b", "--frame-skip", 3)
    assert (code, "frame_skip" in err) == (2, True)


def test_another_environment_is_named(
    call: Callable[..., tuple[int, str, str]], run_of: Callable[[str], Path], tmp_path: Path
):
    code, out, _ = call("--agent", run_of("latent"), "--out", tmp_path, "--env", "test/Road-v0", "--frames", 8)
    assert code == 0
    assert all(name in out for name in ("test/Steer-v0", "test/Road-v0"))
    (entry,) = json.loads((tmp_path / "recording.json").read_text())["files"].values()
    assert (entry["env"], entry["frame_skip"]) == ("test/Road-v0", 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--agent", "nowhere"), "run folder"),
        (("--env-kwargs", "actions", 3), "actions Box(2,)"),
        (("--env", "CartPole-v1", "--frame-skip", 3), "frame_skip"),
    ],
)
def test_mistakes_are_a_line_each(
    call: Callable[..., tuple[int, str, str]],
    run_of: Callable[[str], Path],
    tmp_path: Path,
    words: tuple[object, ...],
    message: str,
):
    code, _, err = call("--agent", run_of("latent"), "--out", tmp_path / "out", *words)
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
