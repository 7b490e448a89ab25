"""The frozen encoder: the mean and nothing else, the same alone and in a batch, and unchanged by whatever happens."""

import copy
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.device import resolve_device
from latent_obs.util.errors import DeviceError, EncoderFolderError, InputError
from tests.support.tiny import LATENT_DIM, random_frames, tiny_architecture, tiny_cvae
from vae_training.training.export import export_encoder


def assert_frozen(network: nn.Module) -> None:
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def weights_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_same_weights(network: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = network.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_latents_are_the_means_whatever_the_random_state(encoder: FrozenEncoder):
    frames = random_frames(7)
    with torch.inference_mode():
        mean, logvar = tiny_cvae().encode(torch.from_numpy(frames).permute(0, 3, 1, 2) / 255)
    torch.manual_seed(1)
    latents = encoder(frames)
    assert latents.shape == (7, LATENT_DIM)
    assert latents.dtype == np.float32
    np.testing.assert_allclose(latents, mean.numpy(), atol=1e-6)
    assert np.abs(logvar.exp().sqrt().numpy()).min() > 0.1  # a sample would have been far from the mean
    torch.manual_seed(2)
    with torch.enable_grad():
        np.testing.assert_array_equal(encoder(frames), latents)
    np.testing.assert_array_equal(frames, random_frames(7))


def test_frames_of_any_size_layout_and_stride(encoder: FrozenEncoder):
    large = random_frames(2, (40, 30, 3))
    expected = encoder.encode(encoder.contract.convert(large))
    np.testing.assert_array_equal(encoder(large.transpose(0, 3, 1, 2)), expected)
    flipped = large[:, ::-1].copy()
    flipped.flags.writeable = False
    np.testing.assert_array_equal(encoder(flipped[:, ::-1]), expected)
    np.testing.assert_array_equal(encoder(flipped[0, ::-1]), encoder(large[0]))
    assert encoder(large[0].transpose(2, 0, 1)).shape == (LATENT_DIM,)
    assert encoder([*large]).shape == (2, LATENT_DIM)


@pytest.mark.parametrize("shape", [(5, 20, 20), (5, 20, 20, 1), (20, 20), (20, 20, 1)])
def test_grey_frames(shape: tuple[int, ...]):
    encoder = FrozenEncoder.random(tiny_architecture(channels=1), device="cpu")
    latents = encoder(random_frames(1, shape)[0])
    assert latents.shape == ((5, LATENT_DIM) if shape[0] == 5 else (LATENT_DIM,))


@pytest.mark.parametrize(("shape", "dtype"), [((2, 16, 16, 3), "float32"), ((2, 16, 16, 1), "uint8"), ((9,), "uint8")])
def test_other_frames_are_rejected(encoder: FrozenEncoder, shape: tuple[int, ...], dtype: str):
    for method in (encoder, encoder.encode):
        with pytest.raises(InputError, match="frames"):
            method(np.zeros(shape, dtype))


def test_an_agent_that_holds_it_cannot_change_it(encoder: FrozenEncoder):
    agent, before = nn.Linear(LATENT_DIM, 1), weights_of(encoder._network)
    agent.encoder = encoder  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    agent.train().double().requires_grad_(True)
    assert [name for name, _ in agent.named_parameters()] == ["weight", "bias"]
    assert_frozen(encoder._network)
    assert_same_weights(encoder._network, before)
    assert copy.deepcopy({"a": [encoder]})["a"][0] is encoder


def test_the_weights_are_its_own():
    model = tiny_cvae()
    encoder = FrozenEncoder(model.architecture, model.encoder.state_dict(), device="cpu")
    before = encoder(random_frames(2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(encoder(random_frames(2)), before)


def test_pickle_round_trip(encoder: FrozenEncoder):
    again: FrozenEncoder = pickle.loads(pickle.dumps(encoder))
    assert again is not encoder
    np.testing.assert_array_equal(again(random_frames(3)), encoder(random_frames(3)))
    assert_same_weights(again._network, weights_of(encoder._network))
    assert_frozen(again._network)
    for name in ("architecture", "contract", "latent_dim", "device", "path", "provenance"):
        assert getattr(again, name) == getattr(encoder, name)
    assert again.decode(np.zeros((1, LATENT_DIM))).shape == (1, 16, 16, 3)


def test_random_encoders_follow_their_seed():
    frames, architecture = random_frames(2), tiny_architecture()
    one, same, other = (FrozenEncoder.random(architecture, seed=s, device="cpu") for s in (1, 1, 2))
    np.testing.assert_array_equal(one(frames), same(frames))
    assert np.abs(one(frames) - other(frames)).max() > 1e-3


def test_the_global_random_state_is_left_alone(encoder_folder: Path, encoder: FrozenEncoder):
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002  (the global state is tested)
    before, numpy_before = torch.get_rng_state(), np.random.get_state(legacy=False)  # noqa: NPY002
    uses: list[Callable[[], object]] = [
        lambda: encoder(random_frames(3)),
        lambda: FrozenEncoder.load(encoder_folder, device="cpu").decode(np.zeros((2, LATENT_DIM), np.float32)),
        lambda: FrozenEncoder.random(tiny_architecture(), seed=5, device="cpu"),
        lambda: FrozenEncoder.from_module(nn.Flatten(), encoder.contract, device="cpu"),
        lambda: pickle.loads(pickle.dumps(encoder)),
    ]
    for use in uses:
        use()
        assert torch.equal(torch.get_rng_state(), before)
        np.testing.assert_equal(np.random.get_state(legacy=False), numpy_before)  # noqa: NPY002


def test_torchs_default_dtype_does_not_matter(encoder_folder: Path, encoder: FrozenEncoder):
    frames = random_frames(3)
    expected = encoder(frames)
    torch.set_default_dtype(torch.float64)
    try:
        again = FrozenEncoder.load(encoder_folder, device="cpu")
        for one in (encoder, again):
            assert one(frames).dtype == one(frames[:0]).dtype == np.float32
            np.testing.assert_array_equal(one(frames), expected)
        assert again.decode(expected).dtype == np.uint8
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_decoder_is_loaded_with_the_first_picture(tmp_path: Path):
    folder = export_encoder(tmp_path / "encoder", tiny_cvae(), random_frames(2))
    encoder = FrozenEncoder.load(folder, device="cpu")
    encoder(random_frames(2))
    assert encoder._decoder is None
    z = np.random.default_rng(0).normal(size=(1030, LATENT_DIM)).astype(np.float32)
    images = encoder.decode(z)
    with torch.inference_mode():
        expected = tiny_cvae().decode(torch.from_numpy(z)).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1)
    assert np.abs(images.astype(int) - expected.numpy().astype(int)).max() <= 1
    assert images.dtype == np.uint8
    assert encoder._decoder is not None
    assert_frozen(encoder._decoder)
    shutil.rmtree(folder)  # it is not read again
    for i in (0, 1029):
        assert np.abs(encoder.decode(z[i].tolist()).astype(int) - images[i]).max() <= 1
    assert encoder.decode(z[:0]).shape == (0, 16, 16, 3)


def test_what_cannot_be_decoded(encoder: FrozenEncoder):
    for shape in [(), (LATENT_DIM + 1,), (1, 2, LATENT_DIM), (LATENT_DIM, 1)]:
        with pytest.raises(InputError, match="latents"):
            encoder.decode(np.zeros(shape))
    with pytest.raises(EncoderFolderError, match="decoder"):
        FrozenEncoder.random(tiny_architecture(), device="cpu").decode(np.zeros(LATENT_DIM))


# Devices


def test_unknown_devices_and_gpus_that_are_not_there(encoder_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("warp", "", "cpu:x", "cuda:-1", "meta", "cuda", "cuda:7"):
        with pytest.raises(DeviceError, match=f"device '{name}'"):
            FrozenEncoder.load(encoder_folder, device=name)


def test_auto_takes_the_cpu_only_if_nothing_else_is_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match="cuda:2"):
        resolve_device("cuda:2")
