"""Drawing frames: exact shares, frames from the right files, no repeats, the same from the same seed."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_obs.util.errors import InputError
from vae_training.data.frame_reader import FrameReader, place_on_disk
from vae_training.data.frames import get_datasets
from vae_training.data.loader import get_random_samples, plan_shares, shares

SHAPE = (2, 3, 4)


def tagged(dataset: int, count: int) -> np.ndarray:
    """Frames that say where they are from: dataset, then the frame's number in base 256, in every row and column."""
    out = np.zeros((count, *SHAPE), np.uint8)
    number = np.arange(count)
    out[..., 0] = dataset
    out[..., 1] = (number // 256)[:, None, None]
    out[..., 2] = (number % 256)[:, None, None]
    out[..., 3] = 255
    return out


def origins(samples: np.ndarray) -> list[tuple[int, int]]:
    """(dataset, frame) of each sample, which must be whole."""
    assert (samples == samples[:, :1, :1]).all()
    assert (samples[..., 3] == 255).all()
    tags = samples[:, 0, 0].astype(int)
    return [(d, high * 256 + low) for d, high, low, _ in tags.tolist()]


@pytest.fixture
def on_disk(tmp_path: Path) -> list[np.memmap]:
    for i, count in enumerate([700, 300, 500, 400]):
        np.save(tmp_path / f"{i}.npy", tagged(i, count))
    return get_datasets(tmp_path)


weights_strategy = st.lists(st.integers(0, 1000), min_size=1, max_size=12).filter(any)


@given(size=st.integers(1, 100_000), weights=weights_strategy)
def test_shares_are_exact_and_within_one_of_the_quota(size: int, weights: list[int]):
    counts = shares(size, weights)
    assert sum(counts) == size
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - Fraction(size * weight, sum(weights))) < 1
        assert count == 0 or weight > 0


@given(size=st.integers(1, 10_000), weights=weights_strategy)
def test_shares_follow_the_order_of_the_weights(size: int, weights: list[int]):
    counts = shares(size, weights)
    for i, first in enumerate(weights):
        for j, second in enumerate(weights):
            if first > second or (first == second and i < j):
                assert counts[i] >= counts[j]


@given(size=st.integers(1, 10_000), weights=weights_strategy)
def test_weights_are_relative_and_read_as_decimals(size: int, weights: list[int]):
    assert shares(size, weights) == shares(size, [w / 1000 for w in weights]) == shares(size, [w * 7 for w in weights])


def test_shares_of_the_classic_cases():
    assert shares(10_000, [1, 1, 1, 1]) == [2500] * 4
    assert shares(10_000, [0.4, 0.2, 0.2, 0.2]) == [4000, 2000, 2000, 2000]
    assert shares(3, [0.1, 0.1]) == [2, 1]  # ties to the earlier
    assert shares(7, [1, 1, 1, 1]) == [2, 2, 2, 1]
    assert shares(1, [0.3, 0.1 + 0.2]) == [0, 1]  # 0.30000000000000004 is more
    assert shares(5, np.array([0.5, 0.0, 0.5], np.float32)) == [3, 0, 2]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("weights", [[1, -0.1], [1, float("nan")], [1, float("inf")], ["a", 1], [None]])
def test_weights_that_are_no_weights(weights: list):
    with pytest.raises(InputError, match="dataset_weights must be finite numbers, zero or more, got"):
        shares(10, weights)


def test_weights_that_do_not_fit(on_disk: list[np.memmap]):
    with pytest.raises(InputError, match="at least one weight above zero"):
        shares(10, [0, 0])
    with pytest.raises(InputError, match="3 entries, expected one per dataset, 4"):
        get_random_samples(on_disk, 10, [1, 1, 1])


@pytest.mark.parametrize("size", [0, -1, 2.5, "10", True, None])
def test_sample_size_that_is_no_count(on_disk: list[np.memmap], size: int):
    with pytest.raises(InputError, match="sample_size must be a positive integer"):
        get_random_samples(on_disk, size)


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
    expected = shares(size, counts)
    assert [sum(1 for d, _ in drawn if d == i) for i in range(len(counts))] == expected
    assert all(frame < counts[d] for d, frame in drawn)


def test_equal_and_weighted_shares_from_disk(on_disk: list[np.memmap]):
    drawn = origins(get_random_samples(on_disk, 1000, normalize=False, seed=1))
    assert [sum(d == i for d, _ in drawn) for i in range(4)] == [250] * 4
    drawn = origins(get_random_samples(on_disk, 1000, [0.4, 0.2, 0.2, 0.2], normalize=False, seed=1))
    assert [sum(d == i for d, _ in drawn) for i in range(4)] == [400, 200, 200, 200]
    assert len(set(drawn)) == 1000


def test_disk_and_memory_give_the_same(on_disk: list[np.memmap]):
    in_memory = [np.array(d) for d in on_disk]
    for seed in range(3):
        from_disk = get_random_samples(on_disk, 800, normalize=False, seed=seed)
        np.testing.assert_array_equal(from_disk, get_random_samples(in_memory, 800, normalize=False, seed=seed))


