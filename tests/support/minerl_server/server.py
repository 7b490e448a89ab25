"""The game's side of the socket: what Malmo's ``MalmoEnvServer`` answers, and how it fails.

The order and the form of the replies are those of the Java server, also where a client asks at the wrong time, as the
real client does after a fault.
"""

import socket
import struct
import threading
from collections import deque
from contextlib import suppress
from typing import Self

from .faults import Fault, FaultPlan
from .wire import Closed, Line
from .world import World, WorldSettings

MALMO_VERSION = "0.37.0"
_STEP = struct.Struct("!dbb")


class StandInGame:
    """A game that listens on a port and has at most one mission at a time, as Malmo has.

    Args:
        port: Where to listen; 0 takes a free one.
        settings: Of the worlds that the missions get.
        crash_every: Crash at each multiple of this number of steps.
        revive_after_s: Come back by itself this long after a crash; None waits for `revive`.

    Attributes:
        commands: The commands of the last 10,000 steps, as the client wrote them.
        missions: The XML of every mission begun.
        tokens: The token of every mission begun.
        seeds: The seed of every mission begun: the token's, or the one that was drawn.
        connections: How many connections have been accepted.
        steps: How many ``StepClient`` messages have come.
        episodes: How many missions have begun.
        world: The current mission's world, for a test that wants to look behind the picture.
        exited: Set once a client sent ``<Exit>``.
    """

    def __init__(
        self,
        port: int = 0,
        settings: WorldSettings | None = None,
        *,
        crash_every: int | None = None,
        revive_after_s: float | None = None,
    ) -> None:
        self.settings = settings or WorldSettings()
        self.port = port
        self.revive_after_s = revive_after_s
        self.commands: deque[str] = deque(maxlen=10_000)
        self.missions: list[str] = []
        self.tokens: list[str] = []
        self.seeds: list[int] = []
        self.connections = self.steps = self.episodes = 0
        self.world: World | None = None
        self.exited = threading.Event()
        self._running = False
        self._told_done = False
        self._plan = FaultPlan(crash_every)
        self._lock = threading.RLock()
        self._lines: set[Line] = set()
        self._known: set[str] = set()
        self._listener: socket.socket | None = None
        self._closed = False
        self._listen()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return "127.0.0.1", self.port

    @property
    def alive(self) -> bool:
        """Whether it listens; a crashed game does not."""
        return self._listener is not None

    def schedule(self, kind: Fault, *, at_step: int) -> None:
        """Plan a fault at this step of the game's life, counted from 1; that of a reset strikes at the next reset."""
        with self._lock:
            self._plan.add(kind, at_step=at_step)

    def fail_next(self, kind: Fault, times: int = 1) -> None:
        """Plan a fault for the next steps (for the faults of a reset: the next missions), this many of them."""
        with self._lock:
            self._plan.add(kind, times)

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
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(self.address)
        except OSError:
            listener.close()
            raise
        listener.listen()
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), name=f"stand-in:{self.port}", daemon=True).start()

    def _stop(self) -> None:
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept
            self._listener.close()
            self._listener = None
        for line in self._lines:
            line.hang_up()
        self._running, self.world = False, None
        self._known.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                if self._listener is not listener:
                    connection.close()
                    return
                try:
                    line = Line(connection)
                except OSError:  # gone already
                    connection.close()
                    continue
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
            self._peek(line)
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
            fault = self._plan.at_reset()
            if fault == "crash-reset":
                self.crash()
            if fault in ("crash-reset", "drop-reset"):
                raise Closed
            if fault == "hang-reset":
                line.mute = True
            elif fault == "busy":
                line.answer(0)
            elif self._running and name in self._known:
                line.answer(1)  # begun already
            elif self._running:
                self._quit()  # somebody else's mission: refused, but ended, so that asking again helps
                line.answer(0)
            else:
                seed = int(parts[5]) if len(parts) > 5 else None
                try:
                    self.world = World(xml, seed, self.settings)
                except ValueError:
                    line.answer(0)
                    return
                self.missions.append(xml)
                self.tokens.append(token)
                self.seeds.append(self.world.seed)
                self.episodes += 1
                self._known = {name}
                self._running, self._told_done = True, False
                line.answer(1)

    def _quit(self) -> None:
        if self.world is not None:
            self.world.done, self.world.reward = True, 0.0
        self._running = False

    def _peek(self, line: Line) -> None:
        with self._lock:
            world = self.world
            if world is None:
                return  # the game waits for a mission that never comes
            frame, info, done = world.frame(), world.info(), world.done
        line.send(frame, info.encode(), bytes([done]))

    def _step(self, line: Line, message: str) -> None:
        commands = message[len("<StepClient0>") : -len("</StepClient0 >")]
        with self._lock:
            self.steps += 1
            self.commands.append(commands)
            fault = self._plan.at_step(self.steps)
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
            reply = _STEP.pack(world.reward, world.done, True)
            if world.done:
                self._running, self._told_done = False, True
        if fault == "short":
            frame = frame[: len(frame) // 2]
        elif fault == "empty":
            frame = b""
        elif fault == "bad-json":
            info = b'{"inventory": ['
        line.send(frame, reply, *([info] if message[len("<StepClient")] in "02" else []))
