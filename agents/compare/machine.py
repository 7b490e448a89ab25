"""What the numbers were measured on, in a line and as versions."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from latent_obs.processor import cores, processor

_PACKAGES = ("latent-obs", "torch", "stable-baselines3", "sb3-contrib", "gymnasium", "numpy", "vizdoom", "minerl", "rliable")


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
