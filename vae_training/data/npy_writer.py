"""Append frames to a `.npy` file that is valid at every moment, whatever kills the process.

    frames_000.npy.part     while it grows: a whole `.npy` but for its name, so that no reader takes it for finished
    frames_000.npy          after `close()`

A `.npy` file says in its header how many frames follow. numpy writes that once; here it is written again, in place,
after each append: first the frames, then the count, so that the header never promises a frame that is not there.
"""

import errno
import fcntl
import io
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from latent_obs.util.errors import InputError

_ALIGNMENT = 128
_MAX_DIGITS = 21  # of the frame count; more than any file system can hold
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class NpyWriter:
    """Write frames one after the other to a `.npy` file of shape (N, *frame_shape).

    Until `close()` the file is called `<path>.part`. Leaving the `with` block closes it, whatever the reason (Ctrl-C as
    well), and keeps every whole frame that was written; a file without frames is removed. After a `kill -9`,
    `recover_parts` does the same.

    Attributes:
        path: The finished file.
        part: The file while it grows.
        frames: Number of whole frames written.

    Args:
        path: The file to make; its name ends in `.npy`.
        frame_shape: Shape of one frame, such as (height, width, channels).
        dtype: Type of the values.

    Raises:
        InputError: The file, or its `.part`, exists already; the name or shape is not one of frames.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with NpyWriter(folder / "frames_000.npy", (64, 64, 3)) as writer:
        ...     writer.append(np.zeros((5, 64, 64, 3), np.uint8))
        ...     writer.append(np.ones((64, 64, 3), np.uint8))
        >>> np.load(folder / "frames_000.npy").shape
        (6, 64, 64, 3)
    """

    def __init__(self, path: str | os.PathLike[str], frame_shape: tuple[int, ...], dtype: DTypeLike = np.uint8) -> None:
        self.closed = True  # until the file is open
        self.path = Path(path)
        self.part = part_of(self.path)
        self.frame_shape = tuple(int(n) for n in frame_shape)
        self.dtype = np.dtype(dtype)
        self.frames = 0
        if self.path.suffix != ".npy":
            raise InputError(f"{self.path}: the name of a frame file must end in .npy")
        if not self.frame_shape or min(self.frame_shape) < 1:
            raise InputError(f"{self.path}: frame_shape must be positive integers, got {frame_shape!r}")
        if self.dtype.hasobject:
            raise InputError(f"{self.path}: dtype must be a plain number type such as uint8, got {self.dtype}")
        if self.path.exists():
            raise InputError(f"{self.path} exists already and is never overwritten; choose another name, or remove it")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._fd = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            raise InputError(
                f"{self.part} exists already: another process writes it, or one was killed. "
                f"In the second case recover_parts({str(self.path.parent)!r}) finishes it"
            ) from None
        self.closed = False
        _lock(self._fd)  # so that recover_parts leaves a file alone that is still being written
        self._header_bytes = len(npy_header(0, self.frame_shape, self.dtype))
        self._frame_bytes = int(np.prod(self.frame_shape)) * self.dtype.itemsize
        try:
            self._write_header()
        except BaseException:
            self.close()
            raise

    def append(self, frames: NDArray[Any]) -> None:
        """Add frames to the end.

        Args:
            frames: One frame, of `frame_shape`, or several, (n, *frame_shape); of the writer's dtype, any strides.

        Raises:
            InputError: The frames have another shape or dtype, the file is closed, or the disk is full. In the last
                case every whole frame before that point is kept, and the file is closed.
        """
        frames = np.asarray(frames)
        if self.closed:
            raise InputError(f"{self.path} is closed; nothing can be appended to it")
        if frames.shape == self.frame_shape:
            frames = frames[None]
        if frames.shape[1:] != self.frame_shape or frames.dtype != self.dtype:
            raise InputError(
                f"{self.path} holds {self.dtype} frames of shape {self.frame_shape}, got {frames.dtype} of shape {frames.shape}"
            )
        if not len(frames):
            return
        data = np.ascontiguousarray(frames).data.cast("B")
        start, done = self._header_bytes + self.frames * self._frame_bytes, 0
        try:
            while done < len(data):
                # The place follows from the count: half a frame of an interrupted append is overwritten by the next.
                done += os.pwrite(self._fd, data[done:], start + done)
            self.frames += len(frames)
            self._write_header()
        except OSError as error:
            self.frames = max(self.frames, (start + done - self._header_bytes) // self._frame_bytes)
            self.close()
            if error.errno in _NO_ROOM:
                kept = f"its {self.frames} whole frames are kept" if self.frames else "nothing was kept"
                raise InputError(
                    f"{self.path}: no room left on the disk ({os.strerror(error.errno)}); {kept}. "
                    f"Free some space and start again; {self._frame_bytes:,} bytes are needed per frame"
                ) from error
            raise

    def flush(self) -> None:
        """Wait until all frames so far have reached the disk, so that they survive a power cut as well."""
        if not self.closed:
            os.fsync(self._fd)

    def close(self) -> None:
        """Give the file its final name, or remove it where it holds no frame; a second call does nothing.

        Raises:
            InputError: A file of the final name has come up meanwhile; the frames stay in the `.part`.
        """
        if self.closed:
            return
        self.closed = True
        try:
            _finish(self._fd, self.part, self.path, self.frames, self.frame_shape, self.dtype)
        finally:
            os.close(self._fd)

    def _write_header(self) -> None:
        # In one call of 128 bytes or so, which needs no new room on a disk that has become full since.
        os.pwrite(self._fd, npy_header(self.frames, self.frame_shape, self.dtype), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A Ctrl-C may fall between the making of the writer and its `with` block; the file is finished all the same.
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"NpyWriter({str(self.path)!r}, {self.frame_shape}, {self.dtype}, {self.frames} frames, {state})"


def recover_parts(folder: str | os.PathLike[str]) -> list[Path]:
    """Turn what a killed process left, `*.npy.part`, into valid `.npy` files.

    Whole frames are kept, half a frame at the end is cut off, a file without any is removed. A file that another
    process is still writing is left alone.

    Args:
        folder: The folder to look in; it may be missing.

    Returns:
        The files recovered, in name order.

    Raises:
        InputError: A `.part` was not begun by `NpyWriter`, or its final name is taken.

    Example:
        >>> recover_parts("no/such/folder")
        []
    """
    recovered: list[Path] = []
    for part in sorted(Path(folder).glob("*.npy.part")):
        final = part.with_suffix("")
        try:
            fd = os.open(part, os.O_RDWR)
        except FileNotFoundError:  # its writer has finished it meanwhile
            continue
        try:
            if not _lock(fd) or not part.exists():
                continue
            size = os.fstat(fd).st_size
            if size == 0:  # killed between making the file and its header
                part.unlink()
                continue
            frame_shape, dtype, header_bytes = _read_header(fd, part)
            frames = max(0, size - header_bytes) // (int(np.prod(frame_shape)) * dtype.itemsize)
            _finish(fd, part, final, frames, frame_shape, dtype)
            if frames:
                recovered.append(final)
        finally:
            os.close(fd)
    return recovered


def part_of(path: Path) -> Path:
    """What a `.npy` file is called while it grows.

    Example:
        >>> part_of(Path("images/frames_000.npy")).name
        'frames_000.npy.part'
    """
    return path.with_name(path.name + ".part")


def npy_header(frames: int, frame_shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """The header of a `.npy` file (format 1.0), as long for no frames as for 10^20 of them.

    Args:
        frames: Number of frames that follow.
        frame_shape: Shape of one.
        dtype: Type of the values.

    Returns:
        A multiple of 128 bytes.

    Example:
        >>> header = npy_header(7, (64, 64, 3), np.dtype(np.uint8))
        >>> len(header), header[10:70]
        (128, b"{'descr': '|u1', 'fortran_order': False, 'shape': (7, 64, 64")
    """
    written = io.BytesIO()
    description = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (frames, *frame_shape),
    }
    np.lib.format.write_array_header_1_0(written, description)
    text = written.getvalue()[10:].rstrip()  # without the magic string, the length, and numpy's own padding
    spare = _MAX_DIGITS - len(str(frames))
    length = -(-(10 + len(text) + spare + 1) // _ALIGNMENT) * _ALIGNMENT
    return np.lib.format.magic(1, 0) + struct.pack("<H", length - 10) + text.ljust(length - 11) + b"\n"


def _read_header(fd: int, part: Path) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Frame shape, dtype and header length of a file that `NpyWriter` began."""
    try:
        head = io.BytesIO(os.pread(fd, 4096, 0))
        if np.lib.format.read_magic(head) != (1, 0):
            raise ValueError("not format 1.0")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(head)
        if fortran_order or dtype.hasobject or len(shape) < 2 or min(shape[1:]) < 1:
            raise ValueError("not frames")
    except ValueError as error:
        raise InputError(
            f"{part} cannot be recovered, it is not a frame file that was being written ({error}). Remove it"
        ) from None
    return shape[1:], dtype, head.tell()


def _finish(fd: int, part: Path, final: Path, frames: int, frame_shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Cut a `.part` to its whole frames, make its header agree, and rename it."""
    if not frames:
        part.unlink(missing_ok=True)
        return
    header = npy_header(frames, frame_shape, dtype)
    os.ftruncate(fd, len(header) + frames * int(np.prod(frame_shape)) * dtype.itemsize)
    os.pwrite(fd, header, 0)
    os.fsync(fd)
    if final.exists():
        raise InputError(f"{final} exists already and is never overwritten; move it, and recover {part} afterwards")
    part.rename(final)


def _lock(fd: int) -> bool:
    """Mark an open file as being written; False where another process has done so. The mark ends with the process."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have no locks
        return True
    return True
