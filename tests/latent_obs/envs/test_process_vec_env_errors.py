"""Environments in processes: errors cross over as themselves, a dead worker is a clear one, and one goes on where one
can."""

# ruff: noqa: F401, F811  # fixtures are imported, and arguments have their names

import multiprocessing
import re
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.vec_env import DummyVecEnv

from latent_obs.envs.workers import ProcessVecEnv, WorkerError
from latent_obs.util.errors import GameLostError, InputError, LatentObsError
from tests.support.scripted_env import EOF, EXIT, GO, GONE, INPUT, KILLED, OWN, SLOW, STRANGE, VALUE, Scripted, Unfit
from tests.support.scripted_workers import METHODS, closed, preload, start

#: From Python 3.12 on, forking a process with threads, such as pytest-xdist's, is warned of.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


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
