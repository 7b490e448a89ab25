"""`train()`: from frames on disk to a CVAE and its encoder folder, with checkpoints, logs and pictures."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer
from tqdm.auto import tqdm

from latent_obs.encoder.folder import EncoderFolder, read_encoder_folder
from latent_obs.pixels import PixelContract
from latent_obs.util.atomic import write_json
from latent_obs.util.errors import InputError, TrainingDivergedError
from latent_obs.util.interrupt import GracefulStop
from vae_training.data.frames import (
    check_worth_learning,
    describe_datasets,
    explain_disk_full,
    get_datasets,
    identify,
    split_as_before,
    split_held_out,
    split_note,
)
from vae_training.data.loader import Batch, BatchParts, SuperBatches, get_random_samples, make_batch
from vae_training.data.transitions import SuperBatch, Transitions
from vae_training.model.augmentation import augment
from vae_training.model.beta import BetaSchedule, make_schedule
from vae_training.model.cvae import CVAE, Losses, gaussian_kl_nats, images_to_tensor
from vae_training.model.losses import CHANGES, ActingObjective, ClassicObjective, Objective
from vae_training.model.pca_init import start_linear_path
from vae_training.model.precision import compiles_on, resolve_precision
from vae_training.model.presets import layers_of
from vae_training.training.checkpoint import Progress, load_checkpoint, read_about, save_checkpoint
from vae_training.training.config import TrainConfig
from vae_training.training.distributed import Ranks, meet, told_once
from vae_training.training.export import export_encoder, measure_latents
from vae_training.training.logs import RunLog, reconstruction_sheet, save_picture
from vae_training.training.optim import (
    GradientStep,
    LearningRate,
    WeightAverage,
    kept_memory,
    make_optimizer,
    optimizer_metrics,
)

_SAMPLE_FRAMES = 2_048  # for principal components: many times their number
_SAMPLE_BYTES = 256 << 20  # as float32; fewer frames where they are large
_SAMPLE_STEPS = 100_000  # of actions and rewards, for their mean and spread


def make_objective(
    config: TrainConfig, model: CVAE, transitions: Transitions | None = None, say: Callable[[str], object] = print
) -> Objective:
    """The objective that the settings ask for.

    Args:
        config: Settings.
        model: The CVAE, on its device.
        transitions: What follows each frame, where a term needs it.
        say: Where messages go.
    """
    device = next(model.parameters()).device
    dtype = resolve_precision(config.precision, device)
    if config.terms.are_any or config.augment:
        return ActingObjective(
            model,
            config.terms,
            actions=transitions.actions if transitions else None,
            augment=config.augment,
            free_bits=config.free_bits,
            dtype=dtype,
        ).to(device)
    return ClassicObjective(
        model, free_bits=config.free_bits, dtype=dtype, compile=compiles_on(device), fall_back=say
    ).to(device)


def start_from_data(
    config: TrainConfig, objective: Objective, training: Sequence[NDArray[np.uint8]], transitions: Transitions | None
) -> None:
    """Set what begins as something measured on the data: a linear path, a background, the spread of actions and
    rewards.

    A function of the data and the seed alone, so that all processes of a run begin alike.
    """
    model = objective.model
    needs_sample = model.architecture.linear_path or model.architecture.standardize or config.terms.salience
    images = _sample(config, training, model) if needs_sample else None
    for network in (model.encoder, model.decoder):
        if network.standard is not None and images is not None:
            network.standard.measure(images)
    if model.architecture.linear_path and images is not None:
        start_linear_path(model, images)
    if isinstance(objective, ActingObjective):
        actions = rewards = None
        if config.terms.need_actions and transitions is not None:
            rng = np.random.default_rng([config.seed, 1])
            actions, rewards = (_some(list(transitions.column(name)), rng) for name in ("action", "reward"))
        if images is not None or actions is not None:
            device = next(model.parameters()).device
            objective.fit(images if images is not None else torch.zeros(0, device=device), actions, rewards)


def _sample(config: TrainConfig, training: Sequence[NDArray[np.uint8]], model: CVAE) -> torch.Tensor:
    available = sum(len(d) for d in training)
    size = min(_SAMPLE_FRAMES, available, max(256, _SAMPLE_BYTES // (4 * int(np.prod(model.architecture.img_shape)))))
    frames = get_random_samples(
        training,
        size,
        list(config.dataset_weights) or None,
        normalize=False,
        seed=np.random.default_rng([config.seed, 2]),
        replace_small=True,
    )
    images = images_to_tensor(torch.from_numpy(frames).to(next(model.parameters()).device))
    if not config.augment:
        return images
    changes = torch.from_numpy(
        np.random.default_rng([config.seed, 3]).standard_normal((len(images), CHANGES), np.float32)
    )
    return augment(images, config.augment, changes.to(images.device))


def _some(columns: Sequence[NDArray[Any]], rng: np.random.Generator) -> torch.Tensor:
    values = np.concatenate(columns)
    if len(values) > _SAMPLE_STEPS:
        values = values[rng.choice(len(values), _SAMPLE_STEPS, replace=False)]
    return torch.from_numpy(np.ascontiguousarray(values))


_BATCH = 256
_ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, "Importance Weighted Autoencoders", section 5: a unit is active above this


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


@torch.inference_mode()
def evaluate(model: CVAE, frames: NDArray[np.uint8], *, beta: float) -> HeldOut:
    """Evaluate a CVAE; the same frames and weights give the same numbers, and training's random state is left alone.

    Args:
        model: The CVAE.
        frames: uint8 (N, H, W, C), N ≥ 1.
        beta: The wanted beta.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    squared_error, kl, means = 0.0, 0.0, []
    for i in range(0, len(frames), _BATCH):
        x = images_to_tensor(torch.from_numpy(np.require(frames[i : i + _BATCH], requirements=("C", "W"))).to(device))
        mean, logvar = model.encode(x)
        decoded = model.decode(model.reparameterize(mean, logvar, generator))
        squared_error += (decoded - x).square().sum().item()
        kl += gaussian_kl_nats(mean, logvar).sum().item()
        means.append(mean)
    reconstruction, kl_nats = squared_error / len(frames), kl / len(frames)
    if model.scale_losses:
        reconstruction /= float(np.prod(model.architecture.img_shape))
        kl_nats /= model.latent_dim
    variance = torch.cat(means).var(0, correction=0)
    active = int((variance > _ACTIVE_VARIANCE).sum())
    return HeldOut(reconstruction + beta * kl_nats, reconstruction, kl_nats, float(active))


