"""Turn recordings (videos, demonstrations, pictures, arrays) into the `.npy` frame files that the CVAE is trained on.

One pass over each recording, one or more files for it, and an index of what came from where (`extraction.index`). It
can be interrupted or killed at any time: the next run skips finished recordings and begins an unfinished one again.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from latent_obs.util.atomic import GracefulStop
from latent_obs.util.device import cores
from latent_obs.util.errors import InputError
from latent_obs.util.progress import ProgressBar, print_now
from latent_obs.util.ray import RayExecutor, joined
from latent_obs.util.words import counted
from vae_training.data.frames import explain_disk_full, not_finished
from vae_training.extraction.config import ExtractConfig
from vae_training.extraction.index import FrameFolder
from vae_training.extraction.readers.base import Damaged, DamagedRecordingError, Recording
from vae_training.extraction.readers.find import find_recordings
from vae_training.extraction.readers.remote import url_of
from vae_training.extraction.readers.vpt import VptOptions
from vae_training.extraction.worker import Task, contract_for, run_tasks


@dataclass(frozen=True)
class ExtractResult:
    """What a run did, and what the folder holds now; of a run with a shard, what concerns the shard."""

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
    """Recordings that cannot be read, or not to their end, or whose worker process died; nothing of them was kept."""
    interrupted: bool
    """Whether it was stopped before all recordings were processed."""


def extract(
    config: ExtractConfig, *, progress_bar: bool | None = None, say: Callable[[str], object] = print_now
) -> ExtractResult:
    """Extract the frames of recordings to a folder that `get_datasets` opens.

    Ctrl-C ends it early: finished recordings are kept, and the same call later continues with the others. Of a damaged
    recording nothing is kept, because a split by recording must not rest on a piece of one; it is named, and the others
    are extracted.

    Args:
        config: What to extract.
        progress_bar: Show it; None shows it in a terminal, and elsewhere a line now and then.
        say: Where messages go.

    Raises:
        InputError: There are no recordings; the folder was begun with other settings, holds other frames or is in use;
            a source has changed since; the cluster cannot be joined, or a node of it cannot be used.
        DiskFullError: The disk is full; finished recordings are kept.
        MissingExtraError: A package that reads such recordings, or Ray, is not installed.
    """
    options = VptOptions(config.drop_null_actions, config.gui)
    recordings, damaged = find_recordings(config.recordings, vpt=options, camera=config.camera, say=say)
    out = Path(os.path.realpath(config.out))  # Path.resolve raises where links go in a circle
    for found in dict.fromkeys(recording.source for recording in recordings):
        source = Path(os.path.realpath(found))
        if out in (source, *source.parents) and not url_of(found):
            raise InputError(f"out {config.out} contains the recording {found}; choose another --out")
    all_recordings, names = recordings, {recording.name for recording in recordings}
    shard = config.shard_of
    if shard:
        recordings = [recording for recording in recordings if _is_of(recording.name, *shard)]
        damaged = [bad for bad in damaged if _is_of(bad.name, *shard)]
        say(f"shard {config.shard}: {len(recordings):,} of {counted(len(names), 'recording')}")
    kept = "All finished recordings are kept; free some space, and give the same command again"
    with (
        joined(config.engine, config.address) as ray,
        explain_disk_full(config.out, kept),
        FrameFolder.open(config.out, config.settings(), say, shard) as folder,
    ):
        pending, skipped, frames_before, ended = list[Recording](), 0, folder.frames, 0
        for recording in recordings:
            try:
                if folder.holds(recording, names):
                    skipped += 1
                else:
                    pending.append(recording)
            except DamagedRecordingError as error:
                damaged.append(Damaged(recording.name, recording.source, str(error)))
        if skipped:
            say(f"{folder.path} holds {skipped:,} of {len(recordings):,} recordings already")
        workers = max(1, min(config.workers or cores(), len(pending)))
        if pending:
            _settle_shape(config, folder, all_recordings)
        threads, cluster = max(1, cores() // workers), None
        if ray and pending:
            sources = {path if path.is_dir() else path.parent for path in config.recordings if not url_of(path)}
            cluster, threads = RayExecutor(ray, folder.staging, sources, at_once=config.workers), 1
            say(f"{counted(len(pending), 'recording')} on the cluster, at most {cluster.at_once} at once")
        tasks = _tasks(config, folder, pending, folder.stems(names), threads)
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(KeyboardInterrupt))  # a second Ctrl-C
            stop, bar = stack.enter_context(GracefulStop()), stack.enter_context(_bar(pending, progress_bar))
            outcomes = run_tasks(tasks, workers, bar.update, lambda: stop.requested, cluster)
            for task, outcome in stack.enter_context(contextlib.closing(outcomes)):
                ended += 1
                if isinstance(outcome, Damaged):
                    damaged.append(outcome)
                    continue
                folder.add(task.recording.name, outcome, task.folder)
                for note in outcome["notes"]:
                    say(note)
        damaged.sort(key=lambda bad: bad.name)
        folder.damaged = {bad.name: {"source": _found_at(bad, config), "reason": bad.reason} for bad in damaged}
        folder.write(complete=ended == len(pending))
    for bad in damaged:
        say(f"damaged, and nothing of it kept: {bad.name}: {bad.reason}")
    empty = sorted(name for name, entry in folder.entries.items() if name in names and not entry["frames"])
    for name in empty:
        say(f"empty: of {name} no frame was left to keep")
    result = ExtractResult(
        folder=folder.path,
        recordings=len(folder.entries),
        frames=folder.frames,
        new_frames=folder.frames - frames_before,
        skipped=skipped,
        empty=tuple(empty),
        damaged=tuple(damaged),
        interrupted=ended < len(pending),
    )
    state = f"{counted(result.recordings, 'recording')}, {result.frames:,} frames in {folder.path}"
    interrupted = f"interrupted: {state}; the same command continues"
    say(interrupted if result.interrupted else f"{state} ({result.new_frames:,} of them new)")
    if unfinished := not_finished(folder.path):
        if shard:
            say(f"not complete: {unfinished}")
    elif result.frames:
        say(f"next: latent-obs train-vae --frames {folder.path}")
    return result


def _is_of(name: str, number: int, of: int) -> bool:
    """Whether the recording of a name is in that part of all, by a hash that is the same on every machine."""
    return int(hashlib.sha256(os.fsencode(name)).hexdigest(), 16) % of == number - 1


def _settle_shape(config: ExtractConfig, folder: FrameFolder, recordings: list[Recording]) -> None:
    """The frames' shape follows from `size`, or from the first that can be read: of all, so that shards agree."""
    shape = folder.shape or ((config.size, config.size, 3) if config.size else ())
    for recording in recordings:
        if not shape:
            with (
                contextlib.suppress(DamagedRecordingError, StopIteration),
                recording.opened(folder.staging) as opened,
                contextlib.closing(opened.chunks()) as chunks,
            ):
                shape = contract_for(next(chunks).shape[1:], None, config.crop).shape
    if shape:
        folder.settle_shape(shape)


