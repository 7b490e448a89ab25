"""Draw frames at random from frame files, by weight, without ever holding more than the sample."""

import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latent_obs.util.errors import InputError
from vae_training.data.frame_reader import gather
from vae_training.data.transitions import Transitions
from vae_training.model.cvae import images_to_tensor


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
            raise InputError(
                f"dataset_weights must be finite numbers, zero or more, got {weights[i]!r} for dataset {i}"
            )
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
            a positive integer, the datasets are none or differ in frame shape, `out` is not what it should be, or a
            file was changed or removed after it was opened.

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


def draw_places(
    datasets: Sequence[NDArray[np.uint8]],
    sample_size: int,
    dataset_weights: Sequence[float] | None,
    places: NDArray[np.int64],
    *,
    seed: np.random.Generator,
    replace_small: bool = False,
    out: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """Rows `places` of what `get_random_samples` gives; only these are read.

    The generator is used as there, so that ``draw_places(..., places)`` equals ``get_random_samples(...)[places]``.

    Args:
        datasets: As for `get_random_samples`, as all others down to `replace_small`.
        sample_size: Number of frames of the whole sample.
        dataset_weights: One per dataset, relative.
        places: Rows of the sample to read; one may come twice.
        seed: A generator.
        replace_small: Whether a dataset smaller than its share may give a frame more than once.
        out: Where to put them: uint8 (len(places), H, W, C).

    Example:
        >>> data = [np.arange(40, dtype=np.uint8).reshape(10, 1, 1, 4)]
        >>> out = np.empty((2, 1, 1, 4), np.uint8)
        >>> part = draw_places(data, 6, None, np.array([5, 0]), seed=np.random.default_rng(0), out=out)
        >>> from vae_training.data.loader import get_random_samples
        >>> whole = get_random_samples(data, 6, normalize=False, seed=np.random.default_rng(0))
        >>> bool((part == whole[[5, 0]]).all())
        True
    """
    plan = plan_draw(datasets, sample_size, dataset_weights, seed=seed, replace_small=replace_small, places=places)
    gather([(datasets[index], rows, targets) for index, rows, targets in plan], out)
    return out


def plan_draw(
    datasets: Sequence[NDArray[np.uint8]],
    sample_size: int,
    dataset_weights: Sequence[float] | None,
    *,
    seed: np.random.Generator,
    replace_small: bool = False,
    places: NDArray[np.int64] | None = None,
) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """The draw of `get_random_samples`, without reading anything: what goes where.

    Args:
        datasets: As for `get_random_samples`, as all others down to `replace_small`.
        sample_size: Number of frames of the whole sample.
        dataset_weights: One per dataset, relative.
        seed: A generator.
        replace_small: Whether a dataset smaller than its share may give a frame more than once.
        places: Rows of the sample that are wanted; one may come twice. All by default.

    Returns:
        (number of the dataset, sorted rows in it, where each goes in the result) for each dataset that gives any.

    Example:
        >>> plan_draw([np.zeros((3, 1, 1, 1), np.uint8)], 2, None, seed=np.random.default_rng(0))
        [(0, array([1, 2]), array([0, 1]))]
    """
    counts = plan_shares(datasets, sample_size, dataset_weights, replace_small=replace_small)
    shuffled = seed.permutation(sample_size)
    order = None if places is None else np.argsort(places, kind="stable")
    in_order = None if places is None or order is None else places[order]
    plan: list[tuple[int, NDArray[np.int64], NDArray[np.int64]]] = []
    for index, (dataset, count, end) in enumerate(zip(datasets, counts, np.cumsum(counts).tolist(), strict=True)):
        if not count:
            continue
        rows, targets = drawn_rows(seed, len(dataset), count), shuffled[end - count : end]
        if order is not None and in_order is not None:
            # Where each of this dataset's frames is wanted: a range of `in_order`, empty, of one or of more.
            first = np.searchsorted(in_order, targets, side="left")
            times = np.searchsorted(in_order, targets, side="right") - first
            offsets = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
            rows, targets = np.repeat(rows, times), order[np.repeat(first, times) + offsets]
        if len(rows):
            plan.append((index, rows, targets))
    return plan


Frames = NDArray[np.uint8]
Drawn = Any  # Frames; a SuperBatch with transitions. Who asks for these knows, and who does not need not look

_LET_GO_SECONDS = 0.25


class SuperBatches(Iterator[Drawn]):
    """Iterate over one super-batch per epoch, uint8 (size, H, W, C), with the next one read ahead.

    With `transitions` each is a `SuperBatch`: the frames, and what follows each. It takes twice the memory.

    What epoch e sees is a function of `seed` and e alone, so a run resumed at e sees exactly what an uninterrupted one
    would have: there is no other state of the sampler to save. At most two super-batches are in memory, the one in use
    and the next, as long as the caller keeps none; their memory is used again once nobody holds them, or a part of
    them.

    Attributes:
        epoch: The epoch of the super-batch given last; `start_epoch - 1` before the first.
        wait_seconds: Time that the caller has spent waiting for data so far.

    Args:
        datasets: Arrays uint8 (N, H, W, C), from `get_datasets`.
        size: Frames per super-batch.
        dataset_weights: One per dataset, relative; equal ones when not given.
        seed: Reproduces all of it.
        start_epoch: The first epoch to give.
        epochs: Where to stop: epochs `start_epoch` to `epochs - 1` are given.
        replace_small: Whether a dataset smaller than its share is drawn with repeats; an error otherwise.
        places: Which rows of a super-batch this process reads, int64, each once or more; all by default. What a row
            holds does
            not depend on it: the processes of a run read their parts of one and the same super-batch.
        transitions: Read what follows each frame, too.
        device: Where the super-batches go. For a CUDA device they are in page-locked memory, so that
            `tensor.to(device, non_blocking=True)` copies at full speed beside the work.

    Raises:
        InputError: The super-batch cannot be drawn from this data (see `get_random_samples`), or an epoch is out of
            range; at once, not when the first is asked for.

    Example:
        >>> with SuperBatches([np.zeros((50, 8, 8, 3), np.uint8)], 10, epochs=3) as batches:
        ...     [batch.shape for batch in batches]
        [(10, 8, 8, 3), (10, 8, 8, 3), (10, 8, 8, 3)]
    """

    def __init__(
        self,
        datasets: Sequence[NDArray[np.uint8]],
        size: int,
        *,
        dataset_weights: Sequence[float] | None = None,
        seed: int = 0,
        start_epoch: int = 0,
        epochs: int,
        replace_small: bool = False,
        places: NDArray[np.int64] | None = None,
        transitions: Transitions | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value in (("seed", seed), ("start_epoch", start_epoch), ("epochs", epochs)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InputError(f"{name} must be an integer, zero or more, got {value!r}")
        plan_shares(datasets, size, dataset_weights, replace_small=replace_small)
        self.epoch = start_epoch - 1
        self.wait_seconds = 0.0
        self._datasets = list(datasets)
        self._size = size
        self._weights = dataset_weights
        self._seed = seed
        self._epochs = epochs
        self._replace_small = replace_small
        self._places = places
        self._transitions = transitions
        shape = (size if places is None else len(places), *datasets[0].shape[1:])
        self._buffers = _Buffers(shape, torch.device(device), arrays=2 if transitions is None else 4)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="super-batch")
        self._next: Future[Drawn] | None = None
        self._previous_gone: threading.Event | None = None
        self._closed = False

    def draw(self, epoch: int) -> Drawn:
        """The super-batch of an epoch, drawn here and now: uint8 (size, H, W, C), or the rows in `places` of it.

        As `get_random_samples` draws it from a generator of the seed and the epoch.
        """
        plan = plan_draw(
            self._datasets,
            self._size,
            self._weights,
            seed=np.random.default_rng([self._seed, epoch]),
            replace_small=self._replace_small,
            places=self._places,
        )
        frames = self._buffers.take()
        gather([(self._datasets[index], rows, targets) for index, rows, targets in plan], frames)
        return frames if self._transitions is None else self._transitions.read(plan, frames, self._buffers.take())

    def __len__(self) -> int:
        """Number of epochs that are still to come."""
        return max(0, self._epochs - 1 - self.epoch)

    def __next__(self) -> Drawn:
        if self._closed:
            raise InputError("these SuperBatches are closed; iterate over them inside their `with` block")
        if not len(self):
            raise StopIteration
        begun = time.perf_counter()
        if self._next is None:
            self._next = self._executor.submit(self._draw_after, self.epoch + 1, None)
        try:
            batch = self._next.result()
        finally:
            self.wait_seconds += time.perf_counter() - begun
        self._next = None
        self.epoch += 1
        if self.epoch + 1 < self._epochs:
            self._next = self._executor.submit(self._draw_after, self.epoch + 1, self._previous_gone)
        self._previous_gone = _when_gone(batch["frames"] if isinstance(batch, dict) else batch)
        return batch

    def _draw_after(self, epoch: int, gone: threading.Event | None) -> Drawn:
        # The caller's loop variable holds the previous super-batch for a moment after the next was handed over. Drawing
        # waits for it to go, but not for ever: who keeps every super-batch gets them all the same.
        if gone is not None:
            gone.wait(_LET_GO_SECONDS)
        return self.draw(epoch)

    def close(self) -> None:
        """Stop reading ahead; a draw that is under way is waited for and dropped."""
        self._closed = True
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._next = None
        self._buffers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"SuperBatches({len(self._datasets)} datasets, size={self._size}, seed={self._seed}, epoch {self.epoch} of "
            f"{self._epochs})"
        )


class _Memory:
    """Memory that numpy makes an array of without seeing that it is another array's."""

    def __init__(self, owner: Frames) -> None:
        self._owner = owner
        self.__array_interface__ = owner.__array_interface__


class _Buffers:
    """Arrays of one shape, whose memory is used again once nobody holds them: new memory costs as much as reading
    does.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device, arrays: int) -> None:
        self._shape = shape
        self._device = device
        self._free: deque[_Memory] | None = deque(
            maxlen=arrays
        )  # of the one in use and the next; more are not worth keeping

    def take(self) -> Frames:
        """An array uint8 that nobody else has, with whatever was in it."""
        try:
            if not self._free:
                raise IndexError
            memory = self._free.pop()
            if self._device.type == "cuda":
                # Who let go of it may have left a copy to the GPU under way (non_blocking), which is still reading it.
                torch.cuda.synchronize(self._device)
        except IndexError:
            memory = self._new()
        # Not a view of another array: a slice of a view holds only the innermost array, while a slice of this one holds
        # this one. So it is gone only when all slices are, tensors made of them included.
        array = np.asarray(memory)
        weakref.finalize(array, self._give_back, memory).atexit = False
        return array

    def close(self) -> None:
        """Let the free memory go, and what is still held as soon as it is given back."""
        self._free = None

    def _give_back(self, memory: _Memory) -> None:
        if (free := self._free) is not None:
            free.append(memory)

    def _new(self) -> _Memory:
        if self._device.type == "cuda":
            return _Memory(torch.empty(self._shape, dtype=torch.uint8, pin_memory=True).numpy())
        return _Memory(np.empty(self._shape, np.uint8))


def _when_gone(batch: Frames) -> threading.Event:
    """An event that is set once nobody holds the array any more."""
    gone = threading.Event()
    weakref.finalize(batch, gone.set)
    return gone


@dataclass(frozen=True)
class Share:
    """Which part of a batch a process has.

    Attributes:
        total: Frames of the whole batch, over all processes.
        start: Number of the first frame of this process's part in it.
        count: Frames of this part, 1 or more.
        weight: What this process's mean counts in the mean over processes, so that it is the mean over frames: 1 where
            all parts are equal; 0 for a part that has a frame only because it must have one.
    """

    total: int
    start: int
    count: int
    weight: float = 1.0


@dataclass(frozen=True)
class Batch:
    """What an objective gets.

    Attributes:
        images: float32 (N, C, H, W) in [0, 1], on the model's device.
        more: Anything else by name, N rows each, for objectives that need it: neighbouring frames, actions, rewards.
        share: Which part of the whole batch this is; None where it is the whole.
    """

    images: Tensor
    more: Mapping[str, Tensor] = field(default_factory=dict)
    share: Share | None = None

    def __len__(self) -> int:
        return len(self.images)

    def noise(self, *shape: int) -> Tensor:
        """Standard normal numbers float32 (N, *shape), from torch's global generator.

        They are drawn for the whole batch, and this process's part is taken: with the same generator in each process,
        they are what a single process would have drawn, and the generators stay in step.

        Example:
            >>> images = torch.zeros(3, 1, 2, 2)
            >>> _ = torch.manual_seed(0)
            >>> whole = Batch(images).noise(4)
            >>> _ = torch.manual_seed(0)
            >>> torch.equal(whole[1:], Batch(images[1:], share=Share(3, 1, 2)).noise(4))
            True
        """
        if self.share is None:
            return torch.randn(len(self), *shape, device=self.images.device)
        whole = torch.randn(self.share.total, *shape, device=self.images.device)
        return whole[self.share.start : self.share.start + self.share.count]


def make_batch(
    rows: NDArray[np.uint8] | Mapping[str, NDArray], device: torch.device, share: Share | None = None
) -> Batch:
    """Rows of a super-batch as a `Batch` on the device.

    Args:
        rows: Frames uint8 (N, H, W, C), or several arrays of N rows by name, the frames as "frames".
        device: Where to.
        share: Which part of the whole batch they are.
    """
    named = dict(rows) if isinstance(rows, Mapping) else {"frames": rows}
    frames = named.pop("frames")
    images = images_to_tensor(torch.from_numpy(frames).to(device, non_blocking=True))
    more = {name: torch.from_numpy(values).to(device, non_blocking=True) for name, values in named.items()}
    return Batch(images, more, share)


class BatchParts:
    """How a super-batch is cut into batches, and each batch among the processes.

    A batch of n frames is cut into contiguous parts of n / processes, the first ones a frame longer where it does not
    divide. Where there are fewer frames than processes, those left without take the batch's first frame, with weight 0.

    Args:
        size: Frames of the super-batch.
        batch: Frames of a whole batch, over all processes.
        rank: Number of this process.
        ranks: Number of processes.

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
        places: list[NDArray[np.int64]] = []
        read = 0
        for first in range(0, size, batch):
            total = min(batch, size - first)
            start, end = _even(total, rank, ranks)
            weight = (end - start) * ranks / total
            if start == end:
                start, end = 0, 1
            self.shares.append(Share(total, start, end - start, weight))
            self.rows.append(slice(read, read + end - start))
            places.append(np.arange(first + start, first + end))
            read += end - start
        self.places = np.concatenate(places) if places else np.zeros(0, np.int64)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.shares)


def _even(total: int, rank: int, ranks: int) -> tuple[int, int]:
    """First and last (exclusive) frame of a rank's part."""
    each, rest = divmod(total, ranks)
    start = rank * each + min(rank, rest)
    return start, start + each + (rank < rest)
