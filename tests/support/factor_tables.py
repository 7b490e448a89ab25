"""Scenes whose frames are their factors, and latents without them; the tests of disentanglement scores share them."""

from dataclasses import dataclass, field

import numpy as np

from benchmarks.factor_scenes import Factor

F, K = 4, 8  # factors, and values of each
HADAMARD = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
ROTATION = np.linalg.qr(np.random.default_rng(5).normal(size=(F, F)))[0]


@dataclass
class Table:
    """Scenes whose frames are the values of the factors themselves; it remembers what it rendered."""

    counts: tuple[int, ...] = (K,) * F
    ordered: bool = True
    rendered: list[np.ndarray] = field(default_factory=list)

    @property
    def factors(self) -> list[Factor]:
        return [Factor(f"factor_{i}", n, self.ordered) for i, n in enumerate(self.counts)]

    def sample_values(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, self.counts, (n, len(self.counts)))

    def render(self, values: np.ndarray) -> np.ndarray:
        self.rendered.append(values.copy())
        return values - (np.array(self.counts) - 1) / 2


def table(n: int, seed: int = 0, counts: tuple[int, ...] = (K,) * F) -> tuple[np.ndarray, np.ndarray]:
    """Frames and values of a `Table`."""
    scenes = Table(counts)
    values = scenes.sample_values(n, np.random.default_rng(seed))
    return scenes.render(values), values


def noise(frames: np.ndarray) -> np.ndarray:
    """Latents that have nothing to do with the frames, yet are the same for the same ones."""
    return np.random.default_rng(abs(int(frames[:50].sum() * 2)) + len(frames)).normal(size=(len(frames), F))