def _tasks(
    config: ExtractConfig, folder: FrameFolder, pending: list[Recording], stems: Mapping[str, str], threads: int
) -> list[Task]:
    """What is to be done for each recording."""
    # With a worker per core, a decoder with a thread per core would only slow down the other workers.
    return [
        Task(
            recording=dataclasses.replace(recording, threads=threads),
            source=_found_at(recording, config),
            folder=folder.staging / stems[recording.name],
            shape=folder.shape or (),
            settings=config.settings(),
        )
        for recording in pending
    ]


def _found_at(found: Recording | Damaged, config: ExtractConfig) -> str:
    """Its place below the folder that was searched, so that the index holds when that is moved; or its address."""
    if url := url_of(found.source):
        return re.sub(r"//[^/@]*:[^/@]*@", "//", url)  # without a password
    place = found.source.name
    for searched in config.recordings:
        if found.source != searched and found.source.is_relative_to(searched):
            place = found.source.relative_to(searched).as_posix()
            break
    return f"{place}/{found.part}" if found.part else place


def _bar(pending: list[Recording], progress_bar: bool | None) -> ProgressBar:
    """A bar over the frames that are read; without a total where a recording does not state its length."""
    expected = [] if progress_bar is False else [recording.expected_frames for recording in pending]  # opens each
    total = None if None in expected else sum(filter(None, expected))
    return ProgressBar(total=total, unit="frame", desc="extract", shown=progress_bar)
