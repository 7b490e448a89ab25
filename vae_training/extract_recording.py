"""One recording's frames into files.

Decoding takes place in the thread that asks for frames, resizing in others (PyAV and Pillow both release the interpreter's
lock), a few chunks ahead and never more.
"""

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_obs.atomic import write_json
from latent_obs.errors import InputError
from latent_obs.pixels import Crop, Frames, PixelContract
from vae_training.frame_filters import FrameFilters
from vae_training.frame_index import ENTRY, Entry
from vae_training.npy_writer import NpyWriter
from vae_training.recordings.base import DamagedRecordingError, Recording
from vae_training.rows import save_rows

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CHUNKS_AHEAD = 2  # decoded ones that wait for a resize; memory is that of these few
_SOURCE_FRAME = "source_frame"


@dataclass(frozen=True)
class Task:
    """A recording to extract.

    Attributes:
        recording: What to read.
        source: Where it was found, for the index.
        stem: Its file name, without ending.
        folder: Where to write; in the end it holds the files, and entry.json.
        shape: Shape that its frames must have, (H, W, 3).
        crop: As of the pixel contract.
        settings: Arguments of `FrameFilters`.
        frames_per_file: Longest file.
        threads: Threads that resize.
    """

    recording: Recording
    source: str
    stem: str
    folder: Path
    shape: tuple[int, ...]
    size: int | None
    crop: Crop
    filters: Mapping[str, Any]
    frames_per_file: int
    threads: int


def contract_for(frame_shape: tuple[int, ...], size: int | None, crop: Crop) -> PixelContract:
    """The pixel contract that frames of this shape are made to keep.

    Example:
        >>> contract_for((360, 640, 3), None, "centre-square").shape
        (360, 360, 3)
    """
    height, width = frame_shape[:2]
    if size is None and crop == "centre-square":
        size = min(height, width)
    return PixelContract(size or height, size or width, 3, crop=crop)


def extract_recording(task: Task, tell: Callable[[int], object]) -> Entry:
    """Write one recording's frames and rows to its folder, and `entry.json` last.

    Args:
        task: What to extract.
        tell: Called with the number of frames of each chunk that was read; may raise, to stop.

    Returns:
        What the index says of it.

    Raises:
        DamagedRecordingError: It cannot be read to its end, or its frames have another shape than the others'.
        InputError: The disk is full.
    """
    name, before = task.recording.name, task.recording.fingerprint()
    try:
        rows = {key: np.asarray(column) for key, column in task.recording.rows().items()}
        filters = FrameFilters(**task.filters)
        files = _Files(task)
        source_frames: list[NDArray[np.int64]] = []
        read = 0

        def count(frames: int) -> None:
            nonlocal read
            read += frames
            tell(frames)

        with contextlib.closing(_resized(task, filters, count)) as chunks:
            for frames, positions in chunks:
                mask = filters.keep(frames)
                files.append(frames[mask])
                source_frames.append(positions[mask])
                if filters.done:
                    break
        if task.recording.fingerprint() != before:
            raise DamagedRecordingError(f"{name} was changed while it was read; let it be finished first")
        kept = np.concatenate([np.empty(0, np.int64), *source_frames])
        _check_rows(name, rows, read, whole=not filters.done)
        entry: Entry = {
            "source": task.source,
            "kind": task.recording.kind,
            "frames": len(kept),
            "first_source_frame": int(kept[0]) if len(kept) else None,
            "shape": list(task.shape),
            "fingerprint": before,
            "notes": task.recording.notes,
            "files": files.close(rows, kept),
        }
        write_json(task.folder / ENTRY, [name, entry, list(task.shape)])
        return entry
    except (OSError, InputError) as error:
        cause = error.__cause__ if isinstance(error, InputError) else error
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            raise InputError(
                f"{task.folder.parents[1]}: no room left on the disk ({os.strerror(cause.errno or 0)}) while {name} was "
                "extracted; nothing of it is kept, and all finished recordings are. Free some space, and give the same command "
                "again"
            ) from error
        raise


