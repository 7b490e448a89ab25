"""Videos of any kind that FFmpeg can decode, through PyAV."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from latent_obs.util.errors import require
from vae_training.extraction.readers.base import DamagedRecordingError, Frames, Recording, frames_per_chunk

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mkv", ".webm", ".avi", ".mov", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".gif")
)
#: Formats of FFmpeg whose headers state how long the whole file is; of others it estimates that from what is there.
_STATING_LENGTH = ("mov,", "matroska,", "flv", "avi")
# seconds that a whole file may be shorter than stated: times are rounded, and the last packet may have no duration
_ROUNDING = 0.1


@dataclass(frozen=True)
class VideoRecording(Recording):
    """A video file.

    Attributes:
        threads: Threads of the decoder; 0 takes one per core.
    """

    kind: ClassVar[str] = "video"
    threads: int = 0

    def chunks(self) -> Iterator[Frames]:
        """As of a recording: every frame that the file shows, at its own size."""
        return decode(self.source, self.threads)

    @property
    def expected_frames(self) -> int | None:
        """As the file's header tells it."""
        return frame_count(self.source) or None


def decode(file: Path, threads: int = 0, *, first: int = 0, count: int | None = None) -> Iterator[Frames]:
    """The frames of a video file, some at a time.

    Args:
        file: The video.
        threads: Threads of the decoder; 0 takes one per core.
        first: How many frames to pass over at the start.
        count: How many to give after that, at most; nothing behind them is looked at.

    Yields:
        uint8 (n, H, W, 3) RGB, an array of its own each time.

    Raises:
        DamagedRecordingError: It is no video, has no frames, or breaks off; what was good before has been given.
    """
    av = require("av", extra="video", purpose="read videos")
    good, filled, limit = 0, 0, None if count is None else first + count
    chunk: Frames | None = None
    damage: str | None = None
    try:
        with av.open(str(file)) as container:
            frames = _frames(container, threads)
            to_rgb = av.video.reformatter.VideoReformatter()
            while (limit is None or good < limit) and (frame := next(frames, None)) is not None:
                good += 1
                if good <= first:
                    continue
                # The scaler changes colours here and never the size: resizing is the pixel contract's.
                pixels = to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()
                if chunk is None:
                    chunk = np.empty((frames_per_chunk(pixels.nbytes), *pixels.shape), np.uint8)
                elif pixels.shape != chunk.shape[1:]:
                    good -= 1
                    now, before = _size(pixels), _size(chunk[0])
                    raise _BreaksOff(f"its frames change from {before} to {now}")
                chunk[filled] = pixels
                filled += 1
                if filled == len(chunk):
                    yield chunk
                    chunk, filled = np.empty_like(chunk), 0
        if good == 0 and limit != 0:
            damage = "it has no frames"
    except _BreaksOff as error:
        damage = str(error)
    except (av.error.FFmpegError, OSError) as error:
        damage = getattr(error, "strerror", None) or str(error)
    if chunk is not None and filled:
        yield chunk[:filled]
    if damage is not None:
        raise DamagedRecordingError(f"{file} {_after(good)}: {damage}")


def frame_count(file: Path) -> int:
    """Number of frames as a video's header tells it, 0 where it tells none or cannot be read; nothing is decoded."""
    av = require("av", extra="video", purpose="read videos")
    try:
        with av.open(str(file)) as container:
            return container.streams.video[0].frames
    except (av.error.FFmpegError, OSError, IndexError):
        return 0


def count_frames(file: Path) -> int:
    """Number of frames in a video, by its header, or by its packets where that tells none; nothing is decoded.

    Raises:
        DamagedRecordingError: It cannot be read as a video.
    """
    if stated := frame_count(file):
        return stated
    av = require("av", extra="video", purpose="read videos")
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise DamagedRecordingError(f"{file} cannot be read as a video: there is no video in it")
            return sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))
    except (av.error.FFmpegError, OSError) as error:
        raise DamagedRecordingError(f"{file} cannot be read as a video: {error.strerror or error}") from None


class _BreaksOff(Exception):
    """What is wrong with the rest of a video."""


def _frames(container: Any, threads: int) -> Iterator[Any]:
    """The decoder's frames, up to the first that is damaged or missing.

    Decoders end quietly where a file was cut between two packets, so the end of the last packet is compared with the
    length that the header states.
    """
    if not container.streams.video:
        raise _BreaksOff("there is no video in it")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"  # frames and slices: the fastest of what the codec can do
    stream.codec_context.thread_count = threads
    last_dts: int | None = None
    stated, end = _stated_seconds(container, stream), 0.0
    for packet in container.demux():  # of sound as well, which may be longer than the picture
        if packet.size and packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index != stream.index:
            continue
        cut_short = not packet.size and end < stated - _ROUNDING
        if packet.is_corrupt or cut_short:
            # What the decoder still holds is whole, and may have gaps: frames are stored in another order than shown.
            # No packet that is missing is shown before the time at which this one would have been decoded.
            until = packet.dts if packet.is_corrupt else None if last_dts is None else last_dts + 1
            for frame in stream.codec_context.decode(None):
                if frame.pts is None or until is None or frame.pts < until:
                    yield frame
            if packet.is_corrupt:
                raise _BreaksOff("the rest is damaged or missing")
            raise _BreaksOff(f"the file is cut short, it ends after {end:.2f} of {stated:.2f} seconds")
        last_dts = packet.dts if packet.dts is not None else last_dts
        for frame in packet.decode():
            if frame.is_corrupt:
                raise _BreaksOff("the rest is damaged")
            yield frame


def _stated_seconds(container: Any, stream: Any) -> float:
    """How long the file is by its header, 0 where it does not say."""
    if not container.format.name.startswith(_STATING_LENGTH):
        return 0.0
    if container.format.name == "avi":  # its duration is scaled to the bytes that are there
        return float(stream.frames / stream.average_rate) if stream.average_rate else 0.0
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1_000_000  # microseconds


def _after(good: int) -> str:
    return f"cannot be read beyond its first {good} frame(s)" if good else "cannot be read as a video"


def _size(pixels: Frames) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"
