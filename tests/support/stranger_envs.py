"""Environments as strangers have them: odd spaces, memory that is used again, and the API of the old Gym.

Worker processes import this module to find the environments, so it imports no torch.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from latent_obs.envs.old_gym import OldGymEnv
from tests.support.tiny import PixelEnv, PixelKind, picture

IMAGE = spaces.Box(0, 255, (20, 28, 3), np.uint8)
PAIR = spaces.Box(-1.0, 1.0, (2,), np.float32)


class OneBuffer(PixelEnv):
    """Writes all that it gives into arrays and a dict that it has handed out before; ends after three steps."""

    def __init__(self, kind: PixelKind = "box", size: tuple[int, int] = (16, 16), fails_at: int = 0) -> None:
        super().__init__(kind, die_at=3, size=size)
        self.fails_at, self.held, self.info = fails_at, super().observe(0, 0), dict[str, Any]()

    def observe(self, episode: int, step: int) -> Any:
        observation = super().observe(episode, step)
        if isinstance(observation, dict):
            for name, value in observation.items():
                self.held[name][...] = value
        else:
            self.held[...] = observation
        return self.held

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.info.clear()
        return super().reset(seed=seed)[0], self.info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        if self.steps == self.fails_at:
            raise RuntimeError("the engine is gone")
        self.info.update(info)
        return observation, reward, terminated, truncated, self.info


class Missions(spaces.Space[str]):
    """A space of texts that is no `Text`, as MiniGrid has."""

    def __init__(self) -> None:
        super().__init__(dtype=str)

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        return "go to the door"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Missions)

    def __hash__(self) -> int:
        return 0


SPACES: dict[str, spaces.Space[Any]] = {
    "mission": spaces.Dict(image=IMAGE, direction=spaces.Discrete(4), mission=Missions()),
    "tiles": spaces.Dict(image=spaces.Box(0, 255, (7, 7, 3), np.uint8), mission=Missions()),
    "nested": spaces.Dict(sight=spaces.Dict(left=IMAGE, arm=PAIR), arm=PAIR),
    "two": spaces.Dict(sight=spaces.Dict(left=IMAGE, right=IMAGE)),
    "tuple": spaces.Tuple([IMAGE, PAIR]),
    "stack": spaces.Box(0, 255, (4, 20, 28, 3), np.uint8),
    "stacks": spaces.Dict(pov=spaces.Box(0, 255, (4, 20, 28, 3), np.uint8), arm=PAIR),
    "numbers": PAIR,
    "zero-one": spaces.Box(0, 1, (20, 28, 3), np.uint8),
    "zero-one floats": spaces.Box(0, 1, (20, 28, 3), np.float32),
}


class Odd(gym.Env[Any, Any]):
    """Gives the pictures of `picture` in one of `SPACES`, and draws them."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    action_space = spaces.Discrete(2)

    def __init__(self, kind: str, render_mode: str | None = None) -> None:
        self.observation_space, self.render_mode, self.steps = SPACES[kind], render_mode, 0

    def observe(self, space: spaces.Space[Any]) -> Any:
        match space:
            case spaces.Dict():
                return {key: self.observe(part) for key, part in space.spaces.items()}
            case spaces.Tuple():
                return tuple(map(self.observe, space.spaces))
            case spaces.Box(shape=(20, 28, 3), dtype=np.uint8):
                return picture(0, self.steps)
        return space.sample()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(self.observation_space), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observe(self.observation_space), 1.0, self.steps >= 5, False, {}

    def render(self) -> Any:
        return picture(0, self.steps)


class Of2021(PixelEnv):
    """A class of Gymnasium's with the API of Gym 0.21."""

    def reset(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().reset()[0]

    def step(self, action: Any) -> Any:
        observation, reward, _, _, info = super().step(action)
        return observation, reward, self.steps >= 5, info


class HalfNew(Of2021):
    """Takes a seed, and returns the observation alone."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return PixelEnv.reset(self, seed=seed)[0]


def adapted() -> gym.Env[Any, Any]:
    return OldGymEnv(Of2021())


for name in ("OneBuffer", "Odd", "Of2021", "HalfNew", "adapted"):
    gym.register(f"Stranger/{name}-v0", entry_point=f"{__name__}:{name}", disable_env_checker=True)


class Declares(gym.Env[Any, Any]):
    """Declares one thing and gives another."""

    action_space = spaces.Discrete(2)

    def __init__(self, declared: spaces.Space[Any], given: Any) -> None:
        self.observation_space, self.given = declared, given

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.given, {}
