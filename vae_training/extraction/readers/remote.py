"""Recordings in an object store (s3://, hf://datasets/, gs://, http://, ...), through fsspec.

The store is listed at first, and a recording's files are fetched when its turn comes, into a folder that is removed
after it: the disk holds one recording for each worker. Only kinds are read of which a file is a recording. For others,
which are only known when several files are there, the error has the command that downloads them.
"""

import contextlib
import re
import shlex
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar
from urllib.parse import unquote

from numpy.typing import NDArray

from latent_obs.util.errors import InputError, MissingExtraError, one_line, require
from latent_obs.util.words import counted
from vae_training.data.frames import Frames
from vae_training.extraction.readers.base import DamagedRecordingError, Recording, is_passed_over, natural_key, reading
from vae_training.extraction.readers.images import PICTURE_SUFFIXES
from vae_training.extraction.readers.minerl import ARRAYS
from vae_training.extraction.readers.video import VIDEO_SUFFIXES

_READ = VIDEO_SUFFIXES | {".npy", ".npz"}
#: Files of recordings that are more than one file, or of files that are more than one recording.
_NOT_READ = PICTURE_SUFFIXES | {".parquet", ".arrow", ".hdf5", ".h5", ".tar", ".tgz", ".mdb", ".zip", ".gz"}


def url_of(path: Path) -> str | None:
    """The address that a path was written as, of which it has lost a slash; None for a file or folder."""
    found = re.fullmatch(r"([a-z][a-z0-9+.-]+):/+(.+)", path.as_posix())
    return f"{found[1]}://{found[2]}" if found and not path.exists() else None


@dataclass(frozen=True)
class RemoteRecording(Recording):
    """A file in a store, with the file of actions beside a VPT video."""

    kind: ClassVar[str] = "remote"
    urls: tuple[str, ...] = field(kw_only=True)
    state: str = field(kw_only=True)
    """Changes with the files, as the store describes them."""
    find: Callable[[Path], Sequence[Any]] = field(kw_only=True)
    """Finds the recordings in a local file."""

    @contextlib.contextmanager
    def opened(self, scratch: Path) -> Iterator[Recording]:
        """Fetch it to a folder inside `scratch`, which is removed afterwards."""
        with tempfile.TemporaryDirectory(prefix=".fetched-", dir=scratch) as folder:
            with reading(self.urls[0]):
                for url in self.urls:
                    store, path = _store(url)
                    store.get_file(path, str(Path(folder) / PurePosixPath(path).name))
            found = self.find(Path(folder) / self.source.name)
            if len(found) != 1 or not isinstance(found[0], Recording):
                reason = getattr(found[0], "reason", f"{counted(len(found), 'recording')} in it") if found else "none"
                raise DamagedRecordingError(f"{self.urls[0]} must be one recording: {reason}")
            yield replace(found[0], name=self.name, threads=self.threads)

    def chunks(self) -> Generator[Frames]:
        """As of the recording in the file, which is fetched for it."""
        with tempfile.TemporaryDirectory() as scratch, self.opened(Path(scratch)) as recording:
            yield from recording.chunks()

    def rows(self) -> Mapping[str, NDArray[Any]]:
        """As of the recording in the file, which is fetched for it."""
        with tempfile.TemporaryDirectory() as scratch, self.opened(Path(scratch)) as recording:
            return recording.rows()

    def fingerprint(self) -> str:
        """What the store says of its files: sizes, and times or checksums."""
        return self.state


