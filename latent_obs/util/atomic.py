"""Folders that stay whole: files written at once or not at all, one owner, and a Ctrl-C that lets a step finish."""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Self

from filelock import FileLock, Timeout

from latent_obs.util.errors import InputError

#: The file in a locked folder; it holds the process id of the owner.
LOCK_FILE = ".lock"


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write to a temporary file that replaces `path` if the block ends without an error, and is removed otherwise.

    It is in the same folder, which is made if needed, and keeps the suffix of `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Always the same name: what a killed process left is overwritten, and does not pile up.
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield temporary
        temporary.chmod(0o644)  # safetensors makes private files
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


def is_unused(folder: Path) -> bool:
    """Whether a run can begin in a folder: it is missing, or has nothing but what a run killed at its start leaves.

    That is its lock, and the temporary file of its settings.
    """
    if not folder.exists():
        return True
    return all(f.name == LOCK_FILE or (f.name[0] == "." and ".part" in f.suffixes) for f in folder.iterdir())


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
            self._previous = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def own_folder(out: Path) -> Iterator[None]:
    """Hold a folder as `folder_lock` does; it is made if needed, and removed if it is empty afterwards.

    Raises:
        InputError: Another process holds it, or there can be no folder of that name.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out {out} must be a folder, or a name for a new one: {error.strerror}") from None
    try:
        with folder_lock(out):
            yield
    finally:
        with contextlib.suppress(OSError):
            out.rmdir()


@contextlib.contextmanager
def folder_lock(folder: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold an existing folder for this process, inside the block; wait for it at most so many seconds.

    The system releases the lock when the process ends, however it ends, so that a killed run can be resumed.

    Raises:
        InputError: Another process holds the folder; the message names it.
    """
    file = folder / LOCK_FILE
    lock = FileLock(file)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise InputError(
            f"{folder} is in use by another run, process {file.read_text().strip() or '(unknown)'}. Wait until it has "
            "ended, stop it, or choose another --out"
        ) from None
    try:
        file.write_text(f"{os.getpid()}\n")
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is held: a process that has opened it sees that it is gone, and retries
        lock.release()
