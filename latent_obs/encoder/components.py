"""The linear part of a frame: principal components of training frames, and what they leave to the convolutions."""

import math

import torch
from torch import Tensor, nn

#: Frames spread less than one step of one pixel along some directions: that is rounding, not content. Anything divided
#: by such a spread would explode on a frame that does differ there.
LEAST_SPREAD = 1 / 255
_IMAGES_PER_COMPONENT = 3  # at least


@torch.no_grad()
def principal_components(flat: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Centre, spreads and directions of the largest principal components.

    A sketch of some more columns and a few power iterations is exact enough (Halko et al. 2011, "Finding structure with
    randomness", section 4.4). The sketch is always the same, and the global random state is not changed.

    Of N ≥ 1 frames in [0, 1], float32 (N, D), they are the mean (D,), standard deviations along the components (k,),
    falling, and the components (D, k), orthonormal. k is `count`, or less if frames vary in fewer directions by more
    than `LEAST_SPREAD`.
    """
    centre = flat.mean(0)
    with torch.random.fork_rng(devices=[flat.device] if flat.is_cuda else []):
        torch.manual_seed(0)
        _, sizes, components = torch.svd_lowrank(flat - centre, q=min(count + 8, *flat.shape), niter=4)
    spread = sizes[:count] / len(flat) ** 0.5
    kept = int((spread > LEAST_SPREAD).sum())
    return centre, spread[:kept], components[:, :kept]


class Standard(nn.Module):
    """Split images into coordinates along principal components and a standardized rest; everything is fixed.

    The rest is the image minus the mean image and minus what the components show of it, over its spread. Without
    components it is the image minus the mean image, over the spread of the pixels.

    All coordinates are divided by one number, the deviation of the smallest component, so that they keep the picture's
    own scale beside learned values, whose deviation is about 1: what shows much of the picture is large.

    Args:
        img_shape: (height, width, channels).
        components: Number of principal components, k.

    Example:
        >>> standard = Standard((8, 8, 3), components=2)
        >>> images = torch.rand(50, 3, 8, 8)
        >>> standard.measure(images)
        >>> coordinates, rest = standard(images)
        >>> tuple(coordinates.shape), tuple(rest.shape)
        ((50, 2), (50, 3, 8, 8))
        >>> torch.allclose(standard.undo(coordinates, rest), images, atol=1e-5)
        True
    """

    mean: Tensor  # (C, H, W)
    spread: Tensor  # (), of the rest
    basis: Tensor  # (k, C * H * W), orthonormal rows
    deviation: Tensor  # (k,), standard deviation of the frames along each

    def __init__(self, img_shape: tuple[int, int, int], components: int = 0) -> None:
        super().__init__()
        height, width, channels = img_shape
        self.components = components
        self.register_buffer("mean", torch.zeros(channels, height, width))
        self.register_buffer("spread", torch.ones(()))
        if components:
            self.register_buffer("basis", torch.zeros(components, math.prod(img_shape)))
            self.register_buffer("deviation", torch.ones(components))

    @torch.no_grad()
    def measure(self, images: Tensor) -> None:
        """Set everything from training images float32 (N, C, H, W).

        Where they vary in fewer directions than there are components, the coordinates of the others are 0. So are those
        beyond a third of the number of images: components of so few leave much less of them than of other images.
        """
        self.mean.copy_(images.mean(0))
        rest = images - self.mean
        if self.components:
            count = min(self.components, len(images) // _IMAGES_PER_COMPONENT)
            _, deviation, components = principal_components(images.flatten(1), count)
            self.basis.zero_()[: len(deviation)] = components.T
            self.deviation.fill_(float(deviation[-1]) if len(deviation) else 1.0)[: len(deviation)] = deviation
            rest = rest - self._shown(self._coordinates(rest))
        self.spread.copy_(rest.square().mean().sqrt().clamp(min=1e-3))

    def forward(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """Coordinates (N, k), and the rest (N, C, H, W) with variance 1 over training frames, of images in [0, 1].

        Both are float32 under autocast, too: a sum over all pixels needs it.
        """
        with torch.autocast(x.device.type, enabled=False):
            rest = x - self.mean
            if not self.components:
                return None, rest / self.spread
            coordinates = self._coordinates(rest)
            return coordinates, (rest - self._shown(coordinates)) / self.spread

    def undo(self, coordinates: Tensor | None, rest: Tensor) -> Tensor:
        """The inverse of `forward`."""
        with torch.autocast(rest.device.type, enabled=False):
            image = rest.float() * self.spread + self.mean
            return image if coordinates is None else image + self._shown(coordinates.float())

    def alike(self, coordinates: Tensor) -> Tensor:
        """Coordinates with variance 1 each over the training frames: a layer learns from such inputs faster."""
        return coordinates * (self.deviation[-1] / self.deviation)

    def _coordinates(self, centred: Tensor) -> Tensor:
        return centred.flatten(1) @ self.basis.T / self.deviation[-1]

    def _shown(self, coordinates: Tensor) -> Tensor:
        return ((coordinates * self.deviation[-1]) @ self.basis).view(-1, *self.mean.shape)
