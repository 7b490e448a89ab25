"""Environments in processes: the same results, the errors themselves, processes of their own, and nothing left behind."""

import contextlib
import inspect
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
from gymnasium.wrappers import TimeLimit

pytest.importorskip("stable_baselines3")

from conftest import closed_without_a_trace
from scripted_env import (
    EOF,
    EXIT,
    GO,
    GONE,
    HANG,
    HANG_HARD,
    INPUT,
    KILLED,
    OWN,
    SLOW,
    STRANGE,
    VALUE,
    Scripted,
    Unfit,
    limited,
)
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor

from latent_obs.env_worker import _Worker, class_name
from latent_obs.errors import GameLostError, InputError, LatentObsError
from latent_obs.process_vec_env import ProcessVecEnv, WorkerError

METHODS = [m for m in ("forkserver", "fork", "spawn") if m in multiprocessing.get_all_start_methods()]
#: From Python 3.12 on, forking a process with threads, such as pytest-xdist's, is warned of.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def closed(folder: Path) -> dict[int, str]:
    """How often each environment was closed, in letters."""
    return {int(file.name.split("-")[1]): file.read_text() for file in folder.glob("closed-*")}


@pytest.fixture(autouse=True, scope="module")
def preload() -> None:
    multiprocessing.set_forkserver_preload(["latent_obs.env_worker"])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ProcessVecEnv]]:
    """Make a `ProcessVecEnv` of `Scripted`s, each with its own fault; it is closed in the end, and all must be gone."""

    def make(*faults: str, start_method: str = METHODS[0], close_grace_s: float = 5.0, size: int = 8) -> ProcessVecEnv:
        makers: Any = [partial(Scripted, tmp_path, number, fault, size) for number, fault in enumerate(faults)]
        made.append(ProcessVecEnv(makers, start_method, close_grace_s=close_grace_s))
        return made[-1]

    with closed_without_a_trace() as made:
        yield make


def play(venv: VecEnv, steps: int = 9) -> list[Any]:
    """All that one can see."""
    venv.seed(7)
    venv.set_options([{"level": number} for number in range(venv.num_envs)])
    story: list[Any] = [venv.reset(), list(venv.reset_infos)]
    for _ in range(steps):
        observation, rewards, dones, infos = venv.step(np.zeros(venv.num_envs, np.int64))
        story += [observation, rewards, dones, list(infos), list(venv.reset_infos)]
    return story


@pytest.mark.parametrize("start_method", METHODS)
def test_the_results_are_those_of_one_process(tmp_path: Path, start_method: str):
    count = 3 if start_method != "spawn" else 2
    makers: list[Any] = [partial(limited, tmp_path, number) for number in range(count)]
    serial, processes = DummyVecEnv(makers), ProcessVecEnv(makers, start_method)
    try:
        assert processes.observation_space == serial.observation_space
        assert processes.action_space == serial.action_space
        assert processes.render_mode == serial.render_mode
        one, other = play(serial), play(processes)
        np.testing.assert_equal(one, other)
        assert one[1] == [{"seed": 7 + number, "options": {"level": number}} for number in range(count)]
        ends = [info for infos in other[5::5] for info in infos if "terminal_observation" in info]
        assert {info["TimeLimit.truncated"] for info in ends} == {False, True}
        np.testing.assert_equal(play(serial), play(processes))  # seeded again
    finally:
        serial.close()
        processes.close()
    assert closed(tmp_path) == dict.fromkeys(range(count), "xx")  # here and there
    assert [process.exitcode for process in processes.processes] == [0] * count


def test_attributes_and_methods_are_those_of_each_environment(start: Callable[..., ProcessVecEnv]):
    venv = start("", "", "")
    assert isinstance(venv, SubprocVecEnv)
    assert venv.get_attr("number") == [0, 1, 2]
    assert venv.env_method("pid") == [process.pid for process in venv.processes]
    assert venv.env_method("pid", indices=[2, 0]) == [venv.processes[2].pid, venv.processes[0].pid]
    venv.set_attr("colour", "blue", indices=1)
    assert venv.get_attr("colour") == ["red", "blue", "red"]
    assert venv.has_attr("colour")
    assert not venv.has_attr("taste")
    assert venv.env_is_wrapped(TimeLimit) == [False] * 3
    np.testing.assert_array_equal([picture[0, 0, 0] for picture in venv.get_images() if picture is not None], [0, 1, 2])
    assert not any(process.daemon for process in venv.processes)
    assert venv.env_method("sigint_handler") == [str(signal.SIG_IGN)] * 3  # the parent decides when they stop


