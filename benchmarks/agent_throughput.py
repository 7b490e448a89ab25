"""Environment steps per second of PPO on latents, of PPO on pixels, and of a random policy in the same environments.

All share one set of worker processes, whose frames are resized to the encoder's size. Each agent is built
as `agents.train_agent` builds it, rewards and latents normalized; the pixel agent (CnnPolicy) gets whichever number of
threads suits it best. Rates include the game, the encoder and the learning; no evaluations.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from agents import AgentConfig, load_encoder, make_vec_env
from agents.envs import with_normalization
from agents.training import new_model as new_agent
from benchmarks.common import CLASSIC, QUICKSTART, interleaved, machine_line, markdown_table, ratio, spread
from latent_obs import FrozenEncoder, VecLatentObservation
from latent_obs.encoder.architecture import Bottleneck
from latent_obs.encoder.fastest import Backend, Precision
from latent_obs.util.device import resolve_device, torch_threads
from latent_obs.util.words import counted


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    env: str = "VizdoomBasic-v1"
    """A registered environment with pixels."""
    precision: Precision = "float32"
    """Of the encoder's layers."""
    backend: Backend = "torch"
    """What encodes."""
    encoder: Path | None = None
    """Encoder folder. By default a random network of the shape below: its speed is the same."""
    network: Bottleneck = "spatial"
    """Without an encoder. spatial: the quickstart's, 16-32-64, latent 256. dense: the classic, 32-64-128-256, latent
    32."""
    updates: tuple[str, ...] = ("10/64", "4/256")
    """Settings of PPO to measure, each as epochs/batch size."""
    pixel_threads: tuple[int, ...] = ()
    """Torch's threads that the pixel agent is tried with. By default 1, 2, and as many as torch takes by itself."""
    envs: int = 8
    """Environments in parallel."""
    n_steps: int = 128
    """Steps in each environment between two updates."""
    frame_skip: int | None = 4
    """Game frames per agent step."""
    steps: int = 2_048
    """Environment steps per measurement, in whole updates (of n_steps x envs)."""
    rounds: int = 7
    """Interleaved repeats."""
    device: str = "cpu"
    """Where to encode, and where the pixel agent learns."""


def agent_config(options: Options, kind: str, update: str) -> AgentConfig:
    """Settings of one agent, as the command line would give them to `train_agent`."""
    epochs, batch = (int(part) for part in update.split("/"))
    observation = "pixels" if kind == "pixels" else "latent"
    return AgentConfig(
        env=options.env,
        encoder=options.encoder,
        observation=observation,
        envs=options.envs,
        n_steps=options.n_steps,
        n_epochs=epochs,
        batch_size=batch,
        frame_skip=options.frame_skip,
        latent_only=True,
        device=options.device,
        backend=options.backend,
        precision=options.precision,
    )


def agent_rate(config: AgentConfig, venv: VecEnv, steps: int, threads: int | None) -> Callable[[], float]:
    """A measurement of one agent in environments shared with others: steps per second, after one update to warm up."""
    model = new_agent(config, with_normalization(config, venv, training=True), resolve_device(config.device).type)
    model.set_logger(Logger(folder=None, output_formats=[]))

    def learn(count: int) -> float:
        with torch_threads(threads):
            began = time.perf_counter()
            model.learn(count)  # starts with a reset, as another agent has been in these environments
            return model.num_timesteps / (time.perf_counter() - began)

    learn(1)
    return lambda: learn(steps)


class _Rollouts(BaseCallback):
    """Adds up the time that rollouts take, without the updates between them."""

    seconds = 0.0
    began = 0.0

    def _on_rollout_start(self) -> None:
        self.began = time.perf_counter()

    def _on_rollout_end(self) -> None:
        self.seconds += time.perf_counter() - self.began

    def _on_step(self) -> bool:
        return True


def collection_rate(config: AgentConfig, venv: VecEnv, steps: int, threads: int | None) -> Callable[[], float]:
    """A measurement of one agent's rollouts alone: steps per second, its updates not counted."""
    samples = config.hyperparameters["n_steps"] * config.envs
    config = dataclasses.replace(config, n_epochs=1, batch_size=samples)
    model = new_agent(config, with_normalization(config, venv, training=True), resolve_device(config.device).type)
    model.set_logger(Logger(folder=None, output_formats=[]))

    def collect() -> float:
        rollouts = _Rollouts()
        with torch_threads(threads):
            model.learn(steps, rollouts)
        return model.num_timesteps / rollouts.seconds

    collect()
    return collect


