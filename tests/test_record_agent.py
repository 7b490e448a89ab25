"""Recording with a trained agent: it sees and does what it would in an evaluation, and what does not fit is told in a line."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import random_frames
from gymnasium import spaces
from numpy.typing import NDArray

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from agents.config import AgentConfig
from agents.evaluate import evaluation_env, run_config
from agents.play_policy import PlayPolicy, load_policy
from agents.store import agent_state, change_state, load_agent, restore_statistics
from agents.train import train_agent
from latent_obs.errors import InputError
from latent_obs.frozen import FrozenEncoder
from latent_obs.sb3 import VecLatentObservation
from latent_obs_cli.main import main
from vae_training.cvae import CVAE
from vae_training.export import export_encoder
from vae_training.record import record
from vae_training.record_config import RecordConfig
from vae_training.rows import load_rows

EPISODE = 5


class Steer(gym.Env[Any, Any]):
    """Noise of 24x20 to steer through by two numbers; what is seen next depends on what was done.

    Args:
        kind: "box"; "dict", a camera "pov" beside a nested inventory, or "two", with a second camera before it.
        frame_skip: Told in the inventory.
        actions: How many numbers an action has.
    """

    def __init__(self, kind: str = "box", frame_skip: int = 1, actions: int = 2) -> None:
        self.kind, self.frame_skip = kind, frame_skip
        image = spaces.Box(0, 255, (24, 20, 3), np.uint8)
        inventory = spaces.Dict(log=spaces.Box(0, 999, (), np.int32), skip=spaces.Discrete(9))
        beside = {"inventory": inventory} if kind != "box" else {}
        cameras = {"back": image, "pov": image} if kind == "two" else {"pov": image}
        self.observation_space = spaces.Dict({**cameras, **beside}) if kind != "box" else image
        self.action_space = spaces.Box(-1, 1, (actions,), np.float32)
        self.steps, self.place = 0, 0.0

    def _see(self) -> Any:
        y, x, c = np.ogrid[0:24, 0:20, 0:3]
        wave = np.sin(0.3 * x + self.place + c) + np.cos(0.2 * y + self.np_random.uniform(0, 6) * c)
        image = np.round(63.75 * (wave + 2)).astype(np.uint8)
        if self.kind == "box":
            return image
        inventory = {"log": np.array(int(10 * abs(self.place)), np.int32), "skip": self.frame_skip}
        seen = {"pov": image, "inventory": inventory}
        return {**seen, "back": image[::-1]} if self.kind == "two" else seen

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.place = 0, float(self.np_random.uniform(0, 3))
        return self._see(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.steps, self.place = self.steps + 1, self.place + 3 * float(action.sum())
        return self._see(), float(action[0]), self.steps == EPISODE, False, {}


gym.register("test/Steer-v0", lambda **kwargs: Steer(**kwargs), disable_env_checker=True)
gym.register("test/Road-v0", lambda **kwargs: Steer(**kwargs), disable_env_checker=True)

VIEWS: dict[str, dict[str, Any]] = {
    "latent": {"frame_skip": 3},
    "random latent": {"observation": "random-latent"},
    "history": {"history": 3, "frame_skip": 2},
    "Dict": {"env_kwargs": {"kind": "dict"}},
    "vector": {"env_kwargs": {"kind": "dict"}, "flatten": True},
    "latent only": {"env_kwargs": {"kind": "two"}, "pixel_key": "pov", "latent_only": True, "normalize_observation": "off"},
    "pixels": {"observation": "pixels", "encoder": None, "learning_rate": 3e-4, "seed": 1},
    "pixels in the size of an encoder": {"observation": "pixels", "learning_rate": 3e-4, "seed": 1},
    "pixels beside numbers": {
        "observation": "pixels",
        "encoder": None,
        "learning_rate": 1e-3,
        "env_kwargs": {"kind": "dict"},
    },
}


@pytest.fixture(scope="module")
def run_of(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run folder of an agent with a view; trained once."""
    home = tmp_path_factory.mktemp("agents")

    def make(view: str) -> Path:
        run = home / view.replace(" ", "-")
        if not run.exists():
            encoder = encoder_folder
            if "size" in view:  # for a CNN, the tests' own is too small
                model = CVAE((40, 40, 3), 6, widths=(4, 8), strides=(2, 2))
                encoder = export_encoder(home / "larger", model, random_frames(4, (40, 40, 3)), provenance={})
            settings: dict[str, Any] = {
                "env": "test/Steer-v0", "encoder": encoder, "out": run, "workers": "serial", "envs": 2, "steps": 64,
                "n_steps": 16, "batch_size": 16, "n_epochs": 2, "eval_every": 0, "net_arch": (16,), "device": "cpu",
                "learning_rate": 0.01,
            }  # fmt: skip
            train_agent(AgentConfig(**{**settings, **VIEWS[view]}), progress_bar=False, say=lambda _: None)
        return run

    return make


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main(["frames", "record", *map(str, words)])
        except SystemExit as error:
            code = int(error.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return run


def recorded(out: Path) -> list[NDArray[Any]]:
    """The actions of each file that was recorded."""
    rows = [load_rows(file) for file in sorted(out.glob("*.npy"))]
    return [each["action"][each["acted"]] for each in rows]


def played(model: Any, venv: VecEnv, steps: int) -> NDArray[Any]:
    """The actions of an agent in an environment, each time its most likely one."""
    actions, observation = [], venv.reset()
    for _ in range(steps):
        action, _ = model.predict(observation, deterministic=True)
        observation = venv.step(action)[0]
        actions.append(action[0])
    venv.close()
    return np.stack(actions)


def evaluated(run: Path, seed: int, steps: int, which: str = "best") -> NDArray[Any]:
    """The same on the path that evaluations take."""
    venv = evaluation_env(dataclasses.replace(run_config(run), device="cpu"), 1, seed)
    restore_statistics(run, which, venv)
    return played(load_agent(run, which, device="cpu"), venv, steps)


# Actions are numbers, so that whatever an agent sees otherwise is seen in them.


@pytest.mark.parametrize("view", VIEWS)
def test_it_does_what_it_does_in_an_evaluation(
    call: Callable[..., tuple[int, str, str]], run_of: Callable[[str], Path], tmp_path: Path, view: str
):
    run, out = run_of(view), tmp_path / "frames"
    words = ("--agent", run, "--out", out, "--seed", 30, "--frames", 40, "--frames-per-file", 21, "--size", 16)
    code, told, err = call(*words, "--deterministic", "--device", "cpu")
    assert (code, err) == (0, "")
    assert f"40 frames of test/Steer-v0 in {out}" in told
    first, second = recorded(out)
    assert len(first) == 21 - 4  # a whole episode shows a last picture that nothing is done at
    for found, seed in ((first, 30), (second, 31)):
        expected = evaluated(run, seed, len(found))
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert expected.std(axis=0).min() > 1e-3  # and not always the same


def test_the_frames_are_those_of_the_game(run_of: Callable[[str], Path], tmp_path: Path):
    """In their own size and number, whatever the agent's encoder eats: the same actions give the same frames."""
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
        "run": str(run), "which": "last", "steps": 64, "env": "test/Steer-v0", "observation": "latent",
        "encoder": str(run / "encoder"), "deterministic": False,
    }  # fmt: skip
    said = {key: entry[key] for key in ("env", "policy", "agent", "frame_skip", "seed")}
    assert said == {"env": "test/Steer-v0", "policy": "agent", "agent": str(run), "frame_skip": 3, "seed": 5}
    assert "deterministic" not in entry


