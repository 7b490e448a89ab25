"""Actions that are one vector, and Centroids: fitted as numpy and common sense say, and kept without pickle."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from latent_obs.actions import CentroidActions, Centroids, VectorActions, fit_centroids
from latent_obs.util.errors import InputError, MissingExtraError
from tests.support.action_envs import CAMERA, CODE, KEYED, Coded, Recorder

pytest.importorskip("sklearn")


def blobs(
    k: int = 6, d: int = 5, per: int = 40, spread: float = 0.01, seed: int = 0
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Actions around k far centers, more around the first ones."""
    rng = np.random.default_rng(seed)
    centers = rng.permutation(np.arange(k * d)).reshape(k, d) / 2.0
    labels = np.repeat(np.arange(k), per + 10 * np.arange(k)[::-1])
    actions = centers[labels] + spread * rng.normal(size=(len(labels), d))
    return rng.permutation(actions).astype(np.float32), centers


def test_far_groups_are_found():
    actions, centers = blobs()
    centroids = fit_centroids(actions, k=6)
    assert centroids.vectors.dtype == np.float32
    assert centroids.counts.tolist() == [90, 80, 70, 60, 50, 40]  # the most frequent first
    np.testing.assert_allclose(centroids.vectors, centers, atol=0.01)
    distances = ((actions[:, None].astype(np.float64) - centroids.vectors) ** 2).sum(-1)
    assert centroids.inertia == pytest.approx(distances.min(axis=1).sum(), rel=1e-4)
    np.testing.assert_array_equal(np.bincount(distances.argmin(1)), centroids.counts)
    assert centroids.source == "an array of 390 actions"


def test_the_seed_decides_and_the_global_random_state_is_left_alone():
    actions = np.random.default_rng(1).normal(size=(300, 4))
    before = repr(np.random.get_state())  # noqa: NPY002
    one, again, other = (fit_centroids(actions, k=9, seed=seed, n_init=1) for seed in (3, 3, 4))
    assert repr(np.random.get_state()) == before  # noqa: NPY002
    np.testing.assert_array_equal(one.vectors, again.vectors)
    assert one.inertia == again.inertia
    assert not np.array_equal(one.vectors, other.vectors)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 12), st.integers(0, 5), st.integers(1, 40))
