"""A faster form of the encoder network: uint8 frames in, all scaling inside of the first layer, packed CPU layers.

Constants are multiplied into the weights once, in float64: the division by 255 and the spread of `Standard` go into the
first convolution and into the principal components. `Encoder.mean` stays the definition; tests compare the two.
"""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from latent_obs.encoder.architecture import Encoder
from latent_obs.encoder.components import Standard

_BATCH = 8  # batch size that the packed weights are made for; others work as well
_ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # difference to plain layers, of the largest value


class FoldedEncoder(nn.Module):
    """`Encoder.mean` for uint8 frames.

    Pixels from 0 to 255 are exact in bfloat16, while 0 to 1 are not; and the mean picture and what principal components
    show are subtracted in float32 before anything is rounded. So bfloat16 only rounds weights and activations.

    Args:
        encoder: The network, which is not changed.
        dtype: In which the convolutions are computed; the layers that give the latents stay in float32.
    """

    centre: Tensor | None  # mean picture of `Standard`, (h, w, c) from 0 to 255

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
        self.convolutions = copy.deepcopy(encoder.convolutions)
        first = cast(nn.Conv2d, self.convolutions[0])
        with torch.no_grad():
            first.weight.copy_(_exact(first.weight) / (255.0 * spread))
        self.convolutions.to(dtype)
        self.mean_head = encoder.mean_head
        if self.dense:
            last = encoder.architecture.stages[-1]
            head = cast(nn.Linear, encoder.mean_head)
            self.mean_head = _linear(head.weight, head.bias, (last.channels_out, *last.size_out))
        self.coordinates: nn.Module | None = None  # from centred frames to coordinates along the components
        self.shown: nn.Module | None = None  # from coordinates to what the components show of a frame, from 0 to 255
        if encoder.architecture.components:
            standard = cast(Standard, encoder.standard)
            height, width, channels = encoder.architecture.img_shape
            basis, unit = _exact(standard.basis), _exact(standard.deviation)[-1]
            none = torch.zeros(len(basis), dtype=basis.dtype)
            self.coordinates = _linear(basis / (255.0 * unit), none, (channels, height, width)).to(device)
            pictures = (255.0 * unit * basis).unflatten(1, (channels, height, width)).permute(0, 2, 3, 1)
            self.shown = _frozen(pictures.flatten(1).T, torch.zeros(pictures[0].numel())).to(device)

    @torch.inference_mode()
    def forward(self, frames: Tensor) -> Tensor:
        """Mean latents, float32 (N, latent_dim), of frames, uint8 (N, h, w, c)."""
        x = frames.float() if self.centre is None else frames - self.centre
        coordinates = None
        if self.coordinates is not None and self.shown is not None:
            coordinates = self.coordinates(x.flatten(1))
            x = x - self.shown(coordinates).view_as(x)
        h = self.convolutions(x.to(self.dtype).permute(0, 3, 1, 2)).float()  # (N, c', h', w'), channels last in memory
        latents = self.mean_head(h.permute(0, 2, 3, 1).flatten(1) if self.dense else h).flatten(1)
        return latents if coordinates is None else torch.cat([coordinates, latents], 1)


def _exact(tensor: Tensor) -> Tensor:
    """In float64 on the CPU: some GPUs have no float64."""
    return tensor.detach().cpu().double()


def _linear(weight: Tensor, bias: Tensor, order: tuple[int, int, int]) -> nn.Linear:
    """A frozen float32 layer of weights (d, c * h * w), for inputs in their order in memory: row, column, channel."""
    return _frozen(weight.unflatten(1, order).permute(0, 2, 3, 1).flatten(1), bias)


def _frozen(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A frozen float32 layer of weights (outputs, inputs)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight.detach().float().contiguous(), requires_grad=False)
    layer.bias = nn.Parameter(bias.detach().float().clone(), requires_grad=False)
    return layer


class PackedLayer(nn.Module):
    """A convolution or linear layer of oneDNN, its weights in the order that this processor computes fastest in."""

    def __init__(self, layer: nn.Module, relu: bool, shape: torch.Size) -> None:
        super().__init__()
        mkldnn: Any = torch.ops.mkldnn
        after = ("relu" if relu else "none", [], "")
        if isinstance(layer, nn.Conv2d):
            geometry = (list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups)
            weight = mkldnn._reorder_convolution_weight(layer.weight.detach(), *geometry, list(shape))
            self._arguments = (weight, layer.bias, *geometry, *after)
            self._operator = mkldnn._convolution_pointwise.default
        else:
            layer = cast(nn.Linear, layer)
            self._arguments = (mkldnn._reorder_linear_weight(layer.weight.detach(), shape[0]), layer.bias, *after)
            self._operator = mkldnn._linear_pointwise.default

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, after its ReLU."""
        return self._operator(x, *self._arguments)


def pack_layers(folded: FoldedEncoder, shape: tuple[int, int, int]) -> FoldedEncoder:
    """The same network with packed layers, if this torch and this processor can compute them; else `folded` itself."""
    frames = torch.randint(0, 256, (_BATCH, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    packed = copy.copy(folded)
    packed._modules = dict(folded._modules)
    with torch.inference_mode():
        expected = folded(frames)
        try:
            x = frames.to(folded.dtype).permute(0, 3, 1, 2)
            layers, convolutions = list(folded.convolutions), nn.Sequential()
            for layer, following in zip(layers, [*layers[1:], None], strict=True):
                if isinstance(layer, nn.Conv2d):
                    convolutions.append(PackedLayer(layer, isinstance(following, nn.ReLU), x.shape))
                    x = convolutions[-1](x)
            packed.convolutions = convolutions
            packed.mean_head = PackedLayer(folded.mean_head, False, x.shape)
            for name in ("coordinates", "shown"):
                if getattr(folded, name) is not None:
                    setattr(packed, name, PackedLayer(getattr(folded, name), False, x.shape))
            found = packed(frames)
        except (AttributeError, RuntimeError, TypeError):  # no oneDNN, no bfloat16 in it, or a changed operator
            return folded
    coordinates = 0 if folded.coordinates is None else cast(nn.Linear, folded.coordinates).out_features
    parts = zip(*(latents.tensor_split([coordinates], 1) for latents in (found, expected)), strict=True)
    same = all((f - e).abs().max() <= _ALLOWED[folded.dtype] * e.abs().max() for f, e in parts if e.numel())
    return packed if same else folded
