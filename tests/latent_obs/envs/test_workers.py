"""Environments in worker processes: the results of one process, one clear error for each failure, and none left."""

import contextlib
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.wrappers import TimeLimit

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor

import latent_obs
from latent_obs.envs.factory import is_minerl_id
from latent_obs.envs.sb3_bridge import GymnasiumVecEnv, ProcessVecEnv
from latent_obs.envs.workers import WorkerError, _registered_here, default_start_method
from latent_obs.minerl.env import register_minerl
from latent_obs.util.errors import GameLostError, InputError
from tests.support import ROOT
from tests.support.scripted_env import GO, Act, Scripted, Unfit, limited
from tests.support.tiny import closed_without_a_trace

pytestmark = pytest.mark.integration
METHODS = [m for m in ("forkserver", "spawn") if m in multiprocessing.get_all_start_methods()]


def closed(folder: Path) -> dict[int, str]:
    """How often each environment was closed, in letters."""
    return {int(file.name.split("-")[1]): file.read_text() for file in folder.glob("closed-*")}


@pytest.fixture(scope="module", autouse=True)
def forkserver() -> None:
    default_start_method()  # sets what its server imports, before a test starts it


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ProcessVecEnv]]:
    """Make a `ProcessVecEnv` of `Scripted`s, each with its own fault; it is closed in the end, and all must be gone."""

    def make(*faults: str, start_method: str | None = None, close_grace_s: float = 5.0) -> ProcessVecEnv:
        # The vector makes one of the first kind in this process, for its spaces; it is not counted.
        makers: Any = [partial(Scripted, tmp_path, number, fault) for number, fault in enumerate(faults)]
        made.append(ProcessVecEnv(makers, start_method, close_grace_s=close_grace_s))
        (tmp_path / "closed-0").unlink()
        return made[-1]

    with closed_without_a_trace() as made:
        yield make


def play(venv: VecEnv, steps: int = 9) -> list[Any]:
    """All that an agent can see."""
    venv.seed(7)
    venv.set_options({"level": 3})
    story: list[Any] = [venv.reset(), list(venv.reset_infos)]
    for _ in range(steps):
        observation, rewards, dones, infos = venv.step(np.zeros(venv.num_envs, np.int64))
        story += [observation, rewards, dones, list(infos), list(venv.reset_infos)]
    return story


@pytest.mark.parametrize("start_method", METHODS)
def test_results_equal_those_of_one_process(tmp_path: Path, start_method: str):
    makers: list[Any] = [partial(limited, tmp_path, number) for number in range(2)]
    serial, processes = DummyVecEnv(makers), ProcessVecEnv(makers, start_method)
    try:
        assert processes.observation_space == serial.observation_space
        assert processes.action_space == serial.action_space
        assert processes.render_mode == serial.render_mode
        one, other = play(serial), play(processes)
        np.testing.assert_equal(one, other)
        assert one[1] == [{"seed": 7 + number, "options": {"level": 3}} for number in range(2)]
        ends = [info for infos in other[5::5] for info in infos if "terminal_observation" in info]
        assert {info["TimeLimit.truncated"] for info in ends} == {False, True}
        kinds = [info["kind"] for infos in other[5::5] for info in infos]
        assert {type(kind) for kind in kinds} == {int, str}, "infos arrive as they were sent"
        np.testing.assert_equal(play(serial), play(processes))  # seeded again
    finally:
        serial.close()
        processes.close()
    assert closed(tmp_path) == {0: "xxx", 1: "xx"}
    assert [process.exitcode for process in processes.processes] == [0, 0]


def test_workers_start_processes_ignore_ctrl_c_and_import_neither_torch_nor_sb3(start: Callable[..., ProcessVecEnv]):
    venv = VecMonitor(start("", ""))  # which asks for SB3's `Monitor`
    venv.reset()
    venv.step(np.array([GO, GO]))
    assert venv.env_is_wrapped(TimeLimit) == venv.env_is_wrapped(Monitor) == [False, False]
    assert venv.env_method("start_children") == [(0, "hello\n")] * 2, "not daemonic"
    assert venv.env_method("sigint_handler") == [str(signal.SIG_IGN)] * 2, "the parent decides when they stop"
    for module in ("torch", "stable_baselines3"):
        assert module in sys.modules
        assert venv.env_method("imports", module) == [False, False], module
    assert venv.env_method("imports", "latent_obs.envs.workers") == [True, True]


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (Act.OWN, InputError, r"^environment 1: code 7$"),
        (Act.ATTRIBUTES, RuntimeError, r"^environment 1 raised UnicodeDecodeError: .*bad byte"),
        (Act.STRANGE, Exception, r"^environment 1: .*pickle"),
        (Act.GONE, WorkerError, r"worker 1 .*exit code 3"),
        (Act.KILLED, WorkerError, r"worker 1 .*exit code -9 \(SIGKILL.*--resume"),
    ],
)
def test_a_failure_is_one_error_and_ends_all(
    start: Callable[..., ProcessVecEnv], tmp_path: Path, action: Act, error: type[Exception], message: str
):
    venv = start("", "", "")
    venv.reset()
    with pytest.raises(error, match=message) as caught:
        venv.step(np.array([GO, action, Act.SLOW]))
    if error not in (WorkerError, Exception):
        assert type(caught.value) is error
        assert "in step" in str(caught.value.__cause__), "the worker's traceback"
    assert not any(process.is_alive() for process in venv.processes)
    own = {} if action in (Act.GONE, Act.KILLED) else {1: "x"}
    assert closed(tmp_path) == {0: "x", **own, 2: "x"}
    with pytest.raises(WorkerError, match=r"(environment|worker) 1"):
        venv.env_method("pid")
    venv.close()


