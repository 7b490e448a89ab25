"""Principal components of a sample of frames, largest first."""

import torch
from torch import Tensor

#: Components in whose direction frames spread less than by one step of one pixel are rounding, not pictures. Anything divided
#: by their spread would explode on a frame that does differ there.
LEAST_SPREAD = 1 / 255


@torch.no_grad()
def principal_components(flat: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Centre, spreads and directions of the largest principal components.

    A sketch of some more columns and a few power iterations is exact enough (Halko et al. 2011, "Finding structure with
    randomness", section 4.4). The sketch is always the same, and the random state of training is left alone.

    Args:
        flat: float32 (N, D), N ≥ 1 frames in [0, 1], flattened.
        count: Components wanted.

    Returns:
        The mean (D,), standard deviations along the components (k,), falling, and the components (D, k), orthonormal. k is
        below `count` where the frames have no more than k: see `LEAST_SPREAD`.

    Example:
        >>> flat = torch.tensor([[0.0, 0.5], [0.6, 0.5], [0.0, 0.5], [0.6, 0.5]])
        >>> centre, spread, components = principal_components(flat, 2)
        >>> [round(value, 3) for value in centre.tolist()], round(float(spread), 3), tuple(components.shape)
        ([0.3, 0.5], 0.3, (2, 1))
    """
    centre = flat.mean(0)
    with torch.random.fork_rng(devices=[flat.device] if flat.is_cuda else []):
        torch.manual_seed(0)
        _, sizes, components = torch.svd_lowrank(flat - centre, q=min(count + 8, *flat.shape), niter=4)
    spread = sizes[:count] / len(flat) ** 0.5
    kept = int((spread > LEAST_SPREAD).sum())
    return centre, spread[:kept], components[:, :kept]
