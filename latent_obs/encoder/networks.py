"""The encoder and the decoder of the CVAE, as plain `torch.nn` modules built from an `Architecture`.

The decoder lives here too, as `FrozenEncoder` builds it when a picture is asked for.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from latent_obs.encoder.architecture import Architecture


class Standard(nn.Module):
    """Standardize pixels: subtract the training frames' mean picture, and divide by their spread; both are fixed."""

    mean: Tensor
    spread: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        height, width, channels = architecture.img_shape
        self.register_buffer("mean", torch.zeros(channels, height, width))
        self.register_buffer("spread", torch.ones(()))

    @torch.no_grad()
    def measure(self, images: Tensor) -> None:
        """Set the mean picture and the spread around it, one for all pixels, from images float32 (N, C, H, W)."""
        self.mean.copy_(images.mean(0))
        self.spread.copy_((images - self.mean).square().mean().sqrt().clamp(min=1e-3))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] to the same shape, with mean 0 and spread 1 over the training frames."""
        return (x - self.mean) / self.spread

    def undo(self, x: Tensor) -> Tensor:
        """The inverse of `forward`."""
        return x * self.spread + self.mean


class Encoder(nn.Module):
    """q(z|x): frames to the mean and log-variance of a diagonal Gaussian.

    Input: float32 (N, C, H, W) in [0, 1]. Outputs: two float32 (N, latent_dim).

    Example:
        >>> encoder = Encoder(Architecture((32, 32, 3), latent_dim=8))
        >>> mean, logvar = encoder(torch.zeros(5, 3, 32, 32))
        >>> tuple(mean.shape), tuple(logvar.shape)
        ((5, 8), (5, 8))
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.standard = Standard(architecture) if architecture.standardize else None
        self.convolutions = nn.Sequential()
        for i, stage in enumerate(architecture.stages):
            self.convolutions.append(
                nn.Conv2d(stage.channels_in, stage.channels_out, stage.kernel, stage.stride, padding=stage.padding)
            )
            if i > 0 or architecture.first_activation:
                self.convolutions.append(nn.ReLU(inplace=True))
        # Two heads rather than one of twice the width: the agent needs the mean alone, so the other is never computed.
        self.mean_head, self.logvar_head = _head(architecture), _head(architecture)
        pixels = math.prod(architecture.img_shape)
        self.linear = nn.Linear(pixels, architecture.latent_dim) if architecture.linear_path else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, each (N, latent_dim)."""
        h = self._features(x)
        return self._mean(x, h), self.logvar_head(h).flatten(1)

    def mean(self, x: Tensor) -> Tensor:
        """The mean alone, (N, latent_dim): what an agent sees."""
        return self._mean(x, self._features(x))

    def _features(self, x: Tensor) -> Tensor:
        h = self.convolutions(x if self.standard is None else self.standard(x))  # (N, C', H', W')
        return h.flatten(1) if self.architecture.bottleneck == "dense" else h

    def _mean(self, x: Tensor, h: Tensor) -> Tensor:
        mean = self.mean_head(h).flatten(1)
        return mean if self.linear is None else mean + self.linear(x.flatten(1))


def _head(architecture: Architecture) -> nn.Module:
    last = architecture.stages[-1]
    if architecture.bottleneck == "dense":
        return nn.Linear(last.channels_out * math.prod(last.size_out), architecture.latent_dim)
    return nn.Conv2d(last.channels_out, architecture.latent_map[0], kernel_size=1)


class Decoder(nn.Module):
    """p(x|z): a latent vector to the image it stands for; the mirror of `Encoder`.

    Input: float32 (N, latent_dim). Output: float32 (N, C, H, W), nominally in [0, 1] (the last layer is linear, so that
    black and white pixels have a gradient; clamp before showing it).
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.standard = Standard(architecture) if architecture.standardize else None
        last = architecture.stages[-1]
        self.map_shape = (last.channels_out, *last.size_out)
        if architecture.bottleneck == "dense":
            self.stem: nn.Module = nn.Linear(architecture.latent_dim, math.prod(self.map_shape))
        else:
            self.stem = nn.Conv2d(architecture.latent_map[0], last.channels_out, kernel_size=3, padding=1)
        self.convolutions = nn.Sequential()
        for stage in reversed(architecture.stages):
            geometry: dict[str, Any] = {"padding": stage.padding, "output_padding": stage.output_padding}
            self.convolutions.append(nn.ReLU(inplace=True))
            self.convolutions.append(
                nn.ConvTranspose2d(stage.channels_out, stage.channels_in, stage.kernel, stage.stride, **geometry)
            )
        pixels = math.prod(architecture.img_shape)
        self.linear = nn.Linear(architecture.latent_dim, pixels) if architecture.linear_path else None

    def forward(self, z: Tensor) -> Tensor:
        """Image of each latent, (N, C, H, W)."""
        linear = None if self.linear is None else self.linear(z)
        if self.architecture.bottleneck == "spatial":
            z = z.unflatten(1, self.architecture.latent_map)  # (N, latent_dim) -> (N, c, h, w)
        h = self.stem(z)
        x = self.convolutions(h.unflatten(1, self.map_shape) if h.dim() == 2 else h)
        if self.standard is not None:
            # The linear path contains the mean picture.
            x = self.standard.undo(x) if linear is None else x * self.standard.spread
        return x if linear is None else x + linear.view(x.shape)
