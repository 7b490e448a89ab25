"""Actions that are one vector of numbers: by centroids of demonstrations, or as they are."""

import os
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from latent_obs.actions.centroids import Centroids
from latent_obs.actions.common import box_value, noop_action, only_box, whole_number
from latent_obs.util.errors import InputError


class CentroidActions(gym.ActionWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Choose by number from centroids of demonstrated actions; number 0 is the environment's no-op.

    Args:
        env: An environment whose action is a Box of floats, alone or as the single entry of a Dict.
        centroids: From `fit_centroids`, or the file they were saved in. Clipped to the bounds of the Box.

    Attributes:
        centroids: The centroids, as they were fitted.
        vectors: (k + 1, d), what each number does: the no-op, then the centroids, clipped; read-only.
        names: "noop", "centroid 1", …
        noop: 0.

    Raises:
        InputError: The action space is another one, or of another dimension than the centroids.

    Example:
        >>> env = gym.Env()
        >>> env.action_space = spaces.Dict(vector=spaces.Box(-1.0, 1.0, (2,)))
        >>> env = CentroidActions(env, Centroids(np.array([[0.5, 2.0]]), np.array([7]), 0.1))
        >>> env.action_space, env.action(1)
        (Discrete(2), {'vector': array([0.5, 1. ], dtype=float32)})
    """

    noop = 0

    def __init__(self, env: gym.Env[Any, Any], centroids: Centroids | str | os.PathLike[str]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, centroids=centroids)
        gym.ActionWrapper.__init__(self, env)
        self._key, box = _box_of(env.action_space, "CentroidActions")
        self.centroids = centroids if isinstance(centroids, Centroids) else Centroids.load(centroids)
        size = int(np.prod(box.shape))
        if self.centroids.vectors.shape[1] != size:
            raise InputError(
                f"centroids have {self.centroids.vectors.shape[1]} numbers each, and an action of this environment has "
                f"{size}: {box}. Fit them to demonstrations of this environment"
            )
        noop = noop_action(env)
        rows = np.clip(self.centroids.vectors.reshape(-1, *box.shape).astype(box.dtype), box.low, box.high)
        self._rows = np.concatenate([(noop if self._key is None else noop[self._key])[None], rows])
        self.vectors: NDArray[Any] = self._rows.reshape(len(rows) + 1, -1)
        self.vectors.flags.writeable = False
        self.names = ("noop", *(f"centroid {i}" for i in range(1, len(rows) + 1)))
        self.action_space: spaces.Discrete = spaces.Discrete(len(self.names))

    def action(self, action: Any) -> Any:
        """A fresh copy of the vector with a number, in a Dict where the environment has one."""
        vector = self._rows[whole_number(action, 0, len(self._rows), "the action")].copy()
        return vector if self._key is None else {self._key: vector}


class VectorActions(gym.ActionWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Take the vector itself where the environment takes a Dict with that as its single entry, so that PPO can act.

    In an obfuscated environment the numbers are a code, in which zeros press keys and turn around, and so does a policy
    that starts around zero.

    Args:
        env: An environment whose action space is a Dict with a single entry, a Box of floats.

    Attributes:
        names: The key of the entry.

    Raises:
        InputError: The action space is another one.

    Example:
        >>> env = gym.Env()
        >>> env.action_space = spaces.Dict(vector=spaces.Box(-1.0, 1.0, (2,)))
        >>> env = VectorActions(env)
        >>> env.action_space, env.action([0.5, 1])
        (Box(-1.0, 1.0, (2,), float32), {'vector': array([0.5, 1. ], dtype=float32)})
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.ActionWrapper.__init__(self, env)
        key, box = _box_of(env.action_space, "VectorActions")
        if key is None:
            raise InputError(f"VectorActions takes a vector out of a Dict, and the action space is one already: {box}")
        self._key: str = key
        self._noop = noop_action(env)[key]
        self.names = (key,)
        self.action_space: spaces.Box = spaces.Box(box.low, box.high, box.shape, np.dtype(box.dtype).type)

    @property
    def noop(self) -> NDArray[Any]:
        """The environment's no-op as a vector; a fresh copy."""
        return self._noop.copy()

    def action(self, action: Any) -> dict[str, NDArray[Any]]:
        """The Dict action of a vector; `InputError` if it is not in the action space."""
        return {self._key: box_value(self.action_space, action, "the action")}


def _box_of(space: spaces.Space[Any], wrapper: str) -> tuple[str | None, spaces.Box]:
    found = only_box(space)
    if found is None:
        raise InputError(f"{wrapper} needs one Box of floats, alone or as the single entry of a Dict, got {space}")
    return found
