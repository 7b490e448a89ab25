"""Speed and memory of loading: super-batches of random frames from files that are cached and from files that are not.

Against a plain sequential read of as many bytes, and against reading a memory map one index at a time in random order,
as most would first write it. Then how long training waits for frames, and the peak of resident memory with a small and
with a large dataset.
"""

import ctypes
import gc
import mmap
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro

from benchmarks.common import interleaved, machine_line, markdown_table, ratio, spread, synchronize
from benchmarks.gradient_step import cvae_stepper
from latent_obs.pixels import Frames
from latent_obs.util.device import resolve_device
from vae_training import SuperBatches, get_datasets, get_random_samples

_SHAPE = (64, 64, 3)
_FRAME_BYTES = 64 * 64 * 3
_FILES = 8


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    gigabytes: float = 2.0
    """Size of the files, eight in all, in a temporary folder."""
    small_gigabytes: float = 1.0
    """Size of the small dataset that memory is compared with; 0 leaves memory out."""
    super_batch: int = 10_000
    """Frames of a super-batch."""
    rounds: int = 15
    """Interleaved repeats with files in memory; 0 leaves them out."""
    disk_rounds: int = 5
    """Interleaved repeats with files that are not; 0 leaves them out."""
    batch_size: int = 128
    """Frames per gradient step."""
    epochs: int = 4
    """Super-batches to train on, to see how long training waits; 0 leaves it out."""
    train_super_batch: int = 2_000
    """Frames of a super-batch where the training is real; on a processor it takes a hundred times as long as
    loading."""
    images_per_second: int = 20_000
    """A GPU to pretend: training as fast as this, which leaves the processor alone."""
    device: str = "cpu"
    """Where to train for real."""
    folder: Path | None = None
    """Where to make the temporary folder, on the disk to be measured; the system's by default."""


def write_files(folder: Path, gigabytes: float) -> None:
    """Files of noise, on the disk when this returns."""
    wanted = int(gigabytes * 1e9)
    free = shutil.disk_usage(folder).free
    if wanted > 0.8 * free:
        raise SystemExit(
            f"{folder} has {free / 1e9:.0f} GB free, too few for {gigabytes:g} GB; choose another --folder"
        )
    frames = max(1, wanted // _FILES // _FRAME_BYTES)
    block = np.random.default_rng(0).integers(0, 256, (min(frames, 4096), *_SHAPE), np.uint8)
    for number in range(_FILES):
        with (folder / f"{number}.npy").open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (frames, *_SHAPE)}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, frames, len(block)):
                file.write(block[: frames - start].data)
            file.flush()
            os.fsync(file.fileno())


