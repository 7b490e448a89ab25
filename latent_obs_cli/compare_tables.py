"""The tables of a comparison's page, as HTML."""

import html
import json
from collections.abc import Sequence
from typing import Any

from agents.compare import Results
from agents.compare.engine import duration
from agents.compare.intervals import Estimate, number
from agents.compare.study import BASELINE


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are HTML already.

    Example:
        >>> table(["arm"], [["pixels"]])
        '<div class="wide"><table class="grid"><tr><th>arm</th></tr><tr><td>pixels</td></tr></table></div>'
    """
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="grid"><tr>{head}</tr>{body}</table></div>'


def overview(summary: dict[str, Any]) -> str:
    """One row per task and arm: where it lies beside the pixel agent, and how soon it is as good."""
    rows: list[list[str]] = []
    for name, task in summary["tasks"].items():
        for i, (arm, numbers) in enumerate(task["arms"].items()):
            count = summary["verdict"]["counts"].get(arm, {}).get(name, {})
            where = count.get(BASELINE, "")
            sooner = "" if "sooner" not in count else "yes" if count["sooner"] else "no"
            rows.append([
                html.escape(name) if i == 0 else "", html.escape(arm), str(Estimate(**numbers["iqm"])),
                f'<span class="{where}">{where}</span>',
                f'<span class="{"above" if sooner == "yes" else "below"}">{sooner}</span>' if sooner else "",
                f"{numbers['steps_per_second']:,.0f}" + _times(numbers),
            ])  # fmt: skip
        if task["random"] is not None and task["arms"]:
            rows.append(["", "<i>random policy</i>", number(task["random"]["mean"]), "", "", ""])
    return table(["task", "arm", "return, IQM [95%]", "beside pixels", "as good sooner", "steps/s (× pixels)"], rows)


def returns(task: dict[str, Any]) -> str:
    """Returns of a task's arms, with what they are beside the pixel agent."""
    rows: list[list[str]] = []
    for arm, numbers in task["arms"].items():
        against = numbers.get("against_pixels") if arm != BASELINE else None
        t_interval = numbers["t_interval"]
        success = numbers["success_share"]
        rows.append([
            html.escape(arm), _free(", ".join(number(score) for score in numbers["scores"])), str(Estimate(**numbers["mean"])),
            "–" if t_interval is None else f"{number(t_interval[0])} to {number(t_interval[1])}",
            str(Estimate(**numbers["iqm"])),
            "" if against is None else str(Estimate(**against["difference"])),
            "" if against is None else str(Estimate(**against["probability_of_improvement"])),
            "" if success is None else f"{success:.0%}",
        ])  # fmt: skip
    header = ["arm", "by seed", "mean [95%]", "t interval", "IQM [95%]", "IQM − pixels", "P(better than pixels)", "solved"]
    if all(row[-1] == "" for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return table(header, rows)


def costs(task: dict[str, Any]) -> str:
    """Times of a task's arms, how soon each is as good as the pixel agent, and memory."""
    rows: list[list[str]] = []
    for arm, numbers in task["arms"].items():
        against = numbers.get("against_pixels")
        rows.append([
            html.escape(arm), f"{numbers['steps_per_second']:,.0f}{_times(numbers)}", duration(numbers["training_seconds"]),
            duration(numbers["cpu_seconds"]), f"{numbers['peak_memory_mb']:,.0f} MB",
            "" if against is None else _at_that_time(against),
            "" if against is None else _reached(against),
            "" if against is None else _free(_by_seed(against["reached_by_seed"])),
        ])  # fmt: skip
    header = ["arm", "steps/s (× pixels)", "training", "processor", "memory", "return when pixels end",
              "mean curve reaches pixels' final return", "seeds that do: steps, time"]  # fmt: skip
    if BASELINE not in task["arms"]:
        header, rows = header[:5], [row[:5] for row in rows]
    return table(header, rows)


def over_tasks(over: dict[str, Any]) -> str:
    """Scores of all tasks on one scale."""
    rows: list[list[str]] = []
    for arm, numbers in over["arms"].items():
        better = numbers.get("probability_of_improvement") if arm != BASELINE else None
        rows.append([
            html.escape(arm), str(numbers["seeds"]), *(str(Estimate(**numbers[k])) for k in ("iqm", "mean", "optimality_gap")),
            "" if better is None else str(Estimate(**better)),
        ])  # fmt: skip
    return table(["arm", "seeds", "IQM [95%]", "mean [95%]", "optimality gap [95%]", "P(better than pixels)"], rows)


def settings(task: dict[str, Any]) -> str:
    """Settings in which the arms of a task differ, and below them those that all share."""
    arms: dict[str, dict[str, Any]] = {arm: numbers["settings"] for arm, numbers in task["arms"].items()}
    names = sorted({name for values in arms.values() for name in values})
    differ = [name for name in names if len({json.dumps(values.get(name)) for values in arms.values()}) > 1]
    rows = [[html.escape(name), *(_value(values.get(name)) for values in arms.values())] for name in differ]
    shared = ", ".join(
        f"{html.escape(name)} {_value(next(iter(arms.values())).get(name))}" for name in names if name not in differ
    )
    return table(["setting", *map(html.escape, arms)], rows) + f'<p class="small">The same for all: {shared}.</p>'


def machines(results: Results) -> list[str]:
    """A line for each machine and set of versions that runs were made with."""
    lines: dict[str, int] = {}
    for task in results.runs.values():
        for runs in task.values():
            for run in runs:
                versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
                line = f"{run['machine']}; {run['jobs']} run(s) at once, {run['threads']} thread(s) of torch each; {versions}"
                lines[line] = lines.get(line, 0) + 1
    return [f"{count} run(s): {line}" for line, count in lines.items()]


def _free(text: str) -> str:
    """Text that may be broken into lines."""
    return f'<span class="free">{text}</span>'


def _times(numbers: dict[str, Any]) -> str:
    against = numbers.get("against_pixels")
    return "" if against is None else f" ({against['speed']:.2f}×)"


def _at_that_time(against: dict[str, Any]) -> str:
    then = against["at_that_time"]
    return "not begun" if then is None else str(Estimate(**then))


def _reached(against: dict[str, Any]) -> str:
    reached = against["reached"]
    return "never" if reached is None else f"{reached['step']:,.0f} steps, {duration(reached['seconds'])}"


def _by_seed(reached: Sequence[dict[str, float] | None]) -> str:
    there = [r for r in reached if r is not None]
    if not there:
        return f"0 of {len(reached)}"
    each = "; ".join(f"{r['step'] / 1000:,.0f}k, {duration(r['seconds'])}" for r in there)
    return f"{len(there)} of {len(reached)}: {each}"


def _value(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:8]}…"
    return "–" if value is None else html.escape(json.dumps(value).strip('"'))
