"""Several tasks on one scale: 0 is the random policy, 1 the pixel agent (or a score that is known)."""

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.compare.intervals import aggregates, versus
from agents.compare.results import Results
from agents.compare.study import BASELINE

Array = NDArray[np.float64]


def over_tasks(results: Results, tasks: dict[str, Any]) -> dict[str, Any]:
    """Scores of all tasks together.

    A task counts where the random policy and every arm of the study have scores, and where the one that stands for 1 is above
    the random policy. With seeds that are missing here and there, each arm counts with as many as it has on every task.

    Args:
        results: The raw numbers.
        tasks: Their summary by task.

    Returns:
        "tasks": those that count; "left_out": the others, each with the reason; "scale": what stands for 0 and 1 on each; and
        "arms": by arm "mean", "iqm", "optimality_gap" and, beside the pixel agent, "probability_of_improvement".

    Raises:
        MissingExtraError: rliable is not installed.
    """
    scale: dict[str, tuple[float, float]] = {}
    left_out: dict[str, str] = {}
    for name, task in tasks.items():
        ends = _scale(task)
        missing = [arm for arm in results.study.arms if arm not in task["arms"]]
        if missing:
            left_out[name] = f"no finished runs of {', '.join(missing)}"
        elif isinstance(ends, str):
            left_out[name] = ends
        else:
            scale[name] = ends
    arms: dict[str, Any] = {}
    if scale:
        scores = {arm: _normalised(tasks, arm, scale) for arm in results.study.arms}
        for arm, mine in scores.items():
            arms[arm] = {name: asdict(estimate) for name, estimate in aggregates(mine).items()}
            arms[arm]["seeds"] = len(mine)
            if BASELINE in scores:
                better = versus(mine, scores[BASELINE])["probability_of_improvement"]
                arms[arm]["probability_of_improvement"] = asdict(better)
    return {"tasks": list(scale), "left_out": left_out, "scale": scale, "arms": arms}


def normalise(score: float, zero: float, one: float) -> float:
    """A score on a scale where `zero` is 0 and `one` is 1.

    Example:
        >>> normalise(5.0, zero=-5.0, one=15.0)
        0.5
    """
    return (score - zero) / (one - zero)


def _scale(task: dict[str, Any]) -> tuple[float, float] | str:
    """Scores that stand for 0 and 1, or why there are none."""
    if task["random"] is None:
        return "no score of the random policy"
    zero, one, what = task["random"]["mean"], task["reference"], "the reference"
    if one is None:
        if BASELINE not in task["arms"]:
            return f"no pixel agent and no reference to stand for 1 (an arm {BASELINE!r}, or reference = … in the task)"
        one, what = task["arms"][BASELINE]["mean"]["value"], "the pixel agent"
    if one <= zero:
        return f"{what} ({one:.1f}) is not above the random policy ({zero:.1f}), so that there is no scale"
    return zero, one


def _normalised(tasks: dict[str, Any], arm: str, scale: dict[str, tuple[float, float]]) -> Array:
    """(seeds, tasks)."""
    count = min(len(tasks[task]["arms"][arm]["scores"]) for task in scale)
    return np.array([[normalise(tasks[t]["arms"][arm]["scores"][i], *ends) for t, ends in scale.items()] for i in range(count)])
