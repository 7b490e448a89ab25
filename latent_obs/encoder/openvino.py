"""Encoding through OpenVINO, on the CPU: `FrozenEncoder(..., backend="openvino")`.

The network is built layer by layer from its folded form. `openvino.convert_model` would trace the torch module, and it
sends usage statistics to Intel without having asked; nothing is converted here, so nothing is sent.
"""

import functools
import os
import threading
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from latent_obs.encoder.fast_cpu import FoldedEncoder
from latent_obs.util.errors import require

#: How many compiled networks are kept: one for each batch size and number of threads.
MOST_COMPILED = 8
_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}


class OpenVinoNetwork:
    """A folded network, compiled for each batch size and number of torch's threads that it is used with."""

    def __init__(self, folded: FoldedEncoder, shape: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> None:
        self._openvino: Any = require("openvino", extra="openvino", purpose="encode with backend='openvino'")
        self._core = _core(self._openvino, os.getpid())
        self._folded, self._shape, self._dtype = folded, shape, dtype
        self._prepared: set[int] = set()
        self.compiled = functools.lru_cache(MOST_COMPILED)(self._compile)
        self._lock = threading.Lock()

    def __call__(self, frames: Tensor) -> Tensor:
        """Mean latents, float32 (N, latent_dim) in memory of their own, of frames, uint8 (N, h, w, c)."""
        count = len(frames)
        with self._lock:  # the buffers of a compiled network are shared
            size = count if count in self._prepared else rounded_up(count)
            request, inputs, outputs = self.compiled(size, torch.get_num_threads())
            np.copyto(inputs[:count], frames.numpy())
            request.infer()
            return torch.from_numpy(outputs[:count].copy())

    def prepare(self, size: int) -> None:
        """Compile for exactly this batch size at its next use, and not for one above it."""
        self._prepared.add(size)

    def _compile(self, size: int, threads: int) -> tuple[Any, Any, Any]:
        """The network for one batch size: a request, and the memory that it reads and writes."""
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
            "INFERENCE_PRECISION_HINT": _HINTS[self._dtype],
            "ENABLE_CPU_PINNING": "NO",  # the games of other processes run on the same cores
        }
        model = self._core.compile_model(_model(self._openvino, self._folded, self._shape, size), "CPU", settings)
        request = model.create_infer_request()
        inputs = np.zeros(tuple(model.input(0).shape), np.uint8)
        outputs = np.zeros(tuple(model.output(0).shape), np.float32)
        request.set_input_tensor(self._openvino.Tensor(inputs, shared_memory=True))
        request.set_output_tensor(self._openvino.Tensor(outputs, shared_memory=True))
        return request, inputs, outputs


def rounded_up(count: int) -> int:
    """The batch size to compile for `count` frames: at most a quarter more, and four sizes for each doubling.

    Episodes end at any time and add their last frames, so nearly every count comes up once in a long run.
    """
    step = 1 << max(0, (count - 1).bit_length() - 3)
    return -(-count // step) * step


@functools.cache
def _core(openvino: Any, process: int) -> Any:
    """OpenVINO's core, one for a process and never freed.

    Its CPU plugin gives the thread another stack for signals. If two cores end in the order in which they began, the
    stack of the first is restored after it was freed, and the next signal crashes the process.
    """
    return openvino.Core()


def _model(openvino: Any, folded: FoldedEncoder, shape: tuple[int, int, int], size: int) -> Any:
    """OpenVINO's form of a folded network, for one batch size."""
    ops: Any = openvino.opset13

    def constant(tensor: Tensor) -> Any:
        return ops.constant(np.ascontiguousarray(tensor.detach().numpy()))  # in a forked child torch's copy would hang

    def convolution(x: Any, layer: nn.Conv2d) -> Any:
        padding = list(cast(tuple[int, int], layer.padding))
        x = ops.convolution(x, constant(layer.weight), list(layer.stride), padding, padding, list(layer.dilation))
        return ops.add(x, constant(cast(Tensor, layer.bias).view(1, -1, 1, 1)))

    def linear(x: Any, layer: nn.Linear) -> Any:
        flat = ops.reshape(x, [size, -1], False)
        return ops.add(ops.matmul(flat, constant(layer.weight), False, True), constant(layer.bias.view(1, -1)))

    frames = ops.parameter([size, *shape], np.uint8)
    x = ops.convert(frames, "f32")  # (N, h, w, c)
    if folded.centre is not None:
        x = ops.subtract(x, constant(folded.centre[None]))
    coordinates = None
    if folded.coordinates is not None:
        coordinates = linear(x, cast(nn.Linear, folded.coordinates))
        shown = linear(coordinates, cast(nn.Linear, folded.shown))
        x = ops.subtract(x, ops.reshape(shown, [size, *shape], False))
    h = ops.transpose(x, [0, 3, 1, 2])
    for layer in folded.convolutions:
        h = convolution(h, layer) if isinstance(layer, nn.Conv2d) else ops.relu(h)
    if isinstance(folded.mean_head, nn.Conv2d):
        latents = ops.reshape(convolution(h, folded.mean_head), [size, -1], False)
    else:
        latents = linear(ops.transpose(h, [0, 2, 3, 1]), cast(nn.Linear, folded.mean_head))
    if coordinates is not None:
        latents = ops.concat([coordinates, latents], 1)
    return openvino.Model([latents], [frames], "encoder")
