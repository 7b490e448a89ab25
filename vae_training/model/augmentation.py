"""Pictures changed in ways that keep what they show, for small datasets: the target of the reconstruction changes
along.

An autoencoder is not asked to see the same in a picture and its changed form, but to describe the changed one. So even
a mirror image teaches nothing false about left and right, as it would in contrastive learning; it is one more picture.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from latent_obs.util.errors import InputError


def augment(images: Tensor, strength: float, noise: Tensor) -> Tensor:
    """Shift, scale, mirror and recolour each image by an amount of its own.

    With strength 1: moved by up to a quarter of the picture in each direction and scaled by 0.8 to 1.2, with what is
    missing mirrored at the border; mirrored left to right in half of the cases; each colour scaled by 0.8 to 1.2, moved
    by up to 0.1. Strength 0 changes nothing; between, all amounts (and the share that is mirrored) are that much
    smaller.

    Args:
        images: float32 (N, C, H, W) in [0, 1].
        strength: 0 to 1.
        noise: Standard normal numbers (N, 10), from which the changes are made: whoever repeats them repeats the
            changes.

    Returns:
        float32 (N, C, H, W) in [0, 1], channels last in memory.

    Raises:
        InputError: The strength is out of range.

    Example:
        >>> images = torch.rand(4, 3, 16, 16)
        >>> changed = augment(images, 1.0, torch.randn(4, 10))
        >>> changed.shape == images.shape and 0 <= float(changed.min()) and float(changed.max()) <= 1
        True
        >>> augment(images, 0.0, torch.randn(4, 10)) is images
        True
    """
    if not 0 <= strength <= 1:
        raise InputError(f"augment must be from 0 (off) to 1, got {strength}")
    if not strength:
        return images
    uniform = torch.special.ndtr(noise)  # (N, 10) in (0, 1)
    signed = 2 * uniform - 1
    zoom = 1 + 0.2 * strength * signed[:, 0]
    mirror = torch.where(uniform[:, 1] < strength / 2, -1.0, 1.0)
    transform = torch.zeros(len(images), 2, 3, device=images.device, dtype=images.dtype)
    transform[:, 0, 0], transform[:, 1, 1] = zoom * mirror, zoom
    transform[:, :, 2] = 0.5 * strength * signed[:, 2:4]  # half of a side that is 2 long
    grid = functional.affine_grid(transform, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    channels = images.shape[1]
    gain = (1 + 0.2 * strength * _cycle(signed[:, 4:7], channels))[:, :, None, None]
    offset = (0.1 * strength * _cycle(signed[:, 7:10], channels))[:, :, None, None]
    return (moved * gain + offset).clamp_(0, 1).contiguous(memory_format=torch.channels_last)


def _cycle(columns: Tensor, channels: int) -> Tensor:
    return columns.repeat(1, math.ceil(channels / columns.shape[1]))[:, :channels]
