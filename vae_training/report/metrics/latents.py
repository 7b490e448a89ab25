"""What the latents are like over held-out frames: information, activity, correlations, and how steady they are."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_training.report.encoder import Frames

#: Below this many nats in all, or without an active unit, the posterior has collapsed: every frame looks alike, if not
#: for principal components.
COLLAPSED_NATS = 0.5
_ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, section 5
_VARIES = 1e-12  # below: a mean that is the same for every frame has no correlation with anything
SHIFTS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
BRIGHTNESS_LEVELS = 8  # of 255, some 3%: what a cloud does, and no one would call another scene
_PIXELS = 1_000  # frames that pixel distances are taken over, at most: they only give the scale


@dataclass(frozen=True)
class Latents:
    """Statistics of q(z|x) over held-out frames; lists have one entry per dimension, in the order of the latent.

    The aggregate posterior is the mixture of q(z|x) over frames; the prior has mean 0, std 1, skewness 0.
    A dimension is active if its mean varies over frames by more than 0.01 (Burda et al. 2016, "Importance Weighted
    Autoencoders", section 5). Correlations are Pearson's, of the means; 0 where one never changes.
    """

    frames: int  # held-out frames measured
    kl_nats: float  # KL from the prior, summed over learned dimensions, mean over frames: the most that these carry
    kl_nats_by_dimension: list[float]
    active_units: int  # number of active dimensions
    active: list[bool]
    variance_of_mean: list[float]
    aggregate_mean: list[float]
    aggregate_std: list[float]
    aggregate_skew: list[float]
    correlation: list[list[float]]
    mean_abs_correlation: float  # over pairs of active dimensions; 0 with fewer than two
    strongest_pair: list[float]  # the two active dimensions with the strongest correlation, and it; or empty
    effective_dimensions: (
        float  # (sum λ)² / sum λ² of the means' covariance: directions of the variance, 1 to latent_dim
    )
    collapsed: bool  # whether the learned values are (almost) the same for all frames
    components: int = 0  # how many dimensions, the first ones, are principal components

    @property
    def latent_dim(self) -> int:
        """Dimensions of the latent."""
        return len(self.active)

    @property
    def learned(self) -> int:
        """How many dimensions are no principal components."""
        return self.latent_dim - self.components

    @property
    def by_information(self) -> list[int]:
        """Dimensions in the order of their KL, the most first."""
        return np.argsort(np.array(self.kl_nats_by_dimension), kind="stable")[::-1].tolist()


def describe(mean: NDArray[np.floating[Any]], logvar: NDArray[np.floating[Any]], *, components: int = 0) -> Latents:
    """Statistics of the latents of frames.

    Args:
        mean: (N, latent_dim), means of q(z|x).
        logvar: (N, latent_dim), log-variances.
        components: How many of the values, the first ones, are principal components: their KL counts as 0.

    Example:
        >>> described = describe(np.array([[0.0, 1.0], [0.0, -1.0]]), np.zeros((2, 2)))
        >>> described.active_units, described.kl_nats_by_dimension
        (1, [0.0, 0.5])
    """
    m, logvar = mean.astype(np.float64), logvar.astype(np.float64)
    # Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix B, as in the training loss
    kl_by_dimension = 0.5 * (np.square(m) + np.expm1(logvar) - logvar).mean(axis=0)
    kl_by_dimension[:components] = 0
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
        collapsed=not active.any() or not math.isfinite(kl) or (not active[:components].any() and kl < COLLAPSED_NATS),
        components=components,
    )


@dataclass(frozen=True)
class Stability:
    """How far small changes move the latent, as a share of the distance between two held-out frames at random.

    Numbers of "pixels" are the same of the pixels themselves. All are 0 where all latents are equal.
    """

    frames: int  # held-out frames measured
    spread: float  # mean Euclidean distance between the latents of two held-out frames at random
    shift_by_direction: dict[str, float]  # the picture moves by one pixel, edges repeated
    shift: float  # mean over the four directions
    shift_pixels: float
    brightness: float  # every value is raised or lowered by 8 of 255
    brightness_pixels: float
    neighbors: float | None  # distance of frames that follow each other; None where there are none
    neighbors_pixels: float | None
    pairs: int  # of neighbors measured


def measure_stability(
    encode: Callable[[Frames], NDArray[Any]],
    frames: Frames,
    neighbors: tuple[Frames, Frames] | None = None,
    *,
    seed: int = 0,
) -> Stability:
    """Measure how steady an encoder is.

    Args:
        encode: uint8 (N, H, W, C) to (N, latent_dim).
        frames: uint8 (N, H, W, C), N ≥ 2, from held-out recordings.
        neighbors: Two arrays of as many frames, each with the next one of the same recording.
        seed: Reproduces the pairs at random.
    """

    def changes(
        encode: Callable[[Frames], NDArray[Any]], frames: Frames, near: tuple[Frames, Frames] | None
    ) -> tuple[float, dict[str, float], float, float | None]:
        base = encode(frames)
        one, other = random_pairs(len(frames), seed)
        spread = _distance(base[one], base[other])

        def relative(a: NDArray[Any], b: NDArray[Any]) -> float:
            return _distance(a, b) / spread if spread > 1e-9 else 0.0

        shifts = {name: relative(encode(shifted(frames, *step)), base) for name, step in SHIFTS.items()}
        levels = (BRIGHTNESS_LEVELS, -BRIGHTNESS_LEVELS)
        brightness = float(np.mean([relative(encode(brightened(frames, level)), base) for level in levels]))
        return spread, shifts, brightness, None if near is None else relative(encode(near[0]), encode(near[1]))

    spread, shifts, brightness, near = changes(encode, frames, neighbors)
    few = frames[:: max(1, -(-len(frames) // _PIXELS))]
    few_neighbors = None if neighbors is None else (neighbors[0][:_PIXELS], neighbors[1][:_PIXELS])
    _, pixel_shifts, pixel_brightness, pixel_near = changes(lambda pixels: pixels, few, few_neighbors)
    shift, pixel_shift = (float(np.mean(list(values.values()))) for values in (shifts, pixel_shifts))
    pairs = 0 if neighbors is None else len(neighbors[0])
    ratios = (shift, pixel_shift, brightness, pixel_brightness, near, pixel_near)
    return Stability(len(frames), spread, shifts, *ratios, pairs)


def shifted(frames: Frames, down: int, right: int) -> Frames:
    """Frames, (N, H, W, C), moved by whole pixels; the edge that comes in repeats the outermost row or column."""
    rows, columns = (np.arange(size) - by for size, by in zip(frames.shape[1:3], (down, right), strict=True))
    return frames.take(rows, axis=1, mode="clip").take(columns, axis=2, mode="clip")


def brightened(frames: Frames, levels: int) -> Frames:
    """Frames with every value raised by some levels of 255, as far as 0 and 255 allow."""
    return np.clip(frames.astype(np.int16) + levels, 0, 255).astype(np.uint8)


def random_pairs(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of different numbers below `count`: each is the first of four pairs."""
    one = np.tile(np.arange(count), 4)
    return one, (one + np.random.default_rng(seed).integers(1, count, len(one))) % count


def _distance(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Mean Euclidean distance of rows, whatever their shape; in pieces, as pictures in float64 are large."""
    total = 0.0
    for i in range(0, len(one), 256):
        d = one[i : i + 256].astype(np.float64) - other[i : i + 256]
        total += float(np.sqrt(np.square(d).reshape(len(d), -1).sum(axis=1)).sum())
    return total / len(one)
