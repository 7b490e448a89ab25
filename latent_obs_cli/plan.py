"""How much work fits into the minutes that a user gives: the speed of the machine goes in, the plan comes out."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from latent_obs.util.device import cores
from latent_obs.util.errors import InputError
from vae_training.training.config import TrainConfig

MOST_MINUTES = 10_000.0
BATCH = 32  # frames of a gradient step
EVAL_EPISODES = 20  # of an evaluation during the agent's training
_EPOCH_FRAMES = 10_000  # at most
_CYCLE = 4  # epochs: two in which beta rises, and two in which it stays
_POINTS = 400  # between the least and the full plan

RECORD, TRAIN, REPORT = "Record frames", "Train the CVAE", "Write the report"
AGENT, EVALUATE, PAGE = "Train PPO on the latents", "Evaluate", "Write the page"


@dataclass(frozen=True)
class Sizes:
    """How much of everything is done."""

    frames: int
    """To record."""
    epochs: int
    """Of the CVAE: 1 and whole cycles of beta."""
    steps: int = 0
    """Of the agent in its environment."""
    episodes: int = 0
    """Of the last evaluation, for the agent and for a random policy each."""

    def __str__(self) -> str:
        parts = [f"{self.frames:,} frames", f"{self.epochs} epochs"]
        parts += [f"{self.steps:,} steps", f"{self.episodes} episodes"] if self.steps else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Speeds:
    """Measured times of this machine, in seconds."""

    start: float
    """To make and reset an environment."""
    frame: float
    """To record a frame."""
    episode: float
    """Not a time: the steps of an episode with random actions."""
    gradient_step: float
    """A step of the CVAE's training."""
    threads: int | None = None
    """Not a time: with how many threads of torch that step was fastest; None for torch's own choice."""
    measuring: float = 0.0
    """To measure all this."""

    @property
    def agent_step(self) -> float:
        """A step of PPO in eight environments, its share of the updates included.

        It is not measured, because that would take longer than it saves. The ratio is calibrated on a machine with two
        cores, where such a step took as long as a frame and 2.8% of a gradient step of the CVAE.
        """
        return self.frame + 0.028 * self.gradient_step

    @property
    def evaluate_every(self) -> int:
        """Steps of the agent between evaluations, which then take at most a fifth of the time."""
        return max(5_000, round(2.5 * EVAL_EPISODES * self.episode))


def stage_seconds(speeds: Speeds, sizes: Sizes, *, recorded: int | None = None) -> dict[str, float]:
    """Estimate the time of each stage, from measured times and from ratios that are calibrated on two cores.

    Args:
        speeds: The measured times.
        sizes: What is to be done.
        recorded: Frames that are there already, so that none are recorded.
    """

    def vector(envs: int) -> float:  # a worker process imports for half a second; the parent waits for all of them
        return envs * (0.5 + speeds.start) / min(cores(), envs)

    frame, step = speeds.frame, speeds.gradient_step
    frames = sizes.frames if recorded is None else recorded
    epoch, held_out = min(_EPOCH_FRAMES, 7 / 8 * frames) / BATCH, min(1_024, frames / 8) / BATCH
    seconds = {RECORD: speeds.start + frames * frame} if recorded is None else {}
    # An epoch ends with an evaluation, pictures and a checkpoint; at the end all latents are measured.
    seconds[TRAIN] = step * (sizes.epochs * (epoch + held_out / 2 + 8) + frames / BATCH / 4 + 40)
    if not sizes.steps:
        return {**seconds, REPORT: 800 * step}
    # In an evaluation nothing is learnt, so its steps take half the time; episodes of a good agent may be shorter.
    evaluations = 0.5 * EVAL_EPISODES * speeds.episode / speeds.evaluate_every
    seconds[AGENT] = vector(12) + sizes.steps * speeds.agent_step * (1 + evaluations)
    seconds[EVALUATE] = 2 * vector(4) + 0.5 * sizes.episodes * speeds.episode * speeds.agent_step + 60 * step
    return {**seconds, PAGE: 60 * step}


def between(knots: Sequence[Sizes], place: float) -> Sizes:
    """The sizes at a place from 0 (the first knot) to 1 (the last); none of them falls from one place to a later one.

    Example:
        >>> between([Sizes(1_000, 5), Sizes(2_000, 9)], 0.5)
        Sizes(frames=1496, epochs=5, steps=0, episodes=0)
    """
    whole, part = divmod(place * (len(knots) - 1), 1)
    low, high = knots[int(whole)], knots[min(int(whole) + 1, len(knots) - 1)]
    values = {name: int(value + part * (getattr(high, name) - value)) for name, value in vars(low).items()}
    frames = values["frames"] // 8 * 8  # eight recordings of the same length
    epochs = 1 + (values["epochs"] - 1) // _CYCLE * _CYCLE
    return replace(low, **{**values, "frames": max(low.frames, frames), "epochs": max(low.epochs, epochs)})


def choose(seconds: float, knots: Sequence[Sizes], cost: Callable[[Sizes], float]) -> Sizes | None:
    """The largest sizes between the knots, from the least to the full ones, whose cost is at most `seconds`.

    Args:
        seconds: The time that there is.
        knots: Two or more sizes, each at least as large as the one before.
        cost: Seconds that sizes take; larger sizes take no less.

    Returns:
        The sizes, or None if the least ones take longer.
    """
    for low, high in pairwise(knots):
        if any(getattr(low, name) > getattr(high, name) for name in vars(low)):
            raise ValueError(f"knots must not fall, got {low} before {high}")
    fitting = bisect_right(range(_POINTS + 1), seconds, key=lambda point: cost(between(knots, point / _POINTS)))
    return between(knots, (fitting - 1) / _POINTS) if fitting else None


def check_minutes(minutes: float) -> None:
    """An `InputError` if it is no number of minutes."""
    if not 0 < minutes <= MOST_MINUTES:
        raise InputError(f"minutes must be a number above 0 and at most {MOST_MINUTES:,.0f}, got {minutes!r}")


def vae_settings(frames: Path, out: Path, epochs: int, seed: int, device: str) -> TrainConfig:
    """A small network, and small batches: many steps in little time."""
    return TrainConfig(
        frames=frames,
        out=out,
        widths=(32, 64),
        strides=(4, 2),
        epochs=epochs,
        batch_freeze=1,
        half_beta_cycle=2,
        batch_size=BATCH,
        learning_rate=2e-3,
        seed=seed,
        device=device,
    )
