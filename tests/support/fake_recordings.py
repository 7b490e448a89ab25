"""Recordings of noise, in a module that worker processes import quickly, and a place to extract them."""

import os
import signal
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vae_training.data.frames import Frames
from vae_training.extraction.readers.base import DamagedRecordingError, Recording

HEIGHT, WIDTH = 36, 48


def noise(seed: int, frames: int, height: int = HEIGHT, width: int = WIDTH) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


@dataclass(frozen=True)
class Fake(Recording):
    """Noise from a seed, in chunks of 16; the content of `source` does not matter."""

    kind: ClassVar[str] = "fake"
    seed: int = 0
    frames: int = 50
    shape: tuple[int, int] = (HEIGHT, WIDTH)
    breaks_at: int | None = None  # damaged from that frame on
    dies_at: int | None = None  # the process is killed there, as long as there is a file "deadly"
    waits: bool = False  # when chunks were written, until there is a file "go"
    row_count: int | None = None
    row_name: str = "reward"

    def chunks(self) -> Generator[Frames]:
        frames, folder = noise(self.seed, self.frames, *self.shape), self.source.parent
        for first in range(0, self.frames, 16):
            if self.breaks_at is not None and first >= self.breaks_at:
                raise DamagedRecordingError(f"{self.source} breaks off after {first} frames")
            if self.dies_at is not None and first >= self.dies_at and (folder / "deadly").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            while self.waits and first >= 48 and not (folder / "go").exists():
                time.sleep(0.01)
            yield frames[first : first + 16]

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
    """Some recordings, and the files that they claim to be; only the first never waits."""
    folder.mkdir(parents=True, exist_ok=True)
    made: list[Recording] = []
    for i in range(count):
        source = folder / f"clip {i}.fake"
        if not source.exists():
            source.write_text(str(i))
        each = {**changes, "waits": i > 0 and changes.get("waits", False)}
        made.append(Fake(f"clip {i}", source, seed=i, frames=40 + 10 * i, **each))
    return made
