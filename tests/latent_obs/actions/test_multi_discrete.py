"""MultiDiscreteActions: an action and back, in a known order; CameraBins: symmetric, exact at zero, VPT's bins."""

import copy
import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from latent_obs.actions import CameraBins, MultiDiscreteActions
from latent_obs.util.errors import InputError
from tests.support.action_envs import KEYED, KEYS, Coded, Recorder, keyed_noop

QUICK = settings(max_examples=30, deadline=None)
CAMERAS = st.builds(
    CameraBins,
    bins=st.integers(1, 30).map(lambda half: 2 * half + 1),
    max_degrees=st.floats(0.5, 180),
    rule=st.sampled_from(["mu-law", "linear"]),
    mu=st.floats(0.01, 255),
)
DEGREES = st.lists(st.floats(-400, 400), min_size=1, max_size=30).map(np.array)


def companded(camera: CameraBins, degrees: NDArray[np.float64]) -> NDArray[np.float64]:
    """VPT's quantizer, as its paper and code describe it, before rounding: from -1 to 1."""
    share = np.clip(degrees / camera.max_degrees, -1, 1)
    if camera.rule == "linear":
        return share
    return np.sign(share) * np.log(1 + camera.mu * np.abs(share)) / np.log(1 + camera.mu)


def test_the_default_bins_are_those_of_vpt():
    assert CameraBins().values.round(2).tolist() == [-10, -5.81, -3.22, -1.61, -0.62, 0, 0.62, 1.61, 3.22, 5.81, 10]
    assert CameraBins(rule="linear").values.tolist() == pytest.approx(list(range(-10, 11, 2)))


@QUICK
@given(CAMERAS)
def test_bins_are_symmetric_exact_at_zero_and_at_the_ends_and_their_own_inverse(camera: CameraBins):
    values, bins = camera.values, np.arange(camera.bins)
    assert values[camera.center] == 0.0
    assert not np.signbit(values[camera.center])
    assert (values[0], values[-1]) == (-camera.max_degrees, camera.max_degrees)
    np.testing.assert_array_equal(values, -values[::-1])
    assert (np.diff(values.astype(np.float32)) > 0).all()
    np.testing.assert_allclose(companded(camera, values), bins / camera.center - 1, rtol=1e-6, atol=1e-9)
    # Through float32 too, which is what an action is made of.
    for degrees in (camera.to_degrees(bins), camera.to_degrees(bins).astype(np.float32)):
        np.testing.assert_array_equal(camera.to_bins(degrees), bins)


@QUICK
@given(CAMERAS, DEGREES)
def test_degrees_go_to_the_nearest_bin(camera: CameraBins, degrees: NDArray[np.float64]):
    bins = camera.to_bins(degrees)
    assert bins.dtype == np.int64
    np.testing.assert_array_equal(camera.to_bins(-degrees), camera.bins - 1 - bins)
    assert (np.diff(camera.to_bins(np.sort(degrees))) >= 0).all()
    np.testing.assert_array_equal(camera.to_bins(degrees.reshape(-1, 1))[:, 0], bins)
    distances = np.abs(companded(camera, degrees)[:, None] - companded(camera, camera.values))
    np.testing.assert_allclose(distances[np.arange(len(bins)), bins], distances.min(axis=1), atol=1e-9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bins", 10),
        ("bins", 1001),
        ("bins", 11.0),
        ("max_degrees", 181),
        ("max_degrees", float("nan")),
        ("rule", "mu_law"),
        ("mu", float("inf")),
        ("mu", 1e300),
    ],
)
def test_wrong_bins(name: str, value: Any):
    with pytest.raises(InputError, match=name):
        CameraBins(**{name: value})


def test_wrong_turns():
    for wrong in (-1, 5.0, [0, 11], True):
        with pytest.raises(InputError, match="bins"):
            CameraBins().to_degrees(wrong)
    for wrong in ([0.0, np.nan], "left"):
        with pytest.raises(InputError, match="degrees"):
            CameraBins().to_bins(wrong)
    assert CameraBins().to_bins([-np.inf, np.inf]).tolist() == [0, 10]
    assert CameraBins().to_bins(np.array([-128], np.int8)).tolist() == [0]


def test_bins_are_a_value_object():
    camera = CameraBins(5, 20.0, "linear")
    assert camera == CameraBins(5, 20.0, "linear") != CameraBins(5, 20.0)
    assert hash(camera) == hash(CameraBins(5, 20.0, "linear"))
    assert pickle.loads(pickle.dumps(camera)) == camera
    assert dataclasses.replace(camera, bins=3).values.tolist() == [-20, 0, 20]
    with pytest.raises(ValueError, match="read-only"):
        camera.values[0] = 1


# MultiDiscreteActions


def test_the_order_of_the_choices():
    env = MultiDiscreteActions(Recorder(KEYED))
    assert env.names == (*KEYS, "craft", "place", "camera pitch", "camera yaw")
    assert env.action_space.nvec.tolist() == [2] * 8 + [3, 2, 11, 11]
    assert env.choices[8:10] == [["none", "planks", "torch"], ["dirt", "none"]]
    assert env.noop.tolist() == [0] * 8 + [0, 1, 5, 5]
    env.noop[:] = 1
    assert env.noop[0] == 0
    start = MultiDiscreteActions(Recorder(spaces.Dict(gear=spaces.Discrete(3, start=-1), horn=spaces.Discrete(2))))
    assert start.names == ("horn", "gear")
    assert start.noop.tolist() == [0, 1]
    assert start.action(np.array([1, 0])) == {"gear": -1, "horn": 1}
    # A Discrete entry named camera is a choice like any other.
    env = MultiDiscreteActions(Recorder(spaces.Dict(camera=spaces.Discrete(3), jump=spaces.Discrete(2))))
    assert (env.names, env.action([1, 2])) == (("jump", "camera"), {"camera": 2, "jump": 1})


@pytest.mark.parametrize("camera", [CameraBins(), CameraBins(5, 90.0, "linear"), CameraBins(101, 180.0)])
def test_an_action_and_back_is_the_identity(camera: CameraBins):
    env = MultiDiscreteActions(Recorder(KEYED), camera)
    env.action_space.seed(0)
    for _ in range(50):
        row = env.action_space.sample()
        action = env.action(row)
        assert KEYED.contains(action)
        np.testing.assert_array_equal(env.inverse(action), row)
        assert [action[key] for key in (*KEYS, "craft", "place")] == row[:10].tolist()
        np.testing.assert_allclose(action["camera"], camera.values[row[10:]], rtol=1e-6)


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
    named = env.inverse({**keyed_noop(), "craft": "torch", "camera": [90, 0]})
    assert named[8:].tolist() == [2, 1, 10, 5]


@pytest.mark.parametrize(
    ("row", "name"),
    [(0, "the action"), (np.zeros(12), "the action"), ([0] * 8 + [3, 0, 0, 0], "craft"), ([-1] + [0] * 11, "attack")],
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
        (spaces.Dict(camera=spaces.Box(-5.0, 5.0, (2,))), "max_degrees"),
        (spaces.Discrete(2), "MultiDiscreteActions"),
        (spaces.Dict(), "MultiDiscreteActions"),
    ],
)
def test_what_has_no_bins(space: spaces.Space[Any], name: str):
    with pytest.raises(InputError, match=name):
        MultiDiscreteActions(Recorder(space))


def test_a_noop_that_no_bin_does():
    noop = {**keyed_noop(), "camera": np.array([0.0, 0.1], np.float32)}
    with pytest.raises(InputError, match="no-op"):
        MultiDiscreteActions(Coded(KEYED, noop=noop))