def remote_recordings(
    url: str, find: Callable[[Path], Sequence[Any]], say: Callable[[str], object]
) -> tuple[list[RemoteRecording], list[str]]:
    """The recordings of a store below an address, and the names of other files; nothing is fetched."""
    try:
        store, root = _store(url)
        listed: dict[str, Any] = store.find(root, detail=True)
    except (InputError, MissingExtraError):
        raise
    except Exception as error:  # each store has errors of its own
        raise InputError(f"{url} cannot be listed: {one_line(error) or type(error).__name__}") from None
    inside = {name: name.removeprefix(root).lstrip("/") for name in sorted(listed, key=natural_key)}
    files = {name: listed[name] for name, place in inside.items() if not any(map(is_passed_over, place.split("/")))}
    if not files:
        raise InputError(f"there is nothing at {url}")
    names = {name: PurePosixPath(name) for name in files}
    arrays = [name for name in listed if name.endswith("/.zgroup")]
    for name, path in names.items():
        if arrays or path.suffix.lower() in _NOT_READ or path.name in (ARRAYS, "zarr.json"):
            raise InputError(
                f"{url} has {arrays[0] if arrays else name}: only videos, .npy and .npz are read from a store. "
                f"Download it first{_command(url, alone=not any(inside.values()))}"
            )
    found: list[RemoteRecording] = []
    unmarked = 0
    for name, path in names.items():
        if path.suffix.lower() in _READ:
            parts, state = [name], list[str]()
            actions = f"{name.removesuffix(path.suffix)}.jsonl"  # not listed where the video is named alone
            if path.suffix.lower() == ".mp4" and (actions in files or (not inside[name] and store.exists(actions))):
                parts.append(actions)
            for each in parts:
                about = files.get(each, {})
                if not _mark(about):  # http lists names only
                    with reading(each):
                        about = store.info(each)
                state.append(f"{PurePosixPath(each).name}:{about.get('size')}:{_mark(about)}")
                unmarked += not _mark(about)
            urls = tuple(store.unstrip_protocol(each) for each in parts)
            found.append(RemoteRecording("", Path(url) / inside[name], urls=urls, state=";".join(state), find=find))
    if unmarked:
        say(
            f"{url} has neither time nor checksum of {counted(unmarked, 'file')}: of changes, only another size is seen"
        )
    used = {PurePosixPath(each).name for one in found for each in one.urls}
    return found, [path.name for path in names.values() if path.name not in used]


def _mark(about: Mapping[str, Any]) -> str:
    """Whatever a store says of a file that changes with it."""
    marks = ("ETag", "etag", "blob_id", "md5Hash", "Content-MD5", "Last-Modified", "LastModified", "last_modified")
    marks += ("updated", "modified", "modify", "mtime", "created")
    return next((str(about[mark]) for mark in marks if about.get(mark)), "")


def _store(url: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    fsspec = require("fsspec", extra="formats", purpose="read from a store")
    try:
        return fsspec.url_to_fs(url)
    except ImportError as error:
        raise MissingExtraError(f"{url} needs one more package: {one_line(error)}") from None
    except ValueError as error:
        raise InputError(f"there is no file or folder {url}, and no store of that kind ({one_line(error)})") from None


def _command(url: str, *, alone: bool) -> str:
    """The end of the sentence "Download it first": the command that does it, where one is known."""
    kind, _, place = url.partition("://")
    address, folder = shlex.quote(url), shlex.quote(place.rstrip("/").rsplit("/", 1)[-1])
    if kind == "hf":
        found = re.fullmatch(r"(?:(dataset|space)s/)?([^/@]+/([^/@]+))(?:@(refs/[^/]+/[^/]+|[^/]+))?(?:/(.*))?", place)
        if not found or place.startswith("buckets/"):
            return ""
        repo_type, repo, name, revision, inside = found.groups()
        command = f"hf download {repo}"
        if inside:
            command += f" {shlex.quote(inside)}" if alone else f" --include {shlex.quote(f'{inside}/*')}"
        command += f" --repo-type {repo_type}" if repo_type else ""
        command += f" --revision {unquote(revision)}" if revision else ""
        command += f" --local-dir {name}"
    elif kind == "s3":
        command = f"aws s3 cp {address} ." if alone else f"aws s3 sync {address} {folder}"
    elif kind in ("gs", "gcs"):
        command = f"gcloud storage cp {'' if alone else '--recursive '}{shlex.quote(f'gs://{place}')} ."
    elif kind in ("http", "https"):
        command = f"wget {address}" if alone else f"wget --recursive --no-parent {address}/"
    else:
        return ""
    return f", with: {command}"
