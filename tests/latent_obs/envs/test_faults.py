"""RestartOnFault by itself, around an environment that loses its game when it is told to."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_obs.envs.faults import RestartOnFault
from latent_obs.util.errors import GameFaultError, GameLostError, InputError
from tests.support.tiny import PixelEnv, picture


class Fragile(PixelEnv):
    """Plays as its script says, one letter a reset or step: "." goes well, "x" is a fault, "t" a termination, "u" a
    time-out.

    When the script is played out, all goes well.
    """

    def __init__(self, script: str = "") -> None:
        super().__init__("dict")
        self.script = deque(script)
        self.resets: list[tuple[int | None, Any]] = []
        self.faults = 0

    def next(self) -> str:
        letter = self.script.popleft() if self.script else "."
        if letter == "x":
            self.faults += 1
            raise GameFaultError(f"lost it, {self.faults}")
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


def restarting(script: str, **kwargs: Any) -> tuple[RestartOnFault, list[float]]:
    """Around a fragile environment, with a list of the pauses that it made."""
    pauses: list[float] = []
    return RestartOnFault(Fragile(script), sleep=pauses.append, **kwargs), pauses


def play(env: RestartOnFault, steps: int) -> list[tuple[bool, bool, dict[str, Any]]]:
    """So many steps, with a reset wherever one is due; the flags and infos."""
    seen: list[tuple[bool, bool, dict[str, Any]]] = []
    env.reset()
    for _ in range(steps):
        *_, terminated, truncated, info = env.step(1)
        seen.append((terminated, truncated, info))
        if terminated or truncated:
            env.reset()
    return seen


def test_a_lost_game_is_a_truncation_with_the_last_real_observation():
    env, _ = restarting("...x")
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
        value[...] = 0
    np.testing.assert_equal(last, kept)


def test_a_game_that_is_lost_at_once_gives_the_first_observation():
    env, _ = restarting(".x")
    first, info = env.reset(seed=3)
    assert info == {"began": True, "faults": 0}
    np.testing.assert_equal(env.step(0)[0], first)
    observation, info = env.reset()
    np.testing.assert_array_equal(observation["pov"], picture(1, 0))
    assert info == {"began": True, "faults": 1}
    assert "fault" not in env.step(0)[-1]


def test_ordinary_episodes_pass_as_they_are():
    env, pauses = restarting("")
    plain = PixelEnv("dict")
    observation, expected = env.reset(seed=1)[0], plain.reset(seed=1)[0]
    for action in (0, 1, 1):
        np.testing.assert_equal(observation, expected)
        observation, *rest = env.step(action)
        expected, *expected_rest = plain.step(action)
        assert rest == expected_rest
    assert pauses == []


@settings(max_examples=60, deadline=None)
@given(
    in_step=st.booleans(),
    lost_resets=st.integers(0, 11),
    first=st.floats(0, 8),
    longest=st.floats(8, 100),
)
def test_pauses_double_up_to_the_longest(in_step: bool, lost_resets: int, first: float, longest: float):
    script = ("." + "x" if in_step else "") + "x" * lost_resets
    env, pauses = restarting(script, first_pause_s=first, longest_pause_s=longest, most_in_a_row=99)
    env.reset()
    if in_step:
        assert env.step(0)[3]
        env.reset()
    assert pauses == [min(longest, first * 2**i) for i in range(lost_resets + in_step)]
    assert env.faults_so_far == lost_resets + in_step


def test_one_can_wait_for_as_long_as_it_takes():
    env, pauses = restarting("x" * 1200, most_in_a_row=10**9)
    env.reset()
    assert len(pauses) == 1200
    assert pauses[-1] == 60


def test_the_default_pauses():
    env, pauses = restarting("xxxxxxx")
    env.reset()
    assert pauses == [1, 2, 4, 8, 16, 32, 60]


@pytest.mark.parametrize(
    ("script", "healthy", "expected"),
    [
        (".x.x.x", 1000, [1, 2, 4]),  # a fault in each episode, and none comes to its end
        (".x..t.x", 1000, [1, 1]),  # a death in between
        (".x..u.x", 1000, [1, 1]),  # a time-out in between
        (".x...x", 3, [1, 2]),
        (".x....x", 3, [1, 1]),  # three steps in good health
        (".x...x...x", 3, [1, 2, 4]),  # steps of different episodes do not add up
        ("....x", 1, [1]),
        (".xxx.t.x", 1000, [1, 2, 4, 1]),
    ],
)
def test_what_ends_a_row(script: str, healthy: int, expected: list[float]):
    env, pauses = restarting(script, healthy_steps=healthy)
    play(env, len(script))
    assert pauses == expected


def test_it_gives_up_after_so_many_in_a_row_and_starts_afresh_when_asked_again():
    env, pauses = restarting(".x" + "x" * 20, most_in_a_row=3)
    fragile = cast(Fragile, env.env)
    env.reset()
    env.step(0)
    with pytest.raises(GameLostError, match=r"lost 3 times in a row.*The last time: lost it, 3\. latent-obs doctor"):
        env.reset()
    assert pauses == [1, 2]
    assert len(fragile.resets) == 1 + 2  # the step's fault counts as well
    with pytest.raises(GameLostError, match="lost it, 6"):
        env.reset()
    assert pauses == [1, 2, 1, 2]  # three attempts again, the first of them at once
    assert len(fragile.resets) == 1 + 2 + 3
    fragile.script.clear()
    assert env.reset()[1] == {"began": True, "faults": 6}


def test_each_attempt_gets_the_seed_and_the_options():
    env, _ = restarting("xx")
    env.reset(seed=7, options={"map": 1})
    assert cast(Fragile, env.env).resets == [(7, {"map": 1})] * 3
    env.reset()
    assert cast(Fragile, env.env).resets[3:] == [(None, None)]


def test_counts_in_infos_go_up_and_steps_without_a_fault_have_none():
    env, _ = restarting("..x.x..tx.x")
    infos = [info for *_, info in play(env, 12)]
    assert [info["faults"] for info in infos if "fault" in info] == [1, 2, 4]  # the third was in a reset
    assert all(("faults" in info) == ("fault" in info) for info in infos)
    assert env.faults_so_far == 4


def test_what_is_logged(caplog: pytest.LogCaptureFixture):
    env, _ = restarting(".xx")
    with caplog.at_level(logging.WARNING, logger="latent_obs"):
        env.reset()
        assert caplog.messages == []
        env.step(0)
        env.reset()
    assert caplog.messages == [
        "lost it, 1 (fault 1, 1 in a row); it is started anew",
        "lost it, 2 (fault 2, 2 in a row); it is started anew",
        "a new episode begins, after 2 fault(s) in a row",
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="latent_obs"):
        env.step(0)
    assert caplog.messages == []


@pytest.mark.parametrize("error", [ValueError, RuntimeError, GameLostError, KeyboardInterrupt])
def test_other_errors_are_nobodys_fault(error: type[BaseException]):
    class Broken(Fragile):
        def next(self) -> str:
            if self.script and self.script.popleft() == "x":
                raise error("a bug")
            return "."

    env = RestartOnFault(Broken(".x"))
    env.reset()
    with pytest.raises(error, match="a bug"):
        env.step(0)
    env = RestartOnFault(Broken("x"))
    with pytest.raises(error, match="a bug"):
        env.reset()
    assert env.faults_so_far == 0


def test_other_exceptions_can_be_faults():
    class Remote(Fragile):
        def next(self) -> str:
            try:
                return super().next()
            except GameFaultError as fault:
                raise ConnectionResetError(str(fault)) from None

    pauses: list[float] = []
    env = RestartOnFault(Remote(".xx"), faults=(OSError, EOFError), sleep=pauses.append)
    env.reset()
    assert env.step(0)[2:] == (False, True, {"fault": "lost it, 1", "faults": 1})
    env.reset()
    assert pauses == [1, 2]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"most_in_a_row": 0}, "most_in_a_row must be 1 or more faults, got 0"),
        ({"healthy_steps": 0}, "healthy_steps must be 1 or more, got 0"),
        ({"first_pause_s": -1}, "got -1 and 60"),
        ({"first_pause_s": 3.0, "longest_pause_s": 2.0}, "the first no longer than the longest, got 3.0 and 2.0"),
        ({"first_pause_s": float("nan")}, "got nan and"),
    ],
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, Any], named: str):
    with pytest.raises(InputError, match=named):
        RestartOnFault(PixelEnv(), **wrong)


def test_it_is_a_gymnasium_wrapper():
    env = RestartOnFault(PixelEnv("dict"), most_in_a_row=2)
    check_env(env.unwrapped, skip_render_check=True)
    assert env.observation_space == env.unwrapped.observation_space
    assert isinstance(env.action_space, spaces.Discrete)
    gym.register("FaultTests/Pixels-v0", entry_point=cast(Any, PixelEnv))
    try:
        spec = RestartOnFault(gym.make("FaultTests/Pixels-v0"), most_in_a_row=2, first_pause_s=0.5).spec
        again = gym.make(cast(Any, spec))
        assert isinstance(again, RestartOnFault)
        assert (again.most_in_a_row, again.first_pause_s) == (2, 0.5)
    finally:
        del gym.registry["FaultTests/Pixels-v0"]
