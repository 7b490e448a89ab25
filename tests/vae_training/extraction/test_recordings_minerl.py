"""Streams of the MineRL dataset, against MineRL's own reader, which decodes with OpenCV and unpickles."""

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.recording_files import (
    CLIP,
    CLIP_FRAMES,
    Evil,
    numbered,
    numbers,
    read,
    read_until_damage,
    write_minerl_stream,
    write_video,
)
from vae_training.extraction.readers.base import DamagedRecordingError
from vae_training.extraction.readers.find import find_recordings
from vae_training.extraction.readers.minerl import MineRLStream

#: Of 255. With the FFmpeg of today's PyAV and OpenCV all pixels are equal; another build may round colors otherwise.
TOLERANCE_MAX, TOLERANCE_MEAN = 3, 0.5


@pytest.fixture(scope="module")
def upstream() -> Callable[[Path], Any]:
    """MineRL's own reader of one folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("gym").logger.set_level(40)
        pipeline = pytest.importorskip("minerl.data.data_pipeline").DataPipeline

    def load(folder: Path) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pipeline._load_data_pyfunc(str(folder), -1, None, "MineRLTreechop-v0")

    return load


def flattened(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flattened(value, f"{name}${key}") if isinstance(value, Mapping) else {f"{name}${key}": value})
    return flat


def stream(folder: Path) -> MineRLStream:
    return MineRLStream(folder.name, folder)


# 90 frames in the video: it is read to its end, to before it, and to one more than there are, which upstream never
# looks at.
@pytest.mark.parametrize(("actions", "promised"), [(89, CLIP_FRAMES), (40, 80), (1, 2), (69, CLIP_FRAMES + 1)])
def test_frames_actions_and_rewards_are_those_of_minerls_own_reader(
    upstream: Callable[[Path], Any], actions: int, promised: int, tmp_path: Path
):
    folder = write_minerl_stream(tmp_path / "v3_some_stream-1", CLIP.read_bytes(), actions, promised)
    observed, acted, reward, following, _ = upstream(folder)
    frames = read(stream(folder))
    assert frames.shape == observed["pov"].shape == (actions, 64, 64, 3)
    difference = np.abs(frames.astype(int) - observed["pov"])
    assert difference.max() <= TOLERANCE_MAX
    assert difference.mean() <= TOLERANCE_MEAN
    np.testing.assert_array_equal(following["pov"][-1], observed["pov"][-1])  # the doubled last frame, not among ours
    rows = stream(folder).rows()
    theirs = {**flattened(acted, "action"), **flattened(observed, "observation"), "reward": reward}
    del theirs["observation$pov"]
    assert rows.keys() == theirs.keys()
    for name, array in rows.items():
        assert array.dtype == theirs[name].dtype, name
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    assert stream(folder).expected_frames == actions


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_video(tmp_path_factory.mktemp("video") / "a.mp4", numbered(100)).read_bytes()


@settings(max_examples=10, deadline=None)
@example(actions=60, leading=40)  # one frame more is promised than there are, and it is not looked at
@given(actions=st.integers(1, 60), leading=st.integers(0, 40))
def test_frame_i_belongs_to_action_i(
    tmp_path_factory: pytest.TempPathFactory, hundred: bytes, actions: int, leading: int
):
    more = {"action$number": np.arange(actions), "observation$number": np.arange(actions + 1)}
    folder = write_minerl_stream(tmp_path_factory.mktemp("law") / "s", hundred, actions, leading + actions + 1, more)
    assert numbers(read(stream(folder))) == list(range(leading, leading + actions))
    rows = stream(folder).rows()
    for name in more:
        assert rows[name].tolist() == list(range(actions))
    assert all(len(array) == actions for array in rows.values())


def test_nothing_is_unpickled_and_what_is_left_out_is_named(tmp_path: Path):
    mark = tmp_path / "mark"
    evil = np.array([Evil(mark)] * 30, dtype=object)
    more = {
        **{"action$evil": evil, "observation$evil": evil},
        **{"monitor$x": np.zeros(31), "observation$pov": np.zeros((31, 1)), "whatever": np.zeros(3)},
    }
    folder = write_minerl_stream(tmp_path / "s", CLIP.read_bytes(), 30, 40, more)
    recording = stream(folder)
    assert read(recording).shape == (30, 64, 64, 3)
    assert "action$attack" in recording.rows()
    assert not more.keys() & recording.rows().keys()
    assert all(name in recording.notes[0] for name in more)
    recordings, damaged = find_recordings([tmp_path])
    assert ([each.source for each in recordings], damaged) == ([folder], [])
    folder = write_minerl_stream(tmp_path / "as reward", CLIP.read_bytes(), 30, 40, {"reward": evil})
    with pytest.raises(DamagedRecordingError, match="reward"):
        stream(folder).rows()
    assert not mark.exists()
    np.load(folder / "rendered.npz", allow_pickle=True)["reward"]  # the array is what it is said to be
    assert mark.exists()


#: The file at fault, what is written to it (None removes it), and what else the error names.
DAMAGED: dict[str, tuple[str, bytes | None, str]] = {
    "no video": ("recording.mp4", None, ""),
    "no arrays": ("rendered.npz", None, ""),
    "no metadata": ("metadata.json", None, ""),
    "broken json": ("metadata.json", b'{"true_video', ""),
    "binary json": ("metadata.json", b"\xff\xfe\x00", ""),
    "json list": ("metadata.json", b"[1]", ""),
    "no count": ("metadata.json", b"{}", "true_video_frame_count"),
    "too few promised": ("metadata.json", b'{"true_video_frame_count": 30}', "true_video_frame_count"),
    "video too short": ("metadata.json", b'{"true_video_frame_count": 100}', ""),
    "video cut": ("recording.mp4", CLIP.read_bytes()[:20000], ""),
    "text as arrays": ("rendered.npz", b"text", ""),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_streams(name: str, tmp_path: Path):
    at_fault, content, words = DAMAGED[name]
    folder = write_minerl_stream(tmp_path / "v3_stream", CLIP.read_bytes(), 30, 40)
    whole = read(stream(folder))
    if content is None:
        (folder / at_fault).unlink()
        recordings, (damaged,) = find_recordings([tmp_path])
        assert (recordings, damaged.name) == ([], "v3_stream")
        assert at_fault in damaged.reason
    else:
        (folder / at_fault).write_bytes(content)
    named = "recording.mp4" if name == "video too short" else at_fault
    good = read_until_damage(stream(folder), f"v3_stream.*{named}.*{words}")
    if name == "video cut":
        assert good is not None
        np.testing.assert_array_equal(good, whole[: len(good)])
    elif name != "video too short":
        assert good is None


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("reward", None),
        ("reward", np.zeros((30, 2))),
        ("reward", np.array(["a"] * 30)),
        ("reward", np.zeros(0)),
        ("action$attack", np.zeros(29)),
        ("observation$x", np.float32(1)),
    ],
)
def test_arrays_that_do_not_agree(name: str, array: Any, tmp_path: Path):
    folder = write_minerl_stream(tmp_path / "v3_stream", CLIP.read_bytes(), 30, 40, {name: array})
    for use in (lambda: list(stream(folder).chunks()), stream(folder).rows):
        with pytest.raises(DamagedRecordingError, match=f"v3_stream.*{re.escape(name)}"):
            use()
    assert stream(folder).expected_frames is None


def test_the_stream_that_minerl_refuses_is_named(tmp_path: Path):
    name = "v3_tempting_capers_shapeshifter-14_1-2"
    write_minerl_stream(tmp_path / "MineRLTreechop-v0" / name, CLIP.read_bytes(), 30, 40)
    recordings, (damaged,) = find_recordings([tmp_path])
    assert (recordings, damaged.name) == ([], f"MineRLTreechop-v0/{name}")
