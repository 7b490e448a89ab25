"""Estimates with 95% intervals over seeds, by rliable's stratified bootstrap (Agarwal et al. 2021)."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latent_obs.errors import MissingExtraError, require

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
        scores: (seeds, tasks), one score per run; of one task, any scores, of several, normalised ones.

    Returns:
        "mean", "iqm" (the mean of the middle half of all runs; with fewer than four of them nothing is left out, and it is the
        mean) and "optimality_gap" (how far runs stay below 1 on average, scores above 1 counting as 1).

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
        "difference" of the interquartile means, and "probability_of_improvement": how often a run scores more than one of the
        other arm on the same task, averaged over tasks; ties count half.

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
    """P(x > y) + P(x = y) / 2, averaged over tasks; `rliable.metrics.probability_of_improvement`, some 50 times as fast.

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

    The percentile bootstrap of `n` values draws the smallest one `n` times in n^-n of all resamples. Up to three seeds that is
    more than 2.5%, so the 95% interval is the range of the seeds, and the range of `n` values holds the median of all
    seeds that there could be with probability 1 - 2^(1 - n).

    Args:
        seeds: The smallest number of seeds of an arm.

    Example:
        >>> print(few_seeds(1))
        One seed says nothing of how much another seed would differ: there are no intervals here, and no verdict can rest on it.
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
