"""Ctrl-C that lets the current step finish, so that the files on disk are complete."""

import signal
import threading
from types import FrameType
from typing import Any, Self


class GracefulStop:
    """Turn the first SIGINT or SIGTERM into a flag to check between steps; a second SIGINT interrupts at once.

    Outside the main thread it does nothing, as Python delivers signals to the main thread only.

    Attributes:
        requested: Whether a signal has arrived.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
