"""`summarize()`: the numbers of a study's runs turned into estimates, comparisons and a verdict."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from agents.compare.runs import Results
from agents.compare.statistics import (
    Array,
    Run,
    aggregates,
    at_seconds,
    first_reach,
    in_words,
    iqm,
    mean_curve,
    mean_reach,
    number,
    t_interval,
    versus,
)
from agents.compare.study import BASELINE
from latent_obs.util.words import counted

ONE_SEED, NO_RESULT = "one seed", "no result"
#: How arms that one on trained latents is compared with are called, if not by their name; it comes with all others.
_OTHERS = {BASELINE: "pixels", "random-latent": "a random encoder", "pca-latent": "PCA"}
#: Where an arm can lie beside another, in words.
_WHERE = {
    "above": "{arm} is better than {other} on {where}",
    "level": "{arm} and {other} cannot be distinguished on {where}",
    "below": "{arm} is worse than {other} on {where}",
    ONE_SEED: "{arm} and {other}: one seed gives no verdict on {where}",
    NO_RESULT: "{arm} and {other}: no result on {where}, because neither beats the random policy",
}
_SAME = 0.02  # of the way from the random policy to the better arm: returns as close as this cannot be distinguished
_COSTS = ("training_seconds", "wall_seconds", "cpu_seconds", "steps_per_second", "peak_memory_mb")


def summarize(results: Results) -> dict[str, Any]:
    """Summarize the finished runs in plain numbers, texts and lists, as JSON holds them.

    Every score is the mean return of a run's last agent over new episodes; every interval is over seeds.

    Returns:
        "tasks": by task, its random policy and arms, each with estimates ("mean", "iqm": value, low, high), costs,
        learning curves and, beside the pixel agent, "against_pixels". "over_tasks": normalized scores of all tasks.
        "seeds": how much so many seeds show, in words. "verdict": from `verdict`. "missing": runs without numbers.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    tasks = {task: _task(results, task) for task in results.study.tasks}
    counts = [len(arm["seeds"]) for task in tasks.values() for arm in task["arms"].values()]
    uneven = "Some arms have fewer seeds than others. " if len(set(counts)) > 1 else ""
    return {
        "verdict": verdict(tasks),
        "tasks": tasks,
        "over_tasks": over_tasks(results.study.arms, tasks),
        "seeds": uneven + few_seeds(min(counts, default=0)),
        "missing": results.missing,
    }


def _task(results: Results, task: str) -> dict[str, Any]:
    of_task, returns = results.study.tasks[task], results.random.get(task)
    runs = {arm: mine for arm, mine in results.runs[task].items() if mine}
    arms = {arm: _arm(results.study.observation(arm), mine) for arm, mine in runs.items()}
    if BASELINE in runs:
        for arm in arms:
            against = arms[arm]["against_pixels"] = _against(runs[arm], runs[BASELINE])
            made, reached = of_task.encoder_seconds, against["reached"]
            if arms[arm]["observation"] == "latent" and made is not None:
                against["reached_with_encoder"] = None if reached is None else reached["seconds"] + made
    return {
        "env": of_task.env,
        "steps": results.study.steps_of(task),
        "reference": of_task.reference,
        "encoder_seconds": of_task.encoder_seconds,
        "random": _chance(returns) if returns else None,
        "arms": arms,
    }


def _chance(returns: Sequence[float]) -> dict[str, Any]:
    """Mean return of the random policy, and the upper end of its 95% interval."""
    mean, error = float(np.mean(returns)), float(np.std(returns)) / math.sqrt(max(1, len(returns) - 1))
    return {"mean": mean, "high": mean + 1.96 * error, "episodes": len(returns)}


def _arm(observation: str, runs: Sequence[Run]) -> dict[str, Any]:
    scores = _scores(runs)
    estimates = aggregates(scores)
    solved = [run["final"]["successes"] for run in runs if run["final"].get("successes")]
    return {
        "observation": observation,
        "seeds": [run["seed"] for run in runs],
        "scores": scores.ravel().tolist(),
        "mean": estimates["mean"],
        "iqm": estimates["iqm"],
        "t_interval": t_interval(scores.ravel().tolist()),
        "over_steps": mean_curve(runs, "step"),
        "over_time": mean_curve(runs, "seconds"),
        **{name: _mean(runs, name) for name in _COSTS},
        "memory_how": runs[0]["memory_how"],
        "success_share": float(np.mean([np.mean(one) for one in solved])) if len(solved) == len(runs) else None,
        "settings": runs[0]["settings"],
    }


