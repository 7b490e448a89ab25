"""Frame files: what is opened, what is refused, and how recordings are held out."""

import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_obs.util.errors import InputError
from vae_training.data.frames import (
    DiskFullError,
    check_worth_learning,
    describe_datasets,
    explain_disk_full,
    fingerprint,
    get_datasets,
    split_held_out,
    split_note,
)


def frames(count: int, value: int = 0, shape: tuple[int, ...] = (8, 10, 3)) -> np.ndarray:
    return np.full((count, *shape), value, np.uint8)


def names(datasets: Sequence[Any]) -> list[str]:
    return [Path(dataset.filename).name for dataset in datasets]


def test_files_in_name_order_as_lazy_arrays(tmp_path: Path):
    for value, name in enumerate(["b.npy", "c.npy"]):
        np.save(tmp_path / name, frames(value + 1, value))
    with (tmp_path / "a.npy").open("wb") as handle:
        np.lib.format.write_array(handle, frames(3, 2), version=(2, 0))
    (tmp_path / ".hidden.npy").write_bytes(b"no")
    (tmp_path / "d.npy.part").write_bytes(b"no")
    (tmp_path / "notes.txt").write_text("no")
    (tmp_path / "folder.npy").mkdir()
    datasets = get_datasets(str(tmp_path))
    assert names(datasets) == ["a.npy", "b.npy", "c.npy"]
    assert [int(d[-1, 0, 0, 0]) for d in datasets] == [2, 0, 1]
    assert all(isinstance(d, np.memmap) and d.dtype == np.uint8 and not d.flags.writeable for d in datasets)


def test_nothing_but_the_header_is_read(tmp_path: Path):
    path = tmp_path / "huge.npy"
    np.save(path, np.zeros((1, 64, 64, 3), np.uint8))
    text = path.read_bytes()[:128].replace(b"(1, 64, 64, 3), }      ", b"(9000000, 64, 64, 3), }")
    path.write_bytes(text)
    os.truncate(path, 128 + 9_000_000 * 64 * 64 * 3)  # sparse: 110 GB that take no space and could not be read
    (dataset,) = get_datasets(tmp_path)
    assert dataset.shape == (9_000_000, 64, 64, 3)
    assert int(dataset[8_999_999].max()) == 0


def test_folders_without_frame_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"images .*latent-obs frames record"):
        get_datasets()
    (tmp_path / "images" / "inner").mkdir(parents=True)
    with pytest.raises(InputError, match=r"images is a folder without \.npy files \(it holds inner\).*frames extract"):
        get_datasets()
    (tmp_path / "images" / "a.npy.part").write_bytes(b"x")
    with pytest.raises(InputError, match=r"images .*a\.npy\.part, inner"):
        get_datasets()
    np.save(tmp_path / "images" / "a.npy", frames(1))
    assert len(get_datasets()) == 1
    with pytest.raises(InputError, match=r"a\.npy is a file"):
        get_datasets(tmp_path / "images" / "a.npy")


#: What is no frame file, and what the error has to mention.
WRONG = {
    "int64": (frames(2).astype(np.int64), "int64"),
    "structured": (np.zeros((2, 8, 8, 3), [("r", "u1")]), "uint8"),
    "three axes": (frames(2)[..., 0], r"\(2, 8, 10\)"),
    "no frames": (frames(0), r"\(0, 8, 10, 3\)"),
    "channel-first": (frames(2, shape=(3, 8, 8)), r"transpose\(0, 2, 3, 1\)"),
    "Fortran": (np.asfortranarray(frames(2)), "ascontiguousarray"),
}


