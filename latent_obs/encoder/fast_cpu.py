"""The encoder's own network made shorter: frames in as bytes, and all scaling inside the first layer.

Numbers that are the same for every frame are multiplied out once, in float64: the division by 255 and the spread of
`Standard` go into the weights of the first convolution. `networks.Encoder` stays the definition; tests hold the two
together.
"""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from latent_obs.encoder.networks import Encoder


class FoldedEncoder(nn.Module):
    """What `Encoder.mean` gives, from bytes.

    Pixels 0 to 255 are exact in bfloat16, where 0 to 1 are not; and with `standardize`, the mean picture is subtracted
    in float32 before anything is rounded. So bfloat16 costs what its weights and activations lose, and nothing more.

    Args:
        encoder: The network; it is left as it is, and layers that need no change are shared with it.
        dtype: In which the convolutions are computed; the layers that give the latents stay in float32.

    Attributes:
        centre: Mean picture of `standardize`, float32 (h, w, c) from 0 to 255, or None.
        convolutions: As the network's.
        mean_head: As the network's; a dense one takes features in the order row, column, channel.
        linear: The linear path, which takes centred pixels in the order row, column, channel; or None.

    Example:
        >>> from latent_obs.encoder.architecture import Architecture
        >>> encoder = Encoder(Architecture((32, 32, 3), latent_dim=8)).eval().requires_grad_(False)
        >>> frames = torch.arange(2 * 32 * 32 * 3).view(2, 32, 32, 3).to(torch.uint8)
        >>> expected = encoder.mean(frames.permute(0, 3, 1, 2) / 255)
        >>> torch.allclose(FoldedEncoder(encoder)(frames), expected, atol=1e-5)
        True
    """

    centre: Tensor | None

    def __init__(self, encoder: Encoder, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.dense = encoder.architecture.bottleneck == "dense"
        device = next(encoder.parameters()).device
        centre, spread = None, 1.0
        if encoder.standard is not None:
            centre = (255.0 * _exact(encoder.standard.mean)).permute(1, 2, 0).float().contiguous().to(device)
            spread = float(encoder.standard.spread)
        self.register_buffer("centre", centre)
        first, *others = encoder.convolutions
        first = copy.deepcopy(cast(nn.Conv2d, first))
        with torch.no_grad():
            first.weight.copy_(_exact(first.weight) / (255.0 * spread))
        if dtype != torch.float32:
            first, *others = (copy.deepcopy(layer).to(dtype) for layer in (first, *others))
        self.convolutions = nn.Sequential(first, *others)
        self.mean_head = encoder.mean_head
        if self.dense:
            last = encoder.architecture.stages[-1]
            head = cast(nn.Linear, encoder.mean_head)
            self.mean_head = _linear(_channels_last(head.weight, (last.channels_out, *last.size_out)), head.bias)
        self.linear: nn.Module | None = None
        if encoder.linear is not None:
            height, width, channels = encoder.architecture.img_shape
            weight, bias = _exact(encoder.linear.weight), _exact(encoder.linear.bias)
            if encoder.standard is not None:  # W x + b = W (x - m) + (W m + b)
                bias = bias + weight @ _exact(encoder.standard.mean).flatten()
            self.linear = _linear(_channels_last(weight, (channels, height, width)) / 255.0, bias).to(device)

    def forward(self, frames: Tensor) -> Tensor:
        """Mean latents, float32 (N, latent_dim), of frames, uint8 (N, h, w, c)."""
        x = frames.float() if self.centre is None else frames - self.centre
        h = self.convolutions(x.to(self.dtype).permute(0, 3, 1, 2)).float()  # (N, c', h', w'), channels last in memory
        latents = self.mean_head(h.permute(0, 2, 3, 1).flatten(1) if self.dense else h).flatten(1)
        return latents if self.linear is None else latents + self.linear(x.flatten(1))


def _exact(tensor: Tensor) -> Tensor:
    """In float64, on the CPU: some GPUs have none."""
    return tensor.detach().cpu().double()


def _channels_last(weight: Tensor, order: tuple[int, int, int]) -> Tensor:
    """Weights (d, c * h * w) of a linear layer, for inputs in the order row, column, channel: that in which they
    lie.
    """
    return weight.unflatten(1, order).permute(0, 2, 3, 1).flatten(1)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A frozen linear layer in float32."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight.float().contiguous(), requires_grad=False)
    layer.bias = nn.Parameter(bias.float().clone(), requires_grad=False)
    return layer


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
        except (
            AttributeError,
            RuntimeError,
            TypeError,
        ):  # no such operator, other arguments, no oneDNN, no bfloat16 in it
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
