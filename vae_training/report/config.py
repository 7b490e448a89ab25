"""Settings of a report; the command line is made from them."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from latent_obs.util.errors import check_count, check_types

FEWEST = 16  # held-out frames: with fewer, best, worst and random pairs mean nothing


@dataclass(frozen=True)
class ReportConfig:
    """Settings of a report; the command line is made from them.

    Example:
        >>> ReportConfig(Path("runs/doom"), quick=True).held_out_frames
        256
    """

    encoder: Positional[Path]
    """The encoder folder, or the run folder of train-vae that it is in."""
    frames: Path | None = None
    """Folder of .npy frames to measure on. By default the one it was trained on; only what was held out is measured."""
    out: Path | None = None
    """Folder to make: report.html, report.json and pictures. By default report, beside the encoder folder."""
    targets: Path | None = None
    """An .npz of your own values to predict from the latents: named arrays, an entry for each frame of all files in
    name order."""
    probes: bool = True
    """Measure how well the recorded state of the game can be predicted from the latents, where there is any."""
    sample: int | None = None
    """Held-out frames to measure on, spread evenly. By default 1,000, quick 256."""
    quick: bool = False
    """A first look in about a minute: fewer frames, no small networks among the probes."""
    seed: int = 0
    """Reproduces every random choice: pairs, prior samples, the random encoder, the probes."""
    device: str = "auto"
    """auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps. One that is named must be there."""

    def __post_init__(self) -> None:
        check_types(self)
        check_count("sample", self.held_out_frames, FEWEST)
        check_count("seed", self.seed, 0)

    @property
    def held_out_frames(self) -> int:
        """Held-out frames to measure on, at most."""
        return self.sample if self.sample is not None else 256 if self.quick else 1_000
