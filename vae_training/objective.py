"""What training descends: an objective makes the loss of a batch, and knows nothing of optimisers, processes or schedules."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from latent_obs.errors import InputError
from vae_training.batch import Batch
from vae_training.cvae import CVAE, Losses, gaussian_kl_nats
from vae_training.precision import autocast


class Objective(nn.Module):
    """Base of the objectives. `forward` makes the losses of a batch, with the beta in force in `model.beta`.

    A subclass may put modules of its own into `heads`, which are trained with the model. They are optimised, averaged over
    processes, and kept in checkpoints; the encoder folder never has them.

    Attributes:
        model: The CVAE.
        heads: Modules beside the model, by name.
        is_classic: Whether ``model.compute_apply_gradients(batch.images, optimizer)`` is the whole step of this objective.
    """

    is_classic = False

    def __init__(self, model: CVAE) -> None:
        super().__init__()
        self.model = model
        self.heads = nn.ModuleDict()

    def forward(self, batch: Batch) -> Losses:
        """Losses of a batch: `total` is what the gradient step descends."""
        raise NotImplementedError


class ClassicObjective(Objective):
    """The loss of `CVAE.compute_loss`, with free bits, bfloat16 layers and compilation as options.

    The layers compute in `dtype`; the KL, `exp`, the squared error and all sums are float32.

    Free bits (Kingma et al. 2016, "Improved Variational Inference with Inverse Autoregressive Flow", appendix C.8, each
    dimension a group): the penalty is the sum over dimensions of ``max(free_bits, KL)``, where KL is the dimension's,
    averaged over the batch, and beta weighs that. A dimension below the threshold feels no pressure towards the prior. They
    are applied to the total only: the `kl` reported and the held-out loss are the true ones. With several processes the
    average is over each one's part of the batch.

    Args:
        model: The CVAE.
        free_bits: Nats per dimension; 0 for none.
        dtype: float32 or bfloat16.
        compile: Compile the loss; a batch of another size than the first goes uncompiled.
        fall_back: Called with the reason when it cannot be compiled, and training goes on without.

    Example:
        >>> model = CVAE((32, 32, 3), latent_dim=8, beta=2.0)
        >>> losses = ClassicObjective(model, free_bits=0.5)(Batch(torch.rand(4, 3, 32, 32)))
        >>> bool(losses.total >= losses.reconstruction + 2.0 * 8 * 0.5)
        True
    """

    def __init__(
        self, model: CVAE, *, free_bits: float = 0.0, dtype: torch.dtype = torch.float32, compile: bool = False,
        fall_back: Callable[[str], object] = print,
    ) -> None:  # fmt: skip
        super().__init__(model)
        if not (math.isfinite(free_bits) and free_bits >= 0):
            raise InputError(f"free_bits must be a finite number of nats, 0 or more, got {free_bits}")
        self.free_bits, self.dtype = free_bits, dtype
        self.is_classic = not free_bits and dtype == torch.float32 and not compile
        self._compiled: Any = torch.compile(self._terms, dynamic=False) if compile else None
        self._compiled_size = 0
        self._fall_back = fall_back

    def forward(self, batch: Batch) -> Losses:
        """Losses of a batch."""
        noise = batch.noise(self.model.latent_dim)
        reconstruction, kl, penalty = self._terms_of(batch.images, noise)
        return Losses(reconstruction + self.model.beta * penalty, reconstruction, kl)

    def _terms_of(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self._compiled is None or len(images) != (self._compiled_size or len(images)):
            return self._terms(images, noise)
        if self._compiled_size:
            return self._compiled(images, noise)
        try:
            terms = self._compiled(images, noise)
        except Exception as error:  # whatever a compiler may raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            self._fall_back(f"The loss cannot be compiled ({reason}); training goes on without.")
            self._compiled = None
            return self._terms(images, noise)
        self._compiled_size = len(images)
        return terms

    def _terms(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, KL, and what beta weighs; each scaled as the model's losses are. The order of sums is `CVAE`'s."""
        model, device = self.model, images.device
        with autocast(device, self.dtype):
            mean, logvar = model.encode(images)
        mean, logvar = mean.float(), logvar.float()
        z = mean + torch.exp(0.5 * logvar) * noise
        with autocast(device, self.dtype):
            decoded = model.decode(z)
        reconstruction = (decoded.float() - images).square().sum() / len(images)
        kl, penalty = self._kl_and_penalty(mean, logvar)
        if model.scale_losses:
            height, width, channels = model.architecture.img_shape
            reconstruction = reconstruction / (height * width * channels)
        return reconstruction, kl, penalty

    def _kl_and_penalty(self, mean: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        """KL, and what beta weighs in its place: the KL with free bits; both scaled as the model's losses are."""
        by_dimension = gaussian_kl_nats(mean, logvar)  # (N, latent_dim)
        kl = by_dimension.sum(1).mean()
        penalty = by_dimension.mean(0).clamp(min=self.free_bits).sum() if self.free_bits else kl
        return (kl / self.model.latent_dim, penalty / self.model.latent_dim) if self.model.scale_losses else (kl, penalty)
