"""Every wrapper around the action spaces of the real MineRL, up to the command that the game receives.

Upstream makes the command of an action in `_process_action`, which needs no game; the environments here record it.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from latent_obs.actions import (
    CameraBins,
    CentroidActions,
    DiscreteActions,
    FrameSkip,
    MultiDiscreteActions,
    VectorActions,
    fit_centroids,
    sb3_actions,
)
from latent_obs.envs.old_gym import convert_space, noop_of
from latent_obs.minerl.client import make_client
from latent_obs.util.errors import InputError
from tests.support.minerl_games import noop_command  # skips this module where minerl is not installed

KEYED = ("MineRLTreechop-v0", "MineRLNavigate-v0", "MineRLObtainDiamond-v0", "MineRLBasaltMakeWaterfall-v0")
CODED = ("MineRLTreechopVectorObf-v0", "MineRLObtainDiamondVectorObf-v0")
MOVES = ("forward", "left", "back", "right", "jump", "sneak", "sprint", "attack")


class Commands(gymnasium.Env[Any, Any]):
    """MineRL's actions without its game: keeps the command of each."""

    metadata = {"render_modes": []}  # noqa: RUF012
    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)

    def __init__(self, env_id: str) -> None:
        self.old = make_client(env_id)
        self.task = self.old.unwrapped.task
        self.converted = convert_space(self.old.action_space, "action")
        self.action_space = self.converted.space
        self.commands: list[str] = []
        self.own_noop = noop_command(self.task)  # of the keyed space inside an obfuscated one too
        self.bottom = self.task
        while hasattr(self.bottom, "env_to_wrap"):
            self.bottom = self.bottom.env_to_wrap
        if self.bottom is not self.task:
            self.noop = self.converted.from_old({"vector": self.encode({})})

    def encode(self, changes: Mapping[str, Any]) -> Any:
        """The vector of a Dict action, as upstream encodes demonstrations."""
        action = {**self.bottom.action_space.no_op(), **changes}
        return self.task.wrap_action(copy.deepcopy(action))["vector"].astype(np.float32)

    def command(self, old_action: Any) -> str:
        return self.old.unwrapped._process_action("agent_0", old_action)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.commands.append(self.command(self.converted.to_old(action)))
        return np.zeros(1, np.float32), 0.0, False, False, {}


def sent(env: gymnasium.Env[Any, Any], action: Any) -> list[str]:
    """The lines of the last command of a step."""
    env.step(action)
    return env.get_wrapper_attr("commands")[-1].split("\n")


def differs(lines: list[str], noop: str) -> set[str]:
    """What a command does beside the no-op."""
    assert [line.split()[0] for line in lines] == [line.split()[0] for line in noop.split("\n")]
    return set(lines) - set(noop.split("\n"))


WRAPPERS: dict[str, Callable[[Any], gymnasium.Env[Any, Any]]] = {
    "discrete": lambda game: sb3_actions(game, "discrete", env_id=game.old.spec.id),
    "held": lambda game: DiscreteActions(game, [{"forward": 1}], always="attack+sprint"),
    "multidiscrete": lambda game: sb3_actions(game, "multidiscrete"),
    "dict": lambda game: FrameSkip(game, 1),
    "skip": lambda game: sb3_actions(FrameSkip(game, 3), "discrete", env_id=game.old.spec.id),
}


@pytest.mark.parametrize("env_id", KEYED)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_no_op_of_each_wrapper_is_upstreams(env_id: str, wrapper: str):
    env = WRAPPERS[wrapper](Commands(env_id))
    env.step(env.get_wrapper_attr("noop"))
    assert env.get_wrapper_attr("commands") == [env.get_wrapper_attr("own_noop")] * (3 if wrapper == "skip" else 1)


