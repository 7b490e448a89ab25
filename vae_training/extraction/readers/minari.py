"""Datasets of Minari: a folder with `metadata.json`, and the episodes in HDF5, arrow or parquet.

    metadata.json                     observation_space and action_space, among others
    main_data.hdf5                    episode_<i>/observations/..., actions/..., rewards, terminations, truncations
    <i>/part-0.arrow or .parquet      an episode, with columns of the same names

An episode of T actions has T + 1 observations. Pictures are JPEG in most datasets. The files are read piece by piece
here, and a single camera of them; `minari` itself decodes all pictures of an episode at once. It also makes the
environment that a dataset names if the dataset has no spaces, which can run code; such a dataset is not read here.
"""

import contextlib
import io
import json
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from latent_obs.util.errors import parse_json, require
from vae_training.data.frames import Frames
from vae_training.extraction.readers.base import (
    DamagedRecordingError,
    Recording,
    choose_camera,
    reading,
)
from vae_training.extraction.readers.episodes import episode_rows, read_frames
from vae_training.extraction.readers.hdf5 import opened, own
from vae_training.extraction.readers.images import decode_pictures

_METADATA, _HDF5 = "metadata.json", "main_data.hdf5"
_STEPS = {"rewards": "reward", "terminations": "terminated", "truncations": "truncated"}
_SUFFIXES = (".arrow", ".parquet")
_NUMBERS = ("Box", "Discrete", "MultiBinary", "MultiDiscrete")
_JPEGS_AT_ONCE = 64
_SMALLEST = 32  # side of what Minari takes for a picture; smaller ones are maps of grid worlds


@dataclass(frozen=True)
class MinariEpisode(Recording):
    """An episode of a Minari dataset, whose folder `source` is.

    Attributes:
        camera: Where its pictures are stored, "observations/pixels".
        shape: The shape of one of them.
        columns: Where its rows are stored, and their names.
    """

    camera: str = ""
    shape: tuple[int, ...] = ()
    columns: tuple[tuple[str, str], ...] = ()
    kind: ClassVar[str] = "minari"

    def chunks(self) -> Generator[Frames]:
        """As of a recording; the last frame shows the state after the last action."""
        what = f"{self.source}, {self.part}, {self.camera},"
        with self._stored() as stored:
            pictures = stored(self.camera)
            if len(pictures.shape) > 2:
                yield from read_frames(pictures, what)
            else:
                yield from decode_pictures(
                    (f"{what} picture {number}", io.BytesIO(bytes(data)))
                    for start in range(0, pictures.shape[0], _JPEGS_AT_ONCE)
                    for number, data in enumerate(pictures[start : start + _JPEGS_AT_ONCE], start)
                )

    def rows(self) -> Mapping[str, NDArray[Any]]:
        """`action`, `reward`, `terminated`, `truncated`, `acted`, `first`, and numbers beside the picture."""
        with self._stored() as stored:
            columns = {name: stored(place)[:] for place, name in self.columns}
            return episode_rows(f"{self.source}, {self.part},", stored(self.camera).shape[0], columns)

    @property
    def files(self) -> list[Path]:
        """The file of all episodes, or the files of this one."""
        if (self.source / _HDF5).is_file():
            return [self.source / _HDF5]
        folder = self.source / str(self._number)
        return sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES)

    def _stated_frames(self) -> int | None:
        with self._stored() as stored:
            return stored("rewards").shape[0] + 1

    @property
    def _number(self) -> int:
        return int(self.part.removeprefix("episode_"))

    @contextlib.contextmanager
    def _stored(self) -> Iterator[Callable[[str], Any]]:
        """A function that gives a stored array of the episode by its place; any error means that it is damaged."""
        with reading(f"{self.source}, {self.part},"):
            files = self.files
            if not files:
                raise ValueError(f"there is no .arrow or .parquet file in {self.source / str(self._number)}")
            if files[0].name == _HDF5:
                with opened(files[0]) as handle:
                    yield partial(own, own(handle, f"episode_{self._number}"))
                return
            arrow = require("pyarrow.dataset", extra="formats", purpose="read Minari datasets that are not HDF5")
            mapped = require("pyarrow.fs", extra="formats", purpose="").LocalFileSystem(use_mmap=True)
            table = arrow.dataset(list(map(str, files)), format=files[0].suffix[1:], filesystem=mapped)

            def column(place: str) -> _ArrowColumn:
                values = table.to_table(columns={"": arrow.field(*place.split("/"))})[""]
                shape = self.shape if place == self.camera else ()
                # Actions have a row more, of zeros.
                return _ArrowColumn(values if place.startswith("observations") else values[:-1], shape)

            yield column


