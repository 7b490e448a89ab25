"""Latents for Stable-Baselines3's vector environments: one forward pass per step for all of them.

Needs stable-baselines3 (`latent-obs[agents]`); nothing else in `latent_obs` imports it.
"""

import inspect
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import InputError, require
from latent_obs.wrappers.observation import EncoderLike, LatentView

if TYPE_CHECKING:
    from latent_obs.wrappers.drift import DriftMonitor

require("stable_baselines3", extra="agents", purpose="encode Stable-Baselines3's vector environments")


class VecLatentObservation(VecEnvWrapper):
    """Replace the pixels of a vector environment by mean latents; the vector twin of `LatentObservation`.

    The frames of all environments, and the last frames of the episodes that ended in this step
    (``info["terminal_observation"]``, from which PPO bootstraps after a time-out), go through the encoder in one batch,
    in
    this process: no CUDA context per worker, and no worker imports torch.

    Args:
        venv: A Stable-Baselines3 vector environment with pixels, a Box or an entry of a Dict.
        encoder: An encoder folder, or a loaded `FrozenEncoder`; or several, as in `LatentObservation`.
        device: Where to encode when `encoder` is a folder.
        pixel_key: Entry of a Dict observation that holds the pixels; found by itself when only one fits.
        latent_only: Drop every other entry of a Dict observation.
        flatten: Join the other entries, vectors of floats, to the latent: one float32 vector; as in
            `LatentObservation`.
        keep_pixels: Keep the image beside its latent; as in `LatentObservation`.
        standardize: Shift and scale latents by their mean and deviation over the training frames.
        history: How many latents to show, the oldest first, per environment; the first one of an episode fills all
            places.
        monitor: Told of every frame and latent; see `DriftMonitor`.

    Attributes:
        index: What each number of an observation is, where that is one vector; () where it is a Dict.

    Raises:
        InputError: The environments have no pixels that the encoder can eat, or have entries that cannot be joined.

    Example:
        >>> import gymnasium as gym
        >>> import numpy as np
        >>> from gymnasium import spaces
        >>> from latent_obs.encoder.architecture import Architecture
        >>> from stable_baselines3.common.vec_env import DummyVecEnv
        >>> class Pixels(gym.Env):
        ...     observation_space = spaces.Box(0, 255, (48, 64, 3), np.uint8)
        ...     action_space = spaces.Discrete(2)
        ...     def reset(self, *, seed=None, options=None):
        ...         return self.observation_space.sample(), {}
        >>> encoder = FrozenEncoder.random(Architecture((32, 32, 3), latent_dim=8), device="cpu")
        >>> VecLatentObservation(DummyVecEnv([Pixels, Pixels]), encoder).reset().shape
        (2, 8)
    """

    def __init__(
        self,
        venv: VecEnv,
        encoder: EncoderLike,
        *,
        device: str = "auto",
        pixel_key: str | None = None,
        latent_only: bool = False,
        flatten: bool = False,
        keep_pixels: bool = False,
        standardize: bool = False,
        history: int = 1,
        monitor: "DriftMonitor | None" = None,
    ) -> None:
        if not isinstance(venv, VecEnv):
            raise InputError(
                f"VecLatentObservation wraps a VecEnv of Stable-Baselines3, got {type(venv).__module__}.{type(venv).__name__}; "
                "LatentObservation is for one environment, VectorLatentObservation for gymnasium.vector"
            )
        self.view = LatentView(
            venv.observation_space,
            encoder,
            device=device,
            pixel_key=pixel_key,
            latent_only=latent_only,
            flatten=flatten,
            keep_pixels=keep_pixels,
            standardize=standardize,
            history=history,
            monitor=monitor,
            # Asked for now, while no step is under way in the worker processes, and only where it is of use.
            inner_index=_index_of(venv) if flatten and not latent_only else (),
        )
        self.index = self.view.index
        super().__init__(venv, observation_space=self.view.space)
        self._batch = self.view.batch(self.num_envs)

    @property
    def encoder(self) -> FrozenEncoder:
        """The encoder, the first one where there are several."""
        return self.view.encoder

    def reset(self) -> VecEnvObs:
        """Reset all, and encode their first frames."""
        return self._batch.reset(self.venv.reset())

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for the step, and encode current and terminal frames in one batch."""
        observation, rewards, dones, infos = self.venv.step_wait()
        finals = {
            i: info["terminal_observation"]
            for i, info in enumerate(infos)
            if info.get("terminal_observation") is not None
        }
        seen, lasts = self._batch.step(observation, finals, dones)
        for i, last in lasts.items():
            infos[i]["terminal_observation"] = last
        return seen, rewards, dones, infos

    def __getstate__(self) -> dict[str, Any]:
        # What SB3 looks its own class up in cannot be pickled, and is made anew.
        return {name: value for name, value in vars(self).items() if name != "class_attributes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.class_attributes = dict(inspect.getmembers(type(self)))


def _index_of(venv: VecEnv) -> Any:
    """The index of the environments' `FeatureObservation`, or () where they have none.

    SB3's worker processes die of a question for an attribute that is not there, so they are asked first whether it is.
    """
    try:
        return venv.get_attr("index", 0)[0] if venv.has_attr("index") else ()
    except (AttributeError, NotImplementedError):  # vector environments that are not SB3's own
        return ()
