"""Turn recordings (videos, demonstrations, pictures, arrays) into the `.npy` frame files that the CVAE is trained on.

One pass over each recording, one or more files for it, and an index of what came from where (`extraction.index`). It
can be interrupted or killed at any time: the next run skips finished recordings and begins an unfinished one again.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from tqdm import tqdm
from tyro.conf import Positional

from latent_obs.pixels import Crop
from latent_obs.util.atomic import GracefulStop
from latent_obs.util.device import cores
from latent_obs.util.errors import InputError, check_choice, check_count
from vae_training.extraction.index import FrameFolder, file_stems
from vae_training.extraction.one_recording import Task, contract_for, disk_full_error
from vae_training.extraction.pool import Failure, run_tasks
from vae_training.extraction.readers.base import Damaged, DamagedRecordingError, Recording
from vae_training.extraction.readers.find import find_recordings
from vae_training.extraction.readers.vpt import Gui, VptOptions

#: Fields that do not decide what a frame file holds.
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
    """Folder of the frame files. A folder that was begun with the same settings is continued."""
    size: int | None = 64
    """Side of the frames in pixels. None keeps the recordings' own size, which must then be the same for all."""
    crop: Crop = "none"
    """none squeezes another aspect ratio into the square (nothing is lost); center-square cuts the longer side."""
    stride: int = 1
    """Take every n-th frame."""
    drop_duplicates: float | None = None
    """Drop frames that differ from the last kept one by less than so many levels of 255, on average over a small gray
    version; 0.5 drops frames that only look still. None keeps all."""
    drop_black: bool = False
    """Drop frames in which no pixel is brighter than almost black."""
    limit: int | None = None
    """Most frames to keep of each recording."""
    workers: int | None = None
    """Processes, each with one recording at a time; None is one per core. 1 does all in this process, with threads that
    resize."""
    frames_per_file: int = 50_000
    """Longest file; a longer recording is cut into name_000.npy, name_001.npy, ..."""
    drop_null_actions: bool = False
    """Drop the frames in which the player did nothing, where the recording has actions (VPT)."""
    gui: Gui = "keep"
    """Keep or drop the frames with an open menu, where the recording marks them (VPT)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "recordings", tuple(Path(path) for path in self.recordings))
        object.__setattr__(self, "out", Path(self.out))
        if not self.recordings:
            raise InputError("recordings is empty; name files, or folders that are searched for them")
        for name in ("size", "stride", "limit", "workers", "frames_per_file"):
            if getattr(self, name) is not None or name in ("stride", "frames_per_file"):
                check_count(name, getattr(self, name))
        check_choice("crop", self.crop, get_args(Crop))
        check_choice("gui", self.gui, get_args(Gui))
        if self.drop_duplicates is not None and not 0 < self.drop_duplicates <= 255:
            raise InputError(f"drop_duplicates must be above 0 and at most 255, or None; got {self.drop_duplicates!r}")

    def settings(self) -> dict[str, Any]:
        """The fields that decide what a frame file holds, as plain values for `frames.json`."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_SETTINGS}


@dataclass(frozen=True)
class ExtractResult:
    """What a run did, and what the folder holds now."""

    folder: Path
    recordings: int
    """Finished recordings in the folder."""
    frames: int
    """Frames of these."""
    new_frames: int
    """Frames that this run added."""
    skipped: int
    """Recordings that were finished already."""
    empty: tuple[str, ...]
    """Names of recordings of which no frame was kept."""
    damaged: tuple[Damaged, ...]
    """Recordings that cannot be read, or not to their end; nothing of them was kept."""
    failed: tuple[Damaged, ...]
    """Recordings whose worker process died; the next run tries them again."""
    interrupted: bool
    """Whether it was stopped before all recordings were processed."""


def extract(
    config: ExtractConfig, *, progress_bar: bool | None = None, say: Callable[[str], object] = print
) -> ExtractResult:
    """Extract the frames of recordings to a folder that `get_datasets` opens.

    Ctrl-C ends it early: finished recordings are kept, and the same call later continues with the others. Of a damaged
    recording nothing is kept, because a split by recording must not rest on a piece of one; it is named, and the others
    are extracted.

    Args:
        config: What to extract.
        progress_bar: Whether to show one; None shows it in a terminal only.
        say: Where messages go.

    Raises:
        InputError: There are no recordings; the folder was begun with other settings, holds other frames or is in use;
            a source has changed since; the disk is full (finished recordings are kept).
        MissingExtraError: A package that reads such recordings is not installed.
    """
    recordings, unreadable = find_recordings(config.recordings, vpt=VptOptions(config.drop_null_actions, config.gui))
    for recording in recordings:
        if config.out.resolve() in (recording.source.resolve(), *recording.source.resolve().parents):
            raise InputError(f"out {config.out} contains the recording {recording.source}; choose another --out")
    try:
        with FrameFolder(config.out, config.settings(), say) as folder:
            return _Extraction(config, folder, recordings, say).run(unreadable, progress_bar)
    except OSError as error:
        if (full := disk_full_error(error, config.out)) is None:
            raise
        raise full from error


