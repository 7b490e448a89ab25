"""`latent-obs watch`: a live window on an agent at play."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro


def watch(words: Sequence[str]) -> None:
    """Parse `latent-obs watch`, and open the window."""
    from agents.evaluation import Evaluation
    from agents.watch import watch_agent

    def run(
        run: Path,
        which: Annotated[str, tyro.conf.arg(metavar="{best,last,STEP}")] = "best",
        speed: float = 1.0,
        seed: int = 3_000_017,
        episodes: int | None = None,
        deterministic: bool | None = None,
        success_return: float | None = None,
        paused: bool = False,
        device: str = "auto",
    ) -> None:
        """Watch a trained agent play, live in a window: the game, what it sees of it, its latent and its action.

        Keys: space pauses, n or the right arrow takes one step, + and - change the speed, r begins another episode, q or Esc
        ends it. Needs a display; without one, latent-obs evaluate writes a video of the same.

        Args:
            run: The folder that train-agent wrote.
            which: best (by the evaluations during training), last, or a kept checkpoint by its step.
            speed: 1 for the game's own speed.
            seed: Seed of the environment.
            episodes: End after so many; without it, it goes on until q.
            deterministic: True for the most likely action, False for a sample; by default as the run's settings say.
            success_return: An episode is a success if its return reaches this, in place of what is known of the task.
            paused: Begin with a pause.
            device: Where to encode: auto, cpu, cuda, cuda:N, mps.
        """
        ended = watch_agent(
            run, which=which, speed=speed, seed=seed, episodes=episodes, deterministic=deterministic, device=device,
            success_return=success_return, paused=paused,
        )  # fmt: skip
        if ended:
            judged = [end.success for end in ended]
            successes = None if all(word is None for word in judged) else tuple(map(bool, judged))
            played = Evaluation(tuple(end.total for end in ended), tuple(end.length for end in ended), successes)
            print(f"{len(ended)} whole episodes: mean return {played}")

    tyro.cli(run, prog="latent-obs watch", args=list(words), config=(tyro.conf.CascadeSubcommandArgs,))
