"""VPT's contractor demonstrations: what the player did in MineRL's names, and the frames that the options ask for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.recording_files import (
    numbered,
    numbers,
    read,
    read_until_damage,
    vpt_line,
    write_empty_video,
    write_video,
    write_vpt,
)
from vae_training.extraction.readers import base
from vae_training.extraction.readers.find import find_recordings
from vae_training.extraction.readers.vpt import BUTTONS, VptOptions, VptRecording, read_actions


def write_lines(file: Path, *lines: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def recording(file: Path, **options: Any) -> VptRecording:
    return VptRecording("a", file, options=VptOptions(**options))


KEYS = {
    "key.keyboard.w": "forward",
    "key.keyboard.f": "swapHands",
    "key.keyboard.space": "jump",
    "key.keyboard.left.shift": "sneak",
    "key.keyboard.escape": "ESC",
    "key.keyboard.9": "hotbar.9",
}


def test_there_is_a_row_for_each_button_of_minerl(tmp_path: Path):
    lines = [vpt_line(), *(vpt_line(keys=[key, "key.keyboard.f3"]) for key in KEYS)]
    rows = read_actions(write_lines(tmp_path / "a.jsonl", *lines))
    for number, button in enumerate(KEYS.values(), 1):
        assert [name for name in BUTTONS if rows[f"action${name}"][number]] == [button]
    assert rows["null_action"].tolist() == [True] + [False] * len(KEYS)
    assert len(set(BUTTONS)) == len(BUTTONS) == 23
    assert {name: (array.shape, array.dtype) for name, array in rows.items()} == {
        **{f"action${name}": ((7,), np.dtype(np.int64)) for name in BUTTONS},
        "action$camera": ((7, 2), np.dtype(np.float32)),
        "null_action": ((7,), np.dtype(bool)),
        "is_gui_open": ((7,), np.dtype(bool)),
        "mouse": ((7, 2), np.dtype(np.float32)),
        "video_frame": ((7,), np.dtype(np.int64)),
    }


def test_mouse_buttons_and_camera(tmp_path: Path):
    lines = [{}, {"buttons": [0], "newButtons": [0]}, {"buttons": [1]}, {"buttons": [2, 7]}, {"dx": 100.0, "dy": -4.0}]
    lines.append({"buttons": [7], "keys": ["key.keyboard.f3"]})
    rows = read_actions(write_lines(tmp_path / "a.jsonl", *(vpt_line(**line) for line in lines)))
    assert rows["action$attack"].tolist() == [0, 1, 0, 0, 0, 0]
    assert rows["action$use"].tolist() == [0, 0, 1, 0, 0, 0]
    assert rows["action$pickItem"].tolist() == [0, 0, 0, 1, 0, 0]
    np.testing.assert_allclose(rows["action$camera"][4], [-0.6, 15.0], rtol=1e-6)  # pitch down is positive, in degrees
    assert rows["null_action"].tolist() == [True, False, False, False, False, True]


def test_an_attack_button_that_hangs_from_the_start_is_let_go(tmp_path: Path):
    held, pressed = vpt_line(buttons=[0]), vpt_line(buttons=[0], newButtons=[0])
    rows = read_actions(write_lines(tmp_path / "a.jsonl", pressed, held, held, pressed, held, vpt_line()))
    assert rows["action$attack"].tolist() == [0, 0, 0, 1, 1, 0]
    assert rows["null_action"].tolist() == [True, True, True, False, False, True]
    rows = read_actions(write_lines(tmp_path / "b.jsonl", vpt_line(), pressed, held))
    assert rows["action$attack"].tolist() == [0, 1, 1]


def test_the_scroll_wheel_is_seen_from_the_hotbar(tmp_path: Path):
    early = vpt_line()
    del early["hotbar"]  # of an early recorder
    lines = [early, *(vpt_line(hotbar=slot) for slot in (0, 3, 3, 8, 0))]
    rows = read_actions(write_lines(tmp_path / "a.jsonl", *lines))
    chosen = np.stack([rows[f"action$hotbar.{n}"] for n in range(1, 10)], axis=1)
    assert [np.flatnonzero(row).tolist() for row in chosen] == [[], [], [3], [], [8], [0]]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames, each with its number as the mouse's x; every third null, every fifth with an open menu."""
    lines = [vpt_line(x=float(i), dx=float(i % 3), isGuiOpen=i % 5 == 0) for i in range(60)]
    return write_vpt(tmp_path_factory.mktemp("vpt") / "alias-1.mp4", numbered(60), lines)


