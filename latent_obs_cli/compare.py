"""`latent-obs compare`: whether latents are worth it, for a study file or for one environment."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import OmitArgPrefixes

from agents import AgentConfig
from agents.compare import Study, Task, collect, compare, load_study, saved_study
from agents.compare.runs import duration, only_one, read_json
from agents.compare.statistics import check_installed
from agents.compare.study import OBSERVATIONS, folder_name
from agents.envs import contract_of
from latent_obs.encoder.folder import read_encoder_folder
from latent_obs.encoder.pca import fit_pca_of_folder, save_pca
from latent_obs.pixels import PixelContract
from latent_obs.util.atomic import write_json
from latent_obs.util.errors import InputError, MissingExtraError
from vae_training import RecordConfig, TrainConfig, get_datasets, record, train

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

        For one environment, with its options and any setting of train-agent; or for a study of several tasks and
        variants in a TOML file (see agents/compare/study.py). Where there is no encoder it is made first: frames
        recorded, a CVAE trained, principal components fitted. Writes compare.html, one page with a verdict, learning
        curves and intervals, and compare.json with every number. Ctrl-C stops all runs, and the same command goes on.
        Exit status 1 where runs failed.

        Args:
            config: Settings of all runs.
            study: The TOML file; then the options of train-agent, but for --out, are in there.
            frames: Frames of the environment to make an encoder of, in place of recording some.
            arms: What the agents see.
            seeds: One run each, for each arm.
            episodes: New episodes that each final agent, and the random policy, is judged on.
            jobs: Runs at once; half the cores by default.
            threads: Threads that torch computes with in each; cores / jobs by default.
            page_only: Train nothing; write the page of what is finished in --out, also while runs are under way
                elsewhere.
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
                raise InputError(
                    f"with --study these are set in {study}: leave out {', '.join(given) or '--arms, --seeds'}"
                )
        wanted = load_study(study) if study is not None else study_of(config, frames, arms, seeds, episodes)
        run_study(wanted, config.out, jobs=jobs, threads=threads)

    tyro.cli(run, prog="latent-obs compare", args=list(words), config=(tyro.conf.CascadeSubcommandArgs,))


def study_of(
    config: AgentConfig, frames: Path | None, arms: Sequence[str], seeds: Sequence[int], episodes: int
) -> Study:
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
    from latent_obs_cli.compare import prepare

    study = prepare(study, out)
    try:
        results = compare(study, out, jobs=jobs, threads=threads)
    except KeyboardInterrupt:
        print(
            "Stopped. The same command goes on; a page of what is finished: latent-obs compare --page-only --out", out
        )
        raise
    finish(study, out)
    if results.missing:
        raise SystemExit(1)


def finish(study: Study, out: Path) -> None:
    """Write the page of all runs that are finished, and say what it says."""
    from latent_obs_cli.pages import write_comparison

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


_COMPONENTS = 256  # where there is no encoder to have as many latents as
_PASSED_ON = ("frame_skip", "env_kwargs", "pixel_key")  # settings of a run that decide what its frames look like


def prepare(study: Study, out: Path, say: Callable[[str], object] = print) -> Study:
    """Make the encoder and the principal components of each task that needs them and names none.

    Everything lies in out/prepared/<task>/, and what is there is not made again.

    Args:
        study: What is to be compared.
        out: Its folder.
        say: Where messages go.

    Returns:
        The study with the paths, and with the seconds that encoders took.

    Raises:
        InputError: There are no frames, or they will not do.
        KeyboardInterrupt: It was stopped; the same call goes on.
    """
    tasks: dict[str, Task] = {}
    for name, task in study.tasks.items():
        encoder, pca = _needed(study, name)
        if encoder or pca:
            with only_one(out):
                task = _prepared(study, name, out / "prepared" / folder_name(name), encoder, pca, say)
        tasks[name] = task
    return dataclasses.replace(study, tasks=tasks)


def _needed(study: Study, name: str) -> tuple[bool, bool]:
    """Whether an encoder, and whether principal components have to be made."""
    task, encoder, pca = study.tasks[name], False, False
    for arm in study.arms:
        own, seen = study.own_settings(name, arm), study.observation(arm)
        encoder |= seen == "latent" and task.encoder is None and own.get("encoder") is None
        pca |= seen == "pca-latent" and task.pca is None and own.get("pca") is None
    return encoder, pca


def _prepared(study: Study, name: str, folder: Path, encoder: bool, pca: bool, say: Callable[[str], object]) -> Task:
    """A task with what it lacks; what has been made before is taken as it is."""
    task = study.tasks[name]
    took = _Took(folder / "seconds.json")
    frames = task.frames or _recorded(study, name, folder / "frames", took, say)
    if encoder:
        vae = _of(TrainConfig, study.vae, "vae", frames=frames, out=folder / "vae")
        if "encoder" not in took.seconds:
            say(f"{name}: trains an encoder on {frames}, {vae.epochs} epochs …")
            with took.noted("encoder"):
                resume = (vae.out / "checkpoints" / "latest.safetensors").exists()
                if train(vae, resume=resume, say=_quiet).interrupted:
                    raise KeyboardInterrupt
        seconds = took.seconds.get("frames", 0.0) + took.seconds["encoder"]
        say(f"{name}: the encoder took {duration(seconds)}, frames included.")
        task = dataclasses.replace(task, encoder=vae.out / "encoder", encoder_seconds=seconds)
    if pca:
        components = folder / "pca.safetensors"
        if not components.exists():
            say(f"{name}: fits principal components to {frames} …")
            with took.noted("pca"):
                save_pca(components, fit_pca_of_folder(frames, *_shape(task.encoder)))
        task = dataclasses.replace(task, pca=components)
    return task


def _recorded(study: Study, name: str, frames: Path, took: "_Took", say: Callable[[str], object]) -> Path:
    """Frames of a task's environment."""
    task = study.tasks[name]
    settings = {k: v for k, v in {**study.settings, **task.settings}.items() if k in _PASSED_ON}
    config = _of(RecordConfig, {**settings, **study.record}, "record", env=task.env, out=frames, state=False)
    if "frames" not in took.seconds:
        say(f"{name}: records {config.frames:,} frames …")
        with took.noted("frames"):
            record(config, say=_quiet)
            if sum(len(d) for d in get_datasets(frames)) < config.frames:
                raise KeyboardInterrupt  # record() takes Ctrl-C as the end of a recording, and returns
    return frames


