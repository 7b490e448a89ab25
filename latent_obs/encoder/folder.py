"""The encoder folder: the only thing that crosses from training to use.

    encoder/
    ├── config.json             format, architecture, pixel contract, where it came from
    ├── encoder.safetensors     weights of the encoder
    ├── decoder.safetensors     weights of the decoder (optional, for pictures)
    ├── selfcheck.safetensors   sample frames and the latents that they must give
    ├── statistics.safetensors  statistics of latents over the training frames (optional, to standardize and for drift)
    └── SHA256SUMS              one line per file, as `sha256sum --check` reads it

No pickle. Written to a temporary folder and renamed, so that a reader never sees half of one.
"""

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file
from torch import Tensor

from latent_obs.encoder.architecture import Architecture
from latent_obs.encoder.networks import Encoder
from latent_obs.encoder.statistics import LatentStatistics
from latent_obs.pixels import Frames, PixelContract
from latent_obs.util.errors import EncoderFolderError, InputError, require

FORMAT = "latent-obs-encoder"
FORMAT_VERSION = 1
#: Largest difference allowed between a latent here and the one promised, relative to the largest latent of the check.
#: TF32 (10 bits of mantissa, the default of cuDNN) through some eight layers stays below it; swapped colors or another
#: resize filter do not.
RELATIVE_TOLERANCE = 5e-3
_REQUIRED = ("config.json", "encoder.safetensors", "selfcheck.safetensors", "SHA256SUMS")
_DECODER = "decoder.safetensors"
_STATISTICS = "statistics.safetensors"
_CHECKED_FRAMES = 4  # in a self-check, at most


@dataclass(frozen=True)
class EncoderFolder:
    """An encoder folder that was read and whose checksums agree; weights are on the CPU."""

    path: Path
    architecture: Architecture
    contract: PixelContract
    provenance: dict[str, Any]
    encoder: dict[str, Tensor]
    selfcheck: dict[str, Tensor]
    statistics: LatentStatistics | None = None

    @property
    def has_decoder(self) -> bool:
        """Whether the folder holds a decoder as well."""
        return (self.path / _DECODER).exists()

    def decoder(self) -> dict[str, Tensor]:
        """Read the weights of the decoder; an `EncoderFolderError` if there are none, or they are damaged."""
        return _tensors(self.path / _DECODER, _read_checked(self.path, _DECODER, _read_sums(self.path)))


