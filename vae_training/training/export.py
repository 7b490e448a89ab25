"""Write the encoder folder of a trained CVAE, with the statistics of its latents."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latent_obs.encoder.folder import make_selfcheck, package_versions, write_encoder_folder
from latent_obs.encoder.statistics import LatentStatistics, reconstruction_errors
from latent_obs.pixels import PixelContract
from vae_training.data.loader import gather
from vae_training.model.cvae import CVAE
from vae_training.training.logs import to_images, to_uint8

_BATCH = 256
_TRAINING_FRAMES = 4_096  # a quantile of 0.5% has some twenty frames beyond it
_HELD_OUT_FRAMES = 2_048
_DECODED_FRAMES = 512  # of either kind


def export_encoder(
    folder: str | os.PathLike[str],
    model: CVAE,
    sample_frames: NDArray[np.uint8],
    *,
    provenance: Mapping[str, Any] | None = None,
    statistics: LatentStatistics | None = None,
    with_decoder: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write a CVAE's encoder folder, with its self-check, and return the folder.

    Args:
        folder: The folder to create.
        model: The CVAE.
        sample_frames: uint8 (N, H, W, C), some training frames; up to four are kept for the self-check.
        provenance: Where it came from; package versions are added.
        statistics: From `measure_latents`; without them the encoder can neither standardize nor detect drift.
        with_decoder: Write the decoder as well, for pictures.
        overwrite: Replace an existing encoder folder.

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
        statistics=statistics,
        provenance={**(provenance or {}), "packages": package_versions()},
        overwrite=overwrite,
    )


def measure_latents(
    model: CVAE,
    training: Sequence[NDArray[np.uint8]],
    held_out: Sequence[NDArray[np.uint8]] = (),
    *,
    training_frames: int = _TRAINING_FRAMES,
    held_out_frames: int = _HELD_OUT_FRAMES,
    decoded_frames: int = _DECODED_FRAMES,
) -> LatentStatistics:
    """Statistics of a CVAE's mean latents, over frames spread evenly over the recordings; nothing is random.

    Args:
        model: The CVAE, on any device.
        training: uint8 (N, H, W, C) each, as from `get_datasets`: what it was trained on.
        held_out: The same, not trained on.
        training_frames: Largest number of frames of `training` to encode.
        held_out_frames: Largest number of frames of `held_out` to encode.
        decoded_frames: Largest number of frames to decode as well, of either.
    """
    latents, errors = _encode(model, training, training_frames, decoded_frames)
    other, other_errors = _encode(model, held_out, held_out_frames, decoded_frames)
    return LatentStatistics.from_latents(latents, other, training_errors=errors, held_out_errors=other_errors)


@torch.inference_mode()
def _encode(
    model: CVAE, datasets: Sequence[NDArray[np.uint8]], at_most: int, decoded_at_most: int
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Mean latents (n, latent_dim), and reconstruction errors of some of the frames."""
    latents, errors = [np.empty((0, model.latent_dim), np.float32)], [np.empty(0)]
    every = -(-min(at_most, sum(len(dataset) for dataset in datasets)) // max(1, decoded_at_most))  # rounded up
    start = 0
    for frames in evenly_spread(datasets, at_most):
        mean = model.encoder.mean(to_images(model, frames))
        latents.append(mean.float().cpu().numpy())
        chosen = slice(-start % every, None, every)
        start += len(frames)
        if len(frames[chosen]):
            # As FrozenEncoder.decode makes images: these errors are compared with those of its images.
            errors.append(reconstruction_errors(frames[chosen], to_uint8(model.decode(mean[chosen]))))
    return np.concatenate(latents), np.concatenate(errors)


def evenly_spread(datasets: Sequence[NDArray[np.uint8]], at_most: int) -> Iterator[NDArray[np.uint8]]:
    """Frames spread evenly over all datasets, in order, in batches uint8 (n, H, W, C)."""
    lengths = np.array([len(dataset) for dataset in datasets], np.int64)
    ends, total = np.cumsum(lengths), min(at_most, int(lengths.sum()))
    numbers = np.linspace(0, lengths.sum() - 1, total).astype(np.int64)
    for start in range(0, total, _BATCH):
        batch = numbers[start : start + _BATCH]
        owner, starts = np.searchsorted(ends, batch, side="right"), ends - lengths
        frames = np.empty((len(batch), *datasets[0].shape[1:]), np.uint8)
        owners = [(i, np.flatnonzero(owner == i)) for i in np.unique(owner)]
        gather([(datasets[i], batch[places] - starts[i], places) for i, places in owners], frames)
        yield frames
