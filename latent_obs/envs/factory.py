"""Environments by name: `make_pixel_env` with their own observations, `make` and `wrap` with latents for the pixels.

Needs no torch until an encoder is loaded: worker processes import this module.
"""

import contextlib
import difflib
import importlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack, cast, get_args

import gymnasium as gym
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, _find_spec  # pyright: ignore[reportPrivateUsage]
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import AddRenderObservation

from latent_obs.actions import plain_actions
from latent_obs.envs.border import OLD_API, own
from latent_obs.envs.faults import CheckedEnv, Deadline, LastRealFrame, RestartOnFault
from latent_obs.envs.old_gym import OldGymEnv, SeedByHand, ignores_seed, is_old_gym
from latent_obs.envs.workers import ProcessVectorEnv
from latent_obs.minerl.client import is_minerl as is_minerl_env
from latent_obs.minerl.env import MineRLEnv, adapt_minerl, make_minerl, register_minerl
from latent_obs.minerl.installation import MINERL, minerl_version
from latent_obs.pixels import PixelContract, is_nested
from latent_obs.util.errors import InputError, LatentObsError, check_choice, check_count, require
from latent_obs.wrappers.features import FeatureObservation, needs_features
from latent_obs.wrappers.observation import ContractObservation, EncoderLike, OptionsDict, encoders_by_key
from latent_obs.wrappers.single import LatentObservation
from latent_obs.wrappers.vector import VectorLatentObservation

#: "sync" and "async": Gymnasium's vector environments, in this process or each in its own. "sb3-sync" and "sb3-async":
#: the same as Stable-Baselines3 takes them.
Vectorization = Literal["sync", "async", "sb3-sync", "sb3-async"]


