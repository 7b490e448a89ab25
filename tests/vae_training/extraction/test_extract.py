"""Extraction: what is in the files, the rows and the index, for whatever the recordings are; and every refusal."""

import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_obs.pixels import PixelContract
from latent_obs.util.errors import InputError
from latent_obs_cli.main import main
from tests.support import ROOT
from tests.support.fake_recordings import HEIGHT, WIDTH, Fake, fakes, noise
from tests.support.recording_files import numbered, write_video
from tests.vae_training.extraction.conftest import Place
from vae_training.data.frames import Frames, get_datasets
from vae_training.data.loader import get_random_samples
from vae_training.extraction.extractor import ExtractConfig, extract
from vae_training.extraction.index import FrameFolder
from vae_training.extraction.readers.base import Damaged


@pytest.mark.parametrize(
    ("crop", "size"), [("none", 16), ("none", None), ("center-square", 40), ("center-square", None)]
)
def test_frames_are_those_of_the_pixel_contract(place: Place, crop: Any, size: int | None, capsys: Any):
    result = place.extract(crop=crop, size=size)
    own = (HEIGHT, HEIGHT) if crop == "center-square" else (HEIGHT, WIDTH)
    contract = PixelContract(size or own[0], size or own[1], 3, crop=crop)
    files = get_datasets(place.out)
    for i, file in enumerate(files):
        np.testing.assert_array_equal(file, contract.convert(noise(i, 40 + 10 * i)))
    assert (result.recordings, result.frames, result.new_frames, result.skipped) == (3, 150, 150, 0)
    assert get_random_samples(files, 8).shape == (8, *contract.shape)
    names = [f"clip-{i}" for i in range(3)]
    assert sorted(place.contents()) == sorted(
        [f"{n}{end}" for n in names for end in (".npy", ".rows.npz")] + ["frames.json"]
    )
    assert capsys.readouterr() == ("", "")  # it took no five seconds


def test_rows_belong_to_the_kept_frames(place: Place):
    place.extract(stride=3, limit=11)
    rows, kept = place.rows("clip-1"), np.arange(0, 33, 3)
    np.testing.assert_array_equal(rows["source_frame"], kept)
    np.testing.assert_array_equal(rows["reward"], kept)
    assert rows["file"].tolist() == [f"step {i}" for i in kept]
    np.testing.assert_array_equal(get_datasets(place.out)[1], PixelContract(16, 16, 3).convert(noise(1, 50)[kept]))


def test_long_recordings_are_cut_into_files(place: Place):
    place.extract(frames_per_file=25)
    assert [len(file) for file in get_datasets(place.out)] == [25, 15, 25, 25, 25, 25, 10]
    files = place.index["recordings"]["clip 2"]["files"]
    assert [part["file"] for part in files] == [f"clip-2_00{i}.npy" for i in range(3)]
    assert place.rows("clip-2_001")["source_frame"].tolist() == list(range(25, 50))
    whole = np.concatenate(get_datasets(place.out)[-3:])
    np.testing.assert_array_equal(whole, PixelContract(16, 16, 3).convert(noise(2, 60)))


def test_duplicates_and_black_frames_are_dropped(place: Place, monkeypatch: pytest.MonkeyPatch):
    still = np.repeat(noise(0, 3), 4, axis=0)
    still[5] = 0
    monkeypatch.setattr(Fake, "chunks", lambda self: (part for part in np.split(still, [5, 6])))
    place.recordings = fakes(place.source, 1, row_count=12)
    place.extract(drop_duplicates=1.0, drop_black=True)
    assert place.rows("clip-0")["source_frame"].tolist() == [0, 4, 8]
    assert len(get_datasets(place.out)[0]) == 3


def test_index(place: Place):
    place.recordings[0] = Fake("clip 0", place.recordings[0].source, seed=99)
    place.extract(stride=2)
    index = place.index
    assert (index["frames"], index["shape"], index["damaged"]) == (25 + 25 + 30, [16, 16, 3], {})
    assert index["settings"]["stride"] == 2
    assert not {"out", "recordings", "workers"} & index["settings"].keys()
    assert index["recordings"]["clip 1"] == {
        **{"source": "clip 1.fake", "kind": "fake", "frames": 25, "first_source_frame": 0, "shape": [16, 16, 3]},
        **{"fingerprint": place.recordings[1].fingerprint(), "notes": []},
        "files": [{"file": "clip-1.npy", "rows": "clip-1.rows.npz", "frames": 25}],
    }
    assert index["versions"]["numpy"] == np.__version__
    assert "clip 0 is made up" in place.said


