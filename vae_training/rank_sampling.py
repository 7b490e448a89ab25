"""A part of the rows of a random sample, for one of several processes that share it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_training.frame_reader import gather
from vae_training.sampling import _drawn_rows, plan_shares


def draw_places(
    datasets: Sequence[NDArray[np.uint8]],
    sample_size: int,
    dataset_weights: Sequence[float] | None,
    places: NDArray[np.int64],
    *,
    seed: np.random.Generator,
    replace_small: bool = False,
    block_frames: int = 1,
    out: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """Rows `places` of what `get_random_samples` gives; only these are read.

    The generator is used as there, so that ``draw_places(..., places)`` equals ``get_random_samples(...)[places]``.

    Args:
        datasets: As for `get_random_samples`, as all others down to `block_frames`.
        sample_size: Number of frames of the whole sample.
        dataset_weights: One per dataset, relative.
        places: Rows of the sample to read; one may come twice.
        seed: A generator.
        replace_small: Whether a dataset smaller than its share may give a frame more than once.
        block_frames: Neighbouring frames that are drawn together.
        out: Where to put them: uint8 (len(places), H, W, C).

    Example:
        >>> data = [np.arange(40, dtype=np.uint8).reshape(10, 1, 1, 4)]
        >>> out = np.empty((2, 1, 1, 4), np.uint8)
        >>> part = draw_places(data, 6, None, np.array([5, 0]), seed=np.random.default_rng(0), out=out)
        >>> from vae_training.sampling import get_random_samples
        >>> whole = get_random_samples(data, 6, normalize=False, seed=np.random.default_rng(0))
        >>> bool((part == whole[[5, 0]]).all())
        True
    """
    counts = plan_shares(datasets, sample_size, dataset_weights, replace_small=replace_small)
    shuffled = seed.permutation(sample_size)
    order = np.argsort(places, kind="stable")
    in_order = places[order]
    wanted: list[tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any]]] = []
    for dataset, count, end in zip(datasets, counts, np.cumsum(counts).tolist(), strict=True):
        if not count:
            continue
        rows, targets = _drawn_rows(seed, len(dataset), count, block_frames), shuffled[end - count : end]
        # Where each of this dataset's frames is wanted: a range of `in_order`, empty, of one or of more.
        first = np.searchsorted(in_order, targets, side="left")
        times = np.searchsorted(in_order, targets, side="right") - first
        offsets = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        wanted.append((dataset, np.repeat(rows, times), order[np.repeat(first, times) + offsets]))
    gather([entry for entry in wanted if len(entry[1])], out)
    return out
