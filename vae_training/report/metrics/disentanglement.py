"""Whether each latent stands for one thing: five published scores, on scenes whose factors are known.

    score                 question                                                  a guess    best
    MIG                   how far is the best latent ahead of the second, in bits?      0         1
    SAP                   ... and in predicting the factor?                              0     about 1
    DCI, disentanglement  does each latent tell of one factor only?                      0         1
    DCI, completeness     is each factor told by one latent only?                        0         1
    DCI, informativeness  are the factors told at all?                                   0         1
    beta-VAE              which factor is the same in all pairs? (linear classifier)    1/F        1
    FactorVAE             which factor is the same in a batch? (majority vote)          1/F        1

A disentangled encoder is not by itself one that an agent learns well on; informativeness is the one that it cannot do
without.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.factor_scenes import Factor
from latent_obs.util.device import cores
from latent_obs.util.errors import InputError, require

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
        informativeness: How well all latents together tell the factors, 0 (a guess) to 1, on samples the trees have not
            seen.
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

    Chen et al. 2018, "Isolating Sources of Disentanglement in VAEs", section 4: the gap as a share of the factor's
    entropy, on average over the factors. The mutual information is that of each latent in 20 equal bins, as in
    Locatello et al. 2019, "Challenging Common Assumptions", appendix. 20 bins cannot tell more than 20 values: with
    more, 1 is out of reach.

    Args:
        latents: float (N, D), finite; one row per sample.
        factors: int (N, F), the values of the factors; independent of each other.
        bins: Number of equal parts that each latent's range is cut into.

    Returns:
        0 (no latent stands out) to 1 (one latent tells all of a factor, and no other anything). With a single latent,
        the second best tells nothing.

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
    """Separated attribute predictability: how much better the best single latent predicts a factor than the second
    best.

    Kumar et al. 2018, "Variational Inference of Disentangled Latent Concepts", section 3. An ordered factor is
    predicted by a line, and the score is R²; of another kind, by thresholds on the latent, and the score is the
    balanced accuracy, on the same samples (the thresholds are those of a decision tree with a leaf per value). A dead
    latent scores 0.

    A guess among k values is right once in k times, so a factor that is not ordered gives 1 - 1/k at the best, not 1,
    as long as the second best latent is alive.

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

    Eastwood & Williams 2018, "A Framework for the Quantitative Evaluation of Disentangled Representations", section 2:
    each factor is predicted from all latents, and an entropy tells how concentrated the latents' importances are. The
    predictor is gradient boosted trees with scikit-learn's defaults, as in Locatello et al. 2019, with one choice of
    our own: an ordered factor is a number to be predicted (a classifier, which they use for all, grows trees for each
    value, and takes ten times as long). Trees are fitted on two thirds of the samples, and informativeness is measured
    on the
    others: R² of an ordered factor; of another kind, the share of a guess's errors (always the most frequent value)
    that the trees avoid; 0 where below. Completeness is the plain mean over the factors, and 0 for one of which nothing
    is known.

    Args:
        latents: float (N, D), finite; one row per sample. Time grows with N · D: 3,000 samples of 32 latents take some
            seconds per factor.
        factors: int (N, F), the values of the factors.
        ordered: For each factor, whether its values are points on a line, such as positions; all, when not given.
        seed: Of the split and the trees.

    Returns:
        The scores. With a single factor disentanglement is 1, with a single latent completeness is, where anything is
        told.

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


Encode = Callable[[Any], ArrayLike]

