"""Statistics of frame folders: against numpy, whatever the chunks; samples; files that training would refuse."""

import importlib
import json
import resource
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_obs.util.errors import InputError
from tests.support.tiny import picture, random_frames
from vae_training.data.filters import BLACK
from vae_training.data.frames import get_datasets
from vae_training.data.stats import HEAD_FRAMES, STRETCH_FRAMES, _Opened, _read_ahead, _stretches, frame_stats

#: The module; its name in the package is that of the function.
MODULE = importlib.import_module("vae_training.data.stats")


def oracle(frames: np.ndarray, near: float = 1.0) -> dict[str, Any]:
    """The same numbers, by the shortest numpy and loops there are."""
    apart = [np.abs(b.astype(int) - a).mean() for a, b in pairwise(frames)]
    runs, first = [(1, 0)], 0
    for number, difference in enumerate(apart, 1):
        first = first if difference <= near else number
        runs.append((number - first + 1, first))
    longest = max(runs, key=lambda run: (run[0], -run[1]))
    return {
        "measured": len(frames),
        "mean": pytest.approx(frames.mean(axis=(0, 1, 2)).tolist(), rel=1e-12),
        "std": pytest.approx(frames.std(axis=(0, 1, 2)).tolist(), rel=1e-9, abs=1e-9),
        "brightest": frames.max(),
        "black": (frames.max(axis=(1, 2, 3)) <= BLACK).sum(),
        "pairs": len(frames) - 1,
        "same": sum(difference == 0 for difference in apart),
        "near": sum(difference <= near for difference in apart),
        "still_frames": longest[0],
        "still_first": longest[1],
    }


def check(found: Any, frames: np.ndarray, near: float = 1.0) -> None:
    for name, expected in oracle(frames, near).items():
        assert getattr(found, name) == expected, name
    np.testing.assert_allclose(found.mean_image, frames.mean(axis=0), rtol=1e-6)


def story() -> np.ndarray:
    """Frames that move, stand still, tremble, and go black."""
    moving = np.stack([picture(0, step, 12, 10) for step in range(20)])
    still = np.repeat(picture(1, 0, 12, 10)[None], 9, 0)
    trembling = np.repeat(picture(2, 0, 12, 10)[None], 14, 0)
    trembling[::2, 0, :, 0] ^= 8  # 8 of 255 in one of 36 values
    black = np.full((5, 12, 10, 3), BLACK, np.uint8)
    return np.concatenate([moving, still, trembling, black, moving[::-1]])


@pytest.mark.parametrize("chunk_bytes", [1, 361, 1800, 7000, 1 << 23])
def test_as_numpy_has_it(tmp_path: Path, chunk_bytes: int):
    frames = story()
    np.save(tmp_path / "a.npy", frames)
    (found,) = frame_stats(tmp_path, chunk_bytes=chunk_bytes).files
    check(found, frames)
    assert (found.name, found.frames, found.shape, found.dtype, found.bytes) == (
        "a.npy",
        len(frames),
        (12, 10, 3),
        "uint8",
        frames.nbytes,
    )
    assert (found.black, found.still_frames, found.still_first) == (5, 14, 29)
    assert 8 <= found.same < found.near


@settings(deadline=None, max_examples=60)
@given(
    scenes=st.lists(st.sampled_from([0, 1, 2, 3, 15, 16, 17, 254, 255]), min_size=1, max_size=40),
    speck=st.lists(st.booleans(), min_size=40, max_size=40),
    channels=st.sampled_from([1, 3, 4]),
    chunk_bytes=st.integers(1, 700),
    near=st.sampled_from([0.0, 0.5, 1.0, 255.0]),
)
def test_chunks_change_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    scenes: list[int],
    speck: list[bool],
    channels: int,
    chunk_bytes: int,
    near: float,
):
    frames = np.zeros((len(scenes), 3, 4, channels), np.uint8) + np.array(scenes, np.uint8)[:, None, None, None]
    frames[:, 1, 2, 0] ^= np.array(speck[: len(scenes)], np.uint8)
    folder = tmp_path_factory.mktemp("frames")
    np.save(folder / "a.npy", frames)
    whole, chunked = frame_stats(folder, near=near), frame_stats(folder, near=near, chunk_bytes=chunk_bytes)
    assert whole == chunked
    np.testing.assert_array_equal(whole.mean_image, chunked.mean_image)
    check(chunked.files[0], frames, near)


