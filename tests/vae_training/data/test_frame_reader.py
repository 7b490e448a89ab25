"""Reading frames of many files into one array: like numpy's indexing, whatever lies where, and however a call turns
out."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_obs.util.errors import InputError
from vae_training.data import frame_reader
from vae_training.data.frame_reader import FrameReader, gather
from vae_training.data.frames import get_datasets

SHAPE = (2, 3, 4)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[np.memmap]:
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for i, count in enumerate([700, 1, 500]):
        np.save(folder / f"{i}.npy", rng.integers(0, 256, (count, *SHAPE), np.uint8))
    return get_datasets(folder)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, str]]:
    """(offset, parts, thread) of each preadv."""
    seen: list[tuple[int, int, str]] = []
    preadv = os.preadv

    def watched(fd: int, buffers: list[memoryview], offset: int, *flags: int) -> int:
        seen.append((offset, len(buffers), threading.current_thread().name))
        return preadv(fd, buffers, offset, *flags)

    monkeypatch.setattr(os, "preadv", watched)
    return seen


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(),
    gap=st.sampled_from([0, 23, 24, 100, 5000]),
    iovecs=st.sampled_from([2, 3, 512]),
    scaled=st.booleans(),
)
def test_gathering_agrees_with_numpy(files: list[np.memmap], data: st.DataObject, gap: int, iovecs: int, scaled: bool):
    chosen = [data.draw(st.lists(st.integers(0, len(f) - 1), max_size=80).map(sorted), label="rows") for f in files]
    total = sum(map(len, chosen))
    places = np.random.default_rng(data.draw(st.integers(0, 99))).permutation(total + 3)
    out = np.zeros((total + 3, *SHAPE), np.float32 if scaled else np.uint8)
    expected = out.copy()
    wanted = []
    for f, rows in zip(files, chosen, strict=True):
        targets, places = places[: len(rows)], places[len(rows) :]
        wanted.append((f, np.array(rows, np.int64), targets))
        frames = np.array(f)[rows]
        expected[targets] = frames.astype(np.float32) / np.float32(255) if scaled else frames
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame_reader, "_GAP_BYTES", gap)
        patch.setattr(frame_reader, "_IOVECS", iovecs)
        patch.setattr(frame_reader, "_PIECE_FRAMES", data.draw(st.sampled_from([1, 7, 32])))
        patch.setattr(frame_reader, "_NO_WAIT", data.draw(st.sampled_from([0, frame_reader._NO_WAIT])))
        gather(wanted, out)
    np.testing.assert_array_equal(out, expected)  # what nobody asked for is left alone too


def test_neighbours_and_small_gaps_are_one_call(files: list[np.memmap], calls: list, monkeypatch: pytest.MonkeyPatch):
    rows = np.array([0, 1, 2, 4, 7, 7, 20])
    out = np.empty((len(rows), *SHAPE), np.uint8)
    for gap, expected in ((0, [(0, 3), (4, 1), (7, 1), (7, 1), (20, 1)]), (24, [(0, 5), (7, 1), (7, 1), (20, 1)])):
        monkeypatch.setattr(frame_reader, "_GAP_BYTES", gap)
        calls.clear()
        with FrameReader(files[0]) as reader:
            assert reader.read(rows, out) == len(rows)
        assert [((offset - files[0].offset) // 24, parts) for offset, parts, _ in calls] == expected
        np.testing.assert_array_equal(out, np.array(files[0])[rows])


@pytest.mark.skipif(not frame_reader._NO_WAIT, reason="no RWF_NOWAIT")
def test_what_is_in_memory_takes_one_thread(files: list[np.memmap], calls: list):
    files[0].sum()
    out = np.empty((300, *SHAPE), np.uint8)
    gather([(files[0], np.arange(0, 600, 2), np.arange(300))], out)
    assert {thread for _, _, thread in calls} == {threading.current_thread().name}


def fails_with(error: int) -> Callable[[Any, int], int]:
    def fail(_: Any, __: int) -> int:
        raise OSError(error, os.strerror(error))

    return fail


@pytest.mark.skipif(not frame_reader._NO_WAIT, reason="no RWF_NOWAIT")
@pytest.mark.parametrize(
    "refusal",
    [fails_with(11), fails_with(95), fails_with(22), lambda parts, _: 0],
    ids=["EAGAIN", "EOPNOTSUPP", "EINVAL", "0"],
)
@pytest.mark.parametrize("after", [0, 1, 150])
def test_what_is_not_in_memory_goes_to_several_threads(
    files: list[np.memmap], monkeypatch: pytest.MonkeyPatch, refusal: Callable[[Any, int], int], after: int
):
    """Whatever a system says that does not want to answer at once, from whichever frame on, and after half a frame."""
    preadv, threads, asked = os.preadv, set(), [0]

    def cold(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            asked[0] += 1
            if asked[0] == after + 1:
                return preadv(fd, [buffers[0][:5]], offset)
            return refusal(buffers, offset) if asked[0] > after else preadv(fd, buffers, offset, flags)
        threads.add(threading.current_thread().name)
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", cold)
    monkeypatch.setattr(frame_reader, "_GAP_BYTES", 0)
    monkeypatch.setattr(frame_reader, "_THREADS", 4)
    rows, targets = np.arange(0, 600, 2), np.random.default_rng(0).permutation(300)
    out, expected = np.zeros((300, *SHAPE), np.uint8), np.zeros((300, *SHAPE), np.uint8)
    expected[targets] = np.array(files[0])[rows]
    before = threading.active_count()
    gather([(files[0], rows, targets)], out)
    np.testing.assert_array_equal(out, expected)
    assert threads
    assert all(name.startswith("frame-reader") for name in threads)
    assert threading.active_count() == before


def test_a_disk_that_fails_is_named(files: list[np.memmap], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "preadv", lambda *_: fails_with(5)(None, 0))
    before = threading.active_count()
    with pytest.raises(InputError, match=r"0\.npy cannot be read at byte .*: Input/output error"):
        gather([(files[0], np.arange(600), np.arange(600))], np.empty((600, *SHAPE), np.uint8))
    assert threading.active_count() == before


def test_files_are_not_kept_open(files: list[np.memmap]):
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0  # noqa: PTH208
    gather([(files[0], np.arange(600), np.arange(600))], np.empty((600, *SHAPE), np.uint8))
    assert not before or len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


CHILD = """
import resource, sys
from vae_training import SuperBatches, get_datasets
with SuperBatches(get_datasets(sys.argv[1]), 1000, epochs=5) as batches:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(int(frames[:, 0, 0, 0].sum()) for frames in batches) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="sparse files, and the unit of ru_maxrss")
def test_memory_is_that_of_two_super_batches_whatever_the_dataset(tmp_path: Path):
    """20 MB and 4 GB of (sparse) files: each adds two super-batches of 12 MB and little more."""
    added = []
    for frames in (1_700, 340_000):
        folder = tmp_path / str(frames)
        folder.mkdir()
        with (folder / "a.npy").open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (frames, 64, 64, 3)}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + frames * 64 * 64 * 3)
        command = [sys.executable, "-c", CHILD, str(folder)]
        added.append(1024 * int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert max(added) < 2 * 1000 * 64 * 64 * 3 + 8e6
    assert abs(added[1] - added[0]) < 4e6
