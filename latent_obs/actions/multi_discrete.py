"""`MultiDiscreteActions`: each key, each Enum and both turns of the camera (`CameraBins`) as choices of their own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from latent_obs.actions.common import CAMERA, dict_space, is_camera, is_key, noop_action, value_of
from latent_obs.envs.old_gym import Enum
from latent_obs.util.errors import InputError, check_choice, check_count


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
        bins: An odd number from 3 to 999.
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
    rule: Literal["mu-law", "linear"] = "mu-law"
    mu: float = 10.0
    values: NDArray[np.float64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if check_count("bins", self.bins, 3) > 999 or self.bins % 2 == 0:
            raise InputError(f"bins must be an odd number from 3 to 999, got {self.bins!r}")
        check_choice("rule", self.rule, ("mu-law", "linear"))
        for name, most in (("max_degrees", 180.0), ("mu", np.finfo(float).max)):
            value = getattr(self, name)
            if not isinstance(value, int | float | np.number) or not 0 < value <= most:
                raise InputError(f"{name} must be a number above 0 and at most {most:g}, got {value!r}")
        share = np.arange(-self.center, self.center + 1) / self.center
        if self.rule == "mu-law":
            share = np.sign(share) * np.expm1(np.abs(share) * np.log1p(self.mu)) / self.mu
        share[[0, -1]] = -1, 1  # without the error of rounding
        values = share * self.max_degrees
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
        share = np.clip(array.astype(np.float64) / self.max_degrees, -1, 1)
        if self.rule == "mu-law":
            share = np.sign(share) * np.log1p(self.mu * np.abs(share)) / np.log1p(self.mu)
        return self.center + np.rint(share * self.center).astype(np.int64)


_VPT = CameraBins()


class MultiDiscreteActions(gym.ActionWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Choose the value of every entry of a Dict action at once, the camera in bins.

    The order of the choices: the keys (Discrete(2)) in the order of the Dict, then its Enums and other Discrete
    entries in theirs, then "camera pitch" and "camera yaw".

    Args:
        env: An environment whose action space is a Dict of Discrete and Enum entries and at most a `camera`, a Box of
            (pitch, yaw) in degrees.
        camera: Bins of the two turns; those of VPT when not given.

    Attributes:
        names: A name per choice: "attack", …, "craft", …, "camera pitch", "camera yaw".
        choices: What each choice chooses from, in words.
        noop: int64 (n,), the action that does nothing.

    Raises:
        InputError: The action space has an entry of another kind, the camera's bins exceed its bounds, or no bin
            matches the turn of the environment's no-op.

    Example:
        >>> from latent_obs.envs.old_gym import Enum
        >>> env = gym.Env()
        >>> env.action_space = spaces.Dict(
        ...     camera=spaces.Box(-180.0, 180.0, (2,)), craft=Enum(["none", "planks"]), jump=spaces.Discrete(2)
        ... )
        >>> env = MultiDiscreteActions(env)
        >>> env.action_space, env.names
        (MultiDiscrete([ 2 2 11 11]), ('jump', 'craft', 'camera pitch', 'camera yaw'))
        >>> env.action(np.array([1, 0, 5, 10]))
        {'camera': array([ 0., 10.], dtype=float32), 'craft': 0, 'jump': 1}
        >>> env.inverse({"camera": (0.1, 7.0), "craft": "planks", "jump": 0})
        array([0, 1, 5, 9])
    """

    def __init__(self, env: gym.Env[Any, Any], camera: CameraBins = _VPT) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, camera=camera)
        gym.ActionWrapper.__init__(self, env)
        self.camera = camera
        self._space = dict_space(env.action_space, "MultiDiscreteActions")
        self._starts: dict[str, int] = {}  # of the Discrete entries, in the order of the choices
        self._turns: NDArray[Any] | None = None  # degrees of each bin, as the camera's dtype
        self.choices: list[list[str]] = []
        for key, space in sorted(self._space.spaces.items(), key=lambda item: not is_key(item[1])):  # keys first
            if isinstance(space, spaces.Discrete):
                start = self._starts[key] = int(space.start)
                words = space.names if isinstance(space, Enum) else range(start, start + int(space.n))
                self.choices.append(list(map(str, words)))
            elif isinstance(space, spaces.Box) and is_camera(key, space):
                self._turns = camera.values.astype(space.dtype)
                if (space.low > self._turns[0]).any() or (space.high < self._turns[-1]).any():
                    raise InputError(f"max_degrees is {camera.max_degrees:g}, more than {CAMERA} allows: {space}")
            else:
                raise InputError(
                    f"action[{key!r}] is {space}; MultiDiscreteActions takes Discrete and Enum entries and a `camera` "
                    "of two floats. List actions with DiscreteActions instead"
                )
        self.names = tuple(self._starts)
        if self._turns is not None:
            self.names += (f"{CAMERA} pitch", f"{CAMERA} yaw")
            self.choices += [[f"{degrees:.3g}" for degrees in camera.values]] * 2
        self.action_space: spaces.MultiDiscrete = spaces.MultiDiscrete(list(map(len, self.choices)))
        noop = noop_action(env)
        self._noop = self.inverse(noop)
        if self._turns is not None and not np.array_equal(self.action(self._noop)[CAMERA], noop[CAMERA]):
            raise InputError(
                f"the environment's no-op turns the camera by {noop[CAMERA].tolist()}, which no bin of {camera} does"
            )

    @property
    def noop(self) -> NDArray[np.int64]:
        """The action that does nothing, int64 (n,); a fresh copy."""
        return self._noop.copy()

    def action(self, action: Any) -> dict[str, Any]:
        """The Dict action of a row of choices, whole numbers (n,); `InputError` if it is not in the action space."""
        row = np.asarray(action)
        if row.dtype.kind not in "iu" or not self.action_space.contains(row):
            choices = ", ".join(f"{n} for {name}" for name, n in zip(self.names, self.action_space.nvec, strict=True))
            raise InputError(f"the action must be a whole number from 0 for each choice ({choices}), got {action!r}")
        chosen: dict[str, Any] = {
            key: number + start for (key, start), number in zip(self._starts.items(), row.tolist(), strict=False)
        }
        if self._turns is not None:
            chosen[CAMERA] = self._turns[row[-2:]]
        return {key: chosen[key] for key in self._space.spaces}

    def inverse(self, action: Mapping[str, Any]) -> NDArray[np.int64]:
        """The row of choices nearest to a Dict action, such as one of a demonstration: int64 (n,).

        Enums may be names. Turns beyond the outermost bins go to these. Raises `InputError` for an action outside the
        environment's action space.
        """
        values = value_of(self._space, action, "action")
        turns = [] if self._turns is None else self.camera.to_bins(values[CAMERA])
        return np.array([*(values[key] - start for key, start in self._starts.items()), *turns], np.int64)
