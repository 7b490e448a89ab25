"""Environments that count, vectors of them, and how two vectors are compared, for the tests of the bridge."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.vec_env import VecEnv

MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP]
Kind = Literal["box", "dict", "tuple", "discrete"]
#: Length of an episode and how it ends: (terminated, truncated).
Episode = tuple[int, tuple[bool, bool]]
OVER, OUT, BOTH = (True, False), (False, True), (True, True)
SCRIPTS: list[list[Episode]] = [[(1, OUT), (3, OVER)], [(2, BOTH)], [(4, OVER), (1, OVER), (1, OUT), (2, OUT)]]


class Counting(gym.Env[Any, Any]):
    """Shows its number, episode, step and last action, and makes rewards of them; its episodes repeat a script.

    What it hands out, it writes over at the next step.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}  # noqa: RUF012
    difficulty = 1

    def __init__(
        self, number: int, script: Sequence[Episode], kind: Kind = "box", action: spaces.Space[Any] | None = None
    ) -> None:
        self.number, self.script, self.kind, self.episode, self.render_mode = number, script, kind, -1, "rgb_array"
        box = spaces.Box(0, 1000, (4,), np.float32)
        small = spaces.Box(0, 255, (2, 1), np.uint8)
        self.observation_space: spaces.Space[Any] = {
            "box": box,
            "dict": spaces.Dict(zebra=box, ant=small),
            "tuple": spaces.Tuple([box, small]),
            "discrete": spaces.Discrete(1000),
        }[kind]
        self.action_space = action or spaces.Discrete(5)
        self.buffer, self.log = np.zeros(4, np.float32), ["", "log"]

    def observe(self, action: float) -> Any:
        self.buffer[:] = self.number, self.episode, self.steps, action
        small = np.array([[self.steps], [self.episode]], np.uint8)
        if self.kind == "discrete":
            return 100 * self.number + 10 * (self.episode % 10) + self.steps
        return {"box": self.buffer, "dict": {"ant": small, "zebra": self.buffer}, "tuple": (self.buffer, small)}[
            self.kind
        ]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        # A buffer that is still in use by the last observation is not written to before it has been seen.
        self.episode, self.steps, self.buffer = self.episode + 1, 0, np.zeros(4, np.float32)
        level = options.get("level", 0) if options else 0
        return self.observe(0), {"episode_number": self.episode, "seed": -1 if seed is None else seed, "level": level}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        length, (terminated, truncated) = self.script[self.episode % len(self.script)]
        ends = self.steps >= length
        self.log[0] = f"{self.episode}.{self.steps}"
        info: dict[str, Any] = {
            "episode_number": self.episode,  # resets say it as well
            "half": self.steps / 2,
            "tenth": np.float32(self.steps / 10),
            "place": np.array([self.episode, self.steps], np.int16),
            "log": self.log,
            "nested": {"ends": ends, "deep": {"number": self.number}},
            "_own": "kept",
            "none": None,
        }
        if self.steps % 2:
            info["odd"] = info["nested"]["odd"] = True
        value = float(np.asarray(action).sum())
        return self.observe(value), self.reward(self.episode, self.steps), ends and terminated, ends and truncated, info

    def reward(self, episode: int, step: int) -> float:
        return self.number + episode / 8 + step / 64

    def render(self) -> Any:
        return np.full((2, 3, 3), self.number, np.uint8)

    def add(self, a: int, *, b: int = 0) -> int:
        return self.number + a + b


def makers(scripts: Sequence[Sequence[Episode]] = SCRIPTS, kind: Kind = "box") -> list[Callable[[], gym.Env[Any, Any]]]:
    return [partial(Counting, i, script, kind) for i, script in enumerate(scripts)]


def sync(
    mode: AutoresetMode = AutoresetMode.SAME_STEP, scripts: Any = SCRIPTS, kind: Kind = "box", **kwargs: Any
) -> Any:
    return SyncVectorEnv(makers(scripts, kind), autoreset_mode=mode, **kwargs)


def worked(mode: AutoresetMode = AutoresetMode.SAME_STEP, **kwargs: Any) -> Any:
    return AsyncVectorEnv(makers(SCRIPTS[:2]), autoreset_mode=mode, context="fork", **kwargs)


def kept(venv: VecEnv) -> Iterator[tuple[Any, Any]]:
    yield venv.reset(), venv.reset_infos
    while True:
        observation, _, _, infos = venv.step(np.ones(venv.num_envs, int))
        yield observation, infos


def place(script: Sequence[Episode], step: int) -> tuple[int, int]:
    """Which episode an environment is in after so many steps, and how far."""
    episode = 0
    while step >= (length := script[episode % len(script)][0]):
        step, episode = step - length, episode + 1
    return episode, step


def assert_same(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, dict):
        assert isinstance(other, dict)
        assert set(one) == set(other), where
        for key in one:
            assert_same(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, list | tuple):
        assert type(one) is type(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    elif isinstance(one, np.ndarray):
        assert isinstance(other, np.ndarray), where
        assert (one.dtype, one.shape) == (other.dtype, other.shape), where
        np.testing.assert_allclose(
            one, other, rtol=0, atol=1e-5, err_msg=where
        )  # latents depend a little on their batch
    else:
        assert one == other, where
        assert type(one) is type(other) or "terminal_observation" in where, (
            where
        )  # Discrete: Dummy's is what the env returned


def assert_same_story(one: VecEnv, other: VecEnv, steps: int = 14) -> int:
    """Both give the same; returns how many episodes ended."""
    assert one.observation_space == other.observation_space
    assert one.action_space == other.action_space
    assert (one.num_envs, one.render_mode) == (other.num_envs, other.render_mode)
    assert one.seed(5) == other.seed(5)
    one.set_options({"level": 3})
    other.set_options({"level": 3})
    ended, rng = 0, np.random.default_rng(0)
    for start in (0, steps // 2):  # the second time without seeds and options, amid episodes
        assert_same(one.reset(), other.reset())
        assert_same(list(one.reset_infos), list(other.reset_infos), "reset_infos")
        for step in range(start, steps):
            actions = rng.integers(0, 2, one.num_envs)
            (a, a_rewards, a_dones, a_infos), (b, b_rewards, b_dones, b_infos) = one.step(actions), other.step(actions)
            assert_same(a, b, f"observation {step}")
            assert_same(a_rewards, b_rewards, f"rewards {step}")
            assert_same(a_dones, b_dones, f"dones {step}")
            for info in (*a_infos, *b_infos):  # the only thing that depends on the clock
                info.get("episode", {}).pop("t", None)
            assert_same(list(a_infos), list(b_infos), f"infos {step}")
            assert_same(list(one.reset_infos), list(other.reset_infos), f"reset_infos {step}")
            ended += int(a_dones.sum())
    return ended
