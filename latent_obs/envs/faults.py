"""Wrappers for environments that fail: a lost or hung game costs its episode, and nonsense is an error."""

import contextlib
import copy
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from latent_obs.envs.border import own
from latent_obs.pixels import brief
from latent_obs.util.errors import GameFaultError, GameLostError, InputError, LatentObsError, check_count
from latent_obs.util.words import counted

_log = logging.getLogger(__name__)
_LONGEST_PAUSE_S = 60.0
_HEALTHY_STEPS = 1_000  # after so many steps without a fault the next one begins a new row


class RestartOnFault(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Continue when a game is lost in the middle of an episode.

    The step in which it was lost is a truncation with no reward and the *last real* observation, so that an agent
    bootstraps from something that it saw. The next `reset` starts the game anew, after a pause that doubles from fault
    to fault, up to a minute. Faults are logged. A step that lost its game has ``info["fault"]`` (what happened) and
    ``info["faults"]`` (how many so far), and every reset the latter.

    Args:
        env: The environment. Without `remake` it raises `GameFaultError` from `step` and `reset` when its game is lost,
            and starts another game by itself at the next `reset`.
        remake: Makes the environment anew. Then every exception of it is a fault, except `LatentObsError`s (but for
            `GameFaultError`) and those with which Gymnasium reports wrong use. A new environment is seeded from the
            last seed given, if any; attributes that were set from outside are lost.
        most_in_a_row: After so many faults in a row, `reset` raises instead. A row ends with an episode that comes to
            its own end, or with 1,000 steps without a fault.
        first_pause_s: Seconds to wait before the first restart of a row.

    Example:
        >>> def make():
        ...     return gym.make("CartPole-v1")
        >>> env = RestartOnFault(make(), remake=make)
        >>> env.reset(seed=1)[1]
        {'faults': 0}
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        *,
        remake: Callable[[], gym.Env[Any, Any]] | None = None,
        most_in_a_row: int = 8,
        first_pause_s: float = 1.0,
    ) -> None:
        arguments: dict[str, Any] = {"most_in_a_row": most_in_a_row, "first_pause_s": first_pause_s}
        gym.utils.RecordConstructorArgs.__init__(self, remake=remake, **arguments, _disable_deepcopy=True)
        gym.Wrapper.__init__(self, own(env))
        check_count("most_in_a_row", most_in_a_row)
        if not 0 <= first_pause_s <= _LONGEST_PAUSE_S:
            raise InputError(f"first_pause_s must be from 0 to {_LONGEST_PAUSE_S:g} seconds, got {first_pause_s}")
        self.remake, self.most_in_a_row, self.first_pause_s = remake, most_in_a_row, first_pause_s
        self.faults_so_far = 0
        self._in_a_row = 0
        self._healthy = 0  # steps since the last fault
        self._fault: Exception | None = None  # the last one, until the game is started anew
        self._seed: int | None = None  # the last one given
        self._last: Any = None  # the last real observation

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, with restarts; a GameLostError after `most_in_a_row` faults in a row."""
        self._seed = self._seed if seed is None else seed
        while True:
            if self._in_a_row >= self.most_in_a_row:
                self._in_a_row = 0  # whoever catches this and tries again has as many attempts again
                raise GameLostError(
                    f"the game was lost {self.most_in_a_row} times in a row, and restarting it did not help. The last "
                    f"time: {_described(self._fault)}. A game that runs by itself has its own log; latent-obs doctor "
                    "lists what is missing on this machine"
                ) from self._fault
            if self._in_a_row:
                doubled = self.first_pause_s * 2.0 ** min(self._in_a_row - 1, 1_000)  # 2.0 ** 1024 is too large
                time.sleep(min(_LONGEST_PAUSE_S, doubled))
            try:
                if self._fault is not None and self.remake is not None:
                    with contextlib.suppress(Exception):
                        self.env.close()
                    try:
                        self.env = own(self.remake())
                    except Exception as error:
                        raise GameFaultError(f"it could not be made anew: {error}") from error
                    if seed is None and self._seed is not None:  # another one for each new environment
                        sequence = np.random.SeedSequence([self._seed, self.faults_so_far])
                        seed = int(sequence.generate_state(1)[0] >> 1)
                self._last, info = self.env.reset(seed=seed, options=options)
            except Exception as error:
                self._count(error)
                continue
            if self._fault is not None:
                _log.warning("a new episode begins, after %s in a row", counted(self._in_a_row, "fault"))
            self._fault = None
            return self._last, {**info, "faults": self.faults_so_far}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step; where the game is lost, a truncation with the last real observation."""
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except Exception as error:
            self._count(error)
            info = {"fault": _described(error), "faults": self.faults_so_far}
            return copy.deepcopy(self._last), 0.0, False, True, info
        self._last = observation
        self._healthy += 1
        if terminated or truncated or self._healthy >= _HEALTHY_STEPS:
            self._in_a_row = 0
        return observation, reward, terminated, truncated, info

    def _count(self, error: Exception) -> None:
        """Note a fault; raise an error that is none."""
        not_the_games = isinstance(error, LatentObsError | gym.error.Error) or self.remake is None
        if not_the_games and not isinstance(error, GameFaultError):
            raise error
        self.faults_so_far += 1
        self._in_a_row += 1
        self._healthy = 0
        self._fault = error
        message = "%s (fault %d, %d in a row); it is started anew"
        _log.warning(message, _described(error), self.faults_so_far, self._in_a_row)


