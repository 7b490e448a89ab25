"""`latent-obs compare`: are latents worth it, in one environment or in a study of several tasks."""

from __future__ import annotations

import dataclasses
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from tyro.conf import OmitArgPrefixes

import agents.compare
import vae_training
from agents.config import Observation
from latent_obs.util.atomic import own_folder, write_json
from latent_obs.util.errors import InputError, require
from latent_obs.util.progress import print_now
from latent_obs.util.ray import Engine, joined
from latent_obs.util.words import counted, wrapped
from vae_training.recording.config import RecordConfig
from vae_training.training.config import TrainConfig

#: Settings of a run that decide what its frames look like.
_OF_FRAMES = ("frame_skip", "env_kwargs", "render", "pixel_key")
_ALSO_WITH_STUDY = ("study", "out", "jobs", "threads", "engine", "address")


@dataclass(frozen=True)
class CompareConfig:
    """Options of `latent-obs compare`. Every other setting is one of the study file."""

    study: Path | None = None
    """A TOML file of tasks, arms and settings, in place of the options for one environment. For its format see
    agents/compare/study.py; benchmarks/study.toml is an example."""
    env: str = "VizdoomBasic-v1"
    """A registered Gymnasium environment with pixels."""
    encoder: Path | None = None
    """Encoder folder, or the run folder of train-vae. If it is not given, an encoder is trained first."""
    frames: Path | None = None
    """Frames of the environment to train that encoder on. If they are not given, they are recorded first."""
    arms: tuple[str, ...] = get_args(Observation)
    """What the agents see: latent, random-latent (an untrained encoder), pca-latent (principal components), pixels."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each arm is trained once with each seed. With fewer than 5, differences are easily luck."""
    steps: int = 150_000
    """Environment steps of each run."""
    episodes: int = 50
    """New episodes on which each final agent, and the random policy, is evaluated."""
    frame_skip: int | None = None
    """Game frames per agent step. 4 is usual for ViZDoom."""
    latent_only: bool = False
    """Drop every other entry of a Dict observation (inventory, game variables), so that pixels are all there is."""
    out: Path = Path("runs/compare")
    """Folder of all results. The same command with the same folder goes on."""
    jobs: int | None = None
    """Runs at once; half the cores by default. With --engine ray, as many as the cluster has CPUs for."""
    threads: int | None = None
    """Threads that torch computes with in each run; cores / jobs by default, and 2 with --engine ray."""
    engine: Engine = "local"
    """Make the runs on this machine, or, with ray, on the nodes of a Ray cluster, which share a file system."""
    address: str | None = None
    """With --engine ray: "host:port" of its head node, auto for the cluster of this machine, local to start one. None
    is auto where there is one, and else local."""
    page_only: bool = False
    """Train nothing: write the page of the runs in --out that are finished, also while others are under way."""


def run_compare(config: OmitArgPrefixes[CompareConfig]) -> None:
    """Train agents on pixels, on latents and on baselines, and report whether latents were worth it.

    Compares them in one environment, given by options, or in the tasks of a study file. A missing encoder is made
    first: frames are recorded, a CVAE is trained, principal components are fitted. Writes compare.html, a page with a
    verdict, learning curves and intervals, and compare.json with every number. Ctrl-C stops all runs, and the same
    command goes on. Exit status 1 if runs failed.
    """
    if config.page_only:
        if config.study is not None:
            raise InputError(f"--page-only reads the study that is saved in {config.out}: leave out --study")
        _write_page(agents.compare.saved_study(config.out), config.out)
        return
    for module in ("psutil", "scipy", "matplotlib"):  # before hours of training, as all that is checked here
        require(module, extra="compare", purpose="compare agents")
    from agents.compare.runs import check_how

    study = study_of(config)
    how: dict[str, Any] = {name: getattr(config, name) for name in ("jobs", "threads", "engine")}
    check_how(study, **how)
    with joined(config.engine, config.address):
        study = prepare(study, config.out)
        try:
            agents.compare.compare(study, config.out, **how, address=config.address)
        except KeyboardInterrupt:
            print(f"Stopped. The same command goes on; for a page: latent-obs compare --page-only --out {config.out}")
            raise
    if _write_page(study, config.out)["missing"]:
        raise SystemExit(1)


