"""The one-page summary of a quickstart: a single HTML file that carries its pictures and its video."""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.compare import Results, summarize
from agents.compare.runs import duration
from agents.compare.statistics import Estimate, number
from agents.compare.study import BASELINE
from latent_obs.util.atomic import atomic_write, write_json
from latent_obs_cli import pages as tables
from latent_obs_cli.plots import draw
from vae_training.report.page import document, embedded


@dataclass(frozen=True)
class Section:
    """A heading, a few sentences, and a picture or video.

    Attributes:
        title: The heading.
        text: What one sees and how to read it.
        media: A .png or .mp4 file, embedded in the page.
    """

    title: str
    text: str
    media: Path | None = None


def write_page(
    target: Path, *, title: str, lead: str, results: dict[str, str], sections: list[Section], commands: list[str]
) -> Path:
    """Write the page.

    Args:
        target: The HTML file; it appears whole or not at all.
        title: Its heading.
        lead: What it shows, in a sentence.
        results: Name and value of each result, for the table at the top.
        sections: What to look at.
        commands: Commands to go on with.
    """
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in results.items())
    body = "".join(
        f"<h2>{html.escape(s.title)}</h2><p>{html.escape(s.text)}</p>{embedded(s.media, s.title) if s.media else ''}"
        for s in sections
    )
    page = document(
        title,
        f'<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p><table class="numbers">{rows}</table>'
        f"{body}<h2>Go on</h2><pre>{html.escape(chr(10).join(commands))}</pre>",
    )
    with atomic_write(target) as aside:
        aside.write_text(page, encoding="utf-8")
    return target


_SHOWN = 6  # of the runs that are not finished
_STYLE = """
body { max-width: 76rem; } img { image-rendering: auto; display: block; } .small { font-size: .85rem; color: #4b5563; }
.wide { overflow-x: auto; } .grid { font-size: .87rem; font-variant-numeric: tabular-nums; }
.grid th { color: #4b5563; font-weight: 600; vertical-align: bottom; border-bottom: 1px solid #d1d5db; }
.grid td { border-bottom: 1px solid #f3f4f6; padding: .25rem 1.1rem .25rem 0; vertical-align: top; white-space: nowrap; }
.grid .free { white-space: normal; min-width: 9rem; display: inline-block; }
.above { color: #15803d; font-weight: 600; } .below { color: #b91c1c; font-weight: 600; } .level { color: #374151; }
.verdict { font-size: 1.2rem; margin: 1rem 0 .4rem; }
.note { border-left: 4px solid #d1d5db; padding: .1rem .9rem; margin: .8rem 0; }
.warn { border-color: #f59e0b; background: #fffbeb; } h3 { margin: 1.2rem 0 .2rem; font-size: 1rem; }
li { margin: .15rem 0; }
"""
_READ = (
    "A score is the mean return of a run's last agent over new episodes, in the game's own rewards; a curve is made of the "
    "evaluations during training. IQM is the interquartile mean, the mean of the middle half of the runs (with fewer than four "
    "runs it is the mean). Brackets and bands are 95% intervals over seeds, by the stratified bootstrap of rliable (Agarwal et "
    "al. 2021); the t interval assumes that seeds scatter normally, and is the more careful one for few of them. An arm is "
    "above or below another where the intervals of their IQM do not touch, and level with it otherwise. P(better than pixels) "
    "is how often a run of the arm scores more than a run of the pixel agent; 0.5 is no difference. Time is wall-clock time of "
    "training, with nothing counted that evaluations take; processor time is that of the run's process and its environments "
    "together, evaluations included. The pixel agent's final return, where times and steps to it are told, is where its curve "
    "ends; an arm is as good sooner where its own curve gets there earlier, in training time, than the pixel agent's does for "
    "the first time."
)


