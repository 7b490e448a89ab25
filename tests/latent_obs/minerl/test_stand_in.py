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
from numpy.typing import NDArray

from tests.support.minerl_server import StandInGame, WorldSettings
from tests.support.minerl_server.bots import trunk_columns, turn_to_trunk
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


def test_the_seed_decides_the_world(make: Make, game: StandInGame) -> None:
    def play(seed: int | None) -> tuple[list[bytes], list[float]]:
        env = make(game, seed=seed)
        env.action_space.seed(11)
        frames, rewards = [env.reset()["pov"].tobytes()], []
        for _ in range(30):
            action = env.action_space.sample() | {"camera": np.array([0.0, 7.0], np.float32), "attack": 1}
            observation, reward, _, _ = env.step(action)
            frames.append(observation["pov"].tobytes())
            rewards.append(reward)
        return frames, rewards

    first, again, other = play(4), play(4), play(5)
    assert first == again
    assert game.seeds == [4, 4, 5]
    assert first[0][0] != other[0][0]
    assert play(None)[0] != play(None)[0]
    assert len(set(game.seeds)) == 4


def test_the_picture_is_the_right_way_up_and_moves_as_the_player_turns(make: Make) -> None:
    with StandInGame(settings=WorldSettings.easy(tree_bearing=3.0)) as game:
        env = make(game, seed=1)
        pov = env.reset()["pov"].astype(int)
        assert pov.shape == (64, 64, 3)
        assert (
            pov[:8, :, 2] > pov[:8, :, 0]
        ).mean() > 0.4  # the client flips the rows: sky on top, left and right of the trunk
        assert (pov[-8:, :, 2] > pov[-8:, :, 0]).mean() < 0.1
        before = trunk_columns(pov).mean()
        right = env.step(act(env, camera=[0.0, 10.0]))[0]["pov"]
        assert trunk_columns(right).mean() < before - 4
        blue = (right[..., 2] > right[..., 1]).mean()
        down = env.step(act(env, camera=[15.0, 0.0]))[0]["pov"]
        assert (down[..., 2] > down[..., 1]).mean() < blue - 0.1


def test_a_trunk_yields_a_log_when_it_is_hit_often_enough_near_and_centred(make: Make) -> None:
    settings = WorldSettings(trees=1, tree_distance=(2.2, 2.4), tree_bearing=0.0, hits_per_log=4, logs_per_tree=2)
    with StandInGame(settings=settings) as game:
        env = make(game, seed=2)
        env.reset()
        attack, look_away = act(env, attack=1), act(env, camera=[0.0, 20.0], attack=1)
        assert [env.step(attack)[1] for _ in range(3)] == [0.0, 0.0, 0.0]
        env.step(act(env))  # stops hitting: it has to begin anew
        assert [env.step(attack)[1] for _ in range(4)] == [0.0, 0.0, 0.0, 1.0]
        assert game.world is not None
        assert game.world.inventory.count("log") == 1
        env.step(look_away)
        assert [env.step(attack)[1] for _ in range(5)] == [0.0] * 5
        env.step(act(env, camera=[0.0, -20.0]))
        before = game.world.trees[0]
        assert sum(env.step(attack)[1] for _ in range(4)) == 1.0
        assert game.world.trees[0] is not before  # its logs are gone, and another stands elsewhere
        for _ in range(10):
            env.step(act(env, back=1, camera=[0.0, 0.0]))
        game.world.trees[0].x, game.world.trees[0].z = game.world._place(game.world.yaw, 3.5)
        assert sum(env.step(attack)[1] for _ in range(6)) == 0.0  # out of reach


def test_a_bot_that_looks_is_far_better_than_chance_in_the_easy_world(make: Make) -> None:
    rng = np.random.default_rng(0)

    def episode(choose: Callable[[NDArray[np.uint8]], float], seed: int) -> float:
        env = make(game, seed=seed)
        pov, total, done, steps = env.reset()["pov"], 0.0, False, 0
        while not done:
            observation, reward, done, _ = env.step(act(env, camera=[0.0, choose(pov)], attack=1))
            pov, total, steps = observation["pov"], total + reward, steps + 1
        assert steps == 60
        return total

    with StandInGame(settings=WorldSettings.easy()) as game:
        bot = np.mean([episode(turn_to_trunk, seed) for seed in range(6)])
        chance = np.mean([episode(lambda _: float(rng.choice([-15, 0, 15])), seed) for seed in range(12)])
    assert chance > 0
    assert bot > 5 * chance


