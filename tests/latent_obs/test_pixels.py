"""The pixel contract against Pillow and numpy: resizing, layouts, odd arrays, and what it refuses."""

import json
import re
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from latent_obs.pixels import Filter, PixelContract, find_pixel_key
from latent_obs.util.errors import InputError
from tests.support.tiny import picture, random_frames

QUICK = settings(max_examples=40, deadline=None)
sizes = st.integers(1, 40)
channel_counts = st.sampled_from([1, 3, 4, 12])
filters = st.sampled_from(["bilinear", "box", "bicubic", "lanczos"])


def by_pillow(frames: NDArray[np.uint8], height: int, width: int, name: str) -> NDArray[np.uint8]:
    """Each channel by itself, as a grey picture: no filter may mix channels."""
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
    contract = PixelContract(to_height, to_width, channels, name)
    converted = contract.convert(frames, "HWC")
    np.testing.assert_array_equal(converted, by_pillow(frames, to_height, to_width, name))
    assert converted.shape == (2, to_height, to_width, channels)
    assert converted.dtype == np.uint8
    assert converted.flags.c_contiguous
    assert converted.flags.writeable


@given(height=st.integers(13, 40), width=st.integers(13, 40), channels=channel_counts, name=filters)
@QUICK
def test_channels_first_gives_the_same(height: int, width: int, channels: int, name: Filter):
    frames = random_frames(2, (height, width, channels))
    contract = PixelContract(16, 20, channels, name)
    expected = contract.convert(frames)
    np.testing.assert_array_equal(contract.convert(frames.transpose(0, 3, 1, 2)), expected)  # a view
    np.testing.assert_array_equal(contract.convert(np.ascontiguousarray(frames.transpose(0, 3, 1, 2))), expected)


@given(
    height=st.integers(13, 40),
    width=st.integers(13, 40),
    channels=channel_counts,
    name=filters,
    crop=st.sampled_from(["none", "center-square"]),
)
@QUICK
def test_converting_twice_changes_nothing(height: int, width: int, channels: int, name: Filter, crop: Any):
    contract = PixelContract(16, 16, channels, name, crop)
    once = contract.convert(random_frames(2, (height, width, channels)))
    np.testing.assert_array_equal(contract.convert(once), once)


def odd_arrays() -> dict[str, NDArray[np.uint8]]:
    frames = np.stack([picture(0, step) for step in range(3)])
    read_only = frames.copy()
    read_only.flags.writeable = False
    upside_down = frames[:, ::-1].copy()
    upside_down.flags.writeable = False
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
@pytest.mark.parametrize("size", [(16, 16), (20, 28)])  # resized, and as it is
def test_odd_strides_and_read_only_arrays(kind: str, size: tuple[int, int]):
    frames = odd_arrays()[kind]
    assert kind == "Fortran order" or not (frames.flags.c_contiguous and frames.flags.writeable)
    contract = PixelContract(*size, 3)
    converted = contract.convert(frames)
    np.testing.assert_array_equal(converted, contract.convert(np.array(frames, order="C")))
    assert converted.flags.c_contiguous
    assert converted.flags.writeable


def test_the_frames_given_are_not_changed():
    frames = random_frames(2, (20, 28, 3))
    before = frames.copy()
    PixelContract(16, 16, 3).convert(frames)
    np.testing.assert_array_equal(frames, before)


def test_grey_frames_with_and_without_their_axis():
    frames = random_frames(3, (20, 28, 1))
    contract = PixelContract(16, 16, 1)
    expected = contract.convert(frames)
    assert expected.shape == (3, 16, 16, 1)
    np.testing.assert_array_equal(contract.convert(frames[..., 0]), expected)
    np.testing.assert_array_equal(contract.convert(frames.transpose(0, 3, 1, 2)), expected)


def test_a_fourth_channel_is_no_transparency():
    frames = random_frames(2, (32, 32, 4))
    frames[..., 3] = 0  # with an alpha channel, Pillow would give black
    small = PixelContract(8, 8, 4).convert(frames)
    np.testing.assert_array_equal(small[..., :3], PixelContract(8, 8, 3).convert(frames[..., :3]))
    assert (small[..., 3] == 0).all()


def test_a_stack_of_frames_is_resized_frame_by_frame():
    stack = random_frames(2, (30, 30, 12))
    small = PixelContract(16, 16, 12).convert(stack)
    for i in range(0, 12, 3):
        np.testing.assert_array_equal(small[..., i : i + 3], PixelContract(16, 16, 3).convert(stack[..., i : i + 3]))


@given(height=st.integers(16, 40), width=st.integers(16, 40))
@QUICK
def test_centre_square_cuts_the_longer_side(height: int, width: int):
    frames = random_frames(1, (height, width, 3))
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    cut = frames[:, top : top + side, left : left + side]
    contract = PixelContract(16, 16, 3, crop="center-square")
    np.testing.assert_array_equal(contract.convert(frames), PixelContract(16, 16, 3).convert(cut))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool", "uint16"])
def test_other_dtypes_are_refused_by_name(dtype: str):
    with pytest.raises(InputError, match=f"uint8.*{dtype}"):
        PixelContract(16, 16, 3).convert(np.zeros((1, 16, 16, 3), dtype))


@pytest.mark.parametrize("shape", [(1, 16, 16, 4), (1, 16, 16, 1), (1, 2, 16, 16), (16, 16), (1, 1, 16, 16, 3)])
def test_other_channel_counts_are_refused_with_the_shape(shape: tuple[int, ...]):
    with pytest.raises(InputError, match=re.escape(str(shape[1:]))) as refusal:
        PixelContract(16, 16, 3).convert(np.zeros(shape, np.uint8))
    assert "(height, width, 3)" in str(refusal.value)


