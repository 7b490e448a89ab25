"""The page of a comparison of agents."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from agents.compare import Results, summarize
from agents.compare.runs import duration
from agents.compare.statistics import in_words, number
from agents.compare.study import BASELINE
from latent_obs.util.atomic import write_json
from latent_obs_cli.plots import draw
from vae_training.report.page import write_html

_TEMPLATES = Path(__file__).parent / "templates"
Cells = tuple[list[str], list[list[str]]]


def write_comparison(results: Results, out: Path) -> tuple[Path, dict[str, Any]]:
    """Write compare.json, plots/ and compare.html of the runs that are finished; the page, and the summary.

    Raises:
        MissingExtraError: A package of the extra "compare" is not installed.
    """
    summary = summarize(results)
    write_json(out / "compare.json", {"summary": summary, "results": results.to_json()})
    runs = [run for task in results.runs.values() for arm in task.values() for run in arm]
    machines = Counter(
        f"{run['machine']}; {run['jobs']} run(s) at once, {run['threads']} thread(s) of torch each; "
        + ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        for run in runs
    )
    values = {
        "study": results.study,
        "runs": len(runs),
        "summary": summary,
        "missing": [f"{name}: {why}" for name, why in summary["missing"].items()],
        "pictures": draw(summary, out / "plots"),
        "estimate": in_words,
        "number": number,
        "duration": duration,
        "over_table": _over_tasks(summary["over_tasks"]),
        "returns": _returns,
        "costs": _costs,
        "settings": _settings,
        "memory": sorted({run["memory_how"] for run in runs}),
        "machines": [f"{count} run(s): {line}" for line, count in machines.items()],
    }
    return write_html(out / "compare.html", _TEMPLATES / "compare.html.j2", values), summary


def _returns(task: dict[str, Any]) -> Cells:
    """Returns of a task's arms, with what they are beside the pixel agent."""
    heads = [
        "arm",
        "by seed",
        "mean [95%]",
        "t interval",
        "IQM [95%]",
        "IQM − pixels",
        "P(better than pixels)",
        "solved",
    ]
    rows: list[list[str]] = []
    for arm, numbers in task["arms"].items():
        against = numbers.get("against_pixels") if arm != BASELINE else None
        t_interval, success = numbers["t_interval"], numbers["success_share"]
        rows.append(
            [
                arm,
                ", ".join(number(score) for score in numbers["scores"]),
                in_words(numbers["mean"]),
                "–" if t_interval is None else f"{number(t_interval[0])} to {number(t_interval[1])}",
                in_words(numbers["iqm"]),
                in_words(against and against["difference"]),
                in_words(against and against["probability_of_improvement"]),
                "" if success is None else f"{success:.0%}",
            ]
        )
    used = 8 if any(row[7] for row in rows) else 7
    return heads[:used], [row[:used] for row in rows]


def _costs(task: dict[str, Any]) -> Cells:
    """Times of a task's arms, how soon each is as good as the pixel agent, and memory."""
    heads = ["arm", "steps/s (× pixels)", "training", "processor", "memory"]
    heads += ["return when pixels end", "mean curve reaches pixels' final return", "seeds that do: steps, time"]
    rows: list[list[str]] = []
    for arm, numbers in task["arms"].items():
        against = numbers.get("against_pixels")
        row = [
            arm,
            f"{numbers['steps_per_second']:,.0f}" + ("" if against is None else f" ({against['speed']:.2f}×)"),
            duration(numbers["training_seconds"]),
            duration(numbers["cpu_seconds"]),
            f"{numbers['peak_memory_mb']:,.0f} MB",
        ]
        if against is not None:
            then, reached = against["at_that_time"], against["reached"]
            there = [r for r in against["reached_by_seed"] if r is not None]
            each = "; ".join(f"{r['step'] / 1000:,.0f}k, {duration(r['seconds'])}" for r in there)
            row += [
                "not begun" if then is None else in_words(then),
                "never" if reached is None else f"{reached['step']:,.0f} steps, {duration(reached['seconds'])}",
                f"{len(there)} of {len(against['reached_by_seed'])}" + (f": {each}" if there else ""),
            ]
        rows.append(row)
    return heads[: max(map(len, rows))], rows


def _over_tasks(over: dict[str, Any]) -> Cells:
    """Scores of all tasks on one scale."""
    rows: list[list[str]] = []
    for arm, numbers in over["arms"].items():
        better = numbers.get("probability_of_improvement") if arm != BASELINE else None
        shown = [numbers[name] for name in ("iqm", "mean", "optimality_gap")]
        rows.append([arm, str(numbers["seeds"]), *map(in_words, (*shown, better))])
    return ["arm", "seeds", "IQM [95%]", "mean [95%]", "optimality gap [95%]", "P(better than pixels)"], rows


def _settings(task: dict[str, Any]) -> tuple[list[str], list[list[str]], str]:
    """Settings in which the arms of a task differ, and those that all share."""
    arms: dict[str, dict[str, Any]] = {arm: numbers["settings"] for arm, numbers in task["arms"].items()}
    names = sorted({name for values in arms.values() for name in values})
    rows = [[name, *(_value(values.get(name)) for values in arms.values())] for name in names]
    shared = ", ".join(f"{row[0]} {row[1]}" for row in rows if len(set(row[1:])) == 1)
    return ["setting", *arms], [row for row in rows if len(set(row[1:])) > 1], shared


def _value(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:8]}…"  # a checksum
    return "–" if value is None else json.dumps(value).strip('"')