def _against(runs: Sequence[Run], pixels: Sequence[Run]) -> dict[str, Any]:
    """An arm beside the pixel agent: at equal steps, at equal time, and how soon it is as good."""
    ended, curve = _mean(pixels, "training_seconds"), mean_curve(pixels, "step")
    # The end of the pixel agent's curve, not its score: curves are compared, and new episodes may be easier.
    target = float(iqm(_scores(pixels).ravel())) if curve is None else curve["iqm"][-1]
    then = [value for value in (at_seconds(run, ended) for run in runs) if value is not None]
    return {
        **versus(_scores(runs), _scores(pixels)),
        "pixels_ended_seconds": ended,
        "at_that_time": aggregates(np.array(then)[:, None])["iqm"] if len(then) == len(runs) else None,
        "target": target,
        "reached_by_seed": [first_reach(run, target) for run in runs],
        "reached": mean_reach(runs, target),
        "speed": _mean(runs, "steps_per_second") / _mean(pixels, "steps_per_second"),
    }


def _scores(runs: Sequence[Run]) -> Array:
    """(seeds, 1): mean returns of the last agents over new episodes."""
    return np.array([[run["final"]["mean"]] for run in runs], np.float64)


def _mean(runs: Sequence[Run], name: str) -> float:
    return float(np.mean([run[name] for run in runs]))


def over_tasks(names: Sequence[str], tasks: dict[str, Any]) -> dict[str, Any]:
    """Normalize the scores of all tasks, the random policy to 0 and the reference or pixel agent to 1, and aggregate.

    A task counts only if the random policy and every arm have scores there, and its 1 is above its 0: a pixel agent's
    above the random policy's interval. If seeds are missing, an arm counts with as many as it has on every task.

    Args:
        names: The arms of the study.
        tasks: The summaries of its tasks.

    Returns:
        "tasks": those that count; "left_out": the others; "scale": the scores that become 0 and 1 on each; and "arms":
        by arm "seeds", "mean", "iqm", "optimality_gap", "probability_of_improvement", "worst" (the lowest score on
        each task), and "latents_ahead": the IQM of the first arm on trained latents minus its own.
    """
    scale: dict[str, tuple[float, float]] = {}
    for name, task in tasks.items():
        pixels, one = task["arms"].get(BASELINE), task["reference"]
        if one is None and pixels is not None:
            one = pixels["mean"]["value"]
        chance = task["random"]
        if chance is None or one is None or not task["arms"].keys() >= set(names):
            continue
        if one > chance["high" if task["reference"] is None else "mean"]:
            scale[name] = chance["mean"], one
    scores: dict[str, Array] = {}
    for arm in names if scale else ():
        own = {task: np.array(tasks[task]["arms"][arm]["scores"]) for task in scale}
        seeds = min(map(len, own.values()))
        scores[arm] = np.array([(own[task][:seeds] - zero) / (one - zero) for task, (zero, one) in scale.items()]).T
    arms: dict[str, Any] = {arm: {**aggregates(mine), "seeds": len(mine)} for arm, mine in scores.items()}
    better = "probability_of_improvement"
    for arm in arms if BASELINE in arms else ():
        arms[arm][better] = versus(scores[arm], scores[BASELINE])[better]
    latent = next((arm for arm in arms for task in scale if tasks[task]["arms"][arm]["observation"] == "latent"), None)
    for arm in arms:
        arms[arm]["worst"] = dict(zip(scale, scores[arm].min(0).tolist(), strict=True))
        if latent is not None and arm != latent:
            arms[arm]["latents_ahead"] = versus(scores[latent], scores[arm])["difference"]
    left_out = [name for name in tasks if name not in scale]
    return {"tasks": list(scale), "left_out": left_out, "scale": scale, "arms": arms}


