"""Principal components as an encoder: the baseline that a trained one has to beat, and that takes seconds to fit.

A latent holds the coordinates of a frame, its mean subtracted, along the directions in which frames vary most (Pearson
1901, Hotelling 1933). They are not whitened: each has the spread that the frames have in its direction.

A file holds one: safetensors with "centre", "components", "spread" and "explained", and metadata with the format, the
pixel contract and a checksum of all of it.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.pixels import PixelContract
from latent_obs.util.atomic import atomic_write
from latent_obs.util.errors import EncoderFolderError, InputError

#: Components in whose direction frames spread less than by one step of one pixel are rounding, not pictures. Anything
#: divided by their spread would explode on a frame that does differ there.
LEAST_SPREAD = 1 / 255


@torch.no_grad()
def principal_components(flat: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Centre, spreads and directions of the largest principal components.

    A sketch of some more columns and a few power iterations is exact enough (Halko et al. 2011, "Finding structure with
    randomness", section 4.4). The sketch is always the same, and the random state of training is left alone.

    Args:
        flat: float32 (N, D), N ≥ 1 frames in [0, 1], flattened.
        count: Components wanted.

    Returns:
        The mean (D,), standard deviations along the components (k,), falling, and the components (D, k), orthonormal. k
        is below `count` where the frames have no more than k: see `LEAST_SPREAD`.

    Example:
        >>> flat = torch.tensor([[0.0, 0.5], [0.6, 0.5], [0.0, 0.5], [0.6, 0.5]])
        >>> centre, spread, components = principal_components(flat, 2)
        >>> [round(value, 3) for value in centre.tolist()], round(float(spread), 3), tuple(components.shape)
        ([0.3, 0.5], 0.3, (2, 1))
    """
    centre = flat.mean(0)
    with torch.random.fork_rng(devices=[flat.device] if flat.is_cuda else []):
        torch.manual_seed(0)
        _, sizes, components = torch.svd_lowrank(flat - centre, q=min(count + 8, *flat.shape), niter=4)
    spread = sizes[:count] / len(flat) ** 0.5
    kept = int((spread > LEAST_SPREAD).sum())
    return centre, spread[:kept], components[:, :kept]


FORMAT = "latent-obs-pca"
FORMAT_VERSION = 1
#: Frames that are looked at, at most, evenly spread over all that are given.
MOST_FRAMES = 10_000
_TENSORS = ("centre", "components", "spread", "explained")
_MOST_VALUES = 2**28  # of the sample, 1 GiB in float32: fewer frames where they are large
_ORTHONORMAL = 1e-4  # how far the products of two components may be off, in float32


@dataclass(frozen=True, eq=False)
class PCA:
    """Principal components of frames.

    Attributes:
        contract: What a frame must look like.
        centre: float32 (D,), the mean frame in [0, 1], flattened as (height, width, channels).
        components: float32 (latent_dim, D), orthonormal rows, the direction of most variance first. The largest entry
            of each is positive, so that the same frames always give the same ones.
        spread: float32 (latent_dim,), standard deviation of the frames along each, falling.
        explained: float32 (latent_dim,), the share of the frames' variance along each, from 0 to 1.
        provenance: Where it came from; anything that JSON can hold.
    """

    contract: PixelContract
    centre: NDArray[np.float32]
    components: NDArray[np.float32]
    spread: NDArray[np.float32]
    explained: NDArray[np.float32]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _TENSORS:
            if not np.isfinite(getattr(self, name)).all():
                raise InputError(f"principal components: {name} is not finite")

    @property
    def latent_dim(self) -> int:
        """Number of values in a latent."""
        return len(self.components)

    @property
    def explained_variance(self) -> float:
        """Share of the frames' variance that the latents keep, from 0 to 1."""
        return float(self.explained.sum(dtype=np.float64))

    def encoder(self, *, device: str | torch.device = "auto") -> FrozenEncoder:
        """The encoder: frames in, coordinates along the components out.

        Args:
            device: As for `FrozenEncoder`.
        """
        encoder = FrozenEncoder.from_module(
            _Projection(self), self.contract, latent_dim=self.latent_dim, device=device, name="PCA"
        )
        encoder.provenance.update(self.provenance, explained_variance=self.explained_variance)
        return encoder

    def __repr__(self) -> str:
        return f"PCA({self.contract.shape} -> {self.latent_dim}, {self.explained_variance:.1%} of the variance)"


class _Projection(nn.Module):
    """One linear layer on pixels in the order in which frames lie in memory, which copies none of them."""

    def __init__(self, pca: PCA) -> None:
        super().__init__()
        self.linear = nn.Linear(pca.components.shape[1], pca.latent_dim)
        bias = -pca.components.astype(np.float64) @ pca.centre.astype(np.float64)
        self.linear.weight = nn.Parameter(torch.from_numpy(pca.components.copy()), requires_grad=False)
        self.linear.bias = nn.Parameter(torch.from_numpy(bias.astype(np.float32)), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.permute(0, 2, 3, 1).flatten(1))