def test_the_time_is_up_when_the_mission_says(make: Make, game: StandInGame) -> None:
    make(game)
    from minerl.herobraine.env_specs.obtain_specs import ObtainIronPickaxe

    env = make(game, ObtainIronPickaxe(dense=False, max_episode_steps=40))
    for _ in range(2):
        env.reset()
        ends = [env.step(act(env))[2] for _ in range(40)]
        assert ends == [False] * 39 + [True]
    with pytest.raises(RuntimeError, match="done=True"):
        env.step(act(env))


def test_sixty_four_logs_end_treechop(make: Make) -> None:
    with StandInGame(settings=FACING) as game:
        env = make(game)
        env.reset()
        results = []
        while not results or not results[-1][2]:
            results.append(env.step(act(env, attack=1)))
        assert len(results) == sum(r[1] for r in results) == 64


def test_a_thrown_snowball_ends_basalt(make: Make, game: StandInGame) -> None:
    env = make(game, "MineRLBasaltMakeWaterfall-v0")
    assert env.reset()["inventory"]["snowball"] == 1
    observation = env.step(act(env, use=1))[0]
    assert observation["inventory"]["snowball"] == 1  # the bucket was in hand
    observation = env.step(act(env, equip="snowball"))[0]
    assert observation["equipped_items"]["mainhand"]["type"] == "snowball"
    observation, _, done, _ = env.step(act(env, use=1))
    assert observation["inventory"]["snowball"] == 0
    ends = [done]
    while not ends[-1]:
        ends.append(env.step(act(env))[2])
    assert len(ends) == 12  # the wrapper's delay of 10, and the step that ends


def test_the_items_make_each_other_up_to_the_diamond(make: Make) -> None:
    with StandInGame(settings=FACING) as game:
        env = make(game, "MineRLObtainDiamond-v0")
        inventory = env.reset()["inventory"]
        rewards: list[float] = []

        def do(times: int = 1, **action: Any) -> dict[str, Any]:
            observation: dict[str, Any] = {}
            for _ in range(times):
                observation, reward, done, _ = env.step(act(env, **action))
                rewards.extend([reward] if reward else [])
                assert done == (reward == 1024)
            return observation

        assert do(craft="planks")["inventory"]["planks"] == inventory["planks"] == 0  # of nothing comes nothing
        do(3, attack=1)
        do(3, craft="planks")
        inventory = do(2, craft="stick")["inventory"]
        assert (inventory["log"], inventory["planks"], inventory["stick"]) == (0, 8, 8)
        do(craft="crafting_table")
        assert do(place="crafting_table")["inventory"]["crafting_table"] == 0
        do(nearbyCraft="wooden_pickaxe")
        assert do(equip="wooden_pickaxe")["equipped_items"]["mainhand"]["type"] == "wooden_pickaxe"
        do(camera=[60.0, 0.0])
        assert do(11, attack=1)["inventory"]["cobblestone"] == 11
        do(nearbyCraft="furnace")
        do(nearbyCraft="stone_pickaxe")
        do(equip="stone_pickaxe")
        assert do(9, attack=1)["inventory"]["iron_ore"] == 3
        assert do(3, nearbySmelt="iron_ingot")["inventory"]["iron_ingot"] == 3
        do(nearbyCraft="iron_pickaxe")
        do(equip="iron_pickaxe")
        while rewards[-1] != 1024:
            do(attack=1)
        assert rewards == [1, 2, 4, 4, 8, 16, 32, 32, 64, 128, 256, 1024]  # each once: the mission is sparse

        dense = make(game, "MineRLObtainIronPickaxeDense-v0")
        dense.reset()
        assert [dense.step(act(dense, attack=1))[1] for _ in range(2)] == [1.0, 1.0]
        assert dense.step(act(dense, craft="planks"))[1] == 8.0  # four at 2 each


def test_the_compass_leads_to_the_diamond_block(make: Make, game: StandInGame) -> None:
    env = make(game, "MineRLNavigateDense-v0", seed=8)
    observation, total, done, steps = env.reset(), 0.0, False, 0
    assert game.world is not None
    game.world.trees.clear()  # nothing in the way
    while not done and steps < 400:
        turn = float(observation["compass"]["angle"])
        observation, reward, done, _ = env.step(act(env, camera=[0.0, turn], forward=1))
        total, steps = total + reward, steps + 1
    assert done
    assert 161 <= total <= 165  # 64 metres less the arm's length, and 100 for the touch
    assert steps == pytest.approx(63 / 0.2, abs=5)


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
