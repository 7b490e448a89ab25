"""Estimates and intervals of a comparison, beside numpy, scipy and rliable, and on cases whose answers are known."""

import math
import sys
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

pytest.importorskip("stable_baselines3")
pytest.importorskip("rliable.metrics")

import rliable.metrics

from agents.compare import statistics as intervals
from agents.compare.statistics import (
    aggregates,
    at_seconds,
    chance_of_more,
    check_installed,
    curve,
    few_seeds,
    first_reach,
    iqm,
    mean_curve,
    mean_reach,
    t_interval,
    versus,
)
from latent_obs.util.errors import MissingExtraError
from tests.support.compare_cases import run_of

SCORES = hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 4)), elements=st.integers(-4, 4).map(float))


@given(SCORES)
@settings(max_examples=50, deadline=None)
def test_the_interquartile_mean_is_scipys_and_rliables(scores: Any):
    assert iqm(scores) == pytest.approx(scipy.stats.trim_mean(scores.ravel(), 0.25))
    assert iqm(scores) == pytest.approx(rliable.metrics.aggregate_iqm(scores))
    np.testing.assert_allclose(iqm(scores, axis=0), scipy.stats.trim_mean(scores, 0.25, axis=0))


@given(SCORES, st.integers(1, 5), st.randoms())
@settings(max_examples=50, deadline=None)
def test_the_chance_of_more_is_rliables(scores: Any, seeds: int, random: Any):
    other = np.array([[random.randint(-4, 4) for _ in range(scores.shape[1])] for _ in range(seeds)], np.float64)
    with np.errstate(all="ignore"):
        expected = rliable.metrics.probability_of_improvement(scores, other)
    assert chance_of_more(scores, other) == pytest.approx(expected)
    assert chance_of_more(scores, other) + chance_of_more(other, scores) == pytest.approx(1)


def test_three_seeds_give_their_range_and_one_seed_gives_none():
    estimate = aggregates([[5.0], [1.0], [3.0]])["mean"]
    assert (estimate.value, estimate.low, estimate.high) == (3.0, 1.0, 5.0)
    alone = aggregates([[4.0]])
    assert {(e.value, e.low, e.high) for name, e in alone.items() if name != "optimality_gap"} == {(4.0, 4.0, 4.0)}


def test_intervals_are_those_of_a_bootstrap_over_seeds():
    scores = np.random.default_rng(1).normal(size=(8, 1))
    estimate = aggregates(scores)["iqm"]
    drawn = np.random.default_rng(2).choice(scores[:, 0], (50_000, 8))
    low, high = np.percentile(np.sort(drawn, 1)[:, 2:6].mean(1), [2.5, 97.5])
    assert estimate.value == pytest.approx(np.sort(scores[:, 0])[2:6].mean())
    assert (estimate.low, estimate.high) == (pytest.approx(low, abs=0.08), pytest.approx(high, abs=0.08))


def test_seeds_are_drawn_within_tasks():
    """Tasks that differ, seeds that do not: drawn from all runs alike, the mean would scatter."""
    estimate = aggregates([[0.0, 10.0, 2.0], [0.0, 10.0, 2.0]])["mean"]
    assert (estimate.value, estimate.low, estimate.high) == (4.0, 4.0, 4.0)


def test_the_optimality_gap_counts_no_score_above_one():
    gap = aggregates([[0.5, 3.0], [1.0, 0.7]])["optimality_gap"]
    assert gap.value == pytest.approx((0.5 + 0 + 0 + 0.3) / 4)
    assert gap.value == pytest.approx(rliable.metrics.aggregate_optimality_gap(np.array([[0.5, 3.0], [1.0, 0.7]])))


def test_two_arms_beside_each_other():
    one = versus([[1.0], [3.0]], [[2.0], [2.0], [0.0]])
    better = one["probability_of_improvement"]
    assert better.value == pytest.approx((0 + 0 + 1 + 1 + 1 + 1) / 6)
    assert 0 <= better.low <= better.value <= better.high <= 1
    assert better.low < better.high
    assert one["difference"].value == pytest.approx(2 - 4 / 3)
    apart = versus([[10.0], [11.0]], [[1.0], [2.0]])
    assert (apart["difference"].low, apart["difference"].high) == (8.0, 10.0), (
        "each arm's seeds are drawn by themselves"
    )


def test_curves_have_intervals_at_each_point():
    middle, low, high = curve([[0.0, 3.0, 5.0], [1.0, 3.0, 4.0], [2.0, 3.0, 0.0]])
    np.testing.assert_array_equal(middle, [1, 3, 3])
    np.testing.assert_array_equal(low, [0, 3, 0])
    np.testing.assert_array_equal(high, [2, 3, 5])


