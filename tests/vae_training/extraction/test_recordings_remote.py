"""Recordings in a store, which is one in memory here: the files are those of recordings on the disk."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from latent_obs.util.errors import InputError, MissingExtraError
from tests.support.recording_files import numbered, vpt_line, write_video, write_vpt
from tests.vae_training.extraction.test_shards import arrays
from vae_training import ExtractConfig, ExtractResult, extract
from vae_training.extraction.readers import remote

STORE = "memory://bucket/demos"


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A folder with recordings, and a store in memory with the same."""
    folder = tmp_path / "demos"
    write_video(folder / "inner" / "clip.mp4", numbered(12))
    np.save(folder / "clip_2.npy", numbered(7))
    np.save(folder / "clip_10.npy", numbered(8))
    np.savez(folder / "acted.npz", frames=numbered(9), reward=np.arange(9.0))
    (folder / "README.md").write_text("Clips")
    np.save(folder / ".hidden.npy", numbered(3))
    MemoryFileSystem.store.clear()
    put(folder)
    return folder


def put(folder: Path) -> None:
    store, root = fsspec.url_to_fs(STORE)
    for file in folder.rglob("*"):
        if file.is_file():
            store.put_file(str(file), f"{root}/{file.relative_to(folder).as_posix()}")


def run(source: str | Path, out: Path, said: list[str] | None = None, **changes: Any) -> ExtractResult:
    config = ExtractConfig((Path(source),), out, **{"size": 16, "workers": 1, **changes})
    return extract(config, say=(said if said is not None else []).append)


@pytest.mark.parametrize("size", [16, None])
def test_the_files_are_those_of_recordings_on_the_disk(local: Path, tmp_path: Path, size: int | None):
    shutil.rmtree(local / "inner") if size is None else None
    MemoryFileSystem.store.clear()
    put(local)
    run(local, tmp_path / "whole", size=size)
    said: list[str] = []
    result = run(STORE, tmp_path / "frames", said, size=size)
    assert (result.recordings, result.damaged) == (3 + (size is not None), ())
    assert arrays(tmp_path / "frames") == arrays(tmp_path / "whole")
    assert not list((tmp_path / "frames").glob(".*"))
    assert any("README.md" in line and "hidden" not in line for line in said)


