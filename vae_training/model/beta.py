"""Annealing of beta, as closed-form functions of the training step: cyclical, constant, monotonic."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from latent_obs.util.errors import InputError

ScheduleKind = Literal["cyclical", "constant", "monotonic"]


class BetaSchedule:
    """Base of the schedules: frozen dataclasses, pure functions of the step that give beta."""

    def __call__(self, step: int) -> float:
        """Beta at a step, counted from 0."""
        raise NotImplementedError

    def is_cycle_end(self, step: int) -> bool:
        """Whether the step is the last one of a cycle."""
        raise NotImplementedError

    def is_comparable(self, step: int) -> bool:
        """Whether a checkpoint made after this step may be compared with others: beta is at its wanted value."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Plain values, for provenance.

        Example:
            >>> ConstantBeta(2.0).to_json()
            {'fixed_beta': 2.0, 'freeze_steps': 0}
        """
        return asdict(self)  # pyright: ignore[reportArgumentType]

    def _check(self) -> None:
        for field in fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            if field.name == "fixed_beta" and not 0 <= value < math.inf:
                raise InputError(f"fixed_beta must be a finite number, 0 or more, got {value}")
            if field.name.endswith("_steps") and value < 0:
                raise InputError(f"{field.name} must be 0 or more, got {value}")


@dataclass(frozen=True)
class CyclicalBeta(BetaSchedule):
    """Beta at a training step: 0 while frozen, then cycles of a rise and a plateau.

    After `freeze_steps` steps at 0, each cycle of ``2 * half_cycle_steps`` steps rises linearly from 0 to `fixed_beta`
    over its first half and stays there over its second (Fu et al. 2019, "Cyclical Annealing Schedule: A Simple Approach
    to Mitigating KL Vanishing", section 3, with R = 0.5). A pure function of the step: it can be plotted, tested and
    resumed, has equal cycles whatever the number of steps, and reaches its top in each.

    Args:
        fixed_beta: The wanted beta, reached on each plateau.
        half_cycle_steps: Steps of the rise, and of the plateau. 0: `fixed_beta` from the end of the freeze on.
        freeze_steps: Steps at 0 before the first cycle.

    Example:
        >>> beta = CyclicalBeta(fixed_beta=2.0, half_cycle_steps=4, freeze_steps=2)
        >>> [beta(step) for step in range(12)]
        [0.0, 0.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 0.0, 0.5]
    """

    fixed_beta: float
    half_cycle_steps: int
    freeze_steps: int = 0

    def __post_init__(self) -> None:
        self._check()

    def __call__(self, step: int) -> float:
        """Beta at a step, counted from 0."""
        if step < self.freeze_steps:
            return 0.0
        if self.half_cycle_steps == 0:
            return self.fixed_beta
        position = (step - self.freeze_steps) % (2 * self.half_cycle_steps)
        return self.fixed_beta * min(1.0, position / self.half_cycle_steps)

    def is_cycle_end(self, step: int) -> bool:
        """Whether the step is the last of a plateau.

        Example:
            >>> beta = CyclicalBeta(1.0, half_cycle_steps=2, freeze_steps=1)
            >>> [step for step in range(10) if beta.is_cycle_end(step)]
            [4, 8]
        """
        cycle = 2 * self.half_cycle_steps
        return cycle > 0 and step >= self.freeze_steps and (step - self.freeze_steps) % cycle == cycle - 1

    def is_comparable(self, step: int) -> bool:
        """Whether a checkpoint made after this step may be compared with others: the ends of cycles, and nothing
        else.
        """
        return self.is_cycle_end(step)


@dataclass(frozen=True)
class MonotonicBeta(BetaSchedule):
    """Beta that rises once and stays (Bowman et al. 2016): 0 while frozen, then a linear rise, then `fixed_beta` for
    good.

    Args:
        fixed_beta: The wanted beta.
        ramp_steps: Steps of the rise; 0 for none.
        freeze_steps: Steps at 0 before it.

    Example:
        >>> beta = MonotonicBeta(fixed_beta=2.0, ramp_steps=4, freeze_steps=2)
        >>> [beta(step) for step in range(9)]
        [0.0, 0.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
        >>> [step for step in range(9) if beta.is_comparable(step)]
        [6, 7, 8]
    """

    fixed_beta: float
    ramp_steps: int
    freeze_steps: int = 0

    def __post_init__(self) -> None:
        self._check()

    def __call__(self, step: int) -> float:
        """Beta at a step, counted from 0."""
        if step < self.freeze_steps:
            return 0.0
        if self.ramp_steps == 0:
            return self.fixed_beta
        return self.fixed_beta * min(1.0, (step - self.freeze_steps) / self.ramp_steps)

    def is_cycle_end(self, step: int) -> bool:
        """Never: there are no cycles."""
        return False

    def is_comparable(self, step: int) -> bool:
        """Whether the rise is over."""
        return step >= self.freeze_steps + self.ramp_steps


@dataclass(frozen=True)
class ConstantBeta(BetaSchedule):
    """The wanted beta from the first step, or from the end of a freeze at 0, on.

    Args:
        fixed_beta: The wanted beta.
        freeze_steps: Steps at 0 before it.

    Example:
        >>> beta = ConstantBeta(2.0, freeze_steps=1)
        >>> [beta(step) for step in range(3)], beta.is_comparable(0), beta.is_comparable(1)
        ([0.0, 2.0, 2.0], False, True)
    """

    fixed_beta: float
    freeze_steps: int = 0

    def __post_init__(self) -> None:
        self._check()

    def __call__(self, step: int) -> float:
        """Beta at a step, counted from 0."""
        return 0.0 if step < self.freeze_steps else self.fixed_beta

    def is_cycle_end(self, step: int) -> bool:
        """Never: there are no cycles."""
        return False

    def is_comparable(self, step: int) -> bool:
        """Whether the freeze is over."""
        return step >= self.freeze_steps


def make_schedule(kind: ScheduleKind, fixed_beta: float, *, rise_steps: int, freeze_steps: int = 0) -> BetaSchedule:
    """The schedule of a kind.

    Args:
        kind: "cyclical", "constant" or "monotonic".
        fixed_beta: The wanted beta.
        rise_steps: Steps of a rise (and, for cycles, of the plateau after it); a constant beta has none.
        freeze_steps: Steps at 0 before anything else.

    Example:
        >>> make_schedule("monotonic", 2.0, rise_steps=10)
        MonotonicBeta(fixed_beta=2.0, ramp_steps=10, freeze_steps=0)
    """
    if kind == "constant":
        return ConstantBeta(fixed_beta, freeze_steps)
    if kind == "monotonic":
        return MonotonicBeta(fixed_beta, rise_steps, freeze_steps)
    if kind == "cyclical":
        return CyclicalBeta(fixed_beta, rise_steps, freeze_steps)
    raise InputError(
        f"schedule must be {', '.join(get_args(ScheduleKind)[:-1])} or {get_args(ScheduleKind)[-1]}, got {kind!r}"
    )
