"""An encoder folder opened for measuring: means *and* variances of q(z|x), and images as floats, in batches.

The latents of a network of timm are principal components of its features: they have no variances and no decoder.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latent_obs.encoder.folder import EncoderFolder
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.device import resolve_device
from latent_obs.util.errors import check_type
from vae_training.model.cvae import CVAE
from vae_training.training.logs import to_images

Frames = NDArray[np.uint8]
Floats = NDArray[np.float32]
#: How a method gives frames back: uint8 (N, H, W, C) to float32 of the same shape in about [0, 1].
Reconstruct = Callable[[Frames], Floats]
_BATCH = 256
_NO_VARIANCE = -30.0  # its logarithm


class ReportModel:
    """The two networks of an encoder folder.

    Attributes:
        folder: The folder, as it was read.
        frozen: The encoder that an agent gets.
        cvae: Encoder and decoder in one; the decoder has random weights where the folder has none. None of a network of
            timm.
        components: How many values of a latent, the first ones, are principal components.

    Args:
        encoder: The encoder folder, or the run folder that it is in, or a Hugging Face repository id.
        device: As for `FrozenEncoder.load`.

    Raises:
        EncoderFolderError: The folder is missing or damaged.
        DeviceError: The device is not there.
    """

    def __init__(self, encoder: str | os.PathLike[str], device: str | torch.device = "auto") -> None:
        self.frozen = FrozenEncoder.load(encoder, device)  # checks the folder as an agent would
        assert self.frozen._folder is not None
        self.folder = self.frozen._folder
        _check_provenance(self.folder)
        self.contract, layers = self.folder.contract, self.folder.layers
        self.components = self.folder.latent_dim if layers is None else layers.components
        self.cvae: CVAE | None = None
        if layers is None:
            return
        with torch.random.fork_rng(devices=[]):
            self.cvae = CVAE.from_architecture(layers)
        self.cvae.encoder.load_state_dict(self.folder.encoder)
        if self.folder.has_decoder:
            self.cvae.decoder.load_state_dict(self.folder.decoder())
        self.cvae.to(resolve_device(device)).eval().requires_grad_(False)

    @torch.inference_mode()
    def encode(self, frames: Frames) -> tuple[Floats, Floats]:
        """Means and log-variances of q(z|x), two float32 (N, latent_dim), of frames uint8 (N, H, W, C)."""
        cvae = self.cvae
        if cvae is None:
            mean = self.frozen(frames)
            return mean, np.full_like(mean, _NO_VARIANCE)
        parts = [cvae.encode(to_images(cvae, frames[i : i + _BATCH])) for i in range(0, len(frames), _BATCH)]
        mean, logvar = (torch.cat(side).float().cpu().numpy() for side in zip(*parts, strict=True))
        return mean, logvar

    def means(self, frames: Frames) -> Floats:
        """Mean latents, float32 (N, latent_dim)."""
        return self.encode(frames)[0]

    @torch.inference_mode()
    def decode(self, latents: NDArray[Any]) -> Floats:
        """Images of latents, float32 (N, H, W, C), not clamped to [0, 1]."""
        cvae = self.cvae
        assert cvae is not None, "there is a decoder only where there is a CVAE"
        z = torch.from_numpy(np.require(latents, np.float32, ("C", "W"))).to(next(cvae.parameters()).device)
        images = torch.cat([cvae.decode(part).float().cpu() for part in z.split(_BATCH)])
        return images.permute(0, 2, 3, 1).contiguous().numpy()

    def reconstruct(self, frames: Frames) -> Floats:
        """Frames decoded from their mean latents, float32 (N, H, W, C)."""
        return self.decode(self.means(frames))


def _check_provenance(folder: EncoderFolder) -> None:
    """Check what a report uses of a provenance, which may hold anything; an `InputError` names the key."""
    top: dict[str, Any] = {
        "settings": dict[str, Any] | None,
        "trained_on": list[dict[str, Any]] | None,
        "training_seconds": float | None,
        "step": int | None,
    }
    settings: dict[str, Any] = {
        "frames": str | None,
        "held_out": int | None,
        "beta": float | None,
        "augment": float | None,
        "epochs": int | None,
    }
    part: dict[str, Any] = {"sha256_head_tail": str | None, "first_frame": int, "frames": int}

    def check(values: dict[str, Any], kinds: dict[str, Any]) -> None:
        for name, kind in kinds.items():
            check_type(f"{folder.path}/config.json, {name} of the provenance", values.get(name), kind)

    check(folder.provenance, top)
    check(folder.provenance.get("settings") or {}, settings)
    for each in folder.provenance.get("trained_on") or []:
        check(each, part if each.get("sha256_head_tail") else {})
