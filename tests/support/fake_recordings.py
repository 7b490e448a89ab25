"""Recordings that are made up, in a module that worker processes can import quickly; what is done with them is
elsewhere."""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vae_training.extraction.readers.base import DamagedRecordingError, Frames, Recording

HEIGHT, WIDTH = 36, 48


def noise(seed: int, frames: int, height: int = HEIGHT, width: int = WIDTH) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


@dataclass(frozen=True)
class Fake(Recording):
    """Noise from a seed; `source` is a file that is there, and says nothing."""

    kind: ClassVar[str] = "fake"
    seed: int = 0
    frames: int = 50
    chunk: int = 16
    shape: tuple[int, int] = (HEIGHT, WIDTH)
    breaks_at: int | None = None  # damaged from that frame on
    dies_at: int | None = None  # the process is killed there, as long as there is a file "deadly"
    pause_s: float = 0.0
    row_count: int | None = None
    row_name: str = "reward"
    bug: bool = False

    def chunks(self) -> Iterator[Frames]:
        frames = noise(self.seed, self.frames, *self.shape)
        for first in range(0, self.frames, self.chunk):
            if self.breaks_at is not None and first >= self.breaks_at:
                raise DamagedRecordingError(f"{self.source} breaks off after {first} frames")
            if self.dies_at is not None and first >= self.dies_at and (self.source.parent / "deadly").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            if self.bug:
                raise ZeroDivisionError("a mistake")
            time.sleep(self.pause_s)
            yield frames[first : first + self.chunk]

    def rows(self) -> Mapping[str, NDArray[Any]]:
        count = self.frames if self.row_count is None else self.row_count
        return {
            self.row_name: np.arange(count, dtype=np.float32),
            "file": np.array([f"step {i}" for i in range(count)]),
        }

    @property
    def expected_frames(self) -> int | None:
        return self.frames

    @property
    def notes(self) -> list[str]:
        return [f"{self.name} is made up"] if self.seed == 99 else []


def fakes(folder: Path, count: int = 3, **changes: Any) -> list[Recording]:
    """Some recordings, and the files that they claim to be."""
    folder.mkdir(parents=True, exist_ok=True)
    made: list[Recording] = []
    for i in range(count):
        source = folder / f"clip {i}.fake"
        if not source.exists():
            source.write_text(str(i))
        made.append(Fake(f"clip {i}", source, seed=i, frames=40 + 10 * i, **changes))
    return made
