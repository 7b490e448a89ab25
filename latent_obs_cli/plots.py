"""Plots of a run: losses and beta over the steps, and the agent's learning curve beside the random policy."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agents import Evaluation, read_evaluations
from agents.compare.study import BASELINE, folder_name
from latent_obs.util.atomic import atomic_write
from latent_obs.util.errors import require
from vae_training import read_log

_BLUE, _ORANGE, _GREEN, _GREY = "#2563eb", "#ea580c", "#15803d", "#6b7280"


def plot_vae(run: Path, target: Path) -> Path:
    """Squared error, KL and beta over the steps of a `train-vae` run, as a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure, (left, right) = _figure(2)
    rows = read_log(run)
    steps = [r["step"] for r in rows if "loss/total" in r]
    held = [r for r in rows if "held_out/reconstruction" in r]
    left.plot(steps, [r["loss/reconstruction"] for r in rows if "loss/total" in r], color=_BLUE, lw=1, label="training")
    left.plot(
        [r["step"] for r in held],
        [r["held_out/reconstruction"] for r in held],
        "o-",
        color=_ORANGE,
        ms=4,
        label="held-out recordings",
    )
    left.set(yscale="log", xlabel="gradient step", ylabel="squared error per image", title="Reconstruction")
    left.legend(frameon=False)
    right.plot(steps, [r["loss/kl_nats"] for r in rows if "loss/total" in r], color=_GREEN, lw=1)
    right.set(yscale="log", xlabel="gradient step", title="KL and the schedule of beta")
    right.set_ylabel("KL [nats]", color=_GREEN)
    beta = right.twinx()
    beta.plot(steps, [r["schedule/beta"] for r in rows if "loss/total" in r], color=_GREY, lw=1.5)
    beta.set_ylabel("beta", color=_GREY)
    beta.set_ylim(bottom=0)
    return _save(figure, target)


def plot_agent(run: Path, target: Path, *, chance: Evaluation | None = None, final: Evaluation | None = None) -> Path:
    """An agent's returns over the steps, with standard errors, as a PNG.

    Args:
        run: The folder of `train-agent`.
        target: The picture.
        chance: A random policy's evaluation, drawn as a band.
        final: The final evaluation, drawn as the last point.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure, (axes,) = _figure(1, width=9.0)
    steps, returns = _training_returns(run)
    axes.plot(steps, returns, color=_BLUE, lw=1, alpha=0.6, label="training episodes (running mean)")
    rows = read_evaluations(run)
    axes.errorbar(
        [r["step"] for r in rows],
        [r["mean_return"] for r in rows],
        yerr=[r["standard_error"] for r in rows],
        fmt="o-",
        color=_ORANGE,
        ms=4,
        capsize=3,
        label="evaluation ± standard error",
    )
    if chance is not None:
        low, high = chance.mean - chance.standard_error, chance.mean + chance.standard_error
        axes.axhspan(low, high, color=_GREY, alpha=0.3, lw=0)
        axes.axhline(chance.mean, color=_GREY, lw=1.5, label=f"random policy: {chance.mean:.0f}")
    if final is not None:
        axes.axhline(final.mean, color=_GREEN, lw=1.5, ls="--", label=f"best agent, new episodes: {final.mean:.0f}")
    axes.set(xlabel="environment steps", ylabel="return of an episode", title="PPO on latents")
    axes.legend(frameon=False)
    return _save(figure, target)


def overview(pictures: Sequence[Path], target: Path) -> Path:
    """Stack pictures into one, each scaled to the width of the widest; for a README or a message.

    Args:
        pictures: PNG files, from top to bottom.
        target: The PNG to write.
    """
    images = [Image.open(picture).convert("RGB") for picture in pictures]
    width = max(image.width for image in images)
    scaled = [
        image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS) for image in images
    ]
    sheet = Image.new("RGB", (width, sum(image.height for image in scaled)), "white")
    top = 0
    for image in scaled:
        sheet.paste(image, (0, top))
        top += image.height
    with atomic_write(target) as aside:
        sheet.save(aside, optimize=True)
    return target


def _training_returns(run: Path) -> tuple[list[float], list[float]]:
    """Running mean of the returns of training episodes, from Stable-Baselines3's log."""
    steps: list[float] = []
    returns: list[float] = []
    for file in sorted(run.glob("logs/*/progress.csv")):
        with file.open() as handle:
            for row in csv.DictReader(handle):
                if row.get("rollout/ep_rew_mean") and row.get("time/total_timesteps"):
                    steps.append(float(row["time/total_timesteps"]))
                    returns.append(float(row["rollout/ep_rew_mean"]))
    return steps, returns


