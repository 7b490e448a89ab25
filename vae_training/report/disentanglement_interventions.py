"""Disentanglement scores that need scenes made to order: the beta-VAE and the FactorVAE score.

Both ask: scenes are drawn of which one factor is the same, and all others differ; can that factor be told from how the
latents vary over them? A guess is right once in F times, for F factors, so that is the floor, and 1 the best.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latent_obs.errors import InputError, require
from vae_training.report.disentanglement_arrays import live_latents
from vae_training.report.factor_scenes import Factor

Floats = NDArray[np.float64]
Encode = Callable[[Any], ArrayLike]

_FRAMES_AT_ONCE = 2048
_TRAIN_SHARE = 2 / 3  # as in Locatello et al. 2019: 10,000 votes to fit, 5,000 to test
_FEWEST_VOTES = 30


class Sampler(Protocol):
    """What makes scenes to order; `FactorScenes` is one."""

    @property
    def factors(self) -> Sequence[Factor]:
        """The factors, in the order of the columns of `values`."""
        ...

    def sample_values(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw values of the factors, independent of each other: int64 (n, F)."""
        ...

    def render(self, values: NDArray[np.int64]) -> Any:
        """Make the scenes of some values: what an encoder takes, (n, ...)."""
        ...


def encode_in_parts(encode: Encode, scenes: Sampler, values: NDArray[np.int64]) -> Floats:
    """Latents of scenes, however many, in calls of 2,048.

    Args:
        encode: From frames (n, ...) to latents (n, D).
        scenes: What makes the frames.
        values: int64 (N, F).

    Returns:
        float64 (N, D).

    Raises:
        InputError: The encoder gives another shape, or latents that are not finite.
    """
    parts: list[Floats] = []
    for i in range(0, len(values), _FRAMES_AT_ONCE):
        chunk = values[i : i + _FRAMES_AT_ONCE]
        latents = np.asarray(encode(scenes.render(chunk)), np.float64)
        if latents.ndim != 2 or len(latents) != len(chunk) or not latents.shape[1]:
            raise InputError(
                f"encode must give latents of shape ({len(chunk)}, D) for {len(chunk)} frames, got {latents.shape}"
            )
        if not np.isfinite(latents).all():
            raise InputError("some latents are NaN or infinite; check the encoder, it may have diverged in training")
        parts.append(latents)
    return np.concatenate(parts)


def beta_vae_score(encode: Encode, scenes: Sampler, *, votes: int = 600, batch: int = 64, seed: int = 0) -> float:
    """Accuracy of a linear classifier that tells which factor the two scenes of each pair have in common.

    Higgins et al. 2017, "beta-VAE", section 3: of each vote, `batch` pairs are drawn; the classifier sees the mean absolute
    difference between the latents of a pair. It is scikit-learn's logistic regression on standardised differences (so that a
    latent's scale is of no matter), fitted on two thirds of the votes and tested on the others. Known weakness (Kim & Mnih
    2018): latents that are mixtures of the factors can have a high score too.

    Args:
        encode: From frames (n, ...) to latents (n, D).
        scenes: What makes the frames, such as `FactorScenes`; `2 * votes * batch` of them.
        votes: Number of votes, those to fit on and those to test on.
        batch: Pairs per vote.
        seed: Of the scenes.

    Returns:
        Accuracy, 0 to 1; chance is 1/F. Latents that never change give exactly that.

    Raises:
        InputError: Fewer than two factors vary, too few votes or pairs, or the encoder gives no latents.
        MissingExtraError: scikit-learn is not installed.

    Example:
        >>> from vae_training.report.factor_scenes import FactorScenes
        >>> scenes = FactorScenes(16, positions=4)
        >>> flat = lambda frames: frames.reshape(len(frames), -1)[:, ::64] / 255.0
        >>> 0 <= beta_vae_score(flat, scenes, votes=60, batch=4) <= 1
        True
    """
    varying = _check(scenes, votes, batch)
    linear = require("sklearn.linear_model", extra="report", purpose="measure disentanglement")
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(varying), votes)
    live, differences = np.zeros(0, bool), list[Floats]()
    for some in _in_parts(labels, 2 * batch):
        one, other = (scenes.sample_values(len(some) * batch, rng) for _ in range(2))
        columns = varying[some].repeat(batch)
        rows = np.arange(len(columns))
        other[rows, columns] = one[rows, columns]
        latents = encode_in_parts(encode, scenes, np.concatenate([one, other]))
        live = live if len(live) else live_latents(latents)
        apart = np.abs(latents[: len(one)] - latents[len(one) :])
        differences.append(apart.reshape(len(some), batch, -1).mean(axis=1))  # (votes of this part, D)
    x, train = np.concatenate(differences), int(votes * _TRAIN_SHARE)
    live &= x[:train].std(axis=0) > 0
    if not live.any():
        return 1 / len(varying)
    x = (x[:, live] - x[:train, live].mean(axis=0)) / x[:train, live].std(axis=0)
    if len(np.unique(labels[:train])) < 2:
        raise InputError(f"all votes to fit on are of one factor; give more than {votes} votes")
    model = linear.LogisticRegression(max_iter=10_000).fit(x[:train], labels[:train])
    return float(np.mean(model.predict(x[train:]) == labels[train:]))