def test_recordings_of_which_nothing_is_left(place: Place, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Fake, "chunks", lambda self: (np.zeros((self.frames, 36, 48, 3), np.uint8) for _ in range(1)))
    result = place.extract(drop_black=True)
    assert (result.frames, result.empty, result.damaged) == (0, ("clip 0", "clip 1", "clip 2"), ())
    assert sorted(place.contents()) == ["frames.json"]
    assert place.extract(drop_black=True).skipped == 3


def test_damaged_recordings_are_named_and_nothing_of_them_is_kept(place: Place):
    place.recordings[1] = Fake("clip 1", place.source / "clip 1.fake", breaks_at=32)
    place.recordings[2] = Fake("clip 2", place.source / "clip 2.fake", row_count=49)
    place.damaged = [Damaged("x", place.source / "x.fake", "it lacks an end")]
    result = place.extract(frames_per_file=10)
    assert [damaged.name for damaged in result.damaged] == ["clip 1", "clip 2", "x"]
    assert (result.recordings, result.frames) == (1, 40)
    assert {p.stem[:6] for p in place.out.glob("*.np?")} == {"clip-0"}
    assert not list(place.out.glob(".*"))
    assert place.index["damaged"]["x"] == {"source": "x.fake", "reason": "it lacks an end"}
    place.recordings, place.damaged = fakes(place.source), []
    assert place.extract(frames_per_file=10).recordings == 3
    assert place.index["damaged"] == {}


def test_rows_that_cannot_be_kept(place: Place, monkeypatch: pytest.MonkeyPatch):
    place.recordings = fakes(place.source, 1, row_name="source_frame")
    assert "source_frame" in place.extract().damaged[0].reason
    place.recordings = fakes(place.source, 1)
    monkeypatch.setattr(Fake, "rows", lambda self: {"reward": np.array([None] * 40)})
    assert "reward" in place.extract().damaged[0].reason
    texts = iter("aab")
    monkeypatch.setattr(Fake, "rows", lambda self: {})
    monkeypatch.setattr(Fake, "fingerprint", lambda self: next(texts))  # the source changes while it is read
    assert "clip 0" in place.extract().damaged[0].reason


@pytest.mark.parametrize("where", ["chunks", "rows", "notes", "fingerprint"])
@pytest.mark.parametrize("error", [AttributeError, UnicodeDecodeError("utf-8", b"", 0, 1, ""), MemoryError, OSError])
def test_whatever_a_reader_raises_is_that_recordings_error(
    place: Place, where: str, error: Any, monkeypatch: pytest.MonkeyPatch
):
    class Broken(Fake):
        pass

    def broken(_: Fake) -> Any:
        raise error

    def broken_chunks(recording: Fake) -> Generator[Frames]:
        yield noise(recording.seed, 16)
        raise error

    if where == "fingerprint":
        (place.source / "clip 1.fake").unlink()  # after it was found
    else:
        place.recordings[1] = Broken("clip 1", place.source / "clip 1.fake")
        cases = {"chunks": broken_chunks, "notes": property(broken), "rows": broken}
        monkeypatch.setattr(Broken, where, cases[where])
    result = place.extract()
    assert [damaged.name for damaged in result.damaged] == ["clip 1"]
    assert (result.recordings, result.frames) == (2, 100)


