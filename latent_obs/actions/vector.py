"""Actions that are one vector of numbers: unchanged, or chosen from `Centroids` of demonstrated ones, by k-means.

Obfuscated MineRL actions are such vectors; in the demonstrations of its competitions, the entry is "action$vector".

    centroids = fit_centroids("MineRLTreechopVectorObf-v0/", k=100)
    centroids.save("treechop.safetensors")
    env = CentroidActions(env, "treechop.safetensors")
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from latent_obs.actions.common import noop_action, only_box, value_of
from latent_obs.util.atomic import atomic_write
from latent_obs.util.errors import InputError, check_count, one_line, parse_json, require
from latent_obs.util.npy import read_npy

FORMAT = "latent-obs-centroids"
FORMAT_VERSION = 1
StrPath = str | os.PathLike[str]


class _About(TypedDict):
    """The metadata of a file of centroids."""

    format: str
    format_version: int
    inertia: float
    key: str
    source: str
    sha256: str


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
    """

    vectors: NDArray[np.float32]
    counts: NDArray[np.int64]
    inertia: float
    key: str = "action$vector"
    source: str = ""

    def __post_init__(self) -> None:
        vectors, counts = _checked(self.vectors, "vectors").astype(np.float32), np.array(self.counts)
        if counts.shape != vectors.shape[:1] or counts.dtype.kind not in "iu" or (counts < 0).any():
            raise InputError(f"counts must be {len(vectors)} integers from 0, one for each vector, got {self.counts!r}")
        if not 0 <= self.inertia < np.inf:
            raise InputError(f"inertia must be a number from 0, got {self.inertia!r}")
        for name, array in (("vectors", vectors), ("counts", counts.astype(np.int64))):
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    def save(self, path: StrPath) -> Path:
        """Write them as a safetensors file, aside and renamed; `InputError` if its name ends in something else."""
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
        tensors: dict[str, NDArray[Any]] = {"vectors": self.vectors.copy(), "counts": self.counts.copy()}
        with atomic_write(file) as aside:
            save_file(tensors, aside, {FORMAT: json.dumps(about)})
        return file

    @classmethod
    def load(cls, path: StrPath) -> "Centroids":
        """Read what `save` wrote; `InputError` if there is no such file, it is another one, or damaged."""
        file = Path(path)
        if not file.is_file():
            raise InputError(f"there is no file of centroids {str(path)!r} (current folder: {Path.cwd()})")
        try:
            with safe_open(file, framework="numpy") as tensors:
                about = parse_json((tensors.metadata() or {})[FORMAT], _About, "metadata")
                if about["format_version"] != FORMAT_VERSION:
                    raise ValueError(f"format version {about['format_version']}, expected {FORMAT_VERSION}")
                vectors, counts = tensors.get_tensor("vectors"), tensors.get_tensor("counts")
            if _digest(vectors, counts) != about["sha256"]:
                raise ValueError("its numbers are not those that were saved")
            return cls(vectors, counts, about["inertia"], about["key"], about["source"])
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{file} is damaged, no file of centroids, or of a newer latent-obs ({error}). Copy or fit it again"
            ) from None


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
        vectors, source = _checked(actions, "actions"), f"an array of {len(actions)} actions"
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
    files = [f for path in map(Path, paths) for f in (sorted(path.rglob("*.npz")) if path.is_dir() else [path])]
    if not files:
        raise InputError("actions: there is no file; give .npz or .npy files, or a folder with .npz files in it")
    arrays: list[NDArray[Any]] = []
    for file in files:
        try:
            loaded = _load(file, key)
            arrays.append(_checked(loaded, "its actions"))
            if loaded.shape[1] != arrays[0].shape[1]:
                raise ValueError(
                    f"its actions have {loaded.shape[1]} numbers each, {files[0]} has {arrays[0].shape[1]}"
                )
        except Exception as error:  # whatever a parser raises for a damaged file
            raise InputError(f"{file} cannot be used ({one_line(error)}); leave it out, or repair it") from None
    vectors = np.concatenate(arrays)
    names = ", ".join(map(str, files[:3])) + (", …" if len(files) > 3 else "")
    return vectors, f"{len(vectors)} actions of {len(files)} file{'s' * (len(files) != 1)}: {names}"


def _load(file: Path, key: str) -> NDArray[Any]:
    """The array of a .npy file, or one of an .npz file by its name."""
    with file.open("rb") as handle:
        if not zipfile.is_zipfile(handle):
            handle.seek(0)
            return read_npy(handle)
        with zipfile.ZipFile(handle) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            found = next((name for name in (key, "actions", "vector") if name in names), None)
            if found is None:
                raise ValueError(f"it has no entry {key!r}, but {', '.join(names) or 'none'}")
            with archive.open(f"{found}.npy") as member:
                return read_npy(member)


