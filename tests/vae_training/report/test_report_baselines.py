"""Baselines of the report: PCA against scikit-learn's, the mean image against numpy's, and the random encoder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from latent_obs.encoder.architecture import Architecture
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.encoder.networks import Encoder
from latent_obs.pixels import PixelContract
from latent_obs.util.errors import InputError
from tests.support.tiny import picture, random_frames
from vae_training.report.metrics import baselines
from vae_training.report.metrics.baselines import EncoderMeans, MeanImage, Pca, Representation, random_encoder


def stories(count: int = 300, size: int = 12) -> NDArray[np.uint8]:
    """Smooth pictures with a little noise: a spectrum that falls off, as frames have it."""
    frames = np.stack([picture(i // 30, i % 30, size, size) for i in range(count)]).astype(int)
    return (frames + np.random.default_rng(0).integers(-20, 21, frames.shape)).clip(0, 255).astype(np.uint8)


def squared_error(pca: Pca, frames: NDArray[np.uint8]) -> float:
    return float(np.square(pca.reconstruct(frames) - frames / 255).mean())


@pytest.mark.parametrize("dim", [1, 5, 40])
def test_pca_is_as_good_as_the_exact_one(dim: int):
    decomposition = pytest.importorskip("sklearn.decomposition")
    frames, others = stories(300), random_frames(20, (12, 12, 3))
    flat = frames.reshape(300, -1) / 255
    exact = decomposition.PCA(dim, svd_solver="full").fit(flat)
    pca = Pca.fit([frames[:100], frames[100:101], frames[101:]], dim)
    projected = exact.inverse_transform(exact.transform(flat)).clip(0, 1)
    assert squared_error(pca, frames) == pytest.approx(np.square(projected - flat).mean(), rel=3e-3)
    assert pca(frames).var(0).sum() == pytest.approx(exact.explained_variance_.sum() * 299 / 300, rel=3e-3)
    assert (np.diff(pca(frames).var(0)) <= 0).all()
    assert pca.components @ pca.components.T == pytest.approx(np.eye(dim), abs=1e-4)
    assert pca.dim == pca(others).shape[1] == dim
    assert pca.fitted_on == 300


def test_the_components_are_those_of_most_variance():
    rng = np.random.default_rng(0)
    frames = np.full((200, 8, 8, 3), 128, np.uint8)
    frames[:, 1, 1, 0] += rng.integers(-60, 61, 200).astype(np.uint8)  # wraps to what is meant
    frames[:, 5, 6, 2] += rng.integers(-20, 21, 200).astype(np.uint8)
    frames[:, 3, 3, 1] += rng.integers(-3, 4, 200).astype(np.uint8)
    weights = np.abs(Pca.fit([frames], 2).components.reshape(2, 8, 8, 3))
    assert weights[0, 1, 1, 0] == pytest.approx(1, abs=0.01)
    assert weights[1, 5, 6, 2] == pytest.approx(1, abs=0.01)


def test_pca_with_as_many_dimensions_as_the_frames_have_loses_nothing():
    frames = stories(20, 8)
    pca = Pca.fit([frames], 20)
    assert np.abs(pca.reconstruct(frames) - frames / 255).max() < 1e-3
    assert pca.reconstruct(255 * (frames > 128).astype(np.uint8)).min() >= 0
    assert pca.reconstruct(255 * (frames > 128).astype(np.uint8)).max() <= 1


def test_each_frame_is_coded_by_itself(monkeypatch: pytest.MonkeyPatch):
    frames = stories(30)
    pca = Pca.fit([frames], 4)
    codes, shown = pca(frames), pca.reconstruct(frames)
    monkeypatch.setattr(baselines, "_CHUNK", 7)
    assert pca(frames) == pytest.approx(codes, abs=1e-5)
    assert pca.reconstruct(frames) == pytest.approx(shown, abs=1e-5)
    assert pca(frames[3:4])[0] == pytest.approx(codes[3], abs=1e-5)
    assert pca(frames[:0]).shape == (0, 4)
    again = Pca.fit([frames], 4)
    assert np.abs(again(frames)) == pytest.approx(np.abs(codes), rel=1e-2, abs=1e-3)


def test_the_same_frames_give_the_same_components():
    frames = stories(50)
    assert np.array_equal(Pca.fit([frames], 6).components, Pca.fit([frames], 6).components)


def test_of_many_frames_every_kth_is_used():
    frames = random_frames(90)
    pca = Pca.fit([frames[:60], frames[60:]], 2, most_frames=30)
    assert pca.fitted_on == 30
    assert pca.mean == pytest.approx(frames[::3].reshape(30, -1).mean(0) / 255, abs=1e-6)


@pytest.mark.parametrize("dim", [0, 11])
def test_pca_of_too_few_frames_is_refused(dim: int):
    with pytest.raises(InputError, match=f"PCA of {dim} dimensions .* 10 frame"):
        Pca.fit([random_frames(10)], dim)


def test_other_frames_are_refused():
    pca = Pca.fit([random_frames(10)], 2)
    for frames in (random_frames(2, (16, 8, 3)), random_frames(2)[..., :1], random_frames(2) / 255):
        with pytest.raises(InputError, match="contract"):
            pca(frames)  # pyright: ignore[reportArgumentType]
        with pytest.raises(InputError, match="contract"):
            Pca.fit([random_frames(10), frames], 2)  # pyright: ignore[reportArgumentType]
    for nothing in ([], [random_frames(0)]):
        with pytest.raises(InputError, match="no frames"):
            MeanImage.fit(nothing)


def test_the_mean_image_is_the_mean(tmp_path: Path):
    frames = random_frames(1100)
    np.save(tmp_path / "frames.npy", frames)
    image = MeanImage.fit([np.load(tmp_path / "frames.npy", mmap_mode="r")[:900], frames[900:]])
    assert image.image == pytest.approx(frames.mean(0) / 255, abs=1e-6)
    shown = image.reconstruct(frames[:5])
    assert shown.shape == (5, 16, 16, 3)
    assert shown.dtype == np.float32
    assert not image(frames[:5]).any()


def test_the_encoder_is_shown_as_it_is(encoder: FrozenEncoder):
    frames = random_frames(600)
    latent = EncoderMeans(encoder)
    assert np.array_equal(latent(frames[:8]), encoder(frames[:8]))
    assert latent(frames) == pytest.approx(encoder(frames), abs=1e-6)
    assert latent(frames[:0]).shape == (0, encoder.latent_dim)


def test_a_random_encoder_has_the_same_layers_and_other_weights(encoder: FrozenEncoder):
    before = torch.random.get_rng_state()
    random = random_encoder(encoder, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    frames = random_frames(4)
    assert random.encoder.architecture == encoder.architecture
    assert not np.allclose(random(frames), encoder(frames), atol=0.01)
    assert np.array_equal(random(frames), random_encoder(encoder, seed=1)(frames))
    assert not np.allclose(random(frames), random_encoder(encoder, seed=2)(frames), atol=0.01)


def test_a_random_encoder_sees_frames_as_the_trained_one_does():
    architecture = Architecture((16, 16, 3), 4, (4,), (2,))
    contract = PixelContract(16, 16, 3, resize_filter="box", crop="center-square")
    trained = FrozenEncoder(architecture, Encoder(architecture).state_dict(), contract, device="cpu")
    frames = random_frames(2, (32, 48, 3))
    assert np.array_equal(random_encoder(trained)(frames), random_encoder(trained)(contract.convert(frames)))


def test_all_share_one_interface(encoder: FrozenEncoder):
    frames = random_frames(30)
    everything: list[Representation] = [
        EncoderMeans(encoder),
        random_encoder(encoder),
        Pca.fit([frames], encoder.latent_dim),
        MeanImage.fit([frames]),
    ]
    assert len({representation.name for representation in everything}) == 4
    for representation in everything:
        vectors = representation(frames)
        assert vectors.shape == (30, representation.dim)
        assert vectors.dtype == np.float32
