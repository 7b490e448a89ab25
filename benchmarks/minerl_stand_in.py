"""What agents learn from pixels and latents through MineRL's real client, in a stand-in game (not Minecraft).

The stand-in (`tests/support/minerl_server`) speaks Malmo's protocol and shows a flat toy world: turn to the one trunk
in sight, and chop. What is learnt there, and how fast, says nothing of Minecraft; it says that pictures, actions,
rewards and ends of MineRL's tasks reach each kind of agent as they should, and what each kind costs on top of the
client.

Frames of a random policy come first, then an encoder and principal components of them, then an agent for each kind
and seed, one after the other. With `--serve N` it only starts N games on ports that follow one another, and waits,
for `latent-obs` itself: `latent-obs train-agent --env MineRLTreechop-v0 --env-kwargs port PORT`, with two games for
each environment, as evaluations have their own; `compare` must make one run at a time, as a game plays with one agent
at a time.
"""

import contextlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from agents import AgentConfig, evaluate_agent, evaluate_random, read_evaluations, train_agent
from agents.config import Observation
from benchmarks.common import machine_line, markdown_table
from latent_obs.encoder.folder import read_encoder_folder
from latent_obs.encoder.pca import PCA
from latent_obs.minerl.installation import minerl_version
from latent_obs.util.errors import InputError
from vae_training import RecordConfig, TrainConfig, record, train

ROOT = Path(__file__).resolve().parents[1]
_ATTEMPTS = 20


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    env: str = "MineRLTreechop-v0"
    """MineRL's task."""
    kinds: tuple[Observation, ...] = ("pixels", "latent", "random-latent", "pca-latent")
    """What the agents see."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run each, for each kind."""
    steps: int = 6_000
    """Environment steps of each run."""
    envs: int = 2
    """Games in parallel. As many again are there to evaluate in."""
    frames: int = 1_500
    """Frames of a random policy, for the encoder and the principal components."""
    latent_dim: int = 64
    """Values in a latent, of each kind."""
    episodes: int = 10
    """Episodes that each agent, and the random policy, is judged on."""
    easy: bool = True
    """The world with one trunk, in reach and sight, and 60 steps an episode; else the wide one, and the task's time
    limit."""
    out: Path | None = None
    """Folder for frames, encoder and runs; None: a temporary one, removed at the end."""
    serve: int = 0
    """Only start so many games, print the port of the first, and wait for Ctrl-C."""


@contextlib.contextmanager
def stand_ins(count: int, *, easy: bool = True) -> Iterator[int]:
    """Stand-in games, each in a process of its own, on ports that follow one another; gives the first port.

    Args:
        count: How many.
        easy: The world that an agent learns within minutes.

    Raises:
        InputError: There are no ports for them.
    """
    for _ in range(_ATTEMPTS):
        base = _free_ports(count)
        with contextlib.ExitStack() as stack:
            if base is not None and all(stack.enter_context(_stand_in(base + i, easy)) for i in range(count)):
                yield base
                return
    raise InputError(f"found no {count} free ports that follow one another, after {_ATTEMPTS} attempts")


