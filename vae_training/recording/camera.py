"""The source of frames: an environment, how its pixels become frames, and which observations are pictures."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from latent_obs.pixels import PixelContract, find_pixel_key
from latent_obs.util.errors import InputError
from vae_training.data.frames import Frames
from vae_training.recording.state import StateReader


class Camera:
    """Makes frames of what an environment shows, and reads the state of the game at each (`camera.state`).

    Args:
        env: The environment, before its first reset.
        name: Its name, for messages.
        size: Side of the frames in pixels; None keeps the environment's own size.
        pixel_key: Entry of a Dict observation that holds the pixels, where there is more than one image.
        state: Whether the state of the game is wanted.
    """

    def __init__(
        self, env: gym.Env[Any, Any], name: str, size: int | None, *, pixel_key: str | None = None, state: bool = True
    ) -> None:
        self.env = env
        self._what, self._size = f"a frame of {name}", size
        self._key, self._channels = find_pixels(env.observation_space, pixel_key)
        self.state = StateReader(env, self._key, wanted=state)
        self._contract: PixelContract | None = None

    def contract_of(self, observation: Any) -> PixelContract:
        """How frames are recorded; the first observation decides, as some spaces declare another order of axes."""
        if self._contract is None:
            shape = self.pixels(observation).shape
            layout = PixelContract(1, 1, self._channels).layout_of(shape, self._what)
            height, width = shape[1:] if layout == "CHW" else shape[:2]
            self._contract = PixelContract(self._size or height, self._size or width, self._channels)
        return self._contract

    def pixels(self, observation: Any) -> Frames:
        """The picture in an observation, as the environment gave it."""
        return np.asarray(observation if self._key is None else observation[self._key])

    def frame(self, pixels: Frames) -> Frames:
        """The picture as it is recorded, (H, W, C)."""
        assert self._contract is not None
        return self._contract.convert(pixels[None], what=self._what)[0]


def is_no_picture(pixels: Frames, before: Frames, info: dict[str, Any]) -> bool:
    """Whether the last observation of an episode shows nothing new: black, the one before again, or of a lost game."""
    return not pixels.any() or "error" in info or np.array_equal(pixels, before)


def find_pixels(space: spaces.Space[Any], key: str | None) -> tuple[str | None, int]:
    """Find the key of the pixels (None where the observation is the picture) and their number of channels."""
    if not isinstance(space, spaces.Dict):
        if not isinstance(space, spaces.Box) or len(space.shape) not in (2, 3):
            raise InputError(
                f"the observation is no picture but {type(space).__name__}{space.shape or ''}; expected a uint8 Box "
                "(height, width, channels), or a Dict with one. Gymnasium's AddRenderObservation makes one"
            )
        channels = _channels(space.shape)
        PixelContract(1, 1, channels).check_space(space)
        return None, channels
    boxes = {k: s.shape for k, s in space.spaces.items() if isinstance(s, spaces.Box) and s.dtype == np.uint8}
    found = {k: _channels(shape) for k, shape in boxes.items() if len(shape) == 3 or (k == key and len(shape) == 2)}
    if key is not None and key in found:
        channels = found[key]
    else:  # color before gray: a depth map beside the picture is not the picture
        channels = next((n for n in (3, 1) if n in found.values()), next(iter(found.values()), 3))
    return find_pixel_key(space, PixelContract(1, 1, channels), key), channels


def _channels(shape: tuple[int, ...]) -> int:
    """Entries of the channel axis, the shorter one of the first and the last."""
    return 1 if len(shape) == 2 else min(shape[-1], shape[0])
