"""Which frames a random sample takes, and where they go: of all of it, or of the part of one of several processes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vae_training.frame_reader import gather
from vae_training.sampling import drawn_rows, plan_shares


def draw_places(
    datasets: Sequence[NDArray[np.uint8]],
    sample_size: int,
    dataset_weights: Sequence[float] | None,
    places: NDArray[np.int64],
    *,
    seed: np.random.Generator,
    replace_small: bool = False,
    out: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """Rows `places` of what `get_random_samples` gives; only these are read.

    The generator is used as there, so that ``draw_places(..., places)`` equals ``get_random_samples(...)[places]``.

    Args:
        datasets: As for `get_random_samples`, as all others down to `replace_small`.
        sample_size: Number of frames of the whole sample.
        dataset_weights: One per dataset, relative.
        places: Rows of the sample to read; one may come twice.
        seed: A generator.
        replace_small: Whether a dataset smaller than its share may give a frame more than once.
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
    plan = plan_draw(datasets, sample_size, dataset_weights, seed=seed, replace_small=replace_small, places=places)
    gather([(datasets[index], rows, targets) for index, rows, targets in plan], out)
    return out


def plan_draw(
    datasets: Sequence[NDArray[np.uint8]],
    sample_size: int,
    dataset_weights: Sequence[float] | None,
    *,
    seed: np.random.Generator,
    replace_small: bool = False,
    places: NDArray[np.int64] | None = None,
) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """The draw of `get_random_samples`, without reading anything: what goes where.

    Args:
        datasets: As for `get_random_samples`, as all others down to `replace_small`.
        sample_size: Number of frames of the whole sample.
        dataset_weights: One per dataset, relative.
        seed: A generator.
        replace_small: Whether a dataset smaller than its share may give a frame more than once.
        places: Rows of the sample that are wanted; one may come twice. All by default.

    Returns:
        (number of the dataset, sorted rows in it, where each goes in the result) for each dataset that gives any.

    Example:
        >>> plan_draw([np.zeros((3, 1, 1, 1), np.uint8)], 2, None, seed=np.random.default_rng(0))
        [(0, array([1, 2]), array([0, 1]))]
    """
    counts = plan_shares(datasets, sample_size, dataset_weights, replace_small=replace_small)
    shuffled = seed.permutation(sample_size)
    order = None if places is None else np.argsort(places, kind="stable")
    in_order = None if places is None or order is None else places[order]
    plan: list[tuple[int, NDArray[np.int64], NDArray[np.int64]]] = []
    for index, (dataset, count, end) in enumerate(zip(datasets, counts, np.cumsum(counts).tolist(), strict=True)):
        if not count:
            continue
        rows, targets = drawn_rows(seed, len(dataset), count), shuffled[end - count : end]
        if order is not None and in_order is not None:
            # Where each of this dataset's frames is wanted: a range of `in_order`, empty, of one or of more.
            first = np.searchsorted(in_order, targets, side="left")
            times = np.searchsorted(in_order, targets, side="right") - first
            offsets = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
            rows, targets = np.repeat(rows, times), order[np.repeat(first, times) + offsets]
        if len(rows):
            plan.append((index, rows, targets))
    return plan
