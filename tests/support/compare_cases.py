"""Constructed studies with numbers that are known, for the tests of comparisons."""

from collections.abc import Mapping, Sequence
from typing import Any

from agents.compare import Results, Study, Task
from agents.compare.study import OBSERVATIONS

STEPS = 1_000


def run_of(
    task: str, arm: str, seed: int, score: float, curve: Sequence[float], rate: float = 100.0, **more: Any
) -> dict[str, Any]:
    """Numbers of one finished run: evaluations evenly over `STEPS` steps, at `rate` steps a second."""
    steps = [round(STEPS * (i + 1) / len(curve)) for i in range(len(curve))]
    rows = [{"step": s, "mean_return": float(v), "seconds": s / rate} for s, v in zip(steps, curve, strict=True)]
    return {
        "kind": "train",
        "task": task,
        "arm": arm,
        "seed": seed,
        "env": "Side-v0",
        "observation": "latent",
        "settings": {"frame_skip": 4, "history": 1},
        "threads": 1,
        "jobs": 2,
        "machine": "an abacus",
        "versions": {"beads": "1.0"},
        "evaluations": rows,
        "final": {"mean": score, "returns": [score - 1, score + 1], "successes": None},
        "steps": STEPS,
        "training_seconds": STEPS / rate,
        "steps_per_second": rate,
        "wall_seconds": 2 * STEPS / rate,
        "cpu_seconds": 3 * STEPS / rate,
        "peak_memory_mb": 500.0,
        "memory_how": "weighed",
        "attempts": 1,
        **more,
    }


def results_of(
    scores: Mapping[str, Mapping[str, Sequence[float]]], chance: float = 0.0, rates: dict[str, float] | None = None
) -> Results:
    """Results with these scores by task, arm and seed; each curve rises evenly from a quarter of the score to the
    score."""
    arms = tuple(dict.fromkeys(arm for task in scores.values() for arm in task))
    variants = {arm: {"observation": "latent"} for arm in arms if arm not in OBSERVATIONS}
    seeds = tuple(range(max(len(values) for task in scores.values() for values in task.values())))
    study = Study({name: Task("Side-v0") for name in scores}, arms, seeds, STEPS, 2, arm_settings=variants)

    def run(task: str, arm: str, seed: int, score: float) -> dict[str, Any]:
        curve = [score * part for part in (0.25, 0.5, 0.75, 1.0)]
        return run_of(task, arm, seed, score, curve, (rates or {}).get(arm, 100.0))

    runs = {
        task: {arm: [run(task, arm, *one) for one in enumerate(by_arm.get(arm, []))] for arm in arms}
        for task, by_arm in scores.items()
    }
    return Results(study, runs, {task: [chance, chance] for task in scores}, {})
