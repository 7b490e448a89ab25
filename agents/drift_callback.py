"""Drift of what an agent sees, in Stable-Baselines3's logs."""

import math

from stable_baselines3.common.callbacks import BaseCallback

from latent_obs.drift import DriftMonitor
from latent_obs.errors import InputError


class DriftCallback(BaseCallback):
    """Log at the end of each rollout how far what the agent sees is from what its encoder was trained on.

    - `drift/share_outside`: share of recent frames farther out than 99% of the training's; 0.01 is as in training.
    - `drift/mean_shift`: shift of the latents' mean, in standard deviations.
    - `drift/reconstruction_ratio`: reconstruction error over that of held-out frames, where the encoder has a decoder.

    The monitor itself warns, once. Works with every algorithm of Stable-Baselines3.

    Args:
        monitor: The one that the vector environment's wrapper has.

    Raises:
        InputError: (in training) the monitor is shown nothing.

    Example::

        monitor = DriftMonitor(encoder)
        model = PPO("MlpPolicy", VecLatentObservation(venv, encoder, monitor=monitor))
        model.learn(1_000_000, DriftCallback(monitor))
    """

    def __init__(self, monitor: DriftMonitor) -> None:
        super().__init__()
        self.monitor = monitor

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        report = self.monitor.report()
        if not report.frames:
            raise InputError(
                "DriftCallback's monitor has seen no frame. Give the wrapper the same one, in this process: "
                "VecLatentObservation(venv, encoder, monitor=monitor); worker processes only have copies of it"
            )
        for name in ("share_outside", "mean_shift", "reconstruction_ratio"):
            value = getattr(report, name)
            if not math.isnan(value):
                self.logger.record(f"drift/{name}", value)
