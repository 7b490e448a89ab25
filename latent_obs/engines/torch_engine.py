"""Encoding with torch itself, on any device."""

import os
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latent_obs.errors import DeviceError
from latent_obs.torch_threads import torch_threads


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
                f"this encoder computes on {self._device}, which a forked process cannot use: CUDA was initialised in its "
                "parent. Start workers by 'spawn' or 'forkserver', or encode in the parent, as the vector wrappers do"
            )
        # The threads of the parent are not there in a forked child, and OpenMP would wait for them for ever.
        alone = forked and torch.get_num_threads() > 1
        with torch_threads(1 if alone else None), torch.inference_mode():
            return self._network(torch.from_numpy(frames).to(self._device)).contiguous()
