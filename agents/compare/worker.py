"""One run in a process of its own, and what it costs: ``python -m agents.compare.worker job.json``.

The numbers are written last, so that their file marks a finished run. Exit status: 0 finished, 2 a mistake of the user,
3 stopped before the end, 1 anything else.
"""

import json
import os
import platform
import shutil
import signal
import sys
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch

from agents import read_evaluations, train_agent
from agents.compare.runs import CRASHED, FINISHED, MISTAKE, STOPPED, end_session
from agents.config import AgentConfig
from agents.evaluation import Evaluation, evaluate_agent, evaluate_random
from latent_obs.minerl.installation import version_of
from latent_obs.util.atomic import write_json
from latent_obs.util.device import cores, processor, torch_threads
from latent_obs.util.errors import LatentObsError, require

_PACKAGES = ("latent-obs", "torch", "stable-baselines3", "sb3-contrib", "gymnasium", "numpy", "vizdoom", "minerl")
_GRACE_S = 15.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 5.0  # between samples: short at first, so that a short run has some as well
_LINUX = sys.platform.startswith("linux")
_MEMORY_HOW = (
    f"{'PSS (shared pages counted once)' if _LINUX else 'RSS (shared pages counted in each process)'} of the run's "
    "process and its environments' together, peak of samples"
)


class Meter:
    """Sample wall-clock time, processor time and memory of this process and all its descendants, in a thread.

    Each sample is written to a file, which therefore has the cost of a run that is killed, too.

    Args:
        file: A list with an entry for each attempt; this one is appended.
        before: Entries of earlier attempts.

    Raises:
        MissingExtraError: psutil is not installed.
    """

    def __init__(self, file: Path, before: list[dict[str, Any]]) -> None:
        self._psutil = require("psutil", extra="compare", purpose="measure what runs cost")
        self._file, self._before = file, before
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run, daemon=True, name="meter")
        self._began, self._peak_mb = time.perf_counter(), 0.0
        self._cpu_before, _ = self._usage()

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """Costs of all attempts, of this one until now."""
        seconds, memory = self._usage()
        self._peak_mb = max(self._peak_mb, memory)
        cost = {"wall_seconds": time.perf_counter() - self._began, "cpu_seconds": seconds - self._cpu_before}
        return [*self._before, {**cost, "peak_memory_mb": self._peak_mb, "memory_how": _MEMORY_HOW}]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        write_json(self._file, self.attempts)

    def _run(self) -> None:
        pause = _FIRST_PAUSE_S
        while not self._stop.wait(pause):
            write_json(self._file, self.attempts)
            pause = min(_LONGEST_PAUSE_S, 2 * pause)

    def _usage(self) -> tuple[float, float]:
        """Processor seconds and megabytes of all processes together."""
        seconds, size = 0.0, 0
        own = self._psutil.Process()
        for process in (own, *own.children(recursive=True)):
            try:
                times = process.cpu_times()  # a process that has ended counts with the one that waited for it
                memory = process.memory_full_info() if _LINUX else process.memory_info()
            except self._psutil.Error:  # it has just ended
                continue
            seconds += times.user + times.system + times.children_user + times.children_system
            size += getattr(memory, "pss", memory.rss)
        return seconds, size / 1e6


def run_job(job: dict[str, Any]) -> int:
    """Make the run of a job that `agents.compare.runs` wrote, write its numbers, and return the exit status."""
    config = AgentConfig.from_json(job["config"])
    with torch_threads(job["threads"]):
        if job["kind"] == "random":
            numbers = {"final": _evaluated(evaluate_random(config, episodes=job["episodes"]))}
        else:
            numbers = _train(config, job["episodes"], Path(job["usage"]))
    if numbers is None:
        return STOPPED
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    system = f"{platform.system()}, Python {platform.python_version()}"
    values = {
        **{name: job[name] for name in ("kind", "task", "arm", "seed", "settings", "threads", "jobs")},
        "env": config.env,
        "observation": config.observation,
        **numbers,
        "machine": f"{processor()}, {cores()} core(s) usable{gpu}, {system}",
        "versions": {name: version for name in _PACKAGES if (version := version_of(name)) is not None},
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    write_json(Path(job["result"]), values)
    return FINISHED


def _train(config: AgentConfig, episodes: int, usage: Path) -> dict[str, Any] | None:
    """Train, or go on with training, and evaluate; None if it was stopped."""
    before: list[dict[str, Any]] = json.loads(usage.read_text()) if usage.exists() else []
    resume = (config.out / "last.zip").exists()
    if not resume and config.out.exists():
        shutil.rmtree(config.out)  # it was stopped before its first checkpoint
        before = []
    with Meter(usage, before) as meter:
        result = train_agent(config, resume=resume, progress_bar=False)
    if result.interrupted:
        return None
    attempts, rows = meter.attempts, read_evaluations(config.out)
    seconds = rows[-1]["seconds"]
    return {
        "evaluations": rows,
        "final": _evaluated(evaluate_agent(config.out, episodes=episodes, which="last", device=config.device)),
        "steps": result.steps,
        "training_seconds": seconds,
        "steps_per_second": result.steps / seconds,
        **{name: sum(attempt[name] for attempt in attempts) for name in ("wall_seconds", "cpu_seconds")},
        "peak_memory_mb": max(attempt["peak_memory_mb"] for attempt in attempts),
        "memory_how": _MEMORY_HOW,
        "attempts": len(attempts),
    }


def _evaluated(played: Evaluation) -> dict[str, Any]:
    return {"mean": played.mean, "standard_error": played.standard_error, **asdict(played)}


def stop_with_parent(parent: int) -> None:
    """Stop when the process that started this one has ended: by SIGTERM, and by SIGKILL where that is not enough."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_S)
        if os.getsid(0) == os.getpid():  # a session of its own, as `run_all` starts it
            end_session(os.getpid())

    threading.Thread(target=watch, daemon=True, name="parent").start()


def main() -> int:
    """Make the run of the job file that the command line names."""
    job = json.loads(Path(sys.argv[1]).read_text())
    stop_with_parent(job["parent"])
    try:
        return run_job(job)
    except KeyboardInterrupt:
        return STOPPED
    except Exception as error:
        traceback.print_exc()
        known = isinstance(error, LatentObsError)
        write_json(Path(job["failed"]), {"reason": str(error) if known else f"{type(error).__name__}: {error}"})
        return MISTAKE if known else CRASHED


if __name__ == "__main__":
    sys.exit(main())
