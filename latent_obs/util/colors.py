"""The colors of all pages, plots and videos: each stands for one meaning, and is readable on white and on black."""

import itertools
from collections.abc import Iterable

#: Color by meaning. Nothing else gives a color to a line, a bar or a mark.
COLORS = {
    "latent": "#3574f0",  # this encoder, its latents, and agents that act on them
    "pixels": "#ea580c",  # networks and agents that get the frames themselves
    "PCA": "#1a8f47",
    "random encoder": "#6b7280",
    "neutral": "#808894",  # axes, texts, the random policy and other lines to compare with
    "above": "#0891b2",  # values above zero: of a latent, of a correlation
    "below": "#db2777",  # values below zero
    "good": "#0f766e",
    "doubtful": "#a16207",
    "bad": "#be123c",
}
#: Other names of the same meanings: names of arms, of representations that are probed and of ways to reconstruct.
_SAME = {
    "encoder": "latent",
    "pixels (CNN)": "pixels",
    "pca": "PCA",
    "pca-latent": "PCA",
    "random-latent": "random encoder",
    "mean image": "neutral",
}
_MORE = ("#7c3aed", "#92400e", "#65a30d", "#c026d3")


def colors_of(names: Iterable[str]) -> dict[str, str]:
    """The color of each name; names that the table lacks, such as those of a study's own arms, get colors in turn.

    Example:
        >>> colors_of(["pixels", "my arm", "pca-latent"])
        {'pixels': '#ea580c', 'my arm': '#7c3aed', 'pca-latent': '#1a8f47'}
    """
    more = itertools.cycle(_MORE)
    return {name: COLORS.get(_SAME.get(name, name)) or next(more) for name in dict.fromkeys(names)}
