"""Disentanglement scores of latents beside the factors that made them: MIG, DCI and SAP.

All of them are 1 at best, and ask whether each factor is told by one latent and (DCI) each latent tells of one factor. They
change neither with the order of the latents nor with a latent's scale, sign or offset. A latent that never changes, or by less
than a millionth of what others do, is *dead*: it tells of nothing. A factor that never changes cannot be told, and is left out.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latent_obs.errors import InputError, require
from latent_obs.processor import cores

Floats = NDArray[np.float64]

FEWEST_SAMPLES = 50
_DEAD = 1e-6  # a spread below this share of the largest one, or of the latent's own offset, is rounding
_TRAIN_SHARE = 2 / 3  # as in Locatello et al. 2019: 10,000 to fit, 5,000 to test
_PURPOSE = "measure disentanglement"


@dataclass(frozen=True)
class Dci:
    """Disentanglement, completeness and informativeness (Eastwood & Williams 2018).

    Attributes:
        disentanglement: Whether each latent tells of one factor only, 0 to 1; a latent counts by its importance.
        completeness: Whether each factor is told by one latent only, 0 to 1.
        informativeness: How well all latents together tell the factors, 0 (a guess) to 1, on samples the trees have not seen.
        informativeness_per_factor: The same for each factor, in order; None for one that never changes.
        importances: Share of latent i in telling factor j, [latent][factor]; sums to 1 over the latents.
    """

    disentanglement: float
    completeness: float
    informativeness: float
    informativeness_per_factor: list[float | None]
    importances: list[list[float]]


class _Checked(NamedTuple):
    """Latents and factors that can be measured."""

    latents: Floats  # (N, D)
    live: NDArray[np.bool_]  # (D,)
    factors: NDArray[np.int64]  # (N, F)
    varying: NDArray[np.int64]  # columns of factors with more than one value
    ordered: NDArray[np.bool_]  # (F,)


def live_latents(latents: NDArray[Any]) -> NDArray[np.bool_]:
    """Which latents change at all, beyond rounding.

    Args:
        latents: float (N, D).

    Returns:
        bool (D,): where the standard deviation is above a millionth of the largest one, and of the latent's own mean.

    Example:
        >>> live_latents(np.array([[0.0, 7.0], [1.0, 7.0], [2.0, 7.0]]))
        array([ True, False])
    """
    latents = np.asarray(latents, np.float64)
    spread = latents.std(axis=0)
    return spread > _DEAD * np.maximum(spread.max(initial=0), np.abs(latents.mean(axis=0)))


def mutual_information(latents: ArrayLike, factors: ArrayLike, *, bins: int = 20) -> Floats:
    """How much each latent tells of each factor.

    Args:
        latents: float (N, D), finite.
        factors: int (N, F), the values of the factors.
        bins: Number of equal parts that each latent's range is cut into.

    Returns:
        float64 (D, F) in nats, of the counts as they are: with few samples a little too high, by about
        (bins - 1) · (values - 1) / 2N.

    Raises:
        InputError: As `mig`.
        MissingExtraError: scikit-learn is not installed.

    Example:
        >>> values = np.arange(100)[:, None] % 4
        >>> mutual_information(np.hstack([values * 0.1, values * 0.0]), values).round(3).tolist()  # log 4, and nothing
        [[1.386], [0.0]]
    """
    return _information(_check(latents, factors, None), bins)


def mig(latents: ArrayLike, factors: ArrayLike, *, bins: int = 20) -> float:
    """Mutual information gap: how much more the best latent tells of a factor than the second best.

    Chen et al. 2018, "Isolating Sources of Disentanglement in VAEs", section 4: the gap as a share of the factor's entropy, on
    average over the factors. The mutual information is that of each latent in 20 equal bins, as in Locatello et al. 2019,
    "Challenging Common Assumptions", appendix. 20 bins cannot tell more than 20 values: with more, 1 is out of reach.

    Args:
        latents: float (N, D), finite; one row per sample.
        factors: int (N, F), the values of the factors; independent of each other.
        bins: Number of equal parts that each latent's range is cut into.

    Returns:
        0 (no latent stands out) to 1 (one latent tells all of a factor, and no other anything). With a single latent, the
        second best tells nothing.

    Raises:
        InputError: The arrays do not fit, are not numbers or not finite; fewer than 50 samples; no factor varies.
        MissingExtraError: scikit-learn is not installed.

    Example:
        >>> values = np.random.default_rng(0).integers(0, 5, (4000, 2))
        >>> round(mig(values, values), 2), round(mig(values[:, [0, 0, 1, 1]], values), 2)
        (1.0, 0.0)
    """
    return float(np.mean(list(gaps_of(latents, factors, bins=bins).values())))


def gaps_of(latents: ArrayLike, factors: ArrayLike, *, bins: int = 20) -> dict[int, float]:
    """The gap that `mig` averages, for each factor that varies, by its column."""
    checked = _check(latents, factors, None)
    information = np.sort(np.vstack([np.zeros((1, checked.factors.shape[1])), _information(checked, bins)]), axis=0)
    return {
        int(j): float((information[-1, j] - information[-2, j]) / _nats(checked.factors[:, j], checked.factors[:, j]))
        for j in checked.varying
    }


def sap(latents: ArrayLike, factors: ArrayLike, *, ordered: Sequence[bool] | None = None) -> float:
    """Separated attribute predictability: how much better the best single latent predicts a factor than the second best.

    Kumar et al. 2018, "Variational Inference of Disentangled Latent Concepts", section 3. An ordered factor is predicted by a
    line, and the score is R²; of another kind, by thresholds on the latent, and the score is the balanced accuracy, on the same
    samples (the thresholds are those of a decision tree with a leaf per value). A dead latent scores 0.

    A guess among k values is right once in k times, so a factor that is not ordered gives 1 - 1/k at the best, not 1, as long
    as the second best latent is alive.

    Args:
        latents: float (N, D), finite; one row per sample.
        factors: int (N, F), the values of the factors.
        ordered: For each factor, whether its values are points on a line, such as positions; all, when not given.

    Returns:
        The mean gap over the factors that vary, 0 to 1.

    Raises:
        InputError: As `mig`; `ordered` is not one for each factor.
        MissingExtraError: scikit-learn is not installed.

    Example:
        >>> values = np.random.default_rng(0).integers(0, 5, (4000, 2))
        >>> round(sap(values * [3, -1], values), 2), round(sap(values[:, [0, 0, 1, 1]], values), 2)
        (1.0, 0.0)
    """
    latents, live, values, varying, is_ordered = _check(latents, factors, ordered)
    scores = np.zeros((latents.shape[1] + 1, values.shape[1]))  # the last row stands in where there is no second latent
    for i in np.flatnonzero(live):
        for j in varying:
            scores[i, j] = (_line_score if is_ordered[j] else _threshold_score)(latents[:, i], values[:, j])
    scores.sort(axis=0)
    return float((scores[-1] - scores[-2])[varying].mean())


def dci(latents: ArrayLike, factors: ArrayLike, *, ordered: Sequence[bool] | None = None, seed: int = 0) -> Dci:
    """Disentanglement, completeness, informativeness.

    Eastwood & Williams 2018, "A Framework for the Quantitative Evaluation of Disentangled Representations", section 2: each
    factor is predicted from all latents, and an entropy tells how concentrated the latents' importances are. The predictor is
    gradient boosted trees with scikit-learn's defaults, as in Locatello et al. 2019, with one choice of our own: an ordered
    factor is a number to be predicted (a classifier, which they use for all, grows trees for each value, and takes ten times
    as long). Trees are fitted on two thirds of the samples, and informativeness is measured on the others: R² of an ordered
    factor; of another kind, the share of a guess's errors (always the most frequent value) that the trees avoid; 0 where
    below. Completeness is the plain mean over the factors, and 0 for one of which nothing is known.

    Args:
        latents: float (N, D), finite; one row per sample. Time grows with N · D: 3,000 samples of 32 latents take some
            seconds per factor.
        factors: int (N, F), the values of the factors.
        ordered: For each factor, whether its values are points on a line, such as positions; all, when not given.
        seed: Of the split and the trees.

    Returns:
        The scores. With a single factor disentanglement is 1, with a single latent completeness is, where anything is told.

    Raises:
        InputError: As `mig`; `ordered` is not one for each factor; a factor does not vary in the samples to fit on.
        MissingExtraError: scikit-learn is not installed.

    Example:
        >>> values = np.random.default_rng(0).integers(0, 5, (300, 2))
        >>> scores = dci(values, values)
        >>> round(scores.disentanglement, 2), round(scores.completeness, 2), round(scores.informativeness, 2)
        (1.0, 1.0, 1.0)
    """
    checked = _check(latents, factors, ordered)
    order = np.random.default_rng(seed).permutation(len(checked.latents))
    train, test = np.split(order, [int(len(order) * _TRAIN_SHARE)])
    require("sklearn.ensemble", extra="report", purpose=_PURPOSE)
    # The trees are grown without the interpreter's lock.
    with ThreadPoolExecutor(min(cores(), len(checked.varying))) as threads:
        fitted = list(threads.map(lambda j: _fit_trees(checked, int(j), train, test, seed), checked.varying))
    importances = np.zeros((checked.latents.shape[1], checked.factors.shape[1]))
    informed: list[float | None] = [None] * checked.factors.shape[1]
    for j, (importance, score) in zip(checked.varying, fitted, strict=True):
        importances[checked.live, j], informed[j] = importance, score
    of_varying = importances[:, checked.varying]
    weights = of_varying.sum(axis=1)
    disentanglement = float(_concentration(of_varying) @ weights / weights.sum()) if weights.any() else 0.0
    return Dci(
        disentanglement=disentanglement,
        completeness=float(_concentration(of_varying.T).mean()),
        informativeness=float(np.mean([score for _, score in fitted])),
        informativeness_per_factor=informed,
        importances=importances.tolist(),
    )


def _fit_trees(
    checked: _Checked, factor: int, train: NDArray[np.int64], test: NDArray[np.int64], seed: int
) -> tuple[Floats, float]:
    """Importance of each live latent for a factor, and how well they tell it."""
    ensemble = require("sklearn.ensemble", extra="report", purpose=_PURPOSE)
    x, y = checked.latents[:, checked.live], checked.factors[:, factor]
    if len(np.unique(y[train])) < 2:
        raise InputError(
            f"factor {factor} has only one value in the {len(train)} samples that the trees are fitted on; give more samples"
        )
    if not x.shape[1]:
        return np.zeros(0), 0.0
    if checked.ordered[factor]:
        model = ensemble.GradientBoostingRegressor(random_state=seed).fit(x[train], y[train])
        wrong, guessed_wrong = np.mean((model.predict(x[test]) - y[test]) ** 2), np.var(y[test])
    else:
        model = ensemble.GradientBoostingClassifier(random_state=seed).fit(x[train], y[train])
        kinds, counts = np.unique(y[train], return_counts=True)
        usual = kinds[counts.argmax()]
        wrong, guessed_wrong = np.mean(model.predict(x[test]) != y[test]), np.mean(y[test] != usual)
    score = 1 - wrong / guessed_wrong if guessed_wrong else float(not wrong)
    return model.feature_importances_, max(0.0, float(score))


def _concentration(importances: Floats) -> Floats:
    """1 - entropy of each row, as a share of the largest possible one; 0 for a row of zeros. (rows, n) -> (rows,)."""
    total = importances.sum(axis=1, keepdims=True)
    shares = np.divide(importances, total, out=np.zeros_like(importances), where=total > 0)
    entropy = -np.sum(shares * np.log(shares, out=np.zeros_like(shares), where=shares > 0), axis=1)
    largest = np.log(importances.shape[1]) or 1.0  # one column only: nothing to be spread over
    return np.where(total[:, 0] > 0, 1 - entropy / largest, 0.0)


def _line_score(latent: Floats, values: NDArray[np.int64]) -> float:
    return float(np.corrcoef(latent, values)[0, 1] ** 2)


def _threshold_score(latent: Floats, values: NDArray[np.int64]) -> float:
    tree = require("sklearn.tree", extra="report", purpose=_PURPOSE)
    metrics = require("sklearn.metrics", extra="report", purpose=_PURPOSE)
    leaves = len(np.unique(values))
    model = tree.DecisionTreeClassifier(max_leaf_nodes=leaves, class_weight="balanced", random_state=0)
    return float(metrics.balanced_accuracy_score(values, model.fit(latent[:, None], values).predict(latent[:, None])))


def _information(checked: _Checked, bins: int) -> Floats:
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 2:
        raise InputError(f"bins must be a whole number of 2 or more, got {bins!r}")
    latents, information = checked.latents, np.zeros((checked.latents.shape[1], checked.factors.shape[1]))
    for i in np.flatnonzero(checked.live):
        low, high = latents[:, i].min(), latents[:, i].max()
        binned = np.minimum((latents[:, i] - low) / (high - low) * bins, bins - 1).astype(np.int64)
        for j in checked.varying:
            information[i, j] = _nats(binned, checked.factors[:, j])
    return information


def _nats(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Mutual information of two columns of whole numbers; of a column with itself, its entropy."""
    metrics = require("sklearn.metrics", extra="report", purpose=_PURPOSE)
    return float(metrics.mutual_info_score(one, other))


