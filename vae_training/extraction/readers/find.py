"""Find recordings in files and folders by names and headers, without decoding anything."""

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from latent_obs.util.errors import InputError
from latent_obs.util.words import counted, listed
from vae_training.extraction.readers import minestudio
from vae_training.extraction.readers.arrays import array_recordings
from vae_training.extraction.readers.base import (
    Damaged,
    DamagedRecordingError,
    Recording,
    is_passed_over,
    natural_key,
    reading,
)
from vae_training.extraction.readers.hdf5 import hdf5_recordings, is_hdf5
from vae_training.extraction.readers.images import PICTURE_SUFFIXES, PicturesRecording
from vae_training.extraction.readers.lerobot import is_lerobot, lerobot_recordings
from vae_training.extraction.readers.minari import is_minari, minari_recordings
from vae_training.extraction.readers.minerl import ARRAYS, FILES, MineRLStream
from vae_training.extraction.readers.remote import remote_recordings, url_of
from vae_training.extraction.readers.video import VIDEO_SUFFIXES, VideoRecording
from vae_training.extraction.readers.vpt import VptOptions, VptRecording
from vae_training.extraction.readers.webdataset import is_shard, shard_recordings
from vae_training.extraction.readers.zarr import is_zarr, zarr_recordings

_KNOWN = (
    "Expected MineRL streams (folders with recording.mp4, rendered.npz, metadata.json), datasets of LeRobot (folders "
    "with meta/info.json), Minari or MineStudio (folders image or video, with action), HDF5 files of robomimic, .zarr "
    "replay buffers, WebDataset shards (.tar), videos (.mp4, .mkv, .avi, .webm, .mov, ...; an .mp4 with a .jsonl "
    "beside it has actions), folders of pictures (.png, .jpg, .webp, .bmp), or uint8 frames in .npz or .npy files"
)

_MOST_THUMBNAILS = 2  # for each recording beside them

_Found = Recording | Damaged


class Container(NamedTuple):
    """A kind of folder, or of file, that holds recordings in a form of its own."""

    recognizes: Callable[[Path], bool]
    """Whether a path is one, by its name and what lies in it; nothing is opened."""
    find: Callable[[Path, str | None], Iterable[_Found]]
    """Its recordings, named by `part`, from the pictures of a camera; a `DamagedRecordingError` if it is unreadable."""


_CONTAINERS: tuple[Container, ...] = (
    Container(is_lerobot, lerobot_recordings),
    Container(is_shard, shard_recordings),
    Container(is_minari, minari_recordings),
    Container(is_hdf5, hdf5_recordings),
    Container(is_zarr, zarr_recordings),
    Container(minestudio.is_dataset, minestudio.episodes),
)


