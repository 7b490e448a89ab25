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
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from latent_obs.util.errors import check_count
from latent_obs.util.npy import NpyHeader
from vae_training.data.frames import Frames
from vae_training.extraction.readers.arrays import note_left_out, npz_headers, read_npz
from vae_training.extraction.readers.base import DamagedRecordingError, Recording, reading
from vae_training.extraction.readers.video import decode

VIDEO, ARRAYS, METADATA = FILES = ("recording.mp4", "rendered.npz", "metadata.json")
#: A stream that MineRL itself refuses to read, by any path that has this in it.
_BLACKLISTED = "tempting_capers_shapeshifter-14"


@dataclass(frozen=True)
class MineRLStream(Recording):
    """A demonstration of the MineRL dataset: a folder with `recording.mp4`, `rendered.npz` and `metadata.json`."""

    kind: ClassVar[str] = "minerl"

    def chunks(self) -> Generator[Frames]:
        """As of a recording: what MineRL's reader gives as current observations `pov`."""
        actions, _ = self._headers()
        metadata = self.source / METADATA
        with reading(metadata):
            count = json.loads(metadata.read_text(encoding="utf-8")).get("true_video_frame_count")
            first = check_count("true_video_frame_count", count, actions + 1) - (actions + 1)
        given = 0
        for chunk in decode(self.source / VIDEO, self.threads, first=first, count=actions):
            given += len(chunk)
            yield chunk
        if given < actions:
            raise DamagedRecordingError(
                f"{self.source / VIDEO} is too short: {given} frames follow its first {first}, expected one for each "
                f"of {actions} actions"
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
    def files(self) -> list[Path]:
        """Its three files."""
        return [self.source / name for name in FILES]

    @property
    def notes(self) -> list[str]:
        """Names the arrays that are left out: of objects, which are never loaded, and those that MineRL has not."""
        used = {name for name, header in self._headers()[1].items() if not header.dtype.hasobject}
        return note_left_out(self.source, npz_headers(self.source / ARRAYS), used)

    def _stated_frames(self) -> int | None:
        return self._headers()[0]

    def checked(self) -> Self:
        """Itself; raises a `DamagedRecordingError` if it cannot be used, by its name and the names of its files."""
        missing = [file.name for file in self.files if not file.is_file()]
        if missing:
            raise DamagedRecordingError(f"{self.source} is a MineRL stream that lacks {' and '.join(missing)}")
        if _BLACKLISTED in str(self.source):
            raise DamagedRecordingError(f"{self.source} is refused by MineRL's own reader: its data are corrupted")
        return self

    def _headers(self) -> tuple[int, dict[str, NpyHeader]]:
        """Number of actions, and the headers of the arrays that belong to them."""
        file = self.checked().source / ARRAYS
        headers = {name: header for name, header in npz_headers(file).items() if _is_row(name)}
        reward = headers.get("reward")
        if reward is None or len(reward.shape) != 1 or not reward.shape[0] or reward.dtype.kind not in "biuf":
            raise DamagedRecordingError(f"{file}: reward must be numbers, one for each action; found {reward}")
        actions = reward.shape[0]
        for name, header in headers.items():
            if header.shape[:1] not in ((actions,), (actions + 1,)):
                raise DamagedRecordingError(f"{file}: {name} has shape {header.shape}, and reward has {actions} rows")
        return actions, headers


def _is_row(name: str) -> bool:
    # MineRL's reader takes whatever has "pov" in its name from the video.
    return name == "reward" or name.startswith("action$") or (name.startswith("observation$") and "pov" not in name)