_LAYERS = ("latent_dim", "bottleneck", "widths", "strides", "first_activation", "linear_path", "standardize")


def with_layers_of(config: TrainConfig, source: Path) -> TrainConfig:
    """Settings with the layers of the encoder that training starts from.

    Args:
        config: Settings as given; layers at their defaults count as not given.
        source: The encoder folder, or the run folder that it is in.

    Raises:
        InputError: Other layers were given, or frames came to the encoder by another resize rule than that of
            train-vae.
        EncoderFolderError: There is no such encoder folder, or it is damaged.
    """
    folder = read_encoder_folder(source)
    architecture, default = folder.architecture, TrainConfig()
    if folder.contract != PixelContract(*architecture.img_shape):
        raise InputError(
            f"{folder.path} has a pixel contract of its own ({folder.contract}), and train-vae writes encoders of the usual "
            "one: frames would be resized in another way than before. Train an encoder anew instead"
        )
    has = {name: getattr(architecture, name) for name in _LAYERS}
    for name, value in has.items():
        if getattr(config, name) not in (value, getattr(default, name)):
            raise InputError(f"{name} is {value!r} in {source}, and {getattr(config, name)!r} was given; leave it out")
    if config.preset is not None:
        raise InputError(f"the layers are those of {source}: leave --preset out")
    return dataclasses.replace(config, **has)


