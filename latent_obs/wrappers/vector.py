"""Latents for Gymnasium's vector environments: one forward pass per step for all of them, in each autoreset mode."""

import contextlib
from copy import deepcopy
from typing import Any, Unpack, cast

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from latent_obs.envs.border import own_envs_of
from latent_obs.envs.workers import WorkerError, worker_losses
from latent_obs.util.errors import InputError
from latent_obs.wrappers.observation import EncoderLike, ObservationEncoder, ObservationOptions, OptionsDict


class VectorLatentObservation(gym.vector.VectorWrapper, gym.utils.RecordConstructorArgs):
    """Replace the pixels of a vector environment by mean latents; the vector twin of `LatentObservation`.

    It shows, step for step, what `LatentObservation` around each environment would show, and encodes the frames of all
    of them in one batch, in this process: no worker imports torch. Of ``venv.metadata["autoreset_mode"]``:

    - NEXT_STEP: the step after the end of an episode returns the first observation of the next one.
    - SAME_STEP: the last observations of episodes, in ``infos["final_obs"]``, are encoded in the same batch.
    - DISABLED: ``reset(options={"reset_mask": mask})`` starts episodes. Environments that are not in the mask show what
      they showed last, and their history goes on.

    All that is returned is memory of its own: ``copy=False`` in the vector environment only saves copies of the pixels.

    Args:
        venv: A Gymnasium vector environment with pixels, a Box or an entry of a Dict. Of spaces that differ
            (``observation_mode="different"``) the first one counts.
        encoder: An encoder folder or a loaded `FrozenEncoder`; or several, as in `LatentObservation`.
        **options: The fields of `ObservationOptions`: device, pixel_key, latent_only, flatten, keep_pixels, …

    Attributes:
        observation_encoder: What reads, encodes and assembles.
        index: What each number of an observation is, if that is one vector; () if it is a Dict.
        autoreset_mode: When environments are reset.

    Raises:
        InputError: It is no vector environment of Gymnasium's, its autoreset mode is unknown, or it has no pixels that
            the encoder can read.

    Example::

        venv = gym.make_vec("VizdoomBasic-v1", num_envs=8)
        venv = VectorLatentObservation(venv, "runs/doom/encoder", latent_only=True)
        observations, infos = venv.reset()  # float32 (8, latent_dim)
    """

    def __init__(self, venv: VectorEnv[Any, Any, Any], encoder: EncoderLike, **options: Unpack[OptionsDict]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, encoder=encoder, **options, _disable_deepcopy=True)
        if not isinstance(venv, VectorEnv):
            raise InputError(
                f"venv must be a gymnasium.vector.VectorEnv, got {venv!r}; LatentObservation wraps one environment, "
                "VecLatentObservation those of Stable-Baselines3"
            )
        self.autoreset_mode = _autoreset_mode(venv)
        own_envs_of(venv)
        space, chosen = venv.single_observation_space, ObservationOptions(**options)
        self.observation_encoder = ObservationEncoder(space, encoder, chosen, venv.num_envs, lambda: _index_of(venv))
        super().__init__(venv)
        self.index = self.observation_encoder.index
        self.single_observation_space = self.observation_encoder.space
        self.observation_space = batch_space(self.single_observation_space, venv.num_envs)
        self._ended = np.zeros(venv.num_envs, bool)  # whose next step begins an episode, in the mode NEXT_STEP

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset all, or those in ``options["reset_mask"]``, and encode what they show.

        Args:
            seed: One for all (environment i gets ``seed + i``), or one for each.
            options: Passed on; "reset_mask", bool (num_envs,), says which environments to reset.
        """
        # Gymnasium's vector environments take the mask out of the dict that they are given.
        with worker_losses(self.env):
            observation, infos = self.env.reset(seed=seed, options=None if options is None else dict(options))
        mask = options.get("reset_mask") if options else None
        mask = None if mask is None else np.asarray(mask, bool)
        self._ended &= False if mask is None else ~mask
        self.observation_encoder.restart(mask)
        return _own(self.observation_encoder(observation, new=mask)[0]), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all, and encode current and last observations in one batch."""
        with worker_losses(self.env):
            observation, rewards, terminations, truncations, infos = self.env.step(actions)
        self.observation_encoder.check_rewards(rewards)
        ended = np.logical_or(terminations, truncations)
        finals: dict[int, Any] = {}
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            self.observation_encoder.restart(self._ended)
            self._ended = ended
        elif self.autoreset_mode is AutoresetMode.SAME_STEP:
            finals = _finals(infos, ended)
            self.observation_encoder.restart(ended)
        observation, finals = self.observation_encoder(observation, finals)
        if finals:
            last = np.full(self.num_envs, None, object)
            for i, final in finals.items():
                last[i] = _own(final)
            infos = {**infos, "final_obs": last}
        return _own(observation), rewards, terminations, truncations, infos

    def close(self, **kwargs: Any) -> None:
        """Close the environments; of workers that have died by themselves, none is left."""
        with contextlib.suppress(WorkerError), worker_losses(self.env):
            self.env.close(**kwargs)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of each environment, or get an attribute."""
        with worker_losses(self.env):
            return cast(Any, self.env.unwrapped).call(name, *args, **kwargs)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of each environment."""
        with worker_losses(self.env):
            return cast(Any, self.env.unwrapped).get_attr(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of each environment: to one value, or to a list with one for each."""
        with worker_losses(self.env):
            cast(Any, self.env.unwrapped).set_attr(name, values)


def _own(observation: Any) -> Any:
    """Entries that are passed on may be buffers that the next step overwrites."""
    return deepcopy(observation) if isinstance(observation, dict) else observation


def _autoreset_mode(venv: VectorEnv[Any, Any, Any]) -> AutoresetMode:
    """When a vector environment resets; its metadata hold Gymnasium's enum, or its value or name as text."""
    found = venv.metadata.get("autoreset_mode")
    for mode in AutoresetMode:
        if found in (mode, mode.value, mode.name):
            return mode
    # A guess would silently mix the latents of two episodes, or leave final observations as pixels.
    raise InputError(
        f"autoreset_mode in the metadata of {venv} must be one of {[mode.name for mode in AutoresetMode]}, got "
        f"{found!r}. Set venv.metadata before wrapping"
    )


def _finals(infos: Any, ended: NDArray[np.bool_]) -> dict[int, Any]:
    """The last observations of episodes, by the number of the environment."""
    last = infos.get("final_obs", ()) if isinstance(infos, dict) else None
    if not isinstance(last, np.ndarray | list | tuple):
        raise InputError(
            "infos must be a dict whose 'final_obs' holds an object for each environment, got "
            f"{type(infos if last is None else last).__name__}; put DictInfoToList around all other wrappers"
        )
    return {int(i): last[i] for i in np.flatnonzero(infos.get("_final_obs", ended))} if len(last) else {}


def _index_of(venv: VectorEnv[Any, Any, Any]) -> Any:
    """The index of the environments' `FeatureObservation`, or () if they have none."""
    base = venv.unwrapped
    if not isinstance(base, gym.vector.SyncVectorEnv | gym.vector.AsyncVectorEnv):
        return ()
    # A worker process ends when it is asked for an attribute that it does not have.
    return base.get_attr("index")[0] if all(base.call("has_wrapper_attr", "index")) else ()
