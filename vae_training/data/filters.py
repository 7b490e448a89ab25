"""Which frames of a recording are kept: every so many-th, none that are black, none that repeat the last kept one.

A recording comes in chunks; what a filter has to remember is carried from one to the next, so that the result is the
same however the recording is cut.
"""

import numpy as np
from numpy.typing import NDArray

from latent_obs.util.errors import InputError, check_count
from vae_training.data.frames import Frames

#: A frame without a value above it is black: decoded videos have noise of this size there, and the darkest cave of
#: Minecraft has a hand or a hotbar that is far brighter.
BLACK = 15
_CELLS = 32  # rows and columns, at most, of the small version by which duplicates are found


class FrameFilters:
    """Choose the frames to keep, chunk by chunk: `take` before they are resized, `keep` after.

    Attributes:
        kept: Number of frames kept so far.

    Args:
        stride: Take every so many-th frame, the first one first.
        drop_black: Drop frames whose brightest grey level is not above `BLACK`.
        drop_duplicates: Drop frames that differ from the last kept one by less than so many levels of 255, on average
            over a grey version of at most 32x32; None keeps them.
        limit: Keep no more frames than this; None keeps all.

    Raises:
        InputError: An argument is out of range.

    Example:
        >>> filters = FrameFilters(stride=2, drop_black=True)
        >>> chunk = np.full((5, 8, 8, 3), 100, np.uint8)
        >>> chunk[2] = 0
        >>> positions = filters.take(len(chunk))
        >>> positions[filters.keep(chunk[positions])]
        array([0, 4])
    """

    def __init__(
        self, stride: int = 1, drop_black: bool = False, drop_duplicates: float | None = None, limit: int | None = None
    ) -> None:
        check_count("stride", stride)
        if limit is not None:
            check_count("limit", limit)
        if drop_duplicates is not None and not drop_duplicates > 0:
            raise InputError(f"drop_duplicates must be a positive number of levels or None, got {drop_duplicates!r}")
        self.stride, self.drop_black, self.drop_duplicates, self.limit = stride, drop_black, drop_duplicates, limit
        self.kept = 0
        self._skip = 0  # frames of the next chunk before the one that the stride takes
        self._last: NDArray[np.float32] | None = None

    @property
    def done(self) -> bool:
        """Whether the limit has been reached, so that nothing more will be kept."""
        return self.limit is not None and self.kept >= self.limit

    def take(self, count: int) -> NDArray[np.int64]:
        """Positions of the frames that the stride takes in the next chunk, which has `count` frames."""
        positions = np.arange(self._skip, count, self.stride)
        self._skip += len(positions) * self.stride - count
        return positions

    def keep(self, frames: Frames) -> NDArray[np.bool_]:
        """Mask, bool (n,), of the frames to keep among the next that were taken, uint8 (n, H, W, 3)."""
        mask = np.ones(len(frames), np.bool_)
        if len(frames) and (self.drop_black or self.drop_duplicates is not None):
            grey = grey_levels(frames)
            if self.drop_black:
                mask &= grey.max(axis=(1, 2)) > BLACK
            if self.drop_duplicates is not None:
                for i, small in zip(np.flatnonzero(mask), small_version(grey[mask]), strict=True):
                    mask[i] = self._last is None or np.abs(small - self._last).mean() >= self.drop_duplicates
                    if mask[i]:
                        self._last = small.copy()  # a view would keep the small versions of the whole chunk
        if self.limit is not None:
            mask &= np.cumsum(mask) <= self.limit - self.kept
        self.kept += int(mask.sum())
        return mask


def grey_levels(frames: Frames) -> NDArray[np.uint8]:
    """Compute the brightness of RGB frames (n, H, W, 3) by the weights of ITU-R BT.601: uint8 (n, H, W)."""
    red, green, blue = (frames[..., i].astype(np.uint16) for i in range(3))
    return ((red * 77 + green * 150 + blue * 29) >> 8).astype(np.uint8)  # 77 + 150 + 29 = 256


def small_version(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Average grey levels (n, H, W) over the cells of a grid of at most 32x32: float32 (n, rows, columns)."""
    rows, columns = (np.arange(min(_CELLS, side) + 1) * side // min(_CELLS, side) for side in grey.shape[1:])
    # Sums of integers: the same whatever the order, so that a frame's does not depend on its neighbors in the chunk.
    sums = np.add.reduceat(
        np.add.reduceat(grey, rows[:-1], axis=1, dtype=np.uint32), columns[:-1], axis=2, dtype=np.uint32
    )
    return sums.astype(np.float32) / np.outer(np.diff(rows), np.diff(columns)).astype(np.float32)
