"""The verdict in plain words: what is told is counted from the numbers, losses as plainly as wins."""

from collections.abc import Sequence
from typing import Any

from agents.compare.intervals import Estimate, number
from agents.compare.study import BASELINE

RANDOM_ENCODER = "random-latent"
ONE_SEED = "one seed"
_OTHER_SIDE = {"latent": ("random-latent", "pca-latent")}


def verdict(summary: dict[str, Any]) -> dict[str, Any]:
    """What a study says about each arm that is not the pixel agent.

    "Above" and "below" are said where the 95% intervals of the two interquartile means do not touch, "level" otherwise.
    "Sooner" is said where an arm's curve reaches the pixel agent's final return in less training time than the pixel agent's.
    Of a single seed none of this is said.

    Args:
        summary: "tasks" and "over_tasks" of `agents.compare.summarise`.

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
    headline = sentences[first][0] if first in sentences else "Only the pixel agent has finished runs: nothing to compare with."
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
