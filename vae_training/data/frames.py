"""Frame files: a folder of `.npy` files of uint8 (N, H, W, C), read lazily and checked at once.

Only headers and file sizes are looked at here; a folder of a terabyte opens as fast as one of a megabyte.
"""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from latent_obs.util.errors import InputError, LatentObsError

_MB = 1 << 20
_NAN_SAMPLE_BYTES = 4 * _MB  # of a float file, for a better error message


class _Header(NamedTuple):
    """What the first bytes of a `.npy` file say."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    bytes: int


def get_datasets(dataset_dir: str | os.PathLike[str] = "images/") -> list[np.memmap]:
    """Open each `.npy` file of a folder as an array that stays on disk.

    Hidden files and unfinished ones (`.npy.part`) are passed over; folders inside it are not looked into.

    Args:
        dataset_dir: The folder.

    Returns:
        One read-only uint8 array (N, H, W, C) per file, in name order. Nothing is read before it is touched.

    Raises:
        InputError: The folder is missing or has no `.npy` file, or one of them is not what it should be: cut short, of
            another dtype or number of axes, without frames, or with frames of another shape than its neighbours.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> np.save(folder / "a.npy", np.zeros((10, 64, 64, 3), np.uint8))
        >>> [dataset.shape for dataset in get_datasets(folder)]
        [(10, 64, 64, 3)]
    """
    datasets: list[np.memmap] = []
    for file in _frame_files(Path(dataset_dir)):
        datasets.append(_open(file))
        if datasets[-1].shape[1:] != datasets[0].shape[1:]:
            raise InputError(
                f"{file} has frames of shape {datasets[-1].shape[1:]}, and {name_of(datasets[0])} in the same folder of "
                f"{datasets[0].shape[1:]}; a dataset needs one shape. Move one of them to another folder, or resize it"
            )
    return datasets


def describe_datasets(datasets: Sequence[NDArray[np.uint8]]) -> list[dict[str, Any]]:
    """What a model was trained on, in a few words per file, for its provenance.

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
        filename = getattr(dataset, "filename", None)
        described.append(
            {
                "file": Path(filename).name if filename else None,
                "first_frame": _first_frame(dataset),
                "frames": len(dataset),
                "frame_shape": list(dataset.shape[1:]),
                "bytes": dataset.nbytes,
                "sha256_head_tail": _sha256_head_tail(Path(filename)) if filename else None,
            }
        )
    return described


def _frame_files(folder: Path) -> list[Path]:
    """The `.npy` files of a folder in name order, or the reason why there are none."""
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
    listed = ", ".join(entry.name + ("/" if entry.is_dir() else "") for entry in entries[:5])
    more = f" and {len(entries) - 5} more" if len(entries) > 5 else ""
    nested = next((e for e in entries if e.is_dir() and any(e.glob("*.npy"))), None)
    if nested is not None:
        advice = f"{nested} holds some: give that folder"
    elif any(entry.name.endswith(".npy.part") for entry in entries):
        advice = "A .npy.part is unfinished: let its recording end, or start it again where it was killed"
    raise InputError(
        f"{folder} has no .npy file; it holds {listed}{more}. Expected .npy files of uint8 frames (N, H, W, C). {advice}"
    )


def _open(file: Path) -> np.memmap:
    """Check one file by its header and size, and map it."""
    try:
        with file.open("rb") as handle:
            header = _read_header(handle, file)
            size = os.fstat(handle.fileno()).st_size
            _check(file, header, size, handle)
        return np.memmap(file, dtype=np.uint8, mode="r", offset=header.bytes, shape=header.shape)
    except OSError as error:
        more = ". Each frame file stays open: raise the limit (ulimit -n 65536)" if error.errno == errno.EMFILE else ""
        raise InputError(f"{file} cannot be read: {error.strerror or error}{more}") from error


def _read_header(handle: Any, file: Path) -> _Header:
    if os.fstat(handle.fileno()).st_size == 0:
        raise InputError(f"{file} is empty (0 bytes), not a .npy file. Remove it, or make it again")
    try:
        version = np.lib.format.read_magic(handle)
    except ValueError:
        raise InputError(
            f"{file} is not a .npy file, whatever its name: it does not begin with \\x93NUMPY. Write it with numpy.save"
        ) from None
    try:
        if version == (1, 0):
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(handle)
        elif version == (2, 0):
            shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(handle)
        else:
            raise ValueError(f"format version {version[0]}.{version[1]}")
    except ValueError as error:
        raise InputError(
            f"{file} has a header that cannot be read ({str(error).splitlines()[0]}); it is cut short, damaged, or "
            "not of plain frames. Make it again with numpy.save"
        ) from None
    return _Header(shape, fortran_order, dtype, handle.tell())


