"""A lock on a folder, so that two processes do not write into one run."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from latent_obs.util.errors import InputError

#: The file in a locked folder; it holds the process id of the owner.
LOCK_FILE = ".lock"


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold an existing folder for this process, inside the block.

    The system releases the lock when the process ends, however it ends, so that a killed run can be resumed.

    Raises:
        InputError: Another process holds the folder; the message names it.
    """
    file = folder / LOCK_FILE
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
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