def factor_vae_score(encode: Encode, scenes: Sampler, *, votes: int = 600, batch: int = 64, seed: int = 0) -> float:
    """Accuracy of a majority vote on which factor is the same in a batch, given the latent that varies least over it.

    Kim & Mnih 2018, "Disentangling by Factorising", section 4: variances are shares of the latent's variance over all scenes,
    and dead latents are left out. The vote is taken on two thirds of the batches and tested on the others, as in Locatello et
    al. 2019.

    Args:
        encode: From frames (n, ...) to latents (n, D).
        scenes: What makes the frames, such as `FactorScenes`; `(votes + 20) * batch` of them.
        votes: Number of batches, those to count and those to test on.
        batch: Scenes per batch.
        seed: Of the scenes.

    Returns:
        Accuracy, 0 to 1; chance is 1/F. Latents that never change give exactly that.

    Raises:
        InputError: Fewer than two factors vary, too few votes or scenes, or the encoder gives no latents.

    Example:
        >>> from vae_training.report.factor_scenes import FactorScenes
        >>> scenes = FactorScenes(16, positions=4)
        >>> flat = lambda frames: frames.reshape(len(frames), -1)[:, ::64] / 255.0
        >>> 0 <= factor_vae_score(flat, scenes, votes=60, batch=4) <= 1
        True
    """
    varying = _check(scenes, votes, batch)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(varying), votes)
    anywhere = encode_in_parts(encode, scenes, scenes.sample_values(max(20 * batch, 20 * _FEWEST_VOTES), rng))
    live = live_latents(anywhere)
    if not live.any():
        return 1 / len(varying)
    variance = anywhere[:, live].var(axis=0, ddof=1)
    steadiest: list[NDArray[np.int64]] = []
    for some in _in_parts(labels, batch):
        values = scenes.sample_values(len(some) * batch, rng)
        columns = varying[some].repeat(batch)
        rows = np.arange(len(columns))
        values[rows, columns] = values[rows // batch * batch, columns]  # that of the first scene of the batch
        latents = encode_in_parts(encode, scenes, values)[:, live].reshape(len(some), batch, -1)
        steadiest.append((latents.var(axis=1, ddof=1) / variance).argmin(axis=1))
    latent, train = np.concatenate(steadiest), int(votes * _TRAIN_SHARE)
    counts = np.zeros((len(variance), len(varying)), np.int64)
    np.add.at(counts, (latent[:train], labels[:train]), 1)
    return float(np.mean(counts.argmax(axis=1)[latent[train:]] == labels[train:]))


def _in_parts(labels: NDArray[np.int64], frames_per_vote: int) -> list[NDArray[np.int64]]:
    """The votes in parts of so few scenes that they fit in memory."""
    step = max(1, _FRAMES_AT_ONCE // frames_per_vote)
    return [labels[i : i + step] for i in range(0, len(labels), step)]


def _check(scenes: Sampler, votes: int, batch: int) -> NDArray[np.int64]:
    """The columns of the factors that vary."""
    for name, number, fewest in (("votes", votes, _FEWEST_VOTES), ("batch", batch, 2)):
        if isinstance(number, bool) or not isinstance(number, int) or number < fewest:
            raise InputError(f"{name} must be a whole number of {fewest} or more, got {number!r}")
    varying = np.array([i for i, factor in enumerate(scenes.factors) if factor.values > 1], np.int64)
    if len(varying) < 2:
        raise InputError(f"{len(varying)} factor(s) vary in these scenes; at least two are needed to tell one from another")
    return varying
