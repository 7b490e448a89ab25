"""HDF5 files of robomimic, LIBERO and ManiSkill: their frames and rows, and what other files have instead."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from latent_obs.util.errors import InputError
from tests.support.episode_files import noise, write_robomimic
from tests.support.recording_files import read, read_until_damage
from vae_training.data.rows import transitions_of
from vae_training.extraction.config import ExtractConfig
from vae_training.extraction.extractor import extract
from vae_training.extraction.readers import base
from vae_training.extraction.readers.base import DamagedRecordingError, Recording
from vae_training.extraction.readers.find import find_recordings

CAMERAS = ("agentview_image", "robot0_eye_in_hand_image")


def demo(steps: int, **changes: Any) -> dict[str, Any]:
    """A demonstration of robomimic; None takes an array away."""
    rng = np.random.default_rng(steps)
    arrays = {
        **{f"obs/{camera}": noise(steps, 20, 24, 3, seed=steps + i) for i, camera in enumerate(CAMERAS)},
        **{f"next_obs/{camera}": noise(steps, 20, 24, 3, seed=9) for camera in CAMERAS},
        "obs/agentview_depth": rng.random((steps, 20, 24, 1), np.float32),
        "obs/robot0_eef_pos": rng.random((steps, 3)),
        "actions": rng.random((steps, 7)),
        "rewards": rng.random(steps),
        "dones": np.arange(steps) == steps - 1,
        "states": rng.random((steps, 32)),
        **changes,
    }
    return {name: values for name, values in arrays.items() if values is not None}


def find(path: Path, camera: str | None = None) -> list[Recording]:
    recordings, damaged = find_recordings([path], camera=camera)
    assert damaged == []
    return recordings


def reason(path: Path, camera: str | None = None) -> str:
    """Why nothing in a file can be used."""
    recordings, (damaged,) = find_recordings([path], camera=camera)
    assert recordings == []
    assert str(path) in damaged.reason
    return damaged.reason


@pytest.mark.parametrize("camera", CAMERAS)
def test_frames_and_rows_of_robomimic(camera: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "CHUNK_BYTES", 3 * 20 * 24 * 3)
    demos = {f"demo_{i}": demo(steps) for i, steps in ((10, 4), (0, 30), (2, 5))}
    recordings = find(write_robomimic(tmp_path / "lift.hdf5", demos).parent, camera)
    assert [each.name for each in recordings] == ["lift/demo_0", "lift/demo_2", "lift/demo_10"]
    for recording in recordings:
        arrays, rows = demos[recording.part], dict(recording.rows())
        np.testing.assert_array_equal(read(recording), arrays[f"obs/{camera}"])
        steps = len(arrays["actions"])
        assert recording.expected_frames == steps
        expected = {
            "action": arrays["actions"],
            "reward": arrays["rewards"].astype(np.float32),
            "done": arrays["dones"],
            "state$states": arrays["states"],
            "observation$robot0_eef_pos": arrays["obs/robot0_eef_pos"],
            "first": np.arange(steps) == 0,
            "acted": np.ones(steps, bool),
        }
        assert rows.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(rows[name], values)
            assert rows[name].dtype == values.dtype
        assert transitions_of(rows).tolist() == list(range(steps - 1))


def test_maniskill_has_a_picture_more_than_actions(tmp_path: Path):
    pictures, qpos = noise(6, 20, 24, 3), np.ones((6, 9), np.float32)
    arrays = {
        "obs/sensor_data/base_camera/rgb": pictures,
        "obs/sensor_data/base_camera/depth": np.zeros((6, 20, 24, 1), np.int16),
        "obs/agent/qpos": qpos,
        "actions": np.ones((5, 8), np.float32),
        "terminated": np.arange(5) == 4,
        "truncated": np.zeros(5, bool),
        "success": np.arange(5) == 4,
        "env_states/actors/cube": np.zeros((6, 13)),
    }
    (recording,) = find(write_robomimic(tmp_path / "trajectory.h5", {"traj_0": arrays}, base=""))
    np.testing.assert_array_equal(read(recording), pictures)
    rows = recording.rows()
    assert rows["acted"].tolist() == [True] * 5 + [False]
    assert rows["terminated"].tolist() == rows["success"].tolist() == [False] * 4 + [True, False]
    assert rows["action"][:, 0].tolist() == [1] * 5 + [0]
    assert set(rows) == {*("action", "acted", "first", "terminated", "truncated", "success"), "observation$agent$qpos"}


def test_through_the_whole_extraction_and_back(tmp_path: Path):
    file = write_robomimic(tmp_path / "lift.hdf5", {f"demo_{i}": demo(3 + i) for i in range(3)})
    config = ExtractConfig((file,), tmp_path / "out", size=None, workers=2, camera=CAMERAS[0])
    assert extract(config, say=lambda _: None).frames == 3 + 4 + 5
    assert (tmp_path / "out" / "lift__demo_1.npy").exists()
    again = extract(config, say=lambda _: None)
    assert (again.skipped, again.new_frames) == (3, 0)


def test_chunks_that_are_longer_than_a_piece_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "CHUNK_BYTES", 1)  # a frame at a time
    pictures = noise(10, 20, 24, 3)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("data/demo_0/obs/front", data=pictures, chunks=(4, 20, 24, 3), compression="gzip")
    (recording,) = find(tmp_path / "a.hdf5")
    assert [len(chunk) for chunk in recording.chunks()] == [4, 4, 2]
    np.testing.assert_array_equal(read(recording), pictures)


@pytest.mark.parametrize(
    ("form", "pictures"),
    [
        ("channel-first", noise(4, 3, 20, 24)),
        ("grey", noise(4, 20, 24)),
        ("whole floats", noise(4, 20, 24, 3).astype(np.float32)),
    ],
)
def test_other_forms_of_pictures(form: str, pictures: np.ndarray, tmp_path: Path):
    changes = {f"obs/{CAMERAS[0]}": pictures, f"obs/{CAMERAS[1]}": None}
    (recording,) = find(write_robomimic(tmp_path / "a.hdf5", {"demo_0": demo(4, **changes)}))
    rgb = {"channel-first": (0, 2, 3, 1), "whole floats": (0, 1, 2, 3)}.get(form)
    expected = pictures.transpose(rgb) if rgb else np.repeat(pictures[..., None], 3, axis=3)
    np.testing.assert_array_equal(read(recording), expected)


def test_a_camera_has_to_be_chosen(tmp_path: Path):
    file = write_robomimic(tmp_path / "a.hdf5", {"demo_0": demo(4)})
    for camera in (None, "front", "agentview_depth"):
        with pytest.raises(InputError, match=f"--camera: {', '.join(CAMERAS)}"):
            find(file, camera)


def test_files_that_have_no_pictures(tmp_path: Path):
    none = {f"obs/{camera}": None for camera in CAMERAS}
    file = write_robomimic(tmp_path / "low_dim.hdf5", {"demo_0": demo(4, **none)})
    assert all(word in reason(file) for word in ("demo_0/obs", "robot0_eef_pos float64 (4, 3)", "uint8"))
    floats = none | {"obs/image": noise(4, 20, 24, 3) / np.float32(255)}
    file = write_robomimic(tmp_path / "floats.hdf5", {"demo_0": demo(4, **floats)})
    assert all(word in reason(file) for word in ("image float32 (4, 20, 24, 3)", "white"))
    with h5py.File(tmp_path / "weights.h5", "w") as other:
        other["dense/kernel"] = np.zeros((3, 4))
        other["data"] = np.zeros(3)
    assert all(word in reason(tmp_path / "weights.h5") for word in ("dense/kernel float64 (3, 4)", "robomimic"))
    (tmp_path / "text.h5").write_text("no HDF5")
    reason(tmp_path / "text.h5")
    file = write_robomimic(tmp_path / "no_obs.hdf5", {"demo_0": {"actions": np.zeros((3, 2))}})
    assert "data/demo_0/actions" in reason(file)


def test_damaged_demonstrations(tmp_path: Path):
    camera = f"obs/{CAMERAS[0]}"
    demos = {
        "demo_0": demo(4),
        "demo_1": demo(4, **{camera: None}),
        "demo_2": demo(4, **{camera: noise(0, 20, 24, 3)}),
        "demo_3": demo(4, actions=np.zeros((2, 7))),
        "demo_4": {"actions": np.zeros((3, 7))},
    }
    with h5py.File(tmp_path / "a.hdf5", "w") as handle:
        for name, arrays in demos.items():
            for each, values in arrays.items():
                handle[f"data/{name}/{each}"] = values
    good, *bad = find(tmp_path / "a.hdf5", CAMERAS[0])
    assert len(read(good)) == 4
    for recording in (bad[0], bad[1], bad[3]):
        assert read_until_damage(recording, rf"a\.hdf5, {recording.part}.*{CAMERAS[0]}") is None
    with pytest.raises(InputError, match=r"a\.hdf5, demo_3, has 4 pictures and 2 rows of action"):
        bad[2].rows()


def test_a_file_that_is_cut_short(tmp_path: Path):
    file = write_robomimic(tmp_path / "a.hdf5", {"demo_0": demo(30)})
    (recording,) = find(file, CAMERAS[0])
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    assert read_until_damage(recording, r"a\.hdf5") is None
    reason(file)


def test_a_camera_by_any_part_of_its_name(tmp_path: Path):
    names = [f"sensor_data/{camera}/rgb" for camera in ("base_camera", "hand_camera")]
    arrays = {f"obs/{name}": noise(4, 20, 24, 3, seed=i) for i, name in enumerate(names)}
    file = write_robomimic(tmp_path / "trajectory.h5", {"traj_0": arrays}, base="")
    np.testing.assert_array_equal(read(find(file, "hand_camera")[0]), arrays[f"obs/{names[1]}"])
    with pytest.raises(InputError, match=f"several pictures called 'rgb'; .*: {', '.join(names)}"):
        find(file, "rgb")


def test_floats_from_0_to_1_are_not_taken_for_0_to_255(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "CHUNK_BYTES", 1)  # a frame at a time
    pictures = np.zeros((3, 20, 24, 3), np.float32)
    pictures[1] = 1
    file = write_robomimic(tmp_path / "a.hdf5", {"demo_0": {"obs/front": pictures}})
    assert read_until_damage(find(file)[0], "float32 of at most 1.*white") is None
    pictures[2] = 2  # so it was from 0 to 255
    file = write_robomimic(tmp_path / "b.hdf5", {"demo_0": {"obs/front": pictures}})
    np.testing.assert_array_equal(read(find(file)[0]), pictures)


def test_states_without_pictures_are_named(tmp_path: Path):
    states = {"obs": np.zeros((5, 10)), "actions": np.zeros((4, 2))}
    file = write_robomimic(tmp_path / "state.h5", {"traj_0": states}, base="")
    assert "traj_0/obs float64 (5, 10); expected" in reason(file)
    file = write_robomimic(tmp_path / "a.h5", {"traj_0": {"obs/rgb": noise(4, 20, 24, 3)}, "traj_1": states}, base="")
    read_until_damage(find(file)[1], r"traj_1, has no obs/rgb")


@pytest.mark.parametrize("form", ["external", "virtual", "link"])
@pytest.mark.parametrize("place", ["obs/front", "obs/x", "actions"])
def test_other_files_are_not_read(tmp_path: Path, form: str, place: str):
    (tmp_path / "secret.bin").write_bytes(bytes(10_000))
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = np.ones((2, 20, 24, 3), np.uint8)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        demo = file.create_group("data/demo_0")
        demo["obs/left"] = noise(2, 20, 24, 3)
        if form == "external":
            demo.create_dataset(place, (2,), "u1", external=[(str(tmp_path / "secret.bin"), 0, 2)])
        elif form == "virtual":
            layout = h5py.VirtualLayout((2, 20, 24, 3), "u1")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "secret", (2, 20, 24, 3))
            demo.create_virtual_dataset(place, layout)
        else:
            demo[place] = h5py.ExternalLink(str(tmp_path / "other.h5"), "secret")
    recordings, damaged = find_recordings([tmp_path / "a.hdf5"], camera="left")
    if damaged:
        assert "another file" in damaged[0].reason
        return
    if form == "link" and place != "actions":  # links are not followed in the search for arrays
        assert recordings[0].rows().keys() == {"first", "acted"}
        return
    with pytest.raises(DamagedRecordingError, match="another file"):
        recordings[0].rows()


@pytest.mark.parametrize("place", ["data", "data/demo_0", "data/demo_0/obs"])
def test_groups_of_other_files_are_not_read(tmp_path: Path, place: str):
    write_robomimic(tmp_path / "other.hdf5", {"demo_0": {"obs/left": noise(2, 20, 24, 3)}})
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file[place] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), place)
    assert "another file" in reason(tmp_path / "a.hdf5")