def test_order_is_shuffled_across_and_within_datasets(on_disk: list[np.memmap]):
    drawn = origins(get_random_samples(on_disk, 1200, normalize=False, seed=2))
    labels = np.array([d for d, _ in drawn])
    changes = int((np.diff(labels) != 0).sum())
    assert 800 < changes < 1000  # 3/4 of 1199 neighbours differ when shuffled, 3 when not
    first = np.array([frame for d, frame in drawn if d == 0])
    assert 0.4 < (np.diff(first) > 0).mean() < 0.6


def test_seeds(on_disk: list[np.memmap]):
    a = get_random_samples(on_disk, 100, seed=5)
    np.testing.assert_array_equal(a, get_random_samples(on_disk, 100, seed=5))
    np.testing.assert_array_equal(a, get_random_samples(on_disk, 100, seed=np.random.default_rng(5)))
    assert (a != get_random_samples(on_disk, 100, seed=6)).any()
    assert (get_random_samples(on_disk, 100) != get_random_samples(on_disk, 100)).any()
    generator = np.random.default_rng(5)
    get_random_samples(on_disk, 100, seed=generator)
    assert (a != get_random_samples(on_disk, 100, seed=generator)).any()  # it moves on
    with pytest.raises(InputError, match="seed must be zero or more"):
        get_random_samples(on_disk, 100, seed=-1)


def test_result_is_fresh_contiguous_and_scaled(on_disk: list[np.memmap]):
    plain = get_random_samples(on_disk, 50, normalize=False, seed=3)
    scaled = get_random_samples(on_disk, 50, seed=3)
    assert plain.dtype == np.uint8
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(scaled, plain.astype(np.float32) / np.float32(255))
    assert float(scaled.max()) == 1.0
    for array in (plain, scaled):
        assert array.shape == (50, *SHAPE)
        assert type(array) is np.ndarray
        assert array.base is None
        assert array.flags.c_contiguous
        assert array.flags.writeable


def test_every_frame_can_be_asked_for(on_disk: list[np.memmap]):
    drawn = origins(get_random_samples(on_disk, 1900, [700, 300, 500, 400], normalize=False, seed=0))
    assert sorted(drawn) == [(i, j) for i, d in enumerate(on_disk) for j in range(len(d))]


def test_share_larger_than_its_dataset(on_disk: list[np.memmap]):
    with pytest.raises(
        InputError, match=r"1\.npy\) has 300 frames, and its share of 1,600 is 400\. Ask for 1,200 or"
    ) as e:
        get_random_samples(on_disk, 1600)
    assert "replace_small=True" in str(e.value)
    assert max(plan_shares(on_disk, 1200)) == 300
    with pytest.raises(InputError, match="1,901 is more than the 1,900 frames of all 4"):
        get_random_samples(on_disk, 1901)
    drawn = origins(get_random_samples(on_disk, 1600, normalize=False, seed=0, replace_small=True))
    for i, count in enumerate([700, 300, 500, 400]):
        own = [frame for d, frame in drawn if d == i]
        assert len(own) == 400
        assert max(own) < count
        assert (len(set(own)) < 400) == (count < 400)  # only the small one repeats
    assert len(get_random_samples(on_disk, 4000, replace_small=True)) == 4000


def test_datasets_that_do_not_go_together(on_disk: list[np.memmap]):
    with pytest.raises(InputError, match="no datasets"):
        get_random_samples([], 10)
    with pytest.raises(InputError, match=r"dataset 4 has frames of shape \(5, 5, 3\), dataset 0 .*0\.npy"):
        get_random_samples([*on_disk, np.zeros((9, 5, 5, 3), np.uint8)], 10)
    with pytest.raises(InputError, match="dataset 0 is float64"):
        get_random_samples([np.zeros((9, 5, 5, 3))], 10)  # pyright: ignore[reportArgumentType]
    empty = np.zeros((0, *SHAPE), np.uint8)
    with pytest.raises(InputError, match="dataset 4 has no frames"):
        get_random_samples([*on_disk, empty], 10)
    assert len(get_random_samples([*on_disk, empty], 10, [1, 1, 1, 1, 0])) == 10


VIEWS = {
    "whole": (lambda d: d, True),
    "head": (lambda d: d[:-100], True),
    "tail": (lambda d: d[250:], True),
    "middle of a middle": (lambda d: d[100:][50:-60], True),
    "every second": (lambda d: d[::2], False),
    "backwards": (lambda d: d[::-1], False),
    "cropped": (lambda d: d[:, :, 1:], False),
    "picked": (lambda d: d[[5, 3, 100, 7, 8, 9]], False),
    "copy": (lambda d: d[10:40].copy(), False),
    "copy-on-write": (lambda d: np.memmap(d.filename, np.uint8, "c", d.offset, d.shape), False),
    "r+": (lambda d: np.memmap(d.filename, np.uint8, "r+", d.offset, d.shape), True),
}


