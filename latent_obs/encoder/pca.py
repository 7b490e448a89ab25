"""Principal components of frames: the encoder to compare a trained one with, and one that takes seconds to fit.

A latent holds the coordinates of a frame, minus the mean frame, along the directions in which frames vary most (Pearson
1901, Hotelling 1933), not whitened. Some of the directions can be those in which a frame differs most from the next
one: they show small things that move, and a history of latents then shows how they move. A file holds the arrays of
`PCA` and the statistics of its latents, and as metadata the format, the pixel contract and a checksum of all.
"""

import hashlib
import json
import math
import os
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from latent_obs.encoder.components import principal_components
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.encoder.statistics import LatentStatistics
from latent_obs.pixels import Frames, PixelContract
from latent_obs.util.atomic import atomic_write
from latent_obs.util.errors import EncoderFolderError, InputError, check_count, parse_json
from latent_obs.util.npy import map_npy

FORMAT = {"format": "latent-obs-pca", "format_version": "1"}
#: Most frames that are fitted on, evenly spread over all that are given.
_MOST_FRAMES = 10_000
_MOST_VALUES = 2**28  # of the sample, 1 GiB in float32: fewer frames if they are large
_ARRAYS = ("centre", "components", "spread", "explained")
_STATISTICS = "statistics/"  # what the names of their tensors begin with


