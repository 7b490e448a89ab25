"""Drawing frames: exact shares, frames from the right files, no repeats, the same from the same seed and epoch."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_obs.util.errors import InputError
from vae_training.data import loader
from vae_training.data.frames import get_datasets, place_on_disk
from vae_training.data.loader import SuperBatches, gather, get_random_samples, shares

SHAPE = (2, 3, 4)
COUNTS = (700, 300, 500, 400)


def tagged(dataset: int, count: int) -> np.ndarray:
    """Frames that name their origin: dataset, then the frame's number in base 256, in every row and column."""
    number = np.arange(count)
    values = np.stack([np.full(count, dataset), number // 256, number % 256, np.full(count, 255)], 1)
    return np.broadcast_to(values[:, None, None].astype(np.uint8), (count, *SHAPE)).copy()


def origins(samples: np.ndarray) -> list[tuple[int, int]]:
    """(dataset, frame) of each sample, which must be whole."""
    assert (samples == samples[:, :1, :1]).all()
    assert (samples[..., 3] == 255).all()
    return [(d, high * 256 + low) for d, high, low, _ in samples[:, 0, 0].astype(int).tolist()]


def saved(folder: Path) -> list[np.memmap]:
    for i, count in enumerate(COUNTS):
        np.save(folder / f"{i}.npy", tagged(i, count))
    return get_datasets(folder)


@pytest.fixture(scope="module")
def kept_files(tmp_path_factory: pytest.TempPathFactory) -> list[np.memmap]:
    return saved(tmp_path_factory.mktemp("frames"))


@pytest.fixture
def on_disk(tmp_path: Path) -> list[np.memmap]:
    """Files that a test may spoil."""
    return saved(tmp_path)


@given(size=st.integers(1, 100_000), weights=st.lists(st.integers(0, 1000), min_size=1, max_size=12).filter(any))
def test_shares_are_exact_ordered_and_within_one_of_the_quota(size: int, weights: list[int]):
    counts = shares(size, weights)
    assert sum(counts) == size
    for i, (count, weight) in enumerate(zip(counts, weights, strict=True)):
        assert abs(count - Fraction(size * weight, sum(weights))) < 1
        assert count == 0 or weight > 0
        # More weight is not fewer frames; among equals the earlier one is first.
        assert all(
            count >= counts[j] for j, other in enumerate(weights) if weight > other or (weight == other and i < j)
        )
    # Weights are relative, and read as decimals.
    assert counts == shares(size, [w / 1000 for w in weights]) == shares(size, [w * 7 for w in weights])


def test_shares_read_weights_as_decimals():
    assert shares(3, [0.1, 0.1]) == [2, 1]  # ties to the earlier
    assert shares(1, [0.3, 0.1 + 0.2]) == [0, 1]  # 0.30000000000000004 is more
    assert shares(5, np.array([0.5, 0.0, 0.5], np.float32)) == [3, 0, 2]  # pyright: ignore[reportArgumentType]


def test_arguments_out_of_range(kept_files: list[np.memmap]):
    weights: list[Any] = [[1, -0.1, 1, 1], [1, float("nan"), 1, 1], ["a", 1, 1, 1], [0] * 4, [], [1, 1, 1]]
    for wrong in weights:
        with pytest.raises(InputError, match="dataset_weights"):
            get_random_samples(kept_files, 10, wrong)
    sizes: list[Any] = [0, 2.5]
    for wrong in sizes:
        with pytest.raises(InputError, match="sample_size"):
            get_random_samples(kept_files, wrong)
    with pytest.raises(InputError, match="seed"):
        get_random_samples(kept_files, 100, seed=-1)
    empty = np.zeros((0, *SHAPE), np.uint8)
    others: list[list[Any]] = [[], [*kept_files, np.zeros((9, 5, 5, 3), np.uint8)], [np.zeros((9, 5, 5, 3))]]
    for datasets in others:
        with pytest.raises(InputError, match="dataset"):
            get_random_samples(datasets, 10)
    with pytest.raises(InputError, match="sample_size"):
        get_random_samples([*kept_files, empty], 10, replace_small=True)
    assert len(get_random_samples([*kept_files, empty], 10, [1, 1, 1, 1, 0])) == 10


@settings(deadline=None, max_examples=40)
@given(
    counts=st.lists(st.integers(1, 600), min_size=1, max_size=4),
    fraction=st.floats(0.01, 1),
    seed=st.integers(0, 2**32),
)
def test_each_frame_once_and_from_its_dataset(counts: list[int], fraction: float, seed: int):
    datasets = [tagged(i, count) for i, count in enumerate(counts)]
    size = max(1, int(fraction * sum(counts)))
    drawn = origins(get_random_samples(datasets, size, counts, normalize=False, seed=seed))
    assert len(set(drawn)) == size
    assert [sum(1 for d, _ in drawn if d == i) for i in range(len(counts))] == shares(size, counts)
    assert all(frame < counts[d] for d, frame in drawn)


def test_disk_and_memory_give_the_same_whatever_the_reads(kept_files: list[np.memmap], monkeypatch: pytest.MonkeyPatch):
    weights, preadv = [0.4, 0.2, 0.2, 0.2], os.preadv
    in_memory = [np.array(dataset) for dataset in kept_files]
    expected = [get_random_samples(in_memory, 800, weights, normalize, seed=3) for normalize in (False, True)]
    for part in range(3):
        if part == 1:
            monkeypatch.setattr(loader, "_PIECE_BYTES", 7 * 24)  # seven frames for a thread
        if part == 2:  # reads that end early are continued
            monkeypatch.setattr(loader.os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:5]], at))
        for normalize in (False, True):
            drawn = get_random_samples(kept_files, 800, weights, normalize, seed=3)
            np.testing.assert_array_equal(drawn, expected[normalize])
    assert len(set(origins(get_random_samples(kept_files, 1900, COUNTS, normalize=False)))) == 1900  # all there are


