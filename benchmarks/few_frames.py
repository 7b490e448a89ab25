"""How much an agent's network can learn from few frames: latents scaled one by one, latents scaled together, baselines.

The network is that of PPO's policy on latents (two layers of 64, tanh, orthogonal weights, Adam at PPO's step size,
batches of 64); what it learns is where an object is, from frames whose rows name it (`latent-obs frames record`). A
probe of many frames shows what is in a latent; an agent has to find it from the few thousand frames of its first
updates, and this shows how soon it can.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import nn

from benchmarks.common import machine_line, markdown_table
from latent_obs import PCA, FrozenEncoder
from vae_training.data.rows import OBJECT_FIELDS, load_rows

_BATCH, _STEP_SIZE, _WIDTH, _GAIN = 64, 2.5e-4, 64, 2**0.5  # as agents.config has them, and Stable-Baselines3's policy
_CHUNK = 512
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    frames: Path
    """Folder of frames with rows; the last quarter of its files is tested on."""
    object: str
    """Class of the object to find, such as Medikit."""
    encoders: tuple[Path, ...]
    """Encoder folders, or run folders of train-vae."""
    pca: Path | None = None
    """File that latent_obs.encoder.pca wrote."""
    counts: tuple[int, ...] = (500, 2_000, 8_000)
    """Frames to learn from."""
    passes: tuple[int, ...] = (40, 30, 20)
    """Passes over them, for each count."""
    seeds: int = 3
    """Networks, each on frames of its own; the median is shown."""
    threads: int = 1
    """Threads of torch."""


def labelled(options: Options) -> tuple[NDArray[np.uint8], Floats, NDArray[np.bool_]]:
    """Frames that show the object, where it is in them (x, y as fractions of the picture), and which are tested on."""
    files = sorted(options.frames.glob("*.npy"))
    if len(files) < 2:
        raise SystemExit(f"{options.frames} has {len(files)} .npy files, and 2 or more are needed: some to test on")
    frames, places, tested = [], [], []
    first_tested = len(files) - max(1, len(files) // 4)
    for number, file in enumerate(files):
        rows = load_rows(file)
        if f"object${options.object}" not in rows:
            known = sorted(name.removeprefix("object$") for name in rows if name.startswith("object$"))
            raise SystemExit(f"the rows of {file} have no object {options.object!r}, only {known}")
        boxes = rows[f"object${options.object}"]
        seen = np.flatnonzero(boxes[:, OBJECT_FIELDS.index("visible")] > 0)
        frames.append(np.load(file, mmap_mode="r")[seen])
        places.append(boxes[seen][:, [OBJECT_FIELDS.index("x"), OBJECT_FIELDS.index("y")]].astype(np.float32))
        tested.append(np.full(len(seen), number >= first_tested))
    return np.concatenate(frames), np.concatenate(places), np.concatenate(tested)


def scaled(latents: Floats, *, together: bool) -> Floats:
    """As `VecNormalize` would make them at the end, or as `LatentNormalize` does."""
    centred = latents - latents.mean(0)
    deviation = np.sqrt(centred.var(0).mean()) if together else centred.std(0) + 1e-8
    return (centred / deviation).astype(np.float32)


def participation(latents: Floats) -> float:
    """How many directions the latents' variance is spread over: (sum of eigenvalues)² / sum of their squares."""
    values = np.linalg.eigvalsh(np.cov(latents.T))
    return float(values.sum() ** 2 / np.square(values).sum())


def learnt(latents: Floats, places: Floats, tested: NDArray[np.bool_], count: int, passes: int, seed: int) -> Floats:
    """R² of x and y on tested frames, the best during learning."""
    torch.manual_seed(seed)
    chosen = np.random.default_rng(seed).choice(
        np.flatnonzero(~tested), min(count, int((~tested).sum())), replace=False
    )
    centre, spread = places[chosen].mean(0), places[chosen].std(0)
    targets = torch.from_numpy((places - centre) / spread)
    x = torch.from_numpy(latents)
    layers = [nn.Linear(x.shape[1], _WIDTH), nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, 2)]
    for layer, gain in zip(layers, (_GAIN, _GAIN, 0.01), strict=True):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    network = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])
    optimizer = torch.optim.Adam(network.parameters(), _STEP_SIZE, eps=1e-5)
    given, wanted = x[chosen], targets[chosen]
    test = torch.from_numpy(tested)
    x_test, y_test = x[test], targets[test]
    best = np.full(2, -np.inf, np.float32)
    for number in range(passes):
        for batch in torch.randperm(len(chosen)).split(_BATCH):
            optimizer.zero_grad()
            (network(given[batch]) - wanted[batch]).square().mean().backward()
            optimizer.step()
        if number % 5 == 4:
            with torch.inference_mode():
                r2 = 1 - (network(x_test) - y_test).square().mean(0) / y_test.var(0)
            best = np.maximum(best, r2.numpy())
    return best


def main(options: Options) -> None:
    """Measure, and print a table."""
    if len(options.counts) != len(options.passes):
        raise SystemExit(f"counts and passes must be as many, got {len(options.counts)} and {len(options.passes)}")
    torch.set_num_threads(options.threads)
    frames, places, tested = labelled(options)
    encoders = {str(path): FrozenEncoder.load(path, device="cpu") for path in options.encoders}
    first = next(iter(encoders.values()))
    assert first.architecture is not None
    encoders["random, layers of the first"] = FrozenEncoder.random(first.architecture, seed=0, device="cpu")
    if options.pca is not None:
        encoders["principal components"] = PCA.load(options.pca).encoder(device="cpu")
    print(machine_line())
    print(
        f"{len(frames):,} frames of {options.frames} show {options.object}, {int(tested.sum()):,} "
        f"of them are tested on.\n"
    )
    rows = []
    for name, encoder in encoders.items():
        parts = [encoder.encode(np.ascontiguousarray(frames[i : i + _CHUNK])) for i in range(0, len(frames), _CHUNK)]
        for together in (False, True):
            z = scaled(np.concatenate(parts), together=together)
            row = [name, "together" if together else "each", f"{participation(z):.0f}"]
            for count, passes in zip(options.counts, options.passes, strict=True):
                results = [learnt(z, places, tested, count, passes, seed) for seed in range(options.seeds)]
                row.append(" · ".join(f"{value:.2f}" for value in np.median(results, axis=0)))
            rows.append(row)
    print(
        markdown_table(
            ["encoder", "scaled", "directions", *(f"{count:,} frames: x · y" for count in options.counts)], rows
        )
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
