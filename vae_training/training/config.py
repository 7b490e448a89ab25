"""Everything that decides a training run of the CVAE, as one frozen dataclass; the command line is made from it."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from latent_obs.encoder.architecture import Bottleneck
from latent_obs.util.errors import InputError
from latent_obs.util.run_config import ANY, RunConfig
from vae_training.model.beta import ScheduleKind
from vae_training.model.presets import PRESETS, Preset
from vae_training.model.terms import Terms

OptimizerName = Literal["adam", "adamw"]
LearningRateKind = Literal["constant", "cosine"]
Precision = Literal["auto", "float32", "bfloat16"]
ObjectiveName = Literal["acting", "classic"]


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Settings of `latent-obs train-vae`, saved beside the weights as `config.json`.

    Example:
        >>> saved = TrainConfig(latent_dim=64, epochs=10)
        >>> TrainConfig(epochs=30).resumed_from(saved).epochs
        30
    """

    CHANGEABLE_ON_RESUME: ClassVar[tuple[str, ...]] = (
        "frames",
        "out",
        "epochs",
        "device",
        "tensorboard",
        "checkpoint_minutes",
        "patience",
        "allow_added_files",
    )
    KIND: ClassVar[str] = "training run"
    WHERE_FROM: ClassVar[str] = "latent-obs train-vae"
    REMOVED: ClassVar[dict[str, tuple[Any, str]]] = {
        **dict.fromkeys(
            ("motion", "hard_pixels", "edges", "scales"), (0.0, "train another run, with --salience instead")
        ),
        "ramp": ("linear", "train another run, in which beta rises linearly"),
        "block_frames": (1, "train another run, which draws frames one by one"),
        "checkpoint_steps": (ANY, ""),
        "compile": (ANY, ""),
    }
    RENAMED: ClassVar[dict[str, str]] = {"standardise": "standardize"}

    frames: Path = Path("frames")
    """Folder of .npy files, uint8 (N, height, width, channels), one per recording."""
    out: Path = Path("runs/vae")
    """Folder to make: the encoder, checkpoints, pictures and logs."""
    latent_dim: int = 256
    """Values in the latent vector. A spatial bottleneck of an 8x8 map takes multiples of 64; 32 is usual for a dense
    one."""
    bottleneck: Bottleneck = "spatial"
    """spatial: a small map of means; keeps small moving things that an agent must see. dense: flatten, one linear
    layer."""
    widths: tuple[int, ...] = ()
    """Channels of each convolution, such as 32 64 128 256. By default they follow the image size."""
    strides: tuple[int, ...] = ()
    """Stride of each convolution, as many as widths. With both, images need not be square or a power of two."""
    preset: Preset | None = None
    """Size of the network for 64x64 frames; MFLOP to encode a frame and million encoder parameters, with a dense
    bottleneck of 32 (spatial of 256): small 14.3, 0.30 (7.4, 0.04); base 53.7, 0.95 (23.1, 0.14); large 208.1, 3.28
    (79.8, 0.55). Given widths or strides come first. By default base for 64x64; for other sizes the layers follow the
    image size."""
    first_activation: bool = False
    """Put a ReLU after the first convolution too (by design it has none)."""
    beta: float = 0.02
    """Wanted weight of the KL term: nats against squared error summed over the image. Less keeps more detail."""
    scale_losses: bool = False
    """Divide the squared error by the values in an image and the KL by latent_dim; beta then weighs those means."""
    free_bits: float = 0.0
    """Nats per latent dimension, averaged over a batch, below which the KL is not pressed further (Kingma et al.
    2016)."""
    objective: ObjectiveName = "acting"
    """acting: the classic loss with the terms below. classic: squared error and KL as they are; the terms are left
    out."""
    linear_path: bool = False
    """A linear map beside the convolutions, which begins as the principal components of the frames (PCA) and is trained
    on."""
    standardize: bool = True
    """Let the convolutions see pixels minus the mean picture, over their spread. Learns faster where frames differ
    little."""
    salience: float = 1.0
    """Weight of pixels that the recordings' background (32 principal components) does not explain: what is small, or
    moves."""
    inverse_dynamics: float = 0.0
    """Weight of a head that tells the action between two frames from their latents; needs recorded actions, as the next
    two."""
    next_latent: float = 0.0
    """Weight of a head that tells the next latent from the latent and the action. At 1 it made all latents constant."""
    reward: float = 0.0
    """Weight of a head that tells the reward of a step from the latents and the action."""
    augment: float = 0.0
    """How much pictures are shifted, scaled, mirrored and recoloured for training, 0 to 1. For little data."""
    epochs: int = 20
    """Super-batches to train on. The defaults end on the plateau of the third cycle."""
    schedule: ScheduleKind = "cyclical"
    """How beta goes after the freeze: cyclical (rise, stay, again from 0), monotonic (rise once, then stay) or
    constant."""
    batch_freeze: int = 2
    """Epochs at the start with beta 0, whatever the schedule."""
    half_beta_cycle: int = 3
    """Epochs in which beta rises from 0 to its wanted value, and, in cycles, epochs that it stays there; then again
    from 0."""
    super_batch: int | None = None
    """Frames drawn at random for an epoch. By default 10,000, or all there are where there are fewer."""
    batch_size: int = 128
    """Frames per gradient step; with several processes (torchrun) for each of them, so that a step takes all of
    theirs."""
    learning_rate: float = 1e-3
    """Step size of Adam."""
    learning_rate_schedule: LearningRateKind = "constant"
    """constant, or cosine: half a cosine down to 0 at the last epoch."""
    warm_up_steps: int = 0
    """Steps in which the learning rate rises to its value."""
    optimizer: OptimizerName = "adam"
    """adam or adamw; on CUDA in one fused kernel."""
    weight_decay: float = 0.0
    """Of adamw (decoupled), or L2 penalty of adam."""
    clip_norm: float | None = None
    """Largest norm of the gradient; a longer one is shortened. By default none is."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, such as 0.999; it is what is evaluated and exported. 0:
    none."""
    patience: int | None = None
    """Stop after so many comparable moments in a row (ends of cycles; epochs at the wanted beta, where there are no
    cycles) without a lower held-out loss. By default all epochs are trained."""
    dataset_weights: tuple[float, ...] = ()
    """Share of each .npy file in a super-batch, in name order, held-out files left out. By default equal."""
    held_out: int | None = None
    """Files, the last by name, kept out of training for pictures and comparisons. By default a tenth, one at least."""
    start_from: Path | None = None
    """Fine-tuning: begin with the weights, and the layers, of this encoder folder (with its decoder) or run of
    train-vae."""
    seed: int = 0
    """Reproduces weights, samples and noise."""
    device: str = "auto"
    """auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps. One that is named must be there."""
    precision: Precision = "auto"
    """Of the layers: auto (bfloat16 on CUDA, float32 elsewhere), float32 or bfloat16. KL and losses are float32
    always."""
    checkpoint_minutes: float = 5.0
    """A checkpoint is written when the last one is so old, besides those at the ends of epochs. 0: at these only."""
    allow_added_files: bool = False
    """Go on (--resume) although frame files were added to the folder. They are trained on; what was held out stays
    so."""
    tensorboard: bool = True
    """Write TensorBoard logs beside log.jsonl."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("batch_freeze", "half_beta_cycle", "seed"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError(f"learning_rate must be a positive number, got {self.learning_rate}")
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise InputError(f"beta must be a finite number, 0 or more, got {self.beta}")
        for name in (
            *(field.name for field in fields(Terms)),
            "free_bits",
            "weight_decay",
            "checkpoint_minutes",
            "warm_up_steps",
        ):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InputError(f"{name} must be a finite number, 0 or more, got {getattr(self, name)}")
        if self.patience is not None and self.patience < 1:
            raise InputError(f"patience must be 1 or more, got {self.patience}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InputError(f"clip_norm must be a positive number, got {self.clip_norm}")
        asked = [f.name for f in fields(Terms) if getattr(self, f.name) not in (0, getattr(TrainConfig, f.name))]
        if self.objective == "classic" and asked:
            raise InputError(
                f"objective classic has no further terms, and {', '.join(asked)} is set; leave one of them out"
            )
        if not 0 <= self.augment <= 1:
            raise InputError(f"augment must be from 0 (off) to 1, got {self.augment}")
        if not 0 <= self.ema < 1:
            raise InputError(f"ema must be 0 (none) or a decay below 1, such as 0.999, got {self.ema}")
        for name, kind in (
            ("schedule", ScheduleKind),
            ("optimizer", OptimizerName),
            ("precision", Precision),
            ("learning_rate_schedule", LearningRateKind),
            ("objective", ObjectiveName),
        ):
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"{name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}")
        if self.preset is not None and self.preset not in PRESETS:
            raise InputError(f"preset must be one of {', '.join(PRESETS)}, got {self.preset!r}")
        if self.patience is not None and self.schedule == "cyclical" and self.half_beta_cycle == 0:
            raise InputError("patience counts ends of cycles, and half_beta_cycle 0 has none; use --schedule constant")
        if self.super_batch is not None and self.super_batch < self.batch_size:
            raise InputError(
                f"super_batch must hold a batch or more, got super_batch {self.super_batch}, batch_size {self.batch_size}"
            )

    @property
    def terms(self) -> Terms:
        """Weights of the terms beside the classic loss; none with the classic objective."""
        if self.objective == "classic":
            return Terms()
        return Terms(**{field.name: getattr(self, field.name) for field in fields(Terms)})
