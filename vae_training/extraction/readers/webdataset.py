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
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
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
        ending: What follows the first dot in the names of its files.
        pictures: Number of them; None for a video.
    """

    kind: ClassVar[str] = "webdataset"
    ending: str
    pictures: int | None

    def chunks(self) -> Generator[Frames]:
        """As of a recording: a frame for each picture, or those of the video."""
        with reading(self.source), tarfile.open(self.source) as archive:
            files = (sample[self.ending] for sample in self._samples(archive))
            if self.pictures is None:
                yield from decode(self.source, self.threads, content=_content(archive, next(files)))
            else:
                yield from decode_pictures((f"{self.source}, {file.name}", _content(archive, file)) for file in files)

    def rows(self) -> Mapping[str, NDArray[Any]]:
        """The numbers in the `.json` of each sample, or the lists in that of the video that are as long as it.

        Names of nested objects are joined by $. What is not there for each frame is left out, and listed in `notes`.
        """
        return {name: column for name, column in self._columns().items() if column is not None}

    @property
    def notes(self) -> list[str]:
        """Names what is left out of the rows."""
        left_out = [name for name, column in self._columns().items() if column is None]
        what = f"{self.source}: without what its .json does not have as numbers for each frame"
        return [f"{what}: {', '.join(left_out)}"] if left_out else []

    def _stated_frames(self) -> int | None:
        return self.pictures

    def _samples(self, archive: tarfile.TarFile) -> Iterator[dict[str, tarfile.TarInfo]]:
        """The samples that have a picture, or the one that is the video."""
        for key, sample in _samples(archive):
            if self.ending in sample and (self.pictures is not None or key == self.part):
                yield sample

    def _columns(self) -> dict[str, NDArray[Any] | None]:
        """What the `.json` holds, by name; None where it cannot be rows."""
        known: list[dict[str, Any]] = []
        with reading(self.source), tarfile.open(self.source) as archive:
            for sample in self._samples(archive):
                known.append({})
                if file := sample.get("json"):
                    with reading(f"{self.source}, {file.name}"):
                        known[-1].update(_flat(json.load(_content(archive, file))))
                if self.pictures is None:
                    frames = count_frames(self.source, _content(archive, sample[self.ending]))
                    return {name: _as_row(values, frames) for name, values in known[0].items()}
        names = dict.fromkeys(name for each in known for name in each)
        return {name: _as_row([each.get(name) for each in known], len(known)) for name in names}


def is_shard(path: Path) -> bool:
    """Whether a path is a tar archive, by its name."""
    return path.name.lower().endswith(_SUFFIXES) and path.is_file()


def shard_recordings(file: Path, camera: str | None) -> Iterator[Recording]:
    """The recordings in a tar archive: its videos of one camera, or if it has no videos its pictures, if there are any.

    Raises:
        InputError: There is no such camera, or there are several and `camera` is None.
        DamagedRecordingError: It cannot be read.
    """
    videos: dict[str, list[str]] = {}
    pictures: dict[str, list[str]] = {}
    with reading(file), tarfile.open(file) as archive:
        for key, sample in _samples(archive):
            for ending in sample:
                suffix = f".{ending.rpartition('.')[2]}"
                if suffix in VIDEO_SUFFIXES:
                    videos.setdefault(ending, []).append(key)
                elif suffix in PICTURE_SUFFIXES:
                    pictures.setdefault(ending, []).append(key)
    if not (keys := videos or pictures):
        return
    endings = {ending.rpartition(".")[0] or ending: ending for ending in keys}
    ending = endings[choose_camera(file, list(endings), camera)]
    if videos:
        for key in videos[ending]:
            yield ShardRecording(name="", source=file, part=key, ending=ending, pictures=None)
    else:
        yield ShardRecording(name="", source=file, ending=ending, pictures=len(pictures[ending]))


def _samples(archive: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """The name of each sample, and its files by what follows the first dot in their names."""

    def key(file: tarfile.TarInfo) -> str:
        path = PurePosixPath(file.name)
        return path.with_name(path.name.partition(".")[0]).as_posix()

    files = (each for each in archive if each.isfile() and not any(map(is_passed_over, PurePosixPath(each.name).parts)))
    for name, sample in itertools.groupby(files, key):
        yield name, {PurePosixPath(file.name).name.partition(".")[2].lower(): file for file in sample}


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
