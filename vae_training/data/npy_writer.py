"""Append frames to a `.npy` file that is valid at every moment, whatever kills the process.

    frames_000.npy.part     while it grows: a whole `.npy` but for its name, so that no reader takes it for finished
    frames_000.npy          after `close()`

The header says how many frames follow. It is written again, in place, after each append, so that it never promises a
frame that is not there.
"""

import contextlib
import fcntl
import io
import math
import os
from pathlib import Path
from typing import Self

import numpy as np

from latent_obs.util.atomic import system_errors_of
from latent_obs.util.errors import InputError
from latent_obs.util.npy import read_npy_header
from vae_training.data.frames import Frames


class NpyWriter:
    """Write frames one after the other to a `.npy` file of uint8 (N, *frame_shape).

    Leaving the `with` block closes the file, whatever the reason (Ctrl-C as well), and keeps every whole frame that was
    written; a file without frames is removed. After a `kill -9`, `recover_parts` does the same.

    Attributes:
        part: The file while it grows.
        frames: Number of whole frames written.

    Args:
        path: The file to make; its name ends in `.npy`.
        frame_shape: Shape of one frame, such as (height, width, channels).

    Raises:
        InputError: The file, or its `.part`, exists already, or its name does not end in `.npy`.
        OSError: It cannot be written, because the disk is full, say; this, and those of the methods, name the file.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "frames_000.npy"
        >>> with NpyWriter(file, (64, 64, 3)) as writer:
        ...     writer.append(np.zeros((5, 64, 64, 3), np.uint8))
        >>> np.load(file).shape
        (5, 64, 64, 3)
    """

    def __init__(self, path: str | os.PathLike[str], frame_shape: tuple[int, ...]) -> None:
        self.closed = True  # until the file is open
        self.path, self.part, self.frame_shape, self.frames = Path(path), part_of(Path(path)), frame_shape, 0
        if self.path.suffix != ".npy" or self.path.exists():
            raise InputError(f"{self.path} exists already, or does not end in .npy; choose another name, or remove it")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._fd = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            raise InputError(
                f"{self.part} exists already: another process writes it, or was killed (then recover_parts finishes it)"
            ) from None
        self.closed = False
        _lock(self._fd)  # so that recover_parts leaves a file alone that is still being written
        try:
            self._write_header()
        except OSError:
            self.close()
            raise

    def append(self, frames: Frames) -> None:
        """Add one frame, uint8 of `frame_shape`, or several, (n, *frame_shape), to the end.

        Raises:
            InputError: The frames do not fit, or the file is closed.
            OSError: They cannot be written; the file is closed, and has all whole frames.
        """
        if self.closed:
            raise InputError(f"{self.path} is closed; nothing can be appended to it")
        if frames.shape[-len(self.frame_shape) :] != self.frame_shape or frames.dtype != np.uint8:
            raise InputError(
                f"frames must be uint8 of shape {self.frame_shape} as in {self.path}, got {frames.dtype} {frames.shape}"
            )
        data = np.ascontiguousarray(frames).reshape(-1).data
        # The place follows from the count: half a frame of an interrupted append is overwritten by the next.
        before, frame_bytes, done = self.frames, math.prod(self.frame_shape), 0
        start = len(npy_header(0, self.frame_shape)) + before * frame_bytes
        try:
            with system_errors_of(self.path):
                while done < len(data):
                    done += os.pwrite(self._fd, data[done:], start + done)
            self.frames = before + done // frame_bytes
            self._write_header()
        except OSError:
            self.frames = before + done // frame_bytes
            self.close()
            raise

    def close(self) -> None:
        """Give the file its final name, or remove it where it holds no frame; an `InputError` if the name is taken."""
        if self.closed:
            return
        self.closed = True
        try:
            with system_errors_of(self.path):
                _finish(self._fd, self.part, self.frames, self.frame_shape)
        finally:
            os.close(self._fd)

    def _write_header(self) -> None:
        # In place and in one call of 128 bytes or so, which a full disk can still take.
        with system_errors_of(self.path):
            os.pwrite(self._fd, npy_header(self.frames, self.frame_shape), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # A Ctrl-C may fall between the making of the writer and its `with` block.
        self.close()


def recover_parts(folder: str | os.PathLike[str]) -> list[Path]:
    """Turn what a killed process left in a folder, `*.npy.part`, into valid `.npy` files, which are returned.

    Whole frames are kept, and a file without any is removed. One that another process is still writing is left alone.

    Raises:
        InputError: A `.part` was not begun by `NpyWriter`, or its final name is taken.
    """
    recovered: list[Path] = []
    for part in sorted(Path(folder).glob("*.npy.part")):
        # Its writer may finish it meanwhile.
        with contextlib.suppress(FileNotFoundError), part.open("r+b") as handle:
            if not _lock(handle.fileno()) or not part.exists():
                continue
            size = os.fstat(handle.fileno()).st_size
            if size == 0:  # killed between making the file and its header
                part.unlink()
                continue
            try:
                header = read_npy_header(handle)
                if header.dtype != np.uint8 or len(header.shape) < 2 or min(header.shape[1:]) < 1:
                    raise ValueError("not frames")
            except ValueError as error:
                raise InputError(f"{part} was not written by latent-obs ({error}), so it cannot be recovered") from None
            frames = max(0, size - handle.tell()) // math.prod(header.shape[1:])
            _finish(handle.fileno(), part, frames, header.shape[1:])
            if frames:
                recovered.append(part.with_suffix(""))
    return recovered


def part_of(path: Path) -> Path:
    """Name a `.npy` file while it grows: `frames_000.npy.part`."""
    return path.with_name(path.name + ".part")


def npy_header(frames: int, frame_shape: tuple[int, ...]) -> bytes:
    """Make the header of a `.npy` file of uint8 frames; numpy pads it to the same length for any number of them."""
    written = io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": (frames, *frame_shape)}
    np.lib.format.write_array_header_1_0(written, description)
    return written.getvalue()


def _finish(fd: int, part: Path, frames: int, frame_shape: tuple[int, ...]) -> None:
    """Cut a `.part` to its whole frames, make its header agree, and rename it."""
    if not frames:
        part.unlink(missing_ok=True)
        return
    header, final = npy_header(frames, frame_shape), part.with_suffix("")
    os.ftruncate(fd, len(header) + frames * math.prod(frame_shape))
    os.pwrite(fd, header, 0)
    os.fsync(fd)
    if final.exists():
        raise InputError(f"{final} exists already and is never overwritten; move it, and recover {part} afterwards")
    part.rename(final)


def _lock(fd: int) -> bool:
    """Mark an open file as being written until the process ends; False where another process has done so."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # some network file systems have no locks
    return True
