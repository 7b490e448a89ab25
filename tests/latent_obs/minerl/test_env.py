"""MineRL's environments through the real client of minerl 0.4.4, playing against the stand-in game."""

import itertools
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

import latent_obs
from latent_obs.actions import sb3_actions
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.envs.factory import env_maker, is_minerl_id
from latent_obs.envs.faults import RestartOnFault
from latent_obs.minerl import installation
from latent_obs.minerl.client import make_client
from latent_obs.minerl.env import MineRLEnv, make_minerl, register_minerl
from latent_obs.util.errors import InputError, MissingExtraError
from tests.support.minerl_games import (
    HIGH_RES,
    LOW_RES,
    ONE_OF_EACH,
    SPECS,
    allowing,
    connected,
    find,
    noop_command,
    picture_of,
    upstream,
)
from tests.support.minerl_server import StandInGame, WorldSettings
from tests.support.tiny import LATENT_DIM

#: Warnings of the checkers about what is so on purpose.
EXPECTED = (
    ".*different from the unwrapped version",  # the wrappers are what is to be checked
    ".*symmetric and normalized",  # the bounds of MineRL's obfuscated vectors are -1.05 and 1.05
    ".*Box observation space m(in|ax)imum value is -?infinity",  # a latent has no bounds
)


@pytest.fixture
def game() -> Iterator[StandInGame]:
    with StandInGame() as game:
        yield game


def raw(env_id: str, game: StandInGame, **kwargs: Any) -> MineRLEnv:
    """With MineRL's own actions."""
    return MineRLEnv(make_client(env_id), port=game.port, **kwargs)


@pytest.mark.parametrize(
    "env_id", [*ONE_OF_EACH, *(pytest.param(env_id, marks=pytest.mark.slow) for env_id in HIGH_RES)]
)
def test_gymnasiums_checker_passes(env_id: str, game: StandInGame):
    register_minerl()
    with allowing(*EXPECTED), closing(gym.make(env_id, port=game.port)) as env:
        assert env.spec is not None
        assert (env.spec.id, env.spec.max_episode_steps) == (env_id, SPECS[env_id].max_episode_steps)
        check_env(env, skip_render_check=True)
    assert len(set(game.seeds)) > 2  # it is asked with other seeds, too


@pytest.mark.parametrize("env_id", ["MineRLTreechop-v0", "MineRLObtainDiamondVectorObf-v0", "MineRLBasaltFindCave-v0"])
def test_stable_baselines_checker_passes_on_the_one_liner(env_id: str, game: StandInGame, encoder: FrozenEncoder):
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    with allowing(*EXPECTED), closing(latent_obs.make(env_id, encoder, port=game.port)) as env:
        assert isinstance(env.observation_space, spaces.Box)  # one vector: latents first
        np.testing.assert_allclose(env.reset(seed=1)[0][:LATENT_DIM], encoder(picture_of(game.world)), atol=1e-5)
        sb3.check_env(env, skip_render_check=True)
        check_env(env, skip_render_check=True)


@pytest.mark.parametrize("env_id", ONE_OF_EACH)
def test_it_plays_as_upstreams_own_environment_does(env_id: str, game: StandInGame):
    """The same seed and actions give the same observations, converted, and the same commands for the game."""
    with StandInGame() as other, connected(env_id, other.port) as client, closing(raw(env_id, game)) as env:
        client.seed(11)
        with allowing("space.noop"):
            old = client.reset()
        observation, info = env.reset(seed=11)
        env.action_space.seed(3)
        assert info == {}
        for _ in range(12):
            np.testing.assert_equal(observation, env._observation.from_old(old))
            assert observation in env.observation_space
            np.testing.assert_array_equal(observation["pov"], picture_of(game.world))
            action = env.action_space.sample()
            observation, reward, terminated, truncated, info = env.step(action)
            old, expected, done, _ = client.step(env._action.to_old(action))
            assert (reward, terminated, truncated, info) == (expected, done, False, {})
            assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
    assert list(game.commands) == list(other.commands)
    assert game.seeds == other.seeds


def test_frames_are_upright_rgb_and_their_own(game: StandInGame):
    with closing(raw("MineRLTreechop-v0", game)) as env:
        frames = [env.reset(seed=5)[0]["pov"], env.step(env.noop)[0]["pov"]]
    for frame in frames:
        assert (frame.shape, frame.dtype) == ((64, 64, 3), np.uint8)
        assert frame.flags.c_contiguous
        assert frame.flags.writeable
        sky, ground = frame[:8].mean((0, 1)), frame[-8:].mean((0, 1))
        assert sky[2] > sky[0] + 20  # blue, and last: RGB
        assert ground[1] > ground[2] + 20  # green
    assert not np.shares_memory(*frames)
    np.testing.assert_array_equal(*frames)  # nothing was done