_FRAMES_AT_ONCE = 2048
_TRAIN_SHARE_of_disentanglement_interventions = 2 / 3  # as in Locatello et al. 2019: 10,000 votes to fit, 5,000 to test
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

    Higgins et al. 2017, "beta-VAE", section 3: of each vote, `batch` pairs are drawn; the classifier sees the mean
    absolute difference between the latents of a pair. It is scikit-learn's logistic regression on standardized
    differences (so that a latent's scale is of no matter), fitted on two thirds of the votes and tested on the others.
    Known weakness (Kim & Mnih 2018): latents that are mixtures of the factors can have a high score too.

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
        >>> from benchmarks.factor_scenes import FactorScenes
        >>> scenes = FactorScenes(16, positions=4)
        >>> flat = lambda frames: frames.reshape(len(frames), -1)[:, ::64] / 255.0
        >>> 0 <= beta_vae_score(flat, scenes, votes=60, batch=4) <= 1
        True
    """
    varying = _check_of_disentanglement_interventions(scenes, votes, batch)
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
    x, train = np.concatenate(differences), int(votes * _TRAIN_SHARE_of_disentanglement_interventions)
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

    Kim & Mnih 2018, "Disentangling by Factorising", section 4: variances are shares of the latent's variance over all
    scenes, and dead latents are left out. The vote is taken on two thirds of the batches and tested on the others, as
    in Locatello et al. 2019.

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
        >>> from benchmarks.factor_scenes import FactorScenes
        >>> scenes = FactorScenes(16, positions=4)
        >>> flat = lambda frames: frames.reshape(len(frames), -1)[:, ::64] / 255.0
        >>> 0 <= factor_vae_score(flat, scenes, votes=60, batch=4) <= 1
        True
    """
    varying = _check_of_disentanglement_interventions(scenes, votes, batch)
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
    latent, train = np.concatenate(steadiest), int(votes * _TRAIN_SHARE_of_disentanglement_interventions)
    counts = np.zeros((len(variance), len(varying)), np.int64)
    np.add.at(counts, (latent[:train], labels[:train]), 1)
    return float(np.mean(counts.argmax(axis=1)[latent[train:]] == labels[train:]))


def _in_parts(labels: NDArray[np.int64], frames_per_vote: int) -> list[NDArray[np.int64]]:
    """The votes in parts of so few scenes that they fit in memory."""
    step = max(1, _FRAMES_AT_ONCE // frames_per_vote)
    return [labels[i : i + step] for i in range(0, len(labels), step)]


def _check_of_disentanglement_interventions(scenes: Sampler, votes: int, batch: int) -> NDArray[np.int64]:
    """The columns of the factors that vary."""
    for name, number, fewest in (("votes", votes, _FEWEST_VOTES), ("batch", batch, 2)):
        if isinstance(number, bool) or not isinstance(number, int) or number < fewest:
            raise InputError(f"{name} must be a whole number of {fewest} or more, got {number!r}")
    varying = np.array([i for i, factor in enumerate(scenes.factors) if factor.values > 1], np.int64)
    if len(varying) < 2:
        raise InputError(
            f"{len(varying)} factor(s) vary in these scenes; at least two are needed to tell one from another"
        )
    return varying


__all__ = [
    "Dci",
    "DisentanglementScores",
    "Encode",
    "Sampler",
    "beta_vae_score",
    "dci",
    "factor_vae_score",
    "mig",
    "mutual_information",
    "sap",
    "score",
]


@dataclass(frozen=True)
class DisentanglementScores:
    """All scores of an encoder; see the functions for what each one is.

    Attributes:
        mig: Mutual information gap, 0 to 1.
        sap: Separated attribute predictability, 0 to about 1.
        dci_disentanglement: 0 to 1.
        dci_completeness: 0 to 1.
        dci_informativeness: 0 to 1.
        beta_vae: Accuracy, from about `chance` to 1.
        factor_vae: Accuracy, from about `chance` to 1.
        chance: What a guess gives in the last two: 1 / number of factors.
        mig_per_factor: The gap of each factor by its name.
        informativeness_per_factor: How well all latents together tell each factor, by its name.
        importances: Share of each latent in telling a factor, by the factor's name; a list over the latents.
        latents: Number of latents.
        live_latents: Number of those that change at all.
        samples: Scenes that MIG and SAP are measured on.
        seed: Of the scenes.
    """

    mig: float
    sap: float
    dci_disentanglement: float
    dci_completeness: float
    dci_informativeness: float
    beta_vae: float
    factor_vae: float
    chance: float
    mig_per_factor: dict[str, float]
    informativeness_per_factor: dict[str, float]
    importances: dict[str, list[float]]
    latents: int
    live_latents: int
    samples: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


def score(
    encode: Encode,
    scenes: Sampler,
    *,
    samples: int = 10_000,
    seed: int = 0,
    dci_samples: int = 3_000,
    votes: int = 600,
    batch: int = 64,
) -> DisentanglementScores:
    """Measure all scores of an encoder.

    Args:
        encode: From frames (n, ...) to latents (n, D), such as a `FrozenEncoder`.
        scenes: What makes the frames, such as `FactorScenes`.
        samples: Scenes for MIG and SAP.
        seed: Of all randomness: the same seed gives the same scores.
        dci_samples: How many of them are for DCI as well, whose trees take the most time.
        votes: Of the beta-VAE and the FactorVAE score.
        batch: Pairs (beta-VAE) or scenes (FactorVAE) of each vote; with the defaults some 115,000 scenes in all.

    Returns:
        The scores.

    Raises:
        InputError: Too few samples, votes or factors; the encoder gives no finite latents of shape (n, D).
        MissingExtraError: scikit-learn is not installed.

    Example:
        >>> from benchmarks.factor_scenes import FactorScenes
        >>> scenes = FactorScenes(16, positions=4, sizes=1, shapes=1, hues=1, orientations=1)
        >>> def shares(frames):  # of light in the columns and rows: they tell the position
        ...     light = frames.sum(axis=3, dtype=float)
        ...     return np.hstack([light.mean(axis=1), light.mean(axis=2)])
        >>> scores = score(shares, scenes, samples=200, votes=60, batch=8)
        >>> round(scores.dci_informativeness, 1), scores.chance
        (1.0, 0.5)
    """
    for name, number in (("samples", samples), ("dci_samples", dci_samples)):
        if isinstance(number, bool) or not isinstance(number, int) or number < FEWEST_SAMPLES:
            raise InputError(f"{name} must be a whole number of {FEWEST_SAMPLES} or more, got {number!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InputError(f"seed must be a whole number from 0 to {2**32 - 1}, got {seed!r}")
    names, ordered = [f.name for f in scenes.factors], [f.ordered for f in scenes.factors]
    values = scenes.sample_values(samples, np.random.default_rng(seed))
    latents = encode_in_parts(encode, scenes, values)
    trees = dci(latents[:dci_samples], values[:dci_samples], ordered=ordered, seed=seed)
    gaps = gaps_of(latents, values)
    importances, informed = np.array(trees.importances), trees.informativeness_per_factor
    varying = [i for i, factor in enumerate(scenes.factors) if factor.values > 1]
    return DisentanglementScores(
        mig=float(np.mean(list(gaps.values()))),
        sap=sap(latents, values, ordered=ordered),
        dci_disentanglement=trees.disentanglement,
        dci_completeness=trees.completeness,
        dci_informativeness=trees.informativeness,
        beta_vae=beta_vae_score(encode, scenes, votes=votes, batch=batch, seed=seed),
        factor_vae=factor_vae_score(encode, scenes, votes=votes, batch=batch, seed=seed),
        chance=1 / len(varying),
        mig_per_factor={names[j]: gap for j, gap in gaps.items()},
        informativeness_per_factor={
            name: value for name, value in zip(names, informed, strict=True) if value is not None
        },
        importances={names[j]: importances[:, j].tolist() for j in varying},
        latents=latents.shape[1],
        live_latents=int(live_latents(latents).sum()),
        samples=samples,
        seed=seed,
    )
