"""`summarize()`: the numbers of a study's runs turned into estimates, comparisons and a verdict."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from agents.compare.runs import Results
from agents.compare.statistics import (
    Estimate,
    aggregates,
    at_seconds,
    few_seeds,
    first_reach,
    iqm,
    mean_curve,
    mean_reach,
    number,
    over_tasks,
    t_interval,
    versus,
)
from agents.compare.study import BASELINE

RANDOM_ENCODER = "random-latent"
ONE_SEED = "one seed"
_OTHER_SIDE = {"latent": ("random-latent", "pca-latent")}


def verdict(summary: dict[str, Any]) -> dict[str, Any]:
    """What a study says about each arm that is not the pixel agent.

    "Above" and "below" are said where the 95% intervals of the two interquartile means do not touch, "level" otherwise.
    "Sooner" is said where an arm's curve reaches the pixel agent's final return in less training time than the pixel
    agent's. Of a single seed none of this is said.

    Args:
        summary: "tasks" and "over_tasks" of `agents.compare.summarize`.

    Returns:
        "headline": a sentence on the first arm on trained latents; "sentences": one or more for each arm, and warnings;
        "counts": by arm and task, "above", "level" or "below" the pixel agent, and so on.
    """
    tasks: dict[str, Any] = summary["tasks"]
    arms = list(dict.fromkeys(arm for task in tasks.values() for arm in task["arms"]))
    if not arms:
        return {"headline": "No run is finished yet.", "sentences": [], "counts": {}, "warnings": []}
    others = [arm for arm in arms if arm != BASELINE]
    counts = {arm: _count(tasks, arm) for arm in others}
    sentences = {arm: _sentences(tasks, arm, counts[arm]) for arm in others}
    trained = [arm for arm in others if _observation(tasks, arm) == "latent"]
    first = (trained or others or arms)[0]
    headline = (
        sentences[first][0]
        if first in sentences
        else "Only the pixel agent has finished runs: nothing to compare with."
    )
    return {
        "headline": headline,
        "sentences": [text for arm in others for text in sentences[arm]],
        "counts": counts,
        "warnings": _warnings(tasks),
    }


def beside(mine: dict[str, Any], other: dict[str, Any]) -> str:
    """Where an arm's IQM lies beside another's: "above", "level" (the intervals touch), "below", or "one seed".

    Args:
        mine: An arm of a task's summary, with "iqm" and "seeds".
        other: The other arm.

    Example:
        >>> low = {"iqm": {"value": 1, "low": 0, "high": 2}, "seeds": [0, 1]}
        >>> high = {"iqm": {"value": 4, "low": 3, "high": 5}, "seeds": [0, 1]}
        >>> beside(high, low), beside(low, high), beside(low, low), beside(high, low | {"seeds": [0]})
        ('above', 'below', 'level', 'one seed')
    """
    if min(len(mine["seeds"]), len(other["seeds"])) < 2:
        return ONE_SEED
    a, b = Estimate(**mine["iqm"]), Estimate(**other["iqm"])
    return "above" if a.above(b) else "below" if b.above(a) else "level"


def _count(tasks: dict[str, Any], arm: str) -> dict[str, dict[str, Any]]:
    """By task: beside the pixel agent, how soon, beside the random encoder, the PCA and the random policy."""
    counted: dict[str, dict[str, Any]] = {}
    for name, task in tasks.items():
        if arm not in task["arms"]:
            continue
        mine, row = task["arms"][arm], {}
        for other in (BASELINE, *_OTHER_SIDE.get(mine["observation"], ())):
            if other in task["arms"]:
                row[other] = beside(mine, task["arms"][other])
        if task["random"] is not None:
            chance = task["random"]["mean"]
            row["learnt"] = mine["iqm"]["low"] > chance
        if row.get(BASELINE, ONE_SEED) != ONE_SEED:
            row["sooner"] = _sooner(mine["against_pixels"], task["arms"][BASELINE]["against_pixels"])
        counted[name] = row
    return counted


def _sooner(mine: dict[str, Any], pixels: dict[str, Any]) -> bool:
    """Whether the pixel agent's final return was reached in less time than the pixel agent took for it."""
    if mine["reached"] is None or pixels["reached"] is None:
        return False
    return mine["reached"]["seconds"] < pixels["reached"]["seconds"]


