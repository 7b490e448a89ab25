"""The rows of a file while it is recorded: a table that grows by a row with each frame and is written when the file ends."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from vae_training.record_state import Numbers
from vae_training.rows import rows_file_of, save_rows

_FIRST_CAPACITY = 1024
#: What is known of a step; 0 where none was taken.
_STEP = {"reward": np.float32, "terminated": np.bool_, "truncated": np.bool_, "acted": np.bool_}


class RowsTable:
    """What was done at each frame of a file, and what the environment told of it.

    A frame's row is begun before the frame is written, so that there is never a frame without its row; rows beyond the
    frames that a file has in the end are dropped. A column that comes up later (a monster that was not there before) is 0 in
    the rows before. Memory is that of one file's rows.

    Attributes:
        rows: Number of rows.

    Args:
        action_space: Of the environment; tells the columns of the actions.

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
        self.rows = 0
        self._actions = Numbers(action_space, "action")
        self._capacity = _FIRST_CAPACITY
        self._arrays: dict[str, NDArray[Any]] = {}
        for name, (shape, dtype) in self._actions.columns.items():
            self._arrays[name] = np.zeros((self._capacity, *shape), dtype)
        for name, dtype in {**_STEP, "first": np.bool_}.items():
            self._arrays[name] = np.zeros(self._capacity, dtype)

    def begin(self, state: Mapping[str, Any], *, first: bool) -> None:
        """Begin the row of the next frame.

        Args:
            state: Numbers, stored as float32, or arrays of one axis, stored as they are; by column.
            first: Whether the frame is the first of its episode.
        """
        if self.rows == self._capacity:
            self._arrays = {name: np.concatenate([array, np.zeros_like(array)]) for name, array in self._arrays.items()}
            self._capacity *= 2
        self._arrays["first"][self.rows] = first
        for name, value in state.items():
            array = self._arrays.get(name)
            if array is None:
                given = value if isinstance(value, np.ndarray) else np.float32(value)
                array = self._arrays[name] = np.zeros((self._capacity, *given.shape), given.dtype)
            array[self.rows] = value
        self.rows += 1

    def end_step(self, action: Any, reward: Any, *, terminated: bool, truncated: bool) -> None:
        """Tell what was done at the newest frame, and what came of it."""
        last = self.rows - 1
        for name, value in {
            **self._actions(action),
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
        }.items():
            self._arrays[name][last] = value
        self._arrays["acted"][last] = True  # at the end: a Ctrl-C may come in between

    def columns(self, frames: int) -> dict[str, NDArray[Any]]:
        """The columns of the first frames; nothing counts as done at the very last one, for nobody sees what came of it."""
        columns = {name: array[:frames].copy() for name, array in self._arrays.items()}
        columns["acted"][-1:] = False
        for name in (*self._actions.columns, *_STEP):
            columns[name][~columns["acted"]] = 0
        return columns

    def save(self, frames_file: Path, frames: int) -> None:
        """Write the rows beside a file of so many frames."""
        if frames:
            save_rows(rows_file_of(frames_file), self.columns(frames))
