"""Frame files: what is opened, what is refused and with which words, and how recordings are held out."""

import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_obs.util.errors import InputError
from vae_training.data.frames import describe_datasets, get_datasets, split_held_out


def frames(count: int, value: int = 0, shape: tuple[int, ...] = (8, 10, 3)) -> np.ndarray:
    return np.full((count, *shape), value, np.uint8)


def test_files_in_name_order_as_lazy_arrays(tmp_path: Path):
    for value, name in enumerate(["b.npy", "c.npy", "a.npy"]):
        np.save(tmp_path / name, frames(value + 1, value))
    (tmp_path / ".hidden.npy").write_bytes(b"no")
    (tmp_path / "d.npy.part").write_bytes(b"no")
    (tmp_path / "notes.txt").write_text("no")
    (tmp_path / "folder.npy").mkdir()
    datasets = get_datasets(tmp_path)
    assert [Path(str(d.filename)).name for d in datasets] == ["a.npy", "b.npy", "c.npy"]
    assert [int(d[0, 0, 0, 0]) for d in datasets] == [2, 0, 1]
    assert all(isinstance(d, np.memmap) and d.dtype == np.uint8 and not d.flags.writeable for d in datasets)
    np.testing.assert_array_equal(datasets[0][1:, ..., 0].mean(axis=0), np.full((8, 10), 2.0))
    assert len(get_datasets(str(tmp_path))) == 3


def test_nothing_but_the_header_is_read(tmp_path: Path):
    path = tmp_path / "huge.npy"
    header = np.lib.format.open_memmap(path, "w+", np.uint8, (1, 64, 64, 3))
    del header
    text = path.read_bytes()[:128].replace(b"(1, 64, 64, 3), }      ", b"(9000000, 64, 64, 3), }")
    assert len(text) == 128
    path.write_bytes(text)
    os.truncate(path, 128 + 9_000_000 * 64 * 64 * 3)  # sparse: 110 GB that take no room and could not be read
    (dataset,) = get_datasets(tmp_path)
    assert dataset.shape == (9_000_000, 64, 64, 3)
    assert int(dataset[8_999_999].max()) == 0


def test_default_folder_is_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no folder images .*latent-obs frames record"):
        get_datasets()
    (tmp_path / "images").mkdir()
    np.save(tmp_path / "images" / "a.npy", frames(1))
    assert len(get_datasets()) == 1


def test_folders_without_frame_files(tmp_path: Path):
    with pytest.raises(InputError, match=r"is empty, expected \.npy files.*latent-obs frames record"):
        get_datasets(tmp_path)
    (tmp_path / "video.mp4").write_bytes(b"x")
    (tmp_path / "a.npy.part").write_bytes(b"x")
    with pytest.raises(InputError, match=r"no \.npy file; it holds a\.npy\.part, video\.mp4.*unfinished"):
        get_datasets(tmp_path)
    (tmp_path / "inner").mkdir()
    np.save(tmp_path / "inner" / "a.npy", frames(1))
    with pytest.raises(InputError, match="inner holds some: give that folder"):
        get_datasets(tmp_path)
    with pytest.raises(InputError, match="is a file, expected the folder"):
        get_datasets(tmp_path / "inner" / "a.npy")


WRONG = {
    "int64": (frames(2).astype(np.int64), r"holds int64, expected uint8.*astype\(numpy.uint8\)"),
    "float": (np.full((2, 8, 8, 3), 0.5, np.float32), r"holds float32, expected uint8.*multiply by 255 and convert"),
    "float to 255": (np.full((2, 8, 8, 3), 90.0), r"holds float64.*0 to 255, convert"),
    "NaN": (np.full((2, 8, 8, 3), np.nan, np.float32), "holds float32, expected uint8.*NaN"),
    "bool": (np.ones((2, 8, 8, 3), bool), r"holds bool.*\* 255"),
    "three axes": (frames(2)[..., 0], r"shape \(2, 8, 10\), expected four axes.*channel axis.*\[\.\.\., None\]"),
    "five axes": (frames(2)[None], r"5 axes, shape \(1, 2, 8, 10, 3\)"),
    "no frames": (frames(0), r"no frames: its shape is \(0, 8, 10, 3\)"),
    "channel-first": (frames(2, shape=(3, 8, 8)), r"looks channel-first.*transpose\(0, 2, 3, 1\)"),
    "Fortran": (np.asfortranarray(frames(2)), "Fortran order.*ascontiguousarray"),
    "structured": (np.zeros((2, 8, 8, 3), [("r", "u1")]), "expected uint8"),
}


@pytest.mark.parametrize("name", WRONG)
def test_arrays_that_are_no_frames(tmp_path: Path, name: str):
    array, message = WRONG[name]
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match=message) as raised:
        get_datasets(tmp_path)
    assert str(tmp_path / "a.npy") in str(raised.value)


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_objects_are_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    array = np.empty((1, 8, 8, 3), object)
    array[0, 0, 0, 0] = Bomb()
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=r"Python objects.*never loaded"):
        get_datasets(tmp_path)
    (tmp_path / "a.npy").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match=r"not a \.npy file"):
        get_datasets(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_damaged_files(tmp_path: Path):
    path = tmp_path / "a.npy"
    np.save(path, frames(10))
    whole = path.read_bytes()
    assert len(whole) == 128 + 2400
    path.write_bytes(whole[:1000])
    with pytest.raises(InputError, match=r"cut short: uint8 of shape \(10, 8, 10, 3\) takes 2,528 bytes, found 1,000"):
        get_datasets(tmp_path)
    path.write_bytes(whole + b"more")
    with pytest.raises(InputError, match="goes on after its array"):
        get_datasets(tmp_path)
    for cut in (0, 3, 9, 60):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"a\.npy"):
            get_datasets(tmp_path)
    path.write_bytes(whole[:6] + b"\x09\x00" + whole[8:])
    with pytest.raises(InputError, match="cannot be read"):
        get_datasets(tmp_path)


