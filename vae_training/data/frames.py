"""Frame files: a folder of `.npy` files of uint8 (N, H, W, C), mapped lazily and checked when they are opened.

Opening looks at headers and file sizes only, so a folder of a terabyte opens as fast as one of a megabyte.
"""

import contextlib
import errno
import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from latent_obs.util.errors import InputError, LatentObsError

Frames = NDArray[np.uint8]
Datasets = Sequence[Frames]

#: Errors that mean that the disk, the quota or the largest file size is used up.
DISK_FULL = {
    errno.ENOSPC: "No space left on device",
    errno.EDQUOT: "Disk quota exceeded",
    errno.EFBIG: "File too large",
}
_MB = 1 << 20
_NAN_SAMPLE_BYTES = 4 * _MB  # of a float file, for a better error message
_HELD_OUT_SHARE = 0.1
_GAP_SHARE, _MOST_GAP_FRAMES = 0.01, 100


class NpyHeader(NamedTuple):
    """What the first bytes of a `.npy` file say."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]


class Place(NamedTuple):
    """Where the frames of an array lie on disk."""

    file: Path
    offset: int
    """Byte of the file at which the first frame begins."""
    first_frame: int
    """Number of that frame in the file."""


def read_npy_header(handle: IO[bytes]) -> NpyHeader:
    """Read the header of a `.npy` file and leave the file at its first value.

    Raises:
        ValueError: There is no such header, or it is damaged or of another version than 1.0 and 2.0.
    """
    version = np.lib.format.read_magic(handle)
    if version == (1, 0):
        return NpyHeader(*np.lib.format.read_array_header_1_0(handle))
    if version == (2, 0):
        return NpyHeader(*np.lib.format.read_array_header_2_0(handle))
    raise ValueError(f"format version {version[0]}.{version[1]} is unknown")


def get_datasets(dataset_dir: str | os.PathLike[str] = "images/") -> list[np.memmap]:
    """Open each `.npy` file of a folder as an array that stays on disk.

    Hidden files, unfinished ones (`.npy.part`) and inner folders are ignored.

    Args:
        dataset_dir: The folder.

    Returns:
        One read-only uint8 array (N, H, W, C) per file, in name order. Nothing is read before it is accessed.

    Raises:
        InputError: The folder is missing or has no `.npy` file, or a file is damaged, or not uint8 (N, H, W, C) with
            frames of the same shape as the others.

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
                f"folder of {datasets[0].shape[1:]}; a dataset needs one shape. Move one of them to another folder, or "
                "resize it"
            )
    return datasets


def frame_files(folder: Path) -> list[Path]:
    """The `.npy` files of a folder, in name order.

    Raises:
        InputError: There is no such folder, or no such file in it.
    """
    advice = "Record some with: latent-obs frames record --out FOLDER"
    if folder.is_file():
        raise InputError(f"{folder} is a file, expected the folder of .npy files that it is in")
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder} (current folder: {Path.cwd()}). {advice}")
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in entries if entry.suffix == ".npy" and not entry.is_dir()]
    if files:
        return files
    if not entries:
        raise InputError(f"{folder} is empty, expected .npy files of uint8 frames (N, H, W, C). {advice}")
    nested = next((entry for entry in entries if entry.is_dir() and any(entry.glob("*.npy"))), None)
    if nested is not None:
        advice = f"{nested} holds some: give that folder"
    elif any(entry.name.endswith(".npy.part") for entry in entries):
        advice = "A .npy.part is unfinished: let its recording end, or start it again where it was killed"
    raise InputError(
        f"{folder} has no .npy file; it holds {_listed([entry.name for entry in entries])}. Expected .npy files of "
        f"uint8 frames (N, H, W, C). {advice}"
    )


def open_frames(file: Path) -> np.memmap:
    """Map a frame file after checking its header and size.

    Raises:
        InputError: It cannot be read, or is not one whole array of uint8 (N, H, W, C).
    """
    try:
        with file.open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            try:
                header = read_npy_header(handle)
            except ValueError as error:
                raise InputError(
                    f"{file} is not a .npy file, or its header is damaged ({size:,} bytes: "
                    f"{str(error).splitlines()[0]}). Remove it, or make it again with numpy.save"
                ) from None
            offset = handle.tell()
            fault = _fault_of(header, offset, size, handle)
            if fault:
                raise InputError(f"{file} {fault}")
        return np.memmap(file, dtype=np.uint8, mode="r", offset=offset, shape=header.shape)
    except OSError as error:
        more = ". Each frame file stays open: raise the limit (ulimit -n 65536)" if error.errno == errno.EMFILE else ""
        raise InputError(f"{file} cannot be read: {error.strerror or error}{more}") from error


