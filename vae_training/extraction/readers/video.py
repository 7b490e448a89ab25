"""Videos of any kind that FFmpeg can decode, through PyAV."""

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from latent_obs.util.errors import require
from vae_training.data.frames import Frames
from vae_training.extraction.readers.base import Recording, in_chunks, reading

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mkv", ".webm", ".avi", ".mov", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".gif")
)
#: Formats of FFmpeg that are read: those of one file. Lists of other files (ffconcat, HLS), which it knows by their
#: content whatever their name is, are not.
_FORMATS = "asf,avi,dv,flv,gif,h264,hevc,ivf,m4v,matroska,mov,mpeg,mpegts,mpegvideo,mxf,nut,ogg,rm"
#: Formats of FFmpeg whose headers state how long the whole file is; of others it estimates that from what is there.
_STATING_LENGTH = ("mov,", "matroska,", "flv", "avi")
# seconds that a whole file may be shorter than stated: times are rounded, and the last packet may have no duration
_ROUNDING = 0.1
_MOST_OBLONG = 8  # pixels of a video that is played wider, or narrower, than stored


@dataclass(frozen=True)
class VideoRecording(Recording):
    """A video file."""

    kind: ClassVar[str] = "video"

    def chunks(self) -> Generator[Frames]:
        """As of a recording: every frame that the file shows, at the size and in the orientation of a player."""
        return decode(self.source, self.threads)

    @property
    def notes(self) -> list[str]:
        """Names how many pictures the file shows, where it is more than one (two cameras)."""
        with _opened(self.source) as container:
            stream, count = _stream(container), len(container.streams.video)
            shown = f"{stream.codec_context.width}x{stream.codec_context.height}"
        left_out = f"{self.source} has {count} videos in it; the one of {shown} is taken, the rest is left out"
        return [left_out] if count > 1 else []

    def _stated_frames(self) -> int | None:
        return stated_frames(self.source)


def decode(
    file: Path, threads: int = 0, *, first: int = 0, count: int | None = None, content: IO[bytes] | None = None
) -> Generator[Frames]:
    """The frames of a video file as a player shows them, some at a time.

    They are turned and mirrored as the file asks for (a phone's are), and widened where its pixels are not square.

    Args:
        file: The video.
        threads: Threads of the decoder; 0 takes one per core.
        first: How many frames to pass over at the start.
        count: How many to give after that, at most; nothing behind them is looked at.
        content: The video, where the file only contains it (an archive).

    Raises:
        DamagedRecordingError: It is no video, has no frames, or breaks off; what was good before has been given.
    """
    end = None if count is None else first + count
    return in_chunks(_decoded(file, lambda video: itertools.islice(_frames(video, threads), first, end), content))


def decode_at(file: Path, seconds: Sequence[float], tolerance: float, threads: int = 0) -> Generator[Frames]:
    """The frames that a video file shows at rising times, as `decode` gives them; the others are passed over.

    Args:
        file: The video. What is before the last key frame before the first of the times is not decoded.
        seconds: The times.
        tolerance: Most seconds between such a time and that of its frame; less than the half of a frame's duration.
        threads: Threads of the decoder; 0 takes one per core.

    Raises:
        DamagedRecordingError: As of `decode`, or it has no frame at one of the times; what was good before has been
            given.
    """
    return in_chunks(_decoded(file, lambda video: _frames_at(video, seconds, tolerance, threads)))


def stated_frames(file: Path) -> int | None:
    """Number of frames by a video's header, None where it states none; raises a `DamagedRecordingError`."""
    with _opened(file) as container:
        return _stream(container).frames or None


def count_frames(file: Path, content: IO[bytes] | None = None) -> int:
    """As `stated_frames`, and the number of packets where the header states none; nothing is decoded."""
    with _opened(file, content) as container:
        stream = _stream(container)
        return stream.frames or sum(packet.size > 0 for packet in container.demux(stream))


