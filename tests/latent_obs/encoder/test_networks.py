"""Encoder and decoder: where activations are, and that the mean alone is the mean of the whole."""

import pytest
import torch
from torch import nn

from latent_obs.encoder.architecture import Architecture, Bottleneck
from latent_obs.encoder.networks import Decoder, Encoder


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
def test_the_first_convolution_is_linear_by_default(first_activation: bool):
    encoder = Encoder(Architecture((64, 64, 3), 8, first_activation=first_activation))
    kinds = [type(layer) for layer in encoder.convolutions]
    assert kinds == [nn.Conv2d, *([nn.ReLU] if first_activation else []), *[nn.Conv2d, nn.ReLU] * 3]


def test_the_decoder_ends_linearly():
    decoder = Decoder(Architecture((16, 16, 3), 4, (8, 8), (2, 2)))
    with torch.inference_mode():
        x = decoder(100 * torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
    assert x.min() < 0
    assert x.max() > 1


def test_a_spatial_latent_is_in_the_order_channel_row_column():
    architecture = Architecture((32, 32, 3), 128, bottleneck="spatial")
    encoder = Encoder(architecture)
    with torch.inference_mode():
        x = torch.rand(2, 3, 32, 32)
        map_ = encoder.mean_head(encoder.convolutions(x))
        latent = encoder.mean(x.contiguous(memory_format=torch.channels_last))
    for channel, row, column in [(0, 0, 0), (1, 2, 3), (1, 7, 6)]:
        assert torch.allclose(latent[:, (channel * 8 + row) * 8 + column], map_[:, channel, row, column], atol=1e-6)
