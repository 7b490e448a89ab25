"""Scores of probes on held-out frames, with intervals by resampling whole recordings, or blocks of frames.

Frames are no independent draws, their recordings are; so an interval resamples those (Efron & Tibshirani 1993, "An
Introduction to the Bootstrap", chapter 8), by giving each a random number of copies.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_obs.util.errors import InputError

_RESAMPLES = 1000
_LEVEL = 0.95
_CHUNK = 4_000_000  # weights in memory at once, for the AUROC

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """A score, and the interval that holds 95% of its values under resampling.

    Attributes:
        metric: "r2", "mae", "balanced_accuracy" or "auroc".
        value: On all held-out frames.
        low: Lower end of the interval.
        high: Upper end; both are None where too few resamples could be scored (a class missing in most of them).
    """

    metric: str
    value: float
    low: float | None
    high: float | None


def score_amounts(truth: Floats, predicted: Floats, units: NDArray[np.intp], seed: int = 0) -> list[Score]:
    """R² and the mean absolute error, which is in the units of the target.

    R² is ``1 - sum((truth - predicted)²) / sum((truth - mean(truth))²)`` with the mean of the held-out frames: 1 is
    perfect, 0 is what guessing their mean would get, and a probe that misleads is below 0.

    Args:
        truth: (n,).
        predicted: (n,).
        units: (n,), what each frame is resampled with.
        seed: Of the resampling.

    Example:
        >>> truth = np.arange(6.0)
        >>> [round(score.value, 2) for score in score_amounts(truth, truth + 1, np.arange(6))]
        [0.66, 1.0]
    """
    labels, unit = np.unique(units, return_inverse=True)
    centred, error = truth - truth.mean(), truth - predicted  # centred: the sums of squares below lose no digits
    columns = (np.ones_like(truth), centred, centred**2, error**2, np.abs(error))
    sums = np.stack([np.bincount(unit, column, len(labels)) for column in columns], 1)  # (units, 5)

    def scores(copies: Floats) -> Floats:
        n, total, squares, squared_error, absolute = (copies @ sums).T
        n = np.where(n > 0, n, np.nan)
        spread = squares - total**2 / n
        spread = np.where(spread > 1e-12 * max(float(squares.max()), 1e-300), spread, np.nan)
        return np.stack([1 - squared_error / spread, absolute / n], 1)

    return _with_intervals(("r2", "mae"), scores, len(labels), seed)


def score_classes(labels: NDArray[np.intp], scores: Floats, units: NDArray[np.intp], seed: int = 0) -> list[Score]:
    """Balanced accuracy, and for two classes the AUROC.

    Balanced accuracy is the mean over the classes of the share of their frames that are told right: however rare a
    class, it counts as much as any other, and guessing gets 1 / classes. The AUROC is the chance that a frame of class
    1 has a higher score than one of class 0 (Hanley & McNeil 1982), ties counting half; guessing gets 0.5.

    Args:
        labels: (n,), numbers of the classes 0 … K-1, each of which occurs.
        scores: (n, K): the highest one is the class told.
        units: (n,), what each frame is resampled with.
        seed: Of the resampling.

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
        >>> [s.value for s in score_classes(np.array([0, 1, 1, 1]), scores, np.arange(4))]
        [0.83..., 1.0]
    """
    kinds = scores.shape[1]
    names, unit = np.unique(units, return_inverse=True)
    cell = unit * kinds + labels
    right = scores.argmax(1) == labels
    total = np.bincount(cell, minlength=len(names) * kinds).reshape(-1, kinds).astype(float)  # (units, classes)
    told = np.bincount(cell, right, len(names) * kinds).reshape(-1, kinds)

    def accuracy(copies: Floats) -> Floats:
        with np.errstate(invalid="ignore"):  # a class that a resample lacks: nan, and the resample does not count
            return ((copies @ told) / (copies @ total)).mean(1, keepdims=True)

    found = _with_intervals(("balanced_accuracy",), accuracy, len(names), seed)
    if kinds == 2:
        margin = scores[:, 1] - scores[:, 0]
        found += _with_intervals(
            ("auroc",), lambda copies: _auroc(labels, margin, unit, copies)[:, None], len(names), seed
        )
    return found


def _auroc(labels: NDArray[np.intp], score: Floats, unit: NDArray[np.intp], copies: Floats) -> Floats:
    """AUROC under several weightings of the units; nan where a class has no weight.

    Args:
        labels: (n,), 0 or 1.
        score: (n,).
        unit: (n,), rows of ``copies.T``.
        copies: (resamples, units).
    """
    order = np.argsort(score, kind="stable")
    labels, unit = labels[order], unit[order]
    ties = np.flatnonzero(np.diff(score[order], prepend=-np.inf) != 0)  # where each run of equal scores starts
    out = np.empty(len(copies))
    step = max(1, _CHUNK // len(score))
    for i in range(0, len(copies), step):
        weight = copies[i : i + step, unit]  # (resamples, n), by rising score
        positive = np.add.reduceat(weight * labels, ties, axis=1)
        negative = np.add.reduceat(weight * (1 - labels), ties, axis=1)
        below = negative.cumsum(1) - negative / 2  # the negatives that each run of positives beats
        with np.errstate(invalid="ignore"):
            out[i : i + step] = (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))
    return out


def _with_intervals(metrics: tuple[str, ...], scores: Callable[[Floats], Floats], units: int, seed: int) -> list[Score]:
    """Scores of all units once, and their percentiles over resamples of the units."""
    value = scores(np.ones((1, units)))[0]
    rng = np.random.default_rng(seed)
    resampled = scores(
        rng.multinomial(units, np.full(units, 1 / units), _RESAMPLES).astype(float)
    )  # (resamples, metrics)
    made: list[Score] = []
    for i, metric in enumerate(metrics):
        usable = resampled[np.isfinite(resampled[:, i]), i]
        ends: list[float | None] = [None, None]
        if units > 1 and len(usable) >= _RESAMPLES / 2:
            ends = [float(end) for end in np.quantile(usable, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])]
        made.append(Score(metric, float(value[i]), ends[0], ends[1]))
    return made


FIT, VALIDATION, HELD_OUT, UNUSED = 0, 1, 2, 3
_HELD_OUT_SHARE, _VALIDATION_SHARE = 0.25, 0.2  # of all frames; of those not held out
_GAP_SHARE, _GAP_FRAMES = 0.01, 100  # left out where one recording has to be cut, as in vae_training.data.frames
_ENOUGH_RECORDINGS = 10  # held out, to resample them; of fewer, blocks of frames are resampled
_BLOCKS = 40  # over the held-out frames


@dataclass(frozen=True, eq=False)
class ProbeSplit:
    """The frames that probes use, and what for.

    Attributes:
        frames: Number of frames of each recording.
        rows: For each recording that has frames the numbers of those used, in order; all arrays below run over these,
            recording after recording.
        part: int8, what each frame is for: FIT, VALIDATION, HELD_OUT or UNUSED.
        unit: Number of the recording or block that a held-out frame is resampled with; -1 for the others.
        fit: Names of the recordings that probes learn from.
        validation: Names of those that choose a probe's strength, or when its training ends.
        held_out: Names of those that it is scored on.
        resampled: What the confidence intervals resample, in words.
        note: What is to be known about this split; empty when nothing is.
    """

    frames: dict[str, int]
    rows: dict[str, NDArray[np.intp]]
    part: NDArray[np.int8]
    unit: NDArray[np.intp]
    fit: tuple[str, ...]
    validation: tuple[str, ...]
    held_out: tuple[str, ...]
    resampled: str
    note: str = ""


def split_recordings(
    frames_by_recording: Mapping[str, NDArray[Any]],
    *,
    held_out: Sequence[str] | None = None,
    seed: int = 0,
    most_frames: int = 20_000,
) -> ProbeSplit:
    """Choose the recordings that probes learn from, are tuned on, and are scored on.

    About a quarter of the frames are held out and a fifth of the others are for validation, in whole recordings drawn
    by the seed. Where only one recording is left to cut, its last part is taken, with a gap of 1% (at most 100 frames)
    before it: the lesser evil, and `note` says so.

    Args:
        frames_by_recording: Name of each recording, and its frames (only their number matters here). Pieces of one
            recording belong under one name.
        held_out: Names of the recordings to score on; drawn when not given. Give those that the encoder never saw.
        seed: Of the draws.
        most_frames: Of more frames than this, every k-th of each recording is used.

    Raises:
        InputError: There are no frames, or `held_out` names recordings that are not there, or leaves none to learn
            from.

    Example:
        >>> split = split_recordings({name: np.zeros(100) for name in "abcdefgh"}, seed=1)
        >>> len(split.fit), len(split.validation), len(split.held_out), split.resampled
        (5, 1, 2, 'blocks of 5 frames')
    """
    names = [name for name, frames in frames_by_recording.items() if len(frames)]
    step = max(1, -(-sum(len(frames_by_recording[name]) for name in names) // most_frames))
    rows = {name: np.arange(0, len(frames_by_recording[name]), step) for name in names}
    if not names:
        raise InputError("no frames to probe; give the frames of some recordings")
    rng = np.random.default_rng(seed)
    order = [names[i] for i in rng.permutation(len(names))]
    part = {name: np.full(len(rows[name]), FIT, np.int8) for name in names}
    notes: list[str] = []
    if held_out is not None:
        tested = _named(held_out, frames_by_recording)
    elif len(names) == 1:
        tested = []
        notes.append(_cut_tail(part, names[0], _HELD_OUT_SHARE, HELD_OUT))
    else:
        tested = _draw(order, rows, _HELD_OUT_SHARE)
    for name in tested:
        if name in part:
            part[name][:] = HELD_OUT
    learning = [name for name in order if name not in tested]
    if len(learning) == 1:
        notes.append(_cut_tail(part, learning[0], _VALIDATION_SHARE, VALIDATION))
    else:
        for name in _draw(learning, rows, _VALIDATION_SHARE):
            part[name][:] = VALIDATION
    unit, resampled = _units([part[name] for name in names], step)
    fit, validation, scored = (
        tuple(name for name in names if (part[name] == which).any()) for which in (FIT, VALIDATION, HELD_OUT)
    )
    return ProbeSplit(
        {name: len(frames) for name, frames in frames_by_recording.items()},
        rows,
        np.concatenate([part[name] for name in names]),
        unit,
        fit,
        validation,
        scored,
        resampled,
        "; ".join(notes),
    )


def _named(held_out: Sequence[str], frames_by_recording: Mapping[str, NDArray[Any]]) -> list[str]:
    strange = sorted(set(held_out) - set(frames_by_recording))
    if strange or not held_out:
        raise InputError(
            f"held_out names {strange or 'no recordings'}; the recordings are {sorted(frames_by_recording)}. Name some of these"
        )
    if not any(len(frames_by_recording[name]) for name in held_out):
        raise InputError(f"the held-out recordings {sorted(held_out)} have no frames; hold out others")
    if not any(len(frames) for name, frames in frames_by_recording.items() if name not in held_out):
        raise InputError("every recording is held out, so probes have nothing to learn from. Hold out fewer")
    return list(held_out)


def _draw(order: list[str], rows: dict[str, NDArray[np.intp]], share: float) -> list[str]:
    """The first recordings of an order that make up about this share of the frames: at least one, never all."""
    wanted, drawn = share * sum(len(rows[name]) for name in order), [order[0]]
    for name in order[1:-1]:
        if sum(len(rows[n]) for n in drawn) + len(rows[name]) / 2 > wanted:
            break
        drawn.append(name)
    return drawn


def _cut_tail(part: dict[str, NDArray[np.int8]], name: str, share: float, to: int) -> str:
    """Give the last frames that a recording is fitted on another part, after a gap."""
    free = np.flatnonzero(part[name] == FIT)
    tail = max(1, int(len(free) * share))
    gap = min(_GAP_FRAMES, max(1, int(len(free) * _GAP_SHARE)))
    if len(free) <= tail + gap:
        raise InputError(f"{name} has {len(free)} frame(s) to learn from, too few to set any aside. Record more")
    part[name][free[-tail:]] = to
    part[name][free[-tail - gap : -tail]] = UNUSED
    what = "scored" if to == HELD_OUT else "tuned"
    return f"probes are {what} on the last {share:.0%} of {name}, as there is no other recording"


def _units(parts: list[NDArray[np.int8]], step: int) -> tuple[NDArray[np.intp], str]:
    """What the bootstrap resamples: recordings where there are enough of them, else blocks of neighbouring frames."""
    counts = [int((part == HELD_OUT).sum()) for part in parts]
    by_recording = sum(count > 0 for count in counts) >= _ENOUGH_RECORDINGS
    length = -(-sum(counts) // _BLOCKS)
    units, first = [], 0
    for part, count in zip(parts, counts, strict=True):
        unit = np.full(len(part), -1, np.intp)
        unit[part == HELD_OUT] = first + (np.zeros(count, np.intp) if by_recording else np.arange(count) // length)
        first = max(first, int(unit.max()) + 1)
        units.append(unit)
    return np.concatenate(units), "recordings" if by_recording else f"blocks of {length * step} frames"
