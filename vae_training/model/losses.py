"""The loss of a beta-VAE, and the gradient step on it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latent_obs.encoder.architecture import Architecture, Decoder, Encoder
from latent_obs.encoder.pca import principal_components
from latent_obs.util.progress import print_now
from vae_training.model.augmentation import CHANGES, augment

#: The weight of a pixel, before normalization, is at most this: one bright flash must not be the whole loss.
CAP = 50.0
_TINY = 1e-12  # below any squared difference of 8-bit pixels; keeps a still batch from a division by 0


@dataclass(frozen=True)
class Losses:
    """Terms of the loss of one batch, each a 0-d float32 tensor on the model's device."""

    total: Tensor  # what the gradient step descends
    reconstruction: Tensor  # squared error, unweighted; see `CVAE` for what it is summed over
    kl: Tensor  # from the prior in nats, unweighted
    terms: Mapping[str, Tensor] = field(default_factory=dict)  # further ones by name, each before its weight

    def detach(self) -> "Losses":
        """The same numbers without gradient."""
        terms = {name: value.detach() for name, value in self.terms.items()}
        return Losses(self.total.detach(), self.reconstruction.detach(), self.kl.detach(), terms)


class VAE(Protocol):
    """What the loss needs of a `CVAE`."""

    architecture: Architecture
    scale_losses: bool
    beta: float
    encoder: Encoder
    decoder: Decoder


