"""Set recordings aside to measure on: whole ones, never frames of what is trained on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_obs.errors import InputError
from vae_training.datasets import name_of

_HELD_OUT_SHARE = 0.1
_GAP_SHARE, _GAP_FRAMES = 0.01, 100


def split_held_out(
    datasets: Sequence[NDArray[np.uint8]], held_out: int | None = None
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """Set recordings aside to measure on, which training never sees.

    The split is by recording (file) and never by frame: neighbouring frames of a video are near-duplicates, so a
    held-out frame whose neighbours were trained on says nothing about new ones.

    Where `latent-obs frames extract` made the files, a long recording may be several of them; its index (`frames.json`) tells,
    and a recording is held out whole or not at all.

    With a single recording there is no other one. Its last 10% (at least one frame) are held out, with a gap of 1% (at
    least one frame, at most 100) before them that neither side gets. That is the lesser evil: place and light are the
    same as in training, so losses on it look better than on a new recording, but the nearest duplicates are gone; a
    random tenth of the frames would have a twin in training for each.

    Args:
        datasets: Arrays from `get_datasets`.
        held_out: How many files to hold out, the last ones (and what else is of the same recordings); a tenth of them, and
            at least one, when not given.

    Returns:
        (train, held_out); with a single recording both are lazy views of it.

    Raises:
        InputError: No file would be left to train on, or `held_out` is not a positive integer.

    Example:
        >>> files = [np.zeros((10, 8, 8, 3), np.uint8) for _ in range(4)]
        >>> [len(part) for part in split_held_out(files)]
        [3, 1]
        >>> [len(part[0]) for part in split_held_out([np.zeros((1000, 8, 8, 3), np.uint8)])]
        [890, 100]
    """
    datasets = list(datasets)
    if not datasets:
        raise InputError("no datasets to split; open them with get_datasets(folder)")
    if held_out is not None and (isinstance(held_out, bool) or not isinstance(held_out, int) or held_out < 1):
        raise InputError(f"held_out must be a positive number of files, got {held_out!r}")
    if len(datasets) == 1 and held_out in (None, 1):
        whole = datasets[0]
        tail = max(1, int(len(whole) * _HELD_OUT_SHARE))
        gap = min(_GAP_FRAMES, max(1, int(len(whole) * _GAP_SHARE)))
        if len(whole) <= tail + gap:
            raise InputError(f"{name_of(whole)} has {len(whole)} frame(s), too few to hold any out. Record more frames")
        return [whole[: -tail - gap]], [whole[-tail:]]
    count = max(1, round(len(datasets) * _HELD_OUT_SHARE)) if held_out is None else held_out
    if count >= len(datasets):
        raise InputError(
            f"held_out {count}: of {len(datasets)} file(s) none would be left to train on; hold out fewer, or record"
        )
    recordings = _recordings_of(datasets)
    tested = set(recordings[-count:])
    training = [dataset for dataset, recording in zip(datasets, recordings, strict=True) if recording not in tested]
    if not training:  # pieces of one recording: the last ones, with a gap before them
        *training, before = datasets[:-count]
        gap = min(_GAP_FRAMES, max(1, int(len(before) * _GAP_SHARE)))
        training += [before[:-gap]] if len(before) > gap else []
        if not training:
            raise InputError(f"{name_of(before)} has {len(before)} frame(s), too few to train on. Record more frames")
        return training, datasets[-count:]
    return training, [dataset for dataset, recording in zip(datasets, recordings, strict=True) if recording in tested]


def split_note(datasets: Sequence[NDArray[Any]], training: Sequence[NDArray[Any]], held_out: Sequence[NDArray[Any]]) -> str:
    """What to know of a split whose held-out frames are of a recording that is trained on too; empty for any other.

    Example:
        >>> files = [np.zeros((1000, 8, 8, 3), np.uint8)]
        >>> print(split_note(files, *split_held_out(files)))
        There is one recording only: its last 100 frames are held out, and the 10 before them are used for nothing. Losses on
        them look better than they would on another recording; record or extract a second one to know.
    """
    recordings = _recordings_of(datasets)
    if len(set(recordings)) > 1:
        return ""
    tested, gap = sum(map(len, held_out)), sum(map(len, datasets)) - sum(map(len, training)) - sum(map(len, held_out))
    return (
        f"There is one recording only: its last {tested:,} frames are held out, and the {gap:,} before them are used for "
        "nothing. Losses on them look better than they would on another recording; record or extract a second one to know."
    )


def _recordings_of(datasets: Sequence[NDArray[Any]]) -> list[tuple[Path, str] | int]:
    """For each array what tells its recording: the name in the index beside its file, else the file itself."""
    indices: dict[Path, dict[str, str]] = {}
    recordings: list[tuple[Path, str] | int] = []
    for dataset in datasets:
        filename = getattr(dataset, "filename", None)
        if not filename:
            recordings.append(id(dataset))
            continue
        file = Path(filename)
        if file.parent not in indices:
            indices[file.parent] = _recordings_by_file(file.parent)
        recordings.append((file.parent, indices[file.parent].get(file.name, file.name)))
    return recordings


def _recordings_by_file(folder: Path) -> dict[str, str]:
    """Recording of each frame file, from the index of a folder that was extracted; empty for any other folder.

    Raises:
        InputError: There is an index, and it cannot be read.
    """
    index = folder / "frames.json"
    if not index.is_file():
        return {}
    try:
        recordings = json.loads(index.read_text())["recordings"]
        return {piece["file"]: name for name, entry in recordings.items() for piece in entry["files"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{index} cannot be read ({error}): it tells which files are of one recording. Extract the frames again, or remove "
            "it, and each file counts as a recording"
        ) from None