def make(
    env_id: str,
    encoder: EncoderLike,
    *,
    num_envs: int | None = None,
    vectorization: Vectorization = "sync",
    render: bool = False,
    **kwargs: Any,
) -> Any:
    """Make an environment whose pixels are mean latent vectors; with `num_envs`, several, encoded in one call per step.

    Worker processes resize their frames, and import neither torch nor CUDA. In a vector, an environment that raises in
    a step costs its episode, and is made anew (`RestartOnFault`).

    Args:
        env_id: A registered Gymnasium id, or "module:id" as `gymnasium.make` takes it; ViZDoom's ("VizdoomBasic-v1")
            and MineRL's are registered first.
        encoder: An encoder folder, a loaded `FrozenEncoder`, or a `PCA` or its file; or several, as in
            `LatentObservation`.
        num_envs: How many environments; None makes a single one, not a vector.
        vectorization: "sync" (all in this process) or "async" (a process each) gives a vector environment of
            Gymnasium's, "sb3-sync" or "sb3-async" one of Stable-Baselines3's.
        render: Observe the picture that the environment draws (CartPole's, say) in place of its own observation.
        **kwargs: The fields of `ObservationOptions` (`flatten` is True by default for MineRL) and, for Gymnasium's
            vectors, `autoreset_mode`. `step_deadline_s` and `reset_deadline_s` are seconds after which an environment
            that does not answer counts as lost (`Deadline`). All others are passed to `gymnasium.make`, such as
            ``frame_skip=4``, or ``port=9000`` for a MineRL game that runs already: in a vector the other games have
            the ports after it.

    Returns:
        A `LatentObservation`; or a vector in `VectorLatentObservation` or `VecLatentObservation`.

    Raises:
        InputError: The id is unknown, or the environment has no pixels that the encoder takes.
        MissingExtraError: The package of the environment is not installed.
        EncoderFolderError: The encoder folder is missing, damaged or from a newer format.
        DeviceError: The device asked for is not there.

    Example:
        >>> from latent_obs import Architecture, FrozenEncoder
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
        check_count("num_envs", num_envs)
        check_choice("vectorization", vectorization, get_args(Vectorization))
    encoder = _loaded(encoder, options)
    kwargs["render"] = render
    if num_envs is not None:
        return _make_vector(env_id, encoder, num_envs, vectorization, options, kwargs)
    env = make_pixel_env(env_id, **kwargs)
    try:
        return wrap(env, encoder, **options)
    except BaseException:
        env.close()
        raise


def wrap(env: Any, encoder: EncoderLike, **options: Unpack[OptionsDict]) -> LatentObservation:
    """Wrap an environment in hand, of Gymnasium or of the old Gym (MineRL's own among them).

    Options and errors as in `make`. An old environment is adapted first: `OldGymEnv`, or all that `make_minerl` does.
    One of ViZDoom's gets what `make_pixel_env` puts around it.
    """
    encoder = _loaded(encoder, options)
    env = adapt(env)
    flatten = options.get("flatten")
    options["flatten"] = flatten = isinstance(env.unwrapped, MineRLEnv) if flatten is None else flatten
    space = env.observation_space
    if is_nested(space) or (not options.get("latent_only") and (flatten or needs_features(space))):
        env = FeatureObservation(CheckedEnv(env), pixel_key=options.get("pixel_key"), grouped=flatten)
    return LatentObservation(env, encoder, **options)


def adapt(env: Any) -> gym.Env[Any, Any]:
    """Put around an environment in hand what its kind needs: one of the old Gym, of MineRL or of ViZDoom."""
    if is_minerl_env(env) and minerl_version() == MINERL:
        env = adapt_minerl(env)
    elif is_old_gym(env):
        env = OldGymEnv(env)
    return _adapted(env)


def _loaded(encoder: EncoderLike, options: OptionsDict) -> EncoderLike:
    """Load the encoders before an environment, a game perhaps, is started; one image is named by `pixel_key`."""
    by_key: Any = encoders_by_key(encoder, options.get("pixel_key"), options.get("device", "auto"))
    if len(by_key) > 1:
        return by_key
    [(options["pixel_key"], encoders)] = by_key.items()
    return encoders


def _make_vector(
    env_id: str,
    encoder: Any,
    num_envs: int,
    vectorization: Vectorization,
    options: dict[str, Any],
    kwargs: dict[str, Any],
) -> Any:
    autoreset_mode = kwargs.pop("autoreset_mode", AutoresetMode.SAME_STEP)
    # One size is enough for one image; otherwise, and where the picture itself is wanted, frames are not resized.
    contracts = [one.contract for one in encoder] if isinstance(encoder, tuple) else []
    contract = contracts[0] if len(set(contracts)) == 1 and not options.get("keep_pixels") else None
    how: dict[str, Any] = {"pixel_key": options.get("pixel_key"), "flatten": options["flatten"]}
    how["latent_only"] = contract is not None and options.get("latent_only", False)
    how["for_sb3"] = vectorization.startswith("sb3")

    def make_small_frames(make_one: Callable[[], gym.Env[Any, Any]], number: int | None) -> gym.Env[Any, Any]:
        env = make_one()
        try:
            env = as_small_frames(env, contract, number=number, **how)
            if contract is not None:
                env.get_wrapper_attr("reader").refuse_blur()  # the process that encodes sees resized frames only
            return env
        except BaseException:
            env.close()
            raise

    makers: list[Any] = []
    numbered = is_minerl_id(env_id) and isinstance(kwargs.get("port"), int)
    for number in range(num_envs):
        if number and numbered:
            kwargs = {**kwargs, "port": kwargs["port"] + 1}  # each game that runs already has a port of its own
        here = number if vectorization in ("sync", "sb3-sync") else None  # errors of a worker name its number
        makers.append(partial(make_small_frames, env_maker(env_id, **kwargs), here))
    if vectorization == "sync":
        venv: Any = SyncVectorEnv(makers, autoreset_mode=autoreset_mode)
    elif vectorization == "async":
        venv = ProcessVectorEnv(makers, autoreset_mode=autoreset_mode)
    elif vectorization == "sb3-async":
        from latent_obs.envs.sb3_bridge import ProcessVecEnv

        venv = ProcessVecEnv(makers)
    else:
        from stable_baselines3.common.vec_env import DummyVecEnv

        venv = DummyVecEnv(makers)
    try:
        if not isinstance(getattr(venv, "single_observation_space", venv.observation_space), spaces.Dict):
            options["pixel_key"] = None  # the makers have left the pixels alone
        if vectorization.startswith("sb3"):
            from latent_obs.wrappers.sb3 import VecLatentObservation

            return VecLatentObservation(venv, encoder, **options)
        return VectorLatentObservation(venv, encoder, **options)
    except BaseException:
        venv.close()
        raise


def make_pixel_env(env_id: str | EnvSpec, *, render: bool = False, **kwargs: Any) -> gym.Env[Any, Any]:
    """Make a registered environment, with its observations unchanged, but in memory that it does not use again.

    ViZDoom's environments get `LastRealFrame`. MineRL's have actions that Stable-Baselines3 takes; `make_minerl` has
    their arguments. Both are known by what is registered, whatever its name.

    Args:
        env_id: Its id, or what is registered under it.
        render: Observe the picture that the environment draws in place of its own observation.
        **kwargs: Arguments of `gymnasium.make`; `step_deadline_s` and `reset_deadline_s` are those of `Deadline`, or of
            `make_minerl`.

    Raises:
        InputError: No environment of this name is registered, it does not take these arguments, it draws no picture
            (`render`), or it has the API of the old Gym.
        MissingExtraError: ViZDoom or MineRL was asked for and is not installed.
    """
    spec = find_spec(env_id)
    deadlines: dict[str, Any] = {}
    if not is_minerl_id(spec):
        deadlines = {key: kwargs.pop(key) for key in ("step_deadline_s", "reset_deadline_s") if key in kwargs}
    if render:
        kwargs = {"render_mode": "rgb_array", **kwargs}
    try:
        env = gym.make(spec, **kwargs)
    except LatentObsError:
        raise
    except Exception as error:
        if "gymnasium.Env" in str(error):  # "Gym is incompatible …", "The environment must inherit from …"
            raise InputError(f"env {spec.id} cannot be made by its id: {OLD_API}") from error
        raise InputError(f"{spec.id} could not be made with the arguments {kwargs}: {error}") from error
    env = _adapted(_with_picture(env, spec.id) if render else env)
    return Deadline(env, **deadlines) if deadlines else env


def find_spec(env_id: str | EnvSpec) -> EnvSpec:
    """Find what is registered under an id, with or without the module that registers it, or without a version.

    ViZDoom's and MineRL's environments are registered first where the id is one of theirs.

    Raises:
        InputError: Nothing is registered under it, or its module cannot be imported.
        MissingExtraError: ViZDoom or MineRL was asked for and is not installed.
    """
    if isinstance(env_id, EnvSpec):
        return env_id
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        if name not in gym.registry and name.startswith("Vizdoom"):
            require("vizdoom.gymnasium_wrapper", extra="vizdoom", purpose=f"make {name}")
        elif name not in gym.registry and name.startswith("MineRL"):
            register_minerl()
        return _find_spec(name)
    except LatentObsError:
        raise
    except gym.error.Error as error:  # an unknown name, namespace or version
        near = _similar_ids(name)
        hint = f"Did you mean {', '.join(near)}?" if near else "gymnasium.pprint_registry() lists all."
        own = "" if module else f" If a module of yours registers it, name the module as well: my_module:{name}"
        plain = isinstance(error, gym.error.NameNotFound | gym.error.VersionNotFound)  # says what the hint says
        why = "" if plain else f" ({str(error).rstrip('.')})"
        raise InputError(f"no environment {name!r} is registered{why}. {hint}{own}") from None
    except (ImportError, TypeError) as error:
        where = f"; it was in {_found_in[module]} when this run was made" if module in _found_in else ""
        raise InputError(
            f"env: module {module!r} of {env_id!r} cannot be imported ({error}){where}. Python looks for it in the "
            "current folder, in PYTHONPATH and in the installed packages"
        ) from error


def _similar_ids(name: str) -> list[str]:
    """At most four registered ids like this one, whose versions do not count: they would make any two alike."""
    ids: dict[str, list[str]] = {}
    for one in gym.registry:
        ids.setdefault(_VERSION.sub("", one).lower(), []).append(one)
    near = difflib.get_close_matches(_VERSION.sub("", name).lower(), list(ids), n=2, cutoff=0.7)
    return [one for key in near for one in ids[key]][:4]


_VERSION = re.compile(r"-v\d+$")
_found_in: dict[str, str] = {}  # by module of an environment: where it was when a run was made


def module_folder(env_id: str) -> str | None:
    """The folder in which Python finds the module of "module:id", or None."""
    package = env_id.rpartition(":")[0].partition(".")[0]
    try:
        spec = importlib.util.find_spec(package) if package else None
    except ValueError:  # "__main__", the script that runs, can be imported by no other process
        spec = None
    if spec is None:
        return None
    places = spec.submodule_search_locations or ([spec.origin] if spec.origin else [])
    return next((str(Path(place).absolute().parent) for place in places), None)


def look_for_module(env_id: str, folder: str | None) -> None:
    """Let Python look for the module of "module:id" in a folder as well, where it was when a run was made.

    The errors of `find_spec` name that folder.
    """
    module = env_id.rpartition(":")[0]
    if module and folder:
        _found_in[module] = folder
        if module_folder(env_id) is None:
            sys.path.append(folder)


def is_minerl_id(env_id: str | EnvSpec) -> bool:
    """Whether an environment is one of MineRL's: by what is registered, or by its name where nothing is."""
    try:
        entry: Any = find_spec(env_id).entry_point
        entry = getattr(entry, "origin", entry)  # as a worker has it
    except LatentObsError:
        return str(env_id).rpartition(":")[2].startswith("MineRL")
    return entry is make_minerl or entry in ("latent_obs:make_minerl", f"{make_minerl.__module__}:make_minerl")


def is_vizdoom(env: gym.Env[Any, Any]) -> bool:
    """Whether an environment is one of ViZDoom's, under whatever name it was registered."""
    module = sys.modules.get("vizdoom.gymnasium_wrapper.base_gymnasium_env")  # not imported: then it is none
    return module is not None and isinstance(env.unwrapped, module.VizdoomEnv)


def has_layer(env: gym.Env[Any, Any], kind: type[gym.Env[Any, Any]]) -> bool:
    """Whether an environment, or one that it wraps, is of this class."""
    while not isinstance(env, kind) and isinstance(env, gym.Wrapper):
        env = env.env
    return isinstance(env, kind)


def _adapted(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Put around an environment what its kind needs."""
    if not (isinstance(env, gym.Env) and is_vizdoom(env)):
        env = own(env)
    elif not has_layer(env, LastRealFrame):
        # The engine writes its settings into the current folder, several games over each other; they are not needed.
        env.get_wrapper_attr("game").set_doom_config_path(os.devnull)
        env = LastRealFrame(_GameOfItsOwn(env))
    return SeedByHand(env) if ignores_seed(env) and not has_layer(env, SeedByHand) else env


def _with_picture(env: gym.Env[Any, Any], name: str) -> gym.Env[Any, Any]:
    """An environment that observes what it draws."""
    try:
        return AddRenderObservation(env)
    except Exception as error:
        env.close()
        raise InputError(f"render: {name} draws no picture with render_mode='rgb_array' ({error})") from error


# The engine of a process that was killed waits for half a minute, and what it shared stays for ever if it is killed.
_END_OF_GAME = """
read -r id && [ ${#id} -ge 8 ] || exit
read -r end_of_the_process
for file in $(grep -ls -- "$id" /proc/[0-9]*/cmdline); do
    game=${file#/proc/}
    grep -qs viz_instance_id "$file" && kill -9 "${game%/cmdline}"
done
rm -f "/dev/shm/ViZDoomMQCtr$id" "/dev/shm/ViZDoomMQDoom$id" "/dev/shm/ViZDoomSM$id"
"""


class _GameOfItsOwn(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Start the game's process, at the first reset, such that Ctrl-C in a terminal does not end it.

    A shell waits for the end of this process, or for `close`, and then clears away what is left of the game (on Linux).
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)

    _clear: Callable[[], object] | None = None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        game = self.env.get_wrapper_attr("game")
        if game.is_running():
            return self.env.reset(**kwargs)
        # The engine dies if another one that starts at the same moment makes this folder first.
        with contextlib.suppress(OSError):
            Path("_vizdoom").mkdir(exist_ok=True)
        if self._clear is not None:  # a game that has died
            self._clear()
        in_main = threading.current_thread() is threading.main_thread()
        # A process inherits what is ignored.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
        try:
            return self.env.reset(**kwargs)
        finally:
            if in_main:
                signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
            if game.is_running() and Path("/proc/self").exists():
                words = ["/bin/sh", "-c", _END_OF_GAME]
                how: Any = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL) | {"stdin": subprocess.PIPE}
                # In its own session: what ends a terminal's or a worker's group does not end it.
                watch = subprocess.Popen(words, start_new_session=True, bufsize=0, **how)
                cast(Any, watch.stdin).write(f"{game.get_instance_id()}\n".encode())
                # Closes its stdin, and waits for it; not at exit, before the game itself is closed.
                self._clear = clear = weakref.finalize(self.unwrapped, watch.communicate)
                clear.atexit = False

    def close(self) -> None:
        try:
            self.env.close()
        finally:
            if self._clear is not None:
                self._clear()


def env_maker(env_id: str, **kwargs: Any) -> Callable[[], gym.Env[Any, Any]]:
    """Return what makes a `make_pixel_env` in `RestartOnFault`, here or in a worker.

    A worker of this package knows what this process has registered.
    """
    return partial(_make_with_restarts, partial(make_pixel_env, find_spec(env_id).id, **kwargs))


def _make_with_restarts(make_one: Callable[[], gym.Env[Any, Any]]) -> gym.Env[Any, Any]:
    env = make_one()
    if has_layer(env, RestartOnFault):  # MineRL's restart by themselves
        return env
    # Ten attempts take ten seconds: an environment that raises needs less time than the server of a game.
    return RestartOnFault(env, remake=make_one, most_in_a_row=10, first_pause_s=0.02)


def as_small_frames(
    env: gym.Env[Any, Any],
    contract: PixelContract | None,
    *,
    pixel_key: str | None,
    latent_only: bool,
    flatten: bool,
    for_sb3: bool = False,
    step_limit: int | None = None,
    number: int | None = None,
) -> gym.Env[Any, Any]:
    """Resize the frames of an environment, checked by `CheckedEnv`, for an encoder in another process.

    Args:
        env: The environment.
        contract: What frames are resized to; None leaves them unchanged.
        pixel_key: Entry of a Dict observation that holds the pixels; None if only one fits.
        latent_only: Drop every other entry.
        flatten: The other entries will be joined to the latent, as one vector.
        for_sb3: Take the actions that Stable-Baselines3 sends (`plain_actions`).
        step_limit: Steps of an episode in an environment that has no `TimeLimit`.
        number: Of the environment in a vector, for errors; None in a worker, whose errors have it.

    Raises:
        InputError: The environment has no pixels that the contract can read.
    """
    if step_limit is not None and not has_layer(env, gym.wrappers.TimeLimit):
        env = gym.wrappers.TimeLimit(env, step_limit)
    env = CheckedEnv(env, number)
    if for_sb3:
        env = plain_actions(env)
    space = env.observation_space
    if is_nested(space) or (not latent_only and (flatten or needs_features(space))):
        env = FeatureObservation(env, pixel_key=pixel_key, grouped=flatten)
        space = env.observation_space
        if flatten and isinstance(space, spaces.Dict) and len(space.spaces) == 1:
            latent_only = True  # nothing is left to join
    return env if contract is None else ContractObservation(env, contract, pixel_key=pixel_key, latent_only=latent_only)