def put_weights(source: Path, model: CVAE) -> None:
    """Put the weights of a trained CVAE into a model.

    Args:
        source: Its encoder folder with the decoder; or its run folder, whose checkpoint is taken where there is no
            decoder.
        model: Changed in place.

    Raises:
        InputError: They are of other layers or frames, or there is neither decoder nor checkpoint.
        EncoderFolderError: The folder is missing or damaged.
    """
    folder = read_encoder_folder(source)
    if folder.architecture != model.architecture:
        raise InputError(
            f"{source} is an encoder of frames {folder.architecture.img_shape}, and these are of "
            f"{model.architecture.img_shape}: record or extract frames of its size"
            if folder.architecture.img_shape != model.architecture.img_shape
            else f"{source} has other layers than this run: {folder.architecture}, and {model.architecture}"
        )
    if folder.has_decoder:
        model.encoder.load_state_dict(folder.encoder)
        model.decoder.load_state_dict(folder.decoder())
    else:
        load_checkpoint(_checkpoint_of(source, folder), model)


def _checkpoint_of(source: Path, folder: EncoderFolder) -> Path:
    for name in ("best", "latest"):
        file = folder.path.parent / "checkpoints" / f"{name}.safetensors"
        if file.exists():
            return file
    raise InputError(
        f"{source} has no decoder.safetensors and no checkpoints beside it; training on needs the whole CVAE. Give the run "
        "folder of train-vae, or an encoder folder that was exported with its decoder"
    )


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
            self.objective,
            self.optimizer,
            self.learning_rate,
            clip_norm=self.config.clip_norm,
            average=self.average,
            ranks=self.ranks,
        )

    def super_batches(self) -> SuperBatches:
        """The super-batches that are still to come; of each, the rows of this process."""
        config, size = self.config, self.progress.super_batch
        # Drawing with repeats is for the default size only: who asks for a size gets it without repeats, or an error.
        return SuperBatches(
            self.training,
            size,
            dataset_weights=config.dataset_weights or None,
            seed=config.seed,
            start_epoch=min(self.progress.step // self.steps_per_epoch, config.epochs),
            epochs=config.epochs,
            replace_small=config.super_batch is None,
            places=self.parts.places if self.ranks.count > 1 else None,
            transitions=self.transitions,
            device=next(self.model.parameters()).device,
        )


def prepare(
    config: TrainConfig, ranks: Ranks, device: torch.device, *, resume: bool, say: Callable[[str], object] = print
) -> Setup:
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
    widths, strides = layers_of(
        (height, width, channels), config.bottleneck, config.preset, config.widths, config.strides
    )
    torch.manual_seed(config.seed)
    model = CVAE(
        (height, width, channels),
        config.latent_dim,
        config.beta,
        config.scale_losses,
        widths=widths,
        strides=strides,
        bottleneck=config.bottleneck,
        first_activation=config.first_activation,
        linear_path=config.linear_path,
        standardize=config.standardize,
    ).to(device)
    check_worth_learning(training)
    transitions = Transitions(training, acts=True) if config.terms.need_actions else None
    objective = make_objective(config, model, transitions, say)
    if resume_from is None:
        start_from_data(config, objective, training, transitions)
        if config.start_from is not None:
            put_weights(config.start_from, model)
    optimizer = make_optimizer(
        objective.parameters(),
        config.optimizer,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        device=device,
    )
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
        config,
        ranks,
        model,
        objective,
        optimizer,
        average,
        training,
        held_out,
        _frames_to_show(held_out),
        progress,
        transitions,
        BatchParts(progress.super_batch, whole, ranks.rank, ranks.count),
        {"frames": identify(training, held_out)},
        [note for note in notes if note],
    )
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
                "loss/total": losses.total.item(),
                "loss/reconstruction": reconstruction,
                "loss/kl_nats": kl,
                **({f"loss/{name}": float(value) for name, value in more.items()} if isinstance(more, Mapping) else {}),
                "schedule/beta": self.model.beta,
                **optimizer_metrics(self._gradient_step),
                "speed/images_per_second": self.images / elapsed,
                "speed/data_wait_share": wait / elapsed,
            },
        )
        bar.set_postfix_str(f"error {reconstruction:.4g}, KL {kl:.4g} nats, beta {self.model.beta:.3g}", refresh=False)

    def end_epoch(self, epoch: int, log: RunLog | None) -> None:
        """Evaluate and draw the held-out frames, and write checkpoints; process 0 does, and tells the others."""
        if self.setup.ranks.leads and log is not None:
            self._evaluate_and_save(epoch, log)
        self.progress = Progress(**self.setup.ranks.share(asdict(self.progress)))

    def _evaluate_and_save(self, epoch: int, log: RunLog) -> None:
        shown, step = self.setup.shown, self.progress.step
        held_out = self._evaluate(self.best_model, shown, beta=self.config.beta)
        if not math.isfinite(
            held_out.loss_at_fixed_beta
        ):  # the last step ruined the weights, and no step has noticed yet
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
                )
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
            self.checkpoints / name,
            self.model,
            setup.optimizer,
            self.progress,
            parts=setup.saved_parts,
            about=setup.about,
        )
        if name == "latest.safetensors":
            self._saved_at = time.monotonic()

    def load_best(self) -> None:
        """Put the best comparable weights into the model (and the average), where there are any."""
        if self.progress.best_step >= 0:
            load_checkpoint(self.checkpoints / "best.safetensors", self.model, parts=self.setup.saved_parts)


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
        config.schedule,
        config.beta,
        rise_steps=config.half_beta_cycle * steps_per_epoch,
        freeze_steps=config.batch_freeze * steps_per_epoch,
    )


