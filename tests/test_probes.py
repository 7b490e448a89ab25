"""Probes on constructed cases: what is there is found, what is not there is not, and a split that leaks would show."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from latent_obs.errors import InputError
from vae_training.report import probes
from vae_training.report.baselines import MeanImage, Pca
from vae_training.report.probe_cnn import predict_cnn
from vae_training.report.probe_heads import predict_linear, predict_mlp
from vae_training.report.probe_scores import Score, _auroc, score_amounts, score_classes
from vae_training.report.probe_split import FIT, HELD_OUT, UNUSED, VALIDATION, split_recordings
from vae_training.report.probe_table import PIXELS, Head, ProbeResult, ProbeTable
from vae_training.report.probe_targets import Target, load_targets, prepare_targets
from vae_training.report.probes import probe

metrics = pytest.importorskip("sklearn.metrics")

RECORDINGS, LENGTH = 12, 60
TOTAL = RECORDINGS * LENGTH
NAMES = [f"r{i:02}" for i in range(RECORDINGS)]


def numbered(total: int = TOTAL) -> NDArray[np.uint8]:
    """Frames that hold nothing but their number."""
    frames = np.zeros((total, 4, 4, 3), np.uint8)
    frames[:, 0, 0, 0], frames[:, 0, 0, 1] = np.arange(total) % 256, np.arange(total) // 256
    return frames


@dataclass(frozen=True)
class Given:
    """Latents as wished: row i for the frame with number i."""

    table: NDArray[Any]
    name: str = "latent"

    @property
    def dim(self) -> int:
        return self.table.shape[1]

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.table[frames[:, 0, 0, 0].astype(int) + 256 * frames[:, 0, 0, 1].astype(int)].astype(np.float32)


def cut(array: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {name: array[i * LENGTH : (i + 1) * LENGTH] for i, name in enumerate(NAMES)}


def targets_of(**columns: NDArray[Any]) -> dict[str, dict[str, NDArray[Any]]]:
    return {name: {key: cut(column)[name] for key, column in columns.items()} for name in NAMES}


def run(latents: NDArray[Any], columns: Mapping[str, NDArray[Any]], **settings: Any) -> ProbeTable:
    return probe([Given(latents)], cut(numbered()), targets_of(**columns), **{"cnn": False, "mlp": False, **settings})


def score(table: ProbeTable, target: str = "y", head: Head = "linear") -> float:
    return table.result(target, "latent", head).main.value


def metric(table: ProbeTable, name: str, target: str = "y") -> float:
    return next(s.value for s in table.result(target, "latent", "linear").scores if s.metric == name)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# -- what is there, and what is not ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1e-4, 0), (1e3, 1e4)])
def test_targets_that_are_latents_are_read(rng: np.random.Generator, scale: float, offset: float):
    y = rng.standard_normal((TOTAL, 3))
    table = run(scale * y @ rng.standard_normal((3, 3)) + offset, {"y": 5 * y[:, 0] + 100, "other": y[:, 1]})
    assert score(table) > 0.999
    assert score(table, "other") > 0.999
    assert metric(table, "mae") < 0.1  # in units of y
    assert table.keeps("y").verdict == "kept"


def test_networks_read_them_too(rng: np.random.Generator):
    z = rng.standard_normal((TOTAL, 4))
    table = run(z, {"y": 1000 + 50 * z[:, 0], "b": z[:, 1] > 0, "c": np.digitize(z[:, 2], [-0.5, 0.5])}, mlp=True)
    assert score(table, "y", "mlp") > 0.98
    assert score(table, "b", "mlp") > 0.98
    assert score(table, "c", "mlp") > 0.85


def test_noise_tells_nothing(rng: np.random.Generator):
    table = run(rng.standard_normal((TOTAL, 20)), {"y": rng.standard_normal(TOTAL)}, mlp=True)
    assert -0.2 < score(table) < 0.05
    assert -0.3 < score(table, head="mlp") < 0.05
    kept = table.keeps("y")
    assert (kept.verdict, kept.share) == ("not readable", None)


def test_a_product_is_there_but_not_linearly(rng: np.random.Generator):
    z = rng.standard_normal((TOTAL, 2))
    table = run(z, {"y": z[:, 0] * z[:, 1]}, mlp=True)
    assert score(table) < 0.2
    assert score(table, head="mlp") > 0.8
    kept = table.keeps("y")
    assert (kept.verdict, kept.reference_from) == ("lost", "latent, mlp")


def test_recognising_the_recording_is_not_reading(rng: np.random.Generator):
    """Latents that name the recording, and a target that goes with it: frames split at random would score almost 1."""
    place, value = rng.standard_normal((RECORDINGS, 16)), rng.standard_normal(RECORDINGS)
    of = np.repeat(np.arange(RECORDINGS), LENGTH)
    latents = place[of] + 0.1 * rng.standard_normal((TOTAL, 16))
    y = value[of] + 0.1 * rng.standard_normal(TOTAL)
    apart = run(latents, {"y": y})
    shuffled = rng.permutation(TOTAL)
    mixed = run(latents[shuffled], {"y": y[shuffled]})
    assert score(apart) < 0.3
    assert score(mixed) > 0.95


def test_latents_and_targets_stay_in_step_when_frames_are_left_out(rng: np.random.Generator):
    y = rng.standard_normal(TOTAL)
    table = run(y[:, None], {"y": y}, most_frames=250)
    result = table.result("y", "latent")
    assert result.learnt_from + result.scored_on == RECORDINGS * 20
    assert result.main.value > 0.999


def test_a_constant_vector_gets_the_mean(rng: np.random.Generator):
    y = rng.standard_normal(TOTAL)
    frames = cut(numbered())
    table = probe([MeanImage.fit(list(frames.values()))], frames, targets_of(y=y), cnn=False)
    for head in ("linear", "mlp"):
        assert table.result("y", "mean image", head).main.value == pytest.approx(0, abs=0.05)


# -- classes ----------------------------------------------------------------------------------------------------------------


def test_binary_perfect_and_at_chance(rng: np.random.Generator):
    z = rng.standard_normal((TOTAL, 4))
    table = run(z, {"y": z[:, 0] > 0, "noise": rng.random(TOTAL) > 0.5})
    assert table.result("y", "latent").kind == "binary"
    assert table.result("y", "latent").main.metric == "auroc"
    assert metric(table, "auroc") > 0.99
    assert metric(table, "balanced_accuracy") > 0.96
    assert abs(metric(table, "auroc", "noise") - 0.5) < 0.12
    assert abs(metric(table, "balanced_accuracy", "noise") - 0.5) < 0.12
    assert table.keeps("noise").verdict == "not readable"


@pytest.mark.parametrize("mlp", [False, True])
def test_a_rare_class_counts_as_much_as_a_common_one(rng: np.random.Generator, mlp: bool):
    z = rng.standard_normal((TOTAL, 4))
    y, noise = (z[:, 0] > np.quantile(z[:, 0], 0.9)).astype(np.float32), (rng.random(TOTAL) > 0.9).astype(np.float32)
    table = run(z, {"y": y, "noise": noise}, mlp=mlp)
    head = "mlp" if mlp else "linear"
    found = {s.metric: s.value for s in table.result("y", "latent", head).scores}
    assert found["auroc"] > 0.98
    assert found["balanced_accuracy"] > 0.88
    assert abs({s.metric: s.value for s in table.result("noise", "latent", head).scores}["balanced_accuracy"] - 0.5) < 0.2


def test_doubt_about_a_rare_class_is_shared_fairly(rng: np.random.Generator):
    """Where classes overlap, both are told about equally well; unbalanced, a probe would nearly always say the common one."""
    z = rng.standard_normal((3000, 2)).astype(np.float32)
    rare = z[:, 0] + rng.standard_normal(3000)
    y = (rare > np.quantile(rare, 0.92)).astype(float)
    target = Target("y", "binary", y, (0.0, 1.0), np.arange(1200), np.arange(1200, 1700), np.arange(1700, 3000))
    for predicted in (predict_linear(z, [target])[0], predict_mlp(z, [target])[0]):
        right, truth = predicted.argmax(1) == y[1700:], y[1700:]
        assert abs(right[truth == 0].mean() - right[truth == 1].mean()) < 0.25


def test_several_classes(rng: np.random.Generator):
    z = rng.standard_normal((TOTAL, 3))
    y = z.argmax(1) * 10 + 5  # the classes have numbers of their own
    table = run(z, {"y": y, "noise": rng.integers(0, 3, TOTAL)})
    result = table.result("y", "latent")
    assert (result.kind, result.classes, result.chance) == ("categorical", 3, pytest.approx(1 / 3))
    assert result.main.metric == "balanced_accuracy"
    assert result.main.value > 0.9
    assert abs(score(table, "noise") - 1 / 3) < 0.12


def test_amounts_and_classes_are_told_apart(rng: np.random.Generator):
    split = split_recordings(cut(numbered()))
    columns = {
        "flag": rng.random(TOTAL) > 0.5,
        "level": rng.integers(0, 4, TOTAL).astype(np.float32),
        "count": rng.integers(0, 30, TOTAL),
        "amount": rng.random(TOTAL),
        "two": np.where(rng.random(TOTAL) > 0.5, 0.25, 0.75),
        "rare": np.where(np.arange(TOTAL) == 3, 7, rng.integers(0, 2, TOTAL)),
    }
    kinds = {target.name: target.kind for target in prepare_targets(targets_of(**columns), split)[0]}
    assert kinds == {"amount": "continuous", "count": "continuous", "flag": "binary", "level": "categorical",
                     "rare": "binary", "two": "binary"}  # fmt: skip
    rare = next(target for target in prepare_targets(targets_of(**columns), split)[0] if target.name == "rare")
    assert len(rare.fit) + len(rare.validation) + len(rare.held_out) == TOTAL - 1  # without the frame of the third class
    assert 3 not in np.concatenate([rare.fit, rare.validation, rare.held_out])
    told = prepare_targets(targets_of(**columns), split, {"level": "continuous"})[0]
    assert {target.name: target.kind for target in told}["level"] == "continuous"
    with pytest.raises(InputError, match="levle"):
        prepare_targets(targets_of(**columns), split, {"levle": "continuous"})


# -- what is not known, and what is left out ---------------------------------------------------------------------------------


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
    for name, reason in {
        "constant": r"constant \(3\)",
        "unknown": "known in no frame",
        "object$Few.visible": "two classes with 10 frames",
        "object$Few.x": "visible in .* fewer than 50 and 20",
        "object$None.x": "visible in no frame",
        "elsewhere": "constant in the recordings held out",
        "never": "two classes",
    }.items():
        with pytest.raises(InputError, match=reason):
            table.result(name, "latent")
    assert "Left out: `constant`" in table.to_markdown()
    nothing = run(z, {"constant": np.ones(TOTAL)}, cnn=True)
    assert nothing.results == []
    assert "No target could be probed" in nothing.to_markdown()


def test_what_the_validation_recordings_lack_is_tuned_on_others(rng: np.random.Generator):
    split = split_recordings(cut(numbered()))
    z = rng.standard_normal((TOTAL, 2))
    lacking = np.repeat(np.isin(NAMES, split.validation), LENGTH)
    columns = {"y": np.where(lacking, np.nan, z[:, 0]), "b": np.where(lacking, 0, z[:, 0] > 0)}
    targets, left_out = prepare_targets(targets_of(**columns), split)
    assert not left_out
    for target in targets:
        assert not set(target.fit) & set(target.validation)
        assert not (set(target.fit) | set(target.validation)) & set(target.held_out)
        assert len(target.validation) > 50
        assert (split.part[target.held_out] == HELD_OUT).all()
    assert score(run(z, columns)) > 0.999


# -- the split ---------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 200), min_size=3, max_size=30), st.integers(0, 5), st.integers(50, 3000))
def test_no_recording_has_two_uses(lengths: list[int], seed: int, most_frames: int):
    split = split_recordings({str(i): np.zeros(n) for i, n in enumerate(lengths)}, seed=seed, most_frames=most_frames)
    uses = [set(split.fit), set(split.validation), set(split.held_out)]
    if not split.note:
        assert all(uses)
        assert sum(map(len, uses)) == len(set().union(*uses)) == len(lengths)
    assert not set(split.held_out) & (set(split.fit) | set(split.validation))
    at = 0
    for name, rows in split.rows.items():
        part = split.part[at : at + len(rows)]
        if not split.note:
            assert len(set(part)) == 1
        assert (name in split.held_out) == bool((part == HELD_OUT).any())
        at += len(rows)
    assert at == len(split.part)
    assert at <= most_frames + len(lengths)
    assert ((split.unit >= 0) == (split.part == HELD_OUT)).all()


def test_shares_of_the_split():
    split = split_recordings({str(i): np.zeros(100) for i in range(100)}, seed=3)
    assert [len(part) for part in (split.fit, split.validation, split.held_out)] == [60, 15, 25]
    assert split.resampled == "recordings"
    assert len(np.unique(split.unit)) == 26
    assert split.held_out != split_recordings({str(i): np.zeros(100) for i in range(100)}, seed=4).held_out


def test_a_single_recording_is_cut_with_gaps():
    split = split_recordings({"only": np.zeros(1000)})
    assert "last 25% of only" in split.note
    starts = [int(np.flatnonzero(split.part == which)[0]) for which in (FIT, VALIDATION, HELD_OUT)]
    assert starts == sorted(starts)
    for which in (VALIDATION, HELD_OUT):
        assert split.part[np.flatnonzero(split.part == which)[0] - 1] == UNUSED
    assert split.resampled.startswith("blocks of")
    assert len(np.unique(split.unit)) > 30


def test_blocks_stay_within_a_recording():
    split = split_recordings({str(i): np.zeros(90) for i in range(8)})
    owner = np.repeat(np.arange(8), 90)
    assert np.bincount(split.unit[split.unit >= 0]).tolist() == [5] * 36
    assert split.resampled == "blocks of 5 frames"
    for unit in range(split.unit.max() + 1):
        frames = np.flatnonzero(split.unit == unit)
        assert len(set(owner[frames])) == 1
        assert (np.diff(frames) == 1).all()


def test_the_held_out_recordings_can_be_named():
    frames = cut(numbered())
    split = split_recordings(frames, held_out=["r02", "r05"])
    assert split.held_out == ("r02", "r05")
    assert {name: len(part) for name, part in split.rows.items()} == dict.fromkeys(NAMES, LENGTH)
    with pytest.raises(InputError, match="r99"):
        split_recordings(frames, held_out=["r99"])
    with pytest.raises(InputError, match="no recordings"):
        split_recordings(frames, held_out=[])
    with pytest.raises(InputError, match="nothing to learn from"):
        split_recordings(frames, held_out=NAMES)
    with pytest.raises(InputError, match="no frames"):
        split_recordings({"a": np.zeros(0)})
    with pytest.raises(InputError, match="have no frames"):
        split_recordings({"a": np.zeros(0), "b": np.zeros(9)}, held_out=["a"])
    with pytest.raises(InputError, match="too few"):
        split_recordings({"a": np.zeros(2)})


# -- scores ------------------------------------------------------------------------------------------------------------------


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
    """Two recordings far apart, told apart but no more: half of the resamples hold only one of them, and explain nothing."""
    level = np.repeat([-10.0, 10.0], 50)
    found = score_amounts(level + rng.standard_normal(100), level, np.repeat([0, 1], 50))[0]
    assert found.value > 0.95
    assert found.low is not None
    assert abs(found.low) < 0.1


def test_an_interval_has_its_coverage(rng: np.random.Generator):
    """Of a mean error whose true value is 1."""
    inside = 0
    for seed in range(60):
        error = np.repeat(rng.exponential(1, 30), 4)
        truth = rng.standard_normal(120)
        found = score_amounts(truth, truth + error, np.repeat(np.arange(30), 4), seed)[1]
        inside += found.low <= 1 <= found.high  # pyright: ignore
    assert inside >= 50


def test_no_interval_where_nothing_can_be_resampled():
    labels, scores = np.array([0, 0, 1, 1]), np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    for found in score_classes(labels, scores, np.zeros(4, int)):
        assert (found.value, found.low, found.high) == (1, None, None)
        assert found.text == "1.00"


# -- the linear probe ----------------------------------------------------------------------------------------------------------


def test_ridge_is_the_best_of_its_strengths_fitted_anew(rng: np.random.Generator):
    """By the normal equations: the strength by the validation rows, then a fit on both."""
    x = rng.standard_normal((200, 30)).astype(np.float32)
    y = x[:, :3].sum(1) + 3 * rng.standard_normal(200)
    fit, validation, held_out = np.arange(60), np.arange(60, 110), np.arange(110, 200)
    target = Target("y", "continuous", y.astype(float), (), fit, validation, held_out)

    def solved(learn: NDArray[np.intp], test: NDArray[np.intp], strength: float) -> NDArray[np.float64]:
        mean, std = x[learn].mean(0, dtype=float), x[learn].std(0, dtype=float)
        a, b = (x[learn] - mean) / std, (x[test] - mean) / std
        gram = a.T @ a + strength * len(learn) * np.eye(30)
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


# -- pixels --------------------------------------------------------------------------------------------------------------------


def squares(count: int, seed: int, size: int = 20) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64]]:
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
    assert PIXELS in table.to_markdown()


def test_the_cnn_learns_each_target_from_its_own_rows(rng: np.random.Generator):
    """A brightness, known in half of the frames, and a lie in the others; a flag; and noise, only to be learnt by heart."""
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


# -- the whole ----------------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_table(rng: np.random.Generator):
    z = rng.standard_normal((TOTAL, 3))
    columns = {"y": z[:, 0] + 0.3 * rng.standard_normal(TOTAL), "b": z[:, 1] > 0.5}
    before = torch.random.get_rng_state()
    table = run(z, columns, mlp=True)
    assert torch.equal(before, torch.random.get_rng_state())
    assert run(z, columns, mlp=True) == table
    assert run(z, columns, mlp=True, seed=1) != table


def test_a_table_is_plain_json_and_a_markdown_table(rng: np.random.Generator):
    z = rng.standard_normal((TOTAL, 3))
    table = run(z, {"y": z[:, 0], "b": z[:, 1] > 0.5, "c|d": z.argmax(1), "none": np.zeros(TOTAL)})
    written = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert written["keeps"][0]["representation"] == "latent"
    assert written["left_out"] == {"none": "constant (0)"}
    rows = json.loads(json.dumps(table.rows(), allow_nan=False))
    assert [row["target"] for row in rows] == ["b", "c|d", "y"]
    assert rows[2]["r2_low"] <= rows[2]["r2"] <= rows[2]["r2_high"]
    lines = table.to_markdown().splitlines()
    assert lines[1].count("|") == lines[2].count("|") == lines[0].count("|")
    assert "kept (100%)" in lines[2]
    assert "c\\|d" in lines[3]


def made(head: Head, value: float, name: str = "auroc", representation: str = "latent") -> ProbeResult:
    return ProbeResult("y", "binary", representation, head, [Score(name, value, None, None)], 2, 100, 50)


@pytest.mark.parametrize(
    ("linear", "cnn", "share", "said"),
    [(0.96, 1.0, 0.92, "kept"), (0.8, 1.0, 0.6, "partly kept"), (0.55, 0.9, 0.125, "lost"), (0.4, 0.9, 0.0, "lost"),
     (0.5, 0.52, None, "not readable"), (0.9, 0.6, 1.0, "kept")],
)  # fmt: skip
def test_what_is_kept_is_a_share_above_guessing(linear: float, cnn: float, share: float | None, said: str):
    table = ProbeTable([made("linear", linear), made("cnn", cnn, representation=PIXELS)], {}, {}, "recordings")
    kept = table.keeps("y")
    assert kept.verdict == said
    assert kept.share == (None if share is None else pytest.approx(share))
    assert kept.reference == max(linear, cnn)


def test_bad_calls_are_refused(rng: np.random.Generator):
    z = rng.standard_normal((TOTAL, 2))
    frames, targets = cut(numbered()), targets_of(y=z[:, 0])
    with pytest.raises(InputError, match="names of their own"):
        probe([Given(z), Given(z)], frames, targets)
    with pytest.raises(InputError, match="names of their own"):
        probe([], frames, targets)
    with pytest.raises(InputError, match="several shapes"):
        probe([Given(z)], {**frames, "odd": np.zeros((5, 8, 8, 3), np.uint8)}, targets)
    with pytest.raises(InputError, match="not finite"):
        probe([Given(np.full_like(z, np.nan))], frames, targets)
    with pytest.raises(InputError, match=r"r00 .* 60 frames"):
        probe([Given(z)], frames, {"r00": {"y": z[:50, 0]}})
    with pytest.raises(InputError, match="r00"):
        probe([Given(z)], frames, {"r00": {"y": z[:LENGTH]}})
    with pytest.raises(InputError, match="strange"):
        probe([Given(z)], frames, {"strange": {"y": z[:LENGTH, 0]}})


# -- targets from a file -----------------------------------------------------------------------------------------------------


def test_targets_of_a_file(tmp_path: Path):
    frames = {"a": np.zeros((3, 4, 4, 3)), "b": np.zeros((2, 4, 4, 3))}
    arrays: dict[str, Any] = {"whole": np.arange(5), "pair": np.arange(10).reshape(5, 2), "b/own": np.array([1.5, 2.5])}
    np.savez(tmp_path / "t.npz", **arrays)
    given = load_targets(tmp_path / "t.npz", frames)
    assert {k: v.tolist() for k, v in given["a"].items()} == {"whole": [0, 1, 2], "pair.0": [0, 2, 4], "pair.1": [1, 3, 5]}
    assert {k: v.tolist() for k, v in given["b"].items()} == {
        "whole": [3, 4], "pair.0": [6, 8], "pair.1": [7, 9], "own": [1.5, 2.5],
    }  # fmt: skip


@pytest.mark.parametrize("array", [np.arange(4), np.array(["a"] * 5), np.zeros((5, 1, 1)), np.float64(1)])
def test_other_arrays_in_a_file_are_refused(tmp_path: Path, array: NDArray[Any]):
    np.savez(tmp_path / "t.npz", odd=array)
    with pytest.raises(InputError, match=r"'odd' is .* each of the 5 frames"):
        load_targets(tmp_path / "t.npz", {"a": np.zeros(3), "b": np.zeros(2)})


@pytest.mark.parametrize("content", [None, b"", b"no zip", b"PK\x03\x04 cut short"])
def test_a_file_of_no_arrays_is_refused(tmp_path: Path, content: bytes | None):
    file = tmp_path / "t.npz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"t\.npz cannot be read"):
        load_targets(file, {"a": np.zeros(3)})


def test_objects_in_a_file_are_never_loaded(tmp_path: Path):
    np.savez(tmp_path / "t.npz", odd=np.array([{}, {}, {}], dtype=object))
    with pytest.raises(InputError, match="objects"):
        load_targets(tmp_path / "t.npz", {"a": np.zeros(3)})


def test_the_public_names_are_there():
    assert all(hasattr(probes, name) for name in probes.__all__)
