"""MultiDiscreteActions: an action and back, in a known order, the camera in its bins."""

import copy
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_obs.actions import CameraBins, MultiDiscreteActions
from latent_obs.util.errors import InputError
from tests.support.action_envs import KEYED, KEYS, Coded, Recorder, keyed_noop

QUICK = settings(max_examples=25, deadline=None)


def test_the_order_of_the_choices():
    env = MultiDiscreteActions(Recorder(KEYED))
    assert env.names == (*KEYS, "craft", "place", "camera pitch", "camera yaw")
    assert env.action_space.nvec.tolist() == [2] * 8 + [3, 2, 11, 11]
    assert env.index["place"] == 9
    assert env.choices[8:10] == [["none", "planks", "torch"], ["dirt", "none"]]
    assert env.noop.tolist() == [0] * 8 + [0, 1, 5, 5]
    env.noop[:] = 1
    assert env.noop[0] == 0
    start = MultiDiscreteActions(Recorder(spaces.Dict(gear=spaces.Discrete(3, start=-1), horn=spaces.Discrete(2))))
    assert start.names == ("horn", "gear")
    assert start.noop.tolist() == [0, 1]
    assert start.action(np.array([1, 0])) == {"gear": -1, "horn": 1}


@pytest.mark.parametrize("camera", [CameraBins(), CameraBins(5, 90.0, "linear"), CameraBins(101, 180.0)])
def test_an_action_and_back_is_the_identity(camera: CameraBins):
    env = MultiDiscreteActions(Recorder(KEYED), camera)
    env.action_space.seed(0)
    for _ in range(50):
        row = env.action_space.sample()
        action = env.action(row)
        assert KEYED.contains(action)
        np.testing.assert_array_equal(env.inverse(action), row)
        assert all(action[key] == row[env.index[key]] for key in (*KEYS, "craft", "place"))
        turn = [camera.values[row[env.index[f"camera {axis}"]]] for axis in ("pitch", "yaw")]
        np.testing.assert_allclose(action["camera"], turn, rtol=1e-6)


@QUICK
@given(st.integers(0, 2**31), st.tuples(st.floats(-180, 180, width=32), st.floats(-180, 180, width=32)))
def test_a_demonstrated_action_keeps_its_keys_and_gets_the_nearest_turn(seed: int, turn: tuple[float, float]):
    env = MultiDiscreteActions(Recorder(KEYED))
    space = copy.deepcopy(KEYED)
    space.seed(seed)
    given = {**space.sample(), "camera": np.array(turn, np.float32)}
    got = env.action(env.inverse(given))
    assert all(got[key] == given[key] for key in KEYED if key != "camera")
    np.testing.assert_allclose(got["camera"], env.camera.to_degrees(env.camera.to_bins(turn)), rtol=1e-6)


def test_names_of_enums_are_taken_from_demonstrations():
    env = MultiDiscreteActions(Recorder(KEYED))
    row = env.inverse({**keyed_noop(), "craft": "torch", "camera": [90, 0]})
    assert row[8:].tolist() == [2, 1, 10, 5]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (0, "the action"),
        (np.zeros((1, 12), np.int64), "the action"),
        (np.zeros(12), "the action"),
        ([0] * 8 + [3, 0, 0, 0], "craft"),
        ([-1] + [0] * 11, "attack"),
        ([0] * 11 + [11], "camera yaw"),
    ],
)
def test_rows_outside_are_refused(row: Any, name: str):
    with pytest.raises(InputError, match=name):
        MultiDiscreteActions(Recorder(KEYED)).action(row)


def test_actions_that_cannot_be_inverted():
    env = MultiDiscreteActions(Recorder(KEYED))
    for name, wrong in [
        ("action", 5),
        ("action", {"jump": 1}),
        ("jump", {**keyed_noop(), "jump": 2}),
        ("craft", {**keyed_noop(), "craft": "boat"}),
        ("camera", {**keyed_noop(), "camera": [0, 400]}),
    ]:
        with pytest.raises(InputError, match=name):
            env.inverse(wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("space", "name"),
    [
        (spaces.Dict(wheel=spaces.Box(-1.0, 1.0, (2,))), "wheel"),
        (spaces.Dict(camera=spaces.Box(-1.0, 1.0, (3,))), "camera"),
        (spaces.Dict(keys=spaces.MultiBinary(3)), "keys"),
        (spaces.Dict(camera=spaces.Box(-5.0, 5.0, (2,))), "max_degrees"),
    ],
)
def test_what_has_no_bins(space: spaces.Space[Any], name: str):
    with pytest.raises(InputError, match=name):
        MultiDiscreteActions(Recorder(space))


def test_a_noop_that_no_bin_does():
    noop = {**keyed_noop(), "camera": np.array([0.0, 0.1], np.float32)}
    with pytest.raises(InputError, match="no-op"):
        MultiDiscreteActions(Coded(KEYED, noop=noop))


def test_a_discrete_entry_named_camera_is_a_choice_like_any_other():
    env = MultiDiscreteActions(Recorder(spaces.Dict(camera=spaces.Discrete(3), jump=spaces.Discrete(2))))
    assert env.names == ("jump", "camera")
    assert env.action([1, 2]) == {"camera": 2, "jump": 1}
