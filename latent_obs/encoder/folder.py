"""The encoder folder: the only thing that crosses from training to use.

    encoder/
    ├── config.json             format, architecture, pixel contract, where it came from
    ├── encoder.safetensors     weights of the encoder
    ├── decoder.safetensors     weights of the decoder (optional, for pictures)
    ├── selfcheck.safetensors   sample frames and the latents that they must give
    ├── statistics.safetensors  what latents are like over the training frames (optional, for standardizing and drift)
    └── SHA256SUMS              one line per file, as `sha256sum --check` reads it

No pickle. Written beside its place and renamed, so that a reader never sees half of one.
"""

import hashlib
import json
import os
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

from latent_obs.encoder.architecture import Architecture
from latent_obs.encoder.networks import Encoder
from latent_obs.encoder.statistics import LatentStatistics
from latent_obs.pixels import Frames, PixelContract
from latent_obs.util.errors import EncoderFolderError, InputError, require

FORMAT = "latent-obs-encoder"
FORMAT_VERSION = 1
_REQUIRED = ("config.json", "encoder.safetensors", "selfcheck.safetensors", "SHA256SUMS")
_DECODER = "decoder.safetensors"
_STATISTICS = "statistics.safetensors"


@dataclass(frozen=True)
class EncoderFolder:
    """An encoder folder that was read and whose checksums agree.

    Attributes:
        path: The folder.
        architecture: Layers of the encoder and decoder.
        contract: What a frame must look like.
        provenance: Where it came from: frame files, schedule, steps, losses, package versions.
        encoder: Weights of the encoder, on the CPU.
        selfcheck: "frames", "raw_frames", "latents", "raw_latents"; see `latent_obs.encoder.folder`.
        statistics: What its latents are like over the training frames; None in folders that were written without.
    """

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
        """Weights of the decoder, read now and not before.

        Raises:
            EncoderFolderError: The folder has none, or it is damaged.
        """
        if not self.has_decoder:
            raise EncoderFolderError(
                f"{self.path} has no {_DECODER}, which pictures need. Export it again with its decoder"
            )
        return _read_tensors(self.path / _DECODER, _read_checked(self.path, _DECODER, _read_sums(self.path)))


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
    """Write an encoder folder aside and rename it into place.

    Args:
        path: The folder to make.
        architecture: Layers of the encoder and decoder.
        contract: What a frame must look like.
        encoder: State dict of an `Encoder`.
        selfcheck: Sample frames with their latents, from `latent_obs.encoder.folder.make_selfcheck`.
        decoder: State dict of a `Decoder`, or None to leave it out.
        statistics: What its latents are like over the training frames, or None to leave them out.
        provenance: Where it came from; anything that JSON can hold.
        overwrite: Whether a folder that is there may be replaced.

    Returns:
        The folder.

    Raises:
        InputError: It exists already, and `overwrite` is False; or something else is in its place.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already; choose another folder, or overwrite it with overwrite=True")
    if path.exists() and not _is_encoder_folder(path):
        raise InputError(f"{path} exists and is not an encoder folder; it is left alone. Choose another folder")
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture": architecture.to_json(),
        "pixels": contract.to_json(),
        "provenance": dict(provenance or {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder as the target: a rename across file systems would be a copy.
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        aside.chmod(0o755)  # mkdtemp makes it private; a colleague should be able to read an encoder
        _save(encoder, aside / "encoder.safetensors")
        if decoder is not None:
            _save(decoder, aside / _DECODER)
        _save(selfcheck, aside / "selfcheck.safetensors")
        if statistics is not None:
            _save(statistics.to_tensors(), aside / _STATISTICS)
        (aside / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        sums = [f"{_sha256(f.read_bytes())}  {f.name}\n" for f in sorted(aside.iterdir())]
        (aside / "SHA256SUMS").write_text("".join(sums))
        for file in aside.iterdir():
            file.chmod(0o644)  # safetensors writes private files
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
            try:
                path.rename(old / path.name)
                try:
                    aside.rename(path)
                except BaseException:
                    (old / path.name).rename(path)
                    raise
            finally:
                if path.exists():  # else the old one could not be put back, and must not be lost
                    shutil.rmtree(old)
        else:
            aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
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
        version = config["format_version"]
        if config["format"] != FORMAT:
            raise EncoderFolderError(f"{folder}/config.json has format {config['format']!r}, expected {FORMAT!r}")
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, EncoderFolderError):
            raise
        raise EncoderFolderError(
            f"{folder}/config.json is damaged or not one of an encoder folder: {error!r}"
        ) from None
    # Before the checksums: a newer format may well have other files, and should be named as what it is.
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise EncoderFolderError(
            f"{folder} has format version {version}, and this latent-obs reads up to {FORMAT_VERSION}. Update latent-obs"
        )
    _read_checked(folder, "config.json", sums)
    for name in sums:
        _read_checked(folder, name, sums)
    try:
        architecture = Architecture.from_json(config["architecture"])
        contract = PixelContract.from_json(config["pixels"])
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise EncoderFolderError(f"{folder}/config.json cannot be used: {error}") from None
    if contract.shape != architecture.img_shape:
        raise EncoderFolderError(
            f"{folder}/config.json: pixels {contract.shape} and network {architecture.img_shape} differ"
        )
    return EncoderFolder(
        path=folder,
        architecture=architecture,
        contract=contract,
        provenance=config.get("provenance", {}),
        encoder=_read_tensors(folder / "encoder.safetensors"),
        selfcheck=_read_tensors(folder / "selfcheck.safetensors"),
        statistics=_read_statistics(folder, sums, architecture.latent_dim),
    )


def _read_statistics(folder: Path, sums: Mapping[str, str], latent_dim: int) -> LatentStatistics | None:
    """What the folder tells of its latents; None in one from before there were statistics."""
    file = folder / _STATISTICS
    if not file.exists():
        return None
    return LatentStatistics.from_tensors(
        _read_tensors(file, _read_checked(folder, _STATISTICS, sums)), latent_dim, str(file)
    )


def _locate(path: str | os.PathLike[str]) -> Path:
    """A local folder, or the local copy of a Hugging Face repository."""
    folder = Path(path)
    if folder.is_dir():
        inner = folder / "encoder"
        # A run folder was given in place of the encoder folder inside it: what was meant is plain.
        return inner if not _is_encoder_folder(folder) and _is_encoder_folder(inner) else folder
    text = str(path)
    if text.count("/") == 1 and not text.startswith((".", "/", "~")) and not Path(text.split("/")[0]).exists():
        try:
            hub = require("huggingface_hub", extra="hub", purpose=f"load the encoder {text!r} from Hugging Face")
        except ImportError as error:
            raise EncoderFolderError(
                f"there is no folder {text!r} here. If it is a Hugging Face repository: {error}"
            ) from None
        try:
            return Path(hub.snapshot_download(text))
        except Exception as error:  # the hub client raises errors of several libraries
            raise EncoderFolderError(
                f"there is no folder {text!r} here, and Hugging Face gave no repository of this name: {error}"
            ) from error
    raise EncoderFolderError(f"there is no encoder folder {text!r} (current folder: {Path.cwd()})")


def _is_encoder_folder(path: Path) -> bool:
    """Whether this looks like an encoder folder, whole or damaged; a training run has a config.json as well."""
    return (path / "config.json").is_file() and any((path / name).is_file() for name in _REQUIRED[1:])


def _save(tensors: Mapping[str, Tensor], file: Path) -> None:
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, str(file))


def _read_sums(folder: Path) -> dict[str, str]:
    """File name to checksum, from SHA256SUMS."""
    sums: dict[str, str] = {}
    for line in (folder / "SHA256SUMS").read_bytes().decode("utf-8", errors="replace").removesuffix("\n").split("\n"):
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name or Path(name).name != name:
            raise EncoderFolderError(
                f"{folder}/SHA256SUMS is damaged: cannot read the line {line!r}. Copy the folder again"
            )
        sums[name] = digest
    lacking = [n for n in _REQUIRED if n != "SHA256SUMS" and n not in sums]
    if lacking:
        raise EncoderFolderError(
            f"{folder}/SHA256SUMS is damaged: no line for {', '.join(lacking)}. Copy the folder again"
        )
    return sums


def _read_checked(folder: Path, name: str, sums: Mapping[str, str]) -> bytes:
    """The bytes of a file whose checksum agrees."""
    file = folder / name
    if not file.is_file():
        raise EncoderFolderError(
            f"{folder} is not a complete encoder folder: {name} missing. Copy the whole folder again"
        )
    data = file.read_bytes()
    if _sha256(data) != sums.get(name):
        raise EncoderFolderError(
            f"{file} is damaged: its SHA-256 is {_sha256(data)[:12]}…, SHA256SUMS says {str(sums.get(name))[:12]}…. "
            "Copy the folder again from where it was made"
        )
    return data


def _read_tensors(file: Path, data: bytes | None = None) -> dict[str, Tensor]:
    try:
        return load_safetensors(data if data is not None else file.read_bytes())
    except SafetensorError as error:
        raise EncoderFolderError(f"{file} is not a safetensors file: {error}") from None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of what made an encoder, for its provenance.

    Example:
        >>> sorted(package_versions())
        ['latent-obs', 'numpy', 'pillow', 'python', 'torch']
    """
    import platform
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("latent-obs", "numpy", "pillow"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


#: Largest difference allowed between a latent here and the one promised, relative to the largest latent of the check.
#: TF32 (10 bits of mantissa, the default of cuDNN) through some eight layers stays below it; a swapped colour or
#: another resize filter does not.
RELATIVE_TOLERANCE = 5e-3
_MOST_FRAMES = 4

EncodeFrames = Callable[[Frames], NDArray[np.float32]]


def make_selfcheck(encoder: Encoder, contract: PixelContract, sample_frames: Frames) -> dict[str, Tensor]:
    """Choose a few frames and note the latents that they give.

    Args:
        encoder: The encoder, on any device; it is used in eval mode and left as it was.
        contract: Its pixel contract.
        sample_frames: uint8 (N, height, width, channels) with N ≥ 1, frames as the encoder eats them.

    Returns:
        "frames" uint8 (n, h, w, c) and "latents" float32 (n, latent_dim); "raw_frames" uint8 of another size, which go
        through the contract's crop and resize, and their "raw_latents".
    """
    frames = contract.convert(sample_frames, what="sample frames")
    if len(frames) == 0:
        raise InputError("a self-check needs one sample frame or more, got none")
    frames = frames[np.linspace(0, len(frames) - 1, min(_MOST_FRAMES, len(frames))).astype(int)]
    # Larger and of another aspect ratio, with noise: flat areas would hide which filter resized them.
    rows = np.arange(contract.height * 3 // 2 + 5) * contract.height // (contract.height * 3 // 2 + 5)
    columns = np.arange(contract.width * 2 + 3) * contract.width // (contract.width * 2 + 3)
    raw = frames[:2, rows][:, :, columns].astype(np.int16)
    raw += np.random.default_rng(0).integers(-40, 41, raw.shape, dtype=np.int16)
    raw_frames = raw.clip(0, 255).astype(np.uint8)
    return {
        "frames": torch.from_numpy(frames.copy()),
        "latents": torch.from_numpy(_latents(encoder, frames)),
        "raw_frames": torch.from_numpy(raw_frames),
        "raw_latents": torch.from_numpy(_latents(encoder, contract.convert(raw_frames))),
    }


def _latents(encoder: Encoder, frames: Frames) -> NDArray[np.float32]:
    """Mean latents in float32, without touching the encoder's mode."""
    training, device = encoder.training, next(encoder.parameters()).device
    encoder.eval()
    with torch.inference_mode():
        x = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float().div(255)
        z = encoder.mean(x).float().cpu().numpy()
    encoder.train(training)
    return z.copy()


def verify_selfcheck(check: Mapping[str, Tensor], encode: EncodeFrames, contract: PixelContract, name: str) -> float:
    """Encode the sample frames and compare with the latents promised.

    Args:
        check: What `make_selfcheck` gave.
        encode: uint8 (n, h, w, c) frames to float32 (n, latent_dim) latents, as the agent will get them.
        contract: The pixel contract, which converts the raw frames.
        name: What to call the encoder in the error.

    Returns:
        The largest relative difference.

    Raises:
        EncoderFolderError: A latent differs by more than `RELATIVE_TOLERANCE`.
    """
    worst = 0.0
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
        if not difference <= RELATIVE_TOLERANCE:  # also when it is NaN
            raise EncoderFolderError(
                f"{name}: the self-check failed: latents of its sample frames differ by {difference:.1e} of their range, "
                f"{RELATIVE_TOLERANCE:.0e} is allowed; {hint}"
            )
        worst = max(worst, difference)
    return worst
