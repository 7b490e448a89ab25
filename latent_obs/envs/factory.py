"""`make` and `wrap`: an environment by name, or one in hand, with its pixels turned into latents."""

import os
from functools import partial
from typing import Any, Literal, get_args

from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.envs.old_gym import OldGymEnv, is_old_gym
from latent_obs.envs.pixel_envs import env_maker, is_minerl_id, make_pixel_env, make_small_frames
from latent_obs.envs.workers import ProcessVectorEnv
from latent_obs.minerl.installation import MINERL, minerl_version
from latent_obs.util.errors import InputError
from latent_obs.wrappers.features import FeatureObservation, needs_features
from latent_obs.wrappers.observation import EncoderLike, encoders_by_key
from latent_obs.wrappers.single import LatentObservation
from latent_obs.wrappers.vector import VectorLatentObservation

__all__ = ["make", "wrap"]

#: "sync" and "async": Gymnasium's vector environments, in this process or each in its own. "sb3-sync" and "sb3-async":
#: the same as Stable-Baselines3 takes them.
Vectorization = Literal["sync", "async", "sb3-sync", "sb3-async"]
#: Options of the wrappers that are not arguments of an environment.
_OPTIONS = ("keep_pixels", "standardize", "history", "monitor")


def make(
    env_id: str,
    encoder: EncoderLike,
    *,
    device: str = "auto",
    pixel_key: str | None = None,
    latent_only: bool = False,
    flatten: bool | None = None,
    num_envs: int | None = None,
    vectorization: Vectorization = "sync",
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
        flatten: One vector, the latent first and all else after it (``env.index`` says what is where), in place of a
            Dict. None: for MineRL, so that an "MlpPolicy" takes it.
        num_envs: How many environments; None makes a single one, not a vector.
        vectorization: "sync" (all in this process) or "async" (a process each) gives a vector environment of
            Gymnasium's, "sb3-sync" or "sb3-async" one of Stable-Baselines3's; see `make_many`.
        **kwargs: `keep_pixels`, `standardize`, `history` and `monitor` as in `LatentObservation`, and `autoreset_mode`
            as in `make_many`; all others are passed to `gymnasium.make`, such as ``frame_skip=4``, or ``port=9000`` for
            a MineRL game that runs already (`latent_obs.make_minerl` has all of MineRL's).

    Returns:
        The environment, wrapped in `LatentObservation`; or the vector, in `VectorLatentObservation` or
        `VecLatentObservation`.

    Raises:
        InputError: The id is unknown, or the environment has no pixels that the encoder takes.
        MissingExtraError: The package of the environment is not installed.
        EncoderFolderError: The encoder folder is missing, damaged or from a newer format.
        DeviceError: The device asked for is not there.
    """
    flatten = is_minerl_id(env_id) if flatten is None else flatten
    seen: dict[str, Any] = {"pixel_key": pixel_key, "latent_only": latent_only, "flatten": flatten}
    if num_envs is not None:
        return make_many(env_id, encoder, num_envs, vectorization, device=device, **seen, **kwargs)
    options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
    encoder = _loaded(encoder, device)
    env = make_pixel_env(env_id, **kwargs)
    try:
        return wrap(env, encoder, **seen, **options)
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
    """Load a folder, so that an error in it is raised before an environment, a game perhaps, is started."""
    return FrozenEncoder.load(encoder, device=device) if isinstance(encoder, str | os.PathLike) else encoder


def as_gymnasium(env: Any) -> tuple[Any, bool]:
    """Adapt an environment in hand to Gymnasium's API; also return whether it is one of MineRL's."""
    if not is_old_gym(env):
        return env, False  # LatentObservation checks anything else
    if type(getattr(env, "unwrapped", None)).__module__.startswith("minerl.env.") and minerl_version() == MINERL:
        from latent_obs.minerl.registration import adapt_minerl

        return adapt_minerl(env), True
    return OldGymEnv(env), False


def make_many(
    env_id: str,
    encoder: EncoderLike,
    num_envs: int,
    vectorization: Vectorization = "sync",
    *,
    device: str = "auto",
    pixel_key: str | None = None,
    latent_only: bool = False,
    flatten: bool | None = None,
    autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    **kwargs: Any,
) -> Any:
    """Make several environments whose pixels are mean latent vectors, encoded in one batch per step.

    Worker processes resize their frames, and import neither torch nor CUDA (`ProcessVectorEnv`). An environment that
    raises in a step costs its episode, and is made anew (`RestartOnFault`). Arguments and errors as in `make`, and:

    Args:
        env_id: A registered Gymnasium id.
        encoder: An encoder folder or a loaded `FrozenEncoder`, or several.
        num_envs: How many.
        vectorization: "sync" or "async" gives a `gymnasium.vector.VectorEnv`, "sb3-sync" or "sb3-async" a `VecEnv` of
            Stable-Baselines3; with its environments in this process ("sync"), or each in one of its own ("async").
        device: Where to encode when `encoder` is a folder.
        pixel_key: Entry of a Dict observation that holds the pixels.
        latent_only: Drop every other entry of a Dict observation.
        flatten: Join the other entries to the latent.
        autoreset_mode: When Gymnasium's vectors start the next episode; those of Stable-Baselines3 do so within the
            step.
        **kwargs: As in `make`; a MineRL `port` is that of the first game, the others have those after it.

    Returns:
        A `VectorLatentObservation`, or a `VecLatentObservation`.

    Example:
        >>> from latent_obs import Architecture, FrozenEncoder
        >>> encoder = FrozenEncoder.random(Architecture((64, 64, 3), latent_dim=8), device="cpu")
        >>> venv = make_many("VizdoomBasic-v1", encoder, 2, latent_only=True)
        >>> venv.single_observation_space
        Box(-inf, inf, (8,), float32)
        >>> venv.close()
    """
    if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
        raise InputError(f"num_envs must be 1 or more environments, got {num_envs!r}")
    if vectorization not in get_args(Vectorization):
        raise InputError(f"vectorization must be one of {', '.join(get_args(Vectorization))}, got {vectorization!r}")
    flatten = is_minerl_id(env_id) if flatten is None else flatten
    options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
    by_key = encoders_by_key(encoder, pixel_key, device)
    contracts = {one.contract for encoders in by_key.values() for one in encoders}
    # One size is enough for one image; otherwise, and where the picture itself is wanted, frames stay as they are.
    resized = len(contracts) == 1 and len(by_key) == 1 and not options.get("keep_pixels")
    makers: list[Any] = [
        partial(
            make_small_frames,
            env_maker(env_id, **_numbered(env_id, kwargs, number)),
            next(iter(contracts)) if resized else None,
            pixel_key=pixel_key,
            latent_only=latent_only and resized,
            flatten=flatten,
        )
        for number in range(num_envs)
    ]
    venv = _vector(makers, vectorization, autoreset_mode)
    try:
        loaded: Any = list(next(iter(by_key.values())))
        if len(by_key) > 1 or isinstance(encoder, dict):
            loaded, pixel_key = by_key, None
        elif not isinstance(getattr(venv, "single_observation_space", venv.observation_space), spaces.Dict):
            pixel_key = None  # the makers have left the pixels alone
        options |= {"pixel_key": pixel_key, "latent_only": latent_only, "flatten": flatten}
        if vectorization.startswith("sb3"):
            from latent_obs.wrappers.sb3 import VecLatentObservation

            return VecLatentObservation(venv, loaded, **options)
        return VectorLatentObservation(venv, loaded, **options)
    except BaseException:
        venv.close()
        raise


def _numbered(env_id: str, kwargs: dict[str, Any], number: int) -> dict[str, Any]:
    """Arguments of the environment of this number: each MineRL game that runs already has a port of its own."""
    port = kwargs.get("port")
    return {**kwargs, "port": port + number} if is_minerl_id(env_id) and isinstance(port, int) else kwargs


def _vector(makers: list[Any], vectorization: Vectorization, autoreset_mode: AutoresetMode | str) -> Any:
    if vectorization == "sync":
        return SyncVectorEnv(makers, autoreset_mode=autoreset_mode)
    if vectorization == "async":
        return ProcessVectorEnv(makers, autoreset_mode=autoreset_mode)
    if vectorization == "sb3-async":
        from latent_obs.envs.sb3_bridge import ProcessVecEnv

        return ProcessVecEnv(makers)
    from stable_baselines3.common.vec_env import DummyVecEnv

    return DummyVecEnv(makers)
