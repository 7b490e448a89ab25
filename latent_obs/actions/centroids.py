"""Centroids of demonstrated actions, by k-means: a table of actions for action spaces that are one vector.

Obfuscated MineRL actions are such vectors; in the demonstrations of its competitions, the entry is "action$vector".

    centroids = fit_centroids("MineRLTreechopVectorObf-v0/", k=100)
    centroids.save("treechop.safetensors")
    env = CentroidActions(env, "treechop.safetensors")
"""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from latent_obs.util.atomic import atomic_write
from latent_obs.util.errors import InputError, check_count, require

FORMAT = "latent-obs-centroids"
FORMAT_VERSION = 1
#: Entries of an .npz that may hold the actions, besides the one asked for.
_OTHER_KEYS = ("actions", "vector")
StrPath = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Centroids:
    """Centroids of demonstrated actions, the most frequent one first.

    Args:
        vectors: float32 (k, d).
        counts: int64 (k,), how many of the actions each stands for.
        inertia: Sum of the squared distances of the actions to their centroids.
        key: The entry of the files that held the actions.
        source: Where the actions came from, in words.

    Raises:
        InputError: The arrays are not of these shapes, or hold something that is no number.

    Example:
        >>> import tempfile
        >>> centroids = Centroids(np.zeros((2, 3), np.float32), np.array([5, 1]), inertia=0.5, key="vector")
        >>> file = centroids.save(Path(tempfile.mkdtemp()) / "c.safetensors")
        >>> Centroids.load(file).counts
        array([5, 1])
    """

    vectors: NDArray[np.float32]
    counts: NDArray[np.int64]
    inertia: float
    key: str = "action$vector"
    source: str = ""

    def __post_init__(self) -> None:
        vectors, counts = np.array(self.vectors), np.array(self.counts)
        if problem := _problem(vectors):
            raise InputError(f"vectors {problem}")
        if counts.shape != vectors.shape[:1] or counts.dtype.kind not in "iu" or (counts < 0).any():
            raise InputError(f"counts must be {len(vectors)} integers from 0, one for each vector, got {self.counts!r}")
        if not np.isfinite(self.inertia) or self.inertia < 0:
            raise InputError(f"inertia must be a number from 0, got {self.inertia!r}")
        for name, array in (("vectors", vectors.astype(np.float32)), ("counts", counts.astype(np.int64))):
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    def save(self, path: StrPath) -> Path:
        """Write them as a safetensors file, aside and renamed.

        Raises:
            InputError: The name does not end in .safetensors, by which the file is known.
        """
        file = Path(path)
        if file.suffix != ".safetensors":
            raise InputError(f"centroids are saved as a .safetensors file, got {str(path)!r}")
        about = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "inertia": float(self.inertia),
            "key": self.key,
            "source": self.source,
            "sha256": _digest(self.vectors, self.counts),
        }
        with atomic_write(file) as aside:
            save_file(
                {"vectors": self.vectors.copy(), "counts": self.counts.copy()}, aside, {FORMAT: json.dumps(about)}
            )
        return file

    @classmethod
    def load(cls, path: StrPath) -> "Centroids":
        """Read what `save` wrote.

        Raises:
            InputError: There is no such file, it is another one, or damaged.
        """
        file = Path(path)
        if not file.is_file():
            raise InputError(f"there is no file of centroids {str(path)!r} (current folder: {Path.cwd()})")
        try:
            with safe_open(file, framework="numpy") as tensors:
                about = json.loads((tensors.metadata() or {})[FORMAT])
                if about["format_version"] != FORMAT_VERSION:
                    raise InputError(
                        f"{file} has format version {about['format_version']}, expected {FORMAT_VERSION}; update "
                        "latent-obs"
                    )
                vectors, counts = tensors.get_tensor("vectors"), tensors.get_tensor("counts")
            if _digest(vectors, counts) != about["sha256"]:
                raise ValueError("its numbers are not those that were saved")
            return cls(vectors, counts, float(about["inertia"]), str(about["key"]), str(about["source"]))
        except InputError:
            raise
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} is damaged or no file of centroids ({error}). Copy or fit it again") from None


