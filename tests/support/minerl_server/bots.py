"""A bot for the easy world that goes by the picture, as an agent has to; what it earns is what an agent can learn
to."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .picture import FIELD_OF_VIEW

TURN = 15.0  # degrees; the easy world's aim forgives the rounding


def trunk_columns(pov: NDArray[np.uint8]) -> NDArray[np.intp]:
    """The columns of a picture in which a trunk stands: those that are brown across the middle."""
    height = pov.shape[0]
    band = pov[height // 3 : height // 2 + 2].astype(int)
    brown = (band[..., 0] > band[..., 1] + 8) & (band[..., 1] > band[..., 2] + 8)
    return np.flatnonzero(brown.mean(0) > 0.8)


def turn_to_trunk(pov: NDArray[np.uint8]) -> float:
    """How far to turn for the trunk to be nearer the middle: -15, 0 or 15 degrees; 15 where none is to be seen."""
    columns = trunk_columns(pov)
    if not len(columns):
        return TURN
    height, width = pov.shape[:2]
    focal = height / 2 / math.tan(math.radians(FIELD_OF_VIEW / 2))
    degrees = math.degrees(math.atan((columns.mean() - (width - 1) / 2) / focal))
    return max(-TURN, min(TURN, TURN * round(degrees / TURN)))
