"""Learning curves of several seeds: on one grid, over steps and over time, and where they first reach a return."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.compare.intervals import curve

Array = NDArray[np.float64]
Run = dict[str, Any]
_POINTS = 41  # of a curve over time, where no two evaluations of two seeds are at the same moment


@dataclass(frozen=True)
class Curve:
    """Interquartile mean of the evaluations of several seeds, with 95% intervals.

    Attributes:
        at: (points,) environment steps, or seconds of training.
        iqm: (points,) returns.
        low: (points,) lower ends of the intervals.
        high: (points,) upper ends.
    """

    at: list[float]
    iqm: list[float]
    low: list[float]
    high: list[float]


def column(run: Run, name: str) -> Array:
    """A number of each evaluation of a run, (evaluations,)."""
    return np.array([row[name] for row in run["evaluations"]], np.float64)


def mean_curve(runs: Sequence[Run], over: str) -> Curve | None:
    """The curve of an arm, where all its seeds have values; None where there is no such place.

    Args:
        runs: Finished runs, one per seed.
        over: "step" or "seconds".
    """
    grid, values = _on_one_grid([column(r, over) for r in runs], [column(r, "mean_return") for r in runs], over)
    if not len(grid):
        return None
    return Curve(grid.tolist(), *(v.tolist() for v in curve(values)))


def at_seconds(run: Run, seconds: float) -> float | None:
    """Return of a run's evaluations at a time of training: between two of them the line, after the last one that.

    Args:
        run: A finished run.
        seconds: Seconds of training.

    Returns:
        The return; None before the first evaluation.

    Example:
        >>> run = {"evaluations": [{"seconds": 10, "mean_return": 0}, {"seconds": 20, "mean_return": 5}]}
        >>> at_seconds(run, 16), at_seconds(run, 99), at_seconds(run, 5)
        (3.0, 5.0, None)
    """
    times = column(run, "seconds")
    if not len(times) or seconds < times[0]:
        return None
    return float(np.interp(seconds, times, column(run, "mean_return")))


def first_reach(run: Run, target: float) -> dict[str, float] | None:
    """Steps and seconds of a run's first evaluation of at least this return; None where none is.

    Example:
        >>> run = {"evaluations": [{"step": 1, "seconds": 10, "mean_return": 0}, {"step": 2, "seconds": 20, "mean_return": 5}]}
        >>> first_reach(run, 3.0)
        {'step': 2.0, 'seconds': 20.0}
    """
    for row in run["evaluations"]:
        if row["mean_return"] >= target:
            return {"step": float(row["step"]), "seconds": float(row["seconds"])}
    return None


def mean_reach(runs: Sequence[Run], target: float) -> dict[str, float] | None:
    """Where the interquartile mean of all seeds first reaches a return: its step, and the seeds' mean seconds there.

    A single lucky evaluation of one seed does not count here, as it does in `first_reach`.
    """
    mean = mean_curve(runs, "step")
    if mean is None:
        return None
    for step, value in zip(mean.at, mean.iqm, strict=True):
        if value >= target:
            seconds = [float(np.interp(step, column(r, "step"), column(r, "seconds"))) for r in runs]
            return {"step": step, "seconds": float(np.mean(seconds))}
    return None


def _on_one_grid(places: Sequence[Array], values: Sequence[Array], over: str) -> tuple[Array, Array]:
    """Curves of several seeds at common places, (points,) and (seeds, points), where all of them have values."""
    if not places or any(len(p) == 0 for p in places):
        return np.empty(0), np.empty((0, 0))
    first, last = max(p[0] for p in places), min(p[-1] for p in places)
    if last < first:
        return np.empty(0), np.empty((0, 0))
    # Seeds are evaluated at the same steps, and never at the same moments.
    grid = places[0][(places[0] >= first) & (places[0] <= last)] if over == "step" else np.linspace(first, last, _POINTS)
    return grid, np.array([np.interp(grid, p, v) for p, v in zip(places, values, strict=True)])
