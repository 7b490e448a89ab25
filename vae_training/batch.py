"""One batch on its way to the objective, and which part of it this process has."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_training.cvae import images_to_tensor


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

        They are drawn for the whole batch, and this process's part is taken: with the same generator in each process, they
        are what a single process would have drawn, and the generators stay in step.

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
) -> Batch:  # fmt: skip
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
