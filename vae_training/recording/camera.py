"""An environment that is recorded: how its pixels become frames, and its episodes begin."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from latent_obs.pixels import PixelContract, find_pixel_key
from latent_obs.util.errors import InputError
from vae_training.recording.config import RecordConfig
from vae_training.recording.policy import Policy
from vae_training.recording.state import StateReader

Frames = NDArray[np.uint8]


class Camera:
    """An environment, the way its pixels become frames, what it tells beside them, and the policy that acts in it, if
    any.

    Attributes:
        env: The environment.
        contract: How frames are recorded; known after the first `start`.
        state: What the environment tells of the frame that it has just given.
    """

    contract: PixelContract

    def __init__(
        self,
        env: gym.Env[Any, Any],
        config: RecordConfig,
        present_shape: tuple[int, ...] | None,
        policy: Policy | None = None,
    ) -> None:
        self.env, self._policy = env, policy
        self._config = config
        self._present_shape = present_shape
        self._key, self._channels = find_pixels(env.observation_space, config.pixel_key)
        self.state = StateReader(env, self._key, wanted=config.state)
        self._ready = False
        if policy is not None:
            policy.begin(env)

    def start(self, seed: int | None = None) -> Any:
        """Reset environment and policy; the first time (a reset may take minutes), look at what it gives as well."""
        observation, _ = self.env.reset(seed=seed)
        if self._policy is not None:
            self._policy.reset(seed)
        if not self._ready:
            self._look(observation)
        return observation

    def _look(self, observation: Any) -> None:
        """Settle what a frame is, from the array: there are environments whose spaces declare another order of axes."""
        config, pixels = self._config, self.pixels(observation)
        layout = PixelContract(1, 1, self._channels).layout_of(pixels.shape, f"a frame of {config.env}")
        height, width = pixels.shape[1:] if layout == "CHW" else pixels.shape[:2]
        self.contract = PixelContract(config.size or height, config.size or width, self._channels)
        if self._present_shape not in (None, self.contract.shape):
            raise InputError(
                f"{config.out} holds frames of shape {self._present_shape}, and these would be {self.contract.shape}; "
                "a dataset needs one shape. Choose another folder, or another size"
            )
        self._ready = True

    def pixels(self, observation: Any) -> Frames:
        """The picture in an observation, as the environment gave it."""
        return np.asarray(observation if self._key is None else observation[self._key])

    def frame(self, pixels: Frames) -> Frames:
        """The picture as it is recorded, (H, W, C)."""
        return self.contract.convert(pixels[None], what=f"a frame of {self._config.env}")[0]


def is_no_picture(pixels: Frames, before: Frames, info: dict[str, Any]) -> bool:
    """Whether the last observation of an episode shows nothing new.

    ViZDoom gives a black frame there (or, mended by a wrapper, the one before once more), and an environment that lost
    its game reports an error along with whatever its space allows.
    """
    return not pixels.any() or "error" in info or np.array_equal(pixels, before)


def find_pixels(space: spaces.Space[Any], key: str | None) -> tuple[str | None, int]:
    """Key of the pixels (None where the observation is the picture) and their number of channels."""
    if not isinstance(space, spaces.Dict):
        if not isinstance(space, spaces.Box) or len(space.shape) not in (2, 3):
            raise InputError(
                f"the observation is no picture but {type(space).__name__}{space.shape or ''}; expected a uint8 Box "
                "(height, width, channels), or a Dict with one. Gymnasium's AddRenderObservation turns what an "
                "environment renders into its observation"
            )
        channels = _channels(space.shape)
        PixelContract(1, 1, channels).check_space(space)
        return None, channels
    boxes = {k: s.shape for k, s in space.spaces.items() if isinstance(s, spaces.Box) and s.dtype == np.uint8}
    found = {k: _channels(shape) for k, shape in boxes.items() if len(shape) == 3 or (k == key and len(shape) == 2)}
    if key is not None and key in found:
        channels = found[key]
    else:  # colour before grey: a depth map beside the picture is not the picture
        channels = next((n for n in (3, 1) if n in found.values()), next(iter(found.values()), 3))
    return find_pixel_key(space, PixelContract(1, 1, channels), key), channels


def _channels(shape: tuple[int, ...]) -> int:
    """Entries of the channel axis, the shorter one of the first and the last."""
    return 1 if len(shape) == 2 else min(shape[-1], shape[0])