class _ArrowColumn:
    """A column of an arrow table as an array that is read by slices, like one of h5py."""

    chunks = None

    def __init__(self, values: Any, shape: tuple[int, ...]) -> None:
        self._values, size = values, getattr(values.type, "list_size", None)
        self.dtype = np.dtype(np.uint8) if size else np.dtype(object)
        self.shape = (len(values), *((shape or (size,)) if size else ()))

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        values = self._values[rows].combine_chunks()
        flat = values.flatten() if len(self.shape) > 1 else values
        return flat.to_numpy(zero_copy_only=False).reshape(len(values), *self.shape[1:])


def minari_recordings(path: Path, camera: str | None) -> list[MinariEpisode]:
    """The episodes of a dataset, by its folder or its `main_data.hdf5`.

    Raises:
        DamagedRecordingError: It cannot be read, or its observations have no pictures.
        InputError: `camera` does not name one of several.
    """
    folder = path if path.is_dir() else path.parent
    with reading(folder):
        metadata = parse_json((folder / _METADATA).read_bytes(), dict[str, Any], _METADATA)
        for name in ("observation_space", "action_space"):
            if name not in metadata:
                raise ValueError(f"{_METADATA} has no {name}; save the dataset again with Minari 0.5 or later")
        index = "_index_{}" if (folder / _HDF5).is_file() else "{}"
        observations = dict(_leaves(json.loads(metadata["observation_space"]), "observations", index))
        actions = dict(_leaves(json.loads(metadata["action_space"]), "actions", index))
        cameras = {place: tuple(space["shape"]) for place, space in observations.items() if _is_picture(space)}
        if not cameras:
            has = [f"{name} {space.get('dtype')} {space.get('shape')}" for name, space in observations.items()]
            raise DamagedRecordingError(
                f"{folder} has no pictures, uint8 of at least {_SMALLEST}x{_SMALLEST}; it has {', '.join(has)}"
            )
        numbers = [place for place, space in (observations | actions).items() if space["type"] in _NUMBERS]
        flat = [place for place in numbers if place in actions or len(observations[place].get("shape", ())) < 2]
        columns = (*_STEPS.items(), *((place, _row_name(place)) for place in flat))
        if (folder / _HDF5).is_file():
            with opened(folder / _HDF5) as handle:
                episodes = [int(name.removeprefix("episode_")) for name in handle if name.startswith("episode_")]
        else:
            episodes = [int(each.name) for each in folder.iterdir() if each.name.isdecimal()]
    chosen = choose_camera(folder, list(cameras), camera)
    return [
        MinariEpisode("", folder, part=f"episode_{i:06d}", camera=chosen, shape=cameras[chosen], columns=columns)
        for i in sorted(episodes)
    ]


def is_minari(path: Path) -> bool:
    """Whether a path is the folder of a dataset, or its HDF5 file."""
    if path.name == _HDF5:
        return path.with_name(_METADATA).is_file()
    return (path / _METADATA).is_file() and (
        (path / _HDF5).is_file() or any(each.suffix in _SUFFIXES for each in path.glob("[0-9]*/*"))
    )


def _leaves(space: dict[str, Any], place: str, index: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The spaces in a space, as Minari writes it, by the places where their values are stored."""
    inner = space.get("subspaces")
    if inner is None:
        yield place, space
        return
    named = inner if isinstance(inner, dict) else {index.format(i): each for i, each in enumerate(inner)}
    for name, each in named.items():
        yield from _leaves(each, f"{place}/{name}", index)


def _is_picture(space: Mapping[str, Any]) -> bool:
    shape = space.get("shape", ())
    return space.get("dtype") == "uint8" and len(shape) in (2, 3) and sorted(shape)[-2] >= _SMALLEST


def _row_name(place: str) -> str:
    """The name of the row of a stored array: action, action$camera, observation$compass$angle."""
    kind, *keys = place.replace("_index_", "").split("/")
    return "$".join([kind.removesuffix("s"), *keys])
