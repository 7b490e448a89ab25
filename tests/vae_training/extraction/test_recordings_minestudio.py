"""Datasets of MineStudio, written as its own writer does (`minestudio/data/minecraft/tools/convertion.py`, 1.1.6)."""

import os
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import lmdb
import numpy as np
import pytest

from latent_obs.util.errors import InputError, MissingExtraError
from tests.support.recording_files import numbered, numbers, write_video
from vae_training import ExtractConfig, extract, get_datasets, load_rows
from vae_training.extraction.readers.base import DamagedRecordingError
from vae_training.extraction.readers.find import find_recordings
from vae_training.extraction.readers.minestudio import MineStudioEpisode

SIZE = 4  # frames of a chunk; MineStudio's are 32


def write_database(folder: Path, chunks: Mapping[str, list[bytes]], **changes: Any) -> Path:
    """A database of some episodes, numbered in their order; `changes` are other values of the metadata."""
    folder.mkdir(parents=True)
    infos = [
        {"episode": name, "episode_idx": i, "num_frames": SIZE * len(values)}
        for i, (name, values) in enumerate(chunks.items())
    ]
    about = {"__chunk_size__": SIZE, "__chunk_infos__": infos, "__num_episodes__": len(chunks)} | changes
    with lmdb.open(str(folder), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for i, values in enumerate(chunks.values()):
            for k, value in enumerate(values):
                transaction.put(str((i, k * SIZE)).encode(), value)
        for key, value in about.items():
            transaction.put(key.encode(), value if isinstance(value, bytes) else pickle.dumps(value))
    return folder


def videos(folder: Path, first: int, chunks: int, frames: int = SIZE) -> list[bytes]:
    """Chunks of frames that show their numbers from `first` on."""
    shown = numbered(100)[first:]
    files = [
        write_video(folder / f"{first}_{k}.mp4", shown[k * SIZE : k * SIZE + frames], bf="0") for k in range(chunks)
    ]
    return [file.read_bytes() for file in files]


def actions(first: int, chunks: int, protocol: int = 4) -> list[bytes]:
    """Chunks of actions that are their numbers from `first` on."""
    number = np.arange(first, first + SIZE * chunks)
    columns = {"hotbar.1": number, "camera": np.stack([number + 0.5, -number], axis=1)}
    starts = range(0, len(number), SIZE)
    return [pickle.dumps({k: v[at : at + SIZE] for k, v in columns.items()}, protocol) for at in starts]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three episodes in two databases of pictures; b has no actions, and episodes have other numbers among actions."""
    folder, scratch = tmp_path / "data", tmp_path / "scratch"
    write_database(folder / "image" / "part-2", {"a": videos(scratch, 0, 3), "b": videos(scratch, 20, 1)})
    write_database(folder / "image" / "part-3", {"c": videos(scratch, 30, 2)})
    write_database(folder / "action" / "part-3", {"c": actions(30, 2), "unseen": actions(50, 1), "a": actions(0, 3)})
    write_database(folder / "meta_info" / "part-3", {"a": [pickle.dumps([{"yaw": 0.0}] * SIZE)] * 3})
    return folder


def found(dataset: Path, **options: Any) -> dict[str, MineStudioEpisode]:
    recordings, damaged = find_recordings([dataset.parent / "data"], **options)
    assert not damaged
    return {each.part: each for each in recordings if isinstance(each, MineStudioEpisode)}


def test_frames_and_actions_of_each_episode(dataset: Path):
    episodes = found(dataset)
    assert [each.name for each in episodes.values()] == ["data/a", "data/b", "data/c"]
    for name, first, count in (("a", 0, 12), ("b", 20, 4), ("c", 30, 8)):
        episode, expected = episodes[name], np.arange(first, first + count)
        assert numbers(np.concatenate(list(episode.chunks()))) == expected.tolist()
        assert episode.expected_frames == count
        rows = episode.rows()
        if name == "b":
            assert not rows
            assert ["4 frames" in note and "no actions" in note for note in episode.notes] == [True]
            continue
        assert not episode.notes
        np.testing.assert_array_equal(rows["action$hotbar.1"], expected)
        np.testing.assert_array_equal(rows["action$camera"], np.stack([expected + 0.5, -expected], axis=1))
        assert (rows["action$hotbar.1"].dtype, rows["action$camera"].dtype) == (np.int64, np.float32)


@pytest.mark.integration
def test_extracted_by_processes_and_again(dataset: Path, tmp_path: Path):
    config = ExtractConfig((dataset,), tmp_path / "frames", size=32, workers=2)
    result = extract(config, say=lambda _: None)
    assert (result.recordings, result.frames, result.damaged) == (3, 24, ())
    assert [numbers(frames) for frames in get_datasets(config.out)] == [
        list(range(first, first + count)) for first, count in ((0, 12), (20, 4), (30, 8))
    ]
    assert load_rows(config.out / "data__c.npy")["action$hotbar.1"].tolist() == list(range(30, 38))
    assert extract(config, say=lambda _: None).skipped == 3
    write_database(dataset / "action" / "part-4", {"b": actions(20, 1)})
    with pytest.raises(InputError, match="data/b"):  # it has changed: now there are actions
        extract(config, say=lambda _: None)


def test_episodes_with_more_actions_than_frames(dataset: Path):
    """MineStudio itself does not use them: it is not known which belong together."""
    write_database(dataset / "action" / "part-4", {"b": actions(20, 2)})
    episode = found(dataset)["b"]
    assert (dict(episode.rows()), len(list(episode.chunks()))) == ({}, 1)
    assert "4 frames and 8 actions" in episode.notes[0]


def test_pictures_in_image_and_video(dataset: Path, tmp_path: Path):
    write_database(dataset / "video" / "part-1", {"a": videos(tmp_path / "scratch", 60, 3)})
    with pytest.raises(InputError, match=r"--camera: image, video"):
        found(dataset)
    assert numbers(next(found(dataset, camera="video")["a"].chunks())) == [60, 61, 62, 63]
    assert len(found(dataset, camera="image")) == 3


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_pickles_of_numpy_1_and_2(dataset: Path, protocol: int):
    chunk = actions(20, 1, protocol)[0]
    if protocol == 3:  # which writes names as lines
        assert b"numpy._core" in chunk or np.__version__ < "2"
        chunk = chunk.replace(b"numpy._core", b"numpy.core")
    write_database(dataset / "action" / "part-4", {"b": [chunk]}, __chunk_size__=np.int64(SIZE))
    assert found(dataset)["b"].rows()["action$hotbar.1"].tolist() == [20, 21, 22, 23]


class Call:
    """Pickled, it calls a function where it is loaded."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("evil", "name"),
    [
        (Call(os.mkdir, "made"), "mkdir"),
        (Call(eval, "__import__('os').mkdir('made')"), "eval"),
        (Call(np.load, "made"), "numpy.load"),
        (np.array([Call(os.mkdir, "made")], object), "O8"),
        (np.zeros(SIZE, "i4,i4"), "V8"),
        (np.zeros(SIZE, "M8[s]"), "M8"),
        (PurePosixPath("made"), "PurePosixPath"),
    ],
)
def test_pickles_of_anything_else_are_refused(
    dataset: Path, tmp_path: Path, evil: Any, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_database(dataset / "action" / "part-4", {"b": [pickle.dumps({"attack": evil})]})
    with pytest.raises(DamagedRecordingError, match=rf"part-4, chunk \(0, 0\),.*{name}"):
        found(dataset)["b"].rows()
    infos = [{"episode": evil, "episode_idx": 0, "num_frames": SIZE}]
    write_database(dataset / "action" / "part-5", {}, __chunk_infos__=infos)
    damaged = find_recordings([dataset])[1]
    assert [("part-5" in bad.reason, name in bad.reason) for bad in damaged] == [(True, True)]
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"__chunk_infos__": [{"episode": "a", "episode_idx": 0}]}, "num_frames"),
        ({"__chunk_infos__": [{"episode": "a", "episode_idx": "0", "num_frames": 4}]}, "episode_idx"),
        ({"__chunk_infos__": [{"episode": "a", "episode_idx": 0, "num_frames": 5}]}, "5 frames"),
        ({"__chunk_infos__": {"a": 0}}, "__chunk_infos__"),
        ({"__chunk_size__": 0}, "__chunk_size__"),
        ({"__chunk_size__": b"no pickle"}, "part-9"),
        ({"__chunk_infos__": [{"episode": "a", "episode_idx": 0, "num_frames": 4}]}, "a is in"),
    ],
)
def test_databases_that_are_damaged(dataset: Path, changes: dict[str, Any], named: str):
    write_database(dataset / "image" / "part-9", {"d": [b""]}, **changes)
    recordings, damaged = find_recordings([dataset])
    assert not recordings
    assert [("part-9" in bad.reason, named in bad.reason) for bad in damaged] == [(True, True)]


