"""Encoding on a CUDA GPU: a graph replay per step, with copies that wait for nothing they need not.

For networks of this size the GPU computes for some tens of microseconds, and launching kernel after kernel from Python takes
ten times that. A graph launches all of them at once, and always on the same memory: frames are copied into it, and latents
out of it, before the next call may use it again.
"""

import os
import threading
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latent_obs.engines.sizes import PreparedSizes
from latent_obs.errors import DeviceError

#: Larger batches are encoded without a graph: launching is little of their time, and a graph keeps its memory.
MOST_IN_A_GRAPH = 256
_WARM_UP_RUNS = 3  # as torch's documentation does, before a capture


class CudaGraphEngine:
    """A captured graph for each of a few batch sizes, made when a size first comes up.

    Two wrappers may share it, from several threads as well. All of its work is on one stream of its own.

    Args:
        network: Takes uint8 (N, h, w, c) on the GPU and gives float32 (N, latent_dim).
        shape: (h, w, c) of a frame.
        device: The GPU.
        graphs: False for a network that cannot be captured, or that is not known to be.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, int, int], device: torch.device, graphs: bool = True) -> None:
        self._network, self._shape, self._device = network, shape, device
        self._most = MOST_IN_A_GRAPH if graphs else 0
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))  # which has copied the weights
        self._graphs: PreparedSizes[_Graph] = PreparedSizes(self._capture, drop=self._stream.synchronize)

    def latents(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 (N, latent_dim), in memory of its own, of frames uint8 (N, h, w, c)."""
        self._refuse_fork()
        with self._lock, torch.cuda.device(self._device), torch.inference_mode(), torch.cuda.stream(self._stream):
            if len(frames) > self._most:
                return self._eager(frames).cpu().numpy()
            graph = self._graphs.get(len(frames))
            graph.replay(frames)
            graph.latents_on_host.copy_(graph.latents, non_blocking=True)
            self._stream.synchronize()
            return graph.latents_on_host[: len(frames)].numpy().copy()

    def tensor(self, frames: NDArray[np.uint8]) -> Tensor:
        """The same on the GPU; it is not waited for, as with any other operation there."""
        self._refuse_fork()
        with self._lock, torch.cuda.device(self._device):
            with torch.inference_mode(), torch.cuda.stream(self._stream):
                if len(frames) > self._most:
                    latents = self._eager(frames)
                else:
                    graph = self._graphs.get(len(frames))
                    graph.replay(frames)
                    latents = graph.latents[: len(frames)]
            with torch.cuda.stream(self._stream):
                latents = latents.clone()  # outside of inference mode, where a tensor becomes an ordinary one
            here = torch.cuda.current_stream(self._device)
            here.wait_stream(self._stream)
            latents.record_stream(here)
            return latents

    def warm_up(self, sizes: Iterable[int]) -> None:
        """Capture graphs for exactly these batch sizes."""
        self._refuse_fork()
        with self._lock, torch.cuda.device(self._device), torch.inference_mode(), torch.cuda.stream(self._stream):
            for size in sizes:
                if size <= self._most:
                    self._graphs.prepare(size)

    def _eager(self, frames: NDArray[np.uint8]) -> Tensor:
        return self._network(torch.from_numpy(frames).to(self._device)).contiguous()

    def _capture(self, size: int, variant: int) -> "_Graph":
        return _Graph(self._network, (size, *self._shape), self._device, self._stream)

    def _refuse_fork(self) -> None:
        if self._process != os.getpid():
            raise DeviceError(
                f"this encoder computes on {self._device}, which a forked process cannot use: CUDA was initialised in its "
                "parent. Start workers by 'spawn' or 'forkserver', or encode in the parent, as the vector wrappers do"
            )


class _Graph:
    """A captured forward pass of one batch size, with the memory that it reads and writes; made and used on `stream`."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...], device: torch.device, stream: torch.cuda.Stream) -> None:
        self._staged = torch.zeros(shape, dtype=torch.uint8, pin_memory=True)
        self._frames = torch.zeros(shape, dtype=torch.uint8, device=device)
        self._uploaded = torch.cuda.Event()
        for _ in range(_WARM_UP_RUNS):  # cuDNN and cuBLAS choose their algorithms and take their memory now
            network(self._frames)
        stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        # "thread_local": what other threads of the program do meanwhile (pinning batches, say) does no harm.
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            self.latents = network(self._frames).contiguous()
        self.latents_on_host = torch.zeros(self.latents.shape, dtype=torch.float32, pin_memory=True)

    def replay(self, frames: NDArray[np.uint8]) -> None:
        """Start encoding; rows of `latents` beyond these frames are those of an earlier call."""
        count = len(frames)
        self._uploaded.synchronize()  # an earlier call's copy may still be reading the staging memory
        self._staged[:count].copy_(torch.from_numpy(frames))
        self._frames[:count].copy_(self._staged[:count], non_blocking=True)
        self._uploaded.record()
        self._graph.replay()