def test_one_recording_is_fetched_at_a_time_and_finished_ones_never_again(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fetch, fetched, out = MemoryFileSystem.get_file, list[str](), tmp_path / "frames"

    def counted(self: Any, path: str, to: str, **options: Any) -> Any:
        fetched.append(Path(path).name)
        assert len(list(out.glob(".extracting-*/.fetched-*/*"))) == 0
        return fetch(self, path, to, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", counted)
    run(STORE, out)
    assert fetched == ["acted.npz", "clip_2.npy", "clip_10.npy", "clip.mp4"]
    assert run(STORE, out).skipped == len(fetched) == 4
    np.save(local / "new.npy", numbered(5))
    fsspec.url_to_fs(STORE)[0].put_file(str(local / "new.npy"), "/bucket/demos/new.npy")
    assert (run(STORE, out).new_frames, fetched[4:]) == (5, ["new.npy"])
    np.save(local / "clip_2.npy", numbered(20))
    fsspec.url_to_fs(STORE)[0].put_file(str(local / "clip_2.npy"), "/bucket/demos/clip_2.npy")
    with pytest.raises(InputError, match="clip_2"):
        run(STORE, out)


def test_a_single_file(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "frames").mkdir()
    monkeypatch.chdir(tmp_path / "frames")
    result = run(f"{STORE}/inner/clip.mp4", Path())
    assert ([file.name for file in result.folder.glob("*.npy")], result.frames) == (["clip.npy"], 12)


def test_a_vpt_video_that_is_named_alone_has_its_actions(tmp_path: Path):
    write_vpt(tmp_path / "demos" / "player.mp4", numbered(5), [vpt_line()] * 5)
    MemoryFileSystem.store.clear()
    put(tmp_path / "demos")
    run(f"{STORE}/player.mp4", tmp_path / "alone")
    run(STORE, tmp_path / "found")
    assert arrays(tmp_path / "alone") == arrays(tmp_path / "found")
    assert "action$attack" in np.load(tmp_path / "alone" / "player.rows.npz").files


@pytest.mark.parametrize("knows", [True, False])
def test_a_store_that_lists_names_only(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, knows: bool):
    """As http; of each file it may know the time, or not."""
    find, info = MemoryFileSystem.find, MemoryFileSystem.info
    monkeypatch.setattr(MemoryFileSystem, "find", lambda self, path, **_: {key: {} for key in find(self, path)})
    if not knows:
        monkeypatch.setattr(MemoryFileSystem, "info", lambda self, path: info(self, path) | {"created": None})
    said: list[str] = []
    run(STORE, tmp_path / "frames", said)
    assert ["4 files" in line for line in said if "checksum" in line] == ([] if knows else [True])
    np.save(local / "clip_2.npy", numbered(7) + 1)
    put(local)
    if knows:
        with pytest.raises(InputError, match="has changed"):
            run(STORE, tmp_path / "frames")
    else:
        assert run(STORE, tmp_path / "frames").skipped == 4


@pytest.mark.parametrize("url", ["hf://datasets/user/name@v1", "sftp://host/demos"])
def test_the_index_has_the_address_without_a_password(
    local: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
):
    given, open_store = url.replace("host", "me:secret@host"), remote._store
    monkeypatch.setattr(remote, "_store", lambda url: open_store(url.replace(given, STORE)))
    run(given, tmp_path / "frames")
    index = json.loads((tmp_path / "frames" / "frames.json").read_text())
    assert index["recordings"]["inner/clip"]["source"] == f"{url}/inner/clip.mp4"


def test_files_that_cannot_be_fetched_or_read(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fetch = MemoryFileSystem.get_file

    def failing(self: Any, path: str, to: str, **options: Any) -> Any:
        if "clip_2" in path:
            raise TimeoutError("no answer")
        return fetch(self, path, to, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", failing)
    MemoryFileSystem.store["/bucket/demos/inner/clip.mp4"].seek(0)
    MemoryFileSystem.store["/bucket/demos/inner/clip.mp4"].write(b"x" * 500)
    np.savez(local / "acted.npz", first=numbered(9), second=numbered(8))
    fsspec.url_to_fs(STORE)[0].put_file(str(local / "acted.npz"), "/bucket/demos/acted.npz")
    result = run(STORE, tmp_path / "frames")
    reasons = {bad.name: bad.reason for bad in result.damaged}
    assert result.recordings == 4 - len(reasons)
    assert "no answer" in reasons["clip_2"]
    assert "inner/clip" in reasons
    monkeypatch.undo()
    assert run(STORE, tmp_path / "frames").recordings == result.recordings + 1


@pytest.mark.parametrize(
    "file", ["meta/info.parquet", "all.hdf5", "shard-0.tar", "part/data.mdb", "1.png", "x.zarr/.zgroup"]
)
@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("s3://bucket/demos", "aws s3 sync s3://bucket/demos demos"),
        ("hf://datasets/user/name", "hf download user/name --repo-type dataset --local-dir name"),
        (
            "hf://datasets/user/name@v1/data",
            "hf download user/name --include 'data/*' --repo-type dataset --revision v1 --local-dir name",
        ),
        ("hf://user/name@refs/pr/1", "hf download user/name --revision refs/pr/1 --local-dir name"),
        ("hf://spaces/user/name", "hf download user/name --repo-type space --local-dir name"),
        ("hf://buckets/user/name", "Download it first"),
        ("gcs://bucket/demos", "gcloud storage cp --recursive gs://bucket/demos ."),
        ("https://host/demos", "wget --recursive --no-parent https://host/demos/"),
        ("sftp://host/demos", "Download it first"),
    ],
)
def test_other_kinds_are_refused_with_the_command_that_downloads_them(
    local: Path, tmp_path: Path, url: str, command: str, file: str, monkeypatch: pytest.MonkeyPatch
):
    store, root = fsspec.url_to_fs(STORE)
    store.pipe_file(f"{root}/{file}", b"")
    monkeypatch.setattr(remote, "_store", lambda _: (store, root))
    with pytest.raises(InputError) as raised:
        run(url, tmp_path / "frames")
    assert file in str(raised.value)
    assert str(raised.value).endswith(command)
    assert not (tmp_path / "frames").exists()


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("s3://bucket/some x.tar", "aws s3 cp 's3://bucket/some x.tar' ."),
        (
            "hf://datasets/user/name/data/x.tar",
            "hf download user/name data/x.tar --repo-type dataset --local-dir name",
        ),
        ("gs://bucket/x.tar", "gcloud storage cp gs://bucket/x.tar ."),
        ("https://host/x.tar", "wget https://host/x.tar"),
    ],
)
def test_the_command_for_a_single_file(tmp_path: Path, url: str, command: str, monkeypatch: pytest.MonkeyPatch):
    MemoryFileSystem.store.clear()
    store, _ = fsspec.url_to_fs(STORE)
    store.pipe_file("/bucket/x.tar", b"")
    monkeypatch.setattr(remote, "_store", lambda _: (store, "/bucket/x.tar"))
    with pytest.raises(InputError) as raised:
        run(url, tmp_path / "frames")
    assert str(raised.value).endswith(f"with: {command}")


def test_stores_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    MemoryFileSystem.store.clear()
    for url in (f"{STORE}/nothing", "memory://", "nosuch://bucket/x"):
        with pytest.raises(InputError, match=url.split(":")[0]):
            run(url, tmp_path / "frames")
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    monkeypatch.delitem(_registry, "http", raising=False)
    with pytest.raises(MissingExtraError, match="aiohttp"):
        run("http://localhost/x", tmp_path / "frames")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtraError, match=r"latent-obs\[formats\]"):
        run(STORE, tmp_path / "frames")
    assert remote.url_of(Path("/data/s3:/x")) is None