def _checked(vectors: Any, what: str) -> NDArray[Any]:
    """An array of actions, one a row; `InputError` if it is none."""
    array = np.asarray(vectors)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "fiu":
        raise InputError(f"{what} must be numbers of shape (N, d), got {array.dtype} of shape {array.shape}")
    finite = (np.abs(array) <= np.finfo(np.float32).max).all(axis=1)  # as float32 too
    if not finite.all():
        raise InputError(f"{what} must be finite, and {int((~finite).sum())} rows are not")
    return array


def _digest(*arrays: NDArray[Any]) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


class CentroidActions(gym.ActionWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Choose by number from centroids of demonstrated actions; number 0 is the environment's no-op.

    Args:
        env: An environment whose action is a Box of floats, alone or as the single entry of a Dict.
        centroids: From `fit_centroids`, or the file they were saved in. Clipped to the bounds of the Box.

    Attributes:
        centroids: The centroids, as they were fitted.
        vectors: (k + 1, d), what each number does: the no-op, then the centroids, clipped; read-only.
        names: "noop", "centroid 1", …
        noop: 0.

    Raises:
        InputError: The action space is another one, or of another dimension than the centroids.

    Example:
        >>> env = gym.Env()
        >>> env.action_space = spaces.Dict(vector=spaces.Box(-1.0, 1.0, (2,)))
        >>> env = CentroidActions(env, Centroids(np.array([[0.5, 2.0]]), np.array([7]), 0.1))
        >>> env.action_space, env.action(1)
        (Discrete(2), {'vector': array([0.5, 1. ], dtype=float32)})
    """

    noop = 0

    def __init__(self, env: gym.Env[Any, Any], centroids: Centroids | StrPath) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, centroids=centroids)
        gym.ActionWrapper.__init__(self, env)
        self._key, box = _box_of(env.action_space, "CentroidActions")
        self.centroids = centroids if isinstance(centroids, Centroids) else Centroids.load(centroids)
        k, size = self.centroids.vectors.shape
        if size != int(np.prod(box.shape)):
            raise InputError(
                f"centroids have {size} numbers each, and an action of this environment has {int(np.prod(box.shape))}: "
                f"{box}. Fit them to demonstrations of this environment"
            )
        noop = noop_action(env)
        rows = np.clip(self.centroids.vectors.reshape(-1, *box.shape).astype(box.dtype), box.low, box.high)
        self._rows = np.concatenate([(noop if self._key is None else noop[self._key])[None], rows])
        self.vectors: NDArray[Any] = self._rows.reshape(k + 1, -1)
        self.vectors.flags.writeable = False
        self.names = ("noop", *(f"centroid {i}" for i in range(1, k + 1)))
        self.action_space: spaces.Discrete = spaces.Discrete(k + 1)

    def action(self, action: Any) -> Any:
        """A fresh copy of the vector with a number, in a Dict where the environment has one."""
        vector = self._rows[value_of(self.action_space, action, "the action")].copy()
        return vector if self._key is None else {self._key: vector}


class VectorActions(gym.ActionWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Take the vector itself where the environment takes a Dict with that as its single entry, so that PPO can act.

    In an obfuscated environment the numbers are a code, in which zeros press keys and turn around, and so does a policy
    that starts around zero.

    Args:
        env: An environment whose action space is a Dict with a single entry, a Box of floats.

    Attributes:
        names: The key of the entry.

    Raises:
        InputError: The action space is another one.

    Example:
        >>> env = gym.Env()
        >>> env.action_space = spaces.Dict(vector=spaces.Box(-1.0, 1.0, (2,)))
        >>> env = VectorActions(env)
        >>> env.action_space, env.action([0.5, 1])
        (Box(-1.0, 1.0, (2,), float32), {'vector': array([0.5, 1. ], dtype=float32)})
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.ActionWrapper.__init__(self, env)
        key, box = _box_of(env.action_space, "VectorActions")
        if key is None:
            raise InputError(f"VectorActions takes a vector out of a Dict, and the action space is one already: {box}")
        self._key: str = key
        self._noop = noop_action(env)[key]
        self.names = (key,)
        self.action_space: spaces.Box = spaces.Box(box.low, box.high, box.shape, np.dtype(box.dtype).type)

    @property
    def noop(self) -> NDArray[Any]:
        """The environment's no-op as a vector; a fresh copy."""
        return self._noop.copy()

    def action(self, action: Any) -> dict[str, NDArray[Any]]:
        """The Dict action of a vector; `InputError` if it is not in the action space."""
        return {self._key: value_of(self.action_space, action, "the action")}


def _box_of(space: spaces.Space[Any], wrapper: str) -> tuple[str | None, spaces.Box]:
    if (found := only_box(space)) is None:
        raise InputError(f"{wrapper} needs one Box of floats, alone or as the single entry of a Dict, got {space}")
    return found
