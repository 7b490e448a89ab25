"""Ctrl-C that lets a step finish, files that appear whole or not at all, checks of arguments, and torch's threads."""

import contextlib
import errno
import json
import os
import re
import signal
import stat
import subprocess
import sys
import termios
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import pytest
import torch

import latent_obs.util.progress
from latent_obs.envs.factory import make_pixel_env
from latent_obs.util.atomic import GracefulStop, atomic_folder, atomic_write, folder_lock, own_folder, write_json
from latent_obs.util.device import torch_threads
from latent_obs.util.errors import InputError, check_choice, check_count, check_types, parse_json
from latent_obs.util.progress import ProgressBar, Stages

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
        begun = set(psutil.Process().children(recursive=True)) - before
        (engine,) = (process for process in begun if "vizdoom" in process.name())  # the other one watches it
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


def test_an_error_of_the_disk_names_the_file(tmp_path: Path):
    """safetensors hands on the text of the system's error, and a write names no file."""
    script = (
        "import resource, sys\nimport numpy as np\nfrom pathlib import Path\n"
        "from safetensors.numpy import save_file\n"
        "from latent_obs.util.atomic import atomic_folder, atomic_write, write_json\n"
        "home = Path(sys.argv[1])\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "def by_safetensors(to): save_file({'a': np.zeros(9000)}, to)\n"
        "def to_folder(to):\n    with atomic_folder(to) as new: by_safetensors(new / 'a')\n"
        "def to_file(to):\n    with atomic_write(to) as new: by_safetensors(new)\n"
        "for write in (to_file, to_folder, lambda to: write_json(to, list(range(9000)))):\n"
        "    try: write(home / 'target')\n"
        "    except OSError as error: print(error.errno, Path(error.filename).name)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{errno.EFBIG} target"] * 3, done.stderr
    assert not list(tmp_path.iterdir())


@dataclass(frozen=True)
class Settings:
    count: int = 1
    rate: float | None = None
    kind: Literal["a", "b"] = "a"
    file: Path = Path("x")
    sizes: tuple[int, ...] = ()
    more: dict[str, bool | int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)


def test_what_stands_for_a_type_in_json_and_numpy_becomes_one():
    settings = Settings(np.int64(3), np.float32(0.5), "b", "y", [1, 2], {"a": True})  # pyright: ignore
    assert settings == Settings(3, 0.5, "b", Path("y"), (1, 2), {"a": True})
    assert [type(value) for value in (settings.count, settings.rate, settings.sizes)] == [int, float, tuple]
    assert Settings(rate=2).rate == 2
    assert Settings(sizes=tuple(np.array([1, 2]))).sizes == Settings(sizes=np.array([1, 2])).sizes == (1, 2)  # pyright: ignore


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("count", value) for value in (None, "3", 1.0, float("nan"), True, [3], {})),
        *(("rate", value) for value in ("1", True, [1.0])),
        *(("kind", value) for value in ("c", None, 1)),
        *(("file", value) for value in (None, 3, [])),
        *(("sizes", value) for value in (None, 3, "34", [1, "2"], [1.5])),
        *(("more", value) for value in (None, [], {"a": "b"}, {1: 1})),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(name: str, value: Any):
    with pytest.raises(InputError, match=f"^{name} "):
        Settings(**{name: value})


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a": "b"}', "[" * 100_000, b"\xff", "1" * 5_000])
def test_json_is_of_its_type_or_refused(text: str | bytes):
    assert parse_json('{"a": 1}', dict[str, int], "f.json") == {"a": 1}
    with pytest.raises(InputError, match=r"^f\.json ") as error:
        parse_json(text, dict[str, int], "f.json")
    assert "\n" not in str(error.value)


def test_where_there_is_no_terminal_a_line_comes_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(latent_obs.util.progress, "_FIRST_LINE_S", 0.1)
    with ProgressBar(total=8, unit="step", desc="train") as bar:
        for _ in range(8):
            time.sleep(0.06)
            bar.update()
    for _ in ProgressBar(range(3), desc="quick"):
        pass
    with ProgressBar(total=2, desc="hidden", shown=False) as bar:
        time.sleep(0.2)
        bar.update(2)
    lines = capfd.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 3
    assert all(line.startswith("train: ") and "%" in line and "step/s" in line and "left" in line for line in lines)


def test_inside_stages_every_line_has_the_time_left_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(latent_obs.util.progress, "_FIRST_LINE_S", 0.1)
    monkeypatch.setattr(latent_obs.util.progress, "_LINES_APART_S", 0.3)
    with Stages({"record": 10.0, "train": 2_000.0}) as stages:
        assert 2_009 < stages.left() <= 2_010
        with stages.stage("record"), ProgressBar(total=8, unit="step", desc="frames") as bar:
            for _ in range(4):
                time.sleep(0.06)
                bar.update()
            # By the bar half of the stage is left, a quarter of a second; so the later one is faster than estimated.
            assert 1_000 <= stages.left() < 1_100
        with stages.stage("train"):
            time.sleep(1.0)  # without a bar
        assert stages.left() == 0
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines][:2] == ["frames", "train"]
    assert all(re.search(r"\d\d:\d\d left in all$", line) for line in lines)
    with ProgressBar(total=1, desc="alone", shown=True) as bar:
        bar.update()
    assert "in all" not in capfd.readouterr().err


def test_after_stages_inside_of_stages_the_outer_ones_count_again():
    with Stages({"all": 100.0}) as outer, outer.stage("all"):
        with Stages({"part": 10.0}) as inner, ProgressBar(total=1, shown=False) as bar:
            assert bar._stages is inner
        with ProgressBar(total=1, shown=False) as bar:
            assert bar._stages is outer


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_in_a_terminal_the_bar_of_a_stage_has_the_time_left_of_the_whole():
    code = """if True:
        import time
        from latent_obs.util.progress import ProgressBar, Stages
        with Stages({"record": 10.0, "train": 100.0}) as stages, stages.stage("record"):
            with ProgressBar(total=4_000, desc="train-vae", unit="step") as bar:
                bar.set_postfix_str("error 123.4, KL 331.7 nats, beta 0.01, 530 images/s")
                for _ in range(4):
                    time.sleep(0.15)
                    bar.update(1_000)"""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    subprocess.run([sys.executable, "-c", code], stderr=theirs, check=True)
    os.close(theirs)
    text = b""
    with contextlib.suppress(OSError):  # how a terminal ends
        while piece := os.read(ours, 4_096):
            text += piece
    os.close(ours)
    assert re.search(rb"train-vae:[^\r]*\|[^\r]*\d\d:\d\d left in all", text)


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


def test_a_folder_that_was_being_replaced_without_an_exchange_is_put_back(tmp_path: Path):
    """As a process leaves it that is killed between the two renames."""
    (tmp_path / ".encoder.old").mkdir()
    (tmp_path / ".encoder.old" / "a").write_text("whole")
    with pytest.raises(RuntimeError, match="full"), atomic_folder(tmp_path / "encoder"):
        raise RuntimeError("the disk is full")
    assert (tmp_path / "encoder" / "a").read_text() == "whole"


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_used_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int):
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    with folder_lock(tmp_path), atomic_folder(tmp_path / "encoder") as new:
        (new / "a").write_text("whole")
    assert (tmp_path / "encoder" / "a").read_text() == "whole"


def test_a_place_without_write_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def mkdir(*_: object, **__: object) -> None:  # root could write into a folder of mode 555
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with (
        pytest.raises(InputError, match=r"new: you have no permission to write there"),
        own_folder(tmp_path / "new"),
    ):
        pass