def _check(file: Path, header: _Header, size: int, handle: Any) -> None:
    """Refuse what is not uint8 (N, H, W, C), and say how to make it so."""
    shape, dtype = header.shape, header.dtype
    # Before anything else: an object array can only be read by unpickling it, which runs whatever the file says.
    if dtype.hasobject:
        raise InputError(
            f"{file} holds Python objects (dtype {dtype}), never loaded here, because loading them can run code. "
            "Save one plain uint8 array of shape (N, H, W, C)"
        )
    expected = header.bytes + int(np.prod(shape, dtype=object)) * dtype.itemsize
    if size != expected:
        what = "is cut short" if size < expected else "goes on after its array"
        raise InputError(
            f"{file} {what}: {dtype} of shape {shape} takes {expected:,} bytes, found {size:,}. Copy or make it again"
        )
    if dtype != np.uint8:
        raise InputError(f"{file} holds {dtype}, expected uint8 (values 0 to 255). {_dtype_advice(header, handle)}")
    if len(shape) == 3:
        raise InputError(
            f"{file} has shape {shape}, expected four axes (N, H, W, C). Grey frames need a channel axis: "
            "numpy.save(file, frames[..., None]); a single frame needs a frame axis: frames[None]"
        )
    if len(shape) != 4:
        raise InputError(f"{file} has {len(shape)} axes, shape {shape}, expected four: (N, H, W, C)")
    if 0 in shape:
        raise InputError(f"{file} holds no frames: its shape is {shape}. Remove it, or record it again")
    if shape[1] in (1, 3, 4) and min(shape[2:]) >= 8:
        raise InputError(
            f"{file} has shape {shape}, which looks channel-first; expected (N, H, W, C). Save it again with "
            "numpy.save(file, frames.transpose(0, 2, 3, 1))"
        )
    if header.fortran_order:
        raise InputError(
            f"{file} is in Fortran order, where one frame is scattered over the whole file. Save it again with "
            "numpy.save(file, numpy.ascontiguousarray(frames))"
        )