def _check(latents: ArrayLike, factors: ArrayLike, ordered: Sequence[bool] | None) -> _Checked:
    x, y = np.asarray(latents), np.asarray(factors)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or not x.shape[1] or not y.shape[1]:
        raise InputError(
            f"expected latents (N, D) and factors (N, F) with a row per sample, got shapes {x.shape} and {y.shape}"
        )
    if x.dtype.kind not in "fiu" or y.dtype.kind not in "iu":
        raise InputError(
            f"expected latents of numbers and factors of whole numbers, got {x.dtype} and {y.dtype}; "
            "cut a continuous factor into a few values first"
        )
    if len(x) < FEWEST_SAMPLES:
        raise InputError(f"{len(x)} samples are too few to measure disentanglement on; give {FEWEST_SAMPLES} or more")
    if not np.isfinite(x).all():
        raise InputError("some latents are NaN or infinite; check the encoder, it may have diverged in training")
    is_ordered = np.ones(y.shape[1], bool) if ordered is None else np.asarray(ordered, bool)
    if is_ordered.shape != y.shape[1:]:
        raise InputError(f"ordered must say yes or no for each of {y.shape[1]} factors, got {ordered!r}")
    varying = np.flatnonzero(np.ptp(y, axis=0))
    if not len(varying):
        raise InputError("no factor varies in these samples, each has one value only; there is nothing to tell apart")
    return _Checked(x.astype(np.float64), live_latents(x), y.astype(np.int64), varying, is_ordered)