def _of(kind: type[Any], given: dict[str, Any], table: str, **decided: Any) -> Any:
    """Settings of a stage, with what the study decides itself."""
    names = {field.name for field in dataclasses.fields(kind)}
    for name in given:
        if name not in names or name in decided:
            whose = "is decided by the study" if name in decided else "there is none of that name"
            raise InputError(
                f"the study's [{table}] has {name!r}: {whose}. It may have {', '.join(sorted(names - set(decided)))}"
            )
    return kind(**{**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}, **decided})


def _shape(encoder: Path | None) -> tuple[int, PixelContract]:
    """How many components to keep, and of which frames: as the encoder has them."""
    if encoder is None:
        return _COMPONENTS, contract_of(None)
    read = read_encoder_folder(encoder)
    return read.architecture.latent_dim, read.contract


class _Took:
    """Seconds of each stage, kept in a file: a stage that has them is finished."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._noted: dict[str, Any] = read_json(file) or {}

    @property
    def seconds(self) -> dict[str, float]:
        """Of each finished stage, interrupted attempts included."""
        return {name: value["seconds"] for name, value in self._noted.items() if value["finished"]}

    def noted(self, stage: str) -> "_Stage":
        """A block that is a stage; what it took is noted however it ends."""
        return _Stage(self, stage)

    def add(self, stage: str, seconds: float, *, finished: bool) -> None:
        """Add the time of an attempt."""
        before = self._noted.get(stage, {"seconds": 0.0})["seconds"]
        self._noted[stage] = {"seconds": before + seconds, "finished": finished}
        write_json(self._file, self._noted)


class _Stage:
    def __init__(self, took: _Took, name: str) -> None:
        self._took, self._name, self._began = took, name, 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._took.add(self._name, time.perf_counter() - self._began, finished=kind is None)


def _quiet(text: str) -> None:
    """Where messages go that speak of verbs that are not needed here."""
