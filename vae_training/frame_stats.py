"""What is in a folder of frames: sizes, brightness, near-duplicates, black frames, stills; the numbers only.

Every frame is read once, in chunks, at about the speed of the disk. All sums are of integers, so that nothing depends on
where a chunk ends. A file that `get_datasets` would refuse is named with its reason, and the others are measured.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from latent_obs.errors import InputError
from vae_training.datasets import _frame_files, _open
from vae_training.frame_filters import BLACK

Frames = NDArray[np.uint8]
_Stretches = Sequence[tuple[int, int]]  # first and past-the-last frame of what is read, in order and apart
HEAD_FRAMES = 16  # compared between files, to find copies
STRETCH_FRAMES = 64  # of a sample that follow each other
_BLOCK_BYTES = 1 << 20  # looked at by one thread; about what stays in a processor's cache
_THREADS = 4  # numpy lets others run while it counts
_MEANS_BYTES = 1 << 28  # of mean images that are kept
_BLOCK_FRAMES = 256  # uint16 holds the sum of 257 values, uint32 that of 66,051 squares


class RefusedFile(NamedTuple):
    """A file that training would refuse, and why, with what to do."""

    name: str
    reason: str


@dataclass(frozen=True)
class FileStats:
    """What one frame file holds. Values are 0 to 255; frames are numbered from 0.

    Attributes:
        name: Its name in the folder.
        frames: Frames in the file.
        shape: Of a frame, (H, W, C).
        dtype: Always "uint8".
        bytes: Of all frames, without the header.
        measured: Frames that were read: all of them, or a sample.
        mean: Mean of each channel.
        std: Standard deviation of each channel, over frames and pixels.
        brightest: The greatest value.
        black: Measured frames without a value above `BLACK`.
        pairs: Neighbouring frames that were compared, one less than a stretch has frames.
        same: Pairs that are equal.
        near: Pairs that are equal or differ by no more than `FolderStats.near` on average.
        still_frames: Length of the longest run in which each frame is near the one before; 1 where all move.
        still_first: Where it begins.
        head_sha256: SHA-256 of the first `HEAD_FRAMES` frames.
        mean_image: float32 (H, W, C), the mean of the measured frames; None where a folder has so many files that only
            those of evenly chosen ones are kept.
    """

    name: str
    frames: int
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    measured: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    brightest: int
    black: int
    pairs: int
    same: int
    near: int
    still_frames: int
    still_first: int
    head_sha256: str
    mean_image: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)

    @property
    def near_share(self) -> float:
        """Share of frames, 0 to 1, that are near the one before."""
        return self.near / max(1, self.pairs)


@dataclass(frozen=True)
class FolderStats:
    """What a folder of frame files holds.

    Attributes:
        folder: The folder.
        files: The files that training would take, in name order.
        refused: Those that it would not.
        near: Mean absolute difference, 0 to 255, up to which two frames count as near-duplicates.
        mean_image: float32 (H, W, C), the mean of all frames; zeros (0,) without files.
    """

    folder: Path
    files: tuple[FileStats, ...]
    refused: tuple[RefusedFile, ...]
    near: float
    mean_image: NDArray[np.float32] = field(repr=False, compare=False)

    @property
    def frames(self) -> int:
        """Frames in all files."""
        return sum(file.frames for file in self.files)

    @property
    def estimated(self) -> bool:
        """Whether a sample of the frames was measured, and not all of them."""
        return any(file.measured < file.frames for file in self.files)

    @property
    def bytes(self) -> int:
        """Bytes of all frames."""
        return sum(file.bytes for file in self.files)

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel over all frames; each file counts by its frames, measured or not."""
        return tuple((self._weights() @ np.array([file.mean for file in self.files])).tolist()) if self.files else ()

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel over all frames and pixels."""
        means, stds = (np.array([getattr(file, name) for file in self.files]) for name in ("mean", "std"))
        spread = stds**2 + (means - self._weights() @ means) ** 2
        return tuple(np.sqrt(self._weights() @ spread).tolist()) if self.files else ()

    def share(self, count: str, of: str) -> float:
        """Share of all frames, 0 to 1, from two counts of the files, such as ("near", "pairs")."""
        shares = [getattr(file, count) / max(1, getattr(file, of)) for file in self.files]
        return float(self._weights() @ shares) if self.files else 0.0

    def _weights(self) -> NDArray[np.float64]:
        return np.array([file.frames for file in self.files]) / max(1, self.frames)

    def to_json(self) -> dict[str, Any]:
        """All numbers as plain JSON values; mean images are left to the pictures."""
        files = [{k: v for k, v in vars(file).items() if k != "mean_image"} for file in self.files]
        total: dict[str, Any] = {"frames": self.frames, "bytes": self.bytes, "mean": list(self.mean), "std": list(self.std)}
        for share, counts in (("same", "pairs"), ("near", "pairs"), ("black", "measured")):
            total[f"{share}_share"] = self.share(share, counts)
        about = {"folder": str(self.folder), "estimated": self.estimated, "near": self.near}
        return {**about, "total": total, "files": files, "refused": [one._asdict() for one in self.refused]}


def frame_stats(
    folder: str | os.PathLike[str], sample: int | None = None, *, near: float = 1.0, chunk_bytes: int = 8 << 20
) -> FolderStats:
    """Measure a folder of frame files.

    Args:
        folder: The folder.
        sample: About how many frames to read, in stretches of `STRETCH_FRAMES` spread evenly over each file; at least
            `HEAD_FRAMES` of each. All of them when not given.
        near: Mean absolute difference, 0 to 255, up to which two neighbouring frames count as near-duplicates.
        chunk_bytes: What is read at once, and so the memory that it takes; two such chunks are held.

    Returns:
        The numbers; `find_warnings` says in words what looks wrong about them.

    Raises:
        InputError: There is no folder, or no `.npy` file in it, or an argument is out of its range. A file that is not
            as it should be is no error: it is in `refused`.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> np.save(folder / "a.npy", np.full((10, 8, 8, 3), 90, np.uint8))
        >>> np.save(folder / "b.npy", np.zeros((10, 8, 8, 3), np.float32))
        >>> stats = frame_stats(folder)
        >>> stats.files[0].mean, stats.files[0].same, stats.files[0].still_frames
        ((90.0, 90.0, 90.0), 9, 10)
        >>> stats.refused[0].name, stats.refused[0].reason[:31]
        ('b.npy', 'holds float32, expected uint8 (')
    """
    folder = Path(folder)
    if sample is not None and (isinstance(sample, bool) or not isinstance(sample, int) or sample < 1):
        raise InputError(f"sample must be a positive number of frames, got {sample!r}")
    if not 0 <= near <= 255:
        raise InputError(f"near must be a mean absolute difference from 0 to 255, got {near!r}")
    if chunk_bytes < 1:
        raise InputError(f"chunk_bytes must be positive, got {chunk_bytes!r}")
    opened, refused = _open_all(folder)
    total = sum(one.shape[0] for one in opened)
    parts = [_stretches(one.shape[0], total, sample) for one in opened]
    shape = opened[0].shape[1:] if opened else (0,)
    size, whole, files = int(np.prod(shape)), np.zeros(shape), list[FileStats]()
    most = min(len(opened), max(1, _MEANS_BYTES // max(1, 4 * size)))
    kept = set(np.linspace(0, len(opened) - 1, most).astype(int).tolist())
    todo = size * sum(past - first for part in parts for first, past in part)
    bar = tqdm(total=todo, unit="B", unit_scale=True, desc=folder.name or str(folder), disable=None)
    with bar, ThreadPoolExecutor(1 + min(_THREADS, os.cpu_count() or 1)) as pool:  # one of them reads
        for index, (one, stretches) in enumerate(zip(opened, parts, strict=True)):
            try:
                file, image = _measure(one, stretches, near, chunk_bytes, bar, pool)
                whole += image * file.frames
                files.append(replace(file, mean_image=image.astype(np.float32)) if index in kept else file)
            except (InputError, OSError) as error:
                refused.append(_refuse(one.file, error))
    image = (whole / max(1, sum(file.frames for file in files))).astype(np.float32)
    return FolderStats(folder, tuple(files), tuple(sorted(refused)), float(near), image)


class _Opened(NamedTuple):
    """A file that is as it should be, closed again: a folder may hold more files than a process may open."""

    file: Path
    shape: tuple[int, ...]
    offset: int


def _open_all(folder: Path) -> tuple[list[_Opened], list[RefusedFile]]:
    """The headers of all files, and what training would refuse; of several shapes, that of most files is kept."""
    opened: list[_Opened] = []
    refused: list[RefusedFile] = []
    for file in _frame_files(folder):
        try:
            mapped = _open(file)
            opened.append(_Opened(file, mapped.shape, mapped.offset))
        except InputError as error:
            refused.append(_refuse(file, error))
    counts = Counter(one.shape[1:] for one in opened)
    usual = max(counts, key=counts.__getitem__, default=(0,))  # the first in name order, where several are as frequent
    for one in opened:
        if one.shape[1:] != usual:
            reason = (
                f"has frames of shape {one.shape[1:]}, expected {usual} as in {counts[usual]} of {len(opened)} files; a "
                "dataset needs one shape. Move it to another folder, or resize its frames"
            )
            refused.append(RefusedFile(one.file.name, reason))
    return [one for one in opened if one.shape[1:] == usual], refused


def _refuse(file: Path, error: InputError | OSError) -> RefusedFile:
    if isinstance(error, OSError):
        return RefusedFile(file.name, f"cannot be read: {error.strerror or error}. Copy it again")
    return RefusedFile(file.name, str(error).removeprefix(f"{file} "))


def _stretches(frames: int, total: int, sample: int | None) -> _Stretches:
    """What is read of a file."""
    share = frames if sample is None else max(round(sample * frames / total), HEAD_FRAMES)
    if share >= frames:
        return [(0, frames)]
    length = min(share, STRETCH_FRAMES)
    starts = np.linspace(0, frames - length, share // length).astype(int)
    return [(int(start), int(start) + length) for start in starts]


def _measure(
    one: _Opened, stretches: _Stretches, near: float, chunk_bytes: int, bar: "tqdm[Any]", pool: ThreadPoolExecutor
) -> tuple[FileStats, NDArray[np.float64]]:  # fmt: skip
    frames, *shape = one.shape
    size, channels = int(np.prod(shape)), shape[-1]
    measured, length = sum(past - first for first, past in stretches), stretches[0][1] - stretches[0][0]
    sums, squares = np.zeros(size, np.uint64), np.zeros(size, np.uint64)
    moves = np.ones(measured, bool)  # whether a frame differs from the one before by more than `near`
    done = brightest = black = same = 0
    head = hashlib.sha256()
    rows = min(_BLOCK_FRAMES, max(1, _BLOCK_BYTES // size))
    for start, begins, buffer in _read_ahead(one, stretches, size, max(1, chunk_bytes // size), pool):
        chunk = buffer[1:]  # before it, the last frame of the chunk before
        if start < HEAD_FRAMES:
            head.update(chunk[: HEAD_FRAMES - start].tobytes())
        apart = np.empty(len(chunk), np.uint64)
        looks = pool.map(_look, [buffer[top : top + rows + 1] for top in range(0, len(chunk), rows)])
        for top, (total, total_squares, highest, differences) in zip(range(0, len(chunk), rows), looks, strict=True):
            sums += total
            squares += total_squares
            brightest = max(brightest, int(highest.max()))
            black += int((highest <= BLACK).sum())
            apart[top : top + rows] = differences
        if begins:
            apart[0] = 256 * size  # more than any pair: there is none before it to compare with
        same += int((apart == 0).sum())
        moves[done : done + len(chunk)] = apart > near * size
        done += len(chunk)
        bar.update(chunk.nbytes)
    edges = np.append(np.flatnonzero(moves), measured)  # each run of still frames begins with one that moved
    runs = np.diff(edges)
    part, within = divmod(int(edges[runs.argmax()]), length)
    totals, totals_squares = ([int(v) for v in x.reshape(-1, channels).sum(axis=0, dtype=object)] for x in (sums, squares))
    count = measured * size // channels
    stats = FileStats(
        name=one.file.name,
        frames=frames,
        shape=tuple(shape),
        dtype="uint8",
        bytes=frames * size,
        measured=measured,
        mean=tuple(s / count for s in totals),
        std=tuple((q * count - s * s) ** 0.5 / count for s, q in zip(totals, totals_squares, strict=True)),
        brightest=brightest,
        black=black,
        pairs=measured - len(stretches),
        same=same,
        near=measured - int(moves.sum()),
        still_frames=int(runs.max()),
        still_first=stretches[part][0] + within,
        head_sha256=head.hexdigest(),
    )
    return stats, (sums / measured).reshape(shape)


def _look(frames: Frames) -> tuple[NDArray[Any], NDArray[Any], Frames, NDArray[Any]]:
    """Of flat frames, but for the first: sums and squares over them; greatest value, and sum of differences, of each."""
    block, before = frames[1:], frames[:-1]
    squares = np.multiply(block, block, dtype=np.uint16).sum(axis=0, dtype=np.uint32)
    apart = np.maximum(block, before)
    apart -= np.minimum(block, before)
    wide = np.uint32 if block.shape[1] < 1 << 24 else np.uint64
    return block.sum(axis=0, dtype=np.uint16), squares, block.max(axis=1), apart.sum(axis=1, dtype=wide)


def _read_ahead(
    one: _Opened, stretches: _Stretches, size: int, most: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[int, bool, Frames]]:  # fmt: skip
    """Chunks of frames, flat, the next being read while one is looked at.

    Yields:
        The number of the chunk's first frame, whether a stretch begins there, and (1 + n, size): the frame before, which
        means nothing where a stretch begins, and n <= `most` frames. It is good until the next is asked for.
    """
    jobs = [(top, min(top + most, past), top == first) for first, past in stretches for top in range(first, past, most)]
    most = max(past - top for top, past, _ in jobs)
    buffers = [np.zeros((most + 1, size), np.uint8) for _ in range(2)]
    with one.file.open("rb") as handle:

        def read(index: int) -> None:
            top, past, _ = jobs[index]
            wanted = buffers[index % 2][1 : 1 + past - top].reshape(-1)
            handle.seek(one.offset + top * size)
            if handle.readinto(wanted.data) != wanted.nbytes:
                raise InputError(f"{one.file} became shorter while it was read. Is it still being copied? Measure it again")

        coming = pool.submit(read, 0)
        for index, (top, past, begins) in enumerate(jobs):
            coming.result()
            if index + 1 < len(jobs):
                coming = pool.submit(read, index + 1)
            buffer = buffers[index % 2][: 1 + past - top]
            yield top, begins, buffer
            buffers[(index + 1) % 2][0] = buffer[-1]