def test_wrappers_are_seen(tmp_path: Path):
    makers: list[Any] = [lambda: Monitor(limited(tmp_path, 0)), partial(Scripted, tmp_path, 1)]
    venv = ProcessVecEnv(makers)
    try:
        assert venv.env_is_wrapped(TimeLimit) == [True, False]
        assert venv.env_is_wrapped(Monitor, indices=0) == [True]
        assert venv.env_is_wrapped(gym.Wrapper) == [True, False], "TimeLimit derives from it"
        assert venv.env_is_wrapped(Scripted) == [False, False]  # pyright: ignore[reportArgumentType]  (it is inside)
        assert venv.get_attr("number") == [0, 1]  # through the wrappers
    finally:
        venv.close()


@pytest.mark.parametrize("start_method", [method for method in METHODS if method != "fork"])
def test_workers_import_neither_torch_nor_stable_baselines3(start: Callable[..., ProcessVecEnv], start_method: str):
    venv = VecMonitor(start("", "", start_method=start_method))  # which asks for SB3's `Monitor`, and imports it where it is
    venv.reset()
    venv.step(np.array([GO, GO]))
    assert venv.env_is_wrapped(Monitor) == [False, False]
    assert not venv.has_attr("taste")
    for module in ("torch", "stable_baselines3"):
        assert module in sys.modules
        assert venv.env_method("imports", module) == [False, False], module
    assert venv.env_method("imports", "latent_obs.env_worker") == [True, True]


def test_workers_know_every_command_of_stable_baselines3(tmp_path: Path):
    commands = set(re.findall(r"send\(\(\"(\w+)\"", inspect.getsource(SubprocVecEnv))) - {"close"}
    assert {"step", "reset", "get_attr"} <= commands
    here, _ = multiprocessing.Pipe()
    worker, env = _Worker(here, partial(Scripted, tmp_path)), Scripted(tmp_path)
    env.reset(seed=0)
    data: dict[str, Any] = {"step": 0, "reset": (None, {}), "env_method": ("pid", (), {}), "set_attr": ("colour", 1)}
    data["is_wrapped"] = class_name(TimeLimit)
    for command in commands:
        worker._answer(env, command, data.get(command, "colour"))
    with pytest.raises(NotImplementedError, match="'dance'"):
        worker._answer(env, "dance", None)


def test_environments_may_start_processes(start: Callable[..., ProcessVecEnv]):
    assert start("", "").env_method("start_children") == [(0, "hello\n")] * 2


@pytest.mark.parametrize(
    ("action", "error", "message", "name"),
    [
        (VALUE, WorkerError, r"environment 1 raised ValueError: a bad value\n(?s:.*)Traceback", "ValueError"),
        (INPUT, InputError, r"^environment 1: a bad input$", "InputError"),
        (OWN, InputError, r"^environment 1: code 7$", "OwnInputError"),
        (EOF, WorkerError, "environment 1 raised EOFError: the game closed the connection", "EOFError"),
        (EXIT, WorkerError, "environment 1 raised SystemExit: enough", "SystemExit"),
        (STRANGE, WorkerError, "environment 1 raised .*pickle", "AttributeError|PicklingError"),
    ],
)
def test_an_error_crosses_over_and_one_can_go_on(
    start: Callable[..., ProcessVecEnv],
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    action: int,
    error: type[Exception],
    message: str,
    name: str,
):
    venv = start("", "", "", start_method="fork" if "fork" in METHODS else METHODS[0])
    venv.reset()
    with pytest.raises(error, match=message) as caught:
        venv.step(np.array([GO, action, SLOW]))
    assert type(caught.value) is error
    cause = caught.value.__cause__ if isinstance(caught.value, LatentObsError) else caught.value
    assert isinstance(cause, WorkerError)
    assert re.fullmatch(name, cause.exception_name)
    assert "Traceback" in cause.worker_traceback
    assert cause.worker_traceback in str(cause)
    if action != STRANGE:
        assert "in step" in cause.worker_traceback
    assert venv.get_attr("number") == [0, 1, 2], "no answer of the failed step is taken for another"
    assert venv.get_attr("steps") == [1, 1, 1]
    serial = DummyVecEnv([partial(Scripted, tmp_path, number + 10) for number in range(3)])
    venv.seed(3)
    serial.seed(3)
    np.testing.assert_equal(venv.reset(), serial.reset())
    venv.close()
    assert closed(tmp_path) == {0: "x", 1: "x", 2: "x"}
    assert capfd.readouterr().err == ""


def test_errors_of_reset_and_methods_cross_over(start: Callable[..., ProcessVecEnv]):
    venv = start("", "reset")
    with pytest.raises(GameLostError, match="environment 1: it did not start"):
        venv.reset()
    with pytest.raises(WorkerError, match="environment 0 raised ValueError: a bad call"):
        venv.env_method("value_error")
    with pytest.raises(WorkerError, match=r"environment 1 raised AttributeError.*no_such_method"):
        venv.env_method("no_such_method", indices=1)
    with pytest.raises(WorkerError, match="environment 0 raised LookupError: not here"):
        venv.set_attr("colour", Unfit())
    assert venv.get_attr("colour") == ["red", "red"]


