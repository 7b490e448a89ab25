"""An environment that fails as its actions say, for the tests of worker processes, which import this module."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from enum import IntEnum
from pathlib import Path
from typing import Any, NoReturn, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray

from latent_obs.util.errors import GameLostError, InputError
from tests.support.tiny import PixelEnv

Act = IntEnum("Act", "VALUE OWN ATTRIBUTES KILLED GONE SLOW HANG HANG_HARD STRANGE")
GO = 0


class OwnInputError(InputError):
    """A class that the parent does not know, of a family that it knows."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")


class Unfit:
    """Can be sent, but not received."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> NoReturn:
    raise LookupError("not here")


def _nothing() -> None:
    pass


class Scripted(gym.Env[Any, Any]):
    """A noisy picture and a clock; actions say what goes wrong.

    Each `close` adds a letter to a file: "x", or "t" if it was because somebody terminated the process.

    Args:
        folder: Where the file is.
        number: Its own.
        fault: "make", "reset" or "close": where it fails; "hang" or "die": its constructor does, but for the first one.
        size: Side of the picture.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    action_space = spaces.Discrete(1 + len(Act))

    def __init__(self, folder: str | Path, number: int = 0, fault: str = "", size: int = 8) -> None:
        self.folder, self.number, self.fault, self.size = Path(folder), number, fault, size
        self.render_mode = "rgb_array"
        picture = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.observation_space = spaces.Dict(pov=picture, clock=spaces.Box(0, np.inf, (1,), np.float32))
        self.steps, self.colour = 0, "red"
        if fault == "make":
            raise InputError("no such world")
        if fault == "hang":
            time.sleep(600)
        if fault == "die":
            os._exit(4)

    def _observe(self) -> dict[str, NDArray[Any]]:
        picture = self.np_random.integers(0, 256, (self.size, self.size, 3), np.uint8)
        return {"pov": picture, "clock": np.array([self.steps], np.float32)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if self.fault == "reset":
            raise GameLostError("it did not start")
        self.steps = 0
        return self._observe(), {"seed": seed, "options": options}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        info: dict[str, Any] = {"number": self.number, "kind": self.number if self.steps % 2 else f"{self.number}"}
        match int(action):
            case Act.VALUE:
                raise ValueError("a bad value")
            case Act.OWN:
                raise OwnInputError(7)
            case Act.ATTRIBUTES:
                raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad byte")
            case Act.KILLED:
                os.kill(os.getpid(), signal.SIGKILL)
            case Act.GONE:
                os._exit(3)
            case Act.SLOW:
                time.sleep(0.5)
            case Act.HANG:
                (self.folder / f"hangs-{self.number}").touch()
                time.sleep(600)
            case Act.HANG_HARD:
                while True:
                    try:
                        time.sleep(600)
                    except SystemExit:
                        (self.folder / f"terminated-{self.number}").touch()
            case Act.STRANGE:
                info["strange"] = lambda: 0
        return self._observe(), self.steps / 2, self.steps == 5, False, info

    def render(self) -> Any:
        return np.full((4, 4, 3), self.number, np.uint8)

    def close(self) -> None:
        with (self.folder / f"closed-{self.number}").open("a") as file:
            file.write("t" if isinstance(sys.exc_info()[1], SystemExit) else "x")
        if self.fault == "close":
            raise OSError("it does not stop")

    def pid(self) -> int:
        return os.getpid()

    def imports(self, module: str) -> bool:
        """Whether this process has imported a module."""
        return module in sys.modules

    def sockets(self) -> list[str]:
        """What this process holds: "socket:[4711]" …"""
        return [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]

    def sigint_handler(self) -> str:
        return str(signal.getsignal(signal.SIGINT))

    def start_children(self) -> tuple[int | None, str]:
        """Exit code of a process and output of another, neither of which a daemonic process could start both of."""
        process = multiprocessing.Process(target=_nothing, daemon=False)
        process.start()
        process.join(30)
        return process.exitcode, subprocess.run(["echo", "hello"], capture_output=True, text=True, check=True).stdout

    def start_game(self) -> int:
        """Start a process that would outlive this one; its id."""
        return subprocess.Popen(["sleep", "600"]).pid


def limited(folder: Path, number: int) -> gym.Env[Any, Any]:
    return TimeLimit(Scripted(folder, number), 3 + 4 * number)  # the first one times out, the others terminate


class Faulty(Scripted):
    """Fails in the tenth step of each object, so that only another one goes on.

    Args:
        folder: Where a file says that one has failed.
        size: Side of the picture.
        fails: How, "raise" or "hang": the first ones, and those made after a failure.
    """

    def __init__(self, folder: Path, size: int = 8, fails: tuple[str, str] = ("raise", "hang")) -> None:
        super().__init__(folder, size=size)
        self.how, self.calls = fails[(self.folder / "failed").exists()], 0

    def step(self, action: Any) -> Any:
        self.calls += 1
        if self.calls == 10:
            (self.folder / "failed").touch()
            if self.how == "raise":
                raise RuntimeError("the engine is gone")
            time.sleep(600)
        observation, reward, *_ = super().step(GO)
        return observation, reward, False, False, {}


class Wrong(PixelEnv):
    """Gives something that nobody can learn from in the third step, if the action is 1."""

    def __init__(self, wrong: str) -> None:
        super().__init__("dict")
        self.wrong = wrong
        entries = cast(Any, self.observation_space).spaces
        self.observation_space = spaces.Dict({**entries, "choice": spaces.Discrete(3)})

    def observe(self, episode: int, step: int) -> Any:
        return {**super().observe(episode, step), "choice": 1}

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        if self.steps >= 3 and action == 1:
            match self.wrong:
                case "reward":
                    reward = float("nan")
                case "rewards":
                    reward = np.ones(1)
                case "shape":
                    observation["pov"] = observation["pov"][:-1]
                case "dtype":
                    observation["pov"] = observation["pov"] / 255
                case "nan":
                    observation["compass"] = np.full(2, np.nan, np.float32)
                case "far":
                    observation["compass"] = np.full(2, 7, np.float32)
                case "missing":
                    del observation["compass"]
                case "choice":
                    observation["choice"] = 3
        return observation, reward, *rest


gym.register("Scripted-v0", entry_point=f"{__name__}:Scripted", disable_env_checker=True)
