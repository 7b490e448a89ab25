"""What is looked at: the table fits and is aligned, warnings say what is wrong, sheets show the frames they name."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latent_obs.util.errors import InputError
from tests.support.tiny import picture, random_frames
from vae_training.data.stats import (
    _GAP,
    _MARGIN,
    HEAD_FRAMES,
    STRETCH_FRAMES,
    find_warnings,
    frame_stats,
    stats_table,
    write_contact_sheet,
    write_mean_sheet,
)

TOP = _MARGIN + 26  # where a sheet's rows begin, below its title
ROW = 20 + 128 + 22  # name, frames, numbers


def save(folder: Path, **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, frames in files.items():
        np.save(folder / f"{name}.npy", frames)
    return folder


def counted(frames: int, shape: tuple[int, ...] = (8, 8, 3)) -> np.ndarray:
    """Frames whose every pixel is their number."""
    return np.full((frames, *shape), 0, np.uint8) + np.arange(frames, dtype=np.uint8)[:, None, None, None]


def tile(sheet: np.ndarray, row: int, column: int, height: int = 128, width: int = 128, label: int = 20) -> np.ndarray:
    top, left = TOP + row * (height + 22 + label) + label, _MARGIN + column * (width + _GAP)
    return sheet[top : top + height, left : left + width]


def test_frames_are_evenly_spaced_from_the_first_to_the_last(tmp_path: Path):
    folder = save(tmp_path / "frames", a=counted(200), b=counted(3) + 50, c=counted(101))
    file = write_contact_sheet(tmp_path / "out" / "sheet.png", frame_stats(folder), columns=5)
    sheet = np.asarray(Image.open(file))
    assert sheet.shape == (TOP + 3 * ROW + _MARGIN, 2 * _MARGIN + 5 * (128 + _GAP) - _GAP, 3)
    shown = [[int(tile(sheet, row, column)[64, 64, 0]) for column in range(5)] for row in range(3)]
    assert shown == [[0, 50, 100, 149, 199], [50, 51, 52, 255, 255], [0, 25, 50, 75, 100]]
    assert all(np.ptp(tile(sheet, row, column)) == 0 for row in (0, 2) for column in range(5))
    assert [path.name for path in file.parent.iterdir()] == ["sheet.png"]


def test_small_frames_are_enlarged_by_a_whole_factor(tmp_path: Path):
    frame = picture(0, 0, 30, 40)
    folder = save(tmp_path, a=frame[None])
    sheet = np.asarray(Image.open(write_contact_sheet(tmp_path / "sheet.png", frame_stats(folder))))
    np.testing.assert_array_equal(tile(sheet, 0, 0, 90, 120), frame.repeat(3, axis=0).repeat(3, axis=1))


def test_large_frames_are_made_smaller(tmp_path: Path):
    frame = picture(0, 0, 384, 640)
    folder = save(tmp_path, a=frame[None])
    sheet = np.asarray(Image.open(write_contact_sheet(tmp_path / "sheet.png", frame_stats(folder))))
    small = np.asarray(Image.fromarray(frame).resize((128, 77), Image.Resampling.BOX))
    np.testing.assert_array_equal(tile(sheet, 0, 0, 77, 128), small)


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (4, [1, 2, 3]), (12, [9, 10, 11])])
def test_grey_frames_and_stacks(tmp_path: Path, channels: int, shown: list[int]):
    frames = random_frames(2, (8, 8, channels))
    stats = frame_stats(save(tmp_path, a=frames))
    sheet = np.asarray(Image.open(write_contact_sheet(tmp_path / "sheet.png", stats)))
    np.testing.assert_array_equal(tile(sheet, 0, 1)[::16, ::16], frames[1][..., shown])
    mean = np.asarray(Image.open(write_mean_sheet(tmp_path / "mean.png", stats)))
    expected = frames.mean(axis=0).round().astype(np.uint8)[..., shown]
    np.testing.assert_array_equal(tile(mean, 0, 0, label=0)[::16, ::16], expected)
    assert "mean R G B" not in stats_table(stats)


def test_sheets_of_many_files_are_bounded_and_show_the_first_and_the_last(tmp_path: Path):
    folder = save(tmp_path / "frames", **{f"r{n:03d}": np.full((2, 8, 8, 3), n, np.uint8) for n in range(100)})
    stats = frame_stats(folder)
    sheet = np.asarray(Image.open(write_contact_sheet(tmp_path / "sheet.png", stats)))
    assert sheet.shape[0] == TOP + 16 * ROW + _MARGIN
    assert [int(tile(sheet, row, 0)[0, 0, 0]) for row in (0, 1, 15)] == [0, 7, 99]
    means = np.asarray(Image.open(write_mean_sheet(tmp_path / "mean.png", stats)))
    assert means.shape[:2] == (TOP + 5 * (128 + 24) + _MARGIN, 2 * _MARGIN + 8 * (128 + _GAP) - _GAP)
    first, second = means[TOP, _MARGIN], means[TOP, _MARGIN + 128 + _GAP]
    assert (first[0], second[0], means[TOP + 4 * (128 + 24), _MARGIN + 7 * (128 + _GAP), 0]) == (
        50,
        0,
        99,
    )  # 50: of all
    one = np.asarray(Image.open(write_contact_sheet(tmp_path / "one.png", stats, max_files=1, columns=1)))
    assert one.shape[0] == TOP + ROW + _MARGIN


def test_names_of_any_length_and_script_stay_on_the_sheet(tmp_path: Path):
    names = {"x" * 240: counted(2), "Übung_日本語_🎮": counted(3), "a b&c": counted(4)}
    stats = frame_stats(save(tmp_path / "frames", **names))
    for write in (write_contact_sheet, write_mean_sheet):
        sheet = np.asarray(Image.open(write(tmp_path / "sheet.png", stats)))
        assert (sheet[:, 2 - _MARGIN :] == 255).all()
        assert (sheet[:, : _MARGIN - 2] == 255).all()
        assert sheet[:TOP].min() < 60  # there is a title


def test_nothing_to_show(tmp_path: Path):
    (tmp_path / "a.npy").write_bytes(b"")
    stats = frame_stats(tmp_path)
    for write in (write_contact_sheet, write_mean_sheet):
        with pytest.raises(InputError, match="no file of frames to show"):
            write(tmp_path / "sheet.png", stats)
    text = stats_table(stats)
    assert "no file that training would take" in text
    assert "refuse 1 file:\n- a.npy is empty (0 bytes)" in text


def test_the_table_fits_and_is_aligned(tmp_path: Path):
    files = {"recording_of_" + "x" * 150 + "_007": counted(200), "b": random_frames(1200, (8, 8, 3)), "c": counted(1)}
    folder = save(tmp_path / "frames", **files)
    np.save(folder / "d.npy", np.zeros((3, 8, 8, 3)))
    text = stats_table(frame_stats(folder))
    lines = [line for line in text.splitlines() if str(folder) not in line]
    assert max(map(len, lines)) <= 100
    head = next(line for line in lines if line.startswith("file "))
    rows = lines[lines.index(head) + 1 :][:4]
    ends = [match.end() for match in re.finditer(r"frames|MB|mean R G B|std|same|near|black|still", head)]
    assert all(row[end - 1] != " " and row[end : end + 2] in ("  ", "") for row in rows for end in ends)
    assert [row.split()[0][-8:] for row in rows] == ["b.npy", "c.npy", "_007.npy", "all"]
    assert rows[0].split()[1:] == ["1,200", "0.2", *rows[0].split()[3:7], "0%", "0%", "0%", "1"]
    assert rows[2].split()[-4:] == ["0%", "100%", "8%", "200"]
    assert "d.npy holds float64" in text


def test_the_table_of_many_files_is_bounded_and_of_one_has_no_sum(tmp_path: Path):
    folder = save(tmp_path / "frames", **{f"r{n:03d}": random_frames(2, seed=n) for n in range(60)})
    lines = stats_table(frame_stats(folder)).splitlines()
    assert lines[43:45] == ["… and 20 more (--json lists them all)", lines[44]]
    assert lines[44].startswith("all ")
    assert len(lines) < 50
    one = save(tmp_path / "one", a=random_frames(20))
    assert "\nall" not in stats_table(frame_stats(one))


def test_an_estimate_says_so(tmp_path: Path):
    folder = save(tmp_path, a=np.repeat(random_frames(50), 10, axis=0))
    text = stats_table(frame_stats(folder, 128))
    assert f"Estimates: {2 * STRETCH_FRAMES} of the frames were measured" in text
    assert text.splitlines()[4].endswith(" ≥10")
    assert "Estimates" not in stats_table(frame_stats(folder))


def test_shares_that_are_nearly_none_or_all_do_not_look_like_it(tmp_path: Path):
    frames = random_frames(1000, (4, 4, 3))
    frames[1], frames[5:9] = frames[0], 0
    text = stats_table(frame_stats(save(tmp_path, a=frames, b=np.repeat(frames[:2], [1, 999], axis=0))))
    assert text.splitlines()[3].split()[-4:] == ["<1%", "<1%", "<1%", "4"]
    still = np.concatenate([frames[2:3], np.repeat(frames[:1], 999, axis=0)])
    text = stats_table(frame_stats(save(tmp_path, b=still)))
    assert text.splitlines()[4].split()[-4:] == [">99%", ">99%", "0%", "999"]


def film(seed: int, frames: int = 200) -> np.ndarray:
    return random_frames(frames, (6, 8, 3), seed)


def black_beginning() -> np.ndarray:
    return np.concatenate([np.zeros((20, 6, 8, 3), np.uint8), film(3, 180)])


def pause() -> np.ndarray:
    return np.concatenate([film(4, 110), np.repeat(film(5, 1), 90, axis=0)])


WARNINGS = {
    "floats": (film(3) // 128, r"x\.npy: no value above 1\. Were floats of 0 to 1.*\* 255"),
    "black": (black_beginning(), r"x\.npy: 10% of the frames are black \(no value above 15\)"),
    "all black": (film(3) * 0, r"x\.npy: 100% of the frames are black"),
    "stills": (np.repeat(film(3, 50), 4, axis=0), r"x\.npy: 75% of the frames are near-duplicates.*--frame-skip 4"),
    "pause": (pause(), r"x\.npy: nothing moves for 90 frames, from frame 110\."),
    "dark": (film(3) // 4, r"x\.npy: far darker than the others \(mean 32, usual 12\d\)"),
    "copy": (film(1), r"b\.npy, x\.npy: copies of each other.*keep one of them"),
    "beginning": (np.concatenate([film(1)[:HEAD_FRAMES], film(3)]), r"b\.npy, x\.npy: begin with the same 16 frames"),
}


@pytest.mark.parametrize("fault", WARNINGS)
def test_each_fault_has_its_one_warning(tmp_path: Path, fault: str):
    frames, expected = WARNINGS[fault]
    stats = frame_stats(save(tmp_path, a=film(0), b=film(1), x=frames))
    (warning,) = find_warnings(stats)
    assert re.match(expected, warning)
    assert "Look at:\n- " in stats_table(stats)


def test_good_frames_have_no_warning(tmp_path: Path):
    stats = frame_stats(save(tmp_path, a=film(0), b=film(1), c=film(2) // 2 + 20))
    assert find_warnings(stats) == []
    assert "Look at" not in stats_table(stats)
    assert find_warnings(frame_stats(save(tmp_path / "one", a=film(0) // 8))) == []  # dark, but there is no other


def test_a_fault_of_many_files_is_one_warning(tmp_path: Path):
    files = {f"{n}_{'x' * 50}": np.repeat(film(n, 20), 2 + n % 3, axis=0) for n in range(30)}
    (warning,) = find_warnings(frame_stats(save(tmp_path, **files)))
    assert "and 27 more (of 30 files): 51% to 76% of the frames" in warning
    assert "x" * 41 not in warning
