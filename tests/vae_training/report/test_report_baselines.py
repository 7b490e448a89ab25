"""Baselines of the report: PCA against scikit-learn's, the mean image against numpy's, and the random encoder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from latent_obs.encoder.architecture import Architecture, Encoder
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.pixels import PixelContract
from latent_obs.util.errors import InputError
from tests.support.tiny import picture, random_frames
from vae_training.report.metrics.baselines import EncoderMeans, MeanImage, Pca, Representation, random_encoder


def stories(count: int = 300, size: int = 12) -> NDArray[np.uint8]:
    """Smooth pictures with a little noise: a spectrum that falls off, as frames have it."""
    frames = np.stack([picture(i // 30, i % 30, size, size) for i in range(count)]).astype(int)
    return (frames + np.random.default_rng(0).integers(-20, 21, frames.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("dim", [1, 5, 40])
def test_pca_is_as_good_as_the_exact_one(dim: int):
    decomposition = pytest.importorskip("sklearn.decomposition")
    frames = stories(300)
    flat = frames.reshape(300, -1) / 255
    exact = decomposition.PCA(dim, svd_solver="full").fit(flat)
    pca = Pca.fit([frames[:100], frames[100:101], frames[101:]], dim)
    projected = exact.inverse_transform(exact.transform(flat)).clip(0, 1)
    squared_error = np.square(pca.reconstruct(frames).reshape(300, -1) - flat).mean()
    assert squared_error == pytest.approx(np.square(projected - flat).mean(), rel=2e-2)
    assert pca(frames).var(0).sum() == pytest.approx(exact.explained_variance_.sum() * 299 / 300, rel=2e-2)
    assert pca.dim == dim
    assert np.array_equal(pca(frames), Pca.fit([frames], dim)(frames))


def test_pca_of_as_many_dimensions_as_the_frames_have_loses_nothing():
    frames = stories(20, 8)
    pca = Pca.fit([frames], 64)
    assert pca.dim < 20
    assert np.abs(pca.reconstruct(frames) - frames / 255).max() < 5e-3
    others = pca.reconstruct(255 * (frames > 128).astype(np.uint8))
    assert (others.min(), others.max()) == (0, 1)


def test_frames_that_cannot_be_fitted_are_refused():
    for fit in (MeanImage.fit, lambda recordings: Pca.fit(recordings, 2)):
        with pytest.raises(InputError, match="recordings"):
            fit([])
    with pytest.raises(InputError, match="frames"):
        Pca.fit([random_frames(10), random_frames(2, (16, 8, 3))], 2)


def test_the_mean_image_is_the_mean(tmp_path: Path):
    frames = random_frames(1100)
    np.save(tmp_path / "frames.npy", frames)
    image = MeanImage.fit([np.load(tmp_path / "frames.npy", mmap_mode="r")[:900], frames[900:]])
    assert image.image == pytest.approx(frames.mean(0) / 255, abs=1e-6)
    assert np.array_equal(image.reconstruct(frames[:5]), [image.image] * 5)


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
    pca, mean = Pca.fit([frames], encoder.latent_dim), MeanImage.fit([frames])
    everything: list[Representation] = [EncoderMeans(encoder), random_encoder(encoder), pca, mean]
    assert len({representation.name for representation in everything}) == 4
    for representation in everything:
        vectors = representation(frames)
        assert (vectors.shape, vectors.dtype) == ((30, representation.dim), np.float32)
