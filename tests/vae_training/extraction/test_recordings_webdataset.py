"""WebDataset shards that its own package wrote, and other tar archives with pictures or videos."""

import io
import json
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latent_obs.util.errors import InputError
from tests.support import RECORDINGS
from tests.support.recording_files import numbered, numbers, read, read_until_damage, write_video
from vae_training import ExtractConfig, extract
from vae_training.extraction.readers.base import DamagedRecordingError, Recording
from vae_training.extraction.readers.find import find_recordings


def recordings_of(file: Path, camera: str | None = None) -> list[Recording]:
    recordings, damaged = find_recordings([file], camera=camera)
    assert damaged == []
    return recordings


def png(number: int, width: int = 64) -> bytes:
    file = io.BytesIO()
    Image.fromarray(numbered(number + 1, width=width)[number]).save(file, "png")
    return file.getvalue()


def write_tar(file: Path, **contents: bytes) -> Path:
    """A tar archive; names have __ for a slash and _ for a dot."""
    with tarfile.open(file, "w") as archive:
        for key, content in contents.items():
            member = tarfile.TarInfo(key.replace("__", "/").replace("_", "."))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


@pytest.mark.parametrize(("camera", "first"), [("front", 0), ("wrist", 20)])
def test_pictures_and_rows_are_those_that_the_package_wrote(camera: str, first: int):
    (recording,) = recordings_of(RECORDINGS / "webdataset-pictures.tar.gz", camera)
    assert (recording.name, recording.expected_frames) == ("webdataset-pictures.tar", 12)
    assert numbers(read(recording)) == list(range(first, first + 12))
    rows, n = recording.rows(), np.arange(12)
    assert rows.keys() == {"action", "reward", "state$x"}
    np.testing.assert_array_equal(rows["action"], np.stack([n, -n], 1))
    np.testing.assert_array_equal(rows["reward"], n / 4)
    np.testing.assert_array_equal(rows["state$x"], n)
    (note,) = recording.notes
    assert note.endswith("state$goal, note")  # a text, and a number that every second sample has


def test_a_shard_of_pictures_is_read_from_front_to_back(monkeypatch: pytest.MonkeyPatch):
    """As going back in a compressed archive reads it again from its start."""
    (recording,) = recordings_of(RECORDINGS / "webdataset-pictures.tar.gz", "front")
    frames, rows = read(recording), recording.rows()
    (recording,) = recordings_of(RECORDINGS / "webdataset-pictures.tar.gz", "front")
    monkeypatch.setattr(tarfile, "open", partial(tarfile.open, mode="r|*"))  # cannot go back
    np.testing.assert_array_equal(read(recording), frames)
    assert recording.rows().keys() == rows.keys()


def test_videos_and_rows_are_those_that_the_package_wrote():
    recordings = recordings_of(RECORDINGS / "webdataset-videos.tar")
    assert [each.name for each in recordings] == ["webdataset-videos/one", "webdataset-videos/two"]
    for recording, n in zip(recordings, (np.arange(5), np.arange(5, 12)), strict=True):
        assert numbers(read(recording)) == n.tolist()
        rows = recording.rows()
        assert rows.keys() == {"reward", "action"}
        np.testing.assert_array_equal(rows["reward"], n / 4)
        np.testing.assert_array_equal(rows["action"], np.stack([n, -n], 1))
        assert recording.notes[0].endswith("fps, cuts")


@pytest.mark.parametrize("camera", [None, "left"])
def test_one_of_several_cameras_is_to_be_chosen(camera: str | None):
    with pytest.raises(InputError, match="--camera: front, wrist"):
        find_recordings([RECORDINGS / "webdataset-pictures.tar.gz"], camera=camera)


