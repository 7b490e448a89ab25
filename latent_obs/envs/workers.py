"""Stable-Baselines3's environments in processes, for games: workers may start processes, and none is ever left behind.

Needs stable-baselines3 (`latent-obs[agents]`); the workers themselves do without, see `latent_obs.envs.env_worker`.
"""

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper, VecEnvIndices

from latent_obs.envs.env_worker import class_name
from latent_obs.envs.main_script import Maker
from latent_obs.envs.worker_remote import Remote, Restarts, WorkerError, Workers, end
from latent_obs.util import errors

errors.require("stable_baselines3", extra="agents", purpose="run Stable-Baselines3's environments in processes")


__all__ = ["ProcessVecEnv", "WorkerError"]


class ProcessVecEnv(SubprocVecEnv):
    """`SubprocVecEnv` whose environments may start processes themselves, and whose errors are those of the
    environments.

    Stable-Baselines3's workers are daemonic, and a daemonic process may not start others through `multiprocessing`, as
    some games do. These are not, and still none outlives its parent: each closes its environment and ends when the
    vector environment is closed or garbage-collected, when the parent leaves without closing it, and when the parent is
    killed.

    What an environment raises is raised here: a `LatentObsError` as the same class, anything else as a `WorkerError`.
    The other environments stay in step, so one may `reset` and go on, unless a worker died.

    A worker that dies in a step (killed when memory runs out, or by a crash of the game's engine) is replaced where
    `restarts` allows it. Its episode ends as a truncation with no reward and the last observation that it sent, as
    `RestartOnFault` ends
    that of a lost game: ``info["fault"]`` says what happened, ``info["faults"]`` how often so far in this environment.
    The observation returned is the first one of the new worker: it was made by the same function, has the attributes
    that `set_attr` gave, and is reset with the options of the last `reset` and a seed drawn from the last one that it
    had. One that dies in a reset is replaced as well, and reset in the same way. What `env_method` did to it is lost;
    and where a worker dies in a method or is asked for an attribute, that is an error, and the next step or reset
    replaces it. A worker that hangs is waited for, unless there is an `answer_timeout_s`. What a game keeps outside of
    processes, such as files, is its own affair.

    Workers import what their environments need, and neither torch nor Stable-Baselines3: they are ready sooner, and
    hold less memory. With "forkserver" and "spawn" they import the main script only if they need something of it, such
    as an environment that it registers; with "fork" they have all that this process has.

    Workers ignore Ctrl-C, which reaches every process of a terminal: the parent decides when they stop.

    Args:
        env_fns: Functions that make one environment each, in its own process.
        start_method: "forkserver" (by default, where there is one), "spawn" or "fork".
        close_grace_s: Seconds that `close` gives the workers to finish their step and close their environments. One
            that does not is terminated (which still closes its environment), and after as long again killed.
        restarts: Number of workers that may be replaced, in all environments together. Two in a row that die in the
            same environment before they have finished a step are an error in any case: a game that cannot start.
        answer_timeout_s: Seconds that a step (with the reset at an episode's end) or a reset may take; a worker that
            takes longer counts as dead, and is ended. None: for ever.
        on_restart: Told in one line of each worker that is replaced; None: `warnings.warn`.

    Raises:
        InputError: `restarts` or `answer_timeout_s` is out of range.
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
        self,
        env_fns: list[Callable[[], gym.Env[Any, Any]]],
        start_method: str | None = None,
        *,
        close_grace_s: float = 10.0,
        restarts: int = 0,
        answer_timeout_s: float | None = None,
        on_restart: Callable[[str], object] | None = None,
    ) -> None:
        if isinstance(restarts, bool) or not isinstance(restarts, int) or restarts < 0:
            raise errors.InputError(f"restarts must be a number of workers, 0 or more, got {restarts!r}")
        if answer_timeout_s is not None and not answer_timeout_s > 0:
            raise errors.InputError(f"answer_timeout_s must be seconds, more than 0, or None, got {answer_timeout_s!r}")
        self.waiting = self.closed = False
        if start_method is None:
            start_method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        makers: Sequence[Callable[[], Any]] = list(env_fns)
        if start_method != "fork":
            makers = [Maker(CloudpickleWrapper(env_fn).__getstate__()) for env_fn in env_fns]
        workers = Workers(start_method, makers, close_grace_s)
        self.processes: list[BaseProcess] = workers.processes
        self._restarts = Restarts(restarts, on_restart, answer_timeout_s)
        # At exit, multiprocessing waits for processes that are not daemonic, for ever; but runs its finalizers before
        # that.
        self._finalizer = Finalize(
            self, _stop, (workers.connections, workers.processes, close_grace_s), exitpriority=10
        )
        try:
            for index in range(len(makers)):
                workers.launch(index)
            self.remotes: Sequence[Any] = [Remote(index, workers, self._restarts) for index in range(len(makers))]
            self.remotes[0].send(("get_spaces", None))
            VecEnv.__init__(self, len(env_fns), *self.remotes[0].recv())
        except BaseException:
            self.close()
            raise

    @property
    def replaced(self) -> int:
        """Number of workers replaced so far."""
        return self._restarts.done

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Whether each environment has a wrapper of this class, or of one that derives from it."""
        remotes = self._get_target_remotes(indices)
        for remote in remotes:
            remote.send(("is_wrapped", class_name(wrapper_class)))
        return [remote.recv() for remote in remotes]

    def close(self) -> None:
        """Close the environments and end their processes, however they fare."""
        self.closed = True
        self._finalizer()


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
            if process.is_alive() or process.exitcode not in (0, 128 + signal.SIGTERM):
                end(process)
