"""An environment that dies, hangs and leaves processes behind as it is told to; it imports as little as it can.

Worker processes import this module to find it.
"""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

GO, DIE, CRASH, HANG, RAISE = range(5)
Place = Literal["make", "reset", "step"]
SIZE = (6, 8, 3)


class Mortal(gym.Env[Any, Any]):
    """A picture of noise; each worker that begins adds a letter to a file.

    Args:
        folder: Where the file is.
        number: Its own.
        dies: Where it dies by itself.
        lives: Workers of this number, from 1 on, die there.
        reward: What a step gives.
        leaves: A process that it starts, and does not end: "program", or "copy" of the worker itself, pipe and all.
    """

    observation_space = spaces.Box(0, 255, SIZE, np.uint8)
    action_space = spaces.Discrete(5)
    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        folder: Path,
        number: int = 0,
        dies: Place | None = None,
        lives: tuple[int, ...] = (),
        reward: Any = 1.5,
        leaves: str = "",
    ) -> None:
        self.folder, self.number, self.reward = folder, number, reward
        file = folder / f"lives-{number}"
        file.write_text((file.read_text() if file.exists() else "") + "x")
        self.life = len(file.read_text())
        self.dies = dies if self.life in lives else None
        self.colour, self.level, self.steps, self.child = "red", 0, 0, 0
        if leaves == "program":
            self.child = subprocess.Popen(["sleep", "600"]).pid
        if leaves == "copy":
            self.child = os.fork()
            if self.child == 0:
                time.sleep(600)
                os._exit(0)
        self._perhaps("make")

    def _perhaps(self, place: Place) -> None:
        if self.dies == place:
            os.kill(os.getpid(), signal.SIGKILL)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._perhaps("reset")
        self.level, self.steps = (options or {}).get("level", self.level), 0
        return self._observe(), {"seed": seed, "options": options, "life": self.life, "faults": 0}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._perhaps("step")
        if action == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        if action == CRASH:
            os.kill(os.getpid(), signal.SIGSEGV)
        if action == HANG:
            time.sleep(600)
        if action == RAISE:
            raise ValueError("a bad value")
        self.steps += 1
        return self._observe(), self.reward, self.steps == 4, False, {"life": self.life}

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _observe(self) -> Any:
        return self.np_random.integers(0, 256, SIZE, np.uint8)


class Losing(Mortal):
    """Counts lost games in a worker, as `RestartOnFault` does: one in each second step."""

    lost = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        return observation, {**info, "faults": self.lost}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, _, _, info = super().step(action)
        if self.steps < 2:
            return observation, reward, False, False, info
        self.lost += 1
        return observation, 0.0, False, True, {**info, "fault": "the game is gone", "faults": self.lost}
