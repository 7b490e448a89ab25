"""The page of a comparison: one HTML file with the verdict, curves, tables and settings, and the raw numbers beside it."""

import html
from pathlib import Path
from typing import Any

from agents.compare import Results, summarise
from agents.compare.engine import duration
from agents.compare.intervals import number
from latent_obs.atomic import write_json, written_aside
from latent_obs_cli import compare_tables as tables
from latent_obs_cli.compare_plots import draw
from vae_training.html_page import document, embedded

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
    summary = summarise(results)
    write_json(out / "compare.json", {"summary": summary, "results": results.to_json()})
    pictures = draw(summary, out / "plots")
    target = out / "compare.html"
    with written_aside(target) as aside:
        aside.write_text(page(results, summary, pictures), encoding="utf-8")
    return target, summary


def page(results: Results, summary: dict[str, Any], pictures: dict[str, Path]) -> str:
    """The page as HTML.

    Args:
        results: The raw numbers.
        summary: From `agents.compare.summarise`.
        pictures: From `latent_obs_cli.compare_plots.draw`.
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
    return [f'<h2>Over all tasks</h2><p class="small">{html.escape(text)}</p>{left_out}{picture}{tables.over_tasks(over)}']


def _missing(missing: dict[str, str]) -> str:
    failed = {name: why for name, why in missing.items() if why.startswith("failed")}
    text = f"{len(missing)} run(s) have no numbers, and are left out: {len(failed)} failed, the others are not finished."
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
