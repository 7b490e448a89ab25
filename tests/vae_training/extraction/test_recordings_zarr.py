"""Replay buffers of diffusion-policy in both formats of zarr, in folders and in zip files."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_obs.util.errors import InputError
from tests.support.episode_files import noise, write_zarr
from tests.support.recording_files import Evil, read, read_until_damage
from vae_training.extraction.readers import base
from vae_training.extraction.readers.base import Recording
from vae_training.extraction.readers.find import find_recordings

ENDS = (5, 6, 17)
DATA: dict[str, Any] = {
    "img": noise(17, 20, 24, 3).astype(np.float32),  # as in the Push-T of diffusion-policy
    "action": np.arange(34, dtype=np.float32).reshape(17, 2),
    "state": np.arange(17 * 5, dtype=np.float32).reshape(17, 5),
    "keypoint": np.zeros((17, 9, 2), np.float32),
}


def find(path: Path, camera: str | None = None) -> list[Recording]:
    recordings, damaged = find_recordings([path], camera=camera)
    assert damaged == []
    return recordings


def reason(path: Path) -> str:
    recordings, (damaged,) = find_recordings([path])
    assert recordings == []
    assert str(path) in damaged.reason
    return damaged.reason


@pytest.mark.parametrize("name", ["push.zarr", "push.zarr.zip"])
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_episodes(zarr_format: int, name: str, dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "CHUNK_BYTES", 1)
    pictures = DATA["img"].astype(dtype)
    write_zarr(tmp_path / name, {**DATA, "img": pictures}, ENDS, zarr_format)
    recordings = find(tmp_path)
    assert [each.name for each in recordings] == [f"push.zarr/episode_00000{i}" for i in range(3)]
    assert len({each.fingerprint() for each in recordings}) == 3
    for recording, first, end in zip(recordings, (0, *ENDS), ENDS, strict=False):
        np.testing.assert_array_equal(read(recording), pictures[first:end])
        assert recording.expected_frames == end - first
        rows = recording.rows()
        assert rows.keys() == {"first", "acted", "action", "observation$state"}
        np.testing.assert_array_equal(rows["action"], DATA["action"][first:end])
        np.testing.assert_array_equal(rows["observation$state"], DATA["state"][first:end])
        assert rows["first"].tolist() == [True] + [False] * (end - first - 1)
        assert rows["acted"].all()


def test_a_stored_chunk_is_decompressed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "CHUNK_BYTES", 1)
    last = find(write_zarr(tmp_path / "a.zarr", DATA, ENDS))[2]  # frames 6 to 17, in chunks of 4
    assert [len(chunk) for chunk in last.chunks()] == [2, 4, 4, 1]


def test_a_buffer_that_grows_is_another_one(tmp_path: Path):
    before = find(write_zarr(tmp_path / "a.zarr", DATA, ENDS))[0].fingerprint()
    (tmp_path / "a.zarr" / "data" / "img" / "99.0.0.0").write_bytes(b"")
    assert find(tmp_path / "a.zarr")[0].fingerprint() != before


def test_bad_buffers(tmp_path: Path):
    assert "episode_ends" in reason(write_zarr(tmp_path / "a.zarr", DATA, (5, 5, 17)))
    assert "(17, 20, 24, 3)" in reason(write_zarr(tmp_path / "b.zarr", DATA, (5, 16)))
    assert "episode_ends" in reason(write_zarr(tmp_path / "c.zarr", DATA, np.zeros(0, int)))
    low_dim = {name: values for name, values in DATA.items() if name != "img"}
    assert "state float32 (17, 5)" in reason(write_zarr(tmp_path / "d.zarr", low_dim, ENDS))
    assert "white" in reason(write_zarr(tmp_path / "e.zarr", DATA | {"img": DATA["img"] / 255}, ENDS))
    (tmp_path / "f.zarr").mkdir()
    reason(tmp_path / "f.zarr")
    (tmp_path / "g.zarr.zip").write_bytes(b"PK")
    reason(tmp_path / "g.zarr.zip")
    with pytest.raises(InputError, match="--camera: left, right"):
        find(write_zarr(tmp_path / "h.zarr", {"left": noise(17, 20, 24, 3), "right": noise(17, 20, 24, 3)}, ENDS))
    (recording, *_) = find(write_zarr(tmp_path / "i.zarr", {"img": noise(17, 20, 24, 3)}, ENDS))
    (tmp_path / "i.zarr" / "data" / "img" / "0.0.0.0").write_bytes(b"cut")
    assert read_until_damage(recording, "i.zarr") is None


def test_floats_that_are_no_pictures_after_all(tmp_path: Path):
    pictures = DATA["img"].copy()
    pictures[9] = 0.5
    recordings = find(write_zarr(tmp_path / "a.zarr", {"img": pictures}, ENDS))
    assert len(read(recordings[0])) == 5
    read_until_damage(recordings[2], "a.zarr.*float32")


@pytest.mark.parametrize("where", ["compressor", "filters"])
def test_nothing_is_unpickled(where: str, tmp_path: Path):
    folder = write_zarr(tmp_path / "a.zarr", {"img": noise(4, 20, 24, 3), "action": np.zeros(4)}, (4,))
    codec = {"id": "pickle", "protocol": 5}
    for dtype in ("|O", "<f8"):
        place = folder / "data" / "action"
        metadata = json.loads((place / ".zarray").read_text())
        metadata |= {"dtype": dtype, "compressor": None, "filters": None, "fill_value": 0}
        metadata[where] = codec if where == "compressor" else [codec]
        (place / ".zarray").write_text(json.dumps(metadata))
        (place / "0").write_bytes(pickle.dumps(Evil(tmp_path / "mark")))
        for recording in find_recordings([folder])[0]:
            recording.rows()
        assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("place", ["data/img", "data/action", "meta/episode_ends"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_chunk_that_is_written_again_in_place_is_noticed(place: str, zarr_format: int, tmp_path: Path):
    folder = write_zarr(tmp_path / "a.zarr", DATA, ENDS, zarr_format)
    before = find(folder)[0].fingerprint()
    assert find(folder)[0].fingerprint() == before
    chunk = next(file for file in (folder / place).rglob("*") if file.is_file() and file.name[0] not in ".z")
    os.utime(chunk, ns=(1, 1))
    assert find(folder)[0].fingerprint() != before
