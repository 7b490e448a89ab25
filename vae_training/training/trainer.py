"""`train()`: from frames on disk to a CVAE and its encoder folder, with checkpoints, logs and pictures."""

import contextlib
import itertools
import json
import math
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.parallel import DistributedDataParallel

from latent_obs.encoder.architecture import Architecture
from latent_obs.util.atomic import GracefulStop, folder_lock, is_unused, write_json
from latent_obs.util.errors import InputError, TrainingDivergedError
from latent_obs.util.progress import ProgressBar, print_now
from latent_obs.util.tracking import Tracker
from latent_obs.util.words import counted
from vae_training.data.frames import (
    Split,
    are_recorded,
    check_worth_learning,
    describe_datasets,
    explain_disk_full,
    get_datasets,
    identify,
    not_finished,
    split_as_before,
    split_held_out,
    split_note,
)
from vae_training.data.loader import Batch, BatchParts, SuperBatches, make_batch
from vae_training.model.beta import BetaSchedule, make_schedule
from vae_training.model.cvae import CVAE, Losses, gaussian_kl_nats
from vae_training.model.losses import VAELoss, apply_gradients
from vae_training.training.checkpoint import Progress, load_checkpoint, read_about, save_checkpoint
from vae_training.training.config import LAYERS, TrainConfig
from vae_training.training.distributed import Ranks, process_group, raised_once, restarts_processes
from vae_training.training.export import evenly_spread, export_encoder, measure_latents
from vae_training.training.initialization import put_weights, start_from_data, with_layers_of
from vae_training.training.logs import RunLog, reconstruction_sheet, save_picture, to_images
from vae_training.training.optim import compiles_on, keep_freed_memory, make_adam, make_scheduler, resolve_precision

_DEFAULT_SUPER_BATCH = 10_000
_AUGMENT_RECORDED, _AUGMENT_OTHERS = 0.3, 0.5  # demonstrations show more unlike places than an environment's own frames
_HELD_OUT_FRAMES = 1_024  # evaluated after each epoch: enough for a steady mean, a second on a CPU
_LOG_EVERY_STEPS = 20
_LOOK_EVERY_STEPS = 20  # at the losses on a GPU, which would wait for each look
_AGREE_EVERY_STEPS = 10  # on stopping: with several processes, each gets its signal at another step
_SAVE_EVERY_SECONDS = 300.0  # besides the ends of epochs
_BATCH = 256  # of evaluation
_ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, "Importance Weighted Autoencoders", section 5: a unit is active above it


@dataclass(frozen=True)
class HeldOut:
    """Losses on held-out frames.

    Attributes:
        loss_at_fixed_beta: Reconstruction plus the wanted beta times KL, whatever the beta in force.
        reconstruction: Squared error through a sample of the latent, as in training.
        kl_nats: KL, as in training.
        active_latents: Latents whose mean varies over the frames by more than 0.01 (Burda et al. 2016).
    """

    loss_at_fixed_beta: float
    reconstruction: float
    kl_nats: float
    active_latents: float


