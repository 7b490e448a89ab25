"""What probes predict: named scalars per frame, sorted into amounts and classes."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from latent_obs.util.errors import InputError
from vae_training.extraction.readers.arrays import npz_headers, read_npz
from vae_training.extraction.readers.base import DamagedRecordingError
from vae_training.report.probes.scores import FIT, HELD_OUT, VALIDATION, ProbeSplit

Kind = Literal["continuous", "binary", "categorical"]
_MOST_CLASSES = 10
_FEWEST_LEARN, _FEWEST_SCORED = 50, 20  # frames where an amount must be known, to learn from and to be scored on
_FEWEST_OF_CLASS = 10  # of each class, to learn from and to be scored on
_FEWEST_VALIDATION = 10
_OF_OBJECT = re.compile(r"(object\$.+)\.(?!visible$)[^.]+")


@dataclass(frozen=True, eq=False)
class Target:
    """One scalar, such as "state$HEALTH", and the rows of the split that take part."""

    name: str
    kind: Kind
    values: NDArray[np.float64]  # over all rows: amounts, or numbers of classes; anything where it is not known
    classes: tuple[float, ...]  # the value that each class stands for; empty for amounts
    fit: NDArray[np.intp]  # rows to learn from
    validation: NDArray[np.intp]  # rows that choose a probe's strength
    held_out: NDArray[np.intp]  # rows to score on

    @property
    def outputs(self) -> int:
        """Numbers that a probe puts out: 1 for an amount, else one for each class."""
        return max(1, len(self.classes))

    def labels(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Numbers of the classes of some rows."""
        return self.values[rows].astype(np.intp)


def prepare_targets(
    targets: Mapping[str, Mapping[str, NDArray[Any]]], split: ProbeSplit
) -> tuple[list[Target], dict[str, str]]:
    """Sort targets into amounts and classes, and leave out those that no probe can be scored on.

    Booleans, values with only two levels, and whole numbers of at most ten levels are classes; all else are amounts.
    NaN means not known. A number of an object ("object$X.x") counts only in frames where "object$X.visible" is not 0.
    Classes that are rare among the frames to learn from or to be scored on are passed over.

    Args:
        targets: For each recording, its targets: arrays of its length. A recording may lack one: it is not known there.
        split: Frames, and what they are for.

    Returns:
        Targets to probe in name order, and for each one left out the reason.

    Raises:
        InputError: A recording is unknown, or an array is no scalar per frame of its recording.
    """
    if strange := sorted(set(targets) - set(split.frames)):
        raise InputError(f"targets are given for {strange}, and the recordings are {sorted(split.frames)}")
    columns: dict[str, NDArray[np.float64]] = {}
    start = 0
    for recording, rows in split.rows.items():
        for name, given in targets.get(recording, {}).items():
            array, frames = np.asarray(given), split.frames[recording]
            if array.shape != (frames,) or array.dtype.kind not in "biuf":
                raise InputError(
                    f"target {name!r} of {recording} must be a number for each of its {frames} frames, got "
                    f"{array.dtype} {array.shape}"
                )
            column = columns.setdefault(name, np.full(len(split.part), np.nan))
            column[start : start + len(rows)] = array[rows]
        start += len(rows)
    kept: list[Target] = []
    left_out: dict[str, str] = {}
    for name, values in sorted(columns.items()):
        known, where = np.isfinite(values), "known"
        kind: Kind | None = None
        if (match := _OF_OBJECT.fullmatch(name)) and (seen := columns.get(f"{match[1]}.visible")) is not None:
            known, where = known & (np.nan_to_num(seen) > 0.5), "visible"
            kind = "continuous"
        made = _target(name, values, known, where, split, kind)
        if isinstance(made, str):
            left_out[name] = made
        else:
            kept.append(made)
    return kept, left_out


