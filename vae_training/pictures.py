"""Pictures of what the CVAE sees: reconstructions and latent traversals, as arrays and PNG files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from latent_obs.atomic import written_aside
from vae_training.cvae import CVAE, gaussian_kl_nats, images_to_tensor

Picture = NDArray[np.uint8]
_GAP, _BACKGROUND = 2, 255


def grid(rows: Sequence[NDArray[np.uint8]], scale: int = 2) -> Picture:
    """Lay rows of images out as one picture.

    Args:
        rows: Each uint8 (n, H, W, C); 1 channel is shown grey, of more than 3 the last 3 (the newest frame of a stack).
        scale: Whole number by which each pixel is enlarged.

    Returns:
        uint8 (H', W', 3).

    Example:
        >>> grid([np.zeros((5, 8, 8, 3), np.uint8)] * 2, scale=1).shape
        (18, 48, 3)
    """
    height, width = rows[0].shape[1:3]
    columns = max(len(row) for row in rows)
    step_y, step_x = height * scale + _GAP, width * scale + _GAP
    sheet = np.full((len(rows) * step_y - _GAP, columns * step_x - _GAP, 3), _BACKGROUND, np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(_to_rgb(row)):
            large = image.repeat(scale, axis=0).repeat(scale, axis=1)
            top, left = y * step_y, x * step_x
            sheet[top : top + height * scale, left : left + width * scale] = large
    return sheet


def _to_rgb(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    channels = images.shape[-1]
    if channels < 3:
        return np.repeat(images[..., :1], 3, axis=-1)
    return images[..., -3:]


def save_picture(path: Path, picture: Picture) -> None:
    """Write a PNG, whole or not at all."""
    with written_aside(path) as aside:
        Image.fromarray(picture).save(aside)


@torch.inference_mode()
def reconstruct(model: CVAE, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames as the model sees them: decoded from their mean latents.

    Args:
        model: The CVAE, on any device.
        frames: uint8 (N, H, W, C).

    Returns:
        uint8 (N, H, W, C).
    """
    device = next(model.parameters()).device
    mean, _ = model.encode(images_to_tensor(torch.from_numpy(np.require(frames, requirements=("C", "W"))).to(device)))
    return _to_uint8(model.decode(mean))


def reconstruction_sheet(model: CVAE, frames: NDArray[np.uint8]) -> Picture:
    """Frames above their reconstructions.

    Args:
        model: The CVAE.
        frames: uint8 (n, H, W, C), some ten.
    """
    return grid([frames, reconstruct(model, frames)])


@torch.inference_mode()
def traversal_sheet(
    model: CVAE, frame: NDArray[np.uint8], *, sample: NDArray[np.uint8], latents: int = 6, steps: int = 9
) -> Picture:
    """What single latents stand for: each row moves one of them and leaves the others as they are.

    The rows are the latents that carry most information, by mean KL over a sample, the strongest first; each moves over the
    range that it has in the sample (1st to 99th percentile).

    Args:
        model: The CVAE.
        frame: uint8 (H, W, C), the frame to start from.
        sample: uint8 (N, H, W, C), some hundred frames.
        latents: Rows.
        steps: Images per row.
    """
    device = next(model.parameters()).device
    x = images_to_tensor(torch.from_numpy(np.require(sample, requirements=("C", "W"))).to(device))
    mean, logvar = model.encode(x)
    strongest = gaussian_kl_nats(mean, logvar).mean(0).argsort(descending=True)[:latents]
    low, high = (torch.quantile(mean[:, strongest], q, dim=0) for q in (0.01, 0.99))
    start, _ = model.encode(images_to_tensor(torch.from_numpy(frame.copy()[None]).to(device)))
    rows: list[NDArray[np.uint8]] = []
    for i, latent in enumerate(strongest):
        z = start.repeat(steps, 1)
        z[:, latent] = torch.linspace(float(low[i]), float(high[i]), steps, device=device)
        rows.append(_to_uint8(model.decode(z)))
    return grid(rows)


def _to_uint8(images: torch.Tensor) -> NDArray[np.uint8]:
    """Float (N, C, H, W) to uint8 (N, H, W, C)."""
    return images.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
