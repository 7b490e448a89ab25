"""Starts the runs of a study, each in a process of its own, a few at a time; safe to interrupt and to start again."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.compare.files import read_json
from agents.compare.plan import FINISHED, STOPPED, Planned, check_same
from agents.compare.processes import end_session
from latent_obs.atomic import write_json
from latent_obs.errors import InputError
from latent_obs.interrupt import GracefulStop
from latent_obs.processor import cores

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
    runs: Sequence[Planned], *, jobs: int | None = None, threads: int | None = None, say: Callable[[str], object] = print
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
        "kind": run.kind, "task": run.task, "arm": run.arm, "seed": run.seed, "episodes": run.episodes,
        "settings": run.signature(), "config": run.config.to_json(), "threads": threads, "jobs": jobs,
        "result": str(run.file(".json")), "usage": str(run.file(".usage.json")), "failed": str(run.file(".failed.json")),
        "parent": os.getpid(),
    }  # fmt: skip
    write_json(run.file(".job.json"), job)
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)  # a user's own environments are found there
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    with run.file(".log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *WORKER, str(run.file(".job.json"))],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment,
        )  # fmt: skip
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
        """When all will be done, from how long runs of the same task and arm, or of the same arm, or any, have taken."""
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
