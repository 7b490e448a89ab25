"""The one-liners: an environment by name, or one in hand, with its pixels turned into latents."""

import os
from typing import Any

import gymnasium as gym

from latent_obs.environments import make_pixel_env
from latent_obs.frozen import FrozenEncoder
from latent_obs.wrapper import LatentObservation

__all__ = ["make", "wrap"]


def make(
    env_id: str,
    encoder: "FrozenEncoder | str | os.PathLike[str]",
    *,
    device: str = "auto",
    pixel_key: str | None = None,
    latent_only: bool = False,
    **kwargs: Any,
) -> gym.Env[Any, Any]:
    """Make an environment whose pixels are mean latent vectors.

    Args:
        env_id: A registered Gymnasium id; ViZDoom's ("VizdoomBasic-v1", …) are registered on the way.
        encoder: An encoder folder, or a loaded `FrozenEncoder` to share between environments.
        device: Where to encode: "auto", "cpu", "cuda", "cuda:1", "mps".
        pixel_key: Entry of a Dict observation that holds the pixels, where there is more than one image.
        latent_only: Drop every other entry of a Dict observation, so that the agent gets one vector.
        **kwargs: Passed to `gymnasium.make`, such as ``frame_skip=4`` for ViZDoom.

    Returns:
        The environment, wrapped in `LatentObservation`.

    Raises:
        InputError: The id is unknown, or the environment has no pixels that the encoder can eat.
        MissingExtraError: The package of the environment is not installed.
        EncoderFolderError: The encoder folder is missing, damaged or from a newer format.
        DeviceError: The device asked for is not there.
    """
    encoder = encoder if isinstance(encoder, FrozenEncoder) else FrozenEncoder.load(encoder, device=device)
    return wrap(make_pixel_env(env_id, **kwargs), encoder, pixel_key=pixel_key, latent_only=latent_only)


def wrap(
    env: gym.Env[Any, Any],
    encoder: "FrozenEncoder | str | os.PathLike[str]",
    *,
    device: str = "auto",
    pixel_key: str | None = None,
    latent_only: bool = False,
) -> LatentObservation:
    """Wrap an environment in hand; arguments and errors as in `make`."""
    encoder = encoder if isinstance(encoder, FrozenEncoder) else FrozenEncoder.load(encoder, device=device)
    return LatentObservation(env, encoder, pixel_key=pixel_key, latent_only=latent_only)
