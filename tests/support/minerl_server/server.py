"""The game's side of the socket: what Malmo's ``MalmoEnvServer`` answers, and how it fails.

The order and the form of the replies are those of the Java server, also where a client asks at the wrong time, as the
real client does after a fault. Each message has four bytes of length, big-endian, before it.
"""

import itertools
import socket
import struct
import threading
from collections import deque
from contextlib import suppress
from typing import Literal, Self

from .world import World, WorldSettings

MALMO_VERSION = "0.37.0"
LONGEST = 1 << 24  # bytes; a longer message is not the client's

#: What can go wrong. At a step - "crash": the process dies, and connections are refused until `StandInGame.revive`.
#: "drop": this connection is closed. "hang": this and all later messages of this connection go unanswered. "short":
#: half a frame. "empty": a frame of no bytes. "bad-json": an info that is not JSON.
#: At a reset, when the mission comes - "crash-reset", "drop-reset", "hang-reset": the same. "busy": the mission is
#: refused (0, MALMOBUSY), and the client asks again a second later.
Fault = Literal[
    "crash", "drop", "hang", "short", "empty", "bad-json", "crash-reset", "drop-reset", "hang-reset", "busy"
]
AT_RESET = {"crash-reset", "drop-reset", "hang-reset", "busy"}


class Closed(Exception):
    """The connection is over, whoever ended it."""


class Line:
    """One client's connection; reads through a buffer, and sends a whole reply at once, as system calls are slow."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._reader = connection.makefile("rb", buffering=1 << 16)
        #: A hung connection is read, so that the client does not block on sending, but never answered.
        self.mute = False

    def receive(self) -> bytes:
        """The next message; `Closed` if the client went away, or sends something else than messages."""
        header = self._reader.read(4)
        length = int.from_bytes(header)
        data = self._reader.read(length) if len(header) == 4 and length <= LONGEST else b""
        if len(header) < 4 or len(data) < length:
            raise Closed
        return data

    def send(self, *messages: bytes) -> None:
        """Send messages, each with its length before it, in one go."""
        self._socket.sendall(b"".join(len(message).to_bytes(4) + message for message in messages))

    def answer(self, number: int) -> None:
        """Send the four-byte reply that most commands get."""
        self.send(number.to_bytes(4))

    def hang_up(self) -> None:
        """End the connection; a thread that waits on it wakes up."""
        with suppress(OSError):  # the client may have been faster
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up and free the socket; for the thread that reads."""
        self.hang_up()
        self._reader.close()
        self._socket.close()