def test_the_same_scores_give_the_same_intervals_and_random_numbers_elsewhere_are_left_alone():
    scores = np.random.default_rng(3).normal(size=(6, 2))
    np.random.seed(5)  # noqa: NPY002
    first = aggregates(scores)
    after = np.random.random()  # noqa: NPY002
    np.random.seed(6)  # noqa: NPY002
    assert aggregates(scores) == first
    np.random.seed(5)  # noqa: NPY002
    assert np.random.random() == after  # noqa: NPY002


def test_students_interval_is_scipys():
    values = [1.0, 4.0, 2.5, 7.0]
    expected = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
    assert t_interval(values) == pytest.approx(expected)
    assert t_interval([1.0]) is None


def test_what_few_seeds_tell_is_true():
    draws = np.random.default_rng(0).normal(size=(20_000, 3))
    covered = np.mean((draws.min(1) < 0) & (draws.max(1) > 0))
    assert covered == pytest.approx(0.75, abs=0.01)
    assert "75 times in 100" in few_seeds(3)
    assert scipy.stats.mannwhitneyu([4, 5, 6], [1, 2, 3]).pvalue == pytest.approx(0.1)
    assert "is 0.1)" in few_seeds(3)
    assert len({few_seeds(n) for n in (1, 2, 3, 5, 12)}) == 5
    for seeds in (2, 3):  # the smallest is drawn each time in more than 2.5% of all resamples
        assert seeds**-seeds > 0.025
        assert "just the range" in few_seeds(seeds)
    assert 4**-4 < 0.025
    assert "just the range" not in few_seeds(4)


def test_without_rliable_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "rliable.library", None)
    with pytest.raises(MissingExtraError, match="latent-obs\\[compare\\]"):
        check_installed()


def test_a_pandas_that_is_too_new_is_named(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any, **__: Any) -> Any:
        raise TypeError("deprecate_kwarg() missing 1 required positional argument")

    monkeypatch.setattr(intervals, "require", broken)
    with pytest.raises(MissingExtraError, match="pandas<3"):
        check_installed()


def test_a_curve_over_steps_is_of_all_seeds_and_ends_with_the_shortest():
    runs = [run_of("t", "a", 0, 0, [0, 4, 8, 12]), run_of("t", "a", 1, 0, [2, 6, 10, 14])]
    mean = mean_curve(runs, "step")
    assert mean is not None
    assert mean.at == [250, 500, 750, 1000]
    assert (mean.iqm, mean.low, mean.high) == ([1, 5, 9, 13], [0, 4, 8, 12], [2, 6, 10, 14])
    runs[1]["evaluations"] = runs[1]["evaluations"][:2]
    shorter = mean_curve(runs, "step")
    assert shorter is not None
    assert shorter.at == [250, 500]
    assert mean_curve([], "step") is None
    assert mean_curve([{"evaluations": []}], "step") is None


def test_a_curve_over_time_is_read_off_between_evaluations():
    runs = [run_of("t", "a", 0, 0, [0, 10], rate=100), run_of("t", "a", 1, 0, [0, 10], rate=200)]
    mean = mean_curve(runs, "seconds")  # evaluated at 5 and 10 seconds, and at 2.5 and 5: only 5 is common
    assert mean is not None
    assert set(mean.at) == {5.0}
    assert mean.iqm[0] == pytest.approx(5.0)
    late = [run_of("t", "a", 0, 0, [0, 10], rate=100), run_of("t", "a", 1, 0, [0, 10], rate=1)]
    assert mean_curve(late, "seconds") is None, "one ended before the other's first evaluation"


def test_returns_at_a_time_and_times_of_a_return():
    run = run_of("t", "a", 0, 0, [0, 10, 5, 20], rate=100)  # evaluated at 2.5, 5, 7.5 and 10 seconds
    assert at_seconds(run, 2.4) is None
    assert [at_seconds(run, s) for s in (2.5, 3.75, 6.25, 100)] == [0, 5, 7.5, 20]
    assert first_reach(run, 10) == {"step": 500, "seconds": 5}
    assert first_reach(run, 10.5) == {"step": 1000, "seconds": 10}
    assert first_reach(run, 21) is None


def test_the_mean_curve_does_not_reach_what_one_lucky_seed_does():
    runs = [run_of("t", "a", 0, 0, [0, 10, 0, 10], rate=100), run_of("t", "a", 1, 0, [0, 0, 0, 10], rate=50)]
    assert mean_reach(runs, 10) == {"step": 1000, "seconds": 15}, "the mean of 10 and 20 seconds"
    assert mean_reach(runs, 5) == {"step": 500, "seconds": 7.5}
    assert mean_reach(runs, 11) is None
    assert math.isfinite(mean_reach(runs, 0)["seconds"])  # pyright: ignore[reportOptionalSubscript]