def write_comparison(results: Results, out: Path) -> tuple[Path, dict[str, Any]]:
    """Write compare.json, plots/ and compare.html of the runs that are finished.

    Args:
        results: From `agents.compare.compare` or `collect`.
        out: The folder of the comparison.

    Returns:
        The page, and the summary.

    Raises:
        MissingExtraError: rliable or matplotlib is not installed.
    """
    summary = summarize(results)
    write_json(out / "compare.json", {"summary": summary, "results": results.to_json()})
    pictures = draw(summary, out / "plots")
    target = out / "compare.html"
    with atomic_write(target) as aside:
        aside.write_text(page(results, summary, pictures), encoding="utf-8")
    return target, summary


def page(results: Results, summary: dict[str, Any], pictures: dict[str, Path]) -> str:
    """The page as HTML.

    Args:
        results: The raw numbers.
        summary: From `agents.compare.summarize`.
        pictures: From `latent_obs_cli.plots.draw`.
    """
    study, verdict = results.study, summary["verdict"]
    runs = sum(len(arm) for task in results.runs.values() for arm in task.values())
    lead = f"{len(study.tasks)} task(s), {len(study.arms)} arms, seeds {', '.join(map(str, study.seeds))}: {runs} runs."
    parts = [f'<h1>Latents or pixels?</h1><p class="lead">{html.escape(lead)}</p>']
    parts.append(f'<p class="verdict"><b>{html.escape(verdict["headline"])}</b></p>')
    parts.append(_list([text for text in verdict["sentences"] if text != verdict["headline"]]))
    parts += [_note(text, "warn") for text in verdict["warnings"]]
    parts.append(_note(summary["seeds"], ""))
    if summary["missing"]:
        parts.append(_missing(summary["missing"]))
    if runs:
        parts += [tables.overview(summary), *_over_tasks(summary["over_tasks"], pictures)]
    for name, task in summary["tasks"].items():
        if task["arms"]:
            parts += _task(name, task, pictures)
    parts.append(f'<h2>How to read this</h2><p class="small">{html.escape(_READ)}</p>')
    memory = sorted({arm["memory_how"] for task in summary["tasks"].values() for arm in task["arms"].values()})
    parts += [f'<p class="small">Memory: {html.escape(how)}.</p>' for how in memory]
    parts += [f'<p class="small">{html.escape(line)}</p>' for line in tables.machines(results)]
    return document("Latents or pixels?", "".join(parts), _STYLE)


def _task(name: str, task: dict[str, Any], pictures: dict[str, Path]) -> list[str]:
    title = name if name == task["env"] else f"{name}: {task['env']}"
    chance = "" if task["random"] is None else f" The random policy gets {number(task['random']['mean'])}."
    made = task["encoder_seconds"]
    encoder = (
        "What recording frames and training the encoder took was not noted, and is in no time below."
        if made is None
        else f"To record frames and make the encoder took {duration(made)}, once for all seeds; it is in no time below."
    )
    parts = [f"<h2>{html.escape(title)}</h2><p>{task['steps']:,} environment steps.{chance} {encoder}</p>"]
    if name in pictures:
        parts.append(embedded(pictures[name], f"learning curves of {name}"))
    parts.append(f"<h3>Returns of the last agents</h3>{tables.returns(task)}")
    parts.append(f"<h3>What it costs</h3>{tables.costs(task)}")
    parts.append(f"<details><summary>Settings</summary>{tables.settings(task)}</details>")
    return parts


def _over_tasks(over: dict[str, Any], pictures: dict[str, Path]) -> list[str]:
    left_out = _list([f"{name} is left out: {why}." for name, why in over["left_out"].items()])
    if not over["arms"]:
        return [f"<h2>Over all tasks</h2>{left_out}"]
    scale = "; ".join(f"{name}: {number(zero)} is 0, {number(one)} is 1" for name, (zero, one) in over["scale"].items())
    text = (
        f"Scores put on one scale, where the random policy is 0 and the pixel agent (or a reference) is 1: {scale}. These two "
        "ends are taken as if they were known exactly."
    )
    picture = embedded(pictures[""], "intervals over all tasks") if "" in pictures else ""
    return [
        f'<h2>Over all tasks</h2><p class="small">{html.escape(text)}</p>{left_out}{picture}{tables.over_tasks(over)}'
    ]


