"""Workers that are really killed: where no other takes their place, the error says why; and nothing is left of the
dead."""

# ruff: noqa: F401, F811  # fixtures are imported, and arguments have their names

import multiprocessing
import os
import signal
import time
from functools import partial
from multiprocessing.util import _finalizer_registry  # pyright: ignore[reportAttributeAccessIssue]
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("stable_baselines3")

from latent_obs.envs.worker_remote import _our_ends
from latent_obs.envs.workers import ProcessVecEnv, WorkerError
from latent_obs.util.errors import InputError
from tests.support.mortal_env import DIE, GO, HANG, RAISE, SIZE, Mortal
from tests.support.mortal_workers import METHODS, Start, kill, preload, said, shape, start, step

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills processes as POSIX systems do"),
]


@pytest.mark.parametrize(("dies", "lives"), [("reset", (1, 2)), ("step", (1, 2)), ("make", (2, 3)), ("reset", (2, 3))])
def test_a_game_that_cannot_start_is_an_error(start: Start, said: list[str], dies: str, lives: tuple[int, ...]):
    venv = start({}, {"dies": dies, "lives": lives})

    def play() -> None:
        venv.reset()
        step(venv, GO, GO)
        step(venv, GO, GO)
        step(venv, GO, DIE)
        step(venv, GO, GO)

    with pytest.raises(WorkerError, match=r"worker 1 \(pid \d+\) died .*second one in a row .* no use") as e:
        play()
    assert e.value.died
    assert len(said) == venv.replaced == (1 if 1 in lives else 2)
    with pytest.raises(WorkerError, match="second one in a row"):
        venv.reset()


def test_one_false_start_is_none_too_many(start: Start):
    venv = start({"dies": "reset", "lives": (1, 3, 5)})
    venv.reset()
    for expected in (3, 5):
        step(venv, GO)
        faults = step(venv, DIE)[3][0]["faults"]
        assert venv.reset_infos[0]["faults"] == expected
        assert faults == expected
    assert venv.get_attr("life") == [6]


def test_no_more_than_so_many(start: Start, said: list[str]):
    venv = start({}, {}, restarts=2)
    venv.reset()
    step(venv, DIE, GO)
    step(venv, GO, GO)
    step(venv, GO, DIE)
    step(venv, GO, GO)
    with pytest.raises(
        WorkerError, match=r"worker 0 .*SIGKILL.* not replaced, as 2 workers were already \(restarts=2\)"
    ):
        step(venv, DIE, GO)
    assert len(said) == venv.replaced == 2


def test_an_error_beside_a_death_is_raised_and_one_can_go_on(start: Start):
    venv = start({}, {}, {})
    venv.reset()
    with pytest.raises(WorkerError, match="environment 1 raised ValueError: a bad value"):
        step(venv, GO, RAISE, DIE)
    assert shape(venv.reset()) == (3, *SIZE)
    assert venv.get_attr("life") == [1, 1, 2]
    with pytest.raises(WorkerError, match="environment 1 raised ValueError"):
        step(venv, DIE, RAISE, GO)
    assert venv.get_attr("steps") == [0, 0, 1], "no answer is taken for another"


def test_methods_and_attributes_of_the_dead_are_errors(start: Start):
    venv = start({}, {})
    venv.reset()
    with pytest.raises(WorkerError, match=r"worker 1 .*SIGKILL"):
        venv.env_method("die", indices=1)
    with pytest.raises(WorkerError, match=r"worker 1 .*SIGKILL"):
        venv.get_attr("colour")
    assert venv.replaced == 0
    _, _, dones, infos = step(venv, GO, GO)
    assert dones.tolist() == [False, True]
    assert infos[1]["faults"] == 1
    assert venv.get_attr("colour") == ["red", "red"]


def test_a_step_before_the_first_reset_has_nothing_to_go_on_from(start: Start):
    venv = start({})
    with pytest.raises(WorkerError, match="SIGKILL"):
        step(venv, DIE)
    assert shape(venv.reset()) == (1, *SIZE)


def test_one_that_hangs_is_ended_where_there_is_a_limit(start: Start):
    venv = start({}, {}, answer_timeout_s=0.4)
    venv.reset()
    begin = time.monotonic()
    _, _, dones, infos = step(venv, HANG, GO)
    assert 0.3 < time.monotonic() - begin < 10
    assert infos[0]["fault"].endswith("gave no answer within 0.4 s, and was ended")
    assert dones.tolist() == [True, False]
    step(venv, GO, GO)
    alone = start({}, restarts=0, answer_timeout_s=0.3)
    alone.reset()
    with pytest.raises(WorkerError, match=r"no answer within 0\.3 s"):
        step(alone, HANG)


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    return False


@pytest.mark.parametrize("start_method", METHODS[:2])
@pytest.mark.parametrize("leaves", ["program", "copy"])
@pytest.mark.parametrize("restarts", [0, 3])
def test_games_of_the_dead_end_too(start: Start, start_method: str, leaves: str, restarts: int):
    venv = start({"leaves": leaves}, {"leaves": leaves}, start_method=start_method, restarts=restarts)
    venv.reset()
    games = venv.get_attr("child")
    if restarts:
        step(venv, GO, DIE)  # "copy" holds the pipe open
        games += venv.get_attr("child", 1)
        assert gone(games[1])
        assert psutil.pid_exists(games[0]), "another worker's game"
    else:
        with pytest.raises(WorkerError, match="SIGKILL"):
            step(venv, GO, DIE)
        assert gone(games[1])
    kill(venv, 0)
    venv.close()
    assert gone(games[0])
    if restarts:
        os.kill(games[2], signal.SIGKILL)  # a worker that ends by itself has its own ways with its game


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's list of open files")
@pytest.mark.parametrize("start_method", METHODS[:2])
def test_nothing_piles_up(start: Start, start_method: str):
    venv = start({}, {}, start_method=start_method, restarts=100)
    venv.reset()

    def kept() -> tuple[int, ...]:
        files = len(list(Path("/proc/self/fd").iterdir()))
        return (
            files,
            len(multiprocessing.active_children()),
            len(_finalizer_registry),
            len(_our_ends),
            len(venv.processes),
        )

    counts: list[tuple[int, ...]] = []
    for _ in range(6):
        step(venv, GO, GO)
        step(venv, GO, DIE)
        counts.append(kept())
    assert set(counts[1:]) == {counts[1]}, counts
    assert venv.replaced == 6


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"restarts": -1}, "restarts must be a number of workers, 0 or more, got -1"),
        ({"restarts": True}, "restarts must be"),
        ({"restarts": 1.5}, "restarts must be"),
        ({"answer_timeout_s": 0}, "answer_timeout_s must be seconds, more than 0, or None, got 0"),
        ({"answer_timeout_s": float("nan")}, "answer_timeout_s must be"),
    ],
)
def test_bad_input(tmp_path: Path, kwargs: Any, message: str):
    before = multiprocessing.active_children()
    with pytest.raises(InputError, match=message):
        ProcessVecEnv([partial(Mortal, tmp_path)], **kwargs)  # pyright: ignore[reportArgumentType]
    assert multiprocessing.active_children() == before
