"""What is compared: tasks, arms and seeds, read from a TOML file.

    arms = ["pixels", "latent", "random-latent", "pca-latent", "latent, 4 frames", "pca-motion", "resnet"]
    seeds = [0, 1, 2]
    steps = 50_000                         # of each run; a task may have its own

    [settings]                             # any setting of train-agent, for all runs
    frame_skip = 4
    latent_only = true

    [arm_settings."latent, 4 frames"]      # a variant: an arm with settings of its own, in all tasks
    observation = "latent"
    history = 4

    [arm_settings.pca-motion]
    observation = "pca-latent"
    [motion]                               # of this arm's principal components, 128 are of differences between frames
    pca-motion = 128

    [arm_settings.resnet]                  # a pretrained network of timm: `latent-obs encoder` makes an encoder of it
    observation = "latent"
    encoder = "timm:resnet18.a1_in1k"
    [timm.resnet]                          # of this arm, settings of `latent-obs encoder`, if they are to differ
    layer = 1

    [record]                               # where there is no encoder: settings of `frames record`, and of train-vae
    frames = 20_000
    [vae]
    epochs = 8

    [tasks.basic]
    env = "VizdoomBasic-v1"
    encoder = "runs/doom/encoder"          # paths are relative to the folder of this file
    pca = "runs/doom/pca.safetensors"

    [tasks.basic.settings]                 # for all runs of this task
    env_kwargs = { max_buttons_pressed = 1 }

    [tasks.basic.arms.pixels]              # for one arm in this task: its own fair tuning
    ent_coef = 0.02

The more specific setting wins: [settings], then [tasks.T.settings], then [arm_settings.A], then [tasks.T.arms.A].
"""

import dataclasses
import difflib
import json
import math
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from agents.config import AgentConfig, Observation
from agents.envs import contract_of
from latent_obs.encoder.folder import read_encoder_folder
from latent_obs.encoder.timm_module import PREFIX
from latent_obs.util.errors import InputError, check_choice, check_count, check_type, check_types

Settings = dict[str, Any]

BASELINE = "pixels"
"""The arm that all others are compared with."""
OBSERVATIONS: tuple[str, ...] = get_args(Observation)
_NEEDED = {"latent": "encoder", "pca-latent": "pca"}  # what an agent with an observation cannot do without
_SMALLEST_CNN = 36  # the smallest frame that `train_agent` gives to a CNN
_SET_BY_STUDY = ("env", "out", "seed", "steps")
_SET_BY_ARM = ("observation", "encoder", "pca")