@dataclass(frozen=True)
class TrainResult:
    """What a training run leaves.

    Attributes:
        run: The run folder.
        encoder: The encoder folder, `run / "encoder"`.
        steps: Gradient steps taken in all.
        held_out: Losses on the held-out frames of the exported weights.
        interrupted: Whether it was stopped before its last epoch.
        images_per_second: Training speed of this call over all processes, including the time spent waiting for frames.
        stopped_early: Whether `patience` ended it.
    """

    run: Path
    encoder: Path
    steps: int
    held_out: HeldOut
    interrupted: bool
    images_per_second: float
    stopped_early: bool = False


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    progress_bar: bool | None = None,
    say: Callable[[str], object] = print_now,
) -> TrainResult:
    """Train a CVAE on a folder of frames, and write the encoder folder that an agent uses.

    Each epoch draws a super-batch at random from the files, divides it into batches, and takes a gradient step on each,
    while the next super-batch is read in the background. At the end of each epoch the held-out recordings are evaluated
    at the wanted beta, and a checkpoint is written; long epochs have checkpoints every few minutes, too. The exported
    weights are the best among the comparable moments (ends of cycles; without cycles, epochs at the wanted beta), or
    the last ones if there was none.

        out/
        ├── config.json, log.jsonl, tensorboard/
        ├── reconstructions/epoch_001.png …   held-out frames above their reconstructions
        ├── checkpoints/latest.safetensors, best.safetensors
        └── encoder/                          for latent_obs.make(..., encoder=...)

    Ctrl-C (or SIGTERM) finishes the current step, and leaves a checkpoint and an encoder. A run that was killed at any
    moment and resumed ends, on a CPU, with the weights of a run never killed, bit by bit. Several processes started by
    torchrun train one model, and any other number can resume it; see `vae_training.training.distributed`.

    Args:
        config: All settings.
        resume: Continue the run in `config.out`; see `TrainConfig.resumed_from`. Under `torchrun --max-restarts` a run
            that is there is continued in any case.
        progress_bar: Show it; None shows it in a terminal, and elsewhere a line now and then.
        say: Called with each message.

    Raises:
        InputError: The frames, the settings or the run folder cannot be used; raised before training starts.
        DeviceError: The device does not exist.
        TrainingDivergedError: A loss is not finite; the last good checkpoint is kept.
        DiskFullError: A checkpoint or a picture could not be written; the last good checkpoint is kept.
        RankLostError: Another process of this run has ended.
    """
    with raised_once():
        resume = resume or (restarts_processes() and (config.out / "config.json").exists())
        if resume:
            config = config.resumed_from(TrainConfig.load(config.out))
        elif config.start_from is not None:
            config = with_layers_of(config, config.start_from)
    with contextlib.ExitStack() as held, process_group(config.device) as ranks:

        def start() -> Trainer:
            if resume and ranks.is_main:
                held.enter_context(folder_lock(config.out))
            trainer = Trainer(config, ranks, resume=resume, say=say if ranks.is_main else lambda _: None)
            if not resume and ranks.is_main:  # only now: settings that cannot be used leave no folder behind
                config.out.mkdir(parents=True, exist_ok=True)
                held.enter_context(folder_lock(config.out))
                _check_new(config.out)
            if config.log is not None and ranks.is_main:
                trainer.tracker = held.enter_context(Tracker(config.log, config.out, trainer.config.to_json()))
            return trainer

        trainer = ranks.agree(start)
        ranks.agree(trainer.join)
        kept = "The last good checkpoint is kept; free some space, and go on with --resume"
        memory = keep_freed_memory() if ranks.device.type == "cpu" else contextlib.nullcontext()
        with raised_once(TrainingDivergedError), explain_disk_full(config.out, kept), memory:
            return trainer.fit(progress_bar if ranks.is_main else False)
    raise AssertionError("unreachable")


def seconds_per_step(config: TrainConfig, *, measured_s: float = 1.5) -> float:
    """Measure how long a gradient step of these settings takes, on their frames. It leaves nothing behind.

    The fastest step counts: other work on the machine makes single steps many times slower, and comes and goes.

    Args:
        config: Settings; `config.out` is not written to, and its frames are several batches.
        measured_s: Seconds to measure for, if that is enough for three steps.
    """
    with process_group(config.device) as ranks:
        on_cpu = ranks.device.type == "cpu"
        with keep_freed_memory() if on_cpu else contextlib.nullcontext():
            trainer = Trainer(config, ranks, resume=False, say=lambda _: None)
            with trainer.super_batches() as batches:
                frames, times = next(iter(batches)), list[float]()
            for rows in itertools.cycle(trainer.shards.rows[:-1] or trainer.shards.rows):  # the last may be smaller
                began = time.perf_counter()
                trainer.step(make_batch(frames[rows], trainer.device)).total.item()  # waits for a GPU
                times.append(time.perf_counter() - began)
                if len(times) > 2 and sum(times) >= measured_s:
                    return min(times[1:])
    raise AssertionError("unreachable")


