"""Encoder and decoder: what the first layer does, and that the mean alone is the mean of the whole."""

import pytest
import torch
from torch import nn

from latent_obs.encoder.architecture import Architecture, Bottleneck
from latent_obs.encoder.networks import Decoder, Encoder


def relus(module: nn.Module) -> int:
    return sum(isinstance(m, nn.ReLU) for m in module.modules())


@pytest.mark.parametrize("bottleneck", ["dense", "spatial"])
@pytest.mark.parametrize("channels", [1, 3, 4, 12])
def test_shapes_and_the_mean_alone(channels: int, bottleneck: Bottleneck):
    architecture = Architecture((32, 32, channels), 64, bottleneck=bottleneck)
    encoder, x = Encoder(architecture), torch.rand(3, channels, 32, 32)
    mean, logvar = encoder(x)
    assert mean.shape == logvar.shape == (3, 64)
    assert torch.equal(encoder.mean(x), mean)
    assert not torch.equal(mean, logvar)
    assert Decoder(architecture)(mean).shape == x.shape


def test_mean_does_not_compute_the_log_variance():
    encoder = Encoder(Architecture((16, 16, 3), 4, (4,), (2,)))
    called: list[str] = []
    encoder.logvar_head.register_forward_hook(lambda *_: called.append("logvar"))
    encoder.mean(torch.rand(1, 3, 16, 16))
    assert called == []
    encoder(torch.rand(1, 3, 16, 16))
    assert called == ["logvar"]


@pytest.mark.parametrize("first_activation", [False, True])
def test_the_first_convolution_is_linear_unless_told(first_activation: bool):
    torch.manual_seed(0)
    # One convolution and linear heads: without an activation after it, the whole encoder is affine.
    encoder = Encoder(Architecture((16, 16, 3), 4, (8,), (2,), first_activation=first_activation))
    a, b, zero = torch.rand(5, 3, 16, 16), torch.rand(5, 3, 16, 16), torch.zeros(5, 3, 16, 16)
    with torch.inference_mode():
        apart = encoder.mean(a) + encoder.mean(b) - encoder.mean(zero)
        together = encoder.mean(a + b)
        features = encoder.convolutions(a)
    assert torch.allclose(apart, together, atol=1e-5) is not first_activation
    assert bool((features < 0).any()) is not first_activation
    assert relus(encoder) == int(first_activation)


@pytest.mark.parametrize("first_activation", [False, True])
def test_every_later_convolution_has_an_activation(first_activation: bool):
    architecture = Architecture((64, 64, 3), 8, first_activation=first_activation)
    encoder = Encoder(architecture)
    assert relus(encoder) == len(architecture.widths) - 1 + first_activation
    kinds = [type(layer) for layer in encoder.convolutions]
    assert kinds[0] is nn.Conv2d
    assert (kinds[1] is nn.ReLU) is first_activation
    assert kinds[-1] is nn.ReLU
    with torch.inference_mode():
        assert encoder.convolutions(torch.rand(2, 3, 64, 64)).min() >= 0


def test_the_decoder_ends_linearly():
    decoder = Decoder(Architecture((16, 16, 3), 4, (8, 8), (2, 2)))
    assert isinstance(decoder.convolutions[-1], nn.ConvTranspose2d)
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
        assert map_.shape[1:] == architecture.latent_map
        latent = encoder.mean(x.contiguous(memory_format=torch.channels_last))
    _, height, width = architecture.latent_map
    for channel, row, column in [(0, 0, 0), (1, 2, 3), (1, 7, 6)]:
        index = (channel * height + row) * width + column
        torch.testing.assert_close(latent[:, index], map_[:, channel, row, column])