TURNS = {
    "camera left 10": {"camera 0.0 -10.0"},
    "camera right 10": {"camera 0.0 10.0"},
    "camera up 10": {"camera -10.0 0.0"},
    "camera down 10": {"camera 10.0 0.0"},
}
CRAFTS = {
    "craft": ["crafting_table", "planks", "stick", "torch"],
    "nearbyCraft": [
        "furnace",
        *(f"{metal}_{tool}" for metal in ("iron", "stone", "wooden") for tool in ("axe", "pickaxe")),
    ],
    "nearbySmelt": ["coal", "iron_ingot"],
    "place": ["cobblestone", "crafting_table", "dirt", "furnace", "stone", "torch"],
    "equip": ["air", *(f"{metal}_{tool}" for metal in ("iron", "stone", "wooden") for tool in ("axe", "pickaxe"))],
}
VERBS = {"nearbyCraft": "craftNearby", "nearbySmelt": "smeltNearby"}
WATERFALL = [
    *("air", "bucket", "carrot", "cobblestone", "fence", "fence_gate", "snowball", "stone_pickaxe", "stone_shovel"),
    *("water_bucket", "wheat", "wheat_seeds"),
]
#: Names of each family's actions, in order, and what the game receives beside the no-op.
EXPECTED: dict[str, dict[str, set[str]]] = {
    "MineRLTreechop-v0": {
        "attack": {"attack 1"},
        "forward": {"attack 1", "forward 1"},
        "forward+jump": {"attack 1", "forward 1", "jump 1"},
        **{name: {"attack 1"} | command for name, command in TURNS.items()},
    },
    "MineRLNavigate-v0": {
        "forward+sprint": {"forward 1", "sprint 1"},
        "forward+jump+sprint": {"forward 1", "jump 1", "sprint 1"},
        **TURNS,
        "jump+place dirt": {"jump 1", "place dirt"},
        "attack": {"attack 1"},
    },
    "MineRLObtainDiamond-v0": {
        **{key: {f"{key} 1"} for key in ("forward", "back", "left", "right", "jump")},
        "forward+jump": {"forward 1", "jump 1"},
        "attack": {"attack 1"},
        "forward+attack": {"forward 1", "attack 1"},
        **TURNS,
        **{f"{key} {item}": {f"{VERBS.get(key, key)} {item}"} for key, items in CRAFTS.items() for item in items},
    },
    "MineRLBasaltMakeWaterfall-v0": {
        **{key: {f"{key} 1"} for key in ("forward", "back", "left", "right", "jump")},
        "forward+jump": {"forward 1", "jump 1"},
        "forward+sprint": {"forward 1", "sprint 1"},
        "attack": {"attack 1"},
        "use": {"use 1"},
        "jump+use": {"jump 1", "use 1"},
        **TURNS,
        **{f"equip {item}": {f"equip {item}"} for item in WATERFALL},
    },
}


@pytest.mark.parametrize("env_id", KEYED)
def test_the_commands_of_the_curated_actions(env_id: str):
    game = Commands(env_id)
    env = sb3_actions(game, env_id=env_id)
    assert isinstance(env, DiscreteActions)
    assert env.names == ("noop", *EXPECTED[env_id])
    for number, name in enumerate(env.names):
        assert differs(sent(env, number), game.own_noop) == EXPECTED[env_id].get(name, set()), name


@pytest.mark.parametrize("env_id", KEYED)
def test_the_commands_of_multidiscrete_actions(env_id: str):
    game = Commands(env_id)
    env = MultiDiscreteActions(game, CameraBins(5, 20.0, "linear"))
    noop = game.own_noop
    for place, name in enumerate(env.names):
        for number, word in enumerate(env.choices[place]):
            row = env.noop
            row[place] = number
            if name.startswith("camera"):
                degrees = (-20.0, -10.0, 0.0, 10.0, 20.0)[number]
                line = f"camera {degrees} 0.0" if name == "camera pitch" else f"camera 0.0 {degrees}"
            else:
                line = f"{VERBS.get(name, name)} {word}"
            assert differs(sent(env, row), noop) == ({line} if number != env.noop[place] else set())
    row = env.noop
    row[[env.names.index(key) for key in ("attack", "jump", "camera pitch", "camera yaw")]] = [1, 1, 1, 4]
    assert differs(sent(env, row), noop) == {"attack 1", "jump 1", "camera -10.0 20.0"}
    assert set(env.names[:8]) <= {*MOVES, "use"}


def test_skipped_frames_hold_keys_and_turn_and_craft_once():
    game = Commands("MineRLObtainDiamond-v0")
    env = DiscreteActions(
        FrameSkip(game, 3), [{"craft": "planks"}, {"camera": (0, 10)}, {"place": "dirt", "jump": 1}], always="attack"
    )
    expected = [set(), {"craft planks"}, {"camera 0.0 10.0"}, {"place dirt", "jump 1"}]
    for number, first in enumerate(expected):
        game.commands.clear()
        env.step(number)
        held = {line for line in first if line == "jump 1"} | ({"attack 1"} if number else set())
        got = [differs(command.split("\n"), game.own_noop) for command in game.commands]
        assert got == [first | held, held, held]


