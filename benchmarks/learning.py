"""What an agent learns from latents, from the latents of an untrained network, and from pixels, over several seeds.

All get equally many environment steps. The last agent of each run is judged on episodes that training did not see, beside a
random policy. Run again with the same folder, it goes on with the runs that are missing.

    out/
    ├── <observation>_seed<n>/   run folder of train_agent
    ├── <observation>_seed<n>.json   its time and final returns: written last, so that it marks a finished run
    ├── learning.json            all numbers
    └── learning.png             learning curves over steps and over time
"""

import csv
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray

from agents import AgentConfig, evaluate_agent, evaluate_random, read_evaluations, train_agent
from agents.config import Observation
from benchmarks.common import machine_line, markdown_table
from latent_obs.atomic import write_json, written_aside
from latent_obs.errors import InputError, require

_RESAMPLES = 10_000
_COLOURS = {"latent": "#2563eb", "random-latent": "#6b7280", "pixels": "#ea580c"}


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    encoder: Path
    """Encoder folder, trained on frames of the environment."""
    out: Path
    """Folder to make, or to go on in."""
    env: str = "VizdoomBasic-v1"
    """A registered environment with pixels."""
    kinds: tuple[Observation, ...] = ("latent", "random-latent", "pixels")
    """What the agents see."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run each, for each kind."""
    steps: int = 100_000
    """Environment steps of each run."""
    envs: int = 8
    """Environments in parallel."""
    frame_skip: int | None = 4
    """Game frames per agent step."""
    latent_only: bool = True
    """Drop every other entry of a Dict observation, so that pixels are all there is."""
    episodes: int = 50
    """Episodes that each final agent, and the random policy, is judged on."""
    threshold: float = 50.0
    """Mean return of an evaluation during training that counts as having learnt."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""

    def config(self, kind: Observation, seed: int) -> AgentConfig:
        """Settings of one run: train_agent's own, but for what is an option here."""
        return AgentConfig(
            env=self.env, encoder=self.encoder, out=self.out / f"{kind}_seed{seed}", observation=kind, steps=self.steps,
            envs=self.envs, frame_skip=self.frame_skip, latent_only=self.latent_only,
            eval_every=max(1, self.steps // 10), seed=seed, device=self.device,
        )  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Numbers of one finished run.

    Attributes:
        kind: What the agent sees.
        seed: Seed of the run.
        settings: All settings of the run.
        steps: Environment steps taken.
        seconds: Wall-clock time of `train_agent`, its evaluations and start-up included.
        returns: Of the final agent's episodes.
        curve_steps: Environment steps of the evaluations during training.
        curve_returns: Their mean returns.
        curve_minutes: Wall-clock time into training of each, to the second.
    """

    kind: str
    seed: int
    settings: dict[str, Any]
    steps: int
    seconds: float
    returns: list[float]
    curve_steps: list[int]
    curve_returns: list[float]
    curve_minutes: list[float]

    def steps_to(self, threshold: float) -> int | None:
        """Environment steps of the first evaluation above a return; None where none is."""
        return next((s for s, r in zip(self.curve_steps, self.curve_returns, strict=True) if r > threshold), None)


def run_once(options: Options, kind: Observation, seed: int) -> Run:
    """Train and evaluate one agent, or read its numbers where that was done before.

    Raises:
        KeyboardInterrupt: Training was stopped; the run starts anew next time, so that its time can be compared.
        InputError: The run was finished with other settings.
    """
    config = options.config(kind, seed)
    note = options.out / f"{config.out.name}.json"
    settings = json.loads(json.dumps({k: v for k, v in config.to_json().items() if k not in ("out", "device")}))
    if note.exists():
        run = Run(**json.loads(note.read_text()))
        if run.settings != settings:
            changed = sorted(k for k in settings if run.settings.get(k) != settings[k])
            raise InputError(f"{note} is of a run with other settings ({', '.join(changed)}); choose another --out")
        if len(run.returns) >= options.episodes:
            return run
        return _noted(note, config, settings, run.steps, run.seconds, options)
    if config.out.exists():
        print(f"{config.out} was not finished; it starts anew")
        shutil.rmtree(config.out)
    print(f"\n{config.out.name}", flush=True)
    began = perf_counter()
    result = train_agent(config, progress_bar=False)
    seconds = perf_counter() - began
    if result.interrupted:
        raise KeyboardInterrupt
    return _noted(note, config, settings, result.steps, seconds, options)


def _noted(note: Path, config: AgentConfig, settings: dict[str, Any], steps: int, seconds: float, options: Options) -> Run:
    """Evaluate the last agent of a run, and write its numbers down."""
    final = evaluate_agent(config.out, episodes=options.episodes, which="last", device=options.device)
    print(f"  last agent on new episodes: {final}", flush=True)
    rows = read_evaluations(config.out)
    curve_steps = [int(row["step"]) for row in rows]
    run = Run(
        config.observation, config.seed, settings, steps, seconds, list(final.returns), curve_steps,
        [row["mean_return"] for row in rows], _minutes_at(config.out, curve_steps),
    )  # fmt: skip
    write_json(note, asdict(run))
    return run


def _minutes_at(run: Path, steps: Sequence[int]) -> list[float]:
    """Wall-clock minutes into training at which evaluations at these steps were over, from Stable-Baselines3's log.

    The log has a row after each rollout, and after the evaluation that may follow it. The very last evaluation comes after
    the last row, and is given its time.
    """
    known = [(0.0, 0.0)]
    for file in sorted(run.glob("logs/*/progress.csv")):
        with file.open() as handle:
            for row in csv.DictReader(handle):
                if row.get("time/total_timesteps") and row.get("time/time_elapsed"):
                    known.append((float(row["time/total_timesteps"]), float(row["time/time_elapsed"])))
    at, seconds = zip(*known, strict=True)
    return [float(np.interp(step, at, seconds)) / 60 for step in steps]


def bootstrap_interval(groups: Sequence[Sequence[float]], *, resample_seeds: bool) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean over seeds of their mean returns.

    Args:
        groups: Returns of the episodes of each seed.
        resample_seeds: False: stratified, episodes are drawn anew within each seed, so that it speaks of these very agents.
            True: seeds are drawn anew first, then episodes within them, so that it speaks of agents of other seeds too; it
            is too narrow where there are few seeds.

    Returns:
        Its lower and upper end.

    Example:
        >>> bootstrap_interval([[1.0, 1.0], [3.0, 3.0]], resample_seeds=False)
        (2.0, 2.0)
        >>> bootstrap_interval([[1.0, 1.0], [3.0, 3.0]], resample_seeds=True)
        (1.0, 3.0)
    """
    rng = np.random.default_rng(0)
    means = np.empty((_RESAMPLES, len(groups)))
    drawn = rng.integers(len(groups), size=means.shape) if resample_seeds else np.arange(len(groups))[None]
    drawn = np.broadcast_to(drawn, means.shape)
    for i, group in enumerate(groups):
        returns = np.asarray(group, np.float64)
        # Each place that drew this seed gets episodes of its own.
        places = np.nonzero(drawn == i)
        means[places] = returns[rng.integers(len(returns), size=(len(places[0]), len(returns)))].mean(1)
    low, high = np.percentile(means.mean(1), [2.5, 97.5])
    return float(low), float(high)


def summary(options: Options, runs: Sequence[Run], chance: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Numbers of each kind, and of the random policy, for the table and the JSON."""
    rows: dict[str, dict[str, Any]] = {}
    for kind in options.kinds:
        mine = [run for run in runs if run.kind == kind]
        if mine:
            rows[kind] = {
                **_interval([run.returns for run in mine]),
                "steps_to_threshold": [run.steps_to(options.threshold) for run in mine],
                "seconds": [run.seconds for run in mine],
                "steps_per_second": [run.steps / run.seconds for run in mine],
            }
    rows["random policy"] = _interval([chance])
    return rows


def _interval(groups: Sequence[Sequence[float]]) -> dict[str, Any]:
    means = [float(np.mean(group)) for group in groups]
    return {
        "mean_return": float(np.mean(means)),
        "seed_means": means,
        "interval_95_stratified": bootstrap_interval(groups, resample_seeds=False),
        "interval_95_over_seeds": bootstrap_interval(groups, resample_seeds=True),
    }


def table(options: Options, rows: dict[str, dict[str, Any]]) -> str:
    """The Markdown table."""
    lines = []
    for kind, row in rows.items():
        cells = [
            kind,
            f"{row['mean_return']:.1f}",
            "{:.1f} to {:.1f}".format(*row["interval_95_stratified"]),
            "{:.1f} to {:.1f}".format(*row["interval_95_over_seeds"]) if len(row["seed_means"]) > 1 else "",
            ", ".join(f"{mean:.1f}" for mean in row["seed_means"]),
        ]
        if "seconds" in row:
            reached = ", ".join("never" if s is None else f"{s:,}" for s in row["steps_to_threshold"])
            cells += [reached, f"{np.mean(row['seconds']):.0f}", f"{np.mean(row['steps_per_second']):.0f}"]
        lines.append(cells + [""] * (8 - len(cells)))
    header = ["agent sees", "mean return", "95% interval, these seeds", "95% interval, over seeds", "by seed",
              f"steps to above {options.threshold:g}", "seconds", "steps/s"]  # fmt: skip
    return markdown_table(header, lines)


def plot(options: Options, runs: Sequence[Run], chance: float, target: Path) -> None:
    """Draw mean learning curves with min-max bands, over steps and over minutes.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", extra="plots", purpose="draw learning curves")
    from matplotlib.figure import Figure  # not at the top: worker processes import this file and draw nothing

    figure = Figure(figsize=(10.4, 3.8), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, over, label in ((left, "curve_steps", "environment steps"), (right, "curve_minutes", "wall-clock minutes")):
        for kind in options.kinds:
            mine = [run for run in runs if run.kind == kind and len(run.curve_steps) > 1]
            if not mine:
                continue
            x, curves = _on_one_grid([getattr(run, over) for run in mine], [run.curve_returns for run in mine])
            axes.fill_between(x, curves.min(0), curves.max(0), color=_COLOURS[kind], alpha=0.15, lw=0)
            axes.plot(x, curves.mean(0), color=_COLOURS[kind], label=f"{kind} ({len(mine)} seeds)")
        axes.axhline(chance, color="black", lw=1, ls=":", label="random policy")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set(xlabel=label)
    left.set(ylabel="return of an episode", title=f"{options.env}: at equal steps")
    right.set(title="the same, at equal time")
    left.legend(frameon=False)
    with written_aside(target) as aside:
        figure.savefig(aside, format="png")


def _on_one_grid(
    places: Sequence[Sequence[float]], values: Sequence[Sequence[float]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Curves of several seeds at common places, (places,) and (seeds, places), where all of them have values."""
    grid = np.linspace(max(p[0] for p in places), min(p[-1] for p in places), 101)
    return grid, np.array([np.interp(grid, p, v) for p, v in zip(places, values, strict=True)])


def main(options: Options) -> None:
    """Train, evaluate, print and draw."""
    print(machine_line(), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    # Seed by seed, so that what a slow hour costs is shared between the kinds.
    runs = [run_once(options, kind, seed) for seed in options.seeds for kind in options.kinds]
    chance = evaluate_random(options.config("pixels", 0), episodes=options.episodes)
    rows = summary(options, runs, chance.returns)
    print(f"\n{table(options, rows)}\n")
    print(
        f"{options.env}, {options.steps:,} environment steps, {len(options.seeds)} seed(s); the last agent of each run on "
        f"{options.episodes} episodes that training did not see. Intervals: percentile bootstrap, {_RESAMPLES:,} resamples, of "
        "episodes within seeds (these seeds), and of seeds as well (over seeds; too narrow for few). Seconds of training "
        "include its evaluations."
    )
    values = {
        "machine": machine_line(), "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "summary": rows, "random_policy_returns": chance.returns, "runs": [asdict(run) for run in runs],
    }  # fmt: skip
    write_json(options.out / "learning.json", values)
    plot(options, runs, chance.mean, options.out / "learning.png")
    print(f"Numbers: {options.out / 'learning.json'}\nCurves:  {options.out / 'learning.png'}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except KeyboardInterrupt:
        sys.exit("Stopped; run the same command again to go on.")
