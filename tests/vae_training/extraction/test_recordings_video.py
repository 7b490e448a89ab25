"""Videos: every frame, in order, at the decoder's own pixels; and the good part of those that are damaged."""

import itertools
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from latent_obs.util.errors import MissingExtraError
from tests.support.recording_files import (
    CLIP,
    CLIP_FRAMES,
    numbered,
    numbers,
    read,
    read_until_damage,
    write_empty_video,
    write_video,
)
from vae_training.extraction.readers import base
from vae_training.extraction.readers.base import DamagedRecordingError
from vae_training.extraction.readers.video import VideoRecording, count_frames, decode

CODECS = {"mp4": "libx264", "mkv": "libx264", "webm": "libvpx", "flv": "libx264", "avi": "mpeg4", "gif": "gif"}


@pytest.fixture(scope="module")
def clip_frames() -> np.ndarray:
    with av.open(str(CLIP)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("kind", CODECS)
def test_all_frames_in_order(kind: str, tmp_path: Path):
    codec, frames = CODECS[kind], numbered(100)
    options: dict[str, Any] = {"mpeg4": {"qmin": "1", "qmax": "2"}, "libvpx": {"b": "4M"}}.get(codec, {})
    pix_fmt = "rgb8" if kind == "gif" else "yuv420p"
    file = write_video(tmp_path / f"a.{kind}", frames, codec, pix_fmt=pix_fmt, **options)
    recording = VideoRecording("a", file)
    got = read(recording)
    assert got.shape == frames.shape
    if kind == "gif":  # of few colors, dithered
        assert (np.abs(got.mean(axis=(1, 2, 3)) - frames.mean(axis=(1, 2, 3))) < 25).all()
    else:
        assert numbers(got) == list(range(100))
    assert recording.expected_frames in (100, None)
    assert count_frames(file) == 100


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_pixels_are_the_decoders_whatever_the_threads(threads: int, clip_frames: np.ndarray):
    np.testing.assert_array_equal(read(VideoRecording("clip", CLIP, threads)), clip_frames)


@settings(max_examples=15, deadline=None)
@example(first=0, count=0, chunk=5)
@given(first=st.integers(0, 100), count=st.none() | st.integers(0, 100), chunk=st.integers(1, 100))
def test_a_cut_of_a_video_is_a_slice_whatever_the_chunks(
    clip_frames: np.ndarray, first: int, count: int | None, chunk: int
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "CHUNK_BYTES", chunk * 64 * 64 * 3)
        chunks = list(decode(CLIP, first=first, count=count))
    assert all(len(c) == chunk for c in chunks[:-1])
    wanted = clip_frames[first:] if count is None else clip_frames[first : first + count]
    np.testing.assert_array_equal(np.concatenate([clip_frames[:0], *chunks]), wanted)


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_a_video_comes_as_a_player_shows_it(kind: str, tmp_path: Path):
    """Turned counter-clockwise and mirrored, as its display matrix asks; and wide where its pixels are."""
    stored, file = np.zeros((6, 32, 64, 3), np.uint8), tmp_path / f"phone.{kind}"
    stored[:, :16, :32], stored[:, 16:, 32:] = (255, 0, 0), (0, 0, 255)
    for quarters, mirrored in itertools.product(range(4), (False, True)):
        write_video(file, stored, pix_fmt="yuv444p", rotation=(90 * quarters, mirrored))
        shown = np.rot90(stored, quarters, axes=(1, 2))[:, :, :: -1 if mirrored else 1]
        got = read(VideoRecording("a", file))
        assert got.shape == shown.shape
        assert np.abs(got.astype(int) - shown).mean() < 4
    write_video(file, stored, pix_fmt="yuv444p", rotation=(30, False))
    assert read_until_damage(VideoRecording("a", file), "phone") is None
    for aspect, shape in ((2, (6, 32, 128, 3)), (Fraction(1, 2), (6, 64, 64, 3))):
        write_video(file, stored, pix_fmt="yuv444p", aspect=Fraction(aspect))
        assert read(VideoRecording("a", file)).shape == shape


def test_of_several_videos_in_a_file_the_others_are_named(tmp_path: Path):
    file = tmp_path / "two.mkv"
    with av.open(str(file), "w") as container:
        streams: list[Any] = [container.add_stream("libx264", rate=20) for _ in range(2)]
        for number, stream in enumerate(streams):
            stream.width, stream.height, stream.pix_fmt = 64 * (number + 1), 48, "yuv420p"
        for number, stream in enumerate(streams):
            for pixels in numbered(10, 48, 64 * (number + 1)):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
            container.mux(stream.encode())
    recording = VideoRecording("a", file)
    assert read(recording).shape == (10, 48, 64, 3)
    assert all(word in recording.notes[0] for word in ("two.mkv", "2 videos", "64x48"))
    assert VideoRecording("clip", CLIP).notes == []


def test_memory_does_not_depend_on_the_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "CHUNK_BYTES", 10 * 48 * 64 * 3)
    peaks: list[int] = []
    for count in (40, 120):
        file = write_video(tmp_path / f"{count}.mp4", numbered(count))
        tracemalloc.start()
        assert sum(len(chunk) for chunk in VideoRecording("a", file).chunks()) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 5 * 10 * 48 * 64 * 3
    assert peaks[1] < 1.3 * peaks[0]


