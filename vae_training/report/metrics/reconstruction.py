"""How well frames come back: MSE, PSNR and SSIM, beside what PCA of the same size and a mean image achieve."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from latent_obs.util.errors import require
from vae_training.report.encoder import Frames, Reconstruct
from vae_training.report.probes.scores import Score, score_ratio

_BATCH = 256
_SSIM_WINDOW = 11  # Wang et al. 2004: a Gaussian of 1.5 pixels over 11x11
_CELLS = 8  # rows and columns of the coarse error map
#: Mean squared error of rounding to 256 levels. Less cannot be seen in uint8 frames, and PSNR is finite everywhere.
ROUNDING_MSE = (1 / 255) ** 2 / 12


@dataclass(frozen=True)
class Scores:
    """How well one method gives the held-out frames back, means over frames.

    PSNR is ``10 log10(1 / MSE)`` of each frame; an error below that of rounding to 256 levels counts as that (58.9 dB).
    SSIM is that of Wang et al. 2004, "Image Quality Assessment", section III.
    """

    mse: float  # mean squared error of a value in [0, 1]; what a method draws beyond that range is clamped
    psnr_db: float
    ssim: float | None  # 1 is identical; None for frames smaller than its window of 11x11
    mse_median: float  # half of the frames have less
    mse_worst: float  # of the worst frame


@dataclass(frozen=True)
class Reconstruction:
    """Scores of the encoder and of what it is compared with, on held-out frames."""

    frames: int  # held-out frames measured
    scores: dict[str, Scores]  # of "encoder", "pca" and "mean image"
    best: list[int]  # frames of the sample that came back best, the best first; of frames in a row only one
    worst: list[int]  # the same of the worst, the worst first
    error_map: list[list[float]]  # mean squared error of the encoder by place, (8, 8) or smaller, rows from the top
    notes: dict[str, str] = field(default_factory=dict)  # how the methods were made
    beside_pca: Score | None = None  # the ratio to PCA's error, with its interval

    def ratio(self, method: str) -> float:
        """Error of the encoder over that of another method."""
        return self.scores["encoder"].mse / max(self.scores[method].mse, ROUNDING_MSE)


@dataclass(frozen=True)
class Measured:
    """What one method did to each frame: float64 (N,) each, and the error by place, float64 (H, W)."""

    mse: NDArray[np.float64]
    ssim: NDArray[np.float64] | None
    error_map: NDArray[np.float64]

    def scores(self) -> Scores:
        """Means over the frames."""
        return Scores(
            mse=float(self.mse.mean()),
            psnr_db=float(-10 * np.log10(np.maximum(self.mse, ROUNDING_MSE)).mean()),
            ssim=None if self.ssim is None else float(self.ssim.mean()),
            mse_median=float(np.median(self.mse)),
            mse_worst=float(self.mse.max()),
        )


def measure(frames: Frames, reconstruct: Reconstruct, *, with_ssim: bool = True) -> Measured:
    """Errors of one method on frames, uint8 (N, H, W, C), one by one; its images are clamped to [0, 1]."""
    metrics = require("skimage.metrics", extra="report", purpose="compare pictures by SSIM")
    # The constants and the window are those of Wang et al. 2004.
    gaussian = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    with_ssim = with_ssim and min(frames.shape[1:3]) >= _SSIM_WINDOW
    mse: list[NDArray[np.float64]] = []
    similarities: list[float] = []
    error_map = np.zeros(frames.shape[1:3])
    for i in range(0, len(frames), _BATCH):
        batch = frames[i : i + _BATCH]
        wanted = np.divide(batch, 255, dtype=np.float32)
        got = np.clip(reconstruct(batch), 0, 1).astype(np.float32)
        squared = np.square(got.astype(np.float64) - wanted)
        mse.append(squared.mean(axis=(1, 2, 3)))
        error_map += squared.mean(axis=3).sum(axis=0)
        for one, other in zip(wanted, got, strict=True) if with_ssim else ():
            similarities.append(float(metrics.structural_similarity(one, other, channel_axis=-1, **gaussian)))
    return Measured(
        np.concatenate(mse),
        np.array(similarities) if with_ssim else None,
        error_map / len(frames),
    )


def compare(
    measured: Mapping[str, Measured],
    *,
    shown: int = 8,
    notes: Mapping[str, str] | None = None,
    units: NDArray[np.intp] | None = None,
) -> Reconstruction:
    """Put methods, "encoder" among them, side by side; `shown` of the best and of the worst frames are named.

    With `units`, what each frame is resampled with, the ratio to PCA's error gets an interval.
    """
    own = measured["encoder"]
    order = np.argsort(own.mse, kind="stable").tolist()
    apart = len(order) // (5 * shown)  # neighboring frames look the same

    def chosen(order: list[int]) -> list[int]:
        kept: list[int] = []
        for number in order:
            if len(kept) < shown and all(abs(number - other) > apart for other in kept):
                kept.append(number)
        return kept

    rows, columns = (np.array_split(np.arange(n), min(_CELLS, n)) for n in own.error_map.shape)
    coarse = [[float(own.error_map[np.ix_(r, c)].mean()) for c in columns] for r in rows]
    scores = {name: method.scores() for name, method in measured.items()}
    beside_pca = None
    if units is not None and "pca" in measured:
        pair = [own, measured["pca"]]
        errors = [np.maximum(method.mse, ROUNDING_MSE) for method in pair]
        beside_pca = score_ratio(errors[0], errors[1], units)
    return Reconstruction(len(order), scores, chosen(order), chosen(order[::-1]), coarse, dict(notes or {}), beside_pca)
