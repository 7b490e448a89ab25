"""DCI and MIG: whether each latent stands for one thing, given what is known of the state of each frame.

Both are 1 where each factor has a latent of its own. An agent can learn well from entangled latents; only
informativeness is needed. Factors that depend on each other, as those of a game do, lower the scores of any encoder.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latent_obs.util.device import cores
from latent_obs.util.errors import InputError, require

Floats = NDArray[np.float64]

FEWEST_SAMPLES = 50
_DEAD = 1e-6  # a spread below this share of the largest one, or of the latent's own offset, is rounding
_TRAIN_SHARE = 2 / 3  # as in Locatello et al. 2019
_BINS = 20  # of a latent, for MIG
_MOST_AT_A_SPLIT = 32  # latents that a tree's split looks at; with all of 256 a factor takes seconds


@dataclass(frozen=True, eq=False)
class Dci:
    """Disentanglement, completeness and informativeness (Eastwood & Williams 2018), each from 0 to 1."""

    disentanglement: float  # whether each latent is used for one factor only; a latent counts by its importance
    completeness: float  # whether each factor needs one latent only
    informativeness: float  # how well all latents together predict the factors, on samples that the trees have not seen
    by_factor: Floats  # informativeness of each factor, (F,); NaN for a factor that was left out
    importances: Floats  # (D, F), share of each latent in predicting each factor; columns sum to 1 or are 0


def dci(codes: ArrayLike, factors: ArrayLike, *, categorical: Sequence[bool] | None = None, seed: int = 0) -> Dci:
    """Disentanglement, completeness, informativeness.

    Eastwood & Williams 2018, "A Framework for the Quantitative Evaluation of Disentangled Representations", section 2,
    with gradient boosted trees as in Locatello et al. 2019: each factor is predicted from all latents, and an entropy
    measures how concentrated the importances of the latents are. Trees are fitted on two thirds of the samples;
    informativeness is R² on the others, or for classes the share of a majority guess's errors that the trees avoid.

    Args:
        codes: (N, D), the latents.
        factors: (N, F); NaN where a factor is not known. One known in fewer than 50 samples, or constant, is left out.
        categorical: Which factors are classes, (F,); by default all are amounts.
        seed: Of the split and the trees.

    Raises:
        InputError: The arrays do not fit together, or no factor can be measured.
        MissingExtraError: scikit-learn is not installed.

    Example:
        >>> values = np.random.default_rng(0).integers(0, 5, (300, 2))
        >>> scores = dci(values, values)
        >>> round(scores.disentanglement, 2), round(scores.completeness, 2), round(scores.informativeness, 2)
        (1.0, 1.0, 1.0)
    """
    ensemble = require("sklearn.ensemble", extra="report", purpose="measure disentanglement")
    x, y, varying = _checked(codes, factors)
    classes = np.zeros(y.shape[1], bool) if categorical is None else np.asarray(categorical, bool)
    order = np.random.default_rng(seed).permutation(len(x))

    def fit(factor: int) -> tuple[Floats, float]:
        known = order[np.isfinite(y[order, factor])]
        train, test = np.split(known, [int(len(known) * _TRAIN_SHARE)])
        target = y[:, factor]
        if np.ptp(target[train]) == 0 or not x.any():  # nothing to learn, or nothing to learn it from
            return np.zeros(x.shape[1]), 0.0
        kind = ensemble.GradientBoostingClassifier if classes[factor] else ensemble.GradientBoostingRegressor
        model = kind(random_state=seed, max_features=min(_MOST_AT_A_SPLIT, x.shape[1])).fit(x[train], target[train])
        predicted = model.predict(x[test])
        if classes[factor]:
            levels, counts = np.unique(target[train], return_counts=True)
            wrong = np.mean(predicted != target[test])
            guessed = np.mean(target[test] != levels[counts.argmax()])
        else:
            wrong, guessed = np.mean((predicted - target[test]) ** 2), np.var(target[test])
        return model.feature_importances_, max(0.0, float(1 - wrong / guessed)) if guessed else float(not wrong)

    with ThreadPoolExecutor(min(cores(), len(varying))) as threads:  # trees are grown without the interpreter's lock
        fitted = list(threads.map(fit, varying))
    importances, by_factor = np.zeros((x.shape[1], y.shape[1])), np.full(y.shape[1], np.nan)
    for factor, (importance, score) in zip(varying, fitted, strict=True):
        importances[:, factor], by_factor[factor] = importance, score
    used = importances[:, varying]
    weights = used.sum(axis=1)
    disentanglement = float(_concentration(used) @ weights / weights.sum()) if weights.any() else 0.0
    completeness = float(_concentration(used.T).mean())
    return Dci(disentanglement, completeness, float(np.nanmean(by_factor)), by_factor, importances)


def mig(codes: ArrayLike, factors: ArrayLike) -> float:
    """Mutual information gap: by how much the best latent informs on a factor more than the second best.

    Chen et al. 2018, "Isolating Sources of Disentanglement in VAEs", section 4: the gap as a share of the factor's
    entropy, averaged over the factors. As in Locatello et al. 2019 each latent is cut into 20 equal bins; so is a
    factor of more values than that. 1 says that one latent holds all of a factor and no other anything of it.
    Skewed latents lower it, and so does a single value far from the others: most values are then in few of the bins.
    Arguments and errors are those of `dci`.

    Example:
        >>> values = np.random.default_rng(0).integers(0, 5, (4000, 2))
        >>> round(mig(values, values), 2), round(mig(values[:, [0, 0, 1, 1]], values), 2)
        (1.0, 0.0)
    """
    return float(np.nanmean(mig_by_factor(codes, factors)))


def mig_by_factor(codes: ArrayLike, factors: ArrayLike) -> Floats:
    """The gap that `mig` averages, for each factor: float64 (F,), NaN for one that was left out."""
    metrics = require("sklearn.metrics", extra="report", purpose="measure disentanglement")
    x, y, varying = _checked(codes, factors)
    gaps = np.full(y.shape[1], np.nan)
    for factor in varying:
        known = np.isfinite(y[:, factor])
        levels, target = np.unique(y[known, factor], return_inverse=True)
        if len(levels) > _BINS:
            target = _bins(y[known, factor])
        information = [metrics.mutual_info_score(_bins(code), target) for code in x[known].T]
        second, best = sorted([0.0, 0.0, *information])[-2:]
        gaps[factor] = (best - second) / metrics.mutual_info_score(target, target)
    return gaps


def _checked(codes: ArrayLike, factors: ArrayLike) -> tuple[Floats, Floats, list[int]]:
    """Latents (0 where one never changes beyond rounding), factors, and the columns of those that can be measured."""
    x, y = np.asarray(codes, np.float64), np.asarray(factors, np.float64)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise InputError(f"codes (N, D) and factors (N, F) need a row per sample, got shapes {x.shape} and {y.shape}")
    if not np.isfinite(x).all():
        raise InputError("codes hold NaN or infinite values; the encoder may have diverged in training")
    spread = x.std(axis=0)
    x = np.where(spread > _DEAD * np.maximum(spread.max(initial=0), np.abs(x.mean(axis=0))), x, 0.0)
    known = [column[np.isfinite(column)] for column in y.T]
    varying = [i for i, values in enumerate(known) if len(values) >= FEWEST_SAMPLES and np.ptp(values) > 0]
    if not varying:
        raise InputError(f"factors: none is known in {FEWEST_SAMPLES} samples or more and varies in them")
    return x, y, varying


def _bins(values: Floats) -> NDArray[np.intp]:
    """Number of the equal bin that each value is in."""
    low, high = values.min(), values.max()
    return np.minimum((values - low) / ((high - low) or 1.0) * _BINS, _BINS - 1).astype(np.intp)


def _concentration(importances: Floats) -> Floats:
    """1 - entropy of each row, as a share of the largest possible one; 0 for a row of zeros. (rows, n) -> (rows,)."""
    from scipy.stats import entropy

    largest = np.log(importances.shape[1]) or 1.0  # one column only: nothing to be spread over
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(1 - entropy(importances, axis=1) / largest)
