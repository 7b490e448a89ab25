"""Frames in numpy's own files: `.npy`, and `.npz` with what is known of each frame beside them."""

import zipfile
from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from latent_obs.util.npy import NpyHeader, read_npy_header
from latent_obs.util.words import counted
from vae_training.data.frames import Frames, to_uint8
from vae_training.extraction.readers.base import DamagedRecordingError, Recording, frames_per_chunk, reading

_KEYS = ("frames", "obs", "arr_0")
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class NpyRecording(Recording):
    """A `.npy` file of uint8 (N, H, W, C), (N, C, H, W) or grey (N, H, W)."""

    kind: ClassVar[str] = "npy"

    def chunks(self) -> Generator[Frames]:
        """As of a recording; channel-first and grey frames are turned to RGB, an opaque fourth channel is dropped."""
        with reading(self.source), self.source.open("rb") as handle:
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

    def chunks(self) -> Generator[Frames]:
        """As of a recording, in the same forms as a `.npy` file; read piece by piece, compressed or not."""
        with reading(self.source), zipfile.ZipFile(self.source) as archive, archive.open(f"{self.key}.npy") as handle:
            yield from _stream(handle, f"{self.source}, array {self.key!r},")

    def rows(self) -> Mapping[str, NDArray[Any]]:
        """The other arrays that have a row for each frame, by their names."""
        return read_npz(self.source, self._row_names())

    def _row_names(self) -> list[str]:
        headers, key = npz_headers(self.source), self.key
        count = headers.pop(key).shape[:1]
        return [name for name, header in headers.items() if header.shape[:1] == count and not header.dtype.hasobject]

    @property
    def key(self) -> str:
        """Name of the array of frames."""
        return _frames_key(self.source, npz_headers(self.source))

    @property
    def notes(self) -> list[str]:
        """Names the arrays that are left out: of objects, which are never loaded, and without a row for each frame."""
        return note_left_out(self.source, npz_headers(self.source), {self.key, *self._row_names()})

    def _stated_frames(self) -> int | None:
        return npz_headers(self.source)[self.key].shape[0]


def array_recordings(file: Path) -> list[Recording]:
    """The recording in a `.npy` or `.npz` file; none where its arrays are numbers beside pictures.

    Raises:
        DamagedRecordingError: It cannot be read, or its arrays cannot be frames.
    """
    npy = file.suffix.lower() == ".npy"
    headers = {"": npy_header_of(file)} if npy else npz_headers(file)
    if headers and all(len(header.shape) < 3 and not header.dtype.hasobject for header in headers.values()):
        return []
    key = "" if npy else _frames_key(file, headers)
    check_frames(headers[key], str(file) if npy else f"{file}, array {key!r},")
    return [NpyRecording("", file) if npy else NpzRecording("", file)]


def npy_header_of(file: Path) -> NpyHeader:
    """What a `.npy` file holds, from its first bytes; `DamagedRecordingError` where it cannot be read."""
    with reading(file), file.open("rb") as handle:
        return read_npy_header(handle)


def npz_headers(file: Path) -> dict[str, NpyHeader]:
    """What a `.npz` file holds, by name, without reading the arrays; `DamagedRecordingError` if it cannot be read."""
    headers: dict[str, NpyHeader] = {}
    with reading(file), zipfile.ZipFile(file) as archive:
        for member in archive.namelist():
            if member.endswith(".npy"):
                name = member.removesuffix(".npy")
                if name in headers:
                    raise ValueError(f"it holds two arrays called {name!r}; save them under names of their own")
                with archive.open(member) as handle:
                    headers[name] = read_npy_header(handle)
    return headers


def read_npz(file: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    """Some arrays of a `.npz` file; `DamagedRecordingError` where they hold objects or cannot be read."""
    with reading(file), np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in names}


def note_left_out(source: Path, headers: Mapping[str, NpyHeader], used: Collection[str]) -> list[str]:
    """A sentence that names the arrays that are not used, where there are any."""
    left_out = [
        f"{name} (Python objects)" if header.dtype.hasobject else f"{name} {header.shape}"
        for name, header in headers.items()
        if name not in used
    ]
    what = f"{source}: without {counted(len(left_out), 'array')} that cannot be rows of the frames"
    return [f"{what}: {', '.join(left_out)}"] if left_out else []


