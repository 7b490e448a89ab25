"""Super-batches: a function of seed and epoch, read ahead, two at a time, errors not lost in the thread."""

import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latent_obs.util.errors import InputError
from vae_training.data.frames import get_datasets
from vae_training.data.loader import SuperBatches, _Buffers, get_random_samples


@pytest.fixture
def datasets(tmp_path: Path) -> list[np.memmap]:
    rng = np.random.default_rng(0)
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", rng.integers(0, 256, (200, 4, 4, 3), np.uint8))
    return get_datasets(tmp_path)


def test_one_per_epoch_from_seed_and_epoch(datasets: list[np.memmap]):
    with SuperBatches(datasets, 60, dataset_weights=[2, 1, 1], seed=7, epochs=4) as batches:
        assert len(batches) == 4
        seen = list(batches)
        assert len(batches) == 0
        assert batches.epoch == 3
    assert all(b.shape == (60, 4, 4, 3) and b.dtype == np.uint8 for b in seen)
    for epoch, batch in enumerate(seen):
        oracle = get_random_samples(datasets, 60, [2, 1, 1], normalize=False, seed=np.random.default_rng([7, epoch]))
        np.testing.assert_array_equal(batch, oracle)
    assert (seen[0] != seen[1]).any()


@pytest.mark.parametrize("start", [1, 3, 5])
def test_resuming_gives_what_an_uninterrupted_run_saw(datasets: list[np.memmap], start: int):
    with (
        SuperBatches(datasets, 30, seed=1, epochs=5) as whole,
        SuperBatches(datasets, 30, seed=1, start_epoch=start, epochs=5) as resumed,
    ):
        expected = list(whole)[start:]
        got = list(resumed)
    assert len(got) == 5 - start
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_seeds_differ(datasets: list[np.memmap]):
    with SuperBatches(datasets, 30, seed=1, epochs=1) as a, SuperBatches(datasets, 30, seed=2, epochs=1) as b:
        assert (next(a) != next(b)).any()


def test_next_is_drawn_while_this_one_is_used(datasets: list[np.memmap], monkeypatch: pytest.MonkeyPatch):
    draw = SuperBatches.draw

    def slow(self: SuperBatches, epoch: int) -> np.ndarray:
        time.sleep(0.15)
        return draw(self, epoch)

    monkeypatch.setattr(SuperBatches, "draw", slow)
    first = 0.0
    with SuperBatches(datasets, 30, epochs=4) as batches:
        for batch in batches:
            assert batch is not None
            if batches.epoch == 0:
                assert batches.wait_seconds >= 0.14  # nobody could draw the first one ahead
                first = batches.wait_seconds
            time.sleep(0.4)  # training
        assert batches.wait_seconds - first < 0.25  # one after the other, it would be 0.45 or more


def test_waiting_is_counted(datasets: list[np.memmap], monkeypatch: pytest.MonkeyPatch):
    draw = SuperBatches.draw
    monkeypatch.setattr(SuperBatches, "draw", lambda self, epoch: (time.sleep(0.1), draw(self, epoch))[1])
    with SuperBatches(datasets, 30, epochs=3) as batches:
        for batch in batches:
            del batch
        assert batches.wait_seconds > 0.25


def test_at_most_two_are_alive(datasets: list[np.memmap], monkeypatch: pytest.MonkeyPatch):
    alive: list[weakref.ref] = []
    most = 0

    draw = SuperBatches.draw

    def watched(self: SuperBatches, epoch: int) -> Any:
        nonlocal most
        out = draw(self, epoch)
        alive.append(weakref.ref(out))
        most = max(most, sum(ref() is not None for ref in alive))
        return out

    monkeypatch.setattr(SuperBatches, "draw", watched)
    gc.disable()
    try:
        with SuperBatches(datasets, 30, epochs=8) as batches:
            for batch in batches:
                time.sleep(0.02)
                assert batch.shape == (30, 4, 4, 3)
    finally:
        gc.enable()
    assert len(alive) == 8
    assert most == 2


