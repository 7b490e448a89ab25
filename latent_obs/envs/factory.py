"""The one-liners: an environment by name, or one in hand, with its pixels turned into latents."""

import multiprocessing
import os
from functools import partial
from typing import Any, Literal, get_args

from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.envs.main_script import Maker, withheld
from latent_obs.envs.old_gym import OldGymEnv, is_old_gym
from latent_obs.envs.pixel_envs import is_minerl_id, make_pixel_env, make_small_frames
from latent_obs.minerl.installation import MINERL, minerl_version
from latent_obs.util.errors import InputError
from latent_obs.wrappers.features import FeatureObservation, needs_features
from latent_obs.wrappers.observation import EncoderLike, encoders_by_key
from latent_obs.wrappers.single import LatentObservation
from latent_obs.wrappers.vector import VectorLatentObservation

__all__ = ["make", "wrap"]

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
        flatten: One vector, the latent first and all else after it (``env.index`` says what is where), in place of a
            Dict.
            None: for MineRL, so that an "MlpPolicy" takes it.
        num_envs: How many environments; None makes a single one, not a vector.
        vectorization: "sync" (all in this process) or "async" (a process each) gives a vector environment of
            Gymnasium's, "sb3-sync" or "sb3-async" one of Stable-Baselines3's; see `make_many`.
        **kwargs: `keep_pixels`, `standardize`, `history` and `monitor` as in `LatentObservation`; all others are passed
            to `gymnasium.make`, such as ``frame_skip=4``, or ``port=9000`` for a MineRL game that runs already
            (`latent_obs.make_minerl` has all of MineRL's).

    Returns:
        The environment, wrapped in `LatentObservation`; or the vector, in `VectorLatentObservation` or
        `VecLatentObservation`.

    Raises:
        InputError: The id is unknown, or the environment has no pixels that the encoder can eat.
        MissingExtraError: The package of the environment is not installed.
        EncoderFolderError: The encoder folder is missing, damaged or from a newer format.
        DeviceError: The device asked for is not there.
    """
    options = {"pixel_key": pixel_key, "latent_only": latent_only, "flatten": flatten}
    options |= {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
    if num_envs is not None:
        from latent_obs.envs.factory import make_many

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
        from latent_obs.minerl.registration import adapt_minerl

        return adapt_minerl(env), True
    return OldGymEnv(env), False


#: "sync" and "async": Gymnasium's vector environments, in this process or each in its own. "sb3-sync" and "sb3-async":
#: the same as Stable-Baselines3 takes them.
Vectorization = Literal["sync", "async", "sb3-sync", "sb3-async"]


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
    keep_pixels: bool = False,
    standardize: bool = False,
    history: int = 1,
    monitor: Any = None,
    autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    **kwargs: Any,
) -> Any:
    """Make several environments whose pixels are mean latent vectors, encoded in one batch per step.

    Worker processes resize their frames, and import neither torch nor CUDA; they are forked from a small server that
    has no threads (or spawned, where there is none), never from this process.

    Args:
        env_id: A registered Gymnasium id, as in `make`.
        encoder: An encoder folder or a loaded `FrozenEncoder`; or several, as in `LatentObservation`.
        num_envs: How many.
        vectorization: "sync" or "async" gives a `gymnasium.vector.VectorEnv`, "sb3-sync" or "sb3-async" a `VecEnv` of
            Stable-Baselines3; with its environments in this process ("sync"), or each in one of its own ("async").
        device: Where to encode when `encoder` is a folder.
        pixel_key: Entry of a Dict observation that holds the pixels; found by itself when only one fits.
        latent_only: Drop every other entry of a Dict observation.
        flatten: Join the other entries to the latent: one float32 vector. None: for MineRL.
        keep_pixels: Keep the image, in its own size, beside its latent.
        standardize: Shift and scale latents by their mean and deviation over the training frames.
        history: How many latents to show, the oldest first.
        monitor: A `DriftMonitor`, told of every frame and latent.
        autoreset_mode: When Gymnasium's vectors start the next episode; those of Stable-Baselines3 do so within the
            step.
        **kwargs: Passed to `gymnasium.make`; a MineRL `port` is that of the first game, the others have those after it.

    Returns:
        A `VectorLatentObservation`, or a `VecLatentObservation`.

    Example:
        >>> from latent_obs import Architecture, FrozenEncoder
        >>> encoder = FrozenEncoder.random(Architecture((64, 64, 3), latent_dim=8), device="cpu")
        >>> venv = make_many("VizdoomBasic-v1", encoder, 2, latent_only=True)
        >>> venv.single_observation_space
        Box(-inf, inf, (8,), float32)
        >>> venv.close()

    Raises:
        InputError: The id, the number or the vectorization is unknown, or there are no pixels that the encoder can eat.
        MissingExtraError: The package of the environment, or Stable-Baselines3, is not installed.
    """
    if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
        raise InputError(f"num_envs must be 1 or more environments, got {num_envs!r}")
    if vectorization not in get_args(Vectorization):
        raise InputError(f"vectorization must be one of {', '.join(get_args(Vectorization))}, got {vectorization!r}")
    flatten = is_minerl_id(env_id) if flatten is None else flatten
    by_key = encoders_by_key(encoder, pixel_key, device)
    contracts = {one.contract for encoders in by_key.values() for one in encoders}
    # One size is enough for one image; otherwise, and where the picture itself is wanted, frames stay as they are.
    contract = next(iter(contracts)) if len(contracts) == 1 and len(by_key) == 1 and not keep_pixels else None
    make = partial(
        make_small_frames,
        env_id,
        contract,
        pixel_key=pixel_key,
        latent_only=latent_only and contract is not None,
        flatten=flatten,
        env_kwargs=kwargs,
    )
    makers = [partial(make, number=number) for number in range(num_envs)]
    probe = makers[0]()  # a wrong name or space is one clear error here, and not one in every process
    try:
        space = probe.observation_space
    finally:
        probe.close()
    loaded = by_key if len(by_key) > 1 or isinstance(encoder, dict) else list(next(iter(by_key.values())))
    options: dict[str, Any] = {
        "encoder": loaded,
        "latent_only": latent_only,
        "flatten": flatten,
        "keep_pixels": keep_pixels,
        "standardize": standardize,
        "history": history,
        "monitor": monitor,
        "pixel_key": pixel_key if isinstance(space, spaces.Dict) and not isinstance(loaded, dict) else None,
    }
    venv = _vector(makers, vectorization, autoreset_mode)
    try:
        if vectorization.startswith("sb3"):
            from latent_obs.wrappers.sb3 import VecLatentObservation

            return VecLatentObservation(venv, **options)
        return VectorLatentObservation(venv, **options)
    except BaseException:
        venv.close()
        raise


def _vector(makers: list[Any], vectorization: Vectorization, autoreset_mode: AutoresetMode | str) -> Any:
    """The vector environment, with pixels."""
    if vectorization == "sync":
        return SyncVectorEnv(makers, autoreset_mode=autoreset_mode)
    if vectorization == "async":
        # Not daemonic: those may not start processes, as the games of MineRL do.
        with withheld():
            return AsyncVectorEnv(
                [Maker(make) for make in makers], context=start_method(), daemon=False, autoreset_mode=autoreset_mode
            )
    if vectorization == "sb3-async":
        from latent_obs.envs.workers import ProcessVecEnv

        return ProcessVecEnv(makers, start_method())
    from stable_baselines3.common.vec_env import DummyVecEnv

    return DummyVecEnv(makers)


def start_method() -> str:
    """Fork from a small server where there is one: never from this process, which may have started CUDA and threads."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    # Imported once, not once per worker.
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["latent_obs.envs.env_worker", "latent_obs.envs.pixel_envs"]
    )
    return "forkserver"
