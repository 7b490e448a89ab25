"""Environments by name, with their pixels unchanged or resized; free of torch, so that workers start quickly."""

import contextlib
import difflib
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from latent_obs.envs.faults import LastRealFrame, RestartOnFault
from latent_obs.pixels import PixelContract
from latent_obs.util.errors import InputError, LatentObsError, require
from latent_obs.wrappers.features import FeatureObservation, needs_features
from latent_obs.wrappers.pixel_reader import ContractObservation


def make_pixel_env(env_id: str | EnvSpec, **kwargs: Any) -> gym.Env[Any, Any]:
    """Make a registered environment, with its observations unchanged.

    ViZDoom's environments are registered first, and get `LastRealFrame`. MineRL's are registered too, with actions that
    Stable-Baselines3 takes; `make_minerl` has their arguments.

    Raises:
        InputError: No environment of this name is registered, or it does not take these arguments.
        MissingExtraError: ViZDoom or MineRL was asked for and is not installed.
    """
    name = env_id.id if isinstance(env_id, EnvSpec) else env_id
    is_vizdoom = name.startswith("Vizdoom")
    if is_vizdoom:
        require("vizdoom.gymnasium_wrapper", extra="vizdoom", purpose=f"make {name}")
    elif is_minerl_id(name):
        from latent_obs.minerl.env import register_minerl

        register_minerl()
    try:
        env = gym.make(env_id, **kwargs)
    except LatentObsError:
        raise
    except gym.error.UnregisteredEnv as error:  # an unknown name, namespace or version
        near = difflib.get_close_matches(name, list(gym.registry), n=4, cutoff=0.5)
        hint = f"Did you mean {', '.join(near)}?" if near else "gymnasium.pprint_registry() lists those there are"
        raise InputError(f"no environment {name!r} is registered ({error}). {hint}") from None
    except TypeError as error:
        raise InputError(f"{name} does not take the arguments {kwargs}: {error}") from None
    except (gym.error.Error, ImportError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} could not be made with the arguments {kwargs}: {error}") from error
    if is_vizdoom:
        # The engine writes its settings into the current folder, several games over each other; they are not needed.
        env.get_wrapper_attr("game").set_doom_config_path(os.devnull)
        env = LastRealFrame(_GameOfItsOwn(env))
    return env


def is_minerl_id(env_id: str) -> bool:
    """Whether an environment id is one of MineRL's."""
    return env_id.startswith("MineRL")


class _GameOfItsOwn(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Start the game's process, at the first reset, such that Ctrl-C in a terminal does not end it."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        if self.env.get_wrapper_attr("game").is_running():
            return self.env.reset(**kwargs)
        # The engine makes this folder where it runs, and dies if another one that starts at the same moment was
        # quicker.
        with contextlib.suppress(OSError):
            Path("_vizdoom").mkdir(exist_ok=True)
        if threading.current_thread() is not threading.main_thread():
            return self.env.reset(**kwargs)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a process inherits what is ignored
        try:
            return self.env.reset(**kwargs)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def env_maker(env_id: str, **kwargs: Any) -> Callable[[], gym.Env[Any, Any]]:
    """Return what makes a `make_pixel_env` in `RestartOnFault`, here or in a worker.

    The worker need not know the name: what this process has registered under it comes along.
    """
    if is_minerl_id(env_id):
        return partial(make_pixel_env, env_id, **kwargs)  # restarts by itself
    spec = None if env_id.startswith("Vizdoom") else gym.registry.get(env_id)
    return partial(_make_with_restarts, partial(make_pixel_env, spec or env_id, **kwargs))


def _make_with_restarts(make: Callable[[], gym.Env[Any, Any]]) -> gym.Env[Any, Any]:
    return RestartOnFault(make(), remake=make, most_in_a_row=3)


def make_small_frames(
    make: Callable[[], gym.Env[Any, Any]],
    contract: PixelContract | None,
    *,
    pixel_key: str | None = None,
    latent_only: bool = False,
    flatten: bool = False,
) -> gym.Env[Any, Any]:
    """Make an environment whose frames are resized for an encoder in another process.

    Args:
        make: Makes the environment.
        contract: What frames are resized to; None leaves them as they are.
        pixel_key: Entry of a Dict observation that holds the pixels; not needed when only one fits.
        latent_only: Drop every other entry.
        flatten: The other entries will be joined to the latent, as one vector.

    Raises:
        InputError: The environment has no pixels that the contract can read.
    """
    env = make()
    try:
        seen = as_small_frames(env, contract, pixel_key=pixel_key, latent_only=latent_only, flatten=flatten)
        if isinstance(seen, ContractObservation):
            seen.reader.refuse_blur()  # the process that encodes sees resized frames only
        return seen
    except BaseException:
        env.close()
        raise


def as_small_frames(
    env: gym.Env[Any, Any], contract: PixelContract | None, *, pixel_key: str | None, latent_only: bool, flatten: bool
) -> gym.Env[Any, Any]:
    """Resize the frames of an environment; arguments as in `make_small_frames`."""
    if not latent_only and (flatten or needs_features(env.observation_space)):
        env = FeatureObservation(env, pixel_key=pixel_key, grouped=flatten)
        space = env.observation_space
        latent_only = flatten and isinstance(space, spaces.Dict) and len(space.spaces) == 1  # nothing is left to join
    return env if contract is None else ContractObservation(env, contract, pixel_key=pixel_key, latent_only=latent_only)
