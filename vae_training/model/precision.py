"""Number formats and compilation: what is computed in bfloat16, and when torch.compile is worth its start."""

import shutil

import torch

from latent_obs.util.errors import InputError
from vae_training.training.config import Precision


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The format that the layers compute in; weights, KL, `exp` and losses are float32 in any case.

    Args:
        precision: "auto": bfloat16 on a CUDA GPU that computes in it, float32 elsewhere.
        device: Where to train.

    Raises:
        InputError: bfloat16 was asked for where the device has none.

    Example:
        >>> resolve_precision("auto", torch.device("cpu")), resolve_precision("bfloat16", torch.device("cpu"))
        (torch.float32, torch.bfloat16)
    """
    if precision == "float32":
        return torch.float32
    if device.type == "cuda":
        # Older GPUs (before compute capability 8.0) emulate it, slower than float32.
        able = torch.cuda.get_device_capability(device) >= (8, 0)
        if precision == "bfloat16" and not able:
            raise InputError(
                f"{torch.cuda.get_device_name(device)} does not compute in bfloat16; use --precision float32"
            )
        return torch.bfloat16 if able else torch.float32
    if precision == "bfloat16" and device.type != "cpu":
        raise InputError(f"bfloat16 is for CUDA and the CPU, and the device is {device}; use --precision float32")
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Have the layers inside the block compute in `dtype`; float32 changes nothing.

    bfloat16 has the exponents of float32, so no gradient scaler is needed (Kalamkar et al. 2019, "A Study of BFLOAT16
    for Deep Learning Training").
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def compiles_on(device: torch.device) -> bool:
    """Whether the classic loss is compiled: on a CUDA GPU, where a C++ compiler is found.

    On a CPU the convolutions take nearly all of the time and are the same library calls either way.

    Example:
        >>> compiles_on(torch.device("cpu"))
        False
    """
    return device.type == "cuda" and any(shutil.which(name) for name in ("g++", "clang++", "c++", "gcc", "clang", "cc"))
