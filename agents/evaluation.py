"""Numbers of played episodes, with their intervals."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from latent_obs.errors import InputError

_RESAMPLES = 10_000
_CHUNK = 1_000  # resamples drawn at a time, which bounds the memory
_Z = 1.959963984540054  # of a 95% interval


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns of whole episodes.

    Attributes:
        returns: One per episode, in the game's own rewards.
        lengths: Steps of each episode.
        successes: Whether each was a success; None where the task has none.

    Example:
        >>> print(Evaluation((1.0, 3.0), (10, 12)))
        2.0 ± 1.0 (standard error, 2 episodes)
        >>> print(Evaluation((1.0, 3.0), (10, 12), (False, True)))
        2.0 ± 1.0 (standard error, 2 episodes), success 50%
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    successes: tuple[bool, ...] | None = None

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def standard_error(self) -> float:
        """Standard error of the mean, ``std(ddof=1) / sqrt(episodes)``; NaN for one episode."""
        return float(np.std(self.returns, ddof=1) / math.sqrt(len(self.returns))) if len(self.returns) > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the mean return, by the percentile bootstrap over episodes (`bootstrap_interval`)."""
        return bootstrap_interval(self.returns)

    @property
    def median(self) -> float:
        """Median return."""
        return float(np.median(self.returns))

    @property
    def success_rate(self) -> float | None:
        """Share of episodes that were a success; None where the task has none."""
        return None if self.successes is None else float(np.mean(self.successes))

    @property
    def success_interval(self) -> tuple[float, float] | None:
        """95% interval of the success rate (`wilson_interval`)."""
        return None if self.successes is None else wilson_interval(sum(self.successes), len(self.successes))

    def sigmas_above(self, other: "Evaluation") -> float:
        """By how many standard errors of the difference this mean is above another's (Welch's t).

        Example:
            >>> round(Evaluation((9.0, 11.0), (1, 1)).sigmas_above(Evaluation((0.0, 2.0), (1, 1))), 2)
            6.36
        """
        error = math.hypot(self.standard_error, other.standard_error)
        difference = self.mean - other.mean
        if error == 0:
            return math.copysign(math.inf, difference) if difference else 0.0
        return difference / error  # NaN where a standard error is: one episode tells nothing of the spread

    def __str__(self) -> str:
        success = "" if self.success_rate is None else f", success {self.success_rate:.0%}"
        return f"{self.mean:.1f} ± {self.standard_error:.1f} (standard error, {len(self.returns)} episodes){success}"

    def details(self) -> str:
        """What `str` leaves out, a line each for returns, lengths and success.

        Example:
            >>> print(Evaluation((1.0, 3.0), (10, 12), (True, True)).details())
            95% interval 1.0 to 3.0, median 2.0, from 1.0 to 3.0
            steps in an episode: mean 11.0, from 10 to 12
            success in 2 of 2 episodes, 100% (95% interval 34% to 100%)
        """
        low, high = self.interval
        sure = "" if math.isnan(low) else f"95% interval {low:.1f} to {high:.1f}, "
        lines = [
            f"{sure}median {self.median:.1f}, from {min(self.returns):.1f} to {max(self.returns):.1f}",
            f"steps in an episode: mean {np.mean(self.lengths):.1f}, from {min(self.lengths)} to {max(self.lengths)}",
        ]
        if self.successes is not None and self.success_interval is not None:
            (low, high), count = self.success_interval, len(self.successes)
            share = f"{self.success_rate:.0%} (95% interval {low:.0%} to {high:.0%})"
            lines.append(f"success in {sum(self.successes)} of {count} episodes, {share}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """All numbers, as JSON has them: None where there is none.

        Example:
            >>> Evaluation((3.0,), (7,)).to_json()["mean_return_95"] is None
            True
        """
        return {
            "episodes": len(self.returns),
            "mean_return": self.mean,
            "standard_error": None if math.isnan(self.standard_error) else self.standard_error,
            "mean_return_95": None if math.isnan(self.interval[0]) else list(self.interval),
            "median_return": self.median,
            "least_return": min(self.returns),
            "most_return": max(self.returns),
            "mean_length": float(np.mean(self.lengths)),
            "success_rate": self.success_rate,
            "success_rate_95": None if self.success_interval is None else list(self.success_interval),
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "successes": None if self.successes is None else list(self.successes),
        }


def bootstrap_interval(values: tuple[float, ...], *, resamples: int = _RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """95% interval of a mean: the 2.5% and 97.5% quantiles of the means of resamples (Efron 1979).

    It asks for no normal distribution, which returns hardly ever have. Below some twenty values it is a little too narrow.

    Args:
        values: One per episode.
        resamples: How many to draw.
        seed: The same seed gives the same interval.

    Returns:
        Its ends; NaN for one value, which tells nothing of the spread.

    Example:
        >>> low, high = bootstrap_interval(tuple(float(n) for n in range(101)))
        >>> round(low), round(high)
        (44, 56)
    """
    if len(values) < 2:
        return math.nan, math.nan
    array, rng, means = np.asarray(values, np.float64), np.random.default_rng(seed), []
    for start in range(0, resamples, _CHUNK):
        drawn = rng.integers(len(array), size=(min(_CHUNK, resamples - start), len(array)))
        means.append(array[drawn].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(low), float(high)


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """95% interval of a share, which unlike the usual ± holds near 0 and 1 too (Wilson 1927).

    Args:
        successes: How many.
        episodes: Of how many, 1 or more.

    Raises:
        InputError: There are more of the one than of the other, or none.

    Example:
        >>> tuple(round(end, 3) for end in wilson_interval(20, 20))
        (0.839, 1.0)
    """
    if not 0 <= successes <= episodes or episodes < 1:
        raise InputError(f"{successes} successes of {episodes} episodes is no share")
    share, spread = successes / episodes, _Z**2 / episodes
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / episodes + spread / (4 * episodes)) / (1 + spread)
    return (0.0 if successes == 0 else middle - half), (1.0 if successes == episodes else middle + half)
