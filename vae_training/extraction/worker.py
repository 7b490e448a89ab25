"""Extract recordings one by one, in this process or in worker processes: read, resize, filter, write files and rows."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import connection, resource_tracker
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from latent_obs.pixels import Crop, PixelContract
from latent_obs.util.atomic import write_json
from vae_training.data.filters import FrameFilters
from vae_training.data.frames import Frames
from vae_training.data.npy_writer import NpyWriter
from vae_training.data.rows import save_rows
from vae_training.extraction.index import ENTRY, Entry, Part
from vae_training.extraction.readers.base import Damaged, DamagedRecordingError, Recording, reading

_FILTERS = ("stride", "drop_black", "drop_duplicates", "limit")
_SOURCE_FRAME = "source_frame"
_POLL_SECONDS = 0.1
_Outcome = TypeVar("_Outcome")


@dataclass(frozen=True)
class Task:
    """A recording to extract."""

    recording: Recording
    """Its `threads`, 1 or more, decode, and as many resize."""
    source: str
    """Where it was found, for the index."""
    folder: Path
    """To be made for its files, which begin with the folder's name, and for entry.json, last."""
    shape: tuple[int, ...]
    """Shape that its frames must have, (H, W, 3)."""
    settings: Mapping[str, Any]
    """From `ExtractConfig.settings`."""


def contract_for(frame_shape: tuple[int, ...], size: int | None, crop: Crop) -> PixelContract:
    """The preprocessing for frames of a shape, to squares of `size` or, where it is None, at their own size."""
    height, width = frame_shape[:2]
    if size is None and crop == "center-square":
        size = min(height, width)
    return PixelContract(size or height, size or width, 3, crop=crop)


def run_tasks(
    tasks: Sequence[Task],
    workers: int,
    count: Callable[[int], object],
    stopped: Callable[[], bool],
    cluster: Executor | None = None,
) -> Generator[tuple[Task, Entry | Damaged]]:
    """Extract recordings and yield the outcome of each as it finishes.

    Args:
        tasks: The recordings.
        workers: Number of processes; 1 is this one.
        count: Called with numbers of frames read, for a progress bar.
        stopped: Whether to stop; unfinished recordings are then not yielded.
        cluster: Runs the tasks, in place of processes here; it is shut down in the end.
    """
    if cluster is not None:
        for task, finished in _outcomes(cluster, _extract_and_count, tasks, lambda: None, stopped):
            frames_read, outcome = finished or (0, None)
            count(frames_read)
            yield task, outcome or _died(task, "each node that tried it died, or the process there; is memory short?")
    elif workers > 1:
        yield from _in_a_pool(tasks, workers, count, stopped)
    else:

        def goes_on(frames_read: int) -> bool:
            count(frames_read)
            return not stopped()

        for task in tasks:
            if (outcome := _extract(task, goes_on)) is None:
                return
            yield task, outcome


def _outcomes(
    pool: Executor,
    work: Callable[[Task], _Outcome],
    tasks: Sequence[Task],
    poll: Callable[[], object],
    stopped: Callable[[], bool],
) -> Generator[tuple[Task, _Outcome | None]]:
    """Each task with the outcome of `work` as it finishes, None if its process died; then the pool is shut down.

    After a stop, also those that finish before they can be stopped.
    """
    pending: dict[Future[_Outcome], Task] = {}
    try:
        pending = {pool.submit(work, task): task for task in tasks}
        while pending and not stopped():
            finished, _ = concurrent.futures.wait(pending, _POLL_SECONDS, concurrent.futures.FIRST_COMPLETED)
            poll()
            for future in finished:
                task, died = pending.pop(future), isinstance(future.exception(), BrokenExecutor)
                yield task, None if died else future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    for future, task in pending.items():
        if not future.cancelled() and future.exception() is None and future.result() is not None:
            yield task, future.result()


def _died(task: Task, reason: str) -> Damaged:
    return Damaged(task.recording.name, task.recording.source, reason)


def _in_a_pool(
    tasks: Sequence[Task], workers: int, count: Callable[[int], object], stopped: Callable[[], bool]
) -> Generator[tuple[Task, Entry | Damaged]]:
    """As `run_tasks`, in worker processes.

    One that dies takes the whole pool with it; the recordings that were not finished then are tried once more, each
    alone, so that one failure costs one recording.
    """
    pool, counted = _Pool(workers), 0

    def poll() -> None:
        nonlocal counted
        read = pool.frames_read.value
        count(read - counted)
        counted = read

    died: list[Task] = []
    for task, outcome in _outcomes(pool, _work, tasks, poll, stopped):
        if outcome is None:
            died.append(task)
        else:
            yield task, outcome
    for task in died:
        if len(tasks) > 1:
            yield from _in_a_pool([task], 1, count, stopped)
        else:
            yield (
                task,
                _died(task, "its worker process died twice, often because memory is short: fewer --workers need less"),
            )


class _Pool(ProcessPoolExecutor):
    """Worker processes, which count the frames that they read and end early at `shutdown`."""

    def __init__(self, workers: int) -> None:
        context: Any = multiprocessing.get_context("forkserver")
        self.frames_read, self._stop = context.Value("q", 0), context.Event()
        super().__init__(workers, context, _begin_worker, (self.frames_read, self._stop))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Submit a call, and start a process for it if there are too few."""
        from latent_obs.envs.workers import main_script_hidden  # here, as workers import this module

        # No Ctrl-C reaches the processes, from their very first moment: a blocked signal is inherited.
        resource_tracker.ensure_running()  # would unblock it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with main_script_hidden():  # a script without a main guard would extract in each of them
                return super().submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes."""
        self._stop.set()
        super().shutdown(wait, cancel_futures=cancel_futures)


