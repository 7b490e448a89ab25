"""Frames in numpy's own files: `.npy`, and `.npz` with what is known of each frame beside them."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vae_training.data.frames import NpyHeader, read_npy_header
from vae_training.extraction.readers.base import DamagedRecordingError, Frames, Recording, frames_per_chunk

_KEYS = ("frames", "obs", "arr_0")
_CHANNELS = (1, 3, 4)
#: What zipfile, zlib and numpy raise on a damaged archive.
_BROKEN = (OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class NpyRecording(Recording):
    """A `.npy` file of uint8 (N, H, W, C), (N, C, H, W) or grey (N, H, W)."""

    kind: ClassVar[str] = "npy"

    def chunks(self) -> Iterator[Frames]:
        """As of a recording; channel-first and grey frames are turned to RGB, a fourth channel (alpha) is dropped."""
        with _reading(self.source), self.source.open("rb") as handle:
            yield from _stream(handle, str(self.source))

    def _stated_frames(self) -> int | None:
        return npy_header_of(self.source).shape[0]


@dataclass(frozen=True)
class NpzRecording(Recording):
    """A `.npz` file with one array of frames, and perhaps others with as many rows.

    The frames are the array called "frames", "obs" or "arr_0", or else the only one that can be frames: uint8 with four
    axes, or three where none has four.
    """

    kind: ClassVar[str] = "npz"

    def chunks(self) -> Iterator[Frames]:
        """As of a recording, in the same forms as a `.npy` file; read piece by piece, compressed or not."""
        key = self.key
        with _reading(self.source), zipfile.ZipFile(self.source) as archive, archive.open(f"{key}.npy") as handle:
            yield from _stream(handle, f"{self.source}, array {key!r},")

    def rows(self) -> Mapping[str, NDArray[Any]]:
        """The other arrays that have a row for each frame, by their names."""
        headers, key = npz_headers(self.source), self.key
        count = headers.pop(key).shape[:1]
        same = [name for name, h in headers.items() if h.shape[:1] == count and not h.dtype.hasobject]
        return read_npz(self.source, same)

    @property
    def key(self) -> str:
        """Name of the array of frames."""
        return frames_key(self.source, npz_headers(self.source))

    @property
    def notes(self) -> list[str]:
        """Names the arrays of objects, which are never loaded."""
        return notes_on_objects(self.source, npz_headers(self.source))

    def _stated_frames(self) -> int | None:
        return npz_headers(self.source)[self.key].shape[0]


def npy_header_of(file: Path) -> NpyHeader:
    """What a `.npy` file holds, from its first bytes; `DamagedRecordingError` where it cannot be read."""
    with _reading(file), file.open("rb") as handle:
        return read_npy_header(handle)


def npz_headers(file: Path) -> dict[str, NpyHeader]:
    """What a `.npz` file holds, by name, without reading the arrays; `DamagedRecordingError` if it cannot be read."""
    headers: dict[str, NpyHeader] = {}
    with _reading(file), zipfile.ZipFile(file) as archive:
        for member in archive.namelist():
            if member.endswith(".npy"):
                with archive.open(member) as handle:
                    headers[member.removesuffix(".npy")] = read_npy_header(handle)
    return headers


def read_npz(file: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    """Some arrays of a `.npz` file; `DamagedRecordingError` where they hold objects or cannot be read."""
    with _reading(file), np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in names}


def notes_on_objects(source: Path, headers: Mapping[str, NpyHeader]) -> list[str]:
    """A sentence that names the arrays of objects, where there are any."""
    names = [name for name, header in headers.items() if header.dtype.hasobject]
    return [f"{source}: left out, because they hold Python objects: {', '.join(names)}"] if names else []


def frames_key(file: Path, headers: Mapping[str, NpyHeader]) -> str:
    """Which array of a `.npz` file is its frames; `DamagedRecordingError` if none is, or more than one may be."""
    uint8 = [(name, len(header.shape)) for name, header in headers.items() if header.dtype == np.uint8]
    fitting = [name for name, axes in uint8 if axes == 4] or [name for name, axes in uint8 if axes == 3]
    for key in _KEYS:
        if key in fitting:
            return key
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise DamagedRecordingError(
            f"{file}: {', '.join(map(repr, fitting))} may each be the frames. Call the right one 'frames' when saving"
        )
    for name, header in headers.items():
        if len(header.shape) >= 3 and (reason := why_no_frames(header, f"{file}, array {name!r},")):
            raise DamagedRecordingError(reason)
    raise DamagedRecordingError(
        f"{file} has no array of uint8 frames (N, H, W, C); it has {', '.join(headers) or 'nothing'}"
    )


def why_no_frames(header: NpyHeader, what: str) -> str | None:
    """Why an array cannot be frames, with what to do; None where it can. `what` names the array in the message."""
    shape, dtype = header.shape, header.dtype
    if dtype.hasobject:
        return f"{what} holds Python objects, which are never loaded, as that can run code; save a plain uint8 array"
    if dtype != np.uint8:
        scale = " (values 0 to 1 times 255 before)" if dtype.kind == "f" else ""
        return f"{what} holds {dtype}, expected uint8 (values 0 to 255); use frames.astype(numpy.uint8){scale}"
    if len(shape) not in (3, 4) or 0 in shape:
        return f"{what} has shape {shape}, expected (N, H, W, C), (N, C, H, W) or grey (N, H, W)"
    if len(shape) == 3 and shape[2] in _CHANNELS:
        return f"{what} has shape {shape}, which looks like a single picture; a recording needs an axis: frames[None]"
    if len(shape) == 4 and shape[3] not in _CHANNELS and not _channel_first(shape):
        return f"{what} has shape {shape}: neither its last nor its second axis is of 1, 3 or 4 channels"
    if header.fortran_order:  # one frame is scattered over the whole file
        return f"{what} is in Fortran order; save it again with numpy.save(file, numpy.ascontiguousarray(frames))"
    return None


def _stream(handle: IO[bytes], what: str) -> Iterator[Frames]:
    """The frames of an array as they come from the disk; only a chunk of them is in memory."""
    header = read_npy_header(handle)
    if (reason := why_no_frames(header, what)) is not None:
        raise DamagedRecordingError(reason)
    count, frame_bytes = header.shape[0], int(np.prod(header.shape[1:]))
    good, step = 0, frames_per_chunk(frame_bytes)
    while good < count:
        wanted = min(step, count - good)
        data = bytearray(handle.read(wanted * frame_bytes))
        whole = len(data) // frame_bytes
        if whole:
            good += whole
            yield _rgb(np.frombuffer(data, np.uint8, whole * frame_bytes).reshape(whole, *header.shape[1:]))
        if whole < wanted:
            raise DamagedRecordingError(f"{what} is cut short: it promises {count} frames, and {good} are there")


def _rgb(frames: Frames) -> Frames:
    """(n, H, W, 3) of any form that was let in."""
    if frames.ndim == 3:
        frames = frames[..., None]
    elif _channel_first(frames.shape):
        frames = frames.transpose(0, 2, 3, 1)
    if frames.shape[3] == 1:
        frames = np.broadcast_to(frames, (*frames.shape[:3], 3))
    return np.ascontiguousarray(frames[..., :3])


def _channel_first(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[1] in _CHANNELS and min(shape[2:]) >= 8


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Errors of reading a file as what they are to the user."""
    try:
        yield
    except DamagedRecordingError:
        raise
    except _BROKEN as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedRecordingError(
            f"{file} cannot be read: it is damaged or not what its name says ({reason})"
        ) from None
