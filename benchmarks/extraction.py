"""What extraction costs beside the video decoder that it waits for.

"decode" is the bare loop of PyAV over the same clips, "decode, RGB" the same with each frame as an RGB array, which is
the least that any extraction must do; both with the decoder's threads as the extraction has them. "one after the other"
is what
one would write first: decode, resize, append, in one thread of Python. "extract" is `vae_training.extract` as users
call it, finding, index and files included, in one process and in several.
"""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import tyro

from benchmarks.common import interleaved, machine_line, markdown_table, ratio, spread
from latent_obs.pixels import PixelContract
from latent_obs.util.words import counted
from vae_training.data.npy_writer import NpyWriter
from vae_training.extraction.extractor import ExtractConfig, extract
from vae_training.extraction.readers.find import find_recordings


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    clips: Path | None = None
    """Folder of video clips; by default one is made, of 640x360 noise that moves."""
    copies: int = 1
    """How often each clip is there, so that several workers have enough to do."""
    size: int = 64
    """Side of the extracted frames."""
    workers: tuple[int, ...] = (1, 2)
    """Numbers of processes to measure."""
    cores: int | None = None
    """Cores to use; all by default. 1 shows the work itself, without any overlap."""
    rounds: int = 5
    """Interleaved repeats of each measurement."""


def make_clip(file: Path, frames: int = 300, width: int = 640, height: int = 360) -> None:
    """Write a clip of moving noise, about as hard to decode as a game."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 8 + 40, width // 8 + 80, 3), np.uint8)
    picture = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=30, options={"qscale": "4"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            view = np.ascontiguousarray(picture[i : i + height, 2 * i : 2 * i + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(view)))
        container.mux(stream.encode(None))


def decode(files: list[Path], threads: int, each: Callable[[av.VideoFrame], object]) -> int:
    """The bare loop; the number of frames."""
    frames = 0
    for file in files:
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = threads
            for frame in container.decode(stream):
                each(frame)
                frames += 1
    return frames


def one_after_the_other(files: list[Path], threads: int, size: int, out: Path) -> int:
    """Decode, resize and append, frame by frame."""
    contract, frames = PixelContract(size, size, 3), 0
    for i, file in enumerate(files):
        with NpyWriter(out / f"{i}.npy", contract.shape) as writer:

            def add(frame: av.VideoFrame, writer: NpyWriter = writer) -> None:
                writer.append(contract.convert(frame.to_ndarray(format="rgb24")[None]))

            frames += decode([file], threads, add)
    return frames


def main(options: Options) -> None:
    """Measure and print."""
    if options.cores is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    cores = len(os.sched_getaffinity(0))
    print(machine_line(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name) / "clips", Path(name) / "out"
        folder.mkdir()
        if options.clips is None:
            make_clip(folder / "0_made.mp4")
        clips = (
            [folder / "0_made.mp4"]
            if options.clips is None
            else sorted(r.source for r in find_recordings([options.clips])[0])
        )
        for i in range(options.copies):
            for clip in clips:
                if clip.parent != folder or i:
                    shutil.copyfile(clip, folder / f"{i}_{clip.name}")
        files = sorted(folder.iterdir())
        cpu_ms: dict[str, list[float]] = {}

        def timed(arm: str, run: Callable[[], int]) -> Callable[[], float]:
            def measured() -> float:
                shutil.rmtree(out, ignore_errors=True)
                cpu, began = time.process_time(), time.perf_counter()
                frames = run()
                seconds = time.perf_counter() - began
                cpu_ms.setdefault(arm, []).append((time.process_time() - cpu) / frames * 1e3)
                return frames / seconds

            return measured

        def extraction(workers: int) -> Callable[[], int]:
            config = ExtractConfig((folder,), out, size=options.size, workers=workers)
            return lambda: extract(config, progress_bar=False, say=lambda _: None).frames

        runs: dict[str, Callable[[], int]] = {
            "decode": lambda: decode(files, cores, lambda frame: None),
            "decode, RGB": lambda: decode(files, cores, lambda frame: frame.to_ndarray(format="rgb24")),
            "one after the other": lambda: one_after_the_other(files, cores, options.size, out),
            **{f"extract, {counted(n, 'process', 'processes')}": extraction(n) for n in options.workers},
        }
        rates = interleaved({arm: timed(arm, run) for arm, run in runs.items()}, options.rounds)
    rows = [
        [
            arm,
            f"{statistics.median(rate):,.0f}",
            spread(rate),
            f"{statistics.median(cpu_ms[arm]):.2f}" if "processes" not in arm else "-",
            f"{ratio(rate, rates['decode']):.2f}",
            f"{ratio(rate, rates['decode, RGB']):.2f}",
        ]
        for arm, rate in rates.items()
    ]
    header = ["what", "frames/s", "from - to", "CPU ms a frame", "of decode", "of decode, RGB"]
    print(
        f"\n{len(files)} clips, {counted(cores, 'core')}, a decoder with {counted(cores, 'thread')}\n\n"
        f"{markdown_table(header, rows)}\n"
    )
    print(
        f"Medians of {options.rounds} interleaved rounds; ratios are those of the rounds. Target: "
        f">= 0.80 of decode, RGB."
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