def test_one_seed_fixes_a_run(game: StandInGame):
    def run(seed: int | None) -> list[Any]:
        with closing(make_minerl("MineRLTreechop-v0", port=game.port)) as env:
            seen = [env.reset(seed=seed)[0]["pov"]]
            seen += [env.step(action)[0]["pov"] for action in (1, 2, 3)]
            return [*seen, env.reset()[0]["pov"], env.reset()[0]["pov"]]

    one, again, other, unseeded = run(4), run(4), run(5), run(None)
    np.testing.assert_array_equal(one, again)
    for different in (other, unseeded):
        assert not np.array_equal(one[0], different[0])
        assert not np.array_equal(one[-1], different[-1])
    assert game.seeds[:3] == game.seeds[3:6]
    assert game.seeds[0] == 4
    assert len(set(game.seeds)) == 9
    assert [len(token.split(":")) for token in game.tokens] == [6] * 9 + [5] * 3  # with a seed, and without


def commands_of(heard: str) -> dict[str, str]:
    """The commands that the game got, by verb."""
    return dict(line.split(" ", 1) for line in heard.split("\n"))


@pytest.mark.parametrize("env_id", LOW_RES)
def test_doing_nothing_is_what_upstream_sends_for_it(env_id: str, game: StandInGame):
    expected = commands_of(noop_command(SPECS[env_id]._kwargs["env_spec"]))
    assert expected["forward"] == "0"
    assert "attack" in expected
    slack = 1e-3 if "Obf" in env_id else 0.0  # degrees: upstream's obfuscation is not quite reversible
    with closing(make_minerl(env_id, port=game.port)) as env:
        env.reset(seed=1)
        env.step(env.get_wrapper_attr("noop"))
        env.unwrapped.step(find(env, MineRLEnv).noop)
    for heard in map(commands_of, list(game.commands)[-2:]):
        assert [abs(float(turn)) <= slack for turn in heard.pop("camera").split()] == [True, True]
        assert heard == {verb: rest for verb, rest in expected.items() if verb != "camera"}


def test_a_vector_that_minerl_decodes_to_nan_is_no_fault(game: StandInGame):
    with closing(raw("MineRLObtainDiamondVectorObf-v0", game)) as env:
        vectors = np.random.default_rng(0).choice(np.array([-1.05, 1.05], np.float32), (2000, 64))
        with np.errstate(all="ignore"):
            odd = next(vector for vector in vectors if np.isnan(env.core.task.ac_dec(vector)).any())
        env.reset(seed=1)
        assert env.step({"vector": odd})[2:] == (False, False, {})
        assert "nan" not in game.commands[-1]


@pytest.mark.parametrize(
    ("env_id", "ticks", "expected"),
    [
        ("MineRLTreechop-v0", 80, (80, False, True)),  # a second before the limit is still the limit
        ("MineRLTreechop-v0", 79, (79, True, False)),
        ("MineRLBasaltFindCave-v0", 100, (70, False, True)),  # 30 ticks go by in its reset
        ("MineRLBasaltFindCave-v0", 50, (20, True, False)),
    ],
)
def test_the_missions_own_time_limit_is_a_truncation(env_id: str, ticks: int, expected: tuple[int, bool, bool]):
    with StandInGame(settings=WorldSettings(time_limit_ticks=ticks)) as game, closing(raw(env_id, game)) as env:
        env.max_episode_steps = 100  # in place of the thousands of the specification
        env.reset(seed=2)
        assert how_it_ends(env) == expected


def how_it_ends(env: gym.Env[Any, Any]) -> tuple[int, bool, bool]:
    """Steps of doing nothing until the end, and its flags."""
    noop = env.get_wrapper_attr("noop")
    for step in itertools.count(1):
        *_, terminated, truncated, _ = env.step(noop)
        if terminated or truncated:
            return step, terminated, truncated
    raise AssertionError


def test_a_limit_of_ones_own(game: StandInGame):
    register_minerl()
    with closing(gym.make("MineRLTreechop-v0", port=game.port, max_episode_steps=4)) as env:
        env.reset(seed=2)
        assert how_it_ends(env) == (4, False, True)
    with closing(make_minerl("MineRLTreechop-v0", port=game.port, frame_skip=4)) as env:
        env.reset(seed=2)
        steps = game.steps
        env.step(1)
        assert game.steps == steps + 4


def test_the_picture_to_look_at_is_the_observations(game: StandInGame):
    with closing(make_minerl("MineRLBasaltFindCave-v0", port=game.port, render_mode="rgb_array")) as env:
        observation, _ = env.reset(seed=3)
        for action in (1, 2, 3):
            drawn: Any = env.render()
            np.testing.assert_array_equal(drawn, observation["pov"], strict=True)
            observation = env.step(action)[0]
        drawn[:] = 7
        np.testing.assert_array_equal(env.render(), observation["pov"])


