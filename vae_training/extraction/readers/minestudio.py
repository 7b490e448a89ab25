"""Datasets of MineStudio: folders of LMDB databases with episodes cut into chunks.

    <dataset>/image/<part>/data.mdb         or video/: chunks of frames, each an mp4 file
              action/<part>/data.mdb        chunks of actions, by MineRL's names
              meta_info/<part>/data.mdb     chunks of what the game knows; not read

The key of a chunk is `str((episode_idx, first_frame))`, and an episode has another number in each kind of database.
What is not video is pickled. A pickle can run any code, so nothing of one is imported here: plain values and arrays of
numbers are built, and any other name in it is refused.
"""

import contextlib
import io
import pickle
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latent_obs.util.errors import check_count, check_type, require
from vae_training.data.frames import Frames
from vae_training.extraction.readers.base import DamagedRecordingError, Recording, choose_camera, reading
from vae_training.extraction.readers.video import decode

_PICTURES, _ACTIONS = ("image", "video"), "action"
_DATA = "data.mdb"


class _Chunks(NamedTuple):
    """Where the chunks of an episode are."""

    database: Path
    episode: int
    size: int
    """Frames of a chunk."""
    frames: int

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Each chunk, with words for a message."""
        for first in range(0, self.frames, self.size):
            key = str((self.episode, first))
            with _opened(self.database) as get:  # anew, as a process can open a database only once at a time
                value = get(key)
            yield f"{self.database}, chunk {key},", value


@dataclass(frozen=True)
class MineStudioEpisode(Recording):
    """An episode of a dataset of MineStudio."""

    kind: ClassVar[str] = "minestudio"
    pictures: _Chunks = field(kw_only=True)
    actions: _Chunks | None = field(kw_only=True)

    def chunks(self) -> Generator[Frames]:
        """As of a recording: the frames of its videos, one after the other."""
        for what, video in self.pictures.read():
            count = 0
            for chunk in decode(Path(what), self.threads, content=io.BytesIO(video)):
                count += len(chunk)
                yield chunk
            if count != self.pictures.size:
                raise DamagedRecordingError(f"{what} has {count} frames, expected {self.pictures.size}")

    def rows(self) -> Mapping[str, NDArray[Any]]:
        """What the player did in each frame: `action$forward` and so on (int64), `action$camera` (float32, degrees).

        None where there are no actions, or not as many as frames.
        """
        if self.actions is None or self.actions.frames != self.pictures.frames:
            return {}
        chunks: list[dict[str, NDArray[Any]]] = []
        for what, pickled in self.actions.read():
            with reading(what):
                actions = _unpickle(pickled)
                check_type("what is pickled", actions, dict[str, Any])
                chunks.append({name: np.asarray(column) for name, column in actions.items()})
                if {len(column) for column in chunks[-1].values()} != {self.actions.size}:
                    raise ValueError(f"its actions are not {self.actions.size}, as its frames are")
                if chunks[-1].keys() != chunks[0].keys():
                    raise ValueError(f"it has the actions {', '.join(actions)}, and the first {', '.join(chunks[0])}")
        columns = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
        return {
            f"action${name}": column.astype(np.float32) if column.dtype.kind == "f" else column
            for name, column in columns.items()
        }

    @property
    def files(self) -> Sequence[Path]:
        """The databases that it is in."""
        return [chunks.database / _DATA for chunks in (self.pictures, self.actions) if chunks]

    @property
    def notes(self) -> list[str]:
        """Names what is missing beside the frames."""
        found = "no" if self.actions is None else f"{self.actions.frames}"
        if found == f"{self.pictures.frames}":
            return []
        return [
            f"{self.name} has {self.pictures.frames} frames and {found} actions; its frames have no rows of actions"
        ]

    def _stated_frames(self) -> int | None:
        return self.pictures.frames


def is_dataset(path: Path) -> bool:
    """Whether a folder is a dataset of MineStudio, by the databases in it."""
    return path.is_dir() and any(_databases(path / kind) for kind in _PICTURES)


def episodes(path: Path, camera: str | None) -> list[MineStudioEpisode]:
    """The episodes of a dataset; a `DamagedRecordingError` if a database of it cannot be read."""
    pictures = choose_camera(path, [kind for kind in _PICTURES if _databases(path / kind)], camera)
    actions = _index(path / _ACTIONS)
    return [
        MineStudioEpisode("", path, part=name, pictures=chunks, actions=actions.get(name))
        for name, chunks in _index(path / pictures).items()
    ]


def _databases(folder: Path) -> list[Path]:
    return sorted(file.parent for file in folder.glob(f"*/{_DATA}"))


def _index(folder: Path) -> dict[str, _Chunks]:
    """The episodes of all databases in a folder, by name."""
    found: dict[str, _Chunks] = {}
    for database in _databases(folder):
        with _opened(database) as get:
            size, infos = _unpickle(get("__chunk_size__")), _unpickle(get("__chunk_infos__"))
            check_type("__chunk_infos__", infos, list[dict[str, Any]])
            for info in infos:
                name, number, frames = info["episode"], info["episode_idx"], info["num_frames"]
                check_type("episode", name, str)
                number, frames = check_count("episode_idx", number, 0), check_count("num_frames", frames)
                if frames % check_count("__chunk_size__", size):
                    raise ValueError(f"it has {frames} frames of {name} in chunks of {size}")
                if name in found:
                    raise ValueError(f"the episode {name} is in {found[name].database} as well")
                found[name] = _Chunks(database, number, size, frames)
    return found


@contextlib.contextmanager
def _opened(database: Path) -> Iterator[Callable[[str], bytes]]:
    """Open a database to get values by key; any error in the block means that it is damaged."""
    lmdb = require("lmdb", extra="formats", purpose="read datasets of MineStudio")
    with reading(database), lmdb.open(str(database), readonly=True, lock=False, readahead=False) as environment:
        there, used = (database / _DATA).stat().st_size, environment.info()["last_pgno"] + 1
        if there < used * environment.stat()["psize"]:  # reading beyond the end of a mapped file kills the process
            raise ValueError(f"{_DATA} is cut short: {there} bytes, expected {used * environment.stat()['psize']}")
        with environment.begin(buffers=False) as transaction:

            def get(key: str) -> bytes:
                if (value := transaction.get(key.encode())) is None:
                    raise ValueError(f"it has no {key}")
                return value

            yield get


def _unpickle(data: bytes) -> Any:
    return _PlainUnpickler(io.BytesIO(data)).load()


class _PlainUnpickler(pickle.Unpickler):
    """Builds plain values and arrays of numbers; whatever else a pickle asks for is refused by name."""

    def find_class(self, module: str, name: str) -> Any:
        package = module.replace("numpy.core", "numpy._core")  # before numpy 2
        if stand_in := _STAND_INS.get((package, name)):
            return stand_in
        raise ValueError(f"it has {module}.{name} pickled, expected plain values and arrays of numbers")


class _Dtype:
    """In place of a pickled dtype, whose state numpy would believe: of numbers only."""

    def __init__(self, code: str, *_: object) -> None:
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "biuf":
            raise ValueError(f"it has an array of {code!r} pickled, expected numbers")

    def __setstate__(self, state: Sequence[Any]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """In place of a pickled array."""

    array = np.empty(0)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: tuple[Any, Any, _Dtype, bool, bytes]) -> None:
        _, shape, dtype, is_fortran, data = state
        self.array = _from_buffer(data, dtype, shape, "F" if is_fortran else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.array


def _from_buffer(data: Any, dtype: _Dtype, shape: Any, order: Any) -> NDArray[Any]:
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


def _scalar(dtype: _Dtype, data: bytes) -> Any:
    return np.frombuffer(data, dtype.dtype)[0]


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
}
