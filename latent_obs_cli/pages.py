"""Pictures of runs, and the page of a comparison of agents."""

import csv
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from agents import Evaluation, read_evaluations
from agents.compare import Results, summarize
from agents.compare.runs import duration
from agents.compare.statistics import in_words, number
from agents.compare.study import BASELINE, folder_name
from latent_obs.util.atomic import write_json
from latent_obs.util.errors import require
from vae_training import read_log
from vae_training.report.page import BLUE, GREEN, GREY, ORANGE, figure, save_figure, write_html

_TEMPLATE = Path(__file__).parent / "templates" / "compare.html.j2"
_ARMS = {"pixels": ORANGE, "latent": BLUE, "random-latent": GREY, "pca-latent": GREEN}
_MORE = ("#9333ea", "#0891b2", "#be123c", "#a16207", "#4338ca", "#0f766e")
#: What is drawn of all tasks together: the title, and a line at the value of pixels or of no difference.
_MEASURES = {
    "iqm": ("interquartile mean", 1.0),
    "mean": ("mean", 1.0),
    "optimality_gap": ("optimality gap (less is better)", None),
    "probability_of_improvement": (f"P(better than {BASELINE})", 0.5),
}
Cells = tuple[list[str], list[list[str]]]


def plot_vae(run: Path, target: Path) -> Path:
    """Squared error, KL and beta over the steps of a `train-vae` run, as a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    made, (left, right) = figure(10.4, 3.4, columns=2, extra="plots")
    rows = read_log(run)
    trained, held = ([r for r in rows if name in r] for name in ("loss/total", "held_out/reconstruction"))
    steps, held_steps = ([r["step"] for r in some] for some in (trained, held))
    left.plot(steps, [r["loss/reconstruction"] for r in trained], color=BLUE, lw=1, label="training")
    errors = [r["held_out/reconstruction"] for r in held]
    left.plot(held_steps, errors, "o-", color=ORANGE, ms=4, label="held-out recordings")
    left.set(yscale="log", xlabel="gradient step", ylabel="squared error per image", title="Reconstruction")
    left.legend(frameon=False)
    right.plot(steps, [r["loss/kl_nats"] for r in trained], color=GREEN, lw=1)
    right.set(yscale="log", xlabel="gradient step", title="KL and the schedule of beta")
    right.set_ylabel("KL [nats]", color=GREEN)
    beta = right.twinx()
    beta.plot(steps, [r["schedule/beta"] for r in trained], color=GREY, lw=1.5)
    beta.set_ylabel("beta", color=GREY)
    beta.set_ylim(bottom=0)
    return save_figure(made, target)


def plot_agent(run: Path, target: Path, chance: Evaluation, final: Evaluation) -> Path:
    """An agent's returns over the steps, beside a random policy's and those of its final evaluation, as a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    made, axes = figure(9.0, 3.4, extra="plots")
    axes.plot(*training_returns(run), color=BLUE, lw=1, alpha=0.6, label="training episodes (running mean)")
    rows = read_evaluations(run)
    columns = ([row[name] for row in rows] for name in ("step", "mean_return", "standard_error"))
    axes.errorbar(*columns, fmt="o-", color=ORANGE, ms=4, capsize=3, label="evaluation ± standard error")
    low, high = chance.mean - chance.standard_error, chance.mean + chance.standard_error
    axes.axhspan(low, high, color=GREY, alpha=0.3, lw=0)
    axes.axhline(chance.mean, color=GREY, lw=1.5, label=f"random policy: {chance.mean:.0f}")
    axes.axhline(final.mean, color=GREEN, lw=1.5, ls="--", label=f"best agent, new episodes: {final.mean:.0f}")
    axes.set(xlabel="environment steps", ylabel="return of an episode", title="PPO on latents")
    axes.legend(frameon=False)
    return save_figure(made, target)


def training_returns(run: Path) -> tuple[list[float], list[float]]:
    """Steps, and running means of the returns of training episodes, from Stable-Baselines3's logs of a run."""
    files = sorted(run.glob("logs/*/progress.csv"))
    rows = [row for file in files for row in csv.DictReader(file.read_text().splitlines())]
    names = ("time/total_timesteps", "rollout/ep_rew_mean")
    rows = [row for row in rows if all(row.get(name) for name in names)]  # cells may be empty
    steps, means = ([float(row[name]) for row in rows] for name in names)
    return steps, means


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
    return write_html(out / "compare.html", _TEMPLATE, values), summary


