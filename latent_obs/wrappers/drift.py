"""Detect distribution shift: compare recent latents with the statistics of the training frames."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from latent_obs.encoder.frozen import FrozenEncoder, Latents
from latent_obs.encoder.statistics import BEYOND, reconstruction_errors
from latent_obs.pixels import Frames
from latent_obs.util.errors import InputError, check_count

_CHUNK = 512  # latents compared together: row by row, the calls would cost more than the arithmetic
_DECODED_TOGETHER = 8
_FEWEST_RECONSTRUCTIONS = 24
_ADVICE = """Its latents may say little about them. Record frames as this agent sees them and train the encoder on:
  latent-obs frames record --agent AGENT --out FRAMES
  latent-obs train-vae --frames FRAMES --start-from RUN --out NEW
AGENT is the run folder of train-agent (for an agent of your own: record(…, policy=agents.PlayPolicy(…))), RUN that of \
the encoder's training, and NEW a folder for the new encoder. FRAMES should also hold the frames that the encoder was \
trained on. The new encoder gives other latents, so train a new agent with it."""


class DriftWarning(UserWarning):
    """Frames are unlike those that the encoder was trained on."""


@dataclass(frozen=True)
class DriftReport:
    """How far the recent frames are from those of training; NaN where nothing was seen yet.

    Attributes:
        frames: Frames seen in all.
        share_outside: Share of recent frames that are farther out than 99% of the training's; 0.01 is as in training.
        mean_shift: How far the mean of the recent latents is from that of training, in standard deviations (root mean
            square over the values of a latent). It only informs: an agent that stays in one place shifts it as well.
        reconstruction_ratio: Mean squared error of the decoder's pictures of recent frames, over that of held-out
            frames; 1 is as in training. NaN without a decoder.
        reconstructions: Frames decoded for it so far.
        is_drifting: Whether the share or the ratio is beyond its limit, and enough frames were seen.
    """

    frames: int
    share_outside: float
    mean_shift: float
    reconstruction_ratio: float
    reconstructions: int
    is_drifting: bool

    def __str__(self) -> str:
        ratio = self.reconstruction_ratio
        error = "" if math.isnan(ratio) else f", reconstruction error {ratio:.1f}x"
        return (
            f"{100 * self.share_outside:.1f}% of recent frames beyond what 1% were in training, mean shifted by "
            f"{self.mean_shift:.2f} deviations{error} ({self.frames:,} frames seen)"
        )


