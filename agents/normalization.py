"""Running normalization of observations in which all values of a latent share one deviation."""

import math
from collections.abc import Mapping
from copy import copy
from typing import Any

from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_wrapper

from latent_obs.util.errors import InputError
from latent_obs.wrappers.sb3 import VecLatentObservation


class LatentNormalize(VecNormalize):
    """`VecNormalize` that divides all values of a latent by one number, so that they keep their relation to each other.

    If every value is divided by its own deviation, those that hardly vary get the same weight as the informative ones:
    nearly all principal components hardly vary. Such whitening speeds up a linear fit to plenty of samples (LeCun et
    al. 2012, "Efficient BackProp", section 4.3), but an agent has few. Each value is still shifted by its own mean, and
    numbers beside the latent are normalized each by itself.

    Args:
        venv: Environments, some of whose numbers are latents.
        latents: Where they are: by entry of a Dict observation (None if the observation is a vector), how many numbers
            from the first one on. By default those of the `VecLatentObservation` beneath.
        deviation: What the deviation of a latent's values becomes (the root of the mean of their variances).
        **kwargs: As for `VecNormalize`; `norm_obs_keys` is by default all entries of numbers.

    Raises:
        InputError: `deviation` is not above 0, or there are neither `latents` nor a `VecLatentObservation` beneath.

    Example::

        venv = latent_obs.make(
            "VizdoomBasic-v1", "runs/doom/encoder", num_envs=8, vectorization="sb3-async", latent_only=True
        )
        PPO("MlpPolicy", LatentNormalize(venv)).learn(100_000)

    Example:
        >>> import gymnasium as gym
        >>> import numpy as np
        >>> from stable_baselines3.common.vec_env import DummyVecEnv
        >>> normalize = LatentNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]), {None: 2}, deviation=1)
        >>> normalize.obs_rms.mean, normalize.obs_rms.var = np.zeros(4), np.array([1.0, 7.0, 1.0, 9.0])
        >>> normalize.normalize_obs(np.full((1, 4), 6.0)).round(2)
        array([[3., 3., 6., 2.]], dtype=float32)
    """

    def __init__(
        self, venv: VecEnv, latents: Mapping[str | None, int] | None = None, deviation: float = 0.5, **kwargs: Any
    ) -> None:
        if not 0 < deviation < math.inf:
            raise InputError(f"deviation must be above 0, got {deviation}")
        self.latents, self.deviation = dict(latents_in(venv) if latents is None else latents), deviation
        if latents is None and not self.latents:
            raise InputError("latents: there is no VecLatentObservation beneath; wrap in one first, or pass `latents`")
        super().__init__(venv, **{"norm_obs_keys": number_keys(venv.observation_space), **kwargs})

    def _normalize_obs(self, obs: NDArray[Any], obs_rms: RunningMeanStd) -> NDArray[Any]:
        return super()._normalize_obs(obs, self._shared(obs_rms))

    def _unnormalize_obs(self, obs: NDArray[Any], obs_rms: RunningMeanStd) -> NDArray[Any]:
        return super()._unnormalize_obs(obs, self._shared(obs_rms))

    def _shared(self, statistics: RunningMeanStd) -> RunningMeanStd:
        """The statistics with one variance for a latent: dividing by its root gives its values their deviation."""
        by_key = self.obs_rms if isinstance(self.obs_rms, dict) else {None: self.obs_rms}
        count = next((self.latents.get(key, 0) for key, own in by_key.items() if own is statistics), 0)
        if count:
            statistics = copy(statistics)
            statistics.var = statistics.var.copy()
            statistics.var[:count] = statistics.var[:count].mean() / self.deviation**2
        return statistics


def number_keys(space: spaces.Space[Any]) -> list[str] | None:
    """The entries of a Dict that are numbers and not pixels (uint8); None for another space."""
    if not isinstance(space, spaces.Dict):
        return None
    return [key for key, entry in space.spaces.items() if isinstance(entry, spaces.Box) and entry.dtype != "uint8"]


def latents_in(venv: VecEnv) -> dict[str | None, int]:
    """How many numbers the latents of the `VecLatentObservation` beneath take, by entry (None: of a vector)."""
    wrapper = unwrap_vec_wrapper(venv, VecLatentObservation)
    return {} if wrapper is None else wrapper.observation_encoder.latent_sizes
