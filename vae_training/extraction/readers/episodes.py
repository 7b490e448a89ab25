"""Episodes whose pictures and rows are arrays that are read by slices: what HDF5, zarr and Minari have in common.

A stored array is one of h5py or zarr, or has what they have: `shape`, `dtype`, `chunks`, and rows by slices.
"""

import math
from collections.abc import Generator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_obs.util.npy import NpyHeader
from latent_obs.util.words import listed
from vae_training.data.frames import Frames, to_uint8
from vae_training.extraction.readers.arrays import as_rgb, check_frames
from vae_training.extraction.readers.base import DamagedRecordingError, frames_per_chunk

_KINDS = {"reward": np.float32, "terminated": np.bool_, "truncated": np.bool_, "done": np.bool_, "success": np.bool_}
_MOST_NAMED = 8


def pictures_among(what: str, arrays: Mapping[str, Any]) -> list[str]:
    """Names of the stored arrays that hold pictures: uint8, or whole numbers from 0 to 255 in RGB (diffusion-policy).

    Raises:
        DamagedRecordingError: There are none; the message begins with `what` and names what there is.
    """
    uint8 = {name: len(array.shape) for name, array in arrays.items() if array.dtype == np.uint8}
    for axes in (4, 3):  # an array with three axes is grey frames, or no pictures at all
        if names := [name for name, count in uint8.items() if count == axes]:
            return names
    other = {name: array for name, array in arrays.items() if len(array.shape) == 4 and 3 in array.shape[1::2]}
    if names := [name for name, array in other.items() if _as_uint8(array[:1]) is not None]:
        return names
    advice = [f". For pictures, {to_uint8(array.dtype)}" for array in other.values()][:1]
    raise DamagedRecordingError(
        f"{what} holds no pictures, uint8 (N, H, W, C); it has {arrays_listed(arrays)}{''.join(advice)}"
    )


def arrays_listed(arrays: Mapping[str, Any]) -> str:
    """Names, dtypes and shapes of the first stored arrays, for a message."""
    named = [f"{name} {array.dtype} {tuple(array.shape)}" for name, array in arrays.items()]
    return listed(named, _MOST_NAMED) or "nothing"


def read_frames(array: Any, what: str, first: int = 0, end: int | None = None) -> Generator[Frames]:
    """Read frames `first` to `end` of a stored array as RGB, some at a time; no chunk of it is decompressed twice.

    Raises:
        DamagedRecordingError: They cannot be frames; the message begins with `what`.
    """
    stop: int = array.shape[0] if end is None else end
    shape = (stop - first, *array.shape[1:], *((1,) if len(array.shape) == 3 else ()))
    check_frames(NpyHeader(shape, False, np.dtype(np.uint8)), what)
    stored = array.chunks[0] if array.chunks else 1
    step = frames_per_chunk(math.prod(array.shape[1:]) * array.dtype.itemsize)
    step = math.ceil(step / stored) * stored
    pieces = [slice(max(start, first), min(start + step, stop)) for start in range(first - first % stored, stop, step)]
    for piece in pieces:
        values = array[piece]
        frames, wrong = _as_uint8(values), "other than 0 to 255"
        if values.dtype.kind == "f" and values.max() <= 1 and all(array[each].max() <= 1 for each in pieces):
            frames, wrong = None, "of at most 1, expected 0 to 255"
        if frames is None:
            raise DamagedRecordingError(f"{what} has {values.dtype} {wrong}: {to_uint8(values.dtype)}")
        yield as_rgb(frames, what)


def episode_rows(what: str, frames: int, columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Rows of an episode, as `frames record` writes them, from what is known of its steps and observations.

    Args:
        what: The episode, for a message.
        frames: Number of its pictures.
        columns: By the names of the rows. If the episode ends with a picture, actions and rewards have a row less.

    Raises:
        DamagedRecordingError: A column has another number of rows.
    """
    rows: dict[str, NDArray[Any]] = {"first": np.arange(frames) == 0, "acted": np.ones(frames, np.bool_)}
    for name, values in columns.items():
        lacking, is_of_frames = frames - len(values), name.startswith(("observation$", "state$"))
        if lacking and (is_of_frames or lacking != 1):
            raise DamagedRecordingError(
                f"{what} has {frames} pictures and {len(values)} rows of {name}, expected {frames}"
                f"{'' if is_of_frames else f' or, where a last picture has no action, {frames - 1}'}"
            )
        if values.ndim > 2:
            values = values.reshape(len(values), math.prod(values.shape[1:]))
        rows[name] = np.pad(
            values.astype(_KINDS.get(name, values.dtype)), [(0, lacking), *[(0, 0)] * (values.ndim - 1)]
        )
        rows["acted"][frames - lacking :] = False
    return rows


def is_row(array: Any) -> bool:
    """Whether a stored array has numbers for each frame, on no more than one axis."""
    return len(array.shape) in (1, 2) and array.dtype.kind in "biuf"


def _as_uint8(values: NDArray[Any]) -> Frames | None:
    """Numbers as uint8; None if that changes them."""
    if values.dtype == np.uint8:
        return values
    with np.errstate(invalid="ignore"):
        frames = values.astype(np.uint8)
    return frames if np.array_equal(frames, values) else None
