"""Mend two ways in which an episode's last step misleads an agent: a black frame, and a time-out called a death."""

from typing import Any

import gymnasium as gym
import numpy as np


class LastRealFrame(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Give the last real picture at the end of an episode, and report a time-out as a truncation only.

    Some engines (ViZDoom) have no state left once an episode is over: the observation of the last step is all zeros. An
    agent that bootstraps from a time-out would then value a black frame that it never saw in play. They also set
    `terminated` beside `truncated`, and Stable-Baselines3 counts that as a death.

    Attributes:
        observation_space: That of the environment.

    Example:
        >>> class Ends(gym.Env):
        ...     observation_space = gym.spaces.Box(0, 255, (2, 2, 1), np.uint8)
        ...     action_space = gym.spaces.Discrete(2)
        ...     def reset(self, *, seed=None, options=None):
        ...         return np.full((2, 2, 1), 7, np.uint8), {}
        ...     def step(self, action):
        ...         return np.zeros((2, 2, 1), np.uint8), 0.0, True, True, {}
        >>> env = LastRealFrame(Ends())
        >>> _ = env.reset()
        >>> observation, _, terminated, truncated, _ = env.step(0)
        >>> int(observation.max()), terminated, truncated
        (7, False, True)
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self._last: Any = None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset, and remember the first observation."""
        self._last, info = self.env.reset(**kwargs)
        return self._last, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step; an all-zero last observation is replaced by the one before it."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if (terminated or truncated) and _is_blank(observation):
            observation = self._last
        self._last = observation
        return observation, reward, bool(terminated and not truncated), bool(truncated), info


def _is_blank(observation: Any) -> bool:
    """Whether every number in an observation is zero."""
    if isinstance(observation, dict):
        return all(_is_blank(value) for value in observation.values())
    return not np.any(observation) if isinstance(observation, np.ndarray) else not observation
