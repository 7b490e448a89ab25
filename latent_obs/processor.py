"""What this process computes on: the processor's name, and how many of its cores it may use."""

import os
import platform
from pathlib import Path


def cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has.

    Example:
        >>> cores() >= 1
        True
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return usable or 1


def processor() -> str:
    """The processor's name, as its maker and the system tell it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
