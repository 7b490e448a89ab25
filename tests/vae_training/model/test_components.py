"""Principal components as the first values of a latent: numpy and scikit-learn as the oracles."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from latent_obs.encoder.components import Standard
from latent_obs.encoder.frozen import FrozenEncoder
from tests.support.tiny import random_frames, tiny_cvae
from vae_training.model.cvae import CVAE, gaussian_kl_nats, images_to_tensor
from vae_training.training.export import export_encoder

SHAPE, COUNT = (16, 16, 3), 5
LAYERS: dict[str, Any] = {"widths": (4, 8), "strides": (2, 2), "components": COUNT}
SPATIAL = {**LAYERS, "bottleneck": "spatial"}
each_bottleneck = pytest.mark.parametrize("layers", [LAYERS, SPATIAL], ids=["dense", "spatial"])


def low_rank(count: int, rank: int, seed: int, rest: float = 0.0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(7).standard_normal((rank, 768)) * 0.8 ** np.arange(rank)[:, None]
    flat = 0.1 * rng.standard_normal((count, rank)) @ basis
    flat += 0.5 + rest * rng.standard_normal((count, 768))
    return np.round(255 * flat.clip(0, 1)).astype(np.uint8).reshape(count, *SHAPE)


def tensor(frames: NDArray[np.uint8]) -> torch.Tensor:
    return images_to_tensor(torch.from_numpy(frames))


FRAMES, NEW = low_rank(600, 40, 0, rest=0.02), low_rank(200, 40, 1, rest=0.02)


def flat(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """As torch flattens images: channel, row, column."""
    return frames.transpose(0, 3, 1, 2).reshape(len(frames), -1) / 255


def model_of(layers: dict[str, Any], **more: Any) -> CVAE:
    model = CVAE(SHAPE, COUNT + 16, **layers, **more)
    model.measure(tensor(FRAMES))
    return model


def test_coordinates_are_those_of_pca_and_the_rest_is_what_it_leaves():
    standard = Standard(SHAPE, COUNT)
    standard.measure(tensor(FRAMES))
    pca = PCA(COUNT, svd_solver="full").fit(flat(FRAMES))
    coordinates, rest = standard(tensor(NEW))
    wanted = pca.transform(flat(NEW)) / np.sqrt(pca.explained_variance_[-1])
    signs = np.sign((coordinates.numpy() * wanted).sum(0))
    np.testing.assert_allclose(coordinates.numpy() * signs, wanted, atol=0.05)
    left = flat(NEW) - pca.inverse_transform(pca.transform(flat(NEW)))
    trained = flat(FRAMES) - pca.inverse_transform(pca.transform(flat(FRAMES)))
    np.testing.assert_allclose(rest.flatten(1), left / np.sqrt(np.square(trained).mean()), atol=0.2)
    np.testing.assert_allclose(standard.undo(coordinates, rest).flatten(1), flat(NEW), atol=1e-5)


def test_without_components_pixels_have_mean_0_and_spread_1_and_come_back():
    standard = Standard(SHAPE)
    standard.measure(tensor(FRAMES))
    none, scaled = standard(tensor(FRAMES))
    oracle = flat(FRAMES) - flat(FRAMES).mean(0)
    np.testing.assert_allclose(scaled.flatten(1), oracle / oracle.std(), atol=1e-4)
    assert none is None
    np.testing.assert_allclose(standard.undo(None, scaled).flatten(1), flat(FRAMES), atol=1e-5)
    standard.measure(tensor(FRAMES)[:1].expand(5, -1, -1, -1))  # pictures that are all alike have no spread
    assert standard(tensor(FRAMES))[1].abs().max() < 1001


def test_frames_that_vary_in_fewer_directions_leave_the_other_coordinates_0():
    frames = np.repeat(np.repeat(low_rank(300, 4, 0)[:, :1, :1], 16, 1), 16, 2)  # of one color each: three directions
    standard = Standard(SHAPE, COUNT)
    standard.measure(tensor(frames))
    coordinates, _ = standard(tensor(frames))
    assert (coordinates.std(0) > 0.5).tolist() == [True] * 3 + [False] * 2
    other, rest = standard(tensor(random_frames(20)))
    assert not other[:, 3:].any()
    assert torch.isfinite(rest).all()


@pytest.mark.parametrize("count", [1, 2, 12, 30])
def test_few_frames_give_other_frames_values_of_a_usual_size(count: int):
    standard = Standard(SHAPE, components=20)
    standard.measure(tensor(FRAMES)[:count])
    coordinates, rest = standard(tensor(NEW))
    assert (coordinates.std(0) > 0).sum() == count // 3
    if count > 2:
        assert coordinates.abs().max() < 50
        assert rest.square().mean() < 10
    np.testing.assert_allclose(standard.undo(coordinates, rest).flatten(1), flat(NEW), atol=1e-4)


@each_bottleneck
@pytest.mark.parametrize("standardize", [False, True])
def test_where_the_convolutions_add_nothing_a_reconstruction_is_that_of_pca(layers: dict[str, Any], standardize: bool):
    model = model_of(layers, standardize=standardize)
    for parameter in model.decoder.convolutions[-1].parameters():
        torch.nn.init.zeros_(parameter)
    pca = PCA(COUNT, svd_solver="full").fit(flat(FRAMES))
    wanted = pca.inverse_transform(pca.transform(flat(NEW)))
    with torch.no_grad():
        mean, _ = model.encode(tensor(NEW))
        decoded = model.decode(mean).flatten(1)
    np.testing.assert_allclose(decoded, wanted, atol=0.02)
    ours, theirs = (np.square(other - flat(NEW)).mean() for other in (decoded.numpy(), wanted))
    assert ours < 1.01 * theirs


@each_bottleneck
def test_a_few_steps_make_it_better_than_pca(layers: dict[str, Any]):
    model, x = model_of(layers, beta=0.01), tensor(FRAMES)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def error() -> float:
        with torch.no_grad():
            return float((model.decode(model.encoder.mean(x)) - x).square().mean())

    before = error()
    for _ in range(80):
        model.compute_apply_gradients(x, optimizer)
    assert error() < 0.95 * before


@each_bottleneck
def test_components_come_first_and_are_not_trained(layers: dict[str, Any]):
    model, x = model_of(layers), tensor(NEW)
    coordinates, _ = model.encoder.standard(x)  # pyright: ignore[reportOptionalCall]
    with torch.no_grad():
        mean, logvar = model.encode(x)
    np.testing.assert_array_equal(mean[:, :COUNT], coordinates)
    assert (logvar[:, :COUNT] < -15).all()
    assert (logvar[:, COUNT:] > -15).all()
    names = {name for name, _ in model.named_parameters()}
    assert not any("standard" in name or "components" in name for name in names)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    model.compute_apply_gradients(x, optimizer)
    with torch.no_grad():
        np.testing.assert_array_equal(model.encode(x)[0][:, :COUNT], coordinates)


def test_components_have_no_kl():
    model, x = model_of(LAYERS), tensor(NEW)
    with torch.no_grad():
        mean, logvar = (side[:, COUNT:] for side in model.encode(x))
    kl = gaussian_kl_nats(mean, logvar).sum(1).mean()
    np.testing.assert_allclose(model.compute_loss(x).kl.item(), kl, rtol=1e-6)


def test_beta_counts_in_the_variance_that_components_leave():
    with_components, plain = model_of(LAYERS, beta=3.0), tiny_cvae(standardize=True)
    left = with_components.encoder.standard(tensor(FRAMES))[1] * with_components.encoder.standard.spread  # pyright: ignore
    torch.manual_seed(0)
    losses = with_components.compute_loss(tensor(FRAMES))
    unit = float(left.square().mean())
    np.testing.assert_allclose(losses.total.item(), (losses.reconstruction + 3.0 * unit * losses.kl).item(), rtol=1e-4)
    plain.measure(tensor(FRAMES))
    assert plain.beta_unit == 1.0


@each_bottleneck
def test_the_frozen_encoder_gives_the_means_of_training(tmp_path: Path, layers: dict[str, Any]):
    model = model_of(layers)
    encoder = FrozenEncoder.load(export_encoder(tmp_path / "encoder", model, FRAMES[:8]), device="cpu")  # checks itself
    with torch.no_grad():
        mean, _ = model.encode(tensor(NEW))
        decoded = model.decode(mean).clamp(0, 1).permute(0, 2, 3, 1).mul(255)
    np.testing.assert_allclose(encoder(NEW), mean, atol=1e-4)
    np.testing.assert_allclose(model.encoder.mean(tensor(NEW)).detach(), mean, atol=1e-6)
    assert np.abs(encoder.decode(mean.numpy()).astype(float) - decoded.numpy()).max() <= 1


@each_bottleneck
def test_an_untrained_encoder_has_no_components(layers: dict[str, Any]):
    """They are measured on frames, so that it would know something of them."""
    random = FrozenEncoder.random(model_of(layers).architecture, device="cpu")
    assert random.architecture is not None
    assert (random.architecture.components, random.latent_dim) == (0, COUNT + 16)
