"""Estimates and intervals of a comparison, beside scipy's and rliable's values, and on cases with known answers."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from agents.compare.statistics import (
    aggregates,
    at_seconds,
    chance_of_more,
    first_reach,
    iqm,
    mean_curve,
    mean_reach,
    t_interval,
    versus,
)
from agents.compare.summary import few_seeds
from tests.support.compare_cases import run_of

SCORES = hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 4)), elements=st.integers(-4, 4).map(float))

# What rliable 1.2.0 gives with 50,000 resamples: value, low, high.
MINE = [
    [1.199, 0.161, 1.527, 0.861],
    [1.172, 0.845, 0.748, 1.085],
    [1.23, 0.819, 0.839, 1.174],
    [0.552, 0.294, 1.058, 0.632],
    [0.132, 0.574, 0.713, 0.423],
]
OTHER = [
    [0.103, 0.715, 1.059, 0.607],
    [0.403, 0.854, 0.987, 0.58],
    [0.918, 1.117, 0.617, 0.375],
    [0.839, 0.799, 1.14, 0.186],
    [0.435, 0.365, 0.006, 0.751],
    [0.911, 0.404, 1.254, 1.029],
]
OF_RLIABLE = {
    "mean": (0.8019, 0.6562, 0.9443),
    "iqm": (0.8174, 0.6449, 0.9865),
    "optimality_gap": (0.2704, 0.1627, 0.385),
    "difference": (0.1149, -0.1216, 0.3569),
    "probability_of_improvement": (0.5833, 0.4083, 0.75),
}
ONE_TASK = [[1.017], [1.68], [1.612], [0.745], [0.851], [0.736], [1.285], [0.972]]
ONE_TASK_OF_RLIABLE = {
    "mean": (1.1122, 0.8846, 1.3636),
    "iqm": (1.0312, 0.798, 1.4632),
    "optimality_gap": (0.087, 0.0186, 0.167),
}
CURVES = [
    [1.63, 3.03, 4.98, 4.65, 6.27, 7.87],
    [-0.77, 0.58, 1.33, 3.11, 3.67, 4.65],
    [1.34, 1.47, 3.07, 3.96, 5.45, 5.93],
    [2.09, 3.69, 4.51, 6.15, 8.41, 11.2],
    [-0.57, 1.31, 2.77, 3.68, 3.67, 5.93],
]
CURVE_OF_RLIABLE = [
    [0.8, 1.9367, 3.45, 4.0967, 5.13, 6.5767],
    [-0.7033, 0.8233, 1.81, 3.3, 3.67, 5.0767],
    [1.9367, 3.47, 4.8233, 5.65, 7.6967, 10.09],
]


def test_estimates_and_intervals_are_rliables():
    for estimates, expected in (
        (lambda: aggregates(MINE) | versus(MINE, OTHER), OF_RLIABLE),
        (lambda: aggregates(ONE_TASK), ONE_TASK_OF_RLIABLE),
    ):
        found = estimates()
        assert found.keys() == expected.keys()
        for name, (value, low, high) in expected.items():
            assert found[name]["value"] == pytest.approx(value, abs=1e-4)
            assert (found[name]["low"], found[name]["high"]) == pytest.approx((low, high), abs=0.02), name
        assert estimates() == found, "the same each time"


def test_curves_are_rliables():
    mean = mean_curve([run_of("t", "a", seed, 0, curve) for seed, curve in enumerate(CURVES)], "step")
    assert mean is not None
    np.testing.assert_allclose(mean["iqm"], CURVE_OF_RLIABLE[0], atol=1e-4)
    np.testing.assert_allclose([mean["low"], mean["high"]], CURVE_OF_RLIABLE[1:], atol=0.15)


@given(SCORES)
@settings(max_examples=50, deadline=None)
def test_the_interquartile_mean_is_scipys(scores: Any):
    np.testing.assert_allclose(iqm(scores), scipy.stats.trim_mean(scores, 0.25, axis=1))


@given(SCORES, st.integers(1, 5), st.randoms())
@settings(max_examples=50, deadline=None)
def test_the_chance_of_more_is_that_of_the_rank_test(scores: Any, seeds: int, random: Any):
    other = np.array([[random.randint(-4, 4) for _ in range(scores.shape[1])] for _ in range(seeds)], np.float64)
    ranks = [
        scipy.stats.mannwhitneyu(x, y).statistic / (len(x) * seeds) for x, y in zip(scores.T, other.T, strict=True)
    ]
    assert chance_of_more(scores, other) == pytest.approx(np.mean(ranks))
    assert chance_of_more(np.stack([scores] * 2), np.stack([other] * 2)) == pytest.approx([np.mean(ranks)] * 2)


def test_intervals_of_few_seeds_and_of_several_tasks():
    """Three seeds give their range, and one gives none."""
    assert aggregates([[5.0], [1.0], [3.0]])["mean"] == {"value": 3.0, "low": 1.0, "high": 5.0}
    assert aggregates([[4.0]])["iqm"] == {"value": 4.0, "low": 4.0, "high": 4.0}


def test_seeds_are_drawn_within_tasks_and_by_themselves_in_each_arm():
    """Of tasks that differ and seeds that do not, the mean would scatter if it were drawn from all runs alike."""
    assert aggregates([[0.0, 10.0, 2.0], [0.0, 10.0, 2.0]])["mean"] == {"value": 4.0, "low": 4.0, "high": 4.0}
    apart = versus([[10.0], [11.0]], [[1.0], [2.0]])["difference"]
    assert (apart["low"], apart["high"]) == (8.0, 10.0)


def test_students_interval_is_scipys():
    values = [1.0, 4.0, 2.5, 7.0]
    assert t_interval(values) == pytest.approx(
        scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
    )
    assert t_interval([1.0]) is None


def test_what_is_said_of_few_seeds_is_true():
    draws = np.random.default_rng(0).normal(size=(20_000, 3))
    covered = np.mean((draws.min(1) < 0) & (draws.max(1) > 0))
    assert f"{100 * covered:.0f} times in 100" in few_seeds(3)
    assert f"{scipy.stats.mannwhitneyu([4, 5, 6], [1, 2, 3]).pvalue:.2g})" in few_seeds(3)


def test_a_curve_over_steps_is_of_all_seeds_and_ends_with_the_shortest():
    runs = [run_of("t", "a", 0, 0, [0, 4, 8, 12]), run_of("t", "a", 1, 0, [2, 6, 10, 14])]
    points = {"at": [250, 500, 750, 1000], "iqm": [1, 5, 9, 13], "low": [0, 4, 8, 12], "high": [2, 6, 10, 14]}
    assert mean_curve(runs, "step") == points
    runs[1]["evaluations"] = runs[1]["evaluations"][:2]
    shorter = mean_curve(runs, "step")
    assert shorter is not None
    assert shorter["at"] == [250, 500]
    assert mean_curve([], "step") is mean_curve([{"evaluations": []}], "step") is None


def test_a_curve_over_time_is_interpolated_between_evaluations():
    runs = [run_of("t", "a", 0, 0, [0, 10], rate=100), run_of("t", "a", 1, 0, [0, 10], rate=200)]
    mean = mean_curve(runs, "seconds")  # evaluated at 5 and 10 seconds, and at 2.5 and 5: only 5 is common
    assert mean is not None
    assert (set(mean["at"]), mean["iqm"][0]) == ({5.0}, pytest.approx(5.0))
    late = [run_of("t", "a", 0, 0, [0, 10], rate=100), run_of("t", "a", 1, 0, [0, 10], rate=1)]
    assert mean_curve(late, "seconds") is None, "one ended before the other's first evaluation"


def test_returns_at_a_time_and_times_of_a_return():
    run = run_of("t", "a", 0, 0, [0, 10, 5, 20], rate=100)  # evaluated at 2.5, 5, 7.5 and 10 seconds
    assert [at_seconds(run, s) for s in (2.4, 2.5, 3.75, 6.25, 100)] == [None, 0, 5, 7.5, 20]
    assert first_reach(run, 10) == {"step": 500, "seconds": 5}
    assert first_reach(run, 21) is None
    runs = [run_of("t", "a", 0, 0, [0, 10, 0, 10], rate=100), run_of("t", "a", 1, 0, [0, 0, 0, 10], rate=50)]
    assert mean_reach(runs, 10) == {"step": 1000, "seconds": 15}, "the mean of 10 and 20 seconds; one lucky seed is not"
    assert mean_reach(runs, 5) == {"step": 500, "seconds": 7.5}
    assert mean_reach(runs, 11) is None
