"""Layers with their weights in oneDNN's own order, and the ReLU within the convolution before it.

torch hands each convolution of a CPU to oneDNN, which puts the weights into the order that it computes in, at every call: for
one frame of the classic network that is nearly half of the time. `torch.compile` does it once when it freezes a network; the
operators that it uses are called here, without its compiler. They are no public part of torch, so that nothing relies on
them: where they are missing or differ, the network stays as it was.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from latent_obs.engines.folded import FoldedEncoder

_FRAMES = 8  # batch size that the order is chosen for; others work as well
_ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # difference to plain layers, of the largest latent


class PackedConvolution(nn.Module):
    """A convolution of the CPU, with or without the ReLU after it.

    Args:
        layer: The convolution.
        relu: Whether a ReLU follows.
        shape: Of the input, (N, c, h, w).
    """

    def __init__(self, layer: nn.Conv2d, relu: bool, shape: torch.Size) -> None:
        super().__init__()
        mkldnn: Any = torch.ops.mkldnn
        geometry = (list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups)
        weight = mkldnn._reorder_convolution_weight(layer.weight.detach(), *geometry, list(shape))
        self._arguments = (weight, layer.bias, *geometry, "relu" if relu else "none", [], "")
        self._operator = mkldnn._convolution_pointwise.default

    def forward(self, x: Tensor) -> Tensor:
        """As the convolution's, then as the ReLU's."""
        return self._operator(x, *self._arguments)


class PackedLinear(nn.Module):
    """A linear layer of the CPU."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        mkldnn: Any = torch.ops.mkldnn
        weight = mkldnn._reorder_linear_weight(layer.weight.detach(), _FRAMES)
        self._arguments = (weight, layer.bias, "none", [], "")
        self._operator = mkldnn._linear_pointwise.default

    def forward(self, x: Tensor) -> Tensor:
        """As the linear layer's."""
        return self._operator(x, *self._arguments)


def packed(folded: FoldedEncoder, shape: tuple[int, int, int]) -> FoldedEncoder:
    """The same network with packed layers, where this torch and this processor can.

    Args:
        folded: The network, on the CPU.
        shape: (h, w, c) of a frame.

    Returns:
        A network that can be neither copied nor saved, or the one given.
    """
    frames = torch.randint(0, 256, (_FRAMES, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    result = copy.copy(folded)
    result._modules = dict(folded._modules)
    with torch.inference_mode():
        expected = folded(frames)
        try:
            x = frames.to(folded.dtype).permute(0, 3, 1, 2)
            result.convolutions, x = _packed_convolutions(folded.convolutions, x)
            if isinstance(folded.mean_head, nn.Conv2d):
                result.mean_head = PackedConvolution(folded.mean_head, False, x.shape)
            elif isinstance(folded.mean_head, nn.Linear):
                result.mean_head = PackedLinear(folded.mean_head)
            if isinstance(folded.linear, nn.Linear):
                result.linear = PackedLinear(folded.linear)
            got = result(frames)
        except (AttributeError, RuntimeError, TypeError):  # no such operator, other arguments, no oneDNN, no bfloat16 in it
            return folded
    same = bool((got - expected).abs().max() <= _ALLOWED[folded.dtype] * expected.abs().max())
    return result if same else folded


def _packed_convolutions(layers: nn.Sequential, x: Tensor) -> tuple[nn.Sequential, Tensor]:
    """The layers packed, and what they make of `x`."""
    done: list[nn.Module] = []
    for layer, following in zip(layers, [*list(layers)[1:], None], strict=True):
        if isinstance(layer, nn.Conv2d):
            done.append(PackedConvolution(layer, isinstance(following, nn.ReLU), x.shape))
            x = done[-1](x)
    return nn.Sequential(*done), x
