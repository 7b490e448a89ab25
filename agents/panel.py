"""One picture of an agent at play: the game, what the agent sees of it, its latent and its action."""

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from agents.decision import Decision

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

# In pixels, at a scale of 1.
_EDGE = 6
_TITLE = 18
_CAPTION = 15
_PICTURE = 240  # height of the game's picture, and of what stands beside it
_ACTIONS = 190
_LATENT = 80
_FOOTER = 17
_ROW, _TALLEST_ROW = 17, 26
_FONT = 11

_GROUND, _FRAME, _DIM, _TEXT = (18, 18, 22), (42, 42, 50), (150, 150, 160), (232, 232, 236)
_UP, _DOWN = (92, 164, 255), (255, 150, 64)  # a blue and an orange that colour-blind eyes tell apart
_CHOSEN = (255, 210, 80)


@dataclass(frozen=True)
class LatentPicture:
    """A latent, ready to be drawn.

    Attributes:
        values: float (latent_dim,), in units of what a full bar stands for: those beyond 1 are cut off.
        shape: (channels, height, width) of a spatial latent; None for a vector.
        caption: What is shown.
    """

    values: NDArray[np.floating]
    shape: tuple[int, int, int] | None
    caption: str


def compose(
    game: Picture,
    *,
    title: str,
    seen: Picture | None = None,
    seen_caption: str = "what the agent sees",
    latent: LatentPicture | None = None,
    decision: Decision | None = None,
    footer: str | None = None,
    scale: float = 1,
) -> Picture:
    """Put it all together; what is None leaves no hole.

    Args:
        game: uint8 (H, W, C), the game's own picture.
        title: A line above all.
        seen: uint8 (h, w, c): a reconstruction, or the resized frame.
        seen_caption: What that is.
        latent: What the agent acts on.
        decision: What it does.
        footer: A line below all.
        scale: 2 for a window twice as large, with text as fine as the screen.

    Returns:
        uint8 (height, width, 3), both even, as video needs.

    Example:
        >>> game, seen = np.zeros((120, 160, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)
        >>> compose(game, title="nothing yet").shape
        (286, 332, 3)
        >>> compose(game, title="", seen=seen, latent=LatentPicture(np.zeros(32), None, "latent")).shape
        (380, 578, 3)
    """
    shown = ((game, "the game"), (seen, seen_caption))
    pictures = [(_enlarged(image, scale), text) for image, text in shown if image is not None]
    edge, top = _px(_EDGE, scale), _px(_TITLE, scale) + _px(_EDGE, scale)
    body = top + _px(_CAPTION, scale)
    high = _px(_PICTURE, scale)
    width = edge + sum(image.width + edge for image, _ in pictures) + (_px(_ACTIONS, scale) + edge if decision else 0)
    below = body + high + (_px(_CAPTION + _LATENT, scale) if latent else 0) + edge
    height = below + (_px(_FOOTER, scale) if footer is not None else 0)
    sheet = Image.new("RGB", (width + width % 2, height + height % 2), _GROUND)
    draw = ImageDraw.Draw(sheet)
    font = _font(scale)
    draw.text((edge, _px(5, scale)), _fit(title, font, width - 2 * edge), _TEXT, font)
    left = edge
    for image, text in pictures:
        draw.text((left, top), _fit(text, font, image.width), _DIM, font)
        sheet.paste(image, (left, body))
        left += image.width + edge
    if decision:
        draw.text((left, top), _fit(decision.caption, font, _px(_ACTIONS, scale)), _DIM, font)
        _draw_decision(draw, decision, (left, body), (_px(_ACTIONS, scale), high), scale)
    if latent:
        draw.text((edge, body + high), _fit(latent.caption, font, width - 2 * edge), _DIM, font)
        drawn = draw_latent(latent, width - 2 * edge, _px(_LATENT, scale))
        sheet.paste(Image.fromarray(drawn), (edge, body + high + _px(_CAPTION, scale)))
    if footer is not None:
        draw.text((edge, below), _fit(footer, font, width - 2 * edge), _DIM, font)
    return np.asarray(sheet)


def draw_latent(latent: LatentPicture, width: int, height: int) -> Picture:
    """A latent as bars up (blue) and down (orange), or as the maps of its channels, in the same colours.

    Args:
        latent: What to draw.
        width: Of the picture.
        height: Of the picture.

    Returns:
        uint8 (height, width, 3).

    Example:
        >>> bars = draw_latent(LatentPicture(np.array([1.0, -0.5]), None, ""), 8, 9)
        >>> (bars[:, 1] == _UP).all(axis=-1).sum(), (bars[:, 5] == _DOWN).all(axis=-1).sum()
        (np.int64(4), np.int64(2))
    """
    values = np.clip(np.nan_to_num(np.asarray(latent.values, np.float64)), -1, 1)
    maps = None if latent.shape is None else _draw_maps(values.reshape(latent.shape), width, height)
    return maps if maps is not None else _draw_bars(values, width, height)


