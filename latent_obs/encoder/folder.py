"""The encoder folder: the only thing that crosses from training to use.

    encoder/
    ├── config.json             format, architecture, pixel contract, where it came from
    ├── encoder.safetensors     weights of the encoder
    ├── decoder.safetensors     weights of the decoder (optional, for pictures)
    ├── selfcheck.safetensors   sample frames and the latents that they must give
    ├── statistics.safetensors  statistics of latents over the training frames (optional, to standardize and for drift)
    └── SHA256SUMS              one line per file, as `sha256sum --check` reads it

The folder of a module from elsewhere (`FrozenEncoder.from_module`) is the same, without a decoder: its config.json has
the module's name and scaling of pixels in place of the architecture. The module itself is code, and is not in it. Of a
network of timm (`timm_encoder`) config.json also has what to make it again from.

No pickle. It is written aside and exchanged in one step, and each file is read once and checked as it was read, so that
a reader never sees half of one. Files that the checksums do not list are neither read nor copied.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file
from torch import Tensor

from latent_obs.encoder.architecture import Architecture, Decoder, Encoder
from latent_obs.encoder.foreign import ForeignNetwork
from latent_obs.encoder.statistics import LatentStatistics
from latent_obs.encoder.timm_module import PREFIX, TimmLayer
from latent_obs.pixels import Frames, PixelContract
from latent_obs.util.atomic import atomic_folder
from latent_obs.util.errors import EncoderFolderError, InputError, LatentObsError, check_type, one_line, parse_json
from latent_obs.util.hub import download, hub_address, with_revision

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
#: The files of encoder folders, wherever they are in a repository: nothing else is downloaded, and so no pickle.
_PATTERNS = [f"*{name}" for name in (*_REQUIRED, _DECODER, _STATISTICS, _SUMS)]
_CHECKED_FRAMES = 4  # in a self-check, at most


class Module(TypedDict):
    """What config.json says of a module from elsewhere."""

    name: str
    mean: list[float] | None
    std: list[float] | None
    timm: NotRequired[TimmLayer]


@dataclass(frozen=True)
class EncoderFolder:
    """An encoder folder that was read and whose checksums agree; weights are on the CPU."""

    path: Path
    layers: Architecture | None  # of a network of this package
    module: Module | None  # from elsewhere
    latent_dim: int
    contract: PixelContract
    provenance: dict[str, Any]
    encoder: dict[str, Tensor]
    selfcheck: dict[str, Tensor]
    checksums: dict[str, str]  # SHA-256 of each file, by name
    statistics: LatentStatistics | None = None
    decoder_weights: dict[str, Tensor] | None = None

    @property
    def architecture(self) -> Architecture:
        """The layers of the encoder; an `EncoderFolderError` if it is a module from elsewhere."""
        if self.layers is None:
            name = self.module["name"] if self.module else None
            raise EncoderFolderError(
                f"{self.path} holds the weights of a module from elsewhere ({name}), whose layers are not known. Name "
                "an encoder that train-vae has made"
            )
        return self.layers

    @property
    def has_decoder(self) -> bool:
        """Whether the folder holds a decoder as well."""
        return self.decoder_weights is not None

    def decoder(self) -> dict[str, Tensor]:
        """The weights of the decoder; an `EncoderFolderError` if there are none."""
        if self.decoder_weights is None:
            raise EncoderFolderError(f"{self.path} has no {_DECODER}. Export it anew with this file")
        return self.decoder_weights


def write_encoder_folder(
    path: str | os.PathLike[str],
    *,
    architecture: Architecture | Mapping[str, Any],
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
        architecture: Layers of the encoder and decoder; of a module from elsewhere its `Module`.
        contract: What a frame must look like.
        encoder: State dict of the `Encoder`, or of the module.
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
    is_own = isinstance(architecture, Architecture)
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **({"architecture": architecture.to_json()} if is_own else {"module": dict(architecture)}),
        "pixels": contract.to_json(),
        "provenance": dict(provenance or {}),
    }
    files = {
        "encoder.safetensors": encoder,
        _DECODER: decoder,
        "selfcheck.safetensors": selfcheck,
        _STATISTICS: statistics.to_tensors() if statistics else None,
    }
    with atomic_folder(path) as new:
        for name, tensors in files.items():
            if tensors is not None:
                save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, new / name)
        (new / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        sums = [f"{_sha256(file.read_bytes())}  {file.name}\n" for file in sorted(new.iterdir())]
        (new / _SUMS).write_text("".join(sums))
    return path


def read_encoder_folder(path: str | os.PathLike[str], revision: str | None = None) -> EncoderFolder:
    """Read an encoder folder and check every byte of it against its checksums.

    Args:
        path: The folder, or a Hugging Face repository that holds its files: "user/name", "hf://user/name" (both also
            with "@revision") or its web address.
        revision: A branch, a tag or a commit of the repository.

    Raises:
        EncoderFolderError: There is no such folder, a file is missing, damaged, or from a newer format.
    """
    folder = locate(path, revision)
    return parse(folder, read_files(folder))


def copy_encoder_folder(source: str | os.PathLike[str], target: Path) -> None:
    """Copy an encoder folder: the files that its checksums list, as they were read and checked; errors as for reading.

    The copy appears whole or not at all. What is a link in the source is a file in the copy.
    """
    files = read_files(locate(source))
    with atomic_folder(target) as new:
        for name, data in files.items():
            (new / name).write_bytes(data)


def read_files(folder: Path) -> dict[str, bytes]:
    """The files of an encoder folder that its checksums list, each read once and checked, and the checksums.

    A folder that is exchanged for another one meanwhile is read again.
    """
    while True:
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise EncoderFolderError(f"{folder} is no encoder folder: {error.strerror}") from None
        try:
            return _read_listed_files(folder, handle)
        except EncoderFolderError:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(handle), folder.stat()):
                    raise
        finally:
            os.close(handle)


def _read_listed_files(folder: Path, handle: int) -> dict[str, bytes]:
    config, listing = _read_file(folder, "config.json", handle), _read_file(folder, _SUMS, handle)
    # Before the checksums: a newer format may have other files, and the error should name the version.
    _check_format(folder, config)
    files = {"config.json": config, _SUMS: listing}
    for name, expected in _parse_sums(folder / _SUMS, listing).items():
        data = files[name] if name in files else _read_file(folder, name, handle)
        if (found := _sha256(data)) != expected:
            raise EncoderFolderError(
                f"{folder / name} is damaged: its SHA-256 is {found[:12]}…, {_SUMS} says {expected[:12]}…. Copy the "
                "folder again"
            )
        files[name] = data
    if _STATISTICS not in files and _STATISTICS in os.listdir(handle):
        raise EncoderFolderError(f"{folder / _STATISTICS} is not listed in {_SUMS}. Copy the folder again")
    return files


def _read_file(folder: Path, name: str, handle: int) -> bytes:
    """The content of a file in an open folder; of no pipe or device, which could have no end."""
    try:
        with open(os.open(name, os.O_RDONLY | os.O_NONBLOCK, dir_fd=handle), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise EncoderFolderError(f"{folder / name} is no file. Copy the folder again")
            return file.read()
    except FileNotFoundError:
        raise EncoderFolderError(
            f"{folder} has no {name}, so it is no encoder folder, or not a whole one. Copy it again, or export it anew"
        ) from None
    except OSError as error:
        raise EncoderFolderError(f"{folder / name} cannot be read: {error.strerror}") from None


def _check_format(folder: Path, data: bytes) -> None:
    try:
        config = parse_json(data, dict[str, Any], folder / "config.json")
    except InputError as error:
        raise EncoderFolderError(str(error)) from None
    found, number = config.get("format"), config.get("format_version")
    if found != FORMAT or number not in range(1, FORMAT_VERSION + 1):
        raise EncoderFolderError(
            f"{folder}/config.json has format {found!r} and format version {number!r}, expected {FORMAT!r} and "
            f"{FORMAT_VERSION} at most. Name an encoder folder, or update latent-obs if it is a newer one"
        )


def parse(folder: Path, files: Mapping[str, bytes]) -> EncoderFolder:
    """An encoder folder from its files, as `read_files` gives them; an `EncoderFolderError` if they do not fit."""
    tensors = {name: _load(folder / name, data) for name, data in files.items() if name.endswith(".safetensors")}
    selfcheck, layers, module = tensors["selfcheck.safetensors"], None, None
    try:
        config = parse_json(files["config.json"], dict[str, Any], "it")
        provenance = config.get("provenance", {})
        check_type("provenance", provenance, dict[str, Any])
        check_type("pixels", config.get("pixels"), dict[str, Any])
        contract = PixelContract.from_json(config["pixels"])
        if "module" in config:
            check_type("module", config["module"], Module)
            module = config["module"]
            latent_dim = selfcheck["latents"].shape[-1] if "latents" in selfcheck else 0
        else:
            check_type("architecture", config.get("architecture"), dict[str, Any])
            layers = Architecture.from_json(config["architecture"])
            latent_dim = layers.latent_dim
            if contract.shape != layers.img_shape:
                raise InputError(f"pixels {contract.shape} and network {layers.img_shape} differ")
    except InputError as error:
        raise EncoderFolderError(f"{folder}/config.json cannot be used: {error}") from None
    for name, network in (("encoder.safetensors", Encoder), (_DECODER, Decoder)):
        if name in tensors and layers is not None:
            _check_shapes(folder / name, tensors[name], network, layers)
    statistics = None
    if _STATISTICS in tensors:
        statistics = LatentStatistics.from_tensors(tensors[_STATISTICS], latent_dim, str(folder / _STATISTICS))
    return EncoderFolder(
        folder,
        layers,
        module,
        latent_dim,
        contract,
        provenance,
        encoder=tensors["encoder.safetensors"],
        selfcheck=selfcheck,
        checksums=_parse_sums(folder / _SUMS, files[_SUMS]),
        statistics=statistics,
        decoder_weights=tensors.get(_DECODER),
    )


def _load(file: Path, data: bytes) -> dict[str, Tensor]:
    try:
        return load_safetensors(data)
    except Exception as error:  # a SafetensorError, or torch's for a type of numbers that it does not know
        raise EncoderFolderError(f"{file} is not a safetensors file: {one_line(error)}") from None


def _check_shapes(
    file: Path, weights: Mapping[str, Tensor], network: type[Encoder | Decoder], architecture: Architecture
) -> None:
    """Raise an `EncoderFolderError` if weights are not those of a network; nothing of its size is made for that."""
    try:
        with torch.device("meta"):
            expected = {name: tuple(tensor.shape) for name, tensor in network(architecture).state_dict().items()}
    except (RuntimeError, TypeError) as error:  # more values than an integer of torch can count
        raise EncoderFolderError(f"{file}: there is no network of {architecture}: {one_line(error)}") from None
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | found):
        if found.get(name) != expected.get(name):
            raise EncoderFolderError(
                f"{file}: the weights do not fit config.json: {name} has the shape {found.get(name)}, expected "
                f"{expected.get(name)}. Copy the folder again, or export it anew"
            )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def locate(path: str | os.PathLike[str], revision: str | None = None) -> Path:
    """A local folder, or the local copy of a Hugging Face repository; the encoder in it if it is a run folder.

    Raises:
        EncoderFolderError: There is no such folder, and no repository of this name could be loaded; or a repository
            holds no encoder.
    """
    text, folder = str(path), Path(path)
    if text.startswith(PREFIX):
        raise EncoderFolderError(
            f"{text} is no encoder yet: make one of it and of frames with latent-obs encoder {text} --frames FRAMES "
            "--out RUN, and name that folder"
        )
    is_local = folder.is_dir()
    if is_local and revision is not None:
        raise EncoderFolderError(
            f"revision {revision!r}: {text!r} is a folder here, and has no revisions. Leave revision out, or write "
            f"hf://{text} for the repository of this name"
        )
    if not is_local:
        folder = _download(text, revision)
    inner = folder / "encoder"
    if _is_encoder_folder(folder) or not _is_encoder_folder(inner):
        inner = folder
    if not is_local and not _is_encoder_folder(inner):
        raise EncoderFolderError(
            f"the repository {text!r} holds no encoder: {inner} has no {' and '.join(_REQUIRED[:2])}"
        )
    if is_local and not (inner / "config.json").exists() and text.count("/") == 1 and text[0] not in "./~":
        raise EncoderFolderError(
            f"{text!r} is a folder here without an encoder: it has no config.json. Write hf://{text} for the "
            "repository of this name"
        )
    return inner


def _download(text: str, revision: str | None) -> Path:
    """The local copy of the encoder folders in a Hugging Face repository."""
    address = hub_address(text)
    if address is None:
        raise EncoderFolderError(
            f"there is no encoder folder {text!r} (current folder: {Path.cwd()}). A Hugging Face repository is named "
            "user/name, hf://user/name or by its web address"
        )
    address = with_revision(address, revision)
    try:
        return download(address, _PATTERNS)
    except LatentObsError as error:
        missing = "" if text.startswith(("hf:", "http")) else f"there is no folder {text!r} here, and "
        raise EncoderFolderError(f"{missing}{error}") from error


def _is_encoder_folder(path: Path) -> bool:
    """Whether this looks like an encoder folder, whole or damaged; a training run has a config.json as well."""
    return (path / "config.json").is_file() and any((path / name).is_file() for name in (*_REQUIRED[1:], _SUMS))


def _parse_sums(file: Path, data: bytes) -> dict[str, str]:
    """File name to checksum, from SHA256SUMS."""
    sums: dict[str, str] = {}
    for line in data.decode("utf-8", errors="replace").removesuffix("\n").split("\n"):
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name or Path(name).name != name:
            raise EncoderFolderError(f"{file} is damaged: cannot read {line!r}. Copy the folder again")
        sums[name] = digest
    if missing := set(_REQUIRED) - sums.keys():
        raise EncoderFolderError(f"{file} is damaged: it lacks {', '.join(missing)}. Copy the folder again")
    return sums


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that make an encoder, by name, for its provenance."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("latent-obs", "numpy", "pillow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # latent-obs, in a folder on the path
            versions[name] = importlib.metadata.version(name)
    return versions


def make_selfcheck(
    encoder: Encoder | ForeignNetwork, contract: PixelContract, sample_frames: Frames
) -> dict[str, Tensor]:
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
    check: Mapping[str, Tensor],
    encode: Callable[[Frames], NDArray[np.float32]],
    contract: PixelContract,
    name: str,
    components: int = 0,
) -> None:
    """Raise an `EncoderFolderError` if sample frames of `make_selfcheck` give other latents than promised."""
    for kind, hint in (
        ("", "the weights or this device's arithmetic are off"),
        ("raw_", "frames are cropped or resized in another way here (see Pillow's version)"),
    ):
        frames, latents = check.get(f"{kind}frames"), check.get(f"{kind}latents")
        if frames is None or latents is None:
            raise EncoderFolderError(f"{name}: the self-check lacks {kind}frames or {kind}latents")
        difference = relative_difference(encode(contract.convert(frames.numpy())), latents.numpy(), components)
        if not difference <= RELATIVE_TOLERANCE:  # also if it is NaN
            raise EncoderFolderError(
                f"{name}: the self-check failed: latents of its sample frames differ by {difference:.1e} of their "
                f"range, {RELATIVE_TOLERANCE:.0e} is allowed; {hint}"
            )


def relative_difference(found: NDArray[np.float32], wanted: NDArray[np.float32], components: int = 0) -> float:
    """Largest difference of latents (N, latent_dim), relative to the largest one wanted; infinite if shapes differ.

    The first values, `components` of them, are principal components, and are compared apart from the others: next to
    such large values, any error of the others would be small.
    """
    if found.shape != wanted.shape:
        return np.inf
    parts = zip(*(np.split(latents, [components], axis=1) for latents in (found, wanted)), strict=True)
    return max(float(np.abs(f - w).max() / max(np.abs(w).max(), 1e-6)) for f, w in parts if w.size)
