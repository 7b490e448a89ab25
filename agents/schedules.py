"""How the learning rate falls over a run. The .zip files of trained agents refer to this module by its name."""

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """A value that is constant or falls to 0 over a run, as a function that Stable-Baselines3 takes.

    "cosine" is the half wave of Loshchilov and Hutter (2017), which falls slowly at the beginning and at the end.

    Example:
        >>> [round(Schedule(0.1, shape)(0.25), 4) for shape in ("constant", "linear", "cosine")]
        [0.1, 0.025, 0.0146]
    """

    value: float
    shape: Shape = "constant"

    def __call__(self, remaining: float) -> float:
        """The value where the share `remaining` of the run's steps, from 1 to 0, is left."""
        remaining = min(1.0, max(0.0, remaining))
        if self.shape == "linear":
            return self.value * remaining
        return self.value * 0.5 * (1.0 - math.cos(math.pi * remaining)) if self.shape == "cosine" else self.value
