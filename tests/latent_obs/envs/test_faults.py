"""RestartOnFault, Deadline and LastRealFrame, around environments that fail as their script says."""

import contextlib
import logging
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import psutil
import pytest
from gymnasium import spaces
from hypothesis import example, given, settings
from hypothesis import strategies as st

import latent_obs
from latent_obs.envs import faults
from latent_obs.envs.faults import Deadline, LastRealFrame, RestartOnFault
from latent_obs.util.errors import GameFaultError, GameLostError, InputError
from tests.support.tiny import PixelEnv, PixelKind, picture


class Fragile(PixelEnv):
    """Plays as its script says, one letter a reset or step: "." goes well, "x" is a fault, "e" an error, "t" a
    termination, "u" a time-out.

    When the script is played out, all goes well.
    """

    def __init__(self, script: str | deque[str] = "", error: type[BaseException] = ValueError) -> None:
        super().__init__("dict")
        self.script = script if isinstance(script, deque) else deque(script)
        self.error, self.faults, self.closed = error, 0, False
        self.resets: list[tuple[int | None, Any]] = []

    def next(self) -> str:
        letter = self.script.popleft() if self.script else "."
        if letter == "x":
            self.faults += 1
            raise GameFaultError(f"lost it, {self.faults}")
        if letter == "e":
            raise self.error("a bug")
        return letter

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.resets.append((seed, options))
        self.next()
        observation, info = super().reset(seed=seed)
        return observation, {**info, "began": True}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        letter = self.next()
        observation, reward, *_, info = super().step(action)
        return observation, reward, letter == "t", letter == "u", info

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses made, of which none takes time."""
    made: list[float] = []
    monkeypatch.setattr("time.sleep", made.append)
    return made


def play(env: RestartOnFault, steps: int) -> list[dict[str, Any]]:
    """So many steps, with a reset wherever one is due; the infos."""
    seen: list[dict[str, Any]] = []
    env.reset()
    for _ in range(steps):
        *_, terminated, truncated, info = env.step(1)
        seen.append(info)
        if terminated or truncated:
            env.reset()
    return seen


def test_a_lost_game_is_a_truncation_with_the_last_real_observation():
    env = RestartOnFault(Fragile("...x"))
    env.reset()
    env.step(1)
    last = env.step(1)[0]
    kept = {key: value.copy() for key, value in last.items()}
    observation, reward, terminated, truncated, info = env.step(1)
    np.testing.assert_array_equal(observation["pov"], picture(0, 2), strict=True)
    np.testing.assert_equal(observation, kept)
    assert observation in env.observation_space
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info == {"fault": "lost it, 1", "faults": 1}
    for key, value in observation.items():
        assert not np.shares_memory(value, last[key])


def test_a_game_that_is_lost_at_once_gives_the_first_observation(pauses: list[float]):
    fragile = Fragile(".x" + "xx")
    env = RestartOnFault(fragile)
    first, info = env.reset(seed=3)
    assert info == {"began": True, "faults": 0}
    np.testing.assert_equal(env.step(0)[0], first)
    observation, info = env.reset(seed=7, options={"map": 1})  # each attempt gets the seed and the options
    np.testing.assert_array_equal(observation["pov"], picture(0, 0))
    assert info == {"began": True, "faults": 3}
    assert "fault" not in env.step(0)[-1]
    env.reset()
    assert fragile.resets == [(3, None), *[(7, {"map": 1})] * 3, (None, None)]


@settings(max_examples=30, deadline=None)
@example(in_step=False, lost_resets=1200, first=1.0)  # 2.0 ** 1200 is too large
@given(in_step=st.booleans(), lost_resets=st.integers(0, 11), first=st.floats(0, 60))
def test_pauses_double_up_to_a_minute(in_step: bool, lost_resets: int, first: float):
    made: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.sleep", made.append)
        script = ("." + "x" if in_step else "") + "x" * lost_resets
        env = RestartOnFault(Fragile(script), first_pause_s=first, most_in_a_row=10**9)
        env.reset()
        if in_step:
            assert env.step(0)[3]
            env.reset()
    assert made == [min(60, first * 2 ** min(i, 1_000)) for i in range(lost_resets + in_step)]
    assert env.faults_so_far == lost_resets + in_step


@pytest.mark.parametrize(
    ("script", "healthy", "expected"),
    [
        (".x.x.x", 1000, [1, 2, 4]),  # a fault in each episode, and none comes to its end
        (".x..t.x", 1000, [1, 1]),  # a death in between
        (".x..u.x", 1000, [1, 1]),  # a time-out in between
        (".x....x", 3, [1, 1]),  # three steps in good health
        (".x...x...x", 3, [1, 2, 4]),  # steps of different episodes do not add up
        (".xxx.t.x", 1000, [1, 2, 4, 1]),
    ],
)
def test_what_ends_a_row(
    monkeypatch: pytest.MonkeyPatch, pauses: list[float], script: str, healthy: int, expected: list[float]
):
    monkeypatch.setattr(faults, "_HEALTHY_STEPS", healthy)
    play(RestartOnFault(Fragile(script)), len(script))
    assert pauses == expected


def test_it_gives_up_after_so_many_in_a_row_and_starts_afresh_when_asked_again(pauses: list[float]):
    fragile = Fragile(".x" + "x" * 20)
    env = RestartOnFault(fragile, most_in_a_row=3)
    env.reset()
    env.step(0)
    with pytest.raises(GameLostError, match="lost it, 3") as caught:
        env.reset()
    assert isinstance(caught.value.__cause__, GameFaultError)
    assert pauses == [1, 2]
    assert len(fragile.resets) == 1 + 2  # the step's fault counts as well
    with pytest.raises(GameLostError, match="lost it, 6"):
        env.reset()
    assert pauses == [1, 2, 1, 2]  # three attempts again, the first of them at once
    fragile.script.clear()
    assert env.reset()[1] == {"began": True, "faults": 6}


def test_faults_are_counted_and_logged(caplog: pytest.LogCaptureFixture, pauses: list[float]):
    env = RestartOnFault(Fragile("..x.x..tx.x"))
    with caplog.at_level(logging.WARNING, logger="latent_obs"):
        infos = play(env, 12)
    assert [info["faults"] for info in infos if "fault" in info] == [1, 2, 4]  # the third was in a reset
    assert all(("faults" in info) == ("fault" in info) for info in infos)
    assert all(any(f"fault {i}," in message for message in caplog.messages) for i in (1, 2, 3, 4))


class Remade:
    """Makes environments that share a script, and keeps them."""

    def __init__(self, script: str, error: type[BaseException] = ValueError) -> None:
        self.script, self.error = deque(script), error
        self.made: list[Fragile] = []
        self.unmakeable = 0

    def __call__(self) -> Fragile:
        if self.unmakeable:
            self.unmakeable -= 1
            raise InputError("no such world now")
        self.made.append(Fragile(self.script, self.error))
        return self.made[-1]


@pytest.mark.parametrize("letter", ["e", "x"])
def test_an_environment_that_raises_is_made_anew(pauses: list[float], letter: str):
    remake = Remade(f"..{letter}.t.{letter}{letter}..")
    env = RestartOnFault(remake(), remake=remake)
    infos = play(env, 5)
    assert [info.get("faults") for info in infos] == [None, 1, None, 2, None]
    assert infos[1]["fault"] == {"e": "ValueError: a bug", "x": "lost it, 1"}[letter]
    assert len(remake.made) == 4
    assert [each.closed for each in remake.made] == [True, True, True, False]
    assert pauses == [1, 1, 2]
    assert env.unwrapped is remake.made[-1]


def test_one_that_cannot_be_made_anew_is_one_more_fault(pauses: list[float]):
    remake = Remade(".e")
    env = RestartOnFault(remake(), remake=remake, most_in_a_row=3)
    env.reset()
    env.step(0)
    remake.unmakeable = 1
    env.reset()
    assert env.faults_so_far == 2
    remake.script.extend(".t.e")
    remake.unmakeable = 9
    with pytest.raises(GameLostError, match="no such world now"):
        play(env, 9)


@pytest.mark.parametrize("error", [RuntimeError, GameLostError, InputError, gym.error.ResetNeeded, KeyboardInterrupt])
def test_wrong_use_and_errors_of_what_cannot_be_remade_are_no_faults(error: type[BaseException]):
    is_remade = error not in (RuntimeError, GameLostError)
    for script in (".e", "e"):
        remake = Remade(script, error)
        env = RestartOnFault(remake(), remake=remake if is_remade else None)
        with pytest.raises(error, match="a bug"):
            play(env, 1)
        assert env.faults_so_far == 0


def test_a_new_environment_is_seeded_from_the_last_seed(pauses: list[float]):
    def seeds(first: int | None) -> list[int | None]:
        remake = Remade(".e.e")
        env = RestartOnFault(remake(), remake=remake)
        env.reset(seed=first)
        for _ in range(2):
            env.step(0)
            env.reset()
        env.reset()
        return [seed for each in remake.made for seed, _ in each.resets]

    assert seeds(None) == [None] * 4
    one = seeds(5)
    assert one == seeds(5) != seeds(6)
    assert (one[0], one[-1], len(set(one))) == (5, None, 4)


def test_it_is_a_gymnasium_wrapper_and_checks_its_arguments():
    gym.register("FaultTests/Pixels-v0", entry_point=cast(Any, PixelEnv))
    try:
        spec = RestartOnFault(gym.make("FaultTests/Pixels-v0"), most_in_a_row=2, first_pause_s=0.5).spec
        again = gym.make(cast(Any, spec))
        assert isinstance(again, RestartOnFault)
        assert (again.most_in_a_row, again.first_pause_s) == (2, 0.5)
    finally:
        del gym.registry["FaultTests/Pixels-v0"]
    wrong: list[dict[str, Any]] = [{"most_in_a_row": 0}, {"first_pause_s": float("nan")}]
    for arguments in wrong:
        with pytest.raises(InputError, match=next(iter(arguments))):
            RestartOnFault(PixelEnv(), **arguments)


class Blackout(PixelEnv):
    """Ends with a black picture and both flags, as ViZDoom does."""

    def __init__(self, kind: PixelKind = "box", *, terminated: bool = True, truncated: bool = True) -> None:
        super().__init__(kind)
        self.flags = terminated, truncated

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, _, _, info = super().step(action)
        if self.steps < 3:
            return observation, reward, False, False, info
        black = {k: 0 * v for k, v in observation.items()} if isinstance(observation, dict) else 0 * observation
        return black, reward, *self.flags, info


@pytest.mark.parametrize("kind", ["box", "dict"])
@pytest.mark.parametrize(("terminated", "truncated"), [(True, True), (True, False), (False, True)])
def test_a_black_last_frame_is_replaced_and_a_time_out_is_no_death(kind: PixelKind, terminated: bool, truncated: bool):
    env = LastRealFrame(Blackout(kind, terminated=terminated, truncated=truncated))
    for _ in range(2):
        env.reset(seed=0)
        observation: Any = None
        for _ in range(2):
            observation, _, *flags, _ = env.step(0)
            assert flags == [False, False]
        last, _, *flags, info = env.step(0)
        assert flags == [terminated and not truncated, truncated]
        assert info["step"] == 3
        np.testing.assert_equal(last, observation)
        assert np.any(last["pov"] if kind == "dict" else last)
    real = LastRealFrame(PixelEnv(die_at=1))
    real.reset(seed=0)
    last, _, *flags, _ = real.step(0)
    np.testing.assert_array_equal(last, picture(0, 1))  # a real last frame is kept
    assert flags == [True, False]


def test_the_last_frame_of_a_real_vizdoom_is_real_and_its_time_out_a_truncation():
    pytest.importorskip("vizdoom")
    env = latent_obs.make_pixel_env("VizdoomBasic-v1", frame_skip=8)
    try:
        assert isinstance(env, LastRealFrame)
        before = env.reset(seed=1)[0]["screen"]
        assert before.any()
        screen, terminated, truncated, steps = before, False, False, 0
        while not (terminated or truncated):
            before = screen.copy()
            observation, _, terminated, truncated, _ = env.step(0)  # doing nothing, until the time is up
            screen, steps = observation["screen"], steps + 1
            assert screen.any()
            assert screen in cast(spaces.Dict, env.observation_space)["screen"]
            assert steps < 100
        assert (terminated, truncated) == (False, True)
        np.testing.assert_array_equal(screen, before)
    finally:
        env.close()


ENGINE = """
import os, sys, latent_obs
env = latent_obs.make_pixel_env("VizdoomBasic-v1")
env.reset()
print(env.get_wrapper_attr("game").get_instance_id(), flush=True)
sys.stdin.readline()
"""


@pytest.mark.integration
@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs Linux's list of shared memory")
@pytest.mark.parametrize("end", ["parent", "engine", "close"])
def test_a_game_and_its_memory_do_not_outlive_their_process(tmp_path: Path, end: str):
    pytest.importorskip("vizdoom")
    code = ENGINE + ("env.close()\nprint('closed', flush=True)\nsys.stdin.readline()" if end == "close" else "")
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, text=True, **pipes)
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        name = process.stdout.readline().strip()
        children = psutil.Process(process.pid).children()
        assert len(list(Path("/dev/shm").glob(f"ViZDoom*{name}"))) == 3
        if end == "close":
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "closed\n"
        if end == "engine":
            next(child for child in children if "vizdoom" in child.name()).kill()
        if end != "close":
            process.kill()
        deadline = time.monotonic() + 60
        while (
            left := [c for c in children if c.is_running() and c.status() != "zombie"]
        ) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left
        assert not list(Path("/dev/shm").glob(f"ViZDoom*{name}"))
        process.kill()


def test_deadlines_are_checked_and_end_code_that_catches_everything():
    for name in ("step_deadline_s", "reset_deadline_s"):
        for seconds in (0, -1, float("nan")):
            with pytest.raises(InputError, match=name):
                Deadline(PixelEnv(), **{name: seconds})

    class Stubborn(PixelEnv):
        def reset(self, **kwargs: Any) -> Any:
            while True:
                with contextlib.suppress(GameFaultError):
                    time.sleep(600)
                    break
                time.sleep(600)

    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(GameFaultError, match="reset_deadline_s"):
        Deadline(Stubborn(), reset_deadline_s=0.1).reset()
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
