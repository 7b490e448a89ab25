"""Videos of any kind that FFmpeg can decode, through PyAV."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from latent_obs.util.errors import require
from vae_training.extraction.readers.base import DamagedRecordingError, Frames, Recording, in_chunks

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mkv", ".webm", ".avi", ".mov", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".gif")
)
#: Formats of FFmpeg whose headers state how long the whole file is; of others it estimates that from what is there.
_STATING_LENGTH = ("mov,", "matroska,", "flv", "avi")
# seconds that a whole file may be shorter than stated: times are rounded, and the last packet may have no duration
_ROUNDING = 0.1


@dataclass(frozen=True)
class VideoRecording(Recording):
    """A video file."""

    kind: ClassVar[str] = "video"

    def chunks(self) -> Iterator[Frames]:
        """As of a recording: every frame that the file shows, at its own size."""
        return decode(self.source, self.threads)

    def _stated_frames(self) -> int | None:
        return stated_frames(self.source)


def decode(file: Path, threads: int = 0, *, first: int = 0, count: int | None = None) -> Iterator[Frames]:
    """The frames of a video file, some at a time.

    Args:
        file: The video.
        threads: Threads of the decoder; 0 takes one per core.
        first: How many frames to pass over at the start.
        count: How many to give after that, at most; nothing behind them is looked at.

    Raises:
        DamagedRecordingError: It is no video, has no frames, or breaks off; what was good before has been given.
    """
    return in_chunks(_decoded(file, threads, first, None if count is None else first + count))


def stated_frames(file: Path) -> int | None:
    """Number of frames by a video's header, None where it states none or cannot be read; nothing is decoded."""
    av = require("av", extra="video", purpose="read videos")
    try:
        with av.open(str(file)) as container:
            return container.streams.video[0].frames or None
    except (av.error.FFmpegError, OSError, IndexError):
        return None


def count_frames(file: Path) -> int:
    """Number of frames in a video, by its header, or by its packets where that states none; nothing is decoded."""
    if (stated := stated_frames(file)) is not None:
        return stated
    av = require("av", extra="video", purpose="read videos")
    try:
        with av.open(str(file)) as container:
            return sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise _not_a_video(file, error) from None


def _not_a_video(file: Path, error: Exception) -> DamagedRecordingError:
    return DamagedRecordingError(f"{file} cannot be read as a video: {getattr(error, 'strerror', None) or error}")


def _decoded(file: Path, threads: int, first: int, end: int | None) -> Iterator[Frames]:
    """Frames `first` to `end` as uint8 (H, W, 3) RGB of one size."""
    av = require("av", extra="video", purpose="read videos")
    size: tuple[int, int] | None = None
    try:
        with av.open(str(file)) as container:
            to_rgb = av.video.reformatter.VideoReformatter()
            for frame in itertools.islice(_frames(container, threads), first, end):
                size = size or (frame.width, frame.height)
                if (frame.width, frame.height) != size:
                    raise DamagedRecordingError(
                        f"its frames change from {size[0]}x{size[1]} to {frame.width}x{frame.height}"
                    )
                # The scaler changes colors here and never the size: resizing is the pixel contract's.
                yield to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()
    except (DamagedRecordingError, av.error.FFmpegError, OSError) as error:
        raise _not_a_video(file, error) from None


def _frames(container: Any, threads: int) -> Iterator[Any]:
    """The decoder's frames, up to the first that is damaged or missing.

    Decoders end quietly where a file was cut between two packets, so the end of the last packet is compared with the
    length that the header states.
    """
    if not container.streams.video:
        raise DamagedRecordingError("there is no video in it")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"  # frames and slices: the fastest of what the codec can do
    stream.codec_context.thread_count = threads
    last_dts: int | None = None
    stated, end, given = _stated_seconds(container, stream), 0.0, 0
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
                raise DamagedRecordingError("the rest is damaged or missing")
            raise DamagedRecordingError(f"it is cut short and ends after {end:.2f} of {stated:.2f} seconds")
        last_dts = packet.dts if packet.dts is not None else last_dts
        for frame in packet.decode():
            if frame.is_corrupt:
                raise DamagedRecordingError("the rest is damaged")
            given += 1
            yield frame
    if not given:
        raise DamagedRecordingError("it has no frames")


def _stated_seconds(container: Any, stream: Any) -> float:
    """How long the file is by its header, 0 where it does not say."""
    if not container.format.name.startswith(_STATING_LENGTH):
        return 0.0
    if container.format.name == "avi":  # its duration is scaled to the bytes that are there
        return float(stream.frames / stream.average_rate) if stream.average_rate else 0.0
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1_000_000  # microseconds
