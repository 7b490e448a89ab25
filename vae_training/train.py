"""`train()`: from frames on disk to a CVAE and its encoder folder, with checkpoints, logs and pictures."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm

from latent_obs.atomic import write_json
from latent_obs.errors import TrainingDivergedError
from latent_obs.interrupt import GracefulStop
from vae_training.batch import make_batch
from vae_training.config import TrainConfig
from vae_training.datasets import describe_datasets
from vae_training.disk import disk_full_is_told
from vae_training.distributed import Ranks, meet, told_once
from vae_training.evaluate import HeldOut, evaluate
from vae_training.export import export_encoder, measure_latents
from vae_training.fine_tune import with_layers_of
from vae_training.logs import RunLog
from vae_training.malloc import kept_memory
from vae_training.schedule import BetaSchedule, make_schedule
from vae_training.train_run import Run
from vae_training.train_setup import Setup, check_resumable, prepare
from vae_training.transitions import SuperBatch

_LOG_EVERY_STEPS = 20
_AGREE_EVERY_STEPS = 10  # on stopping, where there are several processes: each has its own signal, at its own step


@dataclass(frozen=True)
class TrainResult:
    """What a training run leaves.

    Attributes:
        run: The run folder.
        encoder: The encoder folder, `run / "encoder"`.
        steps: Gradient steps taken in all.
        held_out: Losses on the held-out frames of the exported weights.
        interrupted: Whether it was stopped before its last epoch.
        images_per_second: Training speed of this call, waiting for data included; of all processes together.
        stopped_early: Whether `patience` ended it.
    """

    run: Path
    encoder: Path
    steps: int
    held_out: HeldOut
    interrupted: bool
    images_per_second: float
    stopped_early: bool = False


def schedule_of(config: TrainConfig, steps_per_epoch: int) -> BetaSchedule:
    """The annealing schedule of a run, in steps.

    Example:
        >>> schedule_of(TrainConfig(beta=2.0, batch_freeze=1, half_beta_cycle=2), steps_per_epoch=10)
        CyclicalBeta(fixed_beta=2.0, half_cycle_steps=20, freeze_steps=10)
    """
    return make_schedule(
        config.schedule, config.beta, rise_steps=config.half_beta_cycle * steps_per_epoch,
        freeze_steps=config.batch_freeze * steps_per_epoch,
    )  # fmt: skip


def train(
    config: TrainConfig, *, resume: bool = False, progress_bar: bool | None = None, say: Callable[[str], object] = print
) -> TrainResult:
    """Train a CVAE on a folder of frames, and write the encoder folder that an agent uses.

    Each epoch draws a super-batch at random from the files, cuts it into batches, and takes a gradient step
    (`CVAE.compute_apply_gradients`) on each, while the next super-batch is drawn in the background. Beta follows
    the schedule (`CyclicalBeta`, unless another is chosen), updated every step. At the end of each epoch the held-out
    recordings are evaluated at the wanted beta and drawn, and a checkpoint is written; within an epoch
    too, every few minutes. The weights exported are the best among the ends of cycles (losses at another beta cannot be
    compared; where there are no cycles, among the epochs at the wanted beta), or the last ones where there was no such moment.

        out/
        ├── config.json, log.jsonl, tensorboard/
        ├── reconstructions/epoch_001.png …   held-out frames above their reconstructions
        ├── checkpoints/latest.safetensors, best.safetensors
        └── encoder/                          for latent_obs.make(..., encoder=...)

    Ctrl-C (or SIGTERM) finishes the step under way, and leaves a checkpoint and an encoder. A run killed at any moment and
    resumed gives, on a CPU, the weights of the run never killed, bit by bit.

    Started by torchrun, several processes train one model; see `vae_training.distributed`.

    Args:
        config: All settings.
        resume: Go on with the run in `config.out`, exactly as it would have gone on; see `TrainConfig.resumed_from`.
        progress_bar: Show it; None shows it in a terminal only.
        say: Where messages go.

    Returns:
        Where the results lie and how good they are.

    Raises:
        InputError: Something about the frames, the settings or the run folder; before training starts.
        DeviceError: The device asked for is not there.
        TrainingDivergedError: A loss is not finite; the last good checkpoint is kept.
        DiskFullError: A checkpoint or a picture could not be written; the last good checkpoint is kept.
        RankLostError: Another process of this run has ended.
    """
    with told_once():
        if resume:
            saved = TrainConfig.load(config.out)
            config = check_resumable(saved, config.resumed_from(saved))
        elif config.start_from is not None:
            config = with_layers_of(config, config.start_from)
    with meet(config.device) as (ranks, device):
        if not ranks.leads:
            say, progress_bar = _say_nothing, False
        try:
            setup = ranks.together(lambda: prepare(config, ranks, device, resume=resume, say=say))
            with (
                disk_full_is_told(config.out, "The last good checkpoint is kept; free some space, and go on with --resume"),
                kept_memory() if device.type == "cpu" else contextlib.nullcontext(),
            ):
                return _train(setup, resume, progress_bar, say)
        except RuntimeError as error:
            lost = ranks.explain(error)
            if lost is None:
                raise
            raise lost from error
        except TrainingDivergedError:
            with told_once():
                raise
    raise AssertionError("unreachable")


def _say_nothing(text: str) -> None:
    """Where the messages of all processes but the first go."""


def _train(setup: Setup, resume: bool, progress_bar: bool | None, say: Callable[[str], object]) -> TrainResult:
    """The run itself: epochs of steps."""
    config, ranks, progress, steps_per_epoch = setup.config, setup.ranks, setup.progress, setup.steps_per_epoch
    device, size, whole = next(setup.model.parameters()).device, progress.super_batch, config.batch_size * ranks.count
    run = Run(setup, schedule_of(config, steps_per_epoch), evaluate)
    if ranks.leads:
        config.out.mkdir(parents=True, exist_ok=True)
        write_json(config.out / "config.json", config.to_json())
        if not resume:
            run.save()  # so that --resume works even for a run killed in its first epoch
    start_epoch, first_batch = divmod(progress.step, steps_per_epoch)
    _announce(setup, device, resume, say)
    began, wait = time.perf_counter(), 0.0
    with (
        (RunLog(config.out, from_step=progress.step, tensorboard=config.tensorboard) if ranks.leads
         else contextlib.nullcontext()) as log,
        GracefulStop() as stop,
        setup.super_batches() as batches,
        tqdm(
            total=config.epochs * size, initial=min(start_epoch * size + first_batch * whole, config.epochs * size),
            unit="img", unit_scale=True, disable=None if progress_bar is None else not progress_bar, desc="train-vae",
        ) as bar,
    ):  # fmt: skip
        if log is not None and log.note:
            say(log.note)
        stopping = run.is_stopped_early
        for epoch, frames in enumerate(batches, start_epoch) if not stopping else ():
            for number in range(first_batch, steps_per_epoch):
                share = setup.parts.shares[number]
                rows = setup.parts.rows[number]
                rows = frames.cut(rows) if isinstance(frames, SuperBatch) else frames[rows]
                losses = run.step(make_batch(rows, device, share if ranks.count > 1 else None))
                bar.update(share.total)
                if log is not None and run.progress.step % _LOG_EVERY_STEPS == 0:
                    elapsed = time.perf_counter() - began
                    run.log_step(log, bar, losses, elapsed, batches.wait_seconds)
                if _asked_to_stop(ranks, stop, run.progress.step, last=number == steps_per_epoch - 1):
                    break
                run.clock(began)
                run.save_if_due()
            first_batch = 0
            run.clock(began)
            if run.progress.step % steps_per_epoch:  # stopped within the epoch
                break
            run.end_epoch(epoch, log)
            if run.is_stopped_early or ranks.any(stop.requested):
                break
        wait = batches.wait_seconds
        interrupted = ranks.any(stop.requested)
        run.save()
    return _finish(run, interrupted, time.perf_counter() - began, wait, say)


def _asked_to_stop(ranks: Ranks, stop: GracefulStop, step: int, *, last: bool) -> bool:
    """Whether to end after this step: in all processes, or in none."""
    if ranks.count == 1:
        return stop.requested
    return (last or step % _AGREE_EVERY_STEPS == 0) and ranks.any(stop.requested)


def _announce(setup: Setup, device: torch.device, resume: bool, say: Callable[[str], object]) -> None:
    """Tell what begins, and what to know of it."""
    training, config, count = setup.training, setup.config, setup.ranks.count
    height, width, channels = training[0].shape[1:]
    files = list(dict.fromkeys(Path(str(getattr(d, "filename", ""))).name for d in setup.held_out))
    together = f" and {count - 1} other process(es), batches of {count} x {config.batch_size}" if count > 1 else ""
    say(
        f"Training on {len(training)} file(s), {sum(len(d) for d in training):,} frames of {height}x{width}x{channels}, on "
        f"{device}{together}; held out: {', '.join(files)}. {config.epochs} epochs of {setup.progress.super_batch:,} frames = "
        f"{config.epochs * setup.steps_per_epoch:,} steps{f', from step {setup.progress.step:,} on' if resume else ''}."
    )
    for note in setup.notes:
        say(note)


def _finish(run: Run, interrupted: bool, elapsed: float, wait: float, say: Callable[[str], object]) -> TrainResult:
    """Export the weights that can be compared best, and say where everything lies; process 0 does."""
    config, progress, ranks = run.config, run.progress, run.setup.ranks
    encoder, rate = config.out / "encoder", run.images / elapsed if elapsed > 0 else 0.0
    stopped_early = run.is_stopped_early and not interrupted
    run.load_best()
    losses = asdict(_export(run)) if ranks.leads else {}
    held_out = HeldOut(**ranks.share(losses))
    cyclical = config.schedule == "cyclical"
    if progress.best_step >= 0:
        which = f"the best {'cycle end' if cyclical else 'epoch at the wanted beta'}, step {progress.best_step:,}"
    else:
        missing = "cycle was completed" if cyclical else "epoch was at the wanted beta"
        which = f"the last step, {progress.step:,}, as no {missing}"
    early = f" (no better for {progress.since_best} comparable moments)" if stopped_early else ""
    say(
        f"{'Stopped' if interrupted or stopped_early else 'Done'}{early} at step {progress.step:,}: {run.images:,} images in "
        f"{elapsed:.0f} s, {rate:.0f} images/s, {100 * wait / max(elapsed, 1e-9):.1f}% of it waiting for frames.\n"
        f"Held out ({which}): squared error {held_out.reconstruction:.4g}, KL {held_out.kl_nats:.4g} nats, "
        f"{held_out.active_latents:.0f} of {config.latent_dim} latents active.\n"
        f"Encoder:  {encoder}\nPictures: {config.out / 'reconstructions'}"
    )
    if interrupted:
        say(f"Go on with: latent-obs train-vae --out {config.out} --resume")
    return TrainResult(config.out, encoder, progress.step, held_out, interrupted, rate, stopped_early)


def _export(run: Run) -> HeldOut:
    """Write the encoder folder, and tell how good its weights are."""
    config, progress, setup = run.config, run.progress, run.setup
    held_out = evaluate(run.best_model, setup.shown, beta=config.beta)
    export_encoder(
        config.out / "encoder", run.best_model, setup.shown, overwrite=True,
        statistics=measure_latents(run.best_model, setup.training, setup.held_out),
        provenance={
            "trained_on": describe_datasets(setup.training), "settings": config.to_json(),
            "schedule": run.schedule.to_json(), "step": progress.best_step if progress.best_step >= 0 else progress.step,
            "held_out": asdict(held_out), "training_seconds": round(progress.seconds, 1),
        },
    )  # fmt: skip
    return held_out
