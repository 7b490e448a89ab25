"""Which settings of the CVAE keep what acting needs: betas, schedules, losses and bottlenecks on three kinds of frames.

Every run trains on as many images, with the same network but for what is named, and is measured on recordings that it
never
saw: squared error of the reconstruction from the mean, relative to PCA with as many components (fitted on the same
frames); active latents; linear probes of known state; on the scenes disentanglement. Finished runs are kept in
`runs.jsonl`, so that the study can be stopped and goes on; the tables are made of that file.
"""

import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from benchmarks.common import machine_line, markdown_table
from benchmarks.factor_scenes import FactorScenes
from latent_obs import FrozenEncoder
from latent_obs.encoder.architecture import Architecture
from latent_obs.util.words import counted
from vae_training import RecordConfig, TrainConfig, get_datasets, load_rows, record, targets_of, train
from vae_training.report import EncoderMeans, Pca, probe, random_encoder
from vae_training.report.metrics.disentanglement import dci, mig

#: Layers for 64x64 frames, down to a 4x4 map (dense) or to 8x8 (spatial).
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "small": {
        "dense": {"widths": (16, 32, 64, 128), "strides": (2, 2, 2, 2)},
        "spatial": {"widths": (32, 64), "strides": (4, 2)},
    },
    "base": {
        "dense": {"widths": (32, 64, 128, 256), "strides": (2, 2, 2, 2)},
        "spatial": {"widths": (64, 128), "strides": (4, 2)},
    },
    "large": {
        "dense": {"widths": (64, 128, 256, 512), "strides": (2, 2, 2, 2)},
        "spatial": {"widths": (128, 256), "strides": (4, 2)},
    },
}
Source = Literal["doom", "clips", "scenes"]
Settings = dict[str, Any]

DENSE: Settings = {"bottleneck": "dense", "latent_dim": 32, "beta": 0.02, "salience": 0.0, "standardize": True}
SPATIAL: Settings = {**DENSE, "bottleneck": "spatial", "latent_dim": 256}
SIZED: dict[str, Settings] = {"dense": DENSE, "spatial": SPATIAL}
MONOTONIC: Settings = {"schedule": "monotonic", "half_beta_cycle": 1, "batch_freeze": 0}

#: For each kind of frames the settings that are compared, by the question that they answer.
STUDY: dict[Source, dict[str, dict[str, Settings]]] = {
    "doom": {
        "beta, dense": {f"beta {beta:g}": {**DENSE, **MONOTONIC, "beta": beta} for beta in (0.005, 0.02, 0.1, 1.0)},
        "schedule": {
            "cyclical": {**SPATIAL, "batch_freeze": 0, "half_beta_cycle": 1},
            "monotonic": {**SPATIAL, **MONOTONIC},
            "constant": {**SPATIAL, "schedule": "constant", "batch_freeze": 0},
            "scale_losses": {**SPATIAL, **MONOTONIC, "scale_losses": True, "beta": 0.02 * 256 / (64 * 64 * 3)},
        },
        "objective, spatial": {
            "classic": {**SPATIAL, **MONOTONIC},
            "salience 1": {**SPATIAL, **MONOTONIC, "salience": 1.0},
        },
        "size": {
            **{
                f"{name}, {bottleneck}": {**SIZED[bottleneck], **MONOTONIC, "salience": 1.0, **layers}
                for name, by_bottleneck in SIZES.items()
                for bottleneck, layers in by_bottleneck.items()
            },
            **{
                f"strides 2 2 2, widths {width} {2 * width} {4 * width}": {
                    **SPATIAL,
                    **MONOTONIC,
                    "salience": 1.0,
                    "widths": (width, 2 * width, 4 * width),
                    "strides": (2, 2, 2),
                }
                for width in (16, 32, 64)
            },
        },
        "bottleneck": {
            "dense 32, linear path": {**DENSE, **MONOTONIC, "linear_path": True},
            "dense 32, salience 1": {**DENSE, **MONOTONIC, "salience": 1.0},
            "dense 32, linear path, salience 1": {**DENSE, **MONOTONIC, "linear_path": True, "salience": 1.0},
            "dense 128, linear path, salience 1": {
                **DENSE,
                **MONOTONIC,
                "latent_dim": 128,
                "linear_path": True,
                "salience": 1.0,
            },
            "spatial 256, salience 1, not standardized": {
                **SPATIAL,
                **MONOTONIC,
                "standardize": False,
                "salience": 1.0,
            },
            "spatial 256, salience 1, strides 4 2": {
                **SPATIAL,
                **MONOTONIC,
                "salience": 1.0,
                "widths": (48, 96),
                "strides": (4, 2),
            },
        },
    },
    "clips": {
        "small data": {
            "classic": {**DENSE, **MONOTONIC},
            "linear path": {**DENSE, **MONOTONIC, "linear_path": True},
            "augment 1": {**DENSE, **MONOTONIC, "augment": 1.0},
            "augment 1, linear path": {**DENSE, **MONOTONIC, "augment": 1.0, "linear_path": True},
        },
    },
    "scenes": {
        "beta, dense 10": {
            f"beta {beta:g}": {**DENSE, **MONOTONIC, "latent_dim": 10, "beta": beta} for beta in (0.05, 0.5, 2.0, 8.0)
        },
        "schedule, beta 2": {
            "cyclical": {**DENSE, "latent_dim": 10, "beta": 2.0, "batch_freeze": 0, "half_beta_cycle": 1},
            "constant": {**DENSE, "latent_dim": 10, "beta": 2.0, "schedule": "constant", "batch_freeze": 0},
        },
        "bottleneck": {"spatial 256": {**SPATIAL, **MONOTONIC}, "salience 1": {**DENSE, **MONOTONIC, "salience": 1.0}},
    },
}


