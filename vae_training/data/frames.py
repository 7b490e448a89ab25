"""Frame files: a folder of `.npy` files of uint8 (N, H, W, C), checked by header and size, and mapped lazily."""

import contextlib
import errno
import hashlib
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from latent_obs.util.errors import InputError, LatentObsError, check_count, check_type, parse_json
from latent_obs.util.npy import map_npy, read_npy_header
from latent_obs.util.words import counted, listed

Frames = NDArray[np.uint8]
Datasets = Sequence[Frames]

#: Errors that mean that the disk, the quota or the largest file size is used up.
DISK_FULL = {code: os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}
#: What was extracted to a folder: the index of a run, and that of shard i of n of an array job.
INDEX, SHARD_INDEX = "frames.json", "frames.shard-{}-of-{}.json"
#: What `latent-obs frames record` recorded to a folder.
RECORDED = "recording.json"
_INDEX_NAME = re.compile(r"frames(?:\.shard-[0-9]+-of-([0-9]+))?\.json")
_MB = 1 << 20
_HELD_OUT_SHARE = 0.1
_GAP_SHARE, _MOST_GAP_FRAMES = 0.01, 100


class Part(TypedDict):
    """Frames of a file that a run uses, in plain JSON values."""

    file: str | None
    first_frame: int
    frames: int
    fingerprint: str | None


class Split(TypedDict):
    """The frames that a run is trained on and those that are held out."""

    training: list[Part]
    held_out: list[Part]


class Place(NamedTuple):
    """Where the frames of an array lie on disk: file, byte and number of the first frame."""

    file: Path
    offset: int
    first_frame: int


def get_datasets(dataset_dir: str | os.PathLike[str] = "images/") -> list[np.memmap]:
    """Open each `.npy` file of a folder as an array that stays on disk.

    Args:
        dataset_dir: The folder. Hidden files, unfinished ones (`.npy.part`) and inner folders are ignored.

    Returns:
        One read-only uint8 array (N, H, W, C) per file, in name order. Nothing is read before it is accessed.

    Raises:
        InputError: There is no folder or `.npy` file, or a file is damaged, not uint8, or of another frame shape.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> np.save(folder / "a.npy", np.zeros((10, 64, 64, 3), np.uint8))
        >>> [dataset.shape for dataset in get_datasets(folder)]
        [(10, 64, 64, 3)]
    """
    datasets = [open_frames(file) for file in frame_files(Path(dataset_dir))]
    for dataset in datasets:
        if dataset.shape[1:] != datasets[0].shape[1:]:
            raise InputError(
                f"{name_of(dataset)} has frames of shape {dataset.shape[1:]}, and {name_of(datasets[0])} in the same "
                f"folder of {datasets[0].shape[1:]}; resize one of them, or move it to another folder"
            )
    return datasets