def test_seeds(kept_files: list[np.memmap]):
    a = get_random_samples(kept_files, 100, seed=5)
    np.testing.assert_array_equal(a, get_random_samples(kept_files, 100, seed=5))
    generator = np.random.default_rng(5)
    np.testing.assert_array_equal(a, get_random_samples(kept_files, 100, seed=generator))
    others = [get_random_samples(kept_files, 100, seed=seed) for seed in (generator, 6, None, None)]  # it moves on
    assert len({each.tobytes() for each in (a, *others)}) == 5


@settings(deadline=None, max_examples=40)
@given(
    counts=st.lists(st.integers(1, 300), min_size=1, max_size=3),
    size=st.integers(1, 200),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_the_draw_of_a_seed_stays_what_it_was(counts: list[int], size: int, seed: int, data: st.DataObject):
    """A resumed run, or one repeated next year, sees the same: this is the draw as it was first released.

    Of several processes each reads its own part of it.
    """
    datasets = [tagged(i, count) for i, count in enumerate(counts)]
    weights = [data.draw(st.integers(1, 5)) for _ in counts]
    rng, expected, start = np.random.default_rng([seed, 0]), np.empty((size, *SHAPE), np.uint8), 0
    places = rng.permutation(size)
    for dataset, share in zip(datasets, shares(size, weights), strict=True):
        if share:
            rows = np.sort(rng.choice(len(dataset), share, replace=share > len(dataset), shuffle=False))
            expected[places[start : start + share]] = dataset[rows]
            start += share
    rules: dict[str, Any] = {"dataset_weights": weights, "replace_small": True}
    drawn = get_random_samples(datasets, size, normalize=False, seed=np.random.default_rng([seed, 0]), **rules)
    np.testing.assert_array_equal(drawn, expected)
    own = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20, unique=True)))
    with SuperBatches(datasets, size, seed=seed, epochs=1, places=own, **rules) as batches:
        np.testing.assert_array_equal(next(batches), expected[own])


