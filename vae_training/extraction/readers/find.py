"""Find recordings in files and folders by names and headers, without decoding anything."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
from vae_training.extraction.readers.minerl import ARRAYS, FILES, METADATA, VIDEO, MineRLStream, blacklisted
from vae_training.extraction.readers.video import VIDEO_SUFFIXES, VideoRecording
from vae_training.extraction.readers.vpt import VptOptions, VptRecording

_KNOWN = (
    "Expected MineRL streams (folders with recording.mp4, rendered.npz, metadata.json), videos (.mp4, .mkv, .avi, "
    ".webm, .mov, ...; an .mp4 with a .jsonl beside it has actions), folders of pictures (.png, .jpg, .webp, .bmp), or "
    "uint8 frames in .npz or .npy files"
)

_Found = Recording | Damaged


def find_recordings(
    paths: Sequence[Path], *, vpt: VptOptions | None = None, threads: int = 0
) -> tuple[list[Recording], list[Damaged]]:
    """Find the recordings in some files and folders.

    Folders are searched to the bottom. What is found in one: a MineRL stream, where it has at least two of the three
    files of one; an `.mp4` with a `.jsonl` of the same name as a VPT recording; any other video; `.npz` and `.npy`
    files with frames; and its pictures, as one recording, where it has none of these (beside a video they are
    thumbnails). Hidden files and folders, unfinished files (`.part`), `__MACOSX` and anything else are passed over.
    What is reached twice counts once.

    Args:
        paths: Files and folders.
        vpt: Which frames of VPT recordings to take, and how.
        threads: Threads of the video decoder; 0 takes one per core.

    Returns:
        The recordings, and those that are visibly damaged; both in the order of the paths, and
        within a folder of their names (2 before 10). Names are unique over both: where two would agree they keep their
        suffix, then the folder that was searched comes before them, then they are numbered.

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
    vpt, seen, others = vpt or VptOptions(), set[Path](), list[str]()
    for root in map(Path, paths):
        if not root.exists():
            raise InputError(f"there is no file or folder {root} (current folder: {Path.cwd()})")
        base = root if root.is_dir() else root.parent
        for each in _search(root, vpt, threads, seen, others):
            found.append((each, base))
    if not found:
        listed = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        where = ", ".join(map(str, paths)) or "no path at all"
        raise InputError(f"no recordings in {where}; there is {listed or 'nothing'}. {_KNOWN}")
    named = _named(found)
    recordings = [each for each in named if isinstance(each, Recording)]
    return recordings, [each for each in named if isinstance(each, Damaged)]


def _search(root: Path, vpt: VptOptions, threads: int, seen: set[Path], others: list[str]) -> Iterator[_Found]:
    """Everything in a file or folder, in order, named as yet by its path."""

    def new(path: Path) -> bool:
        real = path.resolve()
        if real in seen:
            return False
        seen.add(real)
        return True

    if root.is_file():
        each = _of_file(root, vpt, threads)
        if root.name in FILES and _is_stream({path.name for path in root.parent.iterdir()}):
            root = root.parent
            each = _of_stream(root, threads)
        if each is None:
            others.append(root.name)
        elif new(root):
            yield each
        return
    if not new(root):  # given twice, or a link that leads back up
        return
    try:
        entries = sorted(os.scandir(root), key=lambda entry: natural_key(entry.name))
    except OSError as error:
        yield Damaged("", root, f"{root} cannot be read: {error.strerror}")
        return
    entries = [entry for entry in entries if not is_passed_over(entry.name)]
    names = {entry.name for entry in entries if entry.is_file()}
    if _is_stream(names):
        yield _of_stream(root, threads)
        return
    here: list[tuple[tuple[list[str | int], str], Callable[[], Iterator[_Found]]]] = []
    pictures, recordings, unknown = list[str](), False, list[str]()
    for entry in entries:
        path = root / entry.name
        if entry.is_dir():
            here.append((natural_key(entry.name), lambda path=path: _search(path, vpt, threads, seen, others)))
        elif path.suffix.lower() in PICTURE_SUFFIXES:
            pictures.append(entry.name)
        elif (each := _of_file(path, vpt, threads)) is None:
            unknown.append(entry.name)
        else:
            recordings = True
            here.append((natural_key(entry.name), lambda each=each, path=path: iter([each] if new(path) else [])))
    if pictures and not recordings:
        here.append((natural_key(pictures[0]), lambda: iter([PicturesRecording("", root)])))
    others.extend(unknown)
    for _, results in sorted(here, key=lambda item: item[0]):
        yield from results()


def _is_stream(names: set[str]) -> bool:
    return len(names.intersection(FILES)) >= 2 or ARRAYS in names


def _of_stream(folder: Path, threads: int) -> _Found:
    missing = [name for name in (VIDEO, ARRAYS, METADATA) if not (folder / name).is_file()]
    if missing:
        return Damaged("", folder, f"{folder} is a MineRL stream that lacks {' and '.join(missing)}")
    if (reason := blacklisted(folder)) is not None:
        return Damaged("", folder, reason)
    return MineRLStream("", folder, threads)


def _of_file(path: Path, vpt: VptOptions, threads: int) -> _Found | None:
    """What a file is, None where it is no recording."""
    suffix = path.suffix.lower()
    if suffix not in VIDEO_SUFFIXES | {".npy", ".npz"}:
        return None
    try:
        if path.stat().st_size == 0:
            return Damaged("", path, f"{path} is empty (0 bytes)")
        if suffix == ".npy":
            header = npy_header_of(path)
            if len(header.shape) < 3 and not header.dtype.hasobject:
                return None
            reason = why_no_frames(header, str(path))
            return NpyRecording("", path) if reason is None else Damaged("", path, reason)
        if suffix == ".npz":
            headers = npz_headers(path)
            if headers and all(len(header.shape) < 3 and not header.dtype.hasobject for header in headers.values()):
                return None
            key = frames_key(path, headers)
            reason = why_no_frames(headers[key], f"{path}, array {key!r},")
            return NpzRecording("", path) if reason is None else Damaged("", path, reason)
    except DamagedRecordingError as error:
        return Damaged("", path, str(error))
    except OSError as error:
        return Damaged("", path, f"{path} cannot be read: {error.strerror}")
    if suffix == ".mp4" and path.with_suffix(".jsonl").is_file():
        return VptRecording("", path, threads, vpt)
    return VideoRecording("", path, threads)


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