def test_demonstrated_actions_come_back_as_the_commands_they_were():
    game = Commands("MineRLObtainDiamond-v0")
    env = MultiDiscreteActions(game)
    changes = {"craft": "stick", "attack": np.array(1), "camera": np.array([-9.0, 0.2])}
    row = env.inverse({**game.old.action_space.no_op(), **changes})
    # The bin that is nearest to 9 degrees, and none to 0.2.
    assert differs(sent(env, row), game.own_noop) == {"craft stick", "attack 1", "camera -10.0 0.0"}


# Obfuscated actions


def keys_and_camera(lines: list[str]) -> tuple[list[str], list[float]]:
    camera = next(line for line in lines if line.startswith("camera"))
    return [line for line in lines if line != camera], [float(degrees) for degrees in camera.split()[1:]]


@pytest.mark.parametrize("env_id", CODED)
def test_the_no_op_of_obfuscated_actions(env_id: str):
    """All keys and items are those of the no-op; the camera drifts by a tenth of a degree, for the decoder is a
    network."""
    game = Commands(env_id)
    keys, still = keys_and_camera(game.own_noop.split("\n"))
    assert still == [0, 0]
    for env in (
        sb3_actions(game),
        FrameSkip(sb3_actions(game), 2),
        CentroidActions(game, fit_centroids(np.eye(3, 64), k=3)),
    ):
        got, drift = keys_and_camera(sent(env, env.get_wrapper_attr("noop")))
        assert got == keys
        np.testing.assert_allclose(drift, [0.0405, 0.0970], atol=5e-4)
    # Zeros press keys and turn round; and upstream's own attribute is no action at all.
    zeros = differs(sent(game, noop_of(game.action_space)), game.own_noop)
    assert {"right 1", "jump 1"} < zeros
    assert game.task.action_no_op.shape == (49,) != game.action_space["vector"].shape  # pyright: ignore[reportIndexIssue]


@pytest.mark.parametrize("env_id", CODED)
def test_centroids_of_demonstrations_do_what_was_demonstrated(env_id: str):
    game = Commands(env_id)
    known: list[dict[str, Any]] = [
        {"attack": 1},
        {"forward": 1, "jump": 1},
        {"forward": 1, "sprint": 1, "camera": np.array([0, 10], np.float32)},
        {"back": 1, "sneak": 1},
        {"camera": np.array([-15, 30], np.float32)},
    ]
    if "Obtain" in env_id:
        known += [
            {"craft": "planks"},
            {"nearbyCraft": "stone_pickaxe"},
            {"place": "torch", "jump": 1},
            {"equip": "iron_axe"},
        ]
    encoded = np.array([game.encode(action) for action in known])
    space = game.action_space["vector"]  # pyright: ignore[reportIndexIssue]
    assert (np.abs(encoded) <= space.high).all()
    times = np.arange(len(known), 0, -1) * 3
    centroids = fit_centroids(np.repeat(encoded, times, axis=0), k=len(known))
    assert centroids.counts.tolist() == times.tolist()
    env = CentroidActions(game, centroids)
    noop = game.own_noop
    for number, (action, vector) in enumerate(zip(known, encoded, strict=True), 1):
        lines = sent(env, number)
        assert "\n".join(lines) == game.command({"vector": vector})
        keys, camera = keys_and_camera(sorted(differs(lines, noop)))
        turn = action.get("camera", np.zeros(2))
        expected = {f"{VERBS.get(key, key)} {value}" for key, value in action.items() if key != "camera"}
        assert set(keys) == expected
        np.testing.assert_allclose(camera, turn, atol=0.5)


def test_an_obfuscated_vector_as_it_is():
    game = Commands("MineRLTreechopVectorObf-v0")
    env = sb3_actions(game)
    assert isinstance(env, VectorActions)
    assert env.action_space == spaces.Box(-1.05, 1.05, (64,), np.float32)
    keys, _ = keys_and_camera(sorted(differs(sent(env, game.encode({"attack": 1, "jump": 1})), game.own_noop)))
    assert keys == ["attack 1", "jump 1"]
    with pytest.raises(InputError, match="space"):
        sb3_actions(game, "discrete")
