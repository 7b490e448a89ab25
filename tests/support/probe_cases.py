"""Latents, frames and targets as wished, in recordings of one length, and a probe of them; the tests of probes share
them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_training.report.probes.probes import Head, ProbeTable, probe

RECORDINGS, LENGTH = 12, 60
TOTAL = RECORDINGS * LENGTH
NAMES = [f"r{i:02}" for i in range(RECORDINGS)]


def numbered(total: int = TOTAL) -> NDArray[np.uint8]:
    """Frames that hold nothing but their number."""
    frames = np.zeros((total, 4, 4, 3), np.uint8)
    frames[:, 0, 0, 0], frames[:, 0, 0, 1] = np.arange(total) % 256, np.arange(total) // 256
    return frames


@dataclass(frozen=True)
class Given:
    """Latents as wished: row i for the frame with number i."""

    table: NDArray[Any]
    name: str = "latent"

    @property
    def dim(self) -> int:
        return self.table.shape[1]

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.table[frames[:, 0, 0, 0].astype(int) + 256 * frames[:, 0, 0, 1].astype(int)].astype(np.float32)


def cut(array: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {name: array[i * LENGTH : (i + 1) * LENGTH] for i, name in enumerate(NAMES)}


def targets_of(**columns: NDArray[Any]) -> dict[str, dict[str, NDArray[Any]]]:
    return {name: {key: cut(column)[name] for key, column in columns.items()} for name in NAMES}


def run(latents: NDArray[Any], columns: Mapping[str, NDArray[Any]], **settings: Any) -> ProbeTable:
    return probe([Given(latents)], cut(numbered()), targets_of(**columns), **{"cnn": False, "mlp": False, **settings})


def score(table: ProbeTable, target: str = "y", head: Head = "linear") -> float:
    return table.result(target, "latent", head).main.value
