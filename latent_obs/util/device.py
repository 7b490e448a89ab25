"""Which device to compute on: the one asked for, or an error; never a silent replacement."""

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from latent_obs.util.errors import DeviceError


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The torch device for a name.

    Args:
        device: "auto" (CUDA, else Apple's MPS, else the CPU), or a name such as "cpu", "cuda", "cuda:1", "mps".

    Raises:
        DeviceError: The device named is not there; a GPU that was asked for is never replaced by the CPU.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise DeviceError(f"device {str(device)!r} is unknown; expected auto, cpu, cuda, cuda:N or mps") from None
    if wanted.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            built = "this torch was built for the CPU only" if torch.version.cuda is None else "torch finds no CUDA GPU"
            raise DeviceError(f"device {str(device)!r} was asked for, but {built}. Use device='cpu', or see nvidia-smi")
        if (wanted.index or 0) >= count:
            raise DeviceError(f"device {str(device)!r} was asked for, but there are {count} GPU(s), numbered from 0")
        return torch.device("cuda", wanted.index if wanted.index is not None else torch.cuda.current_device())
    if wanted.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps' was asked for, but this machine or torch build has none. Use device='cpu'")
    if wanted.type == "meta":
        raise DeviceError("device 'meta' computes nothing; expected auto, cpu, cuda, cuda:N or mps")
    try:
        torch.empty(1, device=wanted)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise DeviceError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return wanted


def cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has.

    Example:
        >>> cores() >= 1
        True
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return usable or 1


def processor() -> str:
    """The processor's name, as its maker and the system tell it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Set torch's threads inside the block, and put them back after it.

    Beside worker processes that play a game on the same cores, one thread is faster for small networks: more of them
    wait for each other at the end of each layer.

    Args:
        count: Threads; None leaves them as they are.

    Example:
        >>> with torch_threads(1):
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
