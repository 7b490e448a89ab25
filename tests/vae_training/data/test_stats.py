"""Statistics of frame folders: against numpy, whatever the chunks; samples, refused files, warnings, table, sheets."""

import json
import os
import re
import resource
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from latent_obs.util.errors import InputError
from tests.support.tiny import random_frames
from vae_training.data import stats as module
from vae_training.data.filters import BLACK
from vae_training.data.stats import (
    HEAD_FRAMES,
    STRETCH_FRAMES,
    find_warnings,
    frame_stats,
    stats_table,
    write_contact_sheet,
    write_mean_sheet,
)


def save(folder: Path, **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, frames in files.items():
        np.save(folder / f"{name}.npy", frames)
    return folder


def counted(count: int) -> np.ndarray:
    """Frames of one value each, their numbers."""
    return np.zeros((count, 8, 8, 3), np.uint8) + np.arange(count, dtype=np.uint8)[:, None, None, None]


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


def measured(folder: Path, *, chunk_bytes: int, near: float = module.NEAR) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK_BYTES", chunk_bytes)
        patch.setattr(module, "NEAR", near)
        return frame_stats(folder)


@settings(deadline=None, max_examples=40)
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
    folder = save(tmp_path_factory.mktemp("frames"), a=frames)
    whole, chunked = (measured(folder, chunk_bytes=n, near=near) for n in (1 << 20, chunk_bytes))
    assert whole == chunked
    np.testing.assert_array_equal(whole.mean_image, chunked.mean_image)
    (found,) = chunked.files
    check(found, frames, near)
    about = (found.name, found.frames, found.shape, found.dtype, found.bytes)
    assert about == ("a.npy", len(frames), (3, 4, channels), "uint8", frames.nbytes)


@pytest.mark.parametrize("shape", [(70_000, 2, 2, 1), (3, 700, 600, 3)])
def test_the_brightest_frames_overflow_nothing(tmp_path: Path, shape: tuple[int, ...]):
    frames = np.full(shape, 255, np.uint8)
    frames[0] = 0
    (found,) = frame_stats(save(tmp_path, a=frames)).files
    expected = 255 * (shape[0] - 1) / shape[0]
    assert found.mean == (pytest.approx(expected),) * shape[3]
    assert found.std == (pytest.approx((expected * (255 - expected)) ** 0.5),) * shape[3]
    assert (found.same, found.near, found.still_frames, found.still_first) == (*(shape[0] - 2,) * 2, shape[0] - 1, 1)


def test_the_whole_folder_counts_each_file_by_its_frames(tmp_path: Path):
    parts = {f"r{seed}": random_frames(n, (6, 8, 3), seed) // (1 + seed) for seed, n in enumerate([5, 40, 11])}
    stats, everything = frame_stats(str(save(tmp_path, **parts))), np.concatenate(list(parts.values()))
    assert (stats.frames, stats.bytes, stats.estimated) == (56, everything.nbytes, False)
    assert stats.mean == pytest.approx(everything.mean(axis=(0, 1, 2)).tolist())
    assert stats.std == pytest.approx(everything.std(axis=(0, 1, 2)).tolist())
    np.testing.assert_allclose(stats.mean_image, everything.mean(axis=0), rtol=1e-5)
    values = json.loads(json.dumps(stats.to_json()))
    assert values["total"]["mean"] == list(stats.mean)
    assert [file["frames"] for file in values["files"]] == [5, 40, 11]


@given(frames=st.integers(1, 5000), total=st.integers(0, 100_000), sample=st.integers(1, 6000))
def test_stretches_of_a_sample(frames: int, total: int, sample: int):
    stretches = module._stretches(frames, frames + total, sample)
    share = sample * frames / (frames + total)
    lengths = [past - first for first, past in stretches]
    assert stretches[0][0] == 0
    assert stretches[-1][1] == frames or len(stretches) == 1
    assert all(past <= first for (_, past), (first, _) in pairwise(stretches))
    assert len(set(lengths)) == 1
    assert sum(lengths) <= min(frames, max(HEAD_FRAMES, share + 0.5))
    assert sum(lengths) > min(share - STRETCH_FRAMES, frames - 1)


def test_a_sample_finds_duplicates(tmp_path: Path):
    moving = random_frames(1500, (6, 8, 3))
    save(tmp_path, a=np.repeat(moving, 2, axis=0), b=moving)
    exact, sample = frame_stats(tmp_path), frame_stats(tmp_path, 900)
    assert (exact.estimated, sample.estimated, sample.frames) == (False, True, 4500)
    assert [file.measured for file in sample.files] == [9 * STRETCH_FRAMES, 4 * STRETCH_FRAMES]
    for found, file in zip(sample.files, exact.files, strict=True):
        assert found.shares.near == pytest.approx(file.shares.near, abs=0.02)
        assert found.head_sha256 == file.head_sha256
        assert found.mean == pytest.approx(file.mean, rel=0.03)
    assert frame_stats(tmp_path, 10_000) == exact
    assert [file.measured for file in frame_stats(tmp_path, 1).files] == [HEAD_FRAMES] * 2


def test_a_still_stretch_of_a_sample_is_where_it_is_in_the_file(tmp_path: Path):
    frames = random_frames(1000, (6, 8, 3))
    frames[-40:] = frames[-1]
    frames[1000 - STRETCH_FRAMES] = frames[0]  # no still run goes over the gap between stretches
    (found,) = frame_stats(save(tmp_path, a=frames), 200).files
    assert (found.measured, found.pairs) == (3 * STRETCH_FRAMES, 3 * STRETCH_FRAMES - 3)
    assert (found.still_frames, found.still_first, found.same) == (40, 960, 39)
    frames[:] = 7
    (found,) = frame_stats(save(tmp_path, a=frames), 200).files
    assert (found.still_frames, found.still_first, found.same) == (STRETCH_FRAMES, 0, found.pairs)


def test_bad_files_are_named_and_the_others_measured(frames_folder: Path):
    save(frames_folder, a_float=np.zeros((4, 16, 16, 3), np.float32), b_small=np.zeros((4, 8, 8, 3), np.uint8))
    np.save(frames_folder / "c_objects.npy", np.array([{}]), allow_pickle=True)
    (frames_folder / "z_cut.npy").write_bytes((frames_folder / "recording_0.npy").read_bytes()[:-1])
    (frames_folder / "z_empty.npy").write_bytes(b"")
    stats = frame_stats(frames_folder)
    assert [file.name for file in stats.files] == [f"recording_{n}.npy" for n in range(3)]
    for number, file in enumerate(stats.files):
        check(file, np.load(frames_folder / f"recording_{number}.npy"))
    refused = ["a_float.npy", "b_small.npy", "c_objects.npy", "z_cut.npy", "z_empty.npy"]
    assert [one["name"] for one in json.loads(json.dumps(stats.to_json()))["refused"]] == refused
    assert all(f"- {one.name} {one.reason[:20]}" in stats_table(stats) for one in stats.refused)
    with pytest.raises(InputError, match="sample"):
        frame_stats(frames_folder, 0)


def test_nothing_but_bad_files(tmp_path: Path):
    (tmp_path / "a.npy").write_bytes(b"")
    stats = frame_stats(tmp_path)
    assert (stats.files, len(stats.refused), stats.frames, stats.mean, stats.std) == ((), 1, 0, (), ())
    assert json.loads(json.dumps(stats.to_json()))["total"]["near_share"] == 0
    assert "\n- a.npy " in stats_table(stats)
    for write in (write_contact_sheet, write_mean_sheet):
        with pytest.raises(InputError, match=str(tmp_path)):
            write(tmp_path / "sheet.png", stats)


def test_a_file_that_shrinks_or_goes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, a=random_frames(10, (6, 8, 3)), b=random_frames(10, (6, 8, 3)), c=random_frames(10, (6, 8, 3)))
    look = np.fromfile

    def spoil(file: Path, *args: Any, **options: Any) -> Any:
        if file.name == "b.npy":
            os.truncate(file, 1000)
        if file.name == "c.npy":
            file.unlink(missing_ok=True)
        return look(file, *args, **options)

    monkeypatch.setattr(module.np, "fromfile", spoil)
    stats = frame_stats(tmp_path)
    assert [file.name for file in stats.files] == ["a.npy"]
    assert [one.name for one in stats.refused] == ["b.npy", "c.npy"]


def test_more_files_than_a_process_may_open(tmp_path: Path):
    save(tmp_path, **{f"{number:03d}": random_frames(2, (4, 4, 1), number) for number in range(120)})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(fd.name) for fd in Path("/proc/self/fd").iterdir())
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 30, limits[1]))
        assert len(frame_stats(tmp_path).files) == 120
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# --- sheets


