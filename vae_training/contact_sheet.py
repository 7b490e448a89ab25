"""What `frame_stats` found, to look at: a table, warnings in words, a contact sheet of frames, a sheet of mean images."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from latent_obs.errors import InputError
from vae_training.datasets import _open
from vae_training.frame_filters import BLACK
from vae_training.frame_stats import HEAD_FRAMES, STRETCH_FRAMES, FileStats, FolderStats
from vae_training.pictures import Picture, grid, save_picture

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
        >>> from vae_training.frame_stats import frame_stats
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
        "  ".join([_cut(row[0], widths[0]).ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in table
    ]
    if len(stats.files) > _TABLE_FILES:
        lines.insert(1 + _TABLE_FILES, f"… and {len(stats.files) - _TABLE_FILES:,} more (--json lists them all)")
    return lines


def _numbers(
    frames: int, size: int, mean: Sequence[float], std: Sequence[float], shares: Sequence[float]
) -> list[str]:  # fmt: skip
    means = " ".join(f"{v:3.0f}" for v in mean) if len(mean) == 3 else f"{np.mean(mean):.0f}"
    return [f"{frames:,}", f"{size / 1e6:,.1f}", means, f"{np.mean(std):.0f}", *map(_percent, shares)]


def _still(frames: int, estimated: bool) -> str:
    return f"{'≥' if estimated and frames > 1 else ''}{frames:,}"


def _percent(share: float) -> str:
    """A share that is neither none nor all does not look like it."""
    return "<1%" if 0 < share < 0.005 else ">99%" if 0.995 <= share < 1 else f"{share:.0%}"


def _wrapped(text: str, width: int) -> str:
    return fill(text, width, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


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
) -> Path:  # fmt: skip
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
        name = f"{_cut(file.name, letters)}   {_count(file.frames, 'frame')}, {_percent(file.near_share)} near-duplicates"
        sheet.text(0, top, name + (f", {_percent(file.black / file.measured)} black" if file.black else ""), _INK)
        frames = _open(stats.folder / file.name)
        numbers = np.unique(np.linspace(0, len(frames) - 1, columns).round().astype(int))
        for column, number in enumerate(numbers):
            left = column * (width + _GAP)
            sheet.paste(left, top + 20, _tile(np.asarray(frames[number]), scale, height, width))
            sheet.text(left, top + 20 + height + 1, str(number), _GREY, size=11)
    return sheet.save(Path(path))


def write_mean_sheet(path: str | os.PathLike[str], stats: FolderStats, *, max_files: int = 39, columns: int = 8) -> Path:
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
        sheet.text(left, top + height + 1, name, _INK if i == 0 and len(stats.files) > 1 else _GREY, size=11, room=width)
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
    ) -> None:  # fmt: skip
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