class VAELoss(nn.Module):
    """Reconstruction error plus beta times KL, with options.

    The layers compute in `dtype`; the KL, `exp`, the squared error and all sums are float32. No gradient scaler is
    needed, as bfloat16 has the exponents of float32 (Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep Learning
    Training").

    Args:
        model: The CVAE, whose `beta` is the one in force.
        salience: Weight of pixels that the background does not explain; `Losses.reconstruction` stays unweighted.
        augment: Strength of random changes, 0 to 1; the changed image is the target.
        dtype: float32 or bfloat16.
        compile: Compile the loss, for the batch size of the first call.
        say: Called with the reason when the loss cannot be compiled; it then runs uncompiled.

    """

    def __init__(
        self,
        model: VAE,
        *,
        salience: float = 0.0,
        augment: float = 0.0,
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
        say: Callable[[str], object] = print_now,
    ) -> None:
        super().__init__()
        self.model, self.salience, self.augment, self.dtype = model, salience, augment, dtype
        height, width, channels = model.architecture.img_shape
        self.background = Background(height * width * channels, salience) if salience else None
        self._terms: Callable[..., Any] = _Compiled(self._compute_terms, say) if compile else self._compute_terms

    def forward(self, images: Tensor, normal: Callable[..., Tensor]) -> Losses:
        """Losses of a batch.

        Args:
            images: float32 (N, C, H, W) in [0, 1].
            normal: Returns standard normal numbers (N, k) for a k, such as `Batch.noise`.
        """
        if self.augment:
            images = augment(images, self.augment, normal(CHANGES))
        descended, reconstruction, kl = self._terms(images, normal(self.model.architecture.latent_dim))
        total = descended + self.model.beta * kl
        return Losses(total, reconstruction, kl, {"weighted_reconstruction": descended} if self.salience else {})

    def _compute_terms(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The reconstruction error that is descended and the plain one, and the KL."""
        model = self.model
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            mean, logvar = model.encoder(images)
            mean, logvar = mean.float(), logvar.float()
            decoded = model.decoder(mean + torch.exp(0.5 * logvar) * noise)
        squared = (decoded.float() - images).square()
        values, dimensions = (images[0].numel(), mean.shape[1]) if model.scale_losses else (1, 1)
        reconstruction = descended = squared.sum() / len(images) / values
        if self.background is not None:
            descended = (squared * self.background(images)).sum() / len(images) / values
        kl = gaussian_kl_nats(mean, logvar).sum(1).mean() / dimensions
        return descended, reconstruction, kl


class _Compiled:
    """A function, compiled for the batch size of its first call; other sizes run uncompiled."""

    def __init__(self, function: Callable[..., Any], say: Callable[[str], object]) -> None:
        self._function, self._say = function, say
        self._compiled: Callable[..., Any] | None = torch.compile(function, dynamic=False)
        self._size = 0

    def __call__(self, images: Tensor, noise: Tensor) -> Any:
        if self._compiled is None or len(images) != (self._size or len(images)):
            return self._function(images, noise)
        try:
            result = self._compiled(images, noise)
        except Exception as error:  # a compiler may raise anything
            if self._size:
                raise
            self._compiled = None
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._say(f"The loss cannot be compiled ({reason}); training runs without compilation.")
            return self._function(images, noise)
        self._size = len(images)
        return result


def gaussian_kl_nats(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) of each dimension, in nats, in closed form.

    ``0.5 * (mean² + exp(logvar) - 1 - logvar)`` (Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix B),
    with ``expm1`` so that rounding near the prior does not make it negative.

    Args:
        mean: Means, any shape.
        logvar: Log-variances, the same shape.

    Example:
        >>> gaussian_kl_nats(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.0]))
        tensor([0.0000, 0.5000])
    """
    return 0.5 * (mean.square() + (torch.expm1(logvar) - logvar))


class Background(nn.Module):
    """Weighs pixels by how little a low-rank model of the recordings explains them: what is small, rare, or moves.

    Frames of one place are nearly a low-rank matrix, and what moves in front is sparse: background subtraction by
    principal components (Oliver et al. 2000, "A Bayesian Computer Vision System for Modeling Human Interactions";
    Candès et al. 2011, "Robust Principal Component Analysis?", section 4).

    Args:
        pixels: Values of a frame, C x H x W.
        salience: Weight of what the components do not explain; 0 weighs all pixels the same.
        rank: Components.
    """

    mean: Tensor
    basis: Tensor

    def __init__(self, pixels: int, salience: float = 1.0, rank: int = 32) -> None:
        super().__init__()
        self.salience = salience
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("basis", torch.zeros(pixels, rank))

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Take the components of images float32 (N, C, H, W); the global random state does not change."""
        mean, _, components = principal_components(images.flatten(1), self.basis.shape[1])
        self.mean.copy_(mean)
        self.basis.zero_()
        self.basis[:, : components.shape[1]].copy_(components)

    def forward(self, images: Tensor) -> Tensor:
        """Weights of the pixels, float32 (N, 1, H, W), without gradient.

        They are ``1 + salience * marked``, divided by their mean over the batch, with the squared residual of a pixel
        as ``marked``: mean 1 over the batch before it is cut at `CAP`. The mean weight of 1 keeps the balance of
        squared error and KL, so that beta means the same at any salience.
        """
        centred = images.detach().flatten(1) - self.mean
        rest = centred - (centred @ self.basis) @ self.basis.T
        marked = rest.view_as(images).square().mean(1, keepdim=True)
        weights = 1 + self.salience * (marked / (marked.mean() + _TINY)).clamp(max=CAP)
        return (weights / weights.mean()).detach()


def apply_gradients(
    losses: Losses,
    optimizer: Optimizer,
    *,
    weight: float = 1.0,
    reduce: Callable[[Losses, float], Losses] | None = None,
    check: bool = True,
) -> Losses:
    """Take one gradient step.

    Args:
        losses: Losses of a batch.
        optimizer: Over the parameters of the loss.
        weight: Weight of this process's part of the batch in the mean over processes.
        reduce: Averages the losses, with this weight, over the processes, and detaches them.
        check: Skip the step when the loss is not finite. On a GPU the check waits for all computations.
    """
    optimizer.zero_grad(set_to_none=True)
    (weight * losses.total).backward()
    losses = losses.detach() if reduce is None else reduce(losses, weight)
    if not check or torch.isfinite(losses.total):
        optimizer.step()
    return losses
