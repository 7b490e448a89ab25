"""What probes predict with: the linear one against the normal equations, fairness to rare classes, and the CNN."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vae_training.report.metrics.baselines import Pca
from vae_training.report.probes import heads
from vae_training.report.probes.heads import predict_cnn, predict_linear, predict_mlp
from vae_training.report.probes.probes import probe
from vae_training.report.probes.table import PIXELS
from vae_training.report.probes.targets import Target

metrics = pytest.importorskip("sklearn.metrics")


def test_ridge_is_the_best_of_its_strengths_fitted_anew(rng: np.random.Generator):
    """By the normal equations: the strength by the validation rows, then a fit on both."""
    x = rng.standard_normal((200, 30)).astype(np.float32)
    y = x[:, :3].sum(1) + 3 * rng.standard_normal(200)
    fit, validation, held_out = np.arange(60), np.arange(60, 110), np.arange(110, 200)
    target = Target("y", "continuous", y.astype(float), (), fit, validation, held_out)

    def solved(learn: NDArray[np.intp], test: NDArray[np.intp], strength: float) -> NDArray[np.float64]:
        mean, std = x[learn].mean(0, dtype=float), x[learn].std(0, dtype=float)
        a, b = (x[learn] - mean) / std, (x[test] - mean) / std
        gram = a.T @ a + strength * len(fit) * np.eye(30)
        return b @ np.linalg.solve(gram, a.T @ (y[learn] - y[learn].mean())) + y[learn].mean()

    strengths = np.logspace(-6, 1, 15)
    errors = [np.square(solved(fit, validation, s) - y[validation]).mean() for s in strengths]
    best = float(strengths[np.argmin(errors)])
    assert best > 1e-6
    # Together with others, each target has its own strength.
    easy = Target("easy", "continuous", x[:, 0].astype(float), (), fit, validation, held_out)
    together = predict_linear(x, [easy, target])
    assert together[0] == pytest.approx(x[held_out, 0], abs=1e-3)
    assert together[1] == pytest.approx(solved(np.arange(110), held_out, best), abs=1e-6)


def test_errors_on_a_rare_class_are_shared_fairly(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch):
    """Each is recognized about equally often; without balance a probe would predict the common one."""
    monkeypatch.setattr(heads, "_MLP_STEPS", 150)
    z = rng.standard_normal((3000, 2)).astype(np.float32)
    rare = z[:, 0] + rng.standard_normal(3000)
    y = (rare > np.quantile(rare, 0.92)).astype(float)
    target = Target("y", "binary", y, (0.0, 1.0), np.arange(1200), np.arange(1200, 1700), np.arange(1700, 3000))
    for predicted in (predict_linear(z, [target])[0], predict_mlp(z, [target])[0]):
        right, truth = predicted.argmax(1) == y[1700:], y[1700:]
        assert abs(right[truth == 0].mean() - right[truth == 1].mean()) < 0.25


def test_a_small_square_on_noise_is_seen_by_the_cnn_and_missed_by_pca(rng: np.random.Generator):
    frames = rng.integers(0, 120, (5, 160, 12, 12, 1), np.uint8)
    x, y = rng.integers(0, 10, (2, 5, 160))
    for recording, frame in np.ndindex(5, 160):
        i, j = y[recording, frame], x[recording, frame]
        frames[recording, frame, i : i + 3, j : j + 3] = 250
    targets = {str(i): {"x": x[i], "left": x[i] < 5} for i in range(5)}
    recordings = {str(i): frames[i] for i in range(5)}
    pca = Pca.fit(list(frames[:4]), 3)
    table = probe([pca], recordings, targets, held_out=["4"], mlp=False, cnn_steps=200, device="cpu")
    assert table.representations == ["PCA", PIXELS]
    assert table.result("x", PIXELS).main.value > 0.85
    assert table.result("left", PIXELS).main.value > 0.95
    kept = table.keeps("x")
    assert (kept.reference_from, kept.verdict) == (PIXELS, "lost")
    assert kept.share is not None
    assert kept.share < 0.5


def test_the_cnn_learns_each_target_from_its_own_rows(rng: np.random.Generator):
    """A brightness, wrong in the frames where it is not known; a flag; and noise, only to be learnt by heart."""
    brightness = rng.integers(0, 200, 400)
    frames = (brightness[:, None, None, None] + rng.integers(0, 20, (400, 5, 7, 2))).astype(np.uint8)
    rows = np.arange(400)
    values = np.where(rows % 2 == 0, brightness, -1000.0)
    fit, validation, held_out = rows[:240:2], rows[240:300:2], rows[300::2]
    noise, flag = rng.standard_normal(400), (brightness > 100).astype(float)
    targets = [
        Target("y", "continuous", values, (), fit, validation, held_out),
        Target("b", "binary", flag, (0.0, 1.0), rows[1:240:2], rows[241:300:2], rows[350:]),
        Target("n", "continuous", noise, (), rows[:240], rows[240:300], rows[300:]),
        Target("twin", "continuous", values, (), fit, validation, rows[360:]),
    ]
    before = torch.random.get_rng_state()
    predicted, classes, guessed, twin = predict_cnn(frames, targets, steps=100, device="cpu")
    assert torch.equal(before, torch.random.get_rng_state())
    assert metrics.r2_score(brightness[held_out], predicted) > 0.9
    assert metrics.roc_auc_score(flag[350:], classes[:, 1] - classes[:, 0]) > 0.95
    assert metrics.r2_score(noise[300:], guessed) > -0.1  # stopped in time, though the others went on
    assert twin[::2] == pytest.approx(predicted[30:], abs=1e-3)
    assert np.array_equal(predicted, predict_cnn(frames, targets, steps=100, device="cpu")[0])