@pytest.mark.parametrize("name", WRONG)
def test_arrays_that_are_no_frames(tmp_path: Path, name: str):
    array, message = WRONG[name]
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match=f"^{tmp_path / 'a.npy'} .*{message}"):
        get_datasets(tmp_path)


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_objects_are_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    array = np.empty((1, 8, 8, 3), object)
    array[0, 0, 0, 0] = Bomb()
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=r"a\.npy"):
        get_datasets(tmp_path)
    (tmp_path / "a.npy").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match=r"a\.npy"):
        get_datasets(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_damaged_files(tmp_path: Path):
    path = tmp_path / "a.npy"
    np.save(path, frames(10))
    whole = path.read_bytes()
    damaged = [whole[:cut] for cut in (0, 3, 9, 60, 1000)]
    for content in (*damaged, whole + b"more", whole[:6] + b"\x09\x00" + whole[8:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.npy"):
            get_datasets(tmp_path)


def test_another_frame_shape_names_both_files(tmp_path: Path):
    np.save(tmp_path / "a.npy", frames(2))
    np.save(tmp_path / "b.npy", frames(2, shape=(8, 8, 3)))
    with pytest.raises(InputError, match=r"b\.npy .*\(8, 8, 3\).*a\.npy .*\(8, 10, 3\)"):
        get_datasets(tmp_path)


def test_a_description_is_json_and_differs_between_files(tmp_path: Path):
    contents = np.random.default_rng(0).integers(0, 256, (12_000, 8, 10, 3), np.uint8)  # 2.9 MB
    for name, changed in (("a", None), ("same", None), ("head", 0), ("tail", -1)):
        content = contents.copy()
        if changed is not None:
            content[changed, changed, changed, changed] ^= 1
        np.save(tmp_path / f"{name}.npy", content)
    described = {d["file"]: d for d in describe_datasets(get_datasets(tmp_path))}
    assert json.loads(json.dumps(described)) == described
    expected = {"file": "a.npy", "first_frame": 0, "frames": 12_000, "frame_shape": [8, 10, 3], "bytes": 12_000 * 240}
    assert expected.items() <= described["a.npy"].items()
    sums = {name: d["sha256_head_tail"] for name, d in described.items()}
    for marks in (sums, {name: fingerprint(tmp_path / name) for name in sums}):
        assert marks["a.npy"] == marks["same.npy"]
        assert len(set(marks.values())) == 3
    view = describe_datasets([get_datasets(tmp_path)[0][100:300]])[0]
    assert (view["first_frame"], view["frames"], view["sha256_head_tail"]) == (100, 200, sums["a.npy"])
    assert describe_datasets([frames(3)])[0]["file"] is None


def test_checksums_are_those_of_older_versions():
    """By which a report finds what an encoder was trained on, and a checkpoint its frames."""
    folder = Path(__file__).parents[2] / "artefacts" / "first"
    trained_on = json.loads((folder / "vae" / "encoder" / "config.json").read_text())["provenance"]["trained_on"]
    datasets = get_datasets(folder / "recorded")
    assert describe_datasets(datasets[:1]) == trained_on
    assert fingerprint(Path(str(datasets[0].filename))) == "1956297be9ffedf5dc91f5e26d97a9b6"


@pytest.mark.parametrize(("files", "wanted", "expected"), [(2, None, 1), (20, None, 2), (9, 4, 4)])
def test_whole_recordings_are_held_out(files: int, wanted: int | None, expected: int):
    datasets = [frames(5, value=i) for i in range(files)]
    train, held_out = split_held_out(datasets, wanted)
    assert [int(d[0, 0, 0, 0]) for d in train + held_out] == list(range(files))
    assert (len(held_out), sum(map(len, train + held_out))) == (expected, 5 * files)
    assert split_note(datasets, train, held_out) == ""


def test_single_recording_is_cut_with_a_gap(tmp_path: Path):
    for count, train, tail in ((3, 1, 1), (1000, 890, 100), (50_000, 44_900, 5000)):
        np.save(tmp_path / "a.npy", frames(count, shape=(2, 2, 1)))
        datasets = get_datasets(tmp_path)
        (train_part,), (held_part,) = split_held_out(datasets)
        assert (len(train_part), len(held_part)) == (train, tail)
        assert [d["first_frame"] for d in describe_datasets([train_part, held_part])] == [0, count - tail]
        assert f"{tail:,} frames" in split_note(datasets, [train_part], [held_part])


def test_splits_that_leave_nothing():
    for lengths, held_out, name in (([5] * 3, 3, "held_out"), ([5] * 3, 0, "held_out"), ([2], None, "2 frame")):
        with pytest.raises(InputError, match=name):
            split_held_out([frames(n) for n in lengths], held_out)
    with pytest.raises(InputError, match="datasets"):
        split_held_out([])


def extracted(folder: Path, recordings: dict[str, list[int]]) -> list[Any]:
    """A folder as `frames extract` leaves it: recordings in one file or several, and the index."""
    entries: dict[str, Any] = {}
    for name, lengths in recordings.items():
        files = [f"{name}_{i:03d}.npy" if len(lengths) > 1 else f"{name}.npy" for i in range(len(lengths))]
        entries[name] = {"files": [{"file": file, "frames": n} for file, n in zip(files, lengths, strict=True)]}
        for file, n in zip(files, lengths, strict=True):
            np.save(folder / file, frames(n))
    (folder / "frames.json").write_text(json.dumps({"recordings": entries}))
    return get_datasets(folder)


def test_a_recording_in_pieces_is_held_out_whole(tmp_path: Path):
    datasets = extracted(tmp_path, {"a": [5], "b": [5, 5, 5], "c": [5, 2]})
    train, held_out = split_held_out(datasets, 1)
    assert names(train) == ["a.npy", "b_000.npy", "b_001.npy", "b_002.npy"]
    assert names(held_out) == ["c_000.npy", "c_001.npy"]
    train, held_out = split_held_out(datasets, 3)
    assert names(train) == ["a.npy"]
    assert names(held_out) == ["b_000.npy", "b_001.npy", "b_002.npy", "c_000.npy", "c_001.npy"]
    (tmp_path / "frames.json").write_text("{")
    with pytest.raises(InputError, match=r"frames\.json"):
        split_held_out(datasets)


def test_pieces_of_one_recording_are_held_out_with_a_gap(tmp_path: Path):
    train, held_out = split_held_out(extracted(tmp_path, {"only": [400, 400, 50]}))
    assert [len(part) for part in train] == [400, 396]
    assert names(held_out) == ["only_002.npy"]


def test_frames_that_are_all_one_picture_are_refused():
    files = [frames(300, 7), frames(500, 7)]
    with pytest.raises(InputError, match="800 frames"):
        check_worth_learning(files)
    files[1][333, 5, 5, 1] = 8  # which no sparse look would find
    check_worth_learning(files)


def test_a_full_disk_is_explained():
    for error in (OSError(28, "x"), OSError(122, "x"), OSError(27, "x")):
        with pytest.raises(DiskFullError, match=r"^run: .*Free some\.$"), explain_disk_full(Path("run"), "Free some."):
            raise error
    with pytest.raises(OSError, match="broken") as raised, explain_disk_full(Path("run"), "Free some."):
        raise OSError(5, "broken")
    assert not isinstance(raised.value, DiskFullError)
