"""Draw frames at random from frame files, by weight, and cut them into batches, one part for each process.

Frames are read and not taken from the memory map: touching a map at random makes resident memory grow with every page,
and a file that was cut short would kill the process.
"""

import math
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latent_obs.util.errors import InputError, check_count
from vae_training.data.frames import Frames, name_of, place_on_disk
from vae_training.model.cvae import images_to_tensor

#: Of each dataset that gives any frames: its number, sorted rows in it, and their places in the result.
Plan = list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]
_THREADS = 32  # more than cores: most of them wait for a disk
_PIECE_FRAMES = 64  # read by a thread at a time
_PIECE_BYTES = 4 << 20  # at most: these are held a second time while they are scaled


def shares(sample_size: int, weights: Sequence[float]) -> list[int]:
    """Split a sample among datasets by weight, by the largest-remainder rule.

    Each dataset's quota is `sample_size * weight / sum(weights)`. It gets the whole part of it; what is left over goes,
    one each, to the largest fractional parts, among equals to the earlier one.

    Args:
        sample_size: Number of frames in all.
        weights: One per dataset, relative: they need not sum to one. Read as decimal numbers: 0.1 is a tenth.

    Raises:
        InputError: `sample_size` is not a positive integer, or weights are empty, negative, not finite or all zero.

    Example:
        >>> shares(10_000, [0.4, 0.2, 0.2, 0.2])
        [4000, 2000, 2000, 2000]
    """
    sample_size = check_count("sample_size", sample_size)
    try:
        exact = [Fraction(repr(float(weight))) for weight in weights]
    except (TypeError, ValueError):  # not a number, or not a finite one
        exact = [Fraction(-1)]
    if min(exact, default=0) < 0 or not sum(exact):
        raise InputError(f"dataset_weights must be finite numbers, zero or more and not all zero, got {list(weights)}")
    quotas = [sample_size * weight / sum(exact) for weight in exact]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: counts[i] - quotas[i])
    for i in by_remainder[: sample_size - sum(counts)]:
        counts[i] += 1
    return counts


def plan_draw(
    datasets: Sequence[Frames],
    sample_size: int,
    dataset_weights: Sequence[float] | None = None,
    *,
    seed: np.random.Generator,
    replace_small: bool = False,
    places: NDArray[np.int64] | None = None,
) -> Plan:
    """Plan the draw of `get_random_samples`, with its arguments and errors, without reading.

    Only the rows of the sample in `places` are planned, all by default; the draw itself does not depend on them.
    """
    if not len(datasets):
        raise InputError("datasets must not be empty; open them with get_datasets(folder)")
    for i, dataset in enumerate(datasets):
        if dataset.dtype != np.uint8 or dataset.ndim != 4 or dataset.shape[1:] != datasets[0].shape[1:]:
            raise InputError(
                f"dataset {i} ({name_of(dataset)}) is {dataset.dtype} {dataset.shape}, expected uint8 (N, H, W, C), "
                f"and frames of one shape; those of dataset 0 ({name_of(datasets[0])}) are {datasets[0].shape[1:]}"
            )
    weights = [1.0] * len(datasets) if dataset_weights is None else list(dataset_weights)
    if len(weights) != len(datasets):
        raise InputError(f"dataset_weights has {len(weights)} entries, expected one per dataset, {len(datasets)}")
    counts = shares(sample_size, weights)
    for dataset, count in zip(datasets, counts, strict=True):
        if count > len(dataset) and not (replace_small and len(dataset)):
            largest = min(len(d) * sum(weights) / w for d, w in zip(datasets, weights, strict=True) if w > 0)
            raise InputError(
                f"sample_size is {sample_size:,}, and the share of {name_of(dataset)} is {count:,} of its "
                f"{len(dataset):,} frames. Ask for {int(largest):,} or fewer in all, lower its weight, add frames, or "
                "let it give frames more than once with replace_small=True"
            )
    # Where each frame goes is the shuffle; what is read stays in file order.
    shuffled = seed.permutation(sample_size)
    if places is not None:
        place_of = np.full(sample_size, -1)
        place_of[places] = np.arange(len(places))
        shuffled = place_of[shuffled]
    plan: Plan = []
    for index, targets in enumerate(np.split(shuffled, np.cumsum(counts)[:-1])):
        if len(targets):
            available, wanted = len(datasets[index]), targets >= 0
            rows = np.sort(seed.choice(available, len(targets), replace=len(targets) > available, shuffle=False))
            plan.append((index, rows[wanted], targets[wanted]))
    return plan


