"""Other torch modules as frozen encoders: copied, scaled as they want it, and rejected if they are no encoder."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latent_obs.encoder.frozen import BFLOAT16_TOLERANCE, FrozenEncoder
from latent_obs.pixels import PixelContract
from latent_obs.util.errors import DeviceError, EncoderFolderError, InputError
from latent_obs.wrappers.single import LatentObservation
from tests.latent_obs.encoder.test_frozen import assert_frozen, assert_same_weights, weights_of
from tests.support.tiny import PixelEnv, random_frames

CONTRACT = PixelContract(24, 20, 3)
SCALING: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class Backbone(nn.Module):
    """A small residual network with batch statistics and dropout, whose features are (N, 10, 1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.last = nn.Conv2d(8, 10, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.pool(self.last(h + self.block(h)))


class Returning(nn.Module):
    """Returns whatever a function makes of its input."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.fixture
def backbone() -> Backbone:
    """In training mode, with running statistics other than the first ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Backbone()
        module.train()(torch.rand(16, 3, 24, 20))
    return module


def expected_latents(module: nn.Module, frames: Any, mean: Any, std: Any) -> Any:
    """What torchvision's transforms before the module's eval mode would have given."""
    module = copy.deepcopy(module).eval().double()
    x = frames.astype(np.float64) / 255
    x = np.ascontiguousarray(((x - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2))
    with torch.no_grad():
        return module(torch.from_numpy(x)).flatten(1).numpy()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_latents_are_the_modules_features(backbone: Backbone, precision: Any):
    encoder = FrozenEncoder.from_module(backbone, CONTRACT, **SCALING, device="cpu", precision=precision)
    frames = random_frames(9, CONTRACT.shape)
    wanted, latents = expected_latents(backbone, frames, **SCALING), encoder.encode(frames)
    assert latents.shape == (9, encoder.latent_dim) == (9, 10)
    assert latents.dtype == np.float32
    difference = np.abs(latents - wanted).max() / np.abs(wanted).max()
    assert difference < 1e-5 if precision == "float32" else 1e-5 < difference < BFLOAT16_TOLERANCE
    np.testing.assert_array_equal(encoder.encode(frames, as_tensor=True).numpy(), latents)


def test_frames_of_other_sizes_go_through_the_contract(backbone: Backbone):
    encoder = FrozenEncoder.from_module(backbone, CONTRACT, **SCALING, device="cpu")
    frames = random_frames(2, (48, 60, 3))
    np.testing.assert_allclose(encoder(frames), encoder.encode(CONTRACT.convert(frames)), atol=1e-6)
    assert LatentObservation(PixelEnv(size=(48, 60)), encoder).reset()[0].shape == (10,)
    half = FrozenEncoder.from_module(backbone.half(), CONTRACT, device="cpu")  # computed in float32
    assert half.encode(random_frames(1, CONTRACT.shape)).dtype == np.float32
    assert next(backbone.parameters()).dtype == torch.float16


def test_neither_module_changes(backbone: Backbone):
    before, frames = weights_of(backbone), random_frames(3, CONTRACT.shape)
    encoder = FrozenEncoder.from_module(backbone, CONTRACT, device="cpu")
    own = weights_of(encoder._network)
    latents = encoder.encode(frames)
    assert all(module.training for module in backbone.modules())
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert_same_weights(backbone, before)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(encoder.encode(frames), latents)
    assert_same_weights(encoder._network, own)
    assert_frozen(encoder._network)


def test_a_view_of_the_map_works():
    """It fails for maps that lie in memory with channels last."""
    module, frames = Returning(lambda x: nn.functional.avg_pool2d(x, 4).view(len(x), -1)), random_frames(3, (24, 20, 3))
    encoder = FrozenEncoder.from_module(module, CONTRACT, device="cpu")
    np.testing.assert_allclose(encoder.encode(frames), expected_latents(module, frames, 0.0, 1.0), atol=1e-5)


def test_memory_that_the_module_keeps_is_not_handed_out():
    kept = torch.zeros(64, 3)
    module = Returning(lambda x: kept[: len(x)].copy_(x.mean((2, 3))))
    encoder = FrozenEncoder.from_module(module, CONTRACT, device="cpu")
    latents, tensor = (encoder.encode(np.full((2, *CONTRACT.shape), 255, np.uint8), as_tensor=t) for t in (False, True))
    encoder.encode(np.zeros((2, *CONTRACT.shape), np.uint8))
    np.testing.assert_allclose(latents, 1, atol=1e-6)
    np.testing.assert_allclose(tensor, 1, atol=1e-6)


def test_what_an_encoder_of_a_module_has_and_its_pickle(backbone: Backbone):
    encoder = FrozenEncoder.from_module(backbone, CONTRACT, **SCALING, device="cpu", name="resnet")
    again: FrozenEncoder = pickle.loads(pickle.dumps(encoder))
    frames = random_frames(3, CONTRACT.shape)
    np.testing.assert_array_equal(again.encode(frames), encoder.encode(frames))
    assert copy.deepcopy(encoder) is encoder
    for one in (encoder, again):
        assert (one.architecture, one.path, one.statistics) == (None, None, None)
        assert (one.contract, one.latent_dim, one.provenance) == (CONTRACT, 10, {"module": "resnet"})
        assert (one.device, one.backend, one.precision) == (torch.device("cpu"), "torch", "float32")
        assert repr(one) == "FrozenEncoder(resnet, (24, 20, 3) -> 10, device='cpu')"
        with pytest.raises(EncoderFolderError, match="decoder"):
            one.decode(np.zeros(10))


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: (x, x), "tuple"),
        (lambda x: x.argmax(1), "int64"),
        (lambda x: x.mean((1, 2, 3)), r"\(3,\)"),
        (lambda x: x.mean(0, keepdim=True), r"\(1, 3, 24, 20\)"),
        (lambda x: x[:, :0], r"\(3, 0, 24, 20\)"),
        (lambda x: x.mean((2, 3)) * float("nan"), "finite"),
        (lambda x: torch.rand_like(x), "random"),
        (lambda x: nn.functional.batch_norm(x, None, None, training=True), "batch"),
        (lambda x: nn.functional.conv2d(x, torch.zeros(1, 4, 3, 3)), r"\(3, 3, 24, 20\)"),
    ],
)
def test_a_module_that_is_no_encoder_is_rejected(function: Any, named: str):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with pytest.raises(InputError, match=f"module Returning.*{named}"):
        FrozenEncoder.from_module(Returning(function), CONTRACT, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


class Uncopyable(nn.Module):
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("holds a file")


@pytest.mark.parametrize(
    ("module", "arguments", "error", "named"),
    [
        (nn.Flatten, {}, InputError, "module"),
        (Uncopyable(), {}, InputError, "module Uncopyable"),
        (nn.Flatten(), {"contract": (24, 20, 3)}, InputError, "contract"),
        (nn.Flatten(), {"mean": (0.5,)}, InputError, "mean"),
        (nn.Flatten(), {"std": (0.5, 0, 0.5)}, InputError, "std"),
        (nn.Flatten(), {"precision": "float16"}, InputError, "precision"),
        (nn.Flatten(), {"device": "warp"}, DeviceError, "warp"),
    ],
)
def test_other_arguments_are_rejected(module: Any, arguments: dict[str, Any], error: type[Exception], named: str):
    with pytest.raises(error, match=named):
        FrozenEncoder.from_module(module, **{"contract": CONTRACT, "device": "cpu", **arguments})


# In an encoder folder


@pytest.fixture
def folder(backbone: Backbone, tmp_path: Path) -> Path:
    encoder = FrozenEncoder.from_module(backbone, CONTRACT, **SCALING, device="cpu", name="resnet")
    return encoder.save(tmp_path / "encoder", random_frames(40, CONTRACT.shape))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_saved_module_gives_the_same_latents(backbone: Backbone, folder: Path, precision: Any):
    frames = random_frames(9, CONTRACT.shape, seed=1)
    encoder = FrozenEncoder.from_module(backbone, CONTRACT, **SCALING, device="cpu", precision=precision)
    fresh = Backbone()
    before = weights_of(fresh)
    again = FrozenEncoder.load(folder, "cpu", module=fresh, precision=precision)
    np.testing.assert_array_equal(again.encode(frames), encoder.encode(frames))
    assert_same_weights(fresh, before)
    assert_frozen(again._network)
    assert (again.contract, again.latent_dim, again.path) == (CONTRACT, 10, folder)
    assert again.provenance["module"] == "resnet"
    assert again.statistics is not None
    trained = FrozenEncoder.from_module(backbone, CONTRACT, **SCALING, device="cpu")(random_frames(40, CONTRACT.shape))
    np.testing.assert_allclose(again.statistics.mean, trained.mean(0), rtol=1e-4, atol=1e-5)
    twin = pickle.loads(pickle.dumps(again))
    np.testing.assert_array_equal(twin.statistics.mean, again.statistics.mean)
    assert twin.path == folder


def test_without_frames_there_is_a_self_check_and_no_statistics(backbone: Backbone, tmp_path: Path):
    saved = FrozenEncoder.from_module(backbone, CONTRACT, device="cpu").save(tmp_path / "encoder")
    assert FrozenEncoder.load(saved, "cpu", module=Backbone()).statistics is None
    with pytest.raises(InputError, match="exists"):
        FrozenEncoder.from_module(backbone, CONTRACT, device="cpu").save(saved)


def test_any_changed_file_of_a_saved_module_is_found(folder: Path):
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 5)):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
            with pytest.raises(EncoderFolderError):
                FrozenEncoder.load(folder, "cpu", module=Backbone())
        file.write_bytes(whole)
    assert FrozenEncoder.load(folder, "cpu", module=Backbone()).latent_dim == 10


