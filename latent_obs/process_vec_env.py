"""Stable-Baselines3's environments in processes, for games: workers may start processes, and none is ever left behind.

Needs stable-baselines3 (`latent-obs[agents]`); the workers themselves do without, see `latent_obs.env_worker`.
"""

import contextlib
import multiprocessing
import signal
import time
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import gymnasium as gym

from latent_obs import errors
from latent_obs.env_worker import class_name, work
from latent_obs.main_script import Maker, withheld

errors.require("stable_baselines3", extra="agents", purpose="run Stable-Baselines3's environments in processes")

from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv  # noqa: E402  (after the hint above)
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper, VecEnvIndices  # noqa: E402

#: This process' ends of all workers' pipes. As long as a forked worker keeps copies, others do not see that we are gone.
_our_ends: weakref.WeakSet[Connection] = weakref.WeakSet()


class WorkerError(RuntimeError):
    """Something in a worker process failed, or the worker died.

    Attributes:
        exception_name: Class of the worker's exception, such as "ValueError"; empty if the worker died.
        worker_traceback: The worker's traceback, as text; empty if the worker died.
    """

    def __init__(self, message: str, exception_name: str = "", worker_traceback: str = "") -> None:
        super().__init__(message)
        self.exception_name, self.worker_traceback = exception_name, worker_traceback


class ProcessVecEnv(SubprocVecEnv):
    """`SubprocVecEnv` whose environments may start processes themselves, and whose errors are those of the environments.

    Stable-Baselines3's workers are daemonic, and a daemonic process may not start others through `multiprocessing`, as some
    games do. These are not, and still none outlives its parent: each closes its environment and ends when the vector
    environment is closed or garbage-collected, when the parent leaves without closing it, and when the parent is killed.

    What an environment raises is raised here: a `LatentObsError` as the same class, anything else as a `WorkerError`. The
    other environments stay in step, so one may `reset` and go on, unless a worker died.

    Workers import what their environments need, and neither torch nor Stable-Baselines3: they are ready sooner, and hold less
    memory. With "forkserver" and "spawn" they import the main script only if they need something of it, such as an
    environment that it registers; with "fork" they have all that this process has.

    Workers ignore Ctrl-C, which reaches every process of a terminal: the parent decides when they stop.

    Args:
        env_fns: Functions that make one environment each, in its own process.
        start_method: "forkserver" (by default, where there is one), "spawn" or "fork".
        close_grace_s: Seconds that `close` gives the workers to finish their step and close their environments. One that
            does not is terminated (which still closes its environment), and after as long again killed.

    Raises:
        LatentObsError: An environment could not be made, for a reason that is the user's to mend.
        WorkerError: An environment could not be made.

    Example:
        >>> from functools import partial
        >>> venv = ProcessVecEnv([partial(gym.make, "CartPole-v1")] * 2)
        >>> venv.reset().shape
        (2, 4)
        >>> venv.close()
    """

    def __init__(
        self, env_fns: list[Callable[[], gym.Env[Any, Any]]], start_method: str | None = None, *, close_grace_s: float = 10.0
    ) -> None:
        self.waiting = self.closed = False
        if start_method is None:
            start_method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context: Any = multiprocessing.get_context(start_method)
        makers: Sequence[Callable[[], Any]] = env_fns
        if start_method != "fork":
            makers = [Maker(CloudpickleWrapper(env_fn).__getstate__()) for env_fn in env_fns]
        connections: list[Connection] = []
        self.processes: list[BaseProcess] = []
        # At exit, multiprocessing waits for processes that are not daemonic, for ever; but runs its finalizers before that.
        self._finalizer = Finalize(self, _stop, (connections, self.processes, close_grace_s), exitpriority=10)
        try:
            for index, maker in enumerate(makers):
                ours, theirs = context.Pipe()
                connections.append(ours)
                _our_ends.add(ours)
                inherited = list(_our_ends) if start_method == "fork" else []
                arguments = (index, theirs, inherited, maker, close_grace_s)
                process = context.Process(target=work, args=arguments, name=f"environment-{index}", daemon=False)
                with contextlib.nullcontext() if start_method == "fork" else withheld():
                    process.start()
                self.processes.append(process)
                theirs.close()
            pairs = zip(connections, self.processes, strict=True)
            self.remotes: Sequence[Any] = [_Remote(index, *pair) for index, pair in enumerate(pairs)]
            self.remotes[0].send(("get_spaces", None))
            VecEnv.__init__(self, len(env_fns), *self.remotes[0].recv())
        except BaseException:
            self.close()
            raise

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None) -> list[bool]:
        """Whether each environment has a wrapper of this class, or of one that derives from it."""
        remotes = self._get_target_remotes(indices)
        for remote in remotes:
            remote.send(("is_wrapped", class_name(wrapper_class)))
        return [remote.recv() for remote in remotes]

    def close(self) -> None:
        """Close the environments and end their processes, however they fare."""
        self.closed = True
        self._finalizer()


class _Remote:
    """Our end of a worker's pipe, as `SubprocVecEnv` uses it: a command, then its answer. Raises what the worker raised."""

    def __init__(self, index: int, connection: Connection, process: BaseProcess) -> None:
        self.index, self.connection, self.process = index, connection, process
        self.unanswered = 0

    def send(self, message: tuple[str, Any]) -> None:
        try:
            self.connection.send(message)
        except OSError:
            raise self._lost() from None
        self.unanswered += 1

    def recv(self) -> Any:
        if not self.unanswered:
            raise WorkerError(f"environment {self.index} was asked for nothing that it could answer")
        failure, answer = None, None
        try:
            while self.unanswered:  # the last one counts: before it are those that an error elsewhere left unread
                self.unanswered -= 1
                failure, answer = self.connection.recv()
        except (EOFError, OSError):
            raise self._lost() from None
        except KeyboardInterrupt:
            self.unanswered += 1  # it is still to come
            raise
        if failure is not None:
            raise self._raised(*failure)
        return answer

    def _raised(self, known: str, name: str, message: str, trace: str) -> Exception:
        error = WorkerError(f"environment {self.index} raised {name}: {message}\n\nIts worker's {trace}", name, trace)
        if not known:
            return error
        same = getattr(errors, known)(f"environment {self.index}: {message}")
        same.__cause__ = error
        return same

    def _lost(self) -> WorkerError:
        if self.connection.closed:
            return WorkerError("this vector environment is closed")
        self.process.join(5.0)  # the pipe breaks a moment before the process has ended
        code = self.process.exitcode
        end = "closed its pipe" if code is None else f"died with exit code {code}"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                end += f" ({signal.Signals(-code).name})"
            if -code == signal.SIGKILL:
                end += ", as when memory runs out"
        return WorkerError(f"worker {self.index} (pid {self.process.pid}) {end}")


def _stop(connections: Sequence[Connection], processes: Sequence[BaseProcess], grace: float) -> None:
    """Let workers end by themselves, then terminate and at last kill those that do not."""

    def wait() -> None:
        deadline = time.monotonic() + grace
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))

    try:
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.send(("close", None))  # in words too, as a process forked meanwhile may keep the pipe open
            connection.close()  # answers that nobody read are lost, and cannot hold the worker up
        wait()
        for process in processes:
            if process.is_alive():
                process.terminate()
        wait()
    finally:  # also when somebody loses patience and presses Ctrl-C once more
        for process in processes:
            if process.is_alive():
                process.kill()
        wait()
