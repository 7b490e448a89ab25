"""Keep a policy's input as it was when its encoder is trained on: a linear map from new latents to old ones, folded in.

A policy that has learnt on the latents of one encoder can do nothing with those of another. Where the second was trained on
from the first, its latents are nearly a linear map of the old ones. `fit_alignment` finds the map back, on frames that both
have encoded, and `fold_alignment` multiplies it into the last layer of the new encoder and its inverse into the first layer of
the decoder. Nothing is computed beside them, the agent's input means what it meant, and decoded pictures stay the same.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latent_obs.architecture import Architecture
from latent_obs.errors import InputError
from latent_obs.statistics import SMALLEST_SHARE

#: Above this condition number the inverse, which the decoder gets, is lost in float32.
LARGEST_CONDITION = 1e4
_FLOOR = 1e-4  # of the mean variance: what hardly varies is noise, and gets no large coefficient
_ADVICE = (
    "The two encoders have too little in common: fine-tune less (fewer epochs, a smaller learning rate), give more frames, or "
    "press the map towards the identity with a larger ridge, such as 0.1 or 1"
)

Latents = NDArray[np.floating[Any]]
State = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Alignment:
    """An affine map of latents, ``matrix @ z + offset``, that has an inverse.

    A spatial latent is a map of `area` positions (in the order channel, position): one matrix then mixes the channels of
    each position, the same for all, as a convolution of kernel 1 does.

    Attributes:
        matrix: float64 (k, k); k is `latent_dim`, or the number of channels of a spatial latent.
        offset: float64 (k,).
        area: Positions that share the map; 1 for a dense latent.

    Raises:
        InputError: Shapes disagree, a number is not finite, or there is no inverse in float32.

    Example:
        >>> alignment = Alignment(np.array([[0.0, 2.0], [1.0, 0.0]]), np.array([0.0, 1.0]))
        >>> alignment.apply(np.array([[3.0, 4.0]])).tolist()
        [[8.0, 4.0]]
        >>> alignment.undo(np.array([[8.0, 4.0]])).tolist()
        [[3.0, 4.0]]
    """

    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]
    area: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", np.array(self.matrix, np.float64))
        object.__setattr__(self, "offset", np.array(self.offset, np.float64))
        k = self.offset.size
        if self.matrix.shape != (k, k) or self.offset.shape != (k,) or k == 0 or self.area < 1:
            raise InputError(
                f"an alignment needs a matrix (k, k) and an offset (k,), got {self.matrix.shape}, {self.offset.shape}"
            )
        if not (np.isfinite(self.matrix).all() and np.isfinite(self.offset).all()):
            raise InputError("an alignment must be of finite numbers; are the latents that it was fitted to?")
        if not self.condition <= LARGEST_CONDITION:
            raise InputError(
                f"this alignment cannot be undone: its condition number is {self.condition:.1e}, at most "
                f"{LARGEST_CONDITION:.0e} is allowed, and the decoder needs its inverse. {_ADVICE}"
            )

    @property
    def condition(self) -> float:
        """Largest over smallest singular value of the matrix."""
        values = np.linalg.svd(self.matrix, compute_uv=False)
        return float(values[0] / values[-1]) if values[-1] > 0 else math.inf

    @property
    def latent_dim(self) -> int:
        """Number of values in a latent."""
        return self.offset.size * self.area

    def apply(self, latents: Latents) -> NDArray[np.float64]:
        """New latents as the old encoder would have given them: float (N, latent_dim) to the same shape."""
        z = _as_map(latents, self.area)
        return (np.einsum("ij,njp->nip", self.matrix, z) + self.offset[:, None]).reshape(len(z), -1)

    def undo(self, latents: Latents) -> NDArray[np.float64]:
        """The other way."""
        z = _as_map(latents, self.area) - self.offset[:, None]
        return np.einsum("ij,njp->nip", np.linalg.inv(self.matrix), z).reshape(len(z), -1)


@dataclass(frozen=True, eq=False)
class AlignmentQuality:
    """How much of the old latents is in the new ones, on frames that the map was not fitted to.

    R² of a value of the latent is ``1 - mean((old - new)²) / var(old)``: 1 where it is the same, 0 where it tells no more than
    the mean, negative where it misleads.

    Attributes:
        before: float64 (latent_dim,), R² of the new latents as they are; NaN for values that hardly vary in the old ones
            (by less than a tenth of the one that varies most).
        after: The same with the map.

    Example:
        >>> old = np.random.default_rng(0).normal(size=(100, 2))
        >>> quality = AlignmentQuality.measure(old, new=old[:, ::-1], aligned=old)
        >>> quality.after.tolist(), bool(quality.before.max() < 0.5)
        ([1.0, 1.0], True)
    """

    before: NDArray[np.float64]
    after: NDArray[np.float64]

    @classmethod
    def measure(cls, old: Latents, new: Latents, aligned: Latents) -> "AlignmentQuality":
        """Compare latents (N, latent_dim) of the same frames, N ≥ 2: of the old encoder, of the new, and mapped ones."""
        return cls(_r2(old, new), _r2(old, aligned))

    def to_json(self) -> dict[str, Any]:
        """Plain values: worst and median of each, the number of values that hardly vary, and R² per value."""
        quiet = int(np.isnan(self.after).sum())
        parts = {"before": self.before, "after": self.after}
        return {
            **{f"worst_{name}": _rounded(np.nanmin(r2)) for name, r2 in parts.items()},
            **{f"median_{name}": _rounded(np.nanmedian(r2)) for name, r2 in parts.items()},
            "quiet": quiet,
            **{f"r2_{name}": [_rounded(value) for value in r2] for name, r2 in parts.items()},
        }


def fit_alignment(
    new: Latents, old: Latents, architecture: Architecture, *, ridge: float = 1e-3
) -> Alignment:  # fmt: skip
    """The affine map from new latents to old ones of the same frames, by least squares with a ridge.

    The ridge presses the map towards the identity, not towards 0 (a ridge regression of ``old - new``): an encoder aligned to
    itself is left exactly as it is, and what hardly varies, so that no frame tells how to map it, stays as well. It is in
    units of each value's own variance, so that it means the same at any scale of latents.

    In a spatial latent, where one map serves all positions, each of them counts by one over its variance: what an agent sees
    is usually normalised value by value. And there is no offset, so that the inverse fits into the decoder exactly: its first
    convolution pads with zeros, and a shifted latent would be padded with another value than before.

    Args:
        new: Float (N, latent_dim), mean latents of the encoder to align.
        old: The same, of the encoder that the policy knows.
        architecture: Of both.
        ridge: How much the map is pressed towards the identity; 0.001 is lost beside the data wherever there is some.

    Raises:
        InputError: Other shapes, fewer than two frames, a number is not finite, or the map has no inverse (for the decoder).

    Example:
        >>> old = np.random.default_rng(0).normal(size=(500, 3))
        >>> new = old[:, [1, 2, 0]] * 2 + 1  # the same, in another order and scale
        >>> architecture = Architecture((32, 32, 3), latent_dim=3)
        >>> alignment = fit_alignment(new, old, architecture, ridge=1e-6)
        >>> bool(np.abs(alignment.apply(new) - old).max() < 1e-3)
        True
    """
    dim, area = architecture.latent_dim, _area(architecture)
    for name, z in (("new", new), ("old", old)):
        if z.ndim != 2 or z.shape[1] != dim or len(z) < 2 or len(new) != len(old):
            raise InputError(
                f"{name} latents must be (frames, {dim}), of the same two or more frames both: {new.shape}, {old.shape}"
            )
        if not np.isfinite(z).all():
            raise InputError(f"the {name} latents are not finite numbers; look at the encoder that gave them")
    if not 0 <= ridge < math.inf:
        raise InputError(f"ridge must be a number, 0 or more, got {ridge}")
    x, y = _as_map(new, area), _as_map(old, area)  # (N, k, area)
    shift, target = (np.zeros(x.shape[1]) if area > 1 else z.mean((0, 2)) for z in (x, y))
    x, y = x - shift[:, None], y - target[:, None]
    rows = [_row(x, y[:, i] - x[:, i], weights, ridge) for i, weights in enumerate(_weights(y))]
    matrix = np.eye(len(rows)) + np.array(rows)
    return Alignment(matrix, target - matrix @ shift, area)


def fold_alignment(
    architecture: Architecture, alignment: Alignment, encoder: State, decoder: State | None = None, *,
    mean_logvar: NDArray[np.floating[Any]] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:  # fmt: skip
    """Multiply an alignment into the weights of an encoder, and its inverse into those of a decoder.

    The mean is exactly ``matrix @ mean + offset`` (up to rounding), with a linear path too, and the new decoder makes of it
    what the old one made of the mean. The posterior N(mean, diag(exp(logvar))) becomes one whose covariance is no longer
    diagonal, and a head cannot give it; of its diagonal, ``log(sum_j matrix_ij² exp(logvar_j))``, the head gives the first
    order around `mean_logvar`. That is exact for permutations and scales, and only training ever looks at it.

    Args:
        architecture: Of both.
        alignment: From `fit_alignment`.
        encoder: State dict of an `Encoder`; left as it is.
        decoder: State dict of a `Decoder`, or None.
        mean_logvar: Float (latent_dim,), mean log-variance over frames; 0 by default.

    Returns:
        New state dicts, float32.

    Raises:
        InputError: The alignment is of another latent, or has an offset where the latent is spatial and there is a decoder.

    Example:
        >>> from latent_obs.networks import Encoder
        >>> architecture = Architecture((32, 32, 3), latent_dim=2)
        >>> encoder = Encoder(architecture)
        >>> swap = Alignment(np.array([[0.0, 1.0], [1.0, 0.0]]), np.zeros(2))
        >>> x = torch.rand(4, 3, 32, 32)
        >>> before = encoder.mean(x)
        >>> _ = encoder.load_state_dict(fold_alignment(architecture, swap, encoder.state_dict())[0])
        >>> bool(torch.allclose(encoder.mean(x), before.flip(1), atol=1e-5))
        True
    """
    area = _area(architecture)
    if alignment.latent_dim != architecture.latent_dim or alignment.area != area:
        raise InputError(
            f"this alignment is of {alignment.latent_dim} values with {alignment.area} positions, and the encoder has "
            f"{architecture.latent_dim} with {area}"
        )
    if decoder is not None and area > 1 and alignment.offset.any():
        raise InputError(
            "a spatial latent cannot be shifted: the decoder's first convolution pads with zeros, and would show another "
            "picture at its borders. Use an alignment without an offset, as fit_alignment gives it"
        )
    matrix, offset = alignment.matrix, alignment.offset
    inner = dict(encoder)
    _set(inner, "mean_head", _mixed(matrix, inner["mean_head.weight"]), matrix @ _np(inner["mean_head.bias"]) + offset)
    if "linear.weight" in inner:  # a row for each value of the latent; the offset is in the head already
        # In a spatial latent the rows are ordered channel, position: each position is mixed like the map.
        weight, bias = (_per_position(_np(inner[f"linear.{name}"]), area) for name in ("weight", "bias"))
        _set(inner, "linear", np.einsum("ij,jp...->ip...", matrix, weight), np.einsum("ij,jp->ip", matrix, bias))
    spread = np.zeros(len(offset)) if mean_logvar is None else _per_position(np.asarray(mean_logvar, np.float64), area).mean(1)
    variances = matrix**2 * np.exp(spread)
    shares = variances / variances.sum(1, keepdims=True)
    at_spread = np.log(variances.sum(1)) - shares @ spread
    _set(inner, "logvar_head", _mixed(shares, inner["logvar_head.weight"]),
         shares @ _np(inner["logvar_head.bias"]) + at_spread)  # fmt: skip
    if decoder is None:
        return inner, None
    outer, inverse = dict(decoder), np.linalg.inv(matrix)
    weight = np.einsum("oi...,ij->oj...", _np(outer["stem.weight"]), inverse)
    shifted = weight @ offset if area == 1 else 0.0
    _set(outer, "stem", weight, _np(outer["stem.bias"]) - shifted)
    if "linear.weight" in outer:
        straight = _np(outer["linear.weight"])  # (pixels, latent_dim)
        mixed = np.einsum("oip,ij->ojp", straight.reshape(len(straight), -1, area), inverse)
        _set(outer, "linear", mixed, _np(outer["linear.bias"]) - mixed.sum(2) @ offset)
    return inner, outer


def _weights(old: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weight of each position, (k, area), in the fit of a channel: one over its variance, mean 1, so that R² is what counts."""
    spread = old.std(0)
    weights = 1 / np.square(np.maximum(spread, max(SMALLEST_SHARE * spread.max(), np.finfo(np.float32).tiny)))
    return weights / weights.mean(1, keepdims=True)


