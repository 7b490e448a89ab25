"""The rules that make numbers of values: each against plain arithmetic, and whatever comes, in the space it
declares."""

import math
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_obs.envs.old_spaces import Enum
from latent_obs.util.errors import InputError
from latent_obs.wrappers.features import FeatureLayout

INFINITY = math.inf
LOG = spaces.Box(0, 2304, (), np.int32)
HELD = Enum(["none", "log", "torch"])


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


def numbers_of(space: spaces.Space[Any], value: Any) -> list[float]:
    """What becomes of a value that is the whole observation."""
    layout = FeatureLayout(space)
    out = layout.convert(value)
    assert out in layout.space
    assert out.dtype == np.float32
    return out.tolist()


@given(st.integers(-10, 5000), st.sampled_from([np.int32, np.int64, np.uint16]))
def test_counts_are_logarithms_of_stacks(count: int, dtype: Any):
    space = spaces.Box(0, 2304, (), dtype)
    given = max(count, 0) if dtype == np.uint16 else count
    [number] = numbers_of(space, np.array(given, dtype))
    assert number == pytest.approx(math.log2(1 + min(max(count, 0), 2304)) / math.log2(65), rel=1e-6)
    # a Python integer, and an array of one, are the same
    assert (
        numbers_of(space, given) == numbers_of(spaces.Box(0, 2304, (1,), dtype), np.array([given], dtype)) == [number]
    )


def test_one_stack_is_one():
    assert numbers_of(LOG, np.array(64, np.int32)) == [1.0]
    assert numbers_of(LOG, np.array(0, np.int32)) == [0.0]
    space = FeatureLayout(LOG).space
    assert isinstance(space, spaces.Box)
    np.testing.assert_allclose(space.high, math.log(2305) / math.log(65), rtol=1e-6)
    assert space.low == 0


@given(st.floats(-400, 400, width=32), st.sampled_from([(-180.0, 180.0), (0.0, 360.0)]))
def test_degrees_are_sine_and_cosine(angle: float, bounds: tuple[float, float]):
    turn = np.exp(1j * np.deg2rad(angle))
    scalar = numbers_of(spaces.Box(*bounds, (), np.float32), np.float32(angle))
    np.testing.assert_allclose(scalar, [turn.imag, turn.real], atol=1e-6)
    array = numbers_of(spaces.Box(*bounds, (2,), np.float32), np.array([angle, 90], np.float32))
    np.testing.assert_allclose(array, [turn.imag, 1, turn.real, 0], atol=1e-6)


def test_only_floats_of_a_full_turn_are_degrees():
    for space in (
        spaces.Box(-180, 180, (), np.int32),
        spaces.Box(-180.0, 181.0, (), np.float32),
        spaces.Box(0, 360, (), np.int32),
    ):
        assert [slot.name for slot in FeatureLayout(space).index] == ["observation"]


@pytest.mark.parametrize(
    ("space", "value", "numbers"),
    [
        (spaces.Box(-1.2, 1.2, (3,), np.float32), [-1.2, 0.3, 9.0], [-1.2, 0.3, 1.2]),
        (spaces.Box(-10.0, 10.0, (), np.float64), 7.5, [7.5]),
        (spaces.Box(0.0, 20.0, (), np.float32), 15.0, [0.75]),
        (spaces.Box(-30.0, 20.0, (), np.float32), -15.0, [-0.5]),
        (spaces.Box(-1, 1562, (), np.int64), 781, [0.5]),
        (spaces.Box(-1, 1562, (), np.int64), -1, [-1 / 1562]),
        (spaces.Box(-2, 2, (), np.int64), 1, [0.5]),
        (spaces.Box(0, 1, (2,), np.int8), [1, 0], [1.0, 0.0]),
        (
            spaces.Box(np.array([-1.0, -50, 0]), np.array([1, 100, INFINITY]), dtype=np.float64),
            [0.5, 50, 9],
            [0.5, 0.5, 9],
        ),
        (spaces.Box(-INFINITY, INFINITY, (), np.float32), -1e6, [-1e6]),
        (spaces.Box(0.0, INFINITY, (2,), np.float32), [-1.0, 5e20], [0.0, 5e20]),
        (spaces.Box(-INFINITY, INFINITY, (), np.float64), 1e300, [INFINITY]),
        (spaces.Box(np.finfo(np.float32).min, np.finfo(np.float32).max, (1,), np.float32), [3.5], [3.5]),
        (spaces.Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (), np.int64), 17, [17.0]),
        (spaces.Box(0, np.iinfo(np.int64).max, (), np.int64), 64, [1.0]),
        (spaces.Box(-20.0, 20.0, (2, 2), np.float32), [[20, 10], [0, -10]], [1.0, 0.5, 0.0, -0.5]),
        (spaces.Box(0.0, 0.0, (2,), np.float32), [0.0, 0.0], [0.0, 0.0]),
        (spaces.MultiBinary([2, 2]), [[1, 0], [0, 1]], [1.0, 0.0, 0.0, 1.0]),
        (spaces.Discrete(3, start=-1), 1, [0.0, 0.0, 1.0]),
        (HELD, 1, [0.0, 1.0, 0.0]),
        (spaces.MultiDiscrete([2, 3], start=[0, 5]), [1, 5], [0.0, 1.0, 1.0, 0.0, 0.0]),
        (spaces.MultiDiscrete(np.array([[2], [2]])), [[1], [0]], [0.0, 1.0, 1.0, 0.0]),
    ],
    ids=str,
)
def test_every_other_kind_of_number(space: spaces.Space[Any], value: Any, numbers: list[float]):
    given = value if isinstance(space, spaces.Discrete) else np.array(value, space.dtype)
    np.testing.assert_allclose(numbers_of(space, given), numbers, rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (2,)])
@pytest.mark.parametrize("wide", [1, 180, 1000, INFINITY])
def test_not_a_number_is_passed_on(shape: tuple[int, ...], wide: float):
    space = spaces.Box(-wide, wide, shape, np.float32)
    assert np.isnan(FeatureLayout(space).convert(np.full(space.shape, np.nan, np.float32))).all()


@pytest.mark.parametrize("shape", [(), (2,)])
def test_an_endless_angle_is_not_a_number(shape: tuple[int, ...]):
    space = spaces.Box(-180.0, 180.0, shape, np.float32)
    assert np.isnan(FeatureLayout(space).convert(np.full(shape, -np.inf, np.float32))).all()


Bounds = tuple[float, float]


def boxes(kind: str, shape: tuple[int, ...], bounds: Bounds) -> spaces.Box:
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


SHAPES = st.sampled_from([(), (1,), (3,), (2, 2)])


NUMBERS = st.sampled_from([0.0, -1.0, 1.0, 2304.0, 1e9, -1e30, INFINITY, -INFINITY])


@settings(deadline=None)
@given(
    st.builds(
        boxes,
        st.sampled_from(["count", "whole", "angle", "float"]),
        SHAPES,
        st.tuples(*[st.floats(-3000, 3000, width=32)] * 2),
    ),
    st.one_of(NUMBERS, st.floats(allow_nan=False)),
)
def test_values_out_of_bounds_stay_in_the_declared_space(space: spaces.Box, value: float):
    layout = FeatureLayout(space)
    out = layout.convert(np.full(space.shape, value))
    if np.isnan(out).any():  # an endless angle has no sine
        assert [slot.name for slot in layout.index] == ["observation (sin)", "observation (cos)"]
        assert abs(value) >= 1e9
    else:
        assert out in layout.space


