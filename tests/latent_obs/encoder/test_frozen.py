"""The frozen encoder: the mean and nothing else, the same alone and in a batch, and unchanged by whatever happens."""

import copy
import gc
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.device import resolve_device
from latent_obs.util.errors import DeviceError, EncoderFolderError, InputError
from tests.support.tiny import LATENT_DIM, random_frames, tiny_architecture, tiny_cvae
from vae_training.training.export import export_encoder


def weights_of(encoder: FrozenEncoder) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in encoder._network.state_dict().items()}


def assert_same_weights(encoder: FrozenEncoder, before: dict[str, torch.Tensor]) -> None:
    after = encoder._network.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_latents_are_the_means(encoder: FrozenEncoder):
    frames = random_frames(7)
    with torch.inference_mode():
        mean, logvar = tiny_cvae().encode(torch.from_numpy(frames).permute(0, 3, 1, 2) / 255)
    latents = encoder(frames)
    assert latents.shape == (7, LATENT_DIM)
    assert latents.dtype == np.float32
    np.testing.assert_allclose(latents, mean.numpy(), atol=1e-6)
    assert np.abs(logvar.exp().sqrt().numpy()).min() > 0.1  # a sample would have been far from the mean


def test_deterministic_whatever_the_random_state(encoder: FrozenEncoder):
    frames = random_frames(3)
    torch.manual_seed(1)
    first = encoder(frames)
    torch.manual_seed(2)
    np.testing.assert_array_equal(encoder(frames), first)


def test_the_same_alone_and_in_a_batch_of_1024(encoder: FrozenEncoder):
    frames = random_frames(1024)
    together = encoder(frames)
    for i in (0, 1, 500, 1023):
        np.testing.assert_allclose(encoder(frames[i]), together[i], atol=1e-5)
        np.testing.assert_allclose(encoder(frames[i : i + 1])[0], together[i], atol=1e-5)