@contextlib.contextmanager
def _opened(file: Path, content: IO[bytes] | None = None) -> Iterator[Any]:
    """A video's container; any error in the block means that the file is damaged."""
    av = require("av", extra="video", purpose="read videos")
    with reading(file):
        try:  # an absolute path, as FFmpeg takes "concat:a" for a protocol
            container = av.open(content or str(file.absolute()), options={"format_whitelist": _FORMATS})
        except av.ArgumentError:
            raise ValueError("it is no video, or of a format that is not read, such as a playlist") from None
        with container:
            if not container.streams.video:
                raise ValueError("there is no video in it")
            yield container


def _stream(container: Any) -> Any:
    """The video of a container; FFmpeg's choice, which is no cover picture, where there are several."""
    return container.streams.best("video") or container.streams.video[0]


def _decoded(file: Path, choose: Callable[[Any], Iterable[Any]], content: IO[bytes] | None = None) -> Generator[Frames]:
    """The frames that `choose` takes of a container, as uint8 (H, W, 3) RGB of one size."""
    size: Sequence[int] = ()
    with _opened(file, content) as container:
        to_rgb = require("av.video.reformatter", extra="video", purpose="read videos").VideoReformatter()
        aspect = _stream(container).sample_aspect_ratio or Fraction(1)
        if not 1 / _MOST_OBLONG <= aspect <= _MOST_OBLONG:
            raise ValueError(f"its pixels are {float(aspect):g} times as wide as high")
        for frame in choose(container):
            # The scaler changes colors here, and the size only of pixels that are not square: resizing is the pixel
            # contract's.
            width, height = round(frame.width * max(1, aspect)), round(frame.height / min(1, aspect))
            rgb = to_rgb.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()
            shown = _as_shown(rgb, frame)
            size = size or shown.shape
            if shown.shape != size:
                raise ValueError(f"its frames change from {size[1]}x{size[0]} to {shown.shape[1]}x{shown.shape[0]}")
            yield shown


def _as_shown(pixels: Frames, frame: Any) -> Frames:
    """A decoded picture, (H, W, 3), turned and mirrored by its display matrix.

    The matrix ((a, b, u), (c, d, v), (x, y, w)) of FFmpeg's libavutil/display.h moves the pixel (p, q), q downwards, to
    (a p + c q, b p + d q).
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if not any((a, b, c, d)):
        return pixels
    quarter = abs(b) + abs(c) > abs(a) + abs(d)
    if max(map(abs, (a, d) if quarter else (b, c))) > 0.01 * max(map(abs, (a, b, c, d))):
        raise ValueError("it is to be shown turned by an angle that is no quarter; turn it with a video editor")
    if quarter:
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _frames(container: Any, threads: int) -> Iterator[Any]:
    """The decoder's frames, up to the first that is damaged or missing.

    Decoders end quietly where a file was cut between two packets, so the end of the last packet is compared with the
    length that the header states.
    """
    stream = _stream(container)
    if stream.codec_context is None:
        raise ValueError("there is no decoder for its kind of video")
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


def _frames_at(container: Any, seconds: Sequence[float], tolerance: float, threads: int) -> Iterator[Any]:
    """The decoder's frames at rising times; `ValueError` where there is none."""
    stream, start = _stream(container), seconds[0] - tolerance
    if start > 0:  # to the last key frame before
        container.seek(int(start / stream.time_base), stream=stream)
    given, after = 0, "it ends before"
    for frame in _frames(container, threads):
        if frame.time < seconds[given] - tolerance:
            continue
        if frame.time > seconds[given] + tolerance:
            after = f"the next is at {frame.time:.3f}"
            break
        yield frame
        given += 1
        if given == len(seconds):
            return
    raise ValueError(f"it has no frame at {seconds[given]:.3f} seconds, {after}")


def _stated_seconds(container: Any, stream: Any) -> float:
    """How long the file is by its header, 0 where it does not say."""
    if not container.format.name.startswith(_STATING_LENGTH):
        return 0.0
    if container.format.name == "avi":  # its duration is scaled to the bytes that are there
        return float(stream.frames / stream.average_rate) if stream.average_rate else 0.0
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1_000_000  # microseconds