def _sentences(tasks: dict[str, Any], arm: str, counted: dict[str, dict[str, Any]]) -> list[str]:
    against = {name: row[BASELINE] for name, row in counted.items() if BASELINE in row}
    if not against:
        return [f"{arm}: there is no pixel agent to compare it with."]
    alone = [name for name, where in against.items() if where == ONE_SEED]
    told = _list([_beside_pixels(tasks, arm, name) for name in alone]) if alone else ""
    against = {name: where for name, where in against.items() if where != ONE_SEED}
    total = len(against)
    if not total:
        return [f"{arm}: no verdict, as one seed says nothing of another: {told}."]
    below = [name for name, where in against.items() if where == "below"]
    parts = [f"{arm}: at equal steps not below pixels on {_of(total - len(below), total)}"]
    above = sum(where == "above" for where in against.values())
    if above:
        parts[0] += f" (above on {above})"
    sooner = [name for name in against if counted[name].get("sooner")]
    parts.append(f"reached the pixel agent's final return in less time on {_of(len(sooner), total)}")
    for other, words in ((RANDOM_ENCODER, "a random encoder"), ("pca-latent", "PCA")):
        beside_it = [row[other] for row in counted.values() if row.get(other, ONE_SEED) != ONE_SEED]
        if beside_it:
            parts.append(f"above {words} on {_of(sum(where == 'above' for where in beside_it), len(beside_it))}")
    texts = ["; ".join(parts) + "."]
    if below:
        losses = [_beside_pixels(tasks, arm, name) for name in below]
        texts.append(f"{arm} loses to pixels on {_list(losses)}.")
    if alone:
        texts.append(f"{arm}: no verdict, with one seed, on {told}.")
    for other, words in ((RANDOM_ENCODER, "the random encoder"), ("pca-latent", "PCA")):
        lost = [name for name, row in counted.items() if row.get(other) == "below"]
        if lost:
            texts.append(f"{arm} is below {words} on {_list(lost)}.")
    return texts


def _beside_pixels(tasks: dict[str, Any], arm: str, name: str) -> str:
    mine, theirs = (tasks[name]["arms"][which]["iqm"]["value"] for which in (arm, BASELINE))
    return f"{name} ({number(mine)} against {number(theirs)})"


def _warnings(tasks: dict[str, Any]) -> list[str]:
    """What puts the comparison itself in doubt."""
    texts: list[str] = []
    for name, task in tasks.items():
        chance, pixels = task["random"], task["arms"].get(BASELINE)
        if chance is not None and pixels is not None and pixels["iqm"]["low"] <= chance["mean"]:
            texts.append(
                f"On {name} the pixel agent ({number(pixels['iqm']['value'])}) is not above the random policy "
                f"({number(chance['mean'])}): it has learnt nothing there, and being level with it is no merit. If the task "
                "can be learnt, it needs more steps or other settings."
            )
        skips = {arm: numbers["settings"].get("frame_skip") for arm, numbers in task["arms"].items()}
        if len(set(skips.values())) > 1:
            texts.append(
                f"On {name} the arms skip different numbers of frames ({skips}): a step is not the same for all of them."
            )
    return texts


def _observation(tasks: dict[str, Any], arm: str) -> str:
    return next(task["arms"][arm]["observation"] for task in tasks.values() if arm in task["arms"])


def _of(count: int, total: int) -> str:
    return f"{count} of {total} task{'s' if total > 1 else ''}"


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


Run = dict[str, Any]


def summarize(results: Results) -> dict[str, Any]:
    """What the finished runs tell; of plain numbers, texts and lists, as JSON holds them.

    Every score is the mean return of a run's last agent over new episodes; every interval is over seeds.

    Args:
        results: From `compare` or `collect`; runs may be missing.

    Returns:
        "tasks": by task, its random policy and arms, each with estimates ("mean", "iqm": value, low, high), costs,
        learning curves and, beside the pixel agent, "against_pixels". "over_tasks": scores on one scale. "seeds": what
        so many seeds can tell, in words. "verdict": "headline", "sentences" and "counts".

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
