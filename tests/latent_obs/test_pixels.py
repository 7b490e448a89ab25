"""The pixel contract against Pillow and numpy: resizing, layouts, odd arrays, and what it rejects."""

import json
import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from latent_obs.pixels import Crop, Filter, PixelContract, find_pixel_key
from latent_obs.util.errors import InputError
from latent_obs.wrappers.observation import PixelReader
from tests.support.stranger_envs import Declares
from tests.support.tiny import picture, random_frames

QUICK = settings(max_examples=40, deadline=None)
sizes = st.integers(1, 40)
channel_counts = st.sampled_from([1, 3, 4, 12])
filters = st.sampled_from(["bilinear", "box", "bicubic", "lanczos"])


def by_pillow(frames: NDArray[np.uint8], height: int, width: int, name: str) -> NDArray[np.uint8]:
    """Each channel by itself, as a grey picture: no filter may mix channels, not even a fourth one."""
    out = np.empty((len(frames), height, width, frames.shape[-1]), np.uint8)
    for i, c in np.ndindex(len(frames), frames.shape[-1]):
        image = Image.fromarray(np.ascontiguousarray(frames[i, :, :, c]))
        out[i, :, :, c] = np.asarray(image.resize((width, height), Image.Resampling[name.upper()]))
    return out


@given(height=sizes, width=sizes, to_height=sizes, to_width=sizes, channels=channel_counts, name=filters)
@QUICK
def test_resize_is_pillows_channel_by_channel(
    height: int, width: int, to_height: int, to_width: int, channels: int, name: Filter
):
    frames = random_frames(2, (height, width, channels), seed=height * 41 + width)
    before = frames.copy()
    converted = PixelContract(to_height, to_width, channels, name).convert(frames, "HWC")
    np.testing.assert_array_equal(converted, by_pillow(frames, to_height, to_width, name))
    np.testing.assert_array_equal(frames, before)
    assert converted.dtype == np.uint8
    assert converted.flags.c_contiguous
    assert converted.flags.writeable


@given(
    height=st.integers(13, 40),
    width=st.integers(13, 40),
    channels=channel_counts,
    name=filters,
    crop=st.sampled_from(["none", "center-square"]),
)
@QUICK
def test_layouts_crops_and_converting_twice(height: int, width: int, channels: int, name: Filter, crop: Crop):
    frames = random_frames(2, (height, width, channels))
    contract = PixelContract(16, 16, channels, name, crop)
    once = contract.convert(frames)
    first = frames.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(contract.convert(first), once)  # a view
    np.testing.assert_array_equal(contract.convert(np.ascontiguousarray(first)), once)
    np.testing.assert_array_equal(contract.convert(once), once)
    if channels == 1:
        np.testing.assert_array_equal(contract.convert(frames[..., 0]), once)
    if crop == "center-square":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        frames = frames[:, top : top + side, left : left + side]
    np.testing.assert_array_equal(once, by_pillow(frames, 16, 16, name))


def odd_arrays() -> dict[str, NDArray[np.uint8]]:
    frames = np.stack([picture(0, step) for step in range(3)])
    read_only, upside_down = frames.copy(), frames[:, ::-1].copy()
    read_only.flags.writeable = upside_down.flags.writeable = False
    wide = np.zeros((3, 20, 56, 3), np.uint8)
    wide[:, :, ::2] = frames
    return {
        "read-only": read_only,
        "upside down, as MineRL gives them": upside_down[:, ::-1],
        "right to left": frames[:, :, ::-1].copy()[:, :, ::-1],
        "BGR turned": frames[..., ::-1].copy()[..., ::-1],
        "every second column": wide[:, :, ::2],
        "Fortran order": np.asfortranarray(frames),
        "broadcast": np.broadcast_to(frames[:1], frames.shape),
    }