def _figure(panels: int, width: float = 5.2) -> tuple[Any, Any]:
    require("matplotlib", extra="plots", purpose="draw plots")
    from matplotlib.figure import Figure  # not pyplot: no display, no global state, usable from a notebook and a thread

    figure = Figure(figsize=(width * panels, 3.4), dpi=110, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for a in np.atleast_1d(axes):
        a.spines[["top", "right"]].set_visible(False)
        a.grid(alpha=0.25)
    return figure, axes


def _save(figure: Any, target: Path) -> Path:
    with atomic_write(target) as aside:
        figure.savefig(aside, format="png")
    return target


_KNOWN = {"pixels": "#ea580c", "latent": "#2563eb", "random-latent": "#6b7280", "pca-latent": "#15803d"}
_MORE = ("#9333ea", "#0891b2", "#be123c", "#a16207", "#4338ca", "#0f766e")


def colours(arms: list[str]) -> dict[str, str]:
    """A colour for each arm: always the same for the usual ones.

    Example:
        >>> colours(["pixels", "mine"])
        {'pixels': '#ea580c', 'mine': '#9333ea'}
    """
    own = [arm for arm in arms if arm not in _KNOWN]
    return {arm: _KNOWN.get(arm) or _MORE[own.index(arm) % len(_MORE)] for arm in arms}


def draw(summary: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Draw all pictures of a summary, as PNG files.

    Args:
        summary: From `agents.compare.summarize`.
        folder: Where they go.

    Returns:
        The picture of each task by its name, and that of all scores together as "". Where there are several tasks,
        overview.png has the curves of all of them.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", extra="compare", purpose="draw learning curves")
    tasks: dict[str, Any] = summary["tasks"]
    palette = colours(list(dict.fromkeys(arm for task in tasks.values() for arm in task["arms"])))
    drawn: dict[str, Path] = {}
    for name, task in tasks.items():
        if any(arm["over_steps"] for arm in task["arms"].values()):
            drawn[name] = _save_of_compare_plots(_curves(name, task, palette), folder / f"{folder_name(name)}.png")
    shown = {name: tasks[name] for name in drawn}
    if len(shown) > 1:
        _save_of_compare_plots(_overview(shown, palette), folder / "overview.png")
    if summary["over_tasks"]["arms"]:
        drawn[""] = _save_of_compare_plots(_across(summary["over_tasks"], palette), folder / "over-tasks.png")
    return drawn


def _curves(name: str, task: dict[str, Any], palette: dict[str, str]) -> Any:
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(11, 4.4), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, task, "over_steps", palette)
    _panel(right, task, "over_time", palette)
    left.set(xlabel="environment steps", ylabel="return of an episode")
    left.set_title("at equal steps", fontsize=11)
    right.set(xlabel="minutes of training")
    right.set_title("at equal time", fontsize=11)
    _legend(figure, left)
    figure.suptitle(f"{name} ({task['env']})" if name != task["env"] else name, fontsize=12)
    return figure


def _overview(tasks: dict[str, Any], palette: dict[str, str]) -> Any:
    """All tasks side by side: at equal steps above, at equal time below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(8.0, 3.1 * len(tasks)), 5.4), dpi=110, layout="constrained")
    panels = figure.subplots(2, len(tasks), squeeze=False, sharey="col")
    for (above, below), (name, task) in zip(panels.T, tasks.items(), strict=True):
        _panel(above, task, "over_steps", palette)
        _panel(below, task, "over_time", palette)
        above.set_title(name, fontsize=10)
        above.set_xlabel("environment steps", fontsize=8)
        below.set_xlabel("minutes of training", fontsize=8)
        for axes in (above, below):
            axes.tick_params(labelsize=8)
    for axes in panels[:, 0]:
        axes.set_ylabel("return of an episode", fontsize=9)
    _legend(figure, panels[0, 0])
    return figure


def _panel(axes: Any, task: dict[str, Any], over: str, palette: dict[str, str]) -> None:
    """The curves of one task, over steps or over time, with what they are to be seen beside."""
    from matplotlib.ticker import FuncFormatter

    for arm, numbers in task["arms"].items():
        curve = numbers[over]
        if curve is None:
            continue
        at = curve["at"] if over == "over_steps" else [s / 60 for s in curve["at"]]
        axes.plot(
            at, curve["iqm"], color=palette[arm], lw=1.8, marker="o" if over == "over_steps" else None, ms=3, label=arm
        )
        axes.fill_between(at, curve["low"], curve["high"], color=palette[arm], alpha=0.14, lw=0)
    if task["random"] is not None:
        axes.axhline(task["random"]["mean"], color="black", lw=1, ls=":", label="random policy")
    if task["reference"] is not None:
        axes.axhline(task["reference"], color="black", lw=1, ls="--", label="reference")
    if over == "over_steps":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}"))
    pixels = task["arms"].get(BASELINE)
    if over == "over_time" and pixels is not None:
        axes.axvline(pixels["training_seconds"] / 60, color=palette[BASELINE], lw=1, ls=(0, (4, 4)))
        axes.annotate(
            " pixels end",
            (pixels["training_seconds"] / 60, 0.01),
            xycoords=("data", "axes fraction"),
            fontsize=8,
            color=palette[BASELINE],
            va="bottom",
            ha="right",
            rotation=90,
        )
    _tidy(axes)


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False, fontsize=9)


def _across(over: dict[str, Any], palette: dict[str, str]) -> Any:
    from matplotlib.figure import Figure

    arms = list(over["arms"])
    compared = [arm for arm in arms if arm != BASELINE and "probability_of_improvement" in over["arms"][arm]]
    figure = Figure(figsize=(11, 1.3 + 0.42 * len(arms)), dpi=120, layout="constrained")
    panels = figure.subplots(1, 4, sharey=True)
    titles = ("interquartile mean", "mean", "optimality gap (less is better)", f"P(better than {BASELINE})")
    for axes, measure, title in zip(
        panels, ("iqm", "mean", "optimality_gap", "probability_of_improvement"), titles, strict=True
    ):
        for place, arm in enumerate(arms):
            if measure == "probability_of_improvement" and arm not in compared:
                continue
            estimate = over["arms"][arm][measure]
            low, high = estimate["low"], estimate["high"]
            axes.barh(place, high - low, left=low, height=0.55, color=palette[arm], alpha=0.45)
            axes.plot([estimate["value"]] * 2, [place - 0.275, place + 0.275], color="black", lw=1.6)
        axes.use_sticky_edges = False  # bars need no room to an edge, others do
        axes.margins(x=0.08)
        if measure in ("iqm", "mean"):
            axes.axvline(1.0, color="black", lw=0.8, ls=":")
        if measure == "probability_of_improvement":
            axes.axvline(0.5, color="black", lw=0.8, ls=":")
            axes.set_xlim(-0.03, 1.03)
        axes.set_title(title, fontsize=10)
        axes.locator_params(axis="x", nbins=4)
        _tidy(axes)
    panels[0].set_yticks(range(len(arms)), arms)
    panels[0].invert_yaxis()
    return figure


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)


def _save_of_compare_plots(figure: Any, target: Path) -> Path:
    with atomic_write(target) as aside:
        figure.savefig(aside, format="png")
    return target
