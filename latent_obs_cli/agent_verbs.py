"""Verbs of agents: train, evaluate, watch. Each calls public functions of `agents`."""

import argparse
import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes

import agents
from agents.config import ALGORITHMS, HYPERPARAMETERS, AgentConfig
from latent_obs.util.atomic import write_json
from latent_obs.util.errors import InputError, require
from latent_obs.util.progress import print_now
from latent_obs_cli.parsing import parse_and_call
from latent_obs_cli.verbs import Which


def train_agent(words: Sequence[str]) -> None:
    """Parse `latent-obs train-agent [ALGORITHM]`, whose options are those of the algorithm, and train."""
    if words and not words[0].startswith("-"):
        words = ["--algorithm", *words]
    parser = argparse.ArgumentParser(prog="latent-obs train-agent", add_help=False, allow_abbrev=False)
    parser.add_argument("--algorithm", default="ppo", choices=ALGORITHMS)
    given, words = parser.parse_known_args(words)
    defaults = ALGORITHMS[given.algorithm].defaults

    fields: list[tuple[str, Any, Any]] = [("algorithm", tyro.conf.Fixed[str], given.algorithm)]
    for field in dataclasses.fields(AgentConfig):
        if field.name in defaults:
            value = defaults[field.name]
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            hint = tyro.conf.arg(help_behavior_hint=f"(default: {shown})")
            fields.append((field.name, Annotated[field.type, hint], None))
        elif field.name in HYPERPARAMETERS:
            fields.append((field.name, tyro.conf.Fixed[field.type], None))
    options = dataclasses.make_dataclass("AgentOptions", fields, bases=(AgentConfig,), frozen=True)

    def run(config: OmitArgPrefixes[options], resume: bool = False) -> None:  # pyright: ignore[reportInvalidTypeForm]
        """Train an agent on an environment whose pixels are mean latents, or on a baseline (--observation).

        latent-obs train-agent ALGORITHM, with recurrent-ppo, dqn, qr-dqn or sac, has the options of another algorithm
        than PPO. A run that is stopped or killed continues with --resume from its last checkpoint; on a CPU the result
        is the same to the bit.

        Args:
            config: Settings. The defaults are those for latents; pixel agents have some others.
            resume: Continue with the agent in --out, with its settings; --steps may be raised.
        """
        agents.train_agent(AgentConfig(**vars(config)), resume=resume)

    parse_and_call(run, f"latent-obs train-agent {given.algorithm}", words, tyro.conf.SuppressFixed)


def evaluate(
    run: Path,
    episodes: int = 100,
    which: Which = "best",
    video: bool = True,
    video_file: Path | None = None,
    random_policy: bool = True,
    success_return: float | None = None,
    json: Path | None = None,
    deterministic: bool | None = None,
    seed: int = 1_000_003,
    device: str = "auto",
    trust: bool = False,
) -> None:
    """Play a trained agent on new episodes: returns and successes with 95% intervals, and a video.

    Args:
        run: The folder that train-agent wrote, or with --trust a repository of Hugging Face: user/name.
        episodes: Episodes to play.
        which: best (by the evaluations during training) or last.
        video: Film some episodes: the game, its reconstruction from the latent, the latent, and the action.
        video_file: The file of the video; by default agent.mp4 in the run folder, or here if that is a repository.
        random_policy: Play a random policy too, as the baseline.
        success_return: An episode is a success if its return reaches this, instead of by the task's own rule.
        json: A file for all numbers; by default evaluation.json, in the same place if it can be written.
        deterministic: True for the most likely action, False for a sample; by default as in the run's settings.
        seed: Seed of the environments.
        device: Where to encode: auto, cpu, cuda, cuda:N, mps.
        trust: Load an agent of Hugging Face, whose pickled settings can run any code.
    """
    from agents.evaluation import run_config
    from agents.hub import run_folder
    from agents.play.show import check_writable
    from agents.store import agent_state

    folder = run_folder(run, trust)
    config, place = run_config(folder), folder if folder == run else Path()
    video_file, numbers_file = video_file or place / "agent.mp4", json or place / "evaluation.json"
    if video:
        require("av", extra="video", purpose="write a video (or leave it out with --no-video)")
        check_writable(video_file)
    try:
        check_writable(numbers_file)
    except InputError as error:
        if json is not None:
            raise
        print_now(f"Without a file of numbers (--json names one): {error}")
        numbers_file = None
    played: dict[str, Any] = {"episodes": episodes, "seed": seed, "success_return": success_return}
    played["progress_bar"] = True
    print_now(f"Playing {episodes} episodes of {config.env} …")
    agent = agents.evaluate_agent(folder, which=which, device=device, deterministic=deterministic, **played)
    rule = agents.success_rule(config, success_return) or "as the environment says"
    print(f"{config.env}, {which} agent ({config.observation}): mean return {agent}")
    print("  " + agent.details().replace("\n", "\n  "))
    if agent.successes is not None:
        print(f"  what a success is: {rule}")
    numbers: dict[str, Any] = {
        "run": str(run),
        "env": config.env,
        "observation": config.observation,
        "which": which,
        "steps": agent_state(folder, which)["steps"],
        "seed": seed,
        "deterministic": config.deterministic if deterministic is None else deterministic,
        "success": None if agent.successes is None else str(rule),
        "agent": agent.to_json(),
    }
    if random_policy:
        chance = agents.evaluate_random(config, **played)
        sigmas = agent.sigmas_above(chance)
        print(f"{config.env}, random policy: mean return {chance}")
        where = "above" if sigmas >= 0 else "below"
        print(f"The agent is {abs(sigmas):.1f} standard errors {where} the random policy.")
        numbers["random_policy"] = chance.to_json()
        numbers["standard_errors_above"] = sigmas if math.isfinite(sigmas) else None
    if numbers_file is not None:
        write_json(numbers_file, numbers)
        print(f"Numbers: {numbers_file}")
    if video:
        print_now("Filming …")
        try:
            file, returns = agents.film(folder, video_file, which=which, device=device)
        except InputError as error:
            raise InputError(f"no video could be made; --no-video leaves it out: {error}") from error
        print(f"Video: {file} (returns {', '.join(f'{r:.0f}' for r in returns) or 'of no whole episode'})")


@functools.wraps(agents.watch_agent)
def watch(*args: Any, **settings: Any) -> None:
    """Open the window, and report the episodes that ended."""
    if ended := agents.watch_agent(*args, **settings):
        print(f"{len(ended)} whole episodes: mean return {sum(end.total for end in ended) / len(ended):.1f}")
