"""Rows beside frame files: loaded whole or refused, and what they say of targets and transitions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from latent_obs.util.errors import InputError
from vae_training.data.frames import get_datasets
from vae_training.data.rows import (
    load_rows,
    rows_file_of,
    rows_of,
    save_rows,
    targets_of,
    transitions_of,
)
from vae_training.data.stats import frame_stats
from vae_training.extraction.readers.find import find_recordings

N = 5
Columns = dict[str, NDArray[Any]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    np.save(tmp_path / "walk.v2.npy", np.arange(N * 8 * 8 * 3, dtype=np.uint8).reshape(N, 8, 8, 3))
    return tmp_path / "walk.v2.npy"


NAMES = st.text(st.characters(codec="ascii", exclude_characters="\0/\\:", categories=("L", "N", "P", "S")), min_size=1)
COLUMNS = arrays.arrays(
    st.sampled_from([np.dtype(t) for t in ("f4", "i8", "?", "<U5")]),
    st.sampled_from([(N,), (N, 3), (N, 0), (N, 2, 2)]),
)


@settings(max_examples=60, deadline=None)
@given(columns=st.dictionaries(NAMES, COLUMNS, max_size=4))
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, columns: Columns):
    file = tmp_path_factory.mktemp("rows") / "a.npy"
    np.save(file, np.zeros((N, 8, 8, 3), np.uint8))
    save_rows(rows_file_of(file), columns)
    first = rows_file_of(file).read_bytes()
    loaded = load_rows(file)
    assert list(loaded) == list(columns)
    for name, column in columns.items():
        assert loaded[name].dtype == column.dtype
        np.testing.assert_array_equal(loaded[name], column)
    assert all(t.shape == (N,) and t.dtype == np.float32 for t in targets_of(loaded).values())
    save_rows(rows_file_of(file), columns)
    assert rows_file_of(file).read_bytes() == first
    assert sorted(p.name for p in file.parent.iterdir()) == ["a.npy", "a.rows.npz"]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code of the file was run",)


def test_objects_are_never_loaded(file: Path, capsys: pytest.CaptureFixture[str]):
    np.savez(rows_file_of(file), reward=np.zeros(N), bad=np.array([Evil()] * N, object), allow_pickle=True)
    with pytest.raises(InputError, match=r"rows\.npz"):
        load_rows(file)
    assert capsys.readouterr().out == ""


def test_damaged_rows_and_frames(file: Path):
    rows = rows_file_of(file)
    assert rows == file.parent / "walk.v2.rows.npz"
    assert load_rows(file) == {}
    for shape in ((N - 1,), (N + 1, 2), ()):
        np.savez(rows, reward=np.zeros(N), short=np.zeros(shape))
        with pytest.raises(InputError, match=r"rows\.npz .*walk\.v2\.npy: its 'short'"):
            load_rows(file)
    np.savez(rows, reward=np.arange(N * 1000).reshape(N, 1000))
    whole = rows.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for damaged in (b"", whole[:-30], bytes(flipped)):
        rows.write_bytes(damaged)
        with pytest.raises(InputError, match=r"rows\.npz"):
            load_rows(file)
    rows.write_bytes(whole)
    assert load_rows(file)["reward"].shape == (N, 1000)
    file.write_bytes(b"no frames")
    with pytest.raises(InputError, match=r"walk\.v2\.npy"):
        load_rows(file)
    file.unlink()
    with pytest.raises(InputError, match=r"walk\.v2\.npy"):  # rows of nothing
        load_rows(file)


def test_rows_of_arrays_and_slices(file: Path):
    np.savez(rows_file_of(file), reward=np.arange(N))
    (dataset,) = get_datasets(file.parent)
    assert rows_of(dataset)["reward"].tolist() == list(range(N))
    assert rows_of(dataset[1:][1:4])["reward"].tolist() == [2, 3, 4]
    for other in (dataset[::-1], dataset[::2], np.array(dataset)):  # not in the order of the file, or of no file
        assert rows_of(other) == {}


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30))
def test_transitions_are_those_that_the_definition_names(flags: list[tuple[bool, bool]]):
    rows = {"acted": np.array([a for a, _ in flags], bool), "first": np.array([f for _, f in flags], bool)}
    found = transitions_of(rows)
    assert found.tolist() == [i for i in range(len(flags) - 1) if flags[i][0] and not flags[i + 1][1]]
    assert found.dtype == np.int64
    assert transitions_of({"acted": rows["acted"]}).tolist() == []
    strided = transitions_of(rows | {"source_frame": 2 * np.arange(len(flags))})
    assert strided.tolist() == []
    dropped = transitions_of(rows | {"source_frame": np.arange(len(flags)) + (np.arange(len(flags)) > 1)})
    assert dropped.tolist() == [i for i in found if i != 1]


def test_targets():
    rows = {
        "action": np.array([1, 2]),
        "first": np.array([True, False]),
        "state$HEALTH": np.array([100, 50], np.float32),
        "state$ANGLE": np.array([90, 359], np.float32),
        "state$text": np.array(["a", "b"]),
        "object$Imp": np.array([[1, 0.5, 0.25, 0.1, 0.2], [0, 0, 0, 0, 0]], np.float32),
        "observation$compass$angle": np.array([-180, 30], np.float32),
        "observation$flags": np.array([[True, False], [False, True]]),
        "observation$empty": np.zeros((2, 0)),
    }
    nan = np.nan
    expected = {
        "state$HEALTH": [100, 50],
        "state$ANGLE.sin": [1, -0.017452],
        "state$ANGLE.cos": [0, 0.999848],
        "object$Imp.visible": [1, 0],
        "object$Imp.x": [0.5, nan],
        "object$Imp.y": [0.25, nan],
        "object$Imp.width": [0.1, nan],
        "object$Imp.height": [0.2, nan],
        "observation$compass$angle.sin": [0, 0.5],
        "observation$compass$angle.cos": [-1, 0.866025],
        "observation$flags.0": [1, 0],
        "observation$flags.1": [0, 1],
    }
    targets = targets_of(rows)
    assert list(targets) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(targets[name], np.array(values, np.float32), atol=1e-6, err_msg=name)
        assert targets[name].dtype == np.float32
    np.testing.assert_array_equal(rows["object$Imp"][1], 0)  # what was given is left as it was


def test_other_readers_of_a_folder_pass_rows_over(file: Path, tmp_path: Path):
    np.savez(rows_file_of(file), reward=np.zeros(N))
    assert [Path(str(d.filename)).name for d in get_datasets(tmp_path)] == ["walk.v2.npy"]
    assert not frame_stats(tmp_path).refused
    recordings, damaged = find_recordings([tmp_path])
    assert ([r.source for r in recordings if r.kind != "pictures"], damaged) == ([file], [])
