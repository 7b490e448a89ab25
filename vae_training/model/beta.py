"""Schedules of beta: pure functions of the training step, so that they can be plotted, tested and resumed."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from latent_obs.util.errors import InputError, check_choice

ScheduleKind = Literal["cyclical", "constant", "monotonic"]


class BetaSchedule:
    """Base of the schedules, which are called with a step, counted from 0, and return beta."""

    fixed_beta: float
    freeze_steps: int

    def __post_init__(self) -> None:
        if not 0 <= self.fixed_beta < math.inf:
            raise InputError(f"fixed_beta must be a finite number, 0 or more, got {self.fixed_beta}")
        for name, value in asdict(self).items():  # pyright: ignore[reportArgumentType]
            if name.endswith("_steps") and value < 0:
                raise InputError(f"{name} must be 0 or more, got {value}")

    def __call__(self, step: int) -> float:
        """Beta at a step."""
        return 0.0 if step < self.freeze_steps else self.fixed_beta

    def is_comparable(self, step: int) -> bool:
        """Whether the weights after this step may be compared with others: beta has its wanted value."""
        return step >= self.freeze_steps

    def to_json(self) -> dict[str, Any]:
        """Plain values, for provenance."""
        return asdict(self)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class ConstantBeta(BetaSchedule):
    """The wanted beta from the first step after the freeze on."""

    fixed_beta: float
    freeze_steps: int = 0


@dataclass(frozen=True)
class MonotonicBeta(BetaSchedule):
    """A linear rise over `ramp_steps` after the freeze, then the wanted beta (Bowman et al. 2016).

    Example:
        >>> beta = MonotonicBeta(fixed_beta=2.0, ramp_steps=4, freeze_steps=2)
        >>> [beta(step) for step in range(9)]
        [0.0, 0.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    """

    fixed_beta: float
    ramp_steps: int
    freeze_steps: int = 0

    def __call__(self, step: int) -> float:
        """Beta at a step."""
        risen = step - self.freeze_steps
        return self.fixed_beta * (risen / self.ramp_steps) if 0 <= risen < self.ramp_steps else super().__call__(step)

    def is_comparable(self, step: int) -> bool:
        """Whether the rise is over."""
        return step >= self.freeze_steps + self.ramp_steps


@dataclass(frozen=True)
class CyclicalBeta(BetaSchedule):
    """Cycles of ``2 * half_cycle_steps`` steps after the freeze: a linear rise from 0, then a plateau as long.

    This is cyclical annealing with R = 0.5 (Fu et al. 2019, "Cyclical Annealing Schedule: A Simple Approach to
    Mitigating KL Vanishing", section 3). Without `half_cycle_steps` beta is constant after the freeze.

    Example:
        >>> beta = CyclicalBeta(fixed_beta=2.0, half_cycle_steps=4, freeze_steps=2)
        >>> [beta(step) for step in range(12)]
        [0.0, 0.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 0.0, 0.5]
        >>> [step for step in range(30) if beta.is_comparable(step)]
        [9, 17, 25]
    """

    fixed_beta: float
    half_cycle_steps: int
    freeze_steps: int = 0

    def __call__(self, step: int) -> float:
        """Beta at a step."""
        if step < self.freeze_steps or self.half_cycle_steps == 0:
            return super().__call__(step)
        step = (step - self.freeze_steps) % (2 * self.half_cycle_steps)
        return self.fixed_beta * min(1.0, step / self.half_cycle_steps)

    def is_comparable(self, step: int) -> bool:
        """Whether the step is the last one of a cycle."""
        steps, cycle = step + 1 - self.freeze_steps, 2 * self.half_cycle_steps
        return cycle > 0 and steps > 0 and steps % cycle == 0


def make_schedule(kind: ScheduleKind, fixed_beta: float, *, rise_steps: int, freeze_steps: int = 0) -> BetaSchedule:
    """The schedule of a kind; `rise_steps` are those of a rise, and of the plateau after it where there are cycles."""
    check_choice("schedule", kind, get_args(ScheduleKind))
    if kind == "constant":
        return ConstantBeta(fixed_beta, freeze_steps)
    return (MonotonicBeta if kind == "monotonic" else CyclicalBeta)(fixed_beta, rise_steps, freeze_steps)
