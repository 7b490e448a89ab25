"""The convolutional beta-VAE."""

import math
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latent_obs.encoder.architecture import Architecture, Bottleneck, Decoder, Encoder
from latent_obs.util.errors import InputError
from vae_training.model.augmentation import images_to_tensor as images_to_tensor
from vae_training.model.losses import Losses as Losses
from vae_training.model.losses import VAELoss, apply_gradients
from vae_training.model.losses import gaussian_kl_nats as gaussian_kl_nats


class CVAE(nn.Module):
    """A convolutional variational autoencoder with a weighted KL term (Higgins et al. 2017, "beta-VAE").

    Images are float32 (N, C, H, W) in [0, 1]; latents float32 (N, latent_dim). The first convolution has no activation:
    it is a linear change of color space and edges, and cuts off no information before the second.

    The loss of N images is ``reconstruction + beta * kl`` (with components, beta times `beta_unit`):

    - reconstruction: the squared error, summed over the image, mean over the batch;
    - kl: the divergence from the unit Gaussian in nats, summed over the learned latent dimensions, mean over the batch.

    With ``scale_losses=False``, beta weighs nats against the squared error of the whole image: beta = 1 is the evidence
    lower bound of a Gaussian decoder with variance 1/2 per value. With ``scale_losses=True`` the reconstruction is
    divided by the number of values in the image and the KL by that of learned latents, k. A beta of the unscaled loss
    has the same balance as a scaled ``beta * k / (height * width * channels)``. A scaled beta of 1 is very strong:
    squared errors of pixels in [0, 1] are around 0.001 to 0.01.

    Args:
        img_shape: (height, width, channels).
        latent_dim: Number of values in the latent.
        beta: The wanted weight of the KL, kept in `fixed_beta`.
        scale_losses: Divide both terms by the number of values that they sum over.
        widths: Output channels of each convolution, such as (32, 64, 128, 256).
        strides: Stride of each convolution; with both given any image shape works.
        bottleneck: "dense" (flatten, one linear layer) or "spatial" (a small map of means).
        first_activation: Put a ReLU after the first convolution as well.
        components: How many values of the latent are coordinates along principal components; see `measure`.
        standardize: Standardize the pixels that the convolutions take; see `measure`.

    Attributes:
        beta: The beta in force, which training changes.

    Example:
        >>> model = CVAE((32, 32, 3), latent_dim=8, beta=2.0)
        >>> x = torch.rand(4, 3, 32, 32)
        >>> mean, logvar = model.encode(x)
        >>> tuple(model.decode(model.reparameterize(mean, logvar)).shape)
        (4, 3, 32, 32)
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> losses = model.compute_apply_gradients(x, optimizer)
        >>> bool(losses.total == losses.reconstruction + 2.0 * losses.kl)
        True
    """

    def __init__(
        self,
        img_shape: tuple[int, int, int],
        latent_dim: int,
        beta: float = 1.0,
        scale_losses: bool = False,
        *,
        widths: Sequence[int] = (),
        strides: Sequence[int] = (),
        bottleneck: Bottleneck = "dense",
        first_activation: bool = False,
        components: int = 0,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        if not (math.isfinite(beta) and beta >= 0):
            raise InputError(f"beta must be a finite number, 0 or more, got {beta}")
        self.architecture = Architecture(
            img_shape, latent_dim, tuple(widths), tuple(strides), bottleneck, first_activation, components, standardize
        )
        self.scale_losses = scale_losses
        self._fixed_beta = float(beta)
        self.beta = float(beta)
        self.encoder = Encoder(self.architecture)
        self.decoder = Decoder(self.architecture)
        # Convolutions on CPUs and tensor cores are faster so, and frames from disk already have their channels last.
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @classmethod
    def from_architecture(cls, architecture: Architecture, beta: float = 1.0, scale_losses: bool = False) -> "CVAE":
        """The CVAE of an `Architecture`."""
        layers = asdict(architecture)
        return cls(layers.pop("img_shape"), layers.pop("latent_dim"), beta, scale_losses, **layers)

    @property
    def fixed_beta(self) -> float:
        """The wanted beta, which cannot be set."""
        return self._fixed_beta

    @property
    def beta_unit(self) -> Tensor | float:
        """The squared error that a beta of 1 weighs a nat against: 1, or with components the variance that they leave.

        So that one beta suits dark games, whose frames hardly differ, and bright ones.
        """
        standard = self.encoder.standard
        return standard.spread.square() if standard is not None and standard.components else 1.0

    @property
    def latent_dim(self) -> int:
        """Number of values in the latent."""
        return self.architecture.latent_dim

    def measure(self, images: Tensor) -> None:
        """Set principal components, mean image and spread from training images, before training; see `Standard`.

        Without components and standardization there is nothing to set.

        Args:
            images: float32 (N, C, H, W) in [0, 1], many times as many as there are components.
        """
        encoder, decoder = self.encoder.standard, self.decoder.standard
        if encoder is None or decoder is None:
            return
        encoder.measure(images)
        decoder.load_state_dict(encoder.state_dict())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), each (N, latent_dim)."""
        return self.encoder(x)

    def reparameterize(self, mean: Tensor, logvar: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A sample of the Gaussian as ``mean + exp(logvar / 2) * noise``, through which gradients flow."""
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + torch.exp(0.5 * logvar) * noise

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents, (N, C, H, W), nominally in [0, 1] (not clamped)."""
        return self.decoder(z)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction through a sample, mean and log-variance."""
        mean, logvar = self.encode(x)
        return self.decode(self.reparameterize(mean, logvar)), mean, logvar

    def compute_loss(self, x: Tensor) -> Losses:
        """Losses of a batch float32 (N, C, H, W) in [0, 1], with the beta in force."""
        height, width, channels = self.architecture.img_shape
        if x.dim() != 4 or tuple(x.shape[1:]) != (channels, height, width):
            raise InputError(f"a batch must be (N, {channels}, {height}, {width}), got {tuple(x.shape)}")
        return VAELoss(self)(x, lambda *shape: torch.randn(len(x), *shape, device=x.device))

    def compute_apply_gradients(self, x: Tensor, optimizer: Optimizer) -> Losses:
        """Take one gradient step on a batch; a loss that is not finite leaves the weights unchanged.

        Args:
            x: float32 (N, C, H, W) in [0, 1].
            optimizer: An optimizer over this model's parameters.
        """
        return apply_gradients(self.compute_loss(x), optimizer)