def test_result_is_fresh_contiguous_and_scaled(kept_files: list[np.memmap]):
    plain = get_random_samples(kept_files, 50, normalize=False, seed=3)
    scaled = get_random_samples(kept_files, 50, seed=3)
    np.testing.assert_array_equal(scaled, plain.astype(np.float32) / np.float32(255))
    for array, dtype in ((plain, np.uint8), (scaled, np.float32)):
        assert (array.shape, array.dtype, type(array), array.base) == ((50, *SHAPE), dtype, np.ndarray, None)
        assert array.flags.c_contiguous
        assert array.flags.writeable
        out = np.empty_like(array)
        assert get_random_samples(kept_files, 50, normalize=dtype == np.float32, seed=3, out=out) is out
        np.testing.assert_array_equal(out, array)
    for wrong in (np.empty((49, *SHAPE), np.uint8), np.empty((50, *SHAPE)), np.empty((50, *SHAPE), np.uint8)[:, ::-1]):
        with pytest.raises(InputError, match="out"):
            get_random_samples(kept_files, 50, normalize=False, out=wrong)


def test_share_larger_than_its_dataset(kept_files: list[np.memmap]):
    with pytest.raises(InputError, match=r"1\.npy.*1,200"):  # the file, and the most that can be had
        get_random_samples(kept_files, 1600)
    assert len(get_random_samples(kept_files, 1200)) == 1200
    drawn = origins(get_random_samples(kept_files, 1600, normalize=False, seed=0, replace_small=True))
    for i, count in enumerate(COUNTS):
        own = [frame for d, frame in drawn if d == i]
        assert len(own) == 400
        assert max(own) < count
        assert (len(set(own)) < 400) == (count < 400)  # only the small one repeats


VIEWS: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "whole": (lambda d: d, True),
    "middle of a middle": (lambda d: d[100:][50:-60], True),
    "backwards": (lambda d: d[::-1], False),
    "cropped": (lambda d: d[:, :, 1:], False),
    "copy": (lambda d: d[10:40].copy(), False),
    "copy-on-write": (lambda d: np.memmap(d.filename, np.uint8, "c", d.offset, d.shape), False),
    "r+": (lambda d: np.memmap(d.filename, np.uint8, "r+", d.offset, d.shape), True),
}


@pytest.mark.parametrize("name", VIEWS)
def test_reading_agrees_with_numpy(kept_files: list[np.memmap], name: str):
    make, from_file = VIEWS[name]
    view = make(kept_files[0])
    assert (place_on_disk(view) is not None) == from_file
    rng = np.random.default_rng(0)
    for rows in ([0], [len(view) - 1], [1, 1, 2, 4], range(len(view)), np.sort(rng.integers(0, len(view), 60))):
        rows = np.array(rows)
        targets = rng.permutation(len(rows) + 3)[: len(rows)]
        for dtype in (np.uint8, np.float32):
            out = np.full((len(rows) + 3, *view.shape[1:]), 7, dtype)
            expected = out.copy()
            expected[targets] = np.asarray(view)[rows] / (np.float32(255) if dtype == np.float32 else np.uint8(1))
            gather([(view, rows, targets)], out)
            np.testing.assert_array_equal(out, expected)  # what nobody asked for is left alone too


def test_files_that_change_after_opening(on_disk: list[np.memmap]):
    path, threads = Path(str(on_disk[1].filename)), threading.active_count()
    os.truncate(path, 1000)
    for seed in range(20):  # whichever frames are drawn, those beyond the end first or not
        with pytest.raises(InputError, match=r"1\.npy"):
            get_random_samples(on_disk, 40, seed=seed)
    path.unlink()
    opened = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(InputError, match=r"1\.npy"):
        get_random_samples(on_disk, 1000)
    assert threading.active_count() == threads
    assert len(list(Path("/proc/self/fd").iterdir())) == opened


