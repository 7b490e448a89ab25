"""Ray's own processes get the niceness of the tests: by default they wait for everything else on a busy machine."""

import os

os.environ.setdefault("RAY_worker_niceness", "0")
