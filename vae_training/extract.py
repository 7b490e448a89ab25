"""Turn recordings (videos, demonstrations, pictures, arrays) into the `.npy` frame files that the CVAE is trained on.

One pass, a file or more per recording, and an index of what came from where (see `frame_index`). Safe to interrupt in any
way and to start again: finished recordings are passed over, an unfinished one is begun again.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from latent_obs.errors import InputError
from latent_obs.interrupt import GracefulStop
from latent_obs.processor import cores
from vae_training.extract_config import ExtractConfig
from vae_training.extract_recording import NO_ROOM, Task, close_chunks, contract_for
from vae_training.extract_workers import Failed, run_tasks
from vae_training.frame_index import FrameFolder, file_stems
from vae_training.recordings import Damaged, Recording, find_recordings
from vae_training.recordings.base import DamagedRecordingError


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


def extract(config: ExtractConfig, *, progress_bar: bool | None = None, say: Callable[[str], object] = print) -> ExtractResult:
    """Extract the frames of recordings to a folder that `get_datasets` opens.

    Ctrl-C ends it early: finished recordings are kept, and the same call later goes on with the others. Of a recording that
    is damaged nothing is kept, for a split by recording must not rest on a piece of one; it is named, and the others go on.

    Args:
        config: What to extract.
        progress_bar: Whether to show one; None shows it in a terminal only.
        say: Where messages go.

    Returns:
        What was done.

    Raises:
        InputError: There are no recordings; the folder was begun with other settings, holds other frames or is in use; a
            source has changed since; the disk is full (finished recordings are kept).
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
        if error.errno not in NO_ROOM:
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
            empty=tuple(name for name, entry in sorted(folder.entries.items()) if name in names and not entry["frames"]),
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
        """The recordings that begin well enough to be read, and the shape of all frames: the first one's, without a size."""
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

    def _extract(self, pending: list[Recording], shape: tuple[int, ...], bar: "tqdm[Any]", stopped: Callable[[], bool]) -> bool:
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
                recording, self._found_at(recording.source), stem, self.folder.stage(stem), shape, config.size, config.crop,
                filters, config.frames_per_file, threads,
            )  # fmt: skip

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
