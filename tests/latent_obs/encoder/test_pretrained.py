"""Networks of timm as encoders: numpy's principal components of timm's own features, and folders that need no code."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

pytest.importorskip("timm")

from latent_obs.encoder.folder import read_encoder_folder
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.encoder.pretrained import timm_encoder
from latent_obs.pixels import PixelContract
from latent_obs.util.errors import EncoderFolderError, InputError
from latent_obs.wrappers.single import LatentObservation
from tests.support.timm_weights import random_weights
from tests.support.tiny import PixelEnv, random_frames

CONVOLUTIONS, TRANSFORMER = "test_resnet.r160_in1k", "test_vit.r160_in1k"


def drawn(count: int, seed: int) -> Any:
    """Frames that vary in a few directions, in each half as much as in the one before."""
    patterns = random_frames(6, (24, 20, 3)).astype(np.float64) - 127
    shares = np.random.default_rng(seed).normal(size=(count, 6)) / 2.0 ** np.arange(1, 7)
    return (127 + np.tensordot(shares, patterns, 1)).clip(0, 255).astype(np.uint8)


FRAMES = drawn(40, seed=0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    return {name: random_weights(name, folder) for name in (CONVOLUTIONS, TRANSFORMER)}


@pytest.fixture(scope="module")
def made(weights: dict[str, Path]) -> FrozenEncoder:
    return timm_encoder(f"timm:{CONVOLUTIONS}", FRAMES, 6, weights=weights[CONVOLUTIONS], device="cpu")


@pytest.fixture(scope="module")
def folder(made: FrozenEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.save(tmp_path_factory.mktemp("saved") / "encoder")


def feature_maps(name: str, file: Path, frames: Any, layer: int) -> Any:
    """A map of timm's own, (N, C, H, W), of frames that are resized and scaled as the network's configuration says."""
    import timm
    from timm.data.config import resolve_model_data_config

    network = timm.create_model(name, features_only=True, out_indices=[layer]).eval()
    assert network.load_state_dict(load_file(file), strict=False).missing_keys == []
    stated = resolve_model_data_config(network)
    mean, std = (torch.tensor(stated[key]).view(3, 1, 1) for key in ("mean", "std"))
    images = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    images = functional.interpolate(images, stated["input_size"][1:], mode=stated["interpolation"])
    with torch.inference_mode():
        return network((images - mean) / std)[0]


@pytest.mark.parametrize(("layer", "grid"), [(-1, 4), (1, 2)])
def test_latents_are_principal_components_of_timms_features(weights: dict[str, Path], layer: int, grid: int):
    file = weights[CONVOLUTIONS]
    encoder = timm_encoder(f"timm:{CONVOLUTIONS}", FRAMES, 6, layer=layer, grid=grid, weights=file, device="cpu")
    others = drawn(5, seed=1)
    maps = feature_maps(CONVOLUTIONS, file, np.concatenate([FRAMES, others]), layer)
    flat = functional.adaptive_avg_pool2d(maps, grid).flatten(1).double().numpy()
    centered = flat - flat[:40].mean(0)
    _, _, directions = np.linalg.svd(centered[:40], full_matrices=False)
    wanted = centered @ directions[:6].T
    wanted /= wanted[:40, 5].std()
    found = encoder(others)
    wanted = wanted[40:] * np.sign((wanted[40:] * found).sum(0))
    np.testing.assert_allclose(found[:, :4], wanted[:, :4], atol=5e-3 * np.abs(wanted).max())
    assert encoder.statistics is not None
    np.testing.assert_allclose(encoder.statistics.mean, 0, atol=1e-4)


class _Marker:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_a_file_of_weights_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from timm.models import load_checkpoint

    defaults: Any = load_checkpoint.__defaults__
    monkeypatch.setattr(load_checkpoint, "__defaults__", (*defaults[:-1], False))  # as in timm 1.0.20
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": _Marker(tmp_path / "ran")}, file)
    with pytest.raises(InputError, match=r"weights\.pth does not fit"):
        timm_encoder(f"timm:{CONVOLUTIONS}", FRAMES, 6, weights=file, device="cpu")
    assert not (tmp_path / "ran").exists()


def test_frames_keep_their_size_and_layers_after_the_map_are_left_out(made: FrozenEncoder, weights: dict[str, Path]):
    assert (made.contract, made.latent_dim) == (PixelContract(24, 20, 3), 6)
    file = weights[TRANSFORMER]
    early, late = (
        timm_encoder(f"timm:{TRANSFORMER}", FRAMES, 6, layer=layer, grid=2, weights=file, device="cpu")
        for layer in (0, -1)
    )
    sizes = [sum(value.numel() for value in encoder._network.state_dict().values()) for encoder in (early, late)]
    assert sizes[0] < 0.5 * sizes[1]
    assert early(FRAMES[0]).shape == (6,)


def test_a_folder_is_loaded_without_weights_and_module(folder: Path, made: FrozenEncoder):
    frames = random_frames(3, (24, 20, 3), seed=2)
    again = FrozenEncoder.load(folder, "cpu")
    np.testing.assert_array_equal(again.encode(frames), made.encode(frames))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(again)).encode(frames), made.encode(frames))
    assert again.provenance["module"] == f"timm:{CONVOLUTIONS}"
    assert again.statistics is not None
    assert LatentObservation(PixelEnv(size=(48, 60)), folder).reset()[0].shape == (6,)
    before = torch.get_rng_state()
    FrozenEncoder.load(folder, "cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_layers_of_a_folder_are_not_those_of_train_vae(folder: Path):
    read = read_encoder_folder(folder)
    assert (read.latent_dim, read.layers) == (6, None)
    with pytest.raises(EncoderFolderError, match=f"timm:{CONVOLUTIONS}"):
        _ = read.architecture


def test_a_default_tag_is_written_out(weights: dict[str, Path]):
    encoder = timm_encoder("timm:test_resnet", FRAMES, 2, layer=0, weights=weights[CONVOLUTIONS], device="cpu")
    assert encoder.provenance["module"] == f"timm:{CONVOLUTIONS}"


GREY, FEW = random_frames(9, (24, 20, 1)), random_frames(5, (24, 20, 3))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": "timm:test_resnett"}, "timm:test_resnet"),
        ({"name": "timm:test_resnet.r161_in1k"}, r"timm:test_resnet\.r160_in1k"),
        ({"layer": 9}, "layer 9.*0 to 4"),
        ({"pca": 40}, "pca must be at most 39"),
        ({"pca": 30, "frames": np.zeros((40, 24, 20, 3), np.uint8)}, "pca is 30.*0 directions"),
        ({"pca": 5, "frames": FEW}, "pca must be at most 4"),
        ({"grid": 0}, "grid"),
        ({"frames": GREY}, "frames"),
        ({"frames": [FEW, random_frames(5, (32, 20, 3))]}, r"frames\[1\].*24, 20, 3"),
        ({"weights": Path("none.safetensors")}, r"weights.*none\.safetensors"),
    ],
)
def test_mistakes_are_named(weights: dict[str, Path], arguments: dict[str, Any], named: str):
    usual = {"name": f"timm:{CONVOLUTIONS}", "frames": FRAMES, "pca": 4, "weights": weights[CONVOLUTIONS]}
    with pytest.raises(InputError, match=named):
        timm_encoder(**{**usual, "device": "cpu", **arguments})


def test_weights_of_another_network_and_no_network_to_download_from(
    weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    with pytest.raises(InputError, match=f"weights.*{TRANSFORMER}"):
        timm_encoder(f"timm:{CONVOLUTIONS}", FRAMES, 4, weights=weights[TRANSFORMER])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=f"timm:{CONVOLUTIONS}.*without a network"):
        timm_encoder(f"timm:{CONVOLUTIONS}", FRAMES, 4)


def test_a_name_in_place_of_a_folder_gives_the_command():
    with pytest.raises(EncoderFolderError, match="latent-obs encoder timm:resnet18"):
        FrozenEncoder.load("timm:resnet18")
