"""All that touches the internals of minerl 0.4.4: its import, its specifications, and its connection to a game.

Minerl waits up to four minutes for each message, and starts a second game when it cannot connect to the first.
`GameConnection` puts a deadline on each step and reset, and raises one kind of error however a game is lost.
"""

import contextlib
import logging
import math
import os
import shutil
import signal
import socket
import struct
import threading
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from latent_obs.minerl.installation import check_client, check_game
from latent_obs.util.errors import GameFaultError, InputError, require

_LONGEST_MESSAGE = 256 * 2**20  # bytes; more than any picture, and less than the length in a garbled header
# What minerl logs when it loses a game; `RestartOnFault` logs it here.
_UPSTREAM_ON_FAULTS = ("Failed to take a step", "Failed to reset (socket error)", "Cleaning connection!")
_NOOP_CORRECTIONS = 4  # the first leaves some 1e-3 degrees, the second 1e-5
_GYM_ERRORS_ONLY = 40  # gym.logger.ERROR: it warns of the precision of minerl's spaces at every reset


def quietly() -> contextlib.AbstractContextManager[Any]:
    """Hide the deprecation warnings of minerl and gym, which users cannot fix."""
    return warnings.catch_warnings(action="ignore")


def load_minerl() -> Any:
    """Import minerl and its gym, and give the old gym's registry of environments.

    Raises:
        MissingExtraError: minerl is not installed.
        InputError: It, or gym, is of another version than this was written for.
    """
    check_client()
    with quietly():
        require("minerl", extra="minerl", purpose="make MineRL environments")
        gym = require("gym", extra="minerl", purpose="make MineRL environments")
    gym.logger.set_level(_GYM_ERRORS_ONLY)
    logging.getLogger("minerl.env._multiagent").addFilter(_is_no_fault)
    return gym.envs.registry


def _is_no_fault(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_UPSTREAM_ON_FAULTS)


def _malmo() -> Any:
    return require("minerl.env.malmo", extra="minerl", purpose="reach a game")


def minerl_specs() -> dict[str, Any]:
    """Minerl's specifications by environment id."""
    return {spec.id: spec for spec in load_minerl().all() if spec.id.startswith("MineRL")}


def make_client(env_id: str) -> Any:
    """Minerl's own environment, connected to nothing yet."""
    registry = load_minerl()
    with quietly():
        return registry.make(env_id)


def core_of(client: Any) -> Any:
    """The environment under Gym's wrappers, that holds the connection; an InputError if it is none of minerl's."""
    if not is_minerl(client):
        raise InputError(f"client must be an environment from minerl's gym.make, got {client}")
    return client.unwrapped


def is_minerl(client: Any) -> bool:
    """Whether an old environment is one of minerl 0.4's."""
    kinds = type(getattr(client, "unwrapped", None)).__mro__
    return any(kind.__module__.startswith("minerl.env.") for kind in kinds)


def noop_vector(task: Any) -> Mapping[str, Any] | None:
    """The no-op of an obfuscated or vectorized task: the plain task's no-op, encoded. None for a plain task.

    The encoding is not exact: the plain no-op decodes to a turn of 0.1 degrees a step. So the camera is moved against
    it until what is decoded stands still.
    """
    plain = task
    while hasattr(plain, "env_to_wrap"):
        plain = plain.env_to_wrap
    if plain is task:
        return None
    action = plain.action_space.no_op()
    for _ in range(_NOOP_CORRECTIONS):
        action["camera"] = action["camera"] - task.unwrap_action(task.wrap_action(action))["camera"]
    return task.wrap_action(action)


def kill_tree(process: Any) -> None:
    """End a launch script and all that it started: first by SIGTERM, as a virtual display has files to remove."""
    import psutil  # which minerl needs

    with suppress(psutil.Error):  # it may be gone, or half gone
        processes = [*process.children(recursive=True), process]
        for each in processes:
            with suppress(psutil.Error):
                each.terminate()
        for each in psutil.wait_procs(processes, timeout=3)[1]:
            with suppress(psutil.Error):
                each.kill()