# What is taken from the agent's run, and what contradicts it


def test_the_environment_is_made_as_in_training(
    call: Callable[..., tuple[int, str, str]], run_of: Callable[[str], Path], tmp_path: Path
):
    run = run_of("latent only")
    assert call("--agent", run, "--out", tmp_path, "--frames", 12, "--env", "test/Steer-v0")[0] == 0
    (entry,) = json.loads((tmp_path / "recording.json").read_text())["files"].values()
    assert (entry["env_kwargs"], entry["pixel_key"], entry["frame_skip"]) == ({"kind": "two"}, "pov", None)
    (file,) = tmp_path.glob("*.npy")
    assert set(load_rows(file)) > {"observation$inventory$log"}
    # Of two cameras another one may be recorded than the agent looks through.
    other = tmp_path / "back"
    assert call("--agent", run, "--out", other, "--frames", 12, "--pixel-key", "back")[0] == 0
    back, front = np.load(other / file.name), np.load(file)
    np.testing.assert_array_equal(back[0], front[0][::-1])


def test_frame_skip_is_the_agents(call: Callable[..., tuple[int, str, str]], run_of: Callable[[str], Path], tmp_path: Path):
    words = ("--agent", run_of("latent"), "--out", tmp_path / "a", "--frames", 4)
    for given in (("--frame-skip", 2), ("--env-kwargs", "frame_skip", 2)):
        code, _, err = call(*words, *given)
        assert code == 2
        assert "frame_skip is 2 here, and the agent was trained with 3" in err
        assert err.count("\n") == 1
    assert not (tmp_path / "a").exists()
    assert call(*words, "--frame-skip", 3)[0] == 0
    code, _, err = call("--agent", run_of("Dict"), "--out", tmp_path / "b", "--frame-skip", 3)
    assert code == 2
    assert "frame_skip is 3 here, and the agent was trained with none given" in err


