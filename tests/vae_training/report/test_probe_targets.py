"""Targets of probes: which are amounts and which classes, where they are known, what is left out, and from a file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from latent_obs.util.errors import InputError
from tests.support.probe_cases import LENGTH, NAMES, RECORDINGS, TOTAL, Given, cut, numbered, run, score, targets_of
from vae_training.report.probes.probes import probe
from vae_training.report.probes.scores import HELD_OUT, split_recordings
from vae_training.report.probes.targets import load_targets, prepare_targets

pytest.importorskip("sklearn")


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
    "array", [np.arange(4), np.array(["a"] * 5), np.zeros((5, 1, 1)), np.float64(1), np.array([{}] * 5, dtype=object)]
)
def test_other_arrays_in_a_file_are_refused(tmp_path: Path, array: NDArray[Any]):
    np.savez(tmp_path / "t.npz", odd=array)
    with pytest.raises(InputError, match="odd"):
        load_targets(tmp_path / "t.npz", {"a": np.zeros(3), "b": np.zeros(2)})


@pytest.mark.parametrize("content", [None, b"no zip", b"PK\x03\x04 cut short"])
def test_a_file_of_no_arrays_is_refused(tmp_path: Path, content: bytes | None):
    file = tmp_path / "t.npz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"t\.npz"):
        load_targets(file, {"a": np.zeros(3)})
