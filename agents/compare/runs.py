"""Starts the runs of a study, each in a process of its own, a few at a time; safe to interrupt and to start again."""

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from agents.compare.study import Study, folder_name, study_from
from agents.config import AgentConfig
from latent_obs.encoder.folder import read_encoder_folder
from latent_obs.util.atomic import write_json
from latent_obs.util.device import cores
from latent_obs.util.errors import InputError
from latent_obs.util.interrupt import GracefulStop

_NOT_COMPARED = ("out", "device", "encoder", "pca", "env", "seed")
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
        before = {name: value for name, value in before.items() if name not in AgentConfig.REMOVED}
        before = json.loads(json.dumps({k: v for k, v in plain.items() if k in now})) | before
        changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        if changed:
            what = "; ".join(
                f"{name} was {_short(before.get(name))}, is now {_short(now.get(name))}" for name in changed
            )
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


def read_json(file: Path) -> Any:
    """What a JSON file holds; None where there is none, or where it cannot be read.

    Example:
        >>> read_json(Path("no such file")) is None
        True
    """
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def end_session(leader: int, *, but: int | None = None) -> None:
    """Kill all processes of a session: of one that was started with ``start_new_session=True``, and of its descendants.

    Environments are processes in groups of their own, which a signal to the leader's group does not reach; they do not
    leave its session. Without Linux's /proc it is the group alone.

    Args:
        leader: Number of the session's first process, which may have ended.
        but: One that is left alive, or killed by its own hand.
    """
    for pid in _members(leader):
        if pid != but:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    if but is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)


def _members(session: int) -> list[int]:
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            if os.getsid(int(entry.name)) == session:
                found.append(int(entry.name))
    return found


WORKER = ("-m", "agents.compare.worker")
_PAUSE_S = 0.2
_GRACE_S = 15.0  # for a step under way, and for saving
_LAST_WORDS = 3  # lines of its log that tell why a run died without a word


@dataclass
class _Running:
    run: Planned
    process: "subprocess.Popen[bytes]"
    began: float


