"""Representations of a frame to compare an encoder with: PCA, a random encoder, the mean image."""

import warnings
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.encoder.pca import PCA
from latent_obs.util.errors import InputError

Frames = NDArray[np.uint8]


class Representation(Protocol):
    """Anything with a `name` for tables that turns frames into vectors."""

    @property
    def name(self) -> str: ...  # noqa: D102

    def __call__(self, frames: Frames) -> NDArray[np.float32]:
        """Vectors, float32 (N, D), of frames, uint8 (N, H, W, C)."""
        ...


class EncoderMeans:
    """The mean latents of a frozen encoder, float32 (N, latent_dim), by a `name` for tables.

    Example:
        >>> from latent_obs.encoder.architecture import Architecture
        >>> latent = EncoderMeans(FrozenEncoder.random(Architecture((32, 32, 3), latent_dim=8), device="cpu"))
        >>> latent(np.zeros((5, 32, 32, 3), np.uint8)).shape
        (5, 8)
    """

    def __init__(self, encoder: FrozenEncoder, name: str = "latent") -> None:
        self.encoder, self.name = encoder, name

    def __call__(self, frames: Frames) -> NDArray[np.float32]:
        """Mean latents, float32 (N, latent_dim), of frames, uint8 (N, H, W, C)."""
        return self.encoder(np.asarray(frames))


def random_encoder(encoder: FrozenEncoder, *, seed: int = 0, name: str = "random encoder") -> EncoderMeans:
    """An untrained encoder with the layers, pixel contract and device of a trained one, without its components.

    Args:
        encoder: The trained encoder.
        seed: Of the weights (torch's default initialization).
        name: Its name in tables.

    Raises:
        InputError: The encoder has no architecture of latent-obs.
    """
    if encoder.architecture is None:
        raise InputError("encoder must be one of latent-obs for a random one of the same layers, got a foreign module")
    network = FrozenEncoder.random(encoder.architecture, seed=seed, device=encoder.device)
    network.contract = encoder.contract
    return EncoderMeans(network, name)


class Pca(EncoderMeans):
    """Principal components of frames: the best linear code of this size, for squared error.

    Attributes:
        pca: The components.

    Example:
        >>> frames = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3), np.uint8)
        >>> pca = Pca.fit([frames], 4)
        >>> pca(frames).shape, pca.reconstruct(frames[:2]).shape
        ((100, 4), (2, 8, 8, 3))
    """

    def __init__(self, pca: PCA) -> None:
        super().__init__(pca.encoder(device="cpu"), "PCA")
        self.pca = pca

    @classmethod
    def fit(cls, recordings: Sequence[Frames], dim: int) -> "Pca":
        """Fit it with `latent_obs.PCA.fit`, which samples at most 10,000 frames.

        Args:
            recordings: Each uint8 (N, H, W, C), all of one frame shape; memory maps will do.
            dim: Components to keep; fewer remain where frames vary in fewer directions.

        Raises:
            InputError: There are no frames, they are all alike, or their shapes differ.
        """
        if not recordings:
            raise InputError("recordings must hold frames, got none")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fewer components than asked for
            return cls(PCA.fit(recordings, dim))

    def reconstruct(self, frames: Frames) -> NDArray[np.float32]:
        """The frames as the components show them: float32 (N, H, W, C), clipped to [0, 1]."""
        flat = self(frames) @ self.pca.components + self.pca.centre
        return flat.clip(0, 1).reshape(-1, *self.pca.contract.shape)


class MeanImage:
    """The mean of all frames, float32 (H, W, C) in [0, 1], for any frame: the floor of reconstructions.

    Example:
        >>> image = MeanImage.fit([np.full((10, 8, 8, 3), 51, np.uint8)])
        >>> round(float(image.reconstruct(np.zeros((1, 8, 8, 3), np.uint8)).max()), 3)
        0.2
    """

    def __init__(self, image: NDArray[np.float32]) -> None:
        self.image = image

    @classmethod
    def fit(cls, recordings: Sequence[Frames]) -> "MeanImage":
        """The mean of frames, each uint8 (N, H, W, C) of one shape; memory maps will do."""
        total = np.sum([recording.sum(0, dtype=np.int64) for recording in recordings], axis=0)
        return cls((total / (255 * sum(map(len, recordings)))).astype(np.float32))

    def reconstruct(self, frames: Frames) -> NDArray[np.float32]:
        """The mean image for each of the frames, float32 (N, H, W, C) in [0, 1]; a read-only view of one."""
        return np.broadcast_to(self.image, (len(frames), *self.image.shape))
