"""Running normalization of observations and rewards that leaves a latent its shape: all its values share one
deviation.
"""

import math
from collections.abc import Mapping
from copy import copy
from typing import Any, Literal

from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from latent_obs.util.errors import InputError
from latent_obs.wrappers.sb3 import VecLatentObservation

#: together: the values of a latent share one deviation, other numbers have their own. each: every number has its own.
#: off: as they are.
Normalization = Literal["together", "each", "off"]


class LatentNormalize(VecNormalize):
    """`VecNormalize` that divides all values of a latent by one number, so that they keep their relation to each other.

    Where every value is divided by its own deviation, those that hardly vary become as loud as those that tell most: of
    principal components nearly all hardly vary. Such whitening speeds up a linear fit to plenty of samples (LeCun et
    al. 2012, "Efficient BackProp", section 4.3), and an agent has few: it has to find what matters among hundreds of
    values from a few thousand frames. Each value is still shifted by its own mean, and numbers beside the latent are
    normalized each by itself.

    Args:
        venv: Environments, some of whose numbers are latents.
        latents: Where they are: by entry of a Dict observation (None where the observation is a vector), how many
            numbers from the first one on. By default as the `VecLatentObservation` beneath says.
        deviation: What the deviation of a latent's values becomes (the root of the mean of their variances).
        **kwargs: As for `VecNormalize`; `norm_obs_keys` is by default all entries of numbers.

    Raises:
        InputError: `latents` is not given, and there is no `VecLatentObservation` beneath; or `deviation` is not above
            0.

    Example:
        >>> import gymnasium as gym
        >>> import numpy as np
        >>> from stable_baselines3.common.vec_env import DummyVecEnv
        >>> venv = DummyVecEnv([lambda: gym.make("CartPole-v1")])
        >>> normalize = LatentNormalize(venv, {None: 2}, deviation=1)
        >>> normalize.obs_rms.mean, normalize.obs_rms.var = np.zeros(4), np.array([1.0, 7.0, 1.0, 9.0])
        >>> normalize.normalize_obs(np.full((1, 4), 6.0)).round(2)
        array([[3., 3., 6., 2.]], dtype=float32)
    """

    def __init__(
        self, venv: VecEnv, latents: Mapping[str | None, int] | None = None, deviation: float = 0.5, **kwargs: Any
    ) -> None:
        if not 0 < deviation < math.inf:
            raise InputError(f"deviation must be above 0, got {deviation}")
        found = latents_in(venv) if latents is None else dict(latents)
        if latents is None and not found:
            raise InputError(
                "LatentNormalize finds no latents: put VecLatentObservation around the environments first, say with `latents` "
                "where they are, or take Stable-Baselines3's VecNormalize"
            )
        kwargs.setdefault("norm_obs_keys", _numbers_in(venv.observation_space))
        super().__init__(venv, **kwargs)
        self.latents = found
        self.deviation = deviation

    def _normalize_obs(self, obs: NDArray[Any], obs_rms: RunningMeanStd) -> NDArray[Any]:
        return super()._normalize_obs(obs, self._shared(obs_rms))

    def _unnormalize_obs(self, obs: NDArray[Any], obs_rms: RunningMeanStd) -> NDArray[Any]:
        return super()._unnormalize_obs(obs, self._shared(obs_rms))

    def _shared(self, statistics: RunningMeanStd) -> RunningMeanStd:
        """The statistics with one variance for a latent: dividing by its root gives its values their deviation."""
        of_all = self.obs_rms if isinstance(self.obs_rms, dict) else {None: self.obs_rms}
        count = next((self.latents.get(key, 0) for key, own in of_all.items() if own is statistics), 0)
        if not count:
            return statistics
        shared = copy(statistics)
        shared.var = statistics.var.copy()
        shared.var[:count] = statistics.var[:count].mean() / self.deviation**2
        return shared


def normalized(
    venv: VecEnv,
    how: Normalization,
    *,
    training: bool,
    latent_deviation: float = 0.5,
    normalize_reward: bool = False,
    gamma: float = 0.99,
) -> VecNormalize:
    """Normalise observations by their running statistics (frozen outside training), and rewards in training only.

    Pixels (uint8) are left alone: a CNN divides them by 255 itself.

    Args:
        venv: The environments, with latents or without.
        how: Which numbers share a deviation.
        training: Whether statistics go on running.
        latent_deviation: With "together", what the deviation of a latent's values becomes.
        normalize_reward: Divide rewards by the running deviation of the return.
        gamma: Discount of that return.
    """
    space = venv.observation_space
    keys = _numbers_in(space)
    numbers = bool(keys) if keys is not None else isinstance(space, spaces.Box) and space.dtype != "uint8"
    settings: dict[str, Any] = {
        "training": training,
        "norm_obs": numbers and how != "off",
        "norm_obs_keys": keys or None,
        "norm_reward": training and normalize_reward,
        "gamma": gamma,
    }
    latents = latents_in(venv) if how == "together" else {}
    return LatentNormalize(venv, latents, latent_deviation, **settings) if latents else VecNormalize(venv, **settings)


def _numbers_in(space: spaces.Space[Any]) -> list[str] | None:
    """The entries of a Dict that are numbers and no pixels; None for another space."""
    if not isinstance(space, spaces.Dict):
        return None
    return [key for key, entry in space.spaces.items() if isinstance(entry, spaces.Box) and entry.dtype != "uint8"]


def latents_in(venv: VecEnv) -> dict[str | None, int]:
    """Where latents are in the observations of environments: by entry, or None for a vector, how many numbers they
    take.

    Latents of all cameras and of a whole history come first in a vector.
    """
    inner = venv
    while not isinstance(inner, VecLatentObservation):
        if not isinstance(inner, VecEnvWrapper):
            return {}
        inner = inner.venv
    return inner.observation_encoder.latent_sizes
