"""What a training run begins with: frames, model, objective, optimiser, and how far it has come; every check before a step."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from latent_obs.errors import InputError
from vae_training.batch import BatchParts
from vae_training.checkpoint import Progress, load_checkpoint, read_about
from vae_training.config import TrainConfig
from vae_training.cvae import CVAE
from vae_training.dataset_identity import check_worth_learning, identify, split_as_before
from vae_training.datasets import get_datasets
from vae_training.distributed import Ranks
from vae_training.ema import WeightAverage
from vae_training.fine_tune import put_weights
from vae_training.make_objective import make_objective, start_from_data
from vae_training.objective import Objective
from vae_training.optimisation import GradientStep, LearningRate, make_optimizer
from vae_training.presets import layers_of
from vae_training.split import split_held_out, split_note
from vae_training.superbatch import SuperBatches
from vae_training.transitions import Transitions

_DEFAULT_SUPER_BATCH = 10_000
_HELD_OUT_FRAMES = 1_024  # the loss on these is compared between cycles: enough for a steady mean, a second on a CPU


@dataclass(frozen=True)
class Setup:
    """A run that is ready to begin or to go on.

    Attributes:
        config: Its settings.
        ranks: Its processes.
        model: The CVAE, on its device.
        objective: What is descended, around the model.
        optimizer: Over the objective's parameters.
        average: Average of the weights, or None.
        training: What is trained on.
        held_out: What is not.
        shown: uint8 (n, H, W, C), frames of the held-out recordings to measure and draw.
        progress: How far the run has come.
        transitions: What follows each frame, where a term needs it.
        parts: How a super-batch is cut into batches, and which rows this process has.
        about: What checkpoints keep of the frames.
        notes: What the user should know.
    """

    config: TrainConfig
    ranks: Ranks
    model: CVAE
    objective: Objective
    optimizer: Optimizer
    average: WeightAverage | None
    training: list[NDArray[np.uint8]]
    held_out: list[NDArray[np.uint8]]
    shown: NDArray[np.uint8]
    progress: Progress
    transitions: Transitions | None
    parts: BatchParts
    about: dict[str, Any]
    notes: list[str]

    @property
    def saved_parts(self) -> dict[str, nn.Module]:
        """What checkpoints hold beside model and optimizer."""
        return _saved_parts(self.objective, self.average)

    @property
    def steps_per_epoch(self) -> int:
        """Gradient steps of an epoch."""
        return len(self.parts)

    @property
    def learning_rate(self) -> LearningRate:
        """The learning rate by step."""
        config = self.config
        steps = config.epochs * self.steps_per_epoch
        return LearningRate(config.learning_rate, config.learning_rate_schedule, steps, config.warm_up_steps)

    def gradient_step(self) -> GradientStep:
        """The gradient step of this run."""
        return GradientStep(
            self.objective, self.optimizer, self.learning_rate, clip_norm=self.config.clip_norm, average=self.average,
            ranks=self.ranks,
        )  # fmt: skip

    def super_batches(self) -> SuperBatches:
        """The super-batches that are still to come; of each, the rows of this process."""
        config, size = self.config, self.progress.super_batch
        # Drawing with repeats is for the default size only: who asks for a size gets it without repeats, or an error.
        return SuperBatches(
            self.training, size, dataset_weights=config.dataset_weights or None, seed=config.seed,
            start_epoch=min(self.progress.step // self.steps_per_epoch, config.epochs), epochs=config.epochs,
            replace_small=config.super_batch is None,
            places=self.parts.places if self.ranks.count > 1 else None, transitions=self.transitions,
            device=next(self.model.parameters()).device,
        )  # fmt: skip


def prepare(
    config: TrainConfig, ranks: Ranks, device: torch.device, *, resume: bool, say: Callable[[str], object] = print
) -> Setup:  # fmt: skip
    """Open the frames, build everything, and put back what a checkpoint has. Nothing is written.

    Args:
        config: Settings, of the saved run where it is resumed.
        ranks: The processes.
        device: Where to train.
        resume: Go on with the run in `config.out`.
        say: Where later messages go.

    Raises:
        InputError: Something about the frames, the settings or the run folder.
    """
    checkpoints = config.out / "checkpoints"
    latest = checkpoints / "latest.safetensors"
    # A run killed before its first checkpoint begins anew; one that has lost it does not.
    resume_from = latest if resume and (latest.exists() or (checkpoints / "best.safetensors").exists()) else None
    if not resume:
        _check_new(config.out)
    datasets = get_datasets(config.frames)
    before = read_about(latest) if resume_from else None
    if before is None:
        training, held_out = split_held_out(datasets, config.held_out)
    else:
        training, held_out = split_as_before(
            datasets, before["frames"], allow_added=config.allow_added_files, folder=config.frames
        )
    height, width, channels = training[0].shape[1:]
    widths, strides = layers_of((height, width, channels), config.bottleneck, config.preset, config.widths, config.strides)
    torch.manual_seed(config.seed)
    model = CVAE(
        (height, width, channels), config.latent_dim, config.beta, config.scale_losses,
        widths=widths, strides=strides, bottleneck=config.bottleneck,
        first_activation=config.first_activation, linear_path=config.linear_path, standardise=config.standardise,
    ).to(device)  # fmt: skip
    check_worth_learning(training)
    transitions = Transitions(training, acts=True) if config.terms.need_actions else None
    objective = make_objective(config, model, transitions, say)
    if resume_from is None:
        start_from_data(config, objective, training, transitions)
        if config.start_from is not None:
            put_weights(config.start_from, model)
    optimizer = make_optimizer(
        objective.parameters(), config.optimizer, learning_rate=config.learning_rate, weight_decay=config.weight_decay,
        device=device,
    )  # fmt: skip
    average = WeightAverage(model, config.ema) if config.ema else None
    size = _super_batch_size(config, sum(len(d) for d in training))
    progress = Progress(super_batch=size, ranks=ranks.count)
    if resume_from:
        progress = load_checkpoint(resume_from, model, optimizer, parts=_saved_parts(objective, average))
    if progress.ranks != ranks.count:
        raise InputError(
            f"the run to resume was trained by {progress.ranks} process(es), and now there are {ranks.count}: a step takes a "
            "batch of each, so their number must stay. Start as many (torchrun --nproc-per-node), or another run"
        )
    whole = config.batch_size * ranks.count
    notes = [split_note(datasets, training, held_out)]
    if progress.super_batch < whole:
        notes.append(
            f"An epoch has {progress.super_batch:,} frames, fewer than a batch of {whole:,}, so that each epoch is a single "
            "step. More frames, or a smaller --batch-size "
            f"(such as {max(1, progress.super_batch // ranks.count // 8)}), would do better."
        )
    setup = Setup(
        config, ranks, model, objective, optimizer, average, training, held_out, _frames_to_show(held_out), progress,
        transitions, BatchParts(progress.super_batch, whole, ranks.rank, ranks.count), {"frames": identify(training, held_out)},
        [note for note in notes if note],
    )  # fmt: skip
    setup.super_batches().close()  # refuses what cannot be drawn, before anything is written
    _ = setup.learning_rate  # refuses a warm-up that is too long
    return setup


def _saved_parts(objective: Objective, average: WeightAverage | None) -> dict[str, nn.Module]:
    parts: dict[str, nn.Module] = {} if average is None else {"ema": average.state()}
    return {**parts, "heads": objective.heads} if len(objective.heads) else parts


def check_resumable(saved: TrainConfig, config: TrainConfig) -> TrainConfig:
    """Settings that may change alone, but not together with others.

    Raises:
        InputError: More epochs for a learning rate that was planned to end.
    """
    if config.learning_rate_schedule == "cosine" and config.epochs != saved.epochs:
        raise InputError(
            f"epochs is {saved.epochs} in the run to resume, and its learning rate falls to 0 there (cosine); with "
            f"{config.epochs} it would have fallen otherwise from the start. Leave --epochs out, or start another run"
        )
    return config


def _check_new(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; choose another --out")
    # What a run leaves that was killed while it wrote its first file is no reason to refuse.
    if out.exists() and any(entry.name != ".config.part.json" for entry in out.iterdir()):
        raise InputError(f"{out} is not empty. Go on with the run in it with --resume, or choose another --out")


def _super_batch_size(config: TrainConfig, available: int) -> int:
    if config.super_batch is None:
        return min(_DEFAULT_SUPER_BATCH, available)
    if config.super_batch > available:
        raise InputError(
            f"super_batch {config.super_batch:,} is more than the {available:,} frames to train on in {config.frames}. "
            f"Use --super-batch {available} or less, or record more frames"
        )
    return config.super_batch


def _frames_to_show(held_out: list[Any]) -> NDArray[np.uint8]:
    """Frames spread evenly over the held-out recordings, read once."""
    total = sum(len(d) for d in held_out)
    wanted = np.unique(np.linspace(0, total - 1, min(_HELD_OUT_FRAMES, total)).astype(int))
    starts = np.cumsum([0, *(len(d) for d in held_out)])
    parts = [
        np.array(dataset[wanted[(wanted >= start) & (wanted < start + len(dataset))] - start])
        for dataset, start in zip(held_out, starts, strict=False)
    ]
    return np.concatenate(parts)
