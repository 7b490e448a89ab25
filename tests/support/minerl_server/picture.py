"""First-person pictures of the little world, drawn with slices of numpy arrays.

A frame is a window on a panorama (sky and ground in blocks, as Minecraft's are) that is drawn once a world, with
upright rectangles for the trunks on top. That costs some tens of microseconds at 64 x 64 pixels, little enough that a
benchmark measures the client. Pictures have their bottom row first, as the game sends them.
"""

import math
import random
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

FIELD_OF_VIEW = 70.0  # degrees from the lowest row to the highest, Minecraft's default
EYES = 1.62  # metres above the ground
TRUNK_WIDTH = 1.0
TRUNK_HEIGHT = 5.0
CROWN = 2.6  # width and height of the leaves
#: Rows and columns of the panorama's blocks in one frame.
BLOCKS = 64
#: Frames beside each other in the panorama before it repeats, and above each other.
WIDE, HIGH = 3, 3


class Painter:
    """Draws what one world looks like; each world has its own hour and tint."""

    def __init__(self, width: int, height: int, rng: random.Random) -> None:
        self.width, self.height = width, height
        self.focal = height / 2 / math.tan(math.radians(FIELD_OF_VIEW / 2))
        light = rng.uniform(0.72, 1.0)
        self._background = _panorama(width, light, np.random.default_rng(rng.getrandbits(32)))
        self._rows = np.arange(height * HIGH) * BLOCKS // height  # the panorama's, of each row that a frame can show
        self._frame = np.empty((height, width * 3), np.uint8)
        # One row of each color: copying rows is several times faster than broadcasting a color to every pixel.
        self._bark, self._leaves = (
            np.tile(np.array([int(c * light) for c in color], np.uint8), width)
            for color in ((104, 82, 50), (38, 92, 30))
        )

    def draw(self, yaw: float, pitch: float, trunks: Iterable[tuple[float, float]]) -> bytes:
        """The picture as bytes, bottom row first.

        Args:
            yaw: Where the player looks, degrees, more is further right.
            pitch: Degrees, more is further down.
            trunks: (bearing relative to the view in degrees, distance in metres) of each tree.
        """
        width, height, focal = self.width, self.height, self.focal
        tilt = math.tan(math.radians(max(-80.0, min(80.0, pitch))))
        horizon = height / 2 + focal * tilt  # counted from the bottom: looking down lifts it
        turn = width * WIDE * (yaw % 360.0) / 360.0 * round(360.0 / FIELD_OF_VIEW / WIDE)
        left = int(turn) % (width * WIDE)
        top = int(min(max(height * HIGH / 2 - horizon, 0), height * (HIGH - 1)))
        view = self._background[:, left * 3 : (left + width) * 3]
        np.take(view, self._rows[top : top + height], axis=0, out=self._frame, mode="clip")
        for distance, bearing in sorted(((distance, bearing) for bearing, distance in trunks), reverse=True):
            depth = distance * math.cos(math.radians(bearing))
            if abs(bearing) >= 80.0 or depth < 0.1:
                continue
            scale = focal / depth
            middle = width / 2 + focal * math.tan(math.radians(bearing))
            ground = horizon - scale * EYES
            half, crown, up = scale * TRUNK_WIDTH / 2, scale * CROWN, ground + scale * TRUNK_HEIGHT
            self._box(middle - crown / 2, middle + crown / 2, up - crown * 0.4, up + crown * 0.6, self._leaves)
            self._box(middle - half, middle + half, ground, up - crown * 0.1, self._bark)
        return self._frame.tobytes()

    def _box(self, left: float, right: float, low: float, high: float, color: NDArray[np.uint8]) -> None:
        """Fill a rectangle, of one pixel at least, as far as it is in the picture; ``color`` is a full row of it."""
        first, last, bottom, top = round(left), round(right), round(low), round(high)
        first, last = max(0, first), min(self.width, max(last, first + 1))
        bottom, top = max(0, bottom), min(self.height, max(top, bottom + 1))
        if first < last and bottom < top:
            self._frame[bottom:top, first * 3 : last * 3] = color[: (last - first) * 3]


def _panorama(width: int, light: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Sky and ground all around in rows of blocks, bottom row first; (HIGH * BLOCKS, (WIDE + 1) * width * 3)."""
    rows, columns = BLOCKS * HIGH, BLOCKS * WIDE
    up = np.linspace(-1, 1, rows)[:, None, None]  # -1 straight down, 0 the horizon
    grass, sky = rng.normal((88, 128, 56), 8), rng.normal((140, 178, 240), 6)
    scene = np.where(up < 0, grass * (0.85 - 0.3 * up), sky * (0.98 - 0.35 * up)).repeat(columns, axis=1)
    scene += rng.uniform(-11, 11, (rows, columns, 1)) * (up < 0)
    blocks = np.clip(scene * light, 0, 255).astype(np.uint8)
    return blocks[:, np.arange(width * (WIDE + 1)) * columns // (width * WIDE) % columns].reshape(rows, -1)
