"""Write a fine-tuned encoder whose latents mean what those of the encoder before it meant; see `latent_obs.align`."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latent_obs.align import AlignmentQuality, fit_alignment, fold_alignment
from latent_obs.errors import InputError
from latent_obs.folder import EncoderFolder, read_encoder_folder
from latent_obs.frozen import FrozenEncoder
from latent_obs.statistics import reconstruction_errors
from vae_training.cvae import CVAE, images_to_tensor
from vae_training.export import _spread, export_encoder, measure_latents
from vae_training.frame_reader import gather

_FIT_FRAMES = 4_096
_HELD_OUT_FRAMES = 2_048
_SAMPLE_FRAMES = 64  # of which the self-check takes four

Datasets = Sequence[NDArray[np.uint8]]


def export_aligned(
    folder: Path, new: Path, old: Path, fit: Sequence[Datasets], held_out: Datasets, *, ridge: float = 1e-3,
    keep_scale: bool = False, provenance: Mapping[str, Any] | None = None,
) -> AlignmentQuality:  # fmt: skip
    """Align an encoder to the one that it was trained on from, and write it as an encoder folder of its own.

    Args:
        folder: To make; one that is there is replaced.
        new: The fine-tuned encoder folder (with its decoder), or its run folder.
        old: The encoder folder that a policy knows.
        fit: Groups of arrays from `get_datasets` to fit the map to, such as old recordings and new ones; as many frames of
            each group. Statistics of the latents are of these.
        held_out: Arrays to measure on, not trained on.
        ridge: See `fit_alignment`.
        keep_scale: Keep mean and deviation of the old statistics, for an agent whose latents are standardised by them.
        provenance: More to note beside where the new encoder came from.

    Returns:
        How much of the old latents is in the new ones, on held-out frames; it is in the provenance as well.

    Raises:
        InputError: The two have other layers, or the map has no inverse; it says what to do.
        EncoderFolderError: A folder is missing or damaged, or the new one has no decoder.
    """
    newer, older = read_encoder_folder(new), read_encoder_folder(old)
    if newer.architecture != older.architecture or newer.contract != older.contract:
        raise InputError(
            f"{new} has other layers or takes other frames than {old}, so that its latents cannot stand in for those: "
            f"{newer.architecture}, {newer.contract}; {older.architecture}, {older.contract}"
        )
    groups = [group for group in fit if len(group)]
    frames = np.concatenate([frames_of(group, _FIT_FRAMES // len(groups)) for group in groups])
    tested = frames_of(held_out, _HELD_OUT_FRAMES)
    model, before = _model_of(newer), FrozenEncoder.load(old, device="cpu")
    means, logvars = _encode(model, frames)
    alignment = fit_alignment(means, before(frames), newer.architecture, ridge=ridge)
    after, _ = _encode(model, tested)
    quality = AlignmentQuality.measure(before(tested), after, alignment.apply(after))
    inner, outer = fold_alignment(
        newer.architecture, alignment, model.encoder.state_dict(), model.decoder.state_dict(), mean_logvar=logvars.mean(0)
    )
    model.encoder.load_state_dict(inner)
    model.decoder.load_state_dict(outer or {})
    statistics = measure_latents(model, [dataset for group in groups for dataset in group], held_out)
    if keep_scale and older.statistics is not None:
        statistics = dataclasses.replace(statistics, mean=older.statistics.mean, std=older.statistics.std)
    export_encoder(
        folder, model, frames[:: max(1, len(frames) // _SAMPLE_FRAMES)], overwrite=True, statistics=statistics,
        provenance={
            **newer.provenance,
            **(provenance or {}),
            "aligned_to": {
                "encoder": str(older.path), "encoder_sha256": sha256_of(older.path),
                "frames": len(frames), "held_out_frames": len(tested), "ridge": ridge,
                "matrix": alignment.matrix.round(6).tolist(), "offset": alignment.offset.round(6).tolist(),
                "condition": round(alignment.condition, 3), **quality.to_json(),
            },
        },
    )  # fmt: skip
    return quality


def sha256_of(encoder: Path) -> str:
    """SHA-256 of the weights in an encoder folder."""
    return hashlib.sha256((encoder / "encoder.safetensors").read_bytes()).hexdigest()


def picture_error(folder: Path, datasets: Datasets, *, device: str = "cpu") -> float:
    """Mean squared error of the pictures decoded from mean latents, in [0, 1] pixel units squared, over frames spread evenly.

    Args:
        folder: Encoder folder with a decoder.
        datasets: Arrays from `get_datasets`; 2,048 frames of them at most.
        device: Where to compute.
    """
    encoder, frames = FrozenEncoder.load(folder, device=device), frames_of(datasets, _HELD_OUT_FRAMES)
    return float(reconstruction_errors(frames, encoder.decode(encoder(frames))).mean())


def frames_of(datasets: Datasets, at_most: int) -> NDArray[np.uint8]:
    """Frames spread evenly over arrays, in memory: uint8 (n, H, W, C).

    Example:
        >>> frames_of([np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)], 3).ravel().tolist()
        [0, 2, 5]
    """
    total = min(at_most, sum(len(dataset) for dataset in datasets))
    parts = []
    for _, wanted in _spread(datasets, total):
        parts.append(np.empty((sum(len(rows) for _, rows, _ in wanted), *datasets[0].shape[1:]), np.uint8))
        gather(wanted, parts[-1])
    return np.concatenate(parts)


def _model_of(folder: EncoderFolder) -> CVAE:
    model = CVAE.from_architecture(folder.architecture)
    model.encoder.load_state_dict(folder.encoder)
    model.decoder.load_state_dict(folder.decoder())
    return model.eval()


@torch.inference_mode()
def _encode(model: CVAE, frames: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Means and log-variances, (N, latent_dim) each."""
    parts = [model.encode(images_to_tensor(torch.from_numpy(frames[i : i + 256]))) for i in range(0, len(frames), 256)]
    means, logvars = zip(*parts, strict=True)
    return torch.cat(means).numpy(), torch.cat(logvars).numpy()
