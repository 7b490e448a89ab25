"""Measure a folder of frames: sizes, brightness, near-duplicates, black frames, stills; as numbers, table and pictures.

Every frame is read once, in chunks. All sums are of integers, so that nothing depends on where a chunk ends.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from textwrap import TextWrapper, fill
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from latent_obs.util.errors import InputError, check_count
from vae_training.data.filters import BLACK
from vae_training.data.frames import Frames, frame_files, open_frames
from vae_training.training.logs import grid, save_picture

#: Mean absolute difference, 0 to 255, up to which two neighboring frames count as near-duplicates.
NEAR = 1.0
HEAD_FRAMES = 16  # compared between files, to find copies
STRETCH_FRAMES = 64  # of a sample that follow each other
_THREADS = 4  # numpy lets others run while it counts
_CHUNKS_AT_ONCE = 16  # more would only pile up results
_CHUNK_BYTES = 1 << 20  # about what stays in a processor's cache
_MOST_CHUNK_FRAMES = 1 << 16  # uint32 holds the sum of so many squares
_WIDTH, _TABLE_FILES = 100, 40  # characters and files of the table
_SHEET_FILES, _SHEET_FRAMES = 16, 10  # rows and columns of the contact sheet
_MEAN_FILES, _MEAN_COLUMNS = 39, 8  # of the sheet of mean images
_TILE, _GAP, _MARGIN, _LINE = 128, 4, 12, 20  # pixels on a sheet; a tile's is its longer side, about
_INK, _GRAY = (31, 41, 55), (107, 114, 128)
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
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel over all frames."""
        return self._weighted([file.mean for file in self.files])

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel over all frames and pixels."""
        squares = [np.square(file.std) + np.square(np.subtract(file.mean, self.mean)) for file in self.files]
        return tuple(np.sqrt(self._weighted(squares)).tolist())

    @property
    def shares(self) -> Shares:
        """Shares of all frames."""
        return Shares(*(self._weighted([file.shares for file in self.files]) or (0.0, 0.0, 0.0)))

    @property
    def still_frames(self) -> int:
        """Length of the longest run of any file in which each frame is near the one before."""
        return max((file.still_frames for file in self.files), default=0)

    def _weighted(self, values: Sequence[Any]) -> tuple[float, ...]:
        weights = np.array([file.frames for file in self.files]) / max(1, self.frames)
        return tuple((weights @ np.array(values)).tolist()) if values else ()

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


class _Opened(NamedTuple):
    """A file that training would take, closed again: a folder may hold more files than a process may open."""

    file: Path
    shape: tuple[int, ...]
    offset: int


def frame_stats(folder: str | os.PathLike[str], sample: int | None = None) -> FolderStats:
    """Measure a folder of frame files.

    Args:
        folder: The folder.
        sample: About how many frames to read, in stretches of `STRETCH_FRAMES` spread evenly over each file; at least
            `HEAD_FRAMES` of each. All of them when not given.

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
    opened, refused = _open_all(folder)
    total = sum(one.shape[0] for one in opened)
    parts = [_stretches(one.shape[0], total, sample) for one in opened]
    shape = opened[0].shape[1:] if opened else (0,)
    whole, files = np.zeros(shape), list[FileStats]()
    with_image = {one.file for one in _evenly(opened, _MEAN_FILES)}
    todo = int(np.prod(shape)) * sum(past - first for part in parts for first, past in part)
    bar = tqdm(total=todo, unit="B", unit_scale=True, desc=folder.name or str(folder), disable=None)
    with bar, ThreadPoolExecutor(_THREADS) as pool:
        for one, stretches in zip(opened, parts, strict=True):
            try:
                numbers, image = _measure(one, stretches, bar, pool)
                whole += image * one.shape[0]
                mean_image = image.astype(np.float32) if one.file in with_image else None
                files.append(FileStats(**numbers, mean_image=mean_image))
            except (InputError, OSError) as error:
                refused.append(RefusedFile(one.file.name, f"cannot be read: {error}. Copy it again, and measure again"))
    image = (whole / max(1, sum(file.frames for file in files))).astype(np.float32)
    return FolderStats(folder, tuple(files), tuple(sorted(refused)), image)