def good_part(file: Path) -> np.ndarray:
    """The good frames of a damaged video; the error names it."""
    good = read_until_damage(VideoRecording("a", file), file.name)
    assert good is not None
    return good


FASTSTART = {"movflags": "faststart"}  # the header comes first, and is there when the end is cut off


@pytest.mark.parametrize("kind", ["mp4", "mkv", "webm", "flv", "avi"])
def test_a_file_that_was_cut_gives_its_good_frames_and_is_damaged(kind: str, tmp_path: Path, clip_frames: np.ndarray):
    options = FASTSTART if kind == "mp4" else {}
    file = write_video(tmp_path / f"a.{kind}", clip_frames, CODECS[kind], container_options=options)
    whole, data = read(VideoRecording("a", file)), file.read_bytes()
    for share in (0.4, 0.95) if kind == "mp4" else (0.7,):
        file.write_bytes(data[: int(len(data) * share)])
        good = good_part(file)
        assert 0.5 * share * len(whole) < len(good) < len(whole)
        np.testing.assert_array_equal(good, whole[: len(good)])


@pytest.mark.parametrize("kind", ["mp4", "mkv", "flv", "avi"])
def test_a_file_cut_between_two_frames_is_still_cut(kind: str, tmp_path: Path):
    options = FASTSTART if kind == "mp4" else {}
    file = write_video(tmp_path / f"a.{kind}", numbered(60), CODECS[kind], bf="0", container_options=options)
    with av.open(str(file)) as container:
        at = [packet.pos for packet in container.demux(video=0) if packet.size][30]
    file.write_bytes(file.read_bytes()[:at])
    assert len(good_part(file)) == 30


def test_whole_files_that_look_cut(tmp_path: Path):
    """An .avi without its index, and a file that states no length."""
    file = write_video(tmp_path / "a.avi", numbered(60), "mpeg4")
    data = file.read_bytes()
    file.write_bytes(data[: data.rindex(b"idx1")])
    assert len(read(VideoRecording("a", file))) == 60
    file = write_video(tmp_path / "a.mkv", numbered(60), container_options={"live": "1"})
    assert len(read(VideoRecording("a", file))) == 60