@given(count=st.sampled_from([0, 1, 2, 5, 1024, 1025, 2049]))
@settings(max_examples=7, deadline=None)
def test_any_number_of_frames_in_their_order(encoder: FrozenEncoder, count: int):
    frames = random_frames(count)
    latents = encoder(frames)
    assert latents.shape == (count, LATENT_DIM)
    if count:
        np.testing.assert_allclose(latents[-1], encoder(frames[-1]), atol=1e-5)
        np.testing.assert_allclose(latents[count // 2], encoder(frames[count // 2]), atol=1e-5)


def test_frames_of_any_size_layout_and_stride(encoder: FrozenEncoder):
    large = random_frames(2, (40, 30, 3))
    expected = encoder.encode(encoder.contract.convert(large))
    np.testing.assert_array_equal(encoder(large), expected)
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


@pytest.mark.parametrize(
    ("frames", "named"),
    [
        (np.zeros((2, 16, 16, 3), np.float32), "float32"),
        (np.zeros((2, 16, 16, 1), np.uint8), r"\(16, 16, 1\)"),
        (np.zeros((16, 16), np.uint8), r"\(16,\)|\(16, 16\)"),
    ],
)
def test_other_frames_are_refused(encoder: FrozenEncoder, frames: Any, named: str):
    with pytest.raises(InputError, match=named):
        encoder(frames)
    with pytest.raises(InputError, match="encode eats"):
        encoder.encode(frames)


def test_outputs_are_writable_and_their_own(encoder: FrozenEncoder):
    frames = random_frames(2)
    first = encoder(frames)
    kept = first.copy()
    second = encoder(random_frames(2, seed=1))
    np.testing.assert_array_equal(first, kept)
    assert not np.shares_memory(first, second)
    assert isinstance(first, np.ndarray)
    assert first.flags.writeable
    assert first.flags.c_contiguous
    first[:] = 0
    np.testing.assert_array_equal(encoder(frames), kept)
    alone = encoder(frames[0])
    alone[:] = 0
    np.testing.assert_allclose(encoder(frames[0]), kept[0], atol=1e-5)


def test_frames_are_not_changed(encoder: FrozenEncoder):
    frames = random_frames(2)
    encoder(frames)
    np.testing.assert_array_equal(frames, random_frames(2))


def test_it_is_frozen(encoder: FrozenEncoder):
    assert not isinstance(encoder, nn.Module)  # so that no agent that holds it finds parameters in it
    assert not encoder._network.training
    assert not any(p.requires_grad for p in encoder._network.parameters())

    class Agent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder
            self.head = nn.Linear(LATENT_DIM, 1)

    agent, before = Agent(), weights_of(encoder)
    agent.train()
    agent.double().requires_grad_(True)
    assert [name for name, _ in agent.named_parameters()] == ["head.weight", "head.bias"]
    assert not encoder._network.training
    assert_same_weights(encoder, before)


def test_gradients_are_not_tracked_even_when_asked_for(encoder: FrozenEncoder):
    with torch.enable_grad():
        latents = encoder(random_frames(2))
    assert isinstance(latents, np.ndarray)
    assert all(p.grad is None for p in encoder._network.parameters())


def test_the_weights_are_its_own():
    model = tiny_cvae()
    encoder = FrozenEncoder(model.architecture, model.encoder.state_dict(), device="cpu")
    before = encoder(random_frames(2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(encoder(random_frames(2)), before)


def test_weights_of_other_names_are_refused():
    weights = dict(tiny_cvae().encoder.state_dict())
    weights.pop("mean_head.bias")
    with pytest.raises(RuntimeError, match=r"mean_head\.bias"):
        FrozenEncoder(tiny_architecture(), weights, device="cpu")


def test_deepcopy_is_itself(encoder: FrozenEncoder):
    assert copy.deepcopy(encoder) is encoder
    assert copy.deepcopy({"a": [encoder]})["a"][0] is encoder


@pytest.mark.parametrize("source", ["folder", "random"])
def test_pickle_round_trip(encoder: FrozenEncoder, source: str):
    if source == "random":
        encoder = FrozenEncoder.random(tiny_architecture(), seed=3, device="cpu")
    again: FrozenEncoder = pickle.loads(pickle.dumps(encoder))
    assert again is not encoder
    np.testing.assert_array_equal(again(random_frames(3)), encoder(random_frames(3)))
    assert_same_weights(again, weights_of(encoder))
    assert not again._network.training
    assert not any(p.requires_grad for p in again._network.parameters())
    assert (again.architecture, again.contract, again.device, again.path, again.provenance) == (
        encoder.architecture,
        encoder.contract,
        encoder.device,
        encoder.path,
        encoder.provenance,
    )
    if source == "folder":
        assert again.decode(np.zeros((1, LATENT_DIM))).shape == (1, 16, 16, 3)


def test_random_encoders_follow_their_seed():
    frames, architecture = random_frames(2), tiny_architecture()
    one, same, other = (FrozenEncoder.random(architecture, seed=s, device="cpu") for s in (1, 1, 2))
    np.testing.assert_array_equal(one(frames), same(frames))
    assert np.abs(one(frames) - other(frames)).max() > 1e-3


@pytest.mark.parametrize("what", ["encode", "decode", "random", "load", "unpickle"])
def test_the_global_random_state_is_left_alone(encoder_folder: Path, encoder: FrozenEncoder, what: str):
    pickled, fresh = pickle.dumps(encoder), FrozenEncoder.load(encoder_folder, device="cpu")
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002  (the global state is what is looked at)
    before, numpy_before = torch.get_rng_state(), np.random.get_state(legacy=False)  # noqa: NPY002
    {
        "encode": lambda: encoder(random_frames(3)),
        "decode": lambda: fresh.decode(np.zeros((2, LATENT_DIM), np.float32)),
        "random": lambda: FrozenEncoder.random(tiny_architecture(), seed=5, device="cpu"),
        "load": lambda: FrozenEncoder.load(encoder_folder, device="cpu"),
        "unpickle": lambda: pickle.loads(pickled),
    }[what]()
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_equal(np.random.get_state(legacy=False), numpy_before)  # noqa: NPY002


def test_torchs_default_dtype_does_not_matter(encoder_folder: Path, encoder: FrozenEncoder):
    frames = random_frames(3)
    expected = encoder(frames)
    torch.set_default_dtype(torch.float64)
    try:
        np.testing.assert_array_equal(encoder(frames), expected)
        again = FrozenEncoder.load(encoder_folder, device="cpu")
        assert again(frames).dtype == np.float32
        np.testing.assert_array_equal(again(frames), expected)
        assert again.decode(expected).dtype == np.uint8
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_decoder_comes_with_the_first_picture(folder_of_its_own: Path):
    encoder = FrozenEncoder.load(folder_of_its_own, device="cpu")
    encoder(random_frames(2))
    assert encoder._decoder is None
    z = np.random.default_rng(0).normal(size=(3, LATENT_DIM)).astype(np.float32)
    images = encoder.decode(z)
    model = tiny_cvae()
    with torch.inference_mode():
        expected = model.decode(torch.from_numpy(z)).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1)
    assert np.abs(images.astype(int) - expected.numpy().astype(int)).max() <= 1
    assert images.dtype == np.uint8
    decoder: Any = encoder._decoder
    assert not decoder.training
    assert not any(p.requires_grad for p in decoder.parameters())
    shutil.rmtree(folder_of_its_own)
    np.testing.assert_array_equal(encoder.decode(z), images)  # not read again


def test_one_latent_or_many_are_decoded(encoder: FrozenEncoder):
    z = np.random.default_rng(0).normal(size=(1030, LATENT_DIM)).astype(np.float32)
    images = encoder.decode(z)
    assert images.shape == (1030, 16, 16, 3)
    assert encoder.decode(z[-1]).shape == (16, 16, 3)
    for i in (0, 1029):
        assert np.abs(encoder.decode(z[i]).astype(int) - images[i]).max() <= 1
    assert encoder.decode(z[0].tolist()).dtype == np.uint8
    assert encoder.decode(z[:0]).shape == (0, 16, 16, 3)


@pytest.mark.parametrize("shape", [(), (LATENT_DIM + 1,), (2, LATENT_DIM - 1), (1, 2, LATENT_DIM), (LATENT_DIM, 1)])
def test_latents_of_other_shapes_are_not_decoded(encoder: FrozenEncoder, shape: tuple[int, ...]):
    with pytest.raises(InputError, match=r"\(6,\) or \(N, 6\), got"):
        encoder.decode(np.zeros(shape))


def test_a_random_encoder_has_no_decoder():
    with pytest.raises(EncoderFolderError, match="not loaded from a folder"):
        FrozenEncoder.random(tiny_architecture(), device="cpu").decode(np.zeros(LATENT_DIM))


def test_loading_does_not_build_the_decoder(encoder_folder: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> Any:
        raise AssertionError("a decoder was built")

    monkeypatch.setattr("latent_obs.encoder.frozen.Decoder", refuse)
    FrozenEncoder.load(encoder_folder, device="cpu")(random_frames(1))


@pytest.fixture
def folder_of_its_own(tmp_path: Path) -> Path:
    return export_encoder(tmp_path / "encoder", tiny_cvae(), random_frames(2))


def test_repr_says_where_it_came_from(encoder: FrozenEncoder, encoder_folder: Path):
    assert str(encoder_folder) in repr(encoder)
    assert "(16, 16, 3) -> 6" in repr(encoder)
    assert "random weights" in repr(FrozenEncoder.random(tiny_architecture(), device="cpu"))


@pytest.mark.parametrize("name", ["warp", "", "cpu:x", "cuda:-1"])
def test_unknown_devices_are_refused(name: str):
    with pytest.raises(DeviceError, match=r"unknown|cannot be used"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_a_gpu_that_is_not_there_is_an_error(name: str, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=name):
        FrozenEncoder.load(encoder_folder, device=name)


def test_a_gpu_of_too_high_a_number_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceError, match=r"cuda:2.*2 GPU"):
        resolve_device("cuda:2")
    assert resolve_device("cuda:1") == torch.device("cuda", 1)


def test_mps_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="mps"):
        resolve_device("mps")


def test_auto_takes_the_cpu_only_when_nothing_else_is_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert resolve_device("auto") == torch.device("cuda", 0)


def test_encoding_keeps_no_memory(encoder: FrozenEncoder):
    encoder(random_frames(2))
    gc.collect()
    before = sum(type(o) is torch.Tensor for o in gc.get_objects())
    for _ in range(5):
        encoder(random_frames(2))
    gc.collect()
    assert sum(type(o) is torch.Tensor for o in gc.get_objects()) <= before
