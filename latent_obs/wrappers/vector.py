"""Latents for Gymnasium's vector environments: one forward pass per step for all of them, in each autoreset mode."""

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import InputError
from latent_obs.wrappers.observation import EncoderLike, LatentView

if TYPE_CHECKING:
    from latent_obs.wrappers.drift import DriftMonitor

_MODES = {mode.value.lower(): mode for mode in AutoresetMode}


class VectorLatentObservation(gym.vector.VectorWrapper, gym.utils.RecordConstructorArgs):
    """Replace the pixels of a vector environment by mean latents; the vector twin of `LatentObservation`.

    It shows, step for step, what `LatentObservation` around each environment would show, and encodes the frames of all
    of them
    in one batch, in this process: no worker process of an `AsyncVectorEnv` imports torch. The autoreset mode is read
    from ``venv.metadata["autoreset_mode"]``:

    - NEXT_STEP: the step after the end of an episode gives the first observation of the next one.
    - SAME_STEP: last observations of episodes, in ``infos["final_obs"]``, are encoded in the same batch. It stays an
    object
      array, with its mask in ``infos["_final_obs"]``; ``infos["final_info"]`` is left as it is.
    - DISABLED: ``reset(options={"reset_mask": mask})`` starts episodes. Environments that are not in the mask show what
    they
      showed last, as Gymnasium's own vector environments do, and their history goes on.

    All that is returned is memory of its own: ``copy=False`` in the vector environment only saves copies of the pixels.

    Args:
        venv: A Gymnasium vector environment with pixels, a Box or an entry of a Dict: `SyncVectorEnv`,
            `AsyncVectorEnv`, or what `gymnasium.make_vec` makes. Of spaces that differ
            (``observation_mode="different"``) the first one counts.
        encoder: An encoder folder or a loaded `FrozenEncoder`; or several, as in `LatentObservation`.
        device: Where to encode when `encoder` is a folder.
        pixel_key: Entry of a Dict observation that holds the pixels; found by itself when only one fits.
        latent_only: Drop every other entry of a Dict observation.
        flatten: Join the other entries, vectors of floats, to the latent: one float32 vector.
        keep_pixels: Keep the image beside its latent; as in `LatentObservation`.
        standardize: Shift and scale latents by their mean and deviation over the training frames.
        history: How many latents to show, the oldest first, per environment; the first one of an episode fills all
            places.
        monitor: Told of every frame and latent; see `DriftMonitor`.

    Attributes:
        view: What is read and shown.
        index: What each number of an observation is, where that is one vector; () where it is a Dict.
        autoreset_mode: When environments are reset.

    Raises:
        InputError: It is no vector environment of Gymnasium's, does not say when it resets, or has no pixels that the
            encoder can eat.
        EncoderFolderError: The folder is missing, damaged or from a newer format.
        DeviceError: The device asked for is not there.

    Example:
        >>> from latent_obs.encoder.architecture import Architecture
        >>> class Pixels(gym.Env):
        ...     observation_space = gym.spaces.Box(0, 255, (48, 64, 3), np.uint8)
        ...     action_space = gym.spaces.Discrete(2)
        ...     def reset(self, *, seed=None, options=None):
        ...         return self.observation_space.sample(), {}
        >>> encoder = FrozenEncoder.random(Architecture((32, 32, 3), latent_dim=8), device="cpu")
        >>> venv = VectorLatentObservation(gym.vector.SyncVectorEnv([Pixels, Pixels], copy=False), encoder)
        >>> venv.single_observation_space
        Box(-inf, inf, (8,), float32)
        >>> venv.reset()[0].shape
        (2, 8)
    """

    def __init__(
        self,
        venv: VectorEnv[Any, Any, Any],
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
        gym.utils.RecordConstructorArgs.__init__(
            self,
            encoder=encoder,
            device=device,
            pixel_key=pixel_key,
            latent_only=latent_only,
            flatten=flatten,
            keep_pixels=keep_pixels,
            standardize=standardize,
            history=history,
            monitor=monitor,
            _disable_deepcopy=True,
        )
        if not isinstance(venv, VectorEnv):
            raise InputError(
                f"VectorLatentObservation wraps a gymnasium.vector.VectorEnv, got {type(venv).__module__}."
                f"{type(venv).__name__}. LatentObservation is for a single environment, and VecLatentObservation for "
                "the vector environments of Stable-Baselines3"
            )
        self.autoreset_mode = _autoreset_mode(venv)
        self.view = LatentView(
            venv.single_observation_space,
            encoder,
            device=device,
            pixel_key=pixel_key,
            latent_only=latent_only,
            flatten=flatten,
            keep_pixels=keep_pixels,
            standardize=standardize,
            history=history,
            inner_index=_index_of(venv) if flatten else (),
            monitor=monitor,
        )
        super().__init__(venv)
        self.index = self.view.index
        self.single_observation_space = self.view.space
        self.observation_space = batch_space(self.view.space, venv.num_envs)
        self._batch = self.view.batch(venv.num_envs)
        self._ended = np.zeros(venv.num_envs, bool)  # whose next step, in the mode NEXT_STEP, begins an episode
        # Without copy=True, what is not replaced by a latent may be a buffer that the next step writes over.
        self._lends = getattr(venv.unwrapped, "copy", False) is not True

    @property
    def encoder(self) -> FrozenEncoder:
        """The encoder, the first one where there are several."""
        return self.view.encoder

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset all, or those in ``options["reset_mask"]``, and encode what they show.

        Args:
            seed: One for all (environment i gets ``seed + i``), or one for each.
            options: Passed on; "reset_mask", bool (num_envs,), says which environments to reset.
        """
        # Gymnasium's vector environments take the mask out of the dict that they are given.
        given = None if options is None else dict(options)
        observation, infos = self.env.reset(seed=seed, options=given)
        mask = options.get("reset_mask") if options else None
        mask = None if mask is None else np.asarray(mask, bool)
        self._ended &= False if mask is None else ~mask
        return self._own(self._batch.reset(observation, mask)), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all, and encode current and last observations in one batch.

        Raises:
            InputError: An array is not what the space declared, or ``infos["final_obs"]`` is not by environment.
        """
        observation, rewards, terminations, truncations, infos = self.env.step(actions)
        ended = np.logical_or(terminations, truncations)
        finals, restarted = {}, None
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            restarted, self._ended = self._ended, ended
        elif self.autoreset_mode is AutoresetMode.SAME_STEP:
            finals, restarted = _finals(infos, ended), ended
        observation, finals = self._batch.step(observation, finals, restarted)
        if finals:
            last = np.full(self.num_envs, None, object)
            for i, final in finals.items():
                last[i] = deepcopy(final)  # its other entries are the environment's own
            infos = {**infos, "final_obs": last}
        return self._own(observation), rewards, terminations, truncations, infos

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of each environment, or get an attribute."""
        base: Any = self.env.unwrapped
        return base.call(name, *args, **kwargs)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of each environment."""
        base: Any = self.env.unwrapped
        return base.get_attr(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of each environment: to one value, or to a list with one for each."""
        base: Any = self.env.unwrapped
        base.set_attr(name, values)

    def _own(self, observation: Any) -> Any:
        return deepcopy(observation) if self._lends and isinstance(observation, dict) else observation


def _autoreset_mode(venv: VectorEnv[Any, Any, Any]) -> AutoresetMode:
    """When a vector environment resets; Gymnasium's enum, or its value or name as text."""
    found = venv.metadata.get("autoreset_mode")
    text = str(getattr(found, "value", found)).replace("_", "").lower()
    if text not in _MODES:
        # A guess would mix the latents of two episodes, or leave last frames as pixels, and nobody would notice.
        wrong = f"an unknown mode, {found!r}," if found is not None else "nothing"
        raise InputError(
            f"{venv}.metadata['autoreset_mode'] is {wrong} and should say when finished environments are reset. Set it before "
            "wrapping: venv.metadata = {**venv.metadata, 'autoreset_mode': gymnasium.vector.AutoresetMode.NEXT_STEP} where the "
            "next step gives the first observation, SAME_STEP where the last step itself does, DISABLED where nothing does"
        )
    return _MODES[text]


def _finals(infos: Any, ended: NDArray[np.bool_]) -> dict[int, Any]:
    """The last observations of episodes, by the number of the environment."""
    if not isinstance(infos, dict):
        raise InputError(
            f"infos should be a dict, got {type(infos).__name__}; DictInfoToList belongs around all other wrappers"
        )
    last = infos.get("final_obs")
    if last is None:
        return {}
    if not isinstance(last, np.ndarray | list | tuple):
        raise InputError(
            f"infos['final_obs'] should be an array of objects, one for each environment, as Gymnasium's vector environments "
            f"give it, got {type(last).__name__}"
        )
    return {int(i): last[i] for i in np.flatnonzero(infos.get("_final_obs", ended))}


def _index_of(venv: VectorEnv[Any, Any, Any]) -> Any:
    """The index of the environments' `FeatureObservation`, or () where they have none."""
    base = venv.unwrapped
    if not isinstance(base, gym.vector.SyncVectorEnv | gym.vector.AsyncVectorEnv):
        return ()
    # Worker processes die of a question for an attribute that is not there, so they are asked first whether it is.
    return base.get_attr("index")[0] if all(base.call("has_wrapper_attr", "index")) else ()
