"""What all recordings have in common: a name, frames in order, and rows of actions, rewards and state if known."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from latent_obs.util.errors import InputError

Frames = NDArray[np.uint8]
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


@dataclass(frozen=True)
class Recording(ABC):
    """One recording: frames that follow each other, of one size.

    Attributes:
        name: Unique among the recordings of a search: its path below the folder that was searched, without suffix.
        source: The file or folder that it is.
        threads: Threads of the video decoder; 0 takes one per core.
    """

    name: str
    source: Path
    threads: int = 0
    kind: ClassVar[str]

    @abstractmethod
    def chunks(self) -> Iterator[Frames]:
        """The frames in order, uint8 (n, H, W, 3) RGB, some at a time: memory is constant in the recording's length.

        Raises:
            DamagedRecordingError: It cannot be read, or breaks off; the chunks before that point were good.
        """

    def rows(self) -> Mapping[str, NDArray[Any]]:
        """Arrays by name, whose row i belongs to frame i of `chunks`: numbers and text, never objects.

        Actions as the recording names them ("action$camera"), "reward", and so on; empty where it has none.

        Raises:
            DamagedRecordingError: They cannot be read.
        """
        return {}

    @property
    def expected_frames(self) -> int | None:
        """Number of frames by the recording's own header; None where it states none, or cannot be read."""
        try:
            return self._stated_frames()
        except DamagedRecordingError:
            return None

    def _stated_frames(self) -> int | None:
        return None

    @property
    def notes(self) -> list[str]:
        """Remarks on a readable recording for the user, in whole sentences; nothing is decoded.

        Raises:
            DamagedRecordingError: It cannot be read.
        """
        return []

    def fingerprint(self) -> str:
        """A text that changes with the source: names, sizes and modification times of its files."""
        return fingerprint_of([self.source])


def fingerprint_of(files: Iterable[Path]) -> str:
    """Names, sizes and modification times of some files, as `Recording.fingerprint` gives them."""
    return ";".join(f"{file.name}:{(stat := file.stat()).st_size}:{stat.st_mtime_ns}" for file in files)


def frames_per_chunk(frame_bytes: int) -> int:
    """Number of frames to hand on together."""
    return max(1, min(_MOST_FRAMES, CHUNK_BYTES // max(1, frame_bytes)))


def in_chunks(frames: Iterable[Frames]) -> Iterator[Frames]:
    """Collect frames (H, W, 3) of one size into arrays (n, H, W, 3); those before damage are given before it is raised.

    Raises:
        DamagedRecordingError: As `frames` raises it, with the number of good frames.
    """
    chunk, filled, good = np.empty((0, 0, 0, 3), np.uint8), 0, 0
    damage: DamagedRecordingError | None = None
    try:
        for frame in frames:
            if filled == len(chunk):
                if filled:
                    yield chunk
                chunk, filled = np.empty((frames_per_chunk(frame.nbytes), *frame.shape), np.uint8), 0
            chunk[filled] = frame
            filled += 1
            good += 1
    except DamagedRecordingError as error:
        damage = error
    if filled:
        yield chunk[:filled]
    if damage is not None:
        raise DamagedRecordingError(f"{damage} ({good} good frames before it)") from None


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
