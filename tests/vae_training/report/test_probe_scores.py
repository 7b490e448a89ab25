"""Scores of probes, with scikit-learn as the oracle, their intervals, and what is kept as a share above guessing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_training.report.probes.scores import Score, _auroc, score_amounts, score_classes
from vae_training.report.probes.table import PIXELS, Head, ProbeResult, ProbeTable

metrics = pytest.importorskip("sklearn.metrics")


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(5, 80), st.sampled_from([2, 3, 1000]))
def test_scores_are_those_of_scikit_learn(seed: int, count: int, levels: int):
    rng = np.random.default_rng(seed)
    truth, predicted, units = rng.standard_normal(count), rng.standard_normal(count), rng.integers(0, 4, count)
    r2, mae = score_amounts(truth + 1e4, predicted + 1e4, units)
    assert r2.value == pytest.approx(metrics.r2_score(truth, predicted), rel=1e-6)
    assert mae.value == pytest.approx(metrics.mean_absolute_error(truth, predicted))
    labels = np.concatenate([[0, 1], rng.integers(0, 2, count - 2)])
    scores = np.stack([np.zeros(count), rng.integers(-levels, levels, count) / levels], 1)  # with ties
    accuracy, auroc = score_classes(labels, scores, units)
    assert auroc.value == pytest.approx(metrics.roc_auc_score(labels, scores[:, 1]))
    assert accuracy.value == pytest.approx(metrics.balanced_accuracy_score(labels, scores.argmax(1)))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000))
def test_a_resample_is_the_score_of_copies(seed: int):
    rng = np.random.default_rng(seed)
    labels, score_of, unit = rng.integers(0, 2, 40), rng.integers(0, 9, 40) / 9, rng.integers(0, 5, 40)
    copies = rng.integers(0, 3, (3, 5))
    found = _auroc(labels, score_of, unit, copies.astype(float))
    for i, weights in enumerate(copies):
        rows = np.repeat(np.arange(40), weights[unit])
        if len(set(labels[rows])) == 2:
            assert found[i] == pytest.approx(metrics.roc_auc_score(labels[rows], score_of[rows]))
        else:
            assert np.isnan(found[i])


def test_an_interval_knows_that_frames_of_a_recording_err_together(rng: np.random.Generator):
    truth = rng.standard_normal(400)
    error = np.repeat(rng.standard_normal(20), 20)  # one for each recording
    by_recording = score_amounts(truth, truth + error, np.repeat(np.arange(20), 20))[0]
    by_frame = score_amounts(truth, truth + error, np.arange(400))[0]
    for found in (by_recording, by_frame):
        assert found.low is not None
        assert found.high is not None
        assert found.low < found.value < found.high
    assert (by_recording.high - by_recording.low) > 1.5 * (by_frame.high - by_frame.low)  # pyright: ignore


def test_the_spread_of_a_resample_is_its_own(rng: np.random.Generator):
    """Two recordings of which only the level is known: half of the resamples hold one, and explain nothing."""
    level = np.repeat([-10.0, 10.0], 50)
    found = score_amounts(level + rng.standard_normal(100), level, np.repeat([0, 1], 50))[0]
    assert found.value > 0.95
    assert found.low is not None
    assert abs(found.low) < 0.1


def test_no_interval_where_nothing_can_be_resampled():
    labels, scores = np.array([0, 0, 1, 1]), np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    for found in score_classes(labels, scores, np.zeros(4, int)):
        assert (found.value, found.low, found.high) == (1, None, None)


def made(head: Head, value: float, representation: str) -> ProbeResult:
    return ProbeResult("y", "binary", representation, head, [Score("auroc", value, None, None)], 2, 100, 50)


@pytest.mark.parametrize(
    ("linear", "cnn", "share", "verdict"),
    [
        (0.96, 1.0, 0.92, "kept"),
        (0.8, 1.0, 0.6, "partly kept"),
        (0.55, 0.9, 0.125, "lost"),
        (0.5, 0.52, None, "not readable"),
        (0.9, 0.6, 1.0, "kept"),
    ],
)
def test_what_is_kept_is_a_share_above_guessing(linear: float, cnn: float, share: float | None, verdict: str):
    table = ProbeTable([made("linear", linear, "latent"), made("cnn", cnn, PIXELS)], {}, {}, "recordings")
    kept = table.keeps("y")
    assert kept.verdict == verdict
    assert kept.share == (None if share is None else pytest.approx(share))
    assert kept.reference == max(linear, cnn)