def verdict(tasks: dict[str, Any]) -> dict[str, Any]:
    """Turn the summaries of all tasks into text. Losses are reported like wins.

    An arm has learned something if the 95% interval of its interquartile mean is above that of the random policy. Two
    arms of which none has learned anything give no result. Otherwise an arm is "above" or "below" another if the
    intervals of the two interquartile means do not overlap, else "level". Means that are almost the same are "level".
    An arm is "sooner" if its curve reaches the final return of the pixel agent in less training time than the pixel
    agent's curve, and "sooner_with_encoder" if that holds with the time to record frames and to train the encoder. A
    single seed gives no verdict.

    Returns:
        "headline": sentences on the first arm on trained latents beside pixels, first on what has learned nothing;
        "sentences": all other sentences; "warnings"; "counts": by arm and task, "above", "level" or "below" the pixel
        agent, and so on; "learned_nothing": by arm, the tasks.
    """
    seen = {arm: one["observation"] for task in tasks.values() for arm, one in task["arms"].items()}
    others = [arm for arm in seen if arm != BASELINE]
    nothing = {arm: [name for name, task in tasks.items() if _learned_nothing(task, arm)] for arm in seen}
    counts = {arm: {name: _count(task, arm) for name, task in tasks.items() if arm in task["arms"]} for arm in others}
    first = next((arm for arm in others if seen[arm] == "latent"), others[0] if others else None)
    compared = {arm: _sentences(tasks, arm, counts[arm]) for arm in others}
    failed = {arm: [_failure(tasks, arm, names)] for arm, names in nothing.items() if names}
    headline = ["Nothing to compare yet: two arms need finished runs."]
    if first is not None:
        beside = next(iter(compared[first].values()), [f"{first}: there is no pixel agent to compare it with."])
        headline = [*failed.get(first, []), *failed.get(BASELINE, []), *beside]
    texts = [*failed.values(), *(texts for arm in others for texts in compared[arm].values())]
    return {
        "headline": " ".join(headline),
        "sentences": [text for part in texts for text in part if text not in headline],
        "counts": counts,
        "learned_nothing": {arm: names for arm, names in nothing.items() if names},
        "warnings": [text for name, task in tasks.items() for text in _warnings(name, task)],
    }


def _learned_nothing(task: dict[str, Any], arm: str) -> bool:
    """Whether the interval of an arm is not above that of the random policy; False if one of them is not known."""
    mine, chance = task["arms"].get(arm), task["random"]
    return mine is not None and chance is not None and mine["iqm"]["low"] <= chance["high"]


def _failure(tasks: dict[str, Any], arm: str, names: Sequence[str]) -> str:
    """A sentence on the tasks on which an arm has learned nothing."""
    shown = [
        f"{name} ({in_words(tasks[name]['arms'][arm]['iqm'])} against {number(tasks[name]['random']['mean'])})"
        for name in names
    ]
    return f"{arm} does not beat the random policy on {', '.join(shown)}: nothing shows that it has learned."


def _count(task: dict[str, Any], arm: str) -> dict[str, Any]:
    """Where an arm's IQM lies beside those of others, and whether it was sooner than pixels."""
    arms, chance = task["arms"], task["random"]
    mine, pixels = arms[arm], arms.get(BASELINE)
    count: dict[str, Any] = {}
    for name in _baselines(arms) if mine["observation"] == "latent" else (BASELINE,):
        if (other := arms.get(name)) is not None:
            a, b = mine["iqm"], other["iqm"]
            count[name] = "above" if a["low"] > b["high"] else "below" if a["high"] < b["low"] else "level"
            best = max(a["value"], b["value"])
            if chance is not None and abs(a["value"] - b["value"]) <= _SAME * (best - chance["mean"]):
                count[name] = "level"
            if min(len(mine["seeds"]), len(other["seeds"])) < 2:
                count[name] = ONE_SEED
            if _learned_nothing(task, arm) and _learned_nothing(task, name):
                count[name] = NO_RESULT
    if count.get(BASELINE, ONE_SEED) not in (ONE_SEED, NO_RESULT):
        times = [one["against_pixels"]["reached"] for one in (mine, pixels)]
        both = None not in times
        count["sooner"] = both and times[0]["seconds"] < times[1]["seconds"]
        if "reached_with_encoder" in mine["against_pixels"]:
            with_encoder = mine["against_pixels"]["reached_with_encoder"]
            count["sooner_with_encoder"] = both and with_encoder < times[1]["seconds"]
    return count