def test_windows_open_and_close(game: StandInGame, monkeypatch: pytest.MonkeyPatch):
    window = MagicMock(isopen=True)  # in place of minerl's, for which this machine may have no display
    module = ModuleType("minerl.viewer.trajectory_display")
    vars(module).update(HumanTrajectoryDisplay=window, VectorTrajectoryDisplay=window)
    window.return_value = window
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with closing(make_minerl("MineRLBasaltFindCave-v0", port=game.port, render_mode="human")) as env:
        env.reset(seed=1)
        env.step(1)
        window.assert_called_once()
        drawn = window.render.call_count
        env.step(1)
        assert window.render.call_count == drawn + 1
        window.close.assert_not_called()
    window.close.assert_called_once()


def assert_a_dropped_game_costs_its_episode(env: Any, game: StandInGame, encoder: FrozenEncoder) -> None:
    find(env, RestartOnFault).first_pause_s = 0.01
    for fault in (None, "drop", None):
        observation, _ = env.reset(seed=6)
        np.testing.assert_allclose(observation, encoder(picture_of(game.world)), atol=1e-5)
        if fault is not None:
            game.fail_next("drop")
        *_, truncated, info = env.step(1)
        assert (truncated, "fault" in info) == (fault is not None, fault is not None)


def test_an_environment_in_hand_is_adapted(game: StandInGame, encoder: FrozenEncoder):
    with connected("MineRLTreechop-v0", game.port) as client, closing(latent_obs.wrap(client, encoder)) as env:
        assert env.observation_space == spaces.Box(-np.inf, np.inf, (LATENT_DIM,), np.float32)
        assert_a_dropped_game_costs_its_episode(env, game, encoder)
    assert game.alive  # it was there before, and stays


def test_names_of_what_makes_them(game: StandInGame, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(gym.registry, "MineRLTreechop-v0", raising=False)
    latent_obs.make_pixel_env("MineRLTreechop-v0", port=game.port).close()
    register_minerl()  # again does no harm
    assert set(SPECS) <= set(gym.registry)
    with closing(latent_obs.make_pixel_env("MineRLTreechop-v0", port=game.port, actions="dict")) as env:
        assert isinstance(env.unwrapped, latent_obs.MineRLEnv)
        assert env.action_space == env.unwrapped.action_space
    with pytest.raises(InputError, match=r"MineRLTreechop-v0 .*colour"):
        latent_obs.make_pixel_env("MineRLTreechop-v0", colour="red")


def test_a_game_that_minerl_was_given_needs_neither_port_nor_java(
    game: StandInGame, encoder: FrozenEncoder, monkeypatch: pytest.MonkeyPatch
):
    manager = upstream("minerl.env.malmo").InstanceManager
    monkeypatch.setattr(manager, "_instance_pool", [])
    monkeypatch.setattr(installation, "find_java", lambda: None)
    manager.add_existing_instance(game.port)
    task = "MineRLTreechop-v0"
    makers = (partial(latent_obs.make, task, encoder), lambda: latent_obs.wrap(upstream("gym").make(task), encoder))
    for make_one in (*makers, partial(latent_obs.make, task, encoder)):
        with closing(make_one()) as env:
            assert_a_dropped_game_costs_its_episode(env, game, encoder)
            with pytest.raises(InputError, match="Java"):  # a game serves one environment
                latent_obs.make(task, encoder)
    assert game.alive


def test_minerl_is_known_by_what_is_registered(game: StandInGame, encoder: FrozenEncoder):
    task, mine = "MineRLTreechop-v0", "Cave-v0"
    gym.register(mine, entry_point="latent_obs:make_minerl", kwargs={"env_id": task})
    gym.register("MineRLNone-v0", entry_point="tests.support.tiny:PixelEnv")
    try:
        for env_id in (f"minerl:{task}", f"latent_obs.minerl.env:{task}", mine):
            assert is_minerl_id(env_id)
            with closing(env_maker(env_id, port=game.port)()) as env:
                assert find(env, RestartOnFault).remake is None  # the one that keeps the connection
                assert sb3_actions(env.unwrapped).get_wrapper_attr("names")[1:3] == ("attack", "forward")
            with closing(latent_obs.make(env_id, encoder, port=game.port)) as env:
                assert isinstance(env.observation_space, spaces.Box)
            made = gym.make(env_id, port=game.port)
            with closing(made), closing(latent_obs.wrap(made, encoder)) as env:
                assert isinstance(env.observation_space, spaces.Box)
        assert not is_minerl_id("MineRLNone-v0")
    finally:
        del gym.registry[mine], gym.registry["MineRLNone-v0"]


def test_what_is_no_minerl_environment_is_refused():
    for thing in (3, upstream("gym").make("CartPole-v1")):
        with pytest.raises(InputError, match="client"):
            MineRLEnv(thing)


@pytest.mark.parametrize("make", [make_minerl, latent_obs.make_pixel_env])
def test_wrong_names_and_installations(make: Any, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match=r"MineRLTreeChop-v0.*MineRLTreechop-v0"):
        make("MineRLTreeChop-v0")
    monkeypatch.setattr(installation, "minerl_version", lambda: None)
    with pytest.raises(MissingExtraError, match="--extra minerl"):
        make("MineRLTreechop-v0")
