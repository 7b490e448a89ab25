"""Recordings of noise, in a module that worker processes import quickly, and a place to extract them."""

import importlib
import json
import os
import signal
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vae_training.data.frames import Frames
from vae_training.extraction.readers.base import Damaged, DamagedRecordingError, Recording

if TYPE_CHECKING:
    import pytest

    from vae_training.extraction.extractor import ExtractResult

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


class Place:
    """A folder of recordings, one of frames, and the messages."""

    def __init__(self, folder: Path, monkeypatch: "pytest.MonkeyPatch") -> None:
        self.source, self.out, self.said = folder / "in", folder / "out", list[str]()
        self.recordings: list[Recording] = fakes(self.source)
        self.damaged: list[Damaged] = []
        self.module: Any = importlib.import_module("vae_training.extraction.extractor")
        monkeypatch.setattr(self.module, "find_recordings", lambda paths, vpt: (self.recordings, [*self.damaged]))

    def extract(self, **changes: Any) -> "ExtractResult":
        values = {"recordings": (self.source,), "out": self.out, "size": 16, "workers": 1, **changes}
        return self.module.extract(self.module.ExtractConfig(**values), say=self.said.append)

    @property
    def index(self) -> dict[str, Any]:
        return json.loads((self.out / "frames.json").read_text())

    def rows(self, stem: str) -> dict[str, np.ndarray]:
        with np.load(self.out / f"{stem}.rows.npz", allow_pickle=False) as rows:
            return dict(rows)

    def names(self) -> list[str]:
        return sorted(file.name for file in self.out.iterdir())

    def contents(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in self.out.iterdir()}
