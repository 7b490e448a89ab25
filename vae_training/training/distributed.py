"""Several processes that train one model, started by torchrun, each on its shard of every batch.

torchrun --nproc-per-node 2 -m latent_obs_cli.main train-vae --frames frames --out runs/vae

`batch_size` is that of one process, so the whole batch has `batch_size` times the number of processes. Process 0 alone
writes and prints. Frames and run folder must have the same path for all: on several machines, on a shared file system.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from latent_obs.util.device import resolve_device
from latent_obs.util.errors import InputError, LatentObsError
from vae_training.model.losses import Losses

T = TypeVar("T")


class RankLostError(LatentObsError, RuntimeError):
    """Another process of this run has ended."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run.

    Attributes:
        rank: Number of this process; process 0 writes and prints.
        world_size: Number of processes.
        device: Device of this process.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0

    def mean_losses(self, losses: Losses, weight: float) -> Losses:
        """Losses over the whole batch, detached.

        Args:
            losses: Losses of this process's shard.
            weight: Weight of this shard; the weights of all processes add up to `world_size`.
        """
        losses = losses.detach()
        if self.world_size == 1:
            return losses
        means = torch.stack([losses.total, losses.reconstruction, losses.kl, *losses.terms.values()]).float()
        means *= weight / self.world_size
        dist.all_reduce(means)
        return Losses(means[0], means[1], means[2], dict(zip(losses.terms, means[3:], strict=True)))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; a barrier."""
        if self.world_size == 1:
            return flag
        votes = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return bool(votes)

    def broadcast(self, numbers: list[float]) -> list[float]:
        """The numbers of process 0, in each process; a barrier."""
        if self.world_size == 1:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, 0)
        return tensor.tolist()

    def agree(self, work: Callable[[], T]) -> T:
        """Do work in each process; where it fails in any, all processes end, and one of them raises its error."""
        if self.world_size == 1:
            return work()
        failed, result = None, None
        try:
            result = work()
        except LatentObsError as error:
            failed = error
        flags = torch.zeros(self.world_size, device=self.device)
        flags[self.rank] = failed is not None
        dist.all_reduce(flags)
        if failed is not None and int(flags.argmax()) == self.rank:
            raise failed
        if flags.any():
            raise SystemExit(2)
        return result  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def raised_once() -> Iterator[None]:
    """For errors that occur in all processes alike: process 0 raises them, and the others exit quietly."""
    try:
        yield
    except LatentObsError:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0":
            raise SystemExit(2) from None
        raise


@contextlib.contextmanager
def process_group(device: str) -> Iterator[Ranks]:
    """Join the other processes that torchrun started, if it did.

    Args:
        device: As for `resolve_device`. With several processes on CUDA, each takes the GPU of its local rank.

    Raises:
        InputError: A single device was named for several processes.
        RankLostError: Another process ended.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1 or "RANK" not in os.environ:
        yield Ranks(0, 1, resolve_device(device))
        return
    if ":" in device:
        raise InputError(f"device {device!r} is one device, and {world_size} processes were started; use --device cuda")
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    resolved = resolve_device(device)
    if resolved.type == "mps":
        raise InputError("device mps cannot train with several processes; use --device cpu")
    if resolved.type == "cuda":
        torch.cuda.set_device(resolved)
    dist.init_process_group("nccl" if resolved.type == "cuda" else "gloo")
    rank = int(os.environ["RANK"])
    try:
        yield Ranks(rank, world_size, resolved)
    except RuntimeError as error:
        signs = ("connection", "peer", "socket", "gloo", "nccl", "timed out", "timeout")
        if isinstance(error, LatentObsError) or not any(sign in str(error).lower() for sign in signs):
            raise
        raise RankLostError(
            f"process {rank} of {world_size} stops, because another process of this run has ended (see its message). "
            f"The last checkpoint is kept; start all again with --resume ({str(error).strip().splitlines()[0][:200]})"
        ) from error
    dist.destroy_process_group()  # only after a good end: it would wait for a process that has ended
