"""Encoding through OpenVINO, on the CPU: `FrozenEncoder(..., backend="openvino")`.

The network is handed over layer by layer, from its folded form. `openvino.convert_model` would trace the torch module,
and it sends usage statistics to Intel without having asked; nothing is converted here, so nothing is sent.
"""

import functools
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latent_obs.encoder.fast_cpu import FoldedEncoder
from latent_obs.util.errors import require

Prepared = TypeVar("Prepared")
Prepared_co = TypeVar("Prepared_co", covariant=True)

MOST_SIZES = 8


class Prepare(Protocol[Prepared_co]):
    """Prepares for a batch size; `variant` is whatever else it depends on."""

    def __call__(self, size: int, variant: int) -> Prepared_co:
        """What this batch size needs, in this variant."""
        ...


def rounded_up(count: int) -> int:
    """The batch size to prepare for `count` frames: at most a quarter more, and four sizes for each doubling.

    Episodes end at any time and bring their last frames along, so that nearly every count comes up once in a long run.

    Example:
        >>> [rounded_up(n) for n in (1, 4, 7, 8, 9, 11, 16, 17, 33, 1000)]
        [1, 4, 7, 8, 10, 12, 16, 20, 40, 1024]
    """
    step = 1 << max(0, (count - 1).bit_length() - 3)
    return -(-count // step) * step


class PreparedSizes(Generic[Prepared]):
    """The last few batch sizes that were prepared, the least recently used one dropped first.

    Args:
        prepare: Prepares for a size and a variant.
        most: How many to keep.

    Example:
        >>> sizes = PreparedSizes(lambda size, variant: f"for {size}")
        >>> sizes.get(9), sizes.get(10)
        ('for 10', 'for 10')
        >>> sizes.prepare(9)
        'for 9'
        >>> sizes.get(9)
        'for 9'
    """

    def __init__(self, prepare: Prepare[Prepared], most: int = MOST_SIZES) -> None:
        self._prepare, self._most = prepare, most
        self._prepared: OrderedDict[tuple[int, int], Prepared] = OrderedDict()

    def __len__(self) -> int:
        return len(self._prepared)

    def get(self, count: int, variant: int = 0) -> Prepared:
        """What was prepared for exactly `count`, else for `rounded_up(count)`, prepared now where it must be."""
        exact = (count, variant)
        if exact in self._prepared:
            self._prepared.move_to_end(exact)
            return self._prepared[exact]
        return self.prepare(rounded_up(count), variant)

    def prepare(self, size: int, variant: int = 0) -> Prepared:
        """Prepare for exactly this size, where that was not done yet."""
        key = (size, variant)
        if key not in self._prepared:
            while len(self._prepared) >= self._most:
                self._prepared.popitem(last=False)
            self._prepared[key] = self._prepare(size, variant)
        self._prepared.move_to_end(key)
        return self._prepared[key]


_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}


@functools.cache
def _core(process: int) -> Any:
    """OpenVINO's core, one for a process, and never let go.

    Its CPU plugin gives the thread another stack for signals. When two of them end in the order in which they began,
    the first one's stack, which the second has put back, is memory that is there no more, and the next signal crashes
    the process.
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
