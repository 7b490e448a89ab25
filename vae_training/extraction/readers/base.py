"""What all recordings have in common: a name, frames in order, and rows of actions, rewards and state if known."""

import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from latent_obs.util.errors import InputError, MissingExtraError
from vae_training.data.frames import Frames

CHUNK_BYTES = 16 << 20
_MOST_FRAMES = 512  # in a chunk, so that tiny frames come in time as well


class DamagedRecordingError(InputError):
    """A recording that cannot be read, or not to its end; the message says which and why."""


@dataclass(frozen=True)
class Damaged:
    """A recording that was found and cannot be used."""

    name: str
    source: Path
    reason: str
    part: str = ""


@dataclass(frozen=True)
class Recording(ABC):
    """One recording: frames that follow each other, of one size.

    Attributes:
        name: Unique among the recordings of a search: its path below the folder that was searched, without suffix.
        source: The file or folder that it is.
        threads: Threads of the video decoder; 0 takes one per core.
        part: Which part of its source it is, "demo_3" or "episode_000003", where that holds several recordings.
    """

    name: str
    source: Path
    threads: int = 0
    part: str = ""
    kind: ClassVar[str]

    @abstractmethod
    def chunks(self) -> Generator[Frames]:
        """The frames in order, uint8 (n, H, W, 3) RGB, some at a time: memory is constant in the recording's length.

        Raises:
            DamagedRecordingError: It cannot be read, or breaks off; the chunks before that point were good.
        """

    def rows(self) -> Mapping[str, NDArray[Any]]:
        """Arrays by name, numbers or text, whose row i belongs to frame i: "action$camera", "reward", and so on.

        Raises:
            DamagedRecordingError: They cannot be read.
        """
        return {}

    @contextlib.contextmanager
    def opened(self, scratch: Path) -> Iterator["Recording"]:
        """The recording to read from while it is in use, with what it needs fetched to a folder inside `scratch`."""
        yield self

    @property
    def files(self) -> Sequence[Path]:
        """The files that it consists of."""
        return [self.source]

    @property
    def notes(self) -> list[str]:
        """Remarks for the user, in whole sentences; nothing is decoded. Raises a `DamagedRecordingError`."""
        return []

    @property
    def expected_frames(self) -> int | None:
        """Number of frames by the recording's own header; None where it states none, or cannot be read."""
        with contextlib.suppress(DamagedRecordingError):
            return self._stated_frames()

    def _stated_frames(self) -> int | None:
        return None

    def fingerprint(self) -> str:
        """A text that changes with the source: its part, and names, sizes and modification times of its files.

        Raises:
            DamagedRecordingError: A file is gone, or cannot be looked at.
        """
        with reading(self.source):
            files = [f"{file.name}:{(stat := file.stat()).st_size}:{stat.st_mtime_ns}" for file in self.files]
            return ";".join(files + ([self.part] if self.part else []))


@contextlib.contextmanager
def reading(what: object) -> Iterator[None]:
    """Turn whatever a parser or decoder raises in this block into a `DamagedRecordingError` that begins with `what`."""
    try:
        yield
    except (DamagedRecordingError, MissingExtraError):
        raise
    except Exception as error:
        words = str(error).splitlines() if isinstance(error, (OSError, ValueError)) else []
        words = [f"it lacks {error}"] if isinstance(error, KeyError) else words
        raise DamagedRecordingError(f"{what} cannot be read: {words[0] if words else repr(error)}") from None


def choose_camera(source: object, cameras: Sequence[str], camera: str | None) -> str:
    """Which of several series of pictures to take: the one called `camera`, wholly or between dots and slashes.

    Raises:
        InputError: There is none of that name, or several, or `camera` is None and there are several.
        DamagedRecordingError: There are no pictures at all.
    """
    if not cameras:
        raise DamagedRecordingError(f"{source} holds no pictures")
    if camera is None and len(cameras) == 1:
        return cameras[0]
    fitting = [name for name in cameras if name == camera] or [
        name for name in cameras if camera in re.split(r"[./]", name)
    ]
    if len(fitting) != 1:
        found = f"{'several' if fitting else 'no'} pictures called {camera!r}"
        found = "pictures of several cameras" if camera is None else found
        raise InputError(f"{source} has {found}; choose one by --camera: {', '.join(fitting or cameras)}")
    return fitting[0]


def frames_per_chunk(frame_bytes: int) -> int:
    """Number of frames to hand on together."""
    return max(1, min(_MOST_FRAMES, CHUNK_BYTES // max(1, frame_bytes)))


def in_chunks(frames: Iterable[Frames]) -> Generator[Frames]:
    """Collect frames (H, W, 3) of one size into arrays (n, H, W, 3); those before damage are given before it is raised.

    Raises:
        DamagedRecordingError: As `frames` raises it, with the number of good frames.
    """
    chunk, filled, good = np.empty((0, 0, 0, 3), np.uint8), 0, 0
    try:
        for frame in frames:
            if filled == len(chunk):
                if filled:
                    yield chunk
                chunk, filled = np.empty((frames_per_chunk(frame.nbytes), *frame.shape), np.uint8), 0
            chunk[filled] = frame
            filled, good = filled + 1, good + 1
    except DamagedRecordingError as error:
        if filled:
            yield chunk[:filled]
        raise DamagedRecordingError(f"{error} ({good} good frames before it)") from None
    if filled:
        yield chunk[:filled]


def natural_key(name: str) -> tuple[list[str | int], str]:
    """A sort key that orders numbers in names by their value.

    Example:
        >>> sorted(["img_10.png", "img_2.png", "img_02b.png", "a.png"], key=natural_key)
        ['a.png', 'img_2.png', 'img_02b.png', 'img_10.png']
    """
    # The pieces alternate, text first: text is only ever compared with text, and numbers with numbers.
    parts = re.split("([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def is_passed_over(name: str) -> bool:
    """Whether a name is that of a hidden, unfinished or leftover file or folder."""
    return name.startswith(".") or name == "__MACOSX" or name.endswith(".part")
