"""Where the pixels are in an observation, and a wrapper that resizes them. Needs no torch."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from latent_obs.pixels import Layout, PixelContract, find_pixel_key
from latent_obs.util.errors import InputError


class PixelReader:
    """Finds the pixels in an observation space; an `InputError` if it holds none that the encoder can read.

    Args:
        space: The observation space of one environment.
        contract: What the encoder takes.
        pixel_key: The entry of a Dict that holds the pixels; found if only one fits.

    Attributes:
        key: The entry that holds the pixels; None if the observation is the pixels.
        shape: Shape of a frame.
        layout: Its layout.
        name: What to call the pixels in a message.
    """

    def __init__(self, space: spaces.Space[Any], contract: PixelContract, pixel_key: str | None = None) -> None:
        self.contract = contract
        self.key: str | None = None
        self.name, pixels = "observation", space
        if isinstance(space, spaces.Dict):
            self.key = find_pixel_key(space, contract, pixel_key)
            self.name, pixels = f"observation[{self.key!r}]", space.spaces[self.key]
        elif pixel_key is not None:
            raise InputError(f"pixel_key is {pixel_key!r}, but the observation is no Dict: {type(space).__name__}")
        self.layout: Layout = contract.check_space(pixels, self.name)
        self.shape: tuple[int, ...] = pixels.shape or ()

    def refuse_blur(self) -> None:
        """Raise an InputError if frames are far smaller than those that the encoder takes."""
        self.contract.refuse_blur(self.shape, self.layout, self.name)

    def mismatch(self, shape: tuple[int, ...]) -> InputError:
        """The error for pixels of another shape than the space declared; some environments swap height and width."""
        return InputError(
            f"{self.name} has shape {shape}, but the environment declared {self.shape}. Correct its observation_space"
        )


class ContractObservation(gym.ObservationWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Resize an environment's pixels to what an encoder takes, without encoding them.

    For worker processes: they send the parent a small frame instead of a large one, and the parent encodes the frames
    of all of them in one batch.

    Args:
        env: The environment.
        contract: What the encoder takes.
        pixel_key: Entry of a Dict observation that holds the pixels; found if only one fits.
        latent_only: Drop every other entry of a Dict observation.

    Attributes:
        reader: Where the pixels are.
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
        self.reader = PixelReader(env.observation_space, contract, pixel_key)
        self._keeps_entries = self.reader.key is not None and not latent_only
        resized: spaces.Space[Any] = spaces.Box(0, 255, contract.shape, np.uint8)
        if isinstance(env.observation_space, spaces.Dict) and self._keeps_entries:
            resized = spaces.Dict({**env.observation_space.spaces, str(self.reader.key): resized})
        self.observation_space = resized

    def observation(self, observation: Any) -> Any:
        """The observation with its pixels resized to uint8 (height, width, channels)."""
        reader = self.reader
        pixels = np.asarray(observation if reader.key is None else observation[reader.key])
        if pixels.shape != reader.shape:
            raise reader.mismatch(pixels.shape)
        frame = reader.contract.convert(pixels[None], reader.layout, reader.name)[0]
        return {**observation, reader.key: frame} if self._keeps_entries else frame
