"""Several processes that train one model, started by torchrun: who they are, and what they tell each other.

torchrun --nproc-per-node 2 -m latent_obs_cli.main train-vae --frames frames --out runs/vae

Each process reads and trains on its part of every batch; `batch_size` is the part of one process, so the whole batch is
`batch_size` times the number of processes. Process 0 alone writes and prints. Frames and run folder must be at the same
path
for all of them: on several machines, on a shared file system.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from latent_obs.util.device import resolve_device
from latent_obs.util.errors import InputError, LatentObsError
from vae_training.model.cvae import Losses

T = TypeVar("T")
_CPU = torch.device("cpu")


class RankLostError(LatentObsError, RuntimeError):
    """Another process of this run has ended."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run.

    Attributes:
        rank: Number of this process; process 0 writes and prints.
        count: Number of processes.
        local_rank: Number of this process on its machine: which GPU it takes.
        device: Where its tensors are, for what the processes tell each other.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    device: torch.device = _CPU

    @property
    def leads(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0

    def mean_losses(self, losses: Losses, weight: float) -> Losses:
        """Losses over the whole batch, detached, from those of each process's part.

        Args:
            losses: A dataclass of 0-d tensors (and mappings of them).
            weight: What this process's part counts; the weights of all add up to their number.
        """
        detached: dict[str, Any] = {}
        tensors: list[Tensor] = []
        for field in fields(losses):
            value = getattr(losses, field.name)
            if isinstance(value, Mapping):
                value = {name: tensor.detach().clone() for name, tensor in value.items()}
                tensors += value.values()
            elif isinstance(value, Tensor):
                value = value.detach().clone()
                tensors.append(value)
            detached[field.name] = value
        if self.count > 1:
            together = torch.stack([t.float() for t in tensors])
            together *= weight / self.count
            dist.all_reduce(together)
            for tensor, mean in zip(tensors, together, strict=True):
                tensor.copy_(mean)
        return replace(losses, **detached)

    def any(self, flag: bool) -> bool:
        """Whether it holds in any process; all must ask."""
        if self.count == 1:
            return flag
        votes = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return bool(votes)

    def share(self, value: T) -> T:
        """Process 0's value, in each; anything that JSON can hold. All must ask, so it is a meeting point as well."""
        if self.count == 1:
            return value
        data = json.dumps(value).encode()
        length = torch.tensor(len(data), device=self.device)
        dist.broadcast(length, 0)
        text = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.leads:
            text.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(text, 0)
        return json.loads(bytes(text.cpu().numpy()))

    def together(self, work: Callable[[], T]) -> T:
        """Do something in each process that may be refused; where one refuses, all end, and one of them says why.

        Raises:
            LatentObsError: This process is the first that refused.
            SystemExit: Another one refused; it tells the user.
        """
        if self.count == 1:
            return work()
        refused: LatentObsError | None = None
        result: Any = None
        try:
            result = work()
        except LatentObsError as error:
            refused = error
        flags = torch.zeros(self.count, device=self.device)
        flags[self.rank] = refused is not None
        dist.all_reduce(flags)
        if not flags.any():
            return result
        if refused is not None and int(flags.argmax()) == self.rank:
            raise refused
        raise SystemExit(2)

    def explain(self, error: RuntimeError) -> RankLostError | None:
        """What a failed exchange means, where it means that another process has ended; None for other errors."""
        signs = ("connection", "peer", "socket", "gloo", "nccl", "timed out", "timeout")
        if (
            self.count == 1
            or isinstance(error, LatentObsError)
            or not any(sign in str(error).lower() for sign in signs)
        ):
            return None
        return RankLostError(
            f"process {self.rank} of {self.count} stops, because another one of this run has ended (see its message); the last "
            f"checkpoint is kept. Start all of them again with --resume. ({str(error).strip().splitlines()[0][:200]})"
        )


ALONE = Ranks()


@contextlib.contextmanager
def told_once() -> Iterator[None]:
    """For errors that all processes have alike: process 0 raises them, and the others end quietly."""
    try:
        yield
    except LatentObsError:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0":
            raise SystemExit(2) from None
        raise


@contextlib.contextmanager
def meet(device: str) -> Iterator[tuple[Ranks, torch.device]]:
    """Join the other processes that torchrun started; alone where it started none.

    Args:
        device: As for `resolve_device`. With several processes on CUDA, each takes the GPU of its number on its
            machine.

    Yields:
        The processes, and this one's device.

    Raises:
        DeviceError: The device is not there.
        InputError: A single GPU was named for several processes.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "RANK" not in os.environ:
        yield ALONE, resolve_device(device)
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if ":" in device:
        raise InputError(f"device {device!r} is one device, and {count} processes were started; use --device cuda")
    wanted = device
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        wanted = f"cuda:{local}"
    resolved = resolve_device(wanted)
    if resolved.type == "mps":
        raise InputError("several processes train on CUDA GPUs or on CPUs; use --device cpu")
    if resolved.type == "cuda":
        torch.cuda.set_device(resolved)
    began_here = not dist.is_initialized()
    if began_here:
        dist.init_process_group("nccl" if resolved.type == "cuda" else "gloo")
    yield Ranks(rank, count, local, resolved), resolved
    # Only after a good end: where another process is gone, taking leave of it would wait for it.
    if began_here:
        dist.destroy_process_group()