def fit_pca(
    frames: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
    latent_dim: int,
    contract: PixelContract,
    *,
    provenance: dict[str, Any] | None = None,
) -> PCA:
    """The largest principal components of frames.

    At most `MOST_FRAMES` of them are looked at, evenly spread over all, so that memory maps of any size will do.
    Directions in which they vary by less than one step of one pixel are rounding, and left out
    (`principal_components`): where they leave fewer than `latent_dim`, the latents are as many as there are, and a
    warning says so.

    Args:
        frames: uint8 (N, height, width, channels) of the contract's size, or several such arrays.
        latent_dim: How many components to keep.
        contract: What a frame must look like.
        provenance: Where the frames came from; kept with the components.

    Raises:
        InputError: There are no frames, they are of another kind or size, or all of them are alike.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> frames = rng.integers(0, 256, (200, 8, 8, 3), np.uint8)
        >>> frames[::2, :4] //= 8  # the upper half is bright or dark
        >>> pca = fit_pca(frames, 4, PixelContract(8, 8, 3))
        >>> pca.components.shape, bool(pca.explained[0] > 3 * pca.explained[1])
        ((4, 192), True)
        >>> pca.encoder(device="cpu")(frames).shape
        (200, 4)
    """
    if isinstance(latent_dim, bool) or not isinstance(latent_dim, int) or latent_dim < 1:
        raise InputError(f"latent_dim must be 1 or more components, got {latent_dim!r}")
    parts = [frames] if isinstance(frames, np.ndarray) else list(frames)
    for number, part in enumerate(parts):
        if not isinstance(part, np.ndarray) or part.dtype != np.uint8 or part.shape[1:] != contract.shape:
            got = f"{part.dtype} {part.shape}" if isinstance(part, np.ndarray) else f"a {type(part).__name__}"
            where = f" in array {number} of {len(parts)}" if len(parts) > 1 else ""
            raise InputError(
                f"PCA of frames for this encoder takes uint8 (N, {', '.join(map(str, contract.shape))}), got {got}{where}. "
                "PixelContract.convert resizes frames of another size"
            )
    total = sum(len(part) for part in parts)
    if total == 0:
        raise InputError("PCA needs frames, got none")
    sample = _sample(parts, min(total, MOST_FRAMES, max(1, _MOST_VALUES // int(np.prod(contract.shape)))))
    centre, spread, components = principal_components(torch.from_numpy(sample), latent_dim)
    if len(spread) == 0:
        raise InputError(
            f"all {total:,} frames are alike, so that there is nothing to tell apart by: PCA needs frames that vary"
        )
    if len(spread) < latent_dim:
        warnings.warn(
            f"these {total:,} frames vary in {len(spread)} directions only (by more than one step of one pixel), so that PCA's "
            f"latents have {len(spread)} values in place of the {latent_dim} asked for",
            stacklevel=2,
        )
    sample -= centre.numpy()
    variance = float(np.square(sample).sum(1, dtype=np.float64).mean())
    rows = components.T.contiguous().numpy()
    rows *= np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(1)])[:, None]
    widths = spread.numpy()
    return PCA(
        contract,
        centre.numpy(),
        rows,
        widths,
        np.minimum(widths**2 / variance, 1).astype(np.float32),
        {"frames": total, "sampled": len(sample), **(provenance or {})},
    )


def fit_pca_of_folder(folder: str | os.PathLike[str], latent_dim: int, contract: PixelContract) -> PCA:
    """`fit_pca` on the `.npy` files of a frames folder, which stay on disk.

    Args:
        folder: A folder of uint8 (N, height, width, channels) files, as `latent-obs frames` writes it.
        latent_dim: How many components to keep.
        contract: What a frame must look like.

    Raises:
        InputError: The folder has no frame files, or one of them is damaged; or as `fit_pca` says.
    """
    files = sorted(file for file in Path(folder).glob("*.npy") if not file.name.startswith("."))
    if not files:
        raise InputError(f"there are no .npy files of frames in {str(folder)!r} (current folder: {Path.cwd()})")
    frames: list[NDArray[np.uint8]] = []
    for file in files:
        try:
            frames.append(np.load(file, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise InputError(f"{file} cannot be read as a .npy file: {error}") from None
        if frames[-1].dtype != np.uint8 or frames[-1].shape[1:] != contract.shape:
            raise InputError(
                f"{file} has {frames[-1].dtype} {frames[-1].shape}, and PCA for this encoder takes uint8 "
                f"(N, {', '.join(map(str, contract.shape))})"
            )
    return fit_pca(
        frames, latent_dim, contract, provenance={"folder": str(folder), "files": [file.name for file in files]}
    )


def save_pca(path: str | os.PathLike[str], pca: PCA) -> Path:
    """Write components to a file, aside and renamed into place.

    Args:
        path: The file to write or replace; "….safetensors" by custom.
        pca: The components.

    Returns:
        The file.
    """
    path = Path(path)
    tensors = {name: np.ascontiguousarray(getattr(pca, name), np.float32) for name in _TENSORS}
    described = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "pixels": json.dumps(pca.contract.to_json(), sort_keys=True),
        "latent_dim": str(pca.latent_dim),
        "explained_variance": f"{pca.explained_variance:.6f}",
        "provenance": json.dumps(pca.provenance, sort_keys=True),
    }
    with atomic_write(path) as aside:
        save_file(tensors, str(aside), {**described, "sha256": _checksum(tensors, described)})
    return path


def read_pca(path: str | os.PathLike[str]) -> PCA:
    """The components of a file, checked.

    Raises:
        EncoderFolderError: There is no such file, or it is damaged, of another format, or of a newer one.
    """
    path = Path(path)
    if not path.is_file():
        raise EncoderFolderError(
            f"there is no file {str(path)!r} with principal components (current folder: {Path.cwd()})"
        )
    try:
        with safe_open(str(path), "np") as file:
            described = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
    except (SafetensorError, OSError) as error:
        raise EncoderFolderError(f"{path} is damaged, or not a safetensors file: {error}. Make it again") from None
    if described.get("format") != FORMAT:
        raise EncoderFolderError(
            f"{path} has format {described.get('format')!r}, expected {FORMAT!r}: a file that latent_obs.encoder.pca.save_pca wrote"
        )
    version = described.get("format_version", "")
    if not version.isdigit() or not 1 <= int(version) <= FORMAT_VERSION:
        raise EncoderFolderError(
            f"{path} has format version {version!r}, and this latent-obs reads up to {FORMAT_VERSION}. Update latent-obs"
        )
    if set(tensors) != set(_TENSORS) or described.pop("sha256", None) != _checksum(tensors, described):
        raise EncoderFolderError(f"{path} is damaged: its content is not what its checksum was made of. Make it again")
    try:
        contract = PixelContract.from_json(json.loads(described["pixels"]))
        pca = PCA(contract, **tensors, provenance=json.loads(described["provenance"]))
    except (KeyError, ValueError, TypeError) as error:
        raise EncoderFolderError(f"{path} cannot be used: {error}") from None
    size, rows = int(np.prod(contract.shape)), pca.components
    fits = rows.ndim == 2 and rows.shape[1:] == pca.centre.shape == (size,) and rows.shape[:1] == pca.spread.shape
    if not fits or not np.allclose(rows @ rows.T, np.eye(len(rows)), atol=_ORTHONORMAL):
        raise EncoderFolderError(
            f"{path} cannot be used: its components are no orthonormal ones of {contract.shape} frames"
        )
    return pca


def load_pca(path: str | os.PathLike[str], *, device: str | torch.device = "auto") -> FrozenEncoder:
    """The encoder of a file that `save_pca` wrote.

    Args:
        path: The file.
        device: As for `FrozenEncoder`.

    Raises:
        EncoderFolderError: There is no such file, or it is damaged, of another format, or of a newer one.
        DeviceError: The device asked for is not there.

    Example:
        >>> import tempfile
        >>> frames = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), np.uint8)
        >>> file = save_pca(Path(tempfile.mkdtemp()) / "pca.safetensors", fit_pca(frames, 4, PixelContract(8, 8, 3)))
        >>> load_pca(file, device="cpu")
        FrozenEncoder(PCA, (8, 8, 3) -> 4, device='cpu')
    """
    return read_pca(path).encoder(device=device)


def _sample(parts: Sequence[NDArray[np.uint8]], count: int) -> NDArray[np.float32]:
    """`count` frames in [0, 1], flattened, evenly spread over all of the arrays."""
    total = sum(len(part) for part in parts)
    wanted = np.arange(count, dtype=np.int64) * total // count
    out = np.empty((count, int(np.prod(parts[0].shape[1:]))), np.float32)
    first = done = 0
    for part in parts:
        inside = wanted[(wanted >= first) & (wanted < first + len(part))] - first
        out[done : done + len(inside)] = part[inside].reshape(len(inside), out.shape[1])
        first, done = first + len(part), done + len(inside)
    out /= 255
    return out


def _checksum(tensors: dict[str, NDArray[Any]], described: dict[str, str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    for name in sorted(described):
        digest.update(f"{name}={described[name]}\n".encode())
    return digest.hexdigest()
