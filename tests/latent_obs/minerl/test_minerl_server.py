"""The stand-in for Minecraft behind MineRL's real client; skipped where that is not installed."""

from __future__ import annotations

import gc
import json
import socket
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.support.minerl_server import StandInGame, WorldSettings
from tests.support.minerl_server.clients import attach

#: One trunk, straight ahead and in reach, that has all the logs one could want.
FACING = WorldSettings(hits_per_log=1, logs_per_tree=1000, trees=1, tree_distance=(2.0, 2.2), tree_bearing=0.0)

Make = Callable[..., Any]


@pytest.fixture
def game() -> Iterator[StandInGame]:
    with StandInGame() as it:
        yield it


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """``make(game, id_or_spec, seed)``: an environment of the real client on a stand-in, with upstream's warnings
    ignored."""
    pytest.importorskip("minerl", reason="MineRL's client is not installed", exc_type=ImportError)
    environments = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", category=pytest.PytestUnhandledThreadExceptionWarning)
        import gym
        import minerl.env._multiagent as client
        from minerl.env._singleagent import _SingleAgentEnv

        gym.logger.set_level(40)
        monkeypatch.setattr(client, "SOCKTIME", 5.0)

        def build(game: StandInGame, spec: Any = "MineRLTreechop-v0", seed: int | None = None) -> Any:
            env = attach(gym.make(spec) if isinstance(spec, str) else _SingleAgentEnv(env_spec=spec), game)
            environments.append(env)
            if seed is not None:
                env.seed(seed)
            return env

        yield build
        for env in environments:
            for instance in env.unwrapped.instances:
                if instance.client_socket is not None:
                    instance.client_socket.close()
        gc.collect()  # what upstream leaves to the collector is warned of here, and not in the next test


def act(env: Any, **changes: Any) -> dict[str, Any]:
    action = env.action_space.noop()
    action.update({k: np.array(v, np.float32) if k == "camera" else v for k, v in changes.items()})
    return action


# ---- the real client ----


def test_every_registered_environment_resets_and_steps(make: Make, game: StandInGame) -> None:
    make(game)
    from gym.envs.registration import registry

    names = [spec.id for spec in registry.all() if spec.id.startswith("MineRL")]
    assert len(names) > 25
    for name in names:
        if "HighRes" in name and name != "MineRLBasaltFindCaveHighRes-v0":
            continue  # the pictures are 3 MB each, and one such environment is like the next
        env = make(game, name, seed=3)
        observation = env.reset()
        assert env.observation_space.contains(observation), name
        env.action_space.seed(5)
        for _ in range(3):
            observation, reward, done, info = env.step(env.action_space.sample())
            assert env.observation_space.contains(observation), name
            assert np.isfinite(reward), name
            assert not done, name
            assert info == {}, name
        assert observation["pov"].std() > 5, name
    assert game.episodes == len(game.missions) == len(game.tokens)


# ---- faults, as the real client meets them ----


@pytest.mark.parametrize("kind", ["crash", "drop", "hang", "short", "empty", "bad-json"])
def test_a_fault_at_a_step(make: Make, game: StandInGame, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(game, "MineRLObtainDiamond-v0").unwrapped
    import minerl.env._multiagent as client

    if "hang" in kind:
        monkeypatch.setattr(client, "SOCKTIME", 0.8)
    env.reset()
    game.schedule(kind, at_step=3)
    for _ in range(2):
        assert "error" not in env.step(act(env))[3]
    if kind in ("crash", "drop", "hang"):
        _, reward, done, info = env.step(act(env))
        assert (reward, done, info) == (0, True, {"error": "Connection timed out!"})
    else:  # upstream does not catch these; it means to show black for an empty frame, but numpy makes one byte of none
        with pytest.raises(json.JSONDecodeError if kind == "bad-json" else ValueError):
            env.step(act(env))
    assert game.alive == (kind != "crash")
    if kind == "crash":
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(game.address)
        game.revive()
    assert env.reset()["pov"].any()
    assert env.step(act(env))[3] == {}


@pytest.mark.parametrize(
    ("kind", "error"), [("hang-reset", TimeoutError), ("drop-reset", TypeError), ("crash-reset", TypeError)]
)
def test_a_fault_at_a_reset(
    make: Make, game: StandInGame, kind: Any, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make(game)
    import minerl.env._multiagent as client

    if "hang" in kind:
        monkeypatch.setattr(client, "SOCKTIME", 0.8)
    env.reset()
    game.fail_next(kind)
    with pytest.raises(error):
        env.reset()
    assert game.alive == (kind != "crash-reset")
    game.revive()
    env.reset()
    assert game.episodes == 2


def test_a_busy_game_is_asked_again(make: Make, game: StandInGame, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(game)
    import minerl.env._multiagent as client

    naps: list[float] = []
    monkeypatch.setattr(client.time, "sleep", naps.append)
    game.fail_next("busy", times=3)
    env.reset()
    assert naps == [1, 1, 1]
    assert game.episodes == 1
