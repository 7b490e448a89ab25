"""`make` and `wrap`: environments by name, or one in hand, with their pixels turned into latents."""

import os
from functools import partial
from typing import Any, Literal, Unpack, get_args

from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.envs.old_gym import OldGymEnv, is_old_gym
from latent_obs.envs.pixel_envs import env_maker, is_minerl_id, make_pixel_env, make_small_frames
from latent_obs.envs.workers import ProcessVectorEnv
from latent_obs.minerl.client import is_minerl as is_minerl_env
from latent_obs.minerl.installation import MINERL, minerl_version
from latent_obs.util.errors import check_choice, check_count
from latent_obs.wrappers.features import FeatureObservation, needs_features
from latent_obs.wrappers.observation import EncoderLike, OptionsDict, encoders_by_key
from latent_obs.wrappers.single import LatentObservation
from latent_obs.wrappers.vector import VectorLatentObservation

__all__ = ["make", "wrap"]

#: "sync" and "async": Gymnasium's vector environments, in this process or each in its own. "sb3-sync" and "sb3-async":
#: the same as Stable-Baselines3 takes them.
Vectorization = Literal["sync", "async", "sb3-sync", "sb3-async"]


def make(
    env_id: str,
    encoder: EncoderLike,
    *,
    num_envs: int | None = None,
    vectorization: Vectorization = "sync",
    **kwargs: Any,
) -> Any:
    """Make an environment whose pixels are mean latent vectors; with `num_envs`, several, encoded in one call per step.

    Worker processes resize their frames, and import neither torch nor CUDA. In a vector, an environment that raises in
    a step costs its episode, and is made anew (`RestartOnFault`).

    Args:
        env_id: A registered Gymnasium id. ViZDoom's ("VizdoomBasic-v1", …) and MineRL's ("MineRLTreechop-v0", …) are
            registered first.
        encoder: An encoder folder, or a loaded `FrozenEncoder` to share between environments; or several, as in
            `LatentObservation`.
        num_envs: How many environments; None makes a single one, not a vector.
        vectorization: "sync" (all in this process) or "async" (a process each) gives a vector environment of
            Gymnasium's, "sb3-sync" or "sb3-async" one of Stable-Baselines3's.
        **kwargs: The options of `LatentObservation` (`device`, `pixel_key`, `latent_only`, `flatten`, …; `flatten` is
            True by default for MineRL) and, for Gymnasium's vectors, `autoreset_mode`. All others are passed to
            `gymnasium.make`, such as ``frame_skip=4``, or ``port=9000`` for a MineRL game that runs already: in a
            vector the other games have the ports after it.

    Returns:
        The environment, wrapped in `LatentObservation`; or the vector, in `VectorLatentObservation` or
        `VecLatentObservation`.

    Raises:
        InputError: The id is unknown, or the environment has no pixels that the encoder takes.
        MissingExtraError: The package of the environment is not installed.
        EncoderFolderError: The encoder folder is missing, damaged or from a newer format.
        DeviceError: The device asked for is not there.

    Example:
        >>> from latent_obs import Architecture
        >>> encoder = FrozenEncoder.random(Architecture((64, 64, 3), latent_dim=8), device="cpu")
        >>> venv = make("VizdoomBasic-v1", encoder, num_envs=2, latent_only=True)
        >>> venv.single_observation_space
        Box(-inf, inf, (8,), float32)
        >>> venv.close()
    """
    options: Any = {name: kwargs.pop(name) for name in OptionsDict.__annotations__ if name in kwargs}
    if options.get("flatten") is None:
        options["flatten"] = is_minerl_id(env_id)
    if num_envs is not None:
        return _make_vector(env_id, encoder, check_count("num_envs", num_envs), vectorization, options, kwargs)
    encoder = _loaded(encoder, options)
    env = make_pixel_env(env_id, **kwargs)
    try:
        return wrap(env, encoder, **options)
    except BaseException:
        env.close()
        raise


def wrap(env: Any, encoder: EncoderLike, **options: Unpack[OptionsDict]) -> LatentObservation:
    """Wrap an environment in hand, of Gymnasium or of the old Gym (MineRL's own among them).

    Options and errors as in `make`. An old environment is adapted first: `OldGymEnv`, or all that `make_minerl` does.
    """
    encoder = _loaded(encoder, options)
    is_minerl = is_minerl_env(env) and minerl_version() == MINERL
    if is_minerl:
        from latent_obs.minerl.env import adapt_minerl

        env = adapt_minerl(env)
    elif is_old_gym(env):
        env = OldGymEnv(env)
    flatten = options.get("flatten")
    options["flatten"] = flatten = is_minerl if flatten is None else flatten
    if not options.get("latent_only") and (flatten or needs_features(env.observation_space)):
        env = FeatureObservation(env, pixel_key=options.get("pixel_key"), grouped=flatten)
    return LatentObservation(env, encoder, **options)


def _loaded(encoder: EncoderLike, options: OptionsDict) -> EncoderLike:
    """Load a folder, so that an error in it is raised before an environment, a game perhaps, is started."""
    if isinstance(encoder, str | os.PathLike):
        return FrozenEncoder.load(encoder, device=options.get("device", "auto"))
    return encoder


def _make_vector(
    env_id: str,
    encoder: EncoderLike,
    num_envs: int,
    vectorization: Vectorization,
    options: dict[str, Any],
    kwargs: dict[str, Any],
) -> Any:
    check_choice("vectorization", vectorization, get_args(Vectorization))
    autoreset_mode = kwargs.pop("autoreset_mode", AutoresetMode.SAME_STEP)
    pixel_key, latent_only = options.get("pixel_key"), options.get("latent_only", False)
    by_key = encoders_by_key(encoder, pixel_key, options.pop("device", "auto"))
    contracts = {one.contract for encoders in by_key.values() for one in encoders}
    # One size is enough for one image; otherwise, and where the picture itself is wanted, frames stay as they are.
    resized = len(contracts) == 1 and len(by_key) == 1 and not options.get("keep_pixels")
    makers: list[Any] = []
    for number in range(num_envs):
        if number and is_minerl_id(env_id) and isinstance(kwargs.get("port"), int):
            kwargs = {**kwargs, "port": kwargs["port"] + 1}  # each game that runs already has a port of its own
        make_one = partial(make_small_frames, env_maker(env_id, **kwargs), next(iter(contracts)) if resized else None)
        seen = {"pixel_key": pixel_key, "latent_only": latent_only and resized, "flatten": options["flatten"]}
        makers.append(partial(make_one, **seen))
    venv = _vector(makers, vectorization, autoreset_mode)
    try:
        loaded: Any = list(next(iter(by_key.values())))
        if len(by_key) > 1 or isinstance(encoder, dict):
            loaded, options["pixel_key"] = by_key, None
        elif not isinstance(getattr(venv, "single_observation_space", venv.observation_space), spaces.Dict):
            options["pixel_key"] = None  # the makers have left the pixels alone
        if vectorization.startswith("sb3"):
            from latent_obs.wrappers.sb3 import VecLatentObservation

            return VecLatentObservation(venv, loaded, **options)
        return VectorLatentObservation(venv, loaded, **options)
    except BaseException:
        venv.close()
        raise


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
