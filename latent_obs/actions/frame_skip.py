"""`FrameSkip`: an action for several frames, in which a key is held and a turn or a recipe happens once."""

import copy
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from latent_obs.actions.common import is_camera, noop_action, value_of
from latent_obs.envs.old_gym import Enum
from latent_obs.util.errors import check_count


class FrameSkip(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Do each action for several frames; returns the summed rewards and the last observation and info.

    Of a Dict action, keys and other entries are held for every frame. A turn of the `camera` and the entries of an
    `Enum` (a recipe, a block to place, an item to equip) happen in the first frame only and are the no-op's afterwards,
    so a turn of 10 degrees is 10 degrees for any number of frames. Any other action is repeated: in an obfuscated
    vector a turn cannot be separated from a key, so it turns in every frame.

    Skipping ends with the episode. The wrapper belongs below those that make the actions, next to the game.

    Args:
        env: The environment.
        frames: How many frames an action takes, from 1.

    Attributes:
        noop: The environment's no-op.
        once: The entries that happen in the first frame only.

    Raises:
        InputError: `frames` is below 1; at `step`, the action is not in the action space.

    Example:
        >>> class Turns(gym.Env):
        ...     action_space = spaces.Dict(attack=spaces.Discrete(2), camera=spaces.Box(-180.0, 180.0, (2,)))
        ...     def step(self, action):
        ...         print(action["attack"], action["camera"].tolist())
        ...         return None, 1.0, False, False, {}
        >>> env = FrameSkip(Turns(), 2)
        >>> env.step({"attack": 1, "camera": env.noop["camera"] + 10})[1]
        1 [10.0, 10.0]
        1 [0.0, 0.0]
        2.0
    """

    def __init__(self, env: gym.Env[Any, Any], frames: int) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, frames=frames)
        gym.Wrapper.__init__(self, env)
        self.frames = check_count("frames", frames)
        self._noop = noop_action(env)
        entries = env.action_space.spaces.items() if isinstance(env.action_space, spaces.Dict) else ()
        self.once = tuple(key for key, space in entries if isinstance(space, Enum) or is_camera(key, space))

    @property
    def noop(self) -> Any:
        """The environment's no-op; a fresh copy."""
        return copy.deepcopy(self._noop)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Do an action for `frames` frames, or until the episode ends."""
        action = value_of(self.action_space, action, "action")
        total = 0.0
        for frame in range(self.frames):
            if frame == 1 and self.once:
                action |= {key: self._noop[key] for key in self.once}
            # A copy each time: the environment may keep or change its action.
            observation, reward, terminated, truncated, info = self.env.step(copy.deepcopy(action))
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, bool(terminated), bool(truncated), info  # pyright: ignore[reportPossiblyUnboundVariable]
