"""Spaces of gym 0.17 and of MineRL as Gymnasium's, and their values in both directions; needs both packages."""

import re
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_obs.envs.old_gym import Enum, convert_space, noop_of
from latent_obs.util.errors import InputError
from tests.support.minerl_games import upstream

gym_spaces, minerl_spaces = upstream("gym.spaces"), upstream("minerl.herobraine.hero.spaces")

names = st.lists(st.text("abcdefgh_", min_size=1, max_size=6), min_size=1, max_size=6, unique=True)
SHAPES: list[tuple[int, ...]] = [(), (1,), (3,), (2, 3), (4, 5, 3)]
LIMITS = {np.uint8: (0, 255), np.int32: (-7, 2304), np.int64: (0, 2304), np.float32: (-180, 180), np.float64: (-1, 1)}


@st.composite
def enums(draw: st.DrawFn) -> Any:
    values = draw(names)
    return minerl_spaces.Enum(*values, default=draw(st.none() | st.sampled_from(values)))


@st.composite
def boxes(draw: st.DrawFn, module: Any) -> Any:
    dtype, shape = draw(st.sampled_from(list(LIMITS))), draw(st.sampled_from(SHAPES))
    low, high = LIMITS[dtype]
    if dtype in (np.float32, np.float64) and draw(st.booleans()):
        low, high = -np.inf, np.inf
    if module is gym_spaces:
        return gym_spaces.Box(low, high, shape, dtype=dtype)
    scale = "linear" if high == np.inf else draw(st.sampled_from(["linear", "log"]))
    return minerl_spaces.Box(low, high, shape, dtype=dtype, normalizer_scale=scale)


