"""From a trained CVAE to the encoder folder that runs beside an agent."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_obs.folder import package_versions, write_encoder_folder
from latent_obs.pixels import PixelContract
from latent_obs.selfcheck import make_selfcheck
from vae_training.cvae import CVAE


def export_encoder(
    folder: str | os.PathLike[str],
    model: CVAE,
    sample_frames: NDArray[np.uint8],
    *,
    provenance: Mapping[str, Any] | None = None,
    with_decoder: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write a CVAE's encoder folder, with its self-check.

    Args:
        folder: The folder to make.
        model: The CVAE.
        sample_frames: uint8 (N, H, W, C), some frames as it was trained on; up to four go into the self-check.
        provenance: Where it came from; package versions are added.
        with_decoder: Put the decoder in as well, for pictures.
        overwrite: Replace an encoder folder that is there.

    Returns:
        The folder.

    Example:
        >>> import tempfile
        >>> from latent_obs import FrozenEncoder
        >>> model = CVAE((32, 32, 3), latent_dim=8)
        >>> frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
        >>> folder = export_encoder(Path(tempfile.mkdtemp()) / "encoder", model, frames)
        >>> FrozenEncoder.load(folder, device="cpu")(frames).shape
        (4, 8)
    """
    contract = PixelContract(*model.architecture.img_shape)
    return write_encoder_folder(
        folder,
        architecture=model.architecture,
        contract=contract,
        encoder=model.encoder.state_dict(),
        decoder=model.decoder.state_dict() if with_decoder else None,
        selfcheck=make_selfcheck(model.encoder, contract, sample_frames),
        provenance={**(provenance or {}), "packages": package_versions()},
        overwrite=overwrite,
    )
