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
from latent_obs.util.words import counted
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
                wanted = f"a number for each of its {frames} frames"
                raise InputError(f"target {name!r} of {recording} must be {wanted}, got {array.dtype} {array.shape}")
            column = columns.setdefault(name, np.full(len(split.part), np.nan))
            column[start : start + len(rows)] = array[rows]
        start += len(rows)
    kept: list[Target] = []
    left_out: dict[str, str] = {}
    for name, values in sorted(columns.items()):
        match = _OF_OBJECT.fullmatch(name)
        visible = columns.get(f"{match[1]}.visible") if match else None
        made = _target(name, values, visible, split)
        if isinstance(made, str):
            left_out[name] = made
        else:
            kept.append(made)
    return kept, left_out


def _target(
    name: str, values: NDArray[np.float64], visible: NDArray[np.float64] | None, split: ProbeSplit
) -> Target | str:
    """The target, or the reason to leave it out; `visible` says where an object is, whose numbers are amounts."""
    known, where = np.isfinite(values), "known"
    if visible is not None:
        known, where = known & (np.nan_to_num(visible) > 0.5), "visible"
    learn, scored = known & (split.part <= VALIDATION), known & (split.part == HELD_OUT)
    levels = np.unique(values[learn | scored])
    if len(levels) < 2:
        return f"constant ({levels[0]:g})" if len(levels) else f"{where} in no frame"
    kind: Kind = "continuous"
    classes: tuple[float, ...] = ()
    whole = len(levels) <= _MOST_CLASSES and (levels == np.round(levels)).all()
    if visible is None and (len(levels) == 2 or whole):
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
        found = f"{counted(int(learn.sum()), 'frame')} to learn from and {int(scored.sum())} to be scored on"
        return f"{where} in {found}, fewer than {_FEWEST_LEARN} and {_FEWEST_SCORED}"
    for mask, what in ((learn, "to learn from"), (scored, "held out")):
        if np.ptp(values[mask]) == 0:
            return f"constant in the recordings {what}"
    rows = np.flatnonzero(learn)
    fit, validation = (rows[split.part[rows] == part] for part in (FIT, VALIDATION))
    if any(len(r) < _FEWEST_VALIDATION or len(np.unique(values[r])) < max(2, len(classes)) for r in (fit, validation)):
        # Every fifth block tunes instead. The scores are on other recordings: a weaker choice of strength, and no leak.
        block = np.arange(len(rows)) * 25 // len(rows)
        for label in range(len(classes)):  # the blocks of each class apart, so that both parts have all of them
            of_class = np.flatnonzero(values[rows] == label)
            block[of_class] = np.arange(len(of_class)) * 5 // len(of_class)
        fit, validation = rows[block % 5 != 4], rows[block % 5 == 4]
    return Target(name, kind, values, classes, fit, validation, np.flatnonzero(scored))


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
        advice = "Make it with numpy.savez(file, name=values)"
        raise InputError(f"{path} cannot be read as targets ({error}). {advice}") from None
    lengths = {name: len(frames) for name, frames in frames_by_recording.items()}
    targets: dict[str, dict[str, NDArray[Any]]] = {name: {} for name in lengths}
    for key, array in arrays.items():
        recording, _, name = key.rpartition("/")
        scope, name = ({recording: lengths[recording]}, name) if recording in lengths else (lengths, key)
        wanted = sum(scope.values())
        if array.ndim not in (1, 2) or len(array) != wanted or array.dtype.kind not in "biuf":
            expected = f"a number for each of the {wanted} frames of {', '.join(scope)}"
            raise InputError(f"{path}: {key!r} must hold {expected}, got {array.dtype} {array.shape}")
        columns = {name: array} if array.ndim == 1 else {f"{name}.{i}": column for i, column in enumerate(array.T)}
        for target, column in columns.items():
            pieces = np.split(column, np.cumsum(list(scope.values()))[:-1])
            for place, piece in zip(scope, pieces, strict=True):
                targets[place][target] = piece
    return targets