@pytest.mark.parametrize("shape", [(3000, 8, 8, 1), (3, 700, 600, 3), (300, 64, 64, 3)])
def test_the_brightest_frames_overflow_nothing(tmp_path: Path, shape: tuple[int, ...]):
    frames = np.full(shape, 255, np.uint8)
    frames[0] = 0
    np.save(tmp_path / "a.npy", frames)
    (found,) = frame_stats(tmp_path).files
    expected = 255 * (shape[0] - 1) / shape[0]
    assert found.mean == (pytest.approx(expected),) * shape[3]
    assert found.std == (pytest.approx((expected * (255 - expected)) ** 0.5),) * shape[3]
    assert (found.same, found.near, found.still_frames, found.still_first) == (*(shape[0] - 2,) * 2, shape[0] - 1, 1)


def test_the_whole_folder_counts_each_file_by_its_frames(tmp_path: Path):
    parts = [random_frames(n, (6, 8, 3), seed) // (1 + seed) for seed, n in enumerate([5, 40, 11])]
    for number, part in enumerate(parts):
        np.save(tmp_path / f"{number}.npy", part)
    stats, everything = frame_stats(str(tmp_path)), np.concatenate(parts)
    assert (stats.frames, stats.bytes, stats.estimated) == (56, everything.nbytes, False)
    assert stats.mean == pytest.approx(everything.mean(axis=(0, 1, 2)).tolist())
    assert stats.std == pytest.approx(everything.std(axis=(0, 1, 2)).tolist())
    np.testing.assert_allclose(stats.mean_image, everything.mean(axis=0), rtol=1e-5)
    values = json.loads(json.dumps(stats.to_json()))
    assert values["total"]["mean"] == list(stats.mean)
    assert [file["frames"] for file in values["files"]] == [5, 40, 11]
    assert values["files"][0]["head_sha256"] == stats.files[0].head_sha256


def test_files_that_begin_alike_have_the_same_hash(tmp_path: Path):
    frames = random_frames(40, (6, 8, 3))
    other = frames.copy()
    other[HEAD_FRAMES - 1, 5, 7, 2] ^= 1
    later = frames.copy()
    later[HEAD_FRAMES] ^= 1
    for name, part in {"a": frames, "b": other, "c": later, "d": frames[:HEAD_FRAMES]}.items():
        np.save(tmp_path / f"{name}.npy", part)
    for chunk_bytes in (1, 1000, 1 << 20):
        a, b, c, d = (file.head_sha256 for file in frame_stats(tmp_path, chunk_bytes=chunk_bytes).files)
        assert a == c == d != b


@given(frames=st.integers(1, 5000), total=st.integers(0, 100_000), sample=st.integers(1, 6000))
def test_stretches_of_a_sample(frames: int, total: int, sample: int):
    stretches = _stretches(frames, frames + total, sample)
    share = sample * frames / (frames + total)
    lengths = [past - first for first, past in stretches]
    assert stretches[0][0] == 0
    assert stretches[-1][1] == frames or len(stretches) == 1
    assert all(past <= first for (_, past), (first, _) in pairwise(stretches))
    assert len(set(lengths)) == 1
    assert sum(lengths) <= min(frames, max(HEAD_FRAMES, share + 0.5))
    assert sum(lengths) > min(share - STRETCH_FRAMES, frames - 1)


def test_a_sample_tells_duplicates(tmp_path: Path):
    moving = random_frames(1500, (6, 8, 3))
    np.save(tmp_path / "a.npy", np.repeat(moving, 2, axis=0))
    np.save(tmp_path / "b.npy", moving)
    exact, sample = frame_stats(tmp_path), frame_stats(tmp_path, 900)
    assert (exact.estimated, sample.estimated) == (False, True)
    assert [file.measured for file in sample.files] == [9 * STRETCH_FRAMES, 4 * STRETCH_FRAMES]
    assert sample.frames == exact.frames == 4500
    for found, file in zip(sample.files, exact.files, strict=True):
        assert found.near_share == pytest.approx(file.near_share, abs=0.02)
        assert found.head_sha256 == file.head_sha256
        assert found.mean == pytest.approx(file.mean, rel=0.03)
    assert frame_stats(tmp_path, 10_000) == exact
    assert [file.measured for file in frame_stats(tmp_path, 1).files] == [HEAD_FRAMES] * 2


def test_a_still_stretch_of_a_sample_is_where_it_is_in_the_file(tmp_path: Path):
    frames = random_frames(1000, (6, 8, 3))
    frames[-40:] = frames[-1]
    frames[1000 - STRETCH_FRAMES] = frames[0]  # no still run goes over the gap between stretches
    np.save(tmp_path / "a.npy", frames)
    (found,) = frame_stats(tmp_path, 200, chunk_bytes=3000).files
    assert (found.measured, found.pairs) == (3 * STRETCH_FRAMES, 3 * STRETCH_FRAMES - 3)
    assert (found.still_frames, found.still_first, found.same) == (40, 960, 39)
    frames[:] = 7
    np.save(tmp_path / "a.npy", frames)
    (found,) = frame_stats(tmp_path, 200).files
    assert (found.still_frames, found.still_first, found.same) == (STRETCH_FRAMES, 0, found.pairs)


def test_bad_files_are_named_and_the_others_measured(frames_folder: Path):
    np.save(frames_folder / "a_float.npy", np.zeros((4, 16, 16, 3), np.float32))
    np.save(frames_folder / "b_small.npy", np.zeros((4, 8, 8, 3), np.uint8))
    np.save(frames_folder / "c_objects.npy", np.array([{}]), allow_pickle=True)
    whole = (frames_folder / "recording_0.npy").read_bytes()
    (frames_folder / "z_cut.npy").write_bytes(whole[:-1])
    (frames_folder / "z_empty.npy").write_bytes(b"")
    (frames_folder / "z_text.npy").write_text("no frames")
    with pytest.raises(InputError, match="a_float"):
        get_datasets(frames_folder)
    stats = frame_stats(frames_folder)
    assert [file.name for file in stats.files] == [f"recording_{n}.npy" for n in range(3)]
    for number, file in enumerate(stats.files):
        check(file, np.load(frames_folder / f"recording_{number}.npy"))
    reasons = dict(stats.refused)
    assert list(reasons) == ["a_float.npy", "b_small.npy", "c_objects.npy", "z_cut.npy", "z_empty.npy", "z_text.npy"]
    assert reasons["a_float.npy"].startswith("holds float32, expected uint8")
    assert "(8, 8, 3), expected (16, 16, 3) as in 3 of 4 files" in reasons["b_small.npy"]
    assert "never loaded" in reasons["c_objects.npy"]
    assert reasons["z_cut.npy"].startswith("is cut short")
    assert json.loads(json.dumps(stats.to_json()))["refused"][0]["name"] == "a_float.npy"


def test_nothing_but_bad_files(tmp_path: Path):
    (tmp_path / "a.npy").write_bytes(b"")
    stats = frame_stats(tmp_path)
    assert (stats.files, len(stats.refused), stats.frames, stats.mean, stats.std) == ((), 1, 0, (), ())
    assert json.loads(json.dumps(stats.to_json()))["total"]["near_share"] == 0


def test_mean_images_of_many_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(MODULE, "_MEANS_BYTES", 3 * 4 * 6 * 8 * 3)
    parts = [random_frames(3, (6, 8, 3), seed) for seed in range(9)]
    for number, part in enumerate(parts):
        np.save(tmp_path / f"{number}.npy", part)
    stats = frame_stats(tmp_path)
    assert [file.name for file in stats.files if file.mean_image is not None] == ["0.npy", "4.npy", "8.npy"]
    np.testing.assert_allclose(stats.mean_image, np.concatenate(parts).mean(axis=0), rtol=1e-6)


def test_a_file_that_shrinks_or_goes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    np.save(tmp_path / "a.npy", random_frames(10, (6, 8, 3)))
    with ThreadPoolExecutor(1) as pool, pytest.raises(InputError, match=r"a\.npy became shorter.*still being copied"):
        list(_read_ahead(_Opened(tmp_path / "a.npy", (11, 6, 8, 3), 128), [(0, 11)], 144, 4, pool))
    np.save(tmp_path / "b.npy", random_frames(10, (6, 8, 3)))
    monkeypatch.setattr(MODULE, "_stretches", lambda *_: (tmp_path / "b.npy").unlink(True) or [(0, 10)])
    stats = frame_stats(tmp_path)
    assert [file.name for file in stats.files] == ["a.npy"]
    assert stats.refused[0].reason == "cannot be read: No such file or directory. Copy it again"


def test_more_files_than_a_process_may_open(tmp_path: Path):
    for number in range(120):
        np.save(tmp_path / f"{number:03d}.npy", random_frames(2, (4, 4, 1), number))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (max(int(fd.name) for fd in Path("/proc/self/fd").iterdir()) + 30, limits[1])
        )
        assert len(frame_stats(tmp_path).files) == 120
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_quiet_where_nobody_looks(frames_folder: Path, capfd: pytest.CaptureFixture[str]):
    frame_stats(frames_folder)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sample": 0}, "sample must be a positive number of frames, got 0"),
        ({"sample": True}, "sample must be"),
        ({"near": -1}, "near must be a mean absolute difference from 0 to 255, got -1"),
        ({"near": float("nan")}, "near must be"),
        ({"chunk_bytes": 0}, "chunk_bytes must be positive"),
    ],
)
def test_arguments_out_of_range(frames_folder: Path, arguments: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        frame_stats(frames_folder, **arguments)


def test_folders_without_files(tmp_path: Path):
    with pytest.raises(InputError, match="is empty, expected"):
        frame_stats(tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        frame_stats(tmp_path / "no")
