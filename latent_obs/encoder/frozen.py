"""The frozen encoder: an encoder folder, loaded once, that turns frames into mean latent vectors."""

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from latent_obs.encoder.architecture import Architecture
from latent_obs.encoder.engines import Backend, Precision, built, make_engine, placed, resolve_engine_device
from latent_obs.encoder.folder import EncoderFolder, read_encoder_folder, verify_selfcheck
from latent_obs.encoder.foreign import ForeignNetwork
from latent_obs.encoder.networks import Decoder, Encoder
from latent_obs.encoder.statistics import LatentStatistics
from latent_obs.pixels import Frames, PixelContract
from latent_obs.util.device import resolve_device
from latent_obs.util.errors import DeviceError, EncoderFolderError, InputError

Latents = NDArray[np.float32]
#: Largest difference allowed between bfloat16 latents and float32 ones at loading, relative to the largest latent.
#: Eight bits of mantissa through some eight layers stay well below it (9e-3 is the most that was seen).
BFLOAT16_TOLERANCE = 2e-2
_CHUNK = 1024  # frames in one forward pass: bounds the memory of the activations, far beyond where speed levels off


class FrozenEncoder:
    """Frames in, mean latent vectors out; nothing that an agent does can change it.

    Not a `torch.nn.Module`: so no `.train()`, `.to()` or optimizer of an agent that holds it can reach its weights. A
    deepcopy is the encoder itself; a pickle carries the weights and finds its device again where it is loaded.

    Args:
        architecture: Layers of the encoder.
        weights: State dict of an `Encoder`.
        contract: As below; by default of the architecture's size, and resized by the usual rule.
        device: "auto" (CUDA, else Apple's MPS, else the CPU), or the name of a device that must be there.
        folder: The folder that all of this was read from.
        backend: "torch" on any device; or "openvino", which is faster on some CPUs (`latent-obs[openvino]`).
        precision: "float32"; or "bfloat16", for processors and GPUs that compute faster in it: a latent is then off by
            up to `BFLOAT16_TOLERANCE` of the largest one.

    Attributes:
        architecture: Layers of the encoder; None where it is another module (`from_module`).
        contract: What a frame must look like, and how any frame is made to look so.
        device: Where it computes.
        backend: What computes.
        precision: In which numbers.
        provenance: Where it came from.

    Example:
        >>> encoder = FrozenEncoder.random(Architecture((32, 32, 3), latent_dim=8), device="cpu")
        >>> frames = np.zeros((5, 240, 320, 3), np.uint8)
        >>> latents = encoder(frames)
        >>> latents.shape, latents.dtype
        ((5, 8), dtype('float32'))
        >>> encoder(frames[0]).shape
        (8,)
    """

    def __init__(
        self,
        architecture: Architecture,
        weights: Mapping[str, Tensor],
        contract: PixelContract | None = None,
        *,
        device: str | torch.device = "auto",
        folder: EncoderFolder | None = None,
        backend: Backend = "torch",
        precision: Precision = "float32",
    ) -> None:
        resolved = resolve_engine_device(device, backend, precision)
        self.architecture: Architecture | None = architecture
        self.contract = contract or PixelContract(*architecture.img_shape)
        self.provenance: dict[str, Any] = dict(folder.provenance) if folder else {}
        self._folder = folder
        self._start(built(Encoder, architecture, weights), architecture.latent_dim, resolved, backend, precision)

    def _start(
        self, network: nn.Module, latent_dim: int, device: torch.device, backend: Backend, precision: Precision
    ) -> None:
        """Take a network over, and make the engine that computes it."""
        self.device, self.backend, self.precision = device, backend, precision
        self._latent_dim = latent_dim
        self._decoder: Decoder | None = None
        self._network: Any = placed(network, device)
        self._engine = make_engine(self._network, self.contract.shape, device, backend, precision)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        device: str | torch.device = "auto",
        *,
        backend: Backend = "torch",
        precision: Precision = "float32",
    ) -> "FrozenEncoder":
        """Load an encoder folder, and check that it gives the latents that it promises.

        Args:
            folder: The folder that training wrote (or a run folder that has it as `encoder/`), or a Hugging Face
                repository id.
            device: "auto" (CUDA, else Apple's MPS, else the CPU), or the name of a device that must be there.
            backend: What computes; see the class.
            precision: In which numbers; see the class.

        Raises:
            EncoderFolderError: The folder is missing, incomplete, damaged, from a newer format, or fails its
                self-check.
            DeviceError: The device asked for is not there, or is too far off in bfloat16.
            InputError: Backend or precision are unknown, or do not go with the device.
            MissingExtraError: The backend is not installed.
        """
        resolved = resolve_engine_device(device, backend, precision)
        read = read_encoder_folder(folder)
        try:
            encoder = cls(
                read.architecture,
                read.encoder,
                read.contract,
                device=resolved,
                folder=read,
                backend=backend,
                precision=precision,
            )
        except RuntimeError as error:  # what load_state_dict raises when names or shapes differ
            raise EncoderFolderError(f"{read.path}: the weights do not fit config.json: {error}") from None
        in_float32 = encoder.encode if precision == "float32" else encoder._encode_plainly
        verify_selfcheck(read.selfcheck, in_float32, read.contract, str(read.path))
        if precision != "float32":
            encoder._check_precision(read.selfcheck["frames"].numpy())
        return encoder

    @classmethod
    def random(
        cls,
        architecture: Architecture,
        *,
        seed: int = 0,
        device: str | torch.device = "auto",
        backend: Backend = "torch",
        precision: Precision = "float32",
    ) -> "FrozenEncoder":
        """An encoder with random weights that never trained: the baseline that a trained one has to beat."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            weights = Encoder(architecture).float().state_dict()
        return cls(architecture, weights, device=device, backend=backend, precision=precision)

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        contract: PixelContract,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        latent_dim: int | None = None,
        device: str | torch.device = "auto",
        precision: Precision = "float32",
        name: str | None = None,
    ) -> "FrozenEncoder":
        """Any torch module as a frozen encoder: a network of your own, a torchvision or timm backbone.

        It is copied, put into eval mode and frozen; your own is left as it was. A pickle carries the whole module.

        Args:
            module: Takes float32 (N, C, H, W) and gives one tensor (N, ...), which is flattened to (N, latent_dim).
            contract: The frames that it takes: (height, width, channels), and how others are resized.
            mean: Per channel, subtracted from pixels in [0, 1]; None for nothing. timm and torchvision state theirs.
            std: Per channel, by which they are divided then; None for nothing.
            latent_dim: Number of values in a latent, where it should be checked; a dry run finds it.
            device: As for the class.
            precision: "float32", or "bfloat16" by autocast.
            name: What to call it; the module's class by default.

        Raises:
            InputError: The module cannot be an encoder: what it takes or gives is something else.
            DeviceError: The device asked for is not there.

        Example:
            >>> pooled = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1))
            >>> FrozenEncoder.from_module(pooled, PixelContract(64, 64, 3), mean=[0.5] * 3, std=[0.25] * 3, device="cpu")
            FrozenEncoder(Sequential, (64, 64, 3) -> 5, device='cpu')
        """
        if not isinstance(contract, PixelContract):
            raise InputError(f"contract must be a PixelContract, such as PixelContract(224, 224, 3), got {contract!r}")
        resolved = resolve_engine_device(device, "torch", precision)
        network = placed(ForeignNetwork(module, contract.channels, mean, std), resolved)
        self = cls.__new__(cls)
        self._start_module(
            network,
            contract,
            network.measure(contract, latent_dim),
            resolved,
            precision,
            {"module": name or type(module).__name__},
        )
        return self

    def _start_module(
        self,
        network: ForeignNetwork,
        contract: PixelContract,
        latent_dim: int,
        device: torch.device,
        precision: Precision,
        provenance: dict[str, Any],
    ) -> None:
        self.architecture, self._folder = None, None
        self.contract, self.provenance = contract, provenance
        self._start(network, latent_dim, device, "torch", precision)

    @property
    def latent_dim(self) -> int:
        """Number of values in a latent."""
        return self._latent_dim

    @property
    def path(self) -> Path | None:
        """The folder it was loaded from."""
        return self._folder.path if self._folder else None

    @property
    def statistics(self) -> LatentStatistics | None:
        """What its latents are like over the training frames; None where its folder has none, or there is none."""
        return self._folder.statistics if self._folder else None

    @overload
    def encode(self, frames: Frames, *, as_tensor: Literal[False] = False) -> Latents: ...
    @overload
    def encode(self, frames: Frames, *, as_tensor: Literal[True]) -> Tensor: ...
    def encode(self, frames: Frames, *, as_tensor: bool = False) -> Latents | Tensor:
        """Mean latents of frames that are already as the contract wants them.

        Args:
            frames: uint8 (N, height, width, channels), C-contiguous and writable, of the contract's size.
            as_tensor: Leave the latents on the encoder's device.

        Returns:
            float32 (N, latent_dim), in memory of its own: an array, or with `as_tensor` a tensor.
        """
        if frames.dtype != np.uint8 or frames.shape[1:] != self.contract.shape:
            raise InputError(
                f"encode eats uint8 (N, {', '.join(map(str, self.contract.shape))}), got {frames.dtype} {frames.shape}. "
                "Call the encoder itself, encoder(frames), to have them converted"
            )
        if len(frames) > _CHUNK:
            chunks = [frames[i : i + _CHUNK] for i in range(0, len(frames), _CHUNK)]
            if as_tensor:
                return torch.cat([self._engine.tensor(chunk) for chunk in chunks])
            return np.concatenate([self._engine.latents(chunk) for chunk in chunks])
        if len(frames) == 0:
            nothing = torch.zeros(0, self.latent_dim, dtype=torch.float32, device=self.device)
            return nothing if as_tensor else nothing.cpu().numpy()
        return self._engine.tensor(frames) if as_tensor else self._engine.latents(frames)

    def warm_up(self, batch_sizes: Iterable[int]) -> None:
        """Prepare for batches of these sizes, so that no step in the middle of a run takes longer.

        OpenVINO compiles a network for each; other sizes are rounded up to a few, when they first come up.

        Args:
            batch_sizes: Numbers of frames: of environments, mostly.
        """
        sizes = list(batch_sizes)
        if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
            raise InputError(f"batch_sizes must be numbers of frames, 1 or more, got {sizes}")
        self._engine.warm_up(sorted({min(size, _CHUNK) for size in sizes}))

    def _encode_plainly(self, frames: Frames) -> Latents:
        """Latents by the network's own definition, in float32."""
        with torch.inference_mode():
            x = torch.from_numpy(frames).to(self.device).permute(0, 3, 1, 2)  # (N, C, H, W), channels last in memory
            return self._network.mean(x.float().div_(255)).cpu().numpy()

    def _check_precision(self, frames: Frames) -> None:
        wanted = self._encode_plainly(frames)
        difference = float(np.abs(self.encode(frames) - wanted).max()) / max(float(np.abs(wanted).max()), 1e-6)
        if not difference <= BFLOAT16_TOLERANCE:  # also when it is NaN
            raise DeviceError(
                f"latents in {self.precision} differ from those in float32 by {difference:.1e} of their range, "
                f"{BFLOAT16_TOLERANCE:.0e} is allowed: use precision='float32' with this encoder"
            )

    def __call__(self, frames: ArrayLike) -> Latents:
        """Mean latents of frames of any size that the contract can read.

        Args:
            frames: uint8 (N, H, W, C) or one (H, W, C); channels first works as well.

        Returns:
            float32 (N, latent_dim), or (latent_dim,) for one frame.

        Raises:
            InputError: Other dtype, number of axes or channels.
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
            uint8 (N, height, width, channels), or (height, width, channels) for one latent.

        Raises:
            EncoderFolderError: The folder holds no decoder, or there is no folder.
            InputError: The latents have another shape.
        """
        if self._decoder is None:
            self._decoder = self._read_decoder()
        z = np.require(latents, np.float32, ("C", "W"))
        if z.ndim not in (1, 2) or z.shape[-1] != self.latent_dim:
            raise InputError(
                f"decode takes latents of this encoder, ({self.latent_dim},) or (N, {self.latent_dim}), got {z.shape}. "
                "Give the latent alone where observations hold more than it, and not standardized"
            )
        if z.ndim == 1:
            return self.decode(z[None])[0]
        if len(z) > _CHUNK:
            return np.concatenate([self.decode(z[i : i + _CHUNK]) for i in range(0, len(z), _CHUNK)])
        with torch.inference_mode():
            x: Tensor = self._decoder(torch.from_numpy(z).to(self.device))
            return x.mul_(255).round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def _read_decoder(self) -> Decoder:
        if self.architecture is None:
            raise EncoderFolderError("this encoder is a module of your own (from_module), which has no decoder")
        if self._folder is None:
            raise EncoderFolderError("this encoder was not loaded from a folder, so it has no decoder")
        return placed(built(Decoder, self.architecture, self._folder.decoder()), self.device)

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenEncoder":
        return self  # it never changes, so there is nothing to protect by a copy

    def __getstate__(self) -> dict[str, Any]:
        common = {"contract": self.contract, "device": str(self.device), "precision": self.precision}
        if self.architecture is None:
            network = copy.deepcopy(self._network).cpu()
            return {**common, "module": network, "latent_dim": self.latent_dim, "provenance": self.provenance}
        weights = {name: tensor.cpu().numpy() for name, tensor in self._network.state_dict().items()}
        return {
            **common,
            "architecture": self.architecture,
            "weights": weights,
            "folder": self._folder,
            "backend": self.backend,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "module" in state:
            device = resolve_device(state["device"])
            self._start_module(
                state["module"], state["contract"], state["latent_dim"], device, state["precision"], state["provenance"]
            )
            return
        weights = {name: torch.from_numpy(array) for name, array in state["weights"].items()}
        self.__init__(
            state["architecture"],
            weights,
            state["contract"],
            device=state["device"],
            folder=state["folder"],
            backend=state["backend"],
            precision=state["precision"],
        )

    def __repr__(self) -> str:
        source = self.path or self.provenance.get("module", "random weights")
        special = [name for name in (self.backend, self.precision) if name not in ("torch", "float32")]
        how = "".join(f", {name}" for name in special)
        return f"FrozenEncoder({source}, {self.contract.shape} -> {self.latent_dim}, device={str(self.device)!r}{how})"
