"""Measure a folder of frames: sizes, brightness, near-duplicates, black frames, stills; as numbers, table and pictures.

Every frame is read once, in chunks. All sums are of integers, so that nothing depends on where a chunk ends.
"""

import hashlib
import os
import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from latent_obs.util.errors import InputError, check_count
from latent_obs.util.progress import ProgressBar
from latent_obs.util.words import counted
from vae_training.data.filters import BLACK
from vae_training.data.frames import Frames, frame_files, not_finished, open_frames
from vae_training.training.logs import grid, save_picture

#: Mean absolute difference, 0 to 255, up to which two neighboring frames count as near-duplicates.
NEAR = 1.0
HEAD_FRAMES = 16  # compared between files, to find copies
STRETCH_FRAMES = 64  # of a sample that follow each other
_THREADS = 4  # numpy lets others run while it counts
_CHUNKS_AT_ONCE = 64  # more would only pile up results
_CHUNK_BYTES = 1 << 20  # about what stays in a processor's cache
_MOST_CHUNK_FRAMES = 1 << 16  # uint32 holds the sum of so many squares
_WIDTH, _NAME = 100, 40  # characters of the table, and of a name in a sentence
_COLUMNS = (
    f"same: equal to the frame before; near: differs from it by at most {NEAR:g} of 255 on average;",
    f"black: no value above {BLACK}; still: frames of the longest run that stays near the frame before.",
)
_SHEET_FILES, _SHEET_FRAMES = 16, 10  # rows and columns of the contact sheet
_MEAN_FILES, _MEAN_COLUMNS = 39, 8  # of the sheet of mean images
_TILE, _GAP, _MARGIN, _LINE, _LETTER = 128, 4, 12, 20, 7  # pixels on a sheet; a tile's is its longer side
T = TypeVar("T")


class RefusedFile(NamedTuple):
    """A file that training would refuse, and why, with what to do."""

    name: str
    reason: str


class Shares(NamedTuple):
    """Shares, 0 to 1, of frames that are equal to the one before, near it, and black."""

    same: float
    near: float
    black: float


@dataclass(frozen=True)
class FileStats:
    """What one frame file holds. Values are 0 to 255; frames are numbered from 0."""

    name: str
    frames: int
    shape: tuple[int, ...]  # of a frame, (H, W, C)
    dtype: str  # always "uint8"
    bytes: int  # of all frames, without the header
    measured: int  # frames that were read: all of them, or a sample
    mean: tuple[float, ...]  # of each channel
    std: tuple[float, ...]  # of each channel, over frames and pixels
    brightest: int
    black: int  # frames without a value above BLACK
    pairs: int  # neighboring frames that were compared
    same: int  # pairs that are equal
    near: int  # pairs that are equal or near-duplicates
    still_frames: int  # length of the longest run in which each frame is near the one before; 1 where all move
    still_first: int  # where it begins
    head_sha256: str  # of the first HEAD_FRAMES frames
    #: float32 (H, W, C), the mean of the measured frames; of a folder of many files only evenly chosen ones have it.
    mean_image: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)

    @property
    def shares(self) -> Shares:
        """Shares of the measured frames."""
        return Shares(self.same / max(1, self.pairs), self.near / max(1, self.pairs), self.black / self.measured)

    @property
    def estimated(self) -> bool:
        """Whether a sample of the frames was measured, and not all of them."""
        return self.measured < self.frames


@dataclass(frozen=True)
class FolderStats:
    """What a folder of frame files holds; means, deviations and shares count each file by its frames."""

    folder: Path
    files: tuple[FileStats, ...]  # those that training would take, in name order
    refused: tuple[RefusedFile, ...]
    mean: tuple[float, ...]  # of each channel
    std: tuple[float, ...]  # of each channel, over frames and pixels
    shares: Shares
    #: float32 (H, W, C), the mean of all frames; zeros without files.
    mean_image: NDArray[np.float32] = field(repr=False, compare=False)

    @property
    def frames(self) -> int:
        """Frames in all files."""
        return sum(file.frames for file in self.files)

    @property
    def bytes(self) -> int:
        """Bytes of all frames."""
        return sum(file.bytes for file in self.files)

    @property
    def estimated(self) -> bool:
        """Whether a sample of the frames was measured, and not all of them."""
        return any(file.estimated for file in self.files)

    @property
    def still_frames(self) -> int:
        """Length of the longest run of any file in which each frame is near the one before."""
        return max((file.still_frames for file in self.files), default=0)

    def to_json(self) -> dict[str, Any]:
        """All numbers as plain JSON values, without mean images."""
        total = {"frames": self.frames, "bytes": self.bytes, "mean": list(self.mean), "std": list(self.std)}
        total |= {f"{name}_share": share for name, share in self.shares._asdict().items()}
        return {
            "folder": str(self.folder),
            "estimated": self.estimated,
            "near": NEAR,
            "total": total,
            "files": [{k: v for k, v in vars(file).items() if k != "mean_image"} for file in self.files],
            "refused": [one._asdict() for one in self.refused],
        }