def find_recordings(
    paths: Sequence[Path],
    *,
    vpt: VptOptions | None = None,
    camera: str | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> tuple[list[Recording], list[Damaged]]:
    """Find the recordings in some files and folders.

    Folders are searched to the bottom. What is found in one: a MineRL stream, where it has at least two of the three
    files of one; each episode of a LeRobot, Minari or MineStudio dataset, an HDF5 file or a zarr buffer; an `.mp4`
    with a `.jsonl` of the same name as a VPT recording; any other video; the pictures or videos in a WebDataset shard;
    `.npz` and `.npy` files with frames; and its pictures, as one recording. Up to two pictures for each of the others
    in their folder are thumbnails, and not used; `say` gets a sentence that names them, and one for unfinished files
    (`.part`) and anything else that is no recording. Hidden files and folders and `__MACOSX` are passed over. What is
    reached twice counts once.

    Returns:
        The recordings, and those that are visibly damaged; both in the order of the paths, and within a folder of their
        names (2 before 10). Names are unique over both: where two would agree they keep their suffix, then the folder
        that was searched comes before them, then they are numbered.

    Raises:
        InputError: A path does not exist, or there is nothing in any of them.

    Example:
        >>> import tempfile, numpy
        >>> folder = Path(tempfile.mkdtemp())
        >>> numpy.save(folder / "walk.npy", numpy.zeros((10, 64, 64, 3), numpy.uint8))
        >>> recordings, damaged = find_recordings([folder])
        >>> [(recording.name, recording.kind, recording.expected_frames) for recording in recordings], damaged
        ([('walk', 'npy', 10)], [])
    """
    found: list[tuple[_Found, Path]] = []
    search = _Search(vpt or VptOptions(), camera, say)
    for root in map(Path, paths):
        if url := url_of(root):
            inside, others = remote_recordings(url, partial(_in_file, search.vpt), say)
            found += [(each, root if each.source != root else root.parent) for each in inside]
            search.others += others
            continue
        if not root.exists():
            raise InputError(f"there is no file or folder {root} (current folder: {Path.cwd()})")
        base, inside = (root, search.folder(root)) if root.is_dir() else (root.parent, search.file(root))
        found += [(each, base) for each in inside]
    if not found:
        where = ", ".join(map(str, paths)) or "no path at all"
        raise InputError(f"no recordings in {where}; there is {listed(search.others) or 'nothing'}. {_KNOWN}")
    if search.others:
        say(f"not used, as they are no recordings: {counted(len(search.others), 'file')}, {listed(search.others)}")
    named = [replace(each, name=name) for (each, _), name in zip(found, _unique_names(found), strict=True)]
    recordings = [each for each in named if isinstance(each, Recording)]
    return recordings, [each for each in named if isinstance(each, Damaged)]


def _in_file(vpt: VptOptions, file: Path) -> list[_Found]:
    """The recordings of a file that was fetched."""
    return list(_Search(vpt, None, lambda _: None).file(file))


class _Search:
    """What was seen already, and the names of files that are no recordings; what is found has no name yet."""

    def __init__(self, vpt: VptOptions, camera: str | None, say: Callable[[str], object]) -> None:
        self.vpt, self.camera, self.say = vpt, camera, say
        self.seen: set[str] = set()
        self.others: list[str] = []

    def folder(self, root: Path) -> Iterator[_Found]:
        if not self._is_new(root):  # given twice, or a link that leads back up
            return
        try:
            with reading(root):
                inside = sorted(root.iterdir(), key=lambda path: natural_key(path.name))
        except DamagedRecordingError as error:
            yield Damaged("", root, str(error))
            return
        paths = [path for path in inside if not is_passed_over(path.name)]
        self.others += [path.name for path in inside if path.name.endswith(".part") and not path.name.startswith(".")]
        if _container(root):
            yield from self._each(root)
            return
        if _is_stream(paths):
            yield from self._each(root)
            self.others += [path.name for path in paths if path.name not in FILES]
            return
        files = {path: list(self._each(path)) for path in paths if not path.is_dir()}
        pictures = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]
        recordings = sum(map(len, files.values()))
        thumbnails = 0 < len(pictures) <= _MOST_THUMBNAILS * recordings
        if thumbnails:
            self.say(
                f"{root}: not used, as thumbnails of what is beside them: {counted(len(pictures), 'picture')}, "
                f"{listed([path.name for path in pictures])}. In a folder of their own they are a recording"
            )
        of_vpt = {each.files[1] for inner in files.values() for each in inner if isinstance(each, VptRecording)}
        for path in paths:
            if path not in files:
                yield from self.folder(path)
            elif files[path]:
                if self._is_new(path):
                    yield from files[path]
            elif path not in pictures:
                self.others += [path.name] if path not in of_vpt else []
            elif path == pictures[0] and not thumbnails:
                yield PicturesRecording("", root)

    def file(self, file: Path) -> Iterator[_Found]:
        part_of_stream = file.name in FILES and _is_stream(file.parent.iterdir())
        found = list(self._each(file.parent if part_of_stream else file))
        if not found:
            self.others.append(file.name)
        elif self._is_new(found[0].source):
            yield from found

    def _each(self, path: Path) -> Iterator[_Found]:
        """What a file, or the folder of a stream or container, holds; nothing where it is no recording."""
        suffix = path.suffix.lower()
        try:
            if container := _container(path):
                yield from container.find(path, self.camera)
            elif path.is_dir():
                yield MineRLStream("", path).checked()
            elif suffix in VIDEO_SUFFIXES | {".npy", ".npz"}:
                with reading(path):
                    if path.stat().st_size == 0:
                        raise ValueError("it is empty (0 bytes)")
                if suffix in (".npy", ".npz"):
                    yield from array_recordings(path)
                elif suffix == ".mp4" and path.with_suffix(".jsonl").is_file():
                    yield VptRecording("", path, options=self.vpt)
                else:
                    yield VideoRecording("", path)
        except DamagedRecordingError as error:
            yield Damaged("", path, str(error))

    def _is_new(self, path: Path) -> bool:
        real, known = os.path.realpath(path), len(self.seen)  # Path.resolve raises where links go in a circle
        self.seen.add(real)
        return len(self.seen) > known


def _container(path: Path) -> Container | None:
    """The kind of container that a path is, if it is one."""
    return next((kind for kind in _CONTAINERS if kind.recognizes(path)), None)


def _is_stream(paths: Iterable[Path]) -> bool:
    names = {path.name for path in paths if path.name in FILES and path.is_file()}
    return len(names) >= 2 or ARRAYS in names


def _unique_names(found: Sequence[tuple[_Found, Path]]) -> list[str]:
    """A name for each, of which no two agree, in whatever case a file system may see them."""
    forms: list[tuple[str, str, str]] = []
    for each, base in found:
        inside = each.source.relative_to(base) if each.source.is_relative_to(base) else Path(each.source.name)
        whole = inside.as_posix() if inside.parts else (base.resolve().name or "recording")
        bare = whole if each.source.is_dir() or not inside.parts else inside.with_suffix("").as_posix()
        if each.part:
            bare, whole = f"{bare}/{each.part}", f"{whole}/{each.part}"
        forms.append((bare, whole, f"{base.resolve().name}/{whole}"))
    counts = [Counter(form[level].casefold() for form in forms) for level in range(2)]
    names, taken = [""] * len(forms), set[str]()
    for level in itertools.count():
        for i, form in enumerate(forms):
            name = form[level] if level < 3 else f"{form[2]}-{level - 1}"
            alone = level >= 2 or counts[level][name.casefold()] == 1
            if not names[i] and alone and name.casefold() not in taken:
                names[i] = name
                taken.add(name.casefold())
        if all(names):
            break
    return names