def evict(files: Sequence[Path]) -> None:
    """Drop files from the system's memory; they have been written out."""
    for file in files:
        with file.open("rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_share(files: Sequence[Path]) -> float:
    """Which share of files is in the system's memory, by mincore."""
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    pages = resident = 0
    for file in files:
        with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            there = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
            view = np.frombuffer(mapped, np.uint8)
            if mincore(view.ctypes.data, len(mapped), there.ctypes.data):
                raise OSError(ctypes.get_errno(), "mincore")
            del view
            pages, resident = pages + len(there), resident + int((there & 1).sum())
    return resident / pages


def sequential(files: Sequence[Path], out: Frames) -> None:
    """A plain read of as many bytes, file after file, in large calls into an array that is there already."""
    buffer, done = out.reshape(-1).data, 0
    for file in files:
        with file.open("rb", buffering=0) as handle:
            while done < len(buffer) and (count := handle.readinto(buffer[done : done + (16 << 20)])):
                done += count
    assert done == len(buffer)


def one_at_a_time(files: Sequence[Path], out: Frames, rng: np.random.Generator) -> None:
    """As most would write it: `dataset[i]` for random i, on memory maps opened for the occasion."""
    maps = [np.load(file, mmap_mode="r") for file in files]
    for i in range(len(out)):
        chosen = maps[i % len(maps)]
        out[i] = chosen[rng.integers(len(chosen))]


def rates(folder: Path, options: Options, *, cached: bool) -> dict[str, list[float]]:
    """Frames per second of each way to read a super-batch."""
    files = sorted(folder.iterdir())
    datasets = get_datasets(folder)
    out = np.zeros((options.super_batch, *_SHAPE), np.uint8)
    rng = np.random.default_rng(1)

    def draw(into: Frames | None = out) -> None:
        get_random_samples(datasets, options.super_batch, normalize=False, seed=rng, replace_small=True, out=into)

    ways: dict[str, Callable[[], object]] = {
        "sequential read": lambda: sequential(files, out),
        "sequential, numpy.fromfile (new memory)": lambda: np.fromfile(
            files[0], np.uint8, options.super_batch * _FRAME_BYTES
        ),
        "super-batch": draw,
        "super-batch, new memory": lambda: draw(into=None),
        "memory map, one index at a time": lambda: one_at_a_time(files, out, rng),
    }
    if files[0].stat().st_size < out.nbytes:
        del ways["sequential, numpy.fromfile (new memory)"]

    def timed(read: Callable[[], object]) -> Callable[[], float]:
        def measured() -> float:
            if not cached:
                evict(files)
            began = time.perf_counter()
            read()
            return options.super_batch / (time.perf_counter() - began)

        return measured

    if cached:
        for (
            file
        ) in files:  # all of it: more than the memory there is makes the arms no cached ones, and the share shows
            with file.open("rb", buffering=0) as handle:
                while handle.readinto(out.reshape(-1).data):
                    pass
    else:
        evict(files)
    print(
        f"{cached_share(files):.1%} of the files in memory before the {'first' if cached else 'second'} table.",
        flush=True,
    )
    return interleaved(
        {name: timed(read) for name, read in ways.items()}, options.rounds if cached else options.disk_rounds
    )


def rate_table(measured: dict[str, list[float]], title: str) -> str:
    """A table of the ways to read."""
    rows = [
        [
            name,
            f"{statistics.median(v):,.0f}",
            spread(v),
            f"{statistics.median(v) * _FRAME_BYTES / 1e9:.2f}",
            f"{ratio(v, measured['sequential read']):.0%}",
            f"{ratio(v, measured['memory map, one index at a time']):.1f}",
        ]
        for name, v in measured.items()
    ]
    return markdown_table([title, "frames/s", "min - max", "GB/s", "of sequential", "times one at a time"], rows)


class Waited(NamedTuple):
    """How fast a training was, and how long it waited for frames."""

    images_per_second: float  # without the first super-batch, for which there is nothing to do meanwhile
    share: float  # of the time
    share_later: float  # the same without the first super-batch
    first_s: float  # the first super-batch, in seconds


def waiting(folder: Path, options: Options, size: int, step: Callable[[Frames], object], cached: bool) -> Waited:
    """Train on some super-batches."""
    files = sorted(folder.iterdir())
    datasets = get_datasets(folder)
    with SuperBatches(datasets, size, epochs=options.epochs, replace_small=True, device=options.device) as batches:
        if not cached:
            evict(files)
        began = time.perf_counter()
        begun, first = began, 0.0
        for frames in batches:
            if batches.epoch == 0:
                first, begun = batches.wait_seconds, time.perf_counter()
            if not cached and batches.epoch + 2 < options.epochs:  # the next but one is drawn from now on
                evict(files)
            for i in range(0, len(frames), options.batch_size):
                step(frames[i : i + options.batch_size])
        synchronize(resolve_device(options.device))
        now = time.perf_counter()
        later = (batches.wait_seconds - first) / (now - begun)
        return Waited(size * options.epochs / (now - begun), batches.wait_seconds / (now - began), later, first)


def waiting_table(folder: Path, options: Options) -> str:
    """How long training waits, for real and with a GPU that is pretended."""

    def pretended(frames: Frames) -> None:
        frames.max()  # every frame is touched, as a copy to the GPU would
        time.sleep(len(frames) / options.images_per_second)

    steps = {
        f"CVAE on {options.device}": (options.train_super_batch, cvae_stepper(resolve_device(options.device))),
        "pretended GPU": (options.super_batch, pretended),
    }
    rows = []
    for name, (size, step) in steps.items():
        for cached in (True, False) if options.disk_rounds else (True,):
            gc.collect()
            waited = waiting(folder, options, size, step, cached)
            row = [f"{waited.images_per_second:,.0f}", f"{waited.share:.2%}", f"{waited.share_later:.2%}"]
            rows.append([f"{name}, {'cached' if cached else 'from disk'}", *row, f"{1000 * waited.first_s:.0f}"])
    return markdown_table(["training", "images/s", "waits", "after the first", "first super-batch, ms"], rows)


_CHILD = """
import sys
from vae_training import SuperBatches, get_datasets
def peak_kib():  # of this program; getrusage would tell that of the one that started it, too
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
datasets = get_datasets(sys.argv[1])
with SuperBatches(datasets, int(sys.argv[2]), epochs=int(sys.argv[3]), replace_small=True) as batches:
    before = peak_kib()
    total = sum(int(frames[::16, 0, 0, 0].sum()) for frames in batches)
print(before, peak_kib())
"""


def peak_megabytes(folder: Path, options: Options) -> tuple[float, float]:
    """Peak resident memory of a process before, and after drawing twelve super-batches."""
    command = [sys.executable, "-c", _CHILD, str(folder), str(options.super_batch), "12"]
    before, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(before) * 1024 / 1e6, int(peak) * 1024 / 1e6


def main(options: Options) -> None:
    """Measure and print."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else a run that `timeout` ends would leave its files
    print(machine_line(options.device), flush=True)
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as large,
        tempfile.TemporaryDirectory(dir=options.folder) as small,
    ):
        write_files(Path(large), options.gigabytes)
        print(
            f"{options.gigabytes:g} GB of frames {_SHAPE} in {_FILES} files, super-batches of {options.super_batch:,}."
        )
        if options.rounds:
            print(f"\n{rate_table(rates(Path(large), options, cached=True), 'cached')}\n", flush=True)
        if options.disk_rounds:
            print(f"\n{rate_table(rates(Path(large), options, cached=False), 'from disk')}\n", flush=True)
        if options.epochs:
            print(f"{waiting_table(Path(large), options)}\n", flush=True)
        if options.small_gigabytes:
            write_files(Path(small), options.small_gigabytes)
            rows = []
            for size, folder in ((options.small_gigabytes, small), (options.gigabytes, large)):
                before, peak = peak_megabytes(Path(folder), options)
                rows.append([f"{size:g} GB", f"{before:.0f}", f"{peak:.0f}", f"{peak - before:.0f}"])
            print(markdown_table(["dataset", "before, MB", "peak, MB", "added, MB"], rows))
            print(f"\nTwo super-batches are {2 * options.super_batch * _FRAME_BYTES / 1e6:.0f} MB.")
    print(
        f"\nMedians of {options.rounds} interleaved rounds, {options.disk_rounds} from disk; load "
        f"{os.getloadavg()[0]:.1f} now."
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