@dataclass(frozen=True)
class Options:
    """Options of the study."""

    out: Path = Path("ablation")
    """Folder of frames and results; a study that was stopped goes on."""
    sources: tuple[Source, ...] = ("doom", "scenes")
    """Which frames. clips needs --clips."""
    clips: Path | None = None
    """Folder of frame files of a few videos (`latent-obs frames extract`); each is held out once."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights, samples and noise."""
    epochs: int = 5
    """Super-batches of 10,000 images that each run trains on."""
    size: Literal["small", "base", "large"] = "small"
    """Size of the network."""
    only: str = ""
    """Only settings whose name has this in it."""


@dataclass(frozen=True)
class Dataset:
    """Frames to train on, the last file by name held out, and what is known of them."""

    name: str
    folder: Path


def datasets_of(source: Source, options: Options) -> Iterator[Dataset]:
    """The datasets of a source, made if they are not there yet."""
    folder = options.out / source
    if source == "doom":
        if not (folder / "VizdoomBasic-v1_004.npy").exists():
            record(RecordConfig(env="VizdoomBasic-v1", out=folder, frames=12_500, frame_skip=4, policy="random"))
        yield Dataset("VizdoomBasic-v1", folder)
    elif source == "scenes":
        if not (folder / "scenes.json").exists():
            FactorScenes(64).write(folder, frames=12_500, files=5)
        yield Dataset("factor scenes", folder)
    else:
        if options.clips is None:
            raise SystemExit("clips needs --clips, a folder that `latent-obs frames extract` made of a few videos")
        files = sorted(options.clips.glob("*.npy"))
        for held_out in files:
            fold = folder / held_out.stem
            fold.mkdir(parents=True, exist_ok=True)
            for file in files:
                target = fold / f"{'z' if file == held_out else 'a'}_{file.name}"
                if not target.exists():
                    shutil.copy(file, target)
            yield Dataset(held_out.stem, fold)


def measure(encoder: FrozenEncoder, dataset: Dataset) -> dict[str, float]:
    """Numbers of one encoder on the held-out file."""
    arrays = get_datasets(dataset.folder)
    training, unseen = arrays[:-1], np.array(arrays[-1])
    pca = Pca.fit(training, encoder.latent_dim)
    means = encoder.encode(unseen)
    numbers = {
        "mse": _mse(unseen, encoder.decode(means)),
        "pca_mse": float(np.square(pca.reconstruct(unseen) - unseen.astype(np.float32) / 255).mean()),
        "active": float((means.var(0) > 0.01).sum()),
    }
    rows = {Path(str(array.filename)).name: load_rows(Path(str(array.filename))) for array in arrays}
    targets = {name: _wanted(targets_of(columns)) for name, columns in rows.items()}
    if all(targets.values()):
        frames = dict(zip(rows, arrays, strict=True))
        table = probe(
            [EncoderMeans(encoder, "latent")], frames, targets, held_out=[list(rows)[-1]], mlp=False, cnn=False
        )
        numbers |= {f"probe {result.target}": result.main.value for result in table.results}
    factors = {
        name.removeprefix("factor$"): c for name, c in rows[list(rows)[-1]].items() if name.startswith("factor$")
    }
    if factors:
        values = np.stack(list(factors.values()), 1).astype(np.int64)
        numbers |= {"MIG": mig(means, values), "DCI": dci(means, values).disentanglement}
    return numbers