def test_errors_of_reset_and_methods_cross_over(start: Callable[..., ProcessVecEnv]):
    with pytest.raises(GameLostError, match=r"^environment 1: it did not start"):
        start("", "reset").reset()
    with pytest.raises(LookupError, match=r"^environment [01]: not here"):
        start("", "").set_attr("colour", Unfit())


@pytest.mark.parametrize(("fault", "error"), [("make", InputError), ("die", WorkerError)])
def test_an_environment_that_cannot_be_made_stops_all(
    start: Callable[..., ProcessVecEnv], fault: str, error: type[Exception]
):
    before = set(multiprocessing.active_children())
    with pytest.raises(error, match=r"environment 1: no such world|worker 1 .*exit code 4") as caught:
        start("", fault, "hang", close_grace_s=0.5)
    assert set(multiprocessing.active_children()) == before
    assert caught.tb  # holds on to everything: so it was not the garbage collector


@pytest.mark.parametrize(("bad", "error"), [(threading.Lock(), TypeError), (Unfit(), WorkerError)])
def test_a_maker_that_cannot_be_sent(tmp_path: Path, bad: Any, error: type[Exception]):
    before = multiprocessing.active_children()
    makers: Any = [partial(Scripted, tmp_path), partial(Scripted, tmp_path, fault=bad)]
    with pytest.raises(error):
        ProcessVecEnv(makers)
    assert multiprocessing.active_children() == before
    with pytest.raises(InputError, match="start_method"):
        ProcessVecEnv(makers[:1], "fork")


def test_a_worker_killed_between_two_calls(start: Callable[..., ProcessVecEnv]):
    venv = start("", "")
    venv.reset()
    games = venv.env_method("start_game")
    venv.processes[1].kill()
    venv.processes[1].join(5)
    with pytest.raises(WorkerError, match=rf"worker 1 \(pid {venv.processes[1].pid}\) .*SIGKILL.*--resume"):
        venv.step(np.array([GO, GO]))
    deadline = time.monotonic() + 60
    while runs(psutil.Process(games[1])) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not runs(psutil.Process(games[1])), "the game of the dead one has ended too"
    os.kill(games[0], signal.SIGKILL)  # a worker that ends by itself has its own ways with its game


