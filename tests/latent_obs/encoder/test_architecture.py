"""Architecture and networks: which sizes get which layers, that a decoder restores them, and what is rejected."""

import json
import math
import re
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from latent_obs.encoder.architecture import Architecture, Bottleneck, Decoder, Encoder
from latent_obs.util.errors import InputError

QUICK = settings(max_examples=40, deadline=None)
bottlenecks = st.sampled_from(["dense", "spatial"])


@pytest.mark.parametrize(("side", "bottleneck"), [(16, "dense"), (256, "dense"), (64, "spatial")])
def test_default_layers_halve_down_to_the_map_of_the_bottleneck(side: int, bottleneck: Bottleneck):
    architecture = Architecture((side, side, 4), 128, bottleneck=bottleneck)
    target = 8 if bottleneck == "spatial" else 4
    assert architecture.stages[-1].size_out == (target, target)
    assert architecture.strides == (2,) * int(math.log2(side // target))
    assert architecture.widths == (32, 64, 128, 256, 256, 256)[: len(architecture.strides)]
    assert architecture.stages[0].channels_in == 4
    for stage in architecture.stages:
        assert stage.size_out == (stage.size_in[0] // 2, stage.size_in[1] // 2)
        assert stage.output_padding == (0, 0)


def sizes_of_maps(height: int, width: int, strides: list[int]) -> list[tuple[int, int]]:
    """The sizes again, by counting where a kernel can stand."""
    sizes: list[tuple[int, int]] = []
    for stride in strides:
        kernel, padding = (3, 1) if stride == 1 else (2 * stride, stride // 2)
        height, width = (len(range(0, n + 2 * padding - kernel + 1, stride)) for n in (height, width))
        sizes.append((height, width))
        if min(height, width) == 0:
            break
    return sizes


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    strides=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    channels=st.sampled_from([1, 3, 12]),
    bottleneck=bottlenecks,
)
@QUICK
def test_a_decoder_restores_any_size_exactly(
    height: int, width: int, strides: list[int], channels: int, bottleneck: Bottleneck
):
    widths, maps = (2, 3, 4, 5)[: len(strides)], sizes_of_maps(height, width, strides)
    area = math.prod(maps[-1])
    latent_dim = 2 * max(1, area) if bottleneck == "spatial" else 5
    if area == 0:
        with pytest.raises(InputError, match="strides"):
            Architecture((height, width, channels), latent_dim, widths, tuple(strides), bottleneck)
        return
    architecture = Architecture((height, width, channels), latent_dim, widths, tuple(strides), bottleneck)
    assert architecture.stages[-1].size_out == maps[-1]
    with torch.inference_mode():
        mean, logvar = Encoder(architecture)(torch.rand(2, channels, height, width))
        assert mean.shape == logvar.shape == (2, latent_dim)
        assert Decoder(architecture)(mean).shape == (2, channels, height, width)


@given(height=st.integers(2, 300), width=st.integers(2, 300), bottleneck=bottlenecks, channels=st.sampled_from([1, 3]))
@example(height=84, width=84, bottleneck="spatial", channels=1)
@example(height=210, width=160, bottleneck="spatial", channels=3)
@QUICK
def test_any_size_has_layers_and_a_latent_size(height: int, width: int, bottleneck: Bottleneck, channels: int):
    shape = (height, width, channels)
    architecture = Architecture.for_frames(shape, bottleneck=bottleneck)
    assert architecture.img_shape == shape
    side = math.sqrt(math.prod(architecture.stages[-1].size_out))
    target = 8 if bottleneck == "spatial" else 4
    if 2 * target <= min(shape[:2]) and max(shape[:2]) <= 4 * min(shape[:2]):
        assert target / 2 < side < 2 * target
        assert 128 <= architecture.latent_dim <= 384
    assert Architecture.for_frames(shape, architecture.latent_dim, bottleneck=bottleneck) == architecture
    assert Architecture(shape, 5).latent_dim == 5


def test_frames_of_64_by_64_and_larger_powers_of_two_keep_their_layers():
    for side, widths, strides in ((64, (64, 128), (4, 2)), (128, (32, 64, 128, 256), (2, 2, 2, 2))):
        given_ = Architecture((side, side, 3), 256, widths, strides, "spatial", components=64)
        assert Architecture.for_frames((side, side, 3)) == given_
    dense = Architecture((64, 64, 3), 32, (32, 64, 128), (4, 2, 2), components=16)
    assert Architecture.for_frames((64, 64, 3), 32, bottleneck="dense") == dense


@pytest.mark.parametrize(("components", "latent_dim"), [(None, 512), (256, 512), (0, 256)])
def test_a_map_of_256_cells_has_components_as_well(components: int | None, latent_dim: int):
    found = Architecture.for_frames((128, 128, 3), widths=(8, 8), strides=(4, 2), components=components)
    assert (found.latent_dim, found.components) == (latent_dim, 256 if components is None else components)


@pytest.mark.parametrize(
    ("arguments", "advised"),
    [
        ({"img_shape": (84, 84, 3), "latent_dim": 256}, r"such as (\d+)"),
        ({"img_shape": (210, 160, 3), "latent_dim": 3}, r"such as (\d+)"),
        ({"strides": (2,) * 9}, r"first (\d+) strides"),
    ],
)
def test_advice_on_layers_works(arguments: dict[str, Any], advised: str):
    settings: dict[str, Any] = {"img_shape": (64, 64, 3), "latent_dim": 64, "bottleneck": "spatial", **arguments}
    with pytest.raises(InputError) as error:
        Architecture(**settings)
    found = re.search(advised, str(error.value))
    assert found is not None
    number = int(found[1])
    better = {"strides": (2,) * number} if "strides" in arguments else {"latent_dim": number}
    assert Architecture(**{**settings, **better}).strides
    assert Architecture(**{**settings, "bottleneck": "dense", **({} if "strides" not in arguments else better)})


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"img_shape": (64, 64)}, "img_shape"),
        ({"img_shape": (True, 64, 3)}, "img_shape"),
        ({"latent_dim": 0}, "latent_dim"),
        ({"latent_dim": 65, "bottleneck": "spatial"}, "latent_dim 65"),
        ({"components": 8}, "components"),
        ({"components": -1}, "components"),
        ({"bottleneck": "sparse"}, "bottleneck"),
        ({"widths": (8, 8), "strides": (2,)}, "widths"),
        ({"widths": (8,), "strides": (-1,)}, "strides"),
        ({"widths": None}, "widths"),
        ({"widths": 4}, "widths"),
        ({"latent_dim": 10**30}, "latent_dim"),
        ({"latent_dim": "8"}, "latent_dim"),
        ({"widths": (10**9,)}, "widths"),
        ({"img_shape": (1, 64, 3)}, "img_shape"),
        ({"standardize": "no"}, "standardize"),
    ],
)
def test_what_cannot_be_built_is_rejected_by_name(arguments: dict[str, object], named: str):
    with pytest.raises(InputError, match=named):
        Architecture(**{"img_shape": (64, 64, 3), "latent_dim": 8, **arguments})  # pyright: ignore[reportArgumentType]


