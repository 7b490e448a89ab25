"""LeRobot datasets that its own package wrote: cuts, rows and cameras, and what is wrong with them."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latent_obs.util.errors import InputError, MissingExtraError
from tests.support import RECORDINGS
from tests.support.recording_files import numbered, numbers, read, read_until_damage, write_video
from vae_training import ExtractConfig, extract, get_datasets, load_rows
from vae_training.extraction.readers.base import Damaged, DamagedRecordingError, Recording
from vae_training.extraction.readers.find import find_recordings

LENGTHS = (7, 11, 1, 9, 14)
CAMERAS = ("front", "top", "wrist")  # the frames of each are numbered from 35 on after those of the one before
FIRST, ALL = LENGTHS[0], sum(LENGTHS)


def recordings_of(folder: Path, camera: str = "front") -> list[Recording]:
    recordings, damaged = find_recordings([folder], camera=camera)
    assert damaged == []
    return recordings


def the_damage(folder: Path, camera: str = "front") -> Damaged:
    """The one thing that is damaged in a folder."""
    _, (damaged,) = find_recordings([folder], camera=camera)
    return damaged


def edit_info(folder: Path, **changed: Any) -> dict[str, Any]:
    """Change meta/info.json; None takes a key away."""
    file = folder / "meta" / "info.json"
    info = {**json.loads(file.read_text()), **changed}
    file.write_text(json.dumps({key: value for key, value in info.items() if value is not None}))
    return info


def edit_table(file: Path, **changed: Any) -> None:
    """Replace columns of a Parquet file, with __ for a slash or a dot; None takes one away."""
    table = pq.read_table(file)
    for name in table.column_names:
        if (key := name.replace("/", "__").replace(".", "__")) in changed:
            at, values = table.column_names.index(name), changed[key]
            table = table.remove_column(at)
            if values is not None:
                table = table.add_column(at, name, pa.array(values))
    pq.write_table(table, file)


def in_one_video(folder: Path, starts: Any, **options: Any) -> None:
    """Let all episodes be in one video, which begins with them in order, at `starts`."""
    place = {
        f"videos__observation__images__front__{name}": [0] * len(LENGTHS) for name in ("chunk_index", "file_index")
    }
    table = folder / "meta/episodes/chunk-000/file-000.parquet"
    edit_table(table, **place, videos__observation__images__front__from_timestamp=starts)
    video = folder / "videos/observation.images.front/chunk-000/file-000.mp4"
    write_video(video, options.pop("frames", numbered(ALL)), **{"rate": 10, **options})


STARTS = np.array([0, *np.cumsum(LENGTHS)[:-1]]) / 10


@pytest.fixture(params=["v21", "v30"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a dataset of each version."""
    return shutil.copytree(RECORDINGS / f"lerobot-{request.param}", tmp_path / "cube")


@pytest.fixture
def v30(tmp_path: Path) -> Path:
    return shutil.copytree(RECORDINGS / "lerobot-v30", tmp_path / "cube")


@pytest.mark.parametrize("camera", CAMERAS)
def test_frames_and_rows_of_each_episode_are_those_that_the_package_wrote(dataset: Path, camera: str):
    recordings, at = recordings_of(dataset, camera), 0
    assert [each.name for each in recordings] == [f"cube/episode_{i:06d}" for i in range(5)]
    for recording, length in zip(recordings, LENGTHS, strict=True):
        n = np.arange(at, at + length)
        assert recording.expected_frames == length
        assert numbers(read(recording)) == (n + 35 * CAMERAS.index(camera)).tolist()
        rows = recording.rows()
        expected = {
            "first": n == at,
            "acted": n >= at,
            "action": np.stack([n + 0.5, -n], 1).astype(np.float32),
            "state$x": n.astype(np.float32),
            "state$y": (n / 4).astype(np.float32),
            "reward": (n / 8).astype(np.float32),
            "terminated": n == at + length - 1,
            "task": np.where(n - at < 5, "pick the cube", "place it"),
        }
        assert rows.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(rows[name], values)
            assert rows[name].dtype.kind == values.dtype.kind
        at += length


