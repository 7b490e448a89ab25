"""`OwnObservation`: what an environment hands out, in memory of its own. The wrappers of this package stand on it.

Needs no torch.
"""

from copy import copy, deepcopy
from typing import Any

import gymnasium as gym

from latent_obs.envs.old_gym import is_old_gym, takes_seed
from latent_obs.util.errors import InputError

#: What an error says of an environment of the old Gym.
OLD_API = (
    "it has the API of the old Gym. Put latent_obs.OldGymEnv around it, beneath all wrappers; where it is registered: "
    "gymnasium.register(ID, entry_point=lambda **kwargs: OldGymEnv(ITS_CLASS(**kwargs)))"
)


def old_api(env: object, found: object) -> InputError:
    """The error for an environment with the API of the old Gym; `found` is what shows it."""
    return InputError(f"env {getattr(env, 'unwrapped', env)}: {found}; {OLD_API}")


class OwnObservation(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Copy each observation and the dict of its info: an environment may write the next ones into the same memory.

    Raises:
        InputError: The environment has the API of the old Gym, by the parameters of `reset` or by what that returns.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        if not takes_seed(env.unwrapped.reset):
            raise old_api(env, "its reset() takes no seed")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset, and copy the first observation and its info."""
        result: Any = self.env.reset(seed=seed, options=options)
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
            raise old_api(self.env, f"its reset() returned {type(result).__name__}, not (observation, info)")
        return deepcopy(result[0]), copy(result[1])

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, and copy the observation and the info."""
        result: Any = self.env.step(action)
        if len(result) != 5:
            raise old_api(self.env, f"its step() returned {len(result)} values, not 5")
        observation, *others, info = result
        return deepcopy(observation), *others, copy(info)


def own(env: Any) -> gym.Env[Any, Any]:
    """Put an `OwnObservation` around an environment that may reuse its memory; an `InputError` if it is none."""
    if is_old_gym(env):
        raise old_api(env, "it is no environment of Gymnasium's")
    if not isinstance(env, gym.Env):
        raise InputError(f"env must be a gymnasium.Env, got {env!r}; vectors of them have wrappers of their own")
    inner: Any = env
    while isinstance(inner, gym.Wrapper) and not isinstance(inner, OwnObservation):
        if type(inner).__module__.partition(".")[0] not in ("latent_obs", "gymnasium"):
            break  # a wrapper of the user's may use its memory again
        inner = inner.env
    return env if isinstance(inner, OwnObservation) else OwnObservation(env)


def own_envs_of(venv: Any) -> None:
    """Put an `OwnObservation` around each environment of a vector that holds them in this process.

    The last observation of an episode is read after the reset that may have written over it.
    """
    envs = getattr(venv.unwrapped, "envs", None)
    if isinstance(envs, list) and all(isinstance(env, gym.Env) for env in envs):
        envs[:] = map(own, envs)
