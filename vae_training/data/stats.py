"""What is in a folder of frames: sizes, brightness, near-duplicates, black frames, stills; the numbers only.

Every frame is read once, in chunks, at about the speed of the disk. All sums are of integers, so that nothing depends
on where a chunk ends. A file that `get_datasets` would refuse is named with its reason, and the others are measured.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from latent_obs.util.errors import InputError
from vae_training.data.filters import BLACK
from vae_training.data.frames import _frame_files, _open
from vae_training.training.logs import Picture, grid, save_picture

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
        total: dict[str, Any] = {
            "frames": self.frames,
            "bytes": self.bytes,
            "mean": list(self.mean),
            "std": list(self.std),
        }
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
) -> tuple[FileStats, NDArray[np.float64]]:
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
    totals, totals_squares = (
        [int(v) for v in x.reshape(-1, channels).sum(axis=0, dtype=object)] for x in (sums, squares)
    )
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
    """Of flat frames, but for the first: sums and squares over them; greatest value, and sum of differences, of
    each.
    """
    block, before = frames[1:], frames[:-1]
    squares = np.multiply(block, block, dtype=np.uint16).sum(axis=0, dtype=np.uint32)
    apart = np.maximum(block, before)
    apart -= np.minimum(block, before)
    wide = np.uint32 if block.shape[1] < 1 << 24 else np.uint64
    return block.sum(axis=0, dtype=np.uint16), squares, block.max(axis=1), apart.sum(axis=1, dtype=wide)


def _read_ahead(
    one: _Opened, stretches: _Stretches, size: int, most: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[int, bool, Frames]]:
    """Chunks of frames, flat, the next being read while one is looked at.

    Yields:
        The number of the chunk's first frame, whether a stretch begins there, and (1 + n, size): the frame before,
        which means nothing where a stretch begins, and n <= `most` frames. It is good until the next is asked for.
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
                raise InputError(
                    f"{one.file} became shorter while it was read. Is it still being copied? Measure it again"
                )

        coming = pool.submit(read, 0)
        for index, (top, past, begins) in enumerate(jobs):
            coming.result()
            if index + 1 < len(jobs):
                coming = pool.submit(read, index + 1)
            buffer = buffers[index % 2][: 1 + past - top]
            yield top, begins, buffer
            buffers[(index + 1) % 2][0] = buffer[-1]


_TILE = 128  # pixels, the longer side of a frame on a sheet, about
_GAP, _MARGIN = 4, 12
_INK, _GREY = (31, 41, 55), (107, 114, 128)
_TABLE_FILES = 40
T = TypeVar("T")


def stats_table(stats: FolderStats, *, width: int = 100) -> str:
    """The numbers as an aligned table, with what is refused and what looks wrong below it.

    Args:
        stats: From `frame_stats`.
        width: Characters of a line, at least 90; long names are cut.

    Example:
        >>> import tempfile
        >>> from vae_training.data.stats import frame_stats
        >>> folder = Path(tempfile.mkdtemp())
        >>> np.save(folder / "a.npy", np.full((10, 8, 8, 3), 90, np.uint8))
        >>> print(stats_table(frame_stats(folder)).splitlines()[3])
        a.npy      10  0.0   90  90  90    0  100%  100%   0%     10
    """
    lines: list[str] = []
    if stats.files:
        shape = "x".join(map(str, stats.files[0].shape))
        lines.append(f"{stats.folder}: {_count(len(stats.files), 'file')}, {stats.frames:,} frames of {shape} uint8")
        if stats.estimated:
            measured = sum(file.measured for file in stats.files)
            lines.append(f"Estimates: {measured:,} of the frames were measured, in stretches that follow each other.")
        lines += ["", *_rows(stats, width), ""]
        explained = (
            "same: equal to the frame before; near: equal, or different from it by at most "
            f"{stats.near:g} of 255 on average; black: no value above {BLACK}; still: frames of the longest run that stays "
            "near the frame before."
        )
        lines.append(fill(explained, width))
    else:
        lines.append(f"{stats.folder}: no file that training would take")
    if stats.refused:
        lines += ["", f"Training would refuse {_count(len(stats.refused), 'file')}:"]
        lines += [_wrapped(f"{name} {reason}", width) for name, reason in stats.refused]
    warnings = find_warnings(stats)
    if warnings:
        lines += ["", "Look at:"]
        lines += [_wrapped(warning, width) for warning in warnings]
    return "\n".join(lines)


