"""An environment to steer through by numbers, and agents trained in it, for tests of recording with agents."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray

from tests.support.tiny import random_frames

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.vec_env import VecEnv

from agents.config import AgentConfig
from agents.evaluation import evaluation_env, run_config
from agents.store import load_agent, restore_statistics
from agents.training import train_agent
from latent_obs_cli.main import main
from vae_training.data.rows import load_rows
from vae_training.model.cvae import CVAE
from vae_training.training.export import export_encoder

EPISODE = 5


class Steer(gym.Env[Any, Any]):
    """Noise of 24x20 to steer through by two numbers; what is seen next depends on what was done.

    A `kind` of "dict" has a camera "pov" beside a nested inventory, and "two" a second camera before it.
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

_PIXELS: dict[str, Any] = {"observation": "pixels", "learning_rate": 3e-4, "seed": 1}
_ONE_CAMERA: dict[str, Any] = {"env_kwargs": {"kind": "two"}, "pixel_key": "pov", "latent_only": True}
VIEWS: dict[str, dict[str, Any]] = {
    "latent": {"frame_skip": 3},
    "history": {"history": 3, "frame_skip": 2},
    "vector": {"env_kwargs": {"kind": "dict"}, "flatten": True},
    "latent only": {**_ONE_CAMERA, "normalize_observation": "off"},
    "pixels": {**_PIXELS, "encoder": None},
    "pixels in the size of an encoder": _PIXELS,
    "pixels beside numbers": {
        **_PIXELS,
        "encoder": None,
        "learning_rate": 1e-3,
        "seed": 0,
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
            settings: dict[str, Any] = {"env": "test/Steer-v0", "encoder": encoder, "out": run, "device": "cpu"}
            settings |= {"workers": "serial", "envs": 2, "steps": 64, "n_steps": 16, "batch_size": 16, "n_epochs": 2}
            settings |= {"eval_every": 0, "net_arch": (16,), "learning_rate": 0.01}
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


class Seeded(gym.Wrapper[Any, Any, Any, Any]):
    """The first reset has seed 0."""

    seed: int | None = 0

    def reset(self, **kwargs: Any) -> Any:
        seed, self.seed = self.seed, None
        return self.env.reset(seed=seed)
