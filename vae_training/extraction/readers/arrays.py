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

from vae_training.data.frames import NpyHeader as ArrayHeader
from vae_training.data.frames import read_npy_header as read_header
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
            yield from _stream(handle, self.source, "")

    @property
    def expected_frames(self) -> int | None:
        """As the header tells it."""
        try:
            return npy_header_of(self.source).shape[0]
        except (DamagedRecordingError, IndexError):
            return None


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
            yield from _stream(handle, self.source, key)

    def rows(self) -> Mapping[str, NDArray[Any]]:
        """The other arrays that have a row for each frame, by their names."""
        headers, key = npz_headers(self.source), self.key
        same = [
            n
            for n, h in headers.items()
            if n != key and h.shape[:1] == headers[key].shape[:1] and not h.dtype.hasobject
        ]
        return read_npz(self.source, same)

    @property
    def key(self) -> str:
        """Name of the array of frames.

        Raises:
            DamagedRecordingError: None is, or more than one may be.
        """
        return frames_key(self.source, npz_headers(self.source))

    @property
    def notes(self) -> list[str]:
        """Names the arrays of objects, which are never loaded."""
        objects = [name for name, header in npz_headers(self.source).items() if header.dtype.hasobject]
        return [f"{self.source}: left out, for it holds Python objects: {', '.join(objects)}"] if objects else []

    @property
    def expected_frames(self) -> int | None:
        """As the header tells it."""
        try:
            headers = npz_headers(self.source)
            return headers[frames_key(self.source, headers)].shape[0]
        except DamagedRecordingError:
            return None


def npy_header_of(file: Path) -> ArrayHeader:
    """What a `.npy` file holds, from its first bytes.

    Raises:
        DamagedRecordingError: It cannot be read.
    """
    with _reading(file), file.open("rb") as handle:
        return read_header(handle)


def npz_headers(file: Path) -> dict[str, ArrayHeader]:
    """What a `.npz` file holds, by name, without reading the arrays.

    Raises:
        DamagedRecordingError: It cannot be read.
    """
    headers: dict[str, ArrayHeader] = {}
    with _reading(file), zipfile.ZipFile(file) as archive:
        for member in archive.namelist():
            if member.endswith(".npy"):
                with archive.open(member) as handle:
                    headers[member.removesuffix(".npy")] = read_header(handle)
    return headers


def read_npz(file: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    """Some arrays of a `.npz` file, none of them of objects.

    Raises:
        DamagedRecordingError: It cannot be read.
    """
    with _reading(file), np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in names}


def frames_key(file: Path, headers: Mapping[str, ArrayHeader]) -> str:
    """Which array of a `.npz` file is its frames.

    Raises:
        DamagedRecordingError: None is, or more than one may be.
    """
    fitting = [name for name, header in headers.items() if header.dtype == np.uint8 and len(header.shape) == 4]
    fitting = fitting or [
        name for name, header in headers.items() if header.dtype == np.uint8 and len(header.shape) == 3
    ]
    for key in _KEYS:
        if key in fitting:
            return key
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise DamagedRecordingError(
            f"{file}: {', '.join(map(repr, fitting))} may each be the frames. Call the right one 'frames' when saving"
        )
    if any(len(header.shape) >= 3 for header in headers.values()):
        name = next(name for name, header in headers.items() if len(header.shape) >= 3)
        raise DamagedRecordingError(why_no_frames(headers[name], f"{file}, array {name!r},") or f"{file} has no frames")
    raise DamagedRecordingError(
        f"{file} has no array of uint8 frames (N, H, W, C); it has {', '.join(headers) or 'nothing'}"
    )


def why_no_frames(header: ArrayHeader, what: str) -> str | None:
    """Why an array cannot be frames, with what to do; None where it can.

    Args:
        header: Of the array.
        what: The file, and the array in it, for the message.
    """
    shape, dtype = header.shape, header.dtype
    if dtype.hasobject:
        return (
            f"{what} holds Python objects (dtype {dtype}), never loaded here, because loading them can run code. "
            "Save one plain uint8 array of shape (N, H, W, C)"
        )
    if dtype != np.uint8:
        advice = "Convert them: frames.astype(numpy.uint8)"
        if dtype.kind == "f":
            advice = (
                "Convert them: values 0 to 1 with (frames * 255).round().astype(numpy.uint8), values 0 to 255 with "
                "frames.round().astype(numpy.uint8)"
            )
        return f"{what} holds {dtype}, expected uint8 (values 0 to 255). {advice}"
    if len(shape) not in (3, 4):
        return f"{what} has {len(shape)} axes, shape {shape}, expected (N, H, W, C), (N, C, H, W) or grey (N, H, W)"
    if 0 in shape:
        return f"{what} holds no frames: its shape is {shape}"
    if len(shape) == 3 and shape[2] in _CHANNELS:
        return (
            f"{what} has shape {shape}, which looks like a single picture; a recording needs a frame axis: frames[None]"
        )
    if len(shape) == 4 and shape[3] not in _CHANNELS and not _channel_first(shape):
        return f"{what} has shape {shape}: neither its last nor its second axis is of 1, 3 or 4 channels"
    if header.fortran_order:
        return (
            f"{what} is in Fortran order, where one frame is scattered over the whole file. Save it again with "
            "numpy.save(file, numpy.ascontiguousarray(frames))"
        )
    return None


def _stream(handle: IO[bytes], file: Path, key: str) -> Iterator[Frames]:
    """The frames of an array as they come from the disk; only a chunk of them is in memory."""
    header = read_header(handle)
    what = f"{file}, array {key!r}," if key else str(file)
    if (reason := why_no_frames(header, what)) is not None:
        raise DamagedRecordingError(reason)
    frame_bytes = int(np.prod(header.shape[1:]))
    good, step = 0, frames_per_chunk(frame_bytes)
    while good < header.shape[0]:
        wanted = min(step, header.shape[0] - good)
        data = _read(handle, wanted * frame_bytes)
        whole = len(data) // frame_bytes
        if whole:
            good += whole
            yield _rgb(np.frombuffer(data, np.uint8, whole * frame_bytes).reshape(whole, *header.shape[1:]))
        if whole < wanted:
            raise DamagedRecordingError(
                f"{what} is cut short: it promises {header.shape[0]} frames, and {good} are there"
            )


def _read(handle: IO[bytes], count: int) -> bytearray:
    """As many bytes as there are, `count` at most; a zip member gives fewer at a time."""
    data = bytearray()
    while len(data) < count and (piece := handle.read(count - len(data))):
        data += piece
    return data


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
            f"{file} cannot be read, it is damaged or not what its name says ({reason})"
        ) from None