def test_format_version_2_is_read(tmp_path: Path):
    with (tmp_path / "a.npy").open("wb") as handle:
        np.lib.format.write_array(handle, frames(3, 9), version=(2, 0))
    assert int(get_datasets(tmp_path)[0][2].min()) == 9


def test_other_frame_shape_names_both_files(tmp_path: Path):
    np.save(tmp_path / "a.npy", frames(2))
    np.save(tmp_path / "b.npy", frames(2, shape=(8, 8, 3)))
    with pytest.raises(InputError, match=r"b\.npy has frames of shape \(8, 8, 3\).*a\.npy.*\(8, 10, 3\)"):
        get_datasets(tmp_path)


def test_description_is_json_and_tells_files_apart(tmp_path: Path):
    rng = np.random.default_rng(0)
    contents = rng.integers(0, 256, (12_000, 8, 10, 3), np.uint8)  # 2.9 MB
    np.save(tmp_path / "a.npy", contents)
    np.save(tmp_path / "same.npy", contents)
    contents[0, 0, 0, 0] ^= 1
    np.save(tmp_path / "head.npy", contents)
    contents[0, 0, 0, 0] ^= 1
    contents[-1, -1, -1, -1] ^= 1
    np.save(tmp_path / "tail.npy", contents)
    described = {d["file"]: d for d in describe_datasets(get_datasets(tmp_path))}
    assert json.loads(json.dumps(described)) == described
    assert described["a.npy"]["frames"] == 12_000
    assert described["a.npy"]["frame_shape"] == [8, 10, 3]
    assert described["a.npy"]["bytes"] == 12_000 * 240
    sums = {name: d["sha256_head_tail"] for name, d in described.items()}
    assert sums["a.npy"] == sums["same.npy"]
    assert len(set(sums.values())) == 3
    view = describe_datasets([get_datasets(tmp_path)[0][100:300]])[0]
    assert (view["first_frame"], view["frames"], view["sha256_head_tail"]) == (100, 200, sums["a.npy"])
    assert describe_datasets([frames(3)])[0]["file"] is None


@pytest.mark.parametrize(("files", "wanted", "expected"), [(2, None, 1), (10, None, 1), (20, None, 2), (9, 4, 4)])
def test_whole_recordings_are_held_out(files: int, wanted: int | None, expected: int):
    datasets = [frames(5, value=i) for i in range(files)]
    train, held_out = split_held_out(datasets, wanted)
    assert [int(d[0, 0, 0, 0]) for d in train + held_out] == list(range(files))
    assert len(held_out) == expected
    assert all(len(d) == 5 for d in train + held_out)


@pytest.mark.parametrize(
    ("count", "train", "tail"), [(3, 1, 1), (100, 89, 10), (1000, 890, 100), (50_000, 44_900, 5000)]
)
def test_single_recording_is_cut_with_a_gap(tmp_path: Path, count: int, train: int, tail: int):
    np.save(tmp_path / "a.npy", frames(count, shape=(2, 2, 1)))
    (train_part,), (held_part,) = split_held_out(get_datasets(tmp_path))
    assert (len(train_part), len(held_part)) == (train, tail)
    assert isinstance(held_part, np.memmap)
    description = describe_datasets([train_part, held_part])
    assert [d["first_frame"] for d in description] == [0, count - tail]


def test_splits_that_leave_nothing():
    with pytest.raises(InputError, match="none would be left to train on"):
        split_held_out([frames(5)] * 3, 3)
    with pytest.raises(InputError, match=r"2 frame\(s\), too few"):
        split_held_out([frames(2)])
    with pytest.raises(InputError, match="positive number of files, got 0"):
        split_held_out([frames(5)] * 3, 0)
    with pytest.raises(InputError, match="no datasets"):
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


def names(datasets: Sequence[Any]) -> list[str]:
    return [Path(dataset.filename).name for dataset in datasets]


def test_a_recording_in_pieces_is_held_out_whole(tmp_path: Path):
    datasets = extracted(tmp_path, {"a": [5], "b": [5, 5, 5], "c": [5, 2]})
    train, held_out = split_held_out(datasets, 1)
    assert names(train) == ["a.npy", "b_000.npy", "b_001.npy", "b_002.npy"]
    assert names(held_out) == ["c_000.npy", "c_001.npy"]
    train, held_out = split_held_out(datasets, 3)
    assert names(train) == ["a.npy"]
    assert names(held_out) == ["b_000.npy", "b_001.npy", "b_002.npy", "c_000.npy", "c_001.npy"]


def test_pieces_of_one_recording_are_held_out_with_a_gap(tmp_path: Path):
    datasets = extracted(tmp_path, {"only": [400, 400, 50]})
    train, held_out = split_held_out(datasets)
    assert [len(part) for part in train] == [400, 396]
    assert names(held_out) == ["only_002.npy"]


def test_an_index_that_cannot_be_read_is_named(tmp_path: Path):
    datasets = extracted(tmp_path, {"a": [5], "b": [5]})
    (tmp_path / "frames.json").write_text("{")
    with pytest.raises(InputError, match=r"frames\.json cannot be read"):
        split_held_out(datasets)
