"""Keeping the memory of freed arrays, so that a gradient step on a CPU does not fetch it from the system anew each time."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from typing import Any

# mallopt(3): numbers of the parameters, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Where glibc's own, moving thresholds end: twice the largest mmap threshold, and that (DEFAULT_MMAP_THRESHOLD_MAX, 64 bits).
_USUAL = {_M_TRIM_THRESHOLD: 64 << 20, _M_MMAP_THRESHOLD: 32 << 20}
# A super-batch is larger than this and stays outside the heap; the activations of a batch are smaller, and are reused.
_KEEPING = {_M_TRIM_THRESHOLD: 2**31 - 1, _M_MMAP_THRESHOLD: 256 << 20}


@contextlib.contextmanager
def kept_memory() -> Iterator[bool]:
    """Let glibc keep freed memory inside the block, and give back what is left over after it.

    The activations of a batch are some 16 MB a layer. As it comes, glibc hands such memory back to the system after every step
    and asks for it again in the next, and the system clears each page before the process may touch it: a fifth of a small
    CVAE's gradient step on two cores (`benchmarks/gradient_step.py`). What is held at most stays the same: it is the same
    memory, kept. Where the C library is another (musl, macOS, Windows), or its `malloc` was replaced, nothing changes.

    Yields:
        Whether the setting was taken.

    Example:
        >>> with kept_memory() as kept:
        ...     kept in (True, False)
        True
    """
    libc = _glibc()
    if libc is None:
        yield False
        return
    taken = [libc.mallopt(parameter, value) == 1 for parameter, value in _KEEPING.items()]
    try:
        yield all(taken)
    finally:
        for parameter, value in _USUAL.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)


def _glibc() -> Any:
    """The C library of this process where it is glibc, else None."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        return None
    libc.mallopt.argtypes, libc.mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    libc.malloc_trim.argtypes, libc.malloc_trim.restype = (ctypes.c_size_t,), ctypes.c_int
    return libc
