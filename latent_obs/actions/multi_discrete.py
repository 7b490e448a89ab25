"""`MultiDiscreteActions`: every key, every Enum and both turns of the camera as choices of their own."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from latent_obs.actions.camera import CameraBins
from latent_obs.actions.common import CAMERA, dict_space, is_camera, is_key, noop_action, value_of
from latent_obs.envs.old_gym import Enum
from latent_obs.util.errors import InputError

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
        index: The place of each name.
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
        self._inner = self._space.spaces
        for key, space in self._inner.items():
            if not isinstance(space, spaces.Discrete) and not is_camera(key, space):
                raise InputError(
                    f"action[{key!r}] is {space}; MultiDiscreteActions takes Discrete and Enum entries and a `camera` "
                    "of two floats. List actions with DiscreteActions instead"
                )
        discrete = {key: space for key, space in self._inner.items() if isinstance(space, spaces.Discrete)}
        order = sorted(discrete, key=lambda key: not is_key(discrete[key]))  # stable: else the order of the Dict
        self._places = [(key, i, int(discrete[key].start)) for i, key in enumerate(order)]
        sizes = [int(discrete[key].n) for key in order]
        self.names = tuple(order)
        self.choices = [
            list(part.names) if isinstance(part, Enum) else [str(int(part.start) + i) for i in range(int(part.n))]
            for part in (discrete[key] for key in order)
        ]
        self._camera_at = len(order) if CAMERA in self._inner and CAMERA not in discrete else None
        if self._camera_at is not None:
            turn = self._inner[CAMERA]
            assert isinstance(turn, spaces.Box)
            self._turns = camera.values.astype(turn.dtype)
            if (turn.low > self._turns[0]).any() or (turn.high < self._turns[-1]).any():
                raise InputError(f"max_degrees is {camera.max_degrees:g}, more than action['{CAMERA}'] allows: {turn}")
            sizes += [camera.bins] * 2
            self.names += (f"{CAMERA} pitch", f"{CAMERA} yaw")
            self.choices += [[f"{degrees:.3g}" for degrees in camera.values]] * 2
        self.index = {name: i for i, name in enumerate(self.names)}
        self._sizes = sizes
        self.action_space: spaces.MultiDiscrete = spaces.MultiDiscrete(sizes)
        noop = noop_action(env)
        self._noop = self.inverse(noop)
        if self._camera_at is not None and not np.array_equal(self.action(self._noop)[CAMERA], noop[CAMERA]):
            raise InputError(
                f"the environment's no-op turns the camera by {noop[CAMERA].tolist()}, which no bin of {camera} does"
            )

    @property
    def noop(self) -> NDArray[np.int64]:
        """The action that does nothing, int64 (n,); a fresh copy."""
        return self._noop.copy()

    def action(self, action: Any) -> dict[str, Any]:
        """The Dict action of a row of choices, whole numbers (n,); `InputError` if it is not in the action space."""
        array = np.asarray(action)
        if array.dtype.kind not in "iu" or array.shape != (len(self._sizes),):
            raise InputError(
                f"the action must be {len(self._sizes)} whole numbers ({', '.join(self.names)}), got {action!r}"
            )
        numbers = array.tolist()
        for name, number, size in zip(self.names, numbers, self._sizes, strict=True):
            if not 0 <= number < size:
                raise InputError(f"{name} must be from 0 to {size - 1}, got {number}")
        chosen: dict[str, Any] = {key: numbers[i] + start for key, i, start in self._places}
        if self._camera_at is not None:
            chosen[CAMERA] = self._turns[array[self._camera_at :]]
        return {key: chosen[key] for key in self._inner}

    def inverse(self, action: Mapping[str, Any]) -> NDArray[np.int64]:
        """The row of choices nearest to a Dict action, such as one of a demonstration: int64 (n,).

        Enums may be names. Turns beyond the outermost bins go to these. Raises `InputError` for an action outside the
        environment's action space.
        """
        values = value_of(self._space, action, "action")
        row = [values[key] - start for key, _, start in self._places]
        if self._camera_at is not None:
            row += self.camera.to_bins(values[CAMERA]).tolist()
        return np.array(row, np.int64)