def _rows(stats: FolderStats, width: int) -> list[str]:
    colours = len(stats.files[0].shape) == 3 and stats.files[0].shape[-1] == 3
    heads = ["file", "frames", "MB", "mean R G B" if colours else "mean", "std", "same", "near", "black", "still"]
    table = [heads]
    for file in stats.files[:_TABLE_FILES]:
        still = _still(file.still_frames, file.measured < file.frames)
        shares = (file.same / max(1, file.pairs), file.near_share, file.black / file.measured)
        table.append([file.name, *_numbers(file.frames, file.bytes, file.mean, file.std, shares), still])
    if len(stats.files) > 1:
        shares = (stats.share("same", "pairs"), stats.share("near", "pairs"), stats.share("black", "measured"))
        total = _numbers(stats.frames, stats.bytes, stats.mean, stats.std, shares)
        table.append(["all", *total, _still(max(file.still_frames for file in stats.files), stats.estimated)])
    widths = [max(len(row[i]) for row in table) for i in range(len(heads))]
    widths[0] = min(widths[0], width - sum(widths[1:]) - 2 * (len(heads) - 1))
    lines = [
        "  ".join(
            [_cut(row[0], widths[0]).ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in table
    ]
    if len(stats.files) > _TABLE_FILES:
        lines.insert(1 + _TABLE_FILES, f"… and {len(stats.files) - _TABLE_FILES:,} more (--json lists them all)")
    return lines


def _numbers(frames: int, size: int, mean: Sequence[float], std: Sequence[float], shares: Sequence[float]) -> list[str]:
    means = " ".join(f"{v:3.0f}" for v in mean) if len(mean) == 3 else f"{np.mean(mean):.0f}"
    return [f"{frames:,}", f"{size / 1e6:,.1f}", means, f"{np.mean(std):.0f}", *map(_percent, shares)]


def _still(frames: int, estimated: bool) -> str:
    return f"{'≥' if estimated and frames > 1 else ''}{frames:,}"


def _percent(share: float) -> str:
    """A share that is neither none nor all does not look like it."""
    return "<1%" if 0 < share < 0.005 else ">99%" if 0.995 <= share < 1 else f"{share:.0%}"


def _wrapped(text: str, width: int) -> str:
    return fill(
        text, width, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _cut(text: str, length: int) -> str:
    """A name without its middle: what tells recordings apart is often at the end.

    Example:
        >>> _cut("a_long_recording_007.npy", 12)
        'a_lo…007.npy'
    """
    if len(text) <= length:
        return text
    tail = max(1, (length - 1) * 2 // 3)
    return text[: max(0, length - 1 - tail)] + "…" + text[-tail:]


def find_warnings(stats: FolderStats) -> list[str]:
    """What looks wrong about frames, in words: some sentences per kind of fault, however many files have it.

    Args:
        stats: From `frame_stats`.
    """
    return list(_find(stats.files))


def _find(files: Sequence[FileStats]) -> Iterator[str]:
    floats = [f for f in files if f.brightest == 1]
    if floats:
        yield (
            f"{_names(floats, files)}: no value above 1. Were floats of 0 to 1 made uint8 without multiplying by 255? "
            "Such frames are black to a model; make them again with (frames * 255).round().astype(numpy.uint8)"
        )
    black = [f for f in files if f.black >= 0.01 * f.measured and f.brightest != 1]
    if black:
        yield (
            f"{_names(black, files)}: {_most('black', black, 'measured')} of the frames are black (no value above {BLACK}); "
            "loading screens, or ends of episodes? The model learns to draw them as well. Leave them out"
        )
    seen = [f for f in files if f.black < f.measured]  # of the others all is said
    stills = [f for f in seen if f.near_share > 0.5]
    if stills:
        yield (
            f"{_names(stills, files)}: {_most('near', stills, 'pairs')} of the frames are near-duplicates of those before. "
            "They teach little and cost as much as others: record with --frame-skip 4, or leave every second one out"
        )
    for f in [f for f in seen if f.near_share <= 0.5 and f.still_frames >= max(STRETCH_FRAMES, 0.25 * f.measured)][:3]:
        where = f"for {f.still_frames:,} frames, from frame {f.still_first:,}"
        yield f"{_cut(f.name, 40)}: nothing moves {where}. A menu, or a pause?"
    means = {f.name: float(np.mean(f.mean)) for f in files}
    usual = (max if len(files) == 2 else median)(means.values()) if files else 0.0
    darker = [f for f in seen if means[f.name] < min(0.5 * usual, usual - 15)]
    if darker:
        yield (
            f"{_names(darker, files)}: far darker than the others (mean {min(means[f.name] for f in darker):.0f}, usual "
            f"{usual:.0f}). Is it night, or a fault?"
        )
    heads: dict[str, list[FileStats]] = {}
    for f in files:
        heads.setdefault(f.head_sha256, []).append(f)
    for group in heads.values():
        if len(group) > 1 and group[0].brightest > BLACK:
            yield f"{_names(group, files)}: " + (
                "copies of each other, by all that was measured. A copy among the held-out files makes losses look better "
                "than they are: keep one of them"
                if all((f.frames, f.mean, f.std) == (group[0].frames, group[0].mean, group[0].std) for f in group)
                else f"begin with the same {min(HEAD_FRAMES, group[0].frames)} frames. That may be a menu, or the seed; parts "
                "of one recording in several files would make held-out losses look better than they are"
            )


def _names(some: Sequence[FileStats], files: Sequence[FileStats]) -> str:
    shown = ", ".join(_cut(f.name, 40) for f in some[:3])
    return shown + (f" and {len(some) - 3} more (of {len(files)} files)" if len(some) > 3 else "")


def _most(count: str, some: Sequence[FileStats], of: str) -> str:
    """The shares of files in words: 7%, or 7% to 30%."""
    shares = [f"{getattr(f, count) / max(1, getattr(f, of)):.0%}" for f in some]
    low, high = min(shares, key=lambda s: int(s[:-1])), max(shares, key=lambda s: int(s[:-1]))
    return low if low == high else f"{low} to {high}"


def write_contact_sheet(
    path: str | os.PathLike[str], stats: FolderStats, *, max_files: int = 16, columns: int = 10
) -> Path:
    """Write a PNG with a row of frames per file, evenly spaced from its first to its last.

    Args:
        path: The PNG file; it appears whole or not at all.
        stats: From `frame_stats`; the files must still be there.
        max_files: Rows at most; of more files, evenly chosen ones from the first to the last.
        columns: Frames of a row at most.

    Returns:
        The file.

    Raises:
        InputError: There is no file to show, or one cannot be read any more.
    """
    files = _some(_files(stats), max_files)
    scale, height, width = _tile_size(files[0])
    columns = max(1, columns)
    title = f"{stats.folder}: frames of {_of(len(files), stats)}, {stats.frames:,} in all"
    row_height = 20 + height + 22
    wide = min(columns, max(file.frames for file in files))
    sheet_width = max(wide * (width + _GAP) - _GAP, 560)
    sheet = _Sheet(sheet_width, len(files) * row_height, title)
    letters = sheet_width // 7 - 45  # of a name, so that there is room for the numbers after it
    for row, file in enumerate(files):
        top = row * row_height
        name = (
            f"{_cut(file.name, letters)}   {_count(file.frames, 'frame')}, {_percent(file.near_share)} near-duplicates"
        )
        sheet.text(0, top, name + (f", {_percent(file.black / file.measured)} black" if file.black else ""), _INK)
        frames = _open(stats.folder / file.name)
        numbers = np.unique(np.linspace(0, len(frames) - 1, columns).round().astype(int))
        for column, number in enumerate(numbers):
            left = column * (width + _GAP)
            sheet.paste(left, top + 20, _tile(np.asarray(frames[number]), scale, height, width))
            sheet.text(left, top + 20 + height + 1, str(number), _GREY, size=11)
    return sheet.save(Path(path))


def write_mean_sheet(
    path: str | os.PathLike[str], stats: FolderStats, *, max_files: int = 39, columns: int = 8
) -> Path:
    """Write a PNG with the mean image of all frames, and then of each file.

    What stays visible is in the same place in most frames: a HUD, a held item, the horizon. One that differs much from
    the others comes from another place, or another program.

    Args:
        path: The PNG file; it appears whole or not at all.
        stats: From `frame_stats`.
        max_files: Files at most; of more, evenly chosen ones.
        columns: Images of a row at most.

    Returns:
        The file.

    Raises:
        InputError: There is no file to show.
    """
    images = [(file, file.mean_image) for file in _files(stats) if file.mean_image is not None]
    chosen = _some(images, max_files)
    scale, height, width = _tile_size(_files(stats)[0])
    means = [("all files", stats.mean_image)] if len(stats.files) > 1 else []
    means += [(file.name, image) for file, image in chosen]
    columns = min(max(1, columns), len(means))
    title = f"{stats.folder}: mean of the frames of {_of(len(chosen), stats)}"
    sheet = _Sheet(max(columns * (width + _GAP) - _GAP, 560), -(-len(means) // columns) * (height + 24), title)
    for i, (name, mean) in enumerate(means):
        left, top = i % columns * (width + _GAP), i // columns * (height + 24)
        sheet.paste(left, top, _tile(mean.round().astype(np.uint8), scale, height, width))
        sheet.text(
            left, top + height + 1, name, _INK if i == 0 and len(stats.files) > 1 else _GREY, size=11, room=width
        )
    return sheet.save(Path(path))


class _Sheet:
    """A white picture with a title, and positions counted from below it."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._top = _MARGIN + 26
        self._image = Image.new("RGB", (width + 2 * _MARGIN, self._top + height + _MARGIN), "white")
        self._draw = ImageDraw.Draw(self._image)
        self.text(0, _MARGIN - self._top, title, _INK, size=14)

    def text(
        self, left: int, top: int, text: str, ink: tuple[int, int, int], *, size: int = 12, room: int | None = None
    ) -> None:
        font = ImageFont.load_default(size)
        # The font that comes with Pillow has the letters of ASCII only, and a file may have any name.
        text = text.replace("…", "...").encode("ascii", "replace").decode()
        room = (room or self._image.width - 2 * _MARGIN) - 1
        length = len(text)
        while length > 4 and self._draw.textlength(_cut(text, length).replace("…", "..."), font) > room:
            length -= 1
        self._draw.text((_MARGIN + left, self._top + top), _cut(text, length).replace("…", "..."), ink, font)

    def paste(self, left: int, top: int, picture: Picture) -> None:
        self._image.paste(Image.fromarray(picture), (_MARGIN + left, self._top + top))

    def save(self, path: Path) -> Path:
        save_picture(path, np.asarray(self._image))
        return path


def _files(stats: FolderStats) -> Sequence[FileStats]:
    if not stats.files:
        raise InputError(f"{stats.folder} has no file of frames to show; mend those that frame_stats refused")
    return stats.files


def _some(items: Sequence[T], most: int) -> list[T]:
    """At most so many, evenly chosen, the first and the last among them."""
    chosen = np.unique(np.linspace(0, len(items) - 1, min(max(1, most), len(items))).round().astype(int))
    return [items[i] for i in chosen]


def _of(shown: int, stats: FolderStats) -> str:
    whole = _count(len(stats.files), "file")
    return whole if shown == len(stats.files) else f"{shown} of {whole}"


def _tile_size(file: FileStats) -> tuple[int, int, int]:
    """Whole factor by which small frames are enlarged, and height and width of a tile."""
    height, width = file.shape[:2]
    longer = max(height, width)
    if longer <= _TILE:
        scale = _TILE // longer
        return scale, height * scale, width * scale
    return 1, max(1, round(height * _TILE / longer)), max(1, round(width * _TILE / longer))


def _tile(frame: NDArray[np.uint8], scale: int, height: int, width: int) -> Picture:
    picture = grid([frame[None]], scale=scale)
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))
