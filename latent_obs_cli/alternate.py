"""Alternating training: an agent, then its encoder on frames that this agent sees, then the agent again.

A random policy never shows the encoder what a good one sees. So every so many steps the agent stops, plays, and its frames join
those that the CVAE knows; the CVAE is trained on a little, its latents are aligned to the ones that the policy has learnt on
(`latent_obs.align`), and the agent goes on.

    runs/agent/                what train-agent keeps; the encoder in it is exchanged
    └── alternate/
        ├── base.json          the frames and settings that the first encoder was trained with
        ├── frames/            links to these frames, and the recordings of the agent, numbered on
        ├── round_001/
        │   ├── round.json     what is finished, and all numbers
        │   ├── mixed/         links to what the CVAE is trained on here, and to what is held out
        │   ├── vae/           its training run
        │   └── encoder/       the new encoder, aligned: what the agent goes on with
        └── rounds.json        the table that is printed

Whatever is interrupted, the same command goes on with it: a stage counts as done when `round.json` says so, which is written
last, and each stage begun takes up what it left.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import OmitArgPrefixes

from agents.config import AgentConfig
from agents.store import agent_state
from agents.train import train_agent
from latent_obs.atomic import write_json
from latent_obs.errors import InputError
from latent_obs_cli.alternate_round import Round, base_of

_HOW_TO_GO_ON = "Go on with the same command: latent-obs alternate …"


@dataclass(frozen=True)
class AlternateConfig:
    """When to stop the agent for its encoder, and how much to do then.

    Example:
        >>> AlternateConfig(every=20_000, rounds=2).round_due(steps=45_000)
        2
        >>> AlternateConfig(every=20_000, rounds=2).round_due(steps=75_000)  # both have been
        0
    """

    every: int = 50_000
    """Environment steps of the agent between two rounds."""
    rounds: int | None = None
    """None after so many rounds; the agent then trains on with the last encoder. By default they go on to the end."""
    frames: Path | None = None
    """Folder of frames that the encoder was trained on. By default the one that its provenance names."""
    add_frames: int = 10_000
    """Frames of the agent to add in a round; a fifth of them is held out."""
    new_share: float = 0.5
    """Share of the agent's frames, of all rounds, in what the CVAE is trained on; the others are the old ones."""
    vae_epochs: int = 3
    """Super-batches (10,000 frames each) to train the CVAE on in a round."""
    vae_learning_rate: float | None = None
    """At the start of a round; it falls to 0. By default a quarter of what the CVAE was trained with."""
    ridge: float = 1e-3
    """How much the map from new latents to old ones is pressed towards none; larger where it cannot be undone."""
    swap_episodes: int = 20
    """Episodes to play with the old encoder and again with the new one, which tells what the exchange cost. 0: none."""

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("add_frames", 10), ("vae_epochs", 1), ("swap_episodes", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be {least} or more, got {getattr(self, name)}")
        if self.rounds is not None and self.rounds < 1:
            raise InputError(f"rounds must be 1 or more, got {self.rounds}; train-agent alternates with nothing")
        if not 0 < self.new_share <= 1:
            raise InputError(f"new_share must be above 0 and at most 1, got {self.new_share}")

    def round_due(self, steps: int) -> int:
        """Number of the round that is due after so many steps; 0 for none."""
        number = steps // self.every
        return number if self.rounds is None or number <= self.rounds else 0


@dataclass(frozen=True)
class AlternateResult:
    """What alternating training leaves.

    Attributes:
        run: The agent's run folder.
        steps: Environment steps in all.
        rounds: What `rounds.json` has: a dictionary of numbers per round.
    """

    run: Path
    steps: int
    rounds: list[dict[str, Any]]


def alternate(
    agent: AgentConfig, config: AlternateConfig | None = None, *, progress_bar: bool | None = None,
    say: Callable[[str], object] = print,
) -> AlternateResult:  # fmt: skip
    """Train an agent on latents, and its encoder in turns.

    A run of `train-agent` that is there already is taken up; a round is never made up for more than once.

    Args:
        agent: As for `train_agent`.
        config: When to stop for the encoder, and how much to do then.
        progress_bar: Show them; None shows them in a terminal only.
        say: Where messages go.

    Raises:
        InputError: The agent is not on latents of an encoder; the encoder cannot be trained on; its frames are not there.
        KeyboardInterrupt: A stage was interrupted; what it had is kept, and the same call goes on from there.
    """
    config = config or AlternateConfig()
    run, folder = agent.out, agent.out / "alternate"
    base, total = base_of(agent, config.frames, folder), _total_steps(agent)
    while True:
        steps = _steps_of(run)
        due = config.round_due(steps)
        if due and steps < total:
            (folder / f"round_{due:03d}").mkdir(parents=True, exist_ok=True)
            base.save(folder)
            now = Round(folder / f"round_{due:03d}", run, base)
            if not now.is_done:
                _play_round(now, config, agent, steps, progress_bar, say)
                _write_table(folder)
        if steps >= total:
            break
        until = (steps // config.every + 1) * config.every
        more = bool(config.round_due(until)) and until < total
        result = train_agent(
            agent, resume=(run / "config.json").exists(), until=until if more else None, progress_bar=progress_bar,
            say=lambda text: say(_without_advice(text)),
        )  # fmt: skip
        if result.interrupted and not (more and result.steps >= until):
            say(_HOW_TO_GO_ON)
            raise KeyboardInterrupt
        if result.steps <= steps:
            break
    rounds = _write_table(folder)
    if rounds:
        say(table(rounds))
    return AlternateResult(run, _steps_of(run), rounds)


def _play_round(
    now: Round, config: AlternateConfig, agent: AgentConfig, steps: int, bar: bool | None, say: Callable[[str], object]
) -> None:
    say(f"\nRound at step {steps:,}: frames of the agent, and its encoder trained on them ({now.folder})")
    now.begin(steps, add_frames=config.add_frames)
    now.record(agent.device, say)
    now.fine_tune(
        new_share=config.new_share, epochs=config.vae_epochs, learning_rate=config.vae_learning_rate, device=agent.device,
        progress_bar=bar, say=say,
    )  # fmt: skip
    now.align(config.ridge)
    now.judge(config.swap_episodes, agent.device)
    now.swap()
    say(now.told())


def _without_advice(text: str) -> str:
    """What train-agent says, but for how to go on with it: here another command does."""
    return "\n".join(line for line in text.split("\n") if not line.startswith("Go on from step"))


def _total_steps(agent: AgentConfig) -> int:
    """The steps that a run is to have, as train-agent takes them: the saved ones where none are given."""
    if (agent.out / "config.json").exists() and agent.steps == AgentConfig().steps:
        return AgentConfig.load(agent.out).steps
    return agent.steps


def _steps_of(run: Path) -> int:
    """Environment steps of the last agent of a run; 0 where there is none."""
    return int(agent_state(run, "last")["steps"]) if (run / "last.zip").exists() else 0


def _write_table(folder: Path) -> list[dict[str, Any]]:
    """Bring `rounds.json` up to date with the rounds that are finished."""
    files = sorted(folder.glob("round_*/round.json"))
    rounds = [row for file in files if (row := Round.row(json.loads(file.read_text()))) is not None]
    if rounds:
        write_json(folder / "rounds.json", rounds)
    return rounds


def table(rounds: Sequence[dict[str, Any]]) -> str:
    """The rounds as text, a line each.

    Args:
        rounds: From `AlternateResult` or `rounds.json`.

    Example:
        >>> print(table([{"step": 50_176, "frames_added": 10_000, "agent_error": [0.002, 0.0015], "old_error": None,
        ...               "r2_median": [0.99, 0.995], "r2_worst": [0.8, 0.9], "returns": [40.0, 39.0], "swapped": True}]))
            step  frames  error, agent's frames  error, old frames  R² worst, median  return at the exchange
          50,176  10,000     0.00200 -> 0.00150                     0.900, 0.995      40.0 -> 39.0
    """
    lines = ["    step  frames  error, agent's frames  error, old frames  R² worst, median  return at the exchange"]
    for row in rounds:
        old = row["old_error"]
        old_error = "" if old is None else f"{old[0]:.5f} -> {old[1]:.5f}"
        quality = f"{row['r2_worst'][1]:.3f}, {row['r2_median'][1]:.3f}"
        returns = row["returns"]
        exchange = "not measured" if returns is None else f"{returns[0]:.1f} -> {returns[1]:.1f}"
        if not row["swapped"]:
            exchange = "the old encoder was kept: the new one is no better on the agent's frames"
        agent = f"{row['agent_error'][0]:.5f} -> {row['agent_error'][1]:.5f}"
        lines.append(f"{row['step']:8,}  {row['frames_added']:6,}  {agent:>21}  {old_error:>17}  {quality:<16}  {exchange}")
    return "\n".join(lines)


def run_alternate(words: Sequence[str]) -> None:
    """Parse `latent-obs alternate`, and train in turns."""
    import tyro

    def run(agent: OmitArgPrefixes[AgentConfig], config: OmitArgPrefixes[AlternateConfig]) -> None:
        """Train an agent on latents and its encoder in turns: on frames that the agent itself sees.

        Takes all options of train-agent, and those of the rounds. The same command goes on where it was interrupted.

        Args:
            agent: Settings of the agent, as of train-agent.
            config: Settings of the rounds.
        """
        alternate(agent, config)

    tyro.cli(run, prog="latent-obs alternate", args=list(words), config=(tyro.conf.CascadeSubcommandArgs,))
