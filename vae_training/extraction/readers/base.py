"""What all recordings have in common: a name, frames in order, and perhaps what the player did in each of them."""

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


class DamagedRecordingError(InputError):
    """A recording that cannot be read, or not to its end; the message says which and why."""


@dataclass(frozen=True)
class Damaged:
    """A recording that was found and cannot be used.

    Attributes:
        name: As of a recording.
        source: The file or folder.
        reason: Why, for the user.
    """

    name: str
    source: Path
    reason: str


@dataclass(frozen=True)
class Recording(ABC):
    """One recording: frames that follow each other, of one size.

    Attributes:
        name: Unique among the recordings of a search: its path below the folder that was searched, without suffix.
        source: The file or folder that it is.
    """

    name: str
    source: Path
    kind: ClassVar[str]

    @abstractmethod
    def chunks(self) -> Iterator[Frames]:
        """The frames in order, uint8 (n, H, W, 3) RGB, some at a time; memory does not depend on the recording's
        length.

        Raises:
            DamagedRecordingError: It cannot be read, or breaks off; the chunks before that point were good.
        """

    def rows(self) -> Mapping[str, NDArray[Any]]:
        """What is known of each frame, by name: an array whose row i belongs to frame i of `chunks`.

        Actions as the recording names them ("action$camera"), "reward", and so on; nothing where it has none. Plain
        numbers and text, never objects. A recording that has rows has one for each frame.

        Raises:
            DamagedRecordingError: They cannot be read.
        """
        return {}

    @property
    def expected_frames(self) -> int | None:
        """Number of frames as the recording's own header tells it, for a progress bar; None where it tells none."""
        return None

    @property
    def notes(self) -> list[str]:
        """What the user should know of this recording though it can be read, in whole sentences; nothing is decoded.

        Raises:
            DamagedRecordingError: It cannot be read.
        """
        return []

    def fingerprint(self) -> str:
        """A text that changes when the source does: names, sizes and modification times of its files, in
        nanoseconds.
        """
        files = sorted(f for f in self.source.rglob("*") if f.is_file()) if self.source.is_dir() else [self.source]
        return ";".join(f"{f.name}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files)


CHUNK_BYTES = 16 << 20
_MOST_FRAMES = 512  # in a chunk, so that tiny frames come in time as well


def frames_per_chunk(frame_bytes: int) -> int:
    """Number of frames to hand on together.

    Example:
        >>> frames_per_chunk(360 * 640 * 3), frames_per_chunk(64 * 64 * 3), frames_per_chunk(1 << 30)
        (24, 512, 1)
    """
    return max(1, min(_MOST_FRAMES, CHUNK_BYTES // max(1, frame_bytes)))


def fingerprint_of(files: Iterable[Path]) -> str:
    """Names, sizes and modification times of some files, as `Recording.fingerprint` gives them."""
    return ";".join(f"{f.name}:{(s := f.stat()).st_size}:{s.st_mtime_ns}" for f in files)


def natural_key(name: str) -> tuple[list[str | int], str]:
    """What to sort names by, so that their numbers count as numbers.

    Example:
        >>> sorted(["img_10.png", "img_2.png", "img_02b.png", "a.png"], key=natural_key)
        ['a.png', 'img_2.png', 'img_02b.png', 'img_10.png']
    """
    # The pieces alternate, text first: text is only ever compared with text, and numbers with numbers.
    parts = re.split("([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def is_passed_over(name: str) -> bool:
    """Whether a file or folder is none of the user's recordings by its name alone: hidden, unfinished, or a leftover.

    Example:
        >>> [is_passed_over(name) for name in (".DS_Store", "__MACOSX", "a.mp4.part", "a.mp4")]
        [True, True, True, False]
    """
    return name.startswith(".") or name == "__MACOSX" or name.endswith(".part")