def most_frames(values: int) -> int:
    """How many frames of so many values are fitted on at most: 10,000, fewer of large ones."""
    return min(_MOST_FRAMES, max(1, _MOST_VALUES // values))


@dataclass(frozen=True, eq=False)
class PCA:
    """Principal components of frames, which can be used wherever an encoder can.

    Attributes:
        contract: What a frame must look like.
        centre: float32 (D,), the mean frame in [0, 1], flattened as (height, width, channels).
        components: float32 (latent_dim, D), orthonormal rows, the direction of most variance first, and those of motion
            last. The largest entry of each is positive, so that the same frames always give the same ones.
        spread: float32 (latent_dim,), standard deviation of the frames along each; falling, but for those of motion.
        explained: float32 (latent_dim,), the share of the frames' variance along each, from 0 to 1.
        provenance: Where it came from; anything that JSON can hold.
        statistics: Of the latents of the frames that were fitted; None in a file of an earlier version.

    Example:
        >>> import tempfile
        >>> frames = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3), np.uint8)
        >>> file = PCA.fit(frames, latent_dim=4).save(Path(tempfile.mkdtemp()) / "pca.safetensors")
        >>> PCA.load(file).encoder(device="cpu")(frames).shape
        (200, 4)
    """

    contract: PixelContract
    centre: NDArray[np.float32]
    components: NDArray[np.float32]
    spread: NDArray[np.float32]
    explained: NDArray[np.float32]
    provenance: dict[str, Any] = field(default_factory=dict)
    statistics: LatentStatistics | None = None

    @classmethod
    def fit(
        cls,
        frames: Frames | Sequence[Frames] | str | os.PathLike[str],
        latent_dim: int,
        *,
        motion: int = 0,
        contract: PixelContract | None = None,
    ) -> "PCA":
        """Find the largest principal components of frames, and of the differences between neighboring ones.

        At most 10,000 of them are read, evenly spread over all, so that memory maps of any size will do.
        Directions in which they vary by less than one step of one pixel are left out; if fewer than `latent_dim`
        remain, it warns.

        Args:
            frames: uint8 (N, height, width, channels), several such arrays, or a folder of `.npy` files, as
                `latent-obs frames` writes it.
            latent_dim: How many components to keep.
            motion: How many of them are components of differences between a frame and the next one, in what the others
                leave. The two are of one array, or of one file and one episode, as the `first` of its rows says.
            contract: What a frame must look like; by default the size of these.

        Raises:
            InputError: There are no frames, they are all alike, or of another size than the contract's or each other.
                `motion` is more than `latent_dim`, or no frame has a next one.
        """
        check_count("latent_dim", latent_dim)
        if check_count("motion", motion, at_least=0) > latent_dim:
            raise InputError(f"motion must be at most latent_dim, which is {latent_dim}, got {motion}")
        of_folder = isinstance(frames, str | os.PathLike)
        parts, contract, provenance = arrays_of(frames, contract)
        total = sum(map(len, parts))
        count = min(total, most_frames(math.prod(contract.shape)))
        numbers = evenly_spread(parts, count)
        chosen = [part[rows] for part, rows in zip(parts, numbers, strict=True)]
        sample = np.concatenate(chosen).reshape(count, -1).astype(np.float32)
        sample /= 255
        found = principal_components(torch.from_numpy(sample), latent_dim - motion)
        centre, spread, rows = found[0].numpy(), found[1].numpy(), np.ascontiguousarray(found[2].numpy().T)
        if motion:
            moved = np.concatenate([_moved(*part, of_folder) for part in zip(parts, numbers, strict=True)])
            if len(moved) == 0:
                raise InputError(f"motion needs frames with a next one, and none of these {total:,} has one")
            moved -= moved @ rows.T @ rows
            moving = principal_components(torch.from_numpy(moved), motion)[2].numpy()
            both = np.concatenate([rows.T, moving], 1, dtype=np.float64)
            rows = np.ascontiguousarray(np.linalg.qr(both)[0].T, np.float32)
        if len(rows) == 0:
            raise InputError(f"frames must differ, and all {total:,} are alike")
        if len(rows) < latent_dim:
            warnings.warn(
                f"these {total:,} frames vary in {len(rows)} directions only, so PCA's latents have {len(rows)} "
                f"values instead of {latent_dim}",
                stacklevel=2,
            )
        sample -= centre
        variance = float(np.square(sample).sum(1, dtype=np.float64).mean())
        rows *= np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(1)])[:, None]
        latents = sample @ rows.T
        spread = np.concatenate([spread, latents[:, len(spread) :].std(0)])
        explained = np.minimum(spread**2 / variance, 1).astype(np.float32)
        provenance = {"frames": total, "sampled": len(sample), **({"motion": motion} if motion else {}), **provenance}
        return cls(contract, centre, rows, spread, explained, provenance, LatentStatistics.from_latents(latents))

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> "PCA":
        """Read a file of `save`; an `EncoderFolderError` if it is damaged, of another format, or of a newer one."""
        try:
            with safe_open(file, "np") as opened:
                described = dict(opened.metadata() or {})
                arrays = {name: opened.get_tensor(name) for name in list(opened.keys())}
            found = {name: described.get(name) for name in FORMAT}
            if found != FORMAT:
                raise InputError(f"it has {found}, expected {FORMAT}")
            statistics = {name: array for name, array in arrays.items() if name.startswith(_STATISTICS)}
            is_whole = arrays.keys() - statistics.keys() == set(_ARRAYS)
            if not is_whole or described.pop("sha256", None) != _checksum(arrays, described):
                raise InputError("it is damaged: its content does not fit its checksum. Make it again")
            arrays = {name: arrays[name] for name in _ARRAYS}
            contract = PixelContract.from_json(parse_json(described["pixels"], dict[str, Any], "pixels"))
            size, count = int(np.prod(contract.shape)), len(arrays["spread"])
            shapes = {"centre": (size,), "components": (count, size), "spread": (count,), "explained": (count,)}
            wrong = [name for name, array in arrays.items() if array.shape != shapes[name]]
            wrong += [name for name, array in arrays.items() if not np.isfinite(array).all()]
            if wrong or not np.allclose(arrays["components"] @ arrays["components"].T, np.eye(count), atol=1e-4):
                names = ", ".join(wrong or ["components"])
                raise InputError(f"{names} must be finite numbers of shapes {shapes}, components orthonormal")
            measured = None
            if statistics:
                tensors = {key.removeprefix(_STATISTICS): torch.from_numpy(a) for key, a in statistics.items()}
                measured = LatentStatistics.from_tensors(tensors, count, str(file))
            provenance = parse_json(described["provenance"], dict[str, Any], "provenance")
            return cls(contract, **arrays, provenance=provenance, statistics=measured)
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise EncoderFolderError(f"{file} cannot be used as a file of principal components: {error}") from None

    def save(self, file: str | os.PathLike[str]) -> Path:
        """Write a safetensors file atomically, and return its path."""
        arrays = {name: np.ascontiguousarray(getattr(self, name), np.float32) for name in _ARRAYS}
        if self.statistics is not None:
            tensors = self.statistics.to_tensors()
            arrays |= {f"{_STATISTICS}{name}": tensor.numpy() for name, tensor in tensors.items()}
        described = {
            **FORMAT,
            "pixels": json.dumps(self.contract.to_json(), sort_keys=True),
            "latent_dim": str(self.latent_dim),
            "explained_variance": f"{self.explained_variance:.6f}",
            "provenance": json.dumps(self.provenance, sort_keys=True),
        }
        with atomic_write(Path(file)) as temporary:
            save_file(arrays, temporary, {**described, "sha256": _checksum(arrays, described)})
        return Path(file)

    @property
    def latent_dim(self) -> int:
        """Number of values in a latent."""
        return len(self.components)

    @property
    def explained_variance(self) -> float:
        """Share of the frames' variance that the latents keep, from 0 to 1."""
        return float(self.explained.sum(dtype=np.float64))

    def encoder(self, *, device: str | torch.device = "auto") -> FrozenEncoder:
        """The encoder from frames to coordinates along the components; `device` as for `FrozenEncoder`."""
        encoder = FrozenEncoder.from_module(_Projection(self), self.contract, device=device, name="PCA")
        encoder.provenance.update(self.provenance, explained_variance=self.explained_variance)
        encoder._statistics = self.statistics
        return encoder

    def __repr__(self) -> str:
        return f"PCA({self.contract.shape} -> {self.latent_dim}, {self.explained_variance:.1%} of the variance)"


