"""What a run costs: wall-clock time, processor time and memory, of its process and its environment processes."""

import platform
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

import torch

from latent_obs.minerl.installation import version_of
from latent_obs.util.atomic import write_json
from latent_obs.util.device import cores, processor
from latent_obs.util.errors import require

_PACKAGES = ("latent-obs", "torch", "stable-baselines3", "sb3-contrib", "gymnasium", "numpy", "vizdoom", "minerl")
_LINUX = sys.platform.startswith("linux")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 5.0


class Meter:
    """Sample this process and all its descendants in a thread, and write the numbers to a file at each sample.

    The cost of a run that is killed is therefore in the file, too.

    Args:
        file: A list with an entry for each attempt; this one is appended.
        before: Entries of earlier attempts.

    Raises:
        MissingExtraError: psutil is not installed.
    """

    how = (
        f"{'PSS (shared pages counted once)' if _LINUX else 'RSS (shared pages counted in each process)'} of the run's "
        "process and its environments' together, peak of samples"
    )

    def __init__(self, file: Path, before: list[dict[str, Any]]) -> None:
        self._psutil = require("psutil", extra="compare", purpose="measure what runs cost")
        self._file, self._before = file, before
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run, daemon=True, name="meter")
        self._began, self._peak_mb = time.perf_counter(), 0.0
        self._cpu_before = self._usage()[0]

    @property
    def entry(self) -> dict[str, Any]:
        """Numbers of this attempt until now."""
        return {
            "wall_seconds": time.perf_counter() - self._began,
            "cpu_seconds": self._usage()[0] - self._cpu_before,
            "peak_memory_mb": self._peak_mb,
            "memory_how": self.how,
        }

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        pause = _FIRST_PAUSE_S  # short at first, so that a short run has samples as well
        while not self._stop.wait(pause):
            self._sample()
            pause = min(_LONGEST_PAUSE_S, 2 * pause)

    def _sample(self) -> None:
        self._peak_mb = max(self._peak_mb, self._usage()[1])
        write_json(self._file, [*self._before, self.entry])

    def _usage(self) -> tuple[float, float]:
        """Processor seconds and megabytes of all processes together."""
        seconds, size = 0.0, 0
        own = self._psutil.Process()
        for process in (own, *own.children(recursive=True)):
            try:
                times = process.cpu_times()  # a process that has ended counts with the one that waited for it
                memory = process.memory_full_info() if _LINUX else process.memory_info()
            except self._psutil.Error:  # it has just ended
                continue
            seconds += times.user + times.system + times.children_user + times.children_system
            size += getattr(memory, "pss", memory.rss)
        return seconds, size / 1e6


def machine_line() -> str:
    """Processor, cores, GPU and system of this machine."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor()}, {cores()} core(s) usable{gpu}, {platform.system()}, Python {platform.python_version()}"


def versions() -> dict[str, str]:
    """Versions of the installed packages on which the numbers of a run depend."""
    found = {name: version_of(name) for name in _PACKAGES}
    return {name: version for name, version in found.items() if version is not None}
