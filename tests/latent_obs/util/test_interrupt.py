"""GracefulStop, and files that appear whole or not at all."""

import json
import os
import signal
import stat
import threading
import time
from pathlib import Path

import psutil
import pytest

from latent_obs.envs.pixel_envs import make_pixel_env
from latent_obs.util.atomic import atomic_write, write_json
from latent_obs.util.interrupt import GracefulStop

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_only_asks(number: signal.Signals):
    with GracefulStop() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_ctrl_c_interrupts_at_once(number: signal.Signals):
    with GracefulStop() as stop:
        os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_second_sigterm_still_lets_the_step_finish():
    with GracefulStop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested


@pytest.mark.parametrize("fails", [False, True])
def test_handlers_are_put_back(fails: bool):
    before = [signal.getsignal(n) for n in SIGNALS]

    def block() -> None:
        with GracefulStop():
            assert all(signal.getsignal(n) not in before for n in SIGNALS)
            if fails:
                raise RuntimeError("a step failed")

    if fails:
        with pytest.raises(RuntimeError, match="a step failed"):
            block()
    else:
        block()
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_one_inside_another_stops_the_inner_one():
    with GracefulStop() as outer:
        with GracefulStop() as inner:
            os.kill(os.getpid(), signal.SIGINT)
        assert inner.requested
        assert not outer.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert outer.requested


def test_outside_the_main_thread_it_does_nothing():
    before = [signal.getsignal(n) for n in SIGNALS]
    seen: list[object] = []

    def run() -> None:
        try:
            with GracefulStop() as stop:
                seen.append(stop.requested)
                seen.append([signal.getsignal(n) for n in SIGNALS])
        except BaseException as error:  # a thread's exception would be lost
            seen.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [False, before]


def test_ctrl_c_does_not_end_the_game_under_an_agent():
    """A terminal sends it to every process; the game has to outlive the step under way."""
    pytest.importorskip("vizdoom")
    handler, before = signal.getsignal(signal.SIGINT), set(psutil.Process().children(recursive=True))
    env = make_pixel_env("VizdoomBasic-v1", frame_skip=4)
    try:
        env.reset(seed=0)
        assert signal.getsignal(signal.SIGINT) is handler
        (engine,) = set(psutil.Process().children(recursive=True)) - before
        engine.send_signal(signal.SIGINT)
        for _ in range(20):
            env.step(0)
            time.sleep(0.02)
        assert engine.is_running()
    finally:
        env.close()


def test_a_file_takes_its_place_at_the_end_only(tmp_path: Path):
    file = tmp_path / "deep" / "a.txt"
    with atomic_write(file) as aside:
        assert aside.parent == file.parent
        assert aside.suffix == file.suffix
        aside.write_text("whole")
        assert not file.exists()
    assert file.read_text() == "whole"
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("there", [False, True])
def test_a_file_that_failed_leaves_what_was_there(tmp_path: Path, there: bool, error: type[BaseException]):
    file = tmp_path / "a.txt"
    if there:
        file.write_text("before")

    def write() -> None:
        with atomic_write(file) as aside:
            aside.write_text("half")
            raise error("in the middle")

    with pytest.raises(error):
        write()
    assert [f.name for f in tmp_path.iterdir()] == (["a.txt"] if there else [])
    if there:
        assert file.read_text() == "before"


def test_others_may_read_the_file(tmp_path: Path):
    write_json(tmp_path / "a.json", {"a": [1, 2.5, None]})
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o644
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, 2.5, None]}


def test_what_json_cannot_hold_leaves_the_file_as_it_was(tmp_path: Path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", object())
    assert (tmp_path / "a.json").read_text() == "1\n"
    assert [f.name for f in tmp_path.iterdir()] == ["a.json"]
