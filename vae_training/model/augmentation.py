"""Images as the loss takes them: frames as tensors, and random changes of them for small datasets."""

import torch
from torch import Tensor
from torch.nn import functional

#: Random numbers per image from which `augment` makes its changes.
CHANGES = 10


def images_to_tensor(frames: Tensor) -> Tensor:
    """Convert frames as they are on disk to a batch for the model.

    Args:
        frames: uint8 (N, H, W, C) on any device.

    Returns:
        float32 (N, C, H, W) in [0, 1], with channels last in memory.
    """
    return frames.permute(0, 3, 1, 2).float().div_(255)


def augment(images: Tensor, strength: float, noise: Tensor) -> Tensor:
    """Shift, scale, mirror and recolor each image by a random amount of its own.

    With strength 1: a shift of up to a quarter of the image in each direction and a scale of 0.8 to 1.2, with the image
    mirrored at its border; a horizontal flip of half of the images; each channel times 0.8 to 1.2, plus up to 0.1.
    Smaller strengths make all amounts, and the share that is flipped, smaller in proportion. The changed image is also
    the target of the reconstruction, so a flip teaches nothing false about left and right.

    Args:
        images: float32 (N, C, H, W) in [0, 1].
        strength: 0 (no change) to 1.
        noise: Standard normal numbers (N, `CHANGES`); the same numbers give the same changes.

    Returns:
        float32 (N, C, H, W) in [0, 1], channels last in memory.
    """
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
    color = torch.arange(images.shape[1], device=images.device) % 3  # more channels than three take them in turn
    gain = (1 + 0.2 * strength * signed[:, 4 + color])[:, :, None, None]
    offset = (0.1 * strength * signed[:, 7 + color])[:, :, None, None]
    return (moved * gain + offset).clamp_(0, 1).contiguous(memory_format=torch.channels_last)
