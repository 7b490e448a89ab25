"""Scores of probes on held-out frames, with intervals by resampling whole recordings, or blocks of frames.

Frames are no independent draws, their recordings are; so an interval resamples those (Efron & Tibshirani 1993, "An
Introduction to the Bootstrap", chapter 8), by giving each a random number of copies.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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

    Balanced accuracy is the mean over the classes of the share of their frames that are told right: however rare a class, it
    counts as much as any other, and guessing gets 1 / classes. The AUROC is the chance that a frame of class 1 has a
    higher score than one of class 0 (Hanley & McNeil 1982), ties counting half; guessing gets 0.5.

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
        found += _with_intervals(("auroc",), lambda copies: _auroc(labels, margin, unit, copies)[:, None], len(names), seed)
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
    resampled = scores(rng.multinomial(units, np.full(units, 1 / units), _RESAMPLES).astype(float))  # (resamples, metrics)
    made: list[Score] = []
    for i, metric in enumerate(metrics):
        usable = resampled[np.isfinite(resampled[:, i]), i]
        ends: list[float | None] = [None, None]
        if units > 1 and len(usable) >= _RESAMPLES / 2:
            ends = [float(end) for end in np.quantile(usable, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])]
        made.append(Score(metric, float(value[i]), ends[0], ends[1]))
    return made
