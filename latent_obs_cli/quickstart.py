"""`latent-obs quickstart`: frames, CVAE, frozen encoder, PPO on latents, and a page that shows all of it."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents import AgentConfig, Evaluation, evaluate_agent, evaluate_random, film, train_agent
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.atomic import write_json
from latent_obs.util.errors import InputError, require
from latent_obs_cli.pages import Section, write_page
from latent_obs_cli.plots import overview, plot_agent, plot_vae
from vae_training import (
    CVAE,
    RecordConfig,
    TrainConfig,
    get_datasets,
    reconstruction_sheet,
    record,
    split_held_out,
    train,
    traversal_sheet,
)
from vae_training.training.checkpoint import load_checkpoint
from vae_training.training.logs import save_picture

_HOW_TO_GO_ON = "Go on with (where the environment is not active, with ./uvw run or uv run in front)"
_SIGMAS = 3.0  # standard errors by which the agent must beat chance for the quickstart to call it learnt


@dataclass(frozen=True)
class QuickstartConfig:
    """Settings of `latent-obs quickstart`, chosen by experiment so that PPO learns within minutes on two CPU cores."""

    out: Path = Path("runs/quickstart")
    """Folder to make. Run again with the same folder, it goes on where it stopped."""
    env: str = "VizdoomBasic-v1"
    """A ViZDoom scenario."""
    frames: int = 10_000
    """Frames to record and learn to see from."""
    vae_epochs: int = 13
    """Super-batches of all training frames for the CVAE."""
    steps: int = 100_000
    """Environment steps for PPO."""
    episodes: int = 100
    """Episodes of the final evaluation, of agent and random policy alike."""
    seed: int = 0
    """Reproduces the frames, the CVAE and the agent's start."""
    device: str = "auto"
    """auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps."""

    def __post_init__(self) -> None:
        for name in ("frames", "vae_epochs", "steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.episodes < 2:
            raise InputError(f"episodes must be 2 or more, for a standard error, got {self.episodes}")

    @property
    def recording(self) -> RecordConfig:
        """Settings of stage 1."""
        return RecordConfig(
            env=self.env,
            out=self.out / "frames",
            frames=self.frames,
            frames_per_file=max(1, self.frames // 8),
            frame_skip=4,
            seed=self.seed,
            state=False,
        )

    @property
    def vae(self) -> TrainConfig:
        """Settings of stage 2: a small network, small batches (many steps in little time), and a beta that keeps
        detail.
        """
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
        """Settings of stage 4."""
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


@dataclass(frozen=True)
class QuickstartResult:
    """What a quickstart leaves.

    Attributes:
        page: The one-page summary, HTML.
        agent: Evaluation of the trained agent.
        chance: Evaluation of the random policy.
        seconds: Seconds of each stage of this call.
    """

    page: Path
    agent: Evaluation
    chance: Evaluation
    seconds: dict[str, float]


def quickstart(config: QuickstartConfig | None = None, *, say: Callable[[str], object] = print) -> QuickstartResult:
    """Walk the whole path on a real 3D game; every stage is also a public function and a verb of its own.

    Args:
        config: Settings.
        say: Where messages go.

    Raises:
        InputError: The folder holds a quickstart of other settings.
        MissingExtraError: A package of the path is not installed.
        KeyboardInterrupt: A stage was interrupted; what it had is kept, and the same call goes on from there.
    """
    config = config or QuickstartConfig()
    for module, extra, purpose in (
        ("vizdoom", "vizdoom", "play the game"),
        ("matplotlib", "plots", "draw the learning curve"),
        ("av", "video", "film the agent"),
    ):
        require(module, extra=extra, purpose=purpose)
    _claim(config)
    clock = _Clock(say, stages=5)

    clock.begin("Record frames", f"{config.frames:,} frames of {config.env}, random actions")
    record(config.recording, say=lambda text: None if text.startswith("next:") else say(text))
    if sum(len(d) for d in get_datasets(config.recording.out)) < config.frames:
        raise KeyboardInterrupt  # record() takes Ctrl-C as the end of a recording, and returns

    clock.begin("Train the CVAE", "learns to describe a frame by 256 numbers, an 8x8 map of 4")
    vae = config.vae
    latest = vae.out / "checkpoints" / "latest.safetensors"
    if train(vae, resume=latest.exists(), say=say).interrupted:
        raise KeyboardInterrupt

    clock.begin("Train PPO on the latents", "the encoder is frozen; the agent never sees a pixel")
    agent = config.agent
    if train_agent(agent, resume=(agent.out / "last.zip").exists(), say=say).interrupted:
        raise KeyboardInterrupt

    clock.begin("Evaluate", f"{config.episodes} new episodes each, agent and random policy")
    trained = evaluate_agent(agent.out, episodes=config.episodes, device=config.device)
    chance = evaluate_random(agent, episodes=config.episodes)
    video, _ = film(agent.out, device=config.device)

    clock.begin("Write the page", "pictures, curves and the video in one file")
    page = _page(config, trained, chance, video, clock)
    clock.end()
    sigmas = trained.sigmas_above(chance)
    say(f"\nTrained agent:  mean return {trained}\nRandom policy:  mean return {chance}")
    say(
        f"The agent is {sigmas:.1f} standard errors above chance."
        if sigmas > _SIGMAS
        else f"The agent is only {sigmas:.1f} standard errors above chance. Try --steps {2 * config.steps}."
    )
    say(f"\nSummary: {page}\n{_HOW_TO_GO_ON}:\n" + "\n".join(f"  {c}" for c in _commands(config)))
    return QuickstartResult(page, trained, chance, clock.seconds)


class _Clock:
    """Headings with numbers, and how long each stage took."""

    def __init__(self, say: Callable[[str], object], stages: int) -> None:
        self.seconds: dict[str, float] = {}
        self._say, self._stages = say, stages
        self._name, self._began = "", 0.0

    def begin(self, name: str, text: str) -> None:
        self.end()
        self._name, self._began = name, time.perf_counter()
        self._say(f"\n[{len(self.seconds) + 1}/{self._stages}] {name}: {text}")

    def end(self) -> None:
        if self._name:
            self.seconds[self._name] = time.perf_counter() - self._began
            self._say(f"      {self.seconds[self._name]:.0f} s")
        self._name = ""


def _claim(config: QuickstartConfig) -> None:
    """Note the settings in the folder, or refuse one that was begun with others."""
    file = config.out / "quickstart.json"
    settings: dict[str, Any] = {k: str(v) if isinstance(v, Path) else v for k, v in vars(config).items()}
    del settings["out"]
    if file.exists():
        try:
            before = dict(json.loads(file.read_text()))
        except (ValueError, TypeError) as error:
            raise InputError(f"{file} is damaged ({error}); choose another --out") from None
        if before != settings:
            changed = sorted(k for k in settings if before.get(k) != settings[k])
            raise InputError(
                f"{config.out} holds a quickstart with other settings ({', '.join(changed)}); choose another --out"
            )
    elif config.out.exists() and any(config.out.iterdir()):
        raise InputError(f"{config.out} is not empty and holds no quickstart; choose another --out")
    write_json(file, settings)


def _page(config: QuickstartConfig, trained: Evaluation, chance: Evaluation, video: Path, clock: _Clock) -> Path:
    """Draw the pictures, and write the page."""
    pictures = config.out / "pictures"
    vae = config.vae
    _, held_out = split_held_out(get_datasets(vae.frames))
    frames = np.array(held_out[0][:: max(1, len(held_out[0]) // 200)])
    architecture = FrozenEncoder.load(vae.out, device="cpu").architecture
    assert architecture is not None  # every folder has one
    model = CVAE.from_architecture(architecture, vae.beta)
    checkpoints = vae.out / "checkpoints"
    best = checkpoints / "best.safetensors"
    load_checkpoint(best if best.exists() else checkpoints / "latest.safetensors", model)
    save_picture(pictures / "reconstructions.png", reconstruction_sheet(model, frames[:: max(1, len(frames) // 9)][:9]))
    save_picture(pictures / "traversal.png", traversal_sheet(model, frames[0], sample=frames))
    plot_vae(vae.out, pictures / "vae.png")
    plot_agent(config.agent.out, pictures / "agent.png", chance=chance, final=trained)
    overview([pictures / "reconstructions.png", pictures / "agent.png"], pictures / "overview.png")
    return write_page(
        config.out / "summary.html",
        title="latent-obs quickstart",
        lead=f"{config.env}: an agent that learnt from {vae.latent_dim} numbers a frame and never saw a pixel.",
        results={
            "Trained agent, mean return": str(trained),
            "Random policy, mean return": str(chance),
            "Difference": f"{trained.sigmas_above(chance):.1f} standard errors",
            **{f"Time: {name}": f"{seconds:.0f} s" for name, seconds in clock.seconds.items()},
        },
        sections=[
            Section(
                "The agent at play",
                "Left, the game. Right, the latent vector that the agent acts on, decoded. What is faint there is faint in the "
                "latent too, though a small network may still find it there.",
                video,
            ),
            Section(
                "Learning curve",
                "Return of whole episodes over training. The grey line is the random policy, with its standard error; the "
                "dashed line is the best agent on episodes that neither training nor its selection saw.",
                pictures / "agent.png",
            ),
            Section(
                "Reconstructions",
                "Above, frames of a recording that training never saw. Below, what their mean latents decode to.",
                pictures / "reconstructions.png",
            ),
            Section(
                "Latent traversal",
                "Each row moves one latent over its range and leaves the others: the six that carry most information.",
                pictures / "traversal.png",
            ),
            Section(
                "Losses and the schedule of beta",
                "Beta rises from 0 in cycles (Fu et al. 2019); the KL is squeezed as it does.",
                pictures / "vae.png",
            ),
        ],
        commands=[f"# {_HOW_TO_GO_ON}", *_commands(config)],
    )


def _commands(config: QuickstartConfig) -> list[str]:
    """Three commands to go on with."""
    encoder = config.vae.out / "encoder"
    return [
        f"latent-obs evaluate --run {config.agent.out}",
        f"latent-obs train-agent --out {config.agent.out} --resume --steps {2 * config.steps}",
        f"latent-obs train-agent --env {config.env} --frame-skip 4 --encoder {encoder} --observation random-latent "
        f"--latent-only --out {config.out / 'agent-random-encoder'}",
    ]