def _missing(missing: dict[str, str]) -> str:
    failed = {name: why for name, why in missing.items() if why.startswith("failed")}
    text = (
        f"{len(missing)} run(s) have no numbers, and are left out: {len(failed)} failed, the others are not finished."
    )
    rest = [name for name in missing if name not in failed]
    items = [f"{name}: {why}" for name, why in failed.items()] + ([_unfinished(rest)] if rest else [])
    return f'<div class="note warn"><p>{html.escape(text)}</p>{_list(items)}</div>'


def _unfinished(names: list[str]) -> str:
    more = f"; and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"not finished: {'; '.join(names[:_SHOWN])}{more}"


def _list(texts: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in texts)}</ul>" if texts else ""


def _note(text: str, kind: str) -> str:
    return f'<div class="note {kind}"><p>{html.escape(text)}</p></div>'


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
            rows.append(
                [
                    html.escape(name) if i == 0 else "",
                    html.escape(arm),
                    str(Estimate(**numbers["iqm"])),
                    f'<span class="{where}">{where}</span>',
                    f'<span class="{"above" if sooner == "yes" else "below"}">{sooner}</span>' if sooner else "",
                    f"{numbers['steps_per_second']:,.0f}" + _times(numbers),
                ]
            )
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
        rows.append(
            [
                html.escape(arm),
                _free(", ".join(number(score) for score in numbers["scores"])),
                str(Estimate(**numbers["mean"])),
                "–" if t_interval is None else f"{number(t_interval[0])} to {number(t_interval[1])}",
                str(Estimate(**numbers["iqm"])),
                "" if against is None else str(Estimate(**against["difference"])),
                "" if against is None else str(Estimate(**against["probability_of_improvement"])),
                "" if success is None else f"{success:.0%}",
            ]
        )
    header = [
        "arm",
        "by seed",
        "mean [95%]",
        "t interval",
        "IQM [95%]",
        "IQM − pixels",
        "P(better than pixels)",
        "solved",
    ]
    if all(row[-1] == "" for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return table(header, rows)


def costs(task: dict[str, Any]) -> str:
    """Times of a task's arms, how soon each is as good as the pixel agent, and memory."""
    rows: list[list[str]] = []
    for arm, numbers in task["arms"].items():
        against = numbers.get("against_pixels")
        rows.append(
            [
                html.escape(arm),
                f"{numbers['steps_per_second']:,.0f}{_times(numbers)}",
                duration(numbers["training_seconds"]),
                duration(numbers["cpu_seconds"]),
                f"{numbers['peak_memory_mb']:,.0f} MB",
                "" if against is None else _at_that_time(against),
                "" if against is None else _reached(against),
                "" if against is None else _free(_by_seed(against["reached_by_seed"])),
            ]
        )
    header = [
        "arm",
        "steps/s (× pixels)",
        "training",
        "processor",
        "memory",
        "return when pixels end",
        "mean curve reaches pixels' final return",
        "seeds that do: steps, time",
    ]
    if BASELINE not in task["arms"]:
        header, rows = header[:5], [row[:5] for row in rows]
    return table(header, rows)


def over_tasks(over: dict[str, Any]) -> str:
    """Scores of all tasks on one scale."""
    rows: list[list[str]] = []
    for arm, numbers in over["arms"].items():
        better = numbers.get("probability_of_improvement") if arm != BASELINE else None
        rows.append(
            [
                html.escape(arm),
                str(numbers["seeds"]),
                *(str(Estimate(**numbers[k])) for k in ("iqm", "mean", "optimality_gap")),
                "" if better is None else str(Estimate(**better)),
            ]
        )
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
