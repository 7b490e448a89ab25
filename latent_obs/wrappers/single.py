"""`LatentObservation`: the Gymnasium wrapper that turns an environment's pixels into mean latent vectors."""

from typing import Any, Unpack

import gymnasium as gym

from latent_obs.envs.border import own
from latent_obs.envs.faults import CheckedEnv
from latent_obs.wrappers.observation import EncoderLike, ObservationEncoder, ObservationOptions, OptionsDict


class LatentObservation(gym.ObservationWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Replace an environment's pixels by the mean latent vectors of a frozen encoder.

    Pixels are a uint8 Box, (H, W, C) or (C, H, W), or one entry of a Dict observation; they are resized by the
    encoder's pixel contract. The observation becomes a float32 Box (latent_dim,), or the Dict with that in place of the
    pixels, or with `flatten` one float32 Box of both.

    Args:
        env: The environment.
        encoder: An encoder folder; a loaded `FrozenEncoder`, to share between environments; or a `PCA` or its file.
            Several in a list, whose latents of the image are joined. Or a mapping from the entries of a Dict
            observation that hold pixels to these.
        **options: The fields of `ObservationOptions`: device, pixel_key, latent_only, flatten, keep_pixels, …

    Attributes:
        index: What each number is, if the observation is one vector; () if it is a Dict.
        observation_encoder: What reads, encodes and assembles.

    Raises:
        InputError: The environment has no pixels that the encoder can read, or has entries that cannot be joined.

    Example::

        env = LatentObservation(gym.make("VizdoomBasic-v1"), "runs/doom/encoder", latent_only=True)
    """

    def __init__(self, env: gym.Env[Any, Any], encoder: EncoderLike, **options: Unpack[OptionsDict]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, encoder=encoder, **options, _disable_deepcopy=True)
        gym.ObservationWrapper.__init__(self, CheckedEnv(own(env)))
        self.observation_encoder = ObservationEncoder(
            env.observation_space,
            encoder,
            ObservationOptions(**options),
            inner_index=lambda: env.get_wrapper_attr("index") if env.has_wrapper_attr("index") else (),
        )
        self.observation_space = self.observation_encoder.space
        self.index = self.observation_encoder.index

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment, and begin a new history of latents."""
        self.observation_encoder.restart()
        return super().reset(seed=seed, options=options)

    def observation(self, observation: Any) -> Any:
        """The observation with its pixels encoded."""
        return self.observation_encoder(observation)[0]
