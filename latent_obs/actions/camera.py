"""`CameraBins`: degrees of a camera turn as a small number of bins, finer near zero."""

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latent_obs.util.errors import InputError, check_choice, check_count

Rule = Literal["mu-law", "linear"]
#: More bins than this are no longer a choice but a number.
MOST_BINS = 999


@dataclass(frozen=True)
class CameraBins:
    """An odd number of bins of degrees, symmetric around a central one that is exactly 0.0.

    "linear" spaces them evenly from -max to max. "mu-law" spaces them evenly after companding, so that they are fine
    near zero, where aiming happens, and coarse further out: with v in degrees, m the largest turn and mu the curvature,

        encode(v) = sign(v) · m · log(1 + mu |v| / m) / log(1 + mu)
        decode(u) = sign(u) · m · ((1 + mu)^(|u| / m) - 1) / mu

    Bins are equally spaced values of encode; a turn goes to the bin nearest in them. The formula and the defaults (11
    bins, 10 degrees, mu 10) are those of VPT: Baker et al. 2022, "Video PreTraining (VPT): Learning to Act by Watching
    Unlabeled Online Videos", whose bins these are.

    Args:
        bins: An odd number from 3.
        max_degrees: The largest turn; larger ones go to the outermost bins.
        rule: "mu-law" or "linear".
        mu: Curvature of the mu-law; the larger, the finer near zero.

    Attributes:
        values: float64 (bins,), degrees of each bin, ascending; read-only.

    Raises:
        InputError: An argument is out of its range, or two bins are the same as float32 numbers.

    Example:
        >>> camera = CameraBins()
        >>> camera.values.round(2).tolist()
        [-10.0, -5.81, -3.22, -1.61, -0.62, 0.0, 0.62, 1.61, 3.22, 5.81, 10.0]
        >>> camera.to_bins([0.1, -4.0, 90.0])
        array([ 5,  2, 10])
    """

    bins: int = 11
    max_degrees: float = 10.0
    rule: Rule = "mu-law"
    mu: float = 10.0
    values: NDArray[np.float64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if check_count("bins", self.bins, 3) > MOST_BINS or self.bins % 2 == 0:
            raise InputError(f"bins must be an odd number from 3 to {MOST_BINS}, got {self.bins!r}")
        check_choice("rule", self.rule, get_args(Rule))
        for name, most in (("max_degrees", 180.0), ("mu", np.finfo(float).max)):
            value = getattr(self, name)
            if not isinstance(value, int | float | np.number) or not 0 < value <= most:
                raise InputError(f"{name} must be a number above 0 and at most {most:g}, got {value!r}")
        # One half, mirrored: rounding must not make left and right differ.
        share = np.arange(1, self.center + 1) / self.center
        if self.rule == "mu-law":
            share = np.minimum(np.expm1(share * np.log1p(self.mu)) / self.mu, 1.0)
        half = share * self.max_degrees
        half[-1] = self.max_degrees
        values = np.concatenate([-half[::-1], [0.0], half])
        if not (np.diff(values.astype(np.float32)) > 0).all():
            raise InputError(f"bins of {self} are the same as float32 numbers; take a smaller mu or fewer bins")
        values.flags.writeable = False
        object.__setattr__(self, "values", values)

    @property
    def center(self) -> int:
        """The bin of no turn."""
        return self.bins // 2

    def to_degrees(self, bins: ArrayLike) -> NDArray[np.float64]:
        """Degrees of bins, in their shape; `InputError` if they are not whole numbers from 0 to bins - 1."""
        array = np.asarray(bins)
        if array.dtype.kind not in "iu" or not ((array >= 0) & (array < self.bins)).all():
            raise InputError(f"bins of the camera must be whole numbers from 0 to {self.bins - 1}, got {bins!r}")
        return self.values[array]

    def to_bins(self, degrees: ArrayLike) -> NDArray[np.int64]:
        """Nearest bin of each turn (after companding), int64 in the shape of `degrees`; `InputError` for NaN.

        Turns beyond `max_degrees` go to the outermost bins.
        """
        array = np.asarray(degrees)
        if array.dtype.kind not in "fiu" or np.isnan(array).any():
            raise InputError(f"degrees of the camera must be numbers, got {degrees!r}")
        share = np.minimum(np.abs(array.astype(np.float64)) / self.max_degrees, 1.0)
        if self.rule == "mu-law":
            share = np.log1p(self.mu * share) / np.log1p(self.mu)
        # The size first, then the sign: ties are broken alike on both sides.
        steps = np.rint(share * self.center).astype(np.int64)
        return self.center + np.where(array < 0, -steps, steps)
