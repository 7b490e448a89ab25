"""Minari's datasets: the same frames and rows as by Minari's own reader, without what can run code."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.dataset._storages.hdf5_storage import encode_frame

from latent_obs.util.errors import InputError
from tests.support.episode_files import noise, write_minari
from tests.support.recording_files import read, read_until_damage
from vae_training.data.rows import transitions_of
from vae_training.extraction.readers import base
from vae_training.extraction.readers.base import Recording
from vae_training.extraction.readers.find import find_recordings

FORMATS = ("hdf5", "arrow", "parquet")
PIXELS = spaces.Box(0, 255, (40, 48, 3), np.uint8)
OBSERVATIONS = spaces.Dict(
    {
        "front": PIXELS,
        "side": spaces.Box(0, 255, (36, 40), np.uint8),
        "body": spaces.Dict({"velocity": spaces.Box(-1, 1, (2,), np.float32), "contact": spaces.Discrete(2)}),
        "map": spaces.Box(0, 9, (7, 7, 3), np.uint8),
        "mission": spaces.Text(20),
    }
)
ACTIONS = spaces.Dict(
    {"move": spaces.Discrete(4), "look": spaces.Tuple((spaces.Box(-1, 1, (2, 2), np.float32), spaces.MultiBinary(3)))}
)


@pytest.fixture(autouse=True)
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


def rich_episode(steps: int) -> dict[str, Any]:
    """An episode with several pictures and nested numbers."""
    rng = np.random.default_rng(steps)
    return {
        "observations": {
            "front": noise(steps + 1, 40, 48, 3, seed=steps),
            "side": noise(steps + 1, 36, 40, seed=steps + 1),
            "body": {"velocity": rng.random((steps + 1, 2), np.float32), "contact": rng.integers(0, 2, steps + 1)},
            "map": rng.integers(0, 9, (steps + 1, 7, 7, 3), np.uint8),
            "mission": [f"go {i}" for i in range(steps + 1)],
        },
        "actions": {
            "move": rng.integers(1, 4, steps),
            "look": (rng.random((steps, 2, 2), np.float32), rng.integers(0, 2, (steps, 3), np.int8)),
        },
    }


def episode(steps: int) -> dict[str, Any]:
    """An episode of pictures, with an action that counts from 1."""
    return {"observations": noise(steps + 1, 40, 48, 3, seed=steps), "actions": np.arange(1, steps + 1)}


def find(path: Path, camera: str | None = None) -> list[Recording]:
    recordings, damaged = find_recordings([path], camera=camera)
    assert damaged == []
    return recordings


@pytest.mark.parametrize("jpeg", [True, False])
@pytest.mark.parametrize("data_format", FORMATS)
def test_frames_and_rows_are_those_of_minari(data_format: str, jpeg: bool, tmp_path: Path):
    episodes = [rich_episode(3), rich_episode(7)]
    folder = write_minari(OBSERVATIONS, ACTIONS, episodes, data_format, jpeg_encoding=jpeg)
    oracle = list(minari.load_dataset("test/pixels-v0").iterate_episodes())
    for camera in ("front", "side"):
        recordings = find(tmp_path, camera)
        assert [each.name for each in recordings] == [f"test/pixels-v0/data/episode_00000{i}" for i in range(2)]
        for recording, expected in zip(recordings, oracle, strict=True):
            pictures = expected.observations[camera]
            frames = pictures if camera == "front" else np.repeat(pictures[..., None], 3, axis=3)
            np.testing.assert_array_equal(read(recording), frames)
            assert recording.expected_frames == len(frames)
            assert all(file.is_relative_to(folder) for file in recording.files)
            check_rows(recording.rows(), expected)


def check_rows(rows: Any, expected: Any) -> None:
    steps = len(expected.rewards)
    last = np.arange(steps + 1) == steps
    columns = {
        "reward": expected.rewards,
        "terminated": expected.terminations,
        "truncated": expected.truncations,
        "action$move": expected.actions["move"],
        "action$look$0": expected.actions["look"][0].reshape(steps, 4),
        "action$look$1": expected.actions["look"][1],
    }
    for name, values in columns.items():
        np.testing.assert_array_equal(rows[name][:steps], values)
        assert not rows[name][steps].any()
    assert rows["action$move"].dtype.kind == "i"
    assert (rows["reward"].dtype, rows["terminated"].dtype, rows["truncated"].dtype) == (np.float32, bool, bool)
    for name in ("velocity", "contact"):
        np.testing.assert_array_equal(rows[f"observation$body${name}"], expected.observations["body"][name])
    np.testing.assert_array_equal(rows["acted"], ~last)
    np.testing.assert_array_equal(rows["first"], np.arange(steps + 1) == 0)
    assert transitions_of(rows).tolist() == list(range(steps))
    assert set(rows) == {*columns, "acted", "first", "observation$body$velocity", "observation$body$contact"}


def test_a_dataset_without_names_is_found_by_its_file_as_well():
    folder = write_minari(PIXELS, spaces.Discrete(9), [episode(n) for n in (2, 3)])
    for path, name in ((folder, "data"), (folder / "main_data.hdf5", "data"), (folder.parent, "data")):
        recordings = find(path)
        assert [each.name for each in recordings] == [f"{name}/episode_000000", f"{name}/episode_000001"]
        assert recordings[1].rows()["action"].tolist() == [1, 2, 3, 0]
    assert len({each.fingerprint() for each in find(folder)}) == 2


def test_jpegs_of_one_length_are_an_array_of_two_axes_in_hdf5():
    black = {"observations": np.zeros((4, 40, 48, 3), np.uint8), "actions": np.arange(3)}
    folder = write_minari(PIXELS, spaces.Discrete(9), [black])
    with h5py.File(folder / "main_data.hdf5") as file:
        pictures: Any = file["episode_0/observations"]
        assert pictures.ndim == 2
    np.testing.assert_array_equal(read(find(folder)[0]), black["observations"])


def test_a_camera_has_to_be_chosen():
    folder = write_minari(OBSERVATIONS, ACTIONS, [rich_episode(2)])
    for camera in (None, "top", "map"):
        with pytest.raises(InputError, match=r"--camera.*observations/front, observations/side"):
            find(folder, camera)
    assert read(find(folder, "observations/side")[0]).shape == (3, 36, 40, 3)


def test_memory_grows_with_neither_episodes_nor_their_length(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "CHUNK_BYTES", 1 << 16)
    folder = write_minari(PIXELS, spaces.Discrete(999), [episode(300), episode(300)], jpeg_encoding=False)
    recordings = find(folder)
    tracemalloc.start()
    for recording in recordings:
        assert sum(len(chunk) for chunk in recording.chunks()) == 301
    assert tracemalloc.get_traced_memory()[1] < 1_200_000  # of 1.7 MB each
    tracemalloc.stop()


def test_what_has_no_pictures():
    small, floats = spaces.Box(0, 255, (7, 7, 3), np.uint8), spaces.Box(0, 1, (40, 48, 3), np.float32)
    observations = {"map": noise(3, 7, 7, 3), "light": np.zeros((3, 40, 48, 3), np.float32)}
    space = spaces.Dict({"map": small, "light": floats})
    folder = write_minari(space, spaces.Discrete(3), [{"observations": observations, "actions": np.arange(2)}])
    recordings, (damaged,) = find_recordings([folder])
    assert recordings == []
    assert all(word in damaged.reason for word in (str(folder), "map", "light", "float32"))


@pytest.mark.parametrize("data_format", FORMATS)
def test_damaged_datasets(data_format: str):
    folder = write_minari(PIXELS, spaces.Discrete(9), [episode(n) for n in (2, 3)], data_format)
    recording = find(folder)[1]
    file = recording.files[0]
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    assert read_until_damage(recording, str(folder)) is None
    assert recording.expected_frames is None
    if data_format == "hdf5":
        assert str(folder) in find_recordings([folder])[1][0].reason
    file.unlink()
    assert read_until_damage(recording, str(folder)) is None


@pytest.mark.parametrize("what", ["damaged", "of another size"])
def test_a_picture_that_cannot_be_used(what: str):
    folder = write_minari(PIXELS, spaces.Discrete(9), [episode(4)])
    other = encode_frame(noise(41, 48, 3))
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        pictures: Any = file["episode_0/observations"]
        pictures[2] = pictures[2][:99] if what == "damaged" else other
    good = read_until_damage(find(folder)[0], r"episode_000000.*picture 2.*2 good frames")
    assert good is not None
    assert len(good) == 2


def test_wrong_lengths():
    folder = write_minari(PIXELS, spaces.Discrete(9), [episode(4)])
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        rewards: Any = file["episode_0/rewards"]
        rewards.resize((2,))
    with pytest.raises(InputError, match=r"episode_000000.*5 pictures and 2 rows of reward"):
        find(folder)[0].rows()


def test_an_environment_that_a_dataset_names_is_not_made(tmp_path: Path):
    folder, mark = write_minari(PIXELS, spaces.Discrete(9), [episode(2)]), tmp_path / "mark"
    metadata = json.loads((folder / "metadata.json").read_text())
    del metadata["observation_space"]
    metadata["env_spec"] = json.dumps({"id": "Evil-v0", "entry_point": "os:mkdir", "kwargs": {"path": str(mark)}})
    (folder / "metadata.json").write_text(json.dumps(metadata))
    recordings, (damaged,) = find_recordings([folder])
    assert recordings == []
    assert "observation_space" in damaged.reason
    assert "KeyError" not in damaged.reason
    assert not mark.exists()
    (folder / "metadata.json").write_text("{")
    assert str(folder) in find_recordings([folder])[1][0].reason
    (folder / "metadata.json").unlink()
    assert "robomimic" in find_recordings([folder])[1][0].reason  # an HDF5 file like any other