def spaces_of(module: Any, more: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Spaces of gym or of minerl, nested ones too; `more` are those that only one of them has."""
    sizes = st.integers(1, 9)
    rows = st.lists(sizes, min_size=1, max_size=4)
    leaves = boxes(module) | sizes.map(module.Discrete) | rows.map(module.MultiDiscrete) | more

    def dicts(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, min_size=1, max_size=3).map(module.Dict)

    nested = st.recursive(leaves, dicts, max_leaves=5)
    # MineRL's Dict cannot sample a Tuple in it.
    return nested | st.lists(nested, min_size=1, max_size=3).map(tuple).map(module.Tuple)


ranges = st.builds(
    lambda begin, n: minerl_spaces.DiscreteRange(begin, begin + n), st.integers(-5, 5), st.integers(1, 9)
)
old_spaces = spaces_of(minerl_spaces, enums() | ranges) | spaces_of(
    gym_spaces, st.integers(1, 6).map(gym_spaces.MultiBinary)
)


def equal(one: Any, other: Any) -> bool:
    """Whether two values, nested or not, are the same in content."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return np.array_equal(one, other)


@settings(max_examples=50, deadline=None)
@given(old=old_spaces, seed=st.integers(0, 2**31 - 1))
def test_values_of_every_space_are_converted_both_ways(old: Any, seed: int):
    converted = convert_space(old)
    old.seed(seed)
    converted.space.seed(seed)
    value = old.sample()
    new = converted.from_old(value)
    assert converted.space.contains(new)
    assert equal(converted.to_old(new), value)
    action = converted.space.sample()
    back = converted.to_old(action)
    assert old.contains(back)
    assert equal(converted.from_old(back), action)
    noop = noop_of(converted.space)
    assert converted.space.contains(noop)  # without the warnings that Gymnasium has for numbers that are no arrays
    assert old.contains(converted.to_old(noop))


@pytest.mark.parametrize(
    ("old", "expected"),
    [
        (
            minerl_spaces.Enum("none", "log", "planks", default="none"),
            Enum(["log", "none", "planks"], "none"),
        ),  # sorted
        (minerl_spaces.Box(0, 255, [4, 5, 3], dtype=np.uint8), spaces.Box(0, 255, (4, 5, 3), np.uint8)),
        (minerl_spaces.Box(0, 2304, (), dtype=np.int64, normalizer_scale="log"), spaces.Box(0, 2304, (), np.int64)),
        (minerl_spaces.DiscreteRange(-1, 5), spaces.Discrete(6, start=-1)),
        (minerl_spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([2, 3])),
        (gym_spaces.MultiBinary(4), spaces.MultiBinary(4)),
        (gym_spaces.Tuple((gym_spaces.Discrete(2),)), spaces.Tuple([spaces.Discrete(2)])),
        (
            minerl_spaces.Dict({"a": minerl_spaces.Dict({"b": minerl_spaces.Enum("x", "y")})}),
            spaces.Dict(a=spaces.Dict(b=Enum(["x", "y"]))),
        ),
    ],
    ids=str,
)
def test_each_kind_has_its_twin(old: Any, expected: spaces.Space[Any]):
    space = convert_space(old).space
    assert (space, space.dtype, space.shape) == (expected, expected.dtype, expected.shape)


def test_text_has_its_twin():
    text = minerl_spaces.Text.__new__(minerl_spaces.Text)  # its __init__ asks for a numpy that is gone
    text.shape = None
    converted = convert_space(text, "chat")
    assert isinstance(converted.space, spaces.Text)
    assert converted.space.max_length == 100
    for said in ("", "hello, world", np.array("hello")):
        assert converted.space.contains(converted.from_old(said))
        assert converted.from_old(said) == str(said)
    assert converted.to_old("go on") == "go on"
    assert noop_of(converted.space) == ""
    for wrong in (3, "x" * 101):
        with pytest.raises(InputError, match="chat"):
            converted.to_old(wrong)
    assert converted.space.contains(converted.from_old("naïve\r"))
    with pytest.raises(InputError, match="chat"):
        converted.to_old("naïve")
    text.shape = (2,)
    with pytest.raises(InputError, match="space"):
        convert_space(text)


def test_observations_are_arrays_of_their_own():
    drawn = np.random.default_rng(0).integers(0, 256, 4 * 5 * 3).astype(np.uint8).tobytes()
    frame = np.frombuffer(drawn, np.uint8).reshape(4, 5, 3)[::-1]  # flipped and read-only, as MineRL gives it
    assert not frame.flags.writeable
    given_away = convert_space(minerl_spaces.Box(0, 255, [4, 5, 3], dtype=np.uint8)).from_old(frame)
    np.testing.assert_array_equal(given_away, frame, strict=True)
    assert given_away.flags.writeable
    assert given_away.flags.c_contiguous
    assert not np.shares_memory(given_away, frame)
    for shape, dtype in (((3,), np.float32), ((), np.float32), ((), np.int32)):
        converted = convert_space(gym_spaces.Box(-5, 5, shape, dtype=dtype))
        held = np.ones(shape, dtype)
        for value in (held, converted.from_old(held)):
            assert not np.shares_memory(converted.from_old(value), value)


@settings(max_examples=40)
@given(
    value=st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3),
    shape=st.sampled_from([(), (3,)]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_numbers_out_of_bounds_are_clipped_to_them(value: list[float], shape: tuple[int, ...], dtype: Any):
    old = minerl_spaces.Box(-1.05, 1.05, shape, dtype=dtype)
    array = np.array(value, dtype) if shape else np.array(value[0], dtype)
    np.testing.assert_array_equal(convert_space(old).from_old(array), np.clip(array, old.low, old.high), strict=True)


camera = minerl_spaces.Box(-180, 180, [2])
keys = minerl_spaces.Dict(
    {"jump": minerl_spaces.Discrete(2), "camera": camera, "craft": minerl_spaces.Enum("none", "torch", "planks")}
)
good = {"jump": 0, "camera": [0.0, 0.0], "craft": 0}


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        *(("jump", wrong) for wrong in (2, 1.0, np.ones(2, int))),
        *(("craft", wrong) for wrong in ("torch", 3)),
        *(("camera", [0.0, wrong]) for wrong in (np.nan, 181.0, 1e300, [1.0, 2.0])),
        *(("camera", wrong) for wrong in ([0.0, 0.0, 0.0], ["up", "left"], None)),
    ],
)
def test_a_wrong_action_is_refused_by_name(key: str, wrong: Any):
    to_old = convert_space(keys, "action").to_old
    assert to_old(good)["craft"] == "none"
    with pytest.raises(InputError, match=re.escape(f"action['{key}']")):
        to_old({**good, key: wrong})
    for other_keys in ({"jump": 0}, {**good, 3: 1}, None):
        with pytest.raises(InputError, match="action"):
            to_old(other_keys)