@pytest.mark.parametrize("kind", list(odd_arrays()))
@pytest.mark.parametrize("size", [(16, 16), (20, 28)])  # resized, and not
def test_odd_strides_and_read_only_arrays(kind: str, size: tuple[int, int]):
    frames = odd_arrays()[kind]
    assert kind == "Fortran order" or not (frames.flags.c_contiguous and frames.flags.writeable)
    contract = PixelContract(*size, 3)
    converted = contract.convert(frames)
    np.testing.assert_array_equal(converted, contract.convert(np.array(frames, order="C")))
    assert converted.flags.c_contiguous
    assert converted.flags.writeable


def test_other_frames_are_rejected():
    contract = PixelContract(16, 16, 3)
    with pytest.raises(InputError, match=r"frames.*float32"):
        contract.convert(np.zeros((1, 16, 16, 3), np.float32))
    for shape in [(1, 16, 16, 4), (1, 2, 16, 16), (16, 16), (1, 1, 16, 16, 3)]:
        with pytest.raises(InputError, match="frames"):
            contract.convert(np.zeros(shape, np.uint8))
    with pytest.raises(InputError, match="frames"):
        contract.convert(random_frames(2, (16, 16, 3)), "CHW")


def test_frames_far_smaller_than_the_encoders_are_rejected():
    with pytest.raises(InputError, match="the picture"):
        PixelContract(64, 32, 3).refuse_blur((20, 40, 3), "HWC", "the picture")
    PixelContract(64, 64, 3).refuse_blur((3, 60, 80), "CHW", "the picture")


IMAGE = spaces.Box(0, 255, (48, 64, 3), np.uint8)
CHANNELS_FIRST = spaces.Box(0, 255, (3, 48, 64), np.uint8)
GREY = spaces.Box(0, 255, (48, 64, 1), np.uint8)
TILES = spaces.Box(0, 255, (3, 3, 3), np.uint8)
FLOATS = spaces.Box(0, 1, (48, 64, 3), np.float32)


def test_the_layout_of_a_space():
    contract = PixelContract(16, 16, 3)
    for shape, layout in {(48, 64, 3): "HWC", (3, 48, 64): "CHW", (3, 48, 3): "HWC"}.items():
        assert contract.check_space(spaces.Box(0, 255, shape, np.uint8)) == layout
    for space in (FLOATS, GREY, spaces.Box(0, 255, (48, 64), np.uint8), spaces.Discrete(4)):
        with pytest.raises(InputError, match="the screen"):
            contract.check_space(space, "the screen")


