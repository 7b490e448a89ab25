"""The one-liners: an environment by name, or one in hand, with its pixels turned into latents."""

import os
from typing import TYPE_CHECKING, Any

from latent_obs.cameras import EncoderLike
from latent_obs.environments import is_minerl_id, make_pixel_env
from latent_obs.features import FeatureObservation, needs_features
from latent_obs.frozen import FrozenEncoder
from latent_obs.minerl_game.installation import MINERL, minerl_version
from latent_obs.old_gym.adapter import OldGymEnv, is_old_gym
from latent_obs.wrapper import LatentObservation

if TYPE_CHECKING:
    from latent_obs.vectorize import Vectorization

__all__ = ["make", "wrap"]

#: Options of the wrappers that are not arguments of an environment.
_OPTIONS = ("keep_pixels", "standardise", "history", "monitor")


def make(
    env_id: str,
    encoder: EncoderLike,
    *,
    device: str = "auto",
    pixel_key: str | None = None,
    latent_only: bool = False,
    flatten: bool | None = None,
    num_envs: int | None = None,
    vectorization: "Vectorization" = "sync",
    **kwargs: Any,
) -> Any:
    """Make an environment whose pixels are mean latent vectors; with `num_envs`, several, encoded in one call per step.

    Args:
        env_id: A registered Gymnasium id; ViZDoom's ("VizdoomBasic-v1", …) and MineRL's ("MineRLTreechop-v0", …) are
            registered on the way.
        encoder: An encoder folder, or a loaded `FrozenEncoder` to share between environments; or several, as in
            `LatentObservation`.
        device: Where to encode: "auto", "cpu", "cuda", "cuda:1", "mps".
        pixel_key: Entry of a Dict observation that holds the pixels, where there is more than one image.
        latent_only: Drop every other entry of a Dict observation, so that the agent gets one vector.
        flatten: One vector, the latent first and all else after it (``env.index`` says what is where), in place of a Dict.
            None: for MineRL, so that an "MlpPolicy" takes it.
        num_envs: How many environments; None makes a single one, not a vector.
        vectorization: "sync" (all in this process) or "async" (a process each) gives a vector environment of Gymnasium's,
            "sb3-sync" or "sb3-async" one of Stable-Baselines3's; see `make_many`.
        **kwargs: `keep_pixels`, `standardise`, `history` and `monitor` as in `LatentObservation`; all others are passed to
            `gymnasium.make`, such as ``frame_skip=4``, or ``port=9000`` for a MineRL game that runs already
            (`latent_obs.make_minerl` has all of MineRL's).

    Returns:
        The environment, wrapped in `LatentObservation`; or the vector, in `VectorLatentObservation` or `VecLatentObservation`.

    Raises:
        InputError: The id is unknown, or the environment has no pixels that the encoder can eat.
        MissingExtraError: The package of the environment is not installed.
        EncoderFolderError: The encoder folder is missing, damaged or from a newer format.
        DeviceError: The device asked for is not there.
    """
    options = {"pixel_key": pixel_key, "latent_only": latent_only, "flatten": flatten}
    options |= {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
    if num_envs is not None:
        from latent_obs.vectorize import make_many

        return make_many(env_id, encoder, num_envs, vectorization, device=device, **options, **kwargs)
    encoder = _loaded(encoder, device)
    env = make_pixel_env(env_id, **kwargs)
    options["flatten"] = is_minerl_id(env_id) if flatten is None else flatten
    try:
        return wrap(env, encoder, **options)
    except BaseException:
        env.close()
        raise


def wrap(
    env: Any,
    encoder: EncoderLike,
    *,
    device: str = "auto",
    pixel_key: str | None = None,
    latent_only: bool = False,
    flatten: bool | None = None,
    **options: Any,
) -> LatentObservation:
    """Wrap an environment in hand, of Gymnasium or of the old Gym (MineRL's own among them).

    Arguments and errors as in `make`. An old one is adapted first: `OldGymEnv`, or all that `make_minerl` does.
    """
    encoder = _loaded(encoder, device)
    env, is_minerl = as_gymnasium(env)
    flatten = is_minerl if flatten is None else flatten
    if not latent_only and (flatten or needs_features(env.observation_space)):
        env = FeatureObservation(env, pixel_key=pixel_key, grouped=flatten)
    return LatentObservation(env, encoder, pixel_key=pixel_key, latent_only=latent_only, flatten=flatten, **options)


def _loaded(encoder: EncoderLike, device: str) -> EncoderLike:
    """A folder loaded first: what is wrong with it is told before an environment, a game perhaps, is started."""
    return FrozenEncoder.load(encoder, device=device) if isinstance(encoder, str | os.PathLike) else encoder


def as_gymnasium(env: Any) -> tuple[Any, bool]:
    """An environment in hand as Gymnasium's, and whether it is one of MineRL's that was adapted here."""
    if not is_old_gym(env):
        return env, False  # LatentObservation says what is wrong with anything else
    if type(getattr(env, "unwrapped", None)).__module__.startswith("minerl.env.") and minerl_version() == MINERL:
        from latent_obs.minerl_game.make import adapt_minerl

        return adapt_minerl(env), True
    return OldGymEnv(env), False
