"""Environments with numbers beside pixels, and comparisons of what wrapped ones show; the tests of wrappers share them.

Worker processes import this module to find the environments, so it imports no torch.
"""

import copy
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from latent_obs.envs.old_gym import Enum
from latent_obs.wrappers.features import FeatureObservation
from tests.support.tiny import PixelEnv, picture

LOG = spaces.Box(0, 2304, (), np.int32)
HELD = Enum(["none", "log", "torch"])
IMAGE = spaces.Box(0, 255, (20, 28, 3), np.uint8)


class Miner(PixelEnv):
    """Pictures and a compass, and an inventory that holds the numbers of episode and step."""

    def __init__(self, first_episode: int = 0) -> None:
        super().__init__("dict", first_episode)
        parts = cast(spaces.Dict, self.observation_space).spaces
        self.observation_space = spaces.Dict({**parts, "inventory": spaces.Dict(log=LOG, dirt=LOG), "held": HELD})

    def observe(self, episode: int, step: int) -> Any:
        inventory = {"log": np.array(step, np.int32), "dirt": np.array(episode, np.int32)}
        return {**super().observe(episode, step), "inventory": inventory, "held": np.int64(step % 3)}


class Samples(gym.Env[Any, Any]):
    """Gives samples of its observation space, which its seed decides."""

    metadata = {"render_modes": []}  # noqa: RUF012
    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.observation_space, self._source = space, copy.deepcopy(space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._source.seed(seed)
        return self._source.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._source.sample(), 0.0, False, False, {}


def featured(grouped: bool = True, first_episode: int = 0, limit: int = 3) -> gym.Env[Any, Any]:
    return FeatureObservation(gym.wrappers.TimeLimit(Miner(first_episode), limit), grouped=grouped)


def index_of(env: Any) -> list[tuple[str, int, int]]:
    return [(slot.name, slot.start, slot.stop) for slot in env.index]


def assert_same(one: Any, other: Any) -> None:
    """Alike in form to the last entry; equal, or if they are float32 (latents) within 1e-5 of the largest."""
    assert isinstance(one, type(other)) or isinstance(other, type(one))  # an OrderedDict and a dict are alike
    if isinstance(one, dict):
        assert set(one) == set(other)
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, list | tuple) or (isinstance(one, np.ndarray) and one.dtype.kind == "O"):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, np.ndarray):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        largest = np.abs(one).max(initial=0) if one.dtype == np.float32 else 0
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * largest)
    else:
        assert one == other


def assert_shows(encoder: Any, shown: Any, *frames: tuple[int, int]) -> None:
    """A latent, or a history of them, is that of these (episode, step), the oldest first."""
    expected = np.concatenate([encoder(picture(*frame)) for frame in frames])
    assert shown.shape == expected.shape
    np.testing.assert_allclose(shown, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def assert_same_vec_envs(one: Any, other: Any, steps: int = 9) -> int:
    """Two vector environments of Stable-Baselines3 show the same, step for step; how many episodes ended."""
    assert one.observation_space == other.observation_space
    shown = other.reset()
    assert_same(one.reset(), shown)
    ended = 0
    for step in range(steps):
        kept = copy.deepcopy(shown)
        actions = np.full(one.num_envs, step % 2)
        (a, a_rewards, a_dones, a_infos), (b, b_rewards, b_dones, b_infos) = one.step(actions), other.step(actions)
        assert_same(a, b)
        assert_same(kept, shown)  # a step does not change what was returned before
        np.testing.assert_array_equal(a_rewards, b_rewards)
        np.testing.assert_array_equal(a_dones, b_dones)
        for a_info, b_info, done in zip(a_infos, b_infos, a_dones, strict=True):
            assert_same(a_info, b_info)
            assert ("terminal_observation" in a_info) is bool(done)
            ended += bool(done)
        shown = b
    return ended