def run_all(
    runs: Sequence[Planned],
    *,
    jobs: int | None = None,
    threads: int | None = None,
    say: Callable[[str], object] = print,
) -> dict[str, str]:
    """Make every run that is not finished.

    Args:
        runs: From `plan_runs`, in the order to start them.
        jobs: How many at once; half the cores by default, at least 1.
        threads: Threads that torch computes with in each; cores / jobs by default.
        say: Where messages go: a line when a run begins, and one when it ends.

    Returns:
        Name and reason of those that failed.

    Raises:
        InputError: A run that is there already has other settings; before anything starts.
        KeyboardInterrupt: It was stopped; no process is left, and the same call goes on.
    """
    for name, count in (("jobs", jobs), ("threads", threads)):
        if count is not None and count < 1:
            raise InputError(f"{name} must be 1 or more, got {count}")
    jobs = max(1, cores() // 2) if jobs is None else jobs
    threads = max(1, cores() // jobs) if threads is None else threads
    for run in runs:
        check_same(run)
    waiting = [run for run in runs if not run.is_finished]
    clock = _Clock(runs, waiting, jobs)
    say(
        f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished before; {jobs} at once, "
        f"{threads} thread{'s' if threads > 1 else ''} of torch each."
    )
    failures: dict[str, str] = {}
    running: list[_Running] = []
    with GracefulStop() as stop:
        try:
            while (waiting or running) and not stop.requested:
                while waiting and len(running) < jobs:
                    run = waiting.pop(0)
                    running.append(_start(run, jobs, threads))
                    say(f"{clock.place(run)} begins: {run.name}")
                for one in [r for r in running if r.process.poll() is not None]:
                    running.remove(one)
                    reason = _ended(one)
                    clock.took(one.run, time.perf_counter() - one.began)
                    place = clock.place(one.run)
                    if reason is None:
                        say(f"{place} ended:  {one.run.name}: {_outcome(one.run)}. {clock.left(waiting, running)}")
                    else:
                        failures[one.run.name] = reason
                        say(f"{place} FAILED: {one.run.name}: {reason} (all it said: {one.run.file('.log')})")
                time.sleep(_PAUSE_S)
        finally:
            if running:
                say(f"Stopping {len(running)} run(s); they save first …")
                _stop_all([one.process for one in running])
        if stop.requested:
            raise KeyboardInterrupt
    return failures


@contextlib.contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Keep a second process from working in the same folder.

    Raises:
        InputError: One is at work there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"another comparison is at work in {out}. Wait for it, or look at what it has so far with --page-only"
            ) from None
        yield


def _start(run: Planned, jobs: int, threads: int) -> _Running:
    """Write down what the process is to do, and start it, in a session of its own: Ctrl-C reaches this process only."""
    run.file(".failed.json").unlink(missing_ok=True)
    job: dict[str, Any] = {
        "kind": run.kind,
        "task": run.task,
        "arm": run.arm,
        "seed": run.seed,
        "episodes": run.episodes,
        "settings": run.signature(),
        "config": run.config.to_json(),
        "threads": threads,
        "jobs": jobs,
        "result": str(run.file(".json")),
        "usage": str(run.file(".usage.json")),
        "failed": str(run.file(".failed.json")),
        "parent": os.getpid(),
    }
    write_json(run.file(".job.json"), job)
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)  # a user's own environments are found there
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    with run.file(".log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *WORKER, str(run.file(".job.json"))],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
    return _Running(run, process, time.perf_counter())


def _ended(one: _Running) -> str | None:
    """Why a process that ended has failed; None where it has not."""
    status = one.process.returncode
    if status == FINISHED and one.run.is_finished:
        return None
    end_session(one.process.pid)  # a process that crashed may have left its environments behind
    noted = read_json(one.run.file(".failed.json"))
    if noted:
        return str(noted.get("reason"))
    last = one.run.file(".log").read_text(errors="replace").strip().splitlines()[-_LAST_WORDS:]
    how = f"it was ended by signal {-status}" if status < 0 else f"exit status {status}"
    how = "it was stopped from outside" if status == STOPPED else how
    reason = f"{how}; its last words: {' / '.join(last) or 'none'}"
    write_json(one.run.file(".failed.json"), {"reason": reason})
    return reason


def _outcome(run: Planned) -> str:
    numbers = read_json(run.file(".json")) or {}
    final = numbers["final"]
    text = f"mean return {final['mean']:.1f} over {len(final['returns'])} new episodes"
    return text + (f", {numbers['steps_per_second']:.0f} steps/s" if "steps_per_second" in numbers else "")


def _stop_all(processes: "Sequence[subprocess.Popen[bytes]]") -> None:
    """Ask kindly, wait, then end those that are left with all that they started."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_S
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        end_session(process.pid)
        process.wait()


class _Clock:
    """Numbers the runs, and guesses how long those that are left will take."""

    def __init__(self, runs: Sequence[Planned], waiting: Sequence[Planned], jobs: int) -> None:
        self._numbers = {run.name: i for i, run in enumerate(runs, 1)}
        self._jobs = jobs
        self._rates: dict[tuple[str, str], list[float]] = {}  # seconds per step, by task and arm
        for run in runs:
            if run not in waiting:
                self.took(run, float((read_json(run.file(".json")) or {}).get("wall_seconds", 0)))

    def place(self, run: Planned) -> str:
        return f"[{self._numbers[run.name]}/{len(self._numbers)}]"

    def took(self, run: Planned, seconds: float) -> None:
        if run.kind == "train":
            self._rates.setdefault((run.task, run.arm), []).append(seconds / run.config.steps)

    def left(self, waiting: Sequence[Planned], running: Sequence[_Running]) -> str:
        """When all will be done, from how long runs of the same task and arm, or of the same arm, or any, have
        taken.
        """
        if not (waiting or running):
            return "That was the last."
        if not self._rates:
            return f"{len(waiting) + len(running)} runs left."
        now = time.perf_counter()
        seconds = sum(self._guess(run) for run in waiting)
        seconds += sum(max(0.0, self._guess(one.run) - (now - one.began)) for one in running)
        return f"{len(waiting) + len(running)} runs left, about {duration(seconds / self._jobs)}."

    def _guess(self, run: Planned) -> float:
        if run.kind == "random":
            return 0.0
        same_arm = [rate for (_, arm), rates in self._rates.items() if arm == run.arm for rate in rates]
        any_run = [rate for rates in self._rates.values() for rate in rates]
        known = self._rates.get((run.task, run.arm)) or same_arm or any_run
        return run.config.steps * sum(known) / len(known)


def duration(seconds: float) -> str:
    """A time in words.

    Example:
        >>> duration(42), duration(600), duration(9_000)
        ('42 s', '10 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6_000 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Results:
    """Raw numbers of a study, finished or not.

    Attributes:
        study: What is compared.
        runs: Numbers of each finished run, as `agents.compare.worker` writes them, by task and arm, in the order of
            seeds.
        random: Returns of the random policy on each task that has them.
        missing: Name of each run without numbers, and why: "not finished", or how it failed.
    """

    study: Study
    runs: dict[str, dict[str, list[dict[str, Any]]]]
    random: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"study": self.study.to_json(), "runs": self.runs, "random": self.random, "missing": self.missing}


def collect(study: Study, out: Path) -> Results:
    """Read the numbers of all finished runs of a study.

    Args:
        study: What is compared.
        out: Its folder.

    Raises:
        InputError: A setting of the study will not do.
    """
    results = Results(study, {task: {arm: [] for arm in study.arms} for task in study.tasks})
    for run in plan_runs(study, out):
        numbers = read_json(run.file(".json"))
        if numbers is None:
            results.missing[run.name] = _why(run)
        elif run.kind == "random":
            results.random[run.task] = numbers["final"]["returns"]
        else:
            results.runs[run.task][run.arm].append(numbers)
    return results


def _why(run: Planned) -> str:
    failed = read_json(run.file(".failed.json"))
    return f"failed: {failed.get('reason')}" if failed else "not finished"


def compare(
    study: Study,
    out: str | Path,
    *,
    jobs: int | None = None,
    threads: int | None = None,
    say: Callable[[str], object] = print,
) -> Results:
    """Train and judge every arm of every task with every seed.

    Finished runs are taken as they are, unfinished ones go on, and what a study has more than before is added.

    Args:
        study: What to compare.
        out: The folder of all results.
        jobs: Runs at once; half the cores by default, at least 1.
        threads: Threads that torch computes with in each; cores / jobs by default.
        say: Where messages go.

    Raises:
        InputError: A setting will not do, or runs in the folder were made with other settings; before training starts.
        KeyboardInterrupt: It was stopped; the same call goes on.
    """
    out = Path(out)
    runs = plan_runs(study, out)
    with only_one(out):
        write_json(out / "study.json", study.to_json())
        run_all(runs, jobs=jobs, threads=threads, say=say)
    return collect(study, out)


def saved_study(out: str | Path) -> Study:
    """The study that was last begun in a folder.

    Raises:
        InputError: There is none.
    """
    values = read_json(Path(out) / "study.json")
    if not isinstance(values, dict):
        raise InputError(f"{out} holds no comparison (no study.json); latent-obs compare makes one")
    return study_from(values, Path(out))
