"""`summarise()`: the numbers of a study's runs turned into estimates, comparisons and a verdict."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from agents.compare.across import over_tasks
from agents.compare.curves import at_seconds, first_reach, mean_curve, mean_reach
from agents.compare.intervals import aggregates, few_seeds, iqm, t_interval, versus
from agents.compare.results import Results
from agents.compare.study import BASELINE
from agents.compare.verdict import verdict

Run = dict[str, Any]


def summarise(results: Results) -> dict[str, Any]:
    """What the finished runs tell; of plain numbers, texts and lists, as JSON holds them.

    Every score is the mean return of a run's last agent over new episodes; every interval is over seeds.

    Args:
        results: From `compare` or `collect`; runs may be missing.

    Returns:
        "tasks": by task, its random policy and arms, each with estimates ("mean", "iqm": value, low, high), costs, learning
        curves and, beside the pixel agent, "against_pixels". "over_tasks": scores on one scale. "seeds": what so many seeds can
        tell, in words. "verdict": "headline", "sentences" and "counts".

    Raises:
        MissingExtraError: rliable is not installed.
    """
    tasks = {task: _task(results, task) for task in results.study.tasks}
    counts = [len(arm["seeds"]) for task in tasks.values() for arm in task["arms"].values()]
    summary: dict[str, Any] = {
        "tasks": tasks,
        "over_tasks": over_tasks(results, tasks),
        "seeds": ("" if len(set(counts)) < 2 else "Some arms have fewer seeds than others. ")
        + few_seeds(min(counts, default=0)),
        "missing": results.missing,
    }
    return {"verdict": verdict(summary), **summary}


def scores_of(runs: Sequence[Run]) -> list[float]:
    """A run's score: the mean return of its last agent over new episodes."""
    return [float(run["final"]["mean"]) for run in runs]


def _task(results: Results, task: str) -> dict[str, Any]:
    of_task, runs = results.study.tasks[task], results.runs[task]
    arms = {arm: _arm(results, arm, mine) for arm, mine in runs.items() if mine}
    pixels = runs.get(BASELINE, [])
    if pixels:
        for arm in arms:
            arms[arm]["against_pixels"] = _against(runs[arm], pixels)
    returns = results.random.get(task)
    return {
        "env": of_task.env,
        "steps": results.study.steps_of(task),
        "reference": of_task.reference,
        "encoder_seconds": of_task.encoder_seconds,
        "random": None if not returns else {"mean": float(np.mean(returns)), "episodes": len(returns)},
        "arms": arms,
    }


def _arm(results: Results, arm: str, runs: Sequence[Run]) -> dict[str, Any]:
    scores = scores_of(runs)
    estimates = aggregates(np.array(scores)[:, None])
    curves = {name: mean_curve(runs, over) for name, over in (("over_steps", "step"), ("over_time", "seconds"))}
    costs = ("training_seconds", "wall_seconds", "cpu_seconds", "steps_per_second", "peak_memory_mb")
    return {
        "observation": results.study.observation(arm),
        "seeds": [run["seed"] for run in runs],
        "scores": scores,
        "mean": asdict(estimates["mean"]),
        "iqm": asdict(estimates["iqm"]),
        "t_interval": t_interval(scores),
        **{name: None if curve is None else asdict(curve) for name, curve in curves.items()},
        **{name: float(np.mean([run[name] for run in runs])) for name in costs},
        "memory_how": runs[0]["memory_how"],
        "success_share": _success(runs),
        "settings": runs[0]["settings"],
    }


def _against(runs: Sequence[Run], pixels: Sequence[Run]) -> dict[str, Any]:
    """An arm beside the pixel agent: at equal steps, at equal time, and how soon it is as good."""
    scores, theirs = np.array(scores_of(runs))[:, None], np.array(scores_of(pixels))[:, None]
    ended = float(np.mean([run["training_seconds"] for run in pixels]))
    # Of the curve, as what is compared with it is: new episodes are others, and their returns may never be met on it.
    curve = mean_curve(pixels, "step")
    target = float(iqm(theirs)) if curve is None else curve.iqm[-1]
    then = [value for value in (at_seconds(run, ended) for run in runs) if value is not None]
    reached = [first_reach(run, target) for run in runs]
    return {
        **{name: asdict(estimate) for name, estimate in versus(scores, theirs).items()},
        "pixels_ended_seconds": ended,
        "at_that_time": asdict(aggregates(np.array(then)[:, None])["iqm"]) if len(then) == len(runs) else None,
        "target": target,
        "reached_by_seed": reached,
        "reached": mean_reach(runs, target),
        "speed": float(
            np.mean([run["steps_per_second"] for run in runs]) / np.mean([run["steps_per_second"] for run in pixels])
        ),
    }


def _success(runs: Sequence[Run]) -> float | None:
    """Share of new episodes that the last agents solved; None where the task does not say."""
    shares = [run["final"].get("successes") for run in runs]
    values = [float(np.mean(np.asarray(share, np.float64))) for share in shares if share is not None and np.size(share)]
    return float(np.mean(values)) if len(values) == len(runs) else None
