"""One run in a process of its own, and what it costs: ``python -m agents.compare.worker job.json``.

The numbers are written last, so that their file marks a finished run. Exit status: 0 finished, 2 a mistake of the user,
3 stopped before the end, 1 anything else.
"""

import contextlib
import json
import os
import platform
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from agents import read_evaluations, train_agent
from agents.compare.runs import CRASHED, FINISHED, MISTAKE, STOPPED, end_session
from agents.config import AgentConfig
from agents.evaluation import Evaluation, evaluate_agent, evaluate_random
from latent_obs.minerl.installation import version_of
from latent_obs.util.atomic import folder_lock, write_json
from latent_obs.util.device import cores, processor, torch_threads
from latent_obs.util.errors import LatentObsError, require
from latent_obs.util.words import counted

_PACKAGES = ("latent-obs", "torch", "stable-baselines3", "sb3-contrib", "gymnasium", "numpy", "vizdoom", "minerl")
_GRACE_S = 15.0
_STOPPING_S = 2 * _GRACE_S
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 5.0  # between samples: short at first, so that a short run has some as well
_LINUX = sys.platform.startswith("linux")
_MEMORY_HOW = (
    f"{'PSS (shared pages counted once)' if _LINUX else 'RSS (shared pages counted in each process)'} of the run's "
    "process and its environments' together, peak of samples"
)


@contextlib.contextmanager
def metered(file: Path) -> Iterator[None]:
    """Append the cost of a block to the list in a file: time, processor time and memory, with all child processes.

    It is sampled in a thread and written at each sample, so that the file has the cost of a run that is killed, too.

    Raises:
        MissingExtraError: psutil is not installed.
    """
    psutil = require("psutil", extra="compare", purpose="measure what runs cost")
    before = json.loads(file.read_text()) if file.exists() else []
    began, ended = time.perf_counter(), threading.Event()
    cpu_before, peak_mb = _usage(psutil)

    def sample() -> None:
        nonlocal peak_mb
        pause, is_last = _FIRST_PAUSE_S, False
        while not is_last:
            is_last = ended.wait(pause)
            pause = min(_LONGEST_PAUSE_S, 2 * pause)
            cpu, memory = _usage(psutil)
            peak_mb = max(peak_mb, memory)
            cost = {"wall_seconds": time.perf_counter() - began, "cpu_seconds": cpu - cpu_before}
            write_json(file, [*before, {**cost, "peak_memory_mb": peak_mb, "memory_how": _MEMORY_HOW}])

    thread = threading.Thread(target=sample, daemon=True, name="meter")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _usage(psutil: Any) -> tuple[float, float]:
    """Processor seconds and megabytes of this process and all its descendants together."""
    seconds, size = 0.0, 0
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        try:
            times = process.cpu_times()  # a process that has ended counts with the one that waited for it
            memory = process.memory_full_info() if _LINUX else process.memory_info()
        except psutil.Error:  # it has just ended
            continue
        seconds += times.user + times.system + times.children_user + times.children_system
        size += getattr(memory, "pss", memory.rss)
    return seconds, size / 1e6


def run_job(job: dict[str, Any]) -> int:
    """Make the run of a job that `agents.compare.runs` wrote, write its numbers, and return the exit status."""
    config = AgentConfig.from_json(job["config"])
    with torch_threads(job["threads"]):
        if job["kind"] == "random":
            numbers = {"final": _evaluated(evaluate_random(config, episodes=job["episodes"], progress_bar=True))}
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
        "machine": f"{processor()}, {counted(cores(), 'core')} usable{gpu}, {system}",
        "versions": {name: version for name in _PACKAGES if (version := version_of(name)) is not None},
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    write_json(Path(job["result"]), values)
    return FINISHED


def _train(config: AgentConfig, episodes: int, usage: Path) -> dict[str, Any] | None:
    """Train, or go on with training, and evaluate; None if it was stopped."""
    if config.out.exists():
        with folder_lock(config.out, _STOPPING_S):  # until the run of a comparison that was killed has ended
            pass
    resume = (config.out / "config.json").exists()
    if not resume and config.out.exists():
        shutil.rmtree(config.out)  # it was stopped before it began
        usage.unlink(missing_ok=True)
    with metered(usage):
        result = train_agent(config, resume=resume)
    if result.interrupted:
        return None
    attempts, rows = json.loads(usage.read_text()), read_evaluations(config.out)
    seconds = rows[-1]["seconds"]
    how: dict[str, Any] = {"which": "last", "device": config.device, "progress_bar": True}
    return {
        "evaluations": rows,
        "final": _evaluated(evaluate_agent(config.out, episodes=episodes, **how)),
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