def _returns(task: dict[str, Any]) -> Cells:
    """Returns of a task's arms, with what they are beside the pixel agent."""
    rows: list[dict[str, str]] = []
    for arm, numbers in task["arms"].items():
        against = numbers.get("against_pixels", {}) if arm != BASELINE else {}
        interval, success = numbers["t_interval"], numbers["success_share"]
        rows.append(
            {
                "arm": arm,
                "by seed": ", ".join(map(number, numbers["scores"])),
                "mean [95%]": in_words(numbers["mean"]),
                "t interval": "–" if interval is None else " to ".join(map(number, interval)),
                "IQM [95%]": in_words(numbers["iqm"]),
                "IQM − pixels": in_words(against.get("difference")),
                "P(better than pixels)": in_words(against.get("probability_of_improvement")),
                "solved": "" if success is None else f"{success:.0%}",
            }
        )
    return _table(rows)


def _costs(task: dict[str, Any]) -> Cells:
    """Times of a task's arms, how soon each is as good as the pixel agent, and memory."""
    rows: list[dict[str, str]] = []
    for arm, numbers in task["arms"].items():
        row = {
            "arm": arm,
            "steps/s (× pixels)": f"{numbers['steps_per_second']:,.0f}",
            "training": duration(numbers["training_seconds"]),
            "processor": duration(numbers["cpu_seconds"]),
            "memory": f"{numbers['peak_memory_mb']:,.0f} MB",
        }
        if (against := numbers.get("against_pixels")) is not None:
            reached = [r for r in against["reached_by_seed"] if r is not None]
            each = "; ".join(f"{r['step'] / 1000:,.0f}k, {duration(r['seconds'])}" for r in reached)
            mean = against["reached"]
            mean = "never" if mean is None else f"{mean['step']:,.0f} steps, {duration(mean['seconds'])}"
            row["steps/s (× pixels)"] += f" ({against['speed']:.2f}×)"
            row["return when pixels end"] = in_words(against["at_that_time"]) or "not begun"
            row["mean curve reaches pixels' final return"] = mean
            count = f"{len(reached)} of {len(against['reached_by_seed'])}"
            row["seeds that do: steps, time"] = f"{count}: {each}" if each else count
        rows.append(row)
    return _table(rows)


def _over_tasks(over: dict[str, Any]) -> Cells:
    """Scores of all tasks on one scale."""
    return _table(
        [
            {
                "arm": arm,
                "seeds": str(numbers["seeds"]),
                "IQM [95%]": in_words(numbers["iqm"]),
                "mean [95%]": in_words(numbers["mean"]),
                "optimality gap [95%]": in_words(numbers["optimality_gap"]),
                "P(better than pixels)": in_words(
                    numbers.get("probability_of_improvement") if arm != BASELINE else None
                ),
            }
            for arm, numbers in over["arms"].items()
        ]
    )


def _settings(task: dict[str, Any]) -> tuple[list[str], list[list[str]], str]:
    """Settings in which the arms of a task differ, and those that all share."""

    def shown(value: Any) -> str:
        if isinstance(value, str) and len(value) == 64:
            return f"{value[:8]}…"  # a checksum
        return "–" if value is None else json.dumps(value).strip('"')

    arms: dict[str, dict[str, Any]] = {arm: numbers["settings"] for arm, numbers in task["arms"].items()}
    names = sorted({name for values in arms.values() for name in values})
    rows = [[name, *(shown(values.get(name)) for values in arms.values())] for name in names]
    shared = ", ".join(f"{row[0]} {row[1]}" for row in rows if len(set(row[1:])) == 1)
    return ["setting", *arms], [row for row in rows if len(set(row[1:])) > 1], shared


def _table(rows: list[dict[str, str]]) -> Cells:
    """Heads and cells of a table, without columns that are empty."""
    heads = [head for head in (rows[0] if rows else ()) if any(row[head] for row in rows)]
    return heads, [[row[head] for head in heads] for row in rows]


