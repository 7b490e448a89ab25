"""Infos of a Gymnasium vector environment, arrays with masks, as one dict for each environment."""

from copy import deepcopy
from typing import Any

import numpy as np


def infos_by_environment(infos: Any, count: int) -> list[dict[str, Any]]:
    """Give each environment the dict that it sent, out of what `gymnasium.vector.VectorEnv._add_info` made of them.

    Args:
        infos: Values by key, arrays (count, …) or dicts of such, with masks: ``infos["_key"][i]`` says whether environment i
            sent "key". A key without a mask is everybody's, as are those in the "episode" of `RecordEpisodeStatistics`. A list
            of dicts, from `DictInfoToList`, is copied.
        count: Number of environments.

    Returns:
        A dict for each, with Python's own bool, int and float where they had sent them, and memory of its own.

    Example:
        >>> infos_by_environment({"lives": np.array([3, 0]), "_lives": np.array([True, False])}, 2)
        [{'lives': 3}, {}]
    """
    if isinstance(infos, list | tuple):
        return [deepcopy(info) for info in infos]
    by_environment: list[dict[str, Any]] = [{} for _ in range(count)]
    # An environment's own key may begin with an underscore as well: it is a mask only beside what it is the mask of.
    masks = {f"_{key}" for key in infos}
    for key, values in infos.items():
        if key in masks:
            continue
        rows = infos_by_environment(values, count) if isinstance(values, dict) else values
        if isinstance(rows, np.ndarray) and rows.ndim == 1 and rows.dtype in (np.bool_, np.int_, np.float64):
            rows = rows.tolist()  # back to what Gymnasium made such arrays of, Python's bool, int and float
        length = len(rows) if isinstance(rows, list | tuple) else next(iter(getattr(rows, "shape", ())), None)
        for i in np.flatnonzero(infos.get(f"_{key}", np.ones(count, bool))):
            by_environment[i][key] = deepcopy(rows[i] if length == count else rows)
    return by_environment