def test_one_super_batch_per_epoch_from_seed_and_epoch(kept_files: list[np.memmap]):
    weights = [2, 1, 1, 1]
    with SuperBatches(kept_files, 60, dataset_weights=weights, seed=7, epochs=4) as batches:
        seen = list(batches)
        assert (len(seen), batches.epoch) == (4, 3)
    for epoch, batch in enumerate(seen):
        rng = np.random.default_rng([7, epoch])
        oracle = get_random_samples(kept_files, 60, weights, normalize=False, seed=rng)
        np.testing.assert_array_equal(batch, oracle)
    assert (seen[0] != seen[1]).any()
    assert all(not np.shares_memory(seen[0], batch) for batch in seen[1:])  # a caller may keep them all
    for start in (1, 5):
        with SuperBatches(kept_files, 60, dataset_weights=weights, seed=7, start_epoch=start, epochs=4) as resumed:
            for got, expected in zip(list(resumed), seen[start:], strict=True):
                np.testing.assert_array_equal(got, expected)


def test_the_next_one_is_drawn_while_this_one_is_used(kept_files: list[np.memmap], monkeypatch: pytest.MonkeyPatch):
    draw, drawn = SuperBatches.draw, [threading.Event() for _ in range(4)]

    def watched(self: SuperBatches, epoch: int) -> Any:
        drawn[epoch].set()
        return draw(self, epoch)

    monkeypatch.setattr(SuperBatches, "draw", watched)
    with SuperBatches(kept_files, 30, epochs=4) as batches:
        for _ in batches:
            assert batches.wait_seconds > 0
            if batches.epoch < 3:
                assert drawn[batches.epoch + 1].wait(60)  # without being asked for
            if batches.epoch < 2:
                assert not drawn[batches.epoch + 2].is_set()  # and no more than one ahead


def test_error_in_the_thread_reaches_the_caller(on_disk: list[np.memmap]):
    with SuperBatches(on_disk, 30, epochs=9) as batches:
        next(batches)
        Path(str(on_disk[1].filename)).unlink()
        with pytest.raises(InputError, match=r"1\.npy"):
            list(batches)


def test_unfit_data_is_refused_at_construction(kept_files: list[np.memmap]):
    threads = threading.active_count()
    wrong: list[tuple[int, dict[str, Any], str]] = [
        (1600, {}, r"1\.npy"),
        (50, {"epochs": 2.0}, "epochs"),
        (50, {"start_epoch": -1}, "start_epoch"),
    ]
    for size, changes, name in wrong:
        with pytest.raises(InputError, match=name):
            SuperBatches(kept_files, size, **{"epochs": 1, **changes})
    with SuperBatches(kept_files, 2000, epochs=1, replace_small=True) as batches:
        assert len(next(batches)) == 2000
    assert threading.active_count() == threads


CHILD = """
import resource, sys
from vae_training import SuperBatches, get_datasets
for folder in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with SuperBatches(get_datasets(folder), 1000, epochs=5) as batches:
        assert sum(int(frames[:, 0, 0, 0].sum()) for frames in batches) == 0
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="sparse files, and the unit of ru_maxrss")
@pytest.mark.integration
def test_memory_is_that_of_two_super_batches_whatever_the_dataset(tmp_path: Path):
    """20 MB of (sparse) files add two super-batches of 12 MB and little more, and 4 GB after them nothing."""
    for frames in (1_700, 340_000):
        folder = tmp_path / str(frames)
        folder.mkdir()
        with (folder / "a.npy").open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (frames, 64, 64, 3)}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + frames * 64 * 64 * 3)
    command = [sys.executable, "-c", CHILD, str(tmp_path / "1700"), str(tmp_path / "340000")]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900).stdout
    small, large = (1024 * int(line) for line in output.split())
    assert small < 2 * 1000 * 64 * 64 * 3 + 12e6
    assert large < 6e6
