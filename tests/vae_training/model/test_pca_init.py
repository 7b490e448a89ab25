"""The linear map beside the convolutions: in config.json, in the frozen encoder, and begun as the principal
components."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import EncoderFolderError
from tests.support.tiny import random_frames, tiny_cvae
from vae_training.model.cvae import CVAE, images_to_tensor
from vae_training.model.pca_init import start_linear_path
from vae_training.training.export import export_encoder

SPATIAL: dict[str, Any] = {"widths": (4, 8), "strides": (2, 2), "bottleneck": "spatial"}


def start(model: CVAE, x: torch.Tensor) -> None:
    """As training does."""
    for standard in (model.encoder.standard, model.decoder.standard):
        if standard is not None:
            standard.measure(x)
    start_linear_path(model, x)


@pytest.mark.parametrize("kwargs", [{}, SPATIAL, {"standardize": True}], ids=["dense", "spatial", "standardized"])
def test_the_frozen_encoder_gives_the_means_of_training(tmp_path: Path, kwargs: dict[str, Any]):
    model = CVAE((16, 16, 3), 32, linear_path=True, **{"widths": (4, 8), "strides": (2, 2), **kwargs})
    frames = random_frames(40)
    x = images_to_tensor(torch.from_numpy(frames))
    start(model, x)
    folder = export_encoder(tmp_path / "encoder", model, frames)
    assert json.loads((folder / "config.json").read_text())["architecture"]["linear_path"] is True
    encoder = FrozenEncoder.load(folder, device="cpu")  # checks itself
    with torch.no_grad():
        mean, _ = model.encode(x)
        np.testing.assert_allclose(encoder(frames), mean, atol=1e-4)
        np.testing.assert_allclose(model.encoder.mean(x), mean, atol=1e-6)
        decoded = model.decode(mean).clamp(0, 1).permute(0, 2, 3, 1).mul(255)
    assert np.abs(encoder.decode(mean.numpy()).astype(float) - decoded.numpy()).max() <= 1


def test_a_changed_linear_path_fails_the_self_check(tmp_path: Path):
    model, frames = tiny_cvae(linear_path=True), random_frames(10)
    start(model, images_to_tensor(torch.from_numpy(frames)))
    folder = export_encoder(tmp_path / "encoder", model, frames)
    assert model.encoder.linear is not None
    with torch.no_grad():
        model.encoder.linear.weight.add_(0.05)
    other = export_encoder(tmp_path / "other", model, frames)
    (other / "selfcheck.safetensors").write_bytes((folder / "selfcheck.safetensors").read_bytes())
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in other.glob("*.*")]
    (other / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    with pytest.raises(EncoderFolderError, match="self-check"):
        FrozenEncoder.load(other, device="cpu")


def test_the_linear_path_is_added_in_both_directions():
    model = tiny_cvae(linear_path=True)
    into, back = model.encoder.linear, model.decoder.linear
    assert into is not None
    assert back is not None
    x, z = torch.rand(4, 3, 16, 16).to(memory_format=torch.channels_last), torch.randn(4, 6)
    with torch.no_grad():
        with_path = model.encode(x), model.decode(z)
        straight = x.numpy().reshape(4, -1) @ into.weight.numpy().T + into.bias.numpy()
        image = (z.numpy() @ back.weight.numpy().T + back.bias.numpy()).reshape(4, 3, 16, 16)
        for parameter in (*into.parameters(), *back.parameters()):
            parameter.zero_()
        without = model.encode(x), model.decode(z)
    np.testing.assert_allclose(with_path[0][0] - without[0][0], straight, atol=1e-5)
    np.testing.assert_allclose(with_path[0][1], without[0][1])  # the log-variance is the convolutions' alone
    np.testing.assert_allclose(with_path[1] - without[1], image, atol=1e-5)


def low_rank(count: int, rank: int, seed: int, rest: float = 0.0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(7).standard_normal((rank, 16 * 16 * 3)) * np.linspace(1, 0.4, rank)[:, None]
    flat = (
        0.5
        + 0.25 * rng.standard_normal((count, rank)) @ basis / np.sqrt(rank)
        + rest * rng.standard_normal((count, 768))
    )
    return np.round(255 * flat.clip(0, 1)).astype(np.uint8).reshape(count, 16, 16, 3)


@pytest.mark.parametrize("kwargs", [{}, SPATIAL, {"standardize": True}], ids=["dense", "spatial", "standardized"])
def test_reconstructions_begin_as_those_of_pca(kwargs: dict[str, Any]):
    training, new = low_rank(600, 40, 0, rest=0.02), low_rank(200, 40, 1, rest=0.02)
    model = CVAE((16, 16, 3), 16, linear_path=True, **{"widths": (4, 8), "strides": (2, 2), **kwargs})
    x, y = (images_to_tensor(torch.from_numpy(frames)) for frames in (training, new))
    start(model, x)
    flat, unseen = training.reshape(600, -1) / 255, new.reshape(200, -1) / 255
    pca = PCA(16, svd_solver="full").fit(flat)
    wanted = pca.inverse_transform(pca.transform(unseen)).reshape(200, 16, 16, 3)
    with torch.no_grad():
        mean, logvar = model.encode(y)
        decoded = model.decode(mean).permute(0, 2, 3, 1).numpy()
        spread = model.encode(x)[0].std(0).numpy()
    theirs, ours = ((other - new / 255) ** 2 for other in (wanted, decoded))
    assert ours.mean() < 1.02 * theirs.mean()
    assert np.abs(decoded - wanted).mean() < 0.01
    np.testing.assert_allclose(spread, 1, atol=0.1)
    assert -5 < logvar.mean() < -3


def test_latents_without_a_component_begin_at_0_and_stay_small_on_other_pictures():
    frames = low_rank(300, 4, 0)[:, :1, :1]  # one colour each: three components
    model = tiny_cvae(linear_path=True)
    start_linear_path(model, images_to_tensor(torch.from_numpy(np.repeat(np.repeat(frames, 16, 1), 16, 2))))
    into, back = model.encoder.linear, model.decoder.linear
    assert into is not None
    assert back is not None
    assert (into.weight.norm(dim=1) > 0).tolist() == [True] * 3 + [False] * 3
    assert (back.weight.norm(dim=0) > 0).tolist() == [True] * 3 + [False] * 3
    other = images_to_tensor(torch.from_numpy(random_frames(20)))
    with torch.no_grad():
        assert model.encode(other)[0].abs().max() < 20  # else the first KL would be of astronomic size
    start_linear_path(model, other[:1])
    assert not into.weight.any()
    np.testing.assert_allclose(back.bias.detach(), other[0].flatten())


def test_the_start_is_repeatable_and_leaves_the_random_state_alone():
    x = images_to_tensor(torch.from_numpy(low_rank(100, 9, 0)))
    one, two = tiny_cvae(linear_path=True), tiny_cvae(linear_path=True)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    start_linear_path(one, x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    start_linear_path(two, x)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name


def test_standardized_pixels_have_mean_0_and_spread_1_and_come_back():
    frames = low_rank(50, 5, 0)
    standard = tiny_cvae(standardize=True).encoder.standard
    assert standard is not None
    x = images_to_tensor(torch.from_numpy(frames))
    standard.measure(x)
    scaled = frames.transpose(0, 3, 1, 2) / 255.0
    oracle = (scaled - scaled.mean(0)) / (scaled - scaled.mean(0)).std()
    np.testing.assert_allclose(standard(x).numpy(), oracle, atol=1e-4)
    np.testing.assert_allclose(standard.undo(standard(x)).numpy(), scaled, atol=1e-5)
    standard.measure(x[:1].expand(5, -1, -1, -1))  # pictures that are all the same have no spread
    assert standard(x).abs().max() < 1001


def test_a_standardized_decoder_begins_at_the_mean_picture():
    x = images_to_tensor(torch.from_numpy(low_rank(50, 5, 0)))
    model = tiny_cvae(standardize=True)
    plain = tiny_cvae()  # the same weights
    assert model.encoder.standard is not None
    assert model.decoder.standard is not None
    model.encoder.standard.measure(x)
    model.decoder.standard.measure(x)
    z = torch.randn(4, 6)
    with torch.no_grad():
        np.testing.assert_allclose(model.decode(z), model.decoder.standard.undo(plain.decode(z)), atol=1e-5)
        for one, other in zip(model.encode(x), plain.encode(model.encoder.standard(x)), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    assert not any(parameter is model.encoder.standard.mean for parameter in model.parameters())
