"""Annealing of beta, as closed-form functions of the training step: cyclical, constant, monotonic."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from latent_obs.errors import InputError

Ramp = Literal["linear", "cosine", "sigmoid"]
ScheduleKind = Literal["cyclical", "constant", "monotonic"]

_STEEPNESS = 12.0  # of the sigmoid: it begins and ends within 0.3% of its limits before it is stretched to reach them


def ramp_value(ramp: Ramp, position: float) -> float:
    """How far a ramp has risen, from 0 to 1.

    Args:
        ramp: "linear"; "cosine", ``(1 - cos(pi p)) / 2``; "sigmoid", a logistic curve (Bowman et al. 2016, "Generating
            Sentences from a Continuous Space", section 3.1), stretched so that it begins at 0 and ends at 1 exactly.
        position: Where on the ramp, 0 at its begin and 1 at its end; below and above it stays.

    Example:
        >>> [round(ramp_value(ramp, 0.25), 3) for ramp in ("linear", "cosine", "sigmoid")]
        [0.25, 0.146, 0.045]
    """
    position = min(1.0, max(0.0, position))
    if ramp == "cosine":
        return (1.0 - math.cos(math.pi * position)) / 2.0
    if ramp == "sigmoid":
        low, high = _logistic(0.0), _logistic(1.0)
        return (_logistic(position) - low) / (high - low)
    return position


def _logistic(position: float) -> float:
    return 1.0 / (1.0 + math.exp(-_STEEPNESS * (position - 0.5)))


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
        """Plain values, for provenance; a ramp that is linear is left out.

        Example:
            >>> ConstantBeta(2.0).to_json()
            {'fixed_beta': 2.0, 'freeze_steps': 0}
        """
        values = asdict(self)  # pyright: ignore[reportArgumentType]
        return {name: value for name, value in values.items() if not (name == "ramp" and value == "linear")}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.to_json().items())})"

    def _check(self) -> None:
        for field in fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            if field.name == "fixed_beta" and not 0 <= value < math.inf:
                raise InputError(f"fixed_beta must be a finite number, 0 or more, got {value}")
            if field.name.endswith("_steps") and value < 0:
                raise InputError(f"{field.name} must be 0 or more, got {value}")
            if field.name == "ramp" and value not in get_args(Ramp):
                raise InputError(f"ramp must be {', '.join(get_args(Ramp)[:-1])} or {get_args(Ramp)[-1]}, got {value!r}")


@dataclass(frozen=True, repr=False)
class CyclicalBeta(BetaSchedule):
    """Beta at a training step: 0 while frozen, then cycles of a rise and a plateau.

    After `freeze_steps` steps at 0, each cycle of ``2 * half_cycle_steps`` steps rises from 0 to `fixed_beta`
    over its first half and stays there over its second (Fu et al. 2019, "Cyclical Annealing Schedule: A Simple Approach
    to Mitigating KL Vanishing", section 3, with R = 0.5). A pure function of the step: it can be plotted, tested and
    resumed, has equal cycles whatever the number of steps, and reaches its top in each.

    Args:
        fixed_beta: The wanted beta, reached on each plateau.
        half_cycle_steps: Steps of the rise, and of the plateau. 0: `fixed_beta` from the end of the freeze on.
        freeze_steps: Steps at 0 before the first cycle.
        ramp: Shape of the rise; see `ramp_value`.

    Example:
        >>> beta = CyclicalBeta(fixed_beta=2.0, half_cycle_steps=4, freeze_steps=2)
        >>> [beta(step) for step in range(12)]
        [0.0, 0.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 0.0, 0.5]
    """

    fixed_beta: float
    half_cycle_steps: int
    freeze_steps: int = 0
    ramp: Ramp = "linear"

    def __post_init__(self) -> None:
        self._check()

    def __call__(self, step: int) -> float:
        """Beta at a step, counted from 0."""
        if step < self.freeze_steps:
            return 0.0
        if self.half_cycle_steps == 0:
            return self.fixed_beta
        position = (step - self.freeze_steps) % (2 * self.half_cycle_steps)
        return self.fixed_beta * ramp_value(self.ramp, position / self.half_cycle_steps)

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
        """Whether a checkpoint made after this step may be compared with others: the ends of cycles, and nothing else."""
        return self.is_cycle_end(step)


@dataclass(frozen=True, repr=False)
class MonotonicBeta(BetaSchedule):
    """Beta that rises once and stays (Bowman et al. 2016): 0 while frozen, then a ramp, then `fixed_beta` for good.

    Args:
        fixed_beta: The wanted beta.
        ramp_steps: Steps of the rise; 0 for none.
        freeze_steps: Steps at 0 before it.
        ramp: Shape of the rise; see `ramp_value`.

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
    ramp: Ramp = "linear"

    def __post_init__(self) -> None:
        self._check()

    def __call__(self, step: int) -> float:
        """Beta at a step, counted from 0."""
        if step < self.freeze_steps:
            return 0.0
        if self.ramp_steps == 0:
            return self.fixed_beta
        return self.fixed_beta * ramp_value(self.ramp, (step - self.freeze_steps) / self.ramp_steps)

    def is_cycle_end(self, step: int) -> bool:
        """Never: there are no cycles."""
        return False

    def is_comparable(self, step: int) -> bool:
        """Whether the rise is over."""
        return step >= self.freeze_steps + self.ramp_steps


@dataclass(frozen=True, repr=False)
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


def make_schedule(
    kind: ScheduleKind, fixed_beta: float, *, rise_steps: int, freeze_steps: int = 0, ramp: Ramp = "linear"
) -> BetaSchedule:
    """The schedule of a kind.

    Args:
        kind: "cyclical", "constant" or "monotonic".
        fixed_beta: The wanted beta.
        rise_steps: Steps of a rise (and, for cycles, of the plateau after it); a constant beta has none.
        freeze_steps: Steps at 0 before anything else.
        ramp: Shape of the rise.

    Example:
        >>> make_schedule("monotonic", 2.0, rise_steps=10, ramp="cosine")
        MonotonicBeta(fixed_beta=2.0, ramp_steps=10, freeze_steps=0, ramp='cosine')
    """
    if kind == "constant":
        return ConstantBeta(fixed_beta, freeze_steps)
    if kind == "monotonic":
        return MonotonicBeta(fixed_beta, rise_steps, freeze_steps, ramp)
    if kind == "cyclical":
        return CyclicalBeta(fixed_beta, rise_steps, freeze_steps, ramp)
    raise InputError(f"schedule must be {', '.join(get_args(ScheduleKind)[:-1])} or {get_args(ScheduleKind)[-1]}, got {kind!r}")