def write_encoder_folder(
    path: str | os.PathLike[str],
    *,
    architecture: Architecture,
    contract: PixelContract,
    encoder: Mapping[str, Tensor],
    selfcheck: Mapping[str, Tensor],
    decoder: Mapping[str, Tensor] | None = None,
    statistics: LatentStatistics | None = None,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an encoder folder atomically, and return its path.

    Args:
        path: The folder to make.
        architecture: Layers of the encoder and decoder.
        contract: What a frame must look like.
        encoder: State dict of an `Encoder`.
        selfcheck: Sample frames with their latents, from `make_selfcheck`.
        decoder: State dict of a `Decoder`, or None to leave it out.
        statistics: Statistics of its latents over the training frames, or None to leave them out.
        provenance: Where it came from; anything that JSON can hold.
        overwrite: Whether an existing encoder folder may be replaced.

    Raises:
        InputError: The folder exists and `overwrite` is False, or it is no encoder folder.
    """
    path = Path(path)
    if path.exists() and not (overwrite and _is_encoder_folder(path)):
        what = "exists and is not an encoder folder" if overwrite else "exists already, and overwrite is False"
        raise InputError(f"{path} {what}. Choose another folder")
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture": architecture.to_json(),
        "pixels": contract.to_json(),
        "provenance": dict(provenance or {}),
    }
    files = {
        "encoder.safetensors": encoder,
        _DECODER: decoder,
        "selfcheck.safetensors": selfcheck,
        _STATISTICS: statistics.to_tensors() if statistics else None,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target: a rename across file systems would be a copy.
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    new, old = temporary / "new", temporary / "old"
    try:
        new.mkdir()
        new.chmod(0o755)  # a colleague should be able to read an encoder
        for name, tensors in files.items():
            if tensors is not None:
                tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
                save_file(tensors, str(new / name))
        (new / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        sums = [f"{_sha256(file.read_bytes())}  {file.name}\n" for file in sorted(new.iterdir())]
        (new / "SHA256SUMS").write_text("".join(sums))
        for file in new.iterdir():
            file.chmod(0o644)  # safetensors writes private files
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise
    finally:
        if path.exists() or not old.exists():  # else the old one could not be moved back, and must not be lost
            shutil.rmtree(temporary, ignore_errors=True)
    return path


def read_encoder_folder(path: str | os.PathLike[str]) -> EncoderFolder:
    """Read an encoder folder and check every byte of it against its checksums.

    Args:
        path: The folder, or the id of a Hugging Face repository that holds its files ("name/repository").

    Raises:
        EncoderFolderError: There is no such folder, a file is missing, damaged, or from a newer format.
    """
    folder = _locate(path)
    missing = [name for name in _REQUIRED if not (folder / name).is_file()]
    if missing:
        raise EncoderFolderError(
            f"{folder} is not a complete encoder folder: {', '.join(missing)} missing. "
            "Copy the whole folder again, or export it anew with: latent-obs train-vae … --resume"
        )
    sums = _read_sums(folder)
    try:
        config = json.loads((folder / "config.json").read_bytes())
        found, number = config["format"], config["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise EncoderFolderError(f"{folder}/config.json is damaged, or not of an encoder folder: {error!r}") from None
    # Before the checksums: a newer format may have other files, and the error should name the version.
    if found != FORMAT or number not in range(1, FORMAT_VERSION + 1):
        raise EncoderFolderError(
            f"{folder}/config.json has format {found!r} and format version {number!r}, expected {FORMAT!r} and "
            f"{FORMAT_VERSION} at most. Update latent-obs if it is a newer one"
        )
    names = [*sums, _STATISTICS] if (folder / _STATISTICS).exists() else list(sums)  # without a checksum it is rejected
    contents = {name: _read_checked(folder, name, sums) for name in names}
    try:
        architecture = Architecture.from_json(config["architecture"])
        contract = PixelContract.from_json(config["pixels"])
        if contract.shape != architecture.img_shape:
            raise InputError(f"pixels {contract.shape} and network {architecture.img_shape} differ")
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise EncoderFolderError(f"{folder}/config.json cannot be used: {error}") from None
    read = ("encoder.safetensors", "selfcheck.safetensors", _STATISTICS)  # the decoder is when it is needed
    tensors = {name: _tensors(folder / name, contents[name]) for name in read if name in contents}
    statistics = None
    if _STATISTICS in tensors:
        file = str(folder / _STATISTICS)
        statistics = LatentStatistics.from_tensors(tensors[_STATISTICS], architecture.latent_dim, file)
    return EncoderFolder(
        folder,
        architecture,
        contract,
        config.get("provenance", {}),
        tensors["encoder.safetensors"],
        tensors["selfcheck.safetensors"],
        statistics,
    )


def _locate(path: str | os.PathLike[str]) -> Path:
    """A local folder, or the local copy of a Hugging Face repository."""
    folder, text = Path(path), str(path)
    if folder.is_dir():
        inner = folder / "encoder"  # of a run folder
        return inner if not _is_encoder_folder(folder) and _is_encoder_folder(inner) else folder
    if text.count("/") != 1 or text.startswith((".", "/", "~")) or Path(text.split("/")[0]).exists():
        raise EncoderFolderError(f"there is no encoder folder {text!r} (current folder: {Path.cwd()})")
    try:
        hub = require("huggingface_hub", extra="hub", purpose=f"load the encoder {text!r} from Hugging Face")
        return Path(hub.snapshot_download(text))
    except Exception as error:  # the hub client raises errors of several libraries
        raise EncoderFolderError(
            f"there is no folder {text!r} here, and no repository of this name could be loaded: {error}"
        ) from error


def _is_encoder_folder(path: Path) -> bool:
    """Whether this looks like an encoder folder, whole or damaged; a training run has a config.json as well."""
    return (path / "config.json").is_file() and any((path / name).is_file() for name in _REQUIRED[1:])


def _read_sums(folder: Path) -> dict[str, str]:
    """File name to checksum, from SHA256SUMS."""
    sums: dict[str, str] = {}
    for line in (folder / "SHA256SUMS").read_bytes().decode("utf-8", errors="replace").removesuffix("\n").split("\n"):
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name or Path(name).name != name:
            raise EncoderFolderError(f"{folder}/SHA256SUMS is damaged: cannot read {line!r}. Copy the folder again")
        sums[name] = digest
    missing = sorted(set(_REQUIRED) - set(sums) - {"SHA256SUMS"})
    if missing:
        raise EncoderFolderError(
            f"{folder}/SHA256SUMS is damaged: it lacks {', '.join(missing)}. Copy the folder again"
        )
    return sums


def _read_checked(folder: Path, name: str, sums: Mapping[str, str]) -> bytes:
    """The bytes of a file whose checksum agrees."""
    file = folder / name
    if not file.is_file():
        raise EncoderFolderError(f"{folder} has no {name}. Copy the folder again, or export it anew with this file")
    data = file.read_bytes()
    found, expected = _sha256(data), str(sums.get(name))
    if found != expected:
        raise EncoderFolderError(
            f"{file} is damaged: its SHA-256 is {found[:12]}…, SHA256SUMS says {expected[:12]}…. Copy the folder again"
        )
    return data


def _tensors(file: Path, data: bytes) -> dict[str, Tensor]:
    try:
        return load_safetensors(data)
    except SafetensorError as error:
        raise EncoderFolderError(f"{file} is not a safetensors file: {error}") from None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that make an encoder, by name, for its provenance."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("latent-obs", "numpy", "pillow"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def make_selfcheck(encoder: Encoder, contract: PixelContract, sample_frames: Frames) -> dict[str, Tensor]:
    """Choose a few frames and store the latents that they give.

    Args:
        encoder: The encoder, on any device; it is used in eval mode, and keeps its mode.
        contract: Its pixel contract.
        sample_frames: uint8 (N, height, width, channels) with N ≥ 1.

    Returns:
        "frames" uint8 (n, h, w, c) and "latents" float32 (n, latent_dim); "raw_frames", which go through the contract's
        crop and resize, and their "raw_latents".
    """
    frames = contract.convert(sample_frames, what="sample_frames")
    if len(frames) == 0:
        raise InputError("sample_frames must hold one frame or more, got none")
    frames = frames[np.linspace(0, len(frames) - 1, min(_CHECKED_FRAMES, len(frames))).astype(int)]
    # Larger and of another aspect ratio, with noise: flat areas would hide which filter resized them.
    height, width = contract.height * 3 // 2 + 5, contract.width * 2 + 3
    rows, columns = np.arange(height) * contract.height // height, np.arange(width) * contract.width // width
    raw = frames[:2, rows][:, :, columns].astype(np.int16)
    raw += np.random.default_rng(0).integers(-40, 41, raw.shape, dtype=np.int16)
    raw_frames = raw.clip(0, 255).astype(np.uint8)
    training, device = encoder.training, next(encoder.parameters()).device
    encoder.eval()
    with torch.inference_mode():
        latents, raw_latents = (
            encoder.mean(torch.from_numpy(part).to(device).permute(0, 3, 1, 2).float().div(255)).float().cpu()
            for part in (frames, contract.convert(raw_frames))
        )
    encoder.train(training)
    return {
        "frames": torch.from_numpy(frames),
        "latents": latents,
        "raw_frames": torch.from_numpy(raw_frames),
        "raw_latents": raw_latents,
    }


def verify_selfcheck(
    check: Mapping[str, Tensor], encode: Callable[[Frames], NDArray[np.float32]], contract: PixelContract, name: str
) -> None:
    """Raise an `EncoderFolderError` if sample frames of `make_selfcheck` give other latents than promised."""
    for frames_key, latents_key, hint in (
        ("frames", "latents", "the weights or this device's arithmetic are off"),
        ("raw_frames", "raw_latents", "frames are cropped or resized in another way here (see Pillow's version)"),
    ):
        if frames_key not in check or latents_key not in check:
            raise EncoderFolderError(f"{name}: the self-check lacks {frames_key} or {latents_key}")
        wanted = check[latents_key].numpy()
        got = encode(contract.convert(check[frames_key].numpy()))
        scale = max(float(np.abs(wanted).max()), 1e-6)
        difference = float(np.abs(got - wanted).max()) / scale if got.shape == wanted.shape else float("inf")
        if not difference <= RELATIVE_TOLERANCE:  # also if it is NaN
            raise EncoderFolderError(
                f"{name}: the self-check failed: latents of its sample frames differ by {difference:.1e} of their "
                f"range, {RELATIVE_TOLERANCE:.0e} is allowed; {hint}"
            )
