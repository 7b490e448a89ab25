"""What becomes of a whole observation: of any nesting of spaces, of pixels, and of what has to be refused."""

import copy
import math
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_obs.envs.old_spaces import Enum
from latent_obs.util.errors import InputError
from latent_obs.wrappers.features import FeatureLayout, Slot, describe, needs_features
from tests.latent_obs.wrappers.test_feature_rules import HELD, LOG, SHAPES, boxes, expected, is_image
from tests.support.tiny import picture

IMAGE = spaces.Box(0, 255, (20, 28, 3), np.uint8)


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


def names(space: spaces.Space[Any], **kwargs: Any) -> list[str]:
    return [slot.name for slot in FeatureLayout(space, **kwargs).index]


def test_names_say_what_each_number_is():
    layout = FeatureLayout(nested(), grouped=True)
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
    table = describe(layout.index, layout.left_out).splitlines()
    assert table[0] == " 0:1   compass/angle (sin)                 sine of the angle"
    assert table[7] == " 7:8   inventory/log                       log(1+count)/log(65)"
    assert table[-1] == "left out: chat"
    choices = spaces.Dict(a=spaces.MultiDiscrete(np.array([[2], [1]])))
    assert names(choices) == ["a[0,0]=0", "a[0,0]=1", "a[1,0]=0"]
    assert layout.index[0] == Slot("compass/angle (sin)", 0, 1)  # meaning and entry are comments