def _wanted(targets: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The monster, where the agent is, its ammunition; every factor of a scene."""
    keep = ("object$Cacodemon.x", "object$Cacodemon.width", "state$POSITION_Y", "state$AMMO2")
    return {name: values for name, values in targets.items() if name in keep or name.startswith("factor$")}


def _mse(frames: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> float:
    return float(np.square((frames.astype(np.float32) - decoded) / 255).mean())


def run_one(dataset: Dataset, settings: Settings, seed: int, options: Options) -> dict[str, Any]:
    """Train and measure once."""
    bottleneck = settings.get("bottleneck", TrainConfig.bottleneck)
    size: Settings = {} if "widths" in settings else SIZES[options.size][bottleneck]
    with tempfile.TemporaryDirectory(dir=options.out) as scratch:
        config = TrainConfig(
            frames=dataset.folder,
            out=Path(scratch) / "run",
            epochs=options.epochs,
            super_batch=None,
            seed=seed,
            held_out=1,
            learning_rate=2e-3,
            learning_rate_schedule="cosine",
            **size | settings,
        )
        result = train(config, progress_bar=False, say=lambda _: None)
        encoder = FrozenEncoder.load(result.encoder, device="cpu")
        return {
            "images_per_second": result.images_per_second,
            "kl": result.held_out.kl_nats,
            **measure(encoder, dataset),
        }


def baselines(dataset: Dataset, dims: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """Probes of PCA and of untrained encoders, for the tables."""
    arrays = get_datasets(dataset.folder)
    rows = {Path(str(array.filename)).name: load_rows(Path(str(array.filename))) for array in arrays}
    targets = {name: _wanted(targets_of(columns)) for name, columns in rows.items()}
    if not all(targets.values()):
        return {}
    found: dict[str, dict[str, float]] = {}
    for dim in dims:
        shape = Architecture(arrays[0].shape[1:], dim, bottleneck="spatial" if dim >= 256 else "dense")
        untrained = random_encoder(FrozenEncoder.random(shape, device="cpu"), name=f"untrained, {dim}")
        pca = Pca.fit(arrays[:-1], dim)
        frames = dict(zip(rows, arrays, strict=True))
        table = probe([untrained, pca], frames, targets, held_out=[list(rows)[-1]], mlp=False, cnn=False)
        for result in table.results:
            name = f"PCA, {dim}" if result.representation == "PCA" else result.representation
            found.setdefault(name, {})[f"probe {result.target}"] = result.main.value
    return found


def tables(options: Options) -> str:
    """Means (and standard deviations over seeds, or folds) of all runs so far."""
    runs = [json.loads(line) for line in (options.out / "runs.jsonl").read_text().splitlines()]
    parts: list[str] = []
    for source, questions in STUDY.items():
        for question, variants in questions.items():
            found = {
                n: [r for r in runs if (r["source"], r["question"], r["name"]) == (source, question, n)]
                for n in variants
            }
            found = {name: these for name, these in found.items() if these}
            if not found:
                continue
            columns = [
                k for k in next(iter(found.values()))[0]["numbers"] if k not in ("mse", "pca_mse", "images_per_second")
            ]
            rows = []
            for name, these in found.items():
                numbers = [run["numbers"] for run in these]
                ratios = [n["mse"] / n["pca_mse"] for n in numbers]
                rows.append(
                    [name, str(len(these)), f"{1e4 * statistics.mean(n['mse'] for n in numbers):.2f}", _spread(ratios)]
                    + [_spread([n[c] for n in numbers if c in n]) for c in columns]
                    + [f"{statistics.median(n['images_per_second'] for n in numbers):,.0f}"]
                )
            head = [f"{source}: {question}", "runs", "MSE, 1e-4", "of PCA's", *columns, "images/s"]
            parts.append(markdown_table(head, rows))
    return "\n\n".join(parts)


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    mean = statistics.mean(values)
    digits = 0 if abs(mean) >= 10 else 2
    return f"{mean:.{digits}f}" + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def main(options: Options) -> None:
    """Run what is missing, and print the tables."""
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "runs.jsonl"
    done = {tuple(json.loads(line)["key"]) for line in log.read_text().splitlines()} if log.exists() else set()
    print(machine_line("cpu"), flush=True)
    for source in options.sources:
        for dataset in datasets_of(source, options):
            for seed in options.seeds:  # outermost, so that a study that was stopped has all settings with some seeds
                for question, variants in STUDY[source].items():
                    for name, settings in variants.items():
                        key = (source, dataset.name, question, name, seed, options.epochs, options.size)
                        if key in done or options.only not in f"{question}: {name}":
                            continue
                        numbers = run_one(dataset, settings, seed, options)
                        with log.open("a") as file:
                            entry = {"key": key, "source": source, "question": question, "name": name, "seed": seed}
                            file.write(json.dumps({**entry, "dataset": dataset.name, "numbers": numbers}) + "\n")
                        told = ", ".join(f"{k} {v:.3g}" for k, v in numbers.items())
                        print(f"{source} {dataset.name} seed {seed} {question}: {name}: {told}", flush=True)
            for name, numbers in baselines(dataset, (32, 256)).items():
                print(f"{dataset.name}, {name}: {', '.join(f'{k} {v:.2f}' for k, v in numbers.items())}", flush=True)
    print(f"\n{tables(options)}\n\n{counted(torch.get_num_threads(), 'thread')}; load {os.getloadavg()[0]:.1f} now.")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
