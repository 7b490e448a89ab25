"""What a search finds, in which order, by which names, and what it passes over."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from latent_obs.util.errors import InputError
from tests.support.recording_files import CLIP, CLIP_FRAMES, vpt_line, write_minerl_stream
from vae_training.extraction.readers.find import find_recordings


def put(*files: Path) -> None:
    """Files of the kinds that their names say."""
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".npy":
            np.save(file, np.zeros((2, 8, 8, 3), np.uint8))
        elif file.suffix == ".npz":
            np.savez(file, frames=np.zeros((2, 8, 8, 3), np.uint8))
        elif file.suffix == ".png":
            Image.new("RGB", (8, 8)).save(file)
        elif file.suffix in (".mp4", ".mkv"):
            shutil.copyfile(CLIP, file)
        else:
            file.write_text("text")


def found(*paths: Path) -> list[tuple[str, str]]:
    recordings, damaged = find_recordings(paths)
    assert damaged == []
    return [(each.name, each.kind) for each in recordings]


def test_every_kind_in_sorted_order(tmp_path: Path):
    names = ("walk_10.mp4", "walk_2.mkv", "b/c/frames.npy", "b/x.npz", "pictures/1.png", "vpt/alias.mp4")
    put(*(tmp_path / name for name in names))
    (tmp_path / "vpt" / "alias.jsonl").write_text((json.dumps(vpt_line()) + "\n") * CLIP_FRAMES)
    write_minerl_stream(tmp_path / "MineRLTreechop-v0" / "v3_stream-3", CLIP.read_bytes(), 3, 9)
    write_minerl_stream(tmp_path / "MineRLTreechop-v0" / "v3_stream-21", CLIP.read_bytes(), 3, 9)
    assert found(tmp_path) == [
        ("MineRLTreechop-v0/v3_stream-3", "minerl"),
        ("MineRLTreechop-v0/v3_stream-21", "minerl"),
        ("b/c/frames", "npy"),
        ("b/x", "npz"),
        ("pictures", "pictures"),
        ("vpt/alias", "vpt"),
        ("walk_2", "video"),
        ("walk_10", "video"),
    ]
    for each in find_recordings([tmp_path])[0]:
        assert sum(len(chunk) for chunk in each.chunks()) == each.expected_frames or each.source.suffix == ".mkv"
        before = each.fingerprint()
        (each.files[0].parent / "notes.txt").write_text("anything")
        assert replace(each, threads=3).fingerprint() == before
        for file in each.files:
            time = file.stat().st_mtime_ns
            os.utime(file, ns=(time, time + 1_000_000))
            assert each.fingerprint() != before
            os.utime(file, ns=(time, time))
        assert len(each.files) == {"minerl": 3, "vpt": 2}.get(each.kind, 1)


def test_nothing_is_decoded_and_what_is_no_recording_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "av", None)
    passed_over = (".hidden.mp4", ".cache/a.mp4", "__MACOSX/a.mp4", "b.mp4.part", "b.npy.part", "a.txt", "x.jsonl")
    put(*(tmp_path / name for name in ("a.mp4", "a.png", "pictures/1.png", *passed_over)))
    (tmp_path / "pictures" / "1.png").write_text("no picture")
    np.save(tmp_path / "rewards.npy", np.zeros(30))
    np.savez(tmp_path / "actions.npz", action=np.zeros((30, 2)))
    assert found(tmp_path) == [("a", "video"), ("pictures", "pictures")]  # a picture beside a video is a thumbnail


def test_what_is_not_used_is_counted_and_named(tmp_path: Path):
    put(*(tmp_path / f"{n}.png" for n in range(40)), tmp_path / "preview.mp4")  # 40 pictures are no thumbnails
    assert found(tmp_path) == [(tmp_path.name, "pictures"), ("preview", "video")]
    for n in range(2, 40):
        (tmp_path / f"{n}.png").unlink()
    put(tmp_path / "clip.ts", tmp_path / "b.mp4.part", tmp_path / ".hidden.ts")
    write_minerl_stream(tmp_path / "stream", CLIP.read_bytes(), 3, 9)
    put(tmp_path / "stream" / "more.mkv")
    said: list[str] = []
    assert len(find_recordings([tmp_path], say=said.append)[0]) == 2
    thumbnails, others = said
    assert all(word in thumbnails for word in (str(tmp_path), "2 picture", "0.png", "1.png"))
    assert all(word in others for word in ("3 file", "clip.ts", "b.mp4.part", "more.mkv"))
    (tmp_path / "walk").mkdir()
    shutil.copyfile(CLIP, tmp_path / "walk" / "a.mp4")
    (tmp_path / "walk" / "a.jsonl").write_text(json.dumps(vpt_line()) + "\n")
    said.clear()
    find_recordings([tmp_path / "walk"], say=said.append)
    assert said == []


def test_files_and_folders_given_directly(tmp_path: Path):
    file, pictures = tmp_path / "a" / "walk.mp4", tmp_path / "shots"
    put(file, pictures / "1.png")
    stream = write_minerl_stream(tmp_path / "v3_stream", CLIP.read_bytes(), 3, 9)
    assert found(file, stream, pictures) == [("walk", "video"), ("v3_stream", "minerl"), ("shots", "pictures")]
    assert found(stream / "recording.mp4") == [("v3_stream", "minerl")]


def test_what_is_reached_twice_counts_once(tmp_path: Path):
    put(tmp_path / "a" / "walk.mp4", tmp_path / "b" / "walk.npy")
    (tmp_path / "b" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "b" / "again.mp4").symlink_to(tmp_path / "a" / "walk.mp4")
    assert found(tmp_path) == found(tmp_path, tmp_path / "a", tmp_path) == [("a/walk", "video"), ("b/walk", "npy")]


def test_names_that_would_agree(tmp_path: Path):
    put(*(tmp_path / name for name in ("x/walk.mp4", "x/walk.mkv", "y/walk.mp4", "y/run.mp4", "z/x/walk.mp4")))
    for other, names in (
        ("y", ["walk.mkv", "x/walk.mp4", "run", "y/walk.mp4"]),
        ("z/x", ["walk.mkv", "x/walk.mp4", "x/walk.mp4-2"]),
    ):
        assert [name for name, _ in found(tmp_path / "x", tmp_path / other)] == names


@settings(max_examples=25, deadline=None)
@given(
    files=st.sets(
        st.tuples(
            st.sampled_from(["", "a/", "A/", "a/b/"]),
            st.sampled_from(["1", "2", "10", "x"]),
            st.sampled_from(["npy", "npz"]),
        ),
        min_size=1,
    ),
    roots=st.lists(st.sampled_from([".", "a", "A", "a/b"]), min_size=1, max_size=4),
)
def test_names_are_unique_and_the_search_is_repeatable(
    tmp_path_factory: pytest.TempPathFactory, files: set[tuple[str, str, str]], roots: list[str]
):
    top = tmp_path_factory.mktemp("law")
    for folder in ("a/b", "A"):
        (top / folder).mkdir(parents=True)
    sources = {top / f"{folder}{name}.{suffix}" for folder, name, suffix in files}
    put(*sources)
    paths = [top / root for root in [*roots, "."]]
    first, second = find_recordings(paths)[0], find_recordings(paths)[0]
    assert first == second
    assert len({each.name.casefold() for each in first}) == len(first) == len(files)
    assert {each.source.resolve() for each in first} == {source.resolve() for source in sources}
    for each in first:
        assert not Path(each.name).is_absolute()
        assert ".." not in Path(each.name).parts


def test_damaged_ones_are_named_beside_the_good(tmp_path: Path):
    put(tmp_path / "good.mp4", tmp_path / "alone" / "recording.mp4")
    (tmp_path / "empty.mp4").touch()
    np.save(tmp_path / "float.npy", np.zeros((2, 8, 8, 3)))
    (tmp_path / "gone.mkv").symlink_to(tmp_path / "nowhere.mkv")
    (tmp_path / "loop.avi").symlink_to(tmp_path / "loop.avi")
    (tmp_path / "half").mkdir()
    np.savez(tmp_path / "half" / "rendered.npz", reward=np.zeros(3))
    recordings, damaged = find_recordings([tmp_path])
    assert [(each.name, each.kind) for each in recordings] == [("alone/recording", "video"), ("good", "video")]
    assert [each.source.name for each in damaged] == ["empty.mp4", "float.npy", "gone.mkv", "half", "loop.avi"]
    assert [each.name for each in damaged] == ["empty", "float", "gone", "half", "loop"]
    assert all(str(each.source) in each.reason for each in damaged)


def test_nothing_found(tmp_path: Path):
    put(tmp_path / "a.txt")
    for paths in ([], [tmp_path], [tmp_path / "a.txt"], [tmp_path / "nowhere"]):
        with pytest.raises(InputError, match=str(paths[0].name) if paths else "no path"):
            find_recordings(paths)
