"""`latent-obs compare`: whether latents are worth it, for a study file or for one environment."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import OmitArgPrefixes

from agents import AgentConfig
from agents.compare import Study, Task, collect, compare, load_study, saved_study
from agents.compare.intervals import check_installed
from agents.compare.study import OBSERVATIONS
from latent_obs.errors import InputError, MissingExtraError

_DEFAULT_OUT = Path("runs/compare")
_OF_THE_STUDY = ("env", "encoder", "pca", "out", "steps", "observation", "seed")


def run_compare(words: Sequence[str]) -> None:
    """Parse `latent-obs compare`, train and judge."""

    def run(
        config: OmitArgPrefixes[AgentConfig] = AgentConfig(out=_DEFAULT_OUT),  # noqa: B008  (it is frozen)
        study: Path | None = None,
        frames: Path | None = None,
        arms: tuple[str, ...] = OBSERVATIONS,
        seeds: tuple[int, ...] = (0, 1, 2),
        episodes: int = 50,
        jobs: int | None = None,
        threads: int | None = None,
        page_only: bool = False,
    ) -> None:
        """Train agents on pixels, on latents and on baselines, and tell whether latents were worth it.

        For one environment, with its options and any setting of train-agent; or for a study of several tasks and variants in
        a TOML file (see agents/compare/study.py). Where there is no encoder it is made first: frames recorded, a CVAE trained,
        principal components fitted. Writes compare.html, one page with a verdict, learning curves and intervals, and
        compare.json with every number. Ctrl-C stops all runs, and the same command goes on. Exit status 1 where runs failed.

        Args:
            config: Settings of all runs.
            study: The TOML file; then the options of train-agent, but for --out, are in there.
            frames: Frames of the environment to make an encoder of, in place of recording some.
            arms: What the agents see.
            seeds: One run each, for each arm.
            episodes: New episodes that each final agent, and the random policy, is judged on.
            jobs: Runs at once; half the cores by default.
            threads: Threads that torch computes with in each; cores / jobs by default.
            page_only: Train nothing; write the page of what is finished in --out, also while runs are under way elsewhere.
        """
        if page_only:
            if study is not None:
                raise InputError(
                    f"--page-only writes the page of the study in {config.out}, and reads no --study {study}: leave one out"
                )
            finish(saved_study(config.out), config.out)
            return
        if study is not None:
            given = _settings(config) | {k: v for k, v in (("frames", frames),) if v is not None}
            if given or (arms, seeds, episodes) != (OBSERVATIONS, (0, 1, 2), 50):
                raise InputError(f"with --study these are set in {study}: leave out {', '.join(given) or '--arms, --seeds'}")
        wanted = load_study(study) if study is not None else study_of(config, frames, arms, seeds, episodes)
        run_study(wanted, config.out, jobs=jobs, threads=threads)

    tyro.cli(run, prog="latent-obs compare", args=list(words), config=(tyro.conf.CascadeSubcommandArgs,))


def study_of(
    config: AgentConfig, frames: Path | None, arms: Sequence[str], seeds: Sequence[int], episodes: int
) -> Study:  # fmt: skip
    """The study of one environment.

    Args:
        config: Settings of all runs: those that are not at their defaults.
        frames: Frames to make an encoder of; None records some.
        arms: What the agents see.
        seeds: One run each.
        episodes: Of each final evaluation.

    Raises:
        InputError: A setting was given that a comparison decides itself.

    Example:
        >>> study = study_of(AgentConfig(steps=2_000, frame_skip=4), None, ["pixels"], [0], 10)
        >>> study.steps, study.settings, list(study.tasks)
        (2000, {'frame_skip': 4}, ['VizdoomBasic-v1'])
    """
    given = _settings(config)
    for name, instead in (("observation", "--arms"), ("seed", "--seeds")):
        if name in given:
            raise InputError(f"--{name} is for one run; a comparison takes {instead}")
    name = config.env.rsplit(":")[-1]
    task = Task(config.env, encoder=config.encoder, pca=config.pca, frames=frames)
    settings = {k: v for k, v in given.items() if k not in _OF_THE_STUDY}
    return Study({name: task}, tuple(arms), tuple(seeds), config.steps, episodes, settings=settings)


def run_study(study: Study, out: Path, *, jobs: int | None = None, threads: int | None = None) -> None:
    """Make what is missing, train, and write the page.

    Raises:
        InputError: A setting will not do, or runs in the folder were made with other settings.
        SystemExit: With status 1: some runs failed; the page says which.
        KeyboardInterrupt: It was stopped; the same call goes on.
    """
    try:
        check_installed()
    except MissingExtraError as error:  # runs are worth having all the same
        print(f"{error}\nUntil then runs can be made, and no page; it is written with --page-only afterwards.")
    from latent_obs_cli.compare_prepare import prepare

    study = prepare(study, out)
    try:
        results = compare(study, out, jobs=jobs, threads=threads)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on; a page of what is finished: latent-obs compare --page-only --out", out)
        raise
    finish(study, out)
    if results.missing:
        raise SystemExit(1)


def finish(study: Study, out: Path) -> None:
    """Write the page of all runs that are finished, and say what it says."""
    from latent_obs_cli.compare_page import write_comparison

    target, summary = write_comparison(collect(study, out), out)
    verdict = summary["verdict"]
    print()
    for text in dict.fromkeys((verdict["headline"], *verdict["sentences"], *verdict["warnings"], summary["seeds"])):
        print(text)
    if summary["missing"]:
        print(f"{len(summary['missing'])} run(s) have no numbers; the page says which.")
    print(f"\nPage:    {target}\nNumbers: {out / 'compare.json'}")


def _settings(config: AgentConfig) -> dict[str, Any]:
    """What was given: settings that are not at their defaults."""
    default = AgentConfig(out=config.out)
    names = [f.name for f in dataclasses.fields(AgentConfig)]
    return {name: getattr(config, name) for name in names if getattr(config, name) != getattr(default, name)}
