"""Speed of training the CVAE: `CVAE.compute_apply_gradients` against a plain PyTorch loop, and the whole of `train()`.

All start from uint8 frames: the steps from batches in memory, each way in a process of its own, `train()` from .npy
files on disk, with its checkpoints, logs, pictures and evaluations.
"""

import contextlib
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from benchmarks.common import (
    CLASSIC,
    gradient_step_flops,
    interleaved,
    limits,
    machine_line,
    markdown_table,
    ratio,
    seconds_per_call,
    spread,
    synchronize,
)
from latent_obs.pixels import Frames
from latent_obs.util.device import resolve_device, torch_threads
from latent_obs.util.words import counted
from vae_training import CVAE, TrainConfig, train
from vae_training.model.cvae import images_to_tensor
from vae_training.training.logs import read_log
from vae_training.training.optim import keep_freed_memory


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    batch_size: int = 128
    """Frames per gradient step."""
    steps: int = 10
    """Gradient steps per measurement."""
    rounds: int = 7
    """Interleaved repeats."""
    train_frames: int = 5_000
    """Frames of an epoch of train(), in five files on disk (and one more that is held out); 0 leaves train() out."""
    train_epochs: int = 2
    """Epochs of train(), in each round; the first has to wait for its frames."""
    threads: int | None = None
    """Torch's threads; as many as torch takes by itself by default."""
    device: str = "cpu"
    """Where to train."""


class PlainVAE(nn.Module):
    """The same layers, as most would write them: everything contiguous, no thought of memory layout."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 32, 4, 2, 1),  # no activation here, as in the CVAE
            nn.Conv2d(32, 64, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(64, 128, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(128, 256, 4, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.mean, self.logvar = nn.Linear(4096, 32), nn.Linear(4096, 32)
        self.decoder = nn.Sequential(
            nn.Linear(32, 4096),
            nn.ReLU(),
            nn.Unflatten(1, (256, 4, 4)),
            nn.ConvTranspose2d(256, 128, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(128, 64, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 3, 4, 2, 1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mean, logvar = self.mean(h), self.logvar(h)
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        return self.decoder(z), mean, logvar


def plain_stepper(device: torch.device) -> Callable[[Frames], None]:
    """A function that takes one gradient step of the plain loop."""
    model = PlainVAE().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(frames: Frames) -> None:
        x = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).contiguous().float() / 255
        optimizer.zero_grad()
        decoded, mean, logvar = model(x)
        error = F.mse_loss(decoded, x, reduction="sum")
        kl = -0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp())
        loss = (error + kl) / len(x)
        loss.backward()
        optimizer.step()

    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in CVAE((64, 64, 3), 32).parameters())
    return step


def cvae_stepper(device: torch.device) -> Callable[[Frames], None]:
    """A function that takes one gradient step of the CVAE."""
    model = CVAE.from_architecture(CLASSIC).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(frames: Frames) -> None:
        model.compute_apply_gradients(images_to_tensor(torch.from_numpy(frames).to(device)), optimizer)

    return step


def images_per_second(step: Callable[[Frames], None], batches: Frames, options: Options) -> Callable[[], float]:
    """A measurement of one arm, warmed up."""
    device = resolve_device(options.device)
    number = 0

    def call() -> None:
        nonlocal number
        step(batches[number % len(batches)])
        number += 1

    def measured() -> float:
        def run() -> None:
            for _ in range(options.steps):
                call()
            synchronize(device)

        return options.steps * options.batch_size / seconds_per_call(run, 1)

    seconds_per_call(call, 3)
    return measured


#: Ways to take a gradient step, and whether in each the C library keeps freed memory, as it does in `train()`.
STEPPERS: dict[str, tuple[Callable[[torch.device], Callable[[Frames], None]], bool]] = {
    "plain PyTorch loop": (plain_stepper, False),
    "compute_apply_gradients": (cvae_stepper, False),
    "the same, memory kept": (cvae_stepper, True),
}


def serve_arm(name: str, options: Options, pipe: Connection) -> None:
    """Measure one way on request, in a process of its own: the C library keeps memory by process."""
    stepper, kept = STEPPERS[name]
    frames = smooth_frames(8 * options.batch_size, np.random.default_rng(1))
    batches = frames.reshape(8, options.batch_size, 64, 64, 3)
    with torch_threads(options.threads), keep_freed_memory() if kept else contextlib.nullcontext():
        measure = images_per_second(stepper(resolve_device(options.device)), batches, options)
        pipe.send(0.0)
        while pipe.recv():
            pipe.send(measure())


@contextlib.contextmanager
def own_process(name: str, options: Options) -> Iterator[Callable[[], float]]:
    """The measurement of one way, in a process that waits in between."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve_arm, args=(name, options, theirs), daemon=True)
    process.start()
    theirs.close()  # so that a process that dies is an EOFError here

    def measured() -> float:
        ours.send(True)
        return ours.recv()

    ours.recv()
    try:
        yield measured
    finally:
        ours.send(False)
        process.join()


