"""FeatureObservation: each number against plain arithmetic, any nesting of spaces, and what is refused."""

import functools
import math
import warnings
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_obs.envs.old_gym import Enum, convert_space
from latent_obs.util.errors import InputError
from latent_obs.wrappers.features import FeatureObservation, Slot, describe, needs_features
from tests.support.latent_cases import HELD, IMAGE, LOG, Samples
from tests.support.tiny import pass_checkers, picture

INFINITY = math.inf


def features(space: spaces.Space[Any], **kwargs: Any) -> Any:
    """What a `FeatureObservation` makes of observations of this space."""
    return FeatureObservation(Samples(space), **kwargs)


def is_image(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def expected(space: spaces.Space[Any], value: Any, name: str = "") -> dict[str, list[float]]:
    """The numbers of every name, written a second time and without a thought for speed."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        inner = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        parts = [expected(part, value[key], f"{name}/{key}" if name else str(key)) for key, part in inner]
        return {k: v for part in parts for k, v in part.items()}
    if isinstance(space, spaces.Text) or is_image(space):
        return {}
    if isinstance(space, Enum):
        return {f"{name}={label}": [float(space.names[int(value)] == label)] for label in space.names}
    if isinstance(space, spaces.Discrete):
        return {f"{name}={k}": [float(k == value)] for k in range(int(space.start), int(space.start + space.n))}
    if isinstance(space, spaces.MultiDiscrete):
        return {
            f"{name}[{','.join(map(str, at))}]={k}": [float(value[at] == k)]
            for at in np.ndindex(space.shape)
            for k in range(int(space.start[at]), int(space.start[at] + space.nvec[at]))
        }
    if isinstance(space, spaces.MultiBinary):
        return {name: [float(v) for v in value.flat]}
    assert isinstance(space, spaces.Box)
    whole, out = space.dtype.kind in "iu", []
    values = [
        (float(v), float(a), float(b)) for v, a, b in zip(np.ravel(value), space.low.flat, space.high.flat, strict=True)
    ]
    if not whole and {(a, b) for _, a, b in values} in ({(-180.0, 180.0)}, {(0.0, 360.0)}):
        turns = [np.exp(1j * np.pi * v / 180) for v, _, _ in values]
        return {f"{name} (sin)": [z.imag for z in turns], f"{name} (cos)": [z.real for z in turns]}
    natural = whole and all(a >= 0 for _, a, _ in values)
    binary = natural and all(b <= 1 for _, _, b in values)
    for v, a, b in values:
        bound = max(abs(a), abs(b))
        if natural and not binary:
            out.append(math.log(1 + v) / math.log(65))
        else:
            out.append(v if binary or bound >= 1e9 or bound == 0 or (not whole and bound <= 10) else v / bound)
    return {name: out}


@pytest.mark.parametrize(
    ("space", "value", "numbers"),
    [
        (LOG, 64, [1.0]),
        (LOG, -3, [0.0]),
        (spaces.Box(0.0, 360.0, (2,), np.float32), [30, 90], [0.5, 1, math.sqrt(3) / 2, 0]),
        (spaces.Box(-180.0, 180.0, (), np.float32), -400, [-math.sin(math.radians(40)), math.cos(math.radians(40))]),
        (spaces.Box(-180, 180, (), np.int32), 90, [0.5]),  # only floats of a full turn are degrees
        (spaces.Box(-1, 1562, (), np.int64), 781, [0.5]),
        (spaces.Box(0, 1, (2,), np.int8), [1, 0], [1.0, 0.0]),
        (
            spaces.Box(np.array([-1, -50, 0], np.float32), np.array([1, 100, INFINITY], np.float32)),
            [0.5, 50, 9],
            [0.5, 0.5, 9],
        ),
        (spaces.Box(-INFINITY, INFINITY, (), np.float64), 1e300, [INFINITY]),
        (spaces.Box(np.finfo(np.float32).min, np.finfo(np.float32).max, (1,), np.float32), [3.5], [3.5]),
        (spaces.Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (), np.int64), 17, [17.0]),
        (spaces.Box(0.0, 0.0, (2,), np.float32), [0.0, 0.0], [0.0, 0.0]),
        (spaces.MultiBinary([2, 2]), [[1, 0], [0, 1]], [1.0, 0.0, 0.0, 1.0]),
        (spaces.MultiDiscrete([2, 3], start=[0, 5]), [1, 5], [0.0, 1.0, 1.0, 0.0, 0.0]),
    ],
    ids=str,
)
def test_numbers_at_their_limits(space: spaces.Space[Any], value: Any, numbers: list[float]):
    layout = features(space)
    out = layout.observation(value if isinstance(value, int) else np.array(value))
    assert out in layout.observation_space
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, numbers, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("wide", "value"), [(1, np.nan), (180, np.nan), (180, -np.inf)])
def test_not_a_number_is_passed_on_and_an_endless_angle_is_none(wide: float, value: float):
    space = spaces.Box(-wide, wide, (2,), np.float32)
    assert np.isnan(features(space).observation(np.full(space.shape, value, np.float32))).all()


def boxes(kind: str, shape: tuple[int, ...], bounds: tuple[float, float]) -> spaces.Box:
    low, high = sorted(bound + 0.0 for bound in bounds)  # 0.0 for -0.0, of which Box cannot sample
    if kind == "count":
        return spaces.Box(0, int(abs(high)), shape, np.int32)
    if kind == "whole":
        return spaces.Box(int(low), int(high), shape, np.int64)
    if kind == "angle":
        return spaces.Box(*((-180.0, 180.0) if low < 0 else (0.0, 360.0)), shape, np.float32)
    if kind == "unbounded":
        return spaces.Box(-INFINITY, INFINITY, shape, np.float64)
    return spaces.Box(low, high, shape, np.float32)


BOXES = st.builds(
    boxes,
    st.sampled_from(["count", "whole", "angle", "unbounded", "float"]),
    st.sampled_from([(), (1,), (3,), (2, 2)]),
    st.tuples(*[st.floats(-3000, 3000, width=32)] * 2),
)
NUMBERS = st.sampled_from([0.0, -1.0, 1.0, 2304.0, 1e9, -1e30, INFINITY, -INFINITY])


@settings(deadline=None, max_examples=50)
@given(BOXES, st.one_of(NUMBERS, st.floats(allow_nan=False)))
def test_values_out_of_bounds_stay_in_the_declared_space(space: spaces.Box, value: float):
    layout = features(space)
    out = layout.observation(np.full(space.shape, value))
    if np.isnan(out).any():  # an endless angle has no sine
        assert [slot.name for slot in layout.index] == ["observation (sin)", "observation (cos)"]
        assert abs(value) >= 1e9
    else:
        assert out in layout.observation_space


# Whole observations


def nested() -> spaces.Dict:
    """As MineRL's spaces are, with more kinds in it."""
    return spaces.Dict(
        pov=IMAGE,
        inventory=spaces.Dict({"log": LOG, "log#1": LOG, "dirt": LOG}),
        equipped_items=spaces.Dict(mainhand=spaces.Dict(damage=spaces.Box(-1, 1562, (), np.int64), type=HELD)),
        compass=spaces.Dict(angle=spaces.Box(-180.0, 180.0, (), np.float32)),
        vector=spaces.Box(-1.2, 1.2, (3,), np.float32),
        position=spaces.Tuple([spaces.Box(-100.0, 100.0, (2,), np.float64), spaces.Discrete(2, start=-1)]),
        keys=spaces.MultiBinary(2),
        chat=spaces.Text(5),
    )


def test_names_say_what_each_number_is():
    layout = features(nested(), grouped=True)
    assert [(slot.name, slot.start, slot.stop) for slot in layout.index] == [
        ("compass/angle (sin)", 0, 1),
        ("compass/angle (cos)", 1, 2),
        ("equipped_items/mainhand/damage", 2, 3),
        ("equipped_items/mainhand/type=none", 3, 4),
        ("equipped_items/mainhand/type=log", 4, 5),
        ("equipped_items/mainhand/type=torch", 5, 6),
        ("inventory/dirt", 6, 7),
        ("inventory/log", 7, 8),
        ("inventory/log#1", 8, 9),
        ("keys", 9, 11),
        ("position/0", 11, 13),
        ("position/1=-1", 13, 14),
        ("position/1=0", 14, 15),
        ("vector", 15, 18),
    ]
    assert layout.left_out == ("chat",)
    assert describe(layout.index, layout.left_out).endswith("left out: chat")
    assert layout.index[0] == Slot("compass/angle (sin)", 0, 1)  # meaning and entry are comments


LEAVES = st.one_of(
    BOXES,
    st.builds(spaces.Discrete, st.integers(1, 4), start=st.integers(-3, 3)),
    st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True).map(Enum),
    st.lists(st.integers(1, 3), min_size=1, max_size=3).map(spaces.MultiDiscrete),
    st.sampled_from([2, [2, 3]]).map(spaces.MultiBinary),
    st.just(IMAGE),
    st.just(spaces.Text(3)),
)
KEYS = st.text("ab#0", min_size=1, max_size=3)


