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
| observation$<key>           |       | numbers beside the picture in a Dict observation; nested keys are joined by $ |

`frames record` writes these. `frames extract` writes what a recording contains, under the same names.
"""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_obs.util.atomic import atomic_write
from latent_obs.util.errors import InputError
from vae_training.data.frames import Frames, place_on_disk
from vae_training.extraction.readers.arrays import npy_header_of, npz_headers, read_npz
from vae_training.extraction.readers.base import DamagedRecordingError

OBJECT_FIELDS = ("visible", "x", "y", "width", "height")
_TARGETS = ("state$", "object$", "observation$")
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
        rows: From `load_rows`. The numeric columns `state$...`, `object$...` and `observation$...` count.

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
        int64 (n,), rising; all i with `acted[i]` and not `first[i + 1]`; none where the rows lack these columns. Where
        `source_frame` shows that frames in between were left out (`frames extract --stride 2`), there is no transition.

    Example:
        >>> transitions_of({"acted": np.array([1, 1, 1, 0]), "first": np.array([1, 0, 1, 0])})
        array([0, 2])
    """
    if not {"acted", "first"} <= set(rows):
        return np.empty(0, np.int64)
    acted, first = (np.asarray(rows[name], bool) for name in ("acted", "first"))
    is_next = np.diff(rows.get("source_frame", np.arange(len(acted)))) == 1
    return np.flatnonzero(acted[:-1] & ~first[1:] & is_next)