class _Extraction:
    """One run over a folder that is locked."""

    def __init__(
        self, config: ExtractConfig, folder: FrameFolder, recordings: list[Recording], say: Callable[[str], object]
    ) -> None:
        self.config, self.folder, self.recordings, self.say = config, folder, recordings, say
        self.failures: list[tuple[Recording, Failure]] = []

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
        empty = [name for name, entry in sorted(folder.entries.items()) if name in names and not entry["frames"]]
        result = ExtractResult(
            folder=folder.path,
            recordings=len(folder.entries),
            frames=folder.frames,
            new_frames=folder.frames - frames_before,
            skipped=skipped,
            empty=tuple(empty),
            damaged=tuple(sorted(damaged, key=lambda d: d.name)),
            failed=tuple(sorted(failed, key=lambda d: d.name)),
            interrupted=interrupted,
        )
        self._report(result)
        return result

    def _pending(self) -> list[Recording]:
        """The recordings that are not finished; unreadable ones are noted as failures."""
        pending, names = [], {recording.name for recording in self.recordings}
        for recording in self.recordings:
            fingerprint = recording.fingerprint()
            if self.folder.is_done(recording.name, fingerprint):
                continue
            if (other := self.folder.other_name_of(fingerprint, recording.source, names)) is not None:
                self.say(f"{recording.name} is in {self.folder.path} already, under the name {other}")
                continue
            pending.append(recording)
        return pending

    def _with_shape(self, pending: list[Recording]) -> tuple[list[Recording], tuple[int, ...] | None]:
        """The shape of all frames: by `size`, or that of the first recording that can be read."""
        config, shape = self.config, self.folder.shape
        if shape is None and config.size is not None:
            shape = (config.size, config.size, 3)
        while pending and shape is None:
            try:
                shape = contract_for(next(pending[0].chunks()).shape[1:], None, config.crop).shape
            except (DamagedRecordingError, StopIteration) as error:
                reason = str(error) or f"{pending[0].name} has no frames"
                self.failures.append((pending.pop(0), Failure(reason, damaged=True)))
        return pending, shape

    def _extract(
        self, pending: list[Recording], shape: tuple[int, ...], bar: "tqdm[Any]", stopped: Callable[[], bool]
    ) -> bool:
        """Extract the pending recordings; returns whether all of them were processed."""
        workers = min(self.config.workers or cores(), len(pending))
        tasks, ended = self._tasks(pending, shape, max(1, cores() // workers)), 0
        with contextlib.closing(run_tasks(tasks, workers, bar.update, stopped)) as outcomes:
            for task, outcome in outcomes:
                ended += 1
                if isinstance(outcome, Failure):
                    self.failures.append((task.recording, outcome))
                else:
                    self.folder.add(task.recording.name, outcome, task.folder)
                    for note in outcome["notes"]:
                        self.say(note)
        return ended == len(pending)

    def _tasks(self, pending: Sequence[Recording], shape: tuple[int, ...], threads: int) -> list[Task]:
        config = self.config
        taken = {
            name: entry["files"][0]["file"].removesuffix(".npy").removesuffix("_000" if len(entry["files"]) > 1 else "")
            for name, entry in self.folder.entries.items()
            if entry["files"]
        }
        stems = file_stems([recording.name for recording in self.recordings], taken)
        return [
            Task(
                # With a worker per core, a decoder with a thread per core would only slow down the other workers.
                dataclasses.replace(recording, threads=threads),
                self._found_at(recording.source),
                stems[recording.name],
                self.folder.stage(stems[recording.name]),
                shape,
                config.size,
                config.crop,
                {name: getattr(config, name) for name in ("stride", "drop_black", "drop_duplicates", "limit")},
                config.frames_per_file,
                threads,
            )
            for recording in pending
        ]

    def _found_at(self, source: Path) -> str:
        """A source's place below the folder that was searched, so that the index holds when that folder is moved."""
        for searched in self.config.recordings:
            if source != searched and source.is_relative_to(searched):
                return source.relative_to(searched).as_posix()
        return source.name

    def _bar(self, pending: Sequence[Recording], progress_bar: bool | None) -> "tqdm[Any]":
        """A bar over the frames that are read; without a total where a recording does not state its length."""
        shown = sys.stderr.isatty() if progress_bar is None else progress_bar
        expected = [recording.expected_frames for recording in pending] if shown else []  # opens each of them
        stated = [frames for frames in expected if frames is not None]
        total = sum(stated) if len(stated) == len(expected) else None
        return tqdm(total=total, unit="frame", desc="extract", disable=not shown)

    def _report(self, result: ExtractResult) -> None:
        for what, listed in (("damaged, and nothing of it kept", result.damaged), ("failed", result.failed)):
            for bad in listed:
                self.say(f"{what}: {bad.name}: {bad.reason}")
        for name in result.empty:
            self.say(f"empty: of {name} no frame was left to keep")
        state = f"{result.recordings:,} recording(s), {result.frames:,} frames in {result.folder}"
        if result.interrupted:
            self.say(f"interrupted: {state}; the same command continues")
        else:
            self.say(f"{state} ({result.new_frames:,} of them new)")
        if result.frames:
            self.say(f"next: latent-obs train-vae --frames {result.folder}")
