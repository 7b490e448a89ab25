"""All speeds on a GPU, in one command of under eight minutes: the tests that need a GPU, then a table for RESULTS.md.

Training steps in float32 and bfloat16 with and without compilation, training that is fed from disk, encoding for 16
environments, and PPO. Each row has a time limit. A row that fails is reported with its error, and the others go on.
"""

import contextlib
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from agents import make_vec_env
from benchmarks import agent_throughput, encode, gradient_step, loader
from benchmarks.common import (
    CLASSIC,
    QUICKSTART,
    gradient_step_flops,
    machine_line,
    markdown_table,
    spread,
    synchronize,
)
from latent_obs import FrozenEncoder, VecLatentObservation
from latent_obs.pixels import Frames
from latent_obs.util.device import resolve_device
from latent_obs.util.progress import print_now
from vae_training import CVAE
from vae_training.data.loader import Batch
from vae_training.model.augmentation import images_to_tensor
from vae_training.model.losses import VAELoss, apply_gradients
from vae_training.training.optim import compiles_on, make_adam

_ROOT = Path(__file__).parents[1]
_TEST_SECONDS, _ROW_SECONDS, _ALL_SECONDS = 120, 90, 350
_PPO = "10/64"  # epochs and batch size, those of train-agent


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    device: str = "cuda"
    """Where to train and encode."""
    tiny: bool = False
    """Measure small networks for a moment: shows that every row works; the numbers mean nothing."""


#: The rows that a measurement gives: by name the rates of its rounds per second, and a note.
Rows = dict[str, tuple[Sequence[float], str]]


def fail(reason: str) -> None:
    """Raise the reason why a loss cannot be compiled."""
    raise RuntimeError(reason)


def stepper(
    options: Options, dtype: torch.dtype, compiled: bool, say: Callable[[str], None] = fail
) -> Callable[[Frames], None]:
    """A function that takes one gradient step of the plain loss as `train()` does on a GPU.

    `say` is called with the reason if the loss cannot be compiled.
    """
    device = resolve_device(options.device)
    model = CVAE.from_architecture(QUICKSTART if options.tiny else CLASSIC).to(device)
    optimizer = make_adam(model.parameters(), 1e-3, device)

    loss = VAELoss(model, dtype=dtype, compile=compiled, say=say)

    def step(frames: Frames) -> None:
        batch = Batch(images_to_tensor(torch.from_numpy(frames).to(device)))
        apply_gradients(loss(batch.images, batch.noise), optimizer)

    return step


def train_amounts(options: Options, batch_size: int = 128) -> gradient_step.Options:
    """How much to train for a row."""
    if options.tiny:
        amounts = {"batch_size": 4, "steps": 1, "rounds": 1, "train_frames": 8, "train_epochs": 1}
    else:
        amounts = {"batch_size": batch_size, "steps": 100, "rounds": 7, "train_frames": 40_960, "train_epochs": 10}
    return gradient_step.Options(**amounts, device=options.device)


def training_step(options: Options, *, precision: str, compiled: bool = False, batch_size: int = 128) -> Rows:
    """Gradient steps on batches that are in the computer's memory."""
    device, amounts = resolve_device(options.device), train_amounts(options, batch_size)
    name = f"training step, {precision}{', compiled' * compiled}, batch {batch_size:,}: images"
    if compiled and device.type == "cpu":
        return {name: ([], "not measured: train() compiles on CUDA only")}
    frames = gradient_step.smooth_frames(8 * amounts.batch_size, np.random.default_rng(1))
    batches = frames.reshape(8, amounts.batch_size, *frames.shape[1:])
    step = stepper(options, getattr(torch, precision), compiled)
    measure = gradient_step.images_per_second(step, batches, amounts)
    rates = [measure() for _ in range(amounts.rounds)]
    return {name: (rates, f"{statistics.median(rates) * gradient_step_flops(CLASSIC) / 1e12:.2g} TFLOP/s")}