class DriftMonitor:
    """Compares the latents of recent frames with the statistics in the encoder folder, and warns once.

    Give it to the wrapper (``monitor=``), which shows it every latent. Recent frames count with weights that fall by e
    every `window` frames, all environments together. Either of the two measures, the latents or the reconstructions, is
    enough for a warning.

    Args:
        encoder: The encoder that the wrapper uses, loaded from a folder with statistics.
        window: Frames over which the weights fall by e.
        least_frames: Frames to see before anything is called drift.
        share_limit: Share of frames beyond the 99% quantile that is drift; 0.01 is expected.
        ratio_limit: Reconstruction error relative to held-out frames that is drift; 1 is expected.
        reconstruct_every: Decode one frame in so many, at most one per step; 0 for none.
        say: Receives the warning; None: `warnings.warn` with a `DriftWarning`.

    Raises:
        InputError: The encoder has no statistics, or a setting is out of range.

    Example::

        monitor = DriftMonitor(encoder)
        venv = VecLatentObservation(venv, encoder, monitor=monitor)
        PPO("MlpPolicy", venv).learn(100_000)
        print(monitor.report())
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
                f"encoder has no statistics of the training frames to detect drift with: {encoder!r}. Resume its "
                "training with this version (latent-obs train-vae … --resume), or train a new one"
            )
        check_count("window", window)
        check_count("least_frames", least_frames, at_least=0)
        check_count("reconstruct_every", reconstruct_every, at_least=0)
        if not 1 - BEYOND < share_limit < 1:
            raise InputError(f"share_limit must be above the 0.01 that is expected, and below 1, got {share_limit!r}")
        if not 1 < ratio_limit < math.inf:
            raise InputError(f"ratio_limit must be a number above the 1 that is expected, got {ratio_limit!r}")
        self.encoder, self.statistics = encoder, encoder.statistics
        self.window, self.least_frames = window, least_frames
        self.share_limit, self.ratio_limit = share_limit, ratio_limit
        self._say = say
        has_decoder = encoder._folder is not None and encoder._folder.has_decoder
        self._every = reconstruct_every if has_decoder and self.statistics.reconstruction_mean else 0
        if self._every:
            encoder.decode(self.statistics.mean[None])  # loads it now, and not in the middle of an episode
        self.frames = 0  #: frames seen in all
        self._decoded = self._sampled = self._decoded_at = 0
        self._next_sample = 0  # number of the frame after which the next one is decoded
        self._weight = self._outside = self._error = self._error_weight = 0.0
        self._sum = np.zeros(self.encoder.latent_dim)
        self._latents: list[Latents] = []  # copies, to be compared together
        self._waiting: list[tuple[Frames, Latents]] = []  # copies, to be decoded together
        self._warned = False

    def observe(self, latents: Latents, frames: Frames | None = None) -> None:
        """Count latents; one of their frames is decoded now and then.

        Args:
            latents: float32 (N, latent_dim), as `FrozenEncoder.encode` gives them.
            frames: uint8 (N, height, width, channels), the frames that they are of, as the encoder takes them.
        """
        count = len(latents)
        if latents.shape[1:] != self._sum.shape:
            raise InputError(f"latents must be (N, {len(self._sum)}) for this monitor, got {latents.shape}")
        self.frames += count
        self._latents.append(latents.copy())
        is_full = sum(map(len, self._latents)) >= _CHUNK
        if self._every and frames is not None and count and self.frames > self._next_sample:
            # Each time another row: every hundredth frame of eight environments would always be of the same one.
            row = self._sampled % count
            self._sampled += 1
            self._waiting.append((frames[row].copy(), latents[row].copy()))
            self._next_sample = (self.frames + self._every - 1) // self._every * self._every
            if len(self._waiting) == _DECODED_TOGETHER:
                self._add_reconstructions()
                is_full = True
        if is_full:
            self.report()

    def report(self) -> DriftReport:
        """How far the recent frames are from those of training; warns if they are too far for the first time."""
        self._add_latents()
        share = shift = ratio = math.nan
        if self._weight:
            share = self._outside / self._weight
            shifts = (self._sum / self._weight - self.statistics.mean) / self.statistics.scale
            shift = float(np.sqrt(np.square(shifts).mean()))
        if self._error_weight and self.statistics.reconstruction_mean:
            ratio = self._error / self._error_weight / self.statistics.reconstruction_mean
        is_unlike = share > self.share_limit or (ratio > self.ratio_limit and self._decoded >= _FEWEST_RECONSTRUCTIONS)
        is_drifting = is_unlike and self.frames >= self.least_frames
        report = DriftReport(self.frames, share, shift, ratio, self._decoded, is_drifting)
        if is_drifting and not self._warned:
            self._warned = True
            text = f"The agent sees frames unlike those that its encoder was trained on: {report}. {_ADVICE}"
            if self._say is not None:
                self._say(text)
            else:
                warnings.warn(text, DriftWarning, stacklevel=2)
        return report

    def _add_latents(self) -> None:
        latents = np.concatenate([np.zeros((0, len(self._sum)), np.float32), *self._latents])
        self._latents.clear()
        weights = np.exp(-np.arange(len(latents), 0, -1) / self.window)
        outside = self.statistics.distances(latents) > self.statistics.distance_limit
        kept = math.exp(-len(latents) / self.window)
        self._weight = kept * self._weight + float(weights.sum())
        self._outside = kept * self._outside + float(weights[outside].sum())
        self._sum = kept * self._sum + weights @ latents

    def _add_reconstructions(self) -> None:
        frames, latents = (np.stack(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting.clear()
        kept = math.exp((self._decoded_at - self.frames) / self.window)
        self._decoded_at = self.frames
        errors = reconstruction_errors(frames, self.encoder.decode(latents))
        self._error = kept * self._error + float(errors.sum())
        self._error_weight = kept * self._error_weight + len(errors)
        self._decoded += len(errors)
