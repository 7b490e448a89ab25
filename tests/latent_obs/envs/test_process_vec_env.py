"""Environments in processes: the results of one process, whatever is asked of them, in processes that import little."""

# ruff: noqa: F401, F811  # fixtures are imported, and arguments have their names

import inspect
import multiprocessing
import re
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor

from latent_obs.envs.env_worker import _Worker, class_name
from latent_obs.envs.workers import ProcessVecEnv
from tests.support.scripted_env import GO, Scripted, limited
from tests.support.scripted_workers import METHODS, closed, preload, start

#: From Python 3.12 on, forking a process with threads, such as pytest-xdist's, is warned of.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


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
    venv = VecMonitor(
        start("", "", start_method=start_method)
    )  # which asks for SB3's `Monitor`, and imports it where it is
    venv.reset()
    venv.step(np.array([GO, GO]))
    assert venv.env_is_wrapped(Monitor) == [False, False]
    assert not venv.has_attr("taste")
    for module in ("torch", "stable_baselines3"):
        assert module in sys.modules
        assert venv.env_method("imports", module) == [False, False], module
    assert venv.env_method("imports", "latent_obs.envs.env_worker") == [True, True]


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