@given(side=st.sampled_from([16, 32, 64]), bottleneck=bottlenecks, first_activation=st.booleans())
@QUICK
def test_json_round_trip(side: int, bottleneck: Bottleneck, first_activation: bool):
    architecture = Architecture((side, side, 3), 64, bottleneck=bottleneck, first_activation=first_activation)
    values = json.loads(json.dumps(architecture.to_json()))
    assert Architecture.from_json(values) == architecture
    with pytest.raises(InputError, match="depth"):
        Architecture.from_json({**values, "depth": 3})
    with pytest.raises(InputError, match="strides"):
        Architecture.from_json({k: v for k, v in values.items() if k != "strides"})


@pytest.mark.parametrize("bottleneck", ["dense", "spatial"])
def test_the_mean_alone_is_the_mean_of_the_whole(bottleneck: Bottleneck):
    encoder, x = Encoder(Architecture((32, 32, 4), 64, bottleneck=bottleneck)), torch.rand(3, 4, 32, 32)
    called: list[str] = []
    encoder.logvar_head.register_forward_hook(lambda *_: called.append("logvar"))
    alone = encoder.mean(x)
    assert called == []
    mean, logvar = encoder(x)
    assert called == ["logvar"]
    assert torch.equal(alone, mean)
    assert not torch.equal(mean, logvar)


@pytest.mark.parametrize("first_activation", [False, True])
def test_the_first_convolution_is_linear_by_default_and_the_decoder_ends_linearly(first_activation: bool):
    architecture = Architecture((64, 64, 3), 8, first_activation=first_activation)
    kinds = [type(layer) for layer in Encoder(architecture).convolutions]
    assert kinds == [nn.Conv2d, *([nn.ReLU] if first_activation else []), *[nn.Conv2d, nn.ReLU] * 3]
    assert isinstance(Decoder(architecture).convolutions[-1], nn.ConvTranspose2d)


def test_a_spatial_latent_is_in_the_order_channel_row_column():
    encoder = Encoder(Architecture((32, 32, 3), 128, bottleneck="spatial"))
    with torch.inference_mode():
        x = torch.rand(2, 3, 32, 32)
        map_ = encoder.mean_head(encoder.convolutions(x))
        latent = encoder.mean(x.contiguous(memory_format=torch.channels_last))
    for channel, row, column in [(0, 0, 0), (1, 2, 3), (1, 7, 6)]:
        assert torch.allclose(latent[:, (channel * 8 + row) * 8 + column], map_[:, channel, row, column], atol=1e-6)
