"""Folders that stay whole: written at once or not at all, with one owner, and a Ctrl-C that lets a step finish."""

import contextlib
import ctypes
import errno
import json
import os
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Self

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from latent_obs.util.errors import InputError

#: The file in a locked folder; it holds the process id of the owner.
LOCK_FILE = ".lock"
#: The file in a run folder with the name of its run at a tracker.
LOG_NAME = "log_name"


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write to a temporary file that replaces `path` if the block ends without an error, and is removed otherwise.

    It is in the same folder, which is made if needed, and keeps the suffix of `path`. An error of the system, such as a
    full disk, is an `OSError` that names `path`, whichever library meets it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Always the same name: what a killed process left is overwritten, and does not pile up.
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        with system_errors_of(path):
            yield temporary
            temporary.chmod(0o644)  # safetensors makes private files
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Write to a temporary folder that takes the place of the folder `path` if the block ends without an error.

    It is beside `path`, and removed otherwise. An existing folder is exchanged with it in one step, so that `path` is
    whole at every moment (on Linux; elsewhere it is missing for an instant). What killed processes left is removed.
    Errors as for `atomic_write`.
    """
    import fcntl  # here: the rest of this module works where there is none

    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.with_name(f".{path.name}.old")
    if old.is_dir() and not path.exists():  # a process was killed between the two renames below
        old.rename(path)
    _remove_left_folders(path)
    new = Path(tempfile.mkdtemp(prefix=f".{path.name}.part-", dir=path.parent))
    lock = os.open(new, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(lock, fcntl.LOCK_EX)  # it is in use: another process does not remove it
        with system_errors_of(path):
            yield new
            new.chmod(0o755)  # mkdtemp makes private folders, and safetensors private files
            for file in new.rglob("*"):
                if file.is_file():
                    file.chmod(0o644)
                    with file.open("rb") as written:
                        os.fsync(written.fileno())
            if not path.exists():
                new.rename(path)
            elif not _exchange(new, path):
                path.rename(old)
                try:
                    new.rename(path)
                except BaseException:
                    old.rename(path)
                    raise
                shutil.rmtree(old, ignore_errors=True)
    finally:
        os.close(lock)
        shutil.rmtree(new, ignore_errors=True)  # or what was exchanged with it


def _remove_left_folders(path: Path) -> None:
    """Remove the temporary folders of `path` that no process uses; earlier versions had others."""
    import fcntl

    name, random = re.escape(path.name), "[a-z0-9_]{8}"
    for left in path.parent.iterdir():
        of_earlier_version = re.fullmatch(rf"\.{name}-{random}", left.name)
        if not of_earlier_version and not re.fullmatch(rf"\.{name}\.(old|part-{random})", left.name):
            continue
        with contextlib.suppress(OSError):  # another process uses it, or has just removed it
            if of_earlier_version and any(file.name != "new" for file in left.iterdir()):
                continue
            descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE
    if renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


@contextlib.contextmanager
def system_errors_of(path: Path) -> Iterator[None]:
    """Make errors of the system `OSError`s of their kind that name `path`.

    Those of a write name no file, and safetensors hands on their text alone.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
    except SafetensorError as error:
        if code := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None
        raise


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


def is_unused(folder: Path) -> bool:
    """Whether a run can begin in a folder: it is missing, or has nothing but what a run killed at its start leaves.

    That is its lock, its name at a tracker, and the temporary file of its settings.
    """
    if not folder.exists():
        return True
    return all(
        f.name in (LOCK_FILE, LOG_NAME) or (f.name[0] == "." and ".part" in f.suffixes) for f in folder.iterdir()
    )


class GracefulStop:
    """Turn the first SIGINT or SIGTERM into a flag to check between steps; a second SIGINT interrupts at once.

    Outside the main thread it does nothing, as Python delivers signals to the main thread only.

    Attributes:
        requested: Whether a signal has arrived.
    """

    def __init__(self) -> None:
        self.requested = False
        self._at_once = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._at_once or (self.requested and number == signal.SIGINT):
            self.requested = True
            raise KeyboardInterrupt
        self.requested = True

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Let the first signal raise `KeyboardInterrupt` inside the block, where a step can take very long."""
        if self.requested:
            raise KeyboardInterrupt
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._handle:  # not if it was replaced inside the block
                signal.signal(number, handler)


@contextlib.contextmanager
def own_folder(out: Path, lock: str = LOCK_FILE) -> Iterator[None]:
    """Hold a folder as `folder_lock` does; it is made if needed, and removed if it is empty afterwards.

    Processes with different names of the lock file share the folder.

    Raises:
        InputError: Another process holds it, or there can be no folder of that name.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except PermissionError:
        raise InputError(f"out {out}: you have no permission to write there") from None
    except OSError as error:
        raise InputError(f"out {out} must be a folder, or a name for a new one: {error.strerror}") from None
    try:
        with folder_lock(out, lock=lock):
            yield
    finally:
        with contextlib.suppress(OSError):
            out.rmdir()


@contextlib.contextmanager
def folder_lock(folder: Path, wait_s: float = 0.0, lock: str = LOCK_FILE) -> Iterator[None]:
    """Hold an existing folder for this process, inside the block; wait for it at most so many seconds.

    The system releases the lock when the process ends, however it ends, so that a killed run can be resumed.

    Raises:
        InputError: Another process holds the folder; the message names it.
    """
    file = folder / lock
    held, owner = FileLock(file, fallback_to_soft=False), ""
    try:
        with contextlib.suppress(OSError):
            owner = file.read_text().strip()
        held.acquire(timeout=wait_s)
    except Timeout:
        raise InputError(
            f"{folder if lock == LOCK_FILE else file} is in use by another run, process {owner or '(unknown)'}. Wait "
            "until it has ended, stop it, or choose another --out"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
            raise
        yield  # some network file systems have no locks
        return
    try:
        file.write_text(f"{os.getpid()}\n")
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is held: a process that has opened it sees that it is gone, and retries
        held.release()
