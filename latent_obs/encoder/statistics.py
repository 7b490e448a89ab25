"""Statistics of the latents of training frames: used to standardize latents and to detect distribution shift."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from latent_obs.util.errors import EncoderFolderError, InputError

#: Which quantiles are kept.
LEVELS = (0.001, 0.005, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.995, 0.999)
#: Each value of a latent lies in this band for 99% of the training frames.
BAND = (0.005, 0.995)
#: A frame whose distance is above this quantile counts as unlike the training frames; 1% of those are.
BEYOND = 0.99
#: Common deviation of standardized latents. Larger ones saturate the tanh units of PPO, which slows its learning.
DEVIATION = 0.5
#: Smallest deviation to divide by, as a share of the largest one. If that is the prior's 1, this is where a unit stops
#: being active (Burda et al. 2016, "Importance Weighted Autoencoders", section 5: a variance of 0.01).
SMALLEST_SHARE = 0.1
#: A value outside of its band counts at most as if it were this many half-widths from the middle.
_FARTHEST = 2.0


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Statistics of mean latents over training frames, checked and read-only.

    The distance of a frame is the mean, over the values of its latent, of ``u if u > 1 else 0``: u is how far a value
    lies from the middle of its band, in half-widths, and counts as 2 at most. So values inside of their bands do not
    count, and no single value decides. (A squared Mahalanobis distance is dominated by rare training frames that are
    far off, such as a flash or a menu, and its covariance does not hold for the next recording.)

    Attributes:
        mean: float32 (latent_dim,), over training frames.
        std: float32 (latent_dim,), the same.
        quantiles: float32 (levels, latent_dim), of each value of the latent, over training frames, at `LEVELS`.
        distance_quantiles: float32 (levels,), of the distance; the larger of held-out and training frames, as below.
        frames: Numbers of training and of held-out frames.
        reconstruction_mean: Mean squared error of pictures decoded from mean latents, in [0, 1] pixel units squared, or
            None without a decoder.
        reconstruction_quantiles: float32 (levels,), of the same error per frame.

    Example:
        >>> latents = np.random.default_rng(0).normal(3.0, 2.0, (5000, 4)).astype(np.float32)
        >>> LatentStatistics.from_latents(latents[:4000], latents[4000:]).std.round()
        array([2., 2., 2., 2.], dtype=float32)
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    quantiles: NDArray[np.float32]
    distance_quantiles: NDArray[np.float32]
    frames: tuple[int, int]
    reconstruction_mean: float | None = None
    reconstruction_quantiles: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        dim, count = np.size(self.mean), len(LEVELS)
        shapes = {"mean": (dim,), "std": (dim,), "quantiles": (count, dim), "distance_quantiles": (count,)}
        if self.reconstruction_mean is not None or self.reconstruction_quantiles is not None:  # both or none
            shapes |= {"reconstruction_mean": (), "reconstruction_quantiles": (count,)}
        for name, shape in shapes.items():
            array = np.array(getattr(self, name), np.float32)  # a copy: nobody else can change it
            falls = name.endswith("quantiles") and (np.diff(array, axis=0) < 0).any()
            negative = name in ("std", "reconstruction_mean") and (array < 0).any()
            if array.shape != shape or not np.isfinite(array).all() or falls or negative or dim == 0:
                raise InputError(
                    f"{name} must be finite numbers of shape {shape}, quantiles rising, std and reconstruction_mean "
                    f"not below 0; got {getattr(self, name)!r}"
                )
            array.setflags(write=False)
            object.__setattr__(self, name, array if shape else float(array))
        if len(self.frames) != 2 or self.frames[0] < 1 or self.frames[1] < 0:
            raise InputError(f"frames must be two counts, the first 1 or more, got {self.frames}")

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

        Of the distances and errors of held-out and of training frames the larger are kept: a few held-out frames, all
        from one scene perhaps, may have smaller ones, and training frames must not count as unlike themselves.

        Args:
            training: Float (N, latent_dim), N ≥ 1: mean latents of training frames, from all over the recordings.
            held_out: Float (M, latent_dim), of frames not trained on; None or M = 0 if there are none.
            training_errors: From `reconstruction_errors`, for some of the training frames.
            held_out_errors: The same for held-out frames.
        """
        z = np.asarray(training, np.float64)
        other = z[:0] if held_out is None else np.asarray(held_out, np.float64)
        for name, array, least in (("training", z, 1), ("held_out", other, 0)):
            fits = array.ndim == 2 and array.shape[1] == z.shape[-1] and len(array) >= least
            if not fits or not np.isfinite(array).all():
                raise InputError(f"{name} must be finite latents (frames, latent_dim), got an array {array.shape}")
        errors = [np.asarray(part, np.float64) for part in (training_errors, held_out_errors) if part is not None]
        errors = [part for part in errors if len(part)]
        bands = cls(
            mean=z.mean(axis=0),
            std=z.std(axis=0),
            quantiles=np.quantile(z, LEVELS, axis=0).astype(np.float32),
            distance_quantiles=np.zeros(len(LEVELS), np.float32),
            frames=(len(z), len(other)),
            reconstruction_mean=max(float(part.mean()) for part in errors) if errors else None,
            reconstruction_quantiles=_larger_quantiles(errors) if errors else None,
        )
        distances = [bands.distances(part) for part in (z, other) if len(part)]
        return replace(bands, distance_quantiles=_larger_quantiles(distances))

    @property
    def latent_dim(self) -> int:
        """Number of values in a latent."""
        return self.mean.size

    @property
    def distance_limit(self) -> float:
        """The distance that 99% of such frames do not exceed."""
        return float(self.distance_quantiles[LEVELS.index(BEYOND)])

    @cached_property
    def scale(self) -> NDArray[np.float32]:
        """The deviation of each value, float32 (latent_dim,): `std`, but not below a tenth of the largest one.

        Divided by less, a value that hardly varies (a collapsed unit of the VAE) would be noise.
        """
        return np.maximum(self.std, self._floor)

    @cached_property
    def _common_scale(self) -> np.float32:
        """What standardizing divides all values by: it makes the root of the mean of their variances `DEVIATION`."""
        return np.float32(np.sqrt(np.square(self.std, dtype=np.float64).mean()) / DEVIATION) or np.float32(1.0)

    @cached_property
    def _floor(self) -> np.float32:
        return np.float32(self.std.max() * SMALLEST_SHARE) or np.float32(1.0)

    @cached_property
    def _band(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Middle and half-width of each value's band."""
        low, high = (self.quantiles[LEVELS.index(level)] for level in BAND)
        return (low + high) / 2, np.maximum((high - low) / 2, self._floor)

    def standardize(self, latents: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Latents (..., latent_dim) minus their mean, all divided by one number: float32, in memory of its own.

        Their common deviation, the root of the mean of their variances, becomes 0.5. Divided each by its own, values
        that hardly vary would get the weight of the informative ones.

        Example:
            >>> latents = np.float32([[0, 1], [2, 15]])
            >>> LatentStatistics.from_latents(latents).standardize(latents)
            array([[-0.1, -0.7],
                   [ 0.1,  0.7]], dtype=float32)
        """
        self._check(latents)
        out = np.subtract(latents, self.mean, dtype=np.float32)
        out /= self._common_scale
        return out

    def distances(self, latents: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """How unlike training frames are: float32 (N,), from 0 to 2, for their latents (N, latent_dim)."""
        self._check(latents)
        middle, half_width = self._band
        u = np.subtract(latents, middle, dtype=np.float32)
        np.abs(u, out=u)
        u /= half_width
        np.minimum(u, _FARTHEST, out=u)
        u *= u > 1
        return u.mean(axis=1)

    def _check(self, latents: NDArray[Any]) -> None:
        if latents.shape[-1:] != (self.latent_dim,):
            raise InputError(f"latents must have {self.latent_dim} values for these statistics, got {latents.shape}")

    def to_tensors(self) -> dict[str, Tensor]:
        """Tensors by name, for safetensors; `from_tensors` reads them back."""
        dtypes = {"frames": torch.int64, "reconstruction_mean": torch.float64}
        values = {name: value for name, value in {"levels": LEVELS, **asdict(self)}.items() if value is not None}
        return {name: torch.tensor(value, dtype=dtypes.get(name, torch.float32)) for name, value in values.items()}

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], latent_dim: int, name: str = "statistics"
    ) -> "LatentStatistics":
        """Read what `to_tensors` gave; an `EncoderFolderError` if a tensor of the file `name` is missing or invalid."""
        try:
            if not np.allclose(tensors["levels"].numpy(), LEVELS, rtol=0, atol=1e-6):
                raise InputError(f"levels must be {LEVELS}")
            known = cls.__dataclass_fields__
            values: dict[str, Any] = {key: tensor.numpy() for key, tensor in tensors.items() if key in known}
            statistics = cls(**{**values, "frames": tuple(int(n) for n in values["frames"])})
            if statistics.latent_dim != latent_dim:
                raise InputError(f"mean has {statistics.latent_dim} values, and this encoder's latents {latent_dim}")
        except (InputError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise EncoderFolderError(f"{name} is damaged: {error!r}. Copy the encoder folder again") from None
        return statistics


def reconstruction_errors(frames: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean squared error of each frame's reconstruction, in [0, 1] pixel units squared: float64 (N,).

    Both arrays are uint8 (N, H, W, C); `decoded` as `FrozenEncoder.decode` gives them.
    """
    difference = np.subtract(frames, decoded, dtype=np.float32).reshape(len(frames), -1)
    return np.square(difference, out=difference).mean(axis=1, dtype=np.float64) / 255**2


def _larger_quantiles(parts: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """Quantiles of each part, and at each level the largest of them."""
    return np.max([np.quantile(part, LEVELS) for part in parts], axis=0).astype(np.float32)
