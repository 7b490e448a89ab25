"""The moving parts of a training run: what happens at each step, at the end of each epoch, and when a checkpoint is due."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from latent_obs.errors import TrainingDivergedError
from vae_training.batch import Batch
from vae_training.checkpoint import Progress, load_checkpoint, save_checkpoint
from vae_training.cvae import CVAE, Losses
from vae_training.evaluate import HeldOut
from vae_training.logs import RunLog
from vae_training.optimisation import optimiser_metrics
from vae_training.pictures import reconstruction_sheet, save_picture
from vae_training.schedule import BetaSchedule
from vae_training.train_setup import Setup

_PICTURE_FRAMES = 10
_LOOK_EVERY_STEPS = 20  # at the losses, where looking at each would make the GPU wait


class Run:
    """One run under way.

    Args:
        setup: What it began with.
        schedule: Beta by step.
        evaluate: As `vae_training.evaluate.evaluate`.

    Attributes:
        progress: How far it has come.
        images: Frames trained on in this call, over all processes.
    """

    def __init__(self, setup: Setup, schedule: BetaSchedule, evaluate: Callable[..., HeldOut]) -> None:
        self.setup, self.schedule, self._evaluate = setup, schedule, evaluate
        self.config, self.model, self.progress = setup.config, setup.model, setup.progress
        self.images = 0
        self.checkpoints = setup.config.out / "checkpoints"
        self._gradient_step = setup.gradient_step()
        self._seconds_before = setup.progress.seconds
        self._looks_always = next(setup.model.parameters()).device.type != "cuda"
        self._saved_at = time.monotonic()

    @property
    def best_model(self) -> CVAE:
        """The weights to evaluate and export: the average where there is one."""
        return self.model if self.setup.average is None else self.setup.average.model

    @property
    def is_stopped_early(self) -> bool:
        """Whether the held-out loss has not improved for as long as `patience` allows."""
        return self.config.patience is not None and self.progress.since_best >= self.config.patience

    def step(self, batch: Batch) -> Losses:
        """One gradient step, with beta as the schedule has it."""
        self.model.beta = self.schedule(self.progress.step)
        losses = self._gradient_step(batch, self.progress.step)
        look = self._looks_always or self.progress.step % _LOOK_EVERY_STEPS == 0
        if look and not torch.isfinite(losses.total):
            terms = f"squared error {losses.reconstruction.item()}, KL {losses.kl.item()}"
            raise self._diverged(f"the loss is not finite ({terms})", f"at step {self.progress.step}")
        self.progress = replace(self.progress, step=self.progress.step + 1)
        self.images += batch.share.total if batch.share is not None else len(batch)
        return losses

    def _diverged(self, what: str, where: str) -> TrainingDivergedError:
        return TrainingDivergedError(
            f"{what} {where} (beta {self.model.beta:.4g}, learning rate {self.config.learning_rate:g}). The last good "
            f"checkpoint is kept in {self.checkpoints}; start again with a smaller --learning-rate"
        )

    def clock(self, began: float) -> None:
        """Add the time of this call to the run's."""
        self.progress = replace(self.progress, seconds=self._seconds_before + time.perf_counter() - began)

    def log_step(self, log: RunLog, bar: Any, losses: Losses, elapsed: float, wait: float) -> None:
        """Log a step's losses, and show them on the bar."""
        reconstruction, kl = losses.reconstruction.item(), losses.kl.item()
        more = getattr(losses, "terms", {})
        log.write(
            self.progress.step,
            {
                "loss/total": losses.total.item(), "loss/reconstruction": reconstruction, "loss/kl_nats": kl,
                **({f"loss/{name}": float(value) for name, value in more.items()} if isinstance(more, Mapping) else {}),
                "schedule/beta": self.model.beta, **optimiser_metrics(self._gradient_step),
                "speed/images_per_second": self.images / elapsed, "speed/data_wait_share": wait / elapsed,
            },
        )  # fmt: skip
        bar.set_postfix_str(f"error {reconstruction:.4g}, KL {kl:.4g} nats, beta {self.model.beta:.3g}", refresh=False)

    def end_epoch(self, epoch: int, log: RunLog | None) -> None:
        """Evaluate and draw the held-out frames, and write checkpoints; process 0 does, and tells the others."""
        if self.setup.ranks.leads and log is not None:
            self._evaluate_and_save(epoch, log)
        self.progress = Progress(**self.setup.ranks.share(asdict(self.progress)))

    def _evaluate_and_save(self, epoch: int, log: RunLog) -> None:
        shown, step = self.setup.shown, self.progress.step
        held_out = self._evaluate(self.best_model, shown, beta=self.config.beta)
        if not math.isfinite(held_out.loss_at_fixed_beta):  # the last step ruined the weights, and no step has noticed yet
            raise self._diverged("the held-out loss is not finite", f"after step {step - 1}")
        log.write(step, {f"held_out/{name}": value for name, value in asdict(held_out).items()})
        rows = np.linspace(0, len(shown) - 1, min(_PICTURE_FRAMES, len(shown))).astype(int)
        sheet = reconstruction_sheet(self.best_model, shown[rows])
        save_picture(self.config.out / "reconstructions" / f"epoch_{epoch + 1:03d}.png", sheet)
        log.picture(step, "held_out/reconstructions", sheet)
        if self.schedule.is_comparable(step - 1):
            if held_out.loss_at_fixed_beta < self.progress.best_loss:
                self.progress = replace(
                    self.progress, best_loss=held_out.loss_at_fixed_beta, best_step=step, since_best=0
                )  # fmt: skip
                self._save("best.safetensors")
            else:
                self.progress = replace(self.progress, since_best=self.progress.since_best + 1)
        self._save("latest.safetensors")

    def save(self) -> None:
        """Write where the run is; process 0 does."""
        if self.setup.ranks.leads:
            self._save("latest.safetensors")

    def save_if_due(self) -> None:
        """Write a checkpoint within an epoch, if the last one is old enough.

        Never after the last step of an epoch: its end comes first, and a run resumed from here would pass over it.
        """
        if not self.setup.ranks.leads or self.progress.step % self.setup.steps_per_epoch == 0:
            return
        minutes = self.config.checkpoint_minutes
        if minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes:
            self._save("latest.safetensors")

    def _save(self, name: str) -> None:
        # A step may ruin the weights although its own loss was finite.
        if not all(bool(torch.isfinite(p).all()) for p in self.setup.objective.parameters()):
            raise self._diverged("the weights are not finite", f"after step {self.progress.step - 1}")
        setup = self.setup
        save_checkpoint(
            self.checkpoints / name, self.model, setup.optimizer, self.progress, parts=setup.saved_parts, about=setup.about
        )
        if name == "latest.safetensors":
            self._saved_at = time.monotonic()

    def load_best(self) -> None:
        """Put the best comparable weights into the model (and the average), where there are any."""
        if self.progress.best_step >= 0:
            load_checkpoint(self.checkpoints / "best.safetensors", self.model, parts=self.setup.saved_parts)
