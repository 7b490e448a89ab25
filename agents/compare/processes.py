"""Ending a process with all that it started, however these have grouped themselves."""

import contextlib
import os
import signal
from pathlib import Path


def end_session(leader: int, *, but: int | None = None) -> None:
    """Kill all processes of a session: of one that was started with ``start_new_session=True``, and of its descendants.

    Environments are processes in groups of their own, which a signal to the leader's group does not reach; they do not leave
    its session. Without Linux's /proc it is the group alone.

    Args:
        leader: Number of the session's first process, which may have ended.
        but: One that is left alive, or killed by its own hand.
    """
    for pid in _members(leader):
        if pid != but:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    if but is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)


def _members(session: int) -> list[int]:
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            if os.getsid(int(entry.name)) == session:
                found.append(int(entry.name))
    return found
