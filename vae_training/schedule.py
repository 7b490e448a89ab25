"""Cyclical annealing of beta, as a closed-form function of the training step."""

from dataclasses import dataclass

from latent_obs.errors import InputError


@dataclass(frozen=True)
class CyclicalBeta:
    """Beta at a training step: 0 while frozen, then cycles of a linear rise and a plateau.

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
        if not self.fixed_beta >= 0 or self.fixed_beta == float("inf"):
            raise InputError(f"fixed_beta must be a finite number, 0 or more, got {self.fixed_beta}")
        if self.half_cycle_steps < 0 or self.freeze_steps < 0:
            raise InputError(
                f"half_cycle_steps and freeze_steps must be 0 or more, got {self.half_cycle_steps} and {self.freeze_steps}"
            )

    def __call__(self, step: int) -> float:
        """Beta at a step, counted from 0."""
        if step < self.freeze_steps:
            return 0.0
        if self.half_cycle_steps == 0:
            return self.fixed_beta
        position = (step - self.freeze_steps) % (2 * self.half_cycle_steps)
        return self.fixed_beta * min(1.0, position / self.half_cycle_steps)

    def is_cycle_end(self, step: int) -> bool:
        """Whether the step is the last of a plateau: the moments at which checkpoints may be compared.

        Example:
            >>> beta = CyclicalBeta(1.0, half_cycle_steps=2, freeze_steps=1)
            >>> [step for step in range(10) if beta.is_cycle_end(step)]
            [4, 8]
        """
        cycle = 2 * self.half_cycle_steps
        return cycle > 0 and step >= self.freeze_steps and (step - self.freeze_steps) % cycle == cycle - 1