def _free_ports(count: int) -> int | None:
    """The first of so many ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        try:
            for i in range(1, count):
                stack.enter_context(socket.create_server(("127.0.0.1", base + i)))
        except (OSError, OverflowError):
            return None
        return base


@contextlib.contextmanager
def _stand_in(port: int, easy: bool) -> Iterator[bool]:
    """One game; gives whether it listens."""
    command = [sys.executable, "-m", "tests.support.minerl_server", "--port", str(port), *(["--easy"] if easy else [])]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield any("DORMANT" in line for line in iter(process.stdout.readline, ""))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@dataclass(frozen=True)
class Prepared:
    """What the agents see through, and what it took.

    Attributes:
        encoder: Encoder folder.
        pca: File of principal components.
        explained: Share of the frames' variance in them, from 0 to 1.
        components: How many there are.
        seconds: Of recording, of training the encoder, and of fitting the components.
    """

    encoder: Path
    pca: Path
    explained: float
    components: int
    seconds: tuple[float, float, float]


def prepare(options: Options, out: Path, port: int) -> Prepared:
    """Record frames by a random policy; train an encoder, and fit principal components, on them."""
    began = [time.perf_counter()]
    record(
        RecordConfig(env=options.env, out=out / "frames", frames=options.frames, env_kwargs={"port": port}), say=_quiet
    )
    began.append(time.perf_counter())
    train(
        TrainConfig(
            frames=out / "frames",
            out=out / "vae",
            bottleneck="spatial",
            latent_dim=options.latent_dim,
            widths=(8, 16, 16),
            strides=(2, 2, 2),
            super_batch=options.frames * 2 // 3,
            epochs=4,
            batch_freeze=1,
            half_beta_cycle=1,
            beta=0.02,
            device="cpu",
        ),
        progress_bar=False,
        say=_quiet,
    )
    began.append(time.perf_counter())
    encoder = out / "vae" / "encoder"
    pca = PCA.fit(out / "frames", options.latent_dim, contract=read_encoder_folder(encoder).contract)
    file = pca.save(out / "pca.safetensors")
    began.append(time.perf_counter())
    recording, training, fitting = np.diff(began).tolist()
    return Prepared(encoder, file, pca.explained_variance, pca.latent_dim, (recording, training, fitting))


def config_of(options: Options, out: Path, port: int, prepared: Prepared, kind: Observation, seed: int) -> AgentConfig:
    """Settings of one run: train_agent's own, with shorter rollouts, as the runs are short."""
    return AgentConfig(
        env=options.env,
        env_kwargs={"port": port},
        out=out / f"{kind}_seed{seed}",
        observation=kind,
        seed=seed,
        encoder=prepared.encoder,
        pca=prepared.pca if kind == "pca-latent" else None,
        steps=options.steps,
        envs=options.envs,
        n_steps=64,
        batch_size=64,
        eval_every=max(1, options.steps // 3),
        eval_episodes=options.episodes,
        device="cpu",
    )


def run_all(options: Options, out: Path, port: int) -> str:
    """Prepare, train and judge; the table as Markdown."""
    prepared = prepare(options, out, port)
    said = ", ".join(
        f"{name} {s:.0f} s" for name, s in zip(("frames", "encoder", "PCA"), prepared.seconds, strict=True)
    )
    print(
        f"Prepared ({said}). {prepared.components} principal components hold {prepared.explained:.0%} of the variance."
    )
    returns: dict[str, list[float]] = {kind: [] for kind in options.kinds}
    best: dict[str, list[float]] = {kind: [] for kind in options.kinds}
    rates: dict[str, list[float]] = {kind: [] for kind in options.kinds}
    config = config_of(options, out, port, prepared, options.kinds[0], 0)
    chance = evaluate_random(config, episodes=5 * options.episodes)
    for seed in options.seeds:
        for kind in options.kinds:
            config = config_of(options, out, port, prepared, kind, seed)
            result = train_agent(config, progress_bar=False, say=_quiet)
            final = evaluate_agent(config.out, episodes=options.episodes, which="last", device="cpu")
            returns[kind].append(final.mean)
            best[kind].append(max(row["mean_return"] for row in read_evaluations(config.out)))
            rates[kind].append(result.steps_per_second)
            print(f"  {kind}, seed {seed}: {final}, {rates[kind][-1]:.0f} steps/s", flush=True)
    rows = [["random policy", f"{chance.mean:.1f}", "", "", ""]]
    for kind in options.kinds:
        rows.append(
            [
                kind,
                f"{np.mean(returns[kind]):.1f}",
                " ".join(f"{value:.1f}" for value in returns[kind]),
                " ".join(f"{value:.1f}" for value in best[kind]),
                f"{np.median(rates[kind]):.0f}",
            ]
        )
    seeds = ", ".join(map(str, options.seeds))
    return markdown_table(
        [f"{options.env}, stand-in game", "mean return", f"of seeds {seeds}", "best evaluation", "steps/s"], rows
    )


def serve(count: int, easy: bool) -> None:
    """Start games, and wait until somebody stops it."""
    with stand_ins(count, easy=easy) as port:
        print(
            f"{count} stand-in games (not Minecraft) on ports {port} to {port + count - 1}: --env-kwargs port {port}",
            flush=True,
        )
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


def _quiet(_: str) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it, and print a table."""
    options = tyro.cli(Options, description=__doc__, args=arguments)
    if options.serve:
        return serve(options.serve, options.easy)
    if minerl_version() is None:
        raise InputError("MineRL's client is not installed: uv sync --extra minerl, on Python 3.11 (docs/minerl.md)")
    print(machine_line())
    print("The game is a stand-in that speaks Malmo's protocol, and no real Minecraft.", flush=True)
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        out = options.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = stack.enter_context(stand_ins(2 * options.envs, easy=options.easy))
        table = run_all(options, out, port)
    print(
        f"\n{options.steps:,} steps a run, {options.envs} games, last agent on {options.episodes} new episodes, "
        f"{(time.perf_counter() - began) / 60:.1f} minutes in all.\n"
    )
    print(table)


if __name__ == "__main__":
    main()
