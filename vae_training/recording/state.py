"""The state of a game beside its pixels: numbers of a Dict observation, and ViZDoom's variables and objects.

Nothing here changes what the environment gives: the same seed gives the same frames with and without.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from latent_obs.envs.factory import is_vizdoom
from latent_obs.util.errors import InputError
from vae_training.data.rows import rows_file_of, save_rows

#: Read of every ViZDoom game, beside what its own settings make available.
VARIABLES = (
    "HEALTH ARMOR SELECTED_WEAPON SELECTED_WEAPON_AMMO AMMO2 AMMO3 AMMO5 AMMO6 "
    "KILLCOUNT ITEMCOUNT HITCOUNT DAMAGECOUNT HITS_TAKEN DAMAGE_TAKEN DEATHCOUNT ATTACK_READY "
    "POSITION_X POSITION_Y POSITION_Z ANGLE PITCH VELOCITY_X VELOCITY_Y VELOCITY_Z"
)
#: Labels of the engine that are no things to see: the player itself, splashes of blood, the flash of a teleport.
_NO_THINGS = {"Self", "Gibs", "SFX"}
_NO_CLASSES = {"BulletPuff"}
#: What is known of a step; 0 where none was taken.
_STEP = {"reward": np.float32, "terminated": np.bool_, "truncated": np.bool_, "acted": np.bool_}
_FIRST_CAPACITY = 1024


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

    def __init__(self, space: spaces.Space[Any], prefix: str, *, most_axes: int = 99) -> None:
        self._paths: dict[str, tuple[Any, ...]] = {}
        self.columns: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        self._find(space, prefix, (), most_axes)

    def _find(self, space: spaces.Space[Any], name: str, path: tuple[Any, ...], most_axes: int) -> None:
        if isinstance(space, spaces.Dict | spaces.Tuple):
            for key, entry in space.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces):
                self._find(entry, f"{name}${key}", (*path, key), most_axes)
        elif isinstance(space, spaces.Discrete | spaces.Box | spaces.MultiBinary | spaces.MultiDiscrete):
            shape = space.shape or ()
            if len(shape) <= most_axes:
                self._paths[name] = path
                dtype = np.dtype(np.float32 if np.dtype(space.dtype).kind == "f" else space.dtype)
                self.columns[name] = ((int(np.prod(shape)),) if shape else (), dtype)

    def __call__(self, value: Any) -> dict[str, NDArray[Any]]:
        """The entries of a value, by name; `InputError` if one is missing, or of another size than its space's."""
        values: dict[str, NDArray[Any]] = {}
        for name, (shape, dtype) in self.columns.items():
            entry = value
            try:
                for key in self._paths[name]:
                    entry = entry[key]
                values[name] = np.asarray(entry, dtype).reshape(shape)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise InputError(
                    f"{name} must be {dtype} of shape {shape}, as its space declares ({type(error).__name__}: "
                    f"{error}). Correct the environment; --no-state leaves numbers of an observation out"
                ) from error
        return values


class StateReader:
    """Reads the state of the game at the frame that the environment has just given, by the columns of its row.

    In a ViZDoom game these are the engine's variables and objects. Objects come from its labels: boxes around what is
    drawn of each thing, so that what stands behind a wall is not in sight.

    Args:
        env: The environment, before its first reset: labels have to be switched on before the game starts.
        pixel_key: Entry of a Dict observation that holds the pixels; None where the observation is the picture.
    """

    def __init__(self, env: gym.Env[Any, Any], pixel_key: str | None) -> None:
        self._env: Any = env.unwrapped
        self._variables: dict[str, Any] = {}
        self._objects = is_vizdoom(env) and pixel_key != "automap"
        left_out = {pixel_key}
        if is_vizdoom(env):
            import vizdoom

            game = self._env.game
            names = [*VARIABLES.split(), *(variable.name for variable in game.get_available_game_variables())]
            self._variables = {f"state${name}": getattr(vizdoom.GameVariable, name) for name in dict.fromkeys(names)}
            self._size = (game.get_screen_width(), game.get_screen_height())
            left_out.add("gamevariables")  # the same numbers, without their names
        if self._objects:
            self._env.game.set_labels_buffer_enabled(True)
        space = env.observation_space
        entries = space.items() if isinstance(space, spaces.Dict) else ()
        beside = spaces.Dict({key: entry for key, entry in entries if key not in left_out})
        self._numbers = Numbers(beside, "observation", most_axes=1)

    def __call__(self, observation: Any) -> dict[str, Any]:
        """The columns of one frame: numbers, or arrays of one axis."""
        values: dict[str, Any] = {name: self._env.game.get_game_variable(v) for name, v in self._variables.items()}
        if self._objects and self._env.state is not None:
            values |= boxes_of(self._env.state.labels, self._size)
        return values | self._numbers(observation)


def boxes_of(labels: Any, size: tuple[int, int]) -> dict[str, NDArray[np.float32]]:
    """Find the largest object of each class in ViZDoom's labels, as fractions of a picture of (width, height) pixels.

    The player's own weapon, blood, bullet puffs and teleport flashes are left out.

    Returns:
        For each class in sight, float32 (5,): 1, center x, center y, width, height; as `object$<class>`.
    """
    largest: dict[str, Any] = {}
    for label in sorted(labels, key=lambda label: -label.width * label.height):
        if label.object_category not in _NO_THINGS and label.object_name not in _NO_CLASSES:
            largest.setdefault(f"object${label.object_name}", label)
    whole = (1, *size, *size)
    return {
        name: np.divide((1, o.x + o.width / 2, o.y + o.height / 2, o.width, o.height), whole).astype(np.float32)
        for name, o in largest.items()
    }


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
        columns = self._actions.columns | {name: ((), np.dtype(kind)) for name, kind in _STEP.items()}
        columns["first"] = ((), np.dtype(np.bool_))
        self._arrays = {n: np.zeros((_FIRST_CAPACITY, *shape), dtype) for n, (shape, dtype) in columns.items()}

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
        # "acted" comes last: a Ctrl-C may come in between.
        for name, value in {**self._actions(action), **outcome, "acted": True}.items():
            self._arrays[name][self._rows - 1] = value

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
