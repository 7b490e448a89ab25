"""Videos of any kind that FFmpeg can decode, through PyAV."""

import contextlib
import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from latent_obs.util.errors import require
from vae_training.data.frames import Frames
from vae_training.extraction.readers.base import Recording, in_chunks, reading

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

    def chunks(self) -> Generator[Frames]:
        """As of a recording: every frame that the file shows, at its own size."""
        return decode(self.source, self.threads)

    def _stated_frames(self) -> int | None:
        return stated_frames(self.source)


def decode(file: Path, threads: int = 0, *, first: int = 0, count: int | None = None) -> Generator[Frames]:
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
    """Number of frames by a video's header, None where it states none; raises a `DamagedRecordingError`."""
    with _opened(file) as container:
        return container.streams.video[0].frames or None


def count_frames(file: Path) -> int:
    """As `stated_frames`, and the number of packets where the header states none; nothing is decoded."""
    with _opened(file) as container:
        stream = container.streams.video[0]
        return stream.frames or sum(packet.size > 0 for packet in container.demux(stream))


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A video's container; any error in the block means that the file is damaged."""
    av = require("av", extra="video", purpose="read videos")
    with reading(file), av.open(str(file)) as container:
        if not container.streams.video:
            raise ValueError("there is no video in it")
        yield container


def _decoded(file: Path, threads: int, first: int, end: int | None) -> Generator[Frames]:
    """Frames `first` to `end` as uint8 (H, W, 3) RGB of one size."""
    size: tuple[int, int] | None = None
    with _opened(file) as container:
        to_rgb = require("av.video.reformatter", extra="video", purpose="read videos").VideoReformatter()
        for frame in itertools.islice(_frames(container, threads), first, end):
            size = size or (frame.width, frame.height)
            if (frame.width, frame.height) != size:
                raise ValueError(f"its frames change from {size[0]}x{size[1]} to {frame.width}x{frame.height}")
            # The scaler changes colors here and never the size: resizing is the pixel contract's.
            yield to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()


def _frames(container: Any, threads: int) -> Iterator[Any]:
    """The decoder's frames, up to the first that is damaged or missing.

    Decoders end quietly where a file was cut between two packets, so the end of the last packet is compared with the
    length that the header states.
    """
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
        if packet.is_corrupt or (not packet.size and end < stated - _ROUNDING):
            # What the decoder still holds is whole, and may have gaps: frames are stored in another order than shown.
            # No packet that is missing is shown before the time at which this one would have been decoded.
            until = packet.dts if packet.is_corrupt else None if last_dts is None else last_dts + 1
            for frame in stream.codec_context.decode(None):
                if frame.pts is None or until is None or frame.pts < until:
                    yield frame
            raise ValueError(f"the rest after {end:.2f} of {stated:.2f} seconds is damaged or missing")
        last_dts = packet.dts if packet.dts is not None else last_dts
        for frame in packet.decode():
            if frame.is_corrupt:
                raise ValueError("the rest is damaged")
            given += 1
            yield frame
    if not given:
        raise ValueError("it has no frames")


def _stated_seconds(container: Any, stream: Any) -> float:
    """How long the file is by its header, 0 where it does not say."""
    if not container.format.name.startswith(_STATING_LENGTH):
        return 0.0
    if container.format.name == "avi":  # its duration is scaled to the bytes that are there
        return float(stream.frames / stream.average_rate) if stream.average_rate else 0.0
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1_000_000  # microseconds