@pytest.mark.parametrize("drop_null_actions", [False, True])
@pytest.mark.parametrize("gui", ["keep", "drop"])
def test_the_options_choose_frames_and_rows_alike(clip: Path, drop_null_actions: bool, gui: str):
    each = recording(clip, drop_null_actions=drop_null_actions, gui=gui)
    wanted = [i for i in range(60) if not (drop_null_actions and i % 3 == 0) and not (gui == "drop" and i % 5 == 0)]
    frames, rows = read(each), each.rows()
    np.testing.assert_allclose(numbers(frames), wanted, atol=0)
    assert rows["mouse"][:, 0].tolist() == rows["video_frame"].tolist() == wanted
    assert all(len(array) == len(wanted) for array in rows.values())
    assert each.expected_frames == len(wanted)
    assert each.notes == []


def test_dropping_across_chunks(clip: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "CHUNK_BYTES", 7 * 48 * 64 * 3)
    assert numbers(read(recording(clip, gui="drop"))) == [i for i in range(60) if i % 5]


def test_a_chunk_of_which_nothing_is_kept_is_not_given(tmp_path: Path):
    file = write_vpt(tmp_path / "a.mp4", numbered(20), [vpt_line()] * 20)
    assert list(recording(file, drop_null_actions=True).chunks()) == []
    assert len(recording(file, drop_null_actions=True).rows()["null_action"]) == 0


@pytest.mark.parametrize(("frames", "lines"), [(20, 19), (20, 25), (26, 20), (20, 26)])
def test_lengths_that_differ_by_a_few_are_paired_and_noted(frames: int, lines: int, tmp_path: Path):
    file = write_vpt(tmp_path / "a.mp4", numbered(frames), [vpt_line(x=float(i)) for i in range(lines)])
    if abs(frames - lines) > 5:
        assert read_until_damage(recording(file), rf"a\.mp4.* {frames} .*a\.jsonl.* {lines} ") is None
        return
    paired = list(range(min(frames, lines)))
    assert numbers(read(recording(file))) == recording(file).rows()["mouse"][:, 0].tolist() == paired
    assert len(recording(file).notes) == 1


BROKEN = {
    "cut": '{"mouse": {"x"',
    "list": "[1, 2]",
    "no mouse": json.dumps({**vpt_line(), "mouse": None}),
    "no menu": json.dumps({name: value for name, value in vpt_line().items() if name != "isGuiOpen"}),
    "text": json.dumps(vpt_line(dx="far")),
    "deep": "[" * 100_000,
    "binary": "\udcff\udcfe",
}


def test_a_broken_line_is_named(tmp_path: Path):
    file = write_video(tmp_path / "a.mp4", numbered(10))
    actions = file.with_suffix(".jsonl")
    assert read_until_damage(recording(file), r"a\.jsonl") is None
    for broken in BROKEN.values():
        lines = [json.dumps(vpt_line())] * 10
        lines[6] = broken
        actions.write_text("\n".join(lines) + "\n", errors="surrogateescape")
        assert read_until_damage(recording(file), r"a\.jsonl, line 7") is None
    actions.write_text("\n\n")
    assert read_until_damage(recording(file), r"a\.jsonl") is None
    actions.write_text("\n".join([json.dumps(vpt_line()), "", json.dumps(vpt_line()), "", ""]))
    assert len(read_actions(actions)["null_action"]) == 2  # empty lines are passed over


def test_damaged_videos(tmp_path: Path):
    lines = [vpt_line(x=float(i)) for i in range(60)]
    file = write_vpt(tmp_path / "a.mp4", numbered(60), lines)
    write_video(file, numbered(60), container_options={"movflags": "faststart"})
    file.write_bytes(file.read_bytes()[:-300])
    good = read_until_damage(recording(file), r"a\.mp4")
    assert good is not None
    assert numbers(good) == list(range(len(good)))
    write_empty_video(file)
    write_lines(file.with_suffix(".jsonl"), vpt_line())
    assert read_until_damage(recording(file), r"a\.mp4") is None


def test_a_video_that_does_not_state_its_length_is_counted(tmp_path: Path):
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    file = write_video(tmp_path / "a.mp4", numbered(30), container_options=fragments)
    write_lines(tmp_path / "a.jsonl", *[vpt_line()] * 30)
    assert len(read(recording(file))) == 30
    assert recording(file).notes == []


def test_a_search_hands_the_options_on_and_they_are_in_the_fingerprint(clip: Path):
    plain, chosen = (find_recordings([clip.parent], vpt=o)[0] for o in (None, VptOptions(drop_null_actions=True)))
    assert [each.kind for each in plain] == [each.kind for each in chosen] == ["vpt"]
    assert [len(read(each)) for each in (*plain, *chosen)] == [60, 40]
    assert plain[0].fingerprint() != chosen[0].fingerprint()
