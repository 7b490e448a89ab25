"""Where the pixels are in an observation: found once from the space, then read from and replaced in each
observation.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from latent_obs.pixels import Frames, Layout, PixelContract, find_pixel_key
from latent_obs.util.errors import InputError


class PixelReader:
    """Finds the pixels in an observation space, and replaces them in each observation.

    The wrappers for one environment and for a vector of them share it, so that all mean the same pixels.

    Args:
        space: The observation space of one environment.
        contract: What the encoder eats.
        pixel_key: The entry of a Dict that holds the pixels; found when only one fits.
        latent_only: Drop the other entries of a Dict.

    Attributes:
        key: The entry that holds the pixels; None where the observation is the pixels.

    Raises:
        InputError: The space holds no pixels that the encoder can eat.

    Example:
        >>> image, vector = spaces.Box(0, 255, (96, 128, 3), np.uint8), spaces.Box(0, 1, (2,))
        >>> reader = PixelReader(spaces.Dict(pov=image, vector=vector), PixelContract(64, 64, 3))
        >>> reader.frames({"pov": np.zeros(image.shape, np.uint8), "vector": np.ones(2)}).shape
        (1, 64, 64, 3)
    """

    def __init__(
        self,
        space: spaces.Space[Any],
        contract: PixelContract,
        pixel_key: str | None = None,
        latent_only: bool = False,
    ) -> None:
        self.space = space
        self.contract = contract
        self.latent_only = latent_only
        self.key: str | None = None
        if isinstance(space, spaces.Dict):
            self.key = find_pixel_key(space, contract, pixel_key)
            self.layout: Layout = contract.check_space(space.spaces[self.key], f"observation[{self.key!r}]")
            self._shape = space.spaces[self.key].shape
        else:
            if pixel_key is not None:
                raise InputError(
                    f"pixel_key {pixel_key!r} was given, but the observation is no Dict: {type(space).__name__}"
                )
            self.layout = contract.check_space(space)
            self._shape = space.shape

    def refuse_blur(self) -> None:
        """Refuse frames far smaller than those of the encoder, which has seen none so blurred.

        Raises:
            InputError: They are.
        """
        what = "observation space" if self.key is None else f"observation[{self.key!r}]"
        self.contract.refuse_blur(self._shape or (), self.layout, what)

    def replaced_space(self, replacement: spaces.Box) -> spaces.Space[Any]:
        """The observation space with `replacement` where the pixels were."""
        if not isinstance(self.space, spaces.Dict) or self.key is None or self.latent_only:
            return replacement
        return spaces.Dict({k: replacement if k == self.key else s for k, s in self.space.spaces.items()})

    def frames(self, observation: Any, batched: bool = False) -> Frames:
        """The frames of an observation (or of a batch of them) as the encoder eats them, (N, h, w, c).

        Raises:
            InputError: The array is not what the space declared.
        """
        pixels = observation if self.key is None else observation[self.key]
        pixels = np.asarray(pixels)
        if not batched:
            pixels = pixels[None]
        if pixels.shape[1:] != self._shape:
            # Some environments declare (W, H, C) and give (H, W, C): the space is what everything downstream was built
            # on.
            where = "observation" if self.key is None else f"observation[{self.key!r}]"
            raise InputError(
                f"{where} has shape {pixels.shape[1:]}, but the environment declared {self._shape}. Correct its "
                "observation_space, or put a TransformObservation with the true space around it"
            )
        return self.contract.convert(pixels, self.layout, "observation")

    def replace(self, observation: Any, replacement: Any) -> Any:
        """The observation with `replacement` where the pixels were; a batch of both, or one of each."""
        if self.key is None or self.latent_only:
            return replacement
        return {k: replacement if k == self.key else v for k, v in observation.items()}


class ContractObservation(gym.ObservationWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Resize an environment's pixels to what an encoder eats, without encoding them.

    For worker processes: they send the parent a small frame instead of a large one, and the parent encodes the frames
    of all of them in one batch. Needs no torch.

    Args:
        env: The environment.
        contract: What the encoder eats.
        pixel_key: Entry of a Dict observation that holds the pixels; found by itself when only one fits.
        latent_only: Drop every other entry of a Dict observation.

    Raises:
        InputError: The environment has no pixels that the encoder can eat.

    Example:
        >>> class Pixels(gym.Env):
        ...     observation_space = spaces.Box(0, 255, (240, 320, 3), np.uint8)
        ...     def reset(self, *, seed=None, options=None):
        ...         return self.observation_space.sample(), {}
        >>> ContractObservation(Pixels(), PixelContract(64, 64, 3)).reset()[0].shape
        (64, 64, 3)
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        contract: PixelContract,
        *,
        pixel_key: str | None = None,
        latent_only: bool = False,
    ) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, contract=contract, pixel_key=pixel_key, latent_only=latent_only)
        gym.ObservationWrapper.__init__(self, env)
        self.reader = PixelReader(env.observation_space, contract, pixel_key, latent_only)
        self.observation_space = self.reader.replaced_space(spaces.Box(0, 255, contract.shape, np.uint8))

    def observation(self, observation: Any) -> Any:
        """The observation with its pixels resized to uint8 (height, width, channels)."""
        return self.reader.replace(observation, self.reader.frames(observation)[0])
