"""Plan the runs of a study, and make each in a process of its own, a few at a time.

A study can be interrupted at any moment; the same call goes on. Its folder:

    study.json                              the study that was last begun
    runs/TASK/random_policy.json            returns of the random policy
    runs/TASK/ARM/seed_0/                   the run folder of train-agent
    runs/TASK/ARM/seed_0.job.json           what the process was asked to do
    runs/TASK/ARM/seed_0.log                what it printed
    runs/TASK/ARM/seed_0.usage.json         what each attempt cost
    runs/TASK/ARM/seed_0.failed.json        why it failed
    runs/TASK/ARM/seed_0.json               its numbers, written last: a run with this file is finished
"""

import contextlib
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from agents.compare.study import Study, folder_name, study_from
from agents.config import AgentConfig
from latent_obs.encoder.folder import read_encoder_folder
from latent_obs.util.atomic import GracefulStop, own_folder, write_json
from latent_obs.util.device import cores
from latent_obs.util.errors import InputError, check_count
from latent_obs.util.progress import print_now
from latent_obs.util.ray import Engine, RayExecutor, joined

RANDOM_POLICY = "random policy"
#: Exit statuses of a run's process.
FINISHED, CRASHED, MISTAKE, STOPPED = 0, 1, 2, 3
#: How a run's process is started. With -P a folder `agents` in the working directory does not hide this package.
WORKER = ("-P", "-m", "agents.compare.worker")
_PAUSE_S = 0.2
_THREADS_ON_A_CLUSTER = 2  # the default, as on one machine with an even number of cores
_GRACE_S = 15.0  # after SIGTERM, to finish a step and to save
_LAST_LINES = 3  # of its log, shown where a process died without a reason
_FIRST_REPORT_S, _LONGEST_REPORT_S = 15.0, 240.0  # between lines about the runs that are under way
#: Not what numbers depend on; backends differ by rounding.
_NOT_COMPARED = ("out", "device", "encoder", "pca", "seed", "backend", "log", "runners", "address")
_PRECISION = {"auto": "float32"}
_OF_RANDOM_POLICY = ("env", "episodes", "frame_skip", "env_kwargs")


@dataclass(frozen=True)
class Planned:
    """One process to start: a training run with its final evaluation, or a task's random policy (kind "random")."""

    kind: Literal["train", "random"]
    task: str
    arm: str
    seed: int
    config: AgentConfig
    episodes: int

    @property
    def name(self) -> str:
        """Task, arm and seed, for messages."""
        return f"{self.task}, {self.arm}" + (f", seed {self.seed}" if self.kind == "train" else "")

    def file(self, ending: str) -> Path:
        """The run's file with an ending, such as ".json"; beside its folder."""
        return self.config.out.with_name(self.config.out.name + ending)

    @property
    def is_finished(self) -> bool:
        """Whether its numbers are there."""
        return self.file(".json").exists()

    def signature(self) -> dict[str, Any]:
        """What the run's numbers depend on: all settings, and checksums of the encoder and PCA files.

        Settings that were not given are at the algorithm's defaults here, so that a version with others is noticed.
        """
        values = {**self.config.settled().to_json(), "episodes": self.episodes}
        if self.kind == "random":
            return json.loads(json.dumps({name: values[name] for name in _OF_RANDOM_POLICY}))
        values = {name: value for name, value in values.items() if name not in _NOT_COMPARED}
        values["precision"] = _PRECISION.get(values["precision"], values["precision"])
        if self.config.encoder is not None:
            values["encoder"] = read_encoder_folder(self.config.encoder).checksums["encoder.safetensors"]
        if self.config.pca is not None:
            if not self.config.pca.is_file():
                raise InputError(f"pca: there is no file {self.config.pca}")
            values["pca"] = hashlib.sha256(self.config.pca.read_bytes()).hexdigest()
        return json.loads(json.dumps(values))


def plan_runs(study: Study, out: Path) -> list[Planned]:
    """All runs of a study, in the order in which they start: seed by seed, and the arms of a task one after the other.

    In this order a slow hour of the machine is shared by all arms.

    Raises:
        InputError: A setting is not allowed, or an arm lacks its encoder.
    """
    runs: list[Planned] = []
    for task in study.tasks:
        # The settings of any arm do: the random policy sees nothing.
        config = study.config(task, study.arms[0], 0, out / "runs" / folder_name(task) / "random_policy")
        runs.append(Planned("random", task, RANDOM_POLICY, 0, config, study.episodes))
    for seed in study.seeds:
        for task in study.tasks:
            for arm in study.arms:
                folder = out / "runs" / folder_name(task) / folder_name(arm) / f"seed_{seed}"
                config = study.config(task, arm, seed, folder)
                runs.append(Planned("train", task, arm, seed, config, study.episodes))
    return runs


