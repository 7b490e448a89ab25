"""Errors of edges and of several scales, beside the error of the pixels."""

from torch import Tensor
from torch.nn import functional


def edge_error(decoded: Tensor, images: Tensor) -> Tensor:
    """Squared error of the differences between neighbouring pixels, summed over the image; mean over batch and both directions.

    The gradient difference loss of Mathieu et al. 2016, "Deep multi-scale video prediction beyond mean square error",
    section 3.3, with exponent 2 and signed differences: a blurred outline costs, a wrong brightness does not.

    Args:
        decoded: (N, C, H, W).
        images: (N, C, H, W).

    Example:
        >>> import torch
        >>> image = torch.rand(2, 3, 8, 8)
        >>> float(edge_error(image + 0.5, image)) < 1e-9
        True
    """
    difference = decoded - images
    across = (difference[..., :, 1:] - difference[..., :, :-1]).square().sum()
    down = (difference[..., 1:, :] - difference[..., :-1, :]).square().sum()
    return (across + down) / (2 * len(images))


def scale_error(decoded: Tensor, images: Tensor, scales: tuple[int, ...] = (2, 4, 8)) -> Tensor:
    """Squared error of the images made smaller by averaging, counted per pixel of the large image; mean over scales and batch.

    Coarse errors (a wall that is too bright) count at every scale, noise at the finest only.

    Args:
        decoded: (N, C, H, W).
        images: (N, C, H, W).
        scales: Sides of the squares that are averaged; those larger than the image are left out, and so are rows and columns
            at the lower and right border that do not fill a square.

    Example:
        >>> import torch
        >>> image = torch.zeros(1, 1, 8, 8)
        >>> float(scale_error(image + 0.5, image)), float((image + 0.5).square().sum())
        (16.0, 16.0)
    """
    difference = decoded - images
    fitting = [scale for scale in scales if scale <= min(images.shape[2:])]
    errors = [functional.avg_pool2d(difference, scale).square().sum() * scale**2 for scale in fitting]
    return sum(errors[1:], errors[0]) / (len(errors) * len(images)) if errors else difference.square().sum() * 0