class _Projection(nn.Module):
    """One linear layer on pixels in the order in which frames lie in memory, so that none are copied."""

    def __init__(self, pca: PCA) -> None:
        super().__init__()
        self.linear = nn.Linear(pca.components.shape[1], pca.latent_dim, device="meta")  # draws no random numbers
        bias = -pca.components.astype(np.float64) @ pca.centre.astype(np.float64)
        self.linear.weight = nn.Parameter(torch.from_numpy(pca.components.copy()))
        self.linear.bias = nn.Parameter(torch.from_numpy(bias.astype(np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.permute(0, 2, 3, 1).flatten(1))


def arrays_of(
    frames: Frames | Sequence[Frames] | str | os.PathLike[str], contract: PixelContract | None = None
) -> tuple[list[Frames], PixelContract, dict[str, Any]]:
    """The arrays of `frames`, what their frames look like, and their provenance; arguments and errors as for `fit`."""
    provenance: dict[str, Any] = {}
    if isinstance(frames, str | os.PathLike):
        folder, frames = frames, _frames_of_folder(frames)
        provenance = {"folder": str(folder), "files": [Path(str(part.filename)).name for part in frames]}
    parts = [frames] if isinstance(frames, np.ndarray) else list(frames)
    if contract is None:
        shape = np.shape(parts[0]) if parts else ()
        if len(shape) != 4:
            raise InputError(f"frames must be uint8 (N, height, width, channels), got an array {shape}")
        contract = PixelContract(*shape[1:])
    for number, part in enumerate(parts):
        if not isinstance(part, np.ndarray) or part.dtype != np.uint8 or part.shape[1:] != contract.shape:
            got = f"{part.dtype} {part.shape}" if isinstance(part, np.ndarray) else f"a {type(part).__name__}"
            name = getattr(part, "filename", None) or f"frames[{number}]"  # of a memory map
            raise InputError(f"{name} must be uint8 (N, *{contract.shape}), got {got}")
    if sum(map(len, parts)) == 0:
        raise InputError("frames must hold at least one frame, got none")
    return parts, contract, provenance


def evenly_spread(parts: Sequence[Frames], count: int) -> list[NDArray[np.int64]]:
    """The row numbers, in each of several arrays, of `count` frames that are spread evenly over all."""
    ends = np.cumsum([len(part) for part in parts])
    wanted = np.arange(count, dtype=np.int64) * int(ends[-1]) // count
    split = np.split(wanted, np.searchsorted(wanted, ends[:-1]))
    return [rows - end + len(part) for part, rows, end in zip(parts, split, ends, strict=True)]


def _frames_of_folder(folder: str | os.PathLike[str]) -> list[Any]:
    """Memory maps of the `.npy` files in a folder."""
    files = sorted(file for file in Path(folder).glob("*.npy") if not file.name.startswith("."))
    if not files:
        raise InputError(f"there are no .npy files of frames in {str(folder)!r} (current folder: {Path.cwd()})")
    frames: list[Frames] = []
    for file in files:
        try:
            frames.append(map_npy(file))
        except (OSError, ValueError) as error:
            raise InputError(f"{file} cannot be read as a .npy file: {error}") from None
    return frames


def _moved(part: Any, numbers: NDArray[np.int64], of_folder: bool) -> NDArray[np.float32]:
    """What changes from frames, by their numbers, to the next ones, (n, D); those without a next one are left out."""
    numbers = numbers[numbers + 1 < len(part)]
    rows = Path(str(part.filename).removesuffix(".npy") + ".rows.npz") if of_folder else None
    if rows is not None and rows.exists():
        try:
            with np.load(rows, allow_pickle=False) as known:
                numbers = numbers[~known["first"][numbers + 1].astype(bool)] if "first" in known else numbers
        except (OSError, ValueError, IndexError, zipfile.BadZipFile) as error:
            raise InputError(f"{rows} cannot be read as the rows of {part.filename}: {error}") from None
    moved = part[numbers + 1].astype(np.float32) - part[numbers]
    return moved.reshape(len(numbers), int(np.prod(part.shape[1:]))) / 255


def _checksum(arrays: Mapping[str, NDArray[Any]], described: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    for name, value in sorted(described.items()):
        digest.update(f"{name}={value}\n".encode())
    return digest.hexdigest()
