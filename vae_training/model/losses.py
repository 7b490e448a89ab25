"""The loss of a beta-VAE, and the gradient step on it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latent_obs.encoder.architecture import Architecture, Decoder, Encoder
from latent_obs.util.progress import print_now
from vae_training.model.augmentation import CHANGES, augment


@dataclass(frozen=True)
class Losses:
    """Terms of the loss of one batch, each a 0-d float32 tensor on the model's device."""

    total: Tensor  # what the gradient step descends
    reconstruction: Tensor  # squared error; see `CVAE` for what it is summed over
    kl: Tensor  # from the prior in nats, unweighted

    def detach(self) -> "Losses":
        """The same numbers without gradient."""
        return Losses(self.total.detach(), self.reconstruction.detach(), self.kl.detach())


class VAE(Protocol):
    """What the loss needs of a `CVAE`."""

    architecture: Architecture
    scale_losses: bool
    beta: float
    encoder: Encoder
    decoder: Decoder

    @property
    def beta_unit(self) -> Tensor | float:
        """The squared error that a beta of 1 weighs a nat against."""
        ...


class VAELoss(nn.Module):
    """Reconstruction error plus beta times KL.

    The layers compute in `dtype`; the KL, `exp`, the squared error and all sums are float32. No gradient scaler is
    needed, as bfloat16 has the exponents of float32 (Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep Learning
    Training").

    Args:
        model: The CVAE, whose `beta` is the one in force.
        augment: Strength of random changes, 0 to 1; the changed image is the target.
        dtype: float32 or bfloat16.
        compile: Compile the loss, all but the random changes, for the batch size of the first call.
        say: Called with the reason when the loss cannot be compiled; it then runs uncompiled.
    """

    def __init__(
        self,
        model: VAE,
        *,
        augment: float = 0.0,
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
        say: Callable[[str], object] = print_now,
    ) -> None:
        super().__init__()
        self.model, self.augment, self.dtype = model, augment, dtype
        self._terms: Callable[..., Any] = _Compiled(self._compute_terms, say) if compile else self._compute_terms

    def forward(self, images: Tensor, normal: Callable[..., Tensor]) -> Losses:
        """Losses of a batch.

        Args:
            images: float32 (N, C, H, W) in [0, 1].
            normal: Returns standard normal numbers (N, k) for a k, such as `Batch.noise`.
        """
        if self.augment:
            images = augment(images, self.augment, normal(CHANGES))
        reconstruction, kl = self._terms(images, normal(self.model.architecture.latent_dim))
        return Losses(reconstruction + self.model.beta * self.model.beta_unit * kl, reconstruction, kl)

    def _compute_terms(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction error and the KL."""
        model = self.model
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            mean, logvar = model.encoder(images)
            mean, logvar = mean.float(), logvar.float()
            decoded = model.decoder(mean + torch.exp(0.5 * logvar) * noise)
        squared = (decoded.float() - images).square()
        learned = slice(model.architecture.components, None)
        values, dimensions = (images[0].numel(), model.architecture.learned) if model.scale_losses else (1, 1)
        reconstruction = squared.sum() / len(images) / values
        kl = gaussian_kl_nats(mean[:, learned], logvar[:, learned]).sum(1).mean() / dimensions
        return reconstruction, kl


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
