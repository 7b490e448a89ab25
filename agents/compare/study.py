"""What is compared: tasks, arms and seeds, read from a TOML file.

    arms = ["pixels", "latent", "random-latent", "pca-latent", "latent, 4 frames"]
    seeds = [0, 1, 2]
    steps = 50_000                         # of each run; a task may have its own

    [settings]                             # any setting of train-agent, for all runs
    frame_skip = 4
    latent_only = true

    [arm_settings."latent, 4 frames"]      # a variant: an arm with settings of its own, in all tasks
    observation = "latent"
    history = 4

    [record]                               # where there is no encoder: settings of `frames record`, and of train-vae
    frames = 20_000
    [vae]
    epochs = 8

    [tasks.basic]
    env = "VizdoomBasic-v1"
    encoder = "runs/doom/encoder"          # paths count from the folder of this file
    pca = "runs/doom/pca.safetensors"

    [tasks.basic.settings]                 # for all runs of this task
    env_kwargs = { max_buttons_pressed = 1 }

    [tasks.basic.arms.pixels]              # for one arm in this task: its own fair tuning
    ent_coef = 0.02

What is more particular counts: [settings], then [tasks.T.settings], then [arm_settings.A], then [tasks.T.arms.A].
"""

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from agents.config import AgentConfig, Observation
from agents.envs import contract_of
from latent_obs.encoder.folder import read_encoder_folder
from latent_obs.util.errors import InputError

Settings = dict[str, Any]

BASELINE = "pixels"
"""The arm that all others are measured against."""
OBSERVATIONS: tuple[str, ...] = get_args(Observation)
_DECIDED_ELSEWHERE = ("env", "out", "seed", "steps")
_SMALLEST_CNN = 36  # what `train_agent` asks of frames
_DECIDED_BY_ARMS = ("observation", "encoder", "pca")


