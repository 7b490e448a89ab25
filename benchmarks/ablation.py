"""Which settings of `train-vae` suit some recordings: components, beta and augmentation, dense and spatial.

An arm is `train-vae` with its defaults but for what its name says. Two things are measured:

- the squared error of reconstructions from the mean latent, on the held-out recordings, beside PCA with as many
  dimensions, fitted on 10,000 frames of the other recordings;
- where rows name objects or the state of the game, what cheap heads learn of them from few frames, as in
  `benchmarks.proxy`: the means of their scores, on recordings that the heads did not learn from.

Runs are kept in `--out`. A study that was stopped goes on when the same command is given again.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray

from benchmarks import proxy
from benchmarks.common import machine_line, markdown_table
from latent_obs import FrozenEncoder
from vae_training import TrainConfig, get_datasets, load_rows, split_held_out, targets_of, train
from vae_training.report.encoder import Reconstruct, ReportModel
from vae_training.report.metrics.baselines import Pca
from vae_training.report.metrics.reconstruction import measure

Settings = dict[str, Any]

SIZES: dict[str, Settings] = {
    "dense 32": {"bottleneck": "dense", "latent_dim": 32},
    "spatial 256": {"bottleneck": "spatial", "latent_dim": 256},
}
#: What is compared with the defaults. Without components beta counts in plain squared error, where 1 is too strong.
CHANGES: list[Settings] = [{"components": 0, "beta": 0.02}, *({"beta": beta} for beta in (0.1, 5, 20)), {"augment": 0}]
_MOST_MEASURED = 4_000  # held-out frames


@dataclass(frozen=True)
class Options:
    """Options of the study."""

    frames: Path
    """Folder of .npy files, one for each recording, of frames of 64x64; the last tenth by name is held out."""
    out: Path = Path("ablation")
    """Folder of the training runs."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of weights, samples and noise."""
    epochs: int = TrainConfig.epochs
    """Epochs of each run."""
    count: int = proxy.Options.count
    """Frames that the heads learn from."""
    only: str = ""
    """Only arms whose name has this in it, such as "dense 32, beta"."""


@dataclass(frozen=True)
class Arm:
    """An encoder, and how well it does."""

    mse: float
    kl: float | None  # nats; None for PCA
    scores: proxy.Scores


class Frames:
    """Recordings, and what arms are measured on."""

    def __init__(self, options: Options) -> None:
        self.training, held_out = split_held_out(get_datasets(options.frames))
        step = -(-sum(map(len, held_out)) // _MOST_MEASURED)
        self.held_out: NDArray[np.uint8] = np.concatenate([recording[::step] for recording in held_out])
        files = sorted(options.frames.glob("*.npy"))
        known = len(files) > 1 and all(targets_of(load_rows(file)) for file in files)
        chosen = proxy.Options(count=options.count)
        self.sample = proxy.sample_of(options.frames, proxy.state_and_return, chosen) if known else None

    def measure(self, encoder: FrozenEncoder, reconstruct: Reconstruct, kl: float | None, seed: int) -> Arm:
        """Measure one encoder; the seed is of the heads."""
        mse = measure(self.held_out, reconstruct, with_ssim=False).scores().mse
        scores = {} if self.sample is None else proxy.scores_of(proxy.Arm(encoder, history=1), self.sample, seed)
        return Arm(mse, kl, scores)


def arms_of(size: str) -> dict[str, Settings]:
    """The arms of one size, by name."""
    arms = {" ".join(f"{name} {value:g}" for name, value in settings.items()): settings for settings in CHANGES}
    return {f"{size}, {name}": SIZES[size] | settings for name, settings in {"defaults": {}, **arms}.items()}


def run(name: str, settings: Settings, seed: int, frames: Frames, options: Options) -> Arm:
    """Train one arm, or what is left of its run, and measure it."""
    out = options.out / f"{name} seed {seed}".replace(",", "").replace(" ", "_")
    config = TrainConfig(frames=options.frames, out=out, epochs=options.epochs, seed=seed, **settings)
    result = train(config, resume=(out / "config.json").exists(), say=lambda _: None)
    if result.interrupted:
        raise SystemExit(f"stopped in {out}; the same command goes on")
    model = ReportModel(result.encoder, "cpu")
    return frames.measure(model.frozen, model.reconstruct, result.held_out.kl_nats, seed)


def table(arms: Mapping[str, Sequence[Arm]]) -> str:
    """Means over the seeds, and with several their standard deviations; the first of the arms is PCA."""
    runs = {f"{name} {i}": arm.scores for name, these in arms.items() for i, arm in enumerate(these)}
    proxies = proxy.means(runs)
    kinds = list(next(iter(proxies.values())))
    (baseline,) = next(iter(arms.values()))
    rows: list[list[str]] = []
    for name, these in arms.items():
        heads = [[proxies[f"{name} {i}"][kind] for i in range(len(these))] for kind in kinds]
        kl = [arm.kl for arm in these if arm.kl is not None]
        columns = [([1e4 * arm.mse for arm in these], 2), ([arm.mse / baseline.mse for arm in these], 2), (kl, 1)]
        columns += [(values, 3) for values in heads]
        rows.append([name, *(_spread(values, digits) for values, digits in columns)])
    return markdown_table(["arm", "MSE, 1e-4", "of PCA's", "KL, nats", *map(", ".join, kinds)], rows)


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def main(options: Options) -> None:
    """Train what is missing, measure, and print a table for each size."""
    print(machine_line(), flush=True)
    frames = Frames(options)
    for size, layers in SIZES.items():
        chosen = {name: settings for name, settings in arms_of(size).items() if options.only in name}
        if not chosen:
            continue
        pca = Pca.fit(frames.training, layers["latent_dim"])
        arms = {f"{size}, PCA": [frames.measure(pca.encoder, pca.reconstruct, None, 0)], **{n: [] for n in chosen}}
        for seed in options.seeds:  # outermost, so that a study that was stopped has all arms with some seeds
            for name, settings in chosen.items():
                arms[name].append(run(name, settings, seed, frames, options))
                print(f"{name}, seed {seed}: MSE {arms[name][-1].mse:.6f}", flush=True)
        print(f"\n{table(arms)}\n", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
