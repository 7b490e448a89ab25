"""The encoder's own network made shorter: frames in as bytes, and all scaling inside the first layer.

Numbers that are the same for every frame are multiplied out once, in float64: the division by 255 and the spread of
`Standard` go into the weights of the first convolution. `networks.Encoder` stays the definition; tests hold the two together.
"""

import copy
from typing import cast

import torch
from torch import Tensor, nn

from latent_obs.networks import Encoder


class FoldedEncoder(nn.Module):
    """What `Encoder.mean` gives, from bytes.

    Pixels 0 to 255 are exact in bfloat16, where 0 to 1 are not; and with `standardise`, the mean picture is subtracted in
    float32 before anything is rounded. So bfloat16 costs what its weights and activations lose, and nothing more.

    Args:
        encoder: The network; it is left as it is, and layers that need no change are shared with it.
        dtype: In which the convolutions are computed; the layers that give the latents stay in float32.

    Attributes:
        centre: Mean picture of `standardise`, float32 (h, w, c) from 0 to 255, or None.
        convolutions: As the network's.
        mean_head: As the network's; a dense one takes features in the order row, column, channel.
        linear: The linear path, which takes centred pixels in the order row, column, channel; or None.

    Example:
        >>> from latent_obs.architecture import Architecture
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
    """Weights (d, c * h * w) of a linear layer, for inputs in the order row, column, channel: that in which they lie."""
    return weight.unflatten(1, order).permute(0, 2, 3, 1).flatten(1)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A frozen linear layer in float32."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight.float().contiguous(), requires_grad=False)
    layer.bias = nn.Parameter(bias.float().clone(), requires_grad=False)
    return layer
