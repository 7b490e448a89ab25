"""Settings of a training run of the CVAE; the command line is made from them."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from latent_obs.encoder import Bottleneck
from latent_obs.util.errors import InputError, check_count
from latent_obs.util.run_config import ANY, RunConfig
from latent_obs.util.tracking import Service
from vae_training.model.beta import ScheduleKind

LearningRateKind = Literal["constant", "cosine"]
Precision = Literal["auto", "float32", "bfloat16"]

#: Settings that are layers of the networks.
LAYERS = ("latent_dim", "bottleneck", "widths", "strides", "components")
_HEADS = ("inverse_dynamics", "next_latent", "reward")  # weights of losses in earlier versions
_COUNTS = {"epochs": 1, "batch_size": 1, "patience": 1, "held_out": 1, "super_batch": 1}
_COUNTS |= {"batch_freeze": 0, "half_beta_cycle": 0, "seed": 0}
_ANOTHER_LOSS = "train another run, whose loss has no such term"
_DIVERGED = "train another run, with a smaller --learning-rate if it diverges"


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Settings of `latent-obs train-vae`, saved beside the weights as `config.json`.

    Example:
        >>> saved = TrainConfig(latent_dim=64, learning_rate_schedule="constant")
        >>> TrainConfig(epochs=30).resumed_from(saved).epochs
        30
    """

    CHANGEABLE_ON_RESUME: ClassVar[tuple[str, ...]] = ("frames", "out", "epochs", "device", "patience", "log")
    KIND: ClassVar[str] = "training run"
    WHERE_FROM: ClassVar[str] = "latent-obs train-vae"
    REMOVED: ClassVar[dict[str, tuple[Any, str]]] = {
        **dict.fromkeys(("salience", "motion", "hard_pixels", "edges", "scales", *_HEADS), (0.0, _ANOTHER_LOSS)),
        "ramp": ("linear", "train another run, in which beta rises linearly"),
        "block_frames": (1, "train another run, which draws frames one by one"),
        "preset": (None, "train another run, with --widths and --strides instead"),
        "warm_up_steps": (0, _DIVERGED),
        "clip_norm": (None, _DIVERGED),
        "first_activation": (False, "train another run, whose first convolution has no activation"),
        "optimizer": ("adam", "train another run, with Adam"),
        "weight_decay": (0.0, "train another run, on more frames or with --augment 1 if it overfits"),
        "free_bits": (0.0, "train another run, with a smaller --beta if the KL falls to 0"),
        "ema": (ANY, ""),  # an average of the weights: `load_checkpoint` puts it in their place
        "linear_path": (False, "train another run, with --components"),
        **dict.fromkeys(("standardize", "standardise"), (True, "train another run, in which pixels are standardized")),
        **dict.fromkeys(
            ("checkpoint_steps", "checkpoint_minutes", "compile", "allow_added_files", "tensorboard"), (ANY, "")
        ),
    }

    frames: Path = Path("frames")
    """Folder of .npy files, uint8 (N, height, width, channels), one per recording."""
    out: Path = Path("runs/vae")
    """Folder to create: the encoder, checkpoints, pictures and logs."""
    latent_dim: int | None = None
    """Values in the latent vector. By default 256, or with a spatial bottleneck as near to it as the frame size allows:
    an 8x8 map takes multiples of 64, at least 128 to have components. 32 is usual for a dense one."""
    bottleneck: Bottleneck = "spatial"
    """spatial: a small map of means, which keeps small moving objects. dense: flatten, one linear layer."""
    widths: tuple[int, ...] = ()
    """Channels of each convolution, such as 32 64 128 256. By default they follow the frame size."""
    strides: tuple[int, ...] = ()
    """Stride of each convolution, as many as widths. By default they follow the frame size."""
    beta: float = 1.0
    """Wanted weight of the KL: nats against the squared error summed over the image, in units of the variance that the
    components leave. Less keeps more detail, more blurs pictures. Without components (0) in plain units: try 0.02."""
    scale_losses: bool = False
    """Divide the squared error by the values of an image, the KL by the learned latents; beta then weighs the means."""
    components: int | None = None
    """Values of the latent, the first ones, that are principal components of the frames. The convolutions learn what
    these leave. By default half of a dense latent, and one value for each cell of a spatial map, if more are left. 0: a
    plain VAE."""
    augment: float | None = None
    """How much frames are shifted, scaled, mirrored and recolored for training, 0 to 1. Lowers the error on recordings
    that are unlike those of the training, and raises it on those that are like them. By default 0.3 for what frames
    record wrote, else 0.5."""
    epochs: int = 18
    """Epochs to train, each a random sample of super_batch frames. The defaults end on the third cycle's plateau."""
    schedule: ScheduleKind = "cyclical"
    """Beta after the freeze: cyclical (rise, plateau, again from 0), monotonic (rise once) or constant."""
    batch_freeze: int = 0
    """Epochs at the start with beta 0, whatever the schedule. Latents can grow without bound in them."""
    half_beta_cycle: int = 3
    """Epochs in which beta rises from 0 to its wanted value and, with cycles, epochs of the plateau after it."""
    super_batch: int | None = None
    """Frames drawn at random for an epoch. By default 10,000, or all if there are fewer."""
    batch_size: int = 64
    """Frames per gradient step; several processes (torchrun) divide them among themselves."""
    learning_rate: float = 2e-3
    """Step size of Adam."""
    learning_rate_schedule: LearningRateKind = "cosine"
    """cosine: half a cosine down to 0 at the last epoch. constant: such a run can be resumed with more epochs."""
    patience: int | None = None
    """Early stopping: comparable moments (ends of cycles; without cycles, epochs at the wanted beta) without a lower
    held-out loss. By default all epochs are trained."""
    dataset_weights: tuple[float, ...] = ()
    """Share of each .npy file in a super-batch, in name order, without the held-out files. By default equal."""
    held_out: int | None = None
    """Files, the last by name, that are held out for evaluation. By default a tenth, one at least."""
    start_from: Path | None = None
    """Fine-tuning: start with the weights and layers of this run, or encoder folder with its decoder."""
    seed: int = 0
    """Reproduces weights, samples and noise."""
    device: str = "auto"
    """auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps."""
    precision: Precision = "auto"
    """Number format of the layers: auto (bfloat16 on CUDA, else float32), float32 or bfloat16."""
    log: Service | None = None
    """Where to log as well, beside log.jsonl and TensorBoard: wandb or trackio."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, at_least in _COUNTS.items():
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), at_least)
        if not 0 <= self.beta < math.inf:
            raise InputError(f"beta must be a finite number, 0 or more, got {self.beta}")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate must be a positive number, got {self.learning_rate}")
        if self.augment is not None and not 0 <= self.augment <= 1:
            raise InputError(f"augment must be from 0 (off) to 1, got {self.augment}")
        if self.patience is not None and self.schedule == "cyclical" and self.half_beta_cycle == 0:
            raise InputError("patience counts ends of cycles, and half_beta_cycle 0 has none; use --schedule constant")
        if self.super_batch is not None and self.super_batch < self.batch_size:
            raise InputError(f"super_batch must be at least batch_size {self.batch_size}, got {self.super_batch}")

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """As `RunConfig.from_json`; earlier versions had no components, and `objective: classic` no salience."""
        values = dict(values)
        if values.keys() & {"standardize", "standardise"}:
            values.setdefault("components", 0)
        if values.pop("objective", "acting") == "classic":
            values |= dict.fromkeys(("salience", *_HEADS), 0.0)
        return super().from_json(values)

    def resumed_from(self, saved: Self) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As `RunConfig.resumed_from`; a cosine schedule fixes the number of epochs."""
        config = super().resumed_from(saved)
        if config.learning_rate_schedule == "cosine" and config.epochs != saved.epochs:
            raise InputError(
                f"epochs is {saved.epochs} in the run to resume, whose learning rate then reaches 0 (cosine), and "
                f"cannot become {config.epochs}. Leave --epochs out, or start another run"
            )
        return config