def _draw_bars(values: NDArray[np.float64], width: int, height: int) -> Picture:
    sheet = np.full((height, width, 3), _GROUND, np.uint8)
    rows = math.ceil(2 * len(values) / width)  # two pixels a bar at least, in as many rows as that takes
    per_row = math.ceil(len(values) / rows)
    for row in range(rows):
        part = values[row * per_row : (row + 1) * per_row]
        top, bottom = row * height // rows, (row + 1) * height // rows - (1 if rows > 1 else 0)
        half = max((bottom - top - 1) // 2, 0)
        zero = top + half
        edges = np.linspace(0, width, per_row + 1).round().astype(int)
        sheet[zero, : edges[len(part)]] = _FRAME
        for value, left, right in zip(part, edges, edges[1:], strict=False):
            right = max(left + 1, right - 1)  # a gap between bars, where there is room for one
            length = round(abs(value) * half)
            if value > 0:
                sheet[zero - length : zero, left:right] = _UP
            else:
                sheet[zero + 1 : zero + 1 + length, left:right] = _DOWN
    return sheet


def _draw_maps(values: NDArray[np.float64], width: int, height: int) -> Picture | None:
    """Each channel a small picture, as large as they fit in side by side; None where they do not."""
    channels, rows, columns = values.shape
    gap = max(2, height // 20)
    best = (0, 1)
    for lines in range(1, channels + 1):
        across = math.ceil(channels / lines)
        side = min((width - gap * (across - 1)) // (across * columns), (height - gap * (lines - 1)) // (lines * rows))
        best = max(best, (side, -lines))
    side, lines = best[0], -best[1]
    if side < 1:
        return None
    across = math.ceil(channels / lines)
    sheet = np.full((height, width, 3), _GROUND, np.uint8)
    strength = np.abs(values)[..., None]
    colours = np.where(values[..., None] > 0, np.array(_UP), np.array(_DOWN))
    cells = ((1 - strength) * np.array(_FRAME) + strength * colours).round().astype(np.uint8)
    for i, cell in enumerate(cells):
        top, left = (i // across) * (side * rows + gap), (i % across) * (side * columns + gap)
        sheet[top : top + side * rows, left : left + side * columns] = cell.repeat(side, 0).repeat(side, 1)
    return sheet


def _draw_decision(
    draw: ImageDraw.ImageDraw, decision: Decision, place: tuple[int, int], size: tuple[int, int], scale: float
) -> None:
    """A row for each action: its name, a bar under it, and a number; those that do not fit are counted."""
    (left, top), (width, height) = place, size
    row = min(max(height // len(decision.names), _px(_ROW, scale)), _px(_TALLEST_ROW, scale))
    font, fit = _font(scale), height // row
    if len(decision.names) > fit and decision.signed:  # many numbers: bars say enough
        _draw_thin(draw, decision, place, size)
        return
    shown = list(range(len(decision.names)))
    if len(shown) > fit:
        # The likeliest, and what is done, in their own order, which does not jump from step to step.
        first = sorted(shown, key=lambda i: (not decision.chosen[i], -decision.levels[i]))[: fit - 1]
        shown = sorted(first)
        draw.text((left, top + (fit - 1) * row), f"and {len(decision.names) - len(shown)} others", _DIM, font)
    for line, i in enumerate(shown):
        y, level = top + line * row, decision.levels[i]
        colour = _CHOSEN if decision.chosen[i] else _DIM
        number = decision.texts[i]
        room = width - round(font.getlength(number)) - _px(6, scale)
        draw.text((left, y), _fit(decision.names[i], font, room), colour, font)
        draw.text((left + width - font.getlength(number), y), number, colour, font)
        box_top, bottom = y + _px(14, scale), y + row - _px(2, scale)
        draw.rectangle((left, box_top, left + width - 1, bottom), _FRAME)
        if decision.signed:
            low, high = sorted((left + width // 2, left + width // 2 + round(level * (width // 2 - 1))))
            draw.rectangle((low, box_top, high, bottom), _UP if level > 0 else _DOWN)
        elif round(level * width):
            draw.rectangle((left, box_top, left + round(level * width) - 1, bottom), _CHOSEN if decision.chosen[i] else _UP)


def _draw_thin(draw: ImageDraw.ImageDraw, decision: Decision, place: tuple[int, int], size: tuple[int, int]) -> None:
    (left, top), (width, height) = place, size
    middle = left + width // 2
    draw.line((middle, top, middle, top + height - 1), _FRAME)
    edges = np.linspace(top, top + height, len(decision.levels) + 1).round().astype(int)
    for level, y, below in zip(decision.levels, edges.tolist(), edges[1:].tolist(), strict=False):
        low, high = sorted((middle, middle + round(level * (width // 2 - 1))))
        draw.rectangle((low, y, high, max(y, below - 2)), _UP if level > 0 else _DOWN)


def _enlarged(image: Picture, scale: float) -> Image.Image:
    """A picture at the height that all have; a stack of frames or a grey one as its last three channels, or in grey."""
    rgb = np.repeat(image[..., :1], 3, axis=-1) if image.shape[-1] < 3 else image[..., -3:]
    picture = Image.fromarray(np.ascontiguousarray(rgb))
    high = _px(_PICTURE, scale)
    size = (max(1, round(picture.width * high / picture.height)), high)
    return picture.resize(size, Image.Resampling.NEAREST if high >= picture.height else Image.Resampling.BOX)


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """A text cut to a width."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..." if text else ""


@functools.cache
def _font(scale: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT * scale)


def _px(length: float, scale: float) -> int:
    return max(1, round(length * scale))
