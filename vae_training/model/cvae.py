"""The convolutional beta-VAE: its losses and its gradient step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latent_obs.encoder.architecture import Architecture, Bottleneck
from latent_obs.encoder.networks import Decoder, Encoder
from latent_obs.util.errors import InputError


@dataclass(frozen=True)
class Losses:
    """Terms of the loss of one batch, each a 0-d float32 tensor on the model's device.

    Attributes:
        total: ``reconstruction + beta * kl``, or what another objective makes of it: what the gradient step descends.
        reconstruction: Squared error, unweighted; see `CVAE` for what it is summed over.
        kl: KL divergence from the prior in nats, unweighted.
        terms: Further terms by name, unweighted, where the objective has any.
    """

    total: Tensor
    reconstruction: Tensor
    kl: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)


class CVAE(nn.Module):
    """A convolutional variational autoencoder with a weighted KL term (Higgins et al. 2017, "beta-VAE").

    Images are float32 (N, C, H, W) in [0, 1]; latents float32 (N, latent_dim). The first convolution has no activation,
    a documented experiment of the design: the first layer is then a linear change of colour space and edges, and no
    information is cut off before the second.

    Losses, for one batch of N images:

    - reconstruction: the squared error, summed over the image, mean over the batch;
    - kl: ``0.5 * sum(mean² + exp(logvar) - 1 - logvar)`` against the isotropic unit Gaussian (Kingma & Welling 2014,
      appendix B), summed over the latent dimensions, mean over the batch, in nats;
    - total: ``reconstruction + beta * kl``.

    What `beta` means: with ``scale_losses=False``, beta weighs nats against squared error of the whole image, so beta =
    1 is the evidence lower bound of a Gaussian decoder with variance 1/2 per value, whatever the size of the image; a
    larger image outweighs the KL more. With ``scale_losses=True`` the reconstruction is divided by the number of values
    in the image (height x width x channels) and the KL by `latent_dim`: beta then weighs the mean error of a value
    against the mean nats of a latent dimension, and image size no longer decides the balance. The same balance as a
    sum-loss beta is ``beta * latent_dim / (height * width * channels)``. A scaled beta of 1 is very strong: squared
    errors of pixels in [0, 1] are around 0.001 to 0.01.

    Args:
        img_shape: (height, width, channels). Without `widths` and `strides`: square, a power of two.
        latent_dim: Number of values in the latent.
        beta: The wanted weight of the KL, kept in `fixed_beta`.
        scale_losses: Divide both terms by the number of values that they sum over.
        widths: Output channels of each convolution, such as (32, 64, 128, 256).
        strides: Stride of each convolution; with both given any image shape works.
        bottleneck: "dense" (flatten, one linear layer) or "spatial" (a small map of means).
        first_activation: Put a ReLU after the first convolution as well.
        standardize: Let the convolutions see pixels in units of their spread, from the mean picture on; see `Standard`.
        linear_path: Run a linear map beside the convolutions, in both directions; see `start_linear_path`.

    Attributes:
        fixed_beta: The wanted beta; nothing changes it.
        beta: The beta in force, which training moves.

    Raises:
        InputError: (a ValueError) the shape, the widths or the latent size cannot be built; it says what would do.

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
        linear_path: bool = False,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        if not (math.isfinite(beta) and beta >= 0):
            raise InputError(f"beta must be a finite number, 0 or more, got {beta}")
        self.architecture = Architecture(
            img_shape, latent_dim, tuple(widths), tuple(strides), bottleneck, first_activation, linear_path, standardize
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
        return cls(
            architecture.img_shape,
            architecture.latent_dim,
            beta,
            scale_losses,
            widths=architecture.widths,
            strides=architecture.strides,
            bottleneck=architecture.bottleneck,
            first_activation=architecture.first_activation,
            linear_path=architecture.linear_path,
            standardize=architecture.standardize,
        )

    @property
    def fixed_beta(self) -> float:
        """The wanted beta."""
        return self._fixed_beta

    @property
    def latent_dim(self) -> int:
        """Number of values in the latent."""
        return self.architecture.latent_dim

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
        """Losses of a batch, with the beta in force.

        Args:
            x: float32 (N, C, H, W) in [0, 1].

        Raises:
            InputError: The batch has another shape than the model's images.
        """
        height, width, channels = self.architecture.img_shape
        if x.dim() != 4 or tuple(x.shape[1:]) != (channels, height, width):
            raise InputError(f"a batch must be (N, {channels}, {height}, {width}), got {tuple(x.shape)}")
        decoded, mean, logvar = self(x)
        reconstruction = (decoded - x).square().sum() / len(x)
        kl = gaussian_kl_nats(mean, logvar).sum(1).mean()
        if self.scale_losses:
            reconstruction = reconstruction / (height * width * channels)
            kl = kl / self.latent_dim
        return Losses(reconstruction + self.beta * kl, reconstruction, kl)

    def compute_apply_gradients(self, x: Tensor, optimizer: Optimizer) -> Losses:
        """One gradient step on a batch.

        The step is not taken when the loss is not finite, so that the weights stay as they were.

        Args:
            x: float32 (N, C, H, W) in [0, 1].
            optimizer: An optimizer over this model's parameters.

        Returns:
            The unweighted terms and the total, detached.
        """
        optimizer.zero_grad(set_to_none=True)
        losses = self.compute_loss(x)
        losses.total.backward()
        if torch.isfinite(losses.total):
            optimizer.step()
        return Losses(losses.total.detach(), losses.reconstruction.detach(), losses.kl.detach())


def gaussian_kl_nats(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) of each dimension, in nats, in closed form.

    ``0.5 * (mean² + exp(logvar) - 1 - logvar)`` (Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix B),
    with ``expm1`` so that it does not come out below 0 by rounding near the prior.

    Args:
        mean: Means, any shape.
        logvar: Log-variances, the same shape.

    Returns:
        The KL of each entry, the same shape; 0 at the prior, positive elsewhere.

    Example:
        >>> gaussian_kl_nats(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.0]))
        tensor([0.0000, 0.5000])
    """
    return 0.5 * (mean.square() + (torch.expm1(logvar) - logvar))


def images_to_tensor(frames: Tensor) -> Tensor:
    """Frames as they lie on disk to a batch for the model.

    Args:
        frames: uint8 (N, H, W, C) on any device.

    Returns:
        float32 (N, C, H, W) in [0, 1], with channels last in memory.
    """
    return frames.permute(0, 3, 1, 2).float().div_(255)
