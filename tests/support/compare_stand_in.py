"""Stands in for a run's process: what it does depends on the name of the arm. It imports little, to start fast."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    """Do what the job says."""
    job = json.loads(Path(sys.argv[1]).read_text())
    result = Path(job["result"])
    note = result.with_suffix(".note")

    def finish() -> None:
        times = {"began": began, "ended": time.time(), "threads": os.environ["OMP_NUM_THREADS"]}
        final = {"mean": 1.0, "returns": [1.0, 1.0]}
        result.write_text(json.dumps({"settings": job["settings"], "final": final, "wall_seconds": 0.1, **times}))

    began = time.time()
    kind = job["arm"].split(" of ")[0]
    if job["kind"] == "random" or kind == "good":
        time.sleep(0.1)
        finish()
    elif kind == "talks":
        print("half way", flush=True)
        time.sleep(0.5)
        finish()
    elif kind == "crash":
        sys.exit("something\nthat it said last")
    elif kind == "mistake":
        Path(job["failed"]).write_text(json.dumps({"reason": "no such game"}))
        sys.exit(2)
    elif kind == "slow":  # saves when it is asked to stop; goes on when it is started again
        # In a group of its own, as environments are.
        child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], process_group=0)
        if note.exists():
            finish()
            child.kill()
            sys.exit(0)

        def stop(*_: object) -> None:
            note.write_text(json.dumps({"pids": [os.getpid(), child.pid]}))
            sys.exit(3)

        signal.signal(signal.SIGTERM, stop)
        print("ready", flush=True)
        time.sleep(600)
    elif kind == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        note.write_text(json.dumps({"pids": [os.getpid()]}))
        time.sleep(600)


if __name__ == "__main__":
    main()
