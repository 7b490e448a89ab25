"""The state of a game beside its pixels: numbers of a Dict observation, and ViZDoom's variables and objects.

Nothing here changes what the environment gives: the same seed gives the same frames with and without.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from latent_obs.util.errors import InputError
from vae_training.data.rows import rows_file_of, save_rows

Values = dict[str, Any]  # numbers or arrays of one axis, by column

#: Read of every ViZDoom game, beside what its own settings make available.
VARIABLES = (
    "HEALTH",
    "ARMOR",
    "SELECTED_WEAPON",
    "SELECTED_WEAPON_AMMO",
    "AMMO2",
    "AMMO3",
    "AMMO5",
    "AMMO6",
    "KILLCOUNT",
    "ITEMCOUNT",
    "HITCOUNT",
    "DAMAGECOUNT",
    "HITS_TAKEN",
    "DAMAGE_TAKEN",
    "DEATHCOUNT",
    "ATTACK_READY",
    "POSITION_X",
    "POSITION_Y",
    "POSITION_Z",
    "ANGLE",
    "PITCH",
    "VELOCITY_X",
    "VELOCITY_Y",
    "VELOCITY_Z",
)
#: Labels of the engine that are no things to see: the player itself, splashes of blood, the flash of a teleport.
_NO_THINGS = {"Self", "Gibs", "SFX"}
_NO_CLASSES = {"BulletPuff"}
#: What is known of a step; 0 where none was taken.
_STEP = {"reward": np.float32, "terminated": np.bool_, "truncated": np.bool_, "acted": np.bool_}
_FIRST_CAPACITY = 1024


class StateReader:
    """Reads the state of the game at the frame that the environment has just given, by the columns of its row.

    Args:
        env: The environment, before its first reset.
        pixel_key: Entry of a Dict observation that holds the pixels; None where the observation is the picture.
        wanted: Whether any state is wanted at all.
    """

    def __init__(self, env: gym.Env[Any, Any], pixel_key: str | None, *, wanted: bool = True) -> None:
        self._readers: list[Callable[[Any], Values]] = []
        if not wanted:
            return
        left_out = {pixel_key}
        if is_vizdoom(env):
            self._readers.append(VizdoomState(env, objects=pixel_key != "automap"))
            left_out.add("gamevariables")  # the same numbers, without their names
        if pixel_key is not None and isinstance(env.observation_space, spaces.Dict):
            beside = {key: space for key, space in env.observation_space.items() if key not in left_out}
            self._readers.append(Numbers(spaces.Dict(beside), "observation", most_axes=1))

    def __call__(self, observation: Any) -> Values:
        """The columns of one frame."""
        return {name: value for read in self._readers for name, value in read(observation).items()}


class Numbers:
    """The numeric entries of a value of a space, each as a number or as a vector, by name.

    Nested keys are joined by `$`, and places in a Tuple are counted from 0. Entries that are no numbers of a fixed
    count (texts, sequences) are left out. `columns` has the shape and dtype of each; float32 for all floats.

    Args:
        space: Of the value.
        prefix: What the names begin with; the only name where the space has no entries.
        most_axes: Entries of more axes than that are left out (pictures); others are flattened.

    Example:
        >>> numbers = Numbers(spaces.Dict(jump=spaces.Discrete(2), camera=spaces.Box(-180, 180, (2,))), "action")
        >>> numbers({"jump": 1, "camera": np.float32([0, 15])})
        {'action$jump': array(1), 'action$camera': array([ 0., 15.], dtype=float32)}
    """

    def __init__(self, space: spaces.Space[Any], prefix: str, *, most_axes: int | None = None) -> None:
        self._paths: dict[str, tuple[Any, ...]] = {}
        self.columns: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        self._find(space, prefix, (), most_axes)

    def _find(self, space: spaces.Space[Any], name: str, path: tuple[Any, ...], most_axes: int | None) -> None:
        if isinstance(space, spaces.Dict | spaces.Tuple):
            entries = space.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
            for key, entry in entries:
                self._find(entry, f"{name}${key}", (*path, key), most_axes)
        elif isinstance(space, spaces.Discrete | spaces.Box | spaces.MultiBinary | spaces.MultiDiscrete):
            shape = space.shape or ()
            if most_axes is None or len(shape) <= most_axes:
                self._paths[name] = path
                dtype = np.dtype(np.float32 if np.dtype(space.dtype).kind == "f" else space.dtype)
                self.columns[name] = ((int(np.prod(shape)),) if shape else (), dtype)

    def __call__(self, value: Any) -> Values:
        """The entries of a value, by name.

        Raises:
            InputError: One is missing, or of another size than its space declares.
        """
        values: Values = {}
        for name, path in self._paths.items():
            entry, (shape, dtype) = value, self.columns[name]
            try:
                for key in path:
                    entry = entry[key]
                values[name] = np.asarray(entry, dtype).reshape(shape)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise InputError(
                    f"{name} must be {dtype} of shape {shape}, as its space declares ({type(error).__name__}: "
                    f"{error}). Correct the environment; --no-state leaves numbers of an observation out"
                ) from error
        return values


class VizdoomState:
    """Variables and objects of a ViZDoom game, as the engine knows them.

    Objects come from the labels of the engine: boxes around what is drawn of each thing, so that what stands behind a
    wall is not in sight. The player's own weapon, blood, bullet puffs and teleport flashes are left out.

    Args:
        env: A ViZDoom environment, before its first reset: labels have to be switched on before the game starts.
        objects: Whether to look for objects.
    """

    def __init__(self, env: gym.Env[Any, Any], *, objects: bool = True) -> None:
        import vizdoom

        self._env: Any = env.unwrapped
        self._game: Any = self._env.game
        names = [*VARIABLES, *(variable.name for variable in self._game.get_available_game_variables())]
        self._variables = {f"state${name}": getattr(vizdoom.GameVariable, name) for name in dict.fromkeys(names)}
        self._objects = objects
        if objects:
            self._game.set_labels_buffer_enabled(True)
        self._size = (self._game.get_screen_width(), self._game.get_screen_height())

    def __call__(self, observation: Any) -> Values:
        """Each variable, and of each class in sight the largest object."""
        game, state = self._game, self._env.state
        values: Values = {name: game.get_game_variable(variable) for name, variable in self._variables.items()}
        if self._objects and state is not None:
            values.update(boxes_of(state.labels, self._size))
        return values


def boxes_of(labels: Any, size: tuple[int, int]) -> dict[str, NDArray[np.float32]]:
    """Find the largest object of each class in ViZDoom's labels, as fractions of a picture of (width, height) pixels.

    Returns:
        For each class in sight, float32 (5,): 1, center x, center y, width, height; as `object$<class>`.
    """
    largest: dict[str, Any] = {}
    for label in labels:
        name = label.object_name
        if label.object_category in _NO_THINGS or name in _NO_CLASSES:
            continue
        if name not in largest or label.width * label.height > largest[name].width * largest[name].height:
            largest[name] = label
    width, height = size
    return {
        f"object${name}": np.array(
            (1, (o.x + o.width / 2) / width, (o.y + o.height / 2) / height, o.width / width, o.height / height),
            np.float32,
        )
        for name, o in largest.items()
    }


def is_vizdoom(env: gym.Env[Any, Any]) -> bool:
    """Whether an environment is one of ViZDoom's, under whatever name it was registered."""
    module = sys.modules.get("vizdoom.gymnasium_wrapper.base_gymnasium_env")  # not imported: then it is none
    return module is not None and isinstance(env.unwrapped, module.VizdoomEnv)


