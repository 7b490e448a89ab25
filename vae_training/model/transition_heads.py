"""Heads that are trained with the encoder on transitions, to put what the agent controls and earns into the latent.

Each takes the *means* of two neighboring frames, since an agent gets means. They are discarded after training.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

_HIDDEN = 128
_STILL = 1e-6  # an action or a reward with less spread than this never changes
_LEAST_VARIANCE = 1e-3  # of latents, whose prior has 1: below, there is nothing to predict


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, outputs))


def _mean_where(losses: Tensor, valid: Tensor) -> Tensor:
    """Mean of the losses (N,) of valid rows; 0 where there is none."""
    return torch.where(valid, losses, 0).sum() / valid.sum().clamp(min=1)


def _center_and_scale(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread over the first axis; a spread of 1 for what never changes."""
    values = values.float()
    if not len(values):
        return torch.zeros_like(values.sum(0)), torch.ones_like(values.sum(0))
    spread = values.std(0, correction=0)
    return values.mean(0), torch.where(spread > _STILL, spread, torch.ones_like(spread))


class ActionCode(nn.Module):
    """Encodes actions as vectors: one-hot for whole numbers, standardized for real ones.

    Args:
        kind: "discrete" or "continuous".
        size: Number of actions, or of values in one.

    Example:
        >>> ActionCode("discrete", 3)(torch.tensor([2, 0])).tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, kind: Literal["discrete", "continuous"], size: int) -> None:
        super().__init__()
        self.kind, self.size = kind, size
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    @torch.no_grad()
    def fit(self, actions: Tensor) -> None:
        """Take mean and spread from actions (N, size); nothing to do for discrete ones."""
        if self.kind == "continuous":
            mean, scale = _center_and_scale(actions.reshape(len(actions), self.size))
            self.mean.copy_(mean)
            self.scale.copy_(scale)

    def forward(self, actions: Tensor) -> Tensor:
        """(N,) or (N, size) to float32 (N, size)."""
        if self.kind == "discrete":
            return functional.one_hot(actions.long().clamp(0, self.size - 1), self.size).float()
        return (actions.reshape(len(actions), self.size).float() - self.mean) / self.scale


class InverseDynamics(nn.Module):
    """Predicts the action between two frames (Pathak et al. 2017, "Curiosity-driven Exploration", section 2.2).

    Args:
        latent_dim: Values of a latent.
        actions: The encoding of actions.
    """

    def __init__(self, latent_dim: int, actions: ActionCode) -> None:
        super().__init__()
        self.actions = actions
        self.head = _mlp(2 * latent_dim, actions.size)

    def forward(self, before: Tensor, after: Tensor, action: Tensor, valid: Tensor) -> Tensor:
        """Cross-entropy in nats (discrete) or squared error in standard deviations, mean over the transitions."""
        predicted = self.head(torch.cat([before, after], 1))
        if self.actions.kind == "discrete":
            losses = functional.cross_entropy(
                predicted, action.long().clamp(0, self.actions.size - 1), reduction="none"
            )
        else:
            losses = (predicted - self.actions(action)).square().mean(1)
        return _mean_where(losses, valid)


class NextLatent(nn.Module):
    """Predicts the next frame's mean from this one's and the action (Pathak et al. 2017, section 2.2).

    The target carries no gradient, and the error is relative to the spread of the targets, so that shrinking all
    latents gains nothing.

    Args:
        latent_dim: Values of a latent.
        actions: The encoding of actions.
    """

    def __init__(self, latent_dim: int, actions: ActionCode) -> None:
        super().__init__()
        self.actions = actions
        self.head = _mlp(latent_dim + actions.size, latent_dim)
        for parameter in self.head[-1].parameters():  # begins as "nothing changes", as all latents are small then
            nn.init.zeros_(parameter)

    def forward(self, before: Tensor, after: Tensor, action: Tensor, valid: Tensor) -> Tensor:
        """Squared error over the variance of the targets, mean over the transitions: 1 for the mean of all targets.

        0 where there are fewer than two transitions, which have no variance.
        """
        count = valid.sum()
        target = torch.where(valid[:, None], after.detach(), 0)
        centre = target.sum(0) / count.clamp(min=1)
        variance = _mean_where((target - centre).square().mean(1), valid).clamp(min=_LEAST_VARIANCE)
        predicted = before + self.head(torch.cat([before, self.actions(action)], 1))
        return _mean_where((predicted - target).square().mean(1) / variance, valid & (count > 1))


class Reward(nn.Module):
    """Predicts the reward of a step from the frame, the action and the frame after it.

    Steps that end an episode often have the reward, and many games show no image after them: there the frame itself is
    used as the one after it.

    Args:
        latent_dim: Values of a latent.
        actions: The encoding of actions.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int, actions: ActionCode) -> None:
        super().__init__()
        self.actions = actions
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.head = _mlp(2 * latent_dim + actions.size, 1)

    @torch.no_grad()
    def fit(self, rewards: Tensor) -> None:
        """Take mean and spread from rewards (N,)."""
        mean, scale = _center_and_scale(rewards)
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    def forward(self, before: Tensor, after: Tensor, action: Tensor, reward: Tensor, valid: Tensor) -> Tensor:
        """Squared error in standard deviations, Huber beyond one (rewards have heavy tails), mean over the steps."""
        predicted = self.head(torch.cat([before, after, self.actions(action)], 1)).squeeze(1)
        target = (reward.float() - self.mean) / self.scale
        return _mean_where(functional.smooth_l1_loss(predicted, target, reduction="none"), valid)


class TransitionHeads(nn.ModuleDict):
    """The heads whose weight is not 0, by name.

    Args:
        weights: Weight of each head's loss: "inverse_dynamics", "next_latent" and "reward".
        latent_dim: Values of a latent.
        kind: Kind of the actions, as for `ActionCode`.
        size: Number of actions, or of values in one.
    """

    def __init__(
        self, weights: Mapping[str, float], latent_dim: int, kind: Literal["discrete", "continuous"], size: int
    ) -> None:
        heads = {"inverse_dynamics": InverseDynamics, "next_latent": NextLatent, "reward": Reward}
        # Each has an `ActionCode` of its own: safetensors cannot hold one tensor under two names.
        super().__init__({n: head(latent_dim, ActionCode(kind, size)) for n, head in heads.items() if weights.get(n)})
        self.weights = dict(weights)

    def fit(self, actions: Tensor, rewards: Tensor) -> None:
        """Take mean and spread from actions (N,) or (N, size), and rewards (N,)."""
        for head in self.values():
            assert isinstance(head, InverseDynamics | NextLatent | Reward)
            head.actions.fit(actions)
            if isinstance(head, Reward):
                head.fit(rewards)

    def forward(self, before: Tensor, after: Tensor, transitions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss of each head.

        Args:
            before: Means of the frames (N, latent_dim).
            after: Means of the frames after them.
            transitions: As `SuperBatches` gives them: "action", "follows", "reward", "acted".
        """
        action, losses = transitions["action"], {}
        for name, head in self.items():
            if isinstance(head, Reward):
                losses[name] = head(before, after, action, transitions["reward"], transitions["acted"])
            else:
                losses[name] = head(before, after, action, transitions["follows"])
        return losses
