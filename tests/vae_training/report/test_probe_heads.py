"""What probes predict with: the linear one against the normal equations, fairness to rare classes, and the CNN on
pixels."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vae_training.report.metrics.baselines import Pca
from vae_training.report.probes.heads import predict_cnn, predict_linear, predict_mlp
from vae_training.report.probes.probes import probe
from vae_training.report.probes.table import PIXELS
from vae_training.report.probes.targets import Target

metrics = pytest.importorskip("sklearn.metrics")


# -- the linear probe
# ----------------------------------------------------------------------------------------------------------


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
    learn = np.arange(110)
    assert predict_linear(x, [target])[0] == pytest.approx(solved(learn, held_out, best), abs=1e-6)
    # Together with others, each target has its own strength.
    easy = Target("easy", "continuous", x[:, 0].astype(float), (), fit, validation, held_out)
    together = predict_linear(x, [easy, target])
    assert together[1] == pytest.approx(predict_linear(x, [target])[0], abs=1e-9)
    assert together[0] == pytest.approx(x[held_out, 0], abs=1e-3)


def test_doubt_about_a_rare_class_is_shared_fairly(rng: np.random.Generator):
    """Where classes overlap, both are told about equally well; unbalanced, a probe would nearly always say the common
    one."""
    z = rng.standard_normal((3000, 2)).astype(np.float32)
    rare = z[:, 0] + rng.standard_normal(3000)
    y = (rare > np.quantile(rare, 0.92)).astype(float)
    target = Target("y", "binary", y, (0.0, 1.0), np.arange(1200), np.arange(1200, 1700), np.arange(1700, 3000))
    for predicted in (predict_linear(z, [target])[0], predict_mlp(z, [target])[0]):
        right, truth = predicted.argmax(1) == y[1700:], y[1700:]
        assert abs(right[truth == 0].mean() - right[truth == 1].mean()) < 0.25


# -- pixels
# --------------------------------------------------------------------------------------------------------------------


def squares(
    count: int, seed: int, size: int = 20
) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64]]:
    """A bright square of 3x3 pixels on noise, and where it is."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 120, (count, size, size, 1), np.uint8)
    x, y = rng.integers(0, size - 2, (2, count))
    for i in range(count):
        frames[i, y[i] : y[i] + 3, x[i] : x[i] + 3] = 250
    return frames, x.astype(float), y.astype(float)


def test_a_small_square_on_noise_is_seen_by_the_cnn_and_missed_by_pca():
    made = {f"r{i}": squares(250, i) for i in range(6)}
    frames = {name: frames for name, (frames, _, _) in made.items()}
    targets = {name: {"x": x, "left": x < 9} for name, (_, x, _) in made.items()}
    pca = Pca.fit([frames[f"r{i}"] for i in range(5)], 4)
    table = probe([pca], frames, targets, held_out=["r5"], mlp=False, cnn_steps=400, device="cpu")
    assert table.representations == ["PCA", PIXELS]
    assert table.result("x", PIXELS).main.value > 0.9
    assert table.result("left", PIXELS).main.value > 0.97
    kept = table.keeps("x")
    assert (kept.reference_from, kept.verdict) == (PIXELS, "lost")
    assert kept.share is not None
    assert kept.share < 0.5


def test_the_cnn_learns_each_target_from_its_own_rows(rng: np.random.Generator):
    """A brightness, known in half of the frames, and a lie in the others; a flag; and noise, only to be learnt by
    heart."""
    brightness = rng.integers(0, 200, 400)
    frames = (brightness[:, None, None, None] + rng.integers(0, 20, (400, 9, 13, 2))).astype(np.uint8)
    rows = np.arange(400)
    values = np.where(rows % 2 == 0, brightness, -1000.0)
    fit, validation, held_out = rows[:240:2], rows[240:300:2], rows[300::2]
    noise = rng.standard_normal(400)
    targets = [
        Target("y", "continuous", values, (), fit, validation, held_out),
        Target("b", "binary", (brightness > 100).astype(float), (0.0, 1.0), rows[1:240:2], rows[241:300:2], rows[350:]),
        Target("n", "continuous", noise, (), rows[:240], rows[240:300], rows[300:]),
        Target("twin", "continuous", values, (), fit, validation, rows[360:]),
    ]
    before = torch.random.get_rng_state()
    predicted, classes, guessed, twin = predict_cnn(frames, targets, steps=200, device="cpu")
    assert torch.equal(before, torch.random.get_rng_state())
    assert metrics.r2_score(brightness[held_out], predicted) > 0.9
    assert metrics.roc_auc_score(brightness[350:] > 100, classes[:, 1] - classes[:, 0]) > 0.95
    assert metrics.r2_score(noise[300:], guessed) > -0.1  # stopped in time, though the others went on
    assert twin[::2] == pytest.approx(predicted[30:], abs=1e-3)
    again = predict_cnn(frames, targets, steps=200, device="cpu")
    assert np.array_equal(predicted, again[0])
    assert not np.array_equal(predicted, predict_cnn(frames, targets, steps=200, device="cpu", seed=1)[0])