@pytest.mark.parametrize("name", VIEWS)
def test_reading_agrees_with_numpy(on_disk: list[np.memmap], name: str):
    make, from_file = VIEWS[name]
    view = make(on_disk[0])
    assert (place_on_disk(view) is not None) == from_file
    rng = np.random.default_rng(0)
    runs = [
        np.arange(len(view)),
        rng.integers(0, len(view), 60),
        np.array([0]),
        np.array([len(view) - 1]),
        [1, 1, 2, 4],
    ]
    for rows in runs:
        rows = np.sort(np.asarray(rows, np.int64))
        out = np.empty((len(rows), *view.shape[1:]), np.uint8)
        with FrameReader(view) as reader:
            reader.read(rows, out)
        np.testing.assert_array_equal(out, np.asarray(view)[rows])


def test_copy_on_write_pages_count(on_disk: list[np.memmap]):
    mapped = np.memmap(str(on_disk[0].filename), np.uint8, "c", on_disk[0].offset, on_disk[0].shape)
    mapped[:] = 7
    assert (get_random_samples([mapped], 20, normalize=False) == 7).all()


def test_large_samples_in_several_reads(on_disk: list[np.memmap], monkeypatch: pytest.MonkeyPatch):
    whole = get_random_samples(on_disk, 900, seed=4)
    monkeypatch.setattr("vae_training.data.frame_reader._PIECE_BYTES", 7 * 24)
    np.testing.assert_array_equal(whole, get_random_samples(on_disk, 900, seed=4))


def test_short_reads_are_continued(on_disk: list[np.memmap], monkeypatch: pytest.MonkeyPatch):
    whole = get_random_samples(on_disk, 900, seed=4)
    preadv = __import__("os").preadv
    monkeypatch.setattr(
        "vae_training.data.frame_reader.os.preadv", lambda fd, buffers, at, *flags: preadv(fd, [buffers[0][:5]], at)
    )
    np.testing.assert_array_equal(whole, get_random_samples(on_disk, 900, seed=4))


def test_files_that_change_after_opening(on_disk: list[np.memmap]):
    path = Path(str(on_disk[1].filename))
    with path.open("r+b") as handle:
        handle.truncate(1000)
    for seed in range(50):  # whichever frames are drawn, those beyond the end first or not
        with pytest.raises(InputError, match=r"1\.npy ends at byte 1,000.*changed after opening"):
            get_random_samples(on_disk, 40, seed=seed)
    path.unlink()
    with pytest.raises(InputError, match=r"1\.npy can no longer be read"):
        get_random_samples(on_disk, 1000)


def test_memory_does_not_grow_with_what_is_read(tmp_path: Path):
    """200 MB read at random through a map would stay resident; here it is the sample and one scratch buffer."""
    np.save(tmp_path / "a.npy", np.zeros((17_000, 64, 64, 3), np.uint8))
    datasets = get_datasets(tmp_path)
    get_random_samples(datasets, 100, normalize=False, seed=0)
    before = psutil.Process().memory_info().rss
    for seed in range(60):
        get_random_samples(datasets, 500, normalize=False, seed=seed)
    assert psutil.Process().memory_info().rss - before < 40e6


@settings(deadline=None, max_examples=40)
@given(counts=st.lists(st.integers(1, 300), min_size=1, max_size=3), size=st.integers(1, 200), seed=st.integers(0, 999))
def test_the_draw_of_a_seed_stays_what_it_was(counts: list[int], size: int, seed: int):
    """A resumed run, or one repeated next year, sees the same: this is the draw as it was first released."""
    datasets = [tagged(i, count) for i, count in enumerate(counts)]
    rng, expected, start = np.random.default_rng(seed), np.empty((size, *SHAPE), np.uint8), 0
    places = rng.permutation(size)
    for dataset, share in zip(datasets, shares(size, [1] * len(datasets)), strict=True):
        if share:
            rows = np.sort(rng.choice(len(dataset), share, replace=share > len(dataset), shuffle=False))
            expected[places[start : start + share]] = dataset[rows]
            start += share
    drawn = get_random_samples(datasets, size, normalize=False, seed=seed, replace_small=True)
    np.testing.assert_array_equal(drawn, expected)


def test_a_place_for_the_result(on_disk: list[np.memmap]):
    for normalize, dtype in ((True, np.float32), (False, np.uint8)):
        out = np.empty((50, *SHAPE), dtype)
        assert get_random_samples(on_disk, 50, normalize=normalize, seed=3, out=out) is out
        np.testing.assert_array_equal(out, get_random_samples(on_disk, 50, normalize=normalize, seed=3))
    read_only = np.empty((50, *SHAPE), np.uint8)
    read_only.flags.writeable = False
    for wrong in (
        np.empty((49, *SHAPE), np.uint8),
        np.empty((50, *SHAPE)),
        np.empty((100, *SHAPE), np.uint8)[::2],
        read_only,
    ):
        with pytest.raises(InputError, match=r"out must be uint8 \(50, 2, 3, 4\)"):
            get_random_samples(on_disk, 50, normalize=False, out=wrong)
