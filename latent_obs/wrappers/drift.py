"""Watching whether an agent sees what its encoder never saw: recent latents against the statistics of training."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_obs.encoder.frozen import FrozenEncoder, Latents
from latent_obs.encoder.statistics import reconstruction_errors
from latent_obs.pixels import Frames
from latent_obs.util.errors import InputError

_CHUNK = 512  # frames judged at a time: one row by row would cost more in calls than in arithmetic
_DECODED_TOGETHER = 8
_FEWEST_RECONSTRUCTIONS = 24


class DriftWarning(UserWarning):
    """Frames are unlike those that the encoder was trained on."""


@dataclass(frozen=True)
class DriftReport:
    """How far the recent frames are from those of training; NaN where nothing was seen yet.

    Attributes:
        frames: Frames seen in all.
        share_outside: Share of recent frames that are farther out than 99% of the training's; 0.01 is as in training.
        mean_shift: How far the mean of the recent latents is from that of training, in standard deviations: the root of
            the mean square over the values of a latent. An agent that stays in one place shifts it as well, so it only
            informs.
        reconstruction_ratio: Mean squared error of the decoder's pictures of recent frames, over that of held-out
            frames; 1 is as in training. NaN without a decoder.
        reconstructions: Frames decoded for it so far.
        is_drifting: Whether one of the two is beyond its limit, and enough frames were seen.
    """

    frames: int
    share_outside: float
    mean_shift: float
    reconstruction_ratio: float
    reconstructions: int
    is_drifting: bool

    def __str__(self) -> str:
        error = (
            "" if math.isnan(self.reconstruction_ratio) else f", reconstruction error {self.reconstruction_ratio:.1f}x"
        )
        return (
            f"{100 * self.share_outside:.1f}% of recent frames beyond what 1% were in training, mean shifted by "
            f"{self.mean_shift:.2f} deviations{error} ({self.frames:,} frames seen)"
        )


class DriftMonitor:
    """Compares the latents of recent frames with the statistics in the encoder folder, and warns once.

    Give it to the wrapper (``monitor=``), which shows it every latent. It takes some microseconds a step, and the time
    to decode one frame in every `reconstruct_every` where the folder has a decoder. Recent frames count with weights
    that fall by e every `window` frames, all environments together. No part of it is random, and it keeps no array that
    it is given.

    Why these limits: over 200,000 frames of Gaussian latents as in training that change slowly (AR(1) of 0.98 to 0.999
    a frame, 32 values, 1 or 8 environments) the share never passed 0.19. For encoders of three ViZDoom scenarios,
    frames of another scenario or of Minecraft, other colours, another brightness or noise either bring it to 0.2 to 1,
    or the error to 2 to 160 times; which of the two tells depends on the encoder, so either is enough. With few values,
    of which one changes over minutes only, recordings of some thousand frames do not show its whole range, and the
    share may pass 0.2 without anything new.

    Args:
        encoder: The encoder that the wrapper uses, loaded from a folder with statistics.
        window: Frames over which the weights fall by e.
        least_frames: Frames to see before anything is called drift.
        share_limit: Share of frames beyond the 99% quantile that is drift; 0.01 is expected.
        ratio_limit: Reconstruction error relative to held-out frames that is drift; 1 is expected.
        reconstruct_every: Decode one frame in so many, one of a step at most; 0 for none.
        say: Where the warning goes; None: `warnings.warn` with a `DriftWarning`.

    Raises:
        InputError: The encoder has no statistics, or a setting makes no sense.
        EncoderFolderError: The folder's decoder is damaged.

    Example:
        >>> from pathlib import Path
        >>> from latent_obs.encoder.architecture import Architecture
        >>> from latent_obs.encoder.folder import EncoderFolder
        >>> from latent_obs.encoder.networks import Encoder
        >>> from latent_obs.pixels import PixelContract
        >>> from latent_obs.encoder.statistics import LatentStatistics
        >>> latents = np.random.default_rng(0).normal(0, 1, (9000, 8)).astype(np.float32)
        >>> architecture, contract = Architecture((32, 32, 3), latent_dim=8), PixelContract(32, 32, 3)
        >>> weights = Encoder(architecture).state_dict()
        >>> read = EncoderFolder(Path(), architecture, contract, {}, weights, {}, LatentStatistics.from_latents(latents))
        >>> monitor = DriftMonitor(FrozenEncoder(architecture, weights, device="cpu", folder=read), say=lambda text: None)
        >>> monitor.observe(latents)  # VecLatentObservation(venv, encoder, monitor=monitor) does, at every step
        >>> monitor.is_drifting
        False
        >>> monitor.observe(latents + 4)
        >>> monitor.is_drifting
        True
    """

    def __init__(
        self,
        encoder: FrozenEncoder,
        *,
        window: int = 10_000,
        least_frames: int = 4_000,
        share_limit: float = 0.2,
        ratio_limit: float = 2.0,
        reconstruct_every: int = 100,
        say: Callable[[str], object] | None = None,
    ) -> None:
        if encoder.statistics is None:
            raise InputError(
                f"drift is told by the statistics of the training frames, and {encoder!r} has none. Go on training it with "
                "this version (latent-obs train-vae … --resume), or train it anew"
            )
        for name, value, least in (
            ("window", window, 1),
            ("least_frames", least_frames, 0),
            ("reconstruct_every", reconstruct_every, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} must be an integer, {least} or more, got {value!r}")
        if not encoder.statistics.expected_share < share_limit < 1:
            raise InputError(f"share_limit must be above the 0.01 that is expected, and below 1, got {share_limit!r}")
        if not (math.isfinite(ratio_limit) and ratio_limit > 1):
            raise InputError(f"ratio_limit must be a number above the 1 that is expected, got {ratio_limit!r}")
        self.encoder, self.statistics = encoder, encoder.statistics
        self.window, self.least_frames = window, least_frames
        self.share_limit, self.ratio_limit = share_limit, ratio_limit
        self._say = say
        self._every = reconstruct_every if _has_decoder(encoder) and self.statistics.reconstruction_mean else 0
        if self._every:
            encoder.decode(self.statistics.mean[None])  # loads it now, and not in the middle of an episode
        self._buffer = np.empty((max(1, min(_CHUNK, window // 8)), encoder.latent_dim), np.float32)
        self.reset()

    def reset(self) -> None:
        """Forget what was seen, as when another environment begins; the warning may come again."""
        self._frames = self._filled = self._decoded = self._sampled = self._decoded_at = 0
        self._next_sample = 0  # number of the frame from which on the next one is decoded
        self._weight = self._outside = self._error = self._error_weight = 0.0
        self._sum = np.zeros(self.encoder.latent_dim)
        self._waiting: list[tuple[Frames, Latents]] = []  # copies, to be decoded together
        self._warned = False

    @property
    def frames(self) -> int:
        """Frames seen in all."""
        return self._frames

    @property
    def is_drifting(self) -> bool:
        """Whether recent frames are unlike those of training."""
        return self.report().is_drifting

    def observe(self, latents: Latents, frames: Frames | None = None) -> None:
        """Take note of latents; one of their frames is decoded now and then.

        Args:
            latents: float32 (N, latent_dim), as `FrozenEncoder.encode` gives them.
            frames: uint8 (N, height, width, channels), the frames that they are of, as the encoder eats them.

        Raises:
            InputError: Latents of another size.
        """
        count = len(latents)
        if latents.shape[1:] != self._sum.shape:
            raise InputError(f"this monitor is for latents (N, {len(self._sum)}), got {latents.shape}")
        self._frames += count
        start = 0
        while start < count:
            filled = self._filled
            taken = min(count - start, len(self._buffer) - filled)
            self._buffer[filled : filled + taken] = latents[start : start + taken]
            start += taken
            self._filled = filled + taken
            if self._filled == len(self._buffer):
                self._judge()
        if self._every and frames is not None and count and self._frames > self._next_sample:
            # Each time another one: every hundredth frame of eight environments would always be of the same one.
            row = self._sampled % count
            self._sampled += 1
            self._waiting.append((frames[row].copy(), latents[row].copy()))
            self._next_sample = (self._frames + self._every - 1) // self._every * self._every
            if len(self._waiting) == _DECODED_TOGETHER:
                self._decode()

    def report(self) -> DriftReport:
        """How far the recent frames are from those of training."""
        self._judge()
        return self._report()

    def _report(self) -> DriftReport:
        share = shift = ratio = math.nan
        if self._weight:
            share = self._outside / self._weight
            shift = float(
                np.sqrt(np.square((self._sum / self._weight - self.statistics.mean) / self.statistics.scale).mean())
            )
        if self._error_weight and self.statistics.reconstruction_mean:
            ratio = self._error / self._error_weight / self.statistics.reconstruction_mean
        drifts = self._frames >= self.least_frames and (
            share > self.share_limit or (ratio > self.ratio_limit and self._decoded >= _FEWEST_RECONSTRUCTIONS)
        )
        return DriftReport(self._frames, share, shift, ratio, self._decoded, drifts)

    def _judge(self) -> None:
        """Add the latents that wait to the running numbers."""
        count = self._filled
        if not count:
            return
        latents, self._filled = self._buffer[:count], 0
        kept = math.exp(-count / self.window)
        outside = int((self.statistics.distances(latents) > self.statistics.distance_limit).sum())
        self._weight = kept * self._weight + count
        self._outside = kept * self._outside + outside
        self._sum *= kept
        self._sum += latents.sum(axis=0)
        self._warn()

    def _decode(self) -> None:
        """Decode the frames that wait, and add their errors."""
        frames, latents = (np.stack(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting.clear()
        kept = math.exp((self._decoded_at - self._frames) / self.window)
        self._decoded_at = self._frames
        errors: NDArray[Any] = reconstruction_errors(frames, self.encoder.decode(latents))
        self._error = kept * self._error + float(errors.sum())
        self._error_weight = kept * self._error_weight + len(errors)
        self._decoded += len(errors)
        self._warn()

    def _warn(self) -> None:
        if self._warned or self._frames < self.least_frames:
            return
        report = self._report()
        if not report.is_drifting:
            return
        self._warned = True
        text = (
            f"The agent sees frames unlike those that its encoder was trained on: {report}. Its latents may tell little of "
            "them. Record frames as this agent sees them and train the encoder on:\n"
            "  latent-obs frames record --agent AGENT --out FRAMES --frames MORE\n"
            "  latent-obs train-vae --frames FRAMES --start-from RUN --out NEW\n"
            "AGENT is the run folder of train-agent (for an agent of your own: record(…, policy=agents.PlayPolicy(…))), RUN "
            "that of the encoder's training, FRAMES what it was trained on, and MORE how many to have in all. An agent has to "
            "be trained anew with the encoder that comes of it."
        )
        if self._say is not None:
            self._say(text)
        else:
            warnings.warn(text, DriftWarning, stacklevel=2)


def _has_decoder(encoder: FrozenEncoder) -> bool:
    return encoder.path is not None and (encoder.path / "decoder.safetensors").is_file()