@pytest.mark.parametrize("off", [0, 0.009, -0.009])
@pytest.mark.parametrize(
    "options", [{"bf": "8", "b-pyramid": "normal"}, {"bf": "3", "g": "5"}, {"bf": "16", "g": "12"}]
)
def test_every_cut_is_exact_in_a_video_whose_frames_are_stored_in_another_order(
    v30: Path, off: float, options: dict[str, str]
):
    in_one_video(v30, STARTS + off, **options)
    at = 0
    for recording, length in zip(recordings_of(v30), LENGTHS, strict=True):
        assert numbers(read(recording)) == list(range(at, at + length))
        at += length


def test_a_cut_between_two_frames_is_damage(v30: Path):
    in_one_video(v30, STARTS + 0.05)
    for recording in recordings_of(v30):
        assert read_until_damage(recording, "no frame at .* seconds") is None


def test_only_what_is_near_an_episode_is_decoded(v30: Path, monkeypatch: pytest.MonkeyPatch):
    import vae_training.extraction.readers.video as video

    decoded: list[float] = []
    frames = video._frames
    monkeypatch.setattr(video, "_frames", lambda *a: (decoded.append(frame.time) or frame for frame in frames(*a)))
    in_one_video(v30, STARTS, g="4", bf="0")
    assert numbers(read(recordings_of(v30)[3])) == list(range(19, 28))
    assert min(decoded) > 0.4
    assert max(decoded) < 2.9


@pytest.mark.parametrize("camera", ["front", "wrist"])
def test_extract_takes_each_episode_once(dataset: Path, tmp_path: Path, camera: str):
    config = ExtractConfig((dataset,), tmp_path / "out", size=None, camera=camera, workers=1)
    assert extract(config, progress_bar=False).new_frames == ALL
    assert extract(config, progress_bar=False).skipped == len(LENGTHS)
    for frames, length in zip(get_datasets(tmp_path / "out"), LENGTHS, strict=True):
        assert len(frames) == length
    assert load_rows(tmp_path / "out" / "cube__episode_000003.npy")["state$x"][0] == 19


def test_a_video_that_is_shorter_than_its_table_costs_its_last_episode(v30: Path, tmp_path: Path):
    in_one_video(v30, STARTS, frames=numbered(ALL - 2))
    result = extract(ExtractConfig((v30,), tmp_path / "out", camera="front", workers=1), progress_bar=False)
    assert [bad.name for bad in result.damaged] == ["cube/episode_000004"]
    assert result.frames == ALL - LENGTHS[-1]


def test_a_video_of_another_rate_is_damage(v30: Path):
    in_one_video(v30, STARTS, rate=5)
    frames = read_until_damage(recordings_of(v30)[0], "no frame at 0.100 seconds, the next is at 0.200")
    assert frames is not None
    assert numbers(frames) == [0]


def test_of_a_video_of_twice_the_rate_the_frames_at_the_timestamps_are_taken(v30: Path):
    in_one_video(v30, STARTS, rate=20, frames=np.repeat(numbered(ALL), 2, axis=0))
    assert [numbers(read(each))[0] for each in recordings_of(v30)] == (STARTS * 10).tolist()


@pytest.mark.parametrize("version", ["v1.6", "v4.0", 3])
def test_another_version_is_named(dataset: Path, version: Any):
    edit_info(dataset, codebase_version=version)
    assert str(version) in the_damage(dataset).reason


@pytest.mark.parametrize("key", ["codebase_version", "fps", "features", "data_path", "video_path"])
def test_a_missing_key_is_named(dataset: Path, key: str):
    edit_info(dataset, **{key: None})
    assert repr(key) in the_damage(dataset).reason


def test_a_damaged_info_is_named(dataset: Path):
    (dataset / "meta" / "info.json").write_text("{")
    assert "info.json" in the_damage(dataset).reason


def test_a_dataset_without_pictures_is_damage(dataset: Path):
    edit_info(dataset, features={"action": {"dtype": "float32", "shape": [2], "names": None}})
    _, (damaged,) = find_recordings([dataset])
    assert "pictures" in damaged.reason


@pytest.mark.parametrize("camera", [None, "left"])
def test_one_of_several_cameras_is_to_be_chosen(dataset: Path, camera: str | None):
    with pytest.raises(InputError, match=r"--camera: .*top"):
        find_recordings([dataset], camera=camera)


