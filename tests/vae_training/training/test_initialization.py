"""Weights begin as what is measured on the frames, or as those of an encoder; and which encoders are refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from sklearn.decomposition import PCA

from latent_obs.encoder.folder import read_encoder_folder, write_encoder_folder
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.pixels import PixelContract
from latent_obs.util.errors import EncoderFolderError, InputError
from tests.support.tiny import IMG_SHAPE, picture, random_frames, tiny_cvae
from tests.support.training_runs import EVERYTHING, config_for, module_frames, run, same_run
from vae_training.data.frames import get_datasets
from vae_training.model.cvae import CVAE, images_to_tensor
from vae_training.model.losses import VAELoss
from vae_training.training.config import TrainConfig
from vae_training.training.export import export_encoder
from vae_training.training.initialization import put_weights, start_from_data, start_linear_path, with_layers_of


def begun(frames: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """The state of a loss before the first step."""
    config, model = config_for(frames, Path("out"), **settings), tiny_cvae(linear_path=True)
    loss = VAELoss(model, salience=config.salience)
    torch.manual_seed(np.random.default_rng().integers(1000))  # what was drawn before does not matter
    start_from_data(config, model, loss, get_datasets(frames))
    return loss.state_dict()


def test_what_is_measured_is_a_function_of_frames_and_seed(module_frames: Path):
    one, two = (begun(module_frames, **EVERYTHING) for _ in range(2))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert (one["background.basis"].norm(dim=0) > 0.5).sum() > 5
    assert one["model.decoder.linear.bias"].mean() > 0.3  # the mean frame


def close(one: Path, other: Path) -> bool:
    files = ("encoder.safetensors", "decoder.safetensors")
    a, b = ({k: v for name in files for k, v in load_file(folder / name).items()} for folder in (one, other))
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


@pytest.fixture(scope="module")
def trained(module_frames: Path) -> Path:
    out = module_frames.parent / "trained"
    run(config_for(module_frames, out, standardize=True, linear_path=True, widths=(4, 6)))
    return out


@pytest.mark.parametrize("source", ["run", "encoder", "checkpoint"])
def test_training_starts_with_the_weights_and_layers(trained: Path, module_frames: Path, tmp_path: Path, source: str):
    start = trained if source == "run" else trained / "encoder"
    if source == "checkpoint":
        start = Path(shutil.copytree(trained, tmp_path / "trained"))
        (start / "encoder" / "decoder.safetensors").unlink()
        sums = (start / "encoder" / "SHA256SUMS").read_text().splitlines(keepends=True)
        (start / "encoder" / "SHA256SUMS").write_text("".join(s for s in sums if "decoder" not in s))
    # Layers that are not given are those of the encoder.
    given: dict[str, Any] = {"epochs": 1, "batch_size": 20, "salience": 0.0, "learning_rate": 1e-12, "device": "cpu"}
    result = run(TrainConfig(module_frames, tmp_path / "out", start_from=start, **given))
    assert close(result.encoder, trained / "encoder")
    saved = TrainConfig.load(tmp_path / "out")
    assert (saved.latent_dim, saved.widths, saved.bottleneck, saved.linear_path) == (6, (4, 6), "dense", True)
    assert saved.start_from == start
    frames = np.load(module_frames / "0.npy")
    one, other = (FrozenEncoder.load(folder, device="cpu")(frames) for folder in (result.encoder, trained))
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_fine_tuning_is_resumed_without_its_source(trained: Path, module_frames: Path, tmp_path: Path):
    source = Path(shutil.copytree(trained, tmp_path / "source"))
    config = replace(TrainConfig.load(trained), frames=module_frames, start_from=source, epochs=2)
    run(replace(config, out=tmp_path / "whole"))
    run(replace(config, out=tmp_path / "parts", epochs=1))
    shutil.rmtree(source)
    run(replace(config, out=tmp_path / "parts"), resume=True)
    same_run(tmp_path / "whole", tmp_path / "parts")
    assert not close(tmp_path / "whole" / "encoder", trained / "encoder")


def test_other_layers_and_frames_are_refused(trained: Path, module_frames: Path, tmp_path: Path):
    other, out = tmp_path / "other", tmp_path / "out"
    other.mkdir()
    np.save(other / "a.npy", np.stack([picture(0, step, 32, 32) for step in range(24)]))
    for frames, changes, error, named in (
        (module_frames, {"latent_dim": 9}, InputError, "latent_dim"),
        (module_frames, {"widths": (8, 8)}, InputError, "widths"),
        (module_frames, {"start_from": tmp_path / "nowhere"}, EncoderFolderError, "nowhere"),
        (other, {}, InputError, "start_from"),
    ):
        with pytest.raises(error, match=named):
            run(TrainConfig(frames, out, **{"start_from": trained, "epochs": 1, "device": "cpu", **changes}))
        assert not out.exists()


def test_encoders_that_cannot_be_started_from_are_refused(trained: Path, tmp_path: Path):
    sample = np.zeros((2, *IMG_SHAPE), np.uint8)
    bare = export_encoder(tmp_path / "bare" / "encoder", tiny_cvae(), sample, with_decoder=False)
    with pytest.raises(InputError, match="decoder"):
        put_weights(bare, tiny_cvae())
    with pytest.raises(InputError, match="layers"):
        put_weights(trained, tiny_cvae())
    read = read_encoder_folder(trained)
    cropped = write_encoder_folder(
        tmp_path / "cropped",
        architecture=read.architecture,
        contract=PixelContract(16, 16, 3, crop="center-square"),
        encoder=read.encoder,
        selfcheck=read.selfcheck,
        decoder=read.decoder(),
    )
    with pytest.raises(InputError, match="pixel contract"):
        with_layers_of(TrainConfig(), cropped)


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
