"""What a run computes with: optimizer, learning rate, number format, and memory."""

import contextlib
import ctypes
import math
import shutil
import sys
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from latent_obs.util.errors import InputError
from vae_training.training.config import LearningRateKind, Precision


def make_adam(parameters: Iterable[nn.Parameter], learning_rate: float, device: torch.device) -> Optimizer:
    """Adam (Kingma & Ba 2015), in one kernel ("fused") on CUDA.

    On a CPU the fused kernel rounds differently, so the plain one is used.
    """
    return torch.optim.Adam(parameters, lr=learning_rate, fused=device.type == "cuda" or None)


def make_scheduler(optimizer: Optimizer, kind: LearningRateKind, *, total_steps: int, step: int = 0) -> LambdaLR:
    """A constant learning rate, or half a cosine down to 0 at `total_steps` (Loshchilov & Hutter 2017, section 3).

    Args:
        optimizer: With the initial learning rate in its parameter groups.
        kind: "constant" or "cosine".
        total_steps: Steps of the whole run.
        step: Steps already taken.
    """

    def factor(step: int) -> float:
        return 1.0 if kind == "constant" else (1 + math.cos(math.pi * min(1.0, step / total_steps))) / 2

    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return LambdaLR(optimizer, factor, last_epoch=step - 1)


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The format that the layers compute in; "auto" is bfloat16 on CUDA GPUs that compute in it, else float32.

    Raises:
        InputError: The device does not compute in bfloat16.
    """
    # GPUs before compute capability 8.0 emulate bfloat16, slower than float32.
    has_bfloat16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if precision == "float32" or (precision == "auto" and not has_bfloat16):
        return torch.float32
    if not has_bfloat16 and device.type != "cpu":
        raise InputError(f"precision bfloat16 is not supported by the device {device}; use --precision float32")
    return torch.bfloat16


def compiles_on(device: torch.device) -> bool:
    """Whether the loss is compiled: on CUDA, if there is a C++ compiler.

    On a CPU the convolutions take nearly all of the time and are the same library calls either way.
    """
    return device.type == "cuda" and any(shutil.which(name) for name in ("g++", "clang++", "c++", "gcc", "clang", "cc"))


# Parameters of mallopt(3). A super-batch is larger than 256 MB and stays outside the heap; the activations of a batch
# are smaller, and are reused.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Have glibc keep freed memory inside the block, for the next gradient step; without glibc, do nothing.

    By default glibc returns the activations of a batch to the system after every step, and the system clears each page
    before the process gets it again (`benchmarks/gradient_step.py`). The peak does not grow: it is the same memory.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "gnu_get_libc_version") or not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_MMAP_THRESHOLD, 256 << 20)
    try:
        yield
    finally:  # with the limits of glibc's own moving thresholds
        libc.mallopt(_TRIM_THRESHOLD, 64 << 20)
        libc.mallopt(_MMAP_THRESHOLD, 32 << 20)
        libc.malloc_trim(0)