def test_an_archive_of_a_folder_is_read_in_its_order(tmp_path: Path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("2.png", "10.png", ".hidden.png", "notes.txt"):
        (folder / name).write_bytes(png(len(name)))
    (folder / "link.png").symlink_to("2.png")
    with tarfile.open(tmp_path / "walk.tar", "w") as archive:
        for name in (".", "./10.png", "./2.png", "./link.png", "./.hidden.png", "./notes.txt"):
            archive.add(folder / name, name, recursive=False)
    (recording,) = recordings_of(tmp_path / "walk.tar")
    assert numbers(read(recording)) == [6, 5]
    assert recording.rows() == {}


def test_nothing_is_written_outside_of_the_folder(tmp_path: Path):
    video = write_video(tmp_path / "x.mp4", numbered(3)).read_bytes()
    write_tar(tmp_path / "walk.tar", **{"__a__evil_mp4": video, "b__fine_mp4": video, "..__evil_mp4": video})
    before = {path for path in tmp_path.parent.rglob("*") if path.is_file()}
    config = ExtractConfig((tmp_path / "walk.tar",), tmp_path / "out", size=None, workers=1)
    assert extract(config, progress_bar=False).frames == 6  # of the absolute name too, and not of that with ..
    written = {path for path in tmp_path.parent.rglob("*") if path.is_file()} - before
    assert {path.parent for path in written} == {tmp_path / "out"}


def test_damage_inside_names_the_file_and_keeps_what_was_before(tmp_path: Path):
    file = write_tar(tmp_path / "walk.tar", a_png=png(0), b_png=png(1), c_png=b"none", d_png=png(3))
    frames = read_until_damage(recordings_of(file)[0], r"walk\.tar, c\.png .*2 good frames")
    assert frames is not None
    assert numbers(frames) == [0, 1]
    (two,) = recordings_of(write_tar(tmp_path / "two.tar", a_png=png(0), b_png=png(1, 32)))
    read_until_damage(two, r"b\.png has shape")
    (broken,) = recordings_of(write_tar(tmp_path / "json.tar", a_png=png(0), a_json=b"{"))
    with pytest.raises(DamagedRecordingError, match=r"json\.tar, a\.json"):
        broken.rows()


@pytest.mark.parametrize("content", [b"", b"no tar", None])
def test_an_archive_that_is_cut_short_is_damage(tmp_path: Path, content: bytes | None):
    whole = (RECORDINGS / "webdataset-videos.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[:3000] if content is None else content)
    recordings, (damaged,) = find_recordings([tmp_path])
    assert recordings == []
    assert str(tmp_path / "x.tar") in damaged.reason


def test_an_archive_of_other_things_is_not_used(tmp_path: Path):
    write_tar(tmp_path / "texts.tar", a_txt=b"a", a_json=b"{}")
    write_tar(tmp_path / "walk.tar", a_png=png(0), a_json=json.dumps([1, 2]).encode())
    said: list[str] = []
    (recording,), damaged = find_recordings([tmp_path], say=said.append)
    assert (recording.name, damaged) == ("walk", [])
    assert "texts.tar" in said[0]
    np.testing.assert_array_equal(recording.rows()["json"], [[1, 2]])


def test_one_camera_with_pictures_of_two_formats(tmp_path: Path):
    names = {"0_front_jpg": png(0), "1_front_png": png(1), "2_front_jpg": png(2)}
    (recording,) = recordings_of(write_tar(tmp_path / "a.tar", **names))
    assert numbers(read(recording)) == [0, 1, 2]
    assert recording.expected_frames == 3
    bare = {"0_jpg": png(0), "1_png": png(1)}
    (recording,) = recordings_of(write_tar(tmp_path / "b.tar", **bare))
    assert numbers(read(recording)) == [0, 1]
    both = write_tar(tmp_path / "c.tar", **bare, **{"2_jpg": png(2), "2_png": png(3)})
    (recording,) = recordings_of(both, "png")  # there a sample has two pictures, so they are two cameras
    assert numbers(read(recording)) == [1, 3]


def test_files_that_are_not_read_are_counted(tmp_path: Path):
    others = {"0_npy": b"x", "0_json": b"{}", "about_json": b"{}", "1_png": png(1), "1_npy": b"x", "README": b"x"}
    (recording,) = recordings_of(write_tar(tmp_path / "a.tar", **{"0_png": png(0), **others}))
    assert recording.notes[-1].endswith("not read: 2 .npy, 1 .json, 1 without suffix")
    video = write_video(tmp_path / "x.mp4", numbered(3)).read_bytes()
    files = {"a_mp4": video, "b_mp4": video, "c_png": png(0), "d_png": png(1)}
    first, second = recordings_of(write_tar(tmp_path / "b.tar", **files))
    assert first.notes[-1].endswith("not read: 2 .png")
    assert second.notes == []


def test_samples_in_pieces_are_damage(tmp_path: Path):
    pieces = {"0_png": png(0), "1_png": png(1), "0_json": b"{}", "1_json": b"{}"}
    write_tar(tmp_path / "a.tar", **pieces)
    with tarfile.open(write_tar(tmp_path / "b.tar", a_png=png(0), c_png=png(1)), "a") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    with tarfile.open(write_tar(tmp_path / "c.tar", a_png=png(0)), "a") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    recordings, damaged = find_recordings([tmp_path])
    assert recordings == []
    for each, found in zip(damaged, ("the files of '0'", "the files of 'a'", "a.png is in it twice"), strict=True):
        assert found in each.reason
