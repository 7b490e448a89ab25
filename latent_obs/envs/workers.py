"""Environments in worker processes: Gymnasium's `AsyncVectorEnv` with clear errors and no process left behind.

Worker processes import this module, so it imports neither torch nor Stable-Baselines3.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from types import SimpleNamespace
from typing import Any, cast

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import _async_worker  # pyright: ignore[reportPrivateUsage]
from gymnasium.vector.utils import CloudpickleWrapper

from latent_obs.envs.border import own
from latent_obs.util import errors


class WorkerError(errors.LatentObsError, RuntimeError):
    """A worker process ended by itself."""


def default_start_method() -> str:
    """Return "forkserver" where there is one, else "spawn": this process may have started CUDA and threads."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    multiprocessing.get_context("forkserver").set_forkserver_preload(["latent_obs.envs.factory"])  # imported once
    return "forkserver"


class ProcessVectorEnv(AsyncVectorEnv):
    """`gymnasium.vector.AsyncVectorEnv` for games: its workers may start processes, and none is ever left behind.

    What an environment raises is raised here, as the nearest class of Python, Gymnasium or `latent_obs.util.errors`. A
    worker that dies (killed when memory runs out, or by a crash of the game's engine) raises `WorkerError`. After any
    error all workers are ended, and the vector can no longer be used.

    Workers import what their environments need, but not the script that started them; they know every environment that
    this process has registered. They ignore Ctrl-C, which reaches every process of a terminal: the parent decides when
    they stop. Each closes its environment and ends when
    the vector is closed or garbage-collected, when the parent leaves without closing it, and when the parent is killed.

    Args:
        env_fns: Functions that make one environment each, sent to the workers by cloudpickle.
        start_method: "forkserver" or "spawn"; None takes the first where it exists.
        close_grace_s: Seconds that `close` gives the workers to finish their step and close their environments. Then it
            terminates them (which still closes the environment), and after as long again kills them.
        autoreset_mode: When the next episode starts.

    Raises:
        InputError: `start_method` is "fork".
        WorkerError: A worker died while it made its environment.
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env[Any, Any]]],
        start_method: str | None = None,
        *,
        close_grace_s: float = 10.0,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    ) -> None:
        # A forked worker cannot see that its parent was killed.
        errors.check_choice("start_method", start_method, (None, "forkserver", "spawn"))
        self.close_grace_s = close_grace_s
        self.parent_pipes, self.processes = [], []
        try:
            with main_script_hidden():
                super().__init__(
                    env_fns,
                    context=start_method or default_start_method(),
                    daemon=False,  # a daemonic process may not start processes
                    worker=partial(_work, close_grace_s, _registered_here()),
                    autoreset_mode=autoreset_mode,
                )
        except BaseException:
            _Workers(self.parent_pipes, self.processes, close_grace_s).stop()
            raise

    def _check_spaces(self) -> None:
        """Watch the workers, which have all been started, before the first call."""
        self._workers = _Workers(self.parent_pipes, self.processes, self.close_grace_s)
        # At exit, multiprocessing waits for processes that are not daemonic for ever, but runs its finalizers first.
        self._workers.stop = Finalize(self, self._workers.stop, exitpriority=10)
        pipes: list[Any] = [_Pipe(index, pipe, self._workers) for index, pipe in enumerate(self.parent_pipes)]
        self.parent_pipes = pipes
        super()._check_spaces()

    def _assert_is_running(self) -> None:
        if self._workers.why_ended:
            raise self._workers.end()
        super()._assert_is_running()

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """End the workers, whatever they are doing, within `close_grace_s` seconds, at worst twice that."""
        self._workers.stop()


class _Workers:
    """The worker processes of a vector, to which it must not refer, or it would never be garbage-collected."""

    def __init__(self, pipes: Sequence[Any], processes: Sequence[BaseProcess], grace: float) -> None:
        self.pipes, self.processes, self.grace = pipes, processes, grace
        self.why_ended = ""
        self.stop: Callable[[], object] = self._stop

    def end(self, why: str = "") -> WorkerError:
        """End all of them; the error that says why: the first reason counts."""
        self.why_ended = self.why_ended or why
        self.stop()
        return WorkerError(
            f"all environments of this vector have ended, because {self.why_ended}. Make new ones; a training run goes "
            "on from its last checkpoint with --resume"
        )

    def died(self, index: int) -> WorkerError:
        """The error for a worker that ended by itself."""
        process = self.processes[index]
        if self.why_ended:
            return self.end()
        process.join(5.0)  # the pipe breaks a moment before the process has ended
        code = process.exitcode
        how = "closed its pipe" if code is None else f"died with exit code {code}"
        if code is not None and code < 0:
            how += f" ({signal.Signals(-code).name})"
        return self.end(f"worker {index} (pid {process.pid}) {how}")

    def failed(self, index: int, kind: type[Exception], message: str, trace: str) -> Exception:
        """The error that an environment raised."""
        raised = f"environment {index} raised {kind.__name__}: {message}"
        self.end(raised)
        try:
            error = kind(f"environment {index}: {message}")
        except TypeError:  # a class that takes more than a text
            error = RuntimeError(raised)
        error.__cause__ = WorkerError(f"in worker {index}:\n{trace}")
        return error

    def _stop(self) -> None:
        """Let workers end by themselves, then terminate and at last kill those that do not."""
        started = [process for process in self.processes if process.pid is not None]
        try:
            for pipe in self.pipes:
                with contextlib.suppress(OSError, errors.LatentObsError):
                    pipe.send(("close", None))
                pipe.close()  # answers that nobody read are lost, and cannot hold the worker up
            _join(started, self.grace)
            for process in started:
                if process.is_alive():
                    process.terminate()
            _join(started, self.grace)
        finally:  # also when somebody presses Ctrl-C once more
            for process in started:
                if process.is_alive():
                    process.kill()
                    process.join(10)  # not for ever: a driver may hold on to it
                if process.exitcode not in (0, 128 + signal.SIGTERM) and process.pid and hasattr(os, "killpg"):
                    with contextlib.suppress(OSError):
                        os.killpg(process.pid, signal.SIGKILL)  # the games that it has left


@contextlib.contextmanager
def worker_losses(vector: Any) -> Iterator[None]:
    """Raise `WorkerError`, with all workers ended, where a worker of Gymnasium's or Stable-Baselines3's has died.

    Their vectors raise an EOFError without a text, and wait for ever in `close`.
    """
    try:
        yield
    except (EOFError, ConnectionError) as error:
        base = vector.unwrapped
        processes = getattr(base, "processes", ())
        if not processes:
            raise
        ended = wait([process.sentinel for process in processes], 5.0)
        index = next((i for i, process in enumerate(processes) if process.sentinel in ended), 0)
        base.closed = True  # nobody is left to be closed
        raise _Workers((), processes, 0.5).died(index) from error


def _join(processes: Sequence[BaseProcess], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))


class _Pipe:
    """This process' end of a worker's pipe, as `AsyncVectorEnv` uses it. It raises what went wrong in the worker."""

    def __init__(self, index: int, pipe: Connection, workers: _Workers) -> None:
        self.index, self.pipe, self.workers = index, pipe, workers

    def send(self, message: tuple[str, Any]) -> None:
        try:
            self.pipe.send(message)
        except OSError:
            self.recv()  # raises why the worker ended, if it has sent that
            raise self.workers.died(self.index) from None

    def recv(self) -> tuple[Any, bool]:
        try:
            # Not by the pipe alone: a game that the worker has started may hold it open.
            if self.pipe not in wait((self.pipe, self.workers.processes[self.index].sentinel)):
                raise EOFError
            answer, succeeded = self.pipe.recv()
        except (EOFError, OSError):
            raise self.workers.died(self.index) from None
        except BaseException:  # Ctrl-C: some answers are read, and others are not
            self.workers.end("it was interrupted while it waited for its workers")
            raise
        if not succeeded:
            raise self.workers.failed(self.index, *answer)
        return answer, True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipe, name)


def _work(
    grace: float,
    registered: dict[str, EnvSpec],
    index: int,
    env_fn: Callable[[], Any],
    pipe: Connection,
    parent_pipe: Connection,
    shared_memory: Any,
    _: Any,
    *modes: Any,
) -> None:
    """Serve one environment until the parent closes its end of the pipe, or is gone; the main function of a worker."""

    def on_sigterm(number: int, frame: object) -> None:
        raise SystemExit(128 + number)  # interrupts a step, and closes the environment

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, on_sigterm)
    parent_pipe.close()
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # so that the games of a worker that is killed can be found, and ended
        os.set_inheritable(pipe.fileno(), False)
    threading.Thread(target=_end_with_parent, args=(grace,), daemon=True).start()

    def send_failure(failure: tuple[int, type[BaseException], BaseException, str]) -> None:
        """Send a failure as the nearest class that the parent can unpickle and raise."""
        _, kind, error, trace = failure
        known = ("builtins", "gymnasium.error", errors.__name__)
        pipe.send(((next(cls for cls in kind.__mro__ if cls.__module__ in known), str(error), trace), False))

    warnings.filterwarnings("ignore", ".*Overriding environment")  # a package that is imported registers its own again
    failures: Any = SimpleNamespace(put=send_failure)  # in place of a queue, whose answers a killed worker may not send
    try:
        try:
            gym.registry.update(registered)
            env = own(env_fn())
        except Exception as error:
            send_failure((index, type(error), error, traceback.format_exc()))
            return
        _async_worker(index, lambda: env, pipe, parent_pipe, shared_memory, failures, *modes)  # pyright: ignore
    except ConnectionError:
        pass  # the parent has closed its end
    except Exception as error:  # the parent no longer listens
        print(f"environment {index}: close() raised {type(error).__name__}: {error}", file=sys.stderr)


def _registered_here() -> dict[str, EnvSpec]:
    """All environments that are registered in this process, for a worker, which does not run what registered them."""
    registered = dict(gym.registry)
    for name, spec in registered.items():
        entry = spec.entry_point
        spec = dataclasses.replace(spec, vector_entry_point=None)
        if not isinstance(entry, str) or entry.startswith("__main__:") or spec.kwargs:
            sent: Any = _SentEntryPoint(name, entry, spec.kwargs)
            spec = dataclasses.replace(spec, entry_point=sent, kwargs={})
        if spec.additional_wrappers:
            try:
                ForkingPickler.dumps(spec.additional_wrappers)  # as a worker gets it
            except Exception as error:
                sent = _SentEntryPoint(name, entry, {})
                sent.why = f"{type(error).__name__}: {error}"
                spec = dataclasses.replace(spec, entry_point=sent, kwargs={}, additional_wrappers=())
        registered[name] = spec
    return registered


class _SentEntryPoint:
    """An entry point and its arguments, by cloudpickle; a worker loads, and imports, only what it makes."""

    def __init__(self, name: str, entry: Any, kwargs: dict[str, Any]) -> None:
        self.name, self.why = name, ""
        #: What was registered, in words: by it MineRL's environments are recognized.
        self.origin = entry if isinstance(entry, str) else f"{entry.__module__}:{getattr(entry, '__qualname__', '')}"
        try:
            if isinstance(entry, str) and entry.startswith("__main__:"):  # which is another module in a worker
                entry = load_env_creator(entry)
            self.sent = CloudpickleWrapper(cast(Any, (entry, kwargs))).__getstate__()
        except Exception as error:
            self.why = f"{type(error).__name__}: {error}"

    def _load(self) -> tuple[Callable[..., Any], dict[str, Any]]:
        received: Any = CloudpickleWrapper(cast(Any, None))
        try:
            if not self.why:
                received.__setstate__(self.sent)
        except Exception as error:
            self.why = f"{type(error).__name__}: {error}"
        if self.why:
            raise errors.InputError(
                f"environment {self.name!r} cannot be sent to a worker process ({self.why}). Register it in a module "
                "that its package imports, or keep it in this process: vectorization='sync', or train-agent --workers "
                "serial"
            )
        entry, kwargs = received.fn
        return (load_env_creator(entry) if isinstance(entry, str) else entry), kwargs

    def __call__(self, **arguments: Any) -> Any:
        entry, kwargs = self._load()
        return entry(**{**kwargs, **arguments})

    @property
    def metadata(self) -> Any:
        """What Gymnasium asks an entry point for, if it is a class."""
        return cast(Any, self._load()[0]).metadata


def _end_with_parent(grace: float) -> None:
    """End a worker whose parent was killed, even in a step that never comes back; runs in a thread of the worker."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    time.sleep(grace)  # a worker between two steps ends by itself, as its pipe has closed
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


@contextlib.contextmanager
def main_script_hidden() -> Iterator[None]:
    """Start processes that do not import the main script.

    Scripts import torch, which takes seconds and memory in each worker, and those without ``if __name__ ==
    "__main__"`` would start workers themselves.
    """
    main = vars(sys.modules["__main__"])
    kept = {name: main[name] for name in ("__spec__", "__file__") if name in main}
    main["__spec__"] = None  # by these two multiprocessing finds the script
    main.pop("__file__", None)
    try:
        yield
    finally:
        main.update(kept)
