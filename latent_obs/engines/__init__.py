"""How frames become latents: the engines behind `FrozenEncoder.encode`.

An engine takes uint8 frames (N, h, w, c) with N ≥ 1, C-contiguous, and gives float32 latents (N, latent_dim) in memory that no
later call touches. It belongs to one process and is never pickled: a `FrozenEncoder` makes itself a new one where it arrives.
"""

from collections.abc import Iterable
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latent_obs.device import resolve_device
from latent_obs.engines.folded import FoldedEncoder
from latent_obs.engines.foreign import ForeignNetwork
from latent_obs.engines.packed import packed
from latent_obs.engines.torch_engine import TorchEngine
from latent_obs.errors import DeviceError, InputError
from latent_obs.networks import Encoder

Backend = Literal["torch", "openvino"]
Precision = Literal["float32", "bfloat16"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Engine(Protocol):
    """What a backend provides."""

    def latents(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Latents as an array of its own memory."""
        ...

    def tensor(self, frames: NDArray[np.uint8]) -> Tensor:
        """Latents as a tensor on the encoder's device, of its own memory."""
        ...

    def warm_up(self, sizes: Iterable[int]) -> None:
        """Prepare for exactly these batch sizes."""
        ...


def resolve_engine_device(device: str | torch.device, backend: str, precision: str) -> torch.device:
    """The device for a backend and a precision.

    Args:
        device: As for `resolve_device`; "auto" is the CPU where the backend knows no other.
        backend: "torch" or "openvino".
        precision: "float32" or "bfloat16".

    Raises:
        InputError: Backend or precision are unknown, or the backend does not compute on this device.
        DeviceError: The device is not there, or cannot compute in this precision.
    """
    if backend not in get_args(Backend):
        raise InputError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")
    if precision not in _DTYPES:
        raise InputError(f"precision must be one of {', '.join(_DTYPES)}, got {precision!r}")
    if backend == "openvino":
        if str(device) == "auto":
            device = "cpu"
        if torch.device(device).type != "cpu":
            raise InputError(f"backend 'openvino' computes on the CPU, got device {str(device)!r}: use backend='torch' there")
    resolved = resolve_device(device)
    if precision == "bfloat16" and resolved.type != "cpu":
        try:
            torch.ones(1, 1, device=resolved, dtype=torch.bfloat16).mm(torch.ones(1, 1, device=resolved, dtype=torch.bfloat16))
        except (RuntimeError, TypeError) as error:
            raise DeviceError(f"{resolved} cannot compute in bfloat16 ({error}): use precision='float32'") from None
    return resolved


def make_engine(
    network: Encoder | ForeignNetwork, shape: tuple[int, int, int], device: torch.device, backend: str, precision: str
) -> Engine:
    """The engine for a frozen network.

    Args:
        network: Frozen, on `device`.
        shape: (h, w, c) of a frame.
        device: From `resolve_engine_device`.
        backend: "torch" or "openvino".
        precision: "float32" or "bfloat16".

    Raises:
        MissingExtraError: The backend is not installed.
    """
    dtype = _DTYPES[precision]
    if isinstance(network, ForeignNetwork):
        network.dtype = dtype
        return TorchEngine(network, shape, device)
    if backend == "openvino":
        from latent_obs.engines.openvino_engine import OpenVinoEngine

        return OpenVinoEngine(FoldedEncoder(network), shape, dtype)
    folded = FoldedEncoder(network, dtype)
    return TorchEngine(packed(folded, shape) if device.type == "cpu" else folded, shape, device)
