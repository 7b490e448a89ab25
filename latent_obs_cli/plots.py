"""Plots of a run: losses and beta over the steps, and the agent's learning curve beside the random policy."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agents import Evaluation, read_evaluations
from latent_obs.atomic import written_aside
from latent_obs.errors import require
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
    left.plot([r["step"] for r in held], [r["held_out/reconstruction"] for r in held], "o-", color=_ORANGE, ms=4,
              label="held-out recordings")  # fmt: skip
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
        [r["step"] for r in rows], [r["mean_return"] for r in rows], yerr=[r["standard_error"] for r in rows],
        fmt="o-", color=_ORANGE, ms=4, capsize=3, label="evaluation ± standard error",
    )  # fmt: skip
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
    scaled = [image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS) for image in images]
    sheet = Image.new("RGB", (width, sum(image.height for image in scaled)), "white")
    top = 0
    for image in scaled:
        sheet.paste(image, (0, top))
        top += image.height
    with written_aside(target) as aside:
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
    with written_aside(target) as aside:
        figure.savefig(aside, format="png")
    return target