def test_whole_numbers_are_not_wrapped_into_their_bounds():
    box = convert_space(gym_spaces.Box(-100, 100, (1,), dtype=np.int32), "action")
    assert box.to_old([np.int64(-100)]).dtype == np.int32
    keys_down = convert_space(gym_spaces.MultiBinary(2), "action")
    np.testing.assert_array_equal(keys_down.to_old([True, False]), np.array([1, 0], np.int8), strict=True)
    pixels = convert_space(gym_spaces.Box(0, 255, (2,), dtype=np.uint8), "action")
    for to_old, wrong in (
        (box.to_old, [2**32 + 5]),
        (box.to_old, [0.5]),
        (keys_down.to_old, [256, 0]),
        (pixels.to_old, [0, -1]),
    ):
        with pytest.raises(InputError, match="action must"):
            to_old(wrong)


def test_paths_of_nested_values_are_named():
    inner = gym_spaces.Tuple((gym_spaces.Discrete(2), gym_spaces.Dict({"b": gym_spaces.MultiDiscrete([2, 3])})))
    to_old = convert_space(gym_spaces.Dict({"a": inner}), "action").to_old
    assert equal(to_old({"a": (1, {"b": [1, 2]})}), {"a": (1, {"b": np.array([1, 2])})})
    for wrong in ([1, 3], [1.0, 2.0], [0], "ab", None):
        with pytest.raises(InputError, match=re.escape("action['a'][1]['b']")):
            to_old({"a": (1, {"b": wrong})})
    with pytest.raises(InputError, match=re.escape("action['a'][0]")):
        to_old({"a": (2, {"b": [1, 2]})})
    with pytest.raises(InputError, match=re.escape("action['a']")):
        to_old({"a": (1,)})


def test_an_observation_that_its_space_does_not_declare_is_refused():
    declared = minerl_spaces.Dict({"pov": minerl_spaces.Box(0, 255, [4, 5, 3], dtype=np.uint8)})
    from_old = convert_space(declared, "observation").from_old
    with pytest.raises(InputError, match=r"pov.*view"):
        from_old(OrderedDict(view=np.zeros((4, 5, 3))))
    with pytest.raises(InputError, match=re.escape("observation['pov']")):
        from_old({"pov": np.zeros((5, 4, 3), np.uint8)})
    pair = convert_space(gym_spaces.Tuple((gym_spaces.Discrete(2),) * 2), "observation")
    with pytest.raises(InputError, match="observation"):
        pair.from_old((0, 1, 0))
    item = convert_space(minerl_spaces.Enum("air", "log"), "observation['type']")
    with pytest.raises(InputError, match="dirt"):
        item.from_old("dirt")


def test_a_space_without_a_twin_is_named():
    class Odd(upstream("gym").Space):
        def __init__(self) -> None:
            super().__init__()

    with pytest.raises(InputError, match=r"action\['x'\]"):
        convert_space(gym_spaces.Dict({"x": Odd()}), "action")
    with pytest.raises(InputError, match="Sequence"):
        noop_of(spaces.Sequence(spaces.Discrete(2)))


def test_entries_of_an_enum():
    enum = Enum(["none", "log"], default="log")
    assert (enum.index("log"), enum.default, noop_of(enum)) == (1, 1, 1)
    assert enum != Enum(["none", "log"])
    for space, expected in ((spaces.Discrete(3, start=-9), -7), (spaces.Box(2, 5, (2,)), [2.0, 2.0])):
        np.testing.assert_array_equal(noop_of(space), expected)  # what is nearest to zero
    with pytest.raises(InputError, match="dirt"):
        enum.index("dirt")
    with pytest.raises(InputError, match="names"):
        Enum(["a", "a"])
    with pytest.raises(InputError, match="default"):
        Enum(["a", "b"], default="c")
