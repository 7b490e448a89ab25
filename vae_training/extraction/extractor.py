"""Turn recordings (videos, demonstrations, pictures, arrays) into the `.npy` frame files that the CVAE is trained on.

One pass, a file or more per recording, and an index of what came from where (see `frame_index`). Safe to interrupt in
any
way and to start again: finished recordings are passed over, an unfinished one is begun again.
"""

import contextlib
import dataclasses
import math
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm
from tyro.conf import Positional

from latent_obs.pixels import Crop, Frames, PixelContract
from latent_obs.util import errors
from latent_obs.util.atomic import write_json
from latent_obs.util.device import cores
from latent_obs.util.errors import InputError, LatentObsError
from latent_obs.util.interrupt import GracefulStop
from vae_training.data.filters import FrameFilters
from vae_training.data.frames import DISK_FULL
from vae_training.data.npy_writer import NpyWriter
from vae_training.data.rows import save_rows
from vae_training.extraction.index import ENTRY, Entry, FrameFolder, file_stems
from vae_training.extraction.readers.base import DamagedRecordingError, Recording
from vae_training.extraction.readers.find import Damaged, Recording, find_recordings
from vae_training.extraction.readers.vpt import Gui, VptOptions

#: Fields that say what is read, where to and with how many hands; all others decide what a frame file holds.
_NOT_SETTINGS = ("recordings", "out", "workers")


@dataclass(frozen=True)
class ExtractConfig:
    """What to extract, and how.

    Example:
        >>> config = ExtractConfig((Path("videos"),), Path("frames"), stride=2)
        >>> config.settings()["stride"]
        2
    """

    recordings: Positional[tuple[Path, ...]]
    """Videos, demonstration folders, folders of pictures, arrays; or folders that are searched for them."""
    out: Path
    """Folder of the frame files; one that holds some of the same settings already is continued."""
    size: int | None = 64
    """Side of the frames in pixels; None keeps the recordings' own size, which must then be one and the same."""
    crop: Crop = "none"
    """none squeezes another aspect ratio into the square (nothing is lost); center-square cuts the longer side."""
    stride: int = 1
    """Take every so many-th frame; the frames between are decoded, but not resized."""
    drop_duplicates: float | None = None
    """Drop frames that differ from the last kept one by less than so many levels of 255, on average over a small grey
    version; 0.5 drops what only looks still. None keeps all."""
    drop_black: bool = False
    """Drop frames without a pixel brighter than almost black."""
    limit: int | None = None
    """Most frames to keep of each recording."""
    workers: int | None = None
    """Processes, a recording each at a time; None is one per core. 1 does all in this process, with threads that
    resize."""
    frames_per_file: int = 50_000
    """Longest file; a longer recording is cut into name_000.npy, name_001.npy, ..."""
    drop_null_actions: bool = False
    """Drop the frames in which the player did nothing, where a recording tells (VPT)."""
    gui: Gui = "keep"
    """Keep or drop the frames with an open menu, where a recording marks them (VPT)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "recordings", tuple(Path(path) for path in self.recordings))
        object.__setattr__(self, "out", Path(self.out))
        if not self.recordings:
            raise InputError("name the recordings to extract frames from: files, or folders that are searched for them")
        for name in ("size", "stride", "limit", "workers", "frames_per_file"):
            value, optional = getattr(self, name), name in ("size", "limit", "workers")
            if not (value is None and optional) and not _is_positive_int(value):
                raise InputError(f"{name} must be a positive integer{' or None' if optional else ''}, got {value!r}")
        for name, choices in (("crop", get_args(Crop)), ("gui", get_args(Gui))):
            if getattr(self, name) not in choices:
                raise InputError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        levels = self.drop_duplicates
        if levels is not None and not (math.isfinite(levels) and 0 < levels <= 255):
            raise InputError(
                f"drop_duplicates must be a number of levels, above 0 and at most 255, or None to keep all; got {levels!r}"
            )

    @property
    def vpt(self) -> VptOptions:
        """Which frames of VPT recordings to take."""
        return VptOptions(self.drop_null_actions, self.gui)

    def settings(self) -> dict[str, Any]:
        """What decides what a frame file holds, as plain values for `frames.json`."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_SETTINGS}