def _fault_of(header: NpyHeader, offset: int, size: int, handle: IO[bytes]) -> str:
    """Why a file does not hold uint8 frames (N, H, W, C), and how to change that; empty where it does."""
    shape, fortran_order, dtype = header
    # First of all: an object array can only be read by unpickling it, which runs whatever code the file names.
    if dtype.hasobject:
        return f"holds Python objects (dtype {dtype}), never loaded, because that can run code. Save plain uint8"
    expected = offset + int(np.prod(shape, dtype=object)) * dtype.itemsize
    if size != expected:
        what = "is cut short" if size < expected else "goes on after its array"
        return f"{what}: {dtype} of shape {shape} takes {expected:,} bytes, found {size:,}. Copy or make it again"
    if dtype != np.uint8:
        return f"holds {dtype}, expected uint8 (values 0 to 255). {_dtype_advice(header, handle)}"
    if len(shape) != 4:
        grey = "; grey frames need a channel axis: numpy.save(file, frames[..., None])" if len(shape) == 3 else ""
        return f"has {len(shape)} axes, shape {shape}, expected four: (N, H, W, C){grey}"
    if 0 in shape:
        return f"holds no frames: its shape is {shape}. Remove it, or record it again"
    if shape[1] in (1, 3, 4) and min(shape[2:]) >= 8:
        return (
            f"has shape {shape}, which looks channel-first; expected (N, H, W, C). Save it again with numpy.save(file, "
            "frames.transpose(0, 2, 3, 1))"
        )
    if fortran_order:
        return (
            "is in Fortran order, where one frame is scattered over the whole file. Save it again with "
            "numpy.save(file, numpy.ascontiguousarray(frames))"
        )
    return ""


