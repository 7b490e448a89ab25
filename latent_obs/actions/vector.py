"""Actions that are one vector of numbers: by centroids of demonstrations, or as they are."""

import os
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from latent_obs.actions.centroids import Centroids
from latent_obs.actions.common import box_value, check_env, noop_action, only_box, whole_number
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
        >>> env.action_space, env.action(1), env.inverse([0.6, 0.6])
        (Discrete(2), {'vector': array([0.5, 1. ], dtype=float32)}, 1)
    """

    noop = 0

    def __init__(self, env: gym.Env[Any, Any], centroids: Centroids | str | os.PathLike[str]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, centroids=centroids)
        check_env(env, "CentroidActions")
        gym.ActionWrapper.__init__(self, env)
        self._key, self._box = _box_of(env.action_space, "CentroidActions")
        if not isinstance(centroids, str | os.PathLike | Centroids):
            raise InputError(
                f"centroids must be Centroids or the path of a file of them, got {type(centroids).__name__}"
            )
        self.centroids = centroids if isinstance(centroids, Centroids) else Centroids.load(centroids)
        size = int(np.prod(self._box.shape))
        if self.centroids.vectors.shape[1] != size:
            raise InputError(
                f"centroids have {self.centroids.vectors.shape[1]} numbers each, and an action of this environment has "
                f"{size}: {self._box}. Fit them to demonstrations of this environment"
            )
        noop = noop_action(env)
        rows = self.centroids.vectors.reshape(-1, *self._box.shape).astype(self._box.dtype)
        rows = np.clip(rows, self._box.low, self._box.high)
        self._rows = np.concatenate([(noop if self._key is None else noop[self._key])[None], rows])
        self.vectors: NDArray[Any] = self._rows.reshape(len(rows) + 1, -1)
        self.vectors.flags.writeable = False
        self.names = ("noop", *(f"centroid {i}" for i in range(1, len(rows) + 1)))
        self.action_space: spaces.Discrete = spaces.Discrete(len(self.names))

    def action(self, action: Any) -> Any:
        """A fresh copy of the vector with a number, in a Dict where the environment has one."""
        vector = self._rows[whole_number(action, 0, len(self._rows), "the action")].copy()
        return vector if self._key is None else {self._key: vector}

    def inverse(self, action: Any) -> Any:
        """The number of the nearest vector, the lowest of several.

        Args:
            action: A vector in the shape of the Box, N of them stacked, or an action of the environment's Dict.

        Returns:
            A number; or int64 (N,) for N stacked vectors.

        Raises:
            InputError: It is of another shape, or not finite.
        """
        given = action[self._key] if isinstance(action, Mapping) and self._key in action else action
        array = np.asarray(given) if not isinstance(given, Mapping) else np.asarray(None)
        shape = self._box.shape
        if array.dtype.kind not in "fiu" or array.shape not in (shape, (len(array), *shape) if array.ndim else shape):
            found = f"{array.dtype} of shape {array.shape}" if array.dtype.kind in "fiu" else repr(given)
            raise InputError(f"expected an action of shape {shape}, or several stacked, got {found}")
        if not np.isfinite(array).all():
            raise InputError("an action has numbers that are not finite")
        rows = array.reshape(-1, self.vectors.shape[1]).astype(np.float64)
        table = self.vectors.astype(np.float64)
        # 256 rows at a time: the differences of all to all would not fit into memory for a long demonstration.
        pieces = [rows[i : i + 256] for i in range(0, len(rows), 256)]
        nearest = [((piece[:, None] - table) ** 2).sum(-1).argmin(1) for piece in pieces]
        numbers = np.concatenate(nearest) if nearest else np.zeros(0, np.int64)
        return int(numbers[0]) if array.shape == shape else numbers.astype(np.int64)

    def describe(self) -> str:
        """A line per action: its share of the demonstrated actions."""
        shares = self.centroids.counts / max(1, self.centroids.counts.sum())
        lines = [f"{len(self.names)} actions, from {self.centroids.source or 'centroids'}", "   0  noop"]
        return "\n".join(lines + [f"{i:4d}  {self.names[i]} ({share:.1%})" for i, share in enumerate(shares, 1)])


class VectorActions(gym.ActionWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Take the vector itself where the environment takes a Dict with that as its single entry, so that PPO can act.

    In an obfuscated environment the numbers are a code, in which zeros press keys and turn around, and so does a policy
    that starts around zero.

    Args:
        env: An environment whose action space is a Dict with a single entry, a Box of floats.

    Attributes:
        names: The key of the entry.
        noop: The environment's no-op as a vector.

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
        check_env(env, "VectorActions")
        gym.ActionWrapper.__init__(self, env)
        key, self._box = _box_of(env.action_space, "VectorActions")
        if key is None:
            raise InputError(
                f"VectorActions takes a vector out of a Dict, and the action space is a vector already: {self._box}"
            )
        self._key: str = key
        self._noop = noop_action(env)[key]
        self.names = (key,)
        self.action_space: spaces.Box = spaces.Box(
            self._box.low, self._box.high, self._box.shape, np.dtype(self._box.dtype).type
        )

    @property
    def noop(self) -> NDArray[Any]:
        """The environment's no-op as a vector; a fresh copy."""
        return self._noop.copy()

    def action(self, action: Any) -> dict[str, NDArray[Any]]:
        """The Dict action of a vector; `InputError` if it is not in the action space."""
        return {self._key: box_value(self._box, action, "the action")}

    def inverse(self, action: Mapping[str, Any]) -> NDArray[Any]:
        """The vector of a Dict action; `InputError` if it is not in the environment's action space."""
        if not isinstance(action, Mapping) or set(action) != {self._key}:
            raise InputError(f"the action must be a dictionary with exactly the entry {self._key!r}, got {action!r}")
        return box_value(self._box, action[self._key], f"action[{self._key!r}]")

    def describe(self) -> str:
        """What the vector is."""
        return f"the vector {self._key!r}: {self._box}"


def _box_of(space: spaces.Space[Any], wrapper: str) -> tuple[str | None, spaces.Box]:
    found = only_box(space)
    if found is None:
        raise InputError(
            f"{wrapper} needs an action that is one Box of floats, alone or as the single entry of a Dict, got {space}"
        )
    return found