def training_from_disk(options: Options) -> Rows:
    """Gradient steps on frames that are read from files outside of the system's cache."""
    size, gigabytes, batch_size = (8, 0.001, 4) if options.tiny else (10_240, 2.0, 128)
    amounts = loader.Options(epochs=4 if options.tiny else 10, batch_size=batch_size, device=options.device)
    step = stepper(options, torch.bfloat16, compiles_on(resolve_device(options.device)), say=print_now)
    for _ in range(3):  # compile, for batches of this size
        step(gradient_step.smooth_frames(batch_size, np.random.default_rng(1)))
    with tempfile.TemporaryDirectory() as folder:
        loader.write_files(Path(folder), gigabytes)
        waited = loader.waiting(Path(folder), amounts, size, step, cached=False)
    note = f"{waited.share:.1%} of the time waiting for frames, {waited.share_later:.1%} after the first super-batch"
    return {"training step as in train(), batch 128, frames from disk: images": ([waited.images_per_second], note)}


def whole_training(options: Options) -> Rows:
    """`train()`, from files on disk, with its evaluations, pictures, logs and checkpoints."""
    amounts, shares = train_amounts(options), []
    with tempfile.TemporaryDirectory() as folder:
        measure = gradient_step.train_arm(Path(folder), amounts, shares)
        rates = [measure() for _ in range(1 if options.tiny else 2)][-1:]  # the first imports TensorBoard
    note = f"{amounts.train_epochs} epochs of {amounts.train_frames:,} frames, compilation included"
    return {"train(), plain loss: images": (rates, note)}


def encoding(options: Options, *, network: str) -> Rows:
    """Latents of a step of 16 environments that take no time of their own, by hand and by `VecLatentObservation`."""
    envs = 16
    rounds, seconds = (1, 0.0) if options.tiny else (21, 0.05)
    amounts = encode.Options(device=options.device, rounds=rounds, seconds=seconds)
    measured = encode.measure(encode.NETWORKS["small" if options.tiny else network], envs, amounts)
    return {
        f"encode 16 environments, {network}, {way}: frames": (
            [envs / one for one in times],
            f"{1e6 * statistics.median(times):,.0f} µs a step",
        )
        for way, times in measured.items()
        if way == encode.BY_HAND or way.startswith("torch")
    }


@contextlib.contextmanager
def games(options: Options) -> Iterator[tuple[agent_throughput.Options, VecEnv, FrozenEncoder]]:
    """How much to play, the environments with their frames resized, and a random encoder of the quickstart's shape."""
    amounts = agent_throughput.Options(envs=16, steps=8_192, rounds=5, device=options.device, updates=(_PPO,))
    if options.tiny:
        amounts = agent_throughput.Options(
            envs=2, n_steps=32, steps=64, rounds=1, device=options.device, updates=(_PPO,)
        )
    encoder = agent_throughput.make_encoder(amounts)
    with contextlib.closing(make_vec_env(agent_throughput.agent_config(amounts, "pixels", _PPO), encoder)) as venv:
        yield amounts, venv, encoder


def random_policy(options: Options) -> Rows:
    """The same environments without encoder and agent: the most that a PPO run can reach."""
    with games(options) as (amounts, venv, _):
        measure = agent_throughput.random_rate(venv, amounts.steps)
        note = f"{amounts.env}, {amounts.envs} environments"
        return {"random policy, nothing encoded: steps": ([measure() for _ in range(amounts.rounds)], note)}


def ppo_of_agents(options: Options) -> Rows:
    """PPO as `train_agent` builds it: encodes on the GPU, and learns on the CPU."""
    with games(options) as (amounts, venv, encoder):
        config = agent_throughput.agent_config(amounts, "latent", _PPO)
        threads = 1 if encoder.device.type == "cpu" else None
        measure = agent_throughput.agent_rate(config, VecLatentObservation(venv, encoder), amounts.steps, threads)
        return {"PPO of train-agent: steps": ([measure() for _ in range(amounts.rounds)], "learns on the CPU")}


