"""The frozen encoder: an encoder folder, loaded once, that turns frames into mean latent vectors."""

import copy
import functools
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from latent_obs.encoder.architecture import Architecture, Decoder, Encoder
from latent_obs.encoder.card import encoder_push
from latent_obs.encoder.fast_cpu import FoldedEncoder, pack_layers
from latent_obs.encoder.fastest import PLAIN, Backend, Precision, Way, candidates, choose, milliseconds, warn_if_slow
from latent_obs.encoder.folder import (
    EncoderFolder,
    Module,
    make_selfcheck,
    package_versions,
    read_encoder_folder,
    relative_difference,
    verify_selfcheck,
    write_encoder_folder,
)
from latent_obs.encoder.foreign import ForeignNetwork, with_weights
from latent_obs.encoder.openvino import OpenVinoNetwork
from latent_obs.encoder.statistics import LatentStatistics
from latent_obs.encoder.timm_module import made_again
from latent_obs.pixels import Frames, PixelContract
from latent_obs.util.device import resolve_device, torch_threads
from latent_obs.util.errors import DeviceError, EncoderFolderError, InputError, check_choice, check_count
from latent_obs.util.hub import push, push_target, with_revision

Latents = NDArray[np.float32]
Network = TypeVar("Network", bound=nn.Module)

