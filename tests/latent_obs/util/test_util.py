"""Ctrl-C that lets a step finish, files that appear whole or not at all, checks of arguments, and torch's threads."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from latent_obs.envs.factory import make_pixel_env
from latent_obs.util.atomic import GracefulStop, atomic_write, folder_lock, write_json
from latent_obs.util.device import torch_threads
from latent_obs.util.errors import InputError, check_choice, check_count

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_only_asks_and_a_second_ctrl_c_interrupts(number: signal.Signals):
    before = handlers()
    with GracefulStop() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGTERM)  # a second one still lets the step finish
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert handlers() == before


def test_one_inside_another_stops_the_inner_one_and_outside_the_main_thread_none_does():
    with GracefulStop() as outer:
        with GracefulStop() as inner:
            os.kill(os.getpid(), signal.SIGINT)
        assert inner.requested
        assert not outer.requested
        before, seen = handlers(), list[object]()

        def run() -> None:
            with GracefulStop() as stop:
                seen.extend([stop.requested, handlers()])

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert seen == [False, before]
        os.kill(os.getpid(), signal.SIGTERM)
        assert outer.requested


@pytest.mark.integration
def test_ctrl_c_does_not_end_the_game_under_an_agent():
    """A terminal sends it to every process; the game has to outlive the current step."""
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
    file = tmp_path / "deep" / "a.json"
    with atomic_write(file) as temporary:
        assert temporary.parent == file.parent
        assert temporary.suffix == file.suffix
        temporary.write_text("whole")
        assert not file.exists()
    assert file.read_text() == "whole"
    write_json(file, {"a": [1, 2.5, None]})
    with pytest.raises(TypeError):
        write_json(file, object())
    assert json.loads(file.read_text()) == {"a": [1, 2.5, None]}
    assert stat.S_IMODE(file.stat().st_mode) == 0o644  # others may read it
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("content", [{}, {"a.txt": "before"}])
def test_a_write_that_failed_leaves_what_was_there(tmp_path: Path, content: dict[str, str]):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "a.txt") as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == content


def test_counts_and_choices_are_checked():
    assert check_count("envs", np.int64(3)) == 3
    assert check_count("seed", 0, at_least=0) == 0
    wrong: tuple[Any, ...] = (0, -1, 1.0, True, np.True_, "1", None, [1])
    for value in wrong:
        with pytest.raises(InputError, match="envs"):
            check_count("envs", value)
    check_choice("crop", "none", ("none", "center-square"))
    with pytest.raises(InputError, match=r"crop.*none, center-square.*'left'"):
        check_choice("crop", "left", ("none", "center-square"))


@pytest.mark.parametrize("count", [3, None])
def test_torchs_threads_are_restored(count: int | None):
    before = torch.get_num_threads()
    with pytest.raises(KeyError), torch_threads(count):  # noqa: PT012
        assert torch.get_num_threads() == (count or before)
        raise KeyError
    assert torch.get_num_threads() == before


HOLD = """
import sys, time
from pathlib import Path
from latent_obs.util.atomic import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(900)
"""


@pytest.mark.integration
def test_a_folder_has_one_owner_and_is_free_when_the_owner_was_killed(tmp_path: Path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=str(owner.pid)), folder_lock(tmp_path):
            pass
        owner.kill()
    with folder_lock(tmp_path), pytest.raises(InputError, match=str(os.getpid())), folder_lock(tmp_path):
        pass
    with folder_lock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
