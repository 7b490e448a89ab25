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
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from latent_obs.util.atomic import write_json
from latent_obs.util.errors import InputError
from vae_training.data.frames import open_frames

INDEX, ENTRY = "frames.json", "entry.json"
_STAGING = ".extracting-"
_FORMAT_VERSION = 1
_LONGEST_STEM = 150  # bytes; file systems take 255, and endings are added to it

Entry = dict[str, Any]


class FrameFolder:
    """The folder that frames are extracted to, held by one process at a time, and its index.

    Opening it finishes or removes what a killed process left; leaving the `with` block removes what is unfinished.
    `settings` are those that decide what the files hold; a folder that was begun with others is refused.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], say: Callable[[str], object] = print) -> None:
        self.path, self.settings, self._say = path, dict(settings), say
        self.entries: dict[str, Entry] = {}
        self.damaged: dict[str, dict[str, str]] = {}
        self.shape: tuple[int, ...] | None = None
        if path.exists() and not path.is_dir():
            raise InputError(f"out {path} is a file, expected a folder")
        path.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{path}: another process extracts frames to this folder; wait, or choose another --out"
                ) from None
            except OSError:  # some network file systems have no locks
                pass
            self._read()
            self._finish_what_was_killed()
            self._staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=path))
        except BaseException:
            os.close(self._fd)
            raise

    def _read(self) -> None:
        file = self.path / INDEX
        if not file.exists():
            return
        try:
            index = json.loads(file.read_text())
            before, self.entries, self.damaged = index["settings"], dict(index["recordings"]), dict(index["damaged"])
            self.shape = tuple(index["shape"]) if index["shape"] else None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file} cannot be read as the index of extracted frames ({error}); choose another --out"
            ) from None
        for name in {**self.settings, **before}:
            if before.get(name) != self.settings.get(name):
                raise InputError(
                    f"{self.path} was begun with {name} {before.get(name)!r}, now it is {self.settings.get(name)!r}. "
                    f"Give --{name.replace('_', '-')} as before, or another --out"
                )

    def _finish_what_was_killed(self) -> None:
        for left in sorted(self.path.glob(f"{_STAGING}*")):
            for file in sorted(left.glob(f"*/{ENTRY}")):
                name, entry, shape = json.loads(file.read_text())
                self.shape = tuple(shape)
                self.add(name, entry, file.parent)
                self._say(f"{name} was extracted by a run that was killed; its files are in their place now")
            shutil.rmtree(left, ignore_errors=True)

    def settle_shape(self, shape: tuple[int, ...]) -> None:
        """Fix the shape of the frames, (H, W, 3); a folder that holds other frames is refused."""
        for file in sorted(self.path.glob("[!.]*.npy")):
            found = open_frames(file).shape[1:]
            if found != shape:
                raise InputError(
                    f"{file} has frames of shape {found}, and these would be {shape}; a dataset needs one shape. "
                    "Choose another --out, or another --size"
                )
        self.shape = shape
        self.write()

    def other_name_of(self, fingerprint: str, source: Path, names: set[str]) -> str | None:
        """Another name under which a recording is here already, because it was found from elsewhere."""
        for name, entry in self.entries.items():
            if entry["fingerprint"] == fingerprint and Path(entry["source"]).name == source.name and name not in names:
                return name
        return None

    def is_done(self, name: str, fingerprint: str) -> bool:
        """Whether all files of a recording are here, and neither they nor its source has changed.

        A recording whose files were all removed is forgotten, so that it is extracted again.
        """
        if name not in self.entries:
            return False
        entry, there = self.entries[name], []
        for part in entry["files"]:
            file = self.path / part["file"]
            if file.exists() and (found := open_frames(file).shape) != (part["frames"], *(self.shape or ())):
                raise InputError(
                    f"{file} has shape {found}, and {INDEX} says {part['frames']} frames of {self.shape}: it was "
                    "changed since. Remove it, and it is extracted again"
                )
            there += [file.exists(), (self.path / part["rows"]).exists()]
        if there and not any(there):
            del self.entries[name]
            return False
        if entry["fingerprint"] != fingerprint:
            raise InputError(
                f"{name} ({entry['source']}) has changed since its frames were extracted to {self.path}, or is another "
                "recording of the same name. Choose another --out; or remove its files "
                f"({', '.join(part['file'] for part in entry['files'])} and .rows.npz), and it is extracted again"
            )
        return all(there)

    def stage(self, stem: str) -> Path:
        """A new folder for the files of one recording."""
        folder = self._staging / stem
        folder.mkdir()
        return folder

    def add(self, name: str, entry: Entry, staged: Path) -> None:
        """Move a finished recording's files into their place, rows before frames, and name it in the index."""
        known = {part["file"] for part in self.entries.get(name, {"files": []})["files"]}
        for part in entry["files"]:
            for file in (part["rows"], part["file"]):
                here, there = staged / file, self.path / file
                if not here.exists() or (there.exists() and part["file"] in known):
                    continue  # moved before the process was killed; or it was there, and only a neighbor was missing
                if there.exists() and file == part["file"]:
                    raise InputError(
                        f"{there} exists already and is not in {INDEX}; move it elsewhere, or choose another --out"
                    )
                here.replace(there)
        self.entries[name] = entry
        self.damaged.pop(name, None)
        self.write()
        shutil.rmtree(staged, ignore_errors=True)

    def write(self) -> None:
        """Write `frames.json`, whole or not at all; it depends on what was extracted, not on when."""
        versions: dict[str, str] = {}
        for package in ("latent-obs", "numpy", "pillow", "av"):
            with contextlib.suppress(PackageNotFoundError):
                versions[package] = version(package)
        content = {
            "format_version": _FORMAT_VERSION,
            "settings": self.settings,
            "shape": list(self.shape) if self.shape else None,
            "frames": self.frames,
            "recordings": dict(sorted(self.entries.items())),
            "damaged": dict(sorted(self.damaged.items())),
            "versions": versions,
        }
        write_json(self.path / INDEX, content)

    @property
    def frames(self) -> int:
        """Frames of all finished recordings."""
        return sum(entry["frames"] for entry in self.entries.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            # A whole recording that could not be moved (a full disk) is left for the next run.
            for folder in self._staging.iterdir():
                if not (folder / ENTRY).exists():
                    shutil.rmtree(folder, ignore_errors=True)
            for empty in (self._staging, self.path):
                with contextlib.suppress(OSError):
                    empty.rmdir()
        finally:
            os.close(self._fd)


def file_stems(names: Iterable[str], taken: Mapping[str, str]) -> dict[str, str]:
    """File names for recordings, without ending: readable, safe, and one for each; those in `taken` keep theirs.

    Where two would be the same (or one could be a part of the other, x_000 of x), a few letters that follow from the
    name are added.
    """
    digests = {name: hashlib.sha256(name.encode()).hexdigest()[:6] for name in names}
    stems: dict[str, str] = {}
    for name, digest in digests.items():
        stem = re.sub(r"[^\w.+=-]+", "-", name.replace("/", "__")).strip("-.") or f"recording-{digest}"
        if len(stem.encode()) > _LONGEST_STEM:
            stem = f"{stem.encode()[:_LONGEST_STEM].decode(errors='ignore')}-{digest}"
        stems[name] = stem
    stems.update(taken)
    lower = [stem.casefold() for stem in stems.values()]  # there are file systems for which a and A are one
    for name in digests.keys() - taken.keys():
        stem = stems[name].casefold()
        shard = re.fullmatch(r"(.+)_\d{3,}", stem)
        if lower.count(stem) > 1 or (shard and shard[1] in lower):
            stems[name] += f"-{digests[name]}"
    return stems
