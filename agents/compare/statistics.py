"""Estimates over seeds with 95% intervals, by the stratified bootstrap of Agarwal et al. 2021 (arXiv:2108.13264).

The measures are those of the paper's library rliable: interquartile mean, optimality gap, probability of improvement.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latent_obs.util.errors import require

RESAMPLES = 10_000
_POINTS = 41  # of a curve over time

Array = NDArray[np.float64]
Run = dict[str, Any]
Estimate = dict[str, float]
"""A number and its 95% interval, which is the number itself for a single seed: "value", "low", "high"."""


def number(value: float) -> str:
    """Format a number with about three figures.

    Example:
        >>> number(1234.5), number(12.34), number(0.1234), number(-0.0)
        ('1,234', '12.3', '0.12', '0')
    """
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    text = f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"
    return "0" if float(text.replace(",", "")) == 0 else text


def in_words(estimate: Estimate | None) -> str:
    """An estimate with its interval, as text; empty for None.

    Example:
        >>> in_words({"value": 3.0, "low": 1.0, "high": 6.0})
        '3.00 [1.00, 6.00]'
    """
    return "" if estimate is None else "{} [{}, {}]".format(*(number(estimate[k]) for k in ("value", "low", "high")))


def aggregates(scores: ArrayLike) -> dict[str, Estimate]:
    """Mean, interquartile mean and optimality gap of all runs of one arm.

    Args:
        scores: (seeds, tasks), one score per run. Scores of several tasks must be normalized.

    Returns:
        "mean", "iqm", and "optimality_gap": how far runs stay below 1 on average, where a score above 1 counts as 1.

    Example:
        >>> aggregates([[1.0], [2.0], [6.0]])["mean"]
        {'value': 3.0, 'low': 1.0, 'high': 6.0}
    """
    values = np.asarray(scores, np.float64)
    drawn = _resamples(values, np.random.default_rng(0)).reshape(RESAMPLES, -1)
    measures: dict[str, Callable[[Array], Array]] = {
        "mean": lambda x: x.mean(-1),
        "iqm": iqm,
        "optimality_gap": lambda x: 1 - np.minimum(x, 1).mean(-1),
    }
    return {name: _estimate(measure(values.ravel()), measure(drawn)) for name, measure in measures.items()}


def versus(scores: ArrayLike, other: ArrayLike) -> dict[str, Estimate]:
    """Compare two arms, each (seeds, tasks), which may have different numbers of seeds.

    Returns:
        "difference" of the interquartile means, and "probability_of_improvement" from `chance_of_more`.

    Example:
        >>> versus([[3.0], [4.0]], [[1.0], [2.0]])["probability_of_improvement"]
        {'value': 1.0, 'low': 1.0, 'high': 1.0}
    """
    x, y = np.asarray(scores, np.float64), np.asarray(other, np.float64)
    rng = np.random.default_rng(0)
    drawn_x, drawn_y = _resamples(x, rng), _resamples(y, rng)
    difference = iqm(drawn_x.reshape(RESAMPLES, -1)) - iqm(drawn_y.reshape(RESAMPLES, -1))
    return {
        "difference": _estimate(iqm(x.ravel()) - iqm(y.ravel()), difference),
        "probability_of_improvement": _estimate(chance_of_more(x, y), chance_of_more(drawn_x, drawn_y)),
    }


def iqm(values: Array) -> Array:
    """Interquartile mean along the last axis: a quarter of the values, rounded down, is left out at each end.

    Example:
        >>> float(iqm(np.array([0.0, 1.0, 3.0, 100.0]))), float(iqm(np.array([0.0, 1.0, 5.0])))
        (2.0, 2.0)
    """
    count = values.shape[-1]
    cut = count // 4
    return np.sort(values, axis=-1)[..., cut : count - cut].mean(-1)


def chance_of_more(x: Array, y: Array) -> Array:
    """P(x > y) + P(x = y) / 2 of two runs on the same task, averaged over tasks; arrays of (..., seeds, tasks).

    Example:
        >>> float(chance_of_more(np.array([[2.0], [1.0]]), np.array([[1.0], [1.0]])))
        0.75
    """
    x, y = x[..., :, None, :], y[..., None, :, :]
    return (np.mean(x > y, axis=(-3, -2, -1)) + np.mean(x >= y, axis=(-3, -2, -1))) / 2


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95% interval of the mean by Student's t, which assumes a normal distribution; None for a single value.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    if len(values) < 2:
        return None
    student = require("scipy.stats", extra="compare", purpose="compute intervals over seeds").t
    half = float(student.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def _resamples(scores: Array, rng: np.random.Generator) -> Array:
    """Seeds drawn with replacement within each task, (resamples, seeds, tasks)."""
    seeds, tasks = scores.shape
    return scores[rng.integers(0, seeds, (RESAMPLES, seeds, tasks)), np.arange(tasks)]


def _estimate(value: Array, drawn: Array) -> Estimate:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"value": float(value), "low": float(low), "high": float(high)}


def mean_curve(runs: Sequence[Run], over: str) -> dict[str, list[float]] | None:
    """The learning curve of an arm over "step" or "seconds", in the range in which all its seeds have evaluations.

    Returns:
        "at": steps or seconds; "iqm": interquartile means of the returns; "low", "high": 95% interval of each point.
        None if there is no such range.
    """
    if not runs or not all(run["evaluations"] for run in runs):
        return None
    places = [_column(run, over) for run in runs]
    first, last = max(place[0] for place in places), min(place[-1] for place in places)
    if last < first:
        return None
    # All seeds are evaluated at the same steps, and never at the same moment.
    steps = places[0][(places[0] >= first) & (places[0] <= last)]
    grid = steps if over == "step" else np.linspace(first, last, _POINTS)
    values = np.array([_at(run, over, grid) for run in runs])
    rows = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    points = [_estimate(iqm(point), iqm(point[rows])) for point in values.T]
    curve = {name: [point[name] for point in points] for name in ("value", "low", "high")}
    return {"at": grid.tolist(), "iqm": curve.pop("value"), **curve}


def at_seconds(run: Run, seconds: float) -> float | None:
    """The return of a run after so many seconds of training, interpolated between evaluations; None before the first.

    Example:
        >>> run = {"evaluations": [{"seconds": 10, "mean_return": 0}, {"seconds": 20, "mean_return": 5}]}
        >>> at_seconds(run, 16), at_seconds(run, 99), at_seconds(run, 5)
        (3.0, 5.0, None)
    """
    rows = run["evaluations"]
    return float(_at(run, "seconds", seconds)) if rows and seconds >= rows[0]["seconds"] else None


def first_reach(run: Run, target: float) -> dict[str, float] | None:
    """Step and seconds of the first evaluation of a run with at least this return; None if there is none."""
    reached = (row for row in run["evaluations"] if row["mean_return"] >= target)
    return next(({name: float(row[name]) for name in ("step", "seconds")} for row in reached), None)


def mean_reach(runs: Sequence[Run], target: float) -> dict[str, float] | None:
    """The first step at which the mean curve of all seeds reaches a return, and the mean seconds at that step.

    Unlike `first_reach`, a single lucky evaluation of one seed does not count.
    """
    mean = mean_curve(runs, "step") or {"at": [], "iqm": []}
    for step, value in zip(mean["at"], mean["iqm"], strict=True):
        if value >= target:
            return {"step": step, "seconds": float(np.mean([_at(run, "step", step, "seconds") for run in runs]))}
    return None


def _column(run: Run, name: str) -> Array:
    return np.array([row[name] for row in run["evaluations"]], np.float64)


def _at(run: Run, over: str, places: Array | float, name: str = "mean_return") -> Array:
    """A column of a run's evaluations at places of another column, interpolated."""
    return np.asarray(np.interp(places, _column(run, over), _column(run, name)))