def ppo_on_the_device(options: Options) -> Rows:
    """A short PPO loop in which latents and everything after them stay on the GPU."""
    with games(options) as (amounts, venv, encoder):
        learn = DevicePPO(venv, encoder, amounts.n_steps, *map(int, _PPO.split("/")))
        learn.update()
        per_update, rates = amounts.n_steps * amounts.envs, []
        for _ in range(amounts.rounds):
            began = time.perf_counter()
            updates = max(1, amounts.steps // per_update)
            for _ in range(updates):
                learn.update()
            synchronize(encoder.device)
            rates.append(updates * per_update / (time.perf_counter() - began))
        return {"PPO, latents kept on the device: steps": (rates, "a loop of its own, without Stable-Baselines3")}


class DevicePPO:
    """PPO (Schulman et al. 2017) with GAE, for discrete actions: frames go to the device, and actions come back."""

    def __init__(self, venv: VecEnv, encoder: FrozenEncoder, steps: int, epochs: int, batch_size: int) -> None:
        self.venv, self.encoder, self.steps, self.epochs, self.batch_size = venv, encoder, steps, epochs, batch_size

        def network(outputs: int) -> nn.Module:
            layers = nn.Linear(encoder.latent_dim, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs)
            return nn.Sequential(*layers).to(encoder.device)

        self.actor, self.critic = network(int(venv.action_space.n)), network(1)  # pyright: ignore[reportAttributeAccessIssue]
        parameters = [*self.actor.parameters(), *self.critic.parameters()]
        self.optimizer = make_adam(parameters, 2.5e-4, encoder.device)
        self.latents = encoder.encode(np.ascontiguousarray(venv.reset()), as_tensor=True)

    def update(self) -> None:
        """Play `steps` steps in each environment, then learn from them."""
        rollout = self.collect()
        for _ in range(self.epochs):
            for rows in torch.randperm(len(rollout[0]), device=self.encoder.device).split(self.batch_size):
                self.descend(*(values[rows] for values in rollout))

    @torch.no_grad()
    def collect(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Latents, actions, their log probabilities, advantages and returns, one row per step and environment."""
        device = self.encoder.device
        steps = []
        for _ in range(self.steps):
            scores = self.actor(self.latents).log_softmax(1)
            actions = scores.exp().multinomial(1)
            frames, rewards, dones, _ = self.venv.step(actions[:, 0].cpu().numpy())
            outcome = torch.from_numpy(np.stack([rewards, dones]).astype(np.float32)).to(device)
            steps.append((self.latents, actions, scores.gather(1, actions), self.critic(self.latents)[:, 0], *outcome))
            self.latents = self.encoder.encode(np.ascontiguousarray(frames), as_tensor=True)
        latents, actions, scores, values, rewards, dones = map(torch.stack, zip(*steps, strict=True))
        advantages, later, next_values = torch.zeros_like(rewards), 0.0, self.critic(self.latents)[:, 0]
        for i in reversed(range(self.steps)):
            surprise = rewards[i] + 0.99 * (1 - dones[i]) * next_values - values[i]
            advantages[i] = later = surprise + 0.99 * 0.95 * (1 - dones[i]) * later
            next_values = values[i]
        rollout = latents, actions, scores, advantages.unsqueeze(2), (advantages + values).unsqueeze(2)
        latents, actions, scores, advantages, returns = (values.flatten(0, 1) for values in rollout)
        return latents, actions, scores, advantages, returns

    def descend(self, latents: Tensor, actions: Tensor, before: Tensor, advantages: Tensor, returns: Tensor) -> None:
        """One gradient step on a batch of a rollout."""
        scores = self.actor(latents).log_softmax(1)
        ratio = (scores.gather(1, actions) - before).exp()
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        policy = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
        entropy = -(scores.exp() * scores).sum(1).mean()
        self.optimizer.zero_grad()
        (policy + 0.5 * F.mse_loss(self.critic(latents), returns) - 0.01 * entropy).backward()
        nn.utils.clip_grad_norm_([*self.actor.parameters(), *self.critic.parameters()], 0.5)
        self.optimizer.step()


#: What is measured, in this order.
MEASUREMENTS: dict[str, Callable[[Options], Rows]] = {
    "training step, float32": partial(training_step, precision="float32"),
    "training step, bfloat16": partial(training_step, precision="bfloat16"),
    "training step, compiled": partial(training_step, precision="bfloat16", compiled=True),
    "training step, compiled, large batch": partial(
        training_step, precision="bfloat16", compiled=True, batch_size=1_024
    ),
    "training, frames from disk": training_from_disk,
    "train()": whole_training,
    "encode, base": partial(encoding, network="base"),
    "encode, dense": partial(encoding, network="dense"),
    "random policy": random_policy,
    "PPO of train-agent": ppo_of_agents,
    "PPO on the device": ppo_on_the_device,
}


def serve(measurements: Mapping[str, Callable[[Options], Rows]], options: Options, pipe: Connection) -> None:
    """Measure one after the other, and send the rows of each, or its error in one line."""
    for measure in measurements.values():
        try:
            pipe.send(measure(options))
        except Exception as error:  # whatever a compiler, a driver or a game raises is the result
            lines = str(error).strip().splitlines()
            pipe.send(f"{type(error).__name__}: {lines[0] if lines else 'no message'}")


def measure_all(
    measurements: Mapping[str, Callable[[Options], Rows]], options: Options, row_s: float, all_s: float
) -> Iterator[tuple[str, Rows | str]]:
    """The rows of each measurement, or why it failed.

    They run in another process. If it dies, or a measurement takes too long, the next ones get a new process.

    Args:
        measurements: What to measure, by name.
        options: Of the benchmark.
        row_s: Most seconds of a measurement.
        all_s: Most seconds of all of them together.
    """
    context = multiprocessing.get_context("spawn")
    left, ends = dict(measurements), time.monotonic() + all_s
    while left:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=serve, args=(left, options, theirs))
        process.start()
        theirs.close()  # so that a process that dies is an EOFError here
        works = True
        while left and works:
            name, limit = next(iter(left)), max(0.0, min(row_s, ends - time.monotonic()))
            del left[name]
            try:
                works = ours.poll(limit)
                yield name, ours.recv() if works else f"not finished after {limit:.0f} s"
            except EOFError:
                works = False
                process.join()
                yield name, f"its process ended with exit code {process.exitcode}"
        if not works:
            process.kill()
        process.join()


def gpu_tests(limit_s: float) -> tuple[bool, str]:
    """Whether the tests that need a GPU pass, and pytest's last line; without a GPU they are skipped."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0", "-q", "tests/test_gpu.py"]
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return False, f"not finished after {limit_s:.0f} s"
    if done.returncode:
        print_now(done.stdout + done.stderr)
    return done.returncode == 0, (done.stdout.strip().splitlines() or ["pytest printed nothing"])[-1]


def main(options: Options) -> None:
    """Test, measure and print; the exit status is 1 if something failed."""
    resolve_device(options.device)
    print_now(machine_line(options.device))
    test_s, row_s, all_s = (3_600,) * 3 if options.tiny else (_TEST_SECONDS, _ROW_SECONDS, _ALL_SECONDS)
    passed, summary = gpu_tests(test_s)
    print_now(f"Tests that need a GPU: {'' if passed else 'FAILED, '}{summary.strip('= ')}\n")
    began, failed, table = time.monotonic(), not passed, []
    for name, rows in measure_all(MEASUREMENTS, options, row_s, all_s):
        print_now(f"{time.monotonic() - began:4.0f} s  {name}{f': FAILED, {rows}' if isinstance(rows, str) else ''}")
        if isinstance(rows, str):
            failed = True
            table.append([name, "failed", "", rows])
            continue
        for row, (rates, note) in rows.items():
            table.append([row, *((f"{statistics.median(rates):,.0f}", spread(rates)) if rates else ("", "")), note])
    print_now(f"\n{markdown_table([options.device, 'per second', 'min - max', 'note'], table)}")
    sys.exit(int(failed))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
