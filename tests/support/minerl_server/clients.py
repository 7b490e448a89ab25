"""Two clients of the stand-in: MineRL's own, and one of a few lines for what MineRL's never does."""

from __future__ import annotations

import socket
import struct
from typing import Any

from .server import StandInGame


def attach(env: Any, game: StandInGame) -> Any:
    """Gives a game to an environment of the real client, which would start Minecraft otherwise; returns the
    environment.

    The client is imported here and not above, so that the stand-in's own process does without it.
    """
    from minerl.env import malmo

    manager: Any = malmo.InstanceManager
    instance = manager.add_existing_instance(game.port)
    instance.launch()
    instance.had_to_clean = False
    env.unwrapped.instances = [instance]
    return env


class Raw:
    """The protocol with nothing around it; for tests of the protocol, and to measure the stand-in alone.

    Args:
        game: Where to connect to.
        hello: What to say first.
    """

    def __init__(self, game: StandInGame, hello: bytes = b"<MalmoEnv0.37.0/>") -> None:
        self.socket = socket.create_connection(game.address, timeout=5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb", buffering=1 << 16)
        self.send(hello)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def send(self, *messages: bytes) -> None:
        """Sends messages, without waiting for anything."""
        for message in messages:
            self.socket.sendall(struct.pack("!I", len(message)) + message)

    def receive(self) -> bytes | None:
        """A message; None where the game hung up."""
        try:
            header = self.file.read(4)
        except ConnectionResetError:
            return None
        return self.file.read(struct.unpack("!I", header)[0]) if len(header) == 4 else None

    def ask(self, *messages: bytes) -> bytes | None:
        """Sends messages and returns the first reply."""
        self.send(*messages)
        return self.receive()

    def begin(self, mission: str, token: str = "uid:0:0:1:true:7") -> bytes | None:
        """Sends a mission; the token is experiment, role, reset, agents, synchronous and, where there is one, the
        seed."""
        return self.ask(mission.encode(), token.encode())

    def step(self, commands: str = "", option: int = 0) -> tuple[bytes | None, tuple[float, int, int], bytes | None]:
        """Takes a step; returns frame, (reward, done, sent) and, with an option that asks for it, the info."""
        frame = self.ask(f"<StepClient{option}>{commands}</StepClient{option} >".encode())
        numbers = struct.unpack("!dbb", self.receive() or b"")
        return frame, numbers, self.receive() if option in (0, 2) else None