#: Largest difference allowed between bfloat16 latents and float32 ones at loading, relative to the largest latent (of
#: principal components and of learned values apart).
#: Eight bits of mantissa through some eight layers stay well below it.
BFLOAT16_TOLERANCE = 2e-2
_MEASURED = 4_096  # frames that `save` measures at most: a quantile of 0.5% has some twenty beyond it
_CHUNK = 1024  # frames in one forward pass: bounds the memory of the activations, far beyond where speed levels off
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class FrozenEncoder:
    """Frames in, mean latent vectors out; nothing that an agent does can change it.

    It is not a `torch.nn.Module`, so that no ``.train()``, ``.to()`` or optimizer of an agent that holds it can reach
    its weights. A deepcopy is the encoder itself. A pickle carries the weights, and finds its device again on loading.

    Args:
        architecture: Layers of the encoder.
        weights: State dict of an `Encoder`.
        contract: Which frames it takes; by default those of the architecture's size, others resized by the usual rule.
        device: "auto" (CUDA, else Apple's MPS, else the CPU), or the name of a device that must exist.
        folder: The folder that all of this was read from.
        backend: "torch" on any device; "openvino", on CPUs (`latent-obs[openvino]`); or "auto", the faster one of
            those installed, measured for some tens of milliseconds the first time that a process needs it.
        precision: "float32", which is "auto"; or "bfloat16", for processors and GPUs that compute faster in it: latents
            then differ by up to `BFLOAT16_TOLERANCE` of the largest one.

    Attributes:
        architecture: Layers of the encoder; None for a module from elsewhere (`from_module`).
        provenance: Where it came from.
        path: The folder that it was loaded from, or None.
        latent_dim: Number of values in a latent.
        backend: "torch" or "openvino", whichever was chosen.
        precision: "float32" or "bfloat16".

    Warns:
        UserWarning: The backend or precision that was asked for is slower here than the plain one; with the times.

    Raises:
        InputError: Backend or precision are unknown, or do not go with the device.
        DeviceError: The device does not exist.
        MissingExtraError: The backend is not installed.

    Example:
        >>> encoder = FrozenEncoder.random(Architecture((32, 32, 3), latent_dim=8), device="cpu")
        >>> encoder(np.zeros((5, 240, 320, 3), np.uint8)).shape
        (5, 8)
    """

    architecture: Architecture | None = None
    path: Path | None = None
    _statistics: LatentStatistics | None = None
    _folder: EncoderFolder | None = None
    _decoder: Decoder | None = None

    def __init__(
        self,
        architecture: Architecture,
        weights: Mapping[str, Tensor],
        contract: PixelContract | None = None,
        *,
        device: str | torch.device = "auto",
        folder: EncoderFolder | None = None,
        backend: Backend = "auto",
        precision: Precision = "auto",
    ) -> None:
        self.architecture, self._folder = architecture, folder
        self.contract = contract or PixelContract(*architecture.img_shape)
        self.latent_dim = architecture.latent_dim
        self.provenance: dict[str, Any] = dict(folder.provenance) if folder else {}
        if folder is not None:
            self.path, self._statistics = folder.path, folder.statistics
        self.device = _device_for(device, backend, precision)
        self._process = os.getpid()
        network = _build(Encoder, architecture, weights, self.device)
        self._network: Any = network  # the definition
        build, requested = self._faster_form, candidates(backend, precision, self.device)
        way, self._compute = choose(build, requested, self.contract.shape, architecture)
        self.backend, self.precision = way

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        device: str | torch.device = "auto",
        *,
        revision: str | None = None,
        module: nn.Module | None = None,
        backend: Backend = "auto",
        precision: Precision = "auto",
    ) -> "FrozenEncoder":
        """Load an encoder folder, and check that it gives the latents that it promises; settings as for the class.

        Args:
            folder: What training wrote, a run folder that has it as `encoder/`, or a Hugging Face repository: its id
                "user/name", also with "@revision", or its web address. What is in its cache loads without a network.
            device: As for the class.
            revision: A branch, a tag or a commit of the repository. A commit always gives the same encoder.
            module: For the folder of an encoder of `from_module`: a module of the same class. A copy of it gets the
                folder's weights, names and shapes strictly compared. A network of timm (`timm_encoder`) needs none.
            backend: As for the class.
            precision: As for the class.

        Raises:
            EncoderFolderError: The folder is missing, damaged, from a newer format, or fails its self-check; or the
                repository cannot be reached, does not exist, needs a permission, or holds no encoder.
            DeviceError: As for the class; or latents in bfloat16 differ too much.
        """
        settings: dict[str, Any] = {"backend": backend, "precision": precision}
        settings["device"] = _device_for(device, **settings)
        precision = candidates(backend, precision, settings["device"])[0].precision
        read = read_encoder_folder(folder, revision)
        is_module = module is not None or read.module is not None
        if is_module:
            check_choice("backend", backend, ("auto", "torch"))
            described, own = _module_of(read, module)
            encoder = cls.from_module(
                with_weights(own, read.encoder, read.path),
                read.contract,
                mean=described["mean"],
                std=described["std"],
                device=settings["device"],
                precision=precision,
                name=described["name"],
            )
            encoder.path, encoder.provenance, encoder._statistics = read.path, read.provenance, read.statistics
            encoder._folder = read
        else:
            try:
                encoder = cls(read.architecture, read.encoder, read.contract, folder=read, **settings)
            except RuntimeError as error:  # what load_state_dict raises if names or shapes differ
                raise EncoderFolderError(f"{read.path}: the weights do not fit config.json: {error}") from None
        exact = encoder.encode if precision == "float32" else encoder._network.mean_of_frames
        components = 0 if encoder.architecture is None else encoder.architecture.components
        verify_selfcheck(read.selfcheck, exact, read.contract, str(read.path), components)
        frames = read.selfcheck["frames"].numpy()
        if precision == "bfloat16":
            difference = relative_difference(encoder.encode(frames), exact(frames), components)
            if not difference <= BFLOAT16_TOLERANCE:  # also if it is NaN
                raise DeviceError(
                    f"latents in {precision} differ from those in float32 by {difference:.1e} of their range, "
                    f"{BFLOAT16_TOLERANCE:.0e} is allowed: use precision='float32' with this encoder"
                )
        return encoder if is_module else encoder._warned(backend)

    @classmethod
    def random(
        cls,
        architecture: Architecture,
        *,
        seed: int = 0,
        device: str | torch.device = "auto",
        backend: Backend = "auto",
        precision: Precision = "auto",
    ) -> "FrozenEncoder":
        """An encoder with random weights that never trained: a baseline for a trained one.

        It has no principal components, since these are measured on frames. Its convolutions give as many values more,
        through a dense layer if a map cannot hold that many.
        """
        area = math.prod(architecture.stages[-1].size_out)
        bottleneck = "dense" if architecture.latent_dim % area else architecture.bottleneck
        architecture = replace(architecture, components=0, bottleneck=bottleneck)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            weights = Encoder(architecture).float().state_dict()
        return cls(architecture, weights, device=device, backend=backend, precision=precision)._warned(backend)

    def _warned(self, asked: Backend) -> "FrozenEncoder":
        if self.device.type == "cpu" and (asked != "auto" or self.precision != "float32"):
            way: Any = (self.backend, self.precision)
            warn_if_slow(self._faster_form, Way(*way), self.contract.shape, self.architecture)
        return self

    def _faster_form(self, way: Way) -> Callable[[Tensor], Tensor]:
        """What computes the same as the network: from uint8 (N, h, w, c) to float32 (N, latent_dim)."""
        dtype = _DTYPES[way.precision]
        if way.backend == "openvino":
            return OpenVinoNetwork(FoldedEncoder(self._network), self.contract.shape, dtype)
        folded = FoldedEncoder(self._network, dtype)
        return pack_layers(folded, self.contract.shape) if self.device.type == "cpu" else folded

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        contract: PixelContract,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        device: str | torch.device = "auto",
        precision: Precision = "auto",
        name: str | None = None,
    ) -> "FrozenEncoder":
        """Any torch module as a frozen encoder: a network of your own, a torchvision or timm backbone.

        The module is copied; the copy is put into eval mode and frozen. A pickle carries the whole module; `save`
        writes its weights.

        Args:
            module: Takes float32 (N, C, H, W) and gives one tensor (N, ...), which is flattened to (N, latent_dim).
            contract: The frames that it takes: (height, width, channels), and how others are resized.
            mean: Per channel, subtracted from pixels in [0, 1]; None for nothing. timm and torchvision state theirs.
            std: Per channel, by which they are divided then; None for nothing.
            device: As for the class.
            precision: "float32", or "bfloat16" by autocast.
            name: What to call it; the module's class by default.

        Example:
            >>> import tempfile
            >>> frames = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), np.uint8)
            >>> backbone = nn.Sequential(nn.Conv2d(3, 2, 8, 8), nn.ReLU(), nn.Flatten())
            >>> encoder = FrozenEncoder.from_module(backbone, PixelContract(32, 32, 3))
            >>> folder = encoder.save(Path(tempfile.mkdtemp()) / "encoder", frames)
            >>> FrozenEncoder.load(folder, module=backbone)(frames).shape
            (50, 32)

        Raises:
            InputError: The module cannot be an encoder: it takes or gives something else.
        """
        if not isinstance(contract, PixelContract):
            raise InputError(f"contract must be a PixelContract, got {contract!r}")
        encoder = cls.__new__(cls)
        encoder.contract, encoder.provenance = contract, {"module": name or type(module).__name__}
        encoder.backend, encoder.precision = candidates("torch", precision, torch.device("cpu"))[0]
        encoder._process = os.getpid()
        encoder.device = _device_for(device, "torch", precision)
        network = _freeze(
            ForeignNetwork(module, contract.channels, mean, std, _DTYPES[encoder.precision]), encoder.device
        )
        encoder.latent_dim = network.measure(contract)
        encoder._network = encoder._compute = network
        return encoder

    @property
    def statistics(self) -> LatentStatistics | None:
        """Statistics of its latents over the training frames; None if it was not saved with any."""
        return self._statistics

    @overload
    def encode(self, frames: Frames, *, as_tensor: Literal[False] = False) -> Latents: ...
    @overload
    def encode(self, frames: Frames, *, as_tensor: Literal[True]) -> Tensor: ...
    def encode(self, frames: Frames, *, as_tensor: bool = False) -> Latents | Tensor:
        """Mean latents of frames that the contract has converted already.

        Args:
            frames: uint8 (N, height, width, channels), C-contiguous and writable, of the contract's size.
            as_tensor: Leave the latents on the encoder's device.

        Returns:
            float32 (N, latent_dim), in memory of its own; an array, or with `as_tensor` a tensor.
        """
        if frames.dtype != np.uint8 or frames.shape[1:] != self.contract.shape:
            expected = f"uint8 (N, {', '.join(map(str, self.contract.shape))})"
            raise InputError(f"frames must be {expected}, got {frames.dtype} {frames.shape}; encoder(frames) converts")
        forked = self._process != os.getpid()
        if forked and self.device.type == "cuda":
            raise DeviceError(
                f"device {self.device} cannot be used in a forked process: CUDA was initialized in its parent. Start "
                "workers by 'spawn' or 'forkserver', or encode in the parent"
            )
        if forked and torch.get_num_threads() > 1:
            with torch_threads(1):  # the parent's threads do not exist here, and OpenMP would wait for them for ever
                return self.encode(frames, as_tensor=as_tensor)
        chunks = (torch.from_numpy(frames[i : i + _CHUNK]) for i in range(0, len(frames), _CHUNK))
        parts = [self._compute(chunk.to(self.device)) for chunk in chunks]
        if len(parts) != 1:
            empty = torch.zeros(0, self.latent_dim, dtype=torch.float32, device=self.device)
            parts = [torch.cat([empty, *parts])]
        # A copy of a tensor of inference mode is an ordinary one, which autograd takes as an input.
        return parts[0].clone() if as_tensor else parts[0].cpu().numpy()

    def save(self, folder: str | os.PathLike[str], frames: Frames | None = None) -> Path:
        """Write an encoder folder, which `load` reads, and return its path.

        Args:
            folder: The folder to make.
            frames: uint8 (N, H, W, C), training frames of any size that the contract can read: a few are kept for the
                self-check, and up to 4,096 are measured for `statistics`. Without them the check has noise, and the
                statistics are those that the encoder has already, if any.

        Raises:
            InputError: The folder exists, or the module has a state that is no tensor.
        """
        statistics = self.statistics
        if frames is None:
            chosen = np.random.default_rng(0).integers(0, 256, (4, *self.contract.shape), np.uint8)
        else:
            rows = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _MEASURED)).astype(int))
            chosen = self.contract.convert(frames[rows], what="frames")
            statistics = LatentStatistics.from_latents(self.encode(chosen))
        network = self._network.module if self.architecture is None else self._network
        weights = dict(network.state_dict())
        if wrong := [name for name, value in weights.items() if not isinstance(value, Tensor)]:
            raise InputError(
                f"module {type(network).__name__} has a state that is no tensor, {wrong}, and is not saved"
            )
        name, scaling = self.provenance.get("module"), getattr(self._network, "scaling", {})
        values = {key: None if value is None else [float(x) for x in value] for key, value in scaling.items()}
        return write_encoder_folder(
            folder,
            architecture=self.architecture or {"name": name, **values, **getattr(network, "described", {})},
            contract=self.contract,
            encoder={name: value.clone() for name, value in weights.items()},  # tied weights are one memory
            decoder=self._folder.decoder_weights if self._folder else None,
            selfcheck=make_selfcheck(self._network, self.contract, chosen),
            statistics=statistics,
            provenance={**self.provenance, "packages": package_versions()},
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str,
        private: bool = True,
        revision: str | None = None,
        commit_message: str = "Push an encoder",
    ) -> str:
        """Push its folder to Hugging Face, with its report and a card of what is known of it; returns the commit's URL.

        The card has the frames, the error beside PCA, probes and returns where a report, comparisons and agents are in
        the folders beside it, the pixel contract, and a snippet that loads it at this commit. `latent-obs push
        --dry-run` shows the card. No pickle is pushed. An encoder that is in no folder is saved first.

        Args:
            repo_id: "user/name"; the repository is made if needed.
            license: What others may do with it, such as "mit"; the frames must allow it.
            private: Whether only you see the repository. It must not have another visibility already.
            revision: The branch to push to, made if needed; by default the main one.
            commit_message: Of the commit with the files.

        Raises:
            InputError: The hub cannot be reached or rejects it; the license is missing; or `repo_id` is a folder here.
            EncoderFolderError: Its folder is missing or damaged.
            MissingExtraError: huggingface_hub is not installed (the extra "hub").
        """
        if self.path is None and self.provenance.get("module") == "PCA":
            raise InputError(
                "the encoder of a PCA is not pushed, because its file is all that it needs: upload that one. An "
                "encoder of train-vae begins with the same components, and can be pushed"
            )
        how: dict[str, Any] = {"private": private, "commit_message": commit_message}
        address = with_revision(push_target(repo_id, license), revision)
        with tempfile.TemporaryDirectory() as temporary:
            folder = self.path or self.save(Path(temporary) / "encoder")
            what = encoder_push(folder, address.repo_id, license)
            return push(what, revision=address.revision, **how).url

    def warm_up(self, batch_sizes: Iterable[int]) -> None:
        """Prepare for batches of these sizes, so that no step in the middle of a run takes longer.

        OpenVINO compiles a network for each; other sizes are rounded up to a few when they first occur.
        """
        for size in sorted({min(check_count("batch_sizes", size), _CHUNK) for size in batch_sizes}):
            if isinstance(self._compute, OpenVinoNetwork):
                self._compute.prepare(size)
            self.encode(np.zeros((size, *self.contract.shape), np.uint8))

    def __call__(self, frames: ArrayLike) -> Latents:
        """Mean latents of frames of any size that the contract can read.

        Args:
            frames: uint8 (N, H, W, C) or one (H, W, C); channels first works as well.

        Returns:
            float32 (N, latent_dim), or (latent_dim,) for one frame.
        """
        array = np.asarray(frames)
        single = array.ndim == (2 if self.contract.channels == 1 and array.shape[-1] != 1 else 3)
        latents = self.encode(self.contract.convert(array[None] if single else array))
        return latents[0] if single else latents

    def decode(self, latents: ArrayLike) -> Frames:
        """The images that latents stand for; the decoder is loaded at the first call.

        Args:
            latents: float32 (N, latent_dim), or one (latent_dim,).

        Returns:
            uint8 (N, height, width, channels), or (height, width, channels) for one latent; an `EncoderFolderError` if
            it was loaded from no folder, or that holds no decoder.
        """
        if self._decoder is None:
            if self.architecture is None or self._folder is None:
                raise EncoderFolderError(f"{self!r} was not loaded from an encoder folder, so it has no decoder")
            self._decoder = _build(Decoder, self.architecture, self._folder.decoder(), self.device)
        z = np.require(latents, np.float32, ("C", "W"))
        if z.ndim not in (1, 2) or z.shape[-1] != self.latent_dim:
            raise InputError(f"latents must be ({self.latent_dim},) or (N, {self.latent_dim}), got {z.shape}")
        if z.ndim == 1:
            return self.decode(z[None])[0]
        if len(z) > _CHUNK:
            return np.concatenate([self.decode(z[i : i + _CHUNK]) for i in range(0, len(z), _CHUNK)])
        with torch.inference_mode():
            x = self._decoder(torch.from_numpy(z).to(self.device))
            return x.mul_(255).round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenEncoder":
        return self  # it never changes, so a copy would protect nothing

    def __reduce__(self) -> tuple[Any, ...]:
        settings: dict[str, Any] = {"device": str(self.device), "precision": self.precision}
        if self.architecture is None:
            module = copy.deepcopy(self._network.module).cpu()
            make = functools.partial(FrozenEncoder.from_module, **self._network.scaling, **settings)
            own = {"provenance": self.provenance, "path": self.path, "_statistics": self._statistics}
            return make, (module, self.contract), own
        weights = {name: tensor.cpu().numpy() for name, tensor in self._network.state_dict().items()}
        make = functools.partial(FrozenEncoder, folder=self._folder, backend=self.backend, **settings)
        return make, (self.architecture, weights, self.contract)

    def __repr__(self) -> str:
        source = self.path or self.provenance.get("module", "random weights")
        how = "".join(f", {name}" for name in (self.backend, self.precision) if name not in PLAIN)
        return f"FrozenEncoder({source}, {self.contract.shape} -> {self.latent_dim}, device={str(self.device)!r}{how})"


