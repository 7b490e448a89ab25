"""`latent-obs quickstart`: frames, CVAE, frozen encoder, PPO on latents, and a page of results."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro
from tyro.conf import OmitArgPrefixes

import agents
import vae_training
from agents.config import AgentConfig
from latent_obs.util.atomic import own_folder
from latent_obs.util.errors import check_count, require
from latent_obs.util.progress import print_now
from latent_obs_cli.plan import (
    AGENT,
    EVAL_EPISODES,
    EVALUATE,
    PAGE,
    RECORD,
    TRAIN,
    Sizes,
    check_minutes,
    choose,
    stage_seconds,
    vae_settings,
)
from vae_training.recording.config import RecordConfig
from vae_training.training.config import TrainConfig

if TYPE_CHECKING:  # --help needs none of what these import
    from agents import Evaluation
    from latent_obs_cli.stages import Walk

_TEMPLATE = Path(__file__).parent / "templates" / "quickstart.html.j2"
_HOW_TO_GO_ON = "Go on with (with ./uvw run or uv run in front, if the environment is not active)"
_SIGMAS = 3.0  # standard errors above the random policy from which the agent counts as trained
_BASIC_RETURN = 79.0  # of VizdoomBasic, whose best agents have 83: two evaluations in a row above it end the training


@dataclass(frozen=True)
class QuickstartConfig:
    """Settings of `latent-obs quickstart`."""

    out: Path = Path("runs/quickstart")
    """Folder to make. The same command with the same folder continues where it stopped."""
    env: str = "VizdoomBasic-v1"
    """A ViZDoom scenario."""
    minutes: float = 4.0
    """Time for everything. What does not fit into it is made smaller: frames, epochs of the CVAE, steps of PPO and
    episodes of the last evaluation."""
    episodes: int = 100
    """Episodes of the last evaluation, at most, for agent and random policy each."""
    seed: int = 0
    """Reproduces the frames, the CVAE and the agent's start, for the same plan."""
    device: str = "auto"
    """auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps."""

    def __post_init__(self) -> None:
        check_minutes(self.minutes)
        check_count("episodes", self.episodes, 2)  # for a standard error
        check_count("seed", self.seed, 0, 2**32 - 1)

    @property
    def knots(self) -> tuple[Sizes, ...]:
        """Sizes from the least to the full ones, chosen by experiment with VizdoomBasic-v1.

        With the first there is something to look at; with the third PPO learns; with the fourth the reconstructions
        show what an agent needs.
        """
        all_of_them = self.episodes
        return (
            Sizes(1_000, 5, 2_000, min(10, all_of_them)),
            Sizes(3_000, 5, 10_000, min(50, all_of_them)),
            Sizes(4_000, 5, 25_000, all_of_them),
            Sizes(8_000, 5, 30_000, all_of_them),
            Sizes(10_000, 13, 100_000, all_of_them),
        )

    def recording(self, sizes: Sizes) -> RecordConfig:
        """Settings of stage 1."""
        frames, out = sizes.frames, self.out / "frames"
        parts = max(1, frames // 8)
        return RecordConfig(self.env, out, frames, frames_per_file=parts, frame_skip=4, seed=self.seed, state=False)

    def vae(self, sizes: Sizes) -> TrainConfig:
        """Settings of stage 2."""
        settings = vae_settings(self.out / "frames", self.out / "vae", sizes.epochs, self.seed, self.device)
        return replace(settings, augment=0.0)  # its pictures show the small monster then, and its agents are as good

    def agent(self, walk: Walk) -> AgentConfig:
        """Settings of stage 3."""
        every = 5_000 if walk.speeds is None else walk.speeds.evaluate_every
        return AgentConfig(
            env=self.env,
            encoder=self.out / "vae" / "encoder",
            out=self.out / "agent",
            frame_skip=4,
            latent_only=True,
            steps=walk.sizes.steps,
            eval_every=every,
            eval_episodes=EVAL_EPISODES,
            seed=self.seed,
            device=self.device,
        )


class QuickstartResult(NamedTuple):
    """What a quickstart leaves: its page, evaluations of agent and random policy, and seconds of each stage."""

    page: Path
    agent: Evaluation
    chance: Evaluation
    seconds: dict[str, float]


def quickstart(
    config: OmitArgPrefixes[QuickstartConfig],
    sizes: Annotated[Sizes | None, tyro.conf.Suppress, tyro.conf.Fixed] = None,
) -> QuickstartResult:
    """Record a 3D game, train a CVAE, freeze its encoder, train PPO on the latents, and write a page of results.

    Measures the machine in the first seconds, and plans the stages for the time that there is. You can stop it at any
    moment; the same command continues. Every stage is also a public function and a command of its own.

    Raises:
        InputError: The folder holds a quickstart with other settings, another process works in it, or the minutes are
            too few for this machine.
        MissingExtraError: A package is not installed.
        KeyboardInterrupt: A stage was interrupted; what it had is kept, and the same call goes on from there.
    """
    for module, extra in (("vizdoom", "vizdoom"), ("matplotlib", "plots"), ("av", "video")):
        require(module, extra=extra, purpose="run the quickstart")
    from latent_obs_cli.stages import begin

    with own_folder(config.out):
        walk = begin(
            config.out / "quickstart.json",
            {name: value for name, value in vars(config).items() if name != "out"},
            recording=config.recording(config.knots[0]),
            vae=config.vae(config.knots[0]),
            knots=config.knots,
            sizes=sizes,
        )
        with walk:
            return _walk(config, walk)


def _walk(config: QuickstartConfig, walk: Walk) -> QuickstartResult:
    """Go through all stages; what is there already is not made again."""
    from latent_obs_cli.stages import record_frames, train_cvae

    page = _Page(config, walk)

    record_frames(walk, config.recording(walk.sizes), page.pictures / "frames.png")
    print_now(f"The page, so far: {page.write()}")

    train_cvae(walk, config.vae(walk.sizes))
    page.draw_vae()
    page.write()

    begins = not (config.out / "agent" / "config.json").exists()
    if begins and walk.speeds is not None:
        _plan_agent_again(config, walk)
    agent = config.agent(walk)
    stop_at = _stop_at(agent)
    ends = "" if stop_at is None else f", until two evaluations in a row reach a mean return of {stop_at:g}"
    with walk.stage(AGENT, f"{agent.steps:,} steps at most{ends}; the encoder is frozen, the agent sees no pixel"):
        if agents.train_agent(agent, resume=not begins, stop_at_return=stop_at).interrupted:
            raise KeyboardInterrupt
    page.write()

    episodes = walk.sizes.episodes
    with walk.stage(EVALUATE, f"{episodes} new episodes each, agent and random policy, and a video"):
        trained = agents.evaluate_agent(agent.out, episodes=episodes, device=config.device, progress_bar=True)
        chance = agents.evaluate_random(agent, episodes=episodes, progress_bar=True)
        video, _ = agents.film(agent.out, device=config.device)

    with walk.stage(PAGE, "pictures, curves and the video in one file"):
        file = page.write(trained, chance, video)

    sigmas = trained.sigmas_above(chance)
    more = "" if sigmas > _SIGMAS else f" Try --minutes {2 * config.minutes:g} and another --out."
    print(f"\nTrained agent:  mean return {trained}\nRandom policy:  mean return {chance}")
    print(f"The agent is {sigmas:.1f} standard errors above chance.{more}")
    print(f"\nSummary: {file}\n{_HOW_TO_GO_ON}:", *page.commands, sep="\n  ")
    return QuickstartResult(file, trained, chance, dict(walk.seconds))


def _plan_agent_again(config: QuickstartConfig, walk: Walk) -> None:
    """Give the agent more steps if the stages before it took less time than estimated; never fewer than planned."""
    assert walk.speeds is not None
    speeds, made, done = walk.speeds, walk.sizes, sum(walk.seconds.values())
    # Of the stages that are over: this one may have been interrupted before there was an agent.
    pace = (walk.seconds[RECORD] + walk.seconds[TRAIN]) / (walk.estimates[RECORD] + walk.estimates[TRAIN])

    def seconds(sizes: Sizes) -> dict[str, float]:
        estimates = stage_seconds(speeds, sizes)
        return {name: pace * estimates[name] for name in (AGENT, EVALUATE, PAGE)}

    more = (replace(knot, frames=made.frames, epochs=made.epochs) for knot in config.knots)
    knots = [made, *(knot for knot in more if knot.steps >= made.steps and knot.episodes >= made.episodes)]
    left = 60 * config.minutes - speeds.measuring - done
    sizes = choose(left, knots, lambda sizes: sum(seconds(sizes).values())) or made
    if sizes != made:
        print_now(f"\nThere is time for more: {sizes.steps:,} steps, {sizes.episodes} episodes.")
    walk.plan_again(sizes, seconds(sizes))


def _stop_at(agent: AgentConfig) -> float | None:
    """The mean return at which the agent is good enough, where one is known."""
    if agent.env.startswith("VizdoomBasic-"):
        return _BASIC_RETURN
    rule = agents.success_rule(agent)
    return None if rule is None else rule.least_return


class _Page:
    """summary.html, written anew after each stage with everything that there is."""

    def __init__(self, config: QuickstartConfig, walk: Walk) -> None:
        self.config, self.walk = config, walk
        self.pictures = config.out / "pictures"
        self.latent_dim: int | None = None

    def write(
        self, trained: Evaluation | None = None, chance: Evaluation | None = None, video: Path | None = None
    ) -> Path:
        """Draw the pictures that can be drawn, and write the page."""
        from latent_obs_cli.pages import plot_agent
        from latent_obs_cli.stages import left_out_of
        from vae_training.report.look import write_html

        config = self.config
        if trained is not None and chance is not None:
            plot_agent(config.out / "agent", self.pictures / "agent.png", chance, trained)
        names = ("frames", "reconstructions", "traversal", "vae", "agent")
        files = {name: self.pictures / f"{name}.png" for name in names}
        values: dict[str, Any] = {
            "env": config.env,
            "latent_dim": self.latent_dim,
            "left_out": left_out_of(self.walk.sizes, config.knots[-1]),
            "trained": trained,
            "chance": chance,
            "results": {name: f"{seconds:.0f} s" for name, seconds in self.walk.seconds.items()},
            "video": video,
            "pictures": {name: file for name, file in files.items() if file.exists()},
            "commands": [f"# {_HOW_TO_GO_ON}", *self.commands] if video is not None else [],
        }
        return write_html(config.out / "summary.html", _TEMPLATE, values)

    def draw_vae(self) -> None:
        """Draw what the CVAE does, when its training is over."""
        import numpy as np

        from latent_obs.encoder.folder import read_encoder_folder
        from latent_obs_cli.pages import plot_vae
        from vae_training.training.checkpoint import load_checkpoint
        from vae_training.training.logs import save_picture

        vae = self.config.vae(self.walk.sizes)
        architecture = read_encoder_folder(vae.out).architecture
        self.latent_dim = architecture.latent_dim
        _, held_out = vae_training.split_held_out(vae_training.get_datasets(vae.frames))
        frames = np.array(held_out[0][:: max(1, len(held_out[0]) // 200)])
        model = vae_training.CVAE.from_architecture(architecture, vae.beta)
        best, latest = (vae.out / "checkpoints" / f"{name}.safetensors" for name in ("best", "latest"))
        load_checkpoint(best if best.exists() else latest, model)
        save_picture(self.pictures / "reconstructions.png", vae_training.reconstruction_sheet(model, frames))
        save_picture(self.pictures / "traversal.png", vae_training.traversal_sheet(model, frames[0], sample=frames))
        plot_vae(vae.out, self.pictures / "vae.png")

    @property
    def commands(self) -> list[str]:
        """Three commands to go on with."""
        config, steps = self.config, 2 * self.walk.sizes.steps
        agent, encoder, other = (
            shlex.quote(str(config.out / name)) for name in ("agent", "vae/encoder", "agent-random-encoder")
        )
        return [
            f"latent-obs evaluate --run {agent}",
            f"latent-obs train-agent --out {agent} --resume --steps {steps}",
            f"latent-obs train-agent --env {config.env} --frame-skip 4 --encoder {encoder} "
            f"--observation random-latent --latent-only --out {other}",
        ]
