"""Settings of an extraction; the command line is made from them."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from latent_obs.encoder import Crop
from latent_obs.util.errors import InputError, check_count, check_types
from latent_obs.util.ray import Engine

#: What becomes of frames with an open menu.
Gui = Literal["keep", "drop"]
#: Fields that do not decide what a frame file holds.
_NOT_SETTINGS = ("recordings", "out", "workers", "shard", "engine", "address")
_LARGEST_SIZE = 8192


@dataclass(frozen=True)
class ExtractConfig:
    """What to extract, and how.

    Example:
        >>> config = ExtractConfig((Path("videos"),), Path("frames"), stride=2)
        >>> config.settings()["stride"]
        2
    """

    recordings: Positional[tuple[Path, ...]]
    """Videos, demonstration folders, folders of pictures, arrays; or folders that are searched for them. Videos and
    arrays may be in a store as well (s3://bucket/demos, hf://datasets/user/name)."""
    out: Path
    """Folder of the frame files. A folder that was begun with the same settings is continued."""
    size: int | None = 64
    """Side of the frames in pixels. None keeps the recordings' own size, which must then be the same for all."""
    crop: Crop = "none"
    """none squeezes another aspect ratio into the square (nothing is lost); center-square cuts the longer side."""
    stride: int = 1
    """Take every n-th frame."""
    drop_duplicates: float | None = None
    """Drop frames that differ from the last kept one by less than so many levels of 255, on average over a small gray
    version; 0.5 drops frames that only look still. None keeps all."""
    drop_black: bool = False
    """Drop frames in which no pixel is brighter than almost black."""
    limit: int | None = None
    """Most frames to keep of each recording."""
    workers: int | None = None
    """Processes, each with one recording at a time; None is one per core. 1 does all in this process, with threads that
    resize. With --engine ray it is the most tasks at once; None is one per CPU of the cluster."""
    frames_per_file: int = 50_000
    """Longest file; a longer recording is cut into name_000.npy, name_001.npy, ..."""
    drop_null_actions: bool = False
    """Drop the frames in which the player did nothing, where the recording has actions (VPT)."""
    gui: Gui = "keep"
    """Keep or drop the frames with an open menu, where the recording marks them (VPT)."""
    camera: str | None = None
    """Which pictures to take where a recording has those of several cameras."""
    shard: str | None = None
    """"2/5" extracts the second of five parts of the recordings, for array jobs: start the same command with 1/5 to
    5/5, with the same --out, all at once or one after the other. The files are those of one run without shards."""
    engine: Engine = "local"
    """Processes of this machine, or ray: tasks on the nodes of a Ray cluster, which share a file system."""
    address: str | None = None
    """With --engine ray: "host:port" of its head node, auto for the cluster of this machine, local to start one. None
    is auto where there is one, and else local."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "recordings", tuple(Path(path) for path in self.recordings))
        check_types(self)
        if not self.recordings:
            raise InputError("recordings is empty; name files, or folders that are searched for them")
        for name in ("size", "stride", "limit", "workers", "frames_per_file"):
            if getattr(self, name) is not None or name in ("stride", "frames_per_file"):
                check_count(name, getattr(self, name), at_most=_LARGEST_SIZE if name == "size" else 2**63 - 1)
        if self.drop_duplicates is not None and not 0 < self.drop_duplicates <= 255:
            raise InputError(f"drop_duplicates must be above 0 and at most 255, or None; got {self.drop_duplicates!r}")
        number, of = self.shard_of or (1, 1)
        if not 1 <= number <= of:
            raise InputError(f"shard must be i/n with i from 1 to n, such as 1/3, 2/3 and 3/3; got {self.shard!r}")

    @property
    def shard_of(self) -> tuple[int, int] | None:
        """Which of how many parts of the recordings is extracted."""
        if self.shard is None:
            return None
        numbers = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", self.shard)
        return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)

    def settings(self) -> dict[str, Any]:
        """The fields that decide what a frame file holds, as plain values for `frames.json`."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_SETTINGS}
