"""The growing `.npy` file: valid at every moment, through Ctrl-C, kill -9 and a full disk."""

import errno
import gc
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_obs.util.errors import InputError
from vae_training.data import npy_writer
from vae_training.data.frames import get_datasets
from vae_training.data.npy_writer import NpyWriter, npy_header, recover_parts

SHAPE = (4, 5, 3)


def numbered(first: int, count: int) -> np.ndarray:
    return np.broadcast_to(np.arange(first, first + count, dtype=np.uint8)[:, None, None, None], (count, *SHAPE))


@given(frames=st.integers(0, 10**20), shape=st.lists(st.integers(1, 4096), min_size=1, max_size=3).map(tuple))
def test_header_is_read_by_numpy_and_never_grows(frames: int, shape: tuple[int, ...]):
    handle = io.BytesIO(npy_header(frames, shape))
    assert np.lib.format.read_magic(handle) == (1, 0)
    assert np.lib.format.read_array_header_1_0(handle) == ((frames, *shape), False, np.dtype(np.uint8))
    assert handle.tell() == len(handle.getvalue()) == 128


def test_frames_one_by_one_and_several(tmp_path: Path):
    path = tmp_path / "new" / "a.npy"
    with NpyWriter(path, SHAPE) as writer:
        writer.append(numbered(0, 1)[0])
        writer.append(numbered(1, 3)[::-1, :, ::-1][::-1])  # a read-only view that is not contiguous
        writer.append(np.empty((0, *SHAPE), np.uint8))
        assert not path.exists()
        assert writer.frames == 4
        # The growing file is whole but for its name.
        np.testing.assert_array_equal(np.load(writer.part, mmap_mode="r"), numbered(0, 4))
        writer.append(numbered(4, 1))
    np.testing.assert_array_equal(np.load(path), numbered(0, 5))
    assert [p.name for p in path.parent.iterdir()] == ["a.npy"]
    writer.close()
    with NpyWriter(path.parent / "empty.npy", SHAPE):
        assert len(list(path.parent.iterdir())) == 2
    assert [len(dataset) for dataset in get_datasets(path.parent)] == [5]


def test_interrupt_within_an_append(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pwrite = os.pwrite
    with pytest.raises(KeyboardInterrupt), NpyWriter(tmp_path / "a.npy", SHAPE) as writer:  # noqa: PT012
        writer.append(numbered(0, 2))

        def interrupted(fd: int, data: memoryview, at: int) -> int:
            monkeypatch.undo()
            pwrite(fd, data[:90], at)  # one frame and a half
            raise KeyboardInterrupt

        monkeypatch.setattr(npy_writer.os, "pwrite", interrupted)
        writer.append(numbered(2, 5))
    (saved,) = get_datasets(tmp_path)  # nothing is left after the last frame
    np.testing.assert_array_equal(saved, numbered(0, 2))


def test_dropped_writer_finishes_its_file(tmp_path: Path):
    writer = NpyWriter(tmp_path / "a.npy", SHAPE)
    writer.append(numbered(0, 2))
    del writer
    gc.collect()
    assert [len(d) for d in get_datasets(tmp_path)] == [2]


def test_nothing_is_overwritten(tmp_path: Path):
    np.save(tmp_path / "a.npy", numbered(0, 1))
    with pytest.raises(InputError, match=r"a\.npy"):
        NpyWriter(tmp_path / "a.npy", SHAPE)
    writer = NpyWriter(tmp_path / "b.npy", SHAPE)
    with pytest.raises(InputError, match=r"b\.npy\.part"):
        NpyWriter(tmp_path / "b.npy", SHAPE)
    writer.append(numbered(5, 2))
    np.save(tmp_path / "b.npy", numbered(0, 1))
    with pytest.raises(InputError, match=r"b\.npy"):
        writer.close()
    assert len(np.load(tmp_path / "b.npy")) == 1
    with pytest.raises(InputError, match=r"b\.npy"):
        recover_parts(tmp_path)
    assert len(np.load(tmp_path / "b.npy")) == 1
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy.part", mmap_mode="r"), numbered(5, 2))


def test_wrong_arguments(tmp_path: Path):
    with pytest.raises(InputError, match=r"a\.bin"):
        NpyWriter(tmp_path / "a.bin", SHAPE)
    with NpyWriter(tmp_path / "a.npy", SHAPE) as writer:
        for wrong in (np.zeros(SHAPE), np.zeros((5, 4, 3), np.uint8)):
            with pytest.raises(InputError, match="frames"):
                writer.append(wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="closed"):
        writer.append(numbered(0, 1))


def test_a_failed_write_keeps_whole_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pwrite, most = os.pwrite, 0

    def full(fd: int, data: memoryview, at: int) -> int:
        left = most - at
        if left <= 0:
            raise OSError(errno.ENOSPC, "no more")
        return pwrite(fd, data[:left], at)

    monkeypatch.setattr(npy_writer.os, "pwrite", full)
    with pytest.raises(OSError, match=r"a\.npy"):  # full as the file begins
        NpyWriter(tmp_path / "a.npy", SHAPE)
    assert not list(tmp_path.iterdir())
    most = 128 + 60 * 7 + 20  # seven frames and a bit
    writer = NpyWriter(tmp_path / "a.npy", SHAPE)
    writer.append(numbered(0, 4))
    with pytest.raises(OSError, match=r"a\.npy"):
        writer.append(numbered(4, 10))
    assert writer.closed
    np.testing.assert_array_equal(get_datasets(tmp_path)[0], numbered(0, 7))
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]