def free_encoder(encoder: FrozenEncoder, most: int) -> FrozenEncoder:
    """One of the same shape whose latents are drawn beforehand: what is left is Stable-Baselines3's share."""
    assert encoder.architecture is not None
    free = FrozenEncoder.random(encoder.architecture, device=encoder.device)
    drawn = free.encode(np.random.default_rng(0).integers(0, 256, (most, *free.contract.shape), np.uint8))
    free.encode = lambda frames, **_: drawn[: len(frames)].copy()  # pyright: ignore[reportAttributeAccessIssue]
    return free


def random_rate(venv: VecEnv, steps: int) -> Callable[[], float]:
    """A measurement of a random policy: steps per second."""
    rng = np.random.default_rng(0)
    venv.action_space.seed(0)
    pool = np.array([venv.action_space.sample() for _ in range(1_000)])  # drawn beforehand

    def measured() -> float:
        began = time.perf_counter()
        venv.reset()
        ticks = -(-steps // venv.num_envs)
        for _ in range(ticks):
            venv.step(pool[rng.integers(len(pool), size=venv.num_envs)])
        return ticks * venv.num_envs / (time.perf_counter() - began)

    return measured


def make_encoder(options: Options) -> FrozenEncoder:
    """The encoder to measure with."""
    if options.encoder is not None:
        encoder = load_encoder(agent_config(options, "latent", options.updates[0]))
        assert encoder is not None
        return encoder
    return FrozenEncoder.random(
        CLASSIC if options.network == "dense" else QUICKSTART,
        device=options.device,
        backend=options.backend,
        precision=options.precision,
    )


def main(options: Options) -> None:
    """Measure and print."""
    print(machine_line(options.device), flush=True)
    encoder = make_encoder(options)
    first = agent_config(options, "pixels", options.updates[0])
    latent_threads = 1 if resolve_device(options.device).type == "cpu" else None  # as train_agent does
    pixel_threads = options.pixel_threads or sorted({1, 2, torch.get_num_threads()})
    pixels = make_vec_env(first, encoder)
    try:
        latents = VecLatentObservation(pixels, encoder)
        arms: dict[str, Callable[[], float]] = {}
        for update in options.updates:
            arms[f"latents {update}"] = agent_rate(
                agent_config(options, "latent", update), latents, options.steps, latent_threads
            )
            for count in pixel_threads:
                config = agent_config(options, "pixels", update)
                arms[f"pixels {update}, {counted(count, 'thread')}"] = agent_rate(config, pixels, options.steps, count)
        arms["latents, rollouts alone"] = collection_rate(
            agent_config(options, "latent", options.updates[0]), latents, options.steps, latent_threads
        )
        free = VecLatentObservation(pixels, free_encoder(encoder, 2 * options.envs))
        arms["the same, encoding free"] = collection_rate(
            agent_config(options, "latent", options.updates[0]), free, options.steps, latent_threads
        )
        arms["random policy"] = random_rate(pixels, options.steps)
        measured = interleaved(arms, options.rounds)
    finally:
        pixels.close()
    print(f"\n{encoder!r}\n\n{_table(options, measured, pixel_threads)}\n")
    settings: dict[str, Any] = {
        k: v for k, v in dataclasses.asdict(first).items() if k in ("env", "frame_skip", "n_steps")
    }
    print(
        f"Medians of {options.rounds} interleaved rounds of {options.steps:,} steps; ratios are "
        f"medians of the rounds' own. "
        f"{options.envs} environments, {settings}. PPO as epochs/batch size. Threads for latents: "
        f"{latent_threads or 'default'}. Device {options.device}. Targets: latents at least 1.7 times pixels at 10/64; "
        f"their rollouts alone at "
        "least 85% of the random policy."
    )


def _table(options: Options, measured: dict[str, list[float]], pixel_threads: tuple[int, ...] | list[int]) -> str:
    chance = measured["random policy"]
    rows = []
    for update in options.updates:
        tried = [f"pixels {update}, {counted(count, 'thread')}" for count in pixel_threads]
        best = max(tried, key=lambda name: statistics.median(measured[name]))
        for name in (f"latents {update}", *tried):
            over = f"{ratio(measured[name], measured[best]):.2f}"
            rows.append(
                [
                    f"{name} (its best)" if name == best and len(tried) > 1 else name,
                    *_rates(measured[name]),
                    over,
                    f"{ratio(measured[name], chance):.0%}",
                ]
            )
    for name in ("latents, rollouts alone", "the same, encoding free"):
        rows.append([name, *_rates(measured[name]), "", f"{ratio(measured[name], chance):.0%}"])
    rows.append(["random policy", *_rates(chance), "", "100%"])
    return markdown_table(["agent", "steps/s", "min - max", "ratio to pixels' best", "of random policy"], rows)


def _rates(values: list[float]) -> tuple[str, str]:
    return f"{statistics.median(values):,.0f}", spread(values)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
