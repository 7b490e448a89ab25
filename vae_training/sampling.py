"""Draw frames at random from frame files, by weight, without ever holding more than the sample.

Frames are read with `pread` in file order and not through the memory map: touching a map at random makes resident
memory grow with every page, and one read per frame in random order turned minutes an epoch into hours elsewhere.
"""

import math
import mmap
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latent_obs.errors import InputError

_SCRATCH_BYTES = 16 << 20  # read at a time; a few hundred frames or more


class _Place(NamedTuple):
    """Where the frames of an array lie on disk."""

    file: Path
    offset: int


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

    Returns:
        A fresh, C-contiguous, writable array (sample_size, H, W, C): float32 in [0, 1] with `normalize`, else uint8.

    Raises:
        InputError: A share is more than its dataset has, the weights do not fit the datasets, `sample_size` is not a
            positive integer, or the datasets are none or differ in frame shape.

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
    frame_shape = datasets[0].shape[1:]
    out = np.empty((sample_size, *frame_shape), np.float32 if normalize else np.uint8)
    at_once = max(1, min(max(counts), _SCRATCH_BYTES // max(1, math.prod(frame_shape))))
    scratch = np.empty((at_once, *frame_shape), np.uint8)
    # Where each frame goes is the shuffle; what is read stays in file order.
    places = rng.permutation(sample_size)
    start = 0
    for dataset, count in zip(datasets, counts, strict=True):
        if not count:
            continue
        rows = np.sort(rng.choice(len(dataset), count, replace=count > len(dataset), shuffle=False))
        targets = places[start : start + count]
        start += count
        with _Reader(dataset) as reader:
            for i in range(0, count, at_once):
                part = scratch[: min(at_once, count - i)]
                reader.read(rows[i : i + at_once], part)
                out[targets[i : i + at_once]] = part  # to float32 on the way, with normalize
    if normalize:
        out /= np.float32(255)  # in place: the whole costs the result and one scratch buffer
    return out


class _Reader:
    """Read rows of one dataset, from its file where it has one."""

    def __init__(self, dataset: NDArray[np.uint8]) -> None:
        self._dataset = dataset
        self._place = _place_on_disk(dataset)
        self._fd = -1

    def __enter__(self) -> "_Reader":
        if self._place is not None:
            try:
                self._fd = os.open(self._place.file, os.O_RDONLY)
            except OSError as error:
                raise InputError(f"{self._place.file} can no longer be read: {error.strerror}") from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def read(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Read frames into a buffer.

        Args:
            rows: Sorted frame numbers (n,), repeats allowed.
            out: C-contiguous uint8 (n, H, W, C) to fill.
        """
        if self._place is None:
            out[:] = self._dataset[rows]
            return
        frame_bytes = out[:1].nbytes
        buffer = out.reshape(-1).data
        # A run is a stretch of neighbours, read in one call; np.diff of a repeat is 0 and begins a new run.
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        for first, last in zip([0, *breaks.tolist()], [*breaks.tolist(), len(rows)], strict=True):
            offset = self._place.offset + int(rows[first]) * frame_bytes
            _read_into(self._fd, buffer[first * frame_bytes : last * frame_bytes], offset, self._place.file)


def _read_into(fd: int, buffer: memoryview, offset: int, file: Path) -> None:
    """Fill a buffer from a place in a file; a single call may give less than was asked for."""
    done = 0
    while done < len(buffer):
        count = os.preadv(fd, [buffer[done:]], offset + done)
        if not count:
            size = os.fstat(fd).st_size  # not where this read stopped: it may have begun beyond the end
            raise InputError(f"{file} ends at byte {size:,}, before its last frame: it was changed after opening")
        done += count


def _place_on_disk(dataset: NDArray[np.uint8]) -> _Place | None:
    """File and byte offset of an array's first frame, or None where it has to be read through numpy.

    A slice of a memory map keeps the `filename` and `offset` of the whole, so that its own offset is found from the
    distance between the two in memory.
    """
    if not isinstance(dataset, np.memmap) or not dataset.flags.c_contiguous or not hasattr(os, "preadv"):
        return None
    whole = dataset
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    # Anything else than a map of the file itself may differ from the file: a copy, or copy-on-write pages.
    if not isinstance(whole.base, mmap.mmap) or whole.mode not in ("r", "r+", "w+") or whole.filename is None:
        return None
    distance = dataset.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    return _Place(Path(whole.filename), whole.offset + distance)


def _largest_size(frames: Sequence[int], weights: Sequence[float]) -> int:
    """The largest sample whose shares all fit, up to rounding."""
    total = sum(weights)
    size = int(min(n * total / weight for n, weight in zip(frames, weights, strict=True) if weight > 0))
    while size > 0 and any(s > n for s, n in zip(shares(size, weights), frames, strict=True)):
        size -= 1
    return size


def _checked_size(sample_size: Any) -> int:
    if isinstance(sample_size, bool) or not hasattr(sample_size, "__index__") or sample_size.__index__() < 1:
        raise InputError(f"sample_size must be a positive integer, got {sample_size!r}")
    return sample_size.__index__()


def _is_weight(value: Any) -> bool:
    try:
        return math.isfinite(value) and value >= 0
    except TypeError:
        return False


def _name(index: int, dataset: NDArray[Any]) -> str:
    """A dataset by number and file, for a message."""
    filename = getattr(dataset, "filename", None)
    return f"dataset {index} ({filename})" if filename else f"dataset {index}"