def frame_stats(folder: str | os.PathLike[str], sample: int | None = None) -> FolderStats:
    """Measure a folder of frame files.

    Args:
        folder: The folder.
        sample: About how many frames to read, in stretches spread evenly over each file; all when not given.

    Returns:
        The numbers. A file that `get_datasets` would refuse is in `refused`, and the others are measured.

    Raises:
        InputError: There is no folder, or no `.npy` file in it, or `sample` is not a positive integer.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> np.save(folder / "a.npy", np.full((10, 8, 8, 3), 90, np.uint8))
        >>> np.save(folder / "b.npy", np.zeros((10, 8, 8, 3), np.float32))
        >>> stats = frame_stats(folder)
        >>> stats.files[0].mean, stats.files[0].same, stats.refused[0].name
        ((90.0, 90.0, 90.0), 9, 'b.npy')
    """
    folder = Path(folder)
    if sample is not None:
        check_count("sample", sample)
    shapes: dict[Path, tuple[int, ...]] = {}  # and not the maps: a folder may hold more files than can be open
    refused: list[RefusedFile] = []
    for file in frame_files(folder):
        try:
            shapes[file] = open_frames(file).shape
        except InputError as error:
            refused.append(RefusedFile(file.name, str(error).removeprefix(f"{file} ")))
    usual, frequency = Counter(shape[1:] for shape in shapes.values()).most_common(1)[0] if shapes else ((0,), 0)
    for file in [file for file, shape in shapes.items() if shape[1:] != usual]:
        reason = (
            f"has frames of shape {shapes[file][1:]}, expected {usual} as in {frequency} of {len(shapes)} files. Move "
            "it to another folder, or resize its frames"
        )
        refused.append(RefusedFile(file.name, reason))
    usable = [file for file, shape in shapes.items() if shape[1:] == usual]
    total, with_image = sum(shapes[file][0] for file in usable), set(_evenly(usable, _MEAN_FILES))
    whole, files = np.zeros(usual), list[FileStats]()
    with ThreadPoolExecutor(_THREADS) as pool:
        for file in ProgressBar(usable, desc=folder.name or str(folder), unit="file"):
            try:
                stats = _measure(file, _stretches(shapes[file][0], total, sample), pool)
            except (InputError, OSError) as error:
                refused.append(RefusedFile(file.name, f"cannot be read: {error}. Copy it again, and measure again"))
                continue
            assert stats.mean_image is not None
            whole += np.multiply(stats.mean_image, stats.frames, dtype=np.float64)
            files.append(stats if file in with_image else replace(stats, mean_image=None))
    mean, std, shares = np.zeros(0), np.zeros(0), np.zeros(3)
    if files:
        weights = np.array([file.frames for file in files])
        means, deviations = np.array([file.mean for file in files]), np.array([file.std for file in files])
        mean = np.average(means, axis=0, weights=weights)
        std = np.sqrt(np.average(deviations**2 + (means - mean) ** 2, axis=0, weights=weights))
        shares = np.average([file.shares for file in files], axis=0, weights=weights)
        whole /= weights.sum()
    return FolderStats(
        folder,
        tuple(files),
        tuple(sorted(refused)),
        tuple(mean.tolist()),
        tuple(std.tolist()),
        Shares(*shares.tolist()),
        whole.astype(np.float32),
    )


