"""What training descends: an objective makes the loss of a batch, and knows nothing of optimizers, processes or
schedules.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from latent_obs.encoder.pca import principal_components
from latent_obs.util.errors import InputError
from vae_training.data.loader import Batch
from vae_training.data.transitions import ActionKind
from vae_training.model.augmentation import augment
from vae_training.model.cvae import CVAE, Losses, gaussian_kl_nats, images_to_tensor
from vae_training.model.precision import autocast
from vae_training.model.terms import Terms
from vae_training.model.transition_heads import ActionCode, InverseDynamics, NextLatent, Reward


class Objective(nn.Module):
    """Base of the objectives. `forward` makes the losses of a batch, with the beta in force in `model.beta`.

    A subclass may put modules of its own into `heads`, which are trained with the model. They are optimized, averaged
    over processes, and kept in checkpoints; the encoder folder never has them.

    Attributes:
        model: The CVAE.
        heads: Modules beside the model, by name.
        is_classic: Whether ``model.compute_apply_gradients(batch.images, optimizer)`` is the whole step of this
            objective.
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
    averaged over the batch, and beta weighs that. A dimension below the threshold feels no pressure towards the prior.
    They
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
        self,
        model: CVAE,
        *,
        free_bits: float = 0.0,
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
        fall_back: Callable[[str], object] = print,
    ) -> None:
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
        """Reconstruction, KL, and what beta weighs; each scaled as the model's losses are. The order of sums is
        `CVAE`'s.
        """
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
        return (
            (kl / self.model.latent_dim, penalty / self.model.latent_dim) if self.model.scale_losses else (kl, penalty)
        )


#: A pixel counts at most this many times the mean: one bright flash must not be the whole loss.
CAP = 50.0
_TINY = 1e-12  # below any squared difference of 8-bit pixels; only keeps a still or empty batch from dividing by 0


def weights_of(weight: float, marked: Tensor) -> Tensor:
    """Weights of pixels from marked pixels: ``1 + weight * marked``, divided by its mean over the batch.

    The mean stays 1, so that beta weighs the KL against the same amount of squared error as without.

    Args:
        weight: How much a marked pixel counts.
        marked: (N, 1, H, W).

    Returns:
        float32 (N, 1, H, W), mean 1, without gradient.

    Example:
        >>> weights_of(1.0, torch.tensor([0.0, 2.0]).view(1, 1, 1, 2)).flatten().tolist()
        [0.5, 1.5]
    """
    weights = 1 + weight * marked
    return (weights / weights.mean()).detach()