def _resized(task: Task, filters: FrameFilters, count: Callable[[int], None]) -> Generator[tuple[Frames, NDArray[np.int64]]]:
    """The frames that the stride takes, as the pixel contract has them, and which of the recording's they are."""
    chunks, first, convert = task.recording.chunks(), 0, None
    waiting: deque[tuple[list[Future[Frames]], NDArray[np.int64]]] = deque()

    def next_finished() -> tuple[Frames, NDArray[np.int64]]:
        futures, positions = waiting.popleft()
        return np.concatenate([future.result() for future in futures]), positions

    with ThreadPoolExecutor(task.threads, "resize") as pool:
        try:
            for chunk in chunks:
                if convert is None:
                    contract = contract_for(chunk.shape[1:], task.size, task.crop)
                    if contract.shape != task.shape:
                        raise DamagedRecordingError(
                            f"{task.recording.name} has frames of shape {contract.shape}, and the folder has those of "
                            f"{task.shape}; a dataset needs one shape. Give a --size, or extract it to another folder"
                        )
                    convert = partial(contract.convert, layout="HWC", what=task.recording.name)
                positions = filters.take(len(chunk))
                if len(positions):
                    taken = chunk if filters.stride == 1 else chunk[positions]
                    parts = np.array_split(taken, min(task.threads, len(taken)))
                    waiting.append(([pool.submit(convert, part) for part in parts], positions + first))
                first += len(chunk)
                count(len(chunk))
                if len(waiting) > _CHUNKS_AHEAD:
                    yield next_finished()
            while waiting:
                yield next_finished()
        finally:
            pool.shutdown(cancel_futures=True)
            close_chunks(chunks)


def close_chunks(chunks: Iterator[Frames]) -> None:
    """Have a generator close its file now, rather than when it is collected."""
    if isinstance(chunks, Generator):
        chunks.close()


def _check_rows(name: str, rows: Mapping[str, NDArray[Any]], frames: int, whole: bool) -> None:
    """Refuse rows that do not belong to the frames one by one; behind a limit nobody has counted the frames."""
    for key, column in rows.items():
        if column.dtype.hasobject or key == _SOURCE_FRAME:
            raise DamagedRecordingError(
                f"{name}: its row {key!r} is {column.dtype}, expected numbers or text under another name"
            )
        if len(column) < frames or (whole and len(column) != frames):
            raise DamagedRecordingError(f"{name} has {frames} frames and {len(column)} rows of {key!r}, expected one for each")


class _Files:
    """The frame files of one recording, none longer than it may be, and the rows beside them."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._lengths: list[int] = []
        self._writer: NpyWriter | None = None

    def append(self, frames: Frames) -> None:
        """Add frames, as many to each file as it takes."""
        while len(frames):
            if self._writer is None:
                self._writer = NpyWriter(self._task.folder / f"{self._stem(len(self._lengths))}.npy", self._task.shape)
            room = self._task.frames_per_file - self._writer.frames
            self._writer.append(frames[:room])
            frames = frames[room:]
            if self._writer.frames == self._task.frames_per_file:
                self._end_file()

    def close(self, rows: Mapping[str, NDArray[Any]], kept: NDArray[np.int64]) -> list[Entry]:
        """End the last file, write the rows of each, and say what there is."""
        self._end_file()
        if len(self._lengths) == 1:
            only = self._task.folder / f"{self._task.stem}.npy"
            only.with_name(f"{self._stem(0)}.npy").rename(only)
        listed, first = [], 0
        for i, length in enumerate(self._lengths):
            stem = self._task.stem if len(self._lengths) == 1 else self._stem(i)
            source = kept[first : first + length]
            columns = {key: column[source] for key, column in rows.items()}
            save_rows(self._task.folder / f"{stem}.rows.npz", {**columns, _SOURCE_FRAME: source})
            listed.append({"file": f"{stem}.npy", "rows": f"{stem}.rows.npz", "frames": length})
            first += length
        return listed

    def _stem(self, index: int) -> str:
        return f"{self._task.stem}_{index:03d}"

    def _end_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._lengths.append(self._writer.frames)
            self._writer = None
