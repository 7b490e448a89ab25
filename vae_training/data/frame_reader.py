"""Read many frames of many files into places of one array: in file order, without a copy between, and from a disk in
parallel.

Frames are read and not taken from the memory map: touching a map at random makes resident memory grow with every page,
one fault after the other leaves a disk waiting, and a file cut short kills the process. `benchmarks/loader.py` measures
the ways:

- Each frame is one `preadv`. Threads that only copy from memory fight for the interpreter lock after each frame, so one
  thread first takes what is in memory (RWF_NOWAIT), and only what is not goes to many: a disk wants several reads under
  way.
- A frame is read straight into its shuffled place: where in the array it goes makes no difference.
- Reading a gap along costs as much as another call at some 12 KB, from memory as from the disk.
"""

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latent_obs.util.errors import InputError

_GAP_BYTES = 16 << 10  # what lies between two frames is read along up to here
_IOVECS = 512  # parts of one preadv; Linux and macOS allow 1,024
_PIECE_BYTES = 4 << 20  # of one thread's task at most: through numpy, or scaled, it is held a second time
_PIECE_FRAMES = 32  # of one thread's task at least, so that handing it over is worth its while
_PIECES_PER_THREAD = 4  # so that a slow one does not keep the others waiting
_NO_WAIT = getattr(os, "RWF_NOWAIT", 0)  # Linux: read what is in memory, and fail where a disk would be waited for
_THREADS = min(32, 4 * (os.cpu_count() or 1))  # more than cores: most of them wait for a disk

#: What `gather` is asked for: an array, sorted numbers of frames in it (repeats allowed), and where each of them goes.
Wanted = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]


class Place(NamedTuple):
    """Where the frames of an array lie on disk."""

    file: Path
    offset: int


