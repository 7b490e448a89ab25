"""Latents for Stable-Baselines3's vector environments: one forward pass per step for all of them.

Needs stable-baselines3 (`latent-obs[agents]`).
"""

import contextlib
import inspect
from typing import Any, Unpack

from latent_obs.envs.border import own_envs_of
from latent_obs.envs.workers import WorkerError, worker_losses
from latent_obs.util.errors import InputError, require
from latent_obs.wrappers.observation import EncoderLike, ObservationEncoder, ObservationOptions, OptionsDict

require("stable_baselines3", extra="agents", purpose="encode Stable-Baselines3's vector environments")

from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper  # noqa: E402
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn  # noqa: E402


class VecLatentObservation(VecEnvWrapper):
    """Replace the pixels of a vector environment by mean latents; the vector twin of `LatentObservation`.

    The frames of all environments, and the last frames of the episodes that ended in this step
    (``info["terminal_observation"]``, from which PPO bootstraps after a time-out), are encoded in one batch, in this
    process: no CUDA context per worker, and no worker imports torch.

    Args:
        venv: A Stable-Baselines3 vector environment with pixels, a Box or an entry of a Dict.
        encoder: An encoder folder, or a loaded `FrozenEncoder`; or several, as in `LatentObservation`.
        **options: The fields of `ObservationOptions`: device, pixel_key, latent_only, flatten, keep_pixels, …

    Attributes:
        observation_encoder: What reads, encodes and assembles.
        index: What each number of an observation is, if that is one vector; () if it is a Dict.

    Example::

        venv = VecLatentObservation(DummyVecEnv(makers), "runs/doom/encoder", latent_only=True)
        PPO("MlpPolicy", venv).learn(100_000)
    """

    def __init__(self, venv: VecEnv, encoder: EncoderLike, **options: Unpack[OptionsDict]) -> None:
        if not isinstance(venv, VecEnv):
            raise InputError(
                f"venv must be a VecEnv of Stable-Baselines3, got {type(venv).__module__}.{type(venv).__name__}; "
                "LatentObservation wraps one environment, VectorLatentObservation those of gymnasium.vector"
            )
        own_envs_of(venv)
        space, chosen = venv.observation_space, ObservationOptions(**options)
        # It asks for the index now, while no step is under way in the worker processes.
        self.observation_encoder = ObservationEncoder(space, encoder, chosen, venv.num_envs, lambda: _index_of(venv))
        self.index = self.observation_encoder.index
        super().__init__(venv, observation_space=self.observation_encoder.space)

    def reset(self) -> VecEnvObs:
        """Reset all, and encode their first frames."""
        self.observation_encoder.restart()
        with worker_losses(self.venv):
            observation = self.venv.reset()
        return self.observation_encoder(observation)[0]

    def step_async(self, actions: Any) -> None:
        """Begin a step."""
        with worker_losses(self.venv):
            self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for the step, and encode current and terminal frames in one batch."""
        with worker_losses(self.venv):
            observation, rewards, dones, infos = self.venv.step_wait()
        self.observation_encoder.check_rewards(rewards)
        finals = {i: info["terminal_observation"] for i, info in enumerate(infos) if "terminal_observation" in info}
        self.observation_encoder.restart(dones)
        observation, finals = self.observation_encoder(observation, finals)
        for i, last in finals.items():
            infos[i]["terminal_observation"] = last
        return observation, rewards, dones, infos

    def close(self) -> None:
        """Close the environments; of workers that have died by themselves, none is left."""
        with contextlib.suppress(WorkerError), worker_losses(self.venv):
            self.venv.close()

    def __getstate__(self) -> dict[str, Any]:
        # What SB3 looks its own class up in cannot be pickled, and is made anew.
        return {name: value for name, value in vars(self).items() if name != "class_attributes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.class_attributes = dict(inspect.getmembers(type(self)))


def _index_of(venv: VecEnv) -> Any:
    """The index of the environments' `FeatureObservation`, or () if they have none.

    SB3's worker processes end when they are asked for an attribute that they do not have.
    """
    try:
        return venv.get_attr("index", 0)[0] if venv.has_attr("index") else ()
    except (AttributeError, NotImplementedError):  # vector environments that are not SB3's own
        return ()
