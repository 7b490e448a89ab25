"""Start a linear path as the principal components of the frames, so that training begins with PCA's error."""

import torch
from torch import Tensor, nn

from latent_obs.encoder.pca import principal_components
from latent_obs.util.errors import InputError
from vae_training.model.cvae import CVAE

_SCALE = 0.1  # of the convolutions' heads: their random output would drown the components


@torch.no_grad()
def start_linear_path(model: CVAE, images: Tensor) -> None:
    """Set both linear maps to the principal components of images, each latent with variance 1, and scale the rest down.

    If the images have fewer components than there are latents, the linear weights of the other latents are 0.

    Args:
        model: A model with a linear path, changed in place.
        images: float32 (N, C, H, W) in [0, 1], some hundreds or thousands of training frames.

    Example:
        >>> model = CVAE((32, 32, 3), latent_dim=8, linear_path=True)
        >>> images = torch.rand(6, 3, 1, 1) * torch.ones(6, 3, 32, 32)  # of one color each: three components
        >>> start_linear_path(model, images)
        >>> mean, _ = model.encode(images)
        >>> bool((model.decode(mean) - images).abs().max() < 0.05)
        True
    """
    into, back = model.encoder.linear, model.decoder.linear
    if into is None or back is None:
        raise InputError("this model has no linear path; make it with linear_path=True")
    centre, spread, components = principal_components(images.flatten(1), model.latent_dim)
    into.weight.zero_()
    into.weight[: len(spread)] = (components / spread).T
    into.bias.copy_(-(into.weight @ centre))
    back.weight.zero_()
    back.weight[:, : len(spread)] = components * spread
    back.bias.copy_(centre)
    for layer in (model.encoder.mean_head, model.encoder.logvar_head, model.decoder.convolutions[-1]):
        assert isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
        layer.weight.mul_(_SCALE)
        if layer.bias is not None:
            layer.bias.zero_()
    bias = model.encoder.logvar_head.bias
    assert isinstance(bias, Tensor)
    bias.fill_(-4.0)  # a posterior as wide as the prior would leave the decoder nothing but noise