def inside(parts: Any) -> Any:
    return st.one_of(
        st.dictionaries(KEYS, parts, min_size=1, max_size=4).map(spaces.Dict),
        st.lists(parts, min_size=1, max_size=3).map(spaces.Tuple),
    )


NESTED = inside(st.recursive(LEAVES, inside, max_leaves=8))


def leaves_of(space: spaces.Space[Any], path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], spaces.Space[Any]]:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        inner = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        return {at: leaf for key, part in inner for at, leaf in leaves_of(part, (*path, key)).items()}
    return {path: space}


def layouts(space: spaces.Space[Any]) -> tuple[Any, Any] | None:
    """Grouped and apart; None if nothing is left of the space."""
    if not expected(space, space.sample()) and not any(map(is_image, leaves_of(space).values())):
        with pytest.raises(InputError):
            features(space)
        return None
    return features(space, grouped=True), features(space)


def vector_of(layout: Any, out: Any) -> Any:
    """All the numbers of a grouped observation."""
    return out if isinstance(layout.observation_space, spaces.Box) else out.get("features", np.zeros(0, np.float32))


@settings(deadline=None, max_examples=50)
@given(NESTED, st.integers(0, 2**31))
def test_any_nesting_gives_the_numbers_that_its_names_say(space: spaces.Space[Any], seed: int):
    space.seed(seed)
    both = layouts(space)
    if both is None:
        return
    grouped, apart = both
    value = space.sample()
    known = expected(space, value)
    one, many = grouped.observation(value), apart.observation(value)
    vector = vector_of(grouped, one)
    # the slots are the whole vector, without a gap, each under a name of its own that says what is in it
    places = [place for slot in grouped.index for place in range(slot.start, slot.stop)]
    assert places == list(range(len(vector)))
    assert len({slot.name for slot in grouped.index}) == len(grouped.index)
    assert {slot.name for slot in grouped.index} == {name for name, of in known.items() if of}
    for slot in grouped.index:
        np.testing.assert_allclose(vector[slot.start : slot.stop], known[slot.name], rtol=1e-5, atol=1e-6)
    # apart, the same numbers in the same order
    assert apart.index == grouped.index
    assert isinstance(apart.observation_space, spaces.Dict)
    keys = [key for key in apart.observation_space if many[key].dtype == np.float32]
    assert list(dict.fromkeys(slot.entry for slot in apart.index)) == [key for key in keys if many[key].size]
    np.testing.assert_array_equal(np.concatenate([many[key] for key in keys] or [vector]), vector)
    # flat, and of the declared kind
    for layout, out in ((grouped, one), (apart, many)):
        assert out in layout.observation_space
        assert not needs_features(layout.observation_space)
        for entry in leaves_of(layout.observation_space).values():
            assert isinstance(entry, spaces.Box)
            assert (entry.dtype == np.float32 and len(entry.shape) == 1) or entry == IMAGE


