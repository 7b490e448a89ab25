"""Representations of a frame to hold an encoder against: PCA, a random encoder, the mean image.

Each is a `Representation`: frames in, one vector per frame out. Those that can also go back to a picture have
`reconstruct`, for the report's comparison of reconstructions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import InputError

Frames = NDArray[np.uint8]
_CHUNK = 512  # frames turned to float at once: 25 MB of 64x64 RGB
_MOST_FRAMES = 20_000  # that PCA is fitted on; more of them move its components no further
_SPARE_DIRECTIONS, _PASSES = (
    32,
    6,
)  # of the subspace iteration: beyond those kept; and how often it goes over the frames


class Representation(Protocol):
    """Anything that turns frames into vectors.

    Attributes:
        name: What a table calls it.
        dim: Length of a vector.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def dim(self) -> int: ...  # noqa: D102

    def __call__(self, frames: Frames) -> NDArray[np.float32]:
        """Vectors, float32 (N, dim), of frames, uint8 (N, H, W, C)."""
        ...


@dataclass(frozen=True, eq=False)
class EncoderMeans:
    """The mean latents of a frozen encoder.

    Attributes:
        encoder: The encoder.
        name: What a table calls it.

    Example:
        >>> from latent_obs.encoder.architecture import Architecture
        >>> encoder = FrozenEncoder.random(Architecture((32, 32, 3), latent_dim=8), device="cpu")
        >>> latent = EncoderMeans(encoder)
        >>> latent(np.zeros((5, 32, 32, 3), np.uint8)).shape, latent.dim
        ((5, 8), 8)
    """

    encoder: FrozenEncoder
    name: str = "latent"

    @property
    def dim(self) -> int:
        """Length of a latent."""
        return self.encoder.latent_dim

    def __call__(self, frames: Frames) -> NDArray[np.float32]:
        """Mean latents, float32 (N, dim), of frames, uint8 (N, H, W, C)."""
        parts = [self.encoder(np.asarray(frames[i : i + _CHUNK])) for i in range(0, len(frames), _CHUNK)]
        return _joined(parts, self.dim)


def random_encoder(encoder: FrozenEncoder, *, seed: int = 0, name: str = "random encoder") -> EncoderMeans:
    """An encoder of the same layers, and with the same eyes, that never trained.

    Args:
        encoder: The trained encoder whose architecture, pixel contract and device it takes.
        seed: Of its weights (torch's default initialization). A training run with this seed began with the same ones.
        name: What a table calls it.
    """
    if encoder.architecture is None:
        raise InputError(
            "a random encoder of the same layers needs an encoder of latent-obs, not a module from elsewhere"
        )
    network = FrozenEncoder.random(encoder.architecture, seed=seed, device=encoder.device)
    network.contract = encoder.contract
    return EncoderMeans(network, name)


