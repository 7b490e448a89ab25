"""Start a linear path as the principal components of the frames, so that training begins where PCA ends."""

import torch
from torch import Tensor, nn

from latent_obs.errors import InputError
from vae_training.cvae import CVAE

_QUIET = 0.1  # the convolutions begin this small: their random first guesses would drown the components


@torch.no_grad()
def start_linear_path(model: CVAE, images: Tensor) -> None:
    """Set both linear maps to the principal components of images, each latent with variance 1, and quieten the rest.

    Reconstructions from the means are then almost those of PCA with `latent_dim` components; gradient steps move all of it.
    Where there are fewer images than latents, the others begin at 0 and have only the convolutions.

    Args:
        model: A model with a linear path, changed in place.
        images: float32 (N, C, H, W) in [0, 1], some hundreds or thousands of training frames.

    Raises:
        InputError: The model has no linear path.

    Example:
        >>> model = CVAE((32, 32, 3), latent_dim=8, linear_path=True)
        >>> images = torch.rand(6, 3, 1, 1) * torch.ones(6, 3, 32, 32)  # of one colour each: three components are all there is
        >>> start_linear_path(model, images)
        >>> mean, _ = model.encode(images)
        >>> bool((model.decode(mean) - images).abs().max() < 0.05)
        True
    """
    into, back = model.encoder.linear, model.decoder.linear
    if into is None or back is None:
        raise InputError("this model has no linear path; make it with linear_path=True")
    flat = images.flatten(1)
    centre = flat.mean(0)
    rank = min(model.latent_dim, len(flat) - 1, flat.shape[1])
    # A sketch of some more columns and a few power iterations is exact enough (Halko et al. 2011, section 4.4).
    with torch.random.fork_rng(devices=[flat.device] if flat.is_cuda else []):
        torch.manual_seed(0)
        _, sizes, components = torch.svd_lowrank(flat - centre, q=min(rank + 8, *flat.shape), niter=4)
    spread = (sizes[:rank] / len(flat) ** 0.5).clamp(min=1e-6)
    into.weight.zero_()
    into.weight[:rank] = (components[:, :rank] / spread).T
    into.bias.copy_(-(into.weight @ centre))
    back.weight.zero_()
    back.weight[:, :rank] = components[:, :rank] * spread
    back.bias.copy_(centre)
    for layer in (model.encoder.mean_head, model.encoder.logvar_head, model.decoder.convolutions[-1]):
        assert isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
        layer.weight.mul_(_QUIET)
        if layer.bias is not None:
            layer.bias.zero_()
    bias = model.encoder.logvar_head.bias
    assert isinstance(bias, Tensor)
    bias.fill_(-4.0)  # a posterior as wide as the prior would leave the decoder nothing but noise
