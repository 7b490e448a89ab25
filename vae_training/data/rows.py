"""What is known of each frame of a file: actions, rewards, the state of the game. Row i belongs to frame i.

    images/
    ├── VizdoomBasic-v1_000.npy        uint8 (N, H, W, C)
    └── VizdoomBasic-v1_000.rows.npz   arrays of length N, by name

| array                       | dtype | content |
| --------------------------- | ----- | ------- |
| action, or action$<key>     |       | taken after frame i: (N,), or (N, k) for a vector; 0 where not `acted` |
| reward                      | f4    | of that step |
| terminated, truncated       | bool  | whether that step ended the episode |
| acted                       | bool  | false at a kept last picture of an episode, and at the last frame of the file |
| first                       | bool  | whether frame i is the first of its episode |
| state$<NAME>                | f4    | state of the game at frame i: HEALTH, POSITION_X, ANGLE (degrees), ... |
| object$<class>              | f4    | (N, 5): visible 0/1, center x, y, width, height of the largest in sight, as |
|                             |       | fractions of the picture, x to the right, y down; zeros where none is in sight |
| factor$<name>               | i8    | value of a factor of a generated scene |
| observation$<key>           |       | numbers beside the picture in a Dict observation; nested keys are joined by $ |

`frames record` writes these. `frames extract` writes what a recording contains, under the same names.
"""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latent_obs.util.atomic import atomic_write
from latent_obs.util.errors import InputError
from vae_training.data.frames import Frames, name_of, place_on_disk
from vae_training.extraction.readers.arrays import npy_header_of, npz_headers, read_npz
from vae_training.extraction.readers.base import DamagedRecordingError

#: Of each dataset that gives any frames: its number, sorted rows in it, and their places in the result.
Plan = list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]
OBJECT_FIELDS = ("visible", "x", "y", "width", "height")
_TARGETS = ("state$", "object$", "observation$", "factor$")
#: Columns in degrees, of ViZDoom and of MineRL's compass (its name in the dataset is the second).
_DEGREES = ("state$ANGLE", "state$PITCH", "observation$compass$angle", "observation$compassAngle")


def rows_file_of(frames_file: Path) -> Path:
    """Name the file of a frame file's rows, whether there are any or not."""
    return frames_file.with_name(frames_file.name.removesuffix(".npy") + ".rows.npz")


def load_rows(frames_file: Path) -> dict[str, NDArray[Any]]:
    """Load what is known of each frame of a file.

    Args:
        frames_file: A `.npy` of frames, of N frames.

    Returns:
        Arrays of length N by name, as this module's docstring lists them; numbers and text, never objects. Empty where
        the file has no rows beside it.

    Raises:
        InputError: The rows are damaged, hold Python objects, or are of another number of frames than the file.
    """
    file = rows_file_of(Path(frames_file))
    if not file.exists():
        return {}
    advice = f"Make {frames_file} and its rows again, or remove {file} to use the frames alone"
    try:
        count = npy_header_of(Path(frames_file)).shape[:1]
        rows = read_npz(file, list(npz_headers(file)))
    except DamagedRecordingError as error:
        raise InputError(f"{error}. {advice}") from None
    for name, values in rows.items():
        if values.shape[:1] != count:
            raise InputError(
                f"{file} does not belong to {frames_file}: its {name!r} has shape {values.shape}, expected a row for "
                f"each of {count} frames. {advice}"
            )
    return rows


def rows_of(dataset: Frames) -> dict[str, NDArray[Any]]:
    """Load the rows of an array from `get_datasets`, or of a slice of one, cut as it is; empty for any other array."""
    place = place_on_disk(dataset)
    if place is None:
        return {}
    end = place.first_frame + len(dataset)
    return {name: values[place.first_frame : end] for name, values in load_rows(place.file).items()}


