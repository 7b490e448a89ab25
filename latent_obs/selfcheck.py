"""The self-check of an encoder folder: frames with the latents that they must give, on any device."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latent_obs.errors import EncoderFolderError, InputError
from latent_obs.networks import Encoder
from latent_obs.pixels import Frames, PixelContract

#: Largest difference allowed between a latent here and the one promised, relative to the largest latent of the check.
#: TF32 (10 bits of mantissa, the default of cuDNN) through some eight layers stays below it; a swapped colour or another
#: resize filter does not.
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