@pytest.mark.parametrize("column", ["length", "data/chunk_index", "videos/observation.images.front/from_timestamp"])
def test_a_column_that_the_episodes_lack_is_named(v30: Path, column: str):
    key = column.replace("/", "__").replace(".", "__")
    edit_table(v30 / "meta/episodes/chunk-000/file-000.parquet", **{key: None})
    assert column in the_damage(v30).reason


@pytest.mark.parametrize("column", ["timestamp", "episode_index"])
def test_a_column_that_the_data_lack_is_named(v30: Path, column: str):
    edit_table(v30 / "data/chunk-000/file-000.parquet", **{column: None})
    read_until_damage(recordings_of(v30)[0], f"no column {column}")


def test_rows_of_another_number_than_the_episode_is_long_are_damage(v30: Path):
    table = v30 / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(table).slice(1), table)
    read_until_damage(recordings_of(v30)[0], "6 rows .* expected 7")


def test_missing_files_cost_their_episodes_and_are_one_damage(dataset: Path):
    videos = sorted(dataset.rglob("*front*/**/*.mp4"))
    for video in videos[1:]:
        video.unlink()
    recordings, (damaged,) = find_recordings([dataset], camera="front")
    assert str(videos[1]) in damaged.reason
    assert f"{len(videos) - 1} file" in damaged.reason
    assert [numbers(read(each))[0] for each in recordings] == (STARTS[: len(recordings)] * 10).tolist()
    assert 0 < len(recordings) < len(LENGTHS)


def test_a_picture_that_is_not_in_the_table_is_damage(v30: Path):
    table = v30 / "data/chunk-000/file-000.parquet"
    count = len(pq.read_table(table))
    pictures = [{"bytes": None, "path": f"{i}.png"} for i in range(count)]
    edit_table(table, observation__images__wrist=pictures)
    assert read_until_damage(recordings_of(v30, "wrist")[0], "0.png") is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"motors": ["a", "b"]}, ["a", "b"]),
        ({"motors": ["a"], "gripper": ["b"]}, ["a", "b"]),
        ({"a": 0, "b": 1}, ["a", "b"]),
        (None, ["0", "1"]),
        (["a"], ["0", "1"]),
        (["a", "a"], ["0", "1"]),
    ],
)
def test_names_of_the_state(v30: Path, names: Any, expected: list[str]):
    features = edit_info(v30)["features"]
    features["observation.state"]["names"] = names
    edit_info(v30, features=features)
    rows = recordings_of(v30)[1].rows()
    assert [name.removeprefix("state$") for name in rows if name.startswith("state$")] == expected
    assert rows[f"state${expected[1]}"][0] == FIRST / 4


def test_the_extra_is_named(v30: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow.dataset", None)
    with pytest.raises(MissingExtraError, match=r"latent-obs\[formats\]"):
        find_recordings([v30], camera="front")


@pytest.mark.parametrize(("row", "found"), [(None, "lacks 1 value"), ([5.0, 6.0, 7.0], "lists of 2 and of 3 values")])
def test_rows_are_never_shifted_by_a_list_of_another_length(v30: Path, row: list[float] | None, found: str):
    table = v30 / "data/chunk-000/file-000.parquet"
    actions: list[Any] = [[1.0, 2.0]] * len(pq.read_table(table))
    actions[3] = row
    edit_table(table, action=actions)
    with pytest.raises(DamagedRecordingError, match=rf"file-000\.parquet .* action .*{found}"):
        recordings_of(v30)[0].rows()


@pytest.mark.parametrize("key", ["data_path", "video_path"])
def test_a_path_that_leads_out_of_the_dataset_is_refused(v30: Path, key: str):
    path = json.loads((v30 / "meta/info.json").read_text())[key]
    (v30.parent / "cache").mkdir()
    for file in [*v30.rglob("*.mp4"), *v30.rglob("data/**/*.parquet")]:  # as links of a cache they are good
        file.symlink_to(shutil.move(file, v30.parent / "cache" / "-".join(file.relative_to(v30).parts)))
    assert len(recordings_of(v30)) == len(LENGTHS)
    for outside in (f"../cube/{path}", f"{v30.as_posix()}x/{path}"):
        edit_info(v30, **{key: outside})
        assert "inside the dataset" in the_damage(v30).reason
