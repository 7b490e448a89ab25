"""What a comparison needs before its first run: frames, an encoder and principal components, with the time they took."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agents.compare import Study, Task
from agents.compare.engine import duration, only_one
from agents.compare.files import read_json
from agents.compare.study import folder_name
from agents.envs import contract_of
from latent_obs.atomic import write_json
from latent_obs.errors import InputError
from latent_obs.folder import read_encoder_folder
from latent_obs.pca import fit_pca_of_folder, save_pca
from latent_obs.pixels import PixelContract
from vae_training import RecordConfig, TrainConfig, get_datasets, record, train

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