def test_pixels_are_unchanged():
    image = picture(0, 0)
    small = spaces.Box(0, 255, (3, 3, 3), np.uint8)
    space = spaces.Dict({"agent.1": spaces.Dict(pov=IMAGE), "map": small, "log": LOG})
    value = {"agent.1": {"pov": image}, "map": np.zeros((3, 3, 3), np.uint8), "log": np.int32(1)}
    layout = features(space)
    out = layout.observation(value)
    assert out["agent_1/pov"] is image  # no dots: torch refuses them
    assert isinstance(layout.observation_space, spaces.Dict)
    assert list(out) == list(layout.observation_space) == ["agent_1/pov", "log", "map"]
    assert layout.observation_space["map"].shape == (27,)  # too small for a picture: counts
    kept = features(space, pixel_key="map", grouped=True)
    assert kept.observation(value)["map"] is value["map"]
    assert [slot.name for slot in kept.index] == ["log"]


@pytest.mark.parametrize("space", [IMAGE, spaces.Box(0, 255, (20, 28), np.uint8)], ids=str)
def test_an_observation_of_pixels_only_is_unchanged(space: spaces.Space[Any]):
    layout, value = features(space, grouped=True), space.sample()
    assert layout.observation(value) is value
    assert layout.observation_space is space
    assert layout.index == layout.left_out == ()


def test_an_observation_without_pixels():
    space = spaces.Dict(log=LOG, held=HELD)
    value = {"log": np.int32(64), "held": np.int64(2)}
    grouped = features(space, grouped=True)
    assert isinstance(grouped.observation_space, spaces.Box)
    assert grouped.observation(value).tolist() == [0, 0, 1, 1]
    assert {slot.entry for slot in grouped.index} == {""}
    apart = features(space).observation(value)
    assert {key: part.tolist() for key, part in apart.items()} == {"held": [0, 0, 1], "log": [1]}


@pytest.mark.parametrize(
    ("space", "kwargs", "named"),
    [
        (spaces.Dict(a=spaces.Dict(b=spaces.Graph(LOG, None))), {}, "a/b is a Graph"),
        (spaces.Text(3), {}, "neither"),
        (spaces.Dict({"a/b": LOG, "a": spaces.Dict(b=LOG)}), {}, "'a/b'"),
        (spaces.Dict(features=IMAGE, log=LOG), {"grouped": True}, "'features'"),
        (spaces.Dict(log=LOG), {"pixel_key": "pov"}, "pixel_key"),
        (spaces.Dict(log=LOG), {"pixel_key": "log"}, "pixel_key"),
    ],
)
def test_spaces_of_which_no_numbers_can_be_made(space: spaces.Space[Any], kwargs: dict[str, Any], named: str):
    with pytest.raises(InputError, match=named):
        features(space, **kwargs)