def smooth_frames(count: int, rng: np.random.Generator) -> Frames:
    """Frames uint8 (count, 64, 64, 3) that are no mere noise, so that a loss behaves as on a game's."""
    coarse = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def train_arm(folder: Path, options: Options, wait_shares: list[float]) -> Callable[[], float]:
    """A measurement of `train()`: images per second, with the share of time that it waited for frames noted aside."""
    rng = np.random.default_rng(2)
    (folder / "frames").mkdir()
    for i in range(6):
        np.save(folder / "frames" / f"{i}.npy", smooth_frames(-(-options.train_frames // 5), rng))
    runs = 0

    def measured() -> float:
        nonlocal runs
        runs += 1
        config = TrainConfig(
            frames=folder / "frames",
            out=folder / f"run{runs}",
            latent_dim=32,
            bottleneck="dense",
            components=0,
            beta=1.0,
            epochs=options.train_epochs,
            held_out=1,
            super_batch=options.train_frames,
            batch_size=options.batch_size,
            device=options.device,
        )
        result = train(config, progress_bar=False, say=lambda _: None)
        shares = [row["speed/data_wait_share"] for row in read_log(config.out) if "speed/data_wait_share" in row]
        wait_shares.extend(shares[-1:])  # a run too short to log a step has none
        return result.images_per_second

    return measured


def main(options: Options) -> None:
    """Measure and print."""
    print(machine_line(options.device), flush=True)
    device = resolve_device(options.device)
    wait_shares: list[float] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch_threads(options.threads))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        arms = {name: stack.enter_context(own_process(name, options)) for name in STEPPERS}
        if options.train_frames:
            arms["train()"] = train_arm(Path(folder), options, wait_shares)
            arms["train()"]()  # the first call imports TensorBoard
            wait_shares.clear()
        measured = interleaved({**arms, **limits(device)}, options.rounds)
        threads = torch.get_num_threads()
    matmul, convolution = (statistics.median(measured.pop(limit)) for limit in ("matmul", "convolution"))
    flops = gradient_step_flops(CLASSIC)
    rows = []
    for name, rates in measured.items():
        gflops = statistics.median(rates) * flops / 1e9
        rows.append(
            [
                name,
                f"{statistics.median(rates):,.0f}",
                spread(rates),
                f"{ratio(rates, measured['plain PyTorch loop']):.2f}",
                f"{gflops:.0f}",
                f"{gflops / matmul:.0%}",
                f"{gflops / convolution:.0%}",
            ]
        )
    header = [
        "dense 32-64-128-256, latent 32",
        "images/s",
        "min - max",
        "ratio to plain",
        "GFLOP/s",
        "of matmul",
        "of large conv.",
    ]
    print(f"\n{markdown_table(header, rows)}\n")
    print(
        f"Medians of {options.rounds} interleaved rounds, batch {options.batch_size}, "
        f"{counted(threads, 'thread')}, {options.device}. "
        f"{flops / 1e6:.0f} MFLOP an image; a matrix product of 1024² reaches {matmul:.0f} GFLOP/s, a large "
        f"convolution (forward only) {convolution:.0f}."
    )
    if wait_shares:
        print(
            f"train() waited for frames {statistics.median(wait_shares):.1%} of its time (median), "
            f"the first super-batch, "
            f"for which there is nothing to do meanwhile, included; {options.train_epochs} epochs of "
            f"{options.train_frames:,} frames."
        )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
