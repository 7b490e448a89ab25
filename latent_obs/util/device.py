"""Devices, cores and threads. A device that was asked for is used or an error is raised; it is never replaced."""

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from latent_obs.util.errors import DeviceError
from latent_obs.util.words import counted

if TYPE_CHECKING:
    import torch


def resolve_device(device: "str | torch.device" = "auto") -> "torch.device":
    """The torch device for a name.

    Args:
        device: "auto" (CUDA, else Apple's MPS, else the CPU), or a name such as "cpu", "cuda", "cuda:1", "mps".

    Raises:
        DeviceError: The device does not exist here.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    import torch

    name = str(device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        wanted = torch.device(name)
        if wanted.type == "cuda":
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            if (wanted.index or 0) >= count:
                built = f"torch {torch.__version__}, built for CUDA {torch.version.cuda}"
                raise RuntimeError(f"{built}, finds {counted(count, 'GPU')}, see nvidia-smi")
            return torch.device("cuda", torch.cuda.current_device() if wanted.index is None else wanted.index)
        if wanted.type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(1, device=wanted)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        names = "auto, cpu, cuda, cuda:N or mps"
        raise DeviceError(f"device {name!r} cannot be used, expected {names}: {str(error).splitlines()[0]}") from None
    return wanted


def cores() -> int:
    """Number of cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Name of the processor, as its maker or the system reports it."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Set the number of torch's threads inside the block, and restore it afterwards; None changes nothing.

    For small networks beside busy worker processes one thread is fastest: several wait for each other at each layer.
    """
    if count is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