def contains(sheet: Path, tile: np.ndarray) -> bool:
    """Whether a picture is somewhere on a sheet, pixel by pixel."""
    pixels, (height, width) = np.asarray(Image.open(sheet)), tile.shape[:2]
    last = pixels.shape[0] - height + 1, pixels.shape[1] - width + 1
    fits = np.ones(last, bool)
    for y, x in ((0, 0), (height // 2, width // 3), (height - 1, width - 1)):  # most places fail at one of these
        fits &= (pixels[y : y + last[0], x : x + last[1]] == tile[y, x]).all(axis=-1)
    return any((pixels[y : y + height, x : x + width] == tile).all() for y, x in np.argwhere(fits))


def enlarged(frame: np.ndarray, factor: int) -> np.ndarray:
    return frame.repeat(factor, axis=0).repeat(factor, axis=1)


def shades(sheet: Path) -> list[int]:
    """Gray values, but for white, of which there is enough on a sheet for a tile."""
    values, counts = np.unique(np.asarray(Image.open(sheet))[..., 0], return_counts=True)
    return values[(counts >= 128 * 128) & (values < 255)].tolist()


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (12, [9, 10, 11])])
def test_gray_frames_and_stacks(tmp_path: Path, channels: int, shown: list[int]):
    frames = random_frames(2, (8, 8, channels))
    stats = frame_stats(save(tmp_path, a=frames))
    assert contains(write_contact_sheet(tmp_path / "sheet.png", stats), enlarged(frames[1][..., shown], 16))
    mean = frames.mean(axis=0).round().astype(np.uint8)[..., shown]
    assert contains(write_mean_sheet(tmp_path / "mean.png", stats), enlarged(mean, 16))


