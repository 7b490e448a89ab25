"""The last latents of each environment, restarted with its episodes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Latents = NDArray[np.float32]


class LatentHistory:
    """The last latents of each of `count` environments, per camera.

    Args:
        length: Latents to show, the oldest first.
        dims: Values of each camera's latent.
        count: Number of environments.

    Example:
        >>> history = LatentHistory(3, dims=(1,), count=1)
        >>> for value in (1.0, 2.0):
        ...     [shown] = history.push([np.full((1, 1), value, np.float32)])
        >>> shown.tolist()  # the first one of the episode fills the places before it
        [[1.0, 1.0, 2.0]]
    """

    def __init__(self, length: int, dims: Sequence[int], count: int) -> None:
        self.length = length
        self._last = [np.zeros((count, length, dim), np.float32) for dim in dims]
        self._fresh: NDArray[np.bool_] = np.ones(count, bool)  # whose next latent is the first of an episode

    def restart(self, which: NDArray[np.bool_] | None = None) -> None:
        """The next latents of these environments (None: of all) are the first of their episodes."""
        self._fresh[:] |= True if which is None else which

    def push(self, latents: Sequence[Latents], which: NDArray[np.bool_] | None = None) -> list[Latents]:
        """Take in the newest latents, for each camera (count, d), and give what to show, (count, length * d).

        Args:
            latents: Of all environments.
            which: Whose latents are new; the others' history stays as it is. None: all.
        """
        if self.length == 1:
            return list(latents)
        shown = []
        for last, new in zip(self._last, latents, strict=True):
            moved = ~self._fresh if which is None else which & ~self._fresh
            last[moved, :-1] = last[moved, 1:]
            last[moved, -1] = new[moved]
            last[self._fresh] = new[self._fresh, None]
            shown.append(last.reshape(len(last), -1).copy())
        self._fresh[:] = False
        return shown

    def ending(self, latents: Sequence[Latents], which: Sequence[int]) -> list[Latents]:
        """What to show of the last observations of episodes: for each camera (len(which), length * d); nothing is taken in."""
        if self.length == 1:
            return list(latents)
        return [
            np.concatenate([last[which, 1:], new[:, None]], axis=1).reshape(len(which), -1)
            for last, new in zip(self._last, latents, strict=True)
        ]
