"""`latent-obs quickstart`: frames, CVAE, frozen encoder, PPO on latents, and a page of results."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tyro.conf import OmitArgPrefixes

import agents
import vae_training
from agents.config import AgentConfig
from latent_obs.util.atomic import is_unused, own_folder, write_json
from latent_obs.util.errors import InputError, check_count, require
from latent_obs.util.progress import print_now
from vae_training.recording.config import RecordConfig
from vae_training.training.config import TrainConfig

if TYPE_CHECKING:
    from agents import Evaluation

_TEMPLATE = Path(__file__).parent / "templates" / "quickstart.html.j2"
_HOW_TO_GO_ON = "Go on with (with ./uvw run or uv run in front, if the environment is not active)"
_SIGMAS = 3.0  # standard errors above the random policy from which the agent counts as trained


@dataclass(frozen=True)
class QuickstartConfig:
    """Settings of `latent-obs quickstart`, chosen by experiment so that PPO learns within minutes on two CPU cores."""

    out: Path = Path("runs/quickstart")
    """Folder to make. The same command with the same folder goes on where it stopped."""
    env: str = "VizdoomBasic-v1"
    """A ViZDoom scenario."""
    frames: int = 10_000
    """Frames to record, and to train the CVAE on."""
    vae_epochs: int = 13
    """Epochs of the CVAE, each over all training frames."""
    steps: int = 100_000
    """Environment steps for PPO."""
    episodes: int = 100
    """Episodes of the final evaluation, for agent and random policy each."""
    seed: int = 0
    """Reproduces the frames, the CVAE and the agent's start."""
    device: str = "auto"
    """auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps."""

    def __post_init__(self) -> None:
        for name, least in (("frames", 1), ("vae_epochs", 1), ("steps", 1), ("episodes", 2)):  # 2 for a standard error
            check_count(name, getattr(self, name), least)

    @property
    def recording(self) -> RecordConfig:
        """Settings of stage 1."""
        frames, out = self.frames, self.out / "frames"
        parts = max(1, frames // 8)
        return RecordConfig(self.env, out, frames, frames_per_file=parts, frame_skip=4, seed=self.seed, state=False)

    @property
    def vae(self) -> TrainConfig:
        """Settings of stage 2: a small network, small batches (many steps in little time), a beta that keeps detail."""
        return TrainConfig(
            frames=self.out / "frames",
            out=self.out / "vae",
            widths=(16, 32, 64),
            beta=0.01,
            epochs=self.vae_epochs,
            batch_freeze=1,
            half_beta_cycle=2,
            batch_size=32,
            learning_rate=2e-3,
            seed=self.seed,
            device=self.device,
        )

    @property
    def agent(self) -> AgentConfig:
        """Settings of stage 3."""
        return AgentConfig(
            env=self.env,
            encoder=self.out / "vae" / "encoder",
            out=self.out / "agent",
            frame_skip=4,
            latent_only=True,
            steps=self.steps,
            eval_every=max(1, self.steps // 5),
            seed=self.seed,
            device=self.device,
        )


class QuickstartResult(NamedTuple):
    """What a quickstart leaves: its page, evaluations of agent and random policy, and seconds of each stage."""

    page: Path
    agent: Evaluation
    chance: Evaluation
    seconds: dict[str, float]


def quickstart(config: OmitArgPrefixes[QuickstartConfig]) -> QuickstartResult:
    """Record a 3D game, train a CVAE, freeze its encoder, train PPO on the latents, and write a page of results.

    Takes minutes on two CPU cores. Stopped at any moment, the same command goes on. Every stage is also a public
    function and a verb of its own.

    Raises:
        InputError: The folder holds a quickstart with other settings, or another process works in it.
        MissingExtraError: A package is not installed.
        KeyboardInterrupt: A stage was interrupted; what it had is kept, and the same call goes on from there.
    """
    for module, extra in (("vizdoom", "vizdoom"), ("matplotlib", "plots"), ("av", "video")):
        require(module, extra=extra, purpose="run the quickstart")
    with own_folder(config.out):
        _claim(config)
        return _walk(config)


def _walk(config: QuickstartConfig) -> QuickstartResult:
    """Go through all stages; what is there already is not made again."""
    vae, agent = config.vae, config.agent
    seconds: dict[str, float] = {}

    with _stage(seconds, "Record frames", f"{config.frames:,} frames of {config.env}, random actions"):
        vae_training.record(config.recording, say=lambda text: None if text.startswith("next:") else print_now(text))
        if sum(len(d) for d in vae_training.get_datasets(config.recording.out)) < config.frames:
            raise KeyboardInterrupt  # record() takes Ctrl-C as the end of a recording, and returns

    with _stage(seconds, "Train the CVAE", "learns to describe a frame by 256 numbers, an 8x8 map of 4"):
        if vae_training.train(vae, resume=(vae.out / "config.json").exists(), say=print_now).interrupted:
            raise KeyboardInterrupt

    with _stage(seconds, "Train PPO on the latents", "the encoder is frozen; the agent never sees a pixel"):
        if agents.train_agent(agent, resume=(agent.out / "config.json").exists()).interrupted:
            raise KeyboardInterrupt

    with _stage(seconds, "Evaluate", f"{config.episodes} new episodes each, agent and random policy"):
        trained = agents.evaluate_agent(agent.out, episodes=config.episodes, device=config.device, progress_bar=True)
        chance = agents.evaluate_random(agent, episodes=config.episodes, progress_bar=True)
        video, _ = agents.film(agent.out, device=config.device)

    with _stage(seconds, "Write the page", "pictures, curves and the video in one file"):
        page = _page(config, trained, chance, video, dict(seconds))

    sigmas = trained.sigmas_above(chance)
    more = "" if sigmas > _SIGMAS else f" Try --steps {2 * config.steps}."
    print(f"\nTrained agent:  mean return {trained}\nRandom policy:  mean return {chance}")
    print(f"The agent is {sigmas:.1f} standard errors above chance.{more}")
    print(f"\nSummary: {page}\n{_HOW_TO_GO_ON}:", *_commands(config), sep="\n  ")
    return QuickstartResult(page, trained, chance, seconds)


@contextlib.contextmanager
def _stage(seconds: dict[str, float], name: str, text: str) -> Iterator[None]:
    """Announce a stage, and note its seconds at the end."""
    print_now(f"\n[{len(seconds) + 1}/5] {name}: {text}")
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began
    print(f"      {seconds[name]:.0f} s")


def _claim(config: QuickstartConfig) -> None:
    """Write the settings to the folder, or refuse a folder with other settings or other files."""
    from agents.compare.runs import read_json

    file = config.out / "quickstart.json"
    settings: dict[str, Any] = {name: value for name, value in vars(config).items() if name != "out"}
    if not is_unused(config.out):
        before = read_json(file)
        changed = [name for name in settings if not isinstance(before, dict) or before.get(name) != settings[name]]
        if changed:
            raise InputError(
                f"out: {config.out} is not empty, and holds no quickstart with these settings ({', '.join(changed)}); "
                "choose another --out"
            )
    write_json(file, settings)


def _page(
    config: QuickstartConfig, trained: Evaluation, chance: Evaluation, video: Path, seconds: dict[str, float]
) -> Path:
    """Draw the pictures, and write the page."""
    import numpy as np

    from latent_obs.encoder.folder import read_encoder_folder
    from latent_obs_cli.pages import plot_agent, plot_vae
    from vae_training.report.look import write_html
    from vae_training.training.checkpoint import load_checkpoint
    from vae_training.training.logs import save_picture

    folder, vae = config.out / "pictures", config.vae
    pictures = {name: folder / f"{name}.png" for name in ("reconstructions", "traversal", "vae", "agent")}
    _, held_out = vae_training.split_held_out(vae_training.get_datasets(vae.frames))
    frames = np.array(held_out[0][:: max(1, len(held_out[0]) // 200)])
    model = vae_training.CVAE.from_architecture(read_encoder_folder(vae.out).architecture, vae.beta)
    best, latest = (vae.out / "checkpoints" / f"{name}.safetensors" for name in ("best", "latest"))
    load_checkpoint(best if best.exists() else latest, model)
    save_picture(
        pictures["reconstructions"], vae_training.reconstruction_sheet(model, frames[:: max(1, len(frames) // 9)][:9])
    )
    save_picture(pictures["traversal"], vae_training.traversal_sheet(model, frames[0], sample=frames))
    plot_vae(vae.out, pictures["vae"])
    plot_agent(config.agent.out, pictures["agent"], chance, trained)
    values = {
        "env": config.env,
        "latent_dim": model.latent_dim,
        "trained": trained,
        "chance": chance,
        "results": {f"Time: {name}": f"{time:.0f} s" for name, time in seconds.items()},
        "video": video,
        "pictures": pictures,
        "commands": [f"# {_HOW_TO_GO_ON}", *_commands(config)],
    }
    return write_html(config.out / "summary.html", _TEMPLATE, values)


def _commands(config: QuickstartConfig) -> list[str]:
    """Three commands to go on with."""
    return [
        f"latent-obs evaluate --run {config.agent.out}",
        f"latent-obs train-agent --out {config.agent.out} --resume --steps {2 * config.steps}",
        f"latent-obs train-agent --env {config.env} --frame-skip 4 --encoder {config.vae.out / 'encoder'} "
        f"--observation random-latent --latent-only --out {config.out / 'agent-random-encoder'}",
    ]
