"""Estimates with 95% intervals over seeds, by rliable's stratified bootstrap (Agarwal et al. 2021)."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agents.compare.runs import Results
from agents.compare.study import BASELINE
from latent_obs.util.errors import MissingExtraError, require

RESAMPLES = 2_000
_PURPOSE = "compute intervals over seeds"
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number and the 95% interval around it.

    Attributes:
        value: The estimate.
        low: Lower end of the interval; the value itself where there is one seed only.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def above(self, other: "Estimate") -> bool:
        """Whether this whole interval lies above another's.

        Example:
            >>> Estimate(3, 2, 4).above(Estimate(1, 0, 1.5)), Estimate(3, 2, 4).above(Estimate(1, 0, 2.5))
            (True, False)
        """
        return self.low > other.high

    def __str__(self) -> str:
        return f"{number(self.value)} [{number(self.low)}, {number(self.high)}]"


def number(value: float) -> str:
    """A number with about three figures.

    Example:
        >>> number(1234.5), number(12.34), number(0.1234), number(-0.0)
        ('1,234', '12.3', '0.12', '0')
    """
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    text = f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"
    return "0" if float(text.replace(",", "")) == 0 else text


def check_installed() -> None:
    """Find out whether intervals can be computed, before hours of training.

    Raises:
        MissingExtraError: They cannot; the message says what to install.
    """
    _rliable("library")


def aggregates(scores: ArrayLike) -> dict[str, Estimate]:
    """Mean, interquartile mean and optimality gap, with intervals.

    Args:
        scores: (seeds, tasks), one score per run; of one task, any scores, of several, normalized ones.

    Returns:
        "mean", "iqm" (the mean of the middle half of all runs; with fewer than four of them nothing is left out, and it
        is the mean) and "optimality_gap" (how far runs stay below 1 on average, scores above 1 counting as 1).

    Raises:
        MissingExtraError: rliable is not installed.

    Example:
        >>> print(aggregates([[1.0], [2.0], [6.0]])["mean"])
        3.00 [1.00, 6.00]
    """

    def measure(values: Array) -> Array:
        return np.array([values.mean(), iqm(values), 1 - np.minimum(values, 1).mean()])

    value, low, high = _interval(_matrix(scores), measure)
    names = ("mean", "iqm", "optimality_gap")
    return {name: Estimate(*map(float, v)) for name, *v in zip(names, value, low, high, strict=True)}


def versus(scores: ArrayLike, other: ArrayLike) -> dict[str, Estimate]:
    """One arm beside another, with intervals; they may have different numbers of seeds.

    Args:
        scores: (seeds, tasks).
        other: (seeds, tasks) of the other arm.

    Returns:
        "difference" of the interquartile means, and "probability_of_improvement": how often a run scores more than one
        of the other arm on the same task, averaged over tasks; ties count half.

    Raises:
        MissingExtraError: rliable is not installed.

    Example:
        >>> print(versus([[3.0], [4.0]], [[1.0], [2.0]])["probability_of_improvement"])
        1.00 [1.00, 1.00]
    """

    def measure(x: Array, y: Array) -> Array:
        return np.array([iqm(x) - iqm(y), chance_of_more(x, y)])

    value, low, high = _interval([_matrix(scores), _matrix(other)], measure)
    names = ("difference", "probability_of_improvement")
    return {name: Estimate(*map(float, v)) for name, *v in zip(names, value, low, high, strict=True)}


def curve(values: ArrayLike) -> tuple[Array, Array, Array]:
    """Interquartile mean over seeds at each point of a learning curve, with pointwise intervals.

    Args:
        values: (seeds, points).

    Returns:
        Three arrays (points,): the means, and the lower and upper ends of their intervals.

    Raises:
        MissingExtraError: rliable is not installed.
    """
    return _interval(_matrix(values), lambda v: iqm(v, axis=0))


def iqm(values: Array, axis: int | None = None) -> Array:
    """Interquartile mean: a quarter of the values, rounded down, is left out at each end.

    `scipy.stats.trim_mean` and `rliable.metrics.aggregate_iqm`, some 20 times as fast on a few values.

    Args:
        values: Any numbers.
        axis: Along which axis; None over all.

    Example:
        >>> float(iqm(np.array([0.0, 1.0, 3.0, 100.0]))), float(iqm(np.array([0.0, 1.0, 5.0])))
        (2.0, 2.0)
    """
    values, axis = (values.ravel(), 0) if axis is None else (values, axis)
    count = values.shape[axis]
    cut = count // 4
    return np.sort(values, axis).take(np.arange(cut, count - cut), axis).mean(axis)


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95% interval of the mean for few values, if they are about normal: Student's t. None for a single one.

    Example:
        >>> low, high = t_interval([1.0, 2.0, 3.0])
        >>> round(low, 2), round(high, 2)
        (-0.48, 4.48)
    """
    if len(values) < 2:
        return None
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def chance_of_more(x: Array, y: Array) -> float:
    """P(x > y) + P(x = y) / 2, averaged over tasks; `rliable.metrics.probability_of_improvement`, some 50 times as
    fast.

    Args:
        x: (seeds, tasks).
        y: (seeds of the other, tasks).

    Example:
        >>> chance_of_more(np.array([[2.0], [1.0]]), np.array([[1.0], [1.0]]))
        0.75
    """
    more, same = x[:, None] > y[None], x[:, None] == y[None]
    return float(np.mean(more) + np.mean(same) / 2)