def _device_for(device: str | torch.device, backend: str, precision: str) -> torch.device:
    """The device, where backend and precision can compute on it; "auto" is the CPU for OpenVINO."""
    check_choice("backend", backend, get_args(Backend))
    check_choice("precision", precision, get_args(Precision))
    if backend == "openvino":
        if str(device).split(":")[0] not in ("auto", "cpu"):
            raise InputError(f"backend 'openvino' computes on the CPU, got device {str(device)!r}: use backend='torch'")
        device = "cpu"
    return resolve_device(device)


def _module_of(read: EncoderFolder, given: nn.Module | None) -> tuple[Module, nn.Module]:
    """What a folder says of its module, and the module: the one that was given, or a network of timm made again."""
    if read.module is None:
        raise EncoderFolderError(f"{read.path} holds an encoder of this package; leave module out")
    if given is not None:
        return read.module, given
    if "timm" not in read.module:
        raise EncoderFolderError(
            f"{read.path} holds the weights of a module from elsewhere, without its code; give an encoder that was "
            "loaded by FrozenEncoder.load(folder, module=…) with a module of the same class"
        )
    return read.module, made_again(read.module["name"], read.module["timm"], read.encoder)


def _build(
    kind: Callable[..., Network], architecture: Architecture, weights: Mapping[str, Any], device: torch.device
) -> Network:
    """A frozen `Encoder` or `Decoder` with these weights, tensors or arrays."""
    # Random first weights are drawn only to be replaced: the agent's own random numbers stay as they were seeded.
    with torch.random.fork_rng(devices=[]):
        network = kind(architecture).float()  # whatever torch's default dtype is
    network.load_state_dict({name: torch.as_tensor(value) for name, value in weights.items()}, strict=True)
    return _freeze(network, device)


def encoding_times(architecture: Architecture) -> dict[Way, float]:
    """Milliseconds in which this processor encodes 8 frames by an untrained network, in every way that is installed."""
    encoder, cpu = FrozenEncoder.random(architecture, device="cpu", backend="torch"), torch.device("cpu")
    ways = candidates("auto", "float32", cpu) + candidates("auto", "bfloat16", cpu)
    return milliseconds({way: encoder._faster_form(way) for way in ways}, architecture.img_shape)


def _freeze(network: Network, device: torch.device) -> Network:
    """Put a network into eval mode, without gradients, on its device."""
    network.eval().requires_grad_(False)
    # Frames arrive with channels last in memory, and stay so: no transposition, and faster convolutions.
    as_frames = getattr(network, "channels_last", True)  # a `ForeignNetwork` has found out what it can take
    memory_format = torch.channels_last if as_frames else torch.contiguous_format
    return network.to(device, memory_format=memory_format)  # pyright: ignore[reportCallIssue]
