"""How steady the latents are: small shifts and small changes of brightness, and neighbours along a recording.

A distance between latents means nothing by itself: each is given relative to the mean distance between frames drawn at
random ("spread"). 0.1 reads: a tenth of the way to an unrelated frame. The same ratio of the pixels stands beside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_training.report.encoder import Frames

Encode = Callable[[Frames], NDArray[Any]]
SHIFTS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
BRIGHTNESS_LEVELS = 8  # of 255, some 3%: what a cloud does, and no one would call another scene
_PIXELS = 1_000  # frames that pixel distances are taken over, at most: they only give the scale


@dataclass(frozen=True)
class Stability:
    """Distances relative to that between frames at random (1 is "as different as any two frames").

    Attributes:
        frames: Held-out frames measured.
        spread: Mean Euclidean distance between the latents of two held-out frames at random; 0 when all are equal, and
            then every ratio is 0 as well.
        shift_by_direction: Mean change of the latent when the picture moves by one pixel, edges repeated.
        shift: Mean over the four directions.
        shift_pixels: The same of the pixels themselves.
        brightness: Mean change of the latent when every value is raised or lowered by 8 of 255.
        brightness_pixels: The same of the pixels.
        neighbours: Mean distance of the latents of neighbouring frames; None where there are no neighbours.
        neighbors_pixels: The same of the pixels.
        pairs: Pairs of neighbours measured.
    """

    frames: int
    spread: float
    shift_by_direction: dict[str, float]
    shift: float
    shift_pixels: float
    brightness: float
    brightness_pixels: float
    neighbours: float | None
    neighbors_pixels: float | None
    pairs: int


def measure_stability(
    encode: Encode, frames: Frames, neighbours: tuple[Frames, Frames] | None = None, *, seed: int = 0
) -> Stability:
    """Measure how steady an encoder is.

    Args:
        encode: uint8 (N, H, W, C) to (N, latent_dim).
        frames: uint8 (N, H, W, C), N ≥ 2, from held-out recordings.
        neighbours: Two arrays of as many frames, each with the next one of the same recording; None where there are
            none.
        seed: Reproduces the pairs at random.
    """
    base = np.asarray(encode(frames), np.float64)
    one, other = random_pairs(len(frames), seed)
    spread = _distance(base[one], base[other])
    few = frames[:: max(1, -(-len(frames) // _PIXELS))]
    a, b = random_pairs(len(few), seed)
    pixel_spread = _distance(few[a], few[b])

    def relative(changed: Frames) -> float:
        return _ratio(_distance(np.asarray(encode(changed), np.float64), base), spread)

    def pixels(change: Callable[[Frames], Frames]) -> float:
        return _ratio(_distance(change(few), few), pixel_spread)

    shifts = {name: relative(shifted(frames, dy, dx)) for name, (dy, dx) in SHIFTS.items()}
    levels = (BRIGHTNESS_LEVELS, -BRIGHTNESS_LEVELS)
    near = near_pixels = None
    if neighbours is not None and len(neighbours[0]):
        first, second = neighbours
        near = _ratio(_distance(*(np.asarray(encode(side), np.float64) for side in neighbours)), spread)
        near_pixels = _ratio(_distance(first[:_PIXELS], second[:_PIXELS]), pixel_spread)
    return Stability(
        frames=len(frames),
        spread=spread,
        shift_by_direction=shifts,
        shift=_mean(list(shifts.values())),
        shift_pixels=_mean([pixels(lambda f, s=step: shifted(f, *s)) for step in SHIFTS.values()]),
        brightness=_mean([relative(brightened(frames, level)) for level in levels]),
        brightness_pixels=_mean([pixels(lambda f, n=level: brightened(f, n)) for level in levels]),
        neighbours=near,
        neighbors_pixels=near_pixels,
        pairs=0 if neighbours is None else len(neighbours[0]),
    )


def shifted(frames: Frames, down: int, right: int) -> Frames:
    """Frames moved by whole pixels; the edge that comes in repeats the outermost row or column.

    Args:
        frames: (N, H, W, C).
        down: Pixels to move down; negative moves up.
        right: Pixels to move right; negative moves left.

    Example:
        >>> shifted(np.array([1, 2, 3], np.uint8).reshape(1, 1, 3, 1), 0, 1).ravel().tolist()
        [1, 1, 2]
    """
    rows = np.clip(np.arange(frames.shape[1]) - down, 0, frames.shape[1] - 1)
    columns = np.clip(np.arange(frames.shape[2]) - right, 0, frames.shape[2] - 1)
    return np.ascontiguousarray(frames[:, rows][:, :, columns])


def brightened(frames: Frames, levels: int) -> Frames:
    """Frames with every value raised by some levels of 255, as far as 0 and 255 allow.

    Example:
        >>> brightened(np.array([3, 100, 250], np.uint8), 8).tolist(), brightened(np.array([3], np.uint8), -8).tolist()
        ([11, 108, 255], [0])
    """
    return np.clip(frames.astype(np.int16) + levels, 0, 255).astype(np.uint8)


def random_pairs(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of different numbers below `count`: each is the first of some four pairs."""
    rng = np.random.default_rng(seed)
    one = np.tile(np.arange(count), 4)
    return one, (one + rng.integers(1, count, len(one))) % count


def _distance(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Mean Euclidean distance of rows, whatever their shape; in pieces, as pictures in float64 are large."""
    total = 0.0
    for i in range(0, len(one), 256):
        d = one[i : i + 256].astype(np.float64) - other[i : i + 256]
        total += float(np.sqrt(np.square(d).reshape(len(d), -1).sum(axis=1)).sum())
    return total / len(one)


def _ratio(distance: float, spread: float) -> float:
    return distance / spread if spread > 1e-9 else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
