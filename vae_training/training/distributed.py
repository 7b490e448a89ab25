"""Several processes that train one model, started by torchrun, each on its shard of every batch.

torchrun --nproc-per-node 2 -m latent_obs_cli.main train-vae --frames frames --out runs/vae

Batches, schedules and random numbers do not depend on the number of processes. A run of N processes is that of one,
up to rounding, and a run that has lost a process can be resumed by any number of them. Process 0 alone writes
and prints. Frames and run folder must have the same path for all: on several machines, on a shared file system.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from latent_obs.util.device import resolve_device
from latent_obs.util.errors import InputError, LatentObsError, one_line
from vae_training.model.losses import Losses

T = TypeVar("T")


class RankLostError(LatentObsError, RuntimeError):
    """Another process of this run has ended."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, as one of them sees it."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is process 0, which writes and prints."""
        return self.rank == 0

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Raise `RankLostError` for the errors that torch raises when another process has ended."""
        try:
            yield
        except RuntimeError as error:
            signs = ("connection", "peer", "socket", "gloo", "nccl", "timed out", "timeout")
            if (
                self.world_size == 1
                or isinstance(error, LatentObsError)
                or not any(sign in str(error).lower() for sign in signs)
            ):
                raise
            with contextlib.suppress(ValueError):  # not the main thread
                # torchrun terminates the remaining processes within 0.1 s, and this one has something to say first.
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise RankLostError(
                f"process {self.rank} of {self.world_size} stops, because another process of this run has ended (see "
                f"its message) or cannot be reached: {one_line(error)}. The last checkpoint is kept; go on with "
                "--resume, with as many processes as you have"
            ) from error

    def mean_losses(self, losses: Losses, weight: float) -> Losses:
        """Losses over the whole batch, detached; the weights of all shards add up to `world_size`."""
        losses = losses.detach()
        if self.world_size == 1:
            return losses
        means = torch.stack([losses.total, losses.reconstruction, losses.kl]).float()
        means *= weight / self.world_size
        dist.all_reduce(means)
        return Losses(*means)

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
        result: T | LatentObsError
        try:
            result = work()
        except LatentObsError as error:
            result = error
        flags = torch.zeros(self.world_size, device=self.device)
        flags[self.rank] = isinstance(result, LatentObsError)
        dist.all_reduce(flags)
        if isinstance(result, LatentObsError) and int(flags.argmax()) == self.rank:
            raise result
        if isinstance(result, LatentObsError) or flags.any():
            raise SystemExit(2)
        return result


@contextlib.contextmanager
def raised_once(error: type[Exception] = LatentObsError) -> Iterator[None]:
    """For errors that occur in all processes alike: process 0 raises them, and the others exit quietly."""
    try:
        yield
    except error:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0":
            raise SystemExit(2) from None
        raise


def restarts_processes() -> bool:
    """Whether torchrun starts all processes again, with the same command, when one is lost or a machine joins."""
    # TORCHELASTIC_RESTART_COUNT is no sign of it: it remains 0 when a machine joins, and is 0 on that machine.
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


@contextlib.contextmanager
def process_group(device: str) -> Iterator[Ranks]:
    """Join the other processes that torchrun or Ray Train started, if any; each takes the GPU of its local rank.

    Args:
        device: As for `resolve_device`; with several processes, without a number.

    Raises:
        RankLostError: Another process ended.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1 or "RANK" not in os.environ:
        yield Ranks(0, 1, resolve_device(device))
        return
    if ":" in device or device == "mps":
        raise InputError(f"device {device!r} is a single one, and {world_size} processes were started; use cuda or cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    resolved = resolve_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device)
    if resolved.type == "cuda":
        torch.cuda.set_device(resolved)
    is_mine = not dist.is_initialized()  # Ray Train makes one before, and destroys it
    if is_mine:
        try:
            dist.init_process_group("nccl" if resolved.type == "cuda" else "gloo")
        except RuntimeError as error:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise InputError(
                f"the processes do not find each other at {where}: {one_line(error)}. Give torchrun another "
                "--master-port (or --rdzv-endpoint); if a machine has several networks, name one in GLOO_SOCKET_IFNAME "
                "(with GPUs NCCL_SOCKET_IFNAME)"
            ) from error
    ranks = Ranks(int(os.environ["RANK"]), world_size, resolved)
    with ranks.watch():
        yield ranks
    if is_mine:
        dist.destroy_process_group()  # only after a good end: it would wait for a process that has ended
