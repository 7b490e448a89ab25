"""Who acts while frames are recorded."""

from collections.abc import Mapping
from typing import Any, Protocol

import gymnasium as gym
import numpy as np


class Policy(Protocol):
    """Acts on an environment's own observations; `agents.load_policy` makes one of a trained agent.

    Example:
        >>> class ToAndFro:
        ...     notes, settings = {"name": "to and fro"}, {}
        ...     def begin(self, env): pass
        ...     def reset(self, seed): self.step = 0
        ...     def __call__(self, observation):
        ...         self.step += 1
        ...         return self.step // 20 % 2
        >>> policy: Policy = ToAndFro()
    """

    @property
    def notes(self) -> Mapping[str, Any]:
        """What it is, for `recording.json`: plain values."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """The environment that it was made for: "env", "env_kwargs", "frame_skip", "pixel_key"; empty if unknown."""
        ...

    def begin(self, env: gym.Env[Any, Any]) -> None:
        """Look at the environment, before its first reset; raise `InputError` if it cannot act there."""
        ...

    def reset(self, seed: int | None) -> None:
        """Forget what was seen: an episode begins. At the beginning of a file there is a seed, for random numbers."""
        ...

    def __call__(self, observation: Any) -> Any:
        """The action at an observation as the environment gave it; called once for each step, in order."""
        ...


class RandomPolicy:
    """Random actions from the environment's action space, each held for a while.

    Args:
        stickiness: Probability to repeat the last action of the episode; 0 draws a new one at each step.
    """

    notes: Mapping[str, Any] = {}
    settings: Mapping[str, Any] = {}

    def __init__(self, stickiness: float = 0.0) -> None:
        self._stickiness = stickiness
        self._action: Any = None

    def begin(self, env: gym.Env[Any, Any]) -> None:
        """Take the action space."""
        self._space = env.action_space

    def reset(self, seed: int | None) -> None:
        """Begin an episode with a new action."""
        self._action = None
        if seed is not None:
            self._rng = np.random.default_rng(seed)

    def __call__(self, observation: Any) -> Any:
        """The next action, whatever is seen."""
        if self._action is None or not self._stickiness or self._rng.random() >= self._stickiness:
            self._action = self._space.sample()
        return self._action
