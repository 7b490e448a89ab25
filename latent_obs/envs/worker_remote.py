"""Our end of a worker process of `ProcessVecEnv`: commands and answers, and another worker where one was lost.

Names nothing of Stable-Baselines3, and nothing of torch.
"""

import contextlib
import multiprocessing
import os
import select
import signal
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from latent_obs.envs.env_worker import work
from latent_obs.envs.main_script import withheld
from latent_obs.util import errors

_LOOK_S = 1.0  # how often a worker that keeps silent is looked for: a game that it started may hold its pipe open
#: This process' ends of all workers' pipes. As long as a forked worker keeps copies, others do not see that we are
#: gone.
_our_ends: weakref.WeakSet[Connection] = weakref.WeakSet()


class WorkerError(RuntimeError):
    """Something in a worker process failed, or the worker died.

    Attributes:
        exception_name: Class of the worker's exception, such as "ValueError"; empty if the worker died.
        worker_traceback: The worker's traceback, as text; empty if the worker died.
        died: Whether it died.
    """

    def __init__(
        self, message: str, exception_name: str = "", worker_traceback: str = "", *, died: bool = False
    ) -> None:
        super().__init__(message)
        self.exception_name, self.worker_traceback, self.died = exception_name, worker_traceback, died


@dataclass
class Workers:
    """The processes of a vector environment, and what makes one.

    Attributes:
        start_method: "forkserver", "spawn" or "fork".
        makers: What makes each environment.
        close_grace_s: Seconds that a worker has to close its environment when the parent is gone.
        connections: Our ends of their pipes; the lists stay the same when a worker is replaced.
        processes: The workers.
    """

    start_method: str
    makers: Sequence[Callable[[], Any]]
    close_grace_s: float
    connections: list[Connection] = field(default_factory=list)
    processes: list[BaseProcess] = field(default_factory=list)

    def launch(self, index: int) -> None:
        """Start the worker of an environment, the first one or another in its place."""
        context: Any = multiprocessing.get_context(self.start_method)
        ours, theirs = context.Pipe()
        if index == len(self.connections):
            self.connections.append(ours)  # before there is a process, so that whoever closes us closes it
        _our_ends.add(ours)
        inherited = list(_our_ends) if self.start_method == "fork" else []
        arguments = (index, theirs, inherited, self.makers[index], self.close_grace_s)
        process = context.Process(target=work, args=arguments, name=f"environment-{index}", daemon=False)
        try:
            with contextlib.nullcontext() if self.start_method == "fork" else withheld():
                process.start()
        except BaseException:
            if self.connections[index] is not ours:
                ours.close()
            raise
        finally:
            theirs.close()
        if index == len(self.processes):
            self.processes.append(process)
            return
        connection, self.connections[index] = self.connections[index], ours
        dead, self.processes[index] = self.processes[index], process
        connection.close()
        _our_ends.discard(connection)
        end(dead)
        with contextlib.suppress(ValueError):  # it does not end
            dead.close()  # gives back what the system keeps of it


@dataclass
class Restarts:
    """How lost workers are replaced, in all environments of a vector together.

    Attributes:
        most: Number of workers that may be replaced.
        say: Told of each in one line; None: `warnings.warn`.
        answer_timeout_s: Seconds that a step or a reset may take; None for ever.
        done: Number of workers replaced so far.
        reward: The last one of any environment: one of 0 is of its kind.
    """

    most: int = 0
    say: Callable[[str], object] | None = None
    answer_timeout_s: float | None = None
    done: int = 0
    reward: Any = 0.0