_frames_read: Any
_stop: Any


def _begin_worker(frames_read: Any, stop: Any) -> None:
    """Prepare a worker process: it ignores Ctrl-C and ends with its parent, even if that is killed."""
    global _frames_read, _stop
    _frames_read, _stop = frames_read, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _work(task: Task) -> Entry | Damaged | None:
    def goes_on(frames_read: int) -> bool:
        with _frames_read.get_lock():
            _frames_read.value += frames_read
        return not _stop.is_set()

    return _extract(task, goes_on)


def _extract_and_count(task: Task) -> tuple[int, Entry | Damaged | None]:
    frames_read = 0

    def goes_on(more: int) -> bool:
        nonlocal frames_read
        frames_read += more
        return True

    outcome = _extract(task, goes_on)
    return frames_read, outcome


def _extract(task: Task, goes_on: Callable[[int], bool]) -> Entry | Damaged | None:
    """Extract one recording; None if `goes_on`, called with the number of frames of each chunk, returns false.

    Its files are written in a folder of this attempt and moved together: a worker that was given up may still write.
    """
    try:
        with (
            tempfile.TemporaryDirectory(dir=task.folder.parent, ignore_cleanup_errors=True) as attempt,
            task.recording.opened(task.folder.parent) as recording,
        ):
            written = Path(attempt) / task.folder.name
            outcome = _write_files(replace(task, folder=written), recording, goes_on)
            if outcome is not None:
                try:
                    written.rename(task.folder)
                except OSError:
                    if not (task.folder / ENTRY).exists():  # then another attempt got so far
                        raise
            return outcome
    except DamagedRecordingError as error:
        return Damaged(task.recording.name, task.recording.source, str(error))


def _write_files(task: Task, recording: Recording, goes_on: Callable[[int], bool]) -> Entry | None:
    """Write a recording's frames and rows to its folder, and `entry.json` last; returns its entry in the index."""
    name, settings, fingerprint = recording.name, task.settings, task.recording.fingerprint()
    with reading(name):
        rows = {key: np.asarray(column) for key, column in recording.rows().items()}
        chunks = recording.chunks()
    filters = FrameFilters(**{key: settings[key] for key in _FILTERS})
    task.folder.mkdir()
    writers: list[NpyWriter] = []
    kept, read = [np.empty(0, np.int64)], 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(chunks))
        pool = stack.enter_context(ThreadPoolExecutor(recording.threads + 1))

        def next_chunk() -> Frames | None:
            with reading(name):
                return next(chunks, None)

        following = pool.submit(next_chunk)
        while not filters.done and (chunk := following.result()) is not None:
            following = pool.submit(next_chunk)  # decoded while this one is resized
            contract = contract_for(chunk.shape[1:], settings["size"], settings["crop"])
            if contract.shape != task.shape:
                raise DamagedRecordingError(
                    f"{name} has frames of shape {contract.shape}, and the folder has those of {task.shape}; a dataset "
                    "needs one shape. Give a --size, or extract it to another folder"
                )
            positions = filters.take(len(chunk))
            parts = np.array_split(chunk if filters.stride == 1 else chunk[positions], recording.threads)
            frames = np.concatenate(list(pool.map(partial(contract.convert, layout="HWC", what=name), parts)))
            mask = filters.keep(frames)
            _append(frames[mask], task, writers, stack)
            kept.append(read + positions[mask])
            read += len(chunk)
            if not goes_on(len(chunk)):
                return None
    with reading(name):
        notes = recording.notes
    if task.recording.fingerprint() != fingerprint:
        raise DamagedRecordingError(f"{name} was changed while it was read; wait until it is complete")
    for key, column in rows.items():
        if column.dtype.hasobject or key == _SOURCE_FRAME:
            raise DamagedRecordingError(
                f"{name}: its row {key!r} is {column.dtype}, expected numbers or text under another name"
            )
        if len(column) < read or (len(column) != read and not filters.done):  # with a limit, not all were counted
            raise DamagedRecordingError(f"{name} has {read} frames and {len(column)} rows of {key!r}")
    source_frames, first, files = np.concatenate(kept), 0, list[Part]()
    for writer in writers:
        stem = writer.path.stem if len(writers) > 1 else task.folder.name
        source = source_frames[first : first + writer.frames]
        first += writer.frames
        writer.path.rename(task.folder / f"{stem}.npy")
        columns = {key: column[source] for key, column in rows.items()}
        save_rows(task.folder / f"{stem}.rows.npz", {**columns, _SOURCE_FRAME: source})
        files.append({"file": f"{stem}.npy", "rows": f"{stem}.rows.npz", "frames": writer.frames})
    entry: Entry = {
        "source": task.source,
        "kind": recording.kind,
        "frames": len(source_frames),
        "first_source_frame": int(source_frames[0]) if len(source_frames) else None,
        "shape": list(task.shape),
        "fingerprint": fingerprint,
        "notes": notes,
        "files": files,
    }
    write_json(task.folder / ENTRY, [name, entry, list(task.shape)])
    return entry


def _append(frames: Frames, task: Task, writers: list[NpyWriter], stack: contextlib.ExitStack) -> None:
    """Add frames to the last file of a recording, and begin another one where it is full."""
    while len(frames):
        if not writers or writers[-1].closed:
            file = task.folder / f"{task.folder.name}_{len(writers):03d}.npy"
            writers.append(stack.enter_context(NpyWriter(file, task.shape)))
        space = task.settings["frames_per_file"] - writers[-1].frames
        writers[-1].append(frames[:space])
        frames = frames[space:]
        if writers[-1].frames == task.settings["frames_per_file"]:
            writers[-1].close()
