"""Recordings extracted one after the other in this process, or by a pool of worker processes."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from typing import Any

from vae_training.extraction.index import Entry
from vae_training.extraction.one_recording import Task, extract_recording
from vae_training.extraction.readers.base import DamagedRecordingError

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Failure:
    """A recording of which nothing was kept: why, and whether it is damaged (else its worker process died)."""

    reason: str
    damaged: bool


class _Stopped(Exception):
    """Extraction was asked to stop."""


def run_tasks(
    tasks: Sequence[Task], workers: int, count: Callable[[int], object], stopped: Callable[[], bool]
) -> Generator[tuple[Task, Entry | Failure]]:
    """Extract recordings and yield the outcome of each as it finishes.

    A worker process that dies takes the whole pool with it; the recordings that were not finished then are tried once
    more, each alone, so that one failure costs one recording.

    Args:
        tasks: The recordings.
        workers: Number of processes; 1 is this one.
        count: Called with numbers of frames read, for a progress bar.
        stopped: Whether to stop; unfinished recordings are then not yielded.
    """
    if workers == 1:

        def count_or_stop(frames: int) -> None:
            count(frames)
            if stopped():
                raise _Stopped

        with contextlib.suppress(_Stopped):
            for task in tasks:
                if stopped():
                    return
                yield task, _outcome(task, count_or_stop)
        return
    broken: list[Task] = []
    yield from _in_a_pool(tasks, workers, count, stopped, broken)
    for task in broken:
        died: list[Task] = []
        shutil.rmtree(task.folder)  # what the dead worker left
        task.folder.mkdir()
        yield from _in_a_pool([task], 1, count, stopped, died)
        if died:
            reason = "its worker process died twice, often because memory is short: fewer --workers need less"
            yield task, Failure(f"{task.recording.name}: {reason}. The same command tries it again", damaged=False)


def _in_a_pool(
    tasks: Sequence[Task],
    workers: int,
    count: Callable[[int], object],
    stopped: Callable[[], bool],
    broken: list[Task],
) -> Iterator[tuple[Task, Entry | Failure]]:
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    frames_read, stop, counted = context.Value("q", 0), context.Event(), 0
    pool = ProcessPoolExecutor(workers, context, _begin_worker, (frames_read, stop))
    pending: dict[Future[Entry | Failure | None], Task] = {}
    try:
        # No Ctrl-C reaches the processes, from their very first moment: a blocked signal is inherited.
        resource_tracker.ensure_running()  # would unblock it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            pending = {pool.submit(_work, task): task for task in tasks}
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        while pending and not stopped():
            finished, _ = concurrent.futures.wait(pending, _POLL_SECONDS, concurrent.futures.FIRST_COMPLETED)
            read = frames_read.value
            count(read - counted)
            counted = read
            for future in finished:
                task = pending.pop(future)
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    broken.append(task)
                else:
                    assert outcome is not None, "nothing asked the workers to stop"
                    yield task, outcome
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


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


def _work(task: Task) -> Entry | Failure | None:
    """In a worker process: extract one recording; None if extraction was stopped."""

    def count(frames: int) -> None:
        with _frames_read.get_lock():
            _frames_read.value += frames
        if _stop.is_set():
            raise _Stopped

    with contextlib.suppress(_Stopped):
        return _outcome(task, count)


def _outcome(task: Task, count: Callable[[int], object]) -> Entry | Failure:
    try:
        return extract_recording(task, count)
    except DamagedRecordingError as error:
        return Failure(str(error), damaged=True)