class Remote:
    """An environment in a worker, as `SubprocVecEnv` uses it: a command, then its answer. Raises what the worker
    raised.

    A worker that dies in a step or a reset is replaced, as often as `restarts` allows.

    Args:
        index: Number of the environment.
        workers: The processes, this one's among them.
        restarts: How it is replaced.
    """

    def __init__(self, index: int, workers: Workers, restarts: Restarts) -> None:
        self.index, self.workers, self.restarts = index, workers, restarts
        self.command: tuple[str, Any] = "", None
        self._attach()
        self._last: Any = None  # the last observation
        self._seed: int | None = None  # the last one asked for
        self._options: dict[str, Any] = {}
        self._attributes: dict[str, Any] = {}
        self._replaced = 0
        self._fruitless = 0  # workers in a row that died before they had finished a step
        self._finished_a_step = False
        self._faults, self._faults_before = (
            0,
            0,
        )  # of this worker's own environment; before it, with the workers' deaths

    def _attach(self) -> None:
        self.connection, self.process = self.workers.connections[self.index], self.workers.processes[self.index]
        self.unanswered = 0
        self._poll: Any = None
        if hasattr(select, "poll"):  # a microsecond, where `Connection.poll` takes many
            self._poll = select.poll()
            self._poll.register(self.connection.fileno(), select.POLLIN)

    def send(self, message: tuple[str, Any]) -> None:
        """Send a command. Where there is nobody to take it, its answer will say so."""
        self.command = message
        with contextlib.suppress(OSError):
            self.connection.send(message)
        self.unanswered += 1

    def recv(self) -> Any:
        """The answer to the last command; that of another worker, where this one dies in a step or a reset.

        Raises:
            LatentObsError: The environment raised it.
            WorkerError: The environment raised something else; or its worker died, and may not be replaced.
        """
        try:
            answer = self._answer()
        except WorkerError as error:
            if not error.died or self.command[0] not in ("step", "reset") or not self.restarts.most:
                raise
            return self._replace(error)
        match self.command:
            case "step", _:
                self._fruitless, self._finished_a_step = 0, True
                self._last, self.restarts.reward = answer[0], answer[1]
                self._add_earlier_faults(answer[3], answer[4])
            case "reset", (seed, options):
                self._last = answer[0]
                self._seed, self._options = self._seed if seed is None else seed, options
                self._add_earlier_faults(answer[1])
            case "set_attr", (name, value):
                self._attributes[name] = value
        return answer

    def _answer(self) -> Any:
        if not self.unanswered:
            raise WorkerError(f"environment {self.index} was asked for nothing that it could answer")
        timeout = self.restarts.answer_timeout_s if self.command[0] in ("step", "reset") else None
        failure, answer = None, None
        while self.unanswered:  # the last one counts: before it are those that an error elsewhere left unread
            try:
                self._wait(timeout)
                failure, answer = self.connection.recv()
            except (EOFError, OSError):
                raise self._lost() from None
            except KeyboardInterrupt:  # it is still to come
                raise
            except BaseException:  # it has come, and cannot be unpickled here
                self.unanswered -= 1
                raise
            self.unanswered -= 1
        if failure is not None:
            raise self._raised(*failure)
        return answer

    def _wait(self, timeout: float | None) -> None:
        """Until there is an answer, or nobody any more to give one."""
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        while not self._readable(_LOOK_S if timeout is None else max(0.0, min(_LOOK_S, deadline - time.monotonic()))):
            if not self.process.is_alive() and not self._readable(0):
                raise EOFError
            if time.monotonic() >= deadline:
                pid = self.process.pid
                end(self.process, grace=2.0)
                raise WorkerError(
                    f"worker {self.index} (pid {pid}) gave no answer within {timeout:g} s, and was ended", died=True
                )

    def _readable(self, seconds: float) -> bool:
        if self._poll is None or self.connection.closed:
            return self.connection.poll(seconds)
        return bool(self._poll.poll(seconds * 1000))

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
        how = "closed its pipe" if code is None else f"died with exit code {code}"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                how += f" ({signal.Signals(-code).name})"
            if -code == signal.SIGKILL:
                how += ", as when memory runs out"
        end(self.process)
        return WorkerError(f"worker {self.index} (pid {self.process.pid}) {how}", died=True)

    def _replace(self, error: WorkerError) -> Any:
        """What the step or the reset under way gives, with another worker in the place of the one that died."""
        command, data = self.command
        if command == "step" and self._last is None:  # it was never reset, so that there is nothing to go on from
            raise error
        happened = str(error)
        while True:
            self._count(error)
            seed, options = self._fresh_seed(), self._options
            if command == "reset":
                seed, options = data[0] if data[0] is not None else seed, data[1]
            try:
                observation, reset_info = self._start_anew(seed, options)
                break
            except WorkerError as again:
                if not again.died:
                    raise
                error = again
        self.command = command, data
        if command == "reset":
            self._seed, self._options = self._seed if data[0] is None else data[0], options
        last, self._last = self._last, observation
        if command == "reset":
            self._add_earlier_faults(reset_info)
            return observation, reset_info
        info = {
            "TimeLimit.truncated": True,
            "terminal_observation": last,
            "fault": happened,
            "faults": self._faults_before,
        }
        self._add_earlier_faults(reset_info)
        return observation, np.asarray(self.restarts.reward).dtype.type(0), True, info, reset_info

    def _count(self, error: WorkerError) -> None:
        """Note that the worker died, unless no other may take its place.

        Raises:
            WorkerError: Too many were replaced, or the environment's workers die before they have finished a step.
        """
        if not self._finished_a_step:
            self._fruitless += 1
        self._finished_a_step = False
        most = self.restarts.most
        if self._fruitless >= 2:
            why = "It is the second one in a row that ended before this environment had made a step, so another one is no use"
        elif self.restarts.done >= most:
            why = f"It is not replaced, as {most} worker{'s were' if most > 1 else ' was'} already (restarts={most})"
        else:
            why = ""
        if why:
            raise WorkerError(f"{error}. {why}", died=True) from None
        self.restarts.done += 1
        self._replaced += 1
        self._faults_before, self._faults = self._faults_before + self._faults + 1, 0
        text = f"{error}; another one takes its place ({self.restarts.done} of at most {most})"
        if self.restarts.say is None:
            warnings.warn(text, RuntimeWarning, stacklevel=5)
        else:
            self.restarts.say(text)

    def _start_anew(self, seed: int | None, options: dict[str, Any]) -> Any:
        """Another worker, as the one before it would be after a reset; its first observation and its info."""
        self.workers.launch(self.index)
        self._attach()
        for name, value in self._attributes.items():
            self.send(("set_attr", (name, value)))
            self._answer()
        self.send(("has_attr", "step"))  # making an environment may take longer than a reset may
        self._answer()
        self.send(("reset", (seed, options)))
        return self._answer()

    def _fresh_seed(self) -> int | None:
        """Another one for each worker, and always the same for the same seed of the environment."""
        if self._seed is None:
            return None
        return int(np.random.SeedSequence([self._seed, self._replaced]).generate_state(1)[0] >> 1)

    def _add_earlier_faults(self, *infos: dict[str, Any]) -> None:
        """Have `RestartOnFault`, which counts the lost games of its own worker, count on where the one before it
        ended.
        """
        for info in infos:
            if "faults" in info:
                self._faults = info["faults"]
                info["faults"] += self._faults_before


def end(process: BaseProcess, grace: float = 0.0) -> None:
    """End a worker, and the processes that it has left: a game outlives a worker that was killed.

    Args:
        process: The worker, dead or alive.
        grace: Seconds that it has to close its environment.
    """
    if grace and process.is_alive():
        process.terminate()
        process.join(grace)
    if process.is_alive():
        process.kill()
        process.join(10)  # not for ever: a driver may hold on to it
    if hasattr(os, "killpg") and process.pid is not None:
        with contextlib.suppress(OSError):  # there are none, as a rule
            os.killpg(process.pid, signal.SIGKILL)
