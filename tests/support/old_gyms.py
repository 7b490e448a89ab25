"""Small environments with the versions of the old Gym API; they need no gym."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from gymnasium import spaces

from tests.support.tiny import picture


class Old:
    """Has the API of gym 0.17: it is seeded beforehand, gives four values, and its frames are read-only flipped views.

    As MineRL does, it forgets its seed after one episode. Pictures show the seed and the step.
    """

    # Spaces are recognized by the names of their classes, as gym's own are.
    observation_space: Any = spaces.Box(0, 255, (20, 28, 3), np.uint8)
    action_space: Any = spaces.Discrete(2)
    reward_range = (-np.inf, np.inf)
    metadata: dict[str, Any] = {  # noqa: RUF012
        "render.modes": ["human", "rgb_array"],
        "video.frames_per_second": 20,
        "runtime": True,
    }
    render_result: Any = picture(7, 7)[::-1]

    def __init__(self, limit: int | None = None, end_at: int = 3, time_out: bool | None = None) -> None:
        self.spec = SimpleNamespace(max_episode_steps=limit)
        self.end_at, self.time_out = end_at, time_out
        self.given: int | None = None
        self.asked: list[Any] = []
        self.closed = self.steps = self.story = 0

    def observe(self) -> Any:
        frame = picture(self.story, self.steps)[::-1]
        frame.flags.writeable = False
        return frame

    def seed(self, seed: int | None = None) -> None:
        self.given = seed

    def reset(self) -> Any:
        self.story = int(np.random.default_rng(self.given).integers(2**31))
        self.given, self.steps = None, 0
        return self.observe()

    def step(self, action: Any) -> tuple[Any, ...]:
        self.steps += 1
        self.asked.append(action)
        info = {} if self.time_out is None else {"TimeLimit.truncated": self.time_out}
        return self.observe(), self.steps, self.steps >= self.end_at, info

    def render(self, mode: str = "human") -> Any:
        self.asked.append(mode)
        return self.render_result

    def close(self) -> None:
        self.closed += 1


class Gym022(Old):
    """From 0.22 to 0.25: the seed goes to `reset`, which gives the observation alone."""

    def reset(
        self, *, seed: int | None = None, return_info: bool = False, options: dict[str, Any] | None = None
    ) -> Any:
        assert not return_info
        self.given = seed
        self.asked.append(("reset", seed, options))
        return super().reset()


class Gym026(Old):
    """0.26: five values, an info from `reset`, and a render mode that is fixed when the environment is made."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 12}  # noqa: RUF012
    flags: tuple[bool, bool] = (False, False)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.given = seed
        self.asked.append(("reset", seed, options))
        return super().reset(), {"began": True}

    def step(self, action: Any) -> tuple[Any, ...]:
        observation, reward, _, info = super().step(action)
        return observation, reward, *self.flags, info

    def render(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.render_result


class Behind:
    """One of Gym's wrappers, which hand on whatever they are given."""

    def __init__(self, env: Any) -> None:
        self.env = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def reset(self, **kwargs: Any) -> Any:
        return self.env.reset(**kwargs)

    def render(self, *args: Any, **kwargs: Any) -> Any:
        return self.env.render(*args, **kwargs)
