"""A tiny environment that an agent learns in no time, and settings of tiny agents on it.

Worker processes import this module by the name in `SIDE` to find the environment, so it imports no torch.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

if TYPE_CHECKING:
    from agents.config import AgentConfig


class SideEnv(gym.Env[Any, Any]):
    """Half of a noisy 16x16 picture is bright; a reward for naming that half. Chance gets half of `length`.

    Args:
        kind: "box"; "grey", one channel; "dict", with the picture as "pov" and the step as "clock".
        length: Steps until it terminates.
        reward: What naming the half is worth.
        actions: "two"; "box", whose sign names the half; "multi", where the first of two does; and others, most of
            which no agent can take.
        render_mode: "rgb_array" draws the picture larger.
        slow: While there is a file of that name, a step takes a tenth of a second.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        kind: str = "box",
        length: int = 8,
        actions: str = "two",
        reward: float = 1.0,
        render_mode: Any = None,
        slow: str = "",
    ) -> None:
        self.kind, self.length, self.reward, self.render_mode = kind, length, reward, render_mode
        self.slow = slow
        image = spaces.Box(0, 255, (16, 16, 1 if kind == "grey" else 3), np.uint8)
        clock = spaces.Box(0, 1e6, (1,), np.float32)
        self.observation_space = spaces.Dict(pov=image, clock=clock) if kind == "dict" else image
        self.action_space: spaces.Space[Any] = {
            "two": spaces.Discrete(2),
            "dict": spaces.Dict(side=spaces.Discrete(2)),
            "multi": spaces.MultiDiscrete([2, 3]),
            "box": spaces.Box(-1, 1, (2,), np.float32),
            "unbounded": spaces.Box(-np.inf, np.inf, (2,), np.float32),
            "huge": spaces.Box(-3e38, 3e38, (2,), np.float32),
            "whole": spaces.Box(0, 9, (2,), np.int64),
            "keys": spaces.MultiBinary(2),
            "shifted": spaces.Discrete(2, start=-1),
        }[actions]
        self.side, self.steps = 0, 0
        self.image: NDArray[np.uint8] = np.zeros(image.shape, np.uint8)

    def _observe(self) -> Any:
        self.side = int(self.np_random.integers(2))
        self.image = self.np_random.integers(0, 90, self.image.shape, np.uint8)
        self.image[:, 8 * self.side : 8 * self.side + 8] += 150
        if self.kind == "dict":
            return {"pov": self.image, "clock": np.array([self.steps], np.float32)}
        return self.image

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        if self.slow and Path(self.slow).exists():
            time.sleep(0.1)
        named = action - getattr(self.action_space, "start", 0) if np.ndim(action) == 0 else action[0] > 0
        reward = self.reward * float(named == self.side)
        self.steps += 1
        return self._observe(), reward, self.steps >= self.length, False, {}

    def render(self) -> Any:
        return np.ascontiguousarray(np.kron(self.image, np.ones((3, 4, 1), np.uint8)))  # 48x64, as a game's own picture

    def sigint_handler(self) -> str:
        """How this process handles Ctrl-C."""
        return str(signal.getsignal(signal.SIGINT))


gym.register("Side-v0", entry_point=f"{__name__}:SideEnv", disable_env_checker=True)
#: Deterministic pictures that tell episode and step; times out after 3 steps.
gym.register("Story-v0", entry_point="tests.support.tiny:PixelEnv", max_episode_steps=3)
SIDE = "tests.support.side_env:Side-v0"


def tiny(**settings: Any) -> AgentConfig:
    """Settings of a tiny agent on `SideEnv`, in this process."""
    from agents.config import AgentConfig

    values: dict[str, Any] = {"env": "Side-v0", "workers": "serial", "envs": 2, "steps": 64, "device": "cpu"}
    values |= {"n_steps": 16, "batch_size": 32, "n_epochs": 1, "net_arch": (16,), "eval_every": 32, "eval_episodes": 2}
    return AgentConfig(**{**values, **settings})