@dataclass(frozen=True, eq=False)
class Pca:
    """Principal components of frames: the best linear code of this size, for squared error.

    Attributes:
        mean: float32 (H * W * C,), values in [0, 1].
        components: float32 (dim, H * W * C), orthonormal rows, the one of most variance first.
        frame_shape: (H, W, C).
        fitted_on: How many frames it was fitted on.
        name: What a table calls it.

    Example:
        >>> frames = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3), np.uint8)
        >>> pca = Pca.fit([frames], 4)
        >>> pca(frames).shape, pca.reconstruct(frames[:2]).shape
        ((100, 4), (2, 8, 8, 3))
    """

    mean: NDArray[np.float32] = field(repr=False)
    components: NDArray[np.float32] = field(repr=False)
    frame_shape: tuple[int, int, int]
    fitted_on: int
    name: str = "PCA"

    @classmethod
    def fit(
        cls,
        recordings: Sequence[Frames],
        dim: int,
        *,
        most_frames: int = _MOST_FRAMES,
        seed: int = 0,
        name: str = "PCA",
    ) -> "Pca":
        """Fit it on training frames, in a few passes over them; only some hundred are float at once, whatever their
        number.

        Randomised subspace iteration on the covariance (Halko, Martinsson & Tropp 2011, "Finding Structure with
        Randomness", algorithm 4.4, with the Rayleigh-Ritz step of its section 5.1), with more directions than are kept.
        Its squared error is within a thousandth or two of the exact one's. The same frames and seed give the same
        components.

        Args:
            recordings: Each uint8 (N, H, W, C), all of one frame shape; memory maps are read piece by piece.
            dim: Components to keep.
            most_frames: Of more frames than this, every k-th is used.
            seed: Of the directions to start from.
            name: What a table calls it.

        Raises:
            InputError: There are fewer frames, or fewer values in a frame, than `dim`; or shapes differ.
        """
        shape = _one_shape(recordings)
        total, values = sum(map(len, recordings)), int(np.prod(shape))
        recordings = [recording[:: max(1, -(-total // most_frames))] for recording in recordings]
        used = sum(map(len, recordings))
        if not 1 <= dim <= min(used, values):
            raise InputError(
                f"PCA of {dim} dimensions cannot be fitted on {used} frame(s) of {values} values; it needs at least as many of "
                "both. Give more frames, or fewer dimensions"
            )
        mean = MeanImage.fit(recordings).image.ravel()
        width = min(dim + _SPARE_DIRECTIONS, used, values)
        start = np.random.default_rng(seed).standard_normal((values, width), np.float32)
        basis = np.linalg.qr(start).Q  # (values, width)
        for _ in range(_PASSES):
            basis = np.linalg.qr(_times_scatter(recordings, mean, basis)).Q
        inside = basis.T @ _times_scatter(recordings, mean, basis)  # (width, width): the scatter within the subspace
        _, rotation = np.linalg.eigh((inside + inside.T) / 2)  # ascending
        components = np.ascontiguousarray((basis @ rotation[:, ::-1][:, :dim]).T)
        return cls(mean, components, shape, used, name)

    @property
    def dim(self) -> int:
        """Number of components."""
        return len(self.components)

    def __call__(self, frames: Frames) -> NDArray[np.float32]:
        """Coordinates, float32 (N, dim), of frames, uint8 (N, H, W, C)."""
        _check_shape(frames, self.frame_shape, self.name)
        chunks = (frames[i : i + _CHUNK] for i in range(0, len(frames), _CHUNK))
        return _joined([(_flat(chunk) - self.mean) @ self.components.T for chunk in chunks], self.dim)

    def reconstruct(self, frames: Frames) -> NDArray[np.float32]:
        """The frames as its components show them.

        Args:
            frames: uint8 (N, H, W, C).

        Returns:
            float32 (N, H, W, C) in [0, 1] (clipped).
        """
        codes = self(frames)
        out = np.empty((len(codes), *self.frame_shape), np.float32)
        for i in range(0, len(codes), _CHUNK):
            flat = codes[i : i + _CHUNK] @ self.components + self.mean
            out[i : i + _CHUNK] = flat.clip(0, 1).reshape(-1, *self.frame_shape)
        return out


@dataclass(frozen=True, eq=False)
class MeanImage:
    """The mean of all frames, whatever the frame: the floor. Its vector is a single zero, so a probe can only guess.

    Example:
        >>> image = MeanImage.fit([np.full((10, 8, 8, 3), 51, np.uint8)])
        >>> round(float(image.reconstruct(np.zeros((1, 8, 8, 3), np.uint8)).max()), 3)
        0.2
    """

    image: NDArray[np.float32] = field(repr=False)
    """float32 (H, W, C) in [0, 1]."""
    name: str = "mean image"

    @classmethod
    def fit(cls, recordings: Sequence[Frames], *, name: str = "mean image") -> "MeanImage":
        """The mean of frames, each uint8 (N, H, W, C) of one shape; they are read piece by piece."""
        shape = _one_shape(recordings)
        total = np.zeros(shape, np.int64)
        for recording in recordings:
            for i in range(0, len(recording), _CHUNK):
                total += recording[i : i + _CHUNK].sum(0, dtype=np.int64)
        return cls((total / (255 * sum(map(len, recordings)))).astype(np.float32), name)

    @property
    def dim(self) -> int:
        """1: a zero."""
        return 1

    def __call__(self, frames: Frames) -> NDArray[np.float32]:
        """Zeros, float32 (N, 1)."""
        return np.zeros((len(frames), 1), np.float32)

    def reconstruct(self, frames: Frames) -> NDArray[np.float32]:
        """The mean image for each of the frames, float32 (N, H, W, C) in [0, 1]; a read-only view of one."""
        _check_shape(frames, self.image.shape, self.name)
        return np.broadcast_to(self.image, (len(frames), *self.image.shape))


def _joined(parts: Sequence[NDArray[Any]], dim: int) -> NDArray[np.float32]:
    return np.concatenate(parts, dtype=np.float32) if parts else np.empty((0, dim), np.float32)


def _flat(frames: Frames) -> NDArray[np.float32]:
    """uint8 (N, H, W, C) to float32 (N, H * W * C) in [0, 1]."""
    return frames.reshape(len(frames), -1).astype(np.float32) / np.float32(255)


def _one_shape(recordings: Sequence[Frames]) -> tuple[int, int, int]:
    """The frame shape that all recordings share."""
    if not sum(map(len, recordings)):
        raise InputError("no frames to fit a baseline on; give the frames of the training recordings")
    first = recordings[0].shape[1:]
    for recording in recordings:
        _check_shape(recording, first, "a baseline")
    return first[0], first[1], first[2]


def _check_shape(frames: Frames, shape: tuple[int, ...], what: str) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != tuple(shape):
        raise InputError(
            f"{what} eats uint8 frames (N, {', '.join(map(str, shape))}), got {frames.dtype} {frames.shape}. Convert them with "
            "the pixel contract of the encoder: encoder.contract.convert(frames)"
        )


def _times_scatter(
    recordings: Sequence[Frames], mean: NDArray[np.float32], basis: NDArray[np.float32]
) -> NDArray[np.float32]:
    """``(X - mean).T @ (X - mean) @ basis`` of all frames X, flat; (values, width)."""
    product = np.zeros_like(basis)
    for recording in recordings:
        for i in range(0, len(recording), _CHUNK):
            centred = _flat(np.asarray(recording[i : i + _CHUNK])) - mean
            product += centred.T @ (centred @ basis)
    return product
