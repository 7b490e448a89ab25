"""Which pixels count more in the reconstruction: those that the background of the recordings does not explain.

The plain squared error spends itself on walls and sky. A monster of 4x7 pixels on a wall of nearly its colour has a
thousandth of a frame's squared error, and its place a few nats: the loss hardly rewards keeping it.
"""

import torch
from torch import Tensor, nn

from vae_training.principal_components import principal_components

#: A pixel counts at most this many times the mean: one bright flash must not be the whole loss.
CAP = 50.0
_TINY = 1e-12  # below any squared difference of 8-bit pixels; only keeps a still or empty batch from dividing by 0


def weights_of(weight: float, marked: Tensor) -> Tensor:
    """Weights of pixels from marked pixels: ``1 + weight * marked``, divided by its mean over the batch.

    The mean stays 1, so that beta weighs the KL against the same amount of squared error as without.

    Args:
        weight: How much a marked pixel counts.
        marked: (N, 1, H, W).

    Returns:
        float32 (N, 1, H, W), mean 1, without gradient.

    Example:
        >>> weights_of(1.0, torch.tensor([0.0, 2.0]).view(1, 1, 1, 2)).flatten().tolist()
        [0.5, 1.5]
    """
    weights = 1 + weight * marked
    return (weights / weights.mean()).detach()


class Background(nn.Module):
    """A low-rank model of what the recordings show all the time; what it does not explain is small, rare, or moves.

    Frames of one place are nearly a low-rank matrix, and what moves in front is sparse: background subtraction by
    principal components (Oliver et al. 2000, "A Bayesian Computer Vision System for Modeling Human Interactions"; Candès et al.
    2011, "Robust Principal Component Analysis?", section 4). The components are those of a sample of training frames.

    Args:
        pixels: Values of a frame, C x H x W.
        rank: Components.

    Example:
        >>> background = Background(pixels=4, rank=1)
        >>> dark, bright = torch.zeros(8, 1, 2, 2), torch.ones(8, 1, 2, 2)
        >>> background.fit(torch.cat([dark, bright]))
        >>> frame = bright[:1].clone()
        >>> frame[0, 0, 0, 1] = 0.0  # one pixel that is not as the light of the others says
        >>> int(background(frame).argmax())
        1
    """

    mean: Tensor
    basis: Tensor

    def __init__(self, pixels: int, rank: int = 32) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("basis", torch.zeros(pixels, rank))

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Take the components of images float32 (N, C, H, W); the random state of training is left alone."""
        mean, _, components = principal_components(images.flatten(1), self.basis.shape[1])
        self.mean.copy_(mean)
        self.basis.zero_()
        self.basis[:, : components.shape[1]].copy_(components)

    def forward(self, images: Tensor) -> Tensor:
        """Pixels that the background does not explain: float32 (N, 1, H, W), mean 1 over the batch, at most `CAP`."""
        centred = images.detach().flatten(1) - self.mean
        rest = centred - (centred @ self.basis) @ self.basis.T
        marked = rest.view_as(images).square().mean(1, keepdim=True)
        return (marked / (marked.mean() + _TINY)).clamp(max=CAP)
