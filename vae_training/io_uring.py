"""Many reads of a file in one system call, by Linux's io_uring.

Python's own calls read one place at a time, and between two of them the interpreter's lock changes hands; with 12 KB a place
that costs as much as the copying, and a second thread does not help. A ring takes hundreds of reads at once, without the
lock, copies at once what the system has in memory, and has a disk work on all the others side by side.

What it is not: a memory map. That was tried too, and was the fastest in one run and slower than single reads in the next (it
depends on how the system happens to keep the file, in large pieces or small); and a file that is cut short under a map kills
the process, where a read returns an error.

The layout of the structures is that of the kernel's `io_uring.h`; see io_uring_setup(2) and io_uring_enter(2). Containers
often forbid io_uring (EPERM), old kernels lack it (ENOSYS), and then `open_ring` returns None.
"""

import ctypes
import errno
import mmap
import os
import sys
import threading
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

_SETUP, _ENTER = 425, 426  # the same number on every 64-bit architecture that Python supports
_READV, _READ = 1, 22  # IORING_OP_READV and IORING_OP_READ, the latter since Linux 5.6
_MOST = 1024  # places of one READV (UIO_MAXIOV), so that all of a call may be neighbours
_GETEVENTS = 1
_SINGLE_MMAP = 1  # IORING_FEAT_SINGLE_MMAP, since Linux 5.4: both rings are one mapping
_SUBMISSIONS_AT = 0x10000000  # IORING_OFF_SQES

_SUBMISSION = np.dtype(
    {
        "names": ["opcode", "file", "offset", "address", "bytes", "user_data"],
        "formats": ["u1", "i4", "u8", "u8", "u4", "u8"],
        "offsets": [0, 4, 8, 16, 24, 32],
        "itemsize": 64,
    }
)
_COMPLETION = np.dtype([("user_data", "u8"), ("result", "i4"), ("flags", "u4")])


class _Offsets(ctypes.Structure):
    # struct io_sqring_offsets and struct io_cqring_offsets: as long as each other, and alike in their first four
    _fields_ = [(name, ctypes.c_uint32) for name in ("head", "tail", "ring_mask", "ring_entries", "a", "b", "c", "reserved")]
    _fields_ += [("user_address", ctypes.c_uint64)]


class _Parameters(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("sq_entries", "cq_entries", "flags", "sq_thread_cpu", "sq_thread_idle")),
        *((name, ctypes.c_uint32) for name in ("features", "wq_fd", "reserved_0", "reserved_1", "reserved_2")),
        ("sq", _Offsets),  # a: flags, b: dropped, c: array
        ("cq", _Offsets),  # a: overflow, b: completions, c: flags
    ]


