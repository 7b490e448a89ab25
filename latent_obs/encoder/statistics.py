"""What latents are like over the training frames: by this they are standardized, and drift is told."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from latent_obs.util.errors import EncoderFolderError, InputError

#: Which quantiles are kept. Those in `BAND` and `BEYOND` have to be among them.
LEVELS = (0.001, 0.005, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.995, 0.999)
#: Each value of a latent lies in this band for 99% of the training frames.
BAND = (0.005, 0.995)
#: A frame whose distance is above this quantile is unlike those of training; 1% of them are.
BEYOND = 0.99
#: Values that vary less than this share of the one that varies most carry nothing, and are not blown up. Where that one
#: has the prior's deviation of 1, it is where a unit stops being active (Burda et al. 2016, "Importance Weighted
#: Autoencoders", section 5: a variance of 0.01).
SMALLEST_SHARE = 0.1
#: What lies outside its band counts at most as if it were this many half-widths from the middle.
_FARTHEST = 2.0


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Statistics of mean latents over training frames, checked and read-only.

    The distance of a frame is, over the values of its latent, the mean of ``u where u > 1 else 0``: u is how far a
    value lies from the middle of its band, in half-widths, and counts as 2 at most. So the values inside of their bands
    do not count, and no single one decides. A squared Mahalanobis distance takes rare training frames that are far off
    (a flash, a menu) as the measure of all, and then misses other scenes, and a covariance of a few thousand
    neighbouring frames does not hold for the next recording.

    Attributes:
        mean: float32 (latent_dim,), over training frames.
        std: float32 (latent_dim,), the same.
        levels: float32 (levels,), rising, in (0, 1): which quantiles are kept.
        quantiles: float32 (levels, latent_dim), of each value of the latent, over training frames.
        distance_quantiles: float32 (levels,), of the distance: over held-out frames or training frames, whichever is
            larger.
        frames: Numbers of training and of held-out frames.
        reconstruction_mean: Mean squared error of the picture decoded from the mean latent, in [0, 1] pixel units
            squared, over held-out frames or training frames, whichever is larger; None without a decoder.
        reconstruction_quantiles: float32 (levels,), of the same error per frame.

    Raises:
        InputError: Shapes disagree, a number is not finite, or quantiles fall.

    Example:
        >>> latents = np.random.default_rng(0).normal(3.0, 2.0, (5000, 4)).astype(np.float32)
        >>> statistics = LatentStatistics.from_latents(latents[:4000], latents[4000:])
        >>> statistics.mean.round(), statistics.std.round()
        (array([3., 3., 3., 3.], dtype=float32), array([2., 2., 2., 2.], dtype=float32))
        >>> bool(abs(statistics.standardize(latents).std() - 1) < 0.05)
        True
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    levels: NDArray[np.float32]
    quantiles: NDArray[np.float32]
    distance_quantiles: NDArray[np.float32]
    frames: tuple[int, int]
    reconstruction_mean: float | None = None
    reconstruction_quantiles: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "frames" or value is None:
                continue
            array = np.array(value, np.float32)  # a copy: nobody else can change it
            if not np.isfinite(array).all():
                raise InputError(f"statistics of latents: {field.name} is not finite")
            array.setflags(write=False)
            object.__setattr__(self, field.name, float(value) if field.name == "reconstruction_mean" else array)
        dim, count = self.mean.size, self.levels.size
        wanted = {
            "mean": (dim,),
            "std": (dim,),
            "levels": (count,),
            "quantiles": (count, dim),
            "distance_quantiles": (count,),
            "reconstruction_quantiles": (count,),
        }
        for name, shape in wanted.items():
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise InputError(f"statistics of latents: {name} is {value.shape}, expected {shape}")
        if dim == 0 or count == 0 or (self.std < 0).any() or (self.reconstruction_mean or 0.0) < 0:
            raise InputError("statistics of latents: empty, or a deviation or an error below 0")
        if not (self.levels[0] > 0 and self.levels[-1] < 1 and (np.diff(self.levels) > 0).all()):
            raise InputError(f"statistics of latents: levels must rise within (0, 1), got {self.levels.tolist()}")
        for name in ("quantiles", "distance_quantiles", "reconstruction_quantiles"):
            value = getattr(self, name)
            if value is not None and (np.diff(value, axis=0) < 0).any():
                raise InputError(f"statistics of latents: {name} fall where levels rise")
        if len(self.frames) != 2 or self.frames[0] < 1 or self.frames[1] < 0:
            raise InputError(
                f"statistics of latents: frames must be two counts, the first 1 or more, got {self.frames}"
            )
        if (self.reconstruction_mean is None) != (self.reconstruction_quantiles is None):
            raise InputError(
                "statistics of latents: the mean of the reconstruction error and its quantiles belong together"
            )
        for level in (*BAND, BEYOND):
            self._row(level)

    @classmethod
    def from_latents(
        cls,
        training: ArrayLike,
        held_out: ArrayLike | None = None,
        *,
        training_errors: ArrayLike | None = None,
        held_out_errors: ArrayLike | None = None,
    ) -> "LatentStatistics":
        """Measure latents.

        Distances and errors of held-out frames are what new frames of the same kind have. Where only a few are held
        out, all from one scene perhaps, they may be smaller than those of the training frames; the larger of the two is
        kept, so that frames as they were in training never count as unlike them.

        Args:
            training: Float (N, latent_dim), N ≥ 1: mean latents of training frames, from all over the recordings.
            held_out: Float (M, latent_dim), of frames not trained on; None or M = 0 where there are none.
            training_errors: From `reconstruction_errors`, for some of the training frames.
            held_out_errors: The same for held-out frames.

        Raises:
            InputError: Other shapes, or a value is not finite.
        """
        z = _latents(training, "training latents")
        other = z[:0] if held_out is None else _latents(held_out, "held-out latents")
        if len(z) == 0 or other.shape[1] != z.shape[1]:
            raise InputError(
                f"statistics need latents of training frames, and of held-out ones alike: {z.shape}, {other.shape}"
            )
        levels = np.array(LEVELS)
        basis: dict[str, Any] = {
            "mean": z.mean(axis=0),
            "std": z.std(axis=0),
            "levels": levels,
            "quantiles": np.quantile(z, levels, axis=0),
            "frames": (len(z), len(other)),
        }
        bands = cls(**basis, distance_quantiles=np.zeros(len(levels), np.float32))
        distances = [bands.distances(part) for part in (z, other) if len(part)]
        errors = [np.asarray(part, np.float64) for part in (training_errors, held_out_errors) if part is not None]
        errors = [part for part in errors if len(part)]
        return cls(
            **basis,
            distance_quantiles=_larger_quantiles(distances, levels),
            reconstruction_mean=max(float(part.mean()) for part in errors) if errors else None,
            reconstruction_quantiles=_larger_quantiles(errors, levels) if errors else None,
        )

    @property
    def latent_dim(self) -> int:
        """Number of values in a latent."""
        return self.mean.size

    @property
    def expected_share(self) -> float:
        """Which share of frames as they were in training has a distance above `distance_limit`, at most."""
        return 1 - BEYOND

    @property
    def distance_limit(self) -> float:
        """The distance that 99% of such frames do not exceed."""
        return float(self.distance_quantiles[self._row(BEYOND)])

    @cached_property
    def scale(self) -> NDArray[np.float32]:
        """What standardizing divides by, float32 (latent_dim,): `std`, but not below a tenth of the largest one.

        A value that hardly varies (a collapsed unit of the VAE) would be divided by next to nothing, and its noise
        would be as loud to an agent as what the others tell.
        """
        return np.maximum(self.std, self._floor)

    @cached_property
    def _floor(self) -> np.float32:
        largest = np.float32(self.std.max() * SMALLEST_SHARE)
        return largest if largest > 0 else np.float32(1.0)

    @cached_property
    def _band(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Middle and half-width of each value's band."""
        low, high = (self.quantiles[self._row(level)] for level in BAND)
        return (low + high) / 2, np.maximum((high - low) / 2, self._floor)

    def standardize(self, latents: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Latents in units of their deviation, from their mean on.

        Args:
            latents: Float (..., latent_dim).

        Returns:
            float32 of the same shape, in memory of its own.
        """
        self._check(latents)
        out = np.subtract(latents, self.mean, dtype=np.float32)
        out /= self.scale
        return out

    def distances(self, latents: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """How unlike those of training frames are; from 0 to 2.

        Args:
            latents: Float (N, latent_dim).

        Returns:
            float32 (N,).
        """
        self._check(latents)
        middle, half_width = self._band
        u = np.subtract(latents, middle, dtype=np.float32)
        np.abs(u, out=u)
        u /= half_width
        np.minimum(u, _FARTHEST, out=u)
        u *= u > 1
        return u.mean(axis=1)

    def to_tensors(self) -> dict[str, Tensor]:
        """As safetensors keeps them."""
        tensors = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("frames", "reconstruction_mean")
        }
        out = {name: torch.from_numpy(array.copy()) for name, array in tensors.items() if array is not None}
        out["frames"] = torch.tensor(self.frames, dtype=torch.int64)
        if self.reconstruction_mean is not None:
            out["reconstruction_mean"] = torch.tensor(self.reconstruction_mean, dtype=torch.float64)
        return out

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], latent_dim: int, name: str = "statistics"
    ) -> "LatentStatistics":
        """Read what `to_tensors` gave.

        Args:
            tensors: By name.
            latent_dim: What the encoder has.
            name: What to call them in an error.

        Raises:
            EncoderFolderError: A tensor is missing, or cannot be right.
        """
        known = {field.name for field in fields(cls)}
        try:
            values: dict[str, Any] = {key: tensor.numpy() for key, tensor in tensors.items() if key in known}
            if "frames" in values:
                values["frames"] = tuple(int(n) for n in values["frames"])
            statistics = cls(**values)
        except (InputError, TypeError, ValueError, OverflowError) as error:
            raise EncoderFolderError(f"{name} is damaged: {error}. Copy the encoder folder again") from None
        if statistics.latent_dim != latent_dim:
            raise EncoderFolderError(
                f"{name} is of latents of {statistics.latent_dim} values, and this encoder has {latent_dim}. "
                "Copy the encoder folder again"
            )
        return statistics

    def _row(self, level: float) -> int:
        row = int(np.abs(self.levels - level).argmin())
        if abs(float(self.levels[row]) - level) > 1e-6:
            raise InputError(f"statistics of latents: no quantile at {level}, only at {self.levels.tolist()}")
        return row

    def _check(self, latents: NDArray[Any]) -> None:
        if latents.shape[-1:] != (self.latent_dim,):
            raise InputError(
                f"these statistics are of latents of {self.latent_dim} values, got an array {latents.shape}"
            )


def reconstruction_errors(frames: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean squared error of each frame's reconstruction, in [0, 1] pixel units squared.

    Args:
        frames: uint8 (N, H, W, C).
        decoded: The same, as `FrozenEncoder.decode` gives them.

    Returns:
        float64 (N,).

    Example:
        >>> reconstruction_errors(np.full((1, 2, 2, 3), 51, np.uint8), np.zeros((1, 2, 2, 3), np.uint8)).round(4)
        array([0.04])
    """
    if frames.shape != decoded.shape:
        raise InputError(f"frames {frames.shape} and their reconstructions {decoded.shape} must have one shape")
    difference = np.subtract(frames, decoded, dtype=np.float32).reshape(len(frames), -1)
    return np.square(difference, out=difference).mean(axis=1, dtype=np.float64) / 255**2


def _latents(value: ArrayLike, what: str) -> NDArray[np.float64]:
    array = np.asarray(value, np.float64)
    if array.ndim != 2 or array.shape[1] == 0 or not np.isfinite(array).all():
        raise InputError(f"{what} must be finite numbers (frames, latent_dim), got an array {array.shape}")
    return array


def _larger_quantiles(parts: list[Any], levels: NDArray[np.float64]) -> NDArray[np.float32]:
    """Quantiles of each, and at each level the largest of them."""
    return np.max([np.quantile(part, levels) for part in parts], axis=0).astype(np.float32)