def frame_files(folder: Path) -> list[Path]:
    """List the `.npy` files of a folder in name order; an `InputError` where there are none."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    visible = [entry for entry in entries if not entry.name.startswith(".")]
    files = [entry for entry in visible if entry.suffix == ".npy" and not entry.is_dir()]
    if not files:
        found = "no folder" if not folder.exists() else "a file" if folder.is_file() else "a folder without .npy files"
        holding = f" (it holds {listed([entry.name for entry in visible])})" if visible else ""
        raise InputError(
            f"{folder} is {found}{holding}, expected a folder with .npy files of uint8 frames (N, H, W, C). Record "
            "some with: latent-obs frames record --out FOLDER; convert videos with: latent-obs frames extract"
        )
    return files


def are_recorded(folder: Path) -> bool:
    """Whether `latent-obs frames record` recorded all files of a folder, by what its `recording.json` says."""
    try:
        files = parse_json((folder / RECORDED).read_bytes(), dict[str, Any], folder / RECORDED).get("files")
    except (OSError, LatentObsError):
        return False
    return isinstance(files, dict) and {file.name for file in frame_files(folder)} <= files.keys()


def open_frames(file: Path) -> np.memmap:
    """Map a frame file; an `InputError` where it is not one whole array of uint8 (N, H, W, C)."""
    try:
        frames = map_npy(file)  # never unpickles objects: that would run whatever code the file names
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(
            f"{file} cannot be used ({error}). Copy it again, or save uint8 frames (N, H, W, C) with numpy.save"
        ) from None
    shape, is_whole = frames.shape, frames.flags.c_contiguous
    channel_first = len(shape) == 4 and shape[1] in (1, 3, 4) and min(shape[2:]) >= 8
    if frames.dtype != np.uint8 or len(shape) != 4 or 0 in shape or channel_first or not is_whole:
        layout = " in Fortran order" if not is_whole else " (channel-first?)" if channel_first else ""
        advice = (
            to_uint8(frames.dtype)
            if frames.dtype != np.uint8
            else "save channel-first frames with .transpose(0, 2, 3, 1), grey ones with C = 1, all through "
            "numpy.ascontiguousarray"
        )
        raise InputError(
            f"{file} holds {frames.dtype} of shape {shape}{layout}, expected uint8 (values 0 to 255) of shape "
            f"(N, H, W, C) in C order, with at least one frame: {advice}"
        )
    return frames


def to_uint8(dtype: np.dtype[Any]) -> str:
    """How to turn frames of another dtype into uint8 without destroying them, for a message."""
    scaled = "(frames * (255 / white)).round().astype(numpy.uint8)"
    if dtype == np.bool_:
        return "save frames.astype(numpy.uint8) * 255"
    if dtype.kind == "f":
        return f"save {scaled}, where white is the value of white, 1.0 or 255.0"
    return f"save frames.astype(numpy.uint8) if none is above 255, else {scaled}, with 65535 for white at 16 bits"


def name_of(dataset: NDArray[Any]) -> str:
    """The file of an array, for a message."""
    return str(getattr(dataset, "filename", None) or "the array given")


def place_on_disk(dataset: Frames) -> Place | None:
    """Find where the frames of a memory map, or of a slice of one, lie on disk.

    None for any other array: in memory, not in the order of a file, or a map that may differ from it (copy-on-write).
    """
    if not isinstance(dataset, np.memmap) or not dataset.flags.c_contiguous:
        return None
    # A slice keeps the `filename` and `offset` of the whole; its own offset follows from their distance in memory.
    whole = dataset
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    if not isinstance(whole.base, mmap.mmap) or whole.mode not in ("r", "r+", "w+") or whole.filename is None:
        return None
    distance = dataset.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    return Place(Path(whole.filename), whole.offset + distance, distance // max(1, dataset[:1].nbytes))


def describe_datasets(datasets: Datasets) -> list[dict[str, Any]]:
    """Describe the frames that a model was trained on, for its provenance.

    Args:
        datasets: Arrays from `get_datasets`, or parts of them from `split_held_out`.

    Returns:
        For each: `file` (None for an array in memory), `first_frame` (in the file), `frames`, `frame_shape`, `bytes`
        (of these frames), and `sha256_head_tail`: SHA-256 of the file's header and first MB, its last MB and its size,
        cheap however large the file is. All plain JSON values.

    Example:
        >>> describe_datasets([np.zeros((10, 8, 8, 3), np.uint8)])[0]["frame_shape"]
        [8, 8, 3]
    """
    described: list[dict[str, Any]] = []
    for dataset in datasets:
        file, entry = _identity(dataset)
        digest = None
        if file is not None:
            with file.open("rb") as handle:
                read_npy_header(handle)
                data, size = _pieces(handle, [(0, handle.tell() + _MB), (-_MB, _MB)])
            digest = hashlib.sha256(data + str(size).encode()).hexdigest()
        shape = {"frame_shape": list(dataset.shape[1:]), "bytes": dataset.nbytes}
        described.append({**entry, **shape, "sha256_head_tail": digest})
    return described


def _identity(dataset: Frames) -> tuple[Path | None, dict[str, Any]]:
    """The file of an array, and which frames of it they are."""
    file, _, first_frame = place_on_disk(dataset) or (None, 0, 0)
    return file, {"file": file.name if file else None, "first_frame": first_frame, "frames": len(dataset)}


def fingerprint(file: Path) -> str:
    """Compute a cheap fingerprint of a file, whatever its size.

    It covers the size, the first and last 64 KB, and sixteen pieces of 4 KB evenly between them, so that a recording
    that was made again or appended to has another one.
    """
    with file.open("rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        between = [(size * i // 17, 4 << 10) for i in range(1, 17)]
        data, _ = _pieces(handle, [(0, 64 << 10), *between, (-64 << 10, 64 << 10)])
    return hashlib.blake2b(str(size).encode() + data, digest_size=16).hexdigest()


def _pieces(handle: IO[bytes], pieces: Sequence[tuple[int, int]]) -> tuple[bytes, int]:
    """Bytes of a file by (start, length), where a negative start counts from the end, and its size."""
    size, data = os.fstat(handle.fileno()).st_size, b""
    for start, length in pieces:
        handle.seek(start if start >= 0 else max(0, size + start))
        data += handle.read(length)
    return data, size


def split_held_out(datasets: Datasets, held_out: int | None = None) -> tuple[list[Frames], list[Frames]]:
    """Split recordings into those to train on and those held out to measure on.

    The split is by recording and never by frame, because neighboring frames of a video are near-duplicates. Several
    files of one recording (by the index that `latent-obs frames extract` writes) are held out together. Of a single
    recording the last 10% (at least one frame) are held out, and the 1% before them (1 to 100 frames) is not used.

    Args:
        datasets: Arrays from `get_datasets`.
        held_out: How many files to hold out, the last ones (and what else is of the same recordings); a tenth if None.

    Returns:
        (train, held_out); with a single recording both are lazy views of it.

    Raises:
        InputError: No file would be left to train on, or `held_out` is not a positive integer.

    Example:
        >>> files = [np.zeros((10, 8, 8, 3), np.uint8) for _ in range(4)]
        >>> [len(part) for part in split_held_out(files)]
        [3, 1]
    """
    datasets = list(datasets)
    if not datasets:
        raise InputError("datasets must not be empty; open them with get_datasets(folder)")
    if held_out is None:
        held_out = max(1, round(len(datasets) * _HELD_OUT_SHARE))
    check_count("held_out", held_out)
    recordings = _recordings_of(datasets)
    measured = set(recordings[-held_out:])
    if held_out < len(datasets) and measured != set(recordings):
        sides: tuple[list[Frames], list[Frames]] = ([], [])
        for dataset, recording in zip(datasets, recordings, strict=True):
            sides[recording in measured].append(dataset)
        return sides
    # A single recording, in one file or several, is cut in time, with a gap.
    if len(datasets) == 1 == held_out:
        tail = max(1, int(len(datasets[0]) * _HELD_OUT_SHARE))
        before, after = [datasets[0][:-tail]], [datasets[0][-tail:]]
    else:
        before, after = datasets[:-held_out], datasets[-held_out:]
    if before:
        gap = min(_MOST_GAP_FRAMES, max(1, int(len(datasets[len(before) - 1]) * _GAP_SHARE)))
        before = [*before[:-1], before[-1][:-gap]] if len(before[-1]) > gap else before[:-1]
    if not before:
        raise InputError(
            f"held_out {held_out} of {counted(len(datasets), 'file')} leaves none of the "
            f"{counted(sum(map(len, datasets)), 'frame')} to train on; hold out fewer, or record more"
        )
    return before, after


def split_note(datasets: Datasets, training: Datasets, held_out: Datasets) -> str:
    """Describe a split of a single recording; empty for any other split."""
    if len(set(_recordings_of(datasets))) > 1:
        return ""
    whole, trained, measured = (sum(map(len, side)) for side in (datasets, training, held_out))
    return (
        f"There is one recording only: its last {measured:,} frames are held out, and the "
        f"{whole - trained - measured:,} before them are used for nothing. Losses on them look better than they would "
        "on another recording; record or extract a second one to know."
    )


def index_files(folder: Path) -> list[Path]:
    """The indexes of a folder of extracted frames: `frames.json`, or one for each shard of `frames extract --shard`.

    Their "recordings" together are those of the folder.
    """
    return sorted(file for file in folder.glob("frames*.json") if _INDEX_NAME.fullmatch(file.name) and file.is_file())


def not_finished(folder: Path) -> str:
    """A clause that says that `frames extract`, or which shards of it, has not finished in a folder; or nothing.

    Such a run was interrupted or killed, is still running, or was not started.

    Raises:
        InputError: An index is damaged.
    """
    files = index_files(folder)
    # An index of an older version does not say whether the run has finished.
    finished = [f.name for f in files if parse_json(f.read_bytes(), dict[str, Any], f).get("complete", True)]
    of = max((int(match[1] or 0) for file in files if (match := _INDEX_NAME.fullmatch(file.name))), default=0)
    numbers = [number for number in range(1, of + 1) if SHARD_INDEX.format(number, of) not in finished]
    shards = listed([f"--shard {number}/{of}" for number in numbers])
    if shards or len(finished) < len(files):
        return f"frames extract{' ' * bool(shards)}{shards} has not finished"
    return ""


def _recordings_of(datasets: Datasets) -> list[object]:
    """What identifies the recording of each array: its name in the index beside the file, else the file itself."""
    files = [Path(filename) if (filename := getattr(d, "filename", None)) else None for d in datasets]
    recordings: dict[Path, tuple[Path, str]] = {}
    folders = {file.parent for file in files if file is not None}
    for index in (index for folder in folders for index in index_files(folder)):
        try:
            found = parse_json(index.read_bytes(), dict[str, Any], index.name).get("recordings")
            check_type("recordings", found, dict[str, dict[str, Any]])
            for name, entry in found.items():
                check_type(f"files of {name}", entry.get("files"), list[dict[str, Any]])
                here = index.parent
                recordings |= {here / str(piece.get("file")): (here, name) for piece in entry["files"]}
        except InputError as error:
            raise InputError(
                f"{index} cannot be read ({error}), so it is not known which files are of one recording. Extract the "
                "frames again, or remove it: then each file counts as a recording"
            ) from None
    return [id(d) if file is None else recordings.get(file, file) for d, file in zip(datasets, files, strict=True)]


def identify(training: Datasets, held_out: Datasets) -> Split:
    """Describe which frames of which file are trained on and held out, for a checkpoint, in plain JSON values."""

    def parts(datasets: Datasets) -> list[Part]:
        return [
            {**entry, "fingerprint": fingerprint(file) if file else None}  # pyright: ignore[reportReturnType]
            for file, entry in map(_identity, datasets)
        ]

    return {"training": parts(training), "held_out": parts(held_out)}


def split_as_before(datasets: Sequence[np.memmap], before: Split, *, folder: Path) -> tuple[list[Frames], list[Frames]]:
    """Repeat the split that a run began with, described by `identify`, over all files of the folder.

    Raises:
        InputError: A file is missing, has changed, or was added.
    """
    present = {Path(name_of(dataset)).name: dataset for dataset in datasets}
    saved = {str(entry["file"]): entry["fingerprint"] for entry in (*before["training"], *before["held_out"])}
    common = present.keys() & saved
    differences = {
        "gone": saved.keys() - common,
        "changed": {name for name in common if fingerprint(Path(name_of(present[name]))) != saved[name]},
        "new": present.keys() - common,
    }
    found = [f"{listed(sorted(names))} {what}" for what, names in differences.items() if names]
    if found:
        raise InputError(
            f"{folder} does not hold the frames that the run to resume began with: {'; '.join(found)}. Put them back "
            "(or name their folder with --frames) and move new ones elsewhere, or start another run with --start-from"
        )
    training, held_out = (
        [present[str(entry["file"])][entry["first_frame"] :][: entry["frames"]] for entry in side]
        for side in (before["training"], before["held_out"])
    )
    return training, held_out


def check_worth_learning(training: Datasets) -> None:
    """Refuse to train on frames that are all the same picture, with an `InputError`."""
    first = np.asarray(training[0][0])
    for sparse in (True, False):  # frames spread evenly are looked at first, and all only if these are equal
        for dataset in training:
            step = max(1, len(dataset) // 64) if sparse else 64
            for start in range(0, len(dataset), step):
                if (dataset[start : start + (1 if sparse else step)] != first).any():
                    return
    raise InputError(
        f"all {sum(map(len, training)):,} frames to train on ({name_of(training[0])} …) are the same picture, so there "
        "is nothing to learn. Look at them with: latent-obs frames stats FOLDER"
    )


class DiskFullError(LatentObsError, OSError):
    """Something could not be written because the disk, the quota or the largest file size is used up."""

    def __str__(self) -> str:
        return str(self.args[0])


@contextlib.contextmanager
def explain_disk_full(what: Path, then: str) -> Iterator[None]:
    """Turn the errors of a full disk into a `DiskFullError` about `what`, which says with `then` what to do."""
    try:
        yield
    except DiskFullError:
        raise
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise DiskFullError(f"{what}: {DISK_FULL[error.errno]}. {then}") from error