def test_a_database_that_is_cut_short(dataset: Path):
    file = dataset / "image" / "part-2" / "data.mdb"
    whole = file.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 4096, 100, 0):  # reading it would end this process
        file.write_bytes(whole[:size])
        assert [("part-2" in bad.reason) for bad in find_recordings([dataset])[1]] == [True]


def test_chunks_that_are_damaged(dataset: Path, tmp_path: Path):
    short, long = (videos(tmp_path / "scratch", first, 1, frames) for first, frames in ((70, 3), (80, 5)))
    good, acted = videos(tmp_path / "scratch", 90, 1), actions(90, 1)
    episodes = {"short": short, "long": long, "text": [b"x" * 99], "less": good, "names": good * 2, "list": good}
    write_database(dataset / "image" / "part-9", episodes)
    gone = {"episode": "gone", "episode_idx": 7, "num_frames": SIZE}
    write_database(dataset / "image" / "part-10", {}, __chunk_infos__=[gone])
    others = [pickle.dumps({"attack": np.arange(n)}) for n in (3, SIZE)]
    write_database(
        dataset / "action" / "part-9", {"less": others[:1], "names": [acted[0], others[1]], "list": [pickle.dumps([1])]}
    )
    recordings = found(dataset)
    for name, named in (("short", "3 frames"), ("long", "5 frames"), ("text", "data found"), ("gone", r"no \(7, 0\)")):
        with pytest.raises(DamagedRecordingError, match=rf"part-.*{named}"):
            list(recordings[name].chunks())
    for name, named in (("less", "not 4"), ("names", "attack"), ("list", "dict")):
        with pytest.raises(DamagedRecordingError, match=rf"part-9, chunk .*{named}"):
            recordings[name].rows()


def test_without_lmdb(dataset: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(MissingExtraError, match=r"latent-obs\[formats\]"):
        find_recordings([dataset])
