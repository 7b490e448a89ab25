"""The gradient step: optimiser, learning rate, clipping, the average of the weights, over one process or several."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from latent_obs.errors import InputError
from vae_training.batch import Batch
from vae_training.config import LearningRateKind, OptimizerName
from vae_training.cvae import Losses
from vae_training.distributed import ALONE, Ranks
from vae_training.ema import WeightAverage
from vae_training.objective import Objective


@dataclass(frozen=True)
class LearningRate:
    """The learning rate at a step: a linear warm-up, then constant or half a cosine down to 0.

    A pure function of the step, as the schedules of beta are (the cosine: Loshchilov & Hutter 2017, "SGDR", section 3, one
    cycle without restarts).

    Args:
        top: The learning rate after the warm-up.
        kind: "constant" or "cosine".
        total_steps: Steps of the whole run, at whose end the cosine is at 0.
        warm_up_steps: Steps of the warm-up; step n of them has ``(n + 1) / (warm_up_steps + 1)`` of the top.

    Example:
        >>> rate = LearningRate(1.0, "cosine", total_steps=6, warm_up_steps=2)
        >>> [round(rate(step), 3) for step in range(6)]
        [0.333, 0.667, 1.0, 0.854, 0.5, 0.146]
    """

    top: float
    kind: LearningRateKind = "constant"
    total_steps: int = 1
    warm_up_steps: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("constant", "cosine"):
            raise InputError(f"learning_rate_schedule must be constant or cosine, got {self.kind!r}")
        if self.kind == "cosine" and self.warm_up_steps >= self.total_steps:
            raise InputError(
                f"warm_up_steps {self.warm_up_steps:,} leave nothing of the run's {self.total_steps:,} steps; warm up less"
            )

    def __call__(self, step: int) -> float:
        """The learning rate at a step, counted from 0."""
        if step < self.warm_up_steps:
            return self.top * (step + 1) / (self.warm_up_steps + 1)
        if self.kind == "constant":
            return self.top
        position = min(1.0, (step - self.warm_up_steps) / (self.total_steps - self.warm_up_steps))
        return self.top * (1 + math.cos(math.pi * position)) / 2


def make_optimizer(
    parameters: Iterable[nn.Parameter], name: OptimizerName, *, learning_rate: float, weight_decay: float, device: torch.device
) -> Optimizer:
    """Adam (Kingma & Ba 2015) or AdamW (Loshchilov & Hutter 2019), in one kernel ("fused") on CUDA.

    On a CPU the fused one rounds otherwise than the plain one, so the plain one stays.
    """
    if name not in ("adam", "adamw"):
        raise InputError(f"optimizer must be adam or adamw, got {name!r}")
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    fused = True if device.type == "cuda" else None
    return kind(parameters, lr=learning_rate, weight_decay=weight_decay, fused=fused)


class GradientStep:
    """Takes gradient steps on an objective.

    On a CPU a step whose loss is not finite is not taken. On a GPU that would make the CPU wait for each step, so there the
    caller looks at the losses from time to time, and at the weights before it saves any.

    Args:
        objective: What to descend.
        optimizer: Over the objective's parameters.
        learning_rate: By step.
        clip_norm: Largest norm of the gradient, over all parameters together; a longer one is shortened (Pascanu et al.
            2013). None for no clipping.
        average: Follows the weights after each step.
        ranks: The processes of this run; the gradient is the mean over all frames of the batch.

    Attributes:
        gradient_norm: Norm of the last gradient, before clipping; None where it is not clipped.

    Example:
        >>> from vae_training.cvae import CVAE
        >>> from vae_training.objective import ClassicObjective
        >>> objective = ClassicObjective(CVAE((32, 32, 3), latent_dim=8))
        >>> optimizer = make_optimizer(
        ...     objective.parameters(), "adamw", learning_rate=1e-3, weight_decay=0.01, device=torch.device("cpu")
        ... )
        >>> step = GradientStep(objective, optimizer, LearningRate(1e-3), clip_norm=1.0)
        >>> losses = step(Batch(torch.rand(4, 3, 32, 32)), 0)
        >>> bool(losses.total > 0), bool(step.gradient_norm > 0)
        (True, True)
    """

    def __init__(
        self, objective: Objective, optimizer: Optimizer, learning_rate: LearningRate, *, clip_norm: float | None = None,
        average: WeightAverage | None = None, ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        self.objective, self.optimizer, self.learning_rate = objective, optimizer, learning_rate
        self.clip_norm, self.average, self.ranks = clip_norm, average, ranks
        self.gradient_norm: Tensor | None = None
        self._parameters = [p for p in objective.parameters() if p.requires_grad]
        self._waits = self._parameters[0].device.type != "cuda"
        self._classic = objective.is_classic and clip_norm is None and ranks.count == 1
        self._loss: Callable[[Batch], Losses] = objective
        if ranks.count > 1:
            self._loss = DistributedDataParallel(objective, gradient_as_bucket_view=True)

    def __call__(self, batch: Batch, step: int) -> Losses:
        """Take one step.

        Args:
            batch: This process's part of the batch.
            step: Number of the step, from 0: it decides the learning rate.

        Returns:
            The terms, detached, over the whole batch.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        losses = self._classic_step(batch) if self._classic else self._step(batch)
        if self.average is not None and (not self._waits or torch.isfinite(losses.total)):
            self.average.update()
        return losses

    def _classic_step(self, batch: Batch) -> Losses:
        return self.objective.model.compute_apply_gradients(batch.images, self.optimizer)

    def _step(self, batch: Batch) -> Losses:
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._loss(batch)
        weight = batch.share.weight if batch.share is not None else 1.0
        (losses.total if weight == 1.0 else losses.total * weight).backward()
        losses = self.ranks.mean_losses(losses, weight)
        if self._waits and not torch.isfinite(losses.total):
            return losses
        if self.clip_norm is not None:
            self.gradient_norm = nn.utils.clip_grad_norm_(self._parameters, self.clip_norm)
        self.optimizer.step()
        return losses


def optimiser_metrics(step: GradientStep) -> dict[str, Any]:
    """What the log tells of the last step: learning rate, and the norm of the gradient where it is clipped."""
    metrics = {"optimizer/learning_rate": step.optimizer.param_groups[0]["lr"]}
    if step.gradient_norm is not None:
        metrics["optimizer/gradient_norm"] = step.gradient_norm.item()
    return metrics
