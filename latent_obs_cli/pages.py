"""Pictures of runs, and the page of a comparison of agents."""

import csv
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
from latent_obs.util.colors import COLORS, colors_of
from latent_obs.util.errors import require
from latent_obs.util.words import counted
from vae_training import read_log
from vae_training.report.look import NEUTRAL, figure, legend_above, paint_axes, save_figure, write_html

_TEMPLATE = Path(__file__).parent / "templates" / "compare.html.j2"
#: What is drawn of all tasks together: the title, and a line at the value of pixels or of no difference.
_MEASURES = {
    "iqm": ("interquartile mean", 1.0),
    "mean": ("mean", 1.0),
    "optimality_gap": ("optimality gap\n(less is better)", None),
    "probability_of_improvement": (f"P(better than {BASELINE})", 0.5),
}
_CHANCE = {"color": NEUTRAL, "lw": 1.4, "ls": ":"}  # the line of the random policy
Cells = tuple[list[str], list[list[str]]]


def plot_vae(run: Path, target: Path) -> Path:
    """Squared error, KL and beta over the steps of a `train-vae` run, as a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    made, (above, below) = figure(4.8, rows=2, sharex=True, extra="plots")
    for axes in (above, below):
        axes.set_yscale("log", subs=[2, 5])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    rows = read_log(run)
    trained, held = ([r for r in rows if name in r] for name in ("loss/total", "held_out/reconstruction"))
    steps, held_steps = ([r["step"] for r in some] for some in (trained, held))
    color, thin = COLORS["latent"], {"lw": 1, "alpha": 0.6}
    above.plot(steps, [r["loss/reconstruction"] for r in trained], color=color, label="training frames", **thin)
    errors = [r["held_out/reconstruction"] for r in held]
    above.plot(held_steps, errors, "o-", color=color, ms=4, label="held-out frames")
    above.set_ylabel("squared error per image")
    legend_above(made, above)
    below.plot(steps, [r["loss/kl_nats"] for r in trained], color=color, lw=1)
    below.set(xlabel="gradient step", ylabel="KL [nats]")
    beta = below.twinx()
    paint_axes(beta)
    beta.spines["right"].set_visible(True)
    beta.plot(steps, [r["schedule/beta"] for r in trained], color=NEUTRAL, lw=1.4, ls="--")
    beta.set_ylabel("beta (dashed)")
    beta.set_ylim(bottom=0)
    return save_figure(made, target)


def plot_agent(run: Path, target: Path, chance: Evaluation, final: Evaluation) -> Path:
    """An agent's returns over the steps, beside a random policy's and those of its final evaluation, as a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    made, axes = figure(3.6, extra="plots")
    color = COLORS["latent"]
    axes.plot(*training_returns(run), color=color, lw=1, alpha=0.6, label="training episodes")
    rows = read_evaluations(run)
    columns = ([row[name] for row in rows] for name in ("step", "mean_return", "standard_error"))
    axes.errorbar(*columns, fmt="o-", color=color, ms=4, capsize=3, label="evaluation ± standard error")
    low, high = chance.mean - chance.standard_error, chance.mean + chance.standard_error
    axes.axhspan(low, high, color=NEUTRAL, alpha=0.25, lw=0)
    axes.axhline(chance.mean, label=f"random policy: {chance.mean:.0f}", **_CHANCE)
    axes.axhline(final.mean, color=color, lw=1.4, ls="--", label=f"best agent, new episodes: {final.mean:.0f}")
    axes.set(xlabel="environment steps", ylabel="return of an episode")
    axes.xaxis.set_major_formatter(_thousands)
    legend_above(made, axes)
    return save_figure(made, target)