def write_with_sound(file: Path, frames: np.ndarray | None, seconds: int, codec: str = "aac") -> None:
    """A video, or none, and silence beside it."""
    kind, dtype = ("s16", np.int16) if codec == "mp2" else ("fltp", np.float32)
    with av.open(str(file), "w") as container:
        video: Any = None
        if frames is not None:
            video = container.add_stream(CODECS[file.suffix[1:]], rate=20)
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound: Any = container.add_stream(codec, rate=16000, layout="mono")
        if frames is not None:
            for pixels in frames:
                container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
            container.mux(video.encode())
        samples: Any = np.zeros((1, seconds * 16000), dtype)
        silence = av.AudioFrame.from_ndarray(samples, kind, "mono")
        silence.sample_rate = 16000
        container.mux(sound.encode(silence))
        container.mux(sound.encode())


@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi"])
def test_a_whole_file_whose_sound_is_longer_is_not_cut(kind: str, tmp_path: Path):
    file = tmp_path / f"a.{kind}"
    write_with_sound(file, numbered(20), seconds=3, codec="mp2" if kind == "avi" else "aac")
    assert len(read(VideoRecording("a", file))) == 20


def test_damage_in_the_middle_ends_the_recording_there(tmp_path: Path, clip_frames: np.ndarray):
    # In a file that is the same each time; a decoder may also hide what is damaged without a word.
    with av.open(str(CLIP)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][45]
    data, at = CLIP.read_bytes(), len(CLIP.read_bytes()) * 6 // 10
    start, end = (packet.pos or 0) + packet.size // 2, (packet.pos or 0) + packet.size
    cases = ((at, at + 400, 0, 11, CLIP_FRAMES - 1, -2), (start, end, 45, 40, 50, 40))  # the last: how many are exact
    for first, last, seed, fewest, most, exact in cases:
        noise = np.random.default_rng(seed).integers(0, 256, last - first, np.uint8).tobytes()
        (tmp_path / "a.mp4").write_bytes(data[:first] + noise + data[last:])
        for threads in (1, 4):
            good = read_until_damage(VideoRecording("a", tmp_path / "a.mp4", threads), r"a\.mp4.*good frames")
            assert good is not None
            assert fewest <= len(good) <= most
            np.testing.assert_array_equal(good[:exact], clip_frames[: len(good)][:exact])


@pytest.mark.parametrize("kind", ["text", "missing", "sound", "no frames", "header only", "playlist", "tag"])
def test_what_is_no_video(kind: str, tmp_path: Path):
    file = tmp_path / "walk.mp4"
    if kind == "text":
        file.write_text("not a video at all\n" * 50)
    elif kind == "sound":
        write_with_sound(file, None, seconds=1)
    elif kind == "no frames":
        write_empty_video(file)
    elif kind == "header only":
        file.write_bytes(CLIP.read_bytes()[:300])
    elif kind == "playlist":  # FFmpeg would open what it names
        write_video(tmp_path / "secret.mp4", numbered(5))
        file.write_text("ffconcat version 1.0\nfile secret.mp4\n")
    elif kind == "tag":  # bytes that are no UTF-8
        write_video(tmp_path / "a.mkv", numbered(5)).rename(file)
        file.write_bytes(file.read_bytes().replace(b"ENCODER", b"\xff\xfeCODER"))
    recording = VideoRecording("walk", file)
    assert read_until_damage(recording, r"walk\.mp4") is None
    assert recording.expected_frames is None
    if kind != "no frames":
        with pytest.raises(DamagedRecordingError, match=r"walk\.mp4"):
            count_frames(file)


def test_the_frames_of_a_recording_have_one_size(tmp_path: Path):
    with (tmp_path / "a.mpg").open("wb") as joined:
        for size in ((48, 64), (64, 96)):
            file = write_video(tmp_path / f"{size[0]}.mpg", numbered(20, *size), "mpeg1video", rate=25)
            joined.write(file.read_bytes())
    assert good_part(tmp_path / "a.mpg").shape[1:] == (48, 64, 3)


def test_no_package_no_video(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match="video"):
        next(VideoRecording("clip", CLIP).chunks())
