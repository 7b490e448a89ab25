"""What a worker process of `ProcessVecEnv` does: makes one environment, and answers for it. Imports neither torch nor
SB3.

A worker that imported them would be ready seconds later, and hold some 200 MB that it never uses.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import gymnasium as gym

from latent_obs.util import errors

_STEP_GRACE_S = 2.0  # for a step under way when the parent has died
#: What a worker says of an exception: its nearest class in `latent_obs.util.errors` or "", its name, message and
#: traceback.
Failure = tuple[str, str, str, str]


class _Terminated(SystemExit):
    """SIGTERM, which is to interrupt an environment, close it, and end the worker."""


def work(
    index: int, remote: Connection, inherited: Sequence[Connection], make: Callable[[], Any], grace: float
) -> None:
    """Serve one environment until the parent closes its end of the pipe, or is gone; the main function of a worker."""

    def on_sigterm(number: int, frame: object) -> None:
        raise _Terminated(128 + number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, on_sigterm)
    for connection in inherited:
        connection.close()
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # so that the games of a worker that is killed can be found, and ended
        os.set_inheritable(remote.fileno(), False)  # else a game keeps our pipe open when we have died
    closing = threading.Event()
    threading.Thread(target=_watch_parent, args=(closing, grace), daemon=True).start()
    worker = _Worker(remote, make)
    try:
        worker.serve()
    finally:
        closing.set()
        failure, _ = _attempt(worker.close)
        if failure is not None:  # the parent no longer listens
            with contextlib.suppress(OSError):
                print(f"environment {index}: close() raised {failure[1]}: {failure[2]}", file=sys.stderr)


class _Worker:
    """The environment of a worker, and what it answers to `SubprocVecEnv`'s commands."""

    def __init__(self, remote: Connection, make: Callable[[], Any]) -> None:
        self.remote, self.make = remote, make
        self.env: gym.Env[Any, Any] | None = None
        self.reset_info: dict[str, Any] = {}

    def serve(self) -> None:
        made = _attempt(self._make)
        while True:
            try:
                command, data = self.remote.recv()
            except (EOFError, OSError):
                return
            except Exception as error:  # something that cannot be unpickled here
                reply = _describe(error), None
            else:
                if command == "close":
                    return
                reply = made if self.env is None else _attempt(self._answer, self.env, command, data)
            try:
                self.remote.send(reply)
            except OSError:
                return
            except Exception as error:  # something that cannot be pickled; nothing has been sent yet
                with contextlib.suppress(OSError):  # then the next `recv` ends it
                    self.remote.send((_describe(error), None))

    def close(self) -> None:
        if self.env is not None:
            self.env.close()

    def _make(self) -> None:
        env = self.make()
        if not isinstance(env, gym.Env):  # one of the old Gym, perhaps
            from stable_baselines3.common.vec_env.patch_gym import _patch_env

            env = _patch_env(env)
        self.env = env

    def _answer(self, env: gym.Env[Any, Any], command: str, data: Any) -> Any:
        match command, data:
            case "step", action:
                observation, reward, terminated, truncated, info = env.step(action)
                info["TimeLimit.truncated"] = truncated and not terminated
                if terminated or truncated:
                    info["terminal_observation"] = observation
                    observation, self.reset_info = env.reset()
                return observation, reward, terminated or truncated, info, self.reset_info
            case "reset", (seed, options):
                observation, self.reset_info = env.reset(seed=seed, **({"options": options} if options else {}))
                return observation, self.reset_info
            case "render", _:
                return env.render()
            case "get_spaces", _:
                return env.observation_space, env.action_space
            case "env_method", (name, args, kwargs):
                return env.get_wrapper_attr(name)(*args, **kwargs)
            case "get_attr", name:
                return env.get_wrapper_attr(name)
            case "has_attr", name:
                return env.has_wrapper_attr(name)
            case "set_attr", (name, value):
                return setattr(env, name, value)
            case "is_wrapped", name:
                return name in map(class_name, _wrapper_classes(env))
        raise NotImplementedError(f"no worker knows the command {command!r}")


def class_name(cls: type) -> tuple[str, str]:
    """A class by its name: sent as itself, the receiver would import its module, and all that this imports."""
    return cls.__module__.replace("__mp_main__", "__main__"), cls.__qualname__  # the main script's name in a worker


def _wrapper_classes(env: gym.Env[Any, Any]) -> Iterator[type]:
    """The classes of all wrappers around an environment, and the classes that these derive from."""
    while isinstance(env, gym.Wrapper):
        yield from type(env).__mro__
        env = env.env


def _attempt(action: Callable[..., Any], *args: Any) -> tuple[Failure | None, Any]:
    """What it returns, or how it failed; an environment that calls `sys.exit` has failed too."""
    try:
        return None, action(*args)
    except _Terminated:
        raise
    except BaseException as error:
        return _describe(error), None


def _describe(error: BaseException) -> Failure:
    known = next((cls.__name__ for cls in type(error).__mro__ if cls.__module__ == errors.__name__), "")
    return known, type(error).__name__, str(error), "".join(traceback.format_exception(error))


def _watch_parent(closing: threading.Event, grace: float) -> None:
    """End a worker whose parent died, even in a step that never comes back; runs in a thread of the worker.

    A worker between two steps needs no such help: its pipe has closed.
    """
    parent, launcher = multiprocessing.parent_process(), os.getppid()
    assert parent is not None
    # Whoever is forked later inherits what `is_alive` goes by; but then the parent launched this process itself.
    while parent.is_alive() and (launcher != parent.pid or os.getppid() == launcher):
        parent.join(1.0)
    if not closing.wait(_STEP_GRACE_S):
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os._exit(1)