def test_ctrl_c_while_waiting_ends_all(start: Callable[..., ProcessVecEnv], monkeypatch: pytest.MonkeyPatch):
    venv = start("", "", "")
    venv.reset()

    def interrupted(_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("latent_obs.envs.workers.wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            venv.step(np.array([GO, GO, GO]))
    assert [process.exitcode for process in venv.processes] == [0] * 3


def test_hung_workers_do_not_hold_up_the_others(start: Callable[..., ProcessVecEnv], tmp_path: Path):
    venv = start("", "", "", "", close_grace_s=1.0)
    venv.reset()
    venv.step_async(np.array([GO, Act.HANG, Act.HANG_HARD, Act.SLOW]))
    begin = time.monotonic()
    venv.close()
    assert 2 < time.monotonic() - begin < 60
    assert [process.exitcode for process in venv.processes] == [0, 143, -signal.SIGKILL, 0]
    assert (tmp_path / "terminated-2").exists(), "terminated first"
    assert closed(tmp_path) == {0: "x", 1: "t", 3: "x"}


def test_an_error_while_closing_is_one_line(capfd: pytest.CaptureFixture[str], start: Callable[..., ProcessVecEnv]):
    venv = start("", "close", start_method="spawn")  # the server of "forkserver" has another stderr
    venv.close()
    assert capfd.readouterr().err == "environment 1: close() raised OSError: it does not stop\n"
    assert [process.exitcode for process in venv.processes] == [0, 0]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's list of open files")
def test_nothing_piles_up_and_no_worker_holds_anothers_pipe(start: Callable[..., ProcessVecEnv]):
    kept: list[int] = []
    for _ in range(3):
        first, second = start("", ""), start("")
        pipes = [pipe.pipe for venv in (first, second) for pipe in venv.vector_env.parent_pipes]  # pyright: ignore
        ours = {str(Path(f"/proc/self/fd/{pipe.fileno()}").readlink()) for pipe in pipes}
        for held in first.env_method("sockets") + second.env_method("sockets"):
            assert not ours & set(held)
        second.reset()
        with pytest.raises(WorkerError):
            second.step(np.array([Act.KILLED]))
        first.close()
        del first, second, pipes
        kept.append(len(list(Path("/proc/self/fd").iterdir())))
    # Each vector that is still referenced keeps the files by which the ends of its processes are seen.
    assert len(set(np.diff(kept))) == 1, kept


def test_a_dropped_one_is_closed(tmp_path: Path):
    venv = ProcessVecEnv([partial(Scripted, tmp_path, number) for number in range(2)])
    processes = venv.processes
    del venv
    assert [process.exitcode for process in processes] == [0, 0]
    assert closed(tmp_path) == {0: "xx", 1: "x"}


SCRIPT = """
import multiprocessing, os, signal, sys, time
from functools import partial
from pathlib import Path
import numpy as np
from latent_obs import ProcessVecEnv
from tests.support.scripted_env import GO, Act, Scripted

folder = Path(sys.argv[1])

def start(*numbers):
    venv = ProcessVecEnv([partial(Scripted, folder, number) for number in numbers], sys.argv[2], close_grace_s=3)
    (folder / f"closed-{numbers[0]}").unlink()
    venv.reset()
    return venv

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
    """Run a script to its end, check that no process outlives it, and return its exit code and stderr."""
    script, stderr = folder / "script.py", folder / "stderr.txt"
    script.write_text(SCRIPT + end)
    with stderr.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, script, folder, method],
            stdin=subprocess.PIPE,
            text=True,
            stdout=subprocess.PIPE,
            stderr=file,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        )
    assert process.stdin is not None
    assert process.stdout is not None
    family: list[psutil.Process] = []
    try:
        assert process.stdout.readline() == "ready\n", stderr.read_text()
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 5
        process.stdin.write("\n")
        process.stdin.flush()
        code = process.wait(900)
        deadline = time.monotonic() + 60
        while (left := [member for member in family if runs(member)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == [], stderr.read_text()
        return code, stderr.read_text()
    finally:
        process.stdin.close()
        process.stdout.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its session: whatever a failure has left behind
        process.wait(10)


@pytest.mark.parametrize(
    ("method", "end", "code", "printed"),
    [
        ("spawn", "raise ValueError('oh')", 1, r"Traceback[^\n]*\n(  [^\n]*\n)+ValueError: oh\n"),
        ("forkserver", "second.close()\nfirst.step_async(np.array([GO, Act.SLOW, GO]))\nsys.exit(5)", 5, ""),
    ],
)
def test_a_script_that_leaves_without_close_leaves_nothing(
    tmp_path: Path, method: str, end: str, code: int, printed: str
):
    left, stderr = leave(tmp_path, method, end)
    assert left == code, stderr
    assert re.fullmatch(printed, stderr), stderr
    assert closed(tmp_path) == dict.fromkeys(range(5), "x")


KILL = """
first.step_async(np.array([GO, Act.SLOW, Act.HANG]))
second.step_async(np.array([Act.HANG_HARD, GO]))
while not list(folder.glob("hangs-*")):
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("method", METHODS[:1])
def test_workers_of_a_parent_that_is_killed_close_and_end(tmp_path: Path, method: str):
    code, stderr = leave(tmp_path, method, KILL)
    assert code == -signal.SIGKILL
    assert "Traceback" not in stderr
    assert closed(tmp_path) == {0: "x", 1: "x", 2: "t", 4: "x"}


PLAIN_SCRIPT = """
print("the script runs")
import sys, users_library, torch, gymnasium as gym
import numpy as np
from latent_obs import Architecture, FrozenEncoder, ProcessVecEnv, make

class Mine(gym.Env):
    observation_space = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    action_space = gym.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        return np.zeros((16, 16, 3), np.uint8), {}
    def imported(self):
        return [module in sys.modules for module in ("users_library", "torch")]

gym.register("Mine-v0", entry_point=Mine)
gym.register("ByName-v0", entry_point="__main__:Mine")

def main():
    class Local(Mine):
        pass

    gym.register("Local-v0", entry_point=Local)
    gym.register("Inner-v0", entry_point=lambda: gym.make("Local-v0"))
    encoder = FrozenEncoder.random(Architecture((16, 16, 3), 4, widths=(4, 8), strides=(2, 2)), device="cpu")
    makers = [lambda: gym.make("Mine-v0"), lambda: gym.make("Inner-v0")]
    vectors = [ProcessVecEnv([Mine] * 2), ProcessVecEnv(makers)]
    for name, kind in (("ByName-v0", "async"), ("Local-v0", "sb3-async")):
        vectors.append(make(name, encoder, num_envs=2, vectorization=kind))
    for venv in vectors:
        venv.reset()
        print((venv.env_method if hasattr(venv, "env_method") else venv.call)("imported"))
        venv.close()

main()
"""


@pytest.mark.parametrize("way", ["file", "command", "notebook"])
def test_scripts_start_workers_that_do_not_import_them_but_know_their_environments(tmp_path: Path, way: str):
    (tmp_path / "users_script.py").write_text(PLAIN_SCRIPT)
    (tmp_path / "users_library.py").touch()
    notebook = (
        "import sys; source = open('users_script.py').read(); exec(compile(source, '<cell 1>', 'exec'), globals())"
    )
    words = {"file": ["users_script.py"], "command": ["-c", PLAIN_SCRIPT], "notebook": ["-c", notebook]}[way]
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    none = [[False, False]] * 2
    assert done.stdout.splitlines() == ["the script runs", str(none), str(none), str(tuple(none)), str(none)], (
        done.stderr
    )
    assert done.stderr == ""


def test_an_environment_that_cannot_be_sent_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module: Any = types.ModuleType("only_here")
    monkeypatch.setitem(sys.modules, "only_here", module)
    mine: Any = type("Mine", (Scripted,), {"__module__": "only_here"})
    module.Mine = mine
    monkeypatch.setitem(gym.registry, "OnlyHere-v0", EnvSpec("OnlyHere-v0", entry_point=mine))
    with pytest.raises(InputError, match=r"OnlyHere-v0.*only_here"):
        ProcessVecEnv([lambda: gym.make("OnlyHere-v0", folder=tmp_path)])


def test_what_others_registered_does_not_matter(monkeypatch: pytest.MonkeyPatch):
    def local(**_: object) -> Any:
        return None

    changed = gym.wrappers.TransformObservation(gym.make("CartPole-v1"), lambda o: o, None).spec
    assert changed is not None
    others = {"Vector-v0": EnvSpec("Vector-v0", entry_point="a:b", vector_entry_point=local), "Changed-v0": changed}
    for name, spec in others.items():
        monkeypatch.setitem(gym.registry, name, spec)
    sent: dict[str, EnvSpec] = pickle.loads(pickle.dumps(_registered_here()))
    assert others.keys() <= sent.keys()
    register_minerl()
    for name, spec in pickle.loads(pickle.dumps(_registered_here())).items():
        monkeypatch.setitem(gym.registry, name, spec)  # as in a worker
    assert is_minerl_id("MineRLTreechop-v0")
    assert not is_minerl_id("Changed-v0")


def of_gymnasium(makers: Any) -> Any:
    return GymnasiumVecEnv(AsyncVectorEnv(makers, context="spawn", autoreset_mode=AutoresetMode.SAME_STEP))


@pytest.mark.parametrize(
    "make",
    [
        lambda makers, encoder: latent_obs.VectorLatentObservation(AsyncVectorEnv(makers, context="spawn"), encoder),
        lambda makers, encoder: latent_obs.VecLatentObservation(SubprocVecEnv(makers, "spawn"), encoder),
        lambda makers, encoder: of_gymnasium(makers),
    ],
    ids=["gymnasium", "sb3", "bridge"],
)
@pytest.mark.parametrize("when", ["step", "close"])
def test_a_dead_worker_of_other_vectors_is_one_error_too(tmp_path: Path, encoder: Any, make: Any, when: str):
    before = set(multiprocessing.active_children())
    with warnings.catch_warnings(action="ignore"):
        venv = make([partial(Scripted, tmp_path, number, size=16) for number in range(3)], encoder)
        venv.reset()
        if when == "step":
            with pytest.raises(WorkerError, match=r"worker 1 .*SIGKILL"):
                venv.step(np.array([GO, Act.KILLED, GO]))
        else:
            next(iter(set(multiprocessing.active_children()) - before)).kill()
        begin = time.monotonic()
        venv.close()
        assert time.monotonic() - begin < 60
        del venv
    assert set(multiprocessing.active_children()) == before