BOOL: Any = np.bool_
SCALED = {
    "zeros and ones": (spaces.Box(0, 1, (48, 64, 3), np.uint8), lambda p: p // 255, 0),
    "bool": (spaces.Box(0, 1, (48, 64, 3), BOOL), lambda p: p > 127, 0),
    "0 to 1": (FLOATS, lambda p: np.float32(p / 255), 255),
    "-1 to 1": (spaces.Box(-1, 1, (48, 64, 3), np.float32), lambda p: np.float32(p / 127.5 - 1), 255),
    "floats of 0 to 255": (spaces.Box(0, 255, (48, 64, 3), np.float64), np.float64, 255),
    "no bounds": (spaces.Box(-np.inf, np.inf, (48, 64, 3), np.float32), lambda p: np.float32(p / 255), 255),
    "16 bits": (spaces.Box(0, 65535, (48, 64, 3), np.uint16), lambda p: p.astype(np.uint16) * 257, 255),
    "signed": (spaces.Box(-128, 127, (48, 64, 3), np.int8), lambda p: (p.astype(int) - 128).astype(np.int8), 255),
    "dark": (spaces.Box(0, 100, (48, 64, 3), np.uint8), lambda p: p // 255 * 100, 0),
}


@pytest.mark.parametrize("kind", list(SCALED))
@pytest.mark.parametrize("key", [None, "pov"])
def test_pictures_of_another_range_are_rejected_with_advice_that_works(kind: str, key: str | None):
    space, scale, levels = SCALED[kind]
    frame = picture(0, 0, 48, 64)
    frame = frame if levels else np.where(frame > 127, 255, 0).astype(np.uint8)  # what zeros and ones can show
    given, contract = scale(frame), PixelContract(16, 16, 3)
    assert given in space
    env = Declares(space if key is None else spaces.Dict({key: space}), given if key is None else {key: given})
    with pytest.raises(InputError) as error:
        PixelReader(env.observation_space, contract, key)
    advice = re.search(r"gymnasium\.wrappers\.TransformObservation\(.*\)$", str(error.value))
    assert advice, error.value
    changed = eval(advice[0], {"gymnasium": gym, "env": env})
    assert PixelReader(changed.observation_space, contract, key).layout == "HWC"
    shown = changed.reset()[0]
    np.testing.assert_array_equal(shown if key is None else shown[key], frame)
    if key is not None:  # without its name, too
        with pytest.raises(InputError, match="TransformObservation"):
            PixelReader(env.observation_space, contract)


def test_bounds_that_are_not_0_to_255_but_a_pictures():
    for low, high in ((16, 235), (0, 254)):
        PixelContract(16, 16, 3).check_space(spaces.Box(low, high, (48, 64, 3), np.uint8))
    mask = spaces.Box(0, 1, (48, 64, 3), np.uint8)
    assert find_pixel_key(spaces.Dict(mask=mask, pov=IMAGE), PixelContract(16, 16, 3)) == "pov"


@pytest.mark.parametrize(
    ("shape", "channels", "count"),
    [((4, 48, 64, 3), 3, 4), ((3, 48, 64, 1), 1, 3), ((48, 64, 4), 3, 4), ((4, 48, 64), 1, 4), ((48, 64, 12), 3, 4)],
)
def test_stacked_frames_are_named_as_such(shape: tuple[int, ...], channels: int, count: int):
    space = spaces.Box(0, 255, shape, np.uint8)
    with pytest.raises(InputError, match=f"history={count}"):
        PixelReader(space, PixelContract(16, 16, channels))


def test_the_only_picture_is_found():
    contract = PixelContract(16, 16, 3)
    for others in ({}, {"a": spaces.Discrete(3)}, {"a": GREY}, {"a": TILES}, {"a": FLOATS}):
        assert find_pixel_key(spaces.Dict({**others, "pov": IMAGE}), contract) == "pov"
    assert find_pixel_key(spaces.Dict(a=IMAGE, b=GREY), PixelContract(16, 16, 1)) == "b"
    assert find_pixel_key(spaces.Dict(a=GREY, b=CHANNELS_FIRST), contract) == "b"
    assert find_pixel_key(spaces.Dict(pov=IMAGE, map=IMAGE), contract, "map") == "map"


@pytest.mark.parametrize(
    ("entries", "key", "named"),
    [
        ({"a": IMAGE, "b": IMAGE}, None, "pixel_key"),
        ({"a": IMAGE}, "b", "pixel_key.*'b'"),
        ({"a": IMAGE, "b": GREY}, "b", r"observation\['b'\]"),
        ({"a": GREY, "b": TILES}, None, "no pixels"),
    ],
)
def test_keys_that_do_not_fit_are_rejected(entries: dict[str, Any], key: str | None, named: str):
    with pytest.raises(InputError, match=named):
        find_pixel_key(spaces.Dict(entries), PixelContract(16, 16, 3), key)


@given(height=sizes, width=sizes, channels=channel_counts, name=filters)
@QUICK
def test_json_round_trip(height: int, width: int, channels: int, name: Filter):
    contract = PixelContract(height, width, channels, name)
    values = json.loads(json.dumps(contract.to_json()))
    assert PixelContract.from_json(values) == contract
    for missing in values:
        with pytest.raises(InputError):
            PixelContract.from_json({k: v for k, v in values.items() if k != missing})


@pytest.mark.parametrize(
    "change", [{"colour": "BGR"}, {"layout": "CHW"}, {"crop": "left"}, {"height": 0}, {"gamma": 2}]
)
def test_a_contract_that_this_version_cannot_keep_is_rejected(change: dict[str, Any]):
    (name,) = change
    with pytest.raises(InputError, match=name):
        PixelContract.from_json({**PixelContract(16, 16, 3).to_json(), **change})
