"""One run in a process of its own: ``python -m agents.compare.worker job.json``.

The numbers are written last, so that their file marks a finished run. Exit status: 0 finished, 2 a mistake of the user,
3 stopped before the end, 1 anything else.
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agents import read_evaluations, train_agent
from agents.compare.meter import Meter, machine_line, versions
from agents.compare.runs import CRASHED, FINISHED, MISTAKE, STOPPED, end_session
from agents.config import AgentConfig
from agents.evaluation import Evaluation, evaluate_agent, evaluate_random
from latent_obs.util.atomic import write_json
from latent_obs.util.device import torch_threads
from latent_obs.util.errors import LatentObsError

_GRACE_S = 15.0


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
    values = {k: job[k] for k in ("kind", "task", "arm", "seed", "settings", "threads", "jobs")}
    values |= {"env": config.env, "observation": config.observation, **numbers}
    values |= {"machine": machine_line(), "versions": versions(), "finished": time.strftime("%Y-%m-%d %H:%M:%S")}
    write_json(Path(job["result"]), values)
    return FINISHED


def _train(config: AgentConfig, episodes: int, usage: Path) -> dict[str, Any] | None:
    """Train, or go on with training, and evaluate; None if it was stopped."""
    attempts: list[dict[str, Any]] = json.loads(usage.read_text()) if usage.exists() else []
    resume = (config.out / "last.zip").exists()
    if not resume and config.out.exists():
        shutil.rmtree(config.out)  # it was stopped before its first checkpoint
        attempts = []
    with Meter(usage, attempts) as meter:
        result = train_agent(config, resume=resume, progress_bar=False)
    if result.interrupted:
        return None
    attempts = [*attempts, meter.entry]
    rows = read_evaluations(config.out)
    seconds = rows[-1]["seconds"]
    return {
        "evaluations": rows,
        "final": _evaluated(evaluate_agent(config.out, episodes=episodes, which="last", device=config.device)),
        "steps": result.steps,
        "training_seconds": seconds,
        "steps_per_second": result.steps / seconds,
        **{name: sum(a[name] for a in attempts) for name in ("wall_seconds", "cpu_seconds")},
        "peak_memory_mb": max(a["peak_memory_mb"] for a in attempts),
        "memory_how": meter.how,
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
            end_session(os.getpid(), but=os.getpid())
            os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def main() -> int:
    """Make the run of the job file that the command line names."""
    job = json.loads(Path(sys.argv[1]).read_text())
    stop_with_parent(job["parent"])
    try:
        return run_job(job)
    except KeyboardInterrupt:
        return STOPPED
    except LatentObsError as error:
        print(error, file=sys.stderr, flush=True)
        write_json(Path(job["failed"]), {"reason": str(error)})
        return MISTAKE
    except Exception as error:
        traceback.print_exc()
        write_json(Path(job["failed"]), {"reason": f"{type(error).__name__}: {error}"})
        return CRASHED


if __name__ == "__main__":
    sys.exit(main())
