"""Losses of a CVAE on held-out frames, always at the wanted beta, so that moments of a run can be compared."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vae_training.cvae import CVAE, gaussian_kl_nats, images_to_tensor

_BATCH = 256
_ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, "Importance Weighted Autoencoders", section 5: a unit is active above this


@dataclass(frozen=True)
class HeldOut:
    """Losses on held-out frames.

    Attributes:
        loss_at_fixed_beta: Reconstruction plus the wanted beta times KL, whatever the beta in force.
        reconstruction: Squared error through a sample of the latent, as in training.
        kl_nats: KL, as in training.
        active_latents: Latents whose mean varies over the frames by more than 0.01 (Burda et al. 2016).
    """

    loss_at_fixed_beta: float
    reconstruction: float
    kl_nats: float
    active_latents: float


@torch.inference_mode()
def evaluate(model: CVAE, frames: NDArray[np.uint8], *, beta: float) -> HeldOut:
    """Evaluate a CVAE; the same frames and weights give the same numbers, and training's random state is left alone.

    Args:
        model: The CVAE.
        frames: uint8 (N, H, W, C), N ≥ 1.
        beta: The wanted beta.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    squared_error, kl, means = 0.0, 0.0, []
    for i in range(0, len(frames), _BATCH):
        x = images_to_tensor(torch.from_numpy(np.require(frames[i : i + _BATCH], requirements=("C", "W"))).to(device))
        mean, logvar = model.encode(x)
        decoded = model.decode(model.reparameterize(mean, logvar, generator))
        squared_error += (decoded - x).square().sum().item()
        kl += gaussian_kl_nats(mean, logvar).sum().item()
        means.append(mean)
    reconstruction, kl_nats = squared_error / len(frames), kl / len(frames)
    if model.scale_losses:
        reconstruction /= float(np.prod(model.architecture.img_shape))
        kl_nats /= model.latent_dim
    variance = torch.cat(means).var(0, correction=0)
    active = int((variance > _ACTIVE_VARIANCE).sum())
    return HeldOut(reconstruction + beta * kl_nats, reconstruction, kl_nats, float(active))
