"""Demonstrations of the MineRL dataset (0.x): a folder per stream, as `minerl.data` reads it.

    <environment>/<stream>/recording.mp4     the video, with some frames before the demonstration begins
                           rendered.npz      action$..., observation$..., reward
                           metadata.json     true_video_frame_count, among others

The frames are MineRL's own *current* observations `pov`, one for each action. MineRL finds them from the end: the last
of the video's `true_video_frame_count` frames shows the state after the last action, so with n actions the first one
belongs to frame `true_video_frame_count - (n + 1)`. That last frame is only a *next* observation in MineRL, where the
one before is repeated in its place; it is not read here. The arrays are read without unpickling, which MineRL does
(`allow_pickle=True`, so that a dataset can run code).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vae_training.extraction.readers.arrays import ArrayHeader, npz_headers, read_npz
from vae_training.extraction.readers.base import DamagedRecordingError, Frames, Recording, fingerprint_of
from vae_training.extraction.readers.video import decode

VIDEO, ARRAYS, METADATA = FILES = ("recording.mp4", "rendered.npz", "metadata.json")
#: Streams that MineRL itself refuses to read: "corrupted", by any path that has this in it.
BLACKLIST = ("tempting_capers_shapeshifter-14",)


@dataclass(frozen=True)
class MineRLStream(Recording):
    """A demonstration of the MineRL dataset: a folder with `recording.mp4`, `rendered.npz` and `metadata.json`.

    Attributes:
        threads: Threads of the video decoder; 0 takes one per core.
    """

    kind: ClassVar[str] = "minerl"
    threads: int = 0

    def chunks(self) -> Iterator[Frames]:
        """As of a recording: what MineRL's reader gives as current observations `pov`."""
        actions, _ = self._headers()
        total, given = _true_video_frame_count(self.source / METADATA), 0
        first = total - (actions + 1)
        if first < 0:
            raise DamagedRecordingError(
                f"{self.source}: {METADATA} promises {total} video frames, and {ARRAYS} has {actions} actions, which "
                f"need {actions + 1}"
            )
        for chunk in decode(self.source / VIDEO, self.threads, first=first, count=actions):
            given += len(chunk)
            yield chunk
        if given < actions:
            raise DamagedRecordingError(
                f"{self.source}: {VIDEO} is too short: of the frames for {actions} actions, which begin after its "
                f"first {first}, {given} are there"
            )

    def rows(self) -> Mapping[str, NDArray[Any]]:
        """The arrays `action$...` and `observation$...` and `reward` (float32), a row for each frame.

        Observations have a row more, of the state after the last action; it is cut off, as MineRL's reader does.
        """
        actions, headers = self._headers()
        rows = read_npz(self.source / ARRAYS, [name for name, header in headers.items() if not header.dtype.hasobject])
        rows["reward"] = rows["reward"].astype(np.float32)
        return {name: array[:actions] for name, array in rows.items()}

    @property
    def left_out(self) -> list[str]:
        """Names of the arrays that hold Python objects, which could only be unpickled."""
        return [name for name, header in self._headers()[1].items() if header.dtype.hasobject]

    @property
    def notes(self) -> list[str]:
        """Names the arrays that are left out."""
        names = self.left_out
        return [f"{self.source}: left out, for it holds Python objects: {', '.join(names)}"] if names else []

    @property
    def expected_frames(self) -> int | None:
        """Number of actions."""
        try:
            return self._headers()[0]
        except DamagedRecordingError:
            return None

    def fingerprint(self) -> str:
        """As of a recording, of its three files."""
        return fingerprint_of(self.source / name for name in FILES)

    def _headers(self) -> tuple[int, dict[str, ArrayHeader]]:
        """Number of actions, and the headers of the arrays that belong to them."""
        missing = [name for name in FILES if not (self.source / name).is_file()]
        if missing:
            raise DamagedRecordingError(f"{self.source} lacks {' and '.join(missing)}")
        headers = npz_headers(self.source / ARRAYS)
        headers = {name: header for name, header in headers.items() if _is_row(name)}
        if "reward" not in headers:
            raise DamagedRecordingError(f"{self.source / ARRAYS} has no reward, which gives the number of actions")
        reward = headers["reward"]
        if len(reward.shape) != 1 or reward.dtype.kind not in "biuf":
            raise DamagedRecordingError(
                f"{self.source / ARRAYS} has a reward of {reward.dtype} and shape {reward.shape}, expected numbers (N,)"
            )
        actions = reward.shape[0]
        for name, header in headers.items():
            if header.shape[:1] not in ((actions,), (actions + 1,)):
                raise DamagedRecordingError(
                    f"{self.source / ARRAYS}: {name} has shape {header.shape}, and reward has {actions} rows; their "
                    "lengths do not agree"
                )
        if not actions:
            raise DamagedRecordingError(f"{self.source / ARRAYS} has no actions: reward is empty")
        return actions, headers


def blacklisted(folder: Path) -> str | None:
    """The reason why MineRL refuses a stream, None where it does not.

    Example:
        >>> blacklisted(Path("MineRLTreechop-v0/tempting_capers_shapeshifter-14"))
        "MineRL's own reader refuses tempting_capers_shapeshifter-14: its data are corrupted"
    """
    found = next((name for name in BLACKLIST if name in str(folder)), None)
    return found and f"MineRL's own reader refuses {found}: its data are corrupted"


def _is_row(name: str) -> bool:
    # MineRL's reader takes whatever has "pov" in its name from the video.
    return name == "reward" or name.startswith("action$") or (name.startswith("observation$") and "pov" not in name)


def _true_video_frame_count(file: Path) -> int:
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedRecordingError(f"{file} cannot be read as JSON ({error})") from None
    count = metadata.get("true_video_frame_count") if isinstance(metadata, dict) else None
    if isinstance(count, bool) or not isinstance(count, int):
        raise DamagedRecordingError(f"{file} has no whole number true_video_frame_count, got {count!r}")
    return count
