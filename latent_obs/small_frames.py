"""An environment as a worker process makes it: its frames resized to what the encoder eats, everything else in numbers.

A small frame goes through a pipe in place of a large one (12 KB for 230 KB of ViZDoom's), and nothing here imports torch.
"""

from typing import Any

import gymnasium as gym
from gymnasium import spaces

from latent_obs.environments import is_minerl_id, make_pixel_env
from latent_obs.features import FeatureObservation, needs_features
from latent_obs.pixels import PixelContract
from latent_obs.reader import ContractObservation


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
        InputError: The environment is unknown, does not take the arguments, or has no pixels that the contract can read.
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
