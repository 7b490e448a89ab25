"""The classic loss with terms that keep what acting needs: weighted pixels, heads on transitions."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vae_training.augment import augment
from vae_training.batch import Batch
from vae_training.cvae import CVAE, Losses, images_to_tensor
from vae_training.objective import ClassicObjective
from vae_training.pixel_weights import Background, weights_of
from vae_training.precision import autocast
from vae_training.terms import Terms
from vae_training.transition_heads import ActionCode, InverseDynamics, NextLatent, Reward
from vae_training.transitions import ActionKind

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
        self, model: CVAE, terms: Terms, *, actions: ActionKind | None = None, augment: float = 0.0, free_bits: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
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
