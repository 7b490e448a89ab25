"""What to extract from recordings and how, as one frozen dataclass; the command line is made from it."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from tyro.conf import Positional

from latent_obs.errors import InputError
from latent_obs.pixels import Crop
from vae_training.recordings.vpt import Gui, VptOptions

#: Fields that say what is read, where to and with how many hands; all others decide what a frame file holds.
_NOT_SETTINGS = ("recordings", "out", "workers")


@dataclass(frozen=True)
class ExtractConfig:
    """What to extract, and how.

    Example:
        >>> config = ExtractConfig((Path("videos"),), Path("frames"), stride=2)
        >>> config.settings()["stride"]
        2
    """

    recordings: Positional[tuple[Path, ...]]
    """Videos, demonstration folders, folders of pictures, arrays; or folders that are searched for them."""
    out: Path
    """Folder of the frame files; one that holds some of the same settings already is continued."""
    size: int | None = 64
    """Side of the frames in pixels; None keeps the recordings' own size, which must then be one and the same."""
    crop: Crop = "none"
    """none squeezes another aspect ratio into the square (nothing is lost); centre-square cuts the longer side."""
    stride: int = 1
    """Take every so many-th frame; the frames between are decoded, but not resized."""
    drop_duplicates: float | None = None
    """Drop frames that differ from the last kept one by less than so many levels of 255, on average over a small grey
    version; 0.5 drops what only looks still. None keeps all."""
    drop_black: bool = False
    """Drop frames without a pixel brighter than almost black."""
    limit: int | None = None
    """Most frames to keep of each recording."""
    workers: int | None = None
    """Processes, a recording each at a time; None is one per core. 1 does all in this process, with threads that resize."""
    frames_per_file: int = 50_000
    """Longest file; a longer recording is cut into name_000.npy, name_001.npy, ..."""
    drop_null_actions: bool = False
    """Drop the frames in which the player did nothing, where a recording tells (VPT)."""
    gui: Gui = "keep"
    """Keep or drop the frames with an open menu, where a recording marks them (VPT)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "recordings", tuple(Path(path) for path in self.recordings))
        object.__setattr__(self, "out", Path(self.out))
        if not self.recordings:
            raise InputError("name the recordings to extract frames from: files, or folders that are searched for them")
        for name in ("size", "stride", "limit", "workers", "frames_per_file"):
            value, optional = getattr(self, name), name in ("size", "limit", "workers")
            if not (value is None and optional) and not _is_positive_int(value):
                raise InputError(f"{name} must be a positive integer{' or None' if optional else ''}, got {value!r}")
        for name, choices in (("crop", get_args(Crop)), ("gui", get_args(Gui))):
            if getattr(self, name) not in choices:
                raise InputError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        levels = self.drop_duplicates
        if levels is not None and not (math.isfinite(levels) and 0 < levels <= 255):
            raise InputError(
                f"drop_duplicates must be a number of levels, above 0 and at most 255, or None to keep all; got {levels!r}"
            )

    @property
    def vpt(self) -> VptOptions:
        """Which frames of VPT recordings to take."""
        return VptOptions(self.drop_null_actions, self.gui)

    def settings(self) -> dict[str, Any]:
        """What decides what a frame file holds, as plain values for `frames.json`."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_SETTINGS}


def _is_positive_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
