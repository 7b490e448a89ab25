"""Super-batches: each epoch trains on a fresh random sample, drawn in the background during the epoch before."""

import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from latent_obs.errors import InputError
from vae_training.sampling import get_random_samples, plan_shares

Frames = NDArray[np.uint8]

_LET_GO_SECONDS = 0.25


class SuperBatches(Iterator[Frames]):
    """Iterate over one super-batch per epoch, uint8 (size, H, W, C), with the next one read ahead.

    What epoch e sees is a function of `seed` and e alone, so a run resumed at e sees exactly what an uninterrupted one
    would have. At most two super-batches are in memory, the one in use and the next, as long as the caller keeps none.

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
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="super-batch")
        self._next: Future[Frames] | None = None
        self._previous_gone: threading.Event | None = None
        self._closed = False

    def draw(self, epoch: int) -> Frames:
        """The super-batch of an epoch, drawn here and now: uint8 (size, H, W, C)."""
        return get_random_samples(
            self._datasets,
            self._size,
            self._weights,
            normalize=False,
            seed=np.random.default_rng([self._seed, epoch]),
            replace_small=self._replace_small,
        )

    def __len__(self) -> int:
        """Number of epochs that are still to come."""
        return max(0, self._epochs - 1 - self.epoch)

    def __next__(self) -> Frames:
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
        self._previous_gone = _when_gone(batch)
        return batch

    def _draw_after(self, epoch: int, gone: threading.Event | None) -> Frames:
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"SuperBatches({len(self._datasets)} datasets, size={self._size}, seed={self._seed}, epoch {self.epoch} of "
            f"{self._epochs})"
        )


def _when_gone(batch: Frames) -> threading.Event:
    """An event that is set once nobody holds the array any more."""
    gone = threading.Event()
    weakref.finalize(batch, gone.set)
    return gone
