"""Memory of Stable-Baselines3's replay buffer, and the time of a sample from it: latents beside pixels.

The latents' buffer is filled to the last step; the pixels' one is filled as far as the memory limit given lets it, and
the rest is computed (a page of it that was never written takes no memory). Each runs in a process of its own.
"""

import multiprocessing
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import tyro
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from benchmarks.common import machine_line, markdown_table

_CHANNELS_FIRST = (3, 64, 64)


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    steps: int = 1_000_000
    """Environment steps that the buffer holds."""
    envs: int = 8
    """Environments that fill it."""
    most_gb: float = 4.0
    """How much of the pixels' buffer to fill at most, in GB (1e9 bytes)."""
    batch_size: int = 256
    """Transitions per sample."""


ARMS: dict[str, tuple[spaces.Box, bool]] = {
    "latents, 32 values": (spaces.Box(-np.inf, np.inf, (32,), np.float32), False),
    "latents, 32 values, next ones not stored twice": (spaces.Box(-np.inf, np.inf, (32,), np.float32), True),
    "latents, 256 values": (spaces.Box(-np.inf, np.inf, (256,), np.float32), False),
    "latents, 256 values, next ones not stored twice": (spaces.Box(-np.inf, np.inf, (256,), np.float32), True),
    "pixels, 64x64 RGB": (spaces.Box(0, 255, _CHANNELS_FIRST, np.uint8), False),
    "pixels, next ones not stored twice": (spaces.Box(0, 255, _CHANNELS_FIRST, np.uint8), True),
}


def measure(name: str, options: Options, results: Any) -> None:
    """Fill one buffer; returns bytes, share filled, growth of the process, and seconds per added step and sample."""
    space, once = ARMS[name]
    before = psutil.Process().memory_info().rss
    buffer = ReplayBuffer(
        options.steps,
        space,
        spaces.Discrete(4),
        device="cpu",
        n_envs=options.envs,
        optimize_memory_usage=once,
        handle_timeout_termination=not once,
    )
    arrays = [value for value in vars(buffer).values() if isinstance(value, np.ndarray)]
    size = sum(array.nbytes for array in {id(array): array for array in arrays}.values())
    rounds = options.steps // options.envs
    filled = min(rounds, int(rounds * options.most_gb * 1e9 / size))
    rng = np.random.default_rng(0)
    if space.dtype == np.uint8:
        seen = rng.integers(0, 256, (options.envs, *space.shape), np.uint8)
    else:
        seen = rng.standard_normal((options.envs, *space.shape), np.float32)
    actions, rewards, dones = np.zeros((options.envs, 1), int), np.zeros(options.envs), np.zeros(options.envs)
    infos: list[dict[str, Any]] = [{} for _ in range(options.envs)]
    began = time.perf_counter()
    for _ in range(filled):
        buffer.add(seen, seen, actions, rewards, dones, infos)
    per_step = (time.perf_counter() - began) / (filled * options.envs)
    grown = psutil.Process().memory_info().rss - before
    samples = []
    for _ in range(50):
        began = time.perf_counter()
        buffer.sample(options.batch_size)
        samples.append(time.perf_counter() - began)
    results.put((size, filled / rounds, grown, per_step, statistics.median(samples)))


def main(options: Options) -> None:
    """Measure and print."""
    print(machine_line("cpu"), flush=True)
    context = multiprocessing.get_context("spawn")
    rows = []
    for name in ARMS:
        results = context.Queue()
        process = context.Process(target=measure, args=(name, options, results))
        process.start()
        size, share, grown, per_step, sample = results.get(timeout=600)
        process.join()
        rows.append(
            [
                name,
                f"{size / 1e6:,.0f}",
                f"{share:.0%}",
                f"{grown / 1e6:,.0f}",
                f"{per_step * 1e6:.1f}",
                f"{sample * 1e3:.2f}",
            ]
        )
    header = [
        f"{options.steps:,} steps",
        "buffer, MB",
        "filled",
        "memory grown by, MB",
        "µs to add a step",
        f"ms to sample {options.batch_size}",
    ]
    print(f"\n{markdown_table(header, rows)}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
