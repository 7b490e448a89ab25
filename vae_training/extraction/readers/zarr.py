"""Replay buffers in zarr, as diffusion-policy writes them: a folder `x.zarr`, or `x.zarr.zip`, of zarr's format 2 or 3.

data/img             the pictures of all episodes, one after the other; `img` may have another name
data/action, ...     rows for them
meta/episode_ends    where each episode ends
"""

import hashlib
import os
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from latent_obs.util.errors import one_line, require
from vae_training.data.frames import Frames
from vae_training.extraction.readers.base import Recording, choose_camera, reading
from vae_training.extraction.readers.episodes import arrays_listed, episode_rows, is_row, pictures_among, read_frames


@dataclass(frozen=True)
class ZarrEpisode(Recording):
    """Rows `first` to `end` of a replay buffer; `camera` is the name of the pictures."""

    camera: str = ""
    first: int = 0
    end: int = 0
    state: str = field(kw_only=True)
    """Changes with the store."""
    kind: ClassVar[str] = "zarr"

    def chunks(self) -> Generator[Frames]:
        """As of a recording."""
        with reading(self.source):
            yield from read_frames(_group(self.source)[f"data/{self.camera}"], str(self.source), self.first, self.end)

    def rows(self) -> Mapping[str, NDArray[Any]]:
        """`action`, `reward`, and the other numbers as `observation$...`."""
        with reading(self.source):
            arrays = {name: array for name, array in _arrays(_group(self.source)).items() if is_row(array)}
            names = {name: name if name in ("action", "reward") else f"observation${name}" for name in arrays}
            columns = {names[name]: array[self.first : self.end] for name, array in arrays.items()}
            return episode_rows(f"{self.source}, {self.part},", self.end - self.first, columns)

    def fingerprint(self) -> str:
        """The episode, and the state of the store when it was found."""
        return f"{self.part}:{self.state}"

    def _stated_frames(self) -> int | None:
        return self.end - self.first


def zarr_recordings(source: Path, camera: str | None) -> list[ZarrEpisode]:
    """The episodes of a replay buffer.

    Raises:
        DamagedRecordingError: It cannot be read, or has no pictures, or not as many rows as its episodes.
        InputError: `camera` does not name one of several.
    """
    with reading(source):
        group, state = _group(source), _state(source)
        if missing := [name for name in ("data", "meta/episode_ends") if name not in group]:
            raise ValueError(
                f"it has no {missing[0]}; expected data/img and meta/episode_ends, as diffusion-policy has"
            )
        arrays, ends = _arrays(group), group["meta/episode_ends"][:].tolist()
        if sorted({0, *ends}) != [0, *ends] or {array.shape[0] for array in arrays.values()} != set(ends[-1:]):
            raise ValueError(
                f"meta/episode_ends must rise from above 0 to the number of rows in data, and is {one_line(ends, 60)}; "
                f"data has {arrays_listed(arrays)}"
            )
        cameras = pictures_among(f"{source}/data", arrays)
    chosen = choose_camera(source, cameras, camera)
    return [
        ZarrEpisode("", source, part=f"episode_{i:06d}", camera=chosen, first=first, end=end, state=state)
        for i, (first, end) in enumerate(zip([0, *ends], ends, strict=False))
    ]


def is_zarr(path: Path) -> bool:
    """Whether a path is a zarr store by its name."""
    return path.name.endswith((".zarr", ".zarr.zip"))


def _group(source: Path) -> Any:
    zarr = require("zarr", extra="formats", purpose="read zarr stores")
    return zarr.open_group(zarr.storage.ZipStore(source) if source.is_file() else source, mode="r")


def _arrays(group: Any) -> dict[str, Any]:
    """The stored arrays of a replay buffer by name; numbers only, as others may need pickle."""
    arrays = dict(group["data"].arrays())  # in the order of the file system
    return {name: array for name, array in sorted(arrays.items()) if array.dtype.kind in "biuf"}


def _state(source: Path) -> str:
    """A text that changes with a store: of a folder, a digest of all files with data or episodes' ends."""
    if source.is_file():
        stat = source.stat()
        return f"{source.name}:{stat.st_size}:{stat.st_mtime_ns}"
    digest = hashlib.sha256()
    for top in ("data", "meta/episode_ends"):
        for folder, folders, names in os.walk(source / top):
            folders.sort()
            digest.update(str(Path(folder).relative_to(source)).encode())
            for name in sorted(names):
                stat = Path(folder, name).stat()
                digest.update(f";{name}:{stat.st_size}:{stat.st_mtime_ns}".encode())
    return digest.hexdigest()
