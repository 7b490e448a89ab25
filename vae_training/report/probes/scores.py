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
from latent_obs.util.words import counted

_RESAMPLES = 1000
_ENDS = (0.025, 0.975)  # of an interval, as quantiles
_CHUNK = 4_000_000  # weights in memory at once, for the AUROC
FIT, VALIDATION, HELD_OUT, UNUSED = 0, 1, 2, 3
_HELD_OUT_SHARE, _VALIDATION_SHARE = 0.25, 0.2  # of all frames; of those not held out
_GAP_SHARE, _GAP_FRAMES = 0.01, 100  # left out where one recording has to be cut, as in vae_training.data.frames
_ENOUGH_RECORDINGS = 10  # held out, to resample them; of fewer, blocks of frames are resampled
_BLOCKS = 40  # over the held-out frames

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """A score, and the interval that holds 95% of its values under resampling.

    The ends are None where too few resamples could be scored (a class missing in most of them).
    """

    metric: str  # "r2", "mae", "balanced_accuracy" or "auroc"
    value: float  # on all held-out frames
    low: float | None
    high: float | None


def score_amounts(truth: Floats, predicted: Floats, units: NDArray[np.intp], seed: int = 0) -> list[Score]:
    """R² and the mean absolute error, which is in the units of the target.

    R² is ``1 - sum((truth - predicted)²) / sum((truth - mean(truth))²)`` with the mean of the held-out frames: 1 is
    perfect, 0 is what guessing their mean would get, and a probe that misleads is below 0.
    All arrays are (n,); `units` says what each frame is resampled with.
    """
    labels, unit = np.unique(units, return_inverse=True)
    centered, error = truth - truth.mean(), truth - predicted  # centered: the sums of squares below lose no digits
    columns = (np.ones_like(truth), centered, centered**2, error**2, np.abs(error))
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

    Balanced accuracy is the mean over the classes of the share of their frames that are recognized: however rare a
    class, it counts as much as any other, and guessing gets 1 / classes. The AUROC is the chance that a frame of class
    1 has a higher score than one of class 0 (Hanley & McNeil 1982), ties counting half; guessing gets 0.5.

    Args:
        labels: (n,), numbers of the classes 0 … K-1, each of which occurs.
        scores: (n, K): the class with the highest one is predicted.
        units: (n,), what each frame is resampled with.
        seed: Of the resampling.
    """
    kinds = scores.shape[1]
    names, unit = np.unique(units, return_inverse=True)
    cell = unit * kinds + labels
    shape = (len(names), kinds)
    total = np.bincount(cell, minlength=len(names) * kinds).reshape(shape).astype(float)
    right = np.bincount(cell, scores.argmax(1) == labels, len(names) * kinds).reshape(shape)

    def accuracy(copies: Floats) -> Floats:
        with np.errstate(invalid="ignore"):  # a class that a resample lacks: nan, and the resample does not count
            return ((copies @ right) / (copies @ total)).mean(1, keepdims=True)

    found = _with_intervals(("balanced_accuracy",), accuracy, len(names), seed)
    if kinds == 2:
        margin = scores[:, 1] - scores[:, 0]
        found += _with_intervals(("auroc",), lambda copies: auroc(labels, margin, unit, copies), len(names), seed)
    return found


def score_ratio(own: Floats, other: Floats, units: NDArray[np.intp], seed: int = 0) -> Score:
    """The mean of some errors over the mean of others on the same frames, (n,) each; `units` as for `score_amounts`."""
    labels, unit = np.unique(units, return_inverse=True)
    sums = np.stack([np.bincount(unit, errors, len(labels)) for errors in (own, other)], 1)

    def ratio(copies: Floats) -> Floats:
        own, other = (copies @ sums).T
        return (own / np.maximum(other, 1e-12))[:, None]

    return _with_intervals(("ratio",), ratio, len(labels), seed)[0]


def auroc(labels: NDArray[np.intp], score: Floats, unit: NDArray[np.intp], copies: Floats) -> Floats:
    """AUROC, (resamples, 1), for weights of the units, (resamples, units); nan where a class has no weight."""
    order = np.argsort(score, kind="stable")
    labels, unit = labels[order], unit[order]
    ties = np.flatnonzero(np.diff(score[order], prepend=-np.inf) != 0)  # where each run of equal scores starts
    out = np.empty((len(copies), 1))
    step = max(1, _CHUNK // len(score))
    for i in range(0, len(copies), step):
        weight = copies[i : i + step, unit]  # (resamples, n), by rising score
        positive = np.add.reduceat(weight * labels, ties, axis=1)
        negative = np.add.reduceat(weight * (1 - labels), ties, axis=1)
        below = negative.cumsum(1) - negative / 2  # the negatives that each run of positives beats
        with np.errstate(invalid="ignore"):
            out[i : i + step, 0] = (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))
    return out


def _with_intervals(metrics: tuple[str, ...], scores: Callable[[Floats], Floats], units: int, seed: int) -> list[Score]:
    """Scores of all units once, and their percentiles over resamples of the units."""
    value = scores(np.ones((1, units)))[0]
    copies = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), _RESAMPLES)
    resampled = scores(copies.astype(float))  # (resamples, metrics)
    made: list[Score] = []
    for i, metric in enumerate(metrics):
        usable = resampled[np.isfinite(resampled[:, i]), i]
        enough = units > 1 and len(usable) >= _RESAMPLES / 2
        low, high = np.quantile(usable, _ENDS).tolist() if enough else (None, None)
        made.append(Score(metric, float(value[i]), low, high))
    return made


def resampling_units(counts: Sequence[int]) -> NDArray[np.intp]:
    """What each frame of some recordings is resampled with: its recording where there are enough of them, else a block.

    `counts` has the number of frames of each recording. A block has neighboring frames of one recording.
    """
    by_recording = np.count_nonzero(counts) >= _ENOUGH_RECORDINGS
    length, first = -(-sum(counts) // _BLOCKS), 0
    units: list[NDArray[np.intp]] = []
    for count in filter(None, counts):
        units.append(first + (np.zeros(count, np.intp) if by_recording else np.arange(count) // length))
        first = int(units[-1][-1]) + 1
    return np.concatenate(units)


@dataclass(frozen=True, eq=False)
class ProbeSplit:
    """The frames that probes use, and what for; arrays run over the rows used, recording after recording."""

    frames: dict[str, int]  # number of frames of each recording
    rows: dict[str, NDArray[np.intp]]  # of each recording that has frames, those used
    part: NDArray[np.int8]  # FIT, VALIDATION, HELD_OUT or UNUSED
    unit: NDArray[np.intp]  # the recording or block that a held-out frame is resampled with; -1 for the others
    recordings: dict[str, list[str]]  # names by use: "fit", "validation", "held_out"
    resampled: str  # what the intervals resample, in words
    note: str  # what is to be known about this split; empty when nothing is


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
        frames_by_recording: Each recording's frames (only their number matters here).
        held_out: Names of the recordings to score on; drawn when not given. Give those that the encoder never saw.
        seed: Of the draws.
        most_frames: Of more frames than this, every k-th of each recording is used.

    Raises:
        InputError: There are too few frames, or `held_out` names none, all, or unknown ones.

    Example:
        >>> split = split_recordings({name: np.zeros(100) for name in "abcdefgh"}, seed=1)
        >>> {use: len(names) for use, names in split.recordings.items()}, split.resampled
        ({'fit': 5, 'validation': 1, 'held_out': 2}, 'blocks of 5 frames')
    """
    frames = {name: len(recording) for name, recording in frames_by_recording.items()}
    names = [name for name, count in frames.items() if count]
    if not names:
        raise InputError("frames_by_recording must hold frames, got none")
    step = max(1, -(-sum(frames.values()) // most_frames))
    rows = {name: np.arange(0, frames[name], step) for name in names}
    part = {name: np.full(len(rows[name]), FIT, np.int8) for name in names}
    learning = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    notes: list[str] = []
    for use, share in ((HELD_OUT, _HELD_OUT_SHARE), (VALIDATION, _VALIDATION_SHARE)):
        drawn = _draw(learning, rows, share)
        if use == HELD_OUT and held_out is not None:
            drawn = [name for name in learning if name in held_out]
            if not set(held_out) <= set(frames) or not 0 < len(drawn) < len(names):
                raise InputError(f"held_out must name some of the recordings {names}, not all, got {list(held_out)}")
        for name in drawn:
            part[name][:] = use
        learning = [name for name in learning if name not in drawn]
        if not drawn:  # the only recording: its tail, after a gap
            free = np.flatnonzero(part[learning[0]] == FIT)
            tail, gap = max(1, int(len(free) * share)), min(_GAP_FRAMES, max(1, int(len(free) * _GAP_SHARE)))
            if len(free) <= tail + gap:
                raise InputError(
                    f"{learning[0]} has {counted(len(free), 'frame')} to learn from, too few to set any aside"
                )
            part[learning[0]][free[-tail - gap :]] = np.repeat([UNUSED, use], [gap, tail])
            what = "scored" if use == HELD_OUT else "tuned"
            notes.append(f"probes are {what} on the last {share:.0%} of {learning[0]}, as there is no other recording")
    counts = [int((part[name] == HELD_OUT).sum()) for name in names]
    whole = np.concatenate(list(part.values()))
    unit = np.full(len(whole), -1, np.intp)
    unit[whole == HELD_OUT] = resampling_units(counts)
    uses = {"fit": FIT, "validation": VALIDATION, "held_out": HELD_OUT}
    recordings = {use: [name for name in names if (part[name] == value).any()] for use, value in uses.items()}
    by_recording = np.count_nonzero(counts) >= _ENOUGH_RECORDINGS
    resampled = "recordings" if by_recording else f"blocks of {-(-sum(counts) // _BLOCKS) * step} frames"
    return ProbeSplit(frames, rows, whole, unit, recordings, resampled, "; ".join(notes))


def _draw(order: list[str], rows: dict[str, NDArray[np.intp]], share: float) -> list[str]:
    """The first recordings of an order that make up about this share of the frames: at least one, never all."""
    wanted, drawn = share * sum(len(rows[name]) for name in order), order[: min(1, len(order) - 1)]
    for name in order[1:-1]:
        if sum(len(rows[n]) for n in drawn) + len(rows[name]) / 2 > wanted:
            break
        drawn.append(name)
    return drawn