def _is_positive_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


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
        >>> contract_for((360, 640, 3), None, "center-square").shape
        (360, 360, 3)
    """
    height, width = frame_shape[:2]
    if size is None and crop == "center-square":
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
        if isinstance(cause, OSError) and cause.errno in DISK_FULL:
            raise InputError(
                f"{task.folder.parents[1]}: no room left on the disk ({os.strerror(cause.errno or 0)}) while {name} was "
                "extracted; nothing of it is kept, and all finished recordings are. Free some space, and give the same command "
                "again"
            ) from error
        raise


def _resized(
    task: Task, filters: FrameFilters, count: Callable[[int], None]
) -> Generator[tuple[Frames, NDArray[np.int64]]]:
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
            raise DamagedRecordingError(
                f"{name} has {frames} frames and {len(column)} rows of {key!r}, expected one for each"
            )


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


_LOOK_S = 0.1  # how often to look whether a Ctrl-C has come


@dataclass(frozen=True)
class Failed:
    """A recording of which nothing was kept.

    Attributes:
        reason: Why, for the user.
        damaged: Whether it is the recording's own fault; a worker that dies is not.
    """

    reason: str
    damaged: bool


Outcome = Entry | Failed


class Stopped(Exception):
    """Extraction was asked to stop."""


def run_tasks(
    tasks: Iterable[Task], workers: int, tell: Callable[[int], object], stopped: Callable[[], bool]
) -> Generator[tuple[Task, Outcome]]:
    """Extract recordings, in this process or in others, and yield each with what became of it, as they finish.

    Args:
        tasks: The recordings; looked at one by one as workers become free.
        workers: Number of processes; 1 is this one.
        tell: Called with numbers of frames read, for a progress bar.
        stopped: Whether to stop; what is unfinished then is not yielded.

    Raises:
        LatentObsError: The disk is full, or a package is missing.
    """
    if workers > 1:
        yield from _in_processes(tasks, workers, tell, stopped)
        return

    def check(frames: int) -> None:
        tell(frames)
        if stopped():
            raise Stopped

    with contextlib.suppress(Stopped):
        for task in tasks:
            if stopped():
                return
            yield task, _outcome(task, check)


def _outcome(task: Task, tell: Callable[[int], object]) -> Outcome:
    try:
        return extract_recording(task, tell)
    except DamagedRecordingError as error:
        return Failed(str(error), damaged=True)


# --- processes
# ----------------------------------------------------------------------------------------------------------------
def _in_processes(
    tasks: Iterable[Task], workers: int, tell: Callable[[int], object], stopped: Callable[[], bool]
) -> Generator[tuple[Task, Outcome]]:
    waiting = iter(tasks)
    busy: dict[Connection, tuple[BaseProcess, Task]] = {}
    leaving: list[BaseProcess] = []
    try:
        for task in waiting:
            _start(task, busy)
            if len(busy) == workers:
                break
        while busy and not stopped():
            for ready in connection.wait(list(busy), timeout=_LOOK_S):
                assert isinstance(ready, Connection)
                process, task = busy[ready]
                try:
                    kind, content = ready.recv()
                except (EOFError, OSError):
                    del busy[ready]
                    ready.close()
                    yield task, Failed(f"{task.recording.name}: its worker process {_end_of(process)}", damaged=False)
                    if (following := next(waiting, None)) is not None:
                        _start(following, busy)
                    continue
                if kind == "frames":
                    tell(content)
                    continue
                if kind == "error":
                    raise _error(task, *content)
                if (following := next(waiting, None)) is None:
                    ready.close()  # the worker ends by itself
                    del busy[ready]
                    leaving.append(process)
                else:
                    busy[ready] = process, following
                    with contextlib.suppress(OSError):  # it has died since: noticed when its answer is read
                        ready.send(following)
                yield task, content
    finally:
        for ours, (process, _) in busy.items():
            process.kill()  # what it was writing is removed with its folder
            process.join()
            ours.close()
        for process in leaving:
            process.join(5)


def _start(task: Task, busy: dict[Connection, tuple[BaseProcess, Task]]) -> None:
    """Start a worker, and give it its first recording."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), name=f"extract {task.stem}", daemon=True)
    # From its very first moment, imports included, no Ctrl-C may reach it: a blocked signal stays so in child
    # processes.
    resource_tracker.ensure_running()  # would unblock it
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    theirs.close()
    busy[ours] = process, task
    with contextlib.suppress(OSError):
        ours.send(task)