def check_same(run: Planned) -> None:
    """Check that a run that is finished or begun has the settings that are planned for it.

    Raises:
        InputError: It has others; the message names what differs.
    """
    now = run.signature()  # raises for an encoder that is missing
    file = next((file for file in (run.file(".json"), run.file(".job.json")) if file.exists()), None)
    if file is None:
        return
    try:
        saved = dict(json.loads(file.read_text())["settings"])
        episodes = saved.pop("episodes")
        # Settings that the earlier version did not have are at their defaults.
        config = AgentConfig.from_json({**saved, "out": ""})
        before = json.loads(json.dumps({**config.settled().to_json(), "episodes": episodes}))
        before["precision"] = _PRECISION.get(before["precision"], before["precision"])
        names = sorted({*now, "encoder", "pca"})
        changed = [f"{k} was {before[k]!r}, is now {now.get(k)!r}" for k in names if before[k] != now.get(k)]
    except (ValueError, KeyError, TypeError) as error:
        changed = [f"{type(error).__name__}: {error}"]
    if changed:
        raise InputError(
            f"{run.name}: {file} does not hold a run with these settings: {'; '.join(changed)}. Take them back, give "
            "the new ones to another arm, choose another --out, or remove the run's files to make it again"
        )


def check_how(study: Study, *, jobs: int | None = None, threads: int | None = None, engine: str = "local") -> None:
    """Check how runs are to be made; arguments as for `compare`.

    Raises:
        InputError: A number is not allowed, or the engine does not suit the study.
    """
    for name, value in (("jobs", jobs), ("threads", threads)):
        if value is not None:
            check_count(name, value)
    trainers = {study.own_settings(task, arm).get("engine") for task in study.tasks for arm in study.arms}
    if engine == "ray" and "rllib" in trainers:
        raise InputError(
            "engine: runs that train with RLlib would wait for CPUs that --engine ray holds for them; leave it out"
        )