def _baselines(arms: dict[str, Any]) -> list[str]:
    """Names of the arms that are not on trained latents, pixels first and those of `_OTHERS` before the others."""
    return list(dict.fromkeys([*_OTHERS, *(arm for arm, one in arms.items() if one["observation"] != "latent")]))


def _sentences(tasks: dict[str, Any], arm: str, counts: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """The verdict on one arm: by the other that it is compared with, a sentence for each place where it can lie."""
    texts: dict[str, list[str]] = {}
    for other in dict.fromkeys([*_OTHERS, *(name for count in counts.values() for name in count)]):
        called = _OTHERS.get(other, other)
        parts: list[str] = []
        for place, words in _WHERE.items():
            names = [name for name, count in counts.items() if count.get(other) == place]
            scores = [[number(tasks[name]["arms"][a]["iqm"]["value"]) for a in (arm, other)] for name in names]
            shown = [f"{name} ({mine} and {its})" for name, (mine, its) in zip(names, scores, strict=True)]
            parts += [words.format(arm=arm, other=called, where=", ".join(shown)) + "."] if shown else []
        sooner = [count["sooner"] for count in counts.values() if "sooner" in count]
        if other == BASELINE and sooner:
            share = f"{sum(sooner)} of {counted(len(sooner), 'task')}"
            whole = [count["sooner_with_encoder"] for count in counts.values() if "sooner_with_encoder" in count]
            more = f" ({sum(whole)} of {len(whole)} with the time to record and to train the encoder)" if whole else ""
            parts.append(f"{arm} is as good as {called} in less time on {share}{more}.")
        if parts:
            texts[other] = parts
    return texts


def _warnings(name: str, task: dict[str, Any]) -> list[str]:
    """What makes the comparison itself doubtful."""
    texts: list[str] = []
    skips = {arm: one["settings"].get("frame_skip") for arm, one in task["arms"].items()}
    if len(set(skips.values())) > 1:
        texts.append(f"On {name} the arms skip different numbers of frames ({skips}): their steps are not the same.")
    values = [one["iqm"]["value"] for one in task["arms"].values()]
    chance = task["random"]
    if len(values) > 1 and chance is not None and min(values) > chance["high"]:
        best = max(values)
        if best - min(values) <= _SAME * (best - chance["mean"]):
            texts.append(f"On {name} all arms end with almost the same return: this task cannot tell them apart.")
    return texts


def few_seeds(seeds: int) -> str:
    """How much so many seeds can show, in words.

    All `n` draws of a resample of `n` values are the smallest one with probability n^-n. Up to three seeds that is more
    than 2.5%, so the 95% interval is the range of the seeds. The range of `n` values contains the median of the
    distribution with probability 1 - 2^(1 - n).
    """
    if seeds <= 1:
        return "One seed does not show how much another would differ: there are no intervals here, and no verdict."
    if seeds <= 3:
        return (
            f"{seeds} seeds show little. With so few, a 95% bootstrap interval is just the range from the worst seed "
            f"to the best, which contains the true median {100 * (1 - 2 ** (1 - seeds)):.0f} times in 100, not 95. "
            f"However far apart two arms are, {seeds} seeds against {seeds} cannot show it at the usual 5% (the "
            f"smallest two-sided p-value of a rank test is {2 / math.comb(2 * seeds, seeds):.2g}). Small gaps between "
            "intervals may be luck; use 5 to 10 seeds to be sure."
        )
    if seeds < 10:
        return f"{seeds} seeds are few: their bootstrap intervals are somewhat too narrow. Small gaps may be luck."
    return f"{seeds} seeds: enough for the bootstrap intervals to be about right."