class Background(nn.Module):
    """A low-rank model of what the recordings show all the time; what it does not explain is small, rare, or moves.

    Frames of one place are nearly a low-rank matrix, and what moves in front is sparse: background subtraction by
    principal components (Oliver et al. 2000, "A Bayesian Computer Vision System for Modeling Human Interactions";
    Candès et al. 2011, "Robust Principal Component Analysis?", section 4). The components are those of a sample of
    training frames.

    Args:
        pixels: Values of a frame, C x H x W.
        rank: Components.

    Example:
        >>> background = Background(pixels=4, rank=1)
        >>> dark, bright = torch.zeros(8, 1, 2, 2), torch.ones(8, 1, 2, 2)
        >>> background.fit(torch.cat([dark, bright]))
        >>> frame = bright[:1].clone()
        >>> frame[0, 0, 0, 1] = 0.0  # one pixel that is not as the light of the others says
        >>> int(background(frame).argmax())
        1
    """

    mean: Tensor
    basis: Tensor

    def __init__(self, pixels: int, rank: int = 32) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("basis", torch.zeros(pixels, rank))

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Take the components of images float32 (N, C, H, W); the random state of training is left alone."""
        mean, _, components = principal_components(images.flatten(1), self.basis.shape[1])
        self.mean.copy_(mean)
        self.basis.zero_()
        self.basis[:, : components.shape[1]].copy_(components)

    def forward(self, images: Tensor) -> Tensor:
        """Pixels that the background does not explain: float32 (N, 1, H, W), mean 1 over the batch, at most `CAP`."""
        centred = images.detach().flatten(1) - self.mean
        rest = centred - (centred @ self.basis) @ self.basis.T
        marked = rest.view_as(images).square().mean(1, keepdim=True)
        return (marked / (marked.mean() + _TINY)).clamp(max=CAP)


#: Random numbers that `augment` makes a change of.
CHANGES = 10


class ActingObjective(ClassicObjective):
    """The loss of `ClassicObjective` on weighted pixels, plus further terms, each times its weight.

    `Losses.reconstruction` stays the plain squared error, and `Losses.terms` has each term on its own, unweighted.

    Args:
        model: The CVAE.
        terms: What is on.
        actions: What actions the recordings have, for the terms that need them.
        augment: How much pictures are changed, 0 to 1.
        free_bits: As for `ClassicObjective`.
        dtype: As for `ClassicObjective`.

    Example:
        >>> model = CVAE((32, 32, 3), latent_dim=8)
        >>> objective = ActingObjective(model, Terms(salience=1.0))
        >>> images = torch.rand(4, 3, 32, 32)
        >>> objective.fit(images)
        >>> losses = objective(Batch(images))
        >>> list(losses.terms), bool(losses.total > 0)
        (['weighted_reconstruction'], True)
    """

    def __init__(
        self,
        model: CVAE,
        terms: Terms,
        *,
        actions: ActionKind | None = None,
        augment: float = 0.0,
        free_bits: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(model, free_bits=free_bits, dtype=dtype)
        self.is_classic = False
        self.terms, self.augment = terms, augment
        height, width, channels = model.architecture.img_shape
        if terms.salience:
            self.heads["background"] = Background(height * width * channels)
        if terms.need_actions:
            assert actions is not None
            for name, kind in (("inverse_dynamics", InverseDynamics), ("next_latent", NextLatent), ("reward", Reward)):
                if getattr(terms, name):  # a code for each: a checkpoint cannot hold one tensor under two names
                    self.heads[name] = kind(model.latent_dim, ActionCode(actions.kind, actions.size))

    def fit(self, images: Tensor, actions: Tensor | None = None, rewards: Tensor | None = None) -> None:
        """Take from a sample what the terms need to know of the data, before the first step.

        Args:
            images: float32 (n, C, H, W), training frames.
            actions: Of the recordings, (m,) or (m, k).
            rewards: Of the same steps, (m,).
        """
        for head in self.heads.values():
            if isinstance(head, Background):
                head.fit(images)
            elif isinstance(head, InverseDynamics | NextLatent | Reward) and actions is not None:
                head.actions.fit(actions)
            if isinstance(head, Reward) and rewards is not None:
                head.fit(rewards)

    def forward(self, batch: Batch) -> Losses:
        """Losses of a batch; `batch.more` has what `Transitions.read` gives, where terms need it."""
        images, after = batch.images, None
        if self.terms.need_actions:
            after = images_to_tensor(batch.more["after"])
        if self.augment:
            changes = batch.noise(CHANGES)
            images = augment(images, self.augment, changes)
            after = None if after is None else augment(after, self.augment, changes)  # the same: only the game moves
        model, device = self.model, images.device
        noise = batch.noise(model.latent_dim)
        with autocast(device, self.dtype):
            mean, logvar = model.encode(images)
        mean, logvar = mean.float(), logvar.float()
        z = mean + torch.exp(0.5 * logvar) * noise
        with autocast(device, self.dtype):
            decoded = model.decode(z)
        decoded = decoded.float()
        height, width, channels = model.architecture.img_shape
        values = height * width * channels if model.scale_losses else 1
        kl, penalty = self._kl_and_penalty(mean, logvar)
        squared = (decoded - images).square()
        reconstruction = squared.sum() / len(images) / values
        descended, terms = reconstruction, {}
        if self.terms.salience:
            weights = weights_of(self.terms.salience, self.heads["background"](images))
            descended = (squared * weights).sum() / len(images) / values
            terms["weighted_reconstruction"] = descended
        total = descended + model.beta * penalty
        if self.terms.need_actions and after is not None:
            for name, loss in self._head_losses(mean, after, batch.more).items():
                terms[name] = loss
                total = total + getattr(self.terms, name) * loss
        return Losses(total, reconstruction, kl, terms)

    def _head_losses(self, mean: Tensor, after: Tensor, more: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with autocast(after.device, self.dtype):
            later = self.model.encoder.mean(after)
        later, follows, action = later.float(), more["follows"], more["action"]
        losses: dict[str, Tensor] = {}
        for name in ("inverse_dynamics", "next_latent"):
            if name in self.heads:
                losses[name] = self.heads[name](mean, later, action, follows)
        if "reward" in self.heads:
            losses["reward"] = self.heads["reward"](mean, later, action, more["reward"], more["acted"])
        return losses