def test_drawing_waits_until_the_last_but_one_is_let_go(datasets: list[np.memmap], monkeypatch: pytest.MonkeyPatch):
    drawn: list[int] = []
    draw = SuperBatches.draw
    monkeypatch.setattr(SuperBatches, "draw", lambda self, epoch: (drawn.append(epoch), draw(self, epoch))[1])
    monkeypatch.setattr("vae_training.data.loader._LET_GO_SECONDS", 20)
    with SuperBatches(datasets, 30, epochs=4) as batches:
        previous, current = next(batches), next(batches)
        time.sleep(0.2)
        assert drawn == [0, 1]
        assert (previous != current).any()
        del previous
        until = time.monotonic() + 10
        while drawn != [0, 1, 2] and time.monotonic() < until:
            time.sleep(0.01)
        assert drawn == [0, 1, 2]


def test_caller_may_keep_them_all(datasets: list[np.memmap]):
    with SuperBatches(datasets, 30, epochs=3) as batches:
        kept = list(batches)
    assert len({id(b) for b in kept}) == 3
    assert all(not np.shares_memory(kept[0], b) for b in kept[1:])


def test_error_in_the_thread_reaches_the_caller(datasets: list[np.memmap]):
    with SuperBatches(datasets, 30, epochs=5) as batches:
        next(batches)
        next(batches)
        path = Path(str(datasets[1].filename))
        next(batches)
        path.unlink()
        with pytest.raises(InputError, match=r"1\.npy can no longer be read"):
            list(batches)


def test_unfit_data_is_refused_at_construction(datasets: list[np.memmap]):
    threads = threading.active_count()
    with pytest.raises(InputError, match="601 is more than the 600 frames"):
        SuperBatches(datasets, 601, epochs=1)
    with pytest.raises(InputError, match="has 200 frames, and its share of 500 is 250"):
        SuperBatches(datasets, 500, dataset_weights=[2, 1, 1], epochs=1)
    with pytest.raises(InputError, match="dataset_weights has 1"):
        SuperBatches(datasets, 50, dataset_weights=[2], epochs=1)
    for wrong in ({"epochs": -1}, {"epochs": 2.0}, {"epochs": 1, "seed": -1}, {"epochs": 1, "start_epoch": -1}):
        with pytest.raises(InputError, match="must be an integer, zero or more"):
            SuperBatches(datasets, 50, **wrong)  # pyright: ignore[reportArgumentType]
    assert threading.active_count() == threads
    with SuperBatches(datasets, 700, epochs=1, replace_small=True) as batches:
        assert len(next(batches)) == 700


def test_no_thread_is_left_and_closed_means_closed(datasets: list[np.memmap]):
    threads = threading.active_count()
    with SuperBatches(datasets, 30, epochs=5) as batches:
        next(batches)
    assert threading.active_count() == threads
    with pytest.raises(InputError, match="closed"):
        next(batches)
    batches.close()


def test_memory_is_used_again_once_no_part_of_it_is_held(datasets: list[np.memmap], monkeypatch: pytest.MonkeyPatch):
    made: list[int] = []
    new = _Buffers._new
    monkeypatch.setattr(_Buffers, "_new", lambda self: (made.append(1), new(self))[1])
    with SuperBatches(datasets, 30, epochs=12) as batches:
        for batch in batches:
            time.sleep(0.02)
            assert len(batch) == 30
    assert len(made) == 2  # by address it cannot be told: the system gives freed memory out again as well


@pytest.mark.parametrize(
    "part",
    [
        lambda b: b[3:5],
        lambda b: b[3:9][2:4],
        lambda b: b.reshape(-1)[50:90],
        lambda b: torch.from_numpy(b)[4:6].numpy(),
        lambda b: memoryview(b)[2:3],
        lambda b: b[::2].transpose(3, 0, 1, 2),
    ],
)
def test_a_part_that_is_held_is_not_overwritten(
    datasets: list[np.memmap], part: Callable[[np.ndarray], Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vae_training.data.loader._LET_GO_SECONDS", 0.01)
    with SuperBatches(datasets, 30, seed=3, epochs=6) as batches:
        held = [(part(batch), np.array(part(batch))) for batch in batches]
    gc.collect()
    for now, then in held:
        np.testing.assert_array_equal(np.array(now), then)


def test_memory_is_let_go_at_the_end(datasets: list[np.memmap]):
    batches = SuperBatches(datasets, 30, epochs=5)
    first, second = next(batches), next(batches)
    batches.close()
    kept = first.copy()
    del second
    np.testing.assert_array_equal(first, kept)
    del first
    assert batches._buffers._free is None
