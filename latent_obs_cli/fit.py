"""`latent-obs fit`: an encoder for an environment in one command: frames, principal components, a CVAE, a report."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro
from tyro.conf import OmitArgPrefixes

from latent_obs.util.atomic import own_folder
from latent_obs.util.device import torch_threads
from latent_obs.util.errors import InputError, check_types, require
from latent_obs.util.progress import print_now
from latent_obs_cli.plan import REPORT, Sizes, check_minutes, vae_settings
from vae_training.recording.config import RecordConfig
from vae_training.training.config import TrainConfig

#: From the least that gives an encoder to what an environment with more to see than ViZDoom's Basic needs.
_KNOTS = (Sizes(1_000, 5), Sizes(10_000, 13), Sizes(20_000, 25))


@dataclass(frozen=True)
class FitConfig:
    """Settings of `latent-obs fit`."""

    env: str = ""
    """A registered Gymnasium environment, or module:Env-v0: the module, which may be in the current folder, is imported
    first."""
    out: Path = Path("runs/fit")
    """Folder to make: frames, encoder, report. The same command with the same folder continues where it stopped."""
    frames: Path | None = None
    """Folder of .npy files to train on. By default frames of the environment are recorded."""
    minutes: float = 10.0
    """Time for everything. Where it is too short for 20,000 frames and 25 epochs, fewer frames are recorded, and epochs
    are left out."""
    frame_skip: int | None = None
    """Passed to the environment as frame_skip when given: game frames per step. 4 is usual for ViZDoom."""
    env_kwargs: dict[str, bool | int | float | str] = field(default_factory=dict, metadata={"type": dict[str, Any]})
    """Further arguments of the environment, as name value pairs."""
    render: bool = False
    """Record the picture that the environment draws, such as CartPole's, in place of its own observation."""
    pixel_key: str | None = None
    """Entry of a Dict observation that holds the pixels, if there is more than one image."""
    seed: int = 0
    """Reproduces the frames and the CVAE, for the same plan."""
    device: str = "auto"
    """auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps."""

    def __post_init__(self) -> None:
        check_types(self)
        check_minutes(self.minutes)
        if not self.env and self.frames is None:
            raise InputError("env must be given: the environment to record frames of, or --frames with recorded ones")
        self.recording(8, None)  # whose checks are for these settings, too

    def recording(self, frames: int, size: int | None) -> RecordConfig | None:
        """Settings of the first stage, or None if the frames are there already."""
        if self.frames is not None:
            return None
        return RecordConfig(
            self.env,
            self.out / "frames",
            frames,
            frames_per_file=max(1, frames // 8),
            size=size,
            frame_skip=self.frame_skip,
            env_kwargs=self.env_kwargs,
            render=self.render,
            pixel_key=self.pixel_key,
            seed=self.seed,
        )

    @property
    def pca(self) -> Path:
        """The file of principal components."""
        return self.out / "pca.safetensors"

    def vae(self, epochs: int) -> TrainConfig:
        """Settings of the second stage."""
        return vae_settings(self.frames or self.out / "frames", self.out / "vae", epochs, self.seed, self.device)

    def python(self, encoder: Path) -> list[str]:
        """The two lines of Python that use an encoder folder or a file of principal components."""
        name = f'"{encoder.as_posix()}"'
        if not self.env and encoder == self.pca:
            return ["from latent_obs import PCA", f"encoder = PCA.load({name}).encoder()"]
        if not self.env:
            return ["from latent_obs import FrozenEncoder", f"encoder = FrozenEncoder.load({name})"]
        given: dict[str, Any] = {"frame_skip": self.frame_skip, "pixel_key": self.pixel_key, **self.env_kwargs}
        given = {name: value for name, value in given.items() if value is not None}
        given |= {"render": True} if self.render else {}
        given["standardize"] = True  # PPO learns faster with it
        more = "".join(f", {name}={value!r}" for name, value in given.items())
        return ["from latent_obs import make", f'env = make("{self.env}", {name}{more})']

    def train_agent(self, encoder: Path) -> str:
        """The command that trains an agent on the latents of an encoder folder or of principal components."""
        words = ["latent-obs", "train-agent", "--env", self.env]
        if self.frame_skip is not None:
            words += ["--frame-skip", str(self.frame_skip)]
        if self.pixel_key is not None:
            words += ["--pixel-key", self.pixel_key]
        if self.env_kwargs:
            words += ["--env-kwargs", *(str(word) for pair in self.env_kwargs.items() for word in pair)]
        if self.render:
            words.append("--render")
        words += ["--observation", "pca-latent", "--pca"] if encoder == self.pca else ["--encoder"]
        return shlex.join([*words, str(encoder), "--out", f"{self.out}-agent"])


class FitResult(NamedTuple):
    """What `fit` leaves: the encoder folder, the report's page, principal components, and which of the two to use."""

    encoder: Path
    page: Path
    pca: Path
    better: Path


def fit(
    config: OmitArgPrefixes[FitConfig], sizes: Annotated[Sizes | None, tyro.conf.Suppress, tyro.conf.Fixed] = None
) -> FitResult:
    """Make an encoder for an environment: record frames, fit principal components, train a CVAE, and write a report.

    Principal components (PCA) take seconds. The report says whether the CVAE was worth its minutes beside them.

    Measures the machine and the environment in the first seconds, and plans frames and epochs for the time that there
    is. You can stop it at any moment; the same command continues. All but the components is also a command of its own:
    frames record, train-vae, report. Ends with the two lines of Python that use the better of the two.
    """
    for module in ("matplotlib", "skimage", "sklearn"):  # now, and not after minutes of work
        require(module, extra="report", purpose="write the report")
    from latent_obs.encoder.folder import copy_encoder_folder
    from latent_obs_cli.stages import begin, fit_components, record_frames, train_cvae
    from vae_training.report import ReportConfig, report

    with own_folder(config.out):
        settings = {name: value for name, value in vars(config).items() if name != "out"}
        walk = begin(
            config.out / "fit.json",
            settings,
            recording=config.recording(8, None),
            vae=config.vae(1),
            knots=_KNOTS,
            sizes=sizes,
        )
        with walk:
            recording = config.recording(walk.sizes.frames, walk.frame_side)
            if recording is not None:
                record_frames(walk, recording, config.out / "frames.png")
            if not config.pca.exists():
                with torch_threads(walk.threads):
                    fit_components(config.vae(1), config.pca)
            train_cvae(walk, config.vae(walk.sizes.epochs))
            encoder = config.out / "encoder"
            about = "how good is the encoder, on frames that it never saw"
            with walk.stage(REPORT, about), torch_threads(walk.threads):
                copy_encoder_folder(config.out / "vae", encoder)
                quick = walk.sizes.epochs < _KNOTS[1].epochs
                about_encoder = ReportConfig(encoder, quick=quick, seed=config.seed, device=config.device)
                found = report(about_encoder, pca=config.pca)
    is_better = found.worth is None or found.worth.better == "vae"
    better = encoder if is_better else config.pca
    name = "the VAE" if is_better else "PCA"
    print_now(f"\nUse {name} in Python:\n  " + "\n  ".join(config.python(better)))
    if config.env:
        print_now(f"\nOr train an agent on its latents:\n  {config.train_agent(better)}")
    return FitResult(encoder, found.page, config.pca, better)
