"""A folder of extracted frames: its files, the index that says where they come from, and how both survive a kill.

    frames/
    ├── frames.json                 settings, and for each recording its source, fingerprint, frames and files
    ├── clips__gate.npy             uint8 (N, H, W, 3), the frames of the recording clips/gate
    ├── clips__gate.rows.npz        what is known of each of them: actions, rewards, ..., and source_frame
    ├── long_000.npy …              a recording of more than frames_per_file frames
    └── .extracting-1a2b3c/         what is being written; gone when the run ends
        └── long/                   the files of one recording, and entry.json last, when all of them are whole

A recording's files are moved out of there together, after its entry.json is written and before the index names it.
Whatever kills the process, the next one therefore finds either no entry.json, and removes the rest, or a whole
recording, and moves what has not been moved.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self, TypedDict

from latent_obs.util.atomic import own_folder, write_json
from latent_obs.util.errors import InputError, check_type, parse_json
from latent_obs.util.progress import print_now
from vae_training.data.frames import open_frames
from vae_training.data.rows import rows_file_of
from vae_training.extraction.readers.base import Recording

INDEX, ENTRY = "frames.json", "entry.json"
_STAGING = ".extracting-"
_LONGEST_STEM = 150  # bytes; file systems take 255, and endings are added to it


class Part(TypedDict):
    """A file of frames, and the one of their rows."""

    file: str
    rows: str
    frames: int


class Entry(TypedDict):
    """What the index says of a recording."""

    source: str
    kind: str
    frames: int
    first_source_frame: int | None
    shape: list[int]
    fingerprint: str
    notes: list[str]
    files: list[Part]


class _Index(TypedDict):
    format_version: int
    settings: dict[str, Any]
    shape: list[int] | None
    frames: int
    recordings: dict[str, Entry]
    damaged: dict[str, dict[str, str]]
    versions: dict[str, str]


class FrameFolder:
    """The folder that frames are extracted to, and its index. It is opened by `FrameFolder.open`."""

    def __init__(self, path: Path, settings: Mapping[str, Any], say: Callable[[str], object]) -> None:
        self.path, self.settings, self.say = path, dict(settings), say
        self.staging = path  # a folder inside it, for the files of unfinished recordings
        self.entries: dict[str, Entry] = {}
        self.damaged: dict[str, dict[str, str]] = {}
        self.shape: tuple[int, ...] | None = None

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, settings: Mapping[str, Any], say: Callable[[str], object] = print_now) -> Iterator[Self]:
        """Lock a folder for this process; finish or remove what a killed one left, and in the end what is unfinished.

        `settings` are those that decide what the files hold; a folder that was begun with others is refused.
        """
        with own_folder(path):
            folder = cls(path, settings, say)
            folder._read()
            folder._finish_what_was_killed()
            folder.staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=path))
            try:
                yield folder
            finally:
                # A whole recording that could not be moved (a full disk) is left for the next run.
                for staged in folder.staging.iterdir():
                    if not (staged / ENTRY).exists():
                        shutil.rmtree(staged, ignore_errors=True)
                with contextlib.suppress(OSError):  # a folder is removed only if it is empty
                    folder.staging.rmdir()

    def _read(self) -> None:
        file = self.path / INDEX
        if not file.exists():
            return
        try:
            index: _Index = parse_json(file.read_bytes(), _Index, INDEX)
            for entry in index["recordings"].values():
                _check_names(entry)
        except InputError as error:
            raise InputError(f"{file} is no index of extracted frames ({error}); choose another --out") from None
        before, self.entries, self.damaged = index["settings"], index["recordings"], index["damaged"]
        self.shape = tuple(index["shape"]) if index["shape"] else None
        for name in {**self.settings, **before}:
            if before.get(name) != self.settings.get(name):
                raise InputError(
                    f"{self.path} was begun with {name} {before.get(name)!r}, now it is {self.settings.get(name)!r}. "
                    f"Give --{name.replace('_', '-')} as before, or another --out"
                )

    def _finish_what_was_killed(self) -> None:
        # No link is followed, and an entry that no run can have written is as good as none: its folder is removed.
        for left in sorted(path for path in self.path.glob(f"{_STAGING}*") if not path.is_symlink()):
            for file in sorted(file for file in left.glob(f"*/{ENTRY}") if not file.parent.is_symlink()):
                try:
                    content = tuple(parse_json(file.read_bytes(), list[Any], file))
                    check_type(file, content, tuple[str, Entry, list[int]])
                    name, entry, shape = content
                    _check_names(entry)
                except InputError:
                    continue
                self.shape = tuple(shape)
                self.add(name, entry, file.parent)
                self.say(f"{name} was extracted by a run that was killed; its files are in their place now")
            shutil.rmtree(left, ignore_errors=True)

    def settle_shape(self, shape: tuple[int, ...]) -> None:
        """Fix the shape of the frames, (H, W, 3); a folder that holds other frames is refused."""
        for file in sorted(self.path.glob("[!.]*.npy")):
            if (found := open_frames(file).shape[1:]) != shape:
                raise InputError(
                    f"{file} has frames of shape {found}, and these would be {shape}; a dataset needs one shape. "
                    "Choose another --out, or another --size"
                )
        self.shape = shape
        self.write()

    def holds(self, recording: Recording, names: set[str]) -> bool:
        """Whether a recording is finished here, or was under a name that is not among `names` of this search.

        A recording whose files were all removed is forgotten, so that it is extracted again.

        Raises:
            InputError: Its source has changed since it was extracted, or a file of its frames has.
        """
        name, fingerprint = recording.name, recording.fingerprint()
        last = recording.part or recording.source.name
        if name not in self.entries:  # perhaps it was found from a folder above, or below
            for other in self.entries.keys() - names:
                entry = self.entries[other]
                if entry["fingerprint"] == fingerprint and Path(entry["source"]).name == last:
                    self.say(f"{name} is in {self.path} already, under the name {other}")
                    return True
            return False
        entry, there = self.entries[name], []
        for part in entry["files"]:
            file = self.path / part["file"]
            there += [file.exists(), (self.path / part["rows"]).exists()]
            if file.exists() and open_frames(file).shape != (part["frames"], *(self.shape or ())):
                raise InputError(f"{file} is not of the shape in {INDEX}. Remove it, and it is extracted again")
        if there and not any(there):
            del self.entries[name]
            return False
        if entry["fingerprint"] != fingerprint:
            raise InputError(
                f"{name} ({entry['source']}) has changed since its frames were extracted to {self.path}, or is another "
                "recording of the same name. Remove its .npy and .rows.npz, or choose another --out"
            )
        return all(there)

    def add(self, name: str, entry: Entry, staged: Path) -> None:
        """Move a finished recording's files into their place, rows before frames, and name it in the index."""
        known = {part["file"] for part in self.entries[name]["files"]} if name in self.entries else set[str]()
        for part in entry["files"]:
            for file in (part["rows"], part["file"]):
                here, there = staged / file, self.path / file
                if not here.is_file() or here.is_symlink() or (there.exists() and part["file"] in known):
                    continue  # moved before the process was killed; or it was there, and only a neighbor was missing
                if there.exists() and file == part["file"]:
                    raise InputError(f"{there} is not in {INDEX}; move it elsewhere, or choose another --out")
                here.replace(there)
        self.entries[name] = entry
        self.write()
        shutil.rmtree(staged, ignore_errors=True)

    def write(self) -> None:
        """Write `frames.json`, whole or not at all; it depends on what was extracted, not on when."""
        versions: dict[str, str] = {}
        for package in ("latent-obs", "numpy", "pillow", "av"):
            with contextlib.suppress(PackageNotFoundError):
                versions[package] = version(package)
        content = {
            "format_version": 1,
            "settings": self.settings,
            "shape": list(self.shape) if self.shape else None,
            "frames": self.frames,
            "recordings": dict(sorted(self.entries.items())),
            "damaged": {name: bad for name, bad in sorted(self.damaged.items()) if name not in self.entries},
            "versions": versions,
        }
        write_json(self.path / INDEX, content)

    @property
    def frames(self) -> int:
        """Frames of all finished recordings."""
        return sum(entry["frames"] for entry in self.entries.values())

    def stems(self, names: Iterable[str]) -> dict[str, str]:
        """File names for recordings, without ending: readable, safe, and one for each; those in the index keep theirs.

        Where two would be the same (or one could be a part of the other, x_000 of x), a few letters that follow from
        the name are added.
        """
        digests = {name: hashlib.sha256(os.fsencode(name)).hexdigest()[:6] for name in names}
        stems: dict[str, str] = {}
        for name, digest in digests.items():
            stem = re.sub(r"[^\w.+=-]+", "-", name.replace("/", "__")).strip("-.") or f"recording-{digest}"
            if len(stem.encode()) > _LONGEST_STEM:
                stem = f"{stem.encode()[:_LONGEST_STEM].decode(errors='ignore')}-{digest}"
            stems[name] = stem
        kept = {name: entry["files"] for name, entry in self.entries.items() if entry["files"]}
        for name, files in kept.items():
            stems[name] = files[0]["file"].removesuffix(".npy").removesuffix("_000" if len(files) > 1 else "")
        lower = [stem.casefold() for stem in stems.values()]  # there are file systems for which a and A are one
        for name in digests.keys() - kept.keys():
            stem = stems[name].casefold()
            shard = re.fullmatch(r"(.+)_\d{3,}", stem)
            if lower.count(stem) > 1 or (shard and shard[1] in lower):
                stems[name] += f"-{digests[name]}"
        return stems


def _check_names(entry: Entry) -> None:
    """Check that an entry names files in the folder, and none elsewhere."""
    for part in entry["files"]:
        file, rows = part["file"], part["rows"]
        if Path(file).name != file or file.startswith(".") or rows != rows_file_of(Path(file)).name:
            raise InputError(f"{entry['source']} names {file!r} and {rows!r}, expected frames and rows in this folder")
