"""Settings that Ray reads when it is imported.

Its own processes get the niceness of the tests: by default they wait for everything else on a busy machine. Under `uv
run` they would start in a copy of the working directory.
"""

import os

os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
