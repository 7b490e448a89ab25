"""Environments in processes: closed, dropped, left or killed, they leave nothing behind, and no worker holds up
another."""

# ruff: noqa: F401, F811  # fixtures are imported, and arguments have their names

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.support import ROOT

pytest.importorskip("stable_baselines3")

from latent_obs.envs.workers import ProcessVecEnv
from tests.support.scripted_env import GO, HANG, HANG_HARD, SLOW, Scripted
from tests.support.scripted_workers import METHODS, closed, preload, start

#: From Python 3.12 on, forking a process with threads, such as pytest-xdist's, is warned of.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def test_hung_workers_do_not_hold_up_the_others(start: Callable[..., ProcessVecEnv], tmp_path: Path):
    venv = start("", "", "", "", close_grace_s=1.0)
    venv.reset()
    venv.step_async(np.array([GO, HANG, HANG_HARD, SLOW]))
    begin = time.monotonic()
    venv.close()
    assert 2 < time.monotonic() - begin < 8  # a second each, and what else the machine does
    assert [process.exitcode for process in venv.processes] == [0, 143, -signal.SIGKILL, 0]
    assert (tmp_path / "terminated-2").exists(), "terminated first"
    assert closed(tmp_path) == {0: "x", 1: "t", 3: "x"}


def test_answers_that_nobody_read_do_not_hold_it_up(start: Callable[..., ProcessVecEnv], tmp_path: Path):
    venv = start("", "", size=1000)  # 3 MB: more than a pipe holds
    venv.reset()
    venv.step_async(np.array([GO, GO]))
    time.sleep(0.2)
    venv.close()
    assert [process.exitcode for process in venv.processes] == [0, 0]
    assert closed(tmp_path) == {0: "x", 1: "x"}


@pytest.mark.skipif("fork" not in METHODS, reason="about forks")
def test_a_process_forked_meanwhile_does_not_hold_it_up(start: Callable[..., ProcessVecEnv]):
    venv = start("", "")
    bystander = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    bystander.start()  # with copies of our ends of the pipes
    try:
        venv.close()
        assert [process.exitcode for process in venv.processes] == [0, 0]
    finally:
        bystander.kill()
        bystander.join()


def test_a_dropped_one_is_closed(tmp_path: Path):
    venv = ProcessVecEnv([partial(Scripted, tmp_path, number) for number in range(2)])
    processes = venv.processes
    del venv
    assert [process.exitcode for process in processes] == [0, 0]
    assert closed(tmp_path) == {0: "x", 1: "x"}


@pytest.mark.skipif("fork" not in METHODS, reason="needs a worker that writes where the test looks")
def test_an_error_while_closing_is_one_line(start: Callable[..., ProcessVecEnv], capfd: pytest.CaptureFixture[str]):
    venv = start("", "close", start_method="fork")
    venv.close()
    assert capfd.readouterr().err == "environment 1: close() raised OSError: it does not stop\n"
    assert [process.exitcode for process in venv.processes] == [0, 0]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's list of open files")
@pytest.mark.parametrize("start_method", METHODS[:2])
def test_no_worker_keeps_another_ones_pipe_open(start: Callable[..., ProcessVecEnv], start_method: str):
    first, second = start("", "", start_method=start_method), start("", start_method=start_method)
    remotes = [*first.remotes, *second.remotes]
    ours = {str(Path(f"/proc/self/fd/{remote.connection.fileno()}").readlink()) for remote in remotes}
    assert len(ours) == 3
    for held in first.env_method("sockets") + second.env_method("sockets"):
        assert not ours & set(held)


SCRIPT = """
import multiprocessing, os, signal, sys, time
from functools import partial
from pathlib import Path
import numpy as np
from latent_obs import ProcessVecEnv
from tests.support.scripted_env import GO, HANG, SLOW, Scripted

def start(*numbers, method=sys.argv[2]):
    folder = Path(sys.argv[1])
    venv = ProcessVecEnv([partial(Scripted, folder, number) for number in numbers], method, close_grace_s=3)
    venv.reset()
    return venv

if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(["latent_obs.envs.env_worker"])
    first, second = start(0, 1, 2), start(3, 4)
    print("ready", flush=True)
    sys.stdin.readline()
"""


def runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # of orphans, only the system's first process clears them away
    except psutil.NoSuchProcess:
        return False


def leave(folder: Path, method: str, end: str) -> tuple[int, str]:
    """Run a script to its end, see that no process outlives it, and return its exit code and what it complained of."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    script, said = folder / "script.py", folder / "said.txt"
    script.write_text(SCRIPT + "".join(f"    {line}\n" for line in end.splitlines()))
    with said.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore::DeprecationWarning", script, folder, method],
            stdin=subprocess.PIPE,
            text=True,
            stdout=subprocess.PIPE,
            stderr=file,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
    assert process.stdin is not None
    assert process.stdout is not None
    family: list[psutil.Process] = []
    try:
        assert process.stdout.readline() == "ready\n", said.read_text()
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 5
        process.stdin.write("\n")
        process.stdin.flush()
        code = process.wait(20)
        deadline = time.monotonic() + 15
        while (left := [member for member in family if runs(member)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == [], said.read_text()
        return code, said.read_text()
    finally:
        process.stdin.close()
        process.stdout.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its session: whatever a failure has left behind
        process.wait(10)


@pytest.mark.parametrize(
    ("method", "end", "code", "said"),
    [
        ("fork", "sys.exit(5)", 5, ""),
        ("fork", "raise ValueError('oh')", 1, r"Traceback[^\n]*\n(  [^\n]*\n)+ValueError: oh\n"),
        ("forkserver", "second.close()\nfirst.step_async(np.array([GO, SLOW, GO]))", 0, ""),
    ],
)
def test_a_script_that_leaves_without_close_leaves_nothing(tmp_path: Path, method: str, end: str, code: int, said: str):
    if method not in METHODS:
        pytest.skip(f"no {method} here")
    left, stderr = leave(tmp_path, method, end)
    assert left == code, stderr
    assert re.fullmatch(said, stderr), stderr
    assert closed(tmp_path) == dict.fromkeys(range(5), "x")


KILL = """
first.step_async(np.array([GO, SLOW, HANG]))
second.step_async(np.array([HANG, GO]))
while len(list(Path(sys.argv[1]).glob("hangs-*"))) < 2:
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""
#: Has copies of all that the script holds, and outlives it: by pipes alone nobody can see that the script is gone.
FORK = """
if os.fork() == 0:
    time.sleep(30)
    os._exit(0)
"""


@pytest.mark.parametrize("method", ["forkserver", "fork"])
def test_workers_of_a_parent_that_is_killed_close_and_end(tmp_path: Path, method: str):
    if method not in METHODS:
        pytest.skip(f"no {method} here")
    code, stderr = leave(tmp_path, method, FORK + KILL if method == "fork" else KILL)
    assert code == -signal.SIGKILL
    assert stderr == ""
    if method == "fork":
        assert set(closed(tmp_path)) == set(range(5))
    else:
        assert closed(tmp_path) == {0: "x", 1: "x", 2: "t", 3: "t", 4: "x"}
