"""Architecture: which sizes get which layers, that a decoder comes back to the size exactly, and what a refusal
says."""

import json
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_obs.encoder.architecture import Architecture, Bottleneck
from latent_obs.encoder.networks import Decoder, Encoder
from latent_obs.util.errors import InputError

QUICK = settings(max_examples=40, deadline=None)
REFUSED = "without layer widths and strides"


@pytest.mark.parametrize("bottleneck", ["dense", "spatial"])
@pytest.mark.parametrize("channels", [1, 3, 4, 12])
@pytest.mark.parametrize("side", [16, 32, 64, 128, 256])
def test_default_layers_halve_down_to_the_map_of_the_bottleneck(side: int, channels: int, bottleneck: Bottleneck):
    architecture = Architecture((side, side, channels), 128, bottleneck=bottleneck)
    target = 8 if bottleneck == "spatial" else 4
    assert architecture.map_size == (target, target)
    assert architecture.strides == (2,) * int(math.log2(side // target))
    assert architecture.widths == (32, 64, 128, 256, 256, 256)[: len(architecture.strides)]
    assert architecture.stages[0].channels_in == channels
    for stage in architecture.stages:
        assert stage.size_out == (stage.size_in[0] // 2, stage.size_in[1] // 2)
        assert stage.output_padding == (0, 0)
    if bottleneck == "spatial":
        assert architecture.latent_map == (2, 8, 8)


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    strides=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    channels=st.sampled_from([1, 3, 4, 12]),
)
@QUICK
def test_a_decoder_restores_any_size_exactly(height: int, width: int, strides: list[int], channels: int):
    widths = (2, 3, 4, 5)[: len(strides)]
    if _shrinks_to_nothing(height, width, strides):
        with pytest.raises(InputError, match="too small for strides"):
            Architecture((height, width, channels), 5, widths, tuple(strides))
        return
    architecture = Architecture((height, width, channels), 5, widths, tuple(strides))
    with torch.inference_mode():
        mean, logvar = Encoder(architecture)(torch.rand(2, channels, height, width))
        assert mean.shape == logvar.shape == (2, 5)
        assert Decoder(architecture)(mean).shape == (2, channels, height, width)


def _shrinks_to_nothing(height: int, width: int, strides: list[int]) -> bool:
    """The sizes again, by counting where a kernel can stand."""
    for stride in strides:
        kernel, padding = (3, 1) if stride == 1 else (2 * stride, stride // 2)
        places = [len(range(0, n + 2 * padding - kernel + 1, stride)) for n in (height, width)]
        if min(places) == 0:
            return True
        height, width = places
    return False


@given(
    height=st.integers(8, 40), width=st.integers(8, 40), stride=st.sampled_from([1, 2, 3]), channels=st.integers(1, 3)
)
@QUICK
def test_a_spatial_bottleneck_restores_any_size_exactly(height: int, width: int, stride: int, channels: int):
    area = math.prod(Architecture((height, width, 3), 1, (2, 3), (2, stride)).map_size)
    architecture = Architecture((height, width, 3), channels * area, (2, 3), (2, stride), "spatial")
    assert architecture.latent_map == (channels, *architecture.map_size)
    with torch.inference_mode():
        mean, _ = Encoder(architecture)(torch.rand(2, 3, height, width))
        assert mean.shape == (2, channels * area)
        assert Decoder(architecture)(mean).shape == (2, 3, height, width)


@given(height=st.integers(1, 300), width=st.integers(1, 300), bottleneck=st.sampled_from(["dense", "spatial"]))
@QUICK
def test_a_refused_size_names_one_that_works(height: int, width: int, bottleneck: Bottleneck):
    smallest = 16 if bottleneck == "spatial" else 8
    good = height == width and height in (8, 16, 32, 64, 128, 256) and height >= smallest
    if good:
        assert Architecture((height, width, 3), 64, bottleneck=bottleneck).img_shape == (height, width, 3)
        return
    with pytest.raises(ValueError, match=REFUSED) as refusal:
        Architecture((height, width, 3), 64, bottleneck=bottleneck)
    text = str(refusal.value)
    assert f"({height}, {width}, 3)" in text
    assert f"{smallest} or more" in text
    suggested = re.search(r"Resize the frames to (\d+)x(\d+)", text)
    assert suggested is not None
    side = int(suggested[1])
    assert side == int(suggested[2])
    assert Architecture((side, side, 3), 64, bottleneck=bottleneck).img_shape[0] == side
    assert side / 2 <= max(height, width, smallest) <= side * 2  # near to what was asked for


def test_the_widths_and_strides_suggested_work_too():
    with pytest.raises(InputError, match=re.escape("widths=(32, 64), strides=(2, 2)")):
        Architecture((60, 80, 3), 8)
    assert Architecture((60, 80, 3), 8, widths=(32, 64), strides=(2, 2)).map_size == (15, 20)


@given(latent_dim=st.integers(1, 400))
@QUICK
def test_a_spatial_latent_that_does_not_fit_names_sizes_that_do(latent_dim: int):
    if latent_dim % 64 == 0:
        channels = Architecture((64, 64, 3), latent_dim, bottleneck="spatial").latent_map[0]
        assert channels * 64 == latent_dim
        return
    with pytest.raises(InputError, match=f"latent_dim {latent_dim}") as refusal:
        Architecture((64, 64, 3), latent_dim, bottleneck="spatial")
    named = re.search(r"such as ([\d or]+)\. Choose", str(refusal.value))
    assert named is not None
    fits = [int(n) for n in named[1].split(" or ")]
    assert fits
    for fit in fits:
        assert Architecture((64, 64, 3), fit, bottleneck="spatial").latent_dim == fit
        assert abs(fit - latent_dim) < 64


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"img_shape": (64, 64)}, r"\(64, 64\)"),
        ({"img_shape": (0, 64, 3)}, r"\(0, 64, 3\)"),
        ({"img_shape": (64.0, 64, 3)}, "positive integers"),
        ({"img_shape": (True, 64, 3)}, "positive integers"),
        ({"latent_dim": 0}, "latent_dim"),
        ({"latent_dim": 2.5}, "2.5"),
        ({"bottleneck": "sparse"}, "'sparse'"),
        ({"widths": (8, 8), "strides": (2,)}, "equally many"),
        ({"widths": (8, 0)}, "positive integers"),
        ({"widths": (8,), "strides": (-1,)}, "positive integers"),
        ({"img_shape": (8, 8, 3), "widths": (8,) * 4, "strides": (2,) * 4}, "at most 3 strided"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(arguments: dict[str, object], named: str):
    with pytest.raises(InputError, match=named):
        Architecture(**{"img_shape": (64, 64, 3), "latent_dim": 8, **arguments})  # pyright: ignore[reportArgumentType]


@given(
    side=st.sampled_from([16, 32, 64]),
    channels=st.sampled_from([1, 3, 4]),
    latent_dim=st.sampled_from([64, 128]),
    bottleneck=st.sampled_from(["dense", "spatial"]),
    first_activation=st.booleans(),
)
@QUICK
def test_json_round_trip(side: int, channels: int, latent_dim: int, bottleneck: Bottleneck, first_activation: bool):
    architecture = Architecture(
        (side, side, channels), latent_dim, bottleneck=bottleneck, first_activation=first_activation
    )
    text = json.dumps(architecture.to_json())
    assert Architecture.from_json(json.loads(text)) == architecture


def test_json_with_other_fields_is_refused():
    values = Architecture((32, 32, 3), 8).to_json()
    with pytest.raises(InputError, match="depth"):
        Architecture.from_json({**values, "depth": 3})
    with pytest.raises(InputError, match="strides"):
        Architecture.from_json({k: v for k, v in values.items() if k != "strides"})
