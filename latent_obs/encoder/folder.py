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

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file
from torch import Tensor

from latent_obs.encoder.architecture import Architecture, Encoder
from latent_obs.encoder.statistics import LatentStatistics
from latent_obs.pixels import Frames, PixelContract
from latent_obs.util.errors import EncoderFolderError, InputError, require

FORMAT = "latent-obs-encoder"
FORMAT_VERSION = 1
#: Largest difference allowed between a latent here and the one promised, relative to the largest latent of the check.
#: TF32 (10 bits of mantissa, the default of cuDNN) through some eight layers stays below it; swapped colors or another
#: resize filter do not.
RELATIVE_TOLERANCE = 5e-3
_REQUIRED = ("config.json", "encoder.safetensors", "selfcheck.safetensors")
_DECODER = "decoder.safetensors"
_STATISTICS = "statistics.safetensors"
_SUMS = "SHA256SUMS"
#: "hf://user/name", "hf://user/name@revision" and "https://huggingface.co/user/name/tree/revision/folder"; a `Path` has
#: one slash for the two.
_HUB_ADDRESS = re.compile(
    r"(?:hf:/+(?:models/)?|(?:https?:/+)?(?:www\.)?(?:huggingface\.co|hf\.co)/)"
    r"([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/tree/([^/]+))?(?:/(.+?))?/*"
)
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
        return _read_tensors(self.path, _DECODER, _read_sums(self.path))


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
        selfcheck: From `make_selfcheck`.
        decoder: State dict of a `Decoder`, or None to leave it out.
        statistics: Of its latents over the training frames, or None to leave them out.
        provenance: Where it came from; anything that JSON can hold.
        overwrite: Whether an existing folder may be replaced, if it is an encoder folder; else it is an `InputError`.
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
    old = path.with_name(f".{path.name}.old")
    # Beside the target: a rename across file systems would be a copy.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        new.chmod(0o755)  # a colleague should be able to read an encoder
        for name, tensors in files.items():
            if tensors is not None:
                save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, new / name)
        (new / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(new.iterdir())]
        (new / _SUMS).write_text("".join(sums))
        for file in new.iterdir():
            file.chmod(0o644)  # safetensors writes private files
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)  # what a killed process left
            path.rename(old)
        try:
            new.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise
    shutil.rmtree(old, ignore_errors=True)
    return path


