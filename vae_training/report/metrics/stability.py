"""How steady the latents are: small shifts and small changes of brightness, and neighbors along a recording.

A distance between latents means nothing by itself: each is given relative to the mean distance between frames drawn at
random ("spread"). 0.1 reads: a tenth of the way to an unrelated frame. The same ratio of the pixels stands beside it.
"""

from collections.abc import Callable
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
        neighbours: Mean distance of the latents of neighboring frames; None where there are none.
        neighbors_pixels: The same of the pixels.
        pairs: Pairs of neighbors measured.
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
    encode: Encode, frames: Frames, neighbors: tuple[Frames, Frames] | None = None, *, seed: int = 0
) -> Stability:
    """Measure how steady an encoder is.

    Args:
        encode: uint8 (N, H, W, C) to (N, latent_dim).
        frames: uint8 (N, H, W, C), N ≥ 2, from held-out recordings.
        neighbors: Two arrays of as many frames, each with the next one of the same recording.
        seed: Reproduces the pairs at random.
    """
    spread, shifts, brightness, near = _changes(encode, frames, neighbors, seed)
    few = frames[:: max(1, -(-len(frames) // _PIXELS))]
    few_neighbors = None if neighbors is None else (neighbors[0][:_PIXELS], neighbors[1][:_PIXELS])
    _, pixel_shifts, pixel_brightness, pixel_near = _changes(lambda pixels: pixels, few, few_neighbors, seed)
    return Stability(
        frames=len(frames),
        spread=spread,
        shift_by_direction=shifts,
        shift=float(np.mean(list(shifts.values()))),
        shift_pixels=float(np.mean(list(pixel_shifts.values()))),
        brightness=brightness,
        brightness_pixels=pixel_brightness,
        neighbours=near,
        neighbors_pixels=pixel_near,
        pairs=0 if neighbors is None else len(neighbors[0]),
    )


def _changes(
    encode: Encode, frames: Frames, neighbors: tuple[Frames, Frames] | None, seed: int
) -> tuple[float, dict[str, float], float, float | None]:
    """The spread, and relative to it the distances by shift, by brightness and between neighbors."""
    base = encode(frames)
    one, other = random_pairs(len(frames), seed)
    spread = _distance(base[one], base[other])

    def relative(a: NDArray[Any], b: NDArray[Any]) -> float:
        return _distance(a, b) / spread if spread > 1e-9 else 0.0

    shifts = {name: relative(encode(shifted(frames, *step)), base) for name, step in SHIFTS.items()}
    levels = (BRIGHTNESS_LEVELS, -BRIGHTNESS_LEVELS)
    brightness = float(np.mean([relative(encode(brightened(frames, level)), base) for level in levels]))
    near = None if neighbors is None else relative(encode(neighbors[0]), encode(neighbors[1]))
    return spread, shifts, brightness, near


def shifted(frames: Frames, down: int, right: int) -> Frames:
    """Frames, (N, H, W, C), moved by whole pixels; the edge that comes in repeats the outermost row or column."""
    rows = np.clip(np.arange(frames.shape[1]) - down, 0, frames.shape[1] - 1)
    columns = np.clip(np.arange(frames.shape[2]) - right, 0, frames.shape[2] - 1)
    return np.ascontiguousarray(frames[:, rows][:, :, columns])


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