@dataclass(frozen=True)
class Task:
    """One environment, and the settings that belong to it.

    Attributes:
        env: A registered environment with pixels.
        encoder: Encoder folder, trained on frames of it; the random encoder has the same layers.
        pca: File of `latent_obs.PCA`, for the arm "pca-latent".
        frames: Folder of frames from which `latent-obs compare` makes a missing encoder or PCA file.
        steps: Environment steps of each run; None is the study's number.
        reference: A known score that counts as 1 when scores of several tasks are normalized. None: the pixel agent's.
        encoder_seconds: Seconds that recording frames and training the encoder took, shown beside the curves.
        settings: Settings of all runs of this task.
        arms: Settings of one arm in this task, by its name.
    """

    env: str
    encoder: Path | None = None
    pca: Path | None = None
    frames: Path | None = None
    steps: int | None = None
    reference: float | None = None
    encoder_seconds: float | None = None
    settings: Settings = field(default_factory=dict)
    arms: dict[str, Settings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        if self.reference is not None and not math.isfinite(self.reference):
            raise InputError(f"reference must be a finite number, got {self.reference}")


@dataclass(frozen=True)
class Study:
    """Tasks x arms x seeds: one training run each.

    Attributes:
        tasks: By name.
        arms: What the agents see: "pixels", "latent", "random-latent", "pca-latent", or names in `arm_settings`.
        seeds: One run for each seed, arm and task.
        steps: Environment steps of each run of a task that does not have its own.
        episodes: New episodes on which each final agent, and the random policy, is evaluated.
        evaluations: Points of a learning curve, unless the setting eval_every is given.
        settings: Settings of train-agent for all runs.
        arm_settings: Settings of an arm in all tasks; an arm with a new name needs `observation` here.
        motion: Of arms on principal components that are made: how many of these are of differences between a frame and
            the next one (`PCA.fit`).
        timm: Of arms whose encoder is "timm:" and a name: settings of `latent-obs encoder`, such as `layer`. By default
            a latent has as many values as that of the task's encoder.
        record: Settings of `frames record` for the frames of encoders that are made.
        vae: Settings of train-vae for encoders that are made.

    Raises:
        InputError: There is nothing to compare, or a name or number is not allowed.

    Example:
        >>> study = Study({"basic": Task("VizdoomBasic-v1")}, arms=("pixels",), steps=2_000, settings={"frame_skip": 4})
        >>> config = study.config("basic", "pixels", seed=1, out=Path("runs/a"))
        >>> config.observation, config.frame_skip, config.eval_every, config.seed
        ('pixels', 4, 200, 1)
    """

    tasks: dict[str, Task]
    arms: tuple[str, ...] = (BASELINE, "latent", "random-latent", "pca-latent")
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 100_000
    episodes: int = 50
    evaluations: int = 10
    settings: Settings = field(default_factory=dict)
    arm_settings: dict[str, Settings] = field(default_factory=dict)
    motion: dict[str, int] = field(default_factory=dict)
    timm: dict[str, Settings] = field(default_factory=dict)
    record: Settings = field(default_factory=dict)
    vae: Settings = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("tasks", "arms", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise InputError(f"{name} must be a list of one or more, and none twice, got {values!r}")
        for name in ("steps", "episodes", "evaluations"):
            check_count(name, getattr(self, name))
        for seed in self.seeds:
            check_count("seeds", seed, at_least=0)
        for what, names in (("tasks", self.tasks), ("arms", self.arms)):
            folders = {folder_name(name) for name in names}
            if len(folders) != len(names) or "" in folders:
                raise InputError(f"{what} need names that differ as folders: {list(names)} would become {folders}")
        for arm in self.arms:
            check_choice(
                f'arms: {arm!r}, or observation in [arm_settings."{arm}"],', self.observation(arm), OBSERVATIONS
            )
        given: dict[str, dict[str, Any]] = {"arm_settings": self.arm_settings, "motion": self.motion, "timm": self.timm}
        for name, task in self.tasks.items():
            check_count(f"tasks.{name}.steps", self.steps_of(name))
            if _is_timm(task.encoder):
                raise InputError(
                    f"tasks.{name}.encoder must be a folder; give {task.encoder} to an arm in arm_settings"
                )
            given[f"tasks.{name}.arms"] = task.arms
        for where, arms in given.items():
            for arm in arms:
                check_choice(f"an arm in {where}", arm, self.arms)
        for arm, count in self.motion.items():
            check_count(f"motion.{arm}", count)
            check_choice(f"motion: the observation of {arm}", self.observation(arm), ("pca-latent",))
        for name in self.tasks:
            for arm in self.arms:
                self._settings(name, arm, self.seeds[0], Path())

    def observation(self, arm: str) -> str:
        """What the agents of an arm see: one of train-agent's observations."""
        return self.arm_settings.get(arm, {}).get("observation", arm)

    def timm_name(self, task: str, arm: str) -> str | None:
        """The name of the network of timm that is to be the encoder of an arm in a task, or None."""
        encoder = self.own_settings(task, arm).get("encoder")
        return str(encoder) if _is_timm(encoder) else None

    def steps_of(self, task: str) -> int:
        """Environment steps of each run of a task."""
        own = self.tasks[task].steps
        return self.steps if own is None else own

    def own_settings(self, task: str, arm: str) -> Settings:
        """The settings that the study gives to an arm in a task, the more specific over the general."""
        of_task = self.tasks[task]
        return {**self.settings, **of_task.settings, **self.arm_settings.get(arm, {}), **of_task.arms.get(arm, {})}

    def config(self, task: str, arm: str, seed: int, out: Path) -> AgentConfig:
        """The settings of one run.

        Raises:
            InputError: A setting is unknown or out of range, or the arm needs an encoder and there is none.
        """
        config = self._settings(task, arm, seed, out)
        needed = _NEEDED.get(config.observation)
        if needed is not None and getattr(config, needed) is None:
            raise InputError(f"task {task!r}, arm {arm!r}: {needed} is missing; name it in the study")
        if config.observation == "pixels" and config.encoder is not None:
            # Of a pixel agent the encoder decides only the size of frames. It is left out where that is the usual size,
            # or too small for a CNN, so that another encoder does not make these runs again.
            contract = read_encoder_folder(config.encoder).contract
            if contract == contract_of(None) or min(contract.shape[:2]) < _SMALLEST_CNN:
                config = dataclasses.replace(config, encoder=None)
        return config

    def _settings(self, task: str, arm: str, seed: int, out: Path) -> AgentConfig:
        """The settings of one run, whose files may be missing yet."""
        of_task, steps, observation = self.tasks[task], self.steps_of(task), self.observation(arm)
        own: Settings = {
            "encoder": of_task.encoder,
            "pca": of_task.pca if observation == "pca-latent" else None,
            "eval_every": max(1, steps // self.evaluations),
            **self.own_settings(task, arm),
            "observation": observation,
        }
        if observation == "pca-latent":
            own["encoder"] = None  # the PCA file holds the preprocessing of its frames
        if self.settings.get("engine") == "rllib" and own.get("engine") != "rllib":
            own |= {"runners": None, "address": None}  # TOML cannot say so
        try:
            config = AgentConfig.from_json({**own, "env": of_task.env, "out": out, "seed": seed, "steps": steps})
            check_count("eval_every", config.eval_every)  # 0 would leave no learning curve
            config.check_runners()
        except InputError as error:
            where = f"task {task!r}, arm {arm!r}"
            raise InputError(f"{where}: {error}; the study sets {self.own_settings(task, arm)}") from None
        return config

    def to_json(self) -> dict[str, Any]:
        """Plain values with absolute paths; `study_from` reads them back."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=lambda path: str(path.absolute())))


def load_study(file: str | Path) -> Study:
    """Read a study from a TOML file.

    Raises:
        InputError: There is no such file, it is not TOML, or something in it is unknown or not allowed.
    """
    file = Path(file)
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"study: {file} cannot be read as TOML: {error}; agents/compare/study.py shows the format"
        ) from None
    try:
        return study_from(values, file.resolve().parent)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def study_from(values: Mapping[str, Any], folder: Path) -> Study:
    """Make a study of plain values, as in the TOML file, whose paths are relative to `folder`.

    Raises:
        InputError: Something in it is unknown or not allowed.
    """

    def settings(where: str, table: Any, *decided: str) -> Settings:
        """A table of settings of train-agent, with absolute paths."""
        known = [f.name for f in fields(AgentConfig)]
        given = _table(where, table, [*known, *AgentConfig.RENAMED, *AgentConfig.REMOVED])
        given = {AgentConfig.RENAMED.get(name, name): value for name, value in given.items()}
        if forbidden := given.keys() & {*_SET_BY_STUDY, *decided}:
            raise InputError(f"{where}: {', '.join(forbidden)} cannot be set here; the study decides it")
        return given | absolute(where, given, "encoder", "pca")

    def task(where: str, table: Any) -> Task:
        given: Settings = {"settings": {}, "arms": {}} | _table(where, table, [f.name for f in fields(Task)])
        if "env" not in given:
            raise InputError(f"{where} needs env, the name of an environment")
        given["settings"] = settings(f"{where}.settings", given["settings"], *_SET_BY_ARM)
        arms = _table(f"{where}.arms", given["arms"]).items()
        given["arms"] = {arm: settings(f"{where}.arms.{arm}", own, "observation") for arm, own in arms}
        given |= absolute(where, given, "encoder", "pca", "frames")
        try:
            return Task(**given)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    def absolute(where: str, given: Settings, *paths: str) -> Settings:
        for name in paths:
            check_type(f"{where}: {name}", given.get(name), str | None)
        return {name: folder / given[name] for name in paths if given.get(name) and not _is_timm(given[name])}

    given: Settings = {"tasks": {}, "settings": {}, "arm_settings": {}, "timm": {}, "record": {}, "vae": {}}
    given |= _table("study", values, [f.name for f in fields(Study)])
    for name in ("tasks", "arm_settings", "timm", "record", "vae"):
        given[name] = _table(name, given[name])
    given["timm"] = {arm: own | absolute(f"timm.{arm}", own, "weights") for arm, own in given["timm"].items()}
    given["settings"] = settings("settings", given["settings"], *_SET_BY_ARM)
    given["arm_settings"] = {arm: settings(f"arm_settings.{arm}", own) for arm, own in given["arm_settings"].items()}
    given["tasks"] = {name: task(f"tasks.{name}", own) for name, own in given["tasks"].items()}
    return Study(**given)


def _is_timm(encoder: object) -> bool:
    return str(encoder).startswith(PREFIX)


def folder_name(name: str) -> str:
    """Make a name usable as a folder.

    Example:
        >>> folder_name("latent, 4 frames")
        'latent-4-frames'
    """
    return re.sub(r"[^\w.]+", "-", name).strip("-.")


def _table(where: str, table: Any, known: Collection[str] | None = None) -> dict[str, Any]:
    """A copy of a table, all of whose names are known."""
    if not isinstance(table, Mapping):
        raise InputError(f"{where} must be a table, got {table!r}")
    for name in table:
        if known is not None and name not in known:
            near = difflib.get_close_matches(name, known, n=2) or known
            raise InputError(f"{where}: {name!r} is unknown; use {' or '.join(near)}")
    return dict(table)
