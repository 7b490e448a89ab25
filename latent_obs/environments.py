"""Environments by name, with their pixels as they are; free of torch, so that worker processes start quickly."""

import difflib
import os
from typing import Any

import gymnasium as gym

from latent_obs.errors import InputError, require
from latent_obs.last_frame import LastRealFrame


def make_pixel_env(env_id: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """Make a registered environment as it is, pixels and all.

    ViZDoom's environments are registered first, and get `LastRealFrame`: their engine has no picture left at the end of
    an episode and gives a black one, and they report a time-out as a termination as well.

    Raises:
        InputError: No environment of this name is registered, or it does not take these arguments.
        MissingExtraError: ViZDoom was asked for and is not installed.
    """
    is_vizdoom = env_id.startswith("Vizdoom")
    if is_vizdoom:
        require("vizdoom.gymnasium_wrapper", extra="vizdoom", purpose=f"make {env_id}")
    try:
        env = gym.make(env_id, **kwargs)
    except gym.error.UnregisteredEnv as error:  # an unknown name, namespace or version
        near = difflib.get_close_matches(env_id, list(gym.registry), n=4, cutoff=0.5)
        hint = f"Did you mean {', '.join(near)}?" if near else "Gymnasium lists what there is with gymnasium.pprint_registry()"
        raise InputError(f"no environment {env_id!r} is registered ({error}). {hint}") from None
    except TypeError as error:
        raise InputError(f"{env_id} does not take the arguments {kwargs}: {error}") from None
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{env_id} could not be made with the arguments {kwargs}: {error}") from error
    if is_vizdoom:
        # The engine writes its settings into the current folder, several games over each other; they are not needed.
        env.get_wrapper_attr("game").set_doom_config_path(os.devnull)
        env = LastRealFrame(env)
    return env