def study_of(config: CompareConfig) -> agents.compare.Study:
    """The study of the file that the options name, or of one environment.

    Raises:
        InputError: Something in the file is not allowed, or there are options that are set in it.
    """
    if config.study is not None:
        given = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != f.default]
        if others := [f"--{name.replace('_', '-')}" for name in given if name not in _ALSO_WITH_STUDY]:
            raise InputError(f"with --study, {', '.join(others)} must be set in {config.study}")
        return agents.compare.load_study(config.study)
    settings: dict[str, Any] = {} if config.frame_skip is None else {"frame_skip": config.frame_skip}
    settings |= {"latent_only": True} if config.latent_only else {}
    task = agents.compare.Task(config.env, encoder=config.encoder, frames=config.frames)
    name = config.env.rpartition(":")[2]
    return agents.compare.Study(
        {name: task}, config.arms, config.seeds, config.steps, config.episodes, settings=settings
    )


def _write_page(study: agents.compare.Study, out: Path) -> dict[str, Any]:
    """Write the page of all runs that are finished, print its verdict, and return the summary."""
    from latent_obs_cli.pages import write_comparison

    target, summary = write_comparison(agents.compare.collect(study, out), out)
    verdict = summary["verdict"]
    texts = (verdict["headline"], *verdict["sentences"], *verdict["warnings"], summary["seeds"])
    print("", *map(wrapped, dict.fromkeys(texts)), sep="\n")
    if summary["missing"]:
        print(f"The page lists {counted(len(summary['missing']), 'run')} without numbers.")
    print(f"\nPage:    {target}\nNumbers: {out / 'compare.json'}")
    return summary


def prepare(study: agents.compare.Study, out: Path) -> agents.compare.Study:
    """Make the encoder, the principal components and the networks of timm of each task whose arms need them.

    They are written to out/prepared/TASK/. What is there already is not made again.

    Returns:
        The study with the paths, and with the seconds that encoders took.

    Raises:
        InputError: A setting of [record] or [vae] is not allowed, or the frames are not usable.
        KeyboardInterrupt: It was interrupted; the same call goes on.
    """
    from agents.compare.study import folder_name

    tasks = dict(study.tasks)
    for name, task in study.tasks.items():
        own = [(arm, study.observation(arm), study.own_settings(name, arm)) for arm in study.arms]
        encoder = task.encoder is None and any(seen == "latent" and not has.get("encoder") for _, seen, has in own)
        pca = [arm for arm, seen, has in own if seen == "pca-latent" and not has.get("pca")]
        pca = [arm for arm in pca if task.pca is None or arm in study.motion]
        timm = [arm for arm in study.arms if study.timm_name(name, arm)]
        if encoder or pca or timm:
            with own_folder(out):
                tasks[name] = _prepared(study, name, out / "prepared" / folder_name(name), encoder, pca, timm)
    return dataclasses.replace(study, tasks=tasks)


