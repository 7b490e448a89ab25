"""PCA latents: numpy's principal components up to sign, the same from a file, and a bad file or bad frames rejected."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from latent_obs.encoder import pca as module
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.encoder.pca import PCA
from latent_obs.pixels import PixelContract
from latent_obs.util.errors import DeviceError, EncoderFolderError, InputError
from tests.support.tiny import random_frames

CONTRACT = PixelContract(6, 10, 3)


def loaded(file: Path, device: str = "cpu") -> FrozenEncoder:
    return PCA.load(file).encoder(device=device)


def scenes(count: int, directions: int = 5, seed: int = 0) -> NDArray[np.uint8]:
    """Frames that vary along some directions, by less and less, and a little noise."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(CONTRACT.shape))
    basis, _ = np.linalg.qr(np.random.default_rng(99).normal(size=(size, directions)))
    coordinates = rng.normal(size=(count, directions)) * 400 / 1.7 ** np.arange(directions)
    frames = 127 + coordinates @ basis.T + rng.normal(size=(count, size))
    return frames.clip(0, 255).round().astype(np.uint8).reshape(count, *CONTRACT.shape)


@settings(deadline=None, max_examples=8)
@given(count=st.integers(30, 200), wanted=st.integers(1, 5), seed=st.integers(0, 1000))
def test_the_latents_are_numpys_up_to_sign(count: int, wanted: int, seed: int):
    frames = scenes(count, seed=seed)
    flat = frames.reshape(count, -1) / 255.0
    flat -= flat.mean(0)
    _, sizes, rows = np.linalg.svd(flat, full_matrices=False)
    coordinates = flat @ rows[:wanted].T
    pca = PCA.fit(frames, wanted)
    latents = pca.encoder(device="cpu")(frames)
    assert latents.shape == (count, wanted)
    sign = np.sign(pca.components[0] @ rows[0])
    # Two directions of almost one spread may come in either order: lengths are the same in any basis.
    np.testing.assert_allclose(np.square(latents).sum(1), np.square(coordinates).sum(1), rtol=2e-2, atol=2e-3)
    np.testing.assert_allclose(latents[:, 0], sign * coordinates[:, 0], atol=2e-2)
    np.testing.assert_allclose(pca.explained, (sizes**2 / np.square(sizes).sum())[:wanted], rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(latents.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(latents.std(0), pca.spread, rtol=1e-3)
    assert (np.diff(pca.spread) <= 0).all()
    assert (pca.components.max(1) >= -pca.components.min(1)).all(), "signs that are the same on every machine"
    assert 0 < pca.explained_variance <= 1 + 1e-6


def test_a_direction_that_is_known():
    frames = np.full((100, *CONTRACT.shape), 60, np.uint8)
    frames[:, 2, 3, 1] = np.where(np.arange(100) % 2, 51, 204)  # one pixel's green: 0.2 and 0.8
    with pytest.warns(UserWarning, match="1 directions"):
        pca = PCA.fit(frames, 16)
    with pytest.warns(UserWarning, match="4 directions"):
        assert PCA.fit(scenes(5), 10).latent_dim == 4  # five points span four directions
    expected = np.zeros(CONTRACT.shape)
    expected[2, 3, 1] = 1  # and not -1
    np.testing.assert_allclose(pca.components[0].reshape(CONTRACT.shape), expected, atol=1e-6)
    np.testing.assert_allclose(pca.encoder(device="cpu")(frames[:2]), [[0.3], [-0.3]], atol=1e-6)
    assert pca.spread == pytest.approx([0.3], abs=1e-6)
    assert pca.explained_variance == pytest.approx(1)


def test_many_arrays_are_one_with_the_same_components_and_frames_are_spread_evenly(monkeypatch: pytest.MonkeyPatch):
    frames = scenes(600)
    frames[300:] //= 2  # so that a fit on a part of them would differ
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    whole = PCA.fit(frames, 3)
    assert torch.equal(torch.random.get_rng_state(), state)
    parts = PCA.fit([frames[:100], frames[100:100], frames[100:450], frames[450:]], 3)
    np.testing.assert_array_equal(whole.components, parts.components)
    assert parts.provenance == {"frames": 600, "sampled": 600}
    monkeypatch.setattr(module, "_MOST_FRAMES", 7)
    few = PCA.fit([frames[:100], frames[100:]], 3)
    assert few.provenance == {"frames": 600, "sampled": 7}
    alone = PCA.fit(frames[[0, 85, 171, 257, 342, 428, 514]], 3)
    np.testing.assert_array_equal(few.components, alone.components)
    monkeypatch.setattr(module, "_MOST_VALUES", 5 * 180)
    assert PCA.fit(frames, 3).provenance["sampled"] == 5


def of_differences(recordings: list[NDArray[np.uint8]], first: NDArray[np.float32], count: int) -> NDArray[np.float64]:
    """numpy's principal directions of differences within recordings, in what the first components leave."""
    moved = [np.diff(one.reshape(len(one), -1) / 255.0, axis=0) for one in recordings if len(one)]
    flat = np.concatenate(moved)
    flat -= flat @ first.T @ first
    return np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:count]


def walking(count: int, start: int = 0) -> NDArray[np.uint8]:
    """A slow change of all pixels, and a light that walks over the first row, one pixel a frame."""
    frames = np.full((count, *CONTRACT.shape), 90, np.uint8)
    frames += np.linspace(0, 80, count).astype(np.uint8)[:, None, None, None]
    frames[np.arange(count), 0, (np.arange(count) + start) % 10] += 40
    return frames


def test_components_of_motion_are_numpys_of_differences_within_recordings(tmp_path: Path):
    recordings = [walking(40), walking(30, 3), walking(1)]
    recordings[1][:, 3:] = 255  # a cut between recordings that would be the largest difference of all
    pca = PCA.fit([*recordings, recordings[0][:0]], 5, motion=3)
    assert (pca.latent_dim, pca.provenance["motion"]) == (5, 3)
    np.testing.assert_allclose(pca.components @ pca.components.T, np.eye(5), atol=1e-5)
    first = PCA.fit(recordings, 2)
    np.testing.assert_allclose(pca.components[:2], first.components, atol=1e-4)
    np.testing.assert_allclose(pca.spread[:2], first.spread, rtol=1e-4)
    expected = of_differences(recordings, first.components, 3)
    # As many directions may be turned within their span.
    np.testing.assert_allclose(np.linalg.svd(pca.components[2:] @ expected.T)[1], 1, atol=1e-3)
    latents = pca.encoder(device="cpu")(np.concatenate(recordings))
    np.testing.assert_allclose(latents.std(0), pca.spread, rtol=1e-3)
    assert PCA.load(pca.save(tmp_path / "a.safetensors")).latent_dim == 5
    alone = PCA.fit(recordings, 3, motion=3)
    none = np.zeros((0, alone.components.shape[1]), np.float32)
    np.testing.assert_allclose(np.linalg.svd(alone.components @ of_differences(recordings, none, 3).T)[1], 1, atol=1e-3)


def test_episodes_in_a_file_make_no_differences(tmp_path: Path):
    parts = [walking(40), 255 - walking(30, 3)]
    np.save(tmp_path / "a.npy", np.concatenate(parts))
    np.savez(tmp_path / "a.rows.npz", first=np.arange(70) % 40 == 0)
    pca = PCA.fit(tmp_path, 4, motion=4)
    np.testing.assert_allclose(np.abs(pca.components), np.abs(PCA.fit(parts, 4, motion=4).components), atol=1e-5)
    (tmp_path / "a.rows.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"a\.rows\.npz"):
        PCA.fit(tmp_path, 4, motion=4)


@pytest.mark.parametrize(("frames", "motion"), [(scenes(9), 5), (scenes(9), -1), ([scenes(1), scenes(1)], 1)])
def test_motion_that_cannot_be_had(frames: Any, motion: int):
    with pytest.raises(InputError, match="motion"):
        PCA.fit(frames, 4, motion=motion)


# Files


@pytest.mark.parametrize("contract", [CONTRACT, PixelContract(5, 4, 2, "box", "center-square")])
def test_what_was_saved_is_an_encoder_as_any_other(tmp_path: Path, contract: PixelContract):
    pca = PCA.fit(random_frames(40, contract.shape), 4, contract=contract)
    pca.provenance["env"] = "Toy-v0"
    file = pca.save(tmp_path / "new" / "pca.safetensors")
    again = PCA.load(file)
    assert (again.contract, again.provenance) == (contract, pca.provenance)
    for name in ("centre", "components", "spread", "explained"):
        np.testing.assert_array_equal(getattr(again, name), getattr(pca, name))
    encoder = loaded(file)
    copied = pickle.loads(pickle.dumps(encoder))
    for statistics in (again.statistics, encoder.statistics, copied.statistics):
        assert statistics is not None
        np.testing.assert_allclose(statistics.mean, 0, atol=1e-4)
        np.testing.assert_allclose(statistics.std, pca.spread, rtol=1e-3)
    for one in (encoder, copied):
        assert one.provenance["env"] == "Toy-v0"
        assert one.provenance["explained_variance"] == pytest.approx(pca.explained_variance)
    frames = random_frames(9, contract.shape, seed=1)
    latents = encoder(frames)
    np.testing.assert_array_equal(latents, pca.encoder(device="cpu")(frames))
    np.testing.assert_allclose(np.concatenate([encoder(frames[i : i + 1]) for i in range(9)]), latents, atol=1e-5)
    np.testing.assert_array_equal(copied(frames), latents)
    large = random_frames(2, (30, 50, contract.channels))
    np.testing.assert_array_equal(encoder(large), encoder.encode(contract.convert(large)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return PCA.fit(scenes(40), 3).save(tmp_path / "pca.safetensors")


def test_any_flipped_byte_and_any_cut_is_found(file: Path):
    whole = file.read_bytes()
    flipped = [whole[:i] + bytes([whole[i] ^ 0x10]) + whole[i + 1 :] for i in range(0, len(whole), 37)]
    for content in (*flipped, *(whole[:length] for length in (0, 5, 300, -1))):
        file.write_bytes(content)
        with pytest.raises(EncoderFolderError, match=r"pca\.safetensors"):
            loaded(file)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sound": False}, "damaged"),
        ({"format": "latent-obs-encoder"}, "format"),
        ({"format_version": "2"}, "version"),
        ({"pixels": json.dumps(PixelContract(6, 5, 3).to_json())}, "centre"),
        ({"tensors": {"components": np.zeros((3, 180), np.float32)}}, "components"),
        ({"tensors": {"centre": np.full(180, np.nan, np.float32)}}, "centre"),
        ({"tensors": {"more": np.ones(2, np.float32)}}, "damaged"),
        ({"tensors": {"statistics/mean": np.ones(2, np.float32)}}, "shape"),
    ],
)
def test_a_file_of_another_kind(file: Path, change: dict[str, Any], named: str):
    tensors = {**load_file(file), **change.get("tensors", {})}
    with safe_open(str(file), "np") as opened:
        described = {**opened.metadata(), **{k: v for k, v in change.items() if k not in ("sound", "tensors")}}
    described.pop("sha256")
    sound = change.get("sound", True)
    save_file(tensors, file, {**described, "sha256": module._checksum(tensors, described) if sound else "0" * 64})
    with pytest.raises(EncoderFolderError, match=named):
        loaded(file)


def test_files_that_are_not_there_or_not_ours(tmp_path: Path, file: Path):
    save_file({"a": np.zeros(3)}, tmp_path / "other.safetensors")
    for wrong in (tmp_path / "none.safetensors", tmp_path, tmp_path / "other.safetensors"):
        with pytest.raises(EncoderFolderError, match=wrong.name):
            loaded(wrong)
    with pytest.raises(DeviceError):
        loaded(file, device="cuda:99")


# Bad input


@pytest.mark.parametrize(
    ("frames", "wanted", "named"),
    [
        (np.zeros((0, 6, 10, 3), np.uint8), 2, "frames"),
        (np.full((9, 6, 10, 3), 7, np.uint8), 2, "frames"),
        (scenes(9).astype(np.float32) / 255, 2, "frames.*float32"),
        ([scenes(9), scenes(9)[0]], 2, r"frames\[1\]"),
        (scenes(9), 0, "latent_dim"),
    ],
)
def test_bad_input(frames: Any, wanted: Any, named: str):
    with pytest.raises(InputError, match=named):
        PCA.fit(frames, wanted)


def test_a_folder_of_frames(tmp_path: Path):
    frames = scenes(90)
    np.save(tmp_path / "b.npy", frames[50:])
    np.save(tmp_path / "a.npy", frames[:50])
    np.savez(tmp_path / "a.rows.npz", reward=np.zeros(50))
    (tmp_path / ".c.npy").write_bytes(b"hidden")
    pca = PCA.fit(tmp_path, 3)
    np.testing.assert_array_equal(pca.components, PCA.fit(frames, 3).components)
    assert pca.provenance == {"frames": 90, "sampled": 90, "folder": str(tmp_path), "files": ["a.npy", "b.npy"]}
    with pytest.raises(InputError, match=r"a\.npy"):
        PCA.fit(tmp_path, 3, contract=PixelContract(8, 8, 3))
    (tmp_path / "d.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match=r"d\.npy"):
        PCA.fit(tmp_path, 3)
    shutil.rmtree(tmp_path)
    with pytest.raises(InputError, match=r"\.npy"):
        PCA.fit(tmp_path, 3)