def _stretches(frames: int, total: int, sample: int | None) -> list[tuple[int, int]]:
    """What is read of a file: first and past-the-last frame of each stretch, all of one length."""
    share = frames if sample is None else max(round(sample * frames / total), HEAD_FRAMES)
    if share >= frames:
        return [(0, frames)]
    length = min(share, STRETCH_FRAMES)
    starts = np.linspace(0, frames - length, share // length).astype(int)
    return [(int(start), int(start) + length) for start in starts]


def _measure(file: Path, stretches: list[tuple[int, int]], pool: ThreadPoolExecutor) -> FileStats:
    mapped = open_frames(file)
    frames, *shape = mapped.shape
    size, channels = int(np.prod(shape)), shape[-1]

    def look(chunk: tuple[int, int, bool]) -> tuple[NDArray[Any], NDArray[Any], Frames, NDArray[np.uint64]]:
        """Sums and squares over some frames, and of each the highest value and the difference from the one before."""
        first, past, begins = chunk
        before = 0 if begins else 1  # the frame before is read as well
        wanted = (past - first + before) * size
        data = np.fromfile(file, np.uint8, wanted, offset=mapped.offset + (first - before) * size)
        if data.size < wanted:
            raise InputError("it became shorter while it was read")
        read = data.reshape(-1, size)
        differences = np.maximum(read[1:], read[:-1]) - np.minimum(read[1:], read[:-1])
        apart = differences.sum(axis=1, dtype=np.uint64)
        if begins:  # nothing to compare with: more than any difference
            apart = np.insert(apart, 0, 256 * size)
        block = read[before:]
        squares = np.multiply(block, block, dtype=np.uint16).sum(axis=0, dtype=np.uint32)
        return block.sum(axis=0, dtype=np.uint32), squares, block.max(axis=1), apart

    step = max(1, min(_CHUNK_BYTES // size, _MOST_CHUNK_FRAMES))
    chunks = [
        (top, min(top + step, past), top == first) for first, past in stretches for top in range(first, past, step)
    ]
    sums, squares = np.zeros(size, np.uint64), np.zeros(size, np.uint64)
    highest: list[Frames] = []
    apart: list[NDArray[np.uint64]] = []
    for start in range(0, len(chunks), _CHUNKS_AT_ONCE):
        for found in pool.map(look, chunks[start : start + _CHUNKS_AT_ONCE]):
            sums += found[0]
            squares += found[1]
            highest.append(found[2])
            apart.append(found[3])
    brightest, differences = np.concatenate(highest), np.concatenate(apart)
    measured, length = len(differences), stretches[0][1] - stretches[0][0]
    moves = differences > NEAR * size
    edges = np.append(np.flatnonzero(moves), measured)  # each run of still frames begins with one that moved
    runs = np.diff(edges)
    part, within = divmod(int(edges[runs.argmax()]), length)
    count = measured * size // channels
    # Exact: Python's integers do not overflow.
    total, total_squares = (x.reshape(-1, channels).sum(axis=0, dtype=object) for x in (sums, squares))
    head = np.fromfile(file, np.uint8, min(frames, HEAD_FRAMES) * size, offset=mapped.offset)
    return FileStats(
        name=file.name,
        frames=frames,
        shape=tuple(shape),
        dtype="uint8",
        bytes=frames * size,
        measured=measured,
        mean=tuple(int(s) / count for s in total),
        std=tuple(int(q * count - s * s) ** 0.5 / count for s, q in zip(total, total_squares, strict=True)),
        brightest=int(brightest.max()),
        black=int((brightest <= BLACK).sum()),
        pairs=measured - len(stretches),
        same=int((differences == 0).sum()),
        near=measured - int(moves.sum()),
        still_frames=int(runs.max()),
        still_first=stretches[part][0] + within,
        head_sha256=hashlib.sha256(head.tobytes()).hexdigest(),
        mean_image=(sums / measured).reshape(shape).astype(np.float32),
    )


def stats_table(stats: FolderStats) -> str:
    """Format the numbers as an aligned table of lines of 100 characters, with refused files and warnings below it."""
    lines = [f"{stats.folder}: no file that training would take"]
    if stats.files:
        shape = "x".join(map(str, stats.files[0].shape))
        lines = [f"{stats.folder}: {counted(len(stats.files), 'file')}, {stats.frames:,} frames of {shape} uint8"]
        if stats.estimated:
            measured = sum(file.measured for file in stats.files)
            lines.append(f"Estimates: {measured:,} of the frames were measured, in stretches that follow each other.")
        lines += ["", *_table(stats), "", *_COLUMNS]
    refused = [" ".join(one) for one in stats.refused]
    wrapper = textwrap.TextWrapper(_WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    for heading, texts in (("Training would refuse:", refused), ("Look at:", find_warnings(stats))):
        if texts:
            lines += ["", heading, *(wrapper.fill(f"- {text}") for text in texts)]
    return "\n".join(lines)


def _table(stats: FolderStats) -> list[str]:
    shown: list[tuple[str, FileStats | FolderStats]] = [(file.name, file) for file in stats.files]
    rows = [["file", "frames", "MB", "mean", "std", "same", "near", "black", "still"]]
    for name, of in [*shown, ("all", stats)] if len(shown) > 1 else shown:
        numbers = [f"{of.frames:,}", f"{of.bytes / 1e6:,.1f}", f"{np.mean(of.mean):.0f}", f"{np.mean(of.std):.0f}"]
        rows.append([name, *numbers, *(f"{share:.1%}" for share in of.shares), f"{of.still_frames:,}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[0] = min(widths[0], _WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1))
    lines: list[str] = []
    for name, *numbers in rows:
        right = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([_cut(name, widths[0]).ljust(widths[0]), *right]))
    return lines


def _cut(text: str, length: int) -> str:
    """A name without its middle: recordings often differ at the end."""
    tail = max(1, (length - 1) * 2 // 3)
    return text if len(text) <= length else text[: max(0, length - 1 - tail)] + "…" + text[-tail:]


def find_warnings(stats: FolderStats) -> list[str]:
    """Describe what looks wrong about frames: a sentence or two per kind of fault, however many files have it."""
    files = stats.files
    floats = [f for f in files if f.brightest == 1]
    black = [f for f in files if f.black >= 0.01 * f.measured and f.brightest != 1]
    seen = [f for f in files if f.black < f.measured]  # the others are all black, which is said above
    stills = [f for f in seen if f.shares.near > 0.5]
    paused = [f for f in seen if f.shares.near <= 0.5 and f.still_frames >= max(STRETCH_FRAMES, 0.25 * f.measured)]
    means = {f.name: float(np.mean(f.mean)) for f in files}
    usual = (max if len(files) == 2 else median)(means.values()) if files else 0.0
    darker = [f for f in seen if means[f.name] < min(0.5 * usual, usual - 15)]
    by_head: defaultdict[str, list[FileStats]] = defaultdict(list)
    for f in files:
        if f.brightest > BLACK:
            by_head[f.head_sha256].append(f)
    found = [
        (
            floats,
            "no value above 1. Were floats of 0 to 1 made uint8 without multiplying by 255? Such frames are black to a "
            "model; make them again with (frames * 255).round().astype(numpy.uint8)",
        ),
        (
            black,
            f"{_range([f.shares.black for f in black])} of the frames are black (no value above {BLACK}), as loading "
            "screens are. The model learns to draw them as well. Leave them out",
        ),
        (
            stills,
            f"{_range([f.shares.near for f in stills])} of the frames are near-duplicates of those before, which teach "
            "little. Record with --frame-skip 4, or leave every second one out",
        ),
        *(
            ([f], f"nothing moves for {f.still_frames:,} frames, from frame {f.still_first:,}. A menu, or a pause?")
            for f in paused[:3]
        ),
        (
            darker,
            f"far darker than the others (usual mean {usual:.0f}, here from "
            f"{min((means[f.name] for f in darker), default=0):.0f}). Is it night, or a fault?",
        ),
        *(
            (
                group,
                f"begin with the same {min(HEAD_FRAMES, group[0].frames)} frames. Copies, or parts of one recording in "
                "several files, make held-out losses look better than they are: keep one of them",
            )
            for group in by_head.values()
            if len(group) > 1
        ),
    ]
    warnings: list[str] = []
    for faulty, fault in found:
        if faulty:
            names = ", ".join(_cut(f.name, _NAME) for f in faulty[:3])
            more = f" and {len(faulty) - 3} more (of {len(files)} files)" if len(faulty) > 3 else ""
            warnings.append(f"{names}{more}: {fault}")
    if unfinished := not_finished(stats.folder):
        warnings.append(f"the folder is not complete: {unfinished}")
    return warnings


def _range(shares: Sequence[float]) -> str:
    """Shares in words: 7%, or 7% to 30%."""
    low, high = f"{min(shares, default=0):.0%}", f"{max(shares, default=0):.0%}"
    return low if low == high else f"{low} to {high}"


def write_contact_sheet(path: str | os.PathLike[str], stats: FolderStats) -> Path:
    """Write a PNG with a row of frames per file, evenly spaced; an `InputError` if there are none."""
    rows: list[list[tuple[str, Frames]]] = []
    for file in _evenly(stats.files, _SHEET_FILES):
        frames = open_frames(stats.folder / file.name)
        heading = f"{_cut(file.name, _NAME)}   {file.frames:,} frames, {file.shares.near:.0%} near-duplicates"
        shown = [np.asarray(frames[number]) for number in _evenly(range(len(frames)), _SHEET_FRAMES)]
        rows.append([(heading if number == 0 else "", frame) for number, frame in enumerate(shown)])
    return _write_sheet(
        path, f"{len(rows)} of {counted(len(stats.files), 'file')}, {stats.frames:,} frames", stats, rows
    )


def write_mean_sheet(path: str | os.PathLike[str], stats: FolderStats) -> Path:
    """Write a PNG with the mean image of all frames, and then of each file; it appears whole or not.

    What stays visible is in the same place in most frames: a HUD, a held item, the horizon.
    """
    means = [(file.name, file.mean_image) for file in stats.files if file.mean_image is not None]
    title = f"mean of the frames of {len(means)} of {counted(len(stats.files), 'file')}"
    if len(stats.files) > 1:
        means.insert(0, ("all files", stats.mean_image))
    tiles = [(name, image.round().astype(np.uint8)) for name, image in means]
    rows = [tiles[start : start + _MEAN_COLUMNS] for start in range(0, len(tiles), _MEAN_COLUMNS)]
    return _write_sheet(path, title, stats, rows)


def _evenly(items: Sequence[T], most: int) -> list[T]:
    """At most so many, evenly chosen, the first and the last among them."""
    chosen = np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int))
    return [items[i] for i in chosen]


def _write_sheet(
    path: str | os.PathLike[str], title: str, stats: FolderStats, rows: list[list[tuple[str, Frames]]]
) -> Path:
    """Write a white picture of a title and rows of tiles, each below its caption."""
    if not rows:
        raise InputError(f"{stats.folder} has no file of frames to show; replace those that frame_stats refused")
    tiles = [[(caption, _tile(frame)) for caption, frame in row] for row in rows]
    tile = tiles[0][0][1]
    step_x, step_y = tile.width + _GAP, _LINE + tile.height + _GAP
    width = max(step_x * max(map(len, rows)), 600)
    sheet = Image.new("RGB", (width + 2 * _MARGIN, 2 * _MARGIN + _LINE + len(rows) * step_y), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)

    def write(left: int, top: int, text: str, most: int) -> None:
        # The font that comes with Pillow has the letters of ASCII only, and a file may have any name.
        shown = _cut(text, most // _LETTER).replace("…", "...").encode("ascii", "replace").decode()
        draw.text((left, top), shown, "black", font)

    write(_MARGIN, _MARGIN, f"{stats.folder}: {title}", width)
    for y, row in enumerate(tiles):
        for x, (caption, image) in enumerate(row):
            left, top = _MARGIN + x * step_x, _MARGIN + _LINE + y * step_y
            is_heading = len(row) == 1 or not row[1][0]  # of the whole row
            write(left, top, caption, width if is_heading else tile.width)
            sheet.paste(image, (left, top + _LINE))
    save_picture(Path(path), np.asarray(sheet))
    return Path(path)


def _tile(frame: Frames) -> Image.Image:
    """A frame as RGB, enlarged or made smaller until its longer side is that of a tile."""
    image = Image.fromarray(grid([frame[None]], scale=1))
    method = Image.Resampling.NEAREST if max(image.size) <= _TILE else Image.Resampling.BOX
    return ImageOps.contain(image, (_TILE, _TILE), method)
