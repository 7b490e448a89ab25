"""The runs of a study and their files, and whether what is there already was made with the same settings.

out/
├── study.json                        what is compared
├── runs/<task>/
│   ├── random_policy.json            returns of random actions
│   └── <arm>/
│       ├── seed_<n>/                 run folder of train_agent
│       ├── seed_<n>.json             numbers of the finished run: written last, so that it marks one
│       ├── seed_<n>.job.json         what its process was asked to do
│       ├── seed_<n>.usage.json       processor time and memory of each attempt
│       ├── seed_<n>.failed.json      why it failed; gone once it has not
│       └── seed_<n>.log              what its process said
├── compare.json, compare.html        all numbers; one page
└── plots/
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agents.compare.study import Study, folder_name
from agents.config import AgentConfig
from latent_obs.errors import InputError
from latent_obs.folder import read_encoder_folder

_NOT_COMPARED = ("out", "device", "encoder", "pca", "env", "seed", "keep_checkpoints")
#: Exit statuses of a run's process.
FINISHED, CRASHED, MISTAKE, STOPPED = 0, 1, 2, 3
RANDOM_POLICY = "random policy"


@dataclass(frozen=True)
class Planned:
    """One process to start: a training run with its final evaluation, or a task's random policy.

    Attributes:
        kind: "train", or "random" for the random policy.
        task: Name of the task.
        arm: Name of the arm; "random policy" for that.
        seed: Seed of the run.
        config: All settings.
        episodes: Episodes of the final evaluation.
    """

    kind: Literal["train", "random"]
    task: str
    arm: str
    seed: int
    config: AgentConfig
    episodes: int

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.task}, {self.arm}" + (f", seed {self.seed}" if self.kind == "train" else "")

    def file(self, ending: str) -> Path:
        """The run's file with an ending, such as ".json"; beside its folder."""
        return self.config.out.with_name(self.config.out.name + ending)

    @property
    def is_finished(self) -> bool:
        """Whether its numbers are there."""
        return self.file(".json").exists()

    def signature(self) -> dict[str, Any]:
        """What the run's numbers depend on: settings, and the checksums of the files that its agent sees through.

        Settings that are left to the algorithm are here with its defaults, so that a version with others is noticed.
        """
        values = {k: v for k, v in self.config.settled().to_json().items() if k not in _NOT_COMPARED}
        values |= {"env": self.config.env, "episodes": self.episodes}
        if self.kind == "random":
            names = ("env", "episodes", "frame_skip", "env_kwargs")
            return json.loads(json.dumps({k: values[k] for k in names}))
        if self.config.encoder is not None:
            folder = read_encoder_folder(self.config.encoder).path
            values["encoder"] = _checksum(folder / "encoder.safetensors")
        if self.config.pca is not None:
            values["pca"] = _checksum(self.config.pca)
        return json.loads(json.dumps(values))


def plan_runs(study: Study, out: Path) -> list[Planned]:
    """All runs of a study, in the order in which they start.

    Seed by seed and the arms of a task one after the other, so that what a slow hour costs is shared among them.

    Raises:
        InputError: A setting will not do, or an arm lacks its encoder.
    """
    return [*_random_policies(study, out), *_training(study, out)]


def _random_policies(study: Study, out: Path) -> Iterator[Planned]:
    for task in study.tasks:
        # Any arm will do: it looks at nothing.
        arm = study.arms[0]
        config = study.config(task, arm, 0, out / "runs" / folder_name(task) / "random_policy")
        yield Planned("random", task, RANDOM_POLICY, 0, config, study.episodes)


def _training(study: Study, out: Path) -> Iterator[Planned]:
    for seed in study.seeds:
        for task in study.tasks:
            for arm in study.arms:
                folder = out / "runs" / folder_name(task) / folder_name(arm) / f"seed_{seed}"
                yield Planned("train", task, arm, seed, study.config(task, arm, seed, folder), study.episodes)


def check_same(run: Planned) -> None:
    """Refuse to take, or to go on with, a run that was begun with other settings.

    Raises:
        InputError: It was; the message names what differs.
    """
    for file in (run.file(".json"), run.file(".job.json")):
        if not file.exists():
            continue
        try:
            before = dict(json.loads(file.read_text())["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} is damaged ({error!r}); remove it, and the run is made again") from None
        now = run.signature()
        # A setting that did not exist then was at its default.
        plain = AgentConfig(algorithm=run.config.algorithm, observation=run.config.observation).settled().to_json()
        before = json.loads(json.dumps({k: v for k, v in plain.items() if k in now})) | before
        changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        if changed:
            what = "; ".join(f"{name} was {_short(before.get(name))}, is now {_short(now.get(name))}" for name in changed)
            raise InputError(
                f"{run.name}: {file} is of a run with other settings: {what}. Take them back, name the new ones as another "
                "arm, choose another --out, or remove the run's files to have it made again"
            )
        return


def _short(value: Any) -> str:
    return f"{value[:10]}…" if isinstance(value, str) and len(value) == 64 else repr(value)


def _checksum(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
