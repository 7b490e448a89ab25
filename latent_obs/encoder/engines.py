"""How frames become latents: the engines behind `FrozenEncoder.encode`.

An engine takes uint8 frames (N, h, w, c) with N ≥ 1, C-contiguous, and gives float32 latents (N, latent_dim) in memory
that no later call touches. It belongs to one process and is never pickled: a `FrozenEncoder` makes itself a new one
where it arrives.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latent_obs.encoder.architecture import Architecture
from latent_obs.encoder.fast_cpu import FoldedEncoder, packed
from latent_obs.encoder.foreign import ForeignNetwork
from latent_obs.encoder.networks import Encoder
from latent_obs.util.device import resolve_device, torch_threads
from latent_obs.util.errors import DeviceError, InputError


def built(kind: Any, architecture: Architecture, weights: Mapping[str, Tensor]) -> Any:
    """An `Encoder` or `Decoder` with these weights.

    Raises:
        RuntimeError: Their names or shapes are others.
    """
    # Random first weights are drawn only to be replaced: the agent's own random numbers stay as they were seeded.
    with torch.random.fork_rng(devices=[]):
        network = kind(architecture).float()  # whatever torch's default dtype is
    network.load_state_dict(dict(weights), strict=True)
    return network


def placed(network: Any, device: torch.device) -> Any:
    """A network frozen, and moved to where it computes."""
    network.eval().requires_grad_(False)
    # Frames arrive with channels last, and stay so: no transposition on the way in, and faster convolutions.
    as_frames = getattr(network, "channels_last", True)  # a `ForeignNetwork` has found out what it can take
    return network.to(device, memory_format=torch.channels_last if as_frames else torch.contiguous_format)


class TorchEngine:
    """One forward pass after the other.

    Args:
        network: Takes uint8 (N, h, w, c) and gives float32 (N, latent_dim).
        shape: (h, w, c) of a frame.
        device: Where the network is.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, int, int], device: torch.device) -> None:
        self._network, self._shape, self._device = network, shape, device
        self._process = os.getpid()

    def latents(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 (N, latent_dim), in memory of its own, of frames uint8 (N, h, w, c)."""
        return self._encode(frames).cpu().numpy()

    def tensor(self, frames: NDArray[np.uint8]) -> Tensor:
        """The same, where the network is; one that autograd takes as an input."""
        return self._encode(frames).clone()  # outside of inference mode, where a tensor becomes an ordinary one

    def warm_up(self, sizes: Iterable[int]) -> None:
        """Encode black frames: libraries choose how to compute a size when they first see it."""
        for size in sizes:
            self._encode(np.zeros((size, *self._shape), np.uint8))

    def _encode(self, frames: NDArray[np.uint8]) -> Tensor:
        forked = self._process != os.getpid()
        if forked and self._device.type == "cuda":
            raise DeviceError(
                f"this encoder computes on {self._device}, which a forked process cannot use: CUDA was initialized in its "
                "parent. Start workers by 'spawn' or 'forkserver', or encode in the parent, as the vector wrappers do"
            )
        # The threads of the parent are not there in a forked child, and OpenMP would wait for them for ever.
        alone = forked and torch.get_num_threads() > 1
        with torch_threads(1 if alone else None), torch.inference_mode():
            return self._network(torch.from_numpy(frames).to(self._device)).contiguous()


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
            raise InputError(
                f"backend 'openvino' computes on the CPU, got device {str(device)!r}: use backend='torch' there"
            )
    resolved = resolve_device(device)
    if precision == "bfloat16" and resolved.type != "cpu":
        try:
            torch.ones(1, 1, device=resolved, dtype=torch.bfloat16).mm(
                torch.ones(1, 1, device=resolved, dtype=torch.bfloat16)
            )
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
        from latent_obs.encoder.openvino import OpenVinoEngine

        return OpenVinoEngine(FoldedEncoder(network), shape, dtype)
    folded = FoldedEncoder(network, dtype)
    return TorchEngine(packed(folded, shape) if device.type == "cpu" else folded, shape, device)