def _dtype_advice(header: _Header, handle: Any) -> str:
    """How to make uint8 of another dtype."""
    dtype = header.dtype
    if dtype.kind == "f":
        count = min(int(np.prod(header.shape, dtype=object)), _NAN_SAMPLE_BYTES // dtype.itemsize)
        sample = np.frombuffer(handle.read(count * dtype.itemsize), dtype)
        if np.isnan(sample).any():
            return (
                "It holds NaN as well, which no picture does: find out where they come from first. Then, if values are "
                "0 to 1, multiply by 255 and convert: (frames * 255).round().astype(numpy.uint8)"
            )
        if sample.size and sample.max() > 1.5:
            return (
                "If values are 0 to 255, convert: frames.round().astype(numpy.uint8); if 0 to 1, multiply by 255 first"
            )
        return "If values are 0 to 1, multiply by 255 and convert: (frames * 255).round().astype(numpy.uint8)"
    if dtype.kind == "b":
        return "Convert: frames.astype(numpy.uint8) * 255"
    return (
        "If values are 0 to 255, convert: frames.astype(numpy.uint8); scale them to that range before if they are not"
    )


def _first_frame(dataset: NDArray[np.uint8]) -> int:
    """Which frame of its file a view begins with."""
    whole = dataset
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    start = dataset.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    return start // max(1, dataset[:1].nbytes)


def _sha256_head_tail(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        head = _read_header(handle, file).bytes + _MB
        handle.seek(0)
        digest.update(handle.read(head))
        handle.seek(max(0, size - _MB))
        digest.update(handle.read(_MB))
    digest.update(str(size).encode())
    return digest.hexdigest()


def name_of(dataset: NDArray[Any]) -> str:
    """The file of an array, for a message."""
    return str(getattr(dataset, "filename", None) or "the array given")


_HELD_OUT_SHARE = 0.1
_GAP_SHARE, _GAP_FRAMES = 0.01, 100


def split_held_out(
    datasets: Sequence[NDArray[np.uint8]], held_out: int | None = None
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """Set recordings aside to measure on, which training never sees.

    The split is by recording (file) and never by frame: neighbouring frames of a video are near-duplicates, so a
    held-out frame whose neighbours were trained on says nothing about new ones.

    Where `latent-obs frames extract` made the files, a long recording may be several of them; its index (`frames.json`)
    tells, and a recording is held out whole or not at all.

    With a single recording there is no other one. Its last 10% (at least one frame) are held out, with a gap of 1% (at
    least one frame, at most 100) before them that neither side gets. That is the lesser evil: place and light are the
    same as in training, so losses on it look better than on a new recording, but the nearest duplicates are gone; a
    random tenth of the frames would have a twin in training for each.

    Args:
        datasets: Arrays from `get_datasets`.
        held_out: How many files to hold out, the last ones (and what else is of the same recordings); a tenth of them,
            and at least one, when not given.

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
        raise InputError("no datasets to split; open them with get_datasets(folder)")
    if held_out is not None and (isinstance(held_out, bool) or not isinstance(held_out, int) or held_out < 1):
        raise InputError(f"held_out must be a positive number of files, got {held_out!r}")
    if len(datasets) == 1 and held_out in (None, 1):
        whole = datasets[0]
        tail = max(1, int(len(whole) * _HELD_OUT_SHARE))
        gap = min(_GAP_FRAMES, max(1, int(len(whole) * _GAP_SHARE)))
        if len(whole) <= tail + gap:
            raise InputError(f"{name_of(whole)} has {len(whole)} frame(s), too few to hold any out. Record more frames")
        return [whole[: -tail - gap]], [whole[-tail:]]
    count = max(1, round(len(datasets) * _HELD_OUT_SHARE)) if held_out is None else held_out
    if count >= len(datasets):
        raise InputError(
            f"held_out {count}: of {len(datasets)} file(s) none would be left to train on; hold out fewer, or record"
        )
    recordings = _recordings_of(datasets)
    tested = set(recordings[-count:])
    training = [dataset for dataset, recording in zip(datasets, recordings, strict=True) if recording not in tested]
    if not training:  # pieces of one recording: the last ones, with a gap before them
        *training, before = datasets[:-count]
        gap = min(_GAP_FRAMES, max(1, int(len(before) * _GAP_SHARE)))
        training += [before[:-gap]] if len(before) > gap else []
        if not training:
            raise InputError(f"{name_of(before)} has {len(before)} frame(s), too few to train on. Record more frames")
        return training, datasets[-count:]
    return training, [dataset for dataset, recording in zip(datasets, recordings, strict=True) if recording in tested]


def split_note(
    datasets: Sequence[NDArray[Any]], training: Sequence[NDArray[Any]], held_out: Sequence[NDArray[Any]]
) -> str:
    """What to know of a split whose held-out frames are of a recording that is trained on too; empty for any other.

    Example:
        >>> files = [np.zeros((1000, 8, 8, 3), np.uint8)]
        >>> print(split_note(files, *split_held_out(files)))
        There is one recording only: its last 100 frames are held out, and the 10 before them are used for nothing.
        Losses on them look better than they would on another recording; record or extract a second one to know.
    """
    recordings = _recordings_of(datasets)
    if len(set(recordings)) > 1:
        return ""
    tested, gap = sum(map(len, held_out)), sum(map(len, datasets)) - sum(map(len, training)) - sum(map(len, held_out))
    return (
        f"There is one recording only: its last {tested:,} frames are held out, and the {gap:,} before them are used for "
        "nothing. Losses on them look better than they would on another recording; record or extract a second one to know."
    )


def _recordings_of(datasets: Sequence[NDArray[Any]]) -> list[tuple[Path, str] | int]:
    """For each array what tells its recording: the name in the index beside its file, else the file itself."""
    indices: dict[Path, dict[str, str]] = {}
    recordings: list[tuple[Path, str] | int] = []
    for dataset in datasets:
        filename = getattr(dataset, "filename", None)
        if not filename:
            recordings.append(id(dataset))
            continue
        file = Path(filename)
        if file.parent not in indices:
            indices[file.parent] = _recordings_by_file(file.parent)
        recordings.append((file.parent, indices[file.parent].get(file.name, file.name)))
    return recordings


def _recordings_by_file(folder: Path) -> dict[str, str]:
    """Recording of each frame file, from the index of a folder that was extracted; empty for any other folder.

    Raises:
        InputError: There is an index, and it cannot be read.
    """
    index = folder / "frames.json"
    if not index.is_file():
        return {}
    try:
        recordings = json.loads(index.read_text())["recordings"]
        return {piece["file"]: name for name, entry in recordings.items() for piece in entry["files"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{index} cannot be read ({error}): it tells which files are of one recording. Extract the frames again, or remove "
            "it, and each file counts as a recording"
        ) from None


Datasets = Sequence[NDArray[np.uint8]]
_ENDS, _PIECES, _PIECE = 1 << 16, 16, 1 << 12
_LOOK_AT = 64


def identify(training: Datasets, held_out: Datasets) -> dict[str, list[dict[str, Any]]]:
    """What a checkpoint keeps of its frames: which of which file are trained on and held out, with a cheap fingerprint.

    The fingerprint of a file is of its size, its first and last 64 KB, and sixteen pieces of 4 KB between them: a
    recording that was made anew or appended to has another one, whatever its size.

    Returns:
        "training" and "held_out", each a list with `file`, `first_frame`, `frames` and `fingerprint` per array; plain
        JSON.
    """
    return {"training": [_identify(d) for d in training], "held_out": [_identify(d) for d in held_out]}


def _identify(dataset: NDArray[np.uint8]) -> dict[str, Any]:
    filename = getattr(dataset, "filename", None)
    return {
        "file": Path(filename).name if filename else None,
        "first_frame": _first_frame(dataset),
        "frames": len(dataset),
        "fingerprint": _fingerprint(Path(filename)) if filename else None,
    }


def _fingerprint(file: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        digest.update(str(size).encode())
        pieces = [
            (0, _ENDS),
            *((size * i // (_PIECES + 1), _PIECE) for i in range(1, _PIECES + 1)),
            (max(0, size - _ENDS), _ENDS),
        ]
        for place, length in pieces:
            handle.seek(place)
            digest.update(handle.read(length))
    return digest.hexdigest()


def split_as_before(
    datasets: Datasets, before: dict[str, list[dict[str, Any]]], *, folder: Path
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """The split that a run began with, over the same files as then.

    Args:
        datasets: All files of the folder now.
        before: What `identify` gave when the run began.
        folder: The folder, for messages.

    Returns:
        (training, held_out), as `split_held_out` gives them.

    Raises:
        InputError: A file is missing, has changed, or was added.
    """
    by_name = {Path(str(getattr(d, "filename", ""))).name: d for d in datasets}
    saved = {entry["file"]: entry for entry in (*before["training"], *before["held_out"])}
    advice = (
        f"Put the frames back as they were into {folder} (or name their folder with --frames), or start another run"
    )
    missing = [name for name in saved if name not in by_name]
    if missing:
        raise InputError(f"the run to resume was trained on {_listed(missing)}, not in {folder} any more. {advice}")
    changed = [n for n, entry in saved.items() if _fingerprint(Path(str(by_name[n].filename))) != entry["fingerprint"]]  # pyright: ignore[reportAttributeAccessIssue]
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
        training: What would be trained on. Some frames, spread evenly, are looked at; all, only where these are all
            equal.

    Raises:
        InputError: They are.
    """
    first = np.asarray(training[0][0])
    for spread in (True, False):
        for dataset in training:
            step = max(1, len(dataset) // _LOOK_AT) if spread else _LOOK_AT
            for start in range(0, len(dataset), step):
                rows = dataset[start : start + (1 if spread else step)]
                if (rows != first).any():
                    return
    raise InputError(
        f"all {sum(map(len, training)):,} frames to train on ({name_of(training[0])} …) are the same picture, so there is "
        "nothing to learn. Look at them with: latent-obs frames stats FOLDER; a game that did not start, or a source that was "
        "never read, gives such frames"
    )


_FULL = {errno.ENOSPC: "No space left on device", errno.EDQUOT: "Disk quota exceeded", errno.EFBIG: "File too large"}


class DiskFullError(LatentObsError, OSError):
    """Something could not be written because the disk, the quota or the largest file size is used up."""

    def __str__(self) -> str:
        return str(self.args[0])


@contextlib.contextmanager
def disk_full_is_told(what: Path, then: str) -> Iterator[None]:
    """Turn the errors of a full disk inside the block into one that says what to do.

    Args:
        what: The file or folder that is written.
        then: What is safe, and how to go on.

    Raises:
        DiskFullError: The disk is full. Other errors pass.

    Example:
        >>> with disk_full_is_told(Path("run"), "Free some space."):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
            ...
        vae_training.data.frames.DiskFullError: run: No space left on device. Free some space.
    """
    try:
        yield
    except DiskFullError:
        raise
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFullError(f"{what}: {_FULL[error.errno]}. {then}") from error
    except SafetensorError as error:  # it has the system's words, and no number
        text = str(error)
        found = next((words for code, words in _FULL.items() if f"os error {code})" in text or words in text), None)
        if found is None:
            raise
        raise DiskFullError(f"{what}: {found}. {then}") from error
