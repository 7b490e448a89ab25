"""HDF5 files with demonstrations, as robomimic, LIBERO and ManiSkill write them.

    data/demo_<i>/obs/<camera>    uint8 (T, H, W, 3); numbers beside it become rows `observation$...`
                  actions         (T, ...)
                  rewards, dones, states, ...

ManiSkill calls them `traj_<i>`, without the group `data`, and has a picture more than actions. What robomimic stores
a second time, as `next_obs`, is not read.
"""

import contextlib
import re
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from latent_obs.util.errors import require
from vae_training.data.frames import Frames
from vae_training.extraction.readers.base import DamagedRecordingError, Recording, choose_camera, natural_key, reading
from vae_training.extraction.readers.episodes import arrays_listed, episode_rows, is_row, pictures_among, read_frames

_ROWS = {
    "actions": "action",
    "rewards": "reward",
    "dones": "done",
    "terminated": "terminated",
    "truncated": "truncated",
    "success": "success",
    "states": "state$states",
    "robot_states": "state$robot_states",
}
_NAME = re.compile(r"(demo|traj)_\d+")
_EXPECTED = (
    "expected demonstrations as robomimic, LIBERO or ManiSkill write them: data/demo_0/obs/<camera> or "
    "traj_0/obs/<camera>, uint8 (T, H, W, 3)"
)


@dataclass(frozen=True)
class Hdf5Demonstration(Recording):
    """A demonstration in an HDF5 file; its `part` is the name of its group, and `camera` that of its pictures."""

    camera: str = ""
    kind: ClassVar[str] = "hdf5"

    def chunks(self) -> Generator[Frames]:
        """As of a recording; read piece by piece, compressed or not."""
        with self._opened() as demo:
            yield from read_frames(self._pictures(demo), f"{self.source}, {self.part}, {self.camera},")

    def rows(self) -> Mapping[str, NDArray[Any]]:
        """`action`, `reward`, `done`, `state$...` and others of the demonstration, and numbers of its observations."""
        with self._opened() as demo:
            columns = {row: own(demo, name)[()] for name, row in _ROWS.items() if hasattr(demo.get(name), "shape")}
            for name, array in _observations(demo).items():
                if is_row(array):
                    columns[f"observation${name.replace('/', '$')}"] = array[()]
            return episode_rows(f"{self.source}, {self.part},", len(self._pictures(demo)), columns)

    def _stated_frames(self) -> int | None:
        with self._opened() as demo:
            return len(self._pictures(demo))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        with reading(self.source), opened(self.source) as file:
            yield own(_base(file), self.part)

    def _pictures(self, demo: Any) -> Any:
        if (place := f"obs/{self.camera}") not in demo:
            found = arrays_listed(_observations(demo))
            raise DamagedRecordingError(
                f"{self.source}, {self.part}, has no {place}, as the first one has; it has {found}"
            )
        return own(demo, place)


def hdf5_recordings(file: Path, camera: str | None) -> list[Hdf5Demonstration]:
    """The demonstrations in an HDF5 file.

    Raises:
        DamagedRecordingError: It cannot be read, or has none with pictures.
        InputError: `camera` does not name one of several.
    """
    with reading(file), opened(file) as handle:
        demos = sorted((name for name in _base(handle) if _NAME.fullmatch(name)), key=natural_key)
        observations = _observations(own(_base(handle), demos[0])) if demos else {}
        if not observations:
            raise DamagedRecordingError(f"{file} has {arrays_listed(datasets(handle))}; {_EXPECTED}")
        cameras = pictures_among(f"{file}, {demos[0]}/obs,", observations)
    chosen = choose_camera(file, cameras, camera)
    return [Hdf5Demonstration("", file, part=demo, camera=chosen) for demo in demos]


def is_hdf5(path: Path) -> bool:
    """Whether a path is an HDF5 file by its name."""
    return path.suffix.lower() in (".hdf5", ".h5") and not path.is_dir()


def opened(file: Path) -> Any:
    """An HDF5 file, open for reading."""
    return require("h5py", extra="formats", purpose="read HDF5 files").File(file, "r")


def datasets(group: Any) -> dict[str, Any]:
    """The stored arrays of a group and of the groups in it, by their names below it."""
    found: dict[str, Any] = {}

    def note(name: str, item: Any) -> None:
        if hasattr(item, "dtype") and item.shape is not None:
            found[name] = own(group, name)

    group.visititems(note)
    return found


def own(group: Any, place: str) -> Any:
    """A group or stored array in a group; `ValueError` if its content is in another file, as that could be any."""
    item = group[place]
    is_array = hasattr(item, "dtype")
    if item.file.filename != group.file.filename or (is_array and (item.external or item.is_virtual)):
        raise ValueError(f"{group.name}/{place} is stored in another file, which is not read; copy it into this one")
    return item


def _base(file: Any) -> Any:
    """The group that has the demonstrations."""
    return own(file, "data") if hasattr(file.get("data"), "keys") else file


def _observations(demo: Any) -> dict[str, Any]:
    """The stored arrays of a demonstration's observations; none where these are a single array (ManiSkill's states)."""
    return datasets(own(demo, "obs")) if hasattr(demo.get("obs"), "keys") else {}