def train(
    config: TrainConfig, *, resume: bool = False, progress_bar: bool | None = None, say: Callable[[str], object] = print
) -> TrainResult:
    """Train a CVAE on a folder of frames, and write the encoder folder that an agent uses.

    Each epoch draws a super-batch at random from the files, cuts it into batches, and takes a gradient step
    (`CVAE.compute_apply_gradients`) on each, while the next super-batch is drawn in the background. Beta follows
    the schedule (`CyclicalBeta`, unless another is chosen), updated every step. At the end of each epoch the held-out
    recordings are evaluated at the wanted beta and drawn, and a checkpoint is written; within an epoch
    too, every few minutes. The weights exported are the best among the ends of cycles (losses at another beta cannot be
    compared; where there are no cycles, among the epochs at the wanted beta), or the last ones where there was no such
    moment.

        out/
        ├── config.json, log.jsonl, tensorboard/
        ├── reconstructions/epoch_001.png …   held-out frames above their reconstructions
        ├── checkpoints/latest.safetensors, best.safetensors
        └── encoder/                          for latent_obs.make(..., encoder=...)

    Ctrl-C (or SIGTERM) finishes the step under way, and leaves a checkpoint and an encoder. A run killed at any moment
    and resumed gives, on a CPU, the weights of the run never killed, bit by bit.

    Started by torchrun, several processes train one model; see `vae_training.training.distributed`.

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
                explain_disk_full(
                    config.out, "The last good checkpoint is kept; free some space, and go on with --resume"
                ),
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
        (
            RunLog(config.out, from_step=progress.step, tensorboard=config.tensorboard)
            if ranks.leads
            else contextlib.nullcontext()
        ) as log,
        GracefulStop() as stop,
        setup.super_batches() as batches,
        tqdm(
            total=config.epochs * size,
            initial=min(start_epoch * size + first_batch * whole, config.epochs * size),
            unit="img",
            unit_scale=True,
            disable=None if progress_bar is None else not progress_bar,
            desc="train-vae",
        ) as bar,
    ):
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
        config.out / "encoder",
        run.best_model,
        setup.shown,
        overwrite=True,
        statistics=measure_latents(run.best_model, setup.training, setup.held_out),
        provenance={
            "trained_on": describe_datasets(setup.training),
            "settings": config.to_json(),
            "schedule": run.schedule.to_json(),
            "step": progress.best_step if progress.best_step >= 0 else progress.step,
            "held_out": asdict(held_out),
            "training_seconds": round(progress.seconds, 1),
        },
    )
    return held_out
