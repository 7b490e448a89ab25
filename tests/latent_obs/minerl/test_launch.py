"""A game that is started here: minerl's own launch script and process watcher, with the stand-in as its Java."""

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

import latent_obs
from latent_obs.envs.faults import RestartOnFault
from latent_obs.minerl import installation
from latent_obs.minerl.client import make_client
from latent_obs.minerl.env import MineRLEnv
from latent_obs.util.errors import GameFaultError, GameLostError
from tests.support import ROOT
from tests.support.minerl_games import find, upstream

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform == "win32", reason="the launch script is another one there"),
]

TASK = "MineRLTreechop-v0"
PLAY = f"PYTHONPATH='{ROOT}' exec '{sys.executable}' -m tests.support.minerl_server --config config/malmomodCLIENT.cfg"
Java = Callable[[str], None]


@pytest.fixture
def java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Java]:
    """Set what the `java` on the PATH does when it is to run the game.

    The game's folder is a copy of minerl's with an empty file as the built game. All temporary folders are below the
    test's own, and processes that are left there at its end are killed.
    """
    malmo = upstream("minerl.env.malmo")
    manager = malmo.InstanceManager
    game = tmp_path / "Malmo" / "Minecraft"
    shutil.copytree(manager.MINECRAFT_DIR, game, ignore=shutil.ignore_patterns("src", "gradle", "build"))
    shutil.copytree(manager.SCHEMAS_DIR, game.parent / "Schemas")
    monkeypatch.setattr(manager, "MINECRAFT_DIR", str(game))
    monkeypatch.setattr(manager, "SCHEMAS_DIR", str(game.parent / "Schemas"))
    jar = game / installation.GAME_JAR
    monkeypatch.setattr(installation, "game_jar", lambda: jar)
    jar.parent.mkdir(parents=True)
    jar.touch()
    for folder in ("temporary", "bin", "work"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "work")  # minerl leaves logs where it runs
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DISPLAY", ":99")
    monkeypatch.delenv("MINERL_HEADLESS", raising=False)

    def does(what: str) -> None:
        program = tmp_path / "bin" / "java"
        program.write_text(
            f"""#!/bin/sh\nif [ "$1" = -version ]; then echo 'openjdk version "1.8.0_392"' >&2; exit; fi\n{what}\n"""
        )
        program.chmod(0o755)

    yield does
    for process in processes(tmp_path):
        with suppress(psutil.Error):
            process.kill()


def processes(folder: Path) -> list[psutil.Process]:
    """Those that were started with, or run in, a folder below this one; and children of ours that are zombies."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() == psutil.STATUS_ZOMBIE:
                if process.ppid() == os.getpid():
                    found.append(process)
            elif str(folder) in " ".join([*process.cmdline(), process.cwd()]) and process.pid != os.getpid():
                found.append(process)
    return found


def wait_for(event: Callable[[], bool]) -> bool:
    """Whether something happens within a minute."""
    until = time.monotonic() + 60
    while not (happened := event()) and time.monotonic() < until:
        time.sleep(0.05)
    return happened


def check_nothing_is_left(folder: Path) -> None:
    """No process (minerl's watcher takes a moment to end), no copy of the game, and nothing in minerl's pool."""
    wait_for(lambda: not processes(folder))
    assert [str(process) for process in processes(folder)] == []
    assert list((folder / "temporary").iterdir()) == []
    assert upstream("minerl.env.malmo").InstanceManager._instance_pool == []


def the_game(folder: Path) -> psutil.Process:
    """The stand-in's process."""
    (found,) = [process for process in processes(folder) if "tests.support.minerl_server" in process.cmdline()]
    return found


@pytest.mark.parametrize(("how", "deadline"), [("SIGKILL", 900.0), ("SIGSTOP", 5.0)])
def test_a_game_is_started_replaced_when_it_dies_or_hangs_and_ended(
    java: Java, tmp_path: Path, how: str, deadline: float
):
    java(PLAY)
    with closing(latent_obs.make_minerl(TASK, step_deadline_s=deadline, reset_deadline_s=900.0)) as env:
        find(env, RestartOnFault).first_pause_s = 0.01
        assert processes(tmp_path) == []  # not before it is needed
        first, info = env.reset(seed=1)
        assert info == {"faults": 0}
        last = env.step(1)[0]["pov"]
        game = the_game(tmp_path)
        assert env.reset(seed=1)[1] == {"faults": 0}
        assert the_game(tmp_path) == game  # the same game for all episodes
        env.step(1)
        game.send_signal(signal.Signals[how])
        halted = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)  # until then it may answer
        assert wait_for(lambda: not game.is_running() or game.status() in halted)
        observation, reward, terminated, truncated, info = env.step(1)
        np.testing.assert_array_equal(observation["pov"], last)
        assert (reward, terminated, truncated, info["faults"]) == (0.0, False, True, 1)
        assert "(a game of its own)" in info["fault"]
        again, info = env.reset(seed=1)
        np.testing.assert_array_equal(again["pov"], first["pov"])
        assert info == {"faults": 1}
        assert the_game(tmp_path) != game
        assert env.step(1)[2:] == (False, False, {})
        # Its script, itself and the watcher; nothing of the one before.
        assert wait_for(lambda: len(processes(tmp_path)) == 3)
    check_nothing_is_left(tmp_path)


LAST_WORDS = "echo '[main/ERROR]: first'; seq 40; echo 'Pixel format not accelerated'"


@pytest.mark.parametrize(
    ("does", "message"),
    [
        (f"trap '' TERM; {LAST_WORDS}", r"not ready within 5 s.*\n(.*\n)*.*Pixel format not accelerated"),
        ("echo '\tat org.lwjgl.opengl.Display.<clinit>(Display.java:135)'", "could not detect an X Server"),
    ],
    ids=["is never ready", "finds no display"],
)
def test_a_game_that_does_not_start_is_ended(java: Java, tmp_path: Path, does: str, message: str):
    java(f"{does}; exec sleep 600")
    with closing(MineRLEnv(make_client(TASK), reset_deadline_s=5.0)) as env:
        with pytest.raises(GameFaultError, match=message) as error:
            env.reset(seed=1)
        assert "[main/ERROR]: first" not in str(error.value)  # the last of them only
        check_nothing_is_left(tmp_path)


def test_a_game_that_dies_as_it_starts_is_given_up_with_its_last_words(java: Java, tmp_path: Path):
    java(f"{LAST_WORDS}; exit 1")
    with closing(latent_obs.make_minerl(TASK, reset_deadline_s=900.0, faults_in_a_row=1)) as env:
        with pytest.raises(GameLostError, match=r"ended while it started.*\n(.*\n)*.*Pixel format not acc"):
            env.reset(seed=1)
        check_nothing_is_left(tmp_path)
        java(PLAY)
        assert env.reset(seed=1)[1] == {"faults": 1}
        env.step(1)
    check_nothing_is_left(tmp_path)