def few_seeds(seeds: int) -> str:
    """What so many seeds can tell, in plain words.

    The percentile bootstrap of `n` values draws the smallest one `n` times in n^-n of all resamples. Up to three seeds
    that is more than 2.5%, so the 95% interval is the range of the seeds, and the range of `n` values holds the median
    of all seeds that there could be with probability 1 - 2^(1 - n).

    Args:
        seeds: The smallest number of seeds of an arm.

    Example:
        >>> print(few_seeds(1))
        One seed says nothing of how much another seed would differ: there are no intervals here, and no verdict can
        rest on it.
    """
    if seeds <= 1:
        return (
            "One seed says nothing of how much another seed would differ: there are no intervals here, and no verdict can rest "
            "on it."
        )
    if seeds <= 3:
        return (
            f"{seeds} seeds tell little. With so few, a 95% bootstrap interval is just the range from the worst seed to "
            f"the best, and such a range holds the true median {100 * (1 - 2 ** (1 - seeds)):.0f} times in 100, not 95. "
            f"However far apart two arms are, {seeds} seeds against {seeds} cannot show it at the usual 5% (the smallest "
            f"two-sided p-value of a rank test is {2 / math.comb(2 * seeds, seeds):.2g}). Differences that only just part the "
            "intervals may be luck; take 5 to 10 seeds to be sure."
        )
    if seeds < 10:
        return (
            f"{seeds} seeds are few: percentile bootstrap intervals of so few values are somewhat too narrow. Differences that "
            "only just part the intervals may be luck."
        )
    return f"{seeds} seeds: the bootstrap intervals can be taken about as they are."


def _matrix(scores: ArrayLike) -> Array:
    values = np.asarray(scores, np.float64)
    assert values.ndim == 2
    assert values.size
    return values


def _interval(scores: Array | list[Array], measure: Callable[..., Array]) -> tuple[Array, Array, Array]:
    """Point estimates, lower and upper ends, (numbers,) each, of what `measure` gives of resampled seeds."""
    library = _rliable("library")
    with _seeded():
        points, intervals = library.get_interval_estimates({"": scores}, measure, reps=RESAMPLES)
    return points[""], intervals[""][0], intervals[""][1]


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """The same numbers each time: rliable draws from numpy's global generator, whatever `random_state` it is given."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _rliable(part: str) -> Any:
    try:
        return require(f"rliable.{part}", extra="compare", purpose=_PURPOSE)
    except TypeError as error:  # arch 7, the newest that rliable takes, cannot be imported beside pandas 3
        raise MissingExtraError(
            f"rliable is needed to {_PURPOSE}, and is installed, but cannot be imported ({error}). It does not know pandas 3: "
            "uv sync --extra compare    (or: pip install 'pandas<3')"
        ) from None


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
    grid = (
        places[0][(places[0] >= first) & (places[0] <= last)] if over == "step" else np.linspace(first, last, _POINTS)
    )
    return grid, np.array([np.interp(grid, p, v) for p, v in zip(places, values, strict=True)])


def over_tasks(results: Results, tasks: dict[str, Any]) -> dict[str, Any]:
    """Scores of all tasks together.

    A task counts where the random policy and every arm of the study have scores, and where the one that stands for 1 is
    above the random policy. With seeds that are missing here and there, each arm counts with as many as it has on every
    task.

    Args:
        results: The raw numbers.
        tasks: Their summary by task.

    Returns:
        "tasks": those that count; "left_out": the others, each with the reason; "scale": what stands for 0 and 1 on
        each; and "arms": by arm "mean", "iqm", "optimality_gap" and, beside the pixel agent,
        "probability_of_improvement".

    Raises:
        MissingExtraError: rliable is not installed.
    """
    scale: dict[str, tuple[float, float]] = {}
    left_out: dict[str, str] = {}
    for name, task in tasks.items():
        ends = _scale(task)
        missing = [arm for arm in results.study.arms if arm not in task["arms"]]
        if missing:
            left_out[name] = f"no finished runs of {', '.join(missing)}"
        elif isinstance(ends, str):
            left_out[name] = ends
        else:
            scale[name] = ends
    arms: dict[str, Any] = {}
    if scale:
        scores = {arm: _normalized(tasks, arm, scale) for arm in results.study.arms}
        for arm, mine in scores.items():
            arms[arm] = {name: asdict(estimate) for name, estimate in aggregates(mine).items()}
            arms[arm]["seeds"] = len(mine)
            if BASELINE in scores:
                better = versus(mine, scores[BASELINE])["probability_of_improvement"]
                arms[arm]["probability_of_improvement"] = asdict(better)
    return {"tasks": list(scale), "left_out": left_out, "scale": scale, "arms": arms}


def normalize(score: float, zero: float, one: float) -> float:
    """A score on a scale where `zero` is 0 and `one` is 1.

    Example:
        >>> normalize(5.0, zero=-5.0, one=15.0)
        0.5
    """
    return (score - zero) / (one - zero)


def _scale(task: dict[str, Any]) -> tuple[float, float] | str:
    """Scores that stand for 0 and 1, or why there are none."""
    if task["random"] is None:
        return "no score of the random policy"
    zero, one, what = task["random"]["mean"], task["reference"], "the reference"
    if one is None:
        if BASELINE not in task["arms"]:
            return f"no pixel agent and no reference to stand for 1 (an arm {BASELINE!r}, or reference = … in the task)"
        one, what = task["arms"][BASELINE]["mean"]["value"], "the pixel agent"
    if one <= zero:
        return f"{what} ({one:.1f}) is not above the random policy ({zero:.1f}), so that there is no scale"
    return zero, one


def _normalized(tasks: dict[str, Any], arm: str, scale: dict[str, tuple[float, float]]) -> Array:
    """(seeds, tasks)."""
    count = min(len(tasks[task]["arms"][arm]["scores"]) for task in scale)
    return np.array(
        [[normalize(tasks[t]["arms"][arm]["scores"][i], *ends) for t, ends in scale.items()] for i in range(count)]
    )