LEAVES = st.one_of(
    st.builds(
        boxes,
        st.sampled_from(["count", "whole", "angle", "unbounded", "float"]),
        SHAPES,
        st.tuples(*[st.floats(-3000, 3000, width=32)] * 2),
    ),
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


def layouts(space: spaces.Space[Any]) -> tuple[FeatureLayout, FeatureLayout] | None:
    """Grouped and apart; None where nothing is left of the space."""
    if not expected(space, space.sample()) and not any(map(is_image, parts_of(space))):
        with pytest.raises(InputError, match="neither pixels nor numbers"):
            FeatureLayout(space)
        return None
    return FeatureLayout(space, grouped=True), FeatureLayout(space)


def parts_of(space: spaces.Space[Any]) -> list[spaces.Space[Any]]:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        inner = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return [leaf for part in inner for leaf in parts_of(part)]
    return [space]


def vector_of(layout: FeatureLayout, out: Any) -> Any:
    """All the numbers of a grouped observation."""
    return out if isinstance(layout.space, spaces.Box) else out.get("features", np.zeros(0, np.float32))


@settings(deadline=None, max_examples=150)
@given(NESTED, st.integers(0, 2**31))
def test_any_nesting_gives_the_numbers_that_its_names_say(space: spaces.Space[Any], seed: int):
    space.seed(seed)
    both = layouts(space)
    if both is None:
        return
    grouped, apart = both
    value = space.sample()
    known = expected(space, value)
    one, many = grouped.convert(value), apart.convert(value)
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
    assert isinstance(apart.space, spaces.Dict)
    keys = [key for key in apart.space if many[key].dtype == np.float32]
    assert list(dict.fromkeys(slot.entry for slot in apart.index)) == [key for key in keys if many[key].size]
    np.testing.assert_array_equal(np.concatenate([many[key] for key in keys] or [vector]), vector)
    # flat, and of the declared kind
    assert one in grouped.space
    assert many in apart.space
    assert not needs_features(grouped.space)
    assert not needs_features(apart.space)
    for layout in both:
        entries = layout.space.spaces.values() if isinstance(layout.space, spaces.Dict) else [layout.space]
        assert all(
            isinstance(s, spaces.Box) and ((s.dtype == np.float32 and len(s.shape) == 1) or s == IMAGE) for s in entries
        )


def paths(space: spaces.Space[Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The ways to what lies in dictionaries only, so that a test can replace it."""
    if isinstance(space, spaces.Dict):
        return [found for key, part in space.items() for found in paths(part, (*path, key))]
    return [path] if path else []


def follow(path: tuple[str, ...], value: Any) -> Any:
    for key in path:
        value = value[key]
    return value


@settings(deadline=None, max_examples=60)
@given(NESTED, st.data())
def test_one_value_changes_its_own_numbers_only(space: spaces.Space[Any], data: st.DataObject):
    both, ways = layouts(space), paths(space)
    if both is None or not ways:
        return
    layout, path, before = both[0], data.draw(st.sampled_from(ways)), space.sample()
    part, after = follow(path, space), copy.deepcopy(before)
    follow(path[:-1], after)[path[-1]] = part.sample()
    vectors = [vector_of(layout, layout.convert(value)) for value in (before, after)]
    changed = np.flatnonzero(vectors[0] != vectors[1])
    owners = {slot.name for slot in layout.index for place in changed if slot.start <= place < slot.stop}
    assert owners <= set(expected(part, follow(path, before), "/".join(path)))


def test_pixels_stay_what_they_are():
    image = picture(0, 0)
    small = spaces.Box(0, 255, (3, 3, 3), np.uint8)
    space = spaces.Dict({"agent.1": spaces.Dict(pov=IMAGE), "map": small, "log": LOG})
    value = {"agent.1": {"pov": image}, "map": np.zeros((3, 3, 3), np.uint8), "log": np.int32(1)}
    layout = FeatureLayout(space)
    out = layout.convert(value)
    assert out["agent_1/pov"] is image  # no dots: torch refuses them
    assert isinstance(layout.space, spaces.Dict)
    assert list(out) == list(layout.space) == ["agent_1/pov", "log", "map"]
    assert layout.space["map"].shape == (27,)  # too small for a picture: counts
    kept = FeatureLayout(space, pixel_key="map", grouped=True)
    assert kept.convert(value)["map"] is value["map"]
    assert names(space, pixel_key="map") == ["log"]


@pytest.mark.parametrize("space", [IMAGE, spaces.Box(0, 255, (20, 28), np.uint8)], ids=str)
def test_an_observation_of_pixels_only_is_left_alone(space: spaces.Space[Any]):
    for grouped in (False, True):
        layout = FeatureLayout(space, grouped=grouped)
        value = space.sample()
        assert layout.convert(value) is value
        assert layout.space is space
        assert layout.index == layout.left_out == ()
    in_dict = FeatureLayout(spaces.Dict(pov=space), grouped=True) if space is IMAGE else None
    assert in_dict is None or (in_dict.space == spaces.Dict(pov=IMAGE) and in_dict.index == ())


def test_an_observation_without_pixels():
    space = spaces.Dict(log=LOG, held=HELD)
    value = {"log": np.int32(64), "held": np.int64(2)}
    grouped = FeatureLayout(space, grouped=True)
    assert isinstance(grouped.space, spaces.Box)
    assert grouped.convert(value).tolist() == [0, 0, 1, 1]
    assert {slot.entry for slot in grouped.index} == {""}
    apart = FeatureLayout(space).convert(value)
    assert {key: part.tolist() for key, part in apart.items()} == {"held": [0, 0, 1], "log": [1]}
    for kind in (spaces.Discrete(3), spaces.Box(-5.0, 5.0, (2, 2), np.float32)):
        assert FeatureLayout(kind).space.shape == (3 if isinstance(kind, spaces.Discrete) else 4,)


@pytest.mark.parametrize(
    ("space", "kwargs", "named"),
    [
        (spaces.Dict(a=spaces.Sequence(LOG)), {}, "a is a Sequence.*FilterObservation"),
        (spaces.Dict(a=spaces.Dict(b=spaces.Graph(LOG, None))), {}, "a/b is a Graph"),
        (spaces.Dict(a=spaces.Text(3)), {}, "neither pixels nor numbers"),
        (spaces.Text(3), {}, "neither pixels nor numbers"),
        (spaces.Dict({"a/b": LOG, "a": spaces.Dict(b=LOG)}), {}, r"both be named 'a/b'"),
        (spaces.Dict({"a.b": LOG, "a_b": LOG}), {}, "'a_b'"),
        (spaces.Dict(features=IMAGE, log=LOG), {"grouped": True}, "'features'"),
        (spaces.Dict(log=LOG), {"pixel_key": "pov"}, r"'pov' is not in the observation.*\['log'\]"),
        (spaces.Dict(log=LOG), {"pixel_key": "log"}, "uint8"),
        (LOG, {"pixel_key": "pov"}, "no Dict"),
    ],
)
def test_what_cannot_be_made_numbers_is_named(space: spaces.Space[Any], kwargs: dict[str, Any], named: str):
    with pytest.raises(InputError, match=named):
        FeatureLayout(space, **kwargs)


@pytest.mark.parametrize(
    ("space", "value", "named"),
    [
        (spaces.Dict(a=LOG), {}, "KeyError: 'a'"),
        (spaces.Dict(a=LOG), {"a": "much"}, "much"),
        (spaces.Dict(a=LOG), None, "TypeError"),
        (spaces.Tuple([LOG, LOG]), (np.int32(1),), "IndexError"),
        (spaces.Dict(a=spaces.Box(0, 1, (3,))), {"a": np.zeros(1)}, r"a has shape \(1,\).*\(3,\)"),
        (spaces.Dict(a=spaces.Box(0, 360, (2,))), {"a": np.zeros((2, 1))}, r"a has shape \(2, 1\)"),
        (spaces.Dict(a=HELD), {"a": 3}, "a is 3.*0 to 2"),
        (spaces.Dict(a=spaces.Discrete(3, start=2)), {"a": 1}, "a is 1.*2 to 4"),
        (spaces.Dict(a=spaces.MultiDiscrete([2, 2])), {"a": np.array([0, -1])}, "out of what"),
        (spaces.Dict(a=spaces.MultiDiscrete([2, 2])), {"a": np.array([0])}, "shape"),
        (HELD, math.inf, "OverflowError"),
    ],
    ids=str,
)
def test_an_observation_that_is_not_as_declared_is_named(space: spaces.Space[Any], value: Any, named: str):
    with pytest.raises(InputError, match=named):
        FeatureLayout(space).convert(value)


@pytest.mark.parametrize(
    ("space", "needs"),
    [
        (IMAGE, False),
        (spaces.Dict(pov=IMAGE, vector=spaces.Box(-1, 1, (3,)), kind=spaces.Discrete(3)), False),
        (spaces.Dict(kind=HELD, keys=spaces.MultiBinary(3), several=spaces.MultiDiscrete([2, 3])), False),
        (spaces.Dict(inner=spaces.Dict(log=spaces.Box(0, 1, (1,)))), True),
        (spaces.Dict(log=LOG), True),
        (LOG, True),
        (spaces.Tuple([IMAGE]), True),
        (spaces.Dict(chat=spaces.Text(3)), True),
        (spaces.Dict(kind=spaces.Discrete(3, start=1)), True),
        (spaces.MultiDiscrete(np.array([[2, 2]])), True),
        (spaces.Dict({"a.b": IMAGE}), True),
    ],
    ids=str,
)
def test_what_stable_baselines_could_not_take(space: spaces.Space[Any], needs: bool):
    assert needs_features(space) is needs
    assert not needs or not any(needs_features(layout.space) for layout in both_forms(space))


def both_forms(space: spaces.Space[Any]) -> list[FeatureLayout]:
    if any(isinstance(part, spaces.Text) for part in parts_of(space)):
        return []
    return [FeatureLayout(space), FeatureLayout(space, grouped=True)]