def test_a_layout_that_does_not_fit_is_refused():
    frames = random_frames(2, (16, 16, 3))
    with pytest.raises(InputError, match="expected"):
        PixelContract(16, 16, 3).convert(frames, "CHW")


@pytest.mark.parametrize(
    ("space", "layout"),
    [
        (spaces.Box(0, 255, (48, 64, 3), np.uint8), "HWC"),
        (spaces.Box(0, 255, (3, 48, 64), np.uint8), "CHW"),
        (spaces.Box(0, 255, (3, 48, 3), np.uint8), "HWC"),
    ],
)
def test_the_layout_of_a_space(space: spaces.Box, layout: str):
    assert PixelContract(16, 16, 3).check_space(space) == layout


def test_frames_far_smaller_than_the_encoders_are_refused():
    with pytest.raises(InputError, match=r"20x40.*far smaller than the 64x32.*Train an encoder"):
        PixelContract(64, 32, 3).refuse_blur((20, 40, 3), "HWC", "the picture")
    PixelContract(64, 64, 3).refuse_blur((3, 60, 80), "CHW", "the picture")


@pytest.mark.parametrize(
    ("space", "named"),
    [
        (spaces.Box(0, 1, (48, 64, 3), np.float32), r"uint8.*float32.*\(48, 64, 3\).*255"),
        (spaces.Box(0, 255, (48, 64, 1), np.uint8), r"\(48, 64, 1\).*3 channel"),
        (spaces.Box(0, 255, (48, 64), np.uint8), r"\(48, 64\)"),
        (spaces.Discrete(4), r"Discrete\(4\)"),
    ],
)
def test_spaces_that_are_refused_are_named(space: spaces.Space[Any], named: str):
    with pytest.raises(InputError, match=named):
        PixelContract(16, 16, 3).check_space(space, "observation space")


IMAGE = spaces.Box(0, 255, (48, 64, 3), np.uint8)
GREY = spaces.Box(0, 255, (48, 64, 1), np.uint8)
TILES = spaces.Box(0, 255, (3, 3, 3), np.uint8)
FLOATS = spaces.Box(0, 1, (48, 64, 3), np.float32)


def test_the_only_picture_is_found():
    contract = PixelContract(16, 16, 3)
    for others in ({}, {"a": spaces.Discrete(3)}, {"a": GREY}, {"a": TILES}, {"a": FLOATS}):
        assert find_pixel_key(spaces.Dict({**others, "pov": IMAGE}), contract) == "pov"
    assert find_pixel_key(spaces.Dict(a=IMAGE, b=GREY), PixelContract(16, 16, 1)) == "b"
    first = spaces.Box(0, 255, (3, 48, 64), np.uint8)
    assert find_pixel_key(spaces.Dict(a=GREY, b=first), contract) == "b"


def test_of_several_pictures_one_has_to_be_named():
    space, contract = spaces.Dict(pov=IMAGE, map=IMAGE, hp=spaces.Discrete(3)), PixelContract(16, 16, 3)
    with pytest.raises(InputError, match=r"\['map', 'pov'\].*pixel_key"):
        find_pixel_key(space, contract)
    assert find_pixel_key(space, contract, "map") == "map"
    assert find_pixel_key(space, contract, "pov") == "pov"


@pytest.mark.parametrize(
    ("entries", "key", "named"),
    [
        ({"a": IMAGE}, "b", r"'b'.*\['a'\]"),
        ({"a": IMAGE, "b": GREY}, "b", r"observation\['b'\].*\(48, 64, 1\)"),
        ({"a": IMAGE, "b": FLOATS}, "b", r"observation\['b'\].*float32"),
        ({"a": IMAGE, "b": spaces.Discrete(2)}, "b", r"observation\['b'\].*Discrete"),
        ({"a": GREY, "b": spaces.Discrete(2)}, None, r"3 channel.*\(48, 64, 1\)"),
        ({"a": FLOATS, "b": TILES}, None, r"no pixels.*float32.*AddRenderObservation"),
        ({"a": spaces.Discrete(2)}, None, "no pixels"),
    ],
)
def test_keys_that_do_not_fit_are_refused_by_name(entries: dict[str, Any], key: str | None, named: str):
    with pytest.raises(InputError, match=named):
        find_pixel_key(spaces.Dict(entries), PixelContract(16, 16, 3), key)


@given(height=sizes, width=sizes, channels=channel_counts, name=filters)
@QUICK
def test_json_round_trip(height: int, width: int, channels: int, name: Filter):
    contract = PixelContract(height, width, channels, name)
    assert PixelContract.from_json(json.loads(json.dumps(contract.to_json()))) == contract


@pytest.mark.parametrize(
    "change",
    [
        {"colour": "BGR"},
        {"layout": "CHW"},
        {"library": "opencv"},
        {"scale": "1/127.5 - 1"},
        {"resize_filter": "area"},
        {"crop": "left"},
        {"height": 0},
        {"gamma": 2.2},
    ],
)
def test_a_contract_that_this_version_cannot_keep_is_refused(change: dict[str, Any]):
    with pytest.raises(InputError):
        PixelContract.from_json({**PixelContract(16, 16, 3).to_json(), **change})


def test_a_contract_that_lacks_a_part_is_refused():
    values = PixelContract(16, 16, 3).to_json()
    for name in values:
        with pytest.raises(InputError):
            PixelContract.from_json({k: v for k, v in values.items() if k != name})