def gather(wanted: Sequence[Wanted], out: NDArray[Any]) -> None:
    """Fill an array with frames: `out[targets] = dataset[rows]` for each of those wanted.

    Args:
        wanted: (dataset, rows, targets) for each dataset. The targets of all are different.
        out: C-contiguous (n, H, W, C). As uint8 it gets the frames; as float32, the frames scaled to [0, 1].

    Raises:
        InputError: A file is gone, cut short or cannot be read. What `out` holds then is undefined.

    Example:
        >>> out = np.zeros((3, 1, 1, 1), np.uint8)
        >>> gather([(np.arange(9, dtype=np.uint8).reshape(9, 1, 1, 1), np.array([2, 7]), np.array([1, 0]))], out)
        >>> out.ravel().tolist()
        [7, 2, 0]
    """
    at_most = max(1, _PIECE_BYTES // max(1, out[:1].size))
    total = sum(len(rows) for _, rows, _ in wanted)
    frames = min(at_most, max(_PIECE_FRAMES, -(-total // (_THREADS * _PIECES_PER_THREAD))))
    rest: list[Wanted] = []
    for each in wanted:
        with FrameReader(each[0]) as reader:
            for dataset, rows, targets in _pieces(each, frames):
                done = _put(reader, rows, targets, out, cached_only=True)
                if done < len(rows):
                    rest.append((dataset, rows[done:], targets[done:]))
    _in_threads(_THREADS, rest, lambda piece: _read_piece(piece, out))


def _pieces(wanted: Wanted, frames: int) -> Iterator[Wanted]:
    dataset, rows, targets = wanted
    for i in range(0, len(rows), frames):
        yield dataset, rows[i : i + frames], targets[i : i + frames]


def _in_threads(threads: int, pieces: Sequence[Wanted], read: Callable[[Wanted], None]) -> None:
    if not pieces:
        return
    # A single one too: an interrupt reaches the main thread alone, and the kernel may still be writing into the array.
    with ThreadPoolExecutor(min(threads, len(pieces)), thread_name_prefix="frame-reader") as pool:
        futures = [pool.submit(read, piece) for piece in pieces]
        try:
            for future in futures:
                future.result()
        except BaseException:  # an interrupt too: what has not begun need not; leaving the block waits for what has
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _read_piece(piece: Wanted, out: NDArray[Any]) -> None:
    # Each task opens the file itself: a dataset of thousands of files would run into the limit of open ones.
    with FrameReader(piece[0]) as reader:
        _put(reader, *piece[1:], out, cached_only=False)


def _put(
    reader: "FrameReader", rows: NDArray[np.int64], targets: NDArray[np.int64], out: NDArray[Any], *, cached_only: bool
) -> int:
    """Read frames into their places, scaled if the array is float32; how many were read, from the first on."""
    if out.dtype == np.uint8:
        return reader.read(rows, out, targets, cached_only=cached_only)
    part = np.empty((len(rows), *out.shape[1:]), np.uint8)
    done = reader.read(rows, part, cached_only=cached_only)
    scaled = part[:done].astype(out.dtype)
    scaled /= np.float32(255)
    out[targets[:done]] = scaled
    return done


class FrameReader:
    """Read rows of one dataset, from its file where it has one.

    Args:
        dataset: uint8 (N, H, W, C): a memory map, a slice of one, or any other array.

    Example:
        >>> out = np.empty((2, 1, 1, 1), np.uint8)
        >>> with FrameReader(np.arange(9, dtype=np.uint8).reshape(9, 1, 1, 1)) as reader:
        ...     reader.read(np.array([3, 4]), out), out.ravel().tolist()
        (2, [3, 4])
    """

    def __init__(self, dataset: NDArray[np.uint8]) -> None:
        self._dataset = dataset
        self._place = place_on_disk(dataset)
        self._fd = -1

    def __enter__(self) -> "FrameReader":
        if self._place is not None:
            try:
                self._fd = os.open(self._place.file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except OSError as error:
                raise InputError(f"{self._place.file} can no longer be read: {error.strerror}") from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def read(
        self,
        rows: NDArray[np.int64],
        out: NDArray[np.uint8],
        targets: NDArray[np.int64] | None = None,
        *,
        cached_only: bool = False,
    ) -> int:
        """Read frames into an array: `out[targets] = dataset[rows]`.

        Args:
            rows: Sorted frame numbers (n,), repeats allowed.
            out: C-contiguous uint8 (at least n, H, W, C).
            targets: Where each goes; one after the other from the start when not given.
            cached_only: Stop before the first frame that is not in memory, or where the system cannot tell.

        Returns:
            How many of the frames were read, from the first on; all of them without `cached_only`.
        """
        if targets is None:
            targets = np.arange(len(rows))
        if self._place is None or not len(rows):
            out[targets] = self._dataset[rows]
            return len(rows)
        if cached_only and not _NO_WAIT:
            return 0
        frame_bytes = out[:1].nbytes
        buffer = out.reshape(-1).data
        offsets = (self._place.offset + rows.astype(np.int64) * frame_bytes).tolist()
        places = [buffer[start : start + frame_bytes] for start in (targets.astype(np.int64) * frame_bytes).tolist()]
        flags = (_NO_WAIT,) if cached_only else ()  # macOS takes none
        steps = np.diff(rows)
        # A run is read in one call; a repeat (step 0) begins a new one, as a call cannot read a place twice.
        breaks = np.flatnonzero((steps < 1) | (steps > 1 + _GAP_BYTES // frame_bytes)) + 1
        skipped = memoryview(bytearray(_GAP_BYTES))
        for first, last in zip([0, *breaks.tolist()], [*breaks.tolist(), len(rows)], strict=True):
            parts, begin = places[first : first + 1], first
            if last - first == 1:  # most frames of a large dataset lie alone, and then this is where the time goes
                try:
                    count = os.preadv(self._fd, parts, offsets[first], *flags)
                except OSError:
                    count = -1  # _fill finds out which one it is
                if count == frame_bytes:
                    continue
            for i in range(first + 1, last):
                if len(parts) >= _IOVECS - 1:
                    if not self._fill(parts, offsets[begin], flags):
                        return begin
                    parts, begin = [], i
                elif gap := offsets[i] - offsets[i - 1] - frame_bytes:
                    parts.append(skipped[:gap])
                parts.append(places[i])
            if not self._fill(parts, offsets[begin], flags):
                return begin
        return len(rows)

    def _fill(self, parts: list[memoryview], offset: int, flags: tuple[int, ...]) -> bool:
        """Fill buffers from one stretch of the file; a single call may give less than was asked for."""
        assert self._place is not None
        file = self._place.file
        while parts:
            try:
                count = os.preadv(self._fd, parts, offset, *flags)
            except OSError as error:
                if flags:  # not in memory, or a file system that does not know this flag
                    return False
                raise InputError(f"{file} cannot be read at byte {offset:,}: {error.strerror}") from error
            if not count:
                if flags:
                    return False
                size = os.fstat(self._fd).st_size  # not where this read stopped: it may have begun beyond the end
                raise InputError(f"{file} ends at byte {size:,}, before its last frame: it was changed after opening")
            offset += count
            done = 0
            while done < len(parts) and count >= len(parts[done]):
                count -= len(parts[done])
                done += 1
            parts = parts[done:]
            if count:
                parts[0] = parts[0][count:]
        return True


def place_on_disk(dataset: NDArray[np.uint8]) -> Place | None:
    """File and byte offset of an array's first frame, or None where it has to be read through numpy.

    A slice of a memory map keeps the `filename` and `offset` of the whole, so that its own offset is found from the
    distance between the two in memory.
    """
    if not isinstance(dataset, np.memmap) or not dataset.flags.c_contiguous or not hasattr(os, "preadv"):
        return None
    whole = dataset
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    # Anything else than a map of the file itself may differ from the file: a copy, or copy-on-write pages.
    if not isinstance(whole.base, mmap.mmap) or whole.mode not in ("r", "r+", "w+") or whole.filename is None:
        return None
    distance = dataset.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    return Place(Path(whole.filename), whole.offset + distance)