def test_recover_cuts_half_frames(tmp_path: Path):
    for name, extra in (("a5", b""), ("b5", b"\x05" * 59), ("c6", b"\x05" * 60), ("d7", b"\x05" * 60 + b"\x06" * 65)):
        (tmp_path / f"{name}.npy.part").write_bytes(npy_header(5, SHAPE) + numbered(0, 5).tobytes() + extra)
    (tmp_path / "empty.npy.part").touch()
    (tmp_path / "header only.npy.part").write_bytes(npy_header(0, SHAPE))
    recovered = recover_parts(tmp_path)
    assert [p.name for p in recovered] == ["a5.npy", "b5.npy", "c6.npy", "d7.npy"]
    for path, dataset in zip(recovered, get_datasets(tmp_path), strict=True):
        np.testing.assert_array_equal(dataset, numbered(0, int(path.stem[1])))
    assert sorted(tmp_path.iterdir()) == recovered
    assert recover_parts(tmp_path) == []
    (tmp_path / "a.npy.part").write_bytes(b"something else" * 20)
    with pytest.raises(InputError, match=r"a\.npy\.part"):
        recover_parts(tmp_path)
    assert (tmp_path / "a.npy.part").exists()


WRITES_FOREVER = """
import sys, numpy as np
from vae_training.data.npy_writer import NpyWriter
writer = NpyWriter(sys.argv[1], (64, 64, 3))
for i in range(10**9):
    writer.append(np.full((64, 64, 3), i % 256, np.uint8))
    if i == 20:
        print("ready", flush=True)
"""


@pytest.mark.integration
def test_kill_9_of_a_real_process(tmp_path: Path):
    """The file of a living process is left alone, that of a killed one is whole."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITES_FOREVER, str(tmp_path / "a.npy")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process, process.stdout:
        try:
            assert process.stdout.readline() == "ready\n"
            assert recover_parts(tmp_path) == []
            assert len(np.load(tmp_path / "a.npy.part", mmap_mode="r")) > 20
        finally:
            process.kill()
    promised = len(np.load(tmp_path / "a.npy.part", mmap_mode="r"))
    assert recover_parts(tmp_path) == [tmp_path / "a.npy"]
    (frames,) = get_datasets(tmp_path)
    assert len(frames) >= promised
    assert (frames[:, ::9, ::9] == (np.arange(len(frames)) % 256)[:, None, None, None]).all()
