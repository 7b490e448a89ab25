"""The verbs of `latent-obs`: each parses its words into a configuration dataclass, and calls one public function."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from latent_obs.util.errors import InputError, require

Which = Annotated[str, tyro.conf.arg(metavar="{best,last}")]


def _parse(function: Callable[..., Any], verb: str, words: Sequence[str]) -> Any:
    return tyro.cli(function, prog=f"latent-obs {verb}", args=list(words), config=(tyro.conf.CascadeSubcommandArgs,))


def frames_record(words: Sequence[str]) -> None:
    """Parse `latent-obs frames record`, and record."""
    from vae_training import RecordConfig, record

    def run(config: OmitArgPrefixes[RecordConfig], which: Which = "best", device: str = "auto") -> None:
        """Record frames of a Gymnasium environment to .npy files for train-vae.

        Safe to interrupt: what was recorded stays valid, and the same command goes on.

        Args:
            config: Settings.
            which: Which agent of the run folder (--agent): best (by the evaluations during training) or last.
            device: Where the encoder of that agent runs: auto, cpu, cuda, cuda:N, mps.
        """
        policy = None
        if config.agent is not None:
            from agents.play.policy import load_policy

            policy = load_policy(config.agent, which, deterministic=config.deterministic, device=device)
        record(config, policy=policy)

    _parse(run, "frames record", words)


def frames_extract(words: Sequence[str]) -> None:
    """Parse `latent-obs frames extract`, and extract."""
    from vae_training import ExtractConfig, extract

    def run(config: OmitArgPrefixes[ExtractConfig]) -> None:
        """Convert recordings to .npy files for train-vae: MineRL and VPT datasets, videos, pictures, arrays.

        Safe to interrupt: finished recordings are kept, and the same command goes on with the others.
        """
        extract(config)

    _parse(run, "frames extract", words)


def frames_stats(words: Sequence[str]) -> None:
    """Parse `latent-obs frames stats`, and measure."""
    from json import dumps

    from vae_training import find_warnings, frame_stats, stats_table, write_contact_sheet, write_mean_sheet

    def run(folder: Positional[Path], out: Path | None = None, json: bool = False, sample: int | None = None) -> None:
        """Measure a folder of frames, warn of what looks wrong, and draw contact sheets.

        Look at the sheets: a blue face or an orange sky means that red and blue are swapped. Exit status 1 if training
        would refuse a file; the other files are measured all the same.

        Args:
            folder: The folder of .npy files.
            out: Where contact_sheet.png and mean_images.png go; beside the folder by default, as FOLDER_stats.
            json: Print JSON instead of a table.
            sample: Measure about this many frames instead of all, for a quick look at a huge dataset.
        """
        stats = frame_stats(folder, sample)
        pictures: list[str] = []
        if stats.files:
            target = out or folder.resolve().with_name(f"{folder.resolve().name}_stats")
            pictures.append(str(write_contact_sheet(target / "contact_sheet.png", stats)))
            pictures.append(str(write_mean_sheet(target / "mean_images.png", stats)))
        if json:
            print(dumps({**stats.to_json(), "warnings": find_warnings(stats), "pictures": pictures}, indent=2))
        else:
            print(stats_table(stats))
            print("\nPictures to look at:", ", ".join(pictures) or "none")
            repair = "repair the refused files or move them elsewhere, then: latent-obs frames stats"
            print(f"next: {repair if stats.refused else 'latent-obs train-vae --frames'} {folder}")
        if stats.refused:
            raise SystemExit(1)

    _parse(run, "frames stats", words)


def train_vae(words: Sequence[str]) -> None:
    """Parse `latent-obs train-vae`, and train."""
    from vae_training import TrainConfig, train

    def run(config: OmitArgPrefixes[TrainConfig], resume: bool = False) -> None:
        """Train a convolutional beta-VAE with cyclical annealing on a folder of frames, and write its encoder folder.

        Ctrl-C leaves a checkpoint and an encoder; --resume goes on.

        Args:
            config: Settings.
            resume: Go on with the run in --out, with its settings; --epochs may be raised.
        """
        train(config, resume=resume)

    _parse(run, "train-vae", words)


def report(words: Sequence[str]) -> None:
    """Parse `latent-obs report`, and measure."""
    from vae_training.report import ReportConfig
    from vae_training.report import report as measure

    def run(config: OmitArgPrefixes[ReportConfig]) -> None:
        """Check whether an encoder's latents are worth freezing, before an agent trains on them for days.

        Measured on recordings that training never saw: the information in the latents, reconstructions beside those of
        PCA, how stable latents are, and how well known state (game variables, positions of objects, your own values)
        can be predicted from them. Writes report.html, one page with a verdict and what to try next, and report.json
        with every number.
        """
        measure(config)

    _parse(run, "report", words)


def train_agent(words: Sequence[str]) -> None:
    """Parse `latent-obs train-agent [ALGORITHM]`, whose options are those of the algorithm, and train."""
    import argparse
    import dataclasses

    from agents import AgentConfig
    from agents import train_agent as train
    from agents.config import ALGORITHMS, HYPERPARAMETERS

    if words and not words[0].startswith("-"):
        words = ["--algorithm", *words]
    parser = argparse.ArgumentParser(prog="latent-obs train-agent", add_help=False, allow_abbrev=False)
    parser.add_argument("--algorithm", default="ppo", choices=ALGORITHMS)
    given, words = parser.parse_known_args(words)
    defaults = ALGORITHMS[given.algorithm].defaults

    fields: list[tuple[str, Any, Any]] = []
    for field in dataclasses.fields(AgentConfig):
        if field.name in defaults:
            default = tyro.conf.arg(help_behavior_hint=f"(default: {defaults[field.name]})")
            fields.append((field.name, Annotated[field.type, default], None))
        elif field.name in HYPERPARAMETERS:
            fields.append((field.name, tyro.conf.Fixed[field.type], None))
    fields.append(("algorithm", tyro.conf.Fixed[str], given.algorithm))
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
        train(AgentConfig(**vars(config)), resume=resume)

    prog = f"latent-obs train-agent {given.algorithm}"
    tyro.cli(run, prog=prog, args=words, config=(tyro.conf.CascadeSubcommandArgs, tyro.conf.SuppressFixed))


def actions_fit(words: Sequence[str]) -> None:
    """Parse `latent-obs actions fit`, and fit."""
    from latent_obs.actions import fit_centroids

    def run(
        demonstrations: tuple[Path, ...],
        out: Path = Path("centroids.safetensors"),
        clusters: int = 100,
        key: str = "action$vector",
        seed: int = 0,
    ) -> None:
        """Fit k-means centroids to the actions of demonstrations: a table of actions that PPO and DQN can choose from.

        For tasks whose action is a vector of numbers, such as the obfuscated MineRL tasks (…VectorObf-v0).

        Args:
            demonstrations: .npz or .npy files, or a folder that is searched for .npz files (MineRL's rendered.npz).
            out: The file to write; an existing file is not overwritten.
            clusters: How many actions to make; the no-op is one more.
            key: Entry of an .npz that holds the actions, one row each.
            seed: The same seed gives the same centroids.
        """
        if out.exists():
            raise InputError(f"out: {out} exists; name another file with --out, or remove it")
        if missing := [str(path) for path in demonstrations if not path.exists()]:
            raise InputError(f"demonstrations: there is no {', '.join(missing)}; name a folder, or .npz and .npy files")
        centroids = fit_centroids(demonstrations, k=clusters, seed=seed, key=key)
        file = centroids.save(out)
        print(f"{len(centroids.vectors)} centroids of {int(centroids.counts.sum()):,} actions: {file}")
        print(f"next: latent-obs train-agent --env MineRL…VectorObf-v0 --env-kwargs actions {file} …")

    _parse(run, "actions fit", words)


def evaluate(words: Sequence[str]) -> None:
    """Parse `latent-obs evaluate`, play and film."""
    import math

    from agents import evaluate_agent, evaluate_random, film
    from agents.evaluation import run_config, success_rule
    from agents.play.show import check_writable
    from latent_obs.util.atomic import write_json

    def run(
        run: Path,
        episodes: int = 100,
        which: Annotated[str, tyro.conf.arg(metavar="{best,last}")] = "best",
        video: bool = True,
        video_file: Path | None = None,
        random_policy: bool = True,
        success_return: float | None = None,
        json: Path | None = None,
        deterministic: bool | None = None,
        seed: int = 1_000_003,
        device: str = "auto",
    ) -> None:
        """Play a trained agent on new episodes: returns and successes with 95% intervals, and a video.

        Args:
            run: The folder that train-agent wrote.
            episodes: Episodes to play.
            which: best (by the evaluations during training) or last.
            video: Film some episodes: the game, its reconstruction from the latent, the latent, and the action.
            video_file: The file of the video; agent.mp4 in the run folder by default.
            random_policy: Play a random policy too, as the baseline.
            success_return: An episode is a success if its return reaches this, instead of by the task's own rule.
            json: A file for all numbers.
            deterministic: True for the most likely action, False for a sample; by default as in the run's settings.
            seed: Seed of the environments.
            device: Where to encode: auto, cpu, cuda, cuda:N, mps.
        """
        config = run_config(run)
        if video:
            require("av", extra="video", purpose="write a video (or leave it out with --no-video)")
            check_writable(video_file or run / "agent.mp4")
        if json is not None:
            check_writable(json)
        agent = evaluate_agent(
            run,
            episodes=episodes,
            which=which,
            seed=seed,
            device=device,
            deterministic=deterministic,
            success_return=success_return,
        )
        rule = success_rule(config, success_return) or "as the environment says"
        print(f"{config.env}, {which} agent ({config.observation}): mean return {agent}")
        print("  " + agent.details().replace("\n", "\n  "))
        if agent.successes is not None:
            print(f"  what a success is: {rule}")
        numbers: dict[str, Any] = {
            "run": str(run),
            "env": config.env,
            "observation": config.observation,
            "which": which,
            "seed": seed,
            "deterministic": config.deterministic if deterministic is None else deterministic,
            "success": None if agent.successes is None else str(rule),
            "agent": agent.to_json(),
        }
        if random_policy:
            chance = evaluate_random(config, episodes=episodes, seed=seed, success_return=success_return)
            sigmas = agent.sigmas_above(chance)
            print(f"{config.env}, random policy: mean return {chance}")
            print(f"The agent is {sigmas:.1f} standard errors above the random policy.")
            numbers |= {
                "random_policy": chance.to_json(),
                "standard_errors_above": sigmas if math.isfinite(sigmas) else None,
            }
        if json is not None:
            write_json(json, numbers)
            print(f"Numbers: {json}")
        if video:
            file, returns = film(run, video_file, which=which, device=device)
            print(f"Video: {file} (returns {', '.join(f'{r:.0f}' for r in returns) or 'of no whole episode'})")

    _parse(run, "evaluate", words)


def quickstart(words: Sequence[str]) -> None:
    """Parse `latent-obs quickstart`, and run all stages."""
    from latent_obs_cli import quickstart as module

    def run(config: OmitArgPrefixes[module.QuickstartConfig]) -> None:
        """Record a 3D game, train a CVAE, freeze its encoder, train PPO on the latents, and write a page of results.

        Takes minutes on two CPU cores. Stopped at any moment, the same command goes on.
        """
        module.quickstart(config)

    _parse(run, "quickstart", words)


def watch(words: Sequence[str]) -> None:
    """Parse `latent-obs watch`, open the window, and report the episodes that ended."""
    from agents.play.watch import watch_agent

    if ended := _parse(watch_agent, "watch", words):
        print(f"{len(ended)} whole episodes: mean return {sum(end.total for end in ended) / len(ended):.1f}")