def _dtype_advice(header: NpyHeader, handle: IO[bytes]) -> str:
    """How to make uint8 of another dtype."""
    if header.dtype.kind == "b":
        return "Convert: frames.astype(numpy.uint8) * 255"
    if header.dtype.kind != "f":
        return "Scale values to 0 to 255 where they are not, and convert: frames.astype(numpy.uint8)"
    count = min(int(np.prod(header.shape, dtype=object)), _NAN_SAMPLE_BYTES // header.dtype.itemsize)
    sample = np.frombuffer(handle.read(count * header.dtype.itemsize), header.dtype)
    if np.isnan(sample).any():
        return "It also holds NaN, which no picture does: find out where they come from first"
    if sample.size and sample.max() > 1.5:
        return "If values are 0 to 255, convert: frames.round().astype(numpy.uint8); if 0 to 1, multiply by 255 first"
    return "If values are 0 to 1, multiply by 255 and convert: (frames * 255).round().astype(numpy.uint8)"


def name_of(dataset: NDArray[Any]) -> str:
    """The file of an array, for a message."""
    return str(getattr(dataset, "filename", None) or "the array given")


def place_on_disk(dataset: Frames) -> Place | None:
    """Where the frames of a memory map, or of a slice of one, lie on disk.

    Returns:
        None for any other array: one in memory, one whose frames do not follow each other in the file, or a map whose
        pages may differ from the file (copy-on-write).
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
        file, _, first_frame = place_on_disk(dataset) or (None, 0, 0)
        described.append(
            {
                "file": file.name if file else None,
                "first_frame": first_frame,
                "frames": len(dataset),
                "frame_shape": list(dataset.shape[1:]),
                "bytes": dataset.nbytes,
                "sha256_head_tail": _sha256_head_tail(file) if file else None,
            }
        )
    return described


def _sha256_head_tail(file: Path) -> str:
    """The checksum that encoder folders of all versions have in their provenance."""
    with file.open("rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        read_npy_header(handle)
        head = handle.tell() + _MB
        return hashlib.sha256(_read(handle, (0, head), (size - _MB, _MB)) + str(size).encode()).hexdigest()


def fingerprint(file: Path) -> str:
    """A cheap fingerprint of a file, whatever its size.

    It covers the size, the first and last 64 KB, and sixteen pieces of 4 KB evenly between them, so that a recording
    that was made again or appended to has another one.
    """
    with file.open("rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        between = [(size * i // 17, 4 << 10) for i in range(1, 17)]
        data = _read(handle, (0, 64 << 10), *between, (size - (64 << 10), 64 << 10))
        return hashlib.blake2b(str(size).encode() + data, digest_size=16).hexdigest()


def _read(handle: IO[bytes], *pieces: tuple[int, int]) -> bytes:
    """The bytes of some (start, length) of a file, one after the other."""
    data = b""
    for start, length in pieces:
        handle.seek(max(0, start))
        data += handle.read(length)
    return data


def split_held_out(datasets: Datasets, held_out: int | None = None) -> tuple[list[Frames], list[Frames]]:
    """Split recordings into those to train on and those held out to measure on.

    The split is by recording (file) and never by frame: neighboring frames of a video are near-duplicates, so a
    held-out frame whose neighbors were trained on says nothing about new ones. Several files of one recording (see
    `frames.json` of `latent-obs frames extract`) are held out together.

    Of a single recording the last 10% (at least one frame) are held out, and the 1% before them (1 to 100 frames) is
    used for nothing. Place and light are the same as in training, so losses look better than on a new recording, but
    the nearest duplicates are gone.

    Args:
        datasets: Arrays from `get_datasets`.
        held_out: How many files to hold out, the last ones (and what else is of the same recordings); a tenth of them,
            and at least one, by default.

    Returns:
        (train, held_out); with a single recording both are lazy views of it.

    Raises:
        InputError: No file would be left to train on, or `held_out` is not a positive integer.

    Example:
        >>> files = [np.zeros((10, 8, 8, 3), np.uint8) for _ in range(4)]
        >>> [len(part) for part in split_held_out(files)]
        [3, 1]
        >>> [len(part[0]) for part in split_held_out([np.zeros((1000, 8, 8, 3), np.uint8)])]
        [890, 100]
    """
    datasets = list(datasets)
    if not datasets:
        raise InputError("datasets must not be empty; open them with get_datasets(folder)")
    if held_out is not None and (isinstance(held_out, bool) or not isinstance(held_out, int) or held_out < 1):
        raise InputError(f"held_out must be a positive number of files, got {held_out!r}")
    count = max(1, round(len(datasets) * _HELD_OUT_SHARE)) if held_out is None else held_out
    if len(datasets) == 1 == count:
        (whole,) = datasets
        tail = max(1, int(len(whole) * _HELD_OUT_SHARE))
        return _before_gap([whole[:-tail]], of=whole), [whole[-tail:]]
    if count >= len(datasets):
        raise InputError(
            f"held_out is {count}: none of {len(datasets)} file(s) would be left to train on; hold out fewer, or "
            "record more"
        )
    recordings = _recordings_of(datasets)
    measured = set(recordings[-count:])
    if measured == set(recordings):
        return _before_gap(datasets[:-count], of=datasets[-count - 1]), datasets[-count:]
    sides: tuple[list[Frames], list[Frames]] = ([], [])
    for dataset, recording in zip(datasets, recordings, strict=True):
        sides[recording in measured].append(dataset)
    return sides


def _before_gap(pieces: list[Frames], *, of: Frames) -> list[Frames]:
    """The pieces of a recording without the gap, 1% of a file, at their end."""
    *before, last = pieces
    gap = min(_MOST_GAP_FRAMES, max(1, int(len(of) * _GAP_SHARE)))
    training = [*before, last[:-gap]] if len(last) > gap else before
    if not training:
        raise InputError(f"{name_of(of)} has {len(of)} frame(s), too few to hold any out. Record more frames")
    return training


def split_note(datasets: Datasets, training: Datasets, held_out: Datasets) -> str:
    """What to know about a split of a single recording; empty for any other split.

    Example:
        >>> files = [np.zeros((1000, 8, 8, 3), np.uint8)]
        >>> print(split_note(files, *split_held_out(files)))
        There is one recording only: its last 100 frames are held out, and the 10 before them are used for nothing.
        Losses on them look better than they would on another recording; record or extract a second one to know.
    """
    if len(set(_recordings_of(datasets))) > 1:
        return ""
    whole, trained, measured = (sum(map(len, side)) for side in (datasets, training, held_out))
    return (
        f"There is one recording only: its last {measured:,} frames are held out, and the "
        f"{whole - trained - measured:,} before them are used for nothing. Losses on them look better than they would "
        "on another recording; record or extract a second one to know."
    )


def _recordings_of(datasets: Datasets) -> list[tuple[Path, str] | int]:
    """What identifies the recording of each array: its name in the index beside the file, else the file itself."""
    names: dict[Path, dict[str, str]] = {}
    recordings: list[tuple[Path, str] | int] = []
    for dataset in datasets:
        filename = getattr(dataset, "filename", None)
        if filename is None:
            recordings.append(id(dataset))
            continue
        folder, name = Path(filename).parent, Path(filename).name
        if folder not in names:
            names[folder] = _recording_names(folder / "frames.json")
        recordings.append((folder, names[folder].get(name, name)))
    return recordings


def _recording_names(index: Path) -> dict[str, str]:
    """The recording of each frame file by the index of an extracted folder; empty where there is none."""
    if not index.is_file():
        return {}
    try:
        recordings = json.loads(index.read_text())["recordings"]
        return {piece["file"]: name for name, entry in recordings.items() for piece in entry["files"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{index} cannot be read ({error}), so it is not known which files are of one recording. Extract the "
            "frames again, or remove it: then each file counts as a recording"
        ) from None


def identify(training: Datasets, held_out: Datasets) -> dict[str, list[dict[str, Any]]]:
    """What a checkpoint keeps of its frames: which of which file are trained on and held out.

    Returns:
        "training" and "held_out", each a list with `file`, `first_frame`, `frames` and `fingerprint` per array; plain
        JSON.
    """
    return {"training": [_identity(d) for d in training], "held_out": [_identity(d) for d in held_out]}


def _identity(dataset: Frames) -> dict[str, Any]:
    file, _, first_frame = place_on_disk(dataset) or (None, 0, 0)
    return {
        "file": file.name if file else None,
        "first_frame": first_frame,
        "frames": len(dataset),
        "fingerprint": fingerprint(file) if file else None,
    }


def split_as_before(
    datasets: Sequence[np.memmap], before: dict[str, list[dict[str, Any]]], *, folder: Path
) -> tuple[list[Frames], list[Frames]]:
    """The split that a run began with, over the same files as then.

    Args:
        datasets: All files of the folder now.
        before: What `identify` returned when the run began.
        folder: The folder, for messages.

    Returns:
        (training, held_out), as from `split_held_out`.

    Raises:
        InputError: A file is missing, has changed, or was added.
    """
    by_name = {Path(str(dataset.filename)).name: dataset for dataset in datasets}
    saved = {entry["file"]: entry for side in ("training", "held_out") for entry in before[side]}
    advice = f"Put back the frames of the run into {folder} (or name their folder with --frames), or start another run"
    if missing := [name for name in saved if name not in by_name]:
        raise InputError(f"the run to resume was trained on {_listed(missing)}, not in {folder} any more. {advice}")
    changed = [name for name in saved if fingerprint(Path(str(by_name[name].filename))) != saved[name]["fingerprint"]]
    if changed:
        raise InputError(f"{_listed(changed)} in {folder} changed since the run to resume began. {advice}")
    added = [name for name in by_name if name not in saved]
    if added:
        raise InputError(
            f"{_listed(added)} came to {folder} since the run to resume began. Move them elsewhere, or train on "
            "them in another run, with --start-from"
        )
    training, held_out = (
        [by_name[entry["file"]][entry["first_frame"] :][: entry["frames"]] for entry in before[side]]
        for side in ("training", "held_out")
    )
    return training, held_out


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def check_worth_learning(training: Datasets) -> None:
    """Refuse frames that are all the same picture.

    Args:
        training: What would be trained on. Frames spread evenly are looked at first, and all frames only if these are
            equal.

    Raises:
        InputError: They are.
    """
    first = np.asarray(training[0][0])
    for sparse in (True, False):
        for dataset in training:
            step = max(1, len(dataset) // 64) if sparse else 64
            for start in range(0, len(dataset), step):
                if (dataset[start : start + (1 if sparse else step)] != first).any():
                    return
    raise InputError(
        f"all {sum(map(len, training)):,} frames to train on ({name_of(training[0])} …) are the same picture, so there "
        "is nothing to learn. Look at them with: latent-obs frames stats FOLDER; a game that did not start gives such "
        "frames"
    )


class DiskFullError(LatentObsError, OSError):
    """Something could not be written because the disk, the quota or the largest file size is used up."""

    def __str__(self) -> str:
        return str(self.args[0])


@contextlib.contextmanager
def explain_disk_full(what: Path, then: str) -> Iterator[None]:
    """Turn the errors of a full disk into one that says what to do.

    Args:
        what: The file or folder that is written.
        then: What is safe, and how to go on.

    Raises:
        DiskFullError: The disk is full. Other errors pass.

    Example:
        >>> with explain_disk_full(Path("run"), "Free some space."):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
            ...
        vae_training.data.frames.DiskFullError: run: No space left on device. Free some space.
    """
    try:
        yield
    except DiskFullError:
        raise
    except (OSError, SafetensorError) as error:
        # safetensors passes on the text of the system's error, and not its number.
        code = getattr(error, "errno", None) or next((n for n in DISK_FULL if f"os error {n})" in str(error)), None)
        if code not in DISK_FULL:
            raise
        raise DiskFullError(f"{what}: {DISK_FULL[code]}. {then}") from error
