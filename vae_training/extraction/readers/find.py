"""Find recordings in files and folders by names and headers, without decoding anything."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from latent_obs.util.errors import InputError
from vae_training.extraction.readers.arrays import (
    NpyRecording,
    NpzRecording,
    frames_key,
    npy_header_of,
    npz_headers,
    why_no_frames,
)
from vae_training.extraction.readers.base import Damaged, DamagedRecordingError, Recording, is_passed_over, natural_key
from vae_training.extraction.readers.images import PICTURE_SUFFIXES, PicturesRecording
from vae_training.extraction.readers.minerl import ARRAYS, FILES, MineRLStream, why_unusable
from vae_training.extraction.readers.video import VIDEO_SUFFIXES, VideoRecording
from vae_training.extraction.readers.vpt import VptOptions, VptRecording

_KNOWN = (
    "Expected MineRL streams (folders with recording.mp4, rendered.npz, metadata.json), videos (.mp4, .mkv, .avi, "
    ".webm, .mov, ...; an .mp4 with a .jsonl beside it has actions), folders of pictures (.png, .jpg, .webp, .bmp), or "
    "uint8 frames in .npz or .npy files"
)

_Found = Recording | Damaged


def find_recordings(paths: Sequence[Path], *, vpt: VptOptions | None = None) -> tuple[list[Recording], list[Damaged]]:
    """Find the recordings in some files and folders.

    Folders are searched to the bottom. What is found in one: a MineRL stream, where it has at least two of the three
    files of one; an `.mp4` with a `.jsonl` of the same name as a VPT recording; any other video; `.npz` and `.npy`
    files with frames; and its pictures, as one recording, where it has none of these (beside a video they are
    thumbnails). Hidden files and folders, unfinished files (`.part`), `__MACOSX` and anything else are passed over.
    What is reached twice counts once.

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
    search = _Search(vpt or VptOptions())
    for root in map(Path, paths):
        if not root.exists():
            raise InputError(f"there is no file or folder {root} (current folder: {Path.cwd()})")
        base = root if root.is_dir() else root.parent
        found += [(each, base) for each in (search.folder(root) if root.is_dir() else search.file(root))]
    if not found:
        listed = ", ".join(search.others[:5]) or "nothing"
        where = ", ".join(map(str, paths)) or "no path at all"
        raise InputError(f"no recordings in {where}; there is {listed}. {_KNOWN}")
    named = _named(found)
    recordings = [each for each in named if isinstance(each, Recording)]
    return recordings, [each for each in named if isinstance(each, Damaged)]


class _Search:
    """What was seen already, and the names of files that are no recordings; what is found has no name yet."""

    def __init__(self, vpt: VptOptions) -> None:
        self.vpt = vpt
        self.seen: set[Path] = set()
        self.others: list[str] = []

    def folder(self, root: Path) -> Iterator[_Found]:
        if not self._is_new(root):  # given twice, or a link that leads back up
            return
        try:
            entries = sorted(os.scandir(root), key=lambda entry: natural_key(entry.name))
        except OSError as error:
            yield Damaged("", root, f"{root} cannot be read: {error.strerror}")
            return
        entries = [entry for entry in entries if not is_passed_over(entry.name)]
        if _is_stream({entry.name for entry in entries if entry.is_file()}):
            yield _stream(root)
            return
        files = {entry.name: _of_file(root / entry.name, self.vpt) for entry in entries if not entry.is_dir()}
        pictures = [name for name in files if Path(name).suffix.lower() in PICTURE_SUFFIXES]
        for entry in entries:
            each = files.get(entry.name)
            if entry.is_dir():
                yield from self.folder(root / entry.name)
            elif each is not None:
                if self._is_new(each.source):
                    yield each
            elif entry.name not in pictures:
                self.others.append(entry.name)
            elif entry.name == pictures[0] and not any(files.values()):
                yield PicturesRecording("", root)

    def file(self, file: Path) -> Iterator[_Found]:
        each = _of_file(file, self.vpt)
        if file.name in FILES and _is_stream({path.name for path in file.parent.iterdir()}):
            each = _stream(file.parent)
        if each is None:
            self.others.append(file.name)
        elif self._is_new(each.source):
            yield each

    def _is_new(self, path: Path) -> bool:
        real, known = path.resolve(), len(self.seen)
        self.seen.add(real)
        return len(self.seen) > known


def _is_stream(names: set[str]) -> bool:
    return len(names.intersection(FILES)) >= 2 or ARRAYS in names


def _stream(folder: Path) -> _Found:
    reason = why_unusable(folder)
    return MineRLStream("", folder) if reason is None else Damaged("", folder, reason)


def _of_file(path: Path, vpt: VptOptions) -> _Found | None:
    """What a file is, None where it is no recording."""
    suffix = path.suffix.lower()
    if suffix not in VIDEO_SUFFIXES | {".npy", ".npz"}:
        return None
    try:
        if path.stat().st_size == 0:
            return Damaged("", path, f"{path} is empty (0 bytes)")
        if suffix in (".npy", ".npz"):
            headers = {"": npy_header_of(path)} if suffix == ".npy" else npz_headers(path)
            if headers and all(len(header.shape) < 3 and not header.dtype.hasobject for header in headers.values()):
                return None
            key = "" if suffix == ".npy" else frames_key(path, headers)
            reason = why_no_frames(headers[key], f"{path}, array {key!r}," if key else str(path))
            if reason is not None:
                return Damaged("", path, reason)
            return NpyRecording("", path) if suffix == ".npy" else NpzRecording("", path)
    except DamagedRecordingError as error:
        return Damaged("", path, str(error))
    except OSError as error:
        return Damaged("", path, f"{path} cannot be read: {error.strerror}")
    if suffix == ".mp4" and path.with_suffix(".jsonl").is_file():
        return VptRecording("", path, options=vpt)
    return VideoRecording("", path)


def _named(found: list[tuple[_Found, Path]]) -> list[_Found]:
    """The same with a name each, of which no two agree, in whatever case a file system may see them."""
    forms: list[list[str]] = []
    for each, base in found:
        inside = each.source.relative_to(base) if each.source.is_relative_to(base) else Path(each.source.name)
        whole = inside.as_posix() if inside.parts else (base.resolve().name or "recording")
        bare = whole if each.source.is_dir() or not inside.parts else inside.with_suffix("").as_posix()
        forms.append([bare, whole, f"{base.resolve().name}/{whole}"])
    names = [""] * len(found)
    taken: set[str] = set()
    left = list(range(len(found)))
    for form in range(3):
        wanted = Counter(forms[i][form].casefold() for i in left)
        alone = {name for name, count in wanted.items() if count == 1} - taken
        for i in left:
            if forms[i][form].casefold() in alone:
                names[i] = forms[i][form]
        taken |= alone
        left = [i for i in left if not names[i]]
    for i in left:
        number, name = 1, forms[i][2]
        while name.casefold() in taken:
            number += 1
            name = f"{forms[i][2]}-{number}"
        taken.add(name.casefold())
        names[i] = name
    return [replace(each, name=name) for (each, _), name in zip(found, names, strict=True)]