class Trainer:
    """One run: its frames, its model, what trains it, and how far it has come. Creating one writes nothing.

    Args:
        config: Settings, those of the saved run if it is resumed.
        ranks: The processes.
        resume: Continue the run in `config.out`.
        say: Called with each message.

    Attributes:
        model: The CVAE, on its device.
        loss: What is descended, around the model.
        progress: How far the run has come.
        images: Frames trained on in this call, over all processes.
        tracker: Where metrics are logged as well.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks, *, resume: bool, say: Callable[[str], object]) -> None:
        self.config, self.ranks, self.device, self.say = config, ranks, ranks.device, say
        self.is_new, self.checkpoints = not resume, config.out / "checkpoints"
        self.tracker: Tracker | None = None
        latest = self.checkpoints / "latest.safetensors"
        # A run killed before its first checkpoint begins anew; one that has lost it does not.
        begun = resume and (latest.exists() or (self.checkpoints / "best.safetensors").exists())
        if self.is_new:
            _check_new(config.out)
        self._open_frames(read_about(latest, dict[str, Split]) if begun else None)
        self._build_model()
        if not begun:
            if config.start_from is None:
                start_from_data(self.config, self.model, self.training)
            else:
                put_weights(config.start_from, self.model)
        self._prepare_steps(latest if begun else None)
        self.images, self.learning_rate = 0, config.learning_rate
        self._seconds_before = self.progress.seconds
        self._began = self._saved_at = time.perf_counter()

    def _open_frames(self, saved: dict[str, Split] | None) -> None:
        """Open the frames, and hold out some of them: the same as the saved run, if there is one."""
        config, datasets = self.config, get_datasets(self.config.frames)
        if saved is None:
            self.training, self.held_out = split_held_out(datasets, config.held_out)
        else:
            self.training, self.held_out = split_as_before(datasets, saved["frames"], folder=config.frames)
        check_worth_learning(self.training)
        self.about = {"frames": identify(self.training, self.held_out)}
        self.shown = np.concatenate(list(evenly_spread(self.held_out, _HELD_OUT_FRAMES)))
        self.split_note = split_note(datasets, self.training, self.held_out)

    def _build_model(self) -> None:
        """Choose the layers that are not given, for the size of the frames; make model and loss on their device."""
        given: dict[str, Any] = {name: getattr(self.config, name) for name in LAYERS}
        height, width, channels = self.training[0].shape[1:]
        architecture = Architecture.for_frames((height, width, channels), **given, standardize=True)
        chosen: dict[str, Any] = {name: getattr(architecture, name) for name in LAYERS}
        if self.config.augment is None:
            chosen["augment"] = _AUGMENT_RECORDED if are_recorded(self.config.frames) else _AUGMENT_OTHERS
        config = self.config = replace(self.config, **chosen)
        torch.manual_seed(config.seed)
        self.model = CVAE.from_architecture(architecture, config.beta, config.scale_losses).to(self.device)
        self.loss = VAELoss(
            self.model,
            augment=config.augment or 0.0,
            dtype=resolve_precision(config.precision, self.device),
            compile=compiles_on(self.device),
            say=self.say,
        ).to(self.device)

    def _prepare_steps(self, resume_from: Path | None) -> None:
        """Make what takes the steps (optimizer, schedules, batches), and read the checkpoint if there is one."""
        config, ranks = self.config, self.ranks
        self.optimizer = make_adam(self.loss.parameters(), config.learning_rate, self.device)
        available = sum(len(dataset) for dataset in self.training)
        size = config.super_batch or min(_DEFAULT_SUPER_BATCH, available)
        self.progress = Progress(super_batch=size)
        if resume_from is not None:
            self.progress = load_checkpoint(resume_from, self.model, self.optimizer)
        size = self.progress.super_batch
        if size > available:
            raise InputError(
                f"super_batch {size:,} is more than the {available:,} frames to train on in {config.frames}. "
                f"Use --super-batch {available} or less, or record more frames"
            )
        self.batch_size = config.batch_size * self.progress.ranks
        self.shards = BatchParts(size, self.batch_size, ranks.rank, ranks.world_size)
        self.steps_per_epoch = len(self.shards)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.beta = schedule_of(config, self.steps_per_epoch)
        self.scheduler = make_scheduler(
            self.optimizer, config.learning_rate_schedule, total_steps=self.total_steps, step=self.progress.step
        )
        self.forward: Callable[..., Losses] = self.loss
        self.super_batches().close()  # raises if they cannot be drawn, before anything is written

    def join(self) -> None:
        """Connect to the other processes, whose settings, frames and checkpoint must be the same; a barrier."""
        if self.ranks.world_size == 1:
            return
        seen = json.dumps([self.config.to_json(), self.about, self.progress.step])
        number = [float(zlib.crc32(seen.encode()))]
        if self.ranks.any(self.ranks.broadcast(number) != number):
            raise InputError(
                f"the processes of this run have different settings, frames or checkpoints. Start all of them with the "
                f"same command, and let all see the same files in {self.config.frames} and {self.config.out}"
            )
        self.forward = DistributedDataParallel(self.loss, gradient_as_bucket_view=True)
        self.forward.broadcast_buffers = False  # they are those of process 0 now, and never change

    def super_batches(self) -> SuperBatches:
        """The super-batches of the remaining epochs; of each, the rows of this process."""
        config = self.config
        return SuperBatches(
            self.training,
            self.progress.super_batch,
            dataset_weights=config.dataset_weights or None,
            seed=config.seed,
            start_epoch=min(self.progress.step // self.steps_per_epoch, config.epochs),
            epochs=config.epochs,
            replace_small=config.super_batch is None,  # a size that was given is drawn without repeats
            places=self.shards.places if self.ranks.world_size > 1 else None,
            device=self.device,
        )

    def fit(self, progress_bar: bool | None = None) -> TrainResult:
        """Train until the last epoch, early stopping or a signal, and export the encoder."""
        progress = self.progress
        self._begin()
        if not self.is_new and (self.is_stalled or progress.step >= self.total_steps):
            more = "has stopped early; a larger --patience continues it" if self.is_stalled else "is finished"
            if not self.is_stalled and self.config.learning_rate_schedule == "constant":
                more += "; a larger --epochs continues it"
            self.say(f"Nothing to do: the run in {self.config.out} {more}. Its encoder is exported again.")
        start_epoch, first_batch = divmod(progress.step, self.steps_per_epoch)
        self._began = time.perf_counter()
        with (
            (
                RunLog(self.config.out, from_step=progress.step, tracker=self.tracker)
                if self.ranks.is_main
                else contextlib.nullcontext()
            ) as log,
            GracefulStop() as stop,
            self.super_batches() as batches,
            ProgressBar(
                total=self.total_steps, initial=progress.step, unit="step", desc="train-vae", shown=progress_bar
            ) as bar,
            self.ranks.watch(),
        ):
            if log is not None and log.note:
                self.say(log.note)
            for epoch, frames in enumerate(batches, start_epoch) if not self.is_stalled else ():
                for number in range(first_batch, self.steps_per_epoch):
                    rows, share = self.shards.rows[number], self.shards.shares[number]
                    losses = self.step(make_batch(frames[rows], self.device, share))
                    bar.update()
                    if log is not None and progress.step % _LOG_EVERY_STEPS == 0:
                        self._log_step(log, bar, losses, batches.wait_seconds)
                    is_time = self.ranks.world_size == 1 or progress.step % _AGREE_EVERY_STEPS == 0
                    if is_time and self.ranks.any(stop.requested):
                        break
                    # Not after an epoch's last step: a run resumed from there would skip the evaluation at its end.
                    is_due = time.perf_counter() - self._saved_at >= _SAVE_EVERY_SECONDS
                    if is_due and progress.step % self.steps_per_epoch:
                        self._save("latest")
                first_batch = 0
                if progress.step % self.steps_per_epoch:  # stopped within the epoch
                    break
                self.end_epoch(epoch, log)
                if self.is_stalled or self.ranks.any(stop.requested):
                    break
            wait_seconds = batches.wait_seconds
            interrupted = self.ranks.any(stop.requested)
            self._save("latest")
        return self._finish(interrupted, wait_seconds)

    def step(self, batch: Batch) -> Losses:
        """Take one gradient step, with the beta of the schedule."""
        self.model.beta = self.beta(self.progress.step)
        on_gpu = self.device.type == "cuda"
        losses = apply_gradients(
            self.forward(batch.images, batch.noise),
            self.optimizer,
            weight=1.0 if batch.share is None else batch.share.weight,
            reduce=self.ranks.mean_losses,
            check=not on_gpu,
        )
        if (not on_gpu or self.progress.step % _LOOK_EVERY_STEPS == 0) and not torch.isfinite(losses.total):
            terms = f"squared error {losses.reconstruction.item()}, KL {losses.kl.item()}"
            raise self._diverged(f"the loss is not finite ({terms}) at step {self.progress.step}")
        self.learning_rate = float(self.scheduler.get_last_lr()[0])
        self.scheduler.step()
        self.progress.step += 1
        self.images += len(batch) if batch.share is None else batch.share.total
        return losses

    def end_epoch(self, epoch: int, log: RunLog | None) -> None:
        """Evaluate and draw the held-out frames, and write checkpoints: in process 0, for all."""
        progress, step = self.progress, self.progress.step
        if log is not None:
            held_out = evaluate(self.model, self.shown, beta=self.config.beta)
            if not math.isfinite(held_out.loss_at_fixed_beta):  # the last step ruined the weights
                raise self._diverged(f"the held-out loss is not finite after step {step - 1}")
            log.write(step, {f"held_out/{name}": value for name, value in asdict(held_out).items()})
            sheet = reconstruction_sheet(self.model, self.shown)
            save_picture(self.config.out / "reconstructions" / f"epoch_{epoch + 1:03d}.png", sheet)
            log.picture(step, "held_out/reconstructions", sheet)
            if self.beta.is_comparable(step - 1):
                progress.since_best += 1
                if held_out.loss_at_fixed_beta < progress.best_loss:
                    progress.best_loss, progress.best_step, progress.since_best = held_out.loss_at_fixed_beta, step, 0
                    self._save("best")
            self._save("latest")
        best_loss, best_step, since_best = self.ranks.broadcast(
            [progress.best_loss, progress.best_step, progress.since_best]
        )
        progress.best_loss, progress.best_step, progress.since_best = best_loss, int(best_step), int(since_best)

    @property
    def is_stalled(self) -> bool:
        """Whether the held-out loss has not improved for as long as `patience` allows."""
        return self.config.patience is not None and self.progress.since_best >= self.config.patience

    def _begin(self) -> None:
        """Write the settings and a first checkpoint, so that a run killed in its first epoch can be resumed."""
        config, count, size = self.config, self.ranks.world_size, self.progress.super_batch
        if self.ranks.is_main:
            with explain_disk_full(config.out, "Nothing was trained; free some space, and give the same command again"):
                write_json(config.out / "config.json", config.to_json())
            if self.is_new:
                self._save("latest")
        architecture = self.model.architecture
        height, width, channels = architecture.img_shape
        rows, columns = architecture.stages[-1].size_out
        files = dict.fromkeys(Path(str(getattr(d, "filename", ""))).name for d in self.held_out)
        self.say(
            f"Training on {counted(len(self.training), 'file')}, {sum(len(d) for d in self.training):,} frames of "
            f"{height}x{width}x{channels}, on {self.device} by {counted(count, 'process', 'processes')}; "
            f"held out: {', '.join(files)}. {config.epochs} epochs of {size:,} frames = {self.total_steps:,} steps"
            f"{'' if self.is_new else f', from step {self.progress.step:,} on'}.\n"
            f"Layers: widths {list(architecture.widths)} and strides {list(architecture.strides)} lead to a map of "
            f"{rows}x{columns}; {architecture.latent_dim} latents ({architecture.bottleneck}), "
            f"{architecture.components} of them principal components. Frames are augmented by {config.augment:g}."
        )
        if self.split_note:
            self.say(self.split_note)
        if unfinished := not_finished(config.frames):
            self.say(f"Warning: {config.frames} is not complete: {unfinished}.")
        if size < self.batch_size:
            self.say(
                f"An epoch has {size:,} frames, fewer than a batch of {self.batch_size:,}, so it is a single step. "
                f"Use more frames, or a smaller --batch-size (such as {max(1, size // 8)})."
            )

    def _log_step(self, log: RunLog, bar: ProgressBar, losses: Losses, wait_seconds: float) -> None:
        reconstruction, kl, elapsed = losses.reconstruction.item(), losses.kl.item(), time.perf_counter() - self._began
        metrics = {
            "loss/total": losses.total.item(),
            "loss/reconstruction": reconstruction,
            "loss/kl_nats": kl,
            "schedule/beta": self.model.beta,
            "optimizer/learning_rate": self.learning_rate,
            "speed/images_per_second": self.images / elapsed,
            "speed/data_wait_share": wait_seconds / elapsed,
        }
        log.write(self.progress.step, metrics)
        terms = f"error {reconstruction:.4g}, KL {kl:.4g} nats, beta {self.model.beta:.3g}"
        bar.set_postfix_str(f"{terms}, {self.images / elapsed:.0f} images/s", refresh=False)

    def _save(self, name: str) -> None:
        """Write a checkpoint, in process 0."""
        if not self.ranks.is_main:
            return
        # A step may ruin the weights although its own loss was finite.
        if not all(bool(torch.isfinite(p).all()) for p in self.loss.parameters()):
            raise self._diverged(f"the weights are not finite after step {self.progress.step - 1}")
        self.progress.seconds = self._seconds_before + time.perf_counter() - self._began
        path = self.checkpoints / f"{name}.safetensors"
        save_checkpoint(path, self.model, self.optimizer, self.progress, about=self.about)
        self._saved_at = time.perf_counter()

    def _diverged(self, what: str) -> TrainingDivergedError:
        return TrainingDivergedError(
            f"{what} (beta {self.model.beta:.4g}, learning rate {self.config.learning_rate:g}). The last good "
            f"checkpoint is kept in {self.checkpoints}; start again with a smaller --learning-rate"
        )

    def _finish(self, interrupted: bool, wait_seconds: float) -> TrainResult:
        """Export the best comparable weights, or the last ones if there are none."""
        config, progress = self.config, self.progress
        elapsed = max(time.perf_counter() - self._began, 1e-9)
        rate, encoder = self.images / elapsed, config.out / "encoder"
        has_best = progress.best_step >= 0
        if has_best:
            load_checkpoint(self.checkpoints / "best.safetensors", self.model)
        exported_step = progress.best_step if has_best else progress.step
        numbers = list(astuple(self._export(encoder, exported_step))) if self.ranks.is_main else [0.0] * 4
        held_out = HeldOut(*self.ranks.broadcast(numbers))
        stopped_early = self.is_stalled and not interrupted
        self.say(
            f"{'Stopped' if interrupted or stopped_early else 'Done'} at step {progress.step:,}: "
            f"{self.images:,} images in {elapsed:.0f} s, {rate:.0f} images/s, "
            f"{wait_seconds / elapsed:.1%} of it waiting for frames.\n"
            f"Held out ({'best' if has_best else 'last'} step, {exported_step:,}): "
            f"squared error {held_out.reconstruction:.4g}, KL {held_out.kl_nats:.4g} nats, "
            f"{held_out.active_latents:.0f} of {config.latent_dim} latents active.\n"
            f"Encoder:  {encoder}\nPictures: {config.out / 'reconstructions'}"
        )
        if interrupted:
            self.say(f"Go on with: latent-obs train-vae --out {config.out} --resume")
        return TrainResult(config.out, encoder, progress.step, held_out, interrupted, rate, stopped_early)

    def _export(self, folder: Path, step: int) -> HeldOut:
        """Write the encoder folder, and evaluate its weights."""
        held_out = evaluate(self.model, self.shown, beta=self.config.beta)
        provenance = {
            "trained_on": describe_datasets(self.training),
            "settings": self.config.to_json(),
            "schedule": self.beta.to_json(),
            "step": step,
            "held_out": asdict(held_out),
            "training_seconds": round(self.progress.seconds, 1),
        }
        statistics = measure_latents(self.model, self.training, self.held_out)
        export_encoder(folder, self.model, self.shown, overwrite=True, statistics=statistics, provenance=provenance)
        return held_out


def schedule_of(config: TrainConfig, steps_per_epoch: int) -> BetaSchedule:
    """The annealing schedule of a run, in steps.

    Example:
        >>> schedule_of(TrainConfig(beta=2.0, batch_freeze=1, half_beta_cycle=2), steps_per_epoch=10)
        CyclicalBeta(fixed_beta=2.0, half_cycle_steps=20, freeze_steps=10)
    """
    rise, freeze = config.half_beta_cycle * steps_per_epoch, config.batch_freeze * steps_per_epoch
    return make_schedule(config.schedule, config.beta, rise_steps=rise, freeze_steps=freeze)


@torch.inference_mode()
def evaluate(model: CVAE, frames: NDArray[np.uint8], *, beta: float) -> HeldOut:
    """Evaluate a CVAE; repeatable, and without effect on the global random state.

    Args:
        model: The CVAE.
        frames: uint8 (N, H, W, C), N ≥ 1.
        beta: The wanted beta.
    """
    generator = torch.Generator(next(model.parameters()).device).manual_seed(0)
    squared_error, kl, means, learned = 0.0, 0.0, [], slice(model.architecture.components, None)
    for i in range(0, len(frames), _BATCH):
        x = to_images(model, frames[i : i + _BATCH])
        mean, logvar = model.encode(x)
        decoded = model.decode(model.reparameterize(mean, logvar, generator))
        squared_error += (decoded - x).square().sum().item()
        kl += gaussian_kl_nats(mean[:, learned], logvar[:, learned]).sum().item()
        means.append(mean)
    reconstruction, kl_nats = squared_error / len(frames), kl / len(frames)
    if model.scale_losses:
        reconstruction /= float(np.prod(model.architecture.img_shape))
        kl_nats /= model.architecture.learned
    active = int((torch.cat(means).var(0, correction=0) > _ACTIVE_VARIANCE).sum())
    return HeldOut(reconstruction + beta * float(model.beta_unit) * kl_nats, reconstruction, kl_nats, float(active))


def _check_new(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; choose another --out")
    if not is_unused(out):
        raise InputError(f"{out} is not empty. Go on with the run in it with --resume, or choose another --out")