def test_another_environment_is_told(call: Callable[..., tuple[int, str, str]], run_of: Callable[[str], Path], tmp_path: Path):
    code, out, _ = call("--agent", run_of("latent"), "--out", tmp_path, "--env", "test/Road-v0", "--frames", 8)
    assert code == 0
    assert "the agent was trained in test/Steer-v0, and acts in test/Road-v0 here" in out
    (entry,) = json.loads((tmp_path / "recording.json").read_text())["files"].values()
    assert (entry["env"], entry["frame_skip"]) == ("test/Road-v0", 3)


def test_frames_counts_those_that_are_there(
    call: Callable[..., tuple[int, str, str]], run_of: Callable[[str], Path], tmp_path: Path
):
    words = ("--agent", run_of("latent"), "--out", tmp_path, "--frames")
    assert call(*words, 8)[0] == 0
    assert "holds 8 frames of test/Steer-v0 already, of 8 asked for; --frames is how many to have in all" in call(*words, 8)[1]
    assert call(*words, 12)[0] == 0
    assert [len(np.load(file)) for file in sorted(tmp_path.glob("*.npy"))] == [8, 4]


# Files of agents


def test_a_zip_in_a_run_is_the_run(call: Callable[..., tuple[int, str, str]], run_of: Callable[[str], Path], tmp_path: Path):
    run = Path(shutil.copytree(run_of("latent"), tmp_path / "run"))
    observations = agent_state(run, "last")["observations"]
    observations["mean"][0] += 1.0  # so that the two agents of the run differ
    change_state(run, "last", observations=observations)
    words = ("--frames", 15, "--deterministic", "--device", "cpu")
    assert call("--agent", run / "last.zip", "--out", tmp_path / "a", *words)[0] == 0
    assert call("--agent", run, "--which", "last", "--out", tmp_path / "b", *words)[0] == 0
    assert call("--agent", run, "--out", tmp_path / "c", *words)[0] == 0
    (a,), (b,), (c,) = (recorded(tmp_path / name) for name in "abc")
    np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(a, evaluated(run, 0, len(a), "last"), atol=1e-5)
    assert np.abs(a - c).max() > 1e-3


