"""WebDataset shards: tar archives, compressed or not, in which the order of the files is that of time.

    000017.jpg     a picture; of several cameras: 000017.front.jpg, 000017.wrist.jpg
    000017.json    what is known of it
    000018.jpg     files with the same name up to the first dot, side by side, are a sample
    walk.mp4       or a video
    walk.json      what is known of its frames: lists as long as the video

Nothing is extracted to the disk.
"""

import itertools
import json
import tarfile
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vae_training.data.frames import Frames
from vae_training.extraction.readers.base import Recording, choose_camera, is_passed_over, reading
from vae_training.extraction.readers.images import PICTURE_SUFFIXES, decode_pictures
from vae_training.extraction.readers.video import VIDEO_SUFFIXES, count_frames, decode

_SUFFIXES = (".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True, kw_only=True)
class ShardRecording(Recording):
    """The pictures in a shard, or one of the videos in it: its `part`.

    Attributes:
        endings: What follows the first dot in the names of its files, "front.jpg"; only one of them is in a sample.
        pictures: Number of them; None for a video.
        unused: How many files of the shard are not read, by their suffixes; of its first recording only.
    """

    kind: ClassVar[str] = "webdataset"
    endings: tuple[str, ...]
    pictures: int | None
    unused: str = ""

    def chunks(self) -> Generator[Frames]:
        """As of a recording: a frame for each picture, or those of the video."""
        with reading(self.source), tarfile.open(self.source) as archive:
            files = (file for key, ending, file in _files(archive) if self._has(key, ending))
            if self.pictures is None:
                yield from decode(self.source, self.threads, content=_content(archive, next(files)))
            else:
                yield from decode_pictures((f"{self.source}, {file.name}", _content(archive, file)) for file in files)

    def rows(self) -> Mapping[str, NDArray[Any]]:
        """The numbers in the `.json` of each sample, or the lists in that of the video that are as long as it.

        Names of nested objects are joined by $. What is not there for each frame is left out, and listed in `notes`.
        """
        return {name: column for name, column in self._columns.items() if column is not None}

    @property
    def notes(self) -> list[str]:
        """Names what is left out of the rows, and counts the files of the shard that are not read."""
        left_out = [name for name, column in self._columns.items() if column is None]
        what = f"{self.source}: without what its .json does not have as numbers for each frame"
        return [
            *([f"{what}: {', '.join(left_out)}"] if left_out else []),
            *([f"{self.source}: without files that are not read: {self.unused}"] if self.unused else []),
        ]

    def _stated_frames(self) -> int | None:
        return self.pictures

    def _has(self, key: str, ending: str) -> bool:
        """Whether a file of the shard is a picture of this recording, or its video."""
        return ending in self.endings and (self.pictures is not None or key == self.part)

    @cached_property
    def _columns(self) -> dict[str, NDArray[Any] | None]:
        """What the `.json` holds, by name; None where it cannot be rows."""
        known: dict[str, dict[str, Any]] = {}
        keys: list[str] = []
        frames = None
        with reading(self.source), tarfile.open(self.source) as archive:
            for key, ending, file in _files(archive):
                if self._has(key, ending):
                    keys.append(key)
                    if self.pictures is None:
                        frames = count_frames(self.source, _content(archive, file))
                elif ending == "json" and self.part in ("", key):
                    with reading(f"{self.source}, {file.name}"):
                        known[key] = dict(_flat(json.load(_content(archive, file))))
        if frames is not None:
            return {name: _as_row(values, frames) for name, values in known.get(self.part, {}).items()}
        rows = [known.get(key, {}) for key in keys]
        names = dict.fromkeys(name for each in rows for name in each)
        return {name: _as_row([each.get(name) for each in rows], len(rows)) for name in names}


def is_shard(path: Path) -> bool:
    """Whether a path is a tar archive, by its name."""
    return path.name.lower().endswith(_SUFFIXES) and path.is_file()


def shard_recordings(file: Path, camera: str | None) -> Iterator[Recording]:
    """The recordings in a tar archive: its videos of one camera, or if it has no videos its pictures, if there are any.

    Raises:
        InputError: There is no such camera, or there are several and `camera` is None.
        DamagedRecordingError: It cannot be read, or its samples are not in one piece.
    """
    with reading(file), tarfile.open(file) as archive:
        samples: list[tuple[str, list[str]]] = []
        for key, group in itertools.groupby(_files(archive), lambda file: file[0]):
            samples.append((key, []))
            for _, ending, member in group:
                if ending in samples[-1][1]:
                    raise ValueError(f"{member.name} is in it twice")
                samples[-1][1].append(ending)
        for suffixes in (VIDEO_SUFFIXES, PICTURE_SUFFIXES):
            found = [(key, ending) for key, endings in samples for ending in endings if _suffix(ending) in suffixes]
            if found:
                break
        else:
            return
        counts = Counter(key for key, _ in samples)
        if apart := [key for key, _ in found if counts[key] > 1]:
            raise ValueError(
                f"the files of {apart[0]!r} are in several places in it, expected side by side, and each once; write "
                "it again with tar --sort=name, from files whose numbers have as many digits each (0009, 0010)"
            )
    cameras = _cameras(found)
    endings = cameras[choose_camera(file, list(cameras), camera)]
    keys = [key for key, ending in found if ending in endings]
    used = {*found, *((key, "json") for key in keys)}
    unused = Counter(_suffix(ending) for key, inside in samples for ending in inside if (key, ending) not in used)
    note = ", ".join(f"{count} {suffix}" for suffix, count in unused.items())
    if suffixes is PICTURE_SUFFIXES:
        yield ShardRecording(name="", source=file, endings=endings, pictures=len(keys), unused=note)
        return
    for key in keys:
        yield ShardRecording(name="", source=file, part=key, endings=endings, pictures=None, unused=note)
        note = ""


def _cameras(found: Sequence[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Endings of the files of each camera, by its name: "front" for front.jpg and front.png, "jpg/png" for jpg and png.

    Where both are in one sample, they are two cameras.
    """
    pairs = [(key, ending.rpartition(".")[0], ending) for key, ending in found]
    several = {camera for (_, camera), count in Counter(pair[:2] for pair in pairs).items() if count > 1}
    endings: dict[str, dict[str, None]] = {}
    for _, camera, ending in pairs:
        endings.setdefault(ending if camera in several else camera, {})[ending] = None
    return {camera or "/".join(inside): tuple(inside) for camera, inside in endings.items()}


def _suffix(ending: str) -> str:
    return f".{ending.rpartition('.')[2]}" if ending else "without suffix"


def _files(archive: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """The name of the sample of each file, what follows the first dot in its own name, and the file.

    A file is to be read before the next is asked for: going back in a compressed archive begins it again.
    """
    for file in archive:
        path = PurePosixPath(file.name)
        if file.isfile() and not any(map(is_passed_over, path.parts)):
            name, _, ending = path.name.partition(".")
            yield path.with_name(name).as_posix(), ending.lower(), file


def _content(archive: tarfile.TarFile, file: tarfile.TarInfo) -> IO[bytes]:
    content = archive.extractfile(file)
    assert content is not None, "it is no folder"
    return content


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested JSON objects, with their names joined by $; another JSON value is called "json"."""
    if not isinstance(value, dict):
        yield name or "json", value
        return
    for key, inner in value.items():
        yield from _flat(inner, f"{name}${key}" if name else key)


def _as_row(values: Any, frames: int) -> NDArray[Any] | None:
    """Numbers of each frame as an array; None if they are not."""
    try:
        array = np.array(values)
    except ValueError:  # lists of several lengths
        return None
    return array if array.dtype.kind in "biuf" and array.shape[:1] == (frames,) else None