def _row(
    x: NDArray[np.float64], change: NDArray[np.float64], weights: NDArray[np.float64], ridge: float
) -> NDArray[np.float64]:
    """A row of the map less the identity, (k,): weighted least squares of the change (N, area) on x (N, k, area)."""
    weighted = x * weights / change.size
    gram = np.einsum("nip,njp->ij", weighted, x, optimize=True)
    own = np.diag(gram)
    if not own.any():
        return np.zeros(len(own))
    penalty = np.diag(ridge * (own + _FLOOR * own.mean()))
    try:
        return np.linalg.solve(gram + penalty, np.einsum("nip,np->i", weighted, change))
    except np.linalg.LinAlgError:
        raise InputError(f"no map from these new latents to the old ones can be fitted without a ridge. {_ADVICE}") from None


def _area(architecture: Architecture) -> int:
    return 1 if architecture.bottleneck == "dense" else math.prod(architecture.latent_map[1:])


def _as_map(latents: Latents, area: int) -> NDArray[np.float64]:
    """(N, k * area) to (N, k, area)."""
    return np.asarray(latents, np.float64).reshape(len(latents), -1, area)


def _per_position(values: NDArray[Any], area: int) -> NDArray[np.float64]:
    """(k * area, ...) to (k, area, ...)."""
    return np.asarray(values, np.float64).reshape(-1, area, *values.shape[1:])


