"""Extract one recording: read it chunk by chunk, resize in threads, filter, and write its files and rows."""

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_obs.pixels import Crop, Frames, PixelContract
from latent_obs.util.atomic import write_json
from latent_obs.util.errors import InputError
from vae_training.data.filters import FrameFilters
from vae_training.data.frames import DISK_FULL
from vae_training.data.npy_writer import NpyWriter
from vae_training.data.rows import save_rows
from vae_training.extraction.index import ENTRY, Entry
from vae_training.extraction.readers.base import DamagedRecordingError, Recording

_CHUNKS_AHEAD = 2  # decoded chunks that wait for a resize; memory depends on these few
_SOURCE_FRAME = "source_frame"


@dataclass(frozen=True)
class Task:
    """A recording to extract."""

    recording: Recording
    source: str
    """Where it was found, for the index."""
    stem: str
    """Its file name, without ending."""
    folder: Path
    """Where to write its files, and entry.json last."""
    shape: tuple[int, ...]
    """Shape that its frames must have, (H, W, 3)."""
    size: int | None
    crop: Crop
    filters: Mapping[str, Any]
    """Arguments of `FrameFilters`."""
    frames_per_file: int
    threads: int
    """Threads that resize."""


def contract_for(frame_shape: tuple[int, ...], size: int | None, crop: Crop) -> PixelContract:
    """The preprocessing for frames of a shape, to squares of `size` or, where it is None, at their own size."""
    height, width = frame_shape[:2]
    if size is None and crop == "center-square":
        size = min(height, width)
    return PixelContract(size or height, size or width, 3, crop=crop)


def disk_full_error(error: BaseException | None, folder: Path) -> InputError | None:
    """The error for a full disk, if `error` is one; finished recordings are kept then."""
    if not isinstance(error, OSError) or error.errno not in DISK_FULL:
        return None
    return InputError(
        f"{folder}: no space left on the disk ({DISK_FULL[error.errno]}); all finished recordings are kept. Free "
        "some space, and give the same command again"
    )


def extract_recording(task: Task, count: Callable[[int], object]) -> Entry:
    """Write one recording's frames and rows to its folder, and `entry.json` last; returns its entry in the index.

    `count` is called with the number of frames of each chunk that was read; it may raise, to stop.

    Raises:
        DamagedRecordingError: It cannot be read to its end, or its frames have another shape than the others'.
        InputError: The disk is full.
    """
    try:
        return _extract(task, count)
    except (OSError, InputError) as error:
        cause = error.__cause__ if isinstance(error, InputError) else error
        if (full := disk_full_error(cause, task.folder.parents[1])) is None:
            raise
        raise full from error


def _extract(task: Task, count: Callable[[int], object]) -> Entry:
    name, fingerprint = task.recording.name, task.recording.fingerprint()
    rows = {key: np.asarray(column) for key, column in task.recording.rows().items()}
    filters, files, read = FrameFilters(**task.filters), _Files(task), 0
    source_frames: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    with contextlib.closing(_resized(task, filters)) as chunks:
        for frames, positions, chunk_length in chunks:
            read += chunk_length
            count(chunk_length)
            mask = filters.keep(frames)
            files.append(frames[mask])
            source_frames.append(positions[mask])
            if filters.done:
                break
    if task.recording.fingerprint() != fingerprint:
        raise DamagedRecordingError(f"{name} was changed while it was read; wait until it is complete")
    for key, column in rows.items():
        if column.dtype.hasobject or key == _SOURCE_FRAME:
            raise DamagedRecordingError(
                f"{name}: its row {key!r} is {column.dtype}, expected numbers or text under another name"
            )
        if len(column) < read or (len(column) != read and not filters.done):  # with a limit, not all were counted
            raise DamagedRecordingError(f"{name} has {read} frames and {len(column)} rows of {key!r}")
    kept = np.concatenate(source_frames)
    entry: Entry = {
        "source": task.source,
        "kind": task.recording.kind,
        "frames": len(kept),
        "first_source_frame": int(kept[0]) if len(kept) else None,
        "shape": list(task.shape),
        "fingerprint": fingerprint,
        "notes": task.recording.notes,
        "files": files.close(rows, kept),
    }
    write_json(task.folder / ENTRY, [name, entry, list(task.shape)])
    return entry


def _resized(task: Task, filters: FrameFilters) -> Generator[tuple[Frames, NDArray[np.int64], int]]:
    """For each chunk: the frames that the stride takes, resized; their numbers in the recording; the chunk's length."""
    chunks, first, convert = task.recording.chunks(), 0, None
    waiting: deque[tuple[list[Future[Frames]], NDArray[np.int64], int]] = deque()

    def next_finished() -> tuple[Frames, NDArray[np.int64], int]:
        futures, positions, length = waiting.popleft()
        empty = np.empty((0, *task.shape), np.uint8)
        return np.concatenate([empty, *(future.result() for future in futures)]), positions, length

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
                taken = chunk if filters.stride == 1 else chunk[positions]
                parts = np.array_split(taken, min(task.threads, len(taken))) if len(taken) else []
                waiting.append(([pool.submit(convert, part) for part in parts], positions + first, len(chunk)))
                first += len(chunk)
                if len(waiting) > _CHUNKS_AHEAD:
                    yield next_finished()
            while waiting:
                yield next_finished()
        finally:
            pool.shutdown(cancel_futures=True)
            if isinstance(chunks, Generator):
                chunks.close()  # its file is closed now, rather than when it is collected


class _Files:
    """The frame files of one recording, none longer than `frames_per_file`, and the rows beside them."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._lengths: list[int] = []
        self._writer: NpyWriter | None = None

    def append(self, frames: Frames) -> None:
        """Add frames, and begin another file where one is full."""
        while len(frames):
            if self._writer is None:
                self._writer = NpyWriter(self._task.folder / f"{self._stem(len(self._lengths))}.npy", self._task.shape)
            space = self._task.frames_per_file - self._writer.frames
            self._writer.append(frames[:space])
            frames = frames[space:]
            if self._writer.frames == self._task.frames_per_file:
                self._end_file()

    def close(self, rows: Mapping[str, NDArray[Any]], kept: NDArray[np.int64]) -> list[Entry]:
        """End the last file, write the rows of each, and return the list of files for the index."""
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