def read_encoder_folder(path: str | os.PathLike[str]) -> EncoderFolder:
    """Read an encoder folder and check every byte of it against its checksums.

    Args:
        path: The folder, or a Hugging Face repository that holds its files: "user/name", "hf://user/name" (with
            "@revision") or its web address.

    Raises:
        EncoderFolderError: There is no such folder, a file is missing, damaged, or from a newer format.
    """
    folder = _locate(path)
    try:
        config = json.loads((folder / "config.json").read_bytes())
        found, number = config["format"], config["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EncoderFolderError(f"{folder} is no encoder folder, or config.json in it is damaged: {error!r}") from None
    # Before the checksums: a newer format may have other files, and the error should name the version.
    if found != FORMAT or number not in range(1, FORMAT_VERSION + 1):
        raise EncoderFolderError(
            f"{folder}/config.json has format {found!r} and format version {number!r}, expected {FORMAT!r} and "
            f"{FORMAT_VERSION} at most. Update latent-obs if it is a newer one"
        )
    sums = _read_sums(folder)
    if (folder / _STATISTICS).exists():
        sums.setdefault(_STATISTICS, "none")  # so that it is rejected
    tensors = {name: _read_tensors(folder, name, sums) for name in sums}
    try:
        architecture = Architecture.from_json(config["architecture"])
        contract = PixelContract.from_json(config["pixels"])
        if contract.shape != architecture.img_shape:
            raise InputError(f"pixels {contract.shape} and network {architecture.img_shape} differ")
    except (KeyError, TypeError, ValueError) as error:  # an InputError is a ValueError
        raise EncoderFolderError(f"{folder}/config.json cannot be used: {error}") from None
    statistics = None
    if _STATISTICS in tensors:
        file = str(folder / _STATISTICS)
        statistics = LatentStatistics.from_tensors(tensors[_STATISTICS], architecture.latent_dim, file)
    provenance = config.get("provenance", {})
    encoder, selfcheck = tensors["encoder.safetensors"], tensors["selfcheck.safetensors"]
    return EncoderFolder(folder, architecture, contract, provenance, encoder, selfcheck, statistics)


def _locate(path: str | os.PathLike[str]) -> Path:
    """A local folder, or the local copy of a Hugging Face repository; the encoder in it if it is a run folder."""
    folder = Path(path) if Path(path).is_dir() else _download(str(path))
    inner = folder / "encoder"
    return inner if not _is_encoder_folder(folder) and _is_encoder_folder(inner) else folder


def _download(text: str) -> Path:
    """The local copy of a Hugging Face repository, or of a folder in it."""
    address = _HUB_ADDRESS.fullmatch(text)
    if address is None and (text.count("/") != 1 or text.startswith((".", "/", "~")) or Path(text).parent.exists()):
        raise EncoderFolderError(
            f"there is no encoder folder {text!r} (current folder: {Path.cwd()}). A Hugging Face repository is named "
            "user/name, hf://user/name or by its web address"
        )
    name, at, branch, inner = address.groups() if address else (text, None, None, None)
    revision = {"revision": at or branch} if at or branch else {}
    try:
        hub = require("huggingface_hub", extra="hub", purpose=f"load the encoder {text!r} from Hugging Face")
        return Path(hub.snapshot_download(name, **revision)) / (inner or "")
    except Exception as error:  # the hub client raises errors of several libraries
        raise EncoderFolderError(
            f"there is no folder {text!r} here, and no repository of this name could be loaded: {error}"
        ) from error


def _is_encoder_folder(path: Path) -> bool:
    """Whether this looks like an encoder folder, whole or damaged; a training run has a config.json as well."""
    return (path / "config.json").is_file() and any((path / name).is_file() for name in (*_REQUIRED[1:], _SUMS))


def _read_sums(folder: Path) -> dict[str, str]:
    """File name to checksum, from SHA256SUMS."""
    file, sums = folder / _SUMS, dict[str, str]()
    text = file.read_bytes().decode("utf-8", errors="replace") if file.is_file() else ""
    for line in text.removesuffix("\n").split("\n"):
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name or Path(name).name != name:
            raise EncoderFolderError(f"{file} is missing or damaged: cannot read {line!r}. Copy the folder again")
        sums[name] = digest
    if missing := set(_REQUIRED) - sums.keys():
        raise EncoderFolderError(f"{file} is damaged: it lacks {', '.join(missing)}. Copy the folder again")
    return sums


def _read_tensors(folder: Path, name: str, sums: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of a file whose checksum agrees; none if it is no safetensors file by its name."""
    file = folder / name
    if not file.is_file():
        raise EncoderFolderError(f"{folder} has no {name}. Copy the folder again, or export it anew with this file")
    data = file.read_bytes()
    found, expected = hashlib.sha256(data).hexdigest(), sums.get(name, "none")
    if found != expected:
        raise EncoderFolderError(
            f"{file} is damaged: its SHA-256 is {found[:12]}…, {_SUMS} says {expected[:12]}…. Copy the folder again"
        )
    try:
        return load_safetensors(data) if name.endswith(".safetensors") else {}
    except SafetensorError as error:
        raise EncoderFolderError(f"{file} is not a safetensors file: {error}") from None


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that make an encoder, by name, for its provenance."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("latent-obs", "numpy", "pillow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # latent-obs, in a folder on the path
            versions[name] = importlib.metadata.version(name)
    return versions


def make_selfcheck(encoder: Encoder, contract: PixelContract, sample_frames: Frames) -> dict[str, Tensor]:
    """A few of the sample frames, uint8 (N, height, width, channels) with N ≥ 1, and the latents that they give.

    They are "frames" uint8 (n, h, w, c) and "latents" float32 (n, latent_dim); "raw_frames", which go through the
    contract's crop and resize, and their "raw_latents".
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
    check = {
        "frames": frames,
        "latents": encoder.mean_of_frames(frames),
        "raw_frames": raw_frames,
        "raw_latents": encoder.mean_of_frames(contract.convert(raw_frames)),
    }
    return {name: torch.from_numpy(array) for name, array in check.items()}


def verify_selfcheck(
    check: Mapping[str, Tensor], encode: Callable[[Frames], NDArray[np.float32]], contract: PixelContract, name: str
) -> None:
    """Raise an `EncoderFolderError` if sample frames of `make_selfcheck` give other latents than promised."""
    for kind, hint in (
        ("", "the weights or this device's arithmetic are off"),
        ("raw_", "frames are cropped or resized in another way here (see Pillow's version)"),
    ):
        frames, latents = check.get(f"{kind}frames"), check.get(f"{kind}latents")
        if frames is None or latents is None:
            raise EncoderFolderError(f"{name}: the self-check lacks {kind}frames or {kind}latents")
        difference = relative_difference(encode(contract.convert(frames.numpy())), latents.numpy())
        if not difference <= RELATIVE_TOLERANCE:  # also if it is NaN
            raise EncoderFolderError(
                f"{name}: the self-check failed: latents of its sample frames differ by {difference:.1e} of their "
                f"range, {RELATIVE_TOLERANCE:.0e} is allowed; {hint}"
            )


def relative_difference(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Largest difference of two arrays, relative to the largest number wanted; infinite if their shapes differ."""
    if found.shape != wanted.shape:
        return np.inf
    return float(np.abs(found - wanted).max()) / max(float(np.abs(wanted).max()), 1e-6)
