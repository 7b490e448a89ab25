"""Probes on constructed cases: what is there is found, what is not there is not, and nothing leaks into the scores."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from latent_obs.util.errors import InputError
from tests.support.probe_cases import LENGTH, NAMES, RECORDINGS, TOTAL, Given, cut, numbered, run, score, targets_of
from vae_training.report.metrics.baselines import Pca
from vae_training.report.probes import heads
from vae_training.report.probes.heads import predict_cnn, predict_linear, predict_mlp
from vae_training.report.probes.probes import PIXELS, Head, ProbeResult, ProbeTable, probe
from vae_training.report.probes.scores import (
    FIT,
    HELD_OUT,
    UNUSED,
    VALIDATION,
    Score,
    auroc,
    score_amounts,
    score_classes,
    score_ratio,
    split_recordings,
)
from vae_training.report.probes.targets import Target, load_targets, prepare_targets

metrics = pytest.importorskip("sklearn.metrics")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "_MLP_STEPS", 250)


def metric(table: ProbeTable, name: str, target: str = "y") -> float:
    return next(s.value for s in table.result(target, "latent", "linear").scores if s.metric == name)


@pytest.mark.parametrize(("scale", "offset"), [(1e-4, 0), (1e3, 1e4)])
def test_targets_that_are_latents_are_read(rng: np.random.Generator, scale: float, offset: float):
    y = rng.standard_normal((TOTAL, 3))
    table = run(scale * y @ rng.standard_normal((3, 3)) + offset, {"y": 5 * y[:, 0] + 100, "other": y[:, 1]})
    assert min(score(table), score(table, "other")) > 0.999
    assert metric(table, "mae") < 0.1  # in units of y
    assert table.keeps("y").verdict == "kept"


def test_a_product_is_there_but_not_linearly_and_noise_is_not_there(rng: np.random.Generator):
    z = rng.standard_normal((TOTAL, 2))
    columns = {"y": z[:, 0] * z[:, 1], "noise": rng.standard_normal(TOTAL), "c": np.digitize(z[:, 0], [-0.5, 0.5])}
    before = torch.random.get_rng_state()
    table = run(z, columns, mlp=True)
    assert torch.equal(before, torch.random.get_rng_state())
    assert score(table, "c", "mlp") > 0.85
    assert score(table) < 0.2
    assert score(table, head="mlp") > 0.93
    assert (table.keeps("y").verdict, table.keeps("y").reference_from) == ("tangled", "latent, mlp")
    assert -0.2 < score(table, "noise") < 0.05
    assert -0.3 < score(table, "noise", "mlp") < 0.05
    assert (table.keeps("noise").verdict, table.keeps("noise").share) == ("not readable", None)


def test_recognizing_the_recording_is_not_reading(rng: np.random.Generator):
    """Latents that name the recording, and a target that goes with it: frames split at random would score almost 1."""
    place, value = rng.standard_normal((RECORDINGS, 16)), rng.standard_normal(RECORDINGS)
    of = np.repeat(np.arange(RECORDINGS), LENGTH)
    latents = place[of] + 0.1 * rng.standard_normal((TOTAL, 16))
    y = value[of] + 0.1 * rng.standard_normal(TOTAL)
    assert score(run(latents, {"y": y})) < 0.3
    shuffled = rng.permutation(TOTAL)
    assert score(run(latents[shuffled], {"y": y[shuffled]})) > 0.95


def test_latents_and_targets_stay_in_step_when_frames_are_left_out(rng: np.random.Generator):
    y = rng.standard_normal(TOTAL)
    result = run(y[:, None], {"y": y}, most_frames=250).result("y", "latent")
    assert result.learnt_from + result.scored_on == RECORDINGS * 20
    assert result.main.value > 0.999


def test_classes(rng: np.random.Generator):
    """Two, one of them rare, and three with numbers of their own; each against noise of the same kind."""
    z = rng.standard_normal((TOTAL, 3))
    columns = {"y": z[:, 0] > 0, "rare": z[:, 0] > np.quantile(z[:, 0], 0.9), "three": z.argmax(1) * 10 + 5}
    noise = {"noise": rng.random(TOTAL) > 0.5, "noise rare": rng.random(TOTAL) > 0.9}
    table = run(z, {**columns, **noise, "noise of three": rng.integers(0, 3, TOTAL)})
    assert table.result("y", "latent").kind == "binary"
    assert table.result("y", "latent").main.metric == "auroc"
    assert metric(table, "auroc") > 0.99
    assert metric(table, "balanced_accuracy") > 0.96
    assert metric(table, "auroc", "rare") > 0.98
    assert metric(table, "balanced_accuracy", "rare") > 0.88
    three = table.result("three", "latent")
    assert (three.kind, three.classes, three.main.metric) == ("categorical", 3, "balanced_accuracy")
    assert three.main.value > 0.9
    assert abs(metric(table, "auroc", "noise") - 0.5) < 0.12
    for name, chance in (("noise", 1 / 2), ("noise rare", 1 / 2), ("noise of three", 1 / 3)):
        assert abs(metric(table, "balanced_accuracy", name) - chance) < 0.2
    assert table.keeps("noise").verdict == "not readable"


def test_the_same_seed_gives_the_same_table_which_is_plain_json(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(heads, "_MLP_STEPS", 40)
    z = rng.standard_normal((TOTAL, 3))
    columns = {"y": z[:, 0] + 0.3 * rng.standard_normal(TOTAL), "b": z[:, 1] > 0.5, "none": np.zeros(TOTAL)}
    table = run(z, columns, mlp=True)
    assert run(z, columns, mlp=True) == table
    assert run(z, columns, seed=1).recordings != table.recordings
    written = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert [line["target"] + line["head"] for line in written["results"]] == ["blinear", "bmlp", "ylinear", "ymlp"]
    assert written["keeps"][0]["representation"] == "latent"
    assert list(written["left_out"]) == ["none"]


def test_bad_calls_are_refused(rng: np.random.Generator):
    z = rng.standard_normal((TOTAL, 2))
    frames, targets = cut(numbered()), targets_of(y=z[:, 0])
    for representations in ([Given(z), Given(z)], []):
        with pytest.raises(InputError, match="representations"):
            probe(representations, frames, targets)
    with pytest.raises(InputError, match="frames_by_recording"):
        probe([Given(z)], {**frames, "odd": np.zeros((5, 8, 8, 3), np.uint8)}, targets)
    with pytest.raises(InputError, match="latent"):
        probe([Given(np.full_like(z, np.nan))], frames, targets)
    for values in (z[:50, 0], z[:LENGTH]):
        with pytest.raises(InputError, match="'y' of r00"):
            probe([Given(z)], frames, {"r00": {"y": values}})
    with pytest.raises(InputError, match="strange"):
        probe([Given(z)], frames, {"strange": {"y": z[:LENGTH, 0]}})


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 200), min_size=3, max_size=30), st.integers(0, 5), st.integers(50, 3000))
def test_no_recording_has_two_uses(lengths: list[int], seed: int, most_frames: int):
    split = split_recordings({str(i): np.zeros(n) for i, n in enumerate(lengths)}, seed=seed, most_frames=most_frames)
    uses = [set(names) for names in split.recordings.values()]
    if not split.note:
        assert all(uses)
        assert sum(map(len, uses)) == len(set().union(*uses)) == len(lengths)
    fit, validation, held_out = uses
    assert not held_out & (fit | validation)
    at = 0
    for name, rows in split.rows.items():
        part = split.part[at : at + len(rows)]
        assert split.note or len(set(part)) == 1
        assert (name in held_out) == bool((part == HELD_OUT).any())
        at += len(rows)
    assert at == len(split.part) <= most_frames + len(lengths)
    assert ((split.unit >= 0) == (split.part == HELD_OUT)).all()


def test_a_single_recording_is_cut_with_gaps():
    split = split_recordings({"only": np.zeros(1000)})
    assert "last 25% of only" in split.note
    starts = [int(np.flatnonzero(split.part == which)[0]) for which in (FIT, VALIDATION, HELD_OUT)]
    assert starts == sorted(starts)
    assert [split.part[start - 1] for start in starts[1:]] == [UNUSED, UNUSED]
    assert split.resampled.startswith("blocks of")
    assert len(np.unique(split.unit)) > 30


def test_recordings_are_resampled_or_blocks_within_them():
    frames = {str(i): np.zeros(100) for i in range(100)}
    split = split_recordings(frames, seed=3)
    assert [len(names) for names in split.recordings.values()] == [60, 15, 25]
    assert (split.resampled, len(np.unique(split.unit))) == ("recordings", 26)
    assert split.recordings != split_recordings(frames, seed=4).recordings
    split = split_recordings({str(i): np.zeros(90) for i in range(8)})
    owner = np.repeat(np.arange(8), 90)
    assert np.bincount(split.unit[split.unit >= 0]).tolist() == [5] * 36
    assert split.resampled == "blocks of 5 frames"
    for unit in range(split.unit.max() + 1):
        frames = np.flatnonzero(split.unit == unit)
        assert len(set(owner[frames])) == 1
        assert (np.diff(frames) == 1).all()


def test_the_held_out_recordings_can_be_named():
    frames = cut(numbered()) | {"empty": np.zeros(0)}
    assert split_recordings(frames, held_out=["r02", "r05"]).recordings["held_out"] == ["r02", "r05"]
    for held_out in (["r99"], [], NAMES, ["empty"]):
        with pytest.raises(InputError, match="held_out"):
            split_recordings(frames, held_out=held_out)
    with pytest.raises(InputError, match="frames_by_recording"):
        split_recordings({"empty": np.zeros(0)})
    with pytest.raises(InputError, match="tiny"):
        split_recordings({"tiny": np.zeros(2)})


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
    found = auroc(labels, score_of, unit, copies.astype(float))[:, 0]
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
    # Nothing can be resampled where all frames are of one recording.
    alone = score_amounts(level, level, np.zeros(100, int))[0]
    assert (alone.value, alone.low, alone.high) == (1, None, None)


@pytest.mark.parametrize(
    ("linear", "cnn", "share", "verdict"),
    [(0.96, 1.0, 0.92, "kept"), (0.8, 1.0, 0.6, "partly kept"), (0.55, 0.9, 0.125, "lost"), (0.9, 0.6, 1.0, "kept")],
)
def test_what_is_kept_is_a_share_above_guessing(linear: float, cnn: float, share: float, verdict: str):
    def made(head: Head, value: float, representation: str) -> ProbeResult:
        return ProbeResult("y", "binary", representation, head, [Score("auroc", value, None, None)], 2, 100, 50)

    kept = ProbeTable([made("linear", linear, "latent"), made("cnn", cnn, PIXELS)], {}, {}, "recordings").keeps("y")
    assert (kept.verdict, kept.reference, kept.share) == (verdict, max(linear, cnn), pytest.approx(share))


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


def test_one_scale_for_all_keeps_what_varies_most_in_front(rng: np.random.Generator):
    """Few frames and many inputs of small spread: standardized one by one, these drown the two that matter."""
    x = (rng.standard_normal((300, 200)) * np.r_[10, 10, np.full(198, 0.1)]).astype(np.float32)
    y = x[:, 0].astype(float) + x[:, 1] + rng.standard_normal(300)
    target = Target("y", "continuous", y, (), np.arange(60), np.arange(60, 80), np.arange(80, 300))
    each, together = (
        metrics.r2_score(y[80:], predict_linear(1e-3 * x, [target], scale=scale)[0]) for scale in ("each", "together")
    )
    assert together > 0.9 > each + 0.1


def test_the_ratio_of_errors_has_an_interval_over_units(rng: np.random.Generator):
    other, units = rng.uniform(1, 2, 200), np.repeat(np.arange(20), 10)
    same = score_ratio(3 * other, other, units)
    assert [same.value, same.low, same.high] == pytest.approx([3, 3, 3])
    own = other * np.repeat(rng.uniform(0.5, 1.5, 20), 10)
    found = score_ratio(own, other, units)
    assert found.value == pytest.approx(own.mean() / other.mean())
    assert found.low is not None
    assert found.low < found.value - 0.05


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


def test_amounts_and_classes(rng: np.random.Generator):
    columns = {
        "flag": rng.random(TOTAL) > 0.5,
        "level": rng.integers(0, 4, TOTAL).astype(np.float32),
        "count": rng.integers(0, 30, TOTAL),
        "amount": rng.random(TOTAL),
        "two": np.where(rng.random(TOTAL) > 0.5, 0.25, 0.75),
        "rare": np.where(np.arange(TOTAL) == 3, 7, rng.integers(0, 2, TOTAL)),
    }
    targets = {t.name: t for t in prepare_targets(targets_of(**columns), split_recordings(cut(numbered())))[0]}
    assert {name: target.kind for name, target in targets.items()} == {
        "amount": "continuous",
        "count": "continuous",
        "flag": "binary",
        "level": "categorical",
        "rare": "binary",
        "two": "binary",
    }
    rare = targets["rare"]
    rows = np.concatenate([rare.fit, rare.validation, rare.held_out])
    assert sorted(rows) == [row for row in range(TOTAL) if row != 3]  # without the frame of the third class


def test_an_object_counts_where_it_is_visible(rng: np.random.Generator):
    z = rng.standard_normal((TOTAL, 2))
    visible = z[:, 1] > 0
    x = np.where(visible, z[:, 0], 0)
    table = run(z, {"object$Imp.visible": visible, "object$Imp.x": x, "x": x})
    result = table.result("object$Imp.x", "latent")
    assert result.main.value > 0.999
    assert result.learnt_from + result.scored_on == visible.sum()
    assert score(table, "x") < 0.8  # with the zeros in it
    assert score(table, "object$Imp.visible") > 0.99


def test_what_is_not_known_does_not_count(rng: np.random.Generator):
    z = rng.standard_normal((TOTAL, 2))
    given = targets_of(y=np.where(rng.random(TOTAL) < 0.5, z[:, 0], np.nan))
    del given["r03"]
    given["r04"] = {}
    table = probe([Given(z)], cut(numbered()), given, cnn=False, mlp=False)
    assert score(table) > 0.999
    assert 0.35 * TOTAL < table.results[0].learnt_from + table.results[0].scored_on < 0.5 * TOTAL


def test_each_target_left_out_has_its_reason(rng: np.random.Generator):
    z = rng.standard_normal((TOTAL, 2))
    few = np.zeros(TOTAL, bool)
    few[::40] = True
    held_out = np.repeat(np.isin(np.arange(RECORDINGS), [0, 1, 2]), LENGTH)
    columns = {
        "constant": np.full(TOTAL, 3.0),
        "unknown": np.full(TOTAL, np.nan),
        "object$Few.visible": few,
        "object$Few.x": z[:, 0],
        "object$None.visible": np.zeros(TOTAL, bool),
        "object$None.x": z[:, 0],
        "elsewhere": np.where(held_out, 1.0, z[:, 0]),
        "never": np.where(held_out, 0, z[:, 0] > 0),
        "y": z[:, 0],
    }
    table = run(z, columns, held_out=NAMES[:3])
    assert table.targets == ["y"]
    assert set(table.left_out) == set(columns) - {"y"}
    assert len(set(table.left_out.values())) == len(table.left_out)
    with pytest.raises(InputError, match="never"):
        table.result("never", "latent")
    assert run(z, {"constant": np.ones(TOTAL)}, cnn=True).results == []


def test_what_the_validation_recordings_lack_is_tuned_on_others(rng: np.random.Generator):
    split = split_recordings(cut(numbered()))
    z = rng.standard_normal((TOTAL, 2))
    lacking = np.repeat(np.isin(NAMES, split.recordings["validation"]), LENGTH)
    columns = {"y": np.where(lacking, np.nan, z[:, 0]), "b": np.where(lacking, 0, z[:, 0] > 0)}
    targets, left_out = prepare_targets(targets_of(**columns), split)
    assert not left_out
    for target in targets:
        assert not set(target.fit) & set(target.validation)
        assert not (set(target.fit) | set(target.validation)) & set(target.held_out)
        assert len(target.validation) > 50
        assert (split.part[target.held_out] == HELD_OUT).all()
    assert score(run(z, columns)) > 0.999


def test_targets_of_a_file(tmp_path: Path):
    frames = {"a": np.zeros((3, 4, 4, 3)), "b": np.zeros((2, 4, 4, 3))}
    arrays: dict[str, Any] = {"whole": np.arange(5), "pair": np.arange(10).reshape(5, 2), "b/own": np.array([1.5, 2.5])}
    np.savez(tmp_path / "t.npz", **arrays)
    given = load_targets(tmp_path / "t.npz", frames)
    plain = {name: {key: values.tolist() for key, values in columns.items()} for name, columns in given.items()}
    assert plain == {
        "a": {"whole": [0, 1, 2], "pair.0": [0, 2, 4], "pair.1": [1, 3, 5]},
        "b": {"whole": [3, 4], "pair.0": [6, 8], "pair.1": [7, 9], "own": [1.5, 2.5]},
    }


@pytest.mark.parametrize(
    "array", [np.arange(4), np.array(["a"] * 5), np.zeros((5, 1, 1)), np.array([{}] * 5, dtype=object)]
)
def test_other_arrays_in_a_file_are_refused(tmp_path: Path, array: NDArray[Any]):
    np.savez(tmp_path / "t.npz", odd=array)
    with pytest.raises(InputError, match="odd"):
        load_targets(tmp_path / "t.npz", {"a": np.zeros(3), "b": np.zeros(2)})


@pytest.mark.parametrize("content", [b"no zip", b"PK\x03\x04 cut short"])
def test_a_file_of_no_arrays_is_refused(tmp_path: Path, content: bytes):
    file = tmp_path / "t.npz"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"t\.npz"):
        load_targets(file, {"a": np.zeros(3)})