def test_sheets_of_many_files_are_bounded_and_show_the_first_and_the_last(tmp_path: Path):
    """With names of any length and script, which stay on the sheet."""
    texts = {0: "0" * 240, 99: "Übung_日本語_🎮"}
    files = {texts.get(n, f"r{n:03d}"): np.full((2, 8, 8, 3), n, np.uint8) for n in range(100)}
    stats = frame_stats(save(tmp_path / "frames", **files))
    for write, most in ((write_contact_sheet, 16), (write_mean_sheet, 39)):
        sheet = write(tmp_path / "out" / "sheet.png", stats)
        values = shades(sheet)
        assert {0, 99} <= set(values)
        assert most - 1 <= len(values) <= most + 1  # the mean of all is on the second one as well
        assert (np.asarray(Image.open(sheet))[:, [*range(10), *range(-10, 0)]] == 255).all()


def test_frames_are_evenly_spaced_from_the_first_to_the_last(tmp_path: Path):
    stats = frame_stats(save(tmp_path / "a", a=counted(200)))
    assert shades(write_contact_sheet(tmp_path / "s.png", stats)) == np.linspace(0, 199, 10).round().tolist()


# --- table and warnings


def test_the_table_fits_and_is_aligned(tmp_path: Path):
    files = {"recording_of_" + "x" * 150 + "_007": counted(200), "b": random_frames(1200, (8, 8, 3)), "c": counted(1)}
    text = stats_table(frame_stats(save(tmp_path / "frames", **files, d=np.zeros((3, 8, 8, 3)))))
    lines = [line for line in text.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 100
    head = next(line for line in lines if line.startswith("file "))
    rows = lines[lines.index(head) + 1 :][:4]
    ends = [match.end() for match in re.finditer(r"frames|MB|mean|std|same|near|black|still", head)]
    assert all(row[end - 1] != " " and row[end : end + 2] in ("  ", "") for row in rows for end in ends)
    assert [row.split()[0][-8:] for row in rows] == ["b.npy", "c.npy", "_007.npy", "all"]
    assert rows[0].split()[1:] == ["1,200", "0.2", *rows[0].split()[3:5], "0.0%", "0.0%", "0.0%", "1"]
    assert rows[2].split()[-4:] == ["0.0%", "100.0%", "8.0%", "200"]


def film(seed: int, frames: int = 200) -> np.ndarray:
    return random_frames(frames, (6, 8, 3), seed)


#: A faulty recording, and what its warning has to mention.
WARNINGS = {
    "floats": (film(3) // 128, r"x\.npy: .*255"),
    "black": (np.concatenate([film(3, 20) * 0, film(3, 180)]), r"x\.npy: 10% .*black"),
    "all black": (film(3) * 0, r"x\.npy: 100% .*black"),
    "stills": (np.repeat(film(3, 50), 4, axis=0), r"x\.npy: 75% .*near-duplicates"),
    "pause": (
        np.concatenate([film(4, 110), np.repeat(film(5, 1), 90, axis=0)]),
        r"x\.npy: .*90 frames, from frame 110",
    ),
    "dark": (film(3) // 4, r"x\.npy: .*darker .*32"),
    "beginning": (np.concatenate([film(1)[:HEAD_FRAMES], film(3)]), r"b\.npy, x\.npy: begin with the same 16"),
}


@pytest.mark.parametrize("fault", WARNINGS)
def test_each_fault_has_its_one_warning(tmp_path: Path, fault: str):
    frames, expected = WARNINGS[fault]
    stats = frame_stats(save(tmp_path, a=film(0), b=film(1), x=frames))
    (warning,) = find_warnings(stats)
    assert re.match(expected, warning)
    assert warning[:40] in stats_table(stats)


def test_good_frames_have_no_warning_and_a_fault_of_many_files_has_one(tmp_path: Path):
    good = frame_stats(save(tmp_path / "good", a=film(0), b=film(1), c=film(2) // 2 + 20))
    assert find_warnings(good) == []
    assert find_warnings(frame_stats(save(tmp_path / "one", a=film(0) // 8))) == []  # dark, but there is no other
    files = {f"{n}_{'x' * 50}": np.repeat(film(n, 20), 2 + n % 3, axis=0) for n in range(30)}
    (warning,) = find_warnings(frame_stats(save(tmp_path / "many", **files)))
    assert "and 27 more (of 30 files): 51% to 76%" in warning
    assert "x" * 41 not in warning
