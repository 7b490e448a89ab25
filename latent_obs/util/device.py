"""Devices, cores and threads. A device that was asked for is used or an error is raised; it is never replaced."""

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from latent_obs.util.errors import DeviceError

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
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError:
        wanted = torch.device("meta")
    if wanted.type == "meta":  # computes nothing
        raise DeviceError(f"device {name!r} is unknown; expected auto, cpu, cuda, cuda:N or mps")
    if wanted.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (wanted.index or 0) >= count:
            built = f"torch {torch.__version__}, built for CUDA {torch.version.cuda}"
            raise DeviceError(f"device {name!r} was asked for, but {built}, finds {count} GPU(s). See nvidia-smi")
        return torch.device("cuda", torch.cuda.current_device() if wanted.index is None else wanted.index)
    if wanted.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps' was asked for, but this machine or torch build has none. Use device='cpu'")
    try:
        torch.empty(1, device=wanted)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise DeviceError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return wanted


def cores() -> int:
    """Number of cores that this process may use, which can be fewer than the machine has."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return usable or 1


def processor() -> str:
    """Name of the processor, as its maker or the system reports it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Set the number of torch's threads inside the block, and restore it afterwards.

    For small networks beside busy worker processes one thread is fastest: several wait for each other at each layer.

    With None as `count`, nothing changes.
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
