"""What the benchmarks share: interleaved timing, medians, counted work, and a line that names the machine."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from latent_obs.encoder.architecture import Architecture
from latent_obs.util.device import cores, processor
from latent_obs.util.words import counted

#: The classic network (32-64-128-256, dense), and the quickstart's (small, spatial).
CLASSIC = Architecture((64, 64, 3), latent_dim=32)
QUICKSTART = Architecture((64, 64, 3), latent_dim=256, widths=(16, 32, 64), bottleneck="spatial")


def machine_line(device: str = "cpu") -> str:
    """One line on what was measured on: processor, cores, load before the measurement, torch and its threads."""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    gpu = f", {torch.cuda.get_device_name(torch.device(device))}" if device.startswith("cuda") else ""
    return (
        f"Machine: {processor()}, {counted(cores(), 'core')} usable{load}{gpu}, {platform.system()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"{counted(torch.get_num_threads(), 'thread')} by default."
    )


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_call(call: Callable[[], object], calls: int) -> float:
    """Mean wall-clock seconds of a call, over `calls` in a row."""
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls


def calls_within(call: Callable[[], object], seconds: float) -> int:
    """How many calls fill about so many seconds; warms the call up as well."""
    seconds_per_call(call, 3)
    return max(3, round(seconds / max(1e-9, seconds_per_call(call, 3))))


def interleaved(arms: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure A, B, C, A, B, C …, so that what else the machine does falls on all of them alike.

    Args:
        arms: A function per thing to compare; each measures once and returns the number.
        rounds: How often each is measured.

    Returns:
        The numbers of each arm, by round.

    Example:
        >>> interleaved({"a": lambda: 1.0, "b": lambda: 2.0}, rounds=2)
        {'a': [1.0, 1.0], 'b': [2.0, 2.0]}
    """
    measured: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, measure in arms.items():
            measured[name].append(measure())
    return measured


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median of the ratios of each round: a slow moment that covers both arms of a round cancels out.

    Example:
        >>> ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0])
        2.0
    """
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def spread(values: Sequence[float]) -> str:
    """Smallest and largest of some numbers, for a table.

    Example:
        >>> spread([1234.0, 999.0])
        '999 - 1,234'
    """
    return f"{min(values):,.0f} - {max(values):,.0f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column to the left and the others to the right.

    Example:
        >>> print(markdown_table(["what", "rate"], [["a", "12"]]))
        | what | rate |
        | :--- | ---: |
        | a    |   12 |
    """
    widths = [max(4, *(len(row[i]) for row in (header, *rows))) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = [":" + "-" * (w - 1) if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def convolution_flops(architecture: Architecture) -> int:
    """Operations of the encoder's convolutions for one image; those of the decoder's mirrored ones are as many.

    A multiplication and an addition count as two; biases and activations do not count.

    Example:
        >>> convolution_flops(Architecture((64, 64, 3), latent_dim=32)) / 1e6
        53.477376
    """
    return sum(
        2 * s.kernel**2 * s.channels_in * s.channels_out * s.size_out[0] * s.size_out[1] for s in architecture.stages
    )


def head_flops(architecture: Architecture) -> int:
    """Operations of one head, mean or log-variance, for one image."""
    last = architecture.stages[-1]
    area = last.size_out[0] * last.size_out[1]
    if architecture.bottleneck == "dense":
        return 2 * last.channels_out * area * architecture.latent_dim
    return 2 * last.channels_out * architecture.latent_map[0] * area


def encode_flops(architecture: Architecture) -> int:
    """Operations of the mean latent of one image."""
    return convolution_flops(architecture) + head_flops(architecture)


def gradient_step_flops(architecture: Architecture) -> int:
    """Operations of a gradient step of the CVAE, per image.

    Each layer costs as much again for the gradient of its weights, and again for that of its input, which the first
    layer does not need.
    """
    stem = head_flops(architecture) * (9 if architecture.bottleneck == "spatial" else 1)  # 3x3 where the heads are 1x1
    forward = 2 * convolution_flops(architecture) + 2 * head_flops(architecture) + stem
    first = architecture.stages[0]
    unneeded = 2 * first.kernel**2 * first.channels_in * first.channels_out * first.size_out[0] * first.size_out[1]
    return 3 * forward - unneeded


def limits(device: torch.device) -> dict[str, Callable[[], float]]:
    """Two arms that measure what a machine gives at best, in float32 GFLOP/s, for about a tenth of a second each.

    "matmul" is a product of two 1024² matrices. "convolution" is a large one, 256 to 256 channels, kernel 4, stride 1,
    on a
    32x32 map: torch's convolutions and its matrix products come from two libraries, and on some processors the first is
    twice as fast.
    """
    a, b, product = (torch.rand(1024, 1024, device=device) for _ in range(3))
    convolution = torch.nn.Conv2d(256, 256, 4, padding=2, device=device).to(memory_format=torch.channels_last)  # pyright: ignore
    image = torch.rand(1, 256, 32, 32, device=device).to(memory_format=torch.channels_last)

    def multiply() -> None:
        torch.mm(a, b, out=product)
        synchronize(device)

    def convolve() -> None:
        convolution(image)
        synchronize(device)

    def rate(call: Callable[[], None], flops: int) -> Callable[[], float]:
        with torch.inference_mode():
            calls = calls_within(call, 0.1)

        def measured() -> float:
            with torch.inference_mode():
                return flops / seconds_per_call(call, calls) / 1e9

        return measured

    return {
        "matmul": rate(multiply, 2 * 1024**3),
        "convolution": rate(convolve, 2 * 4 * 4 * 256 * 256 * 33 * 33),
    }