def _work(theirs: Connection) -> None:
    """A worker's life: recordings one after the other, until the parent has no more, or is no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            try:
                outcome = "done", _outcome(theirs.recv(), lambda frames: theirs.send(("frames", frames)))
            except (EOFError, BrokenPipeError, ConnectionResetError):
                return
            except LatentObsError as error:
                known = next(c.__name__ for c in type(error).__mro__ if getattr(errors, c.__name__, None) is c)
                outcome = "error", (known, str(error))
            except Exception:
                outcome = "error", ("", traceback.format_exc())
            theirs.send(outcome)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _error(task: Task, name: str, text: str) -> Exception:
    """What a worker raised, to be raised here."""
    if name:
        return getattr(errors, name)(text)
    return RuntimeError(
        f"{task.recording.name} could not be extracted, by a mistake of latent-obs or of a package:\n{text}"
    )


def _end_of(process: BaseProcess) -> str:
    process.join(5)
    code = process.exitcode
    if code is not None and code < 0:
        hint = (
            "; often that is the system, short of memory: fewer --workers need less" if code == -signal.SIGKILL else ""
        )
        return f"was killed by {signal.Signals(-code).name}{hint}. The same command tries it again"
    return f"ended with status {code}. The same command tries it again"


@dataclass(frozen=True)
class ExtractResult:
    """What a run did, and what the folder holds now.

    Attributes:
        folder: The folder of frame files.
        recordings: Finished recordings in it.
        frames: Frames of these.
        new_frames: Frames that this run added.
        skipped: Recordings that were finished already.
        empty: Names of recordings of which no frame was kept.
        damaged: Recordings that cannot be read, or not to their end; nothing of them was kept.
        failed: Recordings whose worker process died; the next run tries them again.
        interrupted: Whether it was stopped before all recordings were looked at.
    """

    folder: Path
    recordings: int
    frames: int
    new_frames: int
    skipped: int
    empty: tuple[str, ...]
    damaged: tuple[Damaged, ...]
    failed: tuple[Damaged, ...]
    interrupted: bool


def extract(
    config: ExtractConfig, *, progress_bar: bool | None = None, say: Callable[[str], object] = print
) -> ExtractResult:
    """Extract the frames of recordings to a folder that `get_datasets` opens.

    Ctrl-C ends it early: finished recordings are kept, and the same call later goes on with the others. Of a recording
    that is damaged nothing is kept, for a split by recording must not rest on a piece of one; it is named, and the
    others go on.

    Args:
        config: What to extract.
        progress_bar: Whether to show one; None shows it in a terminal only.
        say: Where messages go.

    Returns:
        What was done.

    Raises:
        InputError: There are no recordings; the folder was begun with other settings, holds other frames or is in use;
            a source has changed since; the disk is full (finished recordings are kept).
        MissingExtraError: A package that reads such recordings is not installed.
    """
    recordings, unreadable = find_recordings(config.recordings, vpt=config.vpt)
    for recording in recordings:
        if config.out.resolve() in (recording.source.resolve(), *recording.source.resolve().parents):
            raise InputError(f"{recording.source} is in the folder to write to, {config.out}; choose another --out")
    try:
        with FrameFolder(config.out, config.settings(), say) as folder:
            return _Run(config, folder, recordings, say).run(unreadable, progress_bar)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise InputError(
            f"{config.out}: no room left on the disk ({error.strerror}); all finished recordings are kept. Free some space, "
            "and give the same command again"
        ) from error


class _Run:
    """One run over a folder that is held."""

    def __init__(
        self, config: ExtractConfig, folder: FrameFolder, recordings: list[Recording], say: Callable[[str], object]
    ) -> None:
        self.config, self.folder, self.say = config, folder, say
        self.recordings = recordings
        self.failures: list[tuple[Recording, Failed]] = []

    def run(self, unreadable: list[Damaged], progress_bar: bool | None) -> ExtractResult:
        folder = self.folder
        pending, frames_before = self._pending(), folder.frames
        skipped = len(self.recordings) - len(pending) - len(self.failures)
        if skipped:
            self.say(f"{folder.path} holds {skipped:,} of {len(self.recordings):,} recordings already")
        pending, shape = self._with_shape(pending)
        interrupted = False
        if pending and shape is not None:
            folder.settle_shape(shape)
            try:
                with GracefulStop() as stop, self._bar(pending, progress_bar) as bar:
                    interrupted = not self._extract(pending, shape, bar, lambda: stop.requested)
            except KeyboardInterrupt:  # a second Ctrl-C
                interrupted = True
        damaged = [*unreadable, *(Damaged(r.name, r.source, f.reason) for r, f in self.failures if f.damaged)]
        failed = [Damaged(r.name, r.source, f.reason) for r, f in self.failures if not f.damaged]
        folder.damaged = {d.name: {"source": self._found_at(d.source), "reason": d.reason} for d in (*damaged, *failed)}
        folder.write()
        names = {recording.name for recording in self.recordings}
        result = ExtractResult(
            folder=folder.path,
            recordings=len(folder.entries),
            frames=folder.frames,
            new_frames=folder.frames - frames_before,
            skipped=skipped,
            empty=tuple(
                name for name, entry in sorted(folder.entries.items()) if name in names and not entry["frames"]
            ),
            damaged=tuple(sorted(damaged, key=lambda d: d.name)),
            failed=tuple(sorted(failed, key=lambda d: d.name)),
            interrupted=interrupted,
        )
        self._tell(result)
        return result

    def _pending(self) -> list[Recording]:
        """The recordings that are not finished; those that cannot even be looked at are noted."""
        pending, names = [], {recording.name for recording in self.recordings}
        for recording in self.recordings:
            try:
                fingerprint = recording.fingerprint()
                if self.folder.is_done(recording.name, fingerprint):
                    continue
                if (other := self.folder.other_name_of(fingerprint, recording.source, names)) is not None:
                    self.say(f"{recording.name} is in {self.folder.path} already, under the name {other}")
                    continue
                pending.append(recording)
            except DamagedRecordingError as error:
                self.failures.append((recording, Failed(str(error), damaged=True)))
        return pending

    def _with_shape(self, pending: list[Recording]) -> tuple[list[Recording], tuple[int, ...] | None]:
        """The recordings that begin well enough to be read, and the shape of all frames: the first one's, without a
        size.
        """
        config, shape = self.config, self.folder.shape
        if shape is None and config.size is not None:
            shape = (config.size, config.size, 3)
        while pending and shape is None:
            chunks = pending[0].chunks()
            try:
                shape = contract_for(next(iter(chunks)).shape[1:], None, config.crop).shape
            except (DamagedRecordingError, StopIteration) as error:
                reason = str(error) or f"{pending[0].name} has no frames"
                self.failures.append((pending.pop(0), Failed(reason, damaged=True)))
            finally:
                close_chunks(chunks)
        return pending, shape

    def _extract(
        self, pending: list[Recording], shape: tuple[int, ...], bar: "tqdm[Any]", stopped: Callable[[], bool]
    ) -> bool:
        """Extract the pending recordings; whether all of them have been."""
        workers = min(self.config.workers or cores(), len(pending))
        tasks = self._tasks(pending, shape, max(1, cores() // workers))
        with contextlib.closing(run_tasks(tasks, workers, bar.update, stopped)) as outcomes:
            ended = 0
            for task, outcome in outcomes:
                ended += 1
                if isinstance(outcome, Failed):
                    self.failures.append((task.recording, outcome))
                else:
                    self.folder.add(task.recording.name, outcome, task.folder)
                    for note in outcome["notes"]:
                        self.say(note)
        return ended == len(pending)

    def _tasks(self, pending: Iterable[Recording], shape: tuple[int, ...], threads: int) -> Iterator[Task]:
        config = self.config
        taken = {
            name: entry["files"][0]["file"].removesuffix(".npy").removesuffix("_000" if len(entry["files"]) > 1 else "")
            for name, entry in self.folder.entries.items()
            if entry["files"]
        }
        stems = file_stems([recording.name for recording in self.recordings], taken)
        filters = {name: getattr(config, name) for name in ("stride", "drop_black", "drop_duplicates", "limit")}
        for recording in pending:
            # With a worker per core, a decoder with a thread per core would only be in the others' way.
            if any(field.name == "threads" for field in dataclasses.fields(recording)):
                recording = dataclasses.replace(recording, threads=threads)  # pyright: ignore[reportCallIssue]
            stem = stems[recording.name]
            yield Task(
                recording,
                self._found_at(recording.source),
                stem,
                self.folder.stage(stem),
                shape,
                config.size,
                config.crop,
                filters,
                config.frames_per_file,
                threads,
            )

    def _found_at(self, source: Path) -> str:
        """Where a source is, below what was searched, so that the index holds when all of it is moved."""
        for searched in self.config.recordings:
            if source != searched and source.is_relative_to(searched):
                return source.relative_to(searched).as_posix()
        return source.name

    def _bar(self, pending: Iterable[Recording], progress_bar: bool | None) -> "tqdm[Any]":
        """A bar over the frames that are read; without an end where a recording does not tell how many it has."""
        shown = sys.stderr.isatty() if progress_bar is None else progress_bar
        total: int | None = 0
        for recording in pending if shown else ():  # it means opening each of them
            with contextlib.suppress(DamagedRecordingError):  # said when its turn comes
                frames = recording.expected_frames
                if frames is None:
                    total = None
                    break
                total += frames
        return tqdm(total=total, unit="frame", desc="extract", disable=not shown)

    def _tell(self, result: ExtractResult) -> None:
        for what, listed in (("damaged, and nothing of it kept", result.damaged), ("failed", result.failed)):
            for bad in listed:
                self.say(f"{what}: {bad.name}: {bad.reason}")
        for name in result.empty:
            self.say(f"empty: of {name} no frame was left to keep")
        state = f"{result.recordings:,} recording(s), {result.frames:,} frames in {result.folder}"
        if result.interrupted:
            self.say(f"interrupted: {state}; the same command goes on")
        else:
            self.say(f"{state} ({result.new_frames:,} of them new)")
        if result.frames:
            self.say(f"next: latent-obs train-vae --frames {result.folder}")