def _frames_key(file: Path, headers: Mapping[str, NpyHeader]) -> str:
    """Which array of a `.npz` file is its frames; `DamagedRecordingError` if none is, or more than one may be."""
    uint8 = [(name, len(header.shape)) for name, header in headers.items() if header.dtype == np.uint8]
    fitting = [name for name, axes in uint8 if axes == 4] or [name for name, axes in uint8 if axes == 3]
    chosen = [key for key in _KEYS if key in fitting] or fitting
    if not chosen:
        for name, header in headers.items():
            if len(header.shape) >= 3:
                check_frames(header, f"{file}, array {name!r},")
    if not chosen or (len(chosen) > 1 and chosen[0] not in _KEYS):
        raise DamagedRecordingError(
            f"{file} must have one array of uint8 frames (N, H, W, C), or one called 'frames'; it has "
            f"{', '.join(map(repr, headers)) or 'nothing'}. Save the frames under that name"
        )
    return chosen[0]


def check_frames(header: NpyHeader, what: str) -> None:
    """Raise a `DamagedRecordingError` that begins with `what` if an array cannot be frames."""
    shape, dtype = header.shape, header.dtype
    if dtype.hasobject:
        remedy = "Python objects are never loaded, as that can run code; save a plain uint8 array"
    elif dtype != np.uint8:
        remedy = to_uint8(dtype)
    elif len(shape) == 3 and (shape[2] in _CHANNELS or shape[0] in (3, 4)):
        remedy = "a single picture? save frames[None] as a recording of one; if they are grey frames, frames[..., None]"
    elif min(shape, default=0) < 1 or len(shape) not in (3, 4):
        remedy = "there is at least one frame"
    elif len(shape) == 4 and shape[3] not in _CHANNELS and not _first(shape):
        remedy = "C is 1, 3 or 4 channels"
    elif header.fortran_order:  # one frame is scattered over the whole file
        remedy = "it is in Fortran order; save it again with numpy.save(file, numpy.ascontiguousarray(frames))"
    else:
        return
    raise DamagedRecordingError(
        f"{what} has {dtype} of shape {shape}, expected uint8 (N, H, W, C), (N, C, H, W) or grey (N, H, W): {remedy}"
    )


def _stream(handle: IO[bytes], what: str) -> Generator[Frames]:
    """The frames of an array as they come from the disk, as RGB; only a chunk of them is in memory."""
    header = read_npy_header(handle)
    check_frames(header, what)
    count, frame_bytes, good = header.shape[0], int(np.prod(header.shape[1:])), 0
    while good < count:
        wanted = min(frames_per_chunk(frame_bytes), count - good)
        data = bytearray(handle.read(wanted * frame_bytes))
        whole = len(data) // frame_bytes
        if whole:
            good += whole
            frames = np.frombuffer(data, np.uint8, whole * frame_bytes).reshape(whole, *header.shape[1:])
            yield as_rgb(frames, what)
        if whole < wanted:
            raise DamagedRecordingError(f"{what} is cut short: it promises {count} frames, and {good} are there")
    if handle.read(1):
        raise DamagedRecordingError(
            f"{what} has more behind its {count} frames. If numpy.save wrote several arrays into one open file, read "
            "them in turn with numpy.load(handle), and save numpy.concatenate of them"
        )


def as_rgb(frames: Frames, what: str) -> Frames:
    """Turn frames of any form that `check_frames` accepts into (N, H, W, 3); an opaque fourth channel is dropped."""
    if frames.ndim == 3:
        frames = frames[..., None]
    elif _first(frames.shape):
        frames = frames.transpose(0, 2, 3, 1)
    if frames.shape[3] == 4 and frames[..., 3].min() < 255:
        raise DamagedRecordingError(
            f"{what} has a fourth channel that is not opaque. If it is transparency, save frames[..., :3]; if "
            "these are stacks of four grey frames, save the newest, frames[..., 3:]"
        )
    if frames.shape[3] == 1:
        frames = np.broadcast_to(frames, (*frames.shape[:3], 3))
    return np.ascontiguousarray(frames[..., :3])


def _first(shape: tuple[int, ...]) -> bool:
    """Whether the channels are the axis after that of the frames."""
    return len(shape) == 4 and shape[1] in _CHANNELS and min(shape[2:]) >= 8
