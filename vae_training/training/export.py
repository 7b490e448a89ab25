"""From a trained CVAE to the encoder folder that runs beside an agent."""

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
from vae_training.data.loader import Wanted, gather
from vae_training.model.cvae import CVAE, images_to_tensor

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
    """Write a CVAE's encoder folder, with its self-check.

    Args:
        folder: The folder to make.
        model: The CVAE.
        sample_frames: uint8 (N, H, W, C), some frames as it was trained on; up to four go into the self-check.
        provenance: Where it came from; package versions are added.
        statistics: From `measure_latents`; without them the encoder can neither standardize nor tell drift.
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
    """Statistics of a CVAE's mean latents, over frames spread evenly over the recordings.

    Nothing is random; frames are read a batch at a time.

    Args:
        model: The CVAE, on any device.
        training: uint8 (N, H, W, C) each, as from `get_datasets`: what it was trained on.
        held_out: The same, not trained on.
        training_frames: Frames of `training` to encode at most.
        held_out_frames: Frames of `held_out` to encode at most.
        decoded_frames: Of either, frames to decode as well at most.

    Example:
        >>> frames = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), np.uint8)
        >>> measure_latents(CVAE((32, 32, 3), latent_dim=8), [frames[:40]], [frames[40:]]).frames
        (40, 20)
    """
    latents, errors = _encode(model, training, training_frames, decoded_frames)
    other, other_errors = _encode(model, held_out, held_out_frames, decoded_frames)
    return LatentStatistics.from_latents(latents, other, training_errors=errors, held_out_errors=other_errors)


@torch.inference_mode()
def _encode(
    model: CVAE, datasets: Sequence[NDArray[np.uint8]], at_most: int, decoded_at_most: int
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Mean latents (n, latent_dim), and reconstruction errors of some of the frames."""
    device = next(model.parameters()).device
    latents, errors = [np.empty((0, model.latent_dim), np.float32)], [np.empty(0)]
    total = min(at_most, sum(len(dataset) for dataset in datasets))
    every = -(-total // max(1, decoded_at_most))  # rounded up
    for start, wanted in _spread(datasets, total):
        frames = np.empty((sum(len(rows) for _, rows, _ in wanted), *model.architecture.img_shape), np.uint8)
        gather(wanted, frames)
        mean = model.encoder.mean(images_to_tensor(torch.from_numpy(frames).to(device)))
        latents.append(mean.float().cpu().numpy())
        chosen = slice(-start % every, None, every)
        if len(frames[chosen]):
            # As FrozenEncoder.decode makes pictures: what is compared with these errors comes from there.
            pictures = model.decode(mean[chosen]).float().mul(255).round().clamp(0, 255).byte()
            errors.append(reconstruction_errors(frames[chosen], pictures.permute(0, 2, 3, 1).cpu().numpy()))
    return np.concatenate(latents), np.concatenate(errors)


def _spread(datasets: Sequence[NDArray[np.uint8]], total: int) -> Iterator[tuple[int, list[Wanted]]]:
    """Frames spread evenly over all, in batches: the number of a batch's first one, and where the frames are."""
    lengths = np.array([len(dataset) for dataset in datasets], np.int64)
    ends = np.cumsum(lengths)
    numbers = np.linspace(0, ends[-1] - 1, total).astype(np.int64) if total else np.empty(0, np.int64)
    for start in range(0, total, _BATCH):
        batch = numbers[start : start + _BATCH]
        of = np.searchsorted(ends, batch, side="right")
        yield (
            start,
            [(datasets[i], batch[of == i] - (ends - lengths)[i], np.flatnonzero(of == i)) for i in np.unique(of)],
        )
