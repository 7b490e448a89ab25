"""Super-batches: each epoch trains on a fresh random sample, drawn in the background during the epoch before."""

import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from latent_obs.errors import InputError
from vae_training.frame_reader import gather
from vae_training.rank_sampling import plan_draw
from vae_training.sampling import plan_shares
from vae_training.transitions import Transitions

Frames = NDArray[np.uint8]
Drawn = Any  # Frames; a SuperBatch with transitions. Who asks for these knows, and who does not need not look

_LET_GO_SECONDS = 0.25


class SuperBatches(Iterator[Drawn]):
    """Iterate over one super-batch per epoch, uint8 (size, H, W, C), with the next one read ahead.

    With `transitions` each is a `SuperBatch`: the frames, and what follows each. It takes twice the memory.

    What epoch e sees is a function of `seed` and e alone, so a run resumed at e sees exactly what an uninterrupted one
    would have: there is no other state of the sampler to save. At most two super-batches are in memory, the one in use
    and the next, as long as the caller keeps none; their memory is used again once nobody holds them, or a part of them.

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
        places: Which rows of a super-batch this process reads, int64, each once or more; all by default. What a row holds does
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
            self._datasets, self._size, self._weights, seed=np.random.default_rng([self._seed, epoch]),
            replace_small=self._replace_small, places=self._places,
        )  # fmt: skip
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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
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
    """Arrays of one shape, whose memory is used again once nobody holds them: new memory costs as much as reading does."""

    def __init__(self, shape: tuple[int, ...], device: torch.device, arrays: int) -> None:
        self._shape = shape
        self._device = device
        self._free: deque[_Memory] | None = deque(maxlen=arrays)  # of the one in use and the next; more are not worth keeping

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