class Doubled(Backbone):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_another_module_than_the_saved_one_is_rejected(folder: Path, encoder_folder: Path):
    with pytest.raises(EncoderFolderError, match=r"weights.*Conv2d"):
        FrozenEncoder.load(folder, "cpu", module=nn.Conv2d(3, 8, 3))
    with pytest.raises(EncoderFolderError, match="self-check"):
        FrozenEncoder.load(folder, "cpu", module=Doubled())
    with pytest.raises(EncoderFolderError, match="module"):
        FrozenEncoder.load(encoder_folder, "cpu", module=Backbone())
    with pytest.raises(InputError, match="module"):
        FrozenEncoder.load(folder, "cpu", module="resnet")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="backend"):
        FrozenEncoder.load(folder, "cpu", module=Backbone(), backend="openvino")
    with pytest.raises(EncoderFolderError, match="module="):
        LatentObservation(PixelEnv(size=(48, 60)), folder)


class Noted(nn.Module):
    def get_extra_state(self) -> Any:
        return {"an": "object"}

    def set_extra_state(self, state: Any) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def test_a_state_that_would_need_a_pickle_is_not_saved(tmp_path: Path):
    with pytest.raises(InputError, match="Noted"):
        FrozenEncoder.from_module(Noted(), CONTRACT, device="cpu").save(tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()


def test_an_encoder_of_the_project_is_saved_with_its_decoder(encoder: FrozenEncoder, tmp_path: Path):
    again = FrozenEncoder.load(encoder.save(tmp_path / "encoder"), "cpu")
    frames = random_frames(3)
    latents = again.encode(frames)
    np.testing.assert_array_equal(latents, encoder.encode(frames))
    np.testing.assert_array_equal(again.decode(latents), encoder.decode(latents))
    assert again.provenance["made_by"] == "the tests"
