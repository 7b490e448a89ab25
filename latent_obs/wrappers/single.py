"""`LatentObservation`: the Gymnasium wrapper that turns an environment's pixels into mean latent vectors."""

from typing import TYPE_CHECKING, Any

import gymnasium as gym

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import InputError
from latent_obs.wrappers.observation import EncoderLike, LatentView

if TYPE_CHECKING:
    from latent_obs.wrappers.drift import DriftMonitor


class LatentObservation(gym.ObservationWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Replace an environment's pixels by the mean latent vectors of a frozen encoder.

    Pixels are a uint8 Box, (H, W, C) or (C, H, W), or one entry of a Dict observation; they are resized by the
    encoder's pixel contract. The observation becomes a float32 Box (latent_dim,), or the Dict with that in place of the
    pixels, or with `flatten` one float32 Box of both.

    Args:
        env: The environment.
        encoder: An encoder folder, or a loaded `FrozenEncoder` to share between environments; several in a list, whose
            latents of the image are joined; or a mapping from the entries of a Dict observation that hold pixels to
            these.
        device: Where to encode when `encoder` is a folder: "auto", "cpu", "cuda", "cuda:1", "mps".
        pixel_key: Entry of a Dict observation that holds the pixels; found by itself when only one fits.
        latent_only: Drop every other entry of a Dict observation.
        flatten: Join the other entries, in the order of the Dict, to the latent: one float32 vector, as an MLP policy
            takes. They must be vectors of floats; put `FeatureObservation` around the environment first where they are
            not. `latent_only` and an observation of pixels only leave nothing to join.
        keep_pixels: Keep the image beside its latent: the observation becomes a Dict with "pixels" and "latent", or a
            Dict keeps the image and gets "<entry>_latent".
        standardize: Shift and scale latents by their mean and deviation over the training frames.
        history: How many latents to show, the oldest first; the first one of an episode fills all places.
        monitor: Told of every frame and latent; see `DriftMonitor`.

    Attributes:
        index: What each number is, where the observation is one vector; () where it is a Dict.
        view: What is read and shown.

    Raises:
        InputError: The environment has no pixels that the encoder can eat, or has entries that cannot be joined.
        EncoderFolderError: The folder is missing, damaged or from a newer format.
        DeviceError: The device asked for is not there.

    Example:
        >>> import numpy as np
        >>> from gymnasium import spaces
        >>> from latent_obs.encoder.architecture import Architecture
        >>> class Pixels(gym.Env):
        ...     observation_space = spaces.Box(0, 255, (48, 64, 3), np.uint8)
        ...     action_space = spaces.Discrete(2)
        ...     def reset(self, *, seed=None, options=None):
        ...         return self.observation_space.sample(), {}
        >>> encoder = FrozenEncoder.random(Architecture((32, 32, 3), latent_dim=8), device="cpu")
        >>> env = LatentObservation(Pixels(), encoder)
        >>> env.observation_space
        Box(-inf, inf, (8,), float32)
        >>> env.reset()[0].shape
        (8,)
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
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
        if not isinstance(env, gym.Env):
            hint = "; VectorLatentObservation is for vectors of them" if isinstance(env, gym.vector.VectorEnv) else ""
            raise InputError(
                f"LatentObservation wraps a gymnasium.Env, got {type(env).__module__}.{type(env).__name__}{hint}"
            )
        gym.ObservationWrapper.__init__(self, env)
        try:
            inner = env.get_wrapper_attr("index")
        except AttributeError:
            inner = ()
        self.view = LatentView(
            env.observation_space,
            encoder,
            device=device,
            pixel_key=pixel_key,
            latent_only=latent_only,
            flatten=flatten,
            keep_pixels=keep_pixels,
            standardize=standardize,
            history=history,
            inner_index=inner,
            monitor=monitor,
        )
        self.observation_space = self.view.space
        self.index = self.view.index
        self._history = self.view.new_history(1)

    @property
    def encoder(self) -> FrozenEncoder:
        """The encoder, the first one where there are several."""
        return self.view.encoder

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; the history of latents begins anew."""
        self._history.restart()
        return super().reset(seed=seed, options=options)

    def observation(self, observation: Any) -> Any:
        """The observation with its pixels encoded."""
        shown = self._history.push(self.view.latents(singles=[observation]))
        return self.view.assemble(observation, [latents[0] for latents in shown])