def test_the_command_says_what_is_damaged_and_ends_with_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """A damaged one beside a good one, names that are no UTF-8, and nothing but damaged ones."""
    source, out = tmp_path / "in", tmp_path / "out"
    good, bad = (source / os.fsdecode(name + b"\xe9.mkv") for name in (b"good", b"bad"))
    write_video(source / "a.mkv", numbered(5)).rename(good)
    bad.write_bytes(good.read_bytes().replace(b"ENCODER", b"\xff\xfeCODER"))
    command = [sys.executable, "-m", "latent_obs_cli.main", "frames", "extract", str(source), "--out", str(out)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([*command, "--size", "16"], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "bad" in done.stdout
    assert [len(file) for file in get_datasets(out)] == [5]
    good.unlink()
    bad.rename(source / "bad.mkv")
    assert main(["frames", "extract", str(source), "--out", str(tmp_path / "other"), "--size", "16"]) == 2
    assert "bad" in capfd.readouterr().out


def test_recordings_of_another_size(place: Place):
    place.recordings[0] = Fake("clip 0", place.source / "clip 0.fake", breaks_at=0)
    place.recordings[2] = Fake("clip 2", place.source / "clip 2.fake", shape=(20, 20))
    result = place.extract(size=None)
    assert result.recordings == 1  # the first that can be read decides, however many workers there are
    assert [damaged.name for damaged in result.damaged] == ["clip 0", "clip 2"]
    assert place.extract(size=None).skipped == 1


def test_progress_without_a_terminal(place: Place, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("latent_obs.util.progress._FIRST_LINE_S", 0.0)
    place.extract()
    assert "of 150 frames" in capsys.readouterr().err


def test_file_names(tmp_path: Path):
    names = ["a/b", "a__b", "A/b", "../x", ".hidden", "ü ?*", "x" * 300, "clip_000", "clip", "clip_1", "???", "y_000"]
    folder = FrameFolder(tmp_path, {}, print)
    stems = folder.stems(names)
    assert len({stem.casefold() for stem in stems.values()}) == len(names)
    assert not any(stem.startswith(".") or "/" in stem or len(stem.encode()) > 170 for stem in stems.values())
    assert (stems["../x"], stems["clip"], stems["clip_1"], stems["y_000"]) == ("__x", "clip", "clip_1", "y_000")
    assert stems["clip_000"].startswith("clip_000-")
    entries: Any = {"a/b": {"files": [{"file": "a__b_000.npy"}, {"file": "a__b_001.npy"}]}}
    folder.entries = entries
    assert folder.stems(["a__b", "a/b"])["a/b"] == "a__b"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", 0),
        ("stride", None),
        ("limit", 2.5),
        ("drop_duplicates", float("nan")),
        ("crop", "left"),
        ("gui", "x"),
        *((name, 10**20) for name in ("size", "stride", "limit", "workers", "frames_per_file", "drop_duplicates")),
    ],
)
def test_wrong_settings(place: Place, name: str, value: Any):
    with pytest.raises(InputError, match=name):
        place.extract(**{name: value})
    with pytest.raises(InputError, match="recordings"):
        place.extract(recordings=())
    assert not place.out.exists()


def test_folder_that_cannot_be_written_to(place: Place, tmp_path: Path):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for out in (tmp_path / "file", tmp_path / "loop", tmp_path / "loop" / "inside", place.source):
        with pytest.raises(InputError, match="out"):
            place.extract(out=out)


def test_foreign_files(place: Place):
    place.out.mkdir()
    foreign = place.out / "foreign.npy"
    for array in (np.zeros((5, 9, 9, 3), np.uint8), np.zeros((5, 16, 16, 3), np.float32)):
        np.save(foreign, array)
        for content in (foreign.read_bytes(), foreign.read_bytes()[:6]):
            foreign.write_bytes(content)
            with pytest.raises(InputError, match=r"foreign\.npy"):
                place.extract()
            assert sorted(place.contents()) == ["foreign.npy"]


def test_foreign_files_of_the_same_shape_stay(place: Place):
    place.out.mkdir()
    np.save(place.out / "foreign.npy", np.zeros((5, 16, 16, 3), np.uint8))
    place.extract()
    assert len(get_datasets(place.out)) == 4
    place.recordings = fakes(place.source, 4)
    np.save(place.out / "clip-3.npy", np.ones((5, 16, 16, 3), np.uint8))
    with pytest.raises(InputError, match=r"clip-3\.npy"):
        place.extract()
    assert np.load(place.out / "clip-3.npy").min() == 1


def test_real_recordings(tmp_path: Path):
    """Videos, one of them damaged, and an array, found in a folder by name and read by worker processes."""
    for i in range(2):
        write_video(tmp_path / "in" / "day 1" / f"clip_{i}.mp4", numbered(30 + i))
    cut = write_video(tmp_path / "in" / "cut.mp4", noise(3, 40))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    np.save(tmp_path / "in" / "walk.npy", noise(5, 20, 24, 24))
    config = ExtractConfig((tmp_path / "in",), tmp_path / "out", size=20, workers=2)
    result = extract(config, say=list[str]().append)
    assert [damaged.name for damaged in result.damaged] == ["cut"]
    assert (result.recordings, result.frames) == (3, 81)
    files = get_datasets(tmp_path / "out")
    assert [Path(str(f.filename)).name for f in files] == ["day-1__clip_0.npy", "day-1__clip_1.npy", "walk.npy"]
    np.testing.assert_array_equal(files[2], PixelContract(20, 20, 3).convert(noise(5, 20, 24, 24)))
    assert extract(config, say=list[str]().append).skipped == 3