def end_game(instance: Any) -> None:
    """End a game that was started here, and all that is left of it; a second call does no harm.

    Minerl's own way fails for a process that died by itself, and leaves a zombie.
    """
    instance.running = instance._starting = False
    process = instance.minecraft_process
    if process is not None and process.returncode is None:
        # A game whose script is gone still belongs to its group; Windows has no killpg.
        with suppress(OSError, AttributeError):
            os.killpg(process.pid, signal.SIGCONT)
        kill_tree(process)
        with suppress(OSError, AttributeError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(Exception):
            process.wait(5)
    if process is not None:
        reader = getattr(instance, "_logger_thread", None)
        if reader is not None:
            reader.join(5)
        process.stdout.close()
    if instance.instance_dir is not None:
        shutil.rmtree(instance.instance_dir, ignore_errors=True)
    pool = _malmo().InstanceManager._instance_pool
    if instance in pool:
        pool.remove(instance)
        instance.release_lock()


class GameConnection:
    """A minerl environment's connection to its game: starts it, ends it, and puts a deadline on its messages.

    Arguments and errors as in `MineRLEnv`.
    """

    def __init__(self, client: Any, *, port: int | None = None, host: str = "localhost") -> None:
        self.client = client
        self.core = core_of(client)
        self.port, self.host = port, host
        self._release: Any = None  # gives a game of `InstanceManager.add_existing_instance` back
        self.picture_missing = False  # whether the last picture that the game sent was empty
        self.trouble = ""  # what went wrong with the connection last; minerl reports a timeout for anything
        shape: tuple[int, ...] = self.core.observation_space.spaces["pov"].shape
        self._picture = bytes(math.prod(shape))  # the last one that was not empty
        self._picture_is_next = False
        self._deadline = self._seconds = 0.0
        for instance in self.core.instances:  # of an environment that was in use before
            if port is None and instance.existing:
                self.port, self.host = instance.port, instance.host  # where to find the game again
            self._watch(instance)
        if port is not None and not self.core.instances:
            if not 0 < port < 65536:
                raise InputError(f"port must be from 1 to 65535, got {port}")
            _greet(host, port)
        elif not self.core.instances:
            pool = _malmo().InstanceManager._instance_pool
            free = (one for one in pool if one.existing and not one.locked and not one.has_client_socket())
            added = next(free, None)
            if added is None:
                check_game()
            else:
                _greet(added.host, added.port)
                added._acquire_lock(os.getpid())
                self._release = weakref.finalize(self, added.release_lock)
                self.port, self.host = added.port, added.host
        self.core._get_new_instance = self._new_instance
        # Minerl would start another game after a failed connection, and forget it.
        self.core._TO_MOVE_handle_frozen_minecraft = lambda _instance: None

    @property
    def address(self) -> str:
        """Where the game is, for error messages."""
        return f"{self.host}:{self.port}" if self.port is not None else "a game of its own"

    def begin(self, seconds: float) -> None:
        """Start the deadline of all messages from now on."""
        self.trouble = ""
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds

    def drop(self) -> None:
        """Forget the game after a fault: close the connection, and end the game if it was started here."""
        for instance in self.core.instances:
            with suppress(OSError):
                if instance.client_socket is not None:
                    instance.client_socket.close()
            instance.client_socket = None
            if not instance.existing:
                end_game(instance)
        self.core.instances = []

    def close(self) -> None:
        """Say goodbye to the game, and end it if it was started here."""
        self.begin(5.0)
        for window in (self.core.viewers or {}).values():  # minerl fails on them
            with suppress(Exception):
                window.close()
        if self.core.viewers:
            self.core.viewers = {}
        with suppress(Exception), quietly():
            self.client.close()
        self.drop()
        if self._release is not None:
            self._release()

    def _new_instance(self, port: int | None = None, instance_id: int | None = None) -> Any:
        """Replaces minerl's method: the game on the port, or a new one."""
        if self.port is not None:
            instance = _malmo().MinecraftInstance(port=self.port, existing=True, status_dir=None)
            instance._host = self.host
            instance.launch()
        else:
            check_game()
            instance = _malmo().InstanceManager.get_instance(os.getpid(), instance_id=instance_id)
            try:
                with quietly(), self._launched_in_time(instance):
                    instance.launch(replaceable=True)
            except BaseException:
                end_game(instance)
                raise
        instance.had_to_clean = False
        self._watch(instance)
        return instance

    @contextlib.contextmanager
    def _launched_in_time(self, instance: Any) -> Iterator[None]:
        """End a game that does not start in time; minerl would wait for ever."""
        late, launched = threading.Event(), threading.Event()

        def end() -> None:
            late.set()
            while not launched.wait(0.1):  # perhaps its files are still being copied
                if instance.minecraft_process is not None:
                    kill_tree(instance.minecraft_process)

        timer = threading.Timer(max(0.0, self._deadline - time.monotonic()), end)
        timer.daemon = True
        timer.start()
        try:
            yield
        except EOFError as error:
            last = "\n".join(str(error).strip().splitlines()[-15:])
            what = f"was not ready within {self._seconds:g} s" if late.is_set() else "ended while it started"
            raise GameFaultError(f"the game {what}. Its last output:\n{last}") from None
        finally:
            timer.cancel()
            launched.set()

    def _watch(self, instance: Any) -> None:
        """Replace an instance's sending and receiving by ours, with the deadline."""

        def connect(socktime: float) -> None:
            del socktime  # four minutes
            sock = socket.create_connection((instance.host, instance.port), timeout=self._remaining())
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            instance.client_socket = sock

        @contextlib.contextmanager
        def connected() -> Iterator[socket.socket]:
            try:
                if instance.client_socket is None:
                    raise ConnectionError("there is no connection to the game")
                yield instance.client_socket
            except TimeoutError:
                self.trouble = f"no answer within {self._seconds:g} s"
                raise TimeoutError(self.trouble) from None
            except OSError as error:
                self.trouble = str(error)
                raise

        def send(message: bytes) -> None:
            with connected() as sock:
                sock.settimeout(self._remaining())
                sock.sendall(_framed(message))
            self._picture_is_next = message.startswith((b"<StepClient", b"<Peek"))

        def receive() -> bytes:
            with connected() as sock:
                (length,) = struct.unpack("!I", self._exactly(sock, 4))
                if length > _LONGEST_MESSAGE:
                    raise ConnectionError(f"a message of {length} bytes: this game does not use minerl's protocol")
                message = self._exactly(sock, length)
                if not self._picture_is_next:
                    return message
                # An empty picture, which minerl would show black or fail on, is the last one.
                self._picture_is_next, self.picture_missing = False, not message
                if message and len(message) != len(self._picture):
                    raise ConnectionError(f"a picture of {len(message)} bytes, expected {len(self._picture)}")
                self._picture = message or self._picture
                return self._picture

        def shutdown(how: int) -> None:
            sock, instance.client_socket = instance.client_socket, None
            with contextlib.closing(sock):  # minerl leaves that to the garbage collector
                sock.shutdown(how)

        if not instance.existing:
            instance.kill = lambda: end_game(instance)
        instance.create_multiagent_instance_socket = connect
        instance.client_socket_shutdown = shutdown
        instance.client_socket_send_message = send
        instance.client_socket_recv_message = receive

    def _remaining(self) -> float:
        if (remaining := self._deadline - time.monotonic()) <= 0:
            raise TimeoutError(f"no answer within {self._seconds:g} s")
        return remaining

    def _exactly(self, sock: socket.socket, count: int) -> bytes:
        """Receive so many bytes, or raise; minerl gives None for a closed connection."""
        received = bytearray()
        while len(received) < count:
            sock.settimeout(self._remaining())
            chunk = sock.recv(count - len(received))
            if not chunk:
                raise ConnectionError("the game closed the connection")
            received += chunk
        return bytes(received)


def _framed(message: bytes) -> bytes:
    """A message with its length before it, as the protocol demands."""
    return struct.pack("!I", len(message)) + message


def _greet(host: str, port: int) -> None:
    """Check that something listens on the port (InputError), and leave as the protocol demands."""
    try:
        with socket.create_connection((host, port), timeout=5) as sock:
            sock.sendall(_framed(f"<MalmoEnv{_malmo().malmo_version}/>".encode()) + _framed(b"<Disconnect/>"))
    except OSError as error:
        raise InputError(
            f"port: no game listens on {host}:{port} ({error}). Start one there (docs/minerl.md explains how), or omit "
            "port to have one started"
        ) from None
