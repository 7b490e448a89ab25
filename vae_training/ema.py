"""An exponential moving average of the weights: evaluated and exported in place of the last ones."""

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from latent_obs.errors import InputError


class WeightAverage:
    """A copy of a model whose weights follow the model's, smoothly.

    After update n (from 0) the average is ``d * average + (1 - d) * weights`` with ``d = min(decay, (1 + n) / (10 + n))``:
    short at first, so that the weights from before training are soon forgotten (as in TensorFlow's
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
