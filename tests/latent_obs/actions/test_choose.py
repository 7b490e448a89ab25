"""Curated sets of actions, and the choice among all kinds of them by one word."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from latent_obs.actions import (
    FAMILIES,
    CameraBins,
    CentroidActions,
    Centroids,
    DiscreteActions,
    MultiDiscreteActions,
    VectorActions,
    curated_actions,
    family_of,
    plain_actions,
    sb3_actions,
)
from latent_obs.envs.old_gym import Enum
from latent_obs.util.errors import InputError
from tests.support.action_envs import CAMERA, CODED, CRAFT, KEYED, KEYS, PLACE, Coded, Recorder, taken


def test_families_by_id():
    ids = {
        "MineRLTreechop-v0": "treechop",
        "MineRLNavigateExtremeDense-v0": "navigate",
        "MineRLObtainIronPickaxe-v0": "obtain",
        "MineRLBasaltFindCaveHighRes-v0": "basalt",
        "minerl/MineRLTreechop-v0": "treechop",
        "MineRLTreechopVectorObf-v0": None,
        "MineRLCustom-v0": None,
        "Navigate-v0": None,
        None: None,
    }
    assert {env_id: family_of(env_id) for env_id in ids} == ids


#: What each family makes actions of; without any of it there are none.
NEEDS = {
    "treechop": {"forward", "camera"},
    "navigate": {"attack", "forward", "camera", "place"},
    "obtain": {"attack", "forward", "jump", "camera", "craft", "place"},
    "basalt": {"attack", "forward", "jump", "camera"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_curated_sets_need_only_what_is_there(family: str):
    """With every subset of some entries, the table is made of those and accepted, or refused as empty."""
    entries: dict[str, spaces.Space[Any]] = {key: spaces.Discrete(2) for key in ("attack", "forward", "jump")}
    entries |= {"camera": CAMERA, "craft": CRAFT, "place": PLACE, "fuel": spaces.Discrete(3)}
    for mask in range(1, 2 ** len(entries)):
        chosen = {key: space for i, (key, space) in enumerate(entries.items()) if mask >> i & 1}
        space = spaces.Dict(chosen)
        if family in NEEDS and not NEEDS[family] & chosen.keys():
            with pytest.raises(InputError, match="space"):
                curated_actions(space, family)
            continue
        actions, always = curated_actions(space, family)
        env = DiscreteActions(Recorder(space), actions, always=always)
        env.reset(seed=0)
        for i in range(len(actions) + 1):
            taken(env, i)


def test_the_basic_set():
    space = spaces.Dict({**KEYED.spaces, "fuel": spaces.Discrete(3, start=-1)})
    env = DiscreteActions(Recorder(space), curated_actions(space)[0])
    turns = [f"camera {way} 10" for way in ("left", "right", "up", "down")]
    items = ["craft planks", "craft torch", "place dirt", "fuel -1", "fuel 1"]
    assert list(env.names) == ["noop", *KEYS, "forward+jump", *turns, *items]
    equip = spaces.Dict(equip=Enum(["air", "none", "other", "snowball"], default="none"))
    assert curated_actions(equip, "basalt")[0] == [{"equip": "air"}, {"equip": "snowball"}]  # "other" is nothing


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"family": "fishing"}, "family"),
        ({"camera_step_degrees": float("nan")}, "camera_step_degrees"),
        ({"camera_step_degrees": 181}, "camera_step_degrees"),
        ({"space": CODED}, "space"),
        ({"space": spaces.Discrete(2)}, "space"),
    ],
)
def test_wrong_curations(arguments: dict[str, Any], name: str):
    with pytest.raises(InputError, match=name):
        curated_actions(**{"space": KEYED, **arguments})


def test_the_choice_of_actions(tmp_path: Path):
    file = Centroids(np.eye(3, dtype=np.float32), np.ones(3, np.int64), 0.0).save(tmp_path / "c.safetensors")
    keyed, coded, plain, vector = Recorder(KEYED), Coded(), Recorder(spaces.Discrete(3)), Recorder(CAMERA)
    assert isinstance(sb3_actions(keyed), DiscreteActions)
    assert isinstance(sb3_actions(coded), VectorActions)
    assert sb3_actions(plain) is plain
    assert sb3_actions(keyed, "dict") is keyed
    assert sb3_actions(vector, "continuous") is vector
    mu, even = (sb3_actions(keyed, kind, camera_bins=5) for kind in ("multidiscrete", "multidiscrete-linear"))
    assert isinstance(mu, MultiDiscreteActions)
    assert isinstance(even, MultiDiscreteActions)
    assert (mu.camera, even.camera) == (CameraBins(5), CameraBins(5, rule="linear"))
    for path in (file, str(file)):
        assert isinstance(sb3_actions(coded, path), CentroidActions)
    # The id chooses the family, by default that of the spec.
    chop = sb3_actions(keyed, env_id="MineRLTreechop-v0", camera_step_degrees=15)
    assert chop.get_wrapper_attr("names")[1:5] == ("attack", "forward", "forward+jump", "camera left 15")
    keyed.spec = EnvSpec("MineRLTreechop-v0", entry_point="nowhere:Env")
    assert sb3_actions(keyed).get_wrapper_attr("names")[1:3] == ("attack", "forward")
    assert sb3_actions(keyed, env_id="MineRLNavigate-v0").get_wrapper_attr("names")[1] == "forward+sprint"


@pytest.mark.parametrize(
    ("space", "plain"),
    [
        (spaces.Discrete(3, start=-1), spaces.Discrete(3)),
        (spaces.MultiDiscrete([2, 3], start=[-1, 5]), spaces.MultiDiscrete([2, 3])),
        (spaces.MultiDiscrete(np.array([[2, 3], [3, 4]])), spaces.MultiDiscrete([2, 3, 3, 4])),
        (spaces.MultiBinary((2, 2)), spaces.MultiBinary(4)),
    ],
    ids=str,
)
def test_plain_actions_begin_at_zero_and_lie_in_a_row(space: Any, plain: Any):
    env = sb3_actions(Recorder(space))
    assert env.action_space == plain
    most = plain.n - 1 if isinstance(plain, spaces.Discrete) else getattr(plain, "nvec", np.full(plain.shape, 2)) - 1
    for action in (most * 0, most):  # `Recorder` checks that they are in its space
        env.step(action)
        wanted = np.reshape(action, space.shape) + getattr(space, "start", 0)
        np.testing.assert_array_equal(env.get_wrapper_attr("taken")[-1], wanted)


@pytest.mark.parametrize("space", [spaces.Discrete(2), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)], ids=str)
def test_plain_actions_stay(space: Any):
    env = Recorder(space)
    assert plain_actions(env) is env


@pytest.mark.parametrize(
    ("always", "names"),
    [
        ("", ("forward", "forward+jump")),
        ("forward", ("forward", "forward+jump")),
        ("attack+jump", ("attack+jump", "forward")),
        ({"craft": "planks"}, ("craft planks", "forward", "forward+jump")),
    ],
)
def test_other_keys_may_be_held(always: Any, names: tuple[str, ...]):
    env = sb3_actions(Recorder(KEYED), "discrete", env_id="MineRLTreechop-v0", always=always)
    turns = (f"camera {way} 10" for way in ("left", "right", "up", "down"))
    assert env.get_wrapper_attr("names") == ("noop", *names, *turns)


@pytest.mark.parametrize(
    ("space", "arguments", "name"),
    [
        (KEYED, {"actions": "discreet"}, "actions"),
        (KEYED, {"actions": "continuous"}, "VectorActions"),
        (spaces.Discrete(3), {"actions": "discrete"}, "Dict"),
        (spaces.Tuple([spaces.Discrete(2)]), {}, "actions"),
        (KEYED, {"actions": "multidiscrete", "always": "attack"}, "always"),
        (CODED, {"always": "attack"}, "always"),
        (CODED, {"actions": "nowhere.safetensors"}, "nowhere.safetensors"),
        (KEYED, {"actions": "multidiscrete", "camera_bins": 4}, "bins"),
    ],
)
def test_wrong_choices(space: spaces.Space[Any], arguments: dict[str, Any], name: str):
    with pytest.raises(InputError, match=name):
        sb3_actions(Recorder(space), **arguments)