def _open_all(folder: Path) -> tuple[list[_Opened], list[RefusedFile]]:
    """The headers of all files, and what training would refuse; of several shapes, that of most files is kept."""
    opened: list[_Opened] = []
    refused: list[RefusedFile] = []
    for file in frame_files(folder):
        try:
            mapped = open_frames(file)
            opened.append(_Opened(file, mapped.shape, mapped.offset))
        except InputError as error:
            refused.append(RefusedFile(file.name, str(error).removeprefix(f"{file} ")))
    counts = Counter(one.shape[1:] for one in opened)
    usual = max(counts, key=counts.__getitem__, default=(0,))  # the first in name order, where several are as frequent
    for one in opened:
        if one.shape[1:] != usual:
            reason = (
                f"has frames of shape {one.shape[1:]}, expected {usual} as in {counts[usual]} of {len(opened)} files. "
                "Move it to another folder, or resize its frames"
            )
            refused.append(RefusedFile(one.file.name, reason))
    return [one for one in opened if one.shape[1:] == usual], refused


def _stretches(frames: int, total: int, sample: int | None) -> list[tuple[int, int]]:
    """What is read of a file: first and past-the-last frame of each stretch, all of one length."""
    share = frames if sample is None else max(round(sample * frames / total), HEAD_FRAMES)
    if share >= frames:
        return [(0, frames)]
    length = min(share, STRETCH_FRAMES)
    starts = np.linspace(0, frames - length, share // length).astype(int)
    return [(int(start), int(start) + length) for start in starts]


def _measure(
    one: _Opened, stretches: list[tuple[int, int]], bar: "tqdm[Any]", pool: ThreadPoolExecutor
) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """The numbers of a file, as the fields of `FileStats`, and its mean image."""
    frames, *shape = one.shape
    size, channels = int(np.prod(shape)), shape[-1]
    sums, squares = np.zeros(size, np.uint64), np.zeros(size, np.uint64)
    highest: list[Frames] = []  # value, of each frame
    apart: list[NDArray[np.uint64]] = []  # sum of differences from the frame before, of each frame
    step = max(1, min(_CHUNK_BYTES // size, _MOST_CHUNK_FRAMES))
    chunks = [
        (top, min(top + step, past), top == first) for first, past in stretches for top in range(first, past, step)
    ]
    for start in range(0, len(chunks), _CHUNKS_AT_ONCE):
        looks = pool.map(lambda chunk: _look(one, size, *chunk), chunks[start : start + _CHUNKS_AT_ONCE])
        for chunk_sums, chunk_squares, chunk_highest, chunk_apart in looks:
            sums += chunk_sums
            squares += chunk_squares
            highest.append(chunk_highest)
            apart.append(chunk_apart)
            bar.update(size * len(chunk_apart))
    brightest, differences = np.concatenate(highest), np.concatenate(apart)
    measured, length = len(differences), stretches[0][1] - stretches[0][0]
    moves = differences > NEAR * size
    edges = np.append(np.flatnonzero(moves), measured)  # each run of still frames begins with one that moved
    runs = np.diff(edges)
    part, within = divmod(int(edges[runs.argmax()]), length)
    count = measured * size // channels
    totals, totals_squares = (
        [int(value) for value in x.reshape(-1, channels).sum(axis=0, dtype=object)] for x in (sums, squares)
    )
    head = np.fromfile(one.file, np.uint8, min(frames, HEAD_FRAMES) * size, offset=one.offset)
    numbers = {
        "name": one.file.name,
        "frames": frames,
        "shape": tuple(shape),
        "dtype": "uint8",
        "bytes": frames * size,
        "measured": measured,
        "mean": tuple(s / count for s in totals),
        "std": tuple((q * count - s * s) ** 0.5 / count for s, q in zip(totals, totals_squares, strict=True)),
        "brightest": int(brightest.max()),
        "black": int((brightest <= BLACK).sum()),
        "pairs": measured - len(stretches),
        "same": int((differences == 0).sum()),
        "near": measured - int(moves.sum()),
        "still_frames": int(runs.max()),
        "still_first": stretches[part][0] + within,
        "head_sha256": hashlib.sha256(head.tobytes()).hexdigest(),
    }
    return numbers, (sums / measured).reshape(shape)


def _look(
    one: _Opened, size: int, first: int, past: int, begins: bool
) -> tuple[NDArray[np.uint32], NDArray[np.uint32], Frames, NDArray[np.uint64]]:
    """Read some frames; sums and squares over them, and of each the highest value and the difference from the last."""
    before = 0 if begins else 1  # the frame before is read as well
    wanted = (past - first + before) * size
    data = np.fromfile(one.file, np.uint8, wanted, offset=one.offset + (first - before) * size)
    if data.size < wanted:
        raise InputError("it became shorter while it was read")
    frames = data.reshape(-1, size)
    block = frames[before:]
    differences = np.maximum(frames[1:], frames[:-1])
    differences -= np.minimum(frames[1:], frames[:-1])
    apart = differences.sum(axis=1, dtype=np.uint64)
    if begins:  # nothing to compare with: more than any difference
        apart = np.concatenate([np.array([256 * size], np.uint64), apart])
    squares = np.multiply(block, block, dtype=np.uint16).sum(axis=0, dtype=np.uint32)
    return block.sum(axis=0, dtype=np.uint32), squares, block.max(axis=1), apart


def stats_table(stats: FolderStats) -> str:
    """Format the numbers as an aligned table of lines of 100 characters, with refused files and warnings below it."""
    lines = [f"{stats.folder}: no file that training would take"]
    if stats.files:
        shape = "x".join(map(str, stats.files[0].shape))
        lines = [f"{stats.folder}: {_count(len(stats.files), 'file')}, {stats.frames:,} frames of {shape} uint8"]
        if stats.estimated:
            measured = sum(file.measured for file in stats.files)
            lines.append(f"Estimates: {measured:,} of the frames were measured, in stretches that follow each other.")
        explained = (
            f"same: equal to the frame before; near: equal, or different from it by at most {NEAR:g} of 255 on "
            f"average; black: no value above {BLACK}; still: frames of the longest run that stays near the frame "
            "before."
        )
        lines += ["", *_table(stats), "", fill(explained, _WIDTH)]
    refused = [" ".join(one) for one in stats.refused]
    sections = {f"Training would refuse {_count(len(refused), 'file')}:": refused, "Look at:": find_warnings(stats)}
    wrapper = TextWrapper(_WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    for heading, texts in sections.items():
        if texts:
            lines += ["", heading, *(wrapper.fill(f"- {text}") for text in texts)]
    return "\n".join(lines)


def _table(stats: FolderStats) -> list[str]:
    def row(name: str, of: FileStats | FolderStats) -> list[str]:
        mean = " ".join(f"{v:3.0f}" for v in of.mean) if len(of.mean) == 3 else f"{np.mean(of.mean):.0f}"
        numbers = [f"{of.frames:,}", f"{of.bytes / 1e6:,.1f}", mean, f"{np.mean(of.std):.0f}"]
        still = f"{'≥' if of.estimated and of.still_frames > 1 else ''}{of.still_frames:,}"
        return [name, *numbers, *map(_percent, of.shares), still]

    mean = "mean R G B" if len(stats.files[0].mean) == 3 else "mean"
    table = [["file", "frames", "MB", mean, "std", "same", "near", "black", "still"]]
    table += [row(file.name, file) for file in stats.files[:_TABLE_FILES]]
    if len(stats.files) > 1:
        table.append(row("all", stats))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    widths[0] = min(widths[0], _WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1))
    lines = []
    for name, *numbers in table:
        right = [number.rjust(wide) for number, wide in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([_cut(name, widths[0]).ljust(widths[0]), *right]))
    if len(stats.files) > _TABLE_FILES:
        lines.insert(1 + _TABLE_FILES, f"… and {len(stats.files) - _TABLE_FILES:,} more (--json lists them all)")
    return lines


def _percent(share: float) -> str:
    """A share; one that is neither none nor all does not look like it."""
    return "<1%" if 0 < share < 0.005 else ">99%" if 0.995 <= share < 1 else f"{share:.0%}"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _cut(text: str, length: int) -> str:
    """A name without its middle: recordings often differ at the end."""
    if len(text) <= length:
        return text
    tail = max(1, (length - 1) * 2 // 3)
    return text[: max(0, length - 1 - tail)] + "…" + text[-tail:]


def find_warnings(stats: FolderStats) -> list[str]:
    """Describe what looks wrong about frames: a sentence or two per kind of fault, however many files have it."""
    files, found = stats.files, list[str]()
    floats = [f for f in files if f.brightest == 1]
    if floats:
        found.append(
            f"{_names(floats, files)}: no value above 1. Were floats of 0 to 1 made uint8 without multiplying by 255? "
            "Such frames are black to a model; make them again with (frames * 255).round().astype(numpy.uint8)"
        )
    black = [f for f in files if f.black >= 0.01 * f.measured and f.brightest != 1]
    if black:
        found.append(
            f"{_names(black, files)}: {_range([f.shares.black for f in black])} of the frames are black (no value "
            f"above {BLACK}), as loading screens are. The model learns to draw them as well. Leave them out"
        )
    seen = [f for f in files if f.black < f.measured]  # the others are named above
    stills = [f for f in seen if f.shares.near > 0.5]
    if stills:
        found.append(
            f"{_names(stills, files)}: {_range([f.shares.near for f in stills])} of the frames are near-duplicates of "
            "those before, which teach little. Record with --frame-skip 4, or leave every second one out"
        )
    paused = [f for f in seen if f.shares.near <= 0.5 and f.still_frames >= max(STRETCH_FRAMES, 0.25 * f.measured)]
    for f in paused[:3]:
        where = f"for {f.still_frames:,} frames, from frame {f.still_first:,}"
        found.append(f"{_cut(f.name, 40)}: nothing moves {where}. A menu, or a pause?")
    means = {f.name: float(np.mean(f.mean)) for f in files}
    usual = (max if len(files) == 2 else median)(means.values()) if files else 0.0
    darker = [f for f in seen if means[f.name] < min(0.5 * usual, usual - 15)]
    if darker:
        found.append(
            f"{_names(darker, files)}: far darker than the others (mean {min(means[f.name] for f in darker):.0f}, "
            f"usual {usual:.0f}). Is it night, or a fault?"
        )
    by_head: defaultdict[str, list[FileStats]] = defaultdict(list)
    for f in files:
        by_head[f.head_sha256].append(f)
    for group in by_head.values():
        if len(group) == 1 or group[0].brightest <= BLACK:
            continue
        same = len({(f.frames, f.mean, f.std) for f in group}) == 1
        begin = f"begin with the same {min(HEAD_FRAMES, group[0].frames)} frames"
        found.append(
            f"{_names(group, files)}: {'copies of each other, by all that was measured' if same else begin}. Parts of "
            "one recording in several files make held-out losses look better than they are: keep one of them"
        )
    return found


def _names(some: Sequence[FileStats], files: Sequence[FileStats]) -> str:
    shown = ", ".join(_cut(f.name, 40) for f in some[:3])
    return shown + (f" and {len(some) - 3} more (of {len(files)} files)" if len(some) > 3 else "")


def _range(shares: Sequence[float]) -> str:
    """Shares in words: 7%, or 7% to 30%."""
    low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
    return low if low == high else f"{low} to {high}"


def write_contact_sheet(path: str | os.PathLike[str], stats: FolderStats) -> Path:
    """Write a PNG with a row of frames per file, evenly spaced from its first to its last; it appears whole or not.

    Raises:
        InputError: There is no file to show, or one cannot be read any more.
    """
    files = _evenly(stats.files, _SHEET_FILES)
    rows: list[_Row] = []
    for file in files:
        about = f"{_count(file.frames, 'frame')}, {_percent(file.shares.near)} near-duplicates"
        about += f", {_percent(file.shares.black)} black" if file.black else ""
        frames = open_frames(stats.folder / file.name)
        numbers = _evenly(range(len(frames)), _SHEET_FRAMES)
        rows.append((f"{_cut(file.name, 40)}   {about}", [(np.asarray(frames[n]), str(n)) for n in numbers]))
    shown = f"{len(files)} of " * (len(files) < len(stats.files)) + _count(len(stats.files), "file")
    return _write_sheet(Path(path), f"{stats.folder}: frames of {shown}, {stats.frames:,} in all", rows)


def write_mean_sheet(path: str | os.PathLike[str], stats: FolderStats) -> Path:
    """Write a PNG with the mean image of all frames, and then of each file; it appears whole or not.

    What stays visible is in the same place in most frames: a HUD, a held item, the horizon.

    Raises:
        InputError: There is no file to show.
    """
    means = [(file.mean_image, file.name) for file in stats.files if file.mean_image is not None]
    shown = f"{len(means)} of " * (len(means) < len(stats.files)) + _count(len(stats.files), "file")
    if len(stats.files) > 1:
        means.insert(0, (stats.mean_image, "all files"))
    tiles = [(image.round().astype(np.uint8), name) for image, name in means]
    rows: list[_Row] = [("", tiles[i : i + _MEAN_COLUMNS]) for i in range(0, len(tiles), _MEAN_COLUMNS)]
    return _write_sheet(Path(path), f"{stats.folder}: mean of the frames of {shown}", rows)


def _evenly(items: Sequence[T], most: int) -> list[T]:
    """At most so many, evenly chosen, the first and the last among them."""
    chosen = np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int))
    return [items[i] for i in chosen]


_Row = tuple[str, list[tuple[Frames, str]]]  # a heading, which may be empty, and frames with their captions


def _write_sheet(path: Path, title: str, rows: Sequence[_Row]) -> Path:
    """Write a white picture of a title and rows of tiles."""
    if not rows:
        raise InputError(f"{title}: there is no file of frames to show; replace those that frame_stats refused")
    heading = _LINE if any(text for text, _ in rows) else 0
    tiles = [[(_tile(frame), caption) for frame, caption in row] for _, row in rows]
    tile = tiles[0][0][0]
    step, row_height = tile.width + _GAP, heading + tile.height + _LINE + _GAP
    width = max(step * max(map(len, tiles)), 560)
    sheet = Image.new("RGB", (width + 2 * _MARGIN, 2 * _MARGIN + _LINE + row_height * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)

    def write(left: int, top: int, text: str, most: int, ink: tuple[int, int, int], size: int) -> None:
        font, length = ImageFont.load_default(size), len(text)
        while True:
            # The font that comes with Pillow has the letters of ASCII only, and a file may have any name.
            shown = _cut(text, length).replace("…", "...").encode("ascii", "replace").decode()
            if length <= 4 or draw.textlength(shown, font) <= most:
                break
            length -= 1
        draw.text((left, top), shown, ink, font)

    write(_MARGIN, _MARGIN, title, width, _INK, 14)
    for number, ((text, _), row) in enumerate(zip(rows, tiles, strict=True)):
        top = _MARGIN + _LINE + number * row_height
        write(_MARGIN, top, text, width, _INK, 12)
        for column, (image, caption) in enumerate(row):
            left = _MARGIN + column * step
            sheet.paste(image, (left, top + heading))
            write(left, top + heading + tile.height, caption, tile.width, _GRAY, 11)
    save_picture(path, np.asarray(sheet))
    return path


def _tile(frame: Frames) -> Image.Image:
    """A frame as RGB; small ones are enlarged by a whole factor, large ones made smaller."""
    image = Image.fromarray(grid([frame[None]], scale=1))
    longer = max(image.size)
    scale = _TILE // longer if longer <= _TILE else _TILE / longer
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX)
