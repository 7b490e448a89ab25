"""Plots of runs: losses and beta, an agent's learning curve, and the curves and intervals of a comparison."""

import csv
from pathlib import Path
from typing import Any

from agents import Evaluation, read_evaluations
from agents.compare.study import BASELINE, folder_name
from latent_obs.util.errors import require
from vae_training import read_log
from vae_training.report.page import BLUE, GREEN, GREY, ORANGE, figure, save_figure

_ARMS = {"pixels": ORANGE, "latent": BLUE, "random-latent": GREY, "pca-latent": GREEN}
_MORE = ("#9333ea", "#0891b2", "#be123c", "#a16207", "#4338ca", "#0f766e")


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


def plot_agent(run: Path, target: Path, *, chance: Evaluation | None = None, final: Evaluation | None = None) -> Path:
    """An agent's returns over the steps, with standard errors, as a PNG.

    Args:
        run: The folder of `train-agent`.
        target: The picture.
        chance: A random policy's evaluation, drawn as a band.
        final: The final evaluation, drawn as a line.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    made, axes = figure(9.0, 3.4, extra="plots")
    axes.plot(*training_returns(run), color=BLUE, lw=1, alpha=0.6, label="training episodes (running mean)")
    rows = read_evaluations(run)
    axes.errorbar(
        *([r[name] for r in rows] for name in ("step", "mean_return", "standard_error")),
        fmt="o-",
        color=ORANGE,
        ms=4,
        capsize=3,
        label="evaluation ± standard error",
    )
    if chance is not None:
        low, high = chance.mean - chance.standard_error, chance.mean + chance.standard_error
        axes.axhspan(low, high, color=GREY, alpha=0.3, lw=0)
        axes.axhline(chance.mean, color=GREY, lw=1.5, label=f"random policy: {chance.mean:.0f}")
    if final is not None:
        axes.axhline(final.mean, color=GREEN, lw=1.5, ls="--", label=f"best agent, new episodes: {final.mean:.0f}")
    axes.set(xlabel="environment steps", ylabel="return of an episode", title="PPO on latents")
    axes.legend(frameon=False)
    return save_figure(made, target)


def training_returns(run: Path) -> tuple[list[float], list[float]]:
    """Steps, and running means of the returns of training episodes, from Stable-Baselines3's logs of a run."""
    files = sorted(run.glob("logs/*/progress.csv"))
    rows = [row for file in files for row in csv.DictReader(file.read_text().splitlines())]
    pairs = [(row.get("time/total_timesteps"), row.get("rollout/ep_rew_mean")) for row in rows]
    found = [(float(step), float(mean)) for step, mean in pairs if step and mean]  # cells may be empty
    return [step for step, _ in found], [mean for _, mean in found]


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
    arms = list(dict.fromkeys(arm for task in tasks.values() for arm in task["arms"]))
    own = [arm for arm in arms if arm not in _ARMS]
    colors = _ARMS | {arm: _MORE[i % len(_MORE)] for i, arm in enumerate(own)}
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
    """Learning curves at equal steps and at equal time: side by side for one task, else a column for each task."""
    alone = len(tasks) == 1
    if alone:
        made, panels = figure(11, 4.4, columns=2, sharey=True, squeeze=False)
    else:
        made, panels = figure(max(8.0, 3.1 * len(tasks)), 5.4, rows=2, columns=len(tasks), sharey="col", squeeze=False)
    pairs = panels if alone else panels.T
    for (by_steps, by_time), (name, task) in zip(pairs, tasks.items(), strict=True):
        _panel(by_steps, task, "over_steps", colors)
        _panel(by_time, task, "over_time", colors)
        by_steps.set_title("at equal steps" if alone else name, fontsize=10)
        if alone:
            by_time.set_title("at equal time", fontsize=10)
            made.suptitle(f"{name} ({task['env']})" if name != task["env"] else name, fontsize=12)
    for axes in panels[:, 0]:
        axes.set_ylabel("return of an episode")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False, fontsize=9)
    return made


def _panel(axes: Any, task: dict[str, Any], over: str, colors: dict[str, str]) -> None:
    """The curves of one task, over steps or over time."""
    by_time = over == "over_time"
    for arm, numbers in task["arms"].items():
        if (curve := numbers[over]) is not None:
            at = [s / 60 for s in curve["at"]] if by_time else curve["at"]
            axes.plot(at, curve["iqm"], color=colors[arm], lw=1.8, marker=None if by_time else "o", ms=3, label=arm)
            axes.fill_between(at, curve["low"], curve["high"], color=colors[arm], alpha=0.14, lw=0)
    if task["random"] is not None:
        axes.axhline(task["random"]["mean"], color="black", lw=1, ls=":", label="random policy")
    if task["reference"] is not None:
        axes.axhline(task["reference"], color="black", lw=1, ls="--", label="reference")
    axes.set_xlabel("minutes of training" if by_time else "environment steps")
    if not by_time:
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}")
    elif BASELINE in task["arms"]:
        end, color = task["arms"][BASELINE]["training_seconds"] / 60, colors[BASELINE]
        axes.axvline(end, color=color, lw=1, ls=(0, (4, 4)))
        where: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "va": "bottom", "ha": "right", "rotation": 90}
        axes.annotate(f" {BASELINE} end", (end, 0.01), fontsize=8, color=color, **where)


def _intervals(over: dict[str, Any], colors: dict[str, str]) -> Any:
    """Scores of all tasks on one scale: an interval for each arm and measure."""
    arms: dict[str, Any] = over["arms"]
    made, panels = figure(11, 1.3 + 0.42 * len(arms), columns=4, sharey=True)
    measures = {
        "iqm": ("interquartile mean", 1.0),
        "mean": ("mean", 1.0),
        "optimality_gap": ("optimality gap (less is better)", None),
        "probability_of_improvement": (f"P(better than {BASELINE})", 0.5),
    }
    for axes, (measure, (title, line)) in zip(panels, measures.items(), strict=True):
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
    panels[3].set_xlim(-0.03, 1.03)
    panels[0].set_yticks(range(len(arms)), list(arms))
    panels[0].invert_yaxis()
    return made
