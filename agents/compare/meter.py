"""What a run costs: wall-clock time, processor time and memory, of its process and its environment processes
together.
"""

import platform
import resource
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

import torch

from latent_obs.util.atomic import write_json
from latent_obs.util.device import cores, processor

_LONGEST_PAUSE_S = 5.0


class Meter:
    """Samples this process and all that it started, in a thread, and keeps the numbers in a file.

    The file is written again at each sample, so that a killed attempt has told what it cost.

    Args:
        file: A list with an entry per attempt; this one is added to those that are there.
        before: Entries of earlier attempts.

    Attributes:
        how: How memory was measured, in words.

    Example:
        >>> import tempfile
        >>> with Meter(Path(tempfile.mkdtemp()) / "usage.json", []) as meter:
        ...     _ = sum(range(100_000))
        >>> meter.entry["wall_seconds"] > 0 and meter.entry["peak_memory_mb"] > 1
        True
    """

    def __init__(self, file: Path, before: list[dict[str, Any]]) -> None:
        self._file, self._before = file, before
        self._psutil = _psutil()
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run, daemon=True, name="meter")
        self._began = time.perf_counter()
        self._cpu_before, self._peak_mb = 0.0, 0.0
        if self._psutil is None:
            self.how = (
                "peak resident memory of the main process alone (psutil, not installed, sees the environments as well)"
            )
        elif sys.platform.startswith("linux"):
            self.how = (
                "PSS (shared pages counted once) of the run's process and its environments' together, peak of samples"
            )
        else:
            self.how = (
                "RSS (shared pages counted in each) of the run's process and its environments', summed, peak of samples"
            )

    @property
    def entry(self) -> dict[str, Any]:
        """Numbers of this attempt up to now."""
        return {
            "wall_seconds": time.perf_counter() - self._began,
            "cpu_seconds": self._cpu_seconds() - self._cpu_before,
            "peak_memory_mb": self._peak_mb,
            "memory_how": self.how,
        }

    def __enter__(self) -> Self:
        self._began, self._cpu_before = time.perf_counter(), self._cpu_seconds()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        pause = 0.25  # a short run has its samples too
        while not self._stop.wait(pause):
            self._sample()
            pause = min(_LONGEST_PAUSE_S, 2 * pause)

    def _sample(self) -> None:
        self._peak_mb = max(self._peak_mb, self._memory_mb())
        write_json(self._file, [*self._before, self.entry])

    def _processes(self) -> list[Any]:
        assert self._psutil is not None
        own = self._psutil.Process()
        return [own, *own.children(recursive=True)]

    def _cpu_seconds(self) -> float:
        if self._psutil is None:
            uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
            return sum(use.ru_utime + use.ru_stime for use in uses)
        total = 0.0
        for process in self._processes():
            try:
                # Those that have ended are counted with the process that waited for them.
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
            except self._psutil.Error:  # it has just ended
                continue
        return total

    def _memory_mb(self) -> float:
        if self._psutil is None:
            unit = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
        total = 0
        for process in self._processes():
            try:
                memory = process.memory_full_info() if sys.platform.startswith("linux") else process.memory_info()
                total += getattr(memory, "pss", memory.rss)
            except self._psutil.Error:
                continue
        return total / 1e6


def _psutil() -> ModuleType | None:
    try:
        import psutil
    except ModuleNotFoundError:
        return None
    return psutil


_PACKAGES = (
    "latent-obs",
    "torch",
    "stable-baselines3",
    "sb3-contrib",
    "gymnasium",
    "numpy",
    "vizdoom",
    "minerl",
    "rliable",
)


def machine_line() -> str:
    """Processor, cores, system and GPU."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor()}, {cores()} core(s) usable{gpu}, {platform.system()}, Python {platform.python_version()}"


def versions() -> dict[str, str]:
    """Versions of the packages that decide the numbers, of those that are installed.

    Example:
        >>> "torch" in versions()
        True
    """
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
