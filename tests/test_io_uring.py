"""Many reads in one call: as `os.pread` gives them, whatever their order and number, and however they end."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vae_training import io_uring
from vae_training.io_uring import Ring, Rings, open_ring


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = open_ring(8)
    if made is None:
        pytest.skip("this system has no io_uring, or forbids it")
    with made:
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "a").write_bytes(np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes())
    fd = os.open(tmp_path / "a", os.O_RDONLY)
    yield fd
    os.close(fd)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), length=st.integers(1, 600))
def test_reads_what_pread_reads(ring: Ring, file: int, data: st.DataObject, length: int):
    """Call after call on one ring, so that its queues come round; beyond the file's end there is less, or nothing."""
    offsets = np.array(data.draw(st.lists(st.integers(0, 5500), min_size=1, max_size=8)))
    follow = np.array(data.draw(st.lists(st.booleans(), min_size=len(offsets), max_size=len(offsets))))
    for i in np.flatnonzero(follow[1:]) + 1:  # neighbours are read in one go
        offsets[i] = offsets[i - 1] + length
    out = np.zeros((len(offsets), length), np.uint8)
    places = np.random.default_rng(0).permutation(len(offsets))
    counts = ring.read(file, offsets, out.ctypes.data + places * length, length)
    for offset, place, count in zip(offsets.tolist(), places.tolist(), counts.tolist(), strict=True):
        expected = os.pread(file, length, offset)
        assert count == len(expected)
        assert out[place].tobytes() == expected + bytes(length - count)


def test_errors_are_numbers(ring: Ring, file: int):
    out = np.zeros(3, np.uint8)
    assert ring.read(9999, np.zeros(3, int), out.ctypes.data + np.arange(3), 1).tolist() == [-errno.EBADF] * 3
    counts = ring.read(file, np.zeros(3, int), np.array([out.ctypes.data, 1, out.ctypes.data + 2]), 1)  # 1: nobody's memory
    assert counts.tolist() == [1, -errno.EFAULT, 1]
    assert out[0] == out[2] == os.pread(file, 1, 0)[0]


def test_closing_gives_everything_back():
    if (first := open_ring(8)) is None:
        pytest.skip("this system has no io_uring, or forbids it")
    first.close()
    first.close()
    before = open_files()
    for _ in range(3):
        with Rings(8) as rings:
            threads = [threading.Thread(target=rings.mine) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert rings.mine() is rings.mine()
            assert open_files() >= before + 5
        assert open_files() == before


@pytest.mark.parametrize("number", [9999, 425], ids=["unknown call", "no such size"])
def test_none_where_the_system_refuses(monkeypatch: pytest.MonkeyPatch, number: int):
    before = open_files()
    monkeypatch.setattr(io_uring, "_SETUP", number)
    assert open_ring(0 if number == 425 else 8) is None
    monkeypatch.setattr(io_uring, "_SINGLE_MMAP", 1 << 31)  # a kernel that has it, and is too old
    assert open_ring(8) is None
    assert open_files() == before
