"""Messages on a socket, as Malmo frames them: four bytes of length, big-endian, before each."""

import socket
import struct
from contextlib import suppress

_WORD = struct.Struct("!I")
LONGEST = 1 << 24  # bytes; a longer message is not the client's


class Closed(Exception):
    """The connection is over, whoever ended it."""


class Line:
    """One client's connection; reads through a buffer, and sends a whole reply at once, as system calls are slow."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._reader = connection.makefile("rb", buffering=1 << 16)
        #: A hung connection is read, so that the client does not block on sending, but never answered.
        self.mute = False

    def receive(self) -> bytes:
        """The next message; `Closed` if the client went away, or sends something else than messages."""
        header = self._reader.read(4)
        if len(header) < 4:
            raise Closed
        (length,) = _WORD.unpack(header)
        data = self._reader.read(length) if length <= LONGEST else b""
        if len(data) < length:
            raise Closed
        return data

    def send(self, *messages: bytes) -> None:
        """Send messages, each with its length before it, in one go."""
        self._socket.sendall(b"".join(part for message in messages for part in (_WORD.pack(len(message)), message)))

    def answer(self, number: int) -> None:
        """Send the four-byte reply that most commands get."""
        self.send(_WORD.pack(number))

    def hang_up(self) -> None:
        """End the connection; a thread that waits on it wakes up."""
        with suppress(OSError):  # the client may have been faster
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up and free the socket; for the thread that reads."""
        self.hang_up()
        self._reader.close()
        self._socket.close()
