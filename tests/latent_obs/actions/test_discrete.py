"""DiscreteActions: a table of a few actions, each the no-op overridden, with names in words."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from latent_obs.actions import CentroidActions, Centroids, DiscreteActions
from latent_obs.util.errors import InputError
from tests.support.action_envs import KEYED, Coded, Recorder, keyed_noop, same, taken


def test_each_action_is_the_noop_overridden():
    entries = [{"forward": 1, "jump": True}, {"craft": "torch"}, {"camera": (-5, 2.5)}, {"place": 0, "attack": 0}]
    env = DiscreteActions(Recorder(KEYED), entries, always=("attack",))
    env.reset(seed=0)
    held = {**keyed_noop(), "attack": 1}
    expected = {
        "noop": keyed_noop(),
        "forward+jump": {**held, "forward": 1, "jump": 1},
        "craft torch": {**held, "craft": 2},
        "camera up 5 right 2.5": {**held, "camera": np.array([-5, 2.5], np.float32)},
        "place dirt+no attack": {**keyed_noop(), "place": 0},
    }
    assert env.names == tuple(expected)
    for i, action in enumerate(expected.values()):
        assert same(taken(env, np.int64(i)), action)
        assert same(env.actions[i], action)
    assert same(taken(env, np.array([2])), expected["craft torch"])  # one number of an array, as a policy gives it


def test_names_in_words():
    entries = [{"camera": c} for c in ((0, -10), (10, 0), (3, -4.5))] + [{"craft": 1, "sneak": 1}]
    env = DiscreteActions(Recorder(KEYED), entries)
    assert env.names[1:] == ("camera left 10", "camera down 10", "camera down 3 left 4.5", "craft planks+sneak")
    other = spaces.Dict(
        gear=spaces.Discrete(5, start=-1), wheel=spaces.Box(-1.0, 1.0, (1,)), horn=spaces.MultiBinary(2)
    )
    env = DiscreteActions(Recorder(other), [{"gear": 3}, {"wheel": [0.5]}, {"horn": np.array([0, 1], np.int8)}])
    assert env.names == ("noop", "gear 3", "wheel [0.5]", "horn [0, 1]")
    env = DiscreteActions(Recorder(KEYED), {"walk": {"forward": 1}, "stop": {}}, always={"sneak": 1, "craft": "planks"})
    assert env.names == ("noop", "walk", "stop")


def test_the_table_cannot_be_changed_from_outside():
    turn = np.array([0, 10], np.float32)
    env = DiscreteActions(Recorder(KEYED), [{"camera": turn}])
    turn[:] = 50
    env.action(1)["camera"][:] = 60
    env.actions[1]["camera"][:] = 70
    assert env.action(1)["camera"].tolist() == [0, 10]


@pytest.mark.parametrize(
    ("actions", "always", "name"),
    [
        ([], (), "actions"),
        ("forward", (), "actions"),
        (["forward"], (), "action 1"),
        ([{"fly": 1}], (), "fly"),
        ([{"jump": 2}], (), "action 1: jump"),
        ([{"jump": 0.5}], (), "action 1: jump"),
        ([{"craft": "boat"}], (), "action 1: craft"),
        ([{"camera": 10}], (), "action 1: camera"),
        ([{"camera": (0, 181)}], (), "action 1: camera"),
        ([{"camera": (0, float("nan"))}], (), "action 1: camera"),
        ([{"camera": [[1], [1, 2]]}], (), "action 1: camera"),
        ([{}], (), "action 0"),
        ([{"attack": 1}, {}], "attack", "action 2.*action 1"),
        ({"noop": {"jump": 1}}, (), "action 0"),
        ([{"camera": (0, 1.0000001)}, {"camera": (0, 1)}], (), "action 1"),
        ([{"jump": 1}], "fly", "always"),
        ([{"jump": 1}], ("craft",), "always"),
        ([{"jump": 1}], {"craft": "boat"}, "always: craft"),
        ([{"jump": 1}], "attack+", "always"),
        ([{"jump": 1}], 5, "always"),
    ],
)
def test_wrong_tables(actions: Any, always: Any, name: str):
    with pytest.raises(InputError, match=name):
        DiscreteActions(Recorder(KEYED), actions, always=always)


@pytest.mark.parametrize("wrong", [-1, 2, 1.0, "1", None, np.array([0, 1])])
def test_numbers_outside_are_refused(wrong: Any):
    centroids = CentroidActions(Coded(), Centroids(np.ones((1, 3), np.float32), np.array([1]), 0.0))
    for env in (DiscreteActions(Recorder(KEYED), [{"jump": 1}]), centroids):
        with pytest.raises(InputError, match="the action"):
            env.action(wrong)


def test_what_is_no_dict_has_no_table():
    for space in (spaces.Discrete(2), spaces.Dict()):
        with pytest.raises(InputError, match="DiscreteActions"):
            DiscreteActions(Recorder(space), [{"a": 1}])