def get_random_samples(
    datasets: Sequence[Frames],
    sample_size: int,
    dataset_weights: Sequence[float] | None = None,
    normalize: bool = True,
    *,
    seed: int | np.random.Generator | None = None,
    replace_small: bool = False,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Draw frames at random, a fixed share from each dataset, in shuffled order.

    Within a dataset no frame comes twice, unless the dataset is smaller than its share and `replace_small` allows it.

    Args:
        datasets: Arrays uint8 (N, H, W, C) from `get_datasets`, views of them, or any in memory.
        sample_size: Number of frames in all.
        dataset_weights: One per dataset, relative, split by the rule of `shares`; equal ones by default.
        normalize: Whether to scale to [0, 1].
        seed: An integer, or a generator (which moves on), that reproduces the draw. None: another draw each time.
        replace_small: Whether a dataset smaller than its share is drawn with repeats; an error otherwise.
        out: Where to put the result, which is then returned; a fresh array by default.

    Returns:
        A C-contiguous, writable array (sample_size, H, W, C); float32 in [0, 1] with `normalize`, else uint8.

    Raises:
        InputError: A share is more than its dataset has, or a file was cut short or removed after it was opened.

    Example:
        >>> dark, bright = np.zeros((50, 8, 8, 3), np.uint8), np.full((50, 8, 8, 3), 255, np.uint8)
        >>> samples = get_random_samples([dark, bright], 10, [0.8, 0.2], seed=0)
        >>> samples.shape, samples.dtype.name, round(float(samples.mean()), 3)
        ((10, 8, 8, 3), 'float32', 0.2)
    """
    if isinstance(seed, int):
        check_count("seed", seed, 0)
    rng = np.random.default_rng(seed)
    plan = plan_draw(datasets, sample_size, dataset_weights, seed=rng, replace_small=replace_small)
    shape, dtype = (int(sample_size), *datasets[0].shape[1:]), np.dtype(np.float32 if normalize else np.uint8)
    if out is None:
        out = np.empty(shape, dtype)
    elif out.shape != shape or out.dtype != dtype or not (out.flags.c_contiguous and out.flags.writeable):
        raise InputError(f"out must be {dtype} {shape}, C-contiguous and writable, got {out.dtype} {out.shape}")
    gather([(datasets[index], rows, targets) for index, rows, targets in plan], out)
    return out


def gather(wanted: Sequence[tuple[Frames, NDArray[np.int64], NDArray[np.int64]]], out: NDArray[Any]) -> None:
    """Fill an array with frames, from their files where they have one: `out[targets] = dataset[rows]`.

    Args:
        wanted: (dataset, sorted rows, targets) for each dataset. The targets of all are different.
        out: C-contiguous (n, H, W, C). As uint8 it gets the frames; as float32, the frames scaled to [0, 1].

    Raises:
        InputError: A file is gone, cut short or cannot be read. What `out` holds then is undefined.
    """
    size, scaled = out[:1].size, out.dtype != np.uint8

    def read(dataset: Frames, rows: NDArray[np.int64], targets: NDArray[np.int64]) -> None:
        place = place_on_disk(dataset)
        into, at = (np.empty((len(rows), *out.shape[1:]), np.uint8), np.arange(len(rows))) if scaled else (out, targets)
        if place is None:
            into[at] = dataset[rows]
        else:
            values = into.reshape(-1).data
            try:
                # Opened for the occasion: a dataset of thousands of files would run into the limit of open ones.
                with place.file.open("rb", buffering=0) as file:
                    for row, target in zip(rows.tolist(), at.tolist(), strict=True):
                        end, missing = place.offset + (row + 1) * size, values[target * size : (target + 1) * size]
                        while missing:
                            count = os.preadv(file.fileno(), [missing], end - len(missing))
                            if not count:
                                raise InputError(f"{place.file} was cut short after it was opened, at frame {row}")
                            missing = missing[count:]
            except OSError as error:
                raise InputError(f"{place.file} can no longer be read: {error.strerror}") from error
        if scaled:
            out[targets] = into / np.float32(255)

    step = max(1, min(_PIECE_FRAMES, _PIECE_BYTES // max(1, size)))
    pieces = [
        (dataset, rows[first : first + step], targets[first : first + step])
        for dataset, rows, targets in wanted
        for first in range(0, len(rows), step)
    ]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="frame-reader") as pool:
        list(pool.map(lambda piece: read(*piece), pieces))  # raises the first error and cancels what has not begun


class SuperBatches(Iterator[Frames]):
    """Iterate over one super-batch per epoch, uint8 (size, H, W, C), with the next one read ahead.

    What epoch e sees is a function of `seed` and e alone, so a run resumed at e sees exactly what an uninterrupted one
    would have. Two super-batches are in memory, the one in use and the next.

    Attributes:
        epoch: The epoch of the super-batch given last; `start_epoch - 1` before the first.
        wait_seconds: Time that the caller has spent waiting for data so far.

    Args:
        datasets, size, dataset_weights, replace_small: As of `get_random_samples`; `size` frames per super-batch.
        seed: Reproduces all of it.
        start_epoch, epochs: Epochs `start_epoch` to `epochs - 1` are given.
        places: Which rows of a super-batch this process reads, int64, each once; all by default. What a row holds does
            not depend on it.
        device: Where the super-batches go. For a CUDA device they are in page-locked memory, so that
            `tensor.to(device, non_blocking=True)` copies at full speed beside the work.

    Raises:
        InputError: A super-batch cannot be drawn (see `get_random_samples`), or an epoch is out of range.

    Example:
        >>> with SuperBatches([np.zeros((50, 8, 8, 3), np.uint8)], 10, epochs=3) as batches:
        ...     [batch.shape for batch in batches]
        [(10, 8, 8, 3), (10, 8, 8, 3), (10, 8, 8, 3)]
    """

    def __init__(
        self,
        datasets: Sequence[Frames],
        size: int,
        *,
        dataset_weights: Sequence[float] | None = None,
        seed: int = 0,
        start_epoch: int = 0,
        epochs: int,
        replace_small: bool = False,
        places: NDArray[np.int64] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value in (("seed", seed), ("start_epoch", start_epoch), ("epochs", epochs)):
            check_count(name, value, 0)
        self._plan = partial(plan_draw, datasets, size, dataset_weights, replace_small=replace_small, places=places)
        self._plan(seed=np.random.default_rng())  # raises if nothing can be drawn
        self.epoch = start_epoch - 1
        self.wait_seconds = 0.0
        self._datasets, self._seed, self._epochs = datasets, seed, epochs
        self._shape = (size if places is None else len(places), *datasets[0].shape[1:])
        self._device = torch.device(device)
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="super-batch")
        self._ahead: Future[Frames] | None = None

    def draw(self, epoch: int) -> Frames:
        """Draw an epoch's super-batch, or its rows in `places`, from a generator of the seed and the epoch."""
        plan = self._plan(seed=np.random.default_rng([self._seed, epoch]))
        if self._device.type == "cuda":
            # torch gives freed page-locked memory out again, which a copy to the GPU may still be reading.
            torch.cuda.synchronize(self._device)
            out = torch.empty(self._shape, dtype=torch.uint8, pin_memory=True).numpy()
        else:
            out = np.empty(self._shape, np.uint8)
        gather([(self._datasets[index], rows, targets) for index, rows, targets in plan], out)
        return out

    def __next__(self) -> Frames:
        if self.epoch + 1 >= self._epochs:
            raise StopIteration
        began = time.perf_counter()
        try:
            batch = (self._ahead or self._reader.submit(self.draw, self.epoch + 1)).result()
        finally:
            self.wait_seconds += time.perf_counter() - began
        self.epoch += 1
        if self.epoch + 1 < self._epochs:
            self._ahead = self._reader.submit(self.draw, self.epoch + 1)
        return batch

    def close(self) -> None:
        """Stop reading ahead; a draw that is under way is waited for and dropped."""
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._ahead = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Share:
    """The part of a batch that a process has: `count` frames (1 or more), from `start` on, of `total` in all.

    `weight` is what its mean counts in the mean over processes: 0 for a part that has a frame only because it must.
    """

    total: int
    start: int
    count: int
    weight: float = 1.0


@dataclass(frozen=True)
class Batch:
    """The input of an objective.

    Attributes:
        images: float32 (N, C, H, W) in [0, 1], on the model's device.
        share: Which part of the whole batch this is; None where it is the whole.
    """

    images: Tensor
    share: Share | None = None

    def __len__(self) -> int:
        return len(self.images)

    def noise(self, *shape: int) -> Tensor:
        """Draw standard normal numbers ``(N, *shape)``, float32; the generators of all processes agree."""
        share = self.share or Share(len(self), 0, len(self))
        whole = torch.randn(share.total, *shape, device=self.images.device)
        return whole[share.start : share.start + share.count]


def make_batch(frames: Frames, device: torch.device, share: Share | None = None) -> Batch:
    """Put frames uint8 (N, H, W, C) on the device."""
    return Batch(images_to_tensor(torch.from_numpy(frames).to(device, non_blocking=True)), share)


class BatchParts:
    """Cuts a super-batch of `size` frames into batches, and each batch among the processes (`rank` of `ranks`).

    A batch of n frames is cut into contiguous parts of n / processes, the first ones a frame longer where it does not
    divide. Where there are fewer frames than processes, those left without take the batch's first frame, with weight 0.

    Attributes:
        places: int64, the rows of the super-batch that this process reads, in the order in which it uses them.
        shares: For each batch, which part this process has.
        rows: For each batch, the slice of this process's own rows.

    Example:
        >>> parts = BatchParts(size=10, batch=4, rank=1, ranks=2)
        >>> parts.places.tolist(), len(parts)
        ([2, 3, 6, 7, 9], 3)
        >>> parts.rows[2], parts.shares[2]
        (slice(4, 5, None), Share(total=2, start=1, count=1, weight=1.0))
    """

    def __init__(self, size: int, batch: int, rank: int = 0, ranks: int = 1) -> None:
        self.shares: list[Share] = []
        self.rows: list[slice] = []
        places: list[int] = []
        for first in range(0, size, batch):
            whole = np.arange(first, min(first + batch, size))
            part = np.array_split(whole, ranks)[rank]
            weight = len(part) * ranks / len(whole)
            if not len(part):
                part = whole[:1]
            self.shares.append(Share(len(whole), int(part[0]) - first, len(part), weight))
            self.rows.append(slice(len(places), len(places) + len(part)))
            places += part.tolist()
        self.places = np.array(places, np.int64)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.shares)
