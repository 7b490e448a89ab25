"""Environments that keep the actions they are given, with keys or with a vector; the tests of actions share them."""

import copy
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from latent_obs.envs.old_gym import Enum

KEYS = ("attack", "back", "forward", "jump", "left", "right", "sneak", "sprint")
CAMERA = spaces.Box(-180.0, 180.0, (2,), np.float32)
CRAFT = Enum(["none", "planks", "torch"], default="none")
PLACE = Enum(["dirt", "none"], default="none")  # of two names, and no key for that
KEYED = spaces.Dict({**{key: spaces.Discrete(2) for key in KEYS}, "camera": CAMERA, "craft": CRAFT, "place": PLACE})
CODE = np.array([0.5, -0.25, 0.0], np.float32)
CODED = spaces.Dict(vector=spaces.Box(-1.0, 1.0, (3,), np.float32))


class Recorder(gym.Env[Any, Any]):
    """Keeps the actions that it was given; the reward counts the steps, the episode ends at `ends_at`."""

    metadata = {"render_modes": []}  # noqa: RUF012
    observation_space = spaces.Box(0.0, 1.0, (3,), np.float32)

    def __init__(self, space: spaces.Space[Any], ends_at: int = 0, how: str = "terminated") -> None:
        self.action_space, self.ends_at, self.how = space, ends_at, how
        self.taken: list[Any] = []
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.random(3, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.taken.append(copy.deepcopy(action))
        if isinstance(action, dict):  # an environment may change what it is given
            for value in action.values():
                if isinstance(value, np.ndarray):
                    value[...] = 99
            action.clear()
        self.steps += 1
        end = self.steps == self.ends_at
        state = {"step": self.steps}
        return (
            self.np_random.random(3, np.float32),
            float(self.steps),
            end and self.how != "truncated",
            (end and self.how != "terminated"),
            state,
        )


class Coded(Recorder):
    """An environment whose no-op is not zeros."""

    def __init__(self, space: spaces.Space[Any] = CODED, noop: Any = None) -> None:
        super().__init__(space)
        self.noop = {"vector": CODE.copy()} if noop is None else noop


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return np.array_equal(one, other) and np.asarray(one).dtype.kind == np.asarray(other).dtype.kind


def keyed_noop() -> dict[str, Any]:
    return {**dict.fromkeys(KEYS, 0), "camera": np.zeros(2, np.float32), "craft": 0, "place": 1}


def taken(env: gym.Env[Any, Any], action: Any) -> Any:
    """What the environment inside is given."""
    env.step(action)
    return env.get_wrapper_attr("taken")[-1]