def draw(summary: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Draw all pictures of a comparison, as PNG files in `folder`.

    Returns:
        The picture of each task by its name, and that of all scores together as "". Where there are several tasks,
        overview.png has the curves of all of them.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", extra="compare", purpose="draw learning curves")
    tasks: dict[str, Any] = summary["tasks"]
    own = dict.fromkeys(arm for task in tasks.values() for arm in task["arms"] if arm not in _ARMS)
    colors = _ARMS | dict(zip(own, itertools.cycle(_MORE), strict=False))
    shown = {name: task for name, task in tasks.items() if any(arm["over_steps"] for arm in task["arms"].values())}
    drawn: dict[str, Path] = {}
    for name, task in shown.items():
        drawn[name] = save_figure(_curves({name: task}, colors), folder / f"{folder_name(name)}.png")
    if len(shown) > 1:
        save_figure(_curves(shown, colors), folder / "overview.png")
    if summary["over_tasks"]["arms"]:
        drawn[""] = save_figure(_intervals(summary["over_tasks"], colors), folder / "over-tasks.png")
    return drawn


def _curves(tasks: dict[str, Any], colors: dict[str, str]) -> Any:
    """Learning curves at equal steps and, beside them, at equal time; a row for each task."""
    made, panels = figure(11, 4.4 * len(tasks), rows=len(tasks), columns=2, sharey="row", squeeze=False)
    for (by_steps, by_time), (name, task) in zip(panels, tasks.items(), strict=True):
        for axes, over in ((by_steps, "over_steps"), (by_time, "over_time")):
            for arm, numbers in task["arms"].items():
                if (curve := numbers[over]) is not None:
                    at = np.array(curve["at"]) / (60 if axes is by_time else 1)
                    marker = None if axes is by_time else "o"
                    axes.plot(at, curve["iqm"], color=colors[arm], lw=1.8, marker=marker, ms=3, label=arm)
                    axes.fill_between(at, curve["low"], curve["high"], color=colors[arm], alpha=0.14, lw=0)
            if task["random"] is not None:
                axes.axhline(task["random"]["mean"], color="black", lw=1, ls=":", label="random policy")
            if task["reference"] is not None:
                axes.axhline(task["reference"], color="black", lw=1, ls="--", label="reference")
        by_steps.set(title=f"{name}, at equal steps", xlabel="environment steps", ylabel="return of an episode")
        by_steps.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}")
        by_time.set(title=f"{name}, at equal time", xlabel="minutes of training")
        if BASELINE in task["arms"]:
            end, color = task["arms"][BASELINE]["training_seconds"] / 60, colors[BASELINE]
            by_time.axvline(end, color=color, lw=1, ls=(0, (4, 4)))
            where: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "va": "bottom", "ha": "right"}
            by_time.annotate(f" {BASELINE} end", (end, 0.01), fontsize=8, color=color, rotation=90, **where)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False, fontsize=9)
    return made


def _intervals(over: dict[str, Any], colors: dict[str, str]) -> Any:
    """Scores of all tasks on one scale: an interval for each arm and measure."""
    arms: dict[str, Any] = over["arms"]
    made, panels = figure(11, 1.3 + 0.42 * len(arms), columns=len(_MEASURES), sharey=True)
    for axes, (measure, (title, line)) in zip(panels, _MEASURES.items(), strict=True):
        for place, (arm, numbers) in enumerate(arms.items()):
            if measure in numbers and (measure != "probability_of_improvement" or arm != BASELINE):
                value, low, high = (numbers[measure][name] for name in ("value", "low", "high"))
                axes.barh(place, high - low, left=low, height=0.55, color=colors[arm], alpha=0.45)
                axes.plot([value] * 2, [place - 0.275, place + 0.275], color="black", lw=1.6)
        axes.use_sticky_edges = False  # a margin beside the bars
        axes.margins(x=0.08)
        if line is not None:
            axes.axvline(line, color="black", lw=0.8, ls=":")
        axes.set_title(title, fontsize=10)
        axes.locator_params(axis="x", nbins=4)
    panels[-1].set_xlim(-0.03, 1.03)
    panels[0].set_yticks(range(len(arms)), list(arms))
    panels[0].invert_yaxis()
    return made
