"""DiscreteActions: a table of a few actions, each the no-op overridden, with names in words; wrong tables are told."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from latent_obs.actions import CentroidActions, Centroids, DiscreteActions, MultiDiscreteActions
from latent_obs.util.errors import InputError
from tests.support.action_envs import KEYED, Coded, Recorder, keyed_noop, same, taken


def test_each_action_is_the_noop_overridden():
    entries = [{"forward": 1, "jump": True}, {"craft": "torch"}, {"camera": (-5, 2.5)}, {"place": 0, "attack": 0}]
    env = DiscreteActions(Recorder(KEYED), entries, always=("attack",))
    env.reset(seed=0)
    held = {**keyed_noop(), "attack": 1}
    expected = [
        keyed_noop(),
        {**held, "forward": 1, "jump": 1},
        {**held, "craft": 2},
        {**held, "camera": np.array([-5, 2.5], np.float32)},
        {**keyed_noop(), "place": 0},
    ]
    assert env.names == (
        "noop",
        "forward+jump",
        "craft torch",
        "camera up 5 right 2.5",
        "place dirt+no attack",
    )
    for i, action in enumerate(expected):
        assert same(taken(env, np.int64(i)), action)
        assert same(env.actions[i], action)
    assert same(taken(env, np.array([2])), expected[2])  # one number of an array, as a policy gives it
    assert env.describe().splitlines()[0] == "5 actions; in all but the no-op: attack"
    assert env.describe().splitlines()[2] == "   1  forward+jump"


def test_names_in_words():
    entries = [{"camera": c} for c in ((0, 10), (0, -10), (10, 0), (-10, 0), (3, -4.5))] + [{"craft": 1, "sneak": 1}]
    env = DiscreteActions(Recorder(KEYED), entries)
    assert env.names[1:] == (
        "camera right 10",
        "camera left 10",
        "camera down 10",
        "camera up 10",
        "camera down 3 left 4.5",
        "craft planks+sneak",
    )
    other = spaces.Dict(
        gear=spaces.Discrete(5, start=-1), wheel=spaces.Box(-1.0, 1.0, (1,)), horn=spaces.MultiBinary(2)
    )
    env = DiscreteActions(Recorder(other), [{"gear": 3}, {"wheel": [0.5]}, {"horn": np.array([0, 1], np.int8)}])
    assert env.names == ("noop", "gear 3", "wheel [0.5]", "horn [0, 1]")
    env = DiscreteActions(Recorder(KEYED), {"walk": {"forward": 1}, "stop": {}}, always={"sneak": 1, "craft": "planks"})
    assert env.names == ("noop", "walk", "stop")
    assert env.describe().startswith("3 actions; in all but the no-op: sneak, craft planks\n")


def test_the_table_cannot_be_changed_from_outside():
    turn = np.array([0, 10], np.float32)
    env = DiscreteActions(Recorder(KEYED), [{"camera": turn}])
    turn[:] = 50
    env.action(1)["camera"][:] = 60
    env.actions[1]["camera"][:] = 70
    assert env.action(1)["camera"].tolist() == [0, 10]


@pytest.mark.parametrize(
    ("actions", "always", "message"),
    [
        ([], (), "actions is empty"),
        ("forward", (), "list of mappings"),
        (7, (), "got int"),
        (["forward"], (), "action 1 must be a mapping"),
        ({"": {"jump": 1}}, (), "action 1 has the name ''"),
        ([{"fly": 1}], (), "action 1 has the entry 'fly'; the action space has attack, back"),
        ([{"jump": 2}], (), "action 1: jump must be a whole number from 0 to 1, got 2"),
        ([{"jump": "yes"}], (), "got 'yes'"),
        ([{"jump": 0.5}], (), "got 0.5"),
        ([{"craft": "boat"}], (), "craft: 'boat' is none of none, planks, torch"),
        ([{"craft": 3}], (), "from 0 to 2, got 3; or a name: none, planks"),
        ([{"camera": 10}], (), r"camera must be float32 numbers of shape \(2,\), got 10"),
        ([{"camera": (0, 181)}], (), r"camera must lie within .* got \[0, 181\]"),
        ([{"camera": (0, float("nan"))}], (), "lie within"),
        ([{"camera": ("a", "b")}], (), "numbers of shape"),
        ([{"camera": [[1], [1, 2]]}], (), "numbers of shape"),
        ([{}], (), "the same as action 0 .'noop'.; leave it out"),
        ([{"jump": 1}, {"jump": 1}], (), "the same as action 1"),
        ([{"attack": 1}, {}], "attack", "the same as action 1"),
        ([{"attack": 0}], "attack", "the same as action 0"),
        ({"noop": {"jump": 1}}, (), "has the name 'noop', as action 0 has"),
        ([{"camera": (0, 1.0000001)}, {"camera": (0, 1)}], (), "has the name 'camera right 1', as action 1"),
        ([{"jump": 1}], "fly", "always has the entry 'fly'"),
        ([{"jump": 1}], ("craft",), "'craft' is no key to hold"),
        ([{"jump": 1}], {"craft": "boat"}, "always: craft: 'boat' is none of"),
        ([{"jump": 1}], "attack+", "such as 'attack.forward'"),
        ([{"jump": 1}], (1,), "names of keys"),
        ([{"jump": 1}], 5, "names of keys"),
    ],
)
def test_wrong_tables(actions: Any, always: Any, message: str):
    with pytest.raises(InputError, match=message):
        DiscreteActions(Recorder(KEYED), actions, always=always)


@pytest.mark.parametrize("wrong", [-1, 2, 1.0, "1", None, [1], np.array([0, 1])])
def test_numbers_outside_are_refused(wrong: Any):
    centroids = CentroidActions(Coded(), Centroids(np.ones((1, 3), np.float32), np.array([1]), 0.0))
    for env in (DiscreteActions(Recorder(KEYED), [{"jump": 1}]), centroids):
        with pytest.raises(InputError, match="must be a whole number from 0 to 1, got"):
            env.action(wrong)


def test_what_is_no_dict_needs_no_table():
    for wrapper in (lambda env: DiscreteActions(env, [{"a": 1}]), MultiDiscreteActions):
        with pytest.raises(InputError, match=r"needs a Dict action space .* has Discrete\(2\)"):
            wrapper(Recorder(spaces.Discrete(2)))
    with pytest.raises(InputError, match="needs a Dict"):
        DiscreteActions(Recorder(spaces.Dict()), [{}])