def save_rows(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write rows (arrays of numbers or text, by any name), whole or not at all; the same columns give the same bytes.

    `numpy.savez` takes not every name (a recording may use "file"), and writes objects.
    """
    with atomic_write(path) as aside, zipfile.ZipFile(aside, "w") as archive:
        for key, column in columns.items():
            with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as member:  # no clock time in it
                np.lib.format.write_array(member, column, allow_pickle=False)


def targets_of(rows: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """Extract the state of the world from rows, as named numbers: the targets of probes.

    Args:
        rows: From `load_rows`. The numeric columns `state$...`, `object$...`, `factor$...` and `observation$...` count.

    Returns:
        float32 (N,) by name. A column of k numbers becomes k targets, `name.0` to `name.<k-1>`, and an object's five
        `.visible`, `.x`, `.y`, `.width`, `.height`. **Where an object is not in sight its last four are NaN**: there is
        no true answer. ViZDoom's ANGLE and PITCH and MineRL's compass, in degrees, become `.sin` and `.cos`: 359 is
        next to 0.
    """
    targets: dict[str, NDArray[np.float32]] = {}
    for name, column in rows.items():
        if not name.startswith(_TARGETS) or column.dtype.kind not in "biuf":
            continue
        if column.ndim == 1 and name in _DEGREES:
            radians = np.deg2rad(column.astype(np.float64))
            parts = {f"{name}.sin": np.sin(radians), f"{name}.cos": np.cos(radians)}
        elif column.ndim == 1:
            parts = {name: column}
        else:
            flat = column.reshape(len(column), int(np.prod(column.shape[1:]))).astype(np.float32)
            fields: Sequence[object] = range(flat.shape[1])
            if name.startswith("object$") and len(fields) == len(OBJECT_FIELDS):
                fields = OBJECT_FIELDS
                flat[flat[:, 0] <= 0, 1:] = np.nan
            parts = {f"{name}.{field}": flat[:, i] for i, field in enumerate(fields)}
        targets |= {part: values.astype(np.float32) for part, values in parts.items()}
    return targets


def transitions_of(rows: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    """Find the frames i whose action leads to frame i + 1, in rows from `load_rows`.

    Returns:
        int64 (n,), rising; all i with `acted[i]` and not `first[i + 1]`; none where the rows lack these columns.

    Example:
        >>> transitions_of({"acted": np.array([1, 1, 1, 0]), "first": np.array([1, 0, 1, 0])})
        array([0, 2])
    """
    if not {"acted", "first"} <= set(rows):
        return np.empty(0, np.int64)
    return np.flatnonzero(_follows(rows, len(rows["acted"])))


def _follows(rows: Mapping[str, NDArray[Any]], count: int) -> NDArray[np.bool_]:
    """Whether each of `count` frames is followed by the next; as far as the rows know."""
    acted = np.asarray(rows.get("acted", np.ones(count)), bool)
    first = np.asarray(rows.get("first", np.zeros(count)), bool)
    return acted & ~np.append(first[1:], True)[:count]


class SuperBatch(dict[str, NDArray[Any]]):
    """Arrays of as many rows by name, the frames as "frames"; a slice cuts all of them.

    Example:
        >>> batch = SuperBatch(frames=np.zeros((4, 8, 8, 3), np.uint8), reward=np.arange(4.0))
        >>> batch.cut(slice(1, 3))["reward"].tolist(), len(batch["frames"])
        ([1.0, 2.0], 4)
    """

    def cut(self, rows: slice) -> dict[str, NDArray[Any]]:
        """These rows of each array."""
        return {name: values[rows] for name, values in self.items()}


class ActionKind(NamedTuple):
    """What actions the recordings have: `size` discrete ones, numbered from 0, or continuous ones of `size` values."""

    kind: Literal["discrete", "continuous"]
    size: int


class Transitions:
    """Finds what follows each frame, by the rows beside the frame files.

    Without rows the next frame of a file counts as what follows, which is right within a video and wrong at the ends of
    episodes; so actions and rewards, which need rows, come with the true ends of episodes.

    Args:
        datasets: Arrays from `get_datasets`, or slices of them.
        acts: Whether actions and rewards are needed; else the next frames are all.

    Attributes:
        actions: What actions there are; None where none are needed.

    Raises:
        InputError: Actions are needed, and a file has none, or those of two files cannot be of one environment.
    """

    def __init__(self, datasets: Sequence[Frames], *, acts: bool) -> None:
        self.actions: ActionKind | None = None
        self._columns: list[dict[str, NDArray[Any]]] = []
        kinds: dict[ActionKind, str] = {}  # and the file of each
        for dataset in datasets:
            rows = rows_of(dataset)
            columns: dict[str, NDArray[Any]] = {"follows": _follows(rows, len(dataset))}
            if acts:
                # A step that ends an episode has its reward, though often no picture follows it.
                columns["acted"] = np.asarray(rows.get("acted", columns["follows"]), bool)
                columns["action"], columns["reward"] = _actions_and_rewards(name_of(dataset), rows)
                kind, size = (
                    ("discrete", 0) if columns["action"].ndim == 1 else ("continuous", columns["action"].shape[1])
                )
                kinds.setdefault(ActionKind(kind, size), name_of(dataset))
            self._columns.append(columns)
        if not acts:
            return
        if len(kinds) > 1:
            found = "; ".join(f"{kind.kind} ones of {kind.size or 'some'} in {file}" for kind, file in kinds.items())
            raise InputError(
                f"the recordings have several kinds of actions: {found}. Train on those of one environment"
            )
        if not any(columns["follows"].any() for columns in self._columns):
            raise InputError(
                f"the rows beside {name_of(datasets[0])} and other files show no step from a frame to the next "
                "(`acted` is false, or `first` true, everywhere), and inverse_dynamics, next_latent and reward are "
                "trained on such steps. Record longer episodes, or leave these terms at 0"
            )
        (self.actions,) = kinds
        if self.actions.kind == "discrete":
            highest = max(int(columns["action"].max(initial=0)) for columns in self._columns)
            self.actions = ActionKind("discrete", highest + 1)

    def next_frames(self, plan: Plan) -> Plan:
        """A plan for what follows the frames of a plan: the next frame, or, where none follows, the frame itself."""
        return [(index, rows + self._columns[index]["follows"][rows], targets) for index, rows, targets in plan]

    def read(self, plan: Plan, size: int) -> dict[str, NDArray[Any]]:
        """What the rows know of the frames of a plan, which go to `size` places.

        Returns:
            "follows" bool (N,), whether a next frame does; with actions also "acted" bool (N,), whether a step was
            taken at the frame, and of that step "action", int64 (N,) or float32 (N, size), and "reward", float32 (N,).
        """
        read = {n: np.zeros((size, *values.shape[1:]), values.dtype) for n, values in self._columns[0].items()}
        for index, rows, targets in plan:
            for name, values in self._columns[index].items():
                read[name][targets] = values[rows]
        return read

    def column(self, name: str) -> Iterator[NDArray[Any]]:
        """The values of each dataset's column ("action", "reward") where a step was taken."""
        for columns in self._columns:
            yield columns[name][columns["acted"]]


def _actions_and_rewards(file: str, rows: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Actions, int64 (N,) from 0 or float32 (N, size), and rewards of a file."""
    if not {"action", "reward"} <= set(rows):
        several = ", ".join(sorted(name for name in rows if name.startswith("action$")))
        found = f"actions of several parts ({several})" if several else "no actions and rewards beside it"
        raise InputError(
            f"{file} has {found}; inverse_dynamics, next_latent and reward are trained on a .rows.npz with `action` "
            "and `reward`. Record with `latent-obs frames record` from an environment with a single action space, or "
            "leave these terms at 0"
        )
    actions, rewards = rows["action"], rows["reward"].astype(np.float32)
    is_whole = actions.ndim == 1 and actions.dtype.kind in "iub"
    if actions.dtype.kind not in "iubf" or (is_whole and actions.min(initial=0) < 0):
        raise InputError(
            f"{file} has actions such as {np.unique(actions)[:3].tolist()}, expected numbers, whole ones from 0 on. "
            "Record it again"
        )
    if is_whole:
        return actions.astype(np.int64), rewards
    return actions.reshape(len(actions), int(np.prod(actions.shape[1:]))).astype(np.float32), rewards