class StandInGame:
    """A game that listens on a port and has at most one mission at a time, as Malmo has.

    Args:
        port: Where to listen; 0 takes a free one.
        settings: Of the worlds that the missions get.
        revive_after_s: Come back by itself this long after a crash; None waits for `revive`.

    Attributes:
        commands: The commands of the last 10,000 steps, as the client wrote them.
        missions: The XML of every mission begun, with its `tokens`.
        seeds: The seed of every mission begun: the token's, or the one that was drawn.
        connections: How many connections have been accepted.
        steps: How many ``StepClient`` messages have come.
        world: The current mission's world, for a test that wants to look behind the picture.
        exited: Set once a client sent ``<Exit>``.
    """

    def __init__(
        self,
        port: int = 0,
        settings: WorldSettings | None = None,
        *,
        revive_after_s: float | None = None,
    ) -> None:
        self.settings = settings or WorldSettings()
        self.port, self.revive_after_s = port, revive_after_s
        self.commands: deque[str] = deque(maxlen=10_000)
        self.missions: list[str] = []
        self.tokens: list[str] = []
        self.seeds: list[int] = []
        self.connections = self.steps = 0
        self.world: World | None = None
        self.exited = threading.Event()
        self._running = self._told_done = self._closed = False
        self._planned: dict[int, list[Fault]] = {}  # by step
        self._at_step: deque[Fault] = deque()
        self._at_reset: deque[Fault] = deque()
        self._lock = threading.RLock()
        self._lines: set[Line] = set()
        self._known = ""  # name of the mission that runs
        self._listener: socket.socket | None = None
        self._listen()

    @property
    def alive(self) -> bool:
        """Whether it listens; a crashed game does not."""
        return self._listener is not None

    def schedule(self, kind: Fault, *, at_step: int) -> None:
        """Plan a fault at this step of the game's life, counted from 1; that of a reset strikes at the next reset."""
        with self._lock:
            self._planned.setdefault(at_step, []).append(kind)

    def fail_next(self, kind: Fault, times: int = 1) -> None:
        """Plan a fault for the next steps (for the faults of a reset: the next missions), this many of them."""
        with self._lock:
            (self._at_reset if kind in AT_RESET else self._at_step).extend(itertools.repeat(kind, times))

    def crash(self) -> None:
        """Die at once, as a process does: no reply, no listening socket."""
        with self._lock:
            self._stop()
            if self.revive_after_s is not None and not self._closed:
                timer = threading.Timer(self.revive_after_s, self.revive)
                timer.daemon = True
                timer.start()

    def revive(self) -> None:
        """Listen again, on the same port and without a mission; nothing happens to a game that is alive."""
        with self._lock:
            if not self.alive and not self._closed:
                self._listen()

    def close(self) -> None:
        """End it for good."""
        with self._lock:
            self._closed = True
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listen(self) -> None:
        self._listener = listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(listener,), name=f"stand-in:{self.port}", daemon=True).start()

    def _stop(self) -> None:
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept
            self._listener.close()
            self._listener = None
        for line in self._lines:
            line.hang_up()
        self._running, self.world, self._known = False, None, ""

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with suppress(OSError):  # it may be gone already
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                if self._listener is not listener:
                    connection.close()
                    return
                line = Line(connection)
                self._lines.add(line)
                self.connections += 1
            threading.Thread(target=self._serve, args=(line,), name=f"stand-in:{self.port}:line", daemon=True).start()

    def _serve(self, line: Line) -> None:
        try:
            if not line.receive().startswith(f"<MalmoEnv{MALMO_VERSION}".encode()):
                return
            while True:
                data = line.receive()
                if not line.mute:
                    self._message(line, data)
        except (Closed, OSError):
            return
        finally:
            with self._lock:
                self._lines.discard(line)
            line.close()

    def _message(self, line: Line, data: bytes) -> None:
        if data.startswith(b"<StepClient"):
            self._step(line, data.decode())
        elif data.startswith(b"<StepServer"):
            pass  # the world's tick is in the client's step; there is no reply
        elif data.startswith(b"<Peek"):
            with self._lock:
                world = self.world
                if world is None:
                    return  # the game waits for a mission that never comes
                messages = world.frame(), world.info().encode(), bytes([world.done])
            line.send(*messages)
        elif data.startswith(b"<MissionInit"):
            self._mission(line, data.decode(), line.receive().decode())
        elif data.startswith(b"<Quit"):
            with self._lock:
                self._quit()
            line.answer(1)
        elif data.startswith(b"<Exit"):
            line.answer(1)
            with self._lock:
                self._stop()
            self.exited.set()
            raise Closed
        else:  # <Disconnect/>, and what the game does not know
            raise Closed

    def _mission(self, line: Line, xml: str, token: str) -> None:
        parts = token.split(":")
        name = ":".join(parts[:3])
        with self._lock:
            fault = self._at_reset.popleft() if self._at_reset else None
            if fault == "crash-reset":
                self.crash()
            if fault in ("crash-reset", "drop-reset"):
                raise Closed
            if fault == "hang-reset":
                line.mute = True
            elif fault == "busy":
                line.answer(0)
            elif self._running and name == self._known:
                line.answer(1)  # begun already
            elif self._running:
                self._quit()  # somebody else's mission: refused, but ended, so that asking again helps
                line.answer(0)
            else:
                try:
                    self.world = World(xml, int(parts[5]) if len(parts) > 5 else None, self.settings)
                except ValueError:
                    line.answer(0)
                    return
                self.missions.append(xml)
                self.tokens.append(token)
                self.seeds.append(self.world.seed)
                self._running, self._told_done, self._known = True, False, name
                line.answer(1)

    def _quit(self) -> None:
        if self.world is not None:
            self.world.done, self.world.reward = True, 0.0
        self._running = False

    def _step(self, line: Line, message: str) -> None:
        commands = message[len("<StepClient0>") : -len("</StepClient0 >")]
        with self._lock:
            self.steps += 1
            self.commands.append(commands)
            for kind in self._planned.pop(self.steps, ()):
                self.fail_next(kind)
            fault = self._at_step.popleft() if self._at_step else None
            if fault == "crash":
                self.crash()
            if fault in ("crash", "drop") or (self._told_done and self.world is not None):
                raise Closed  # after the end the game has no frame left, and fails
            if fault == "hang":
                line.mute = True
            world = self.world
            if world is None or line.mute:
                return
            if not world.done:
                world.act(commands)
            frame, info = world.frame(), world.info().encode()
            reply = struct.pack("!dbb", world.reward, world.done, True)
            if world.done:
                self._running, self._told_done = False, True
        if fault == "short":
            frame = frame[: len(frame) // 2]
        elif fault == "empty":
            frame = b""
        elif fault == "bad-json":
            info = b'{"inventory": ['
        line.send(frame, reply, *([info] if message[len("<StepClient")] in "02" else []))
