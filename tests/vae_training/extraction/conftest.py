"""A folder of recordings, one of frames, and the messages of extractions between them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.fake_recordings import fakes
from vae_training.extraction import extractor
from vae_training.extraction.readers.base import Damaged, Recording


class Place:
    def __init__(self, folder: Path) -> None:
        self.source, self.out, self.said = folder / "in", folder / "out", list[str]()
        self.recordings: list[Recording] = fakes(self.source)
        self.damaged: list[Damaged] = []

    def extract(self, **changes: Any) -> extractor.ExtractResult:
        values = {"recordings": (self.source,), "out": self.out, "size": 16, "workers": 1, **changes}
        return extractor.extract(extractor.ExtractConfig(**values), say=self.said.append)

    @property
    def index(self) -> dict[str, Any]:
        return json.loads((self.out / "frames.json").read_text())

    def rows(self, stem: str) -> dict[str, np.ndarray]:
        with np.load(self.out / f"{stem}.rows.npz", allow_pickle=False) as rows:
            return dict(rows)

    def contents(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in self.out.iterdir()}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    place = Place(tmp_path)
    monkeypatch.setattr(extractor, "find_recordings", lambda paths, **_: (place.recordings, [*place.damaged]))
    return place