def run_all(
    runs: Sequence[Planned],
    *,
    jobs: int | None = None,
    threads: int | None = None,
    cluster: Executor | None = None,
    say: Callable[[str], object] = print_now,
) -> dict[str, str]:
    """Make every run that is not finished, on the nodes of a cluster if one is given; arguments as for `compare`.

    Returns:
        Name and reason of each run that failed.
    """
    jobs = max(1, cores() // 2) if jobs is None else check_count("jobs", jobs)
    threads = max(1, cores() // jobs) if threads is None else check_count("threads", threads)
    for run in runs:
        check_same(run)
    waiting = [run for run in runs if not run.is_finished]
    finished = len(runs) - len(waiting)
    say(f"{len(runs)} runs, {finished} of them finished before; {jobs} at once, {threads} threads each.")
    places = {run.name: f"[{i}/{len(runs)}]" for i, run in enumerate(runs, 1)}
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)  # to find the user's own environments
    ending = _Ending()
    pool = cluster or ThreadPoolExecutor(jobs)
    make = make_run if cluster else partial(make_run, ending=ending)
    under_way: dict[Future[str | None], Planned] = {}
    failures: dict[str, str] = {}
    pause = _FIRST_REPORT_S
    report_at = time.monotonic() + pause
    with GracefulStop() as stop:
        try:
            while (waiting or under_way) and not stop.requested:
                while waiting and len(under_way) < jobs:
                    run = waiting.pop(0)
                    say(f"{places[run.name]} begins: {run.name}")
                    under_way[pool.submit(make, run, jobs, threads, paths)] = run
                for future in wait(under_way, _PAUSE_S, FIRST_COMPLETED).done:
                    run = under_way.pop(future)
                    name = run.name
                    if (reason := _failure(run, future)) is not None:
                        failures[name] = reason
                        say(f"{places[name]} FAILED: {name}: {reason} (its messages: {run.file('.log')})")
                        continue
                    mean = json.loads(run.file(".json").read_text())["final"]["mean"]
                    remaining = _remaining(runs, [*waiting, *under_way.values()], jobs)
                    say(f"{places[name]} ended:  {name}: mean return {mean:.1f}. {remaining}")
                if time.monotonic() >= report_at:
                    pause = min(2 * pause, _LONGEST_REPORT_S)
                    report_at = time.monotonic() + pause
                    for run in under_way.values():
                        say(f"{places[run.name]} {run.name}: {_last_lines(run, 1) or 'starting'}")
        finally:
            if under_way:
                say("Stopping; runs that have begun save first …")
            try:
                ending.kill_at = time.monotonic() + _GRACE_S
                pool.shutdown(cancel_futures=True)
            except KeyboardInterrupt:
                ending.kill_at = 0.0
                pool.shutdown()
                raise
        if stop.requested:
            raise KeyboardInterrupt
    return failures


@dataclass
class _Ending:
    """When runs are to be killed; they are asked to stop as soon as there is such a time."""

    kill_at: float = math.inf


def make_run(run: Planned, jobs: int, threads: int, paths: str, ending: _Ending | None = None) -> str | None:
    """Make a run in a process of its own, in a thread or in a task on a node of a cluster.

    Args:
        run: The run; one that is finished is not made again, as where a node was lost just after that.
        jobs: How many are made at once, for its numbers.
        threads: Its threads.
        paths: Where it finds modules, as in PYTHONPATH.
        ending: Says when to end it. A task is ended by a `KeyboardInterrupt`, which is how Ray cancels it.

    Returns:
        Why it failed; None if it finished or was ended.
    """
    if run.is_finished:
        return None
    ending = ending or _Ending()
    process, asked = _start(run, jobs, threads, paths), False
    try:
        while process.poll() is None and time.monotonic() < ending.kill_at:
            try:
                time.sleep(_PAUSE_S)
            except KeyboardInterrupt:
                ending.kill_at = time.monotonic() + _GRACE_S
            if ending.kill_at < math.inf and not asked:
                process.terminate()
                asked = True
        return None if asked else _reason(run, process)
    finally:
        if process.poll() != FINISHED:  # its environments may be left, also if it crashed
            end_session(process.pid)
            process.wait()


def end_session(leader: int) -> None:
    """Kill all processes of the session of its first process `leader`, which may have ended; the calling one last.

    Environments are in process groups of their own, but in the session of the run that started them. On systems without
    /proc only the leader's group is killed.
    """
    processes = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
    for process in sorted(processes, key=lambda process: process == os.getpid()):
        with contextlib.suppress(OSError):  # it has just ended, or belongs to somebody else
            if os.getsid(process) == leader:
                os.kill(process, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.killpg(leader, signal.SIGKILL)


def read_json(file: Path) -> Any:
    """What a JSON file holds; None if there is none, or if it cannot be read."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def duration(seconds: float) -> str:
    """A time in words.

    Example:
        >>> duration(42), duration(600), duration(9_000)
        ('42 s', '10 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6_000 else f"{seconds / 3600:.1f} h"


def _start(run: Planned, jobs: int, threads: int, paths: str) -> "subprocess.Popen[bytes]":
    """Start a run's process in a session of its own, so that Ctrl-C in a terminal reaches this process only."""
    run.file(".failed.json").unlink(missing_ok=True)
    job: dict[str, Any] = {name: getattr(run, name) for name in ("kind", "task", "arm", "seed", "episodes")}
    job |= {"settings": run.signature(), "config": run.config.to_json()}
    job |= {"threads": threads, "jobs": jobs, "parent": os.getpid(), "result": str(run.file(".json"))}
    job |= {name: str(run.file(f".{name}.json")) for name in ("usage", "failed")}
    write_json(run.file(".job.json"), job)
    with run.file(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *WORKER, str(run.file(".job.json"))],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"},
        )


def _reason(run: Planned, process: "subprocess.Popen[bytes]") -> str | None:
    """Why a process that ended has failed; None if it has not."""
    status = process.returncode
    if status == FINISHED and run.is_finished:
        return None
    if noted := read_json(run.file(".failed.json")):
        return str(noted["reason"])
    how = "stopped from outside" if status == STOPPED else f"exit status {status}"
    return _failed(run, f"{how}; last lines: {_last_lines(run, _LAST_LINES) or 'none'}")


def _failure(run: Planned, future: "Future[str | None]") -> str | None:
    """Why a run has failed; None if it has not."""
    try:
        return future.result()
    except BrokenExecutor as error:
        return _failed(run, f"each node that tried it died, or the process there: {error}")


def _failed(run: Planned, reason: str) -> str:
    """Note why a run has failed."""
    write_json(run.file(".failed.json"), {"reason": reason})
    return reason


def _last_lines(run: Planned, count: int) -> str:
    """The end of what a run's process has printed, as one line."""
    log = run.file(".log")
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []  # none before it has started
    return " / ".join(line.strip() for line in lines[-count:])


def _remaining(runs: Sequence[Planned], left: Sequence[Planned], jobs: int) -> str:
    """How many runs are left, and how long they will take, judged by finished ones."""
    done = [run for run in runs if run.kind == "train" and run.is_finished]
    if not left or not done:
        return f"{len(left)} runs left."
    wall = sum(json.loads(run.file(".json").read_text())["wall_seconds"] for run in done)
    steps = sum(run.config.steps for run in left if run.kind == "train")
    return f"{len(left)} runs left, about {duration(steps * wall / sum(run.config.steps for run in done) / jobs)}."


@dataclass(frozen=True)
class Results:
    """Raw numbers of a study, finished or not.

    Attributes:
        study: What is compared.
        runs: Numbers of each finished run, as `agents.compare.worker` writes them, by task and arm, in order of seeds.
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

    Raises:
        InputError: A setting of the study is not allowed.
    """
    results = Results(study, {task: {arm: [] for arm in study.arms} for task in study.tasks})
    for run in plan_runs(study, out):
        numbers = read_json(run.file(".json"))
        if numbers is None:
            failed = read_json(run.file(".failed.json"))
            results.missing[run.name] = f"failed: {failed['reason']}" if failed else "not finished"
        elif run.kind == "random":
            results.random[run.task] = numbers["final"]["returns"]
        else:
            results.runs[run.task][run.arm].append(numbers)
    return results


def compare(
    study: Study,
    out: str | Path,
    *,
    jobs: int | None = None,
    threads: int | None = None,
    engine: Engine = "local",
    address: str | None = None,
    say: Callable[[str], object] = print_now,
) -> Results:
    """Train and evaluate every arm of every task with every seed.

    Finished runs are kept, interrupted ones go on, and tasks, arms and seeds that are new in the study are added.

    Args:
        study: What to compare.
        out: The folder of all results.
        jobs: Runs at once; half the cores by default, at least 1. On a cluster as many as it has CPUs for.
        threads: Threads that torch computes with in each; cores / jobs by default, and 2 on a cluster.
        engine: "local", or "ray" for the nodes of a Ray cluster, which share a file system.
        address: The cluster, see `latent_obs.util.ray.connect`.
        say: Receives the messages: a line when a run begins, and one when it ends.

    Raises:
        InputError: A setting is not allowed, or runs in the folder have other settings; before training starts. The
            cluster cannot be joined, or a node of it cannot be used.
        MissingExtraError: Ray is not installed.
        KeyboardInterrupt: It was interrupted. No process is left, and the same call goes on.
    """
    out = Path(out)
    check_how(study, jobs=jobs, threads=threads, engine=engine)
    runs = plan_runs(study, out)
    for run in runs:
        check_same(run)  # before anything is written
    with joined(engine, address) as ray, own_folder(out), contextlib.ExitStack() as stack:
        cluster = None
        if ray:
            threads = _THREADS_ON_A_CLUSTER if threads is None else threads
            inputs = {file for run in runs for file in (run.config.encoder, run.config.pca) if file is not None}
            cluster = RayExecutor(ray, out, inputs, cpus=threads, at_once=jobs)
            stack.callback(cluster.shutdown)
            jobs = cluster.at_once
        write_json(out / "study.json", study.to_json())
        run_all(runs, jobs=jobs, threads=threads, cluster=cluster, say=say)
    return collect(study, out)


def saved_study(out: str | Path) -> Study:
    """The study that was last begun in a folder; an `InputError` if there is none."""
    values = read_json(Path(out) / "study.json")
    if not isinstance(values, dict):
        raise InputError(f"out: {out} holds no comparison (no study.json); latent-obs compare makes one")
    return study_from(values, Path(out))