def _target(
    name: str, values: NDArray[np.float64], known: NDArray[np.bool_], where: str, split: ProbeSplit, kind: Kind | None
) -> Target | str:
    """The target, or the reason to leave it out."""
    learn, scored = known & (split.part <= VALIDATION), known & (split.part == HELD_OUT)
    levels = np.unique(values[learn | scored])
    if len(levels) < 2:
        return f"constant ({levels[0]:g})" if len(levels) else f"{where} in no frame"
    classes: tuple[float, ...] = ()
    if kind is None and (len(levels) == 2 or (len(levels) <= _MOST_CLASSES and (levels == np.round(levels)).all())):
        counts = {level: ((values[learn] == level).sum(), (values[scored] == level).sum()) for level in levels}
        classes = tuple(float(level) for level in levels if min(counts[level]) >= _FEWEST_OF_CLASS)
        if len(classes) < 2:
            listed = ", ".join(f"{level:g}: {a} and {b}" for level, (a, b) in counts.items())
            needed = f"{_FEWEST_OF_CLASS} frames each to learn from and to be scored on"
            return f"fewer than two classes with {needed} ({listed})"
        kind = "binary" if len(classes) == 2 else "categorical"
        usable = np.isin(values, classes)
        learn, scored = learn & usable, scored & usable
        values = np.searchsorted(classes, np.where(usable, values, classes[0])).astype(np.float64)
    elif learn.sum() < _FEWEST_LEARN or scored.sum() < _FEWEST_SCORED:
        return (
            f"{where} in {int(learn.sum())} frame(s) to learn from and {int(scored.sum())} to be scored on, fewer than "
            f"{_FEWEST_LEARN} and {_FEWEST_SCORED}"
        )
    for mask, what in ((learn, "to learn from"), (scored, "held out")):
        if np.ptp(values[mask]) == 0:
            return f"constant in the recordings {what}"
    fit, validation = _tuned(np.flatnonzero(learn), values, split, len(classes))
    return Target(name, kind or "continuous", values, classes, fit, validation, np.flatnonzero(scored))


def _tuned(
    learn: NDArray[np.intp], values: NDArray[np.float64], split: ProbeSplit, classes: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows to fit and rows to tune on; every fifth block of frames tunes where a part's recordings hold too little."""
    fit, validation = learn[split.part[learn] == FIT], learn[split.part[learn] == VALIDATION]
    if all(
        len(rows) >= _FEWEST_VALIDATION and len(np.unique(values[rows])) >= (classes or 2) for rows in (fit, validation)
    ):
        return fit, validation
    # It only tunes, the scores are on other recordings: a weaker choice of strength, and no leak.
    block = np.arange(len(learn)) * 25 // len(learn)
    for label in range(classes):  # the blocks of each class apart, so that both parts have all of them
        rows = np.flatnonzero(values[learn] == label)
        block[rows] = np.arange(len(rows)) * 5 // len(rows)
    return learn[block % 5 != 4], learn[block % 5 == 4]


def load_targets(
    file: str | os.PathLike[str], frames_by_recording: Mapping[str, NDArray[Any]]
) -> dict[str, dict[str, NDArray[Any]]]:
    """Targets that a user gives, from an `.npz` file.

    Args:
        file: Its arrays are named by target, each with an entry for every frame of all recordings, in the order in
            which they are given; or by "recording/target", with an entry for every frame of that recording. An array
            (N, k) is k targets, "name.0", "name.1" ….
        frames_by_recording: The recordings; only their lengths matter.

    Returns:
        For each recording its targets, for `probe`.

    Raises:
        InputError: The file is missing or damaged, or an array has another length or no numbers.
    """
    path = Path(file)
    try:
        headers = npz_headers(path)
        if objects := [name for name, header in headers.items() if header.dtype.hasobject]:
            raise InputError(f"{path} must hold numbers, got Python objects in {objects}, whose loading can run code")
        arrays = read_npz(path, list(headers))
    except (DamagedRecordingError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as targets ({error}). Make it with numpy.savez(file, name=values)"
        ) from None
    lengths = {name: len(frames) for name, frames in frames_by_recording.items()}
    targets: dict[str, dict[str, NDArray[Any]]] = {name: {} for name in lengths}
    for key, array in arrays.items():
        recording, slash, name = key.rpartition("/")
        scope = lengths
        if slash and recording in lengths:
            scope = {recording: lengths[recording]}
        else:
            name = key
        wanted = sum(scope.values())
        if array.ndim not in (1, 2) or len(array) != wanted or array.dtype.kind not in "biuf":
            raise InputError(
                f"{path}: {key!r} must hold a number for each of the {wanted} frames of {', '.join(scope)}, got "
                f"{array.dtype} {array.shape}"
            )
        columns = {name: array} if array.ndim == 1 else {f"{name}.{i}": column for i, column in enumerate(array.T)}
        for target, column in columns.items():
            pieces = np.split(column, np.cumsum(list(scope.values()))[:-1])
            for place, piece in zip(scope, pieces, strict=True):
                targets[place][target] = piece
    return targets
