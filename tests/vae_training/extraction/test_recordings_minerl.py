"""Streams of the MineRL dataset, against MineRL's own reader, which decodes with OpenCV and unpickles."""

import importlib
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
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
def upstream() -> Callable[[Path], tuple[dict[str, Any], dict[str, Any], Any, dict[str, Any], Any]]:
    """MineRL's own reader of one folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module("gym").logger.set_level(40)
            pipeline = importlib.import_module("minerl.data.data_pipeline").DataPipeline
        except ImportError:
            pytest.skip("minerl is not installed")

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


@settings(max_examples=10, deadline=None)
@given(actions=st.integers(1, 60), leading=st.integers(0, 40), tail=st.integers(-1, 20))
def test_frame_i_belongs_to_action_i(
    tmp_path_factory: pytest.TempPathFactory, sixty: bytes, actions: int, leading: int, tail: int
):
    promised = min(leading + actions + 1, 100 - tail)
    actions = promised - leading - 1
    if actions < 1:
        return
    more = {"action$number": np.arange(actions), "observation$number": np.arange(actions + 1)}
    folder = write_minerl_stream(tmp_path_factory.mktemp("law") / "s", sixty, actions, promised, more)
    assert numbers(read(stream(folder))) == list(range(leading, leading + actions))
    rows = stream(folder).rows()
    for name in ("action$number", "observation$number"):
        assert rows[name].tolist() == list(range(actions))
    assert all(len(array) == actions for array in rows.values())


@pytest.fixture(scope="module")
def sixty(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_video(tmp_path_factory.mktemp("video") / "a.mp4", numbered(100)).read_bytes()


def test_nothing_is_unpickled_and_what_is_left_out_is_named(tmp_path: Path):
    mark = tmp_path / "mark"
    evil = np.array([Evil(mark)] * 30, dtype=object)
    folder = write_minerl_stream(
        tmp_path / "s", CLIP.read_bytes(), 30, 40, {"action$evil": evil, "observation$evil": evil}
    )
    recording = stream(folder)
    assert read(recording).shape == (30, 64, 64, 3)
    assert "action$attack" in recording.rows()
    assert not {"action$evil", "observation$evil"} & recording.rows().keys()
    assert "action$evil, observation$evil" in recording.notes[0]
    recordings, damaged = find_recordings([tmp_path])
    assert [each.source for each in recordings] == [folder]
    assert damaged == []
    assert not mark.exists()
    np.load(folder / "rendered.npz", allow_pickle=True)["action$evil"]  # the array is what it is said to be
    assert mark.exists()


def test_an_object_array_as_reward(tmp_path: Path):
    mark = tmp_path / "mark"
    more = {"reward": np.array([Evil(mark)] * 30, dtype=object)}
    folder = write_minerl_stream(tmp_path / "s", CLIP.read_bytes(), 30, 40, more)
    with pytest.raises(DamagedRecordingError, match="reward"):
        stream(folder).rows()
    assert not mark.exists()


def metadata(content: str | bytes) -> Callable[[Path], Any]:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / "metadata.json").write_bytes(data)


#: The file at fault, and what is done to it.
DAMAGED: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "no video": ("recording.mp4", lambda f: (f / "recording.mp4").unlink()),
    "no arrays": ("rendered.npz", lambda f: (f / "rendered.npz").unlink()),
    "no metadata": ("metadata.json", lambda f: (f / "metadata.json").unlink()),
    "broken json": ("metadata.json", metadata('{"true_video')),
    "binary json": ("metadata.json", metadata(b"\xff\xfe\x00")),
    "json list": ("metadata.json", metadata("[1]")),
    "no count": ("true_video_frame_count", metadata("{}")),
    "count of text": ("true_video_frame_count", metadata('{"true_video_frame_count": "90"}')),
    "too few promised": ("metadata.json", metadata('{"true_video_frame_count": 30}')),
    "video too short": ("recording.mp4", metadata('{"true_video_frame_count": 100}')),
    "video cut": ("recording.mp4", lambda f: (f / "recording.mp4").write_bytes(CLIP.read_bytes()[:20000])),
    "text as video": ("recording.mp4", lambda f: (f / "recording.mp4").write_text("text")),
    "text as arrays": ("rendered.npz", lambda f: (f / "rendered.npz").write_text("text")),
    "arrays cut": (
        "rendered.npz",
        lambda f: (f / "rendered.npz").write_bytes((f / "rendered.npz").read_bytes()[:-200]),
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_streams(name: str, tmp_path: Path):
    at_fault, damage = DAMAGED[name]
    folder = write_minerl_stream(tmp_path / "v3_stream", CLIP.read_bytes(), 30, 40)
    whole = read(stream(folder))
    damage(folder)
    good = read_until_damage(stream(folder), f"v3_stream.*{at_fault}")
    if name == "video cut":
        assert good is not None
        np.testing.assert_array_equal(good, whole[: len(good)])
    elif name != "video too short":
        assert good is None
    if name in ("no video", "no arrays", "no metadata"):
        recordings, (damaged,) = find_recordings([tmp_path])
        assert (recordings, damaged.name) == ([], "v3_stream")
        assert at_fault in damaged.reason


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("reward", None),
        ("reward", np.zeros((30, 2))),
        ("reward", np.array(["a"] * 30)),
        ("reward", np.zeros(0)),
        ("action$attack", np.zeros(29)),
        ("observation$x", np.zeros(32)),
        ("action$attack", np.float32(1)),
    ],
)
def test_arrays_that_do_not_agree(name: str, array: Any, tmp_path: Path):
    folder = write_minerl_stream(tmp_path / "v3_stream", CLIP.read_bytes(), 30, 40, {name: array})
    for use in (lambda: list(stream(folder).chunks()), stream(folder).rows):
        with pytest.raises(DamagedRecordingError, match=f"v3_stream.*{re.escape(name)}"):
            use()
    assert stream(folder).expected_frames is None


def test_a_damaged_array_is_found_when_it_is_read(tmp_path: Path):
    folder = write_minerl_stream(tmp_path / "s", CLIP.read_bytes(), 30, 40)
    file = folder / "rendered.npz"
    with zipfile.ZipFile(file) as archive:
        at = archive.getinfo("action$camera.npy").header_offset + 300
    data = bytearray(file.read_bytes())
    data[at] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(DamagedRecordingError, match=r"rendered\.npz.*CRC"):
        stream(folder).rows()


def test_other_keys_and_a_pov_array_are_not_rows(tmp_path: Path):
    more = {"monitor$x": np.zeros(31), "observation$pov": np.zeros((31, 1)), "whatever": np.zeros(3)}
    each = stream(write_minerl_stream(tmp_path / "s", CLIP.read_bytes(), 30, 40, more))
    assert not more.keys() & each.rows().keys()
    assert each.notes == []


def test_the_stream_that_minerl_refuses_is_named(tmp_path: Path):
    name = "v3_tempting_capers_shapeshifter-14_1-2"
    write_minerl_stream(tmp_path / "MineRLTreechop-v0" / name, CLIP.read_bytes(), 30, 40)
    recordings, (damaged,) = find_recordings([tmp_path])
    assert (recordings, damaged.name) == ([], f"MineRLTreechop-v0/{name}")


def test_a_fingerprint_is_of_the_three_files(tmp_path: Path):
    folder = write_minerl_stream(tmp_path / "s", CLIP.read_bytes(), 30, 40)
    before = stream(folder).fingerprint()
    (folder / "notes.txt").write_text("anything")
    assert stream(folder).fingerprint() == before
    (folder / "metadata.json").write_text('{"true_video_frame_count": 41}')
    assert stream(folder).fingerprint() != before