def _described(fault: Exception | None) -> str:
    return str(fault) if isinstance(fault, GameFaultError) else f"{type(fault).__name__}: {fault}"


class Deadline(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Raise `GameFaultError` where a step or a reset takes too long: `RestartOnFault` counts a hung game as lost.

    It interrupts Python code, sleeps and reads, in the main thread of a process on Linux and macOS; a call into a
    library that never returns is not interrupted. An environment in a worker process is in the main thread of that.

    Args:
        env: The environment.
        step_deadline_s: Seconds that a step, or `close`, may take; None for any time.
        reset_deadline_s: Seconds that a reset may take.

    Raises:
        InputError: A deadline is not positive, or the system has no timer signals.
    """

    def __init__(
        self, env: gym.Env[Any, Any], *, step_deadline_s: float | None = None, reset_deadline_s: float | None = None
    ) -> None:
        deadlines: dict[str, Any] = {"step_deadline_s": step_deadline_s, "reset_deadline_s": reset_deadline_s}
        gym.utils.RecordConstructorArgs.__init__(self, **deadlines)
        gym.Wrapper.__init__(self, env)
        for name, seconds in deadlines.items():
            if seconds is not None and not 0 < seconds < math.inf:
                raise InputError(f"{name} must be a positive number of seconds, got {seconds!r}")
            if seconds is not None and not hasattr(signal, "setitimer"):
                raise InputError(f"{name} needs the timer signals of Linux or macOS; leave it out")
        self.step_deadline_s, self.reset_deadline_s = step_deadline_s, reset_deadline_s

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset, within `reset_deadline_s`."""
        with _within("reset", self.reset_deadline_s):
            return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, within `step_deadline_s`."""
        with _within("step", self.step_deadline_s):
            return self.env.step(action)

    def close(self) -> None:
        """Close, within `step_deadline_s` if it is in the main thread."""
        in_main = threading.current_thread() is threading.main_thread()
        with _within("step", self.step_deadline_s if in_main else None):
            self.env.close()


@contextlib.contextmanager
def _within(what: str, seconds: float | None) -> Iterator[None]:
    if seconds is None:
        yield
        return

    def ring(number: int, frame: object) -> None:
        raise GameFaultError(f"it hung: no answer within {what}_deadline_s={seconds:g} seconds")

    try:
        before = signal.signal(signal.SIGALRM, ring)
    except ValueError:
        raise InputError(
            f"{what}_deadline_s works in the main thread only, and this is another one; use vectorization='async'"
        ) from None
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, seconds)  # again and again, for code that catches the error
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # it may have rung in the line above
        signal.signal(signal.SIGALRM, before)


class CheckedEnv(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Refuse rewards that are no finite numbers, and observations that are not what their space declares.

    An `InputError` names the environment, the step of its episode, and what came. A number beyond its bounds, which a
    network can take all the same, is logged, once.

    Args:
        env: The environment.
        number: Its number in a vector; None where whoever catches the error adds that.
    """

    def __init__(self, env: gym.Env[Any, Any], number: int | None = None) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, number=number)
        gym.Wrapper.__init__(self, env)
        name = env.unwrapped.spec.id if env.unwrapped.spec is not None else type(env.unwrapped).__name__
        self._name = name if number is None else f"environment {number}: {name}"
        self._parts = list(_numeric_parts(env.observation_space))
        self._steps = 0
        self._is_logged = False

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset, and check the first observation."""
        observation, info = self.env.reset(**kwargs)
        self._steps = 0
        self._check(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, and check the observation and the reward."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        check_reward(reward, self._where())
        self._check(observation)
        return observation, reward, terminated, truncated, info

    def _where(self) -> str:
        return f"{self._name}, step {self._steps} of its episode"

    def _check(self, observation: Any) -> None:
        for path, space, low, high in self._parts:
            name = "observation" + "".join(f"[{key!r}]" for key in path)
            value = observation
            try:
                for key in path:
                    value = value[key]
                array = np.asarray(value)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise InputError(
                    f"{self._where()}: {name} cannot be read ({type(error).__name__}: {error}); its space declares "
                    f"{_declared(space)}. Correct the environment"
                ) from error
            kinds = "biuf" if np.dtype(space.dtype).kind == "f" else "biu"
            is_picture = array.ndim > 1 and space.dtype == np.uint8
            fits = array.dtype == np.uint8 if is_picture else array.dtype.kind in kinds
            if array.shape != space.shape or not fits:
                found = f"is {array.dtype} of shape {array.shape}"
            elif low is None or (inside := (low <= array) & (array <= high)).all():
                continue
            else:
                worst = array[~inside].flat[0]
                found = f"holds {worst}"
                if isinstance(space, spaces.Box) and np.isfinite(worst):
                    if not self._is_logged:
                        _log.warning("%s: %s %s, beyond its bounds: %s", self._where(), name, found, _declared(space))
                    self._is_logged = True
                    continue
            raise InputError(
                f"{self._where()}: {name} {found}, and its space declares {_declared(space)}. Correct the environment, "
                "or its observation_space"
            )


def _declared(space: spaces.Space[Any]) -> str:
    text = " ".join(str(space).split())
    return text if len(text) < 100 else brief(space)


def check_reward(reward: Any, where: str) -> None:
    """Check that a reward is one finite number; an `InputError` says `where` it came from."""
    try:
        is_number = np.ndim(reward) == 0 and math.isfinite(reward)
    except (TypeError, ValueError):
        is_number = False
    if not is_number:
        raise InputError(f"{where}: the reward is {reward!r}, expected one finite number. Correct the environment")


def _numeric_parts(
    space: spaces.Space[Any], path: tuple[Any, ...] = ()
) -> Iterator[tuple[tuple[Any, ...], Any, Any, Any]]:
    """The parts of a space that are arrays of numbers: (keys, space, low, high), without bounds for any byte."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for key, inner in space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces):
            yield from _numeric_parts(inner, (*path, key))
    elif isinstance(space, spaces.Box):
        any_byte = space.dtype == np.uint8 and (space.low == 0).all() and (space.high == 255).all()
        yield path, space, None if any_byte else space.low, None if any_byte else space.high
    elif isinstance(space, spaces.Discrete):
        yield path, space, space.start, space.start + space.n - 1
    elif isinstance(space, spaces.MultiDiscrete):
        yield path, space, space.start, space.start + space.nvec - 1
    elif isinstance(space, spaces.MultiBinary):
        yield path, space, 0, 1


class LastRealFrame(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Give the last real picture at the end of an episode, and report a time-out as a truncation only.

    Some engines (ViZDoom) have no state left once an episode is over: the observation of the last step is all zeros. An
    agent that bootstraps from a time-out would then value a black frame that it never saw in play. They also set
    `terminated` beside `truncated`, and Stable-Baselines3 counts that as a death.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, own(env))
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