class Ring:
    """A queue of reads, for one thread at a time.

    Args:
        size: Most reads of one call; a power of two, 1,024 at most.

    Raises:
        OSError: The system has no io_uring, or forbids it.

    Example:
        >>> import os, tempfile
        >>> ring = open_ring(4)
        >>> out = np.zeros(2, np.uint8)
        >>> with tempfile.TemporaryFile() as file:
        ...     _ = file.write(bytes(range(100))), file.flush()
        ...     if ring:  # where there is none, `os.preadv` does it
        ...         with ring:
        ...             counts = ring.read(file.fileno(), np.array([70, 7]), out.ctypes.data + np.array([0, 1]), 1)
        ...         assert counts.tolist() == [1, 1] and out.tolist() == [70, 7]
    """

    def __init__(self, size: int) -> None:
        assert size <= _MOST
        self.size = size
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._call.restype = ctypes.c_long
        parameters = _Parameters()
        self._fd = self._call(ctypes.c_long(_SETUP), ctypes.c_uint(size), ctypes.byref(parameters))
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        try:
            if not parameters.features & _SINGLE_MMAP or parameters.sq_entries != size:
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
            self._map(parameters)
        except BaseException:
            os.close(self._fd)
            raise

    def _map(self, parameters: _Parameters) -> None:
        sq, cq = parameters.sq, parameters.cq
        length = max(sq.c + 4 * parameters.sq_entries, cq.b + _COMPLETION.itemsize * parameters.cq_entries)
        rings = np.frombuffer(mmap.mmap(self._fd, length, mmap.MAP_SHARED), np.uint8)
        submissions = mmap.mmap(self._fd, _SUBMISSION.itemsize * self.size, mmap.MAP_SHARED, offset=_SUBMISSIONS_AT)

        def part(start: int, count: int, dtype: np.dtype) -> NDArray:
            return rings[start : start + count * dtype.itemsize].view(dtype)

        number = np.dtype(np.uint32)
        self._sq_tail = part(sq.tail, 1, number)
        self._cq_head, self._cq_tail = part(cq.head, 1, number), part(cq.tail, 1, number)
        self._completions = part(cq.b, parameters.cq_entries, _COMPLETION)
        self._submissions = np.frombuffer(submissions, _SUBMISSION)
        part(sq.c, self.size, number)[:] = np.arange(self.size)  # each place of the queue is its own entry

    def read(self, file: int, offsets: NDArray[np.int64], addresses: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """Read places of a file into places in memory, in any order, and wait for all of them.

        Places that follow each other, in the file and in `offsets`, are one read: a disk is told of the whole stretch.

        Args:
            file: A file descriptor open for reading.
            offsets: Bytes in the file (n,), at most `size` of them.
            addresses: Where each goes, as numbers (n,). The memory must hold `length` bytes there: nobody checks.
            length: Bytes of each, 1 or more.

        Returns:
            For each the bytes that were read (fewer than asked for at the end of the file), or minus the error's number.
        """
        assert len(offsets) <= self.size
        firsts = np.flatnonzero(np.diff(offsets, prepend=offsets[:1]) != length)
        counts = np.diff(firsts, append=len(offsets))
        vectors = np.empty((len(offsets), 2), np.uint64)  # struct iovec; the kernel reads them until the call is over
        vectors[:, 0], vectors[:, 1] = addresses, length
        alone = counts == 1
        results = self._submit(
            file,
            np.where(alone, _READ, _READV),
            offsets[firsts],
            np.where(alone, addresses[firsts], vectors.ctypes.data + vectors.strides[0] * firsts),
            np.where(alone, length, counts),
        )
        of_run = np.repeat(results, counts)
        before = (np.arange(len(offsets)) - np.repeat(firsts, counts)) * length  # bytes of the run ahead of each place
        return np.where(of_run < 0, of_run, np.clip(of_run - before, 0, length))

    def _submit(
        self, file: int, opcodes: NDArray[np.int64], offsets: NDArray[np.int64], addresses: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> NDArray[np.int64]:  # fmt: skip
        """Hand reads over and wait for all of them; the result of each."""
        count = len(offsets)
        # The kernel reads entry (tail mod size). All entries were used up before, so that any stretch of them is free.
        tail = int(self._sq_tail[0])
        at = (tail + np.arange(count)) & (self.size - 1)
        entries = self._submissions
        entries["opcode"][at], entries["file"][at], entries["offset"][at] = opcodes, file, offsets
        entries["address"][at], entries["bytes"][at], entries["user_data"][at] = addresses, lengths, np.arange(count)
        self._sq_tail[0] = (tail + count) & 0xFFFFFFFF
        results = np.empty(count, np.int64)
        submitted = done = 0
        while done < count:  # to the end, whatever happens: the kernel writes into this memory until then
            new = self._call(ctypes.c_long(_ENTER), self._fd, count - submitted, count - done, _GETEVENTS, None, 0)
            if new < 0:
                if ctypes.get_errno() not in (errno.EINTR, errno.EAGAIN, errno.EBUSY):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            else:
                submitted += new
            head = int(self._cq_head[0])
            finished = (int(self._cq_tail[0]) - head) & 0xFFFFFFFF
            completions = self._completions[(head + np.arange(finished)) & (len(self._completions) - 1)]
            results[completions["user_data"].astype(np.int64)] = completions["result"]
            self._cq_head[0] = (head + finished) & 0xFFFFFFFF
            done += finished
        return results

    def __enter__(self) -> "Ring":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the ring back to the system; again is allowed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            # Python's maps keep the file open too, for as long as an array looks into them.
            del self._sq_tail, self._cq_head, self._cq_tail, self._completions, self._submissions


def open_ring(size: int) -> Ring | None:
    """A ring, or None where the system has none, forbids it, or has no room for another."""
    if not sys.platform.startswith("linux") or sys.maxsize < 2**32:
        return None
    try:
        return Ring(size)
    except OSError:
        return None


class Rings:
    """A ring for each thread that asks for one, closed together.

    Example:
        >>> with Rings(8) as rings:
        ...     rings.mine() is rings.mine()
        True
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._local = threading.local()
        self._all: list[Ring] = []

    def mine(self) -> Ring | None:
        """This thread's own ring, or None where there is none to be had."""
        if not hasattr(self._local, "ring"):
            self._local.ring = open_ring(self._size)
            if self._local.ring is not None:
                self._all.append(self._local.ring)
        return self._local.ring

    def __enter__(self) -> "Rings":
        return self

    def __exit__(self, *_: object) -> None:
        for ring in self._all:
            ring.close()
