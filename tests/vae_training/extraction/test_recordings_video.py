"""Videos: every frame, in order, at the decoder's own pixels; and the good part of those that are damaged."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.recording_files import CLIP, CLIP_FRAMES, numbered, numbers, read, read_until_damage, write_video
from vae_training.extraction.readers import base as files
from vae_training.extraction.readers.base import DamagedRecordingError
from vae_training.extraction.readers.video import VideoRecording, count_frames, decode

KINDS = {
    "a.mp4": ("libx264", "yuv420p"),
    "a.mov": ("libx264", "yuv420p"),
    "a.mkv": ("libx264", "yuv420p"),
    "a.webm": ("libvpx", "yuv420p"),
    "a.flv": ("libx264", "yuv420p"),
    "a.avi": ("mpeg4", "yuv420p"),
    "a.gif": ("gif", "rgb8"),
}


def clip_frames() -> list[np.ndarray]:
    with av.open(str(CLIP)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("name", KINDS)
def test_all_frames_in_order(name: str, tmp_path: Path):
    codec, pix_fmt = KINDS[name]
    options: dict[str, Any] = (
        {"qmin": "1", "qmax": "2"} if codec == "mpeg4" else {"b": "4M"} if codec == "libvpx" else {}
    )
    frames = numbered(100)
    file = write_video(tmp_path / name, frames, codec, pix_fmt=pix_fmt, **options)
    recording = VideoRecording("a", file)
    got = read(recording)
    assert got.shape == frames.shape
    if name == "a.gif":  # of few colours, dithered
        assert (np.abs(got.mean(axis=(1, 2, 3)) - frames.mean(axis=(1, 2, 3))) < 25).all()
    else:
        assert numbers(got) == list(range(100))
    assert recording.expected_frames in (100, None)
    assert count_frames(file) == 100


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_pixels_are_the_decoders_whatever_the_threads(threads: int):
    got = read(VideoRecording("clip", CLIP, threads))
    assert got.shape == (CLIP_FRAMES, 64, 64, 3)
    np.testing.assert_array_equal(got, clip_frames())


@settings(max_examples=25, deadline=None)
@example(first=0, count=0, chunk=5)
@given(first=st.integers(0, 100), count=st.none() | st.integers(0, 100), chunk=st.integers(1, 100))
def test_a_cut_of_a_video_is_a_slice_whatever_the_chunks(first: int, count: int | None, chunk: int):
    whole = np.stack(clip_frames())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK_BYTES", chunk * 64 * 64 * 3)
        chunks = list(decode(CLIP, first=first, count=count))
    assert all(len(c) == chunk for c in chunks[:-1])
    wanted = whole[first:] if count is None else whole[first : first + count]
    np.testing.assert_array_equal(np.concatenate([whole[:0], *chunks]), wanted)


def test_memory_does_not_depend_on_the_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "CHUNK_BYTES", 10 * 48 * 64 * 3)
    peaks: list[int] = []
    for count in (40, 120):
        file = write_video(tmp_path / f"{count}.mp4", numbered(count))
        tracemalloc.start()
        seen = sum(len(chunk) for chunk in VideoRecording("a", file).chunks())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert seen == count
    assert max(peaks) < 5 * 10 * 48 * 64 * 3
    assert peaks[1] < 1.3 * peaks[0]


@pytest.mark.parametrize(
    ("name", "share"),
    [
        *((name, share) for name in ("a.mp4", "a.mov", "a.mkv", "a.webm", "a.flv") for share in (0.4, 0.7, 0.95)),
        ("a.avi", 0.7),
    ],
)
def test_a_file_that_was_cut_gives_its_good_frames_and_says_so(name: str, share: float, tmp_path: Path):
    codec, pix_fmt = KINDS[name]
    with av.open(str(CLIP)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    file = write_video(
        tmp_path / name,
        frames,
        codec,
        pix_fmt=pix_fmt,
        container_options={"movflags": "faststart"} if name in ("a.mp4", "a.mov") else {},
    )
    whole = read(VideoRecording("a", file))
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    good = read_until_damage(VideoRecording("a", file), rf"{name} cannot be read beyond its first \d+ frame")
    assert good is not None
    assert 0.5 * share * len(whole) < len(good) < len(whole)
    np.testing.assert_array_equal(good, whole[: len(good)])
    with pytest.raises(DamagedRecordingError, match=f"first {len(good)} frame"):
        list(VideoRecording("a", file).chunks())


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.flv", "a.avi"])
def test_a_file_cut_between_two_frames_is_still_cut(name: str, tmp_path: Path):
    faststart = {"movflags": "faststart"} if name in ("a.mp4", "a.mov") else {}
    file = write_video(tmp_path / name, numbered(60), KINDS[name][0], bf="0", container_options=faststart)
    with av.open(str(file)) as container:
        at = [packet.pos for packet in container.demux(video=0) if packet.size][30]
    assert at
    file.write_bytes(file.read_bytes()[:at])
    good = read_until_damage(VideoRecording("a", file), f"{name} cannot be read beyond its first 30 frame")
    assert good is not None
    assert len(good) == 30


def test_an_avi_without_its_index_is_whole(tmp_path: Path):
    file = write_video(tmp_path / "a.avi", numbered(60), "mpeg4")
    data = file.read_bytes()
    file.write_bytes(data[: data.rindex(b"idx1")])
    assert len(read(VideoRecording("a", file))) == 60


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_a_whole_file_whose_sound_is_longer_is_not_cut(name: str, tmp_path: Path):
    file = tmp_path / name
    with av.open(str(file), "w") as container:
        video: Any = container.add_stream(KINDS[name][0], rate=20)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("aac" if name != "a.avi" else "mp2", rate=16000, layout="mono")
        for pixels in numbered(20):
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(video.encode())
        silence: Any = np.zeros((1, 3 * 16000), np.float32 if name != "a.avi" else np.int16)
        frame = av.AudioFrame.from_ndarray(silence, "fltp" if name != "a.avi" else "s16", "mono")
        frame.sample_rate = 16000
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    assert len(read(VideoRecording("a", file))) == 20


def test_a_file_that_states_no_length_is_read_to_its_end(tmp_path: Path):
    file = write_video(tmp_path / "a.mkv", numbered(60), container_options={"live": "1"})
    assert len(read(VideoRecording("a", file))) == 60


def test_noise_in_the_middle_ends_the_recording_there(tmp_path: Path):
    # In a file that is the same each time; a decoder may also hide what is damaged without a word.
    file, data = tmp_path / "a.mp4", bytearray(CLIP.read_bytes())
    at = len(data) * 6 // 10
    data[at : at + 400] = np.random.default_rng(0).integers(0, 256, 400, np.uint8).tobytes()
    file.write_bytes(data)
    for threads in (1, 2, 4):
        good = read_until_damage(VideoRecording("a", file, threads), r"a.mp4 cannot be read beyond its first \d+ frame")
        assert good is not None
        assert 10 < len(good) < CLIP_FRAMES
        np.testing.assert_array_equal(
            good[:-2], np.stack(clip_frames())[: len(good) - 2]
        )  # two may lean on a damaged one


def test_a_frame_that_the_decoder_has_patched_up_is_not_good(tmp_path: Path):
    with av.open(str(CLIP)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][45]
        middle, end = (packet.pos or 0) + packet.size // 2, (packet.pos or 0) + packet.size
    data = bytearray(CLIP.read_bytes())
    data[middle:end] = np.random.default_rng(45).integers(0, 256, end - middle, np.uint8).tobytes()
    file = tmp_path / "a.mp4"
    file.write_bytes(data)
    good = read_until_damage(
        VideoRecording("a", file), r"a.mp4 cannot be read beyond its first \d+ .*: the rest is damaged"
    )
    assert good is not None
    assert 40 <= len(good) <= 50


def write_sound(file: Path) -> None:
    with av.open(str(file), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize("kind", ["text", "empty", "missing", "sound", "no frames", "header only"])
def test_what_is_no_video(kind: str, tmp_path: Path):
    file = tmp_path / "walk.mp4"
    reason = "Invalid data"
    if kind == "text":
        file.write_text("not a video at all\n" * 50)
    elif kind == "empty":
        file.touch()
    elif kind == "missing":
        reason = "No such file"
    elif kind == "sound":
        write_sound(file)
        reason = "no video in it"
    elif kind == "no frames":
        with av.open(str(file), "w", options={"movflags": "frag_keyframe+empty_moov"}) as container:
            stream: Any = container.add_stream("libx264", rate=20)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            container.start_encoding()
        reason = "it has no frames"
    else:
        file.write_bytes(write_video(tmp_path / "a.mp4", numbered(20)).read_bytes()[:300])
    recording = VideoRecording("walk", file)
    assert read_until_damage(recording, f"walk.mp4 cannot be read as a video: .*({reason})") is None
    assert recording.expected_frames is None
    if kind != "no frames":
        with pytest.raises(DamagedRecordingError, match=r"walk\.mp4"):
            count_frames(file)


def test_the_frames_of_a_recording_have_one_size(tmp_path: Path):
    with (tmp_path / "a.mpg").open("wb") as joined:
        for size in ((48, 64), (64, 96)):
            file = write_video(tmp_path / f"{size[0]}.mpg", numbered(20, *size), "mpeg1video", rate=25)
            joined.write(file.read_bytes())
    good = read_until_damage(VideoRecording("a", tmp_path / "a.mpg"), "frames change from 64x48 to 96x64")
    assert good is not None
    assert good.shape[1:] == (48, 64, 3)


def test_no_package_no_video(monkeypatch: pytest.MonkeyPatch):
    import sys

    from latent_obs.util.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"'av' is needed to read videos.*--extra video"):
        next(VideoRecording("clip", CLIP).chunks())


def test_a_fingerprint_changes_with_the_file(tmp_path: Path):
    file = tmp_path / "a.mp4"
    file.write_bytes(CLIP.read_bytes())
    before = VideoRecording("a", file).fingerprint()
    assert VideoRecording("a", file, threads=3).fingerprint() == before
    file.write_bytes(CLIP.read_bytes()[:-1])
    assert VideoRecording("a", file).fingerprint() != before
