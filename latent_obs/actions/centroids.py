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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from latent_obs.util.atomic import written_aside
from latent_obs.util.errors import InputError, require

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
        if vectors.ndim != 2 or not vectors.size or vectors.dtype.kind not in "fiu" or not _finite(vectors).all():
            raise InputError(
                f"vectors of centroids must be finite numbers (k, d), got {vectors.dtype} of shape {vectors.shape}"
            )
        if counts.shape != vectors.shape[:1] or counts.dtype.kind not in "iu" or (counts < 0).any():
            raise InputError(f"counts of {len(vectors)} centroids must be as many whole numbers, got {self.counts!r}")
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
        with written_aside(file) as aside:
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
                metadata = tensors.metadata() or {}
                if FORMAT not in metadata:
                    raise InputError(
                        f"{file} is a safetensors file, but not one of centroids; those are made by fit_centroids"
                    )
                about = json.loads(metadata[FORMAT])
                version = about["format_version"]
                if version != FORMAT_VERSION:
                    raise InputError(
                        f"{file} has format version {version}, expected {FORMAT_VERSION}; update latent-obs"
                    )
                vectors, counts = tensors.get_tensor("vectors"), tensors.get_tensor("counts")
            if _digest(vectors, counts) != about["sha256"]:
                raise InputError(f"{file} is damaged: its numbers are not those that were saved. Copy or fit it again")
            return cls(vectors, counts, float(about["inertia"]), str(about["key"]), str(about["source"]))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
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
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise InputError(f"{name} must be a whole number from {least}, got {value!r}")
    if isinstance(actions, np.ndarray):
        problem = _problem(actions)
        if problem:
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
    files = list(_files(paths))
    if not files:
        raise InputError("no file of actions was given; give .npz or .npy files, or a folder with .npz files in it")
    arrays: list[NDArray[Any]] = []
    problems: list[str] = []
    for file in files:
        try:
            array = _load(file, key)
            problem = _problem(array)
            if not problem and arrays and array.shape[1] != arrays[0].shape[1]:
                problem = f"have {array.shape[1]} numbers each, those of the files before it {arrays[0].shape[1]}"
            if problem:
                problems.append(f"{file}: the actions {problem}")
            else:
                arrays.append(array)
        except InputError as error:
            problems.append(str(error))
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            problems.append(f"{file} cannot be read as .npz or .npy ({type(error).__name__}: {error})")
    if problems:
        shown = "\n  ".join(problems[:5] + ([f"and {len(problems) - 5} more"] if len(problems) > 5 else []))
        raise InputError(
            f"{len(problems)} of {len(files)} files cannot be used:\n  {shown}\nLeave them out, or repair them"
        )
    names = ", ".join(str(file) for file in files[:3]) + (", …" if len(files) > 3 else "")
    vectors = np.concatenate(arrays)
    return vectors, f"{len(vectors)} actions of {len(files)} file{'s' * (len(files) != 1)}: {names}"


def _files(paths: Iterable[StrPath]) -> Iterator[Path]:
    for path in paths:
        if not isinstance(path, str | os.PathLike):
            raise InputError(f"actions must be an array (N, d) or paths of files, got {path!r}")
        folder = Path(path)
        if not folder.is_dir():
            yield folder
            continue
        found = sorted(folder.rglob("*.npz"))
        if not found:
            raise InputError(f"the folder {str(path)!r} has no .npz file in it")
        yield from found


def _load(file: Path, key: str) -> NDArray[Any]:
    if not file.is_file():
        raise InputError(f"there is no file {str(file)!r} (current folder: {Path.cwd()})")
    with file.open("rb") as handle:  # numpy leaves a file open that it fails to read
        loaded = np.load(handle, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        for name in (key, *_OTHER_KEYS):
            if name in loaded.files:
                return loaded[name]
        raise InputError(f"{file} has no entry {key!r}; it has {', '.join(loaded.files) or 'none'}")


def _problem(actions: NDArray[Any]) -> str:
    """What is wrong with an array of actions; empty if nothing is."""
    if actions.ndim != 2 or not actions.size or actions.dtype.kind not in "fiu":
        return f"must be numbers of shape (N, d), got {actions.dtype} of shape {actions.shape}"
    finite = _finite(actions).all(axis=1)
    return "" if finite.all() else f"have {int((~finite).sum())} rows that are not finite numbers"


def _finite(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which numbers are finite, as float32 too."""
    return np.abs(values) <= np.finfo(np.float32).max


def _digest(vectors: NDArray[Any], counts: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(vectors).tobytes() + np.ascontiguousarray(counts).tobytes()).hexdigest()