@pytest.mark.parametrize(
    ("space", "value", "named"),
    [
        (spaces.Dict(a=LOG), {}, "'a'"),
        (spaces.Dict(a=LOG), {"a": "much"}, "much"),
        (spaces.Tuple([LOG, LOG]), (np.int32(1),), "index"),
        (spaces.Dict(a=spaces.Box(0, 1, (3,))), {"a": np.zeros(1)}, r"a has shape \(1,\).*\(3,\)"),
        (spaces.Dict(a=spaces.Discrete(3, start=2)), {"a": 1}, "a is 1"),
        (spaces.Dict(a=spaces.MultiDiscrete([2, 2])), {"a": np.array([0, -1])}, "a is"),
        (HELD, math.inf, "inf"),
    ],
    ids=str,
)
def test_an_observation_that_differs_from_its_space(space: spaces.Space[Any], value: Any, named: str):
    with pytest.raises(InputError, match=named):
        features(space).observation(value)


@pytest.mark.parametrize(
    ("space", "needs"),
    [
        (spaces.Dict(pov=IMAGE, vector=spaces.Box(-1, 1, (3,)), kind=spaces.Discrete(3)), False),
        (spaces.Dict(kind=HELD, keys=spaces.MultiBinary(3), several=spaces.MultiDiscrete([2, 3])), False),
        (spaces.Dict(inner=spaces.Dict(log=spaces.Box(0, 1, (1,)))), True),
        (LOG, True),
        (spaces.Dict(kind=spaces.Discrete(3, start=1)), True),
        (spaces.Dict({"a.b": IMAGE}), True),
    ],
    ids=str,
)
def test_what_stable_baselines_could_not_take(space: spaces.Space[Any], needs: bool):
    assert needs_features(space) is needs


# The wrapper


def test_the_wrapper_passes_others_checkers_gives_new_arrays_and_can_be_made_again():
    for grouped in (False, True):
        pass_checkers(FeatureObservation(gym.wrappers.TimeLimit(Samples(nested()), 5), grouped=grouped))
    gym.register("LatentObsTests/Nested-v0", entry_point=cast(Any, Samples), kwargs={"space": nested()})
    try:
        env = FeatureObservation(gym.make("LatentObsTests/Nested-v0", disable_env_checker=True), grouped=True)
        again = gym.make(cast(Any, env.spec), disable_env_checker=True)
    finally:
        del gym.registry["LatentObsTests/Nested-v0"]
    assert isinstance(again, FeatureObservation)
    first, _ = env.reset(seed=3)
    np.testing.assert_array_equal(again.reset(seed=3)[0]["features"], first["features"])
    kept = first["features"].copy()
    assert not np.shares_memory(first["features"], env.step(0)[0]["features"])
    np.testing.assert_array_equal(first["features"], kept)
    with pytest.raises(InputError, match="env"):
        FeatureObservation(cast(Any, []))


# MineRL


@functools.cache
def minerl_spaces() -> dict[str, spaces.Dict]:
    """What every environment of MineRL observes, by its name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old_gym = pytest.importorskip("gym", exc_type=ImportError)
        old_gym.logger.set_level(40)
        pytest.importorskip("minerl", exc_type=ImportError)
        specs = [spec for spec in old_gym.envs.registry.all() if spec.id.startswith("MineRL")]
        found = {spec.id: convert_space(spec._kwargs["env_spec"].observation_space).space for spec in specs}
    return cast(dict[str, spaces.Dict], found)


def test_all_of_minerls_observations_become_numbers():
    assert len(minerl_spaces()) >= 30
    for name, space in minerl_spaces().items():
        grouped, apart = features(space, grouped=True), features(space)
        assert needs_features(space) is any(isinstance(part, spaces.Dict) for part in space.values()), name
        value = space.sample()
        one, many, known = grouped.observation(value), apart.observation(value), expected(space, value)
        assert one in grouped.observation_space, name
        assert many in apart.observation_space, name
        assert set(one) == ({"pov", "features"} if known else {"pov"})
        assert one["pov"] is many["pov"] is value["pov"]
        assert grouped.left_out == ()
        assert grouped.index == apart.index
        assert {slot.name for slot in grouped.index} == set(known), name
        for slot in grouped.index:
            np.testing.assert_allclose(one["features"][slot.start : slot.stop], known[slot.name], rtol=1e-5, atol=1e-6)
