"""What the latents are like over held-out frames: information, active units, aggregate posterior, correlations."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Below this many nats in all, or without an active unit, the posterior has collapsed: every frame looks alike.
COLLAPSED_NATS = 0.5
_ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, section 5
_VARIES = 1e-12  # below: a mean that is the same for every frame has no correlation with anything


@dataclass(frozen=True)
class Latents:
    """Statistics of q(z|x) over held-out frames; lists have one entry per dimension, in the order of the latent.

    Attributes:
        frames: Held-out frames measured.
        kl_nats: Sum over the dimensions of the KL from the prior, mean over frames: the most that a latent carries.
        kl_nats_by_dimension: The same of each dimension.
        active_units: Dimensions whose mean varies over frames by more than 0.01 (Burda et al. 2016, "Importance
            Weighted Autoencoders", section 5).
        active: Whether each dimension is active.
        variance_of_mean: What decides that.
        aggregate_mean: Mean of the aggregate posterior, the mixture of q(z|x) over frames; the prior has 0.
        aggregate_std: Its standard deviation; the prior has 1.
        aggregate_skew: Its skewness; the prior has 0.
        correlation: Pearson correlation of the means of each pair of dimensions; 0 where a mean never changes.
        mean_abs_correlation: Mean absolute correlation over pairs of active dimensions; 0 with fewer than two.
        strongest_pair: The two active dimensions with the strongest correlation, and it; empty with fewer than two.
        effective_dimensions: Participation ratio of the eigenvalues of the means' covariance, ``(sum λ)² / sum λ²``:
            over how many directions the variance is spread, 1 to latent_dim.
        collapsed: Whether all frames get (almost) the same latent.
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
    m, logvar = mean.astype(np.float64), logvar.astype(np.float64)
    # Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix B, as in the training loss
    kl_by_dimension = 0.5 * (np.square(m) + np.expm1(logvar) - logvar).mean(axis=0)
    kl = float(kl_by_dimension.sum())
    # Moments of an equal mixture of Gaussians: E[(x - c)²] = E[d² + v] and E[(x - c)³] = E[d³ + 3 d v], d = mean - c
    center, variance, within = m.mean(axis=0), m.var(axis=0), np.exp(logvar)
    d = m - center
    std = np.sqrt((d**2 + within).mean(axis=0))
    skew = np.divide((d**3 + 3 * d * within).mean(axis=0), std**3, out=np.zeros_like(std), where=std > 0)
    active = variance > _ACTIVE_VARIANCE
    covariance = d.T @ d / len(d)
    squares = float(np.square(covariance).sum())
    scaled = np.divide(d, np.sqrt(variance * len(d)), out=np.zeros_like(d), where=variance > _VARIES)
    correlation = np.clip(scaled.T @ scaled, -1, 1)
    np.fill_diagonal(correlation, 1.0)
    first, second = np.triu_indices(len(active), 1)
    pairs = active[first] & active[second]
    first, second = first[pairs], second[pairs]
    strength = np.abs(correlation[first, second])
    strongest: list[float] = []
    if len(strength):
        i, j = int(first[strength.argmax()]), int(second[strength.argmax()])
        strongest = [float(i), float(j), float(correlation[i, j])]
    return Latents(
        frames=len(m),
        kl_nats=kl,
        kl_nats_by_dimension=kl_by_dimension.tolist(),
        active_units=int(active.sum()),
        active=active.tolist(),
        variance_of_mean=variance.tolist(),
        aggregate_mean=center.tolist(),
        aggregate_std=std.tolist(),
        aggregate_skew=skew.tolist(),
        correlation=np.round(correlation, 4).tolist(),
        mean_abs_correlation=float(strength.mean()) if len(strength) else 0.0,
        strongest_pair=strongest,
        effective_dimensions=float(np.trace(covariance) ** 2 / squares) if squares > 0 else 0.0,
        collapsed=not active.any() or not math.isfinite(kl) or kl < COLLAPSED_NATS,
    )
