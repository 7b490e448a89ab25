"""The frozen encoder: an encoder folder, loaded once, that turns frames into mean latent vectors."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from latent_obs.architecture import Architecture
from latent_obs.device import resolve_device
from latent_obs.errors import EncoderFolderError, InputError
from latent_obs.folder import EncoderFolder, read_encoder_folder
from latent_obs.networks import Decoder, Encoder
from latent_obs.pixels import Frames, PixelContract
from latent_obs.selfcheck import verify_selfcheck

Latents = NDArray[np.float32]
_CHUNK = 1024  # frames in one forward pass: bounds the memory of the activations, far beyond where speed levels off


class FrozenEncoder:
    """Frames in, mean latent vectors out; nothing that an agent does can change it.

    Not a `torch.nn.Module`: so no `.train()`, `.to()` or optimizer of an agent that holds it can reach its weights. A
    deepcopy is the encoder itself; a pickle carries the weights and finds its device again where it is loaded.

    Attributes:
        architecture: Layers of the encoder.
        contract: What a frame must look like, and how any frame is made to look so.
        device: Where it computes.
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
    ) -> None:
        self.architecture = architecture
        self.contract = contract or PixelContract(*architecture.img_shape)
        self.device = resolve_device(device)
        self.provenance: dict[str, Any] = dict(folder.provenance) if folder else {}
        self._folder = folder
        self._decoder: Decoder | None = None
        self._network = self._freeze(Encoder, weights)

    def _freeze(self, kind: type[Encoder] | type[Decoder], weights: Mapping[str, Tensor]) -> Any:
        # Random first weights are drawn only to be replaced: the agent's own random numbers stay as they were seeded.
        with torch.random.fork_rng(devices=[]):
            network = kind(self.architecture).float()  # whatever torch's default dtype is
        network.load_state_dict(dict(weights), strict=True)
        network.eval().requires_grad_(False)
        # Frames arrive with channels last, and stay so: no transposition on the way in, and faster convolutions.
        return network.to(self.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str | torch.device = "auto") -> "FrozenEncoder":
        """Load an encoder folder, and check that it gives the latents that it promises.

        Args:
            folder: The folder that training wrote (or a run folder that has it as `encoder/`), or a Hugging Face
                repository id.
            device: "auto" (CUDA, else Apple's MPS, else the CPU), or the name of a device that must be there.

        Raises:
            EncoderFolderError: The folder is missing, incomplete, damaged, from a newer format, or fails its self-check.
            DeviceError: The device asked for is not there.
        """
        resolved = resolve_device(device)
        read = read_encoder_folder(folder)
        try:
            encoder = cls(read.architecture, read.encoder, read.contract, device=resolved, folder=read)
        except RuntimeError as error:  # what load_state_dict raises when names or shapes differ
            raise EncoderFolderError(f"{read.path}: the weights do not fit config.json: {error}") from None
        verify_selfcheck(read.selfcheck, encoder.encode, read.contract, str(read.path))
        return encoder

    @classmethod
    def random(cls, architecture: Architecture, *, seed: int = 0, device: str | torch.device = "auto") -> "FrozenEncoder":
        """An encoder with random weights that never trained: the baseline that a trained one has to beat."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            weights = Encoder(architecture).float().state_dict()
        return cls(architecture, weights, device=device)

    @property
    def latent_dim(self) -> int:
        """Number of values in a latent."""
        return self.architecture.latent_dim

    @property
    def path(self) -> Path | None:
        """The folder it was loaded from."""
        return self._folder.path if self._folder else None

    def encode(self, frames: Frames) -> Latents:
        """Mean latents of frames that are already as the contract wants them.

        Args:
            frames: uint8 (N, height, width, channels), C-contiguous and writable, of the contract's size.

        Returns:
            float32 (N, latent_dim), in memory of its own.
        """
        if frames.dtype != np.uint8 or frames.shape[1:] != self.contract.shape:
            raise InputError(
                f"encode eats uint8 (N, {', '.join(map(str, self.contract.shape))}), got {frames.dtype} {frames.shape}. "
                "Call the encoder itself, encoder(frames), to have them converted"
            )
        if len(frames) > _CHUNK:
            return np.concatenate([self.encode(frames[i : i + _CHUNK]) for i in range(0, len(frames), _CHUNK)])
        with torch.inference_mode():
            x = torch.from_numpy(frames).to(self.device).permute(0, 3, 1, 2)  # (N, C, H, W), channels last in memory
            return self._network.mean(x.float().div_(255)).cpu().numpy()

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
            latents: float32 (N, latent_dim).

        Returns:
            uint8 (N, height, width, channels).

        Raises:
            EncoderFolderError: The folder holds no decoder.
        """
        if self._decoder is None:
            if self._folder is None:
                raise EncoderFolderError("this encoder was not loaded from a folder, so it has no decoder")
            self._decoder = self._freeze(Decoder, self._folder.decoder())
        z = np.require(latents, np.float32, ("C", "W"))
        with torch.inference_mode():
            x: Tensor = self._decoder(torch.from_numpy(z).to(self.device))  # pyright: ignore[reportOptionalCall]
            return x.mul_(255).round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenEncoder":
        return self  # it never changes, so there is nothing to protect by a copy

    def __getstate__(self) -> dict[str, Any]:
        weights = {name: tensor.cpu().numpy() for name, tensor in self._network.state_dict().items()}
        return {"architecture": self.architecture, "contract": self.contract, "device": str(self.device),
                "weights": weights, "folder": self._folder}  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        weights = {name: torch.from_numpy(array) for name, array in state["weights"].items()}
        self.__init__(state["architecture"], weights, state["contract"], device=state["device"], folder=state["folder"])

    def __repr__(self) -> str:
        source = self.path or "random weights"
        return f"FrozenEncoder({source}, {self.contract.shape} -> {self.latent_dim}, device={str(self.device)!r})"