def _prepared(
    study: agents.compare.Study, name: str, folder: Path, encoder: bool, pca: list[str], timm: list[str]
) -> agents.compare.Task:
    """A task with its encoder, where it is asked for, and the principal components and networks of some arms."""
    from agents.compare.runs import duration, read_json
    from agents.compare.study import folder_name
    from agents.envs import fit_components
    from latent_obs.encoder.folder import read_encoder_folder
    from latent_obs_cli.encoder import EncoderConfig, make_encoder
    from latent_obs_cli.stages import record_all

    task, noted = study.tasks[name], folder / "seconds.json"

    def stage(what: str, text: str, work: Callable[[], None]) -> float:
        """Do the work of a stage unless it is finished; its seconds, also those before an interruption."""
        stages = read_json(noted) or {}
        done = {"seconds": 0.0, "finished": False, **stages.get(what, {})}
        if not done["finished"]:
            print_now(f"{name}: {text} …")
            began = time.perf_counter()
            try:
                work()
                done["finished"] = True
            finally:
                done["seconds"] += time.perf_counter() - began
                write_json(noted, {**stages, what: done})
        return done["seconds"]

    seconds, frames = 0.0, task.frames or folder / "frames"
    vae = _stage_config(TrainConfig.from_json, "vae", study.vae, {"frames": frames, "out": folder / "vae"})
    networks: dict[str, EncoderConfig] = {}
    for arm in timm:
        decided = {"name": study.timm_name(name, arm), "frames": frames, "out": folder / f"timm-{folder_name(arm)}"}
        given = study.timm.get(arm, {})
        networks[arm] = _stage_config(lambda values: EncoderConfig(**values), f"timm.{arm}", given, decided)
        networks[arm].check_name()
    if encoder and vae.latent_dim is not None and (most := max(study.motion.values(), default=0)) > vae.latent_dim:
        raise InputError(f"[motion] asks for {most} of {vae.latent_dim} components ([vae] latent_dim); give fewer")
    if task.frames is not None:
        vae_training.get_datasets(frames)  # raises before anything is written
    else:
        settings = {**study.settings, **task.settings}
        settings = {key: settings[key] for key in _OF_FRAMES if key in settings} | {"state": False} | study.record
        decided = {"env": task.env, "out": frames}
        recording = _stage_config(lambda values: RecordConfig(**values), "record", settings, decided)
        seconds += stage("frames", f"records {recording.frames:,} frames", lambda: record_all(recording, _say))
    if encoder:

        def train_encoder() -> None:
            if vae_training.train(vae, resume=(vae.out / "config.json").exists(), say=_say).interrupted:
                raise KeyboardInterrupt

        seconds += stage("encoder", f"trains an encoder on {frames}, {vae.epochs} epochs", train_encoder)
        print(f"{name}: the encoder took {duration(seconds)}, recording included.")
        task = dataclasses.replace(task, encoder=vae.out / "encoder", encoder_seconds=seconds)
    trained = task.encoder

    def make_components(file: Path, motion: int) -> None:
        fit_components(frames, trained, motion).save(file)

    for arm in pca:
        motion = study.motion.get(arm, 0)
        components = folder / (f"pca-motion-{motion}.safetensors" if motion else "pca.safetensors")
        work = partial(make_components, components, motion)
        stage(components.stem, f"fits principal components to {frames}", work)
        task = _with_own(task, arm, "pca", components) if motion else dataclasses.replace(task, pca=components)
    values = read_encoder_folder(trained).latent_dim if networks and trained is not None else None
    for arm, config in networks.items():
        if values is not None and "pca" not in study.timm.get(arm, {}):
            config = dataclasses.replace(config, pca=values)
        if not config.folder.exists():
            stage(config.out.name, f"makes an encoder of {config.name} and {frames}", partial(make_encoder, config))
        task = _with_own(task, arm, "encoder", config.folder)
    return task


def _with_own(task: agents.compare.Task, arm: str, setting: str, file: Path) -> agents.compare.Task:
    """A task with a file or folder of one arm alone."""
    return dataclasses.replace(task, arms={**task.arms, arm: {**task.arms.get(arm, {}), setting: file}})


def _stage_config(
    make: Callable[[dict[str, Any]], Any], table: str, given: dict[str, Any], decided: dict[str, Any]
) -> Any:
    """Settings of a stage from a table of the study, with those that the study decides itself."""
    try:
        return make(dict(**given, **decided))  # a name that is in both is a TypeError
    except (InputError, TypeError) as error:
        raise InputError(f"[{table}] of the study: {error}") from None


def _say(text: str) -> None:
    """Print a message of a stage, unless it names a verb, which is not needed here."""
    if not text.startswith(("next:", "Go on with:")):
        print_now(textwrap.indent(text, "  "))
