"""`RestartOnFault`: an episode whose game is lost becomes a truncation, and the next one begins with a fresh game."""

import copy
import logging
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from latent_obs.util.errors import GameFaultError, GameLostError, InputError

_log = logging.getLogger(__name__)


class RestartOnFault(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Go on when a game is lost in mid-play.

    The step in which it was lost is a truncation with no reward and the *last real* observation, so that an agent
    bootstraps from something that it saw, and nothing invented enters its rollout or replay buffer. The next `reset`
    starts anew, after a pause that doubles from fault to fault. Faults are logged, and counted in ``info``: a step that
    lost its game has ``info["fault"]`` (what happened) and ``info["faults"]`` (how many so far), and every reset the
    latter.

    Args:
        env: An environment that raises `faults` from `step` and `reset`, and mends itself at the next `reset`.
        faults: The exceptions that mean a lost game.
        most_in_a_row: After so many faults in a row, `reset` raises instead. A row ends with an episode that comes to
            its own end, or with `healthy_steps` steps without a fault. With the pauses as they are, the default gives a
            game that is started again by itself two minutes to come back.
        first_pause_s: Seconds to wait before the first restart of a row; doubled for each further one.
        longest_pause_s: Seconds that it waits at most.
        healthy_steps: Steps that count as a game in good health.
        sleep: What waits.

    Attributes:
        faults_so_far: Number of faults since this was made.

    Raises:
        InputError: An argument is out of range.

    Example:
        >>> class Fragile(gym.Env):
        ...     observation_space = action_space = gym.spaces.Discrete(3)
        ...     def reset(self, *, seed=None, options=None):
        ...         return 1, {}
        ...     def step(self, action):
        ...         raise GameFaultError("the game closed the connection")
        >>> env = RestartOnFault(Fragile(), first_pause_s=0)
        >>> _ = env.reset()
        >>> env.step(0)
        (1, 0.0, False, True, {'fault': 'the game closed the connection', 'faults': 1})
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        *,
        faults: tuple[type[Exception], ...] = (GameFaultError,),
        most_in_a_row: int = 8,
        first_pause_s: float = 1.0,
        longest_pause_s: float = 60.0,
        healthy_steps: int = 1_000,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        gym.utils.RecordConstructorArgs.__init__(
            self,
            faults=faults,
            most_in_a_row=most_in_a_row,
            first_pause_s=first_pause_s,
            longest_pause_s=longest_pause_s,
            healthy_steps=healthy_steps,
            sleep=sleep,
        )
        gym.Wrapper.__init__(self, env)
        if most_in_a_row < 1:
            raise InputError(f"most_in_a_row must be 1 or more faults, got {most_in_a_row}")
        if healthy_steps < 1:
            raise InputError(f"healthy_steps must be 1 or more, got {healthy_steps}")
        if not 0 <= first_pause_s <= longest_pause_s:
            raise InputError(
                f"pauses must be 0 s or longer, the first no longer than the longest, got {first_pause_s} and {longest_pause_s}"
            )
        self.faults = faults
        self.most_in_a_row, self.healthy_steps = most_in_a_row, healthy_steps
        self.first_pause_s, self.longest_pause_s = first_pause_s, longest_pause_s
        self.faults_so_far = 0
        self._sleep = sleep
        self._in_a_row = 0
        self._healthy = 0  # steps since the last fault
        self._last_fault = ""
        self._last: Any = None  # the last real observation

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, with as many restarts as it takes.

        Raises:
            GameLostError: The game was lost `most_in_a_row` times in a row.
        """
        while True:
            if self._in_a_row >= self.most_in_a_row:
                self._in_a_row = 0  # whoever catches this and tries again has as many attempts again
                raise GameLostError(
                    f"the game was lost {self.most_in_a_row} times in a row, and restarting it did not help. The last time: "
                    f"{self._last_fault}. latent-obs doctor says what is missing on this machine; a game that runs by itself "
                    "has its own log"
                )
            if self._in_a_row:
                doubled = self.first_pause_s * 2.0 ** min(
                    self._in_a_row - 1, 1_000
                )  # 2.0 ** 1024 is too large a number
                self._sleep(min(self.longest_pause_s, doubled))
            try:
                self._last, info = self.env.reset(seed=seed, options=options)
            except self.faults as fault:
                self._count(fault)
                continue
            if self._in_a_row:
                _log.warning("a new episode begins, after %d fault(s) in a row", self._in_a_row)
            return self._last, {**info, "faults": self.faults_so_far}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step; where the game is lost, a truncation with the last real observation."""
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except self.faults as fault:
            self._count(fault)
            return copy.deepcopy(self._last), 0.0, False, True, {"fault": str(fault), "faults": self.faults_so_far}
        self._last = observation
        self._healthy += 1
        if terminated or truncated or self._healthy >= self.healthy_steps:
            self._in_a_row = 0
        return observation, reward, terminated, truncated, info

    def _count(self, fault: Exception) -> None:
        self.faults_so_far += 1
        self._in_a_row += 1
        self._healthy = 0
        self._last_fault = str(fault)
        _log.warning("%s (fault %d, %d in a row); it is started anew", fault, self.faults_so_far, self._in_a_row)


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
