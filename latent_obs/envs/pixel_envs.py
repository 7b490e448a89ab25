"""Environments by name, with their pixels as they are; free of torch, so that worker processes start quickly."""

import contextlib
import difflib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from latent_obs.envs.faults import LastRealFrame
from latent_obs.pixels import PixelContract
from latent_obs.util.errors import InputError, LatentObsError, require
from latent_obs.wrappers.features import FeatureObservation, needs_features
from latent_obs.wrappers.pixel_reader import ContractObservation


def make_pixel_env(env_id: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """Make a registered environment as it is, pixels and all.

    ViZDoom's environments are registered first, and get `LastRealFrame`: their engine has no picture left at the end of
    an episode and gives a black one, and they report a time-out as a termination as well.

    MineRL's are registered on the way too, with actions that Stable-Baselines3 takes; `make_minerl` has their
    arguments.

    Raises:
        InputError: No environment of this name is registered, or it does not take these arguments.
        MissingExtraError: ViZDoom or MineRL was asked for and is not installed.
    """
    is_vizdoom = env_id.startswith("Vizdoom")
    if is_vizdoom:
        require("vizdoom.gymnasium_wrapper", extra="vizdoom", purpose=f"make {env_id}")
    elif is_minerl_id(env_id):
        from latent_obs.minerl.registration import register_minerl

        register_minerl()
    try:
        env = gym.make(env_id, **kwargs)
    except LatentObsError:
        raise
    except gym.error.UnregisteredEnv as error:  # an unknown name, namespace or version
        near = difflib.get_close_matches(env_id, list(gym.registry), n=4, cutoff=0.5)
        hint = (
            f"Did you mean {', '.join(near)}?"
            if near
            else "Gymnasium lists what there is with gymnasium.pprint_registry()"
        )
        raise InputError(f"no environment {env_id!r} is registered ({error}). {hint}") from None
    except (gym.error.Error, ImportError) as error:  # a malformed or outdated name, or a package that it needs
        raise InputError(f"{env_id!r} could not be made: {error}") from error
    except TypeError as error:
        raise InputError(f"{env_id} does not take the arguments {kwargs}: {error}") from None
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{env_id} could not be made with the arguments {kwargs}: {error}") from error
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
        with _without_ctrl_c():
            return self.env.reset(**kwargs)


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Start a process that Ctrl-C, which reaches every process of a terminal, does not end before this one has
    saved.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a process inherits what is ignored
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def make_small_frames(
    env_id: str,
    contract: PixelContract | None,
    *,
    number: int = 0,
    pixel_key: str | None = None,
    latent_only: bool = False,
    flatten: bool = False,
    env_kwargs: dict[str, Any] | None = None,
) -> gym.Env[Any, Any]:
    """Make one of several environments of a kind.

    Args:
        env_id: A registered id; see `make_pixel_env`.
        contract: What frames are resized to; None leaves them as they are.
        number: Which one it is: MineRL games that run already are shared out by it, and get the port ``port + number``.
        pixel_key: Entry of a Dict observation that holds the pixels; found by itself when only one fits.
        latent_only: Drop every other entry.
        flatten: The other entries will be joined to the latent, as one vector.
        env_kwargs: For the environment.

    Raises:
        InputError: The environment is unknown, does not take the arguments, or has no pixels that the contract can
            read.
    """
    arguments = dict(env_kwargs or {})
    if is_minerl_id(env_id) and isinstance(arguments.get("port"), int):
        arguments["port"] += number
    env = make_pixel_env(env_id, **arguments)
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
    """The same for an environment in hand."""
    if not latent_only and (flatten or needs_features(env.observation_space)):
        env = FeatureObservation(env, pixel_key=pixel_key, grouped=flatten)
        space = env.observation_space
        latent_only = flatten and isinstance(space, spaces.Dict) and len(space.spaces) == 1  # nothing is left to join
    return env if contract is None else ContractObservation(env, contract, pixel_key=pixel_key, latent_only=latent_only)
