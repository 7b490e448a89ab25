"""Draw frames at random from frame files, by weight, without ever holding more than the sample."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_obs.errors import InputError
from vae_training.frame_reader import gather


def shares(sample_size: int, weights: Sequence[float]) -> list[int]:
    """Split a sample among datasets by weight, by the largest-remainder rule.

    Each dataset's quota is `sample_size * weight / sum(weights)`. It gets the whole part of it first; what is left over
    goes, one each, to the datasets with the largest fractional parts, among equals to the earlier one. So the shares
    add up to `sample_size` exactly, each is within one of its quota, and a weight of zero gets nothing. The arithmetic
    is exact on the decimal numbers given: 0.1 is a tenth.

    Args:
        sample_size: Number of frames in all.
        weights: One per dataset, relative: they need not sum to one.

    Returns:
        Number of frames from each dataset.

    Raises:
        InputError: `sample_size` is not a positive integer, or weights are empty, negative, not finite or all zero.

    Example:
        >>> shares(10_000, [0.4, 0.2, 0.2, 0.2])
        [4000, 2000, 2000, 2000]
        >>> shares(10, [1, 1, 1])
        [4, 3, 3]
    """
    sample_size = _checked_size(sample_size)
    exact = [Fraction(repr(float(weight))) if _is_weight(weight) else None for weight in weights]
    for i, weight in enumerate(exact):
        if weight is None:
            raise InputError(f"dataset_weights must be finite numbers, zero or more, got {weights[i]!r} for dataset {i}")
    known = [weight for weight in exact if weight is not None]
    total = sum(known)
    if not total:
        raise InputError(f"dataset_weights must hold at least one weight above zero, got {list(weights)}")
    quotas = [sample_size * weight / total for weight in known]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: (counts[i] - quotas[i], i))
    for i in by_remainder[: sample_size - sum(counts)]:
        counts[i] += 1
    return counts


def plan_shares(
    datasets: Sequence[NDArray[np.uint8]],
    sample_size: int,
    dataset_weights: Sequence[float] | None = None,
    *,
    replace_small: bool = False,
) -> list[int]:
    """How many frames to draw from each dataset; every check of `get_random_samples`, without reading a frame.

    Args:
        datasets: Arrays uint8 (N, H, W, C).
        sample_size: Number of frames in all.
        dataset_weights: One per dataset, relative; equal ones when not given.
        replace_small: Whether a dataset smaller than its share may give a frame more than once.

    Returns:
        Number of frames from each dataset.

    Raises:
        InputError: As `get_random_samples`.

    Example:
        >>> plan_shares([np.zeros((9, 8, 8, 3), np.uint8)] * 2, 4)
        [2, 2]
    """
    if not len(datasets):
        raise InputError("no datasets to draw from; open them with get_datasets(folder)")
    for i, dataset in enumerate(datasets):
        if dataset.dtype != np.uint8 or dataset.ndim != 4:
            raise InputError(f"{_name(i, dataset)} is {dataset.dtype} {dataset.shape}, expected uint8 (N, H, W, C)")
        if dataset.shape[1:] != datasets[0].shape[1:]:
            raise InputError(
                f"{_name(i, dataset)} has frames of shape {dataset.shape[1:]}, {_name(0, datasets[0])} of "
                f"{datasets[0].shape[1:]}; frames of one sample need one shape. Resize the frames of one of them"
            )
    weights = [1.0] * len(datasets) if dataset_weights is None else list(dataset_weights)
    if len(weights) != len(datasets):
        raise InputError(f"dataset_weights has {len(weights)} entries, expected one per dataset, {len(datasets)}")
    counts = shares(sample_size, weights)
    frames = [len(dataset) for dataset in datasets]
    for i, (count, available) in enumerate(zip(counts, frames, strict=True)):
        if count and not available:
            raise InputError(f"{_name(i, datasets[i])} has no frames; leave it out, or give it a weight of zero")
    if not replace_small and sample_size > sum(frames):
        raise InputError(
            f"sample_size {sample_size:,} is more than the {sum(frames):,} frames of all {len(datasets)} dataset(s). "
            f"Ask for {_largest_size(frames, weights):,} or fewer, add frames, or allow repeats with replace_small=True"
        )
    for i, (count, available) in enumerate(zip(counts, frames, strict=True)):
        if count > available and not replace_small:
            raise InputError(
                f"{_name(i, datasets[i])} has {available:,} frames, and its share of {sample_size:,} is {count:,}. Ask "
                f"for {_largest_size(frames, weights):,} or fewer in all, lower its weight, add frames to it, or let "
                "it give frames more than once with replace_small=True"
            )
    return counts


def get_random_samples(
    datasets: Sequence[NDArray[np.uint8]],
    sample_size: int,
    dataset_weights: Sequence[float] | None = None,
    normalize: bool = True,
    *,
    seed: int | np.random.Generator | None = None,
    replace_small: bool = False,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Draw frames at random, a fixed share from each dataset, in shuffled order.

    Shares are equal without weights, else by the largest-remainder rule of `shares`. Within a dataset no frame comes
    twice, unless the dataset is smaller than its share and `replace_small` allows it.

    Args:
        datasets: Arrays uint8 (N, H, W, C) from `get_datasets`, views of them, or any in memory.
        sample_size: Number of frames in all.
        dataset_weights: One per dataset, relative: they need not sum to one.
        normalize: Whether to scale to [0, 1].
        seed: Anything that reproduces the draw: an integer, or a generator (which moves on). None: another each time.
        replace_small: Whether a dataset smaller than its share is drawn with repeats; an error otherwise.
        out: Where to put the result: an array as described below, which is then returned. A fresh one by default.

    Returns:
        A fresh, C-contiguous, writable array (sample_size, H, W, C): float32 in [0, 1] with `normalize`, else uint8.

    Raises:
        InputError: A share is more than its dataset has, the weights do not fit the datasets, `sample_size` is not
            a positive integer, the datasets are none or differ in frame shape, `out` is not what it should be, or a file
            was changed or removed after it was opened.

    Example:
        >>> dark, bright = np.zeros((50, 8, 8, 3), np.uint8), np.full((50, 8, 8, 3), 255, np.uint8)
        >>> samples = get_random_samples([dark, bright], 10, [0.8, 0.2], seed=0)
        >>> samples.shape, samples.dtype.name, round(float(samples.mean()), 3)
        ((10, 8, 8, 3), 'float32', 0.2)
    """
    counts = plan_shares(datasets, sample_size, dataset_weights, replace_small=replace_small)
    if isinstance(seed, int) and seed < 0:
        raise InputError(f"seed must be zero or more, got {seed}")
    rng = np.random.default_rng(seed)
    shape, dtype = (int(sample_size), *datasets[0].shape[1:]), np.dtype(np.float32 if normalize else np.uint8)
    if out is None:
        out = np.empty(shape, dtype)
    elif out.shape != shape or out.dtype != dtype or not (out.flags.c_contiguous and out.flags.writeable):
        raise InputError(f"out must be {dtype} {shape}, C-contiguous and writable, got {out.dtype} {out.shape}")
    # Where each frame goes is the shuffle; what is read stays in file order.
    places = rng.permutation(sample_size)
    ends = np.cumsum(counts)
    wanted = [
        (dataset, drawn_rows(rng, len(dataset), count), places[end - count : end])
        for dataset, count, end in zip(datasets, counts, ends.tolist(), strict=True)
        if count
    ]
    gather(wanted, out)
    return out


def drawn_rows(rng: np.random.Generator, frames: int, count: int) -> NDArray[np.int64]:
    """Which frames of a dataset to take, sorted; with repeats where it has fewer than `count`."""
    return np.sort(rng.choice(frames, count, replace=count > frames, shuffle=False))


def _largest_size(frames: Sequence[int], weights: Sequence[float]) -> int:
    """The largest sample whose shares all fit, up to rounding."""
    total = sum(weights)
    size = int(min(n * total / weight for n, weight in zip(frames, weights, strict=True) if weight > 0))
    while size > 0 and any(s > n for s, n in zip(shares(size, weights), frames, strict=True)):
        size -= 1
    return size


def _checked_size(value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < 1:
        raise InputError(f"sample_size must be a positive integer, got {value!r}")
    return value.__index__()


def _is_weight(value: Any) -> bool:
    try:
        return math.isfinite(value) and value >= 0
    except TypeError:
        return False


def _name(index: int, dataset: NDArray[Any]) -> str:
    """A dataset by number and file, for a message."""
    filename = getattr(dataset, "filename", None)
    return f"dataset {index} ({filename})" if filename else f"dataset {index}"