def test_a_zip_on_pixels_as_ever(call: Callable[..., tuple[int, str, str]], run_of: Callable[[str], Path], tmp_path: Path):
    """Of Stable-Baselines3's own; another tool's files may lie beside it, or an agent's run."""
    env = gym.make("test/Steer-v0")
    agent = PPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu", seed=1)
    agent.save(tmp_path / "mine.zip")
    for beside in ("nothing", "another tool", "a run"):
        if beside == "another tool":
            (tmp_path / "config.json").write_text("{}")
            (tmp_path / "mine.json").write_text("{}")
        elif beside == "a run":
            shutil.copy(run_of("latent") / "config.json", tmp_path)
            (tmp_path / "mine.json").unlink()
        out = tmp_path / beside
        words = ("--agent", tmp_path / "mine.zip", "--out", out, "--frames", 9, "--deterministic")
        assert call(*words, "--env", "test/Steer-v0")[0] == 0
        (found,) = recorded(out)
        np.testing.assert_allclose(found, played(agent, DummyVecEnv([lambda: Seeded(env)]), len(found)), atol=1e-6)
        (entry,) = json.loads((out / "recording.json").read_text())["files"].values()
        assert (entry["policy"], entry["deterministic"]) == ("agent", True)
        code, _, err = call(*words)
        assert (code, err.count("\n")) == (2, 1)
        assert "env must be given" in err


class Seeded(gym.Wrapper[Any, Any, Any, Any]):
    """The first reset has seed 0."""

    seed: int | None = 0

    def reset(self, **kwargs: Any) -> Any:
        seed, self.seed = self.seed, None
        return self.env.reset(seed=seed)


def spoilt(run: Path, tmp_path: Path, how: str) -> Path:
    """A copy of a run, or something in its place, with a mistake."""
    place = tmp_path / "place"
    if how == "nothing":
        return place
    if how == "no run":
        place.mkdir()
        return place
    shutil.copytree(run, place)
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
        ("nothing", (), "there is no agent file or folder"),
        ("no run", (), "holds no agent (no config.json); latent-obs train-agent makes one"),
        ("another run", (), "cannot be read as the settings of latent-obs train-agent"),
        ("no agent", (), "found ['last']"),
        ("damaged agent", (), "best.zip cannot be loaded"),
        ("no statistics", (), "the running statistics in"),
        ("damaged encoder", (), "damaged"),
        (
            "good",
            ("--env-kwargs", "actions", 3),
            "trained with actions Box(-1.0, 1.0, (2,), float32), and this environment has",
        ),
        ("good", ("--env-kwargs", "kind", "dict"), "was trained on Box(6,), and would see inventory/log Box(1,), "),
        ("good", ("--env", "CartPole-v1", "--frame-skip", 3), "does not take the arguments"),
        ("good", ("--device", "cuda:63"), "device 'cuda:63' was asked for"),
        ("good", ("--which", "worst"), "worst.zip; found ['best', 'last']"),
    ],
)
def test_mistakes_are_a_line_each(
    call: Callable[..., tuple[int, str, str]], run_of: Callable[[str], Path], tmp_path: Path,
    how: str, words: tuple[object, ...], message: str,
):  # fmt: skip
    agent = spoilt(run_of("latent"), tmp_path, how)
    code, _, err = call("--agent", agent, "--out", tmp_path / "out", *words)
    assert code == 2
    assert message in err
    assert err.startswith("latent-obs frames record: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_without_its_policy(tmp_path: Path):
    with pytest.raises(InputError, match=r"is a folder: give record\(\) policy=agents\.load_policy\("):
        record(RecordConfig(agent=tmp_path, out=tmp_path / "out"))


# Policies of one's own


def test_an_agent_of_ones_own_behind_its_wrappers(encoder: FrozenEncoder, tmp_path: Path):
    """Whatever wraps an environment in training wraps what is recorded: a history, statistics, each new with an episode."""

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
def test_wrappers_that_do_more_than_show_are_told(wrapper: Any, tmp_path: Path):
    model = PPO("MlpPolicy", gym.make("test/Steer-v0"), n_steps=8, batch_size=8, device="cpu")
    with pytest.raises(InputError, match="may only change what is seen"):
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