def _mixed(matrix: NDArray[np.float64], weight: Tensor) -> NDArray[np.float64]:
    """Outputs of a layer (k, ...) mixed by a matrix (k, k)."""
    return np.einsum("ij,j...->i...", matrix, _np(weight))


def _set(state: dict[str, Tensor], layer: str, weight: NDArray[Any], bias: NDArray[Any]) -> None:
    """Put weights into a state dict, in the shape that they have there."""
    for name, values in (("weight", weight), ("bias", bias)):
        old = state[f"{layer}.{name}"]
        state[f"{layer}.{name}"] = torch.from_numpy(np.ascontiguousarray(values, np.float32).reshape(old.shape)).to(old.device)


def _np(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().cpu().double().numpy()


def _r2(old: Latents, given: Latents) -> NDArray[np.float64]:
    if old.shape != given.shape or len(old) < 2:
        raise InputError(f"latents to compare must be of the same two or more frames, got {old.shape} and {given.shape}")
    wanted, got = np.asarray(old, np.float64), np.asarray(given, np.float64)
    variance = wanted.var(0)
    loud = np.sqrt(variance) > SMALLEST_SHARE * np.sqrt(variance.max())
    error = np.square(wanted - got).mean(0)
    return np.where(loud, 1 - error / np.where(loud, variance, 1.0), np.nan)


def _rounded(value: Any) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
