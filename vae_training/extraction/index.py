"""A folder of extracted frames: its files, the index that says where they come from, and how both survive a kill.

    frames/
    ├── frames.json                 settings, and for each recording its source, fingerprint, frames and files;
    │                               with --shard 1/3, 2/3, 3/3 a frames.shard-1-of-3.json, ..., of each shard
    ├── clips__gate.npy             uint8 (N, H, W, 3), the frames of the recording clips/gate
    ├── clips__gate.rows.npz        what is known of each of them: actions, rewards, ..., and source_frame
    ├── long_000.npy …              a recording of more than frames_per_file frames
    └── .extracting-1a2b3c/         what is being written; gone when the run ends
        └── long/                   the files of one recording, and entry.json last, when all of them are whole

A recording's files are moved out of there together, after its entry.json is written and before the index names it.
Whatever kills the process, the next one therefore finds either no entry.json, and removes the rest, or a whole
recording, and moves what has not been moved.

Shards write to one folder at the same time, perhaps from several machines, between which no lock can be relied on. So
each has a lock, unfinished files and an index of its own, and only ever reads those of the others.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NotRequired, Self, TypedDict

from latent_obs.util.atomic import LOCK_FILE, own_folder, write_json
from latent_obs.util.errors import InputError, check_type, parse_json
from latent_obs.util.progress import print_now
from vae_training.data.frames import INDEX, SHARD_INDEX, index_files, open_frames
from vae_training.data.rows import rows_file_of
from vae_training.extraction.readers.base import Recording

ENTRY = "entry.json"
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
    complete: NotRequired[bool]  # no recording is pending; damaged ones are not


class FrameFolder:
    """The folder that frames are extracted to, and its index. It is opened by `FrameFolder.open`."""

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        say: Callable[[str], object],
        shard: tuple[int, int] | None = None,
    ) -> None:
        self.path, self.settings, self.say = path, dict(settings), say
        self.index = path / (SHARD_INDEX.format(*shard) if shard else INDEX)
        self.staging = path  # a folder inside it, for the files of unfinished recordings
        self.entries: dict[str, Entry] = {}  # of this shard
        self.others: dict[str, Entry] = {}
        self.damaged: dict[str, dict[str, str]] = {}
        self.shape: tuple[int, ...] | None = None

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        path: Path,
        settings: Mapping[str, Any],
        say: Callable[[str], object] = print_now,
        shard: tuple[int, int] | None = None,
    ) -> Iterator[Self]:
        """Lock a folder for this process; finish or remove what a killed one left, and in the end what is unfinished.

        `settings` are those that decide what the files hold; a folder that was begun with others is refused, and so is
        one that was begun with another number of shards. Of a `shard` (i, n), only its part is locked and finished.
        """
        part = f".shard-{shard[0]}-of-{shard[1]}" if shard else ""
        with own_folder(path, f"{LOCK_FILE}{part}"):
            folder = cls(path, settings, say, shard)
            folder._read()
            folder._finish_what_was_killed(f".extracting{part}-")
            folder.staging = Path(tempfile.mkdtemp(prefix=f".extracting{part}-", dir=path))
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
        """Read the indexes, this one last; they must have been begun alike."""
        self.others = {}
        for file in sorted(index_files(self.path), key=lambda file: file == self.index):
            if _shards(file) != _shards(self.index):
                raise InputError(
                    f"{self.path} was begun {_shards(file)} (it has {file.name}), now it is {_shards(self.index)}. Do "
                    "as before, or choose another --out"
                )
            try:
                index: _Index = parse_json(file.read_bytes(), _Index, file.name)
                for entry in index["recordings"].values():
                    _check_names(entry)
            except InputError as error:
                raise InputError(f"{file} is no index of extracted frames ({error}); choose another --out") from None
            before, shape = index["settings"], tuple(index["shape"]) if index["shape"] else self.shape
            for name in {**self.settings, **before}:
                if before.get(name) != self.settings.get(name):
                    raise InputError(
                        f"{self.path} was begun with {name} {before.get(name)!r}, now it is "
                        f"{self.settings.get(name)!r}. Give --{name.replace('_', '-')} as before, or another --out"
                    )
            if shape != (self.shape or shape):
                raise InputError(
                    f"{file} is of frames of shape {shape}, and those of other shards have {self.shape}; a dataset "
                    "needs one shape. Give a --size, and another --out"
                )
            self.shape = shape
            if file == self.index:
                self.entries, self.damaged = index["recordings"], index["damaged"]
            else:
                self.others |= index["recordings"]

    def _finish_what_was_killed(self, staging: str) -> None:
        # No link is followed, and an entry that no run can have written is as good as none: its folder is removed.
        for left in sorted(path for path in self.path.glob(f"{staging}*") if not path.is_symlink()):
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
        self.shape, is_new = shape, not self.index.exists()
        self.write()
        try:  # again, now that the others see this one: of shards that begin at the same time, one sees the other
            self._read()
        except InputError:
            if is_new:
                self.index.unlink()
            raise

    def holds(self, recording: Recording, names: set[str]) -> bool:
        """Whether a recording is finished here, or was under a name that is not among `names` of this search.

        A recording whose files were all removed is forgotten, so that it is extracted again.

        Raises:
            InputError: Its source has changed since it was extracted, or a file of its frames has.
        """
        name, fingerprint = recording.name, recording.fingerprint()
        last = recording.part or recording.source.name
        if name not in self.entries:  # perhaps it was found from a folder above, or below
            known = {**self.others, **self.entries}
            for other in known.keys() - names:
                entry = known[other]
                if entry["fingerprint"] == fingerprint and f"/{entry['source']}".endswith(f"/{last}"):
                    self.say(f"{name} is in {self.path} already, under the name {other}")
                    return True
            return False
        entry, there = self.entries[name], []
        for part in entry["files"]:
            file = self.path / part["file"]
            there += [file.exists(), (self.path / part["rows"]).exists()]
            if file.exists() and open_frames(file).shape != (part["frames"], *(self.shape or ())):
                raise InputError(
                    f"{file} is not of the shape in {self.index.name}. Remove it, and it is extracted again"
                )
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
                    raise InputError(f"{there} is not in {self.index.name}; move it elsewhere, or choose another --out")
                here.replace(there)
        self.entries[name] = entry
        self.write()
        shutil.rmtree(staged, ignore_errors=True)

    def write(self, *, complete: bool = False) -> None:
        """Write the index, whole or not at all; it depends on what was extracted, not on when."""
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
            "complete": complete,
        }
        write_json(self.index, content)

    @property
    def frames(self) -> int:
        """Frames of all finished recordings."""
        return sum(entry["frames"] for entry in self.entries.values())

    def stems(self, names: Iterable[str]) -> dict[str, str]:
        """File names for recordings, without ending: readable, safe, and one for each; finished ones keep theirs.

        Where two would be the same (or one could be a part of the other, x_000 of x), a few letters that follow from
        the name are added. So each shard, and each run after a kill, finds the same for all `names` of the search.
        """
        digests = {name: hashlib.sha256(os.fsencode(name)).hexdigest()[:6] for name in names}
        stems: dict[str, str] = {}
        for name, digest in digests.items():
            stem = re.sub(r"[^\w.+=-]+", "-", name.replace("/", "__")).strip("-.") or f"recording-{digest}"
            if len(stem.encode()) > _LONGEST_STEM:
                stem = f"{stem.encode()[:_LONGEST_STEM].decode(errors='ignore')}-{digest}"
            stems[name] = stem
        finished = {name: entry["files"] for name, entry in {**self.others, **self.entries}.items() if entry["files"]}
        kept = {
            name: files[0]["file"].removesuffix(".npy").removesuffix("_000" if len(files) > 1 else "")
            for name, files in finished.items()
        }
        # There are file systems for which a and A are one.
        count = Counter(stem.casefold() for stem in stems.values())
        count.update({stem.casefold() for name, stem in kept.items() if stem != stems.get(name)})
        for name in digests.keys() - kept.keys():
            stem = stems[name].casefold()
            piece = re.fullmatch(r"(.+)_\d{3,}", stem)
            if count[stem] > 1 or (piece and piece[1] in count):
                stems[name] += f"-{digests[name]}"
        return {**stems, **kept}


def _shards(index: Path) -> str:
    """How many shards an index is one of, in words."""
    of = index.name.rpartition("-of-")[2].removesuffix(".json")
    return f"in shards, --shard i/{of}" if index.name != INDEX else "without --shard"


def _check_names(entry: Entry) -> None:
    """Check that an entry names files in the folder, and none elsewhere."""
    for part in entry["files"]:
        file, rows = part["file"], part["rows"]
        if Path(file).name != file or file.startswith(".") or rows != rows_file_of(Path(file)).name:
            raise InputError(f"{entry['source']} names {file!r} and {rows!r}, expected frames and rows in this folder")
