"""Encoding through OpenVINO, on the CPU: `FrozenEncoder(..., backend="openvino")`.

The network is handed over layer by layer, from its folded form. `openvino.convert_model` would trace the torch module, and
it sends usage statistics to Intel without having asked; nothing is converted here, so nothing is sent.
"""

import functools
import os
import threading
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latent_obs.engines.folded import FoldedEncoder
from latent_obs.engines.sizes import PreparedSizes
from latent_obs.errors import require

_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}


@functools.cache
def _core(process: int) -> Any:
    """OpenVINO's core, one for a process, and never let go.

    Its CPU plugin gives the thread another stack for signals. When two of them end in the order in which they began, the first
    one's stack, which the second has put back, is memory that is there no more, and the next signal crashes the process.
    """
    openvino: Any = require("openvino", extra="openvino", purpose="encode with backend='openvino'")
    return openvino.Core()


class OpenVinoEngine:
    """A network compiled for each batch size and number of torch's threads that it is asked for.

    Args:
        folded: The network, in float32 whatever `dtype` is.
        shape: (h, w, c) of a frame.
        dtype: In which OpenVINO computes: float32 or bfloat16.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """

    def __init__(self, folded: FoldedEncoder, shape: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> None:
        self._openvino: Any = require("openvino", extra="openvino", purpose="encode with backend='openvino'")
        self._core = _core(os.getpid())
        self._folded, self._shape, self._dtype = folded, shape, dtype
        self._sizes: PreparedSizes[_Compiled] = PreparedSizes(self._compile)
        self._lock = threading.Lock()

    def latents(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 (N, latent_dim), in memory of its own, of frames uint8 (N, h, w, c)."""
        with self._lock:  # the buffers of a compiled size are shared
            compiled = self._sizes.get(len(frames), torch.get_num_threads())
            np.copyto(compiled.frames[: len(frames)], frames)
            compiled.request.infer()
            return compiled.latents[: len(frames)].copy()

    def tensor(self, frames: NDArray[np.uint8]) -> Tensor:
        """The same as a tensor."""
        return torch.from_numpy(self.latents(frames))

    def warm_up(self, sizes: Iterable[int]) -> None:
        """Compile for exactly these batch sizes."""
        with self._lock:
            for size in sizes:
                self._sizes.prepare(size, torch.get_num_threads())

    def _compile(self, size: int, variant: int) -> "_Compiled":
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(variant),  # torch's, which the user has set for this process
            "INFERENCE_PRECISION_HINT": _HINTS[self._dtype],
            "ENABLE_CPU_PINNING": "NO",  # the games of other processes run on the same cores
        }
        model = _model(self._openvino, self._folded, self._shape, size)
        return _Compiled(self._openvino, self._core.compile_model(model, "CPU", settings))


class _Compiled:
    """A network for one batch size, with the memory that it reads and writes."""

    def __init__(self, openvino: Any, compiled: Any) -> None:
        self.request = compiled.create_infer_request()
        self.frames = np.zeros(tuple(compiled.input(0).shape), np.uint8)
        self.latents = np.zeros(tuple(compiled.output(0).shape), np.float32)
        self.request.set_input_tensor(openvino.Tensor(self.frames, shared_memory=True))
        self.request.set_output_tensor(openvino.Tensor(self.latents, shared_memory=True))


def _model(openvino: Any, folded: FoldedEncoder, shape: tuple[int, int, int], size: int) -> Any:
    """OpenVINO's form of a folded network, for one batch size."""
    ops: Any = openvino.opset13

    def constant(tensor: Tensor | nn.Parameter) -> Any:
        return ops.constant(np.ascontiguousarray(tensor.detach().numpy()))  # in a forked child torch's copy would hang

    def convolved(x: Any, layer: nn.Conv2d) -> Any:
        padding = list(cast(tuple[int, int], layer.padding))
        x = ops.convolution(x, constant(layer.weight), list(layer.stride), padding, padding, list(layer.dilation))
        return ops.add(x, constant(cast(Tensor, layer.bias).view(1, -1, 1, 1)))

    def multiplied(x: Any, layer: nn.Linear) -> Any:
        flat = ops.reshape(x, [size, -1], False)
        return ops.add(ops.matmul(flat, constant(layer.weight), False, True), constant(layer.bias.view(1, -1)))

    frames = ops.parameter([size, *shape], np.uint8)
    x = ops.convert(frames, "f32")  # (N, h, w, c)
    if folded.centre is not None:
        x = ops.subtract(x, constant(folded.centre[None]))
    h = ops.transpose(x, [0, 3, 1, 2])
    for layer in folded.convolutions:
        h = convolved(h, layer) if isinstance(layer, nn.Conv2d) else ops.relu(h)
    if isinstance(folded.mean_head, nn.Conv2d):
        latents = ops.reshape(convolved(h, folded.mean_head), [size, -1], False)
    else:
        latents = multiplied(ops.transpose(h, [0, 2, 3, 1]), cast(nn.Linear, folded.mean_head))
    if folded.linear is not None:
        latents = ops.add(latents, multiplied(x, cast(nn.Linear, folded.linear)))
    return openvino.Model([latents], [frames], "encoder")