def fit_centroids(
    actions: NDArray[Any] | StrPath | Iterable[StrPath],
    k: int = 100,
    seed: int = 0,
    n_init: int = 4,
    key: str = "action$vector",
) -> Centroids:
    """Fit centroids of demonstrated actions by k-means (scikit-learn's `KMeans`, started by k-means++).

    Args:
        actions: Vectors (N, d); or .npz and .npy files of them, or a folder that is searched for .npz files.
        k: How many centroids.
        seed: The same seed gives the same centroids.
        n_init: How many starts; the one with the least inertia is kept.
        key: Entry of an .npz that holds the actions; "actions" and "vector" are tried as well.

    Raises:
        InputError: An argument is out of range, a file cannot be used, or there are fewer distinct actions than `k`.
        MissingExtraError: scikit-learn is not installed.

    Example:
        >>> corners = np.array([[0, 0], [0, 0], [0, 0], [0, 1], [0, 1], [1, 1]], np.float32)
        >>> centroids = fit_centroids(corners, k=3)
        >>> centroids.vectors.tolist(), centroids.counts.tolist()
        ([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [3, 2, 1])
    """
    for name, value, least in (("k", k, 1), ("seed", seed, 0), ("n_init", n_init, 1)):
        check_count(name, value, least)
    if isinstance(actions, np.ndarray):
        if problem := _problem(actions):
            raise InputError(f"actions {problem}")
        vectors, source = actions, f"an array of {len(actions)} actions"
    else:
        vectors, source = _read([actions] if isinstance(actions, str | os.PathLike) else actions, key)
    cluster = require("sklearn.cluster", extra="minerl", purpose="fit centroids to actions")
    data = vectors.astype(np.float32).astype(np.float64)  # actions are float32, and sums need more
    # Demonstrations repeat the same actions very often: each distinct one is fitted once, weighted by its count.
    distinct, repeats = np.unique(data, axis=0, return_counts=True)
    if len(distinct) < k:
        raise InputError(f"k is {k}, and there are only {len(distinct)} distinct actions among {len(data)}")
    fitted = cluster.KMeans(int(k), n_init=int(n_init), random_state=int(seed)).fit(distinct, sample_weight=repeats)
    counts = np.bincount(fitted.labels_, weights=repeats, minlength=int(k)).astype(np.int64)
    order = np.lexsort((*fitted.cluster_centers_.T[::-1], -counts))  # the most frequent first, ties by their numbers
    centers = fitted.cluster_centers_[order].astype(np.float32)
    return Centroids(centers, counts[order], float(fitted.inertia_), key, source)


def _read(paths: Iterable[StrPath], key: str) -> tuple[NDArray[Any], str]:
    """The actions of all files, and where they came from."""
    files: list[Path] = []
    for path in map(Path, paths):
        files += sorted(path.rglob("*.npz")) if path.is_dir() else [path]
    if not files:
        raise InputError("actions: there is no file; give .npz or .npy files, or a folder with .npz files in it")
    arrays: list[NDArray[Any]] = []
    for file in files:
        try:
            arrays.append(_load(file, key))
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{file} cannot be used ({error}); leave it out, or repair it") from None
        problem = _problem(arrays[-1])
        if not problem and arrays[-1].shape[1] != arrays[0].shape[1]:
            problem = f"have {arrays[-1].shape[1]} numbers each, and those of {files[0]} {arrays[0].shape[1]}"
        if problem:
            raise InputError(f"{file}: the actions {problem}; leave it out, or repair it")
    names = ", ".join(str(file) for file in files[:3]) + (", …" if len(files) > 3 else "")
    vectors = np.concatenate(arrays)
    return vectors, f"{len(vectors)} actions of {len(files)} file{'s' * (len(files) != 1)}: {names}"


def _load(file: Path, key: str) -> NDArray[Any]:
    with file.open("rb") as handle:  # numpy leaves a file open that it fails to read
        loaded = np.load(handle, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        for name in (key, *_OTHER_KEYS):
            if name in loaded.files:
                return loaded[name]
    raise ValueError(f"it has no entry {key!r}, but {', '.join(loaded.files) or 'none'}")


def _problem(vectors: NDArray[Any]) -> str:
    """What is wrong with an array of actions; empty if nothing is."""
    if vectors.ndim != 2 or not vectors.size or vectors.dtype.kind not in "fiu":
        return f"must be numbers of shape (N, d), got {vectors.dtype} of shape {vectors.shape}"
    finite = (np.abs(vectors) <= np.finfo(np.float32).max).all(axis=1)  # as float32 too
    return "" if finite.all() else f"must be finite, and {int((~finite).sum())} rows are not"


def _digest(vectors: NDArray[Any], counts: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(vectors).tobytes() + np.ascontiguousarray(counts).tobytes()).hexdigest()
