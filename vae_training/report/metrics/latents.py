"""What the latents are like over held-out frames: information, active units, aggregate posterior, correlations."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Burda et al. 2016, "Importance Weighted Autoencoders", section 5: a unit is active if its mean varies by more than
#: this.
ACTIVE_VARIANCE = 0.01
#: Below this many nats in all, or without an active unit, the posterior has collapsed: every frame looks alike.
COLLAPSED_NATS = 0.5
_VARIES = 1e-12  # below: a mean that is the same for every frame has no correlation with anything


@dataclass(frozen=True)
class Latents:
    """Statistics of q(z|x) over held-out frames; lists have one entry per dimension, in the order of the latent.

    Attributes:
        frames: Held-out frames measured.
        kl_nats: Sum over the dimensions of the KL from the prior, mean over frames: how much a latent tells, at most.
        kl_nats_by_dimension: The same of each dimension.
        active_units: Dimensions whose mean varies over frames by more than 0.01 (Burda et al. 2016, section 5).
        active: Whether each dimension is active.
        variance_of_mean: What decides that.
        aggregate_mean: Mean of the aggregate posterior, the mixture of q(z|x) over frames; the prior has 0.
        aggregate_std: Its standard deviation; the prior has 1.
        aggregate_skew: Its skewness; the prior has 0.
        correlation: Pearson correlation of the means of each pair of dimensions; 0 where a mean never changes.
        mean_abs_correlation: Mean absolute correlation over pairs of different active dimensions; 0 with fewer than
            two.
        strongest_pair: The two active dimensions with the strongest correlation, and it; empty with fewer than two.
        effective_dimensions: Participation ratio of the eigenvalues of the means' covariance, ``(sum λ)² / sum λ²``:
            over how many directions the variance is spread, 1 to latent_dim.
        collapsed: Whether the encoder tells frames apart at all.
    """

    frames: int
    kl_nats: float
    kl_nats_by_dimension: list[float]
    active_units: int
    active: list[bool]
    variance_of_mean: list[float]
    aggregate_mean: list[float]
    aggregate_std: list[float]
    aggregate_skew: list[float]
    correlation: list[list[float]]
    mean_abs_correlation: float
    strongest_pair: list[float]
    effective_dimensions: float
    collapsed: bool

    @property
    def latent_dim(self) -> int:
        """Dimensions of the latent."""
        return len(self.active)

    @property
    def by_information(self) -> list[int]:
        """Dimensions in the order of their KL, the most first."""
        return np.argsort(np.array(self.kl_nats_by_dimension), kind="stable")[::-1].tolist()


def describe(mean: NDArray[np.floating[Any]], logvar: NDArray[np.floating[Any]]) -> Latents:
    """Statistics of the latents of frames.

    Args:
        mean: (N, latent_dim), means of q(z|x).
        logvar: (N, latent_dim), log-variances.

    Example:
        >>> described = describe(np.array([[0.0, 1.0], [0.0, -1.0]]), np.zeros((2, 2)))
        >>> described.active_units, described.kl_nats_by_dimension
        (1, [0.0, 0.5])
    """
    m, v = mean.astype(np.float64), np.exp(logvar.astype(np.float64))
    # Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix B, as in the training loss
    kl = 0.5 * (np.square(m) + np.expm1(logvar.astype(np.float64)) - logvar)  # (N, D)
    by_dimension = kl.mean(axis=0)
    variance = m.var(axis=0)
    active = variance > ACTIVE_VARIANCE
    centre, std, skew = mixture_moments(m, v)
    correlation = correlations(m)
    pairs = np.abs(np.triu(correlation, 1))[np.ix_(active, active)]
    count = int(active.sum())
    number_of_pairs = count * (count - 1) // 2
    strongest: list[float] = []
    if number_of_pairs:
        names = np.flatnonzero(active)
        i, j = np.unravel_index(int(pairs.argmax()), pairs.shape)
        strongest = [float(names[i]), float(names[j]), float(correlation[names[i], names[j]])]
    total = float(by_dimension.sum())
    return Latents(
        frames=len(m),
        kl_nats=total,
        kl_nats_by_dimension=by_dimension.tolist(),
        active_units=count,
        active=active.tolist(),
        variance_of_mean=variance.tolist(),
        aggregate_mean=centre.tolist(),
        aggregate_std=std.tolist(),
        aggregate_skew=skew.tolist(),
        correlation=np.round(correlation, 4).tolist(),
        mean_abs_correlation=float(pairs.sum() / number_of_pairs) if number_of_pairs else 0.0,
        strongest_pair=strongest,
        effective_dimensions=effective_dimensions(m),
        collapsed=count == 0 or not math.isfinite(total) or total < COLLAPSED_NATS,
    )


def mixture_moments(
    mean: NDArray[np.float64], variance: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean, standard deviation and skewness of an equal mixture of Gaussians, in closed form, for each dimension.

    Args:
        mean: (N, D), of each Gaussian.
        variance: (N, D).

    Returns:
        Three of (D,). From ``E[(x - c)²] = E[d² + v]`` and ``E[(x - c)³] = E[d³ + 3 d v]`` with ``d = mean - c``.

    Example:
        >>> [float(x[0]) for x in mixture_moments(np.array([[-1.0], [1.0]]), np.array([[3.0], [3.0]]))]
        [0.0, 2.0, 0.0]
    """
    centre = mean.mean(axis=0)
    d = mean - centre
    second = (d**2 + variance).mean(axis=0)
    third = (d**3 + 3 * d * variance).mean(axis=0)
    std = np.sqrt(second)
    return centre, std, np.divide(third, std**3, out=np.zeros_like(third), where=std > 0)


def correlations(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson correlation of columns, (D, D); 0 between a column that never changes and any other, 1 on the
    diagonal.
    """
    d = values - values.mean(axis=0)
    norm = np.sqrt(np.square(d).sum(axis=0))
    varies = norm**2 > _VARIES * len(values)
    scaled = np.divide(d, norm, out=np.zeros_like(d), where=varies)
    matrix = np.clip(scaled.T @ scaled, -1, 1)
    np.fill_diagonal(matrix, 1.0)
    return matrix


def effective_dimensions(values: NDArray[np.float64]) -> float:
    """Participation ratio of the covariance: ``(sum λ)² / sum λ²``, which is ``trace(C)² / sum(C²)``.

    Example:
        >>> effective_dimensions(np.array([[1.0, 1.0], [-1.0, -1.0]])), effective_dimensions(np.zeros((3, 2)))
        (1.0, 0.0)
    """
    covariance = np.atleast_2d(np.cov(values.T, bias=True))
    squares = float(np.square(covariance).sum())
    return float(np.trace(covariance) ** 2 / squares) if squares > 0 else 0.0