class RowsTable:
    """The rows of a file while it is recorded: state, action and outcome of each frame.

    A frame's row is begun before the frame is written, so that there is never a frame without its row. A column that
    comes up later (a monster that was not there before) is 0 in the rows before.

    Example:
        >>> table = RowsTable(spaces.Discrete(3))
        >>> table.begin({"state$HEALTH": 100.0}, first=True)
        >>> table.end_step(2, 0.5, terminated=False, truncated=False)
        >>> table.begin({"state$HEALTH": 90.0}, first=False)
        >>> columns = table.columns(2)
        >>> columns["action"].tolist(), columns["acted"].tolist(), columns["state$HEALTH"].tolist()
        ([2, 0], [True, False], [100.0, 90.0])
    """

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self._rows = 0
        self._actions = Numbers(action_space, "action")
        self._arrays: dict[str, NDArray[Any]] = {}
        plain = {name: ((), np.dtype(dtype)) for name, dtype in {**_STEP, "first": np.bool_}.items()}
        for name, (shape, dtype) in {**self._actions.columns, **plain}.items():
            self._arrays[name] = np.zeros((_FIRST_CAPACITY, *shape), dtype)

    def begin(self, state: Mapping[str, Any], *, first: bool) -> None:
        """Begin the row of the next frame.

        Args:
            state: Numbers, stored as float32, or arrays of one axis, stored as they are; by column.
            first: Whether the frame is the first of its episode.
        """
        if self._rows == len(self._arrays["first"]):
            self._arrays = {name: np.concatenate([array, np.zeros_like(array)]) for name, array in self._arrays.items()}
        self._arrays["first"][self._rows] = first
        for name, value in state.items():
            if name not in self._arrays:
                given = value if isinstance(value, np.ndarray) else np.float32(value)
                self._arrays[name] = np.zeros((len(self._arrays["first"]), *given.shape), given.dtype)
            self._arrays[name][self._rows] = value
        self._rows += 1

    def end_step(self, action: Any, reward: Any, *, terminated: bool, truncated: bool) -> None:
        """Enter what was done at the newest frame, and what came of it."""
        outcome = {"reward": reward, "terminated": terminated, "truncated": truncated}
        for name, value in {**self._actions(action), **outcome}.items():
            self._arrays[name][self._rows - 1] = value
        self._arrays["acted"][self._rows - 1] = True  # at the end: a Ctrl-C may come in between

    def columns(self, frames: int) -> dict[str, NDArray[Any]]:
        """The columns of the first frames; the last one has no action, because its outcome is in no frame."""
        columns = {name: array[:frames].copy() for name, array in self._arrays.items()}
        columns["acted"][-1:] = False
        for name in (*self._actions.columns, *_STEP):
            columns[name][~columns["acted"]] = 0
        return columns

    def save(self, frames_file: Path, frames: int) -> None:
        """Write the rows beside a file of so many frames."""
        if frames:
            save_rows(rows_file_of(frames_file), self.columns(frames))