def test_as_many_centroids_as_distinct_actions_are_those(k: int, seed: int, repeats: int):
    """Many duplicates leave clusters empty in Lloyd's iterations; no warning escapes, and none stays empty."""
    rng = np.random.default_rng(seed)
    distinct = rng.permutation(np.arange(3 * k)).reshape(k, 3).astype(np.float32) / 7
    actions = np.concatenate([distinct, distinct[rng.integers(0, max(1, k // 3), repeats)]])
    centroids = fit_centroids(actions, k=k, n_init=1, seed=seed)
    assert (centroids.counts > 0).all()
    assert centroids.inertia == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(np.unique(centroids.vectors, axis=0), np.unique(distinct, axis=0), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("k", 0),
        ("k", 7),
        ("seed", -1),
        ("n_init", 0),
        ("actions", np.zeros(5)),
        ("actions", np.zeros((0, 5))),
        ("actions", np.array([[1, np.nan], [1, 2]])),
        ("actions", np.array([[1, 1e300], [1, 2]])),
        ("actions", []),
        ("k", 1 + np.arange(5)[:, None] * 1e-12),  # actions that are the same as float32 numbers
    ],
)
def test_wrong_fits(name: str, value: Any):
    arguments = {"actions": np.eye(6), "k": 3, "actions" if isinstance(value, np.ndarray) else name: value}
    with pytest.raises(InputError, match=name):
        fit_centroids(**arguments)


def test_scikit_learn_is_optional(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(MissingExtraError, match=r"sklearn.*minerl"):
        fit_centroids(np.eye(3), k=2)


# Files of demonstrations


def test_actions_from_files(tmp_path: Path):
    actions, _ = blobs()
    whole = fit_centroids(actions, k=6)
    (tmp_path / "data" / "b").mkdir(parents=True)
    other = {"observation$vector": np.ones((7, 2)), "reward": np.zeros(3)}
    np.savez(tmp_path / "data" / "a.npz", allow_pickle=False, **{"action$vector": actions[:100], **other})
    np.savez_compressed(tmp_path / "data" / "b" / "c.npz", **{"action$vector": actions[100:]}, allow_pickle=False)
    folder = fit_centroids(tmp_path / "data", k=6)
    np.testing.assert_array_equal(folder.vectors, whole.vectors)
    assert folder.source == f"390 actions of 2 files: {tmp_path}/data/a.npz, {tmp_path}/data/b/c.npz"
    np.save(tmp_path / "all.npy", actions)
    for name in ("actions", "vector", "deed"):
        np.savez(tmp_path / f"{name}.npz", allow_pickle=False, **{name: actions})
    for file, key in (("all.npy", "action$vector"), ("actions.npz", "x"), ("vector.npz", "x"), ("deed.npz", "deed")):
        found = fit_centroids(str(tmp_path / file), k=6, key=key)
        np.testing.assert_array_equal(found.vectors, whole.vectors)
        assert found.key == key
        assert file in found.source


def test_files_that_cannot_be_used_are_named(tmp_path: Path):
    np.save(tmp_path / "good.npy", np.eye(6))
    np.save(tmp_path / "flat.npy", np.ones(6))
    np.save(tmp_path / "wide.npy", np.ones((2, 7)))
    np.save(tmp_path / "nan.npy", np.full((2, 6), np.nan))
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "other.npz", reward=np.ones(3))
    np.savez(tmp_path / "boxed.npz", actions=np.array([{}], object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "empty.npz").write_bytes(b"")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, actions=np.random.default_rng(0).normal(size=(50, 6)))
    cut = bytearray(buffer.getvalue())
    cut[200:260] = bytes(60)
    (tmp_path / "damaged.npz").write_bytes(cut)
    (tmp_path / "cut.npz").write_bytes(buffer.getvalue()[:-40])
    bad = ("flat.npy", "wide.npy", "nan.npy", "objects.npy", "boxed.npz", "text.npy", "empty.npz", "damaged.npz")
    for name in (*bad, "cut.npz", "other.npz", "nowhere.npz"):
        with pytest.raises(InputError, match=re.escape(name)):
            fit_centroids([tmp_path / "good.npy", tmp_path / name], k=3)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="actions"):
        fit_centroids(tmp_path / "folder", k=3)


# The file of centroids


def test_saved_and_loaded(tmp_path: Path):
    centroids = fit_centroids(blobs()[0], k=6, key="deed")
    file = centroids.save(str(tmp_path / "new" / "c.safetensors"))
    found = Centroids.load(file)
    np.testing.assert_array_equal(found.vectors, centroids.vectors)
    np.testing.assert_array_equal(found.counts, centroids.counts)
    assert (found.inertia, found.key, found.source) == (centroids.inertia, "deed", "an array of 390 actions")
    assert [each.name for each in file.parent.iterdir()] == ["c.safetensors"]  # nothing left beside it
    assert not found.vectors.flags.writeable
    with pytest.raises(InputError, match="safetensors"):
        centroids.save(tmp_path / "c.npz")


def test_files_that_are_no_centroids(tmp_path: Path):
    good = fit_centroids(blobs()[0], k=6).save(tmp_path / "good.safetensors")
    data = good.read_bytes()
    bad = tmp_path / "bad.safetensors"

    def metadata(text: str) -> bytes:
        save_file({"vectors": np.ones((1, 1))}, bad, {"latent-obs-centroids": text})
        return bad.read_bytes()

    save_file({"weight": np.ones(3)}, bad)
    others = [bad.read_bytes(), metadata(json.dumps({"format_version": 2})), metadata("{"), metadata("[]")]
    tampered = data[:-3] + b"\x01" + data[-2:]
    for content in (b"", b"{}", b"PK\x03\x04 something else", data[:-5], data[:40], tampered, *others):
        bad.write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.safetensors"):
            Centroids.load(bad)
    for path in (tmp_path / "nowhere.safetensors", tmp_path):
        with pytest.raises(InputError, match=path.name):
            Centroids.load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vectors", np.ones(3)),
        ("vectors", np.full((2, 3), 1e300)),
        ("vectors", np.zeros((0, 3))),
        ("counts", np.array([1])),
        ("counts", np.array([1, -2])),
        ("inertia", float("nan")),
    ],
)
def test_wrong_centroids(name: str, value: Any):
    with pytest.raises(InputError, match=name):
        Centroids(**{"vectors": np.ones((2, 3)), "counts": np.array([2, 1]), "inertia": 0.0, name: value})


# CentroidActions


def centroids_of(vectors: Any) -> Centroids:
    return Centroids(np.array(vectors, np.float32), np.arange(len(vectors), 0, -1), 0.0, source="a test")


@pytest.mark.parametrize("alone", [False, True])
def test_each_number_is_a_centroid_and_zero_is_the_noop(alone: bool):
    box = spaces.Box(-1.0, 1.0, (3,), np.float32)
    inner = Coded(box, noop=CODE.copy()) if alone else Coded()
    env = CentroidActions(inner, centroids_of([[0, 0, 1], [0.5, 0.5, 0], [-3, 3, 0.25]]))
    env.reset(seed=0)
    expected = [CODE, [0, 0, 1], [0.5, 0.5, 0], [-1, 1, 0.25]]  # the last one clipped to the bounds
    for i, vector in enumerate(expected):
        env.step(np.int64(i))
        got = inner.taken[-1] if alone else inner.taken[-1]["vector"]
        np.testing.assert_array_equal(got, np.array(vector, np.float32))
    assert env.names == ("noop", "centroid 1", "centroid 2", "centroid 3")


def test_a_box_of_rows_and_columns_and_the_table_of_vectors():
    inner = Recorder(spaces.Box(-1.0, 1.0, (2, 2), np.float64))
    env = CentroidActions(inner, centroids_of([[0.5, 1, 0, -1]]))
    env.reset(seed=0)
    env.step(1)
    np.testing.assert_array_equal(inner.taken[-1], [[0.5, 1], [0, -1]])
    assert inner.taken[-1].dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        env.vectors[0] = 1
    with pytest.raises(InputError, match="centroids"):
        CentroidActions(Coded(), centroids_of([[0, 1]]))


# VectorActions


def test_the_vector_alone():
    env = VectorActions(Coded())
    assert env.action_space == spaces.Box(-1.0, 1.0, (3,), np.float32)
    np.testing.assert_array_equal(env.noop, CODE)
    vector = np.array([1, -1, 0.5], np.float32)
    got = env.action(vector)["vector"]
    np.testing.assert_array_equal(got, vector)
    assert not np.shares_memory(got, vector)
    for wrong in ([0, 0, 1.1], [0, 0], "a", [0, 0, float("nan")], [0, 0, 1e300]):
        with pytest.raises(InputError, match="the action"):
            env.action(wrong)


@pytest.mark.parametrize("space", [KEYED, spaces.Discrete(2), spaces.Dict(a=spaces.Box(0, 9, (2,), np.int64))])
def test_what_holds_no_vector(space: spaces.Space[Any]):
    for wrapper, more in ((VectorActions, ()), (CentroidActions, (centroids_of(np.eye(3)),))):
        with pytest.raises(InputError, match=wrapper.__name__):
            wrapper(Recorder(space), *more)
    with pytest.raises(InputError, match="VectorActions"):
        VectorActions(Recorder(CAMERA))


def test_what_a_worker_needs_starts_without_torch_or_scikit_learn():
    late = {"torch", "sklearn", "gym", "minerl", "stable_baselines3"}
    code = f"import sys, latent_obs.actions\nassert not {late!r} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
