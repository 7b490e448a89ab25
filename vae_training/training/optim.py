"""The gradient step: optimizer, learning rate, clipping, the average of the weights, over one process or several."""

import contextlib
import ctypes
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from latent_obs.util.errors import InputError
from vae_training.data.loader import Batch
from vae_training.model.cvae import Losses
from vae_training.model.losses import Objective
from vae_training.training.config import LearningRateKind, OptimizerName
from vae_training.training.distributed import ALONE, Ranks


class WeightAverage:
    """A copy of a model whose weights follow the model's, smoothly.

    After update n (from 0) the average is ``d * average + (1 - d) * weights`` with ``d = min(decay, (1 + n) / (10 +
    n))``: short at first, so that the weights from before training are soon forgotten (as in TensorFlow's
    ``ExponentialMovingAverage`` with ``num_updates``; the average itself is Polyak & Juditsky 1992).

    Args:
        model: The model to follow; copied here, and otherwise left alone.
        decay: 0 < decay < 1; 0.999 averages over about the last thousand steps.

    Attributes:
        model: The copy that has the average, to evaluate and export.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> average = WeightAverage(model, decay=0.5)
        >>> with torch.no_grad():
        ...     _ = model.weight.fill_(1.0)
        ...     _ = average.model.weight.fill_(0.0)
        >>> average.update()
        >>> round(average.model.weight.item(), 3)
        0.9
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise InputError(f"ema must be between 0 and 1, such as 0.999, got {decay}")
        self.decay = decay
        self._source = model
        self._averaged = AveragedModel(model, multi_avg_fn=self._average)
        for parameter in self._averaged.module.parameters():
            parameter.requires_grad_(False)
        # The library's first update copies the weights; here the average begins with those from before training.
        self._averaged.n_averaged.fill_(1)

    @property
    def model(self) -> Any:
        """The copy that has the average."""
        return self._averaged.module

    @torch.no_grad()
    def update(self) -> None:
        """Follow the model's weights; once after each gradient step."""
        self._averaged.update_parameters(self._source)

    def _average(self, averages: Any, weights: Any, number: Any) -> None:
        n = int(number) - 1
        decay = min(self.decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(list(averages), list(weights), 1.0 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def state(self) -> nn.Module:
        """What a checkpoint has to hold: the average and the number of updates."""
        return self._averaged


@dataclass(frozen=True)
class LearningRate:
    """The learning rate at a step: a linear warm-up, then constant or half a cosine down to 0.

    A pure function of the step, as the schedules of beta are (the cosine: Loshchilov & Hutter 2017, "SGDR", section 3,
    one cycle without restarts).

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
    parameters: Iterable[nn.Parameter],
    name: OptimizerName,
    *,
    learning_rate: float,
    weight_decay: float,
    device: torch.device,
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

    On a CPU a step whose loss is not finite is not taken. On a GPU that would make the CPU wait for each step, so there
    the caller looks at the losses from time to time, and at the weights before it saves any.

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
        >>> from vae_training.model.cvae import CVAE
        >>> from vae_training.model.losses import ClassicObjective
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
        self,
        objective: Objective,
        optimizer: Optimizer,
        learning_rate: LearningRate,
        *,
        clip_norm: float | None = None,
        average: WeightAverage | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
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


def optimizer_metrics(step: GradientStep) -> dict[str, Any]:
    """What the log tells of the last step: learning rate, and the norm of the gradient where it is clipped."""
    metrics = {"optimizer/learning_rate": step.optimizer.param_groups[0]["lr"]}
    if step.gradient_norm is not None:
        metrics["optimizer/gradient_norm"] = step.gradient_norm.item()
    return metrics


# mallopt(3): numbers of the parameters, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Where glibc's own, moving thresholds end: twice the largest mmap threshold, and that (DEFAULT_MMAP_THRESHOLD_MAX, 64
# bits).
_USUAL = {_M_TRIM_THRESHOLD: 64 << 20, _M_MMAP_THRESHOLD: 32 << 20}
# A super-batch is larger than this and stays outside the heap; the activations of a batch are smaller, and are reused.
_KEEPING = {_M_TRIM_THRESHOLD: 2**31 - 1, _M_MMAP_THRESHOLD: 256 << 20}


@contextlib.contextmanager
def kept_memory() -> Iterator[bool]:
    """Let glibc keep freed memory inside the block, and give back what is left over after it.

    The activations of a batch are some 16 MB a layer. As it comes, glibc hands such memory back to the system after
    every step and asks for it again in the next, and the system clears each page before the process may touch it: a
    fifth of a small CVAE's gradient step on two cores (`benchmarks/gradient_step.py`). What is held at most stays the
    same: it is the same memory, kept. Where the C library is another (musl, macOS, Windows), or its `malloc` was
    replaced, nothing changes.

    Yields:
        Whether the setting was taken.

    Example:
        >>> with kept_memory() as kept:
        ...     kept in (True, False)
        True
    """
    libc = _glibc()
    if libc is None:
        yield False
        return
    taken = [libc.mallopt(parameter, value) == 1 for parameter, value in _KEEPING.items()]
    try:
        yield all(taken)
    finally:
        for parameter, value in _USUAL.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)


def _glibc() -> Any:
    """The C library of this process where it is glibc, else None."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        return None
    libc.mallopt.argtypes, libc.mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    libc.malloc_trim.argtypes, libc.malloc_trim.restype = (ctypes.c_size_t,), ctypes.c_int
    return libc
