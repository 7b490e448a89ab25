"""How a step size or a clip range falls over a run."""

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """A value that falls to nothing over a run, as Stable-Baselines3 asks for it.

    Attributes:
        value: What it begins with.
        shape: "constant" stays; "linear" falls evenly; "cosine" is the half wave of Loshchilov and Hutter (2017):
            slowly at first and at the end.

    Example:
        >>> [round(Schedule(0.1, shape)(0.25), 4) for shape in ("constant", "linear", "cosine")]
        [0.1, 0.025, 0.0146]
    """

    value: float
    shape: Shape = "constant"

    def __call__(self, remaining: float) -> float:
        """The value where `remaining`, from 1 to 0, is left of the run (by its steps)."""
        remaining = min(1.0, max(0.0, remaining))
        match self.shape:
            case "constant":
                return self.value
            case "linear":
                return self.value * remaining
            case "cosine":
                return self.value * 0.5 * (1.0 - math.cos(math.pi * remaining))