def test_an_environment_that_cannot_be_made_stops_all(start: Callable[..., ProcessVecEnv], tmp_path: Path):
    before = set(multiprocessing.active_children())
    with pytest.raises(InputError, match=r"^environment 1: no such world$") as caught:
        start("", "make", "hang", close_grace_s=0.5)
    assert closed(tmp_path) == {0: "x"}
    assert set(multiprocessing.active_children()) == before
    assert caught.tb  # holds on to everything: so it was not the garbage collector


def test_what_cannot_be_unpickled_is_said(tmp_path: Path):
    def make(strange: Unfit) -> Scripted:
        return Scripted(tmp_path)

    makers: list[Any] = [partial(Scripted, tmp_path), partial(make, Unfit())]
    with pytest.raises(WorkerError, match="environment 1 raised LookupError: not here"):
        ProcessVecEnv(makers, METHODS[0])
    assert closed(tmp_path) == {0: "x"}


def test_what_cannot_be_pickled_starts_nothing(tmp_path: Path):
    lock = threading.Lock()
    before = multiprocessing.active_children()
    with pytest.raises(TypeError, match="pickle"):
        ProcessVecEnv([partial(Scripted, tmp_path), lambda: lock], METHODS[0])  # pyright: ignore[reportArgumentType]
    assert multiprocessing.active_children() == before


@pytest.mark.parametrize(
    ("action", "end"),
    [(KILLED, r"died with exit code -9 \(SIGKILL\), as when memory runs out"), (GONE, "died with exit code 3")],
)
def test_a_dead_worker_is_a_clear_error(start: Callable[..., ProcessVecEnv], tmp_path: Path, action: int, end: str):
    venv = start("", "")
    venv.reset()
    expected = rf"^worker 1 \(pid {venv.processes[1].pid}\) {end}$"
    with pytest.raises(WorkerError, match=expected):
        venv.step(np.array([GO, action]))
    with pytest.raises(WorkerError, match=expected):
        venv.reset()
    venv.close()
    assert closed(tmp_path) == {0: "x"}


def test_a_worker_that_dies_between_two_steps_is_a_clear_error(start: Callable[..., ProcessVecEnv], tmp_path: Path):
    venv = start("", "")
    venv.reset()
    venv.processes[0].terminate()  # which still closes the environment
    venv.processes[0].join(5)
    assert closed(tmp_path) == {0: "t"}
    with pytest.raises(WorkerError, match=r"worker 0 \(pid \d+\) died with exit code 143"):
        venv.step(np.array([GO, GO]))


def test_a_closed_one_says_so(start: Callable[..., ProcessVecEnv], tmp_path: Path):
    venv = start("", "")
    with pytest.raises(WorkerError, match="asked for nothing"):
        venv.step_wait()
    venv.close()
    venv.close()
    assert venv.closed
    assert closed(tmp_path) == {0: "x", 1: "x"}
    with pytest.raises(WorkerError, match="is closed"):
        venv.reset()


class Interrupted:
    """A connection that is waited for when Ctrl-C comes."""

    def __init__(self, connection: Any) -> None:
        self.connection, self.pressed = connection, False

    def recv(self) -> Any:
        if not self.pressed:
            self.pressed = True
            raise KeyboardInterrupt
        return self.connection.recv()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)


def test_ctrl_c_while_waiting_loses_no_answer(start: Callable[..., ProcessVecEnv]):
    venv = start("", "", "")
    venv.reset()
    remote: Any = venv.remotes[1]
    remote.connection = Interrupted(remote.connection)
    with pytest.raises(KeyboardInterrupt):
        venv.step(np.array([GO, GO, GO]))
    assert venv.get_attr("number") == [0, 1, 2]
    assert venv.get_attr("steps") == [1, 1, 1]


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
from scripted_env import GO, HANG, SLOW, Scripted

def start(*numbers, method=sys.argv[2]):
    folder = Path(sys.argv[1])
    venv = ProcessVecEnv([partial(Scripted, folder, number) for number in numbers], method, close_grace_s=3)
    venv.reset()
    return venv

if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(["latent_obs.env_worker"])
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
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    script, said = folder / "script.py", folder / "said.txt"
    script.write_text(SCRIPT + "".join(f"    {line}\n" for line in end.splitlines()))
    with said.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore::DeprecationWarning", script, folder, method], stdin=subprocess.PIPE, text=True,
            stdout=subprocess.PIPE, stderr=file, start_new_session=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
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