def _thousands(steps: float, _: Any) -> str:
    return f"{steps / 1000:g}k" if steps >= 1000 else f"{steps:g}"


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
        f"{run['machine']}; {counted(run['jobs'], 'run')} at once, {counted(run['threads'], 'thread')} of torch each; "
        + ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        for run in runs
    )
    values = {
        "study": results.study,
        "runs": len(runs),
        "summary": summary,
        "pictures": draw(summary, out / "plots"),
        "arm_colors": colors_of(arm for task in summary["tasks"].values() for arm in task["arms"]),
        "estimate": in_words,
        "number": number,
        "duration": duration,
        "over_table": _over_tasks(summary["over_tasks"]),
        "returns": _returns,
        "costs": _costs,
        "settings": _settings,
        "memory": sorted({run["memory_how"] for run in runs}),
        "machines": [f"{counted(count, 'run')}: {line}" for line, count in machines.items()],
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
            if (whole := against.get("reached_with_encoder")) is not None:
                mean += f"; {duration(whole)} with recording and encoder"
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
                "IQM of latents − its [95%]": in_words(numbers.get("latents_ahead")),
                "worst seed by task": ", ".join(map(number, numbers["worst"].values())),
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


def draw(summary: dict[str, Any], folder: Path) -> dict[str, dict[str, Path]]:
    """Draw all pictures of a comparison, as PNG files in `folder`.

    Returns:
        By task its learning curves "at equal steps" and "at equal time"; as "" the "scores" of all tasks together.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", extra="compare", purpose="draw learning curves")
    tasks: dict[str, Any] = summary["tasks"]
    colors = colors_of(arm for task in tasks.values() for arm in task["arms"])
    drawn: dict[str, dict[str, Path]] = {}
    for name, task in tasks.items():
        if any(arm["over_steps"] for arm in task["arms"].values()):
            drawn[name] = {
                f"at equal {over}": save_figure(
                    _curves(task, f"over_{over}", colors), folder / f"{folder_name(name)}-{over}.png"
                )
                for over in ("steps", "time")
            }
    if summary["over_tasks"]["arms"]:
        drawn[""] = {"scores": save_figure(_intervals(summary["over_tasks"], colors), folder / "over-tasks.png")}
    return drawn


def _curves(task: dict[str, Any], over: str, colors: dict[str, str]) -> Any:
    """Learning curves of a task "over_steps" or "over_time"."""
    by_time = over == "over_time"
    made, axes = figure(3.6)
    for arm, numbers in task["arms"].items():
        if (curve := numbers[over]) is not None:
            at = np.array(curve["at"]) / (60 if by_time else 1)
            axes.plot(at, curve["iqm"], color=colors[arm], lw=1.8, marker=None if by_time else "o", ms=3, label=arm)
            axes.fill_between(at, curve["low"], curve["high"], color=colors[arm], alpha=0.14, lw=0)
    if task["random"] is not None:
        axes.axhline(task["random"]["mean"], label="random policy", **_CHANCE)
    if task["reference"] is not None:
        axes.axhline(task["reference"], color=NEUTRAL, lw=1.4, ls="--", label="reference")
    axes.set(xlabel="minutes of training" if by_time else "environment steps", ylabel="return of an episode")
    if not by_time:
        axes.xaxis.set_major_formatter(_thousands)
    elif BASELINE in task["arms"]:
        end, color = task["arms"][BASELINE]["training_seconds"] / 60, colors[BASELINE]
        axes.axvline(end, color=color, lw=1, ls=(0, (4, 4)))
        where: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "va": "bottom", "ha": "right"}
        axes.annotate(f" {BASELINE} end", (end, 0.01), fontsize=9, color=color, rotation=90, **where)
    legend_above(made, axes, columns=3)
    return made


def _intervals(over: dict[str, Any], colors: dict[str, str]) -> Any:
    """Scores of all tasks on one scale: an interval for each arm and measure."""
    arms: dict[str, Any] = over["arms"]
    made, panels = figure(1.4 + 0.5 * len(arms), rows=2, columns=2, sharey=True)
    for axes, (measure, (title, line)) in zip(panels.flat, _MEASURES.items(), strict=True):
        for place, (arm, numbers) in enumerate(arms.items()):
            if measure in numbers and (measure != "probability_of_improvement" or arm != BASELINE):
                value, low, high = (numbers[measure][name] for name in ("value", "low", "high"))
                axes.barh(place, high - low, left=low, height=0.55, color=colors[arm], alpha=0.45)
                axes.plot([value] * 2, [place - 0.275, place + 0.275], color=colors[arm], lw=2)
        axes.use_sticky_edges = False  # a margin beside the bars
        axes.margins(x=0.08)
        if line is not None:
            axes.axvline(line, color=NEUTRAL, lw=1, ls=":")
        axes.set_title(title, fontsize=10)
        axes.locator_params(axis="x", nbins=4)
    panels[1, 1].set_xlim(-0.03, 1.03)
    panels[0, 0].set_yticks(range(len(arms)), list(arms))
    panels[0, 0].invert_yaxis()
    return made