@dataclass(frozen=True)
class Task:
    """One environment, and what is particular to it.

    Attributes:
        env: A registered environment with pixels.
        encoder: Encoder folder, trained on frames of it; the random encoder takes its layers from it.
        pca: File of `latent_obs.encoder.pca.save_pca`, for the arm "pca-latent".
        frames: Folder of frames to make encoder and pca of, where they are not given (`latent-obs compare` does that).
        steps: Environment steps of each run; None is the study's number.
        reference: A known score that stands for 1 when scores of several tasks are put on one scale. None: the pixel
            agent's.
        encoder_seconds: What recording frames and training the encoder took, to be stated beside the curves.
        settings: Of all runs of this task.
        arms: Of one arm in this task, by its name.
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


@dataclass(frozen=True)
class Study:
    """Tasks x arms x seeds: one training run each.

    Attributes:
        tasks: By name.
        arms: What the agents see: "pixels", "latent", "random-latent", "pca-latent", or names in `arm_settings`.
        seeds: One run each, for each arm of each task.
        steps: Environment steps of each run, where a task says nothing else.
        episodes: New episodes that each final agent, and the random policy, is judged on.
        evaluations: Points of a learning curve, where the setting eval_every does not say it.
        settings: Settings of train-agent for all runs.
        arm_settings: Settings of an arm in all tasks; a name of one's own needs `observation` in it.
        record: Settings of `frames record` for the frames of encoders that are made; by default as the tasks' settings
            are.
        vae: Settings of train-vae for encoders that are made.

    Raises:
        InputError: There is nothing to compare, or a name or number that will not do.

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
    record: Settings = field(default_factory=dict)
    vae: Settings = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("tasks", "arms", "seeds"):
            if not getattr(self, name):
                raise InputError(f"a study needs {name}, and there are none")
        for name in ("arms", "seeds"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise InputError(f"{name} must differ from each other, got {list(values)}")
        for name in ("steps", "episodes", "evaluations"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise InputError(f"{name} of a study must be 1 or more, got {getattr(self, name)!r}")
        if any(not isinstance(seed, int) or seed < 0 for seed in self.seeds):
            raise InputError(f"seeds must be whole numbers, 0 or more, got {list(self.seeds)}")
        for what, names in (("tasks", list(self.tasks)), ("arms", list(self.arms))):
            folders = [folder_name(name) for name in names]
            if len(set(folders)) != len(folders) or not all(folders):
                raise InputError(f"the names of {what} become folders, and {names} become {folders}; choose others")
        for arm in self.arms:
            self.observation(arm)
        unused = [arm for arm in self.arm_settings if arm not in self.arms]
        if unused:
            raise InputError(f"arm_settings of {unused}, which are not among the arms {list(self.arms)}")
        for name, task in self.tasks.items():
            unused = [arm for arm in task.arms if arm not in self.arms]
            if unused:
                raise InputError(f"tasks.{name}.arms has {unused}, which are not among the arms {list(self.arms)}")

    def observation(self, arm: str) -> str:
        """What an arm's agents see.

        Raises:
            InputError: It is neither one of train-agent's observations nor a variant that names one.
        """
        seen = self.arm_settings.get(arm, {}).get("observation", arm)
        if seen not in OBSERVATIONS:
            raise InputError(
                f"arm {arm!r}: expected one of {', '.join(OBSERVATIONS)}, or a variant with a table "
                f'[arm_settings."{arm}"] that has observation = one of them'
                + ("" if seen == arm else f"; its observation is {seen!r}")
            )
        return seen

    def steps_of(self, task: str) -> int:
        """Environment steps of each run of a task."""
        own = self.tasks[task].steps
        return self.steps if own is None else own

    def own_settings(self, task: str, arm: str) -> Settings:
        """What the study says of an arm in a task, the more particular over the general; without paths and seeds."""
        of_task = self.tasks[task]
        return {**self.settings, **of_task.settings, **self.arm_settings.get(arm, {}), **of_task.arms.get(arm, {})}

    def config(self, task: str, arm: str, seed: int, out: Path) -> AgentConfig:
        """The settings of one run.

        Raises:
            InputError: A setting is unknown or out of range, or the arm needs an encoder and there is none.
        """
        of_task, steps = self.tasks[task], self.steps_of(task)
        values: Settings = {
            "env": of_task.env,
            "out": out,
            "seed": seed,
            "steps": steps,
            "observation": self.observation(arm),
            "encoder": of_task.encoder,
            "eval_every": max(1, steps // self.evaluations),
            **self.own_settings(task, arm),
        }
        where = f"task {task!r}, arm {arm!r}"
        if values["observation"] == "pca-latent":
            if values.setdefault("pca", of_task.pca) is None:
                raise InputError(f"{where}: there is no pca; name the file that latent_obs.encoder.pca.save_pca wrote")
            values["encoder"] = None  # components know their frames themselves
        if values["observation"] == "latent" and values["encoder"] is None:
            raise InputError(f"{where}: there is no encoder; name the folder that train-vae made")
        try:
            config = AgentConfig.from_json(values)
        except (InputError, TypeError, AttributeError) as error:
            raise InputError(f"{where}: {_with_hint(str(error), values)}") from None
        if not config.eval_every:
            raise InputError(f"{where}: eval_every is 0, and learning curves are made of evaluations")
        if config.observation == "pixels" and config.encoder is not None:
            # It would only tell the size of a frame. Left out where that says nothing else than usual, or is too small
            # for a CNN: these runs need not be made again for another encoder.
            contract = read_encoder_folder(config.encoder).contract
            if contract == contract_of(None) or min(contract.shape[:2]) < _SMALLEST_CNN:
                config = dataclasses.replace(config, encoder=None)
        return config

    def to_json(self) -> dict[str, Any]:
        """Plain values, paths absolute; `study_from` reads them back."""
        return _plain(dataclasses.asdict(self))


def load_study(file: str | Path) -> Study:
    """Read a study from a TOML file.

    Raises:
        InputError: There is no such file, it is no TOML, or something in it is unknown or will not do.
    """
    file = Path(file)
    if not file.is_file():
        raise InputError(f"there is no study {file}; `latent-obs compare --help` tells what it holds")
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no TOML file: {error}") from None
    try:
        return study_from(values, file.resolve().parent)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def study_from(values: Mapping[str, Any], folder: Path) -> Study:
    """A study of plain values.

    Args:
        values: As in the TOML file.
        folder: What its paths count from.

    Raises:
        InputError: Something in it is unknown or will not do.
    """
    given = dict(values)
    _known(given, Study, "a study")
    tasks: dict[str, Task] = {}
    for name, table in _table(given, "tasks").items():
        where = f"tasks.{name}"
        if not isinstance(table, dict) or "env" not in table:
            raise InputError(f"{where} needs env, the name of an environment")
        own = dict(table)
        _known(own, Task, where)
        own["settings"] = _settings(_table(own, "settings", where), f"{where}.settings", folder, _DECIDED_BY_ARMS)
        arms = _table(own, "arms", where)
        own["arms"] = {arm: _settings(s, f"{where}.arms.{arm}", folder, ("observation",)) for arm, s in arms.items()}
        for path in ("encoder", "pca", "frames"):
            if own.get(path) is not None:
                own[path] = folder / own[path]
        steps = own.get("steps")
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise InputError(f"{where}.steps must be 1 or more, got {steps!r}")
        tasks[str(name)] = Task(**own)
    given["tasks"] = tasks
    given["settings"] = _settings(_table(given, "settings"), "settings", folder, _DECIDED_BY_ARMS)
    given |= {name: dict(_table(given, name)) for name in ("record", "vae")}
    variants = _table(given, "arm_settings")
    given["arm_settings"] = {arm: _settings(s, f"arm_settings.{arm}", folder, ()) for arm, s in variants.items()}
    for name in ("arms", "seeds"):
        if name in given:
            if not isinstance(given[name], list | tuple):
                raise InputError(f"{name} must be a list, got {given[name]!r}")
            given[name] = tuple(given[name])
    return Study(**given)


def folder_name(name: str) -> str:
    """A name as a part of a path.

    Example:
        >>> folder_name("latent, 4 frames")
        'latent-4-frames'
    """
    return re.sub(r"[^\w.]+", "-", name).strip("-.")


def _table(values: Mapping[str, Any], name: str, where: str = "") -> dict[str, Any]:
    table = values.get(name, {})
    if not isinstance(table, dict):
        raise InputError(f"{where}{'.' if where else ''}{name} must be a table, got {table!r}")
    return table


def _known(values: Mapping[str, Any], kind: type[Any], where: str) -> None:
    names = [f.name for f in dataclasses.fields(kind)]
    for name in values:
        if name not in names:
            raise InputError(f"{where}: unknown {name!r}{_near(name, names)}. It may have {', '.join(names)}")


def _settings(values: Any, where: str, folder: Path, forbidden: tuple[str, ...]) -> Settings:
    """Settings of train-agent with their paths made absolute."""
    if not isinstance(values, dict):
        raise InputError(f"{where} must be a table of settings, got {values!r}")
    kinds = {f.name: f.type for f in dataclasses.fields(AgentConfig)}
    settings: Settings = {}
    for name, value in values.items():
        if name in (*_DECIDED_ELSEWHERE, *forbidden):
            raise InputError(f"{where}: {name} cannot be set here; the study decides it")
        if name not in kinds:
            raise InputError(f"{where}: train-agent has no setting {name!r}{_near(name, list(kinds))}")
        is_path = kinds[name] is Path or Path in get_args(kinds[name])
        settings[name] = folder / value if is_path and value is not None else value
    return settings


def _near(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=2)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _with_hint(text: str, values: Settings) -> str:
    """An error of a comparison between text and number names neither; the texts among the settings are shown."""
    if "not supported between" not in text:
        return text
    words = {k: v for k, v in values.items() if isinstance(v, str) and k not in ("env", "observation")}
    return f"a setting is of the wrong kind ({text}); given as text: {words}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value.absolute()) if isinstance(value, Path) else value
