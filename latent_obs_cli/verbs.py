"""Verbs of frames, encoders and actions, which do without the extra "agents": each calls one public function.

Their docstrings and parameters are their --help. The annotations are read when a verb is called, and only then its
modules are imported.
"""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import OmitArgPrefixes, Positional

import vae_training
import vae_training.report
from latent_obs.util.errors import InputError, check_count
from latent_obs.util.words import counted

Which = Annotated[str, tyro.conf.arg(metavar="{best,last}")]


def frames_record(
    config: OmitArgPrefixes[vae_training.RecordConfig], which: Which = "best", device: str = "auto"
) -> None:
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
    vae_training.record(config, policy=policy)


def frames_extract(config: OmitArgPrefixes[vae_training.ExtractConfig]) -> None:
    """Convert recordings to .npy files for train-vae: MineRL and VPT datasets, videos, pictures, arrays.

    Safe to interrupt: finished recordings are kept, and the same command goes on with the others. Exit status 2 if a
    recording is damaged; the others are extracted all the same.
    """
    result = vae_training.extract(config)
    if result.damaged:
        raise InputError(
            f"{counted(len(result.damaged), 'recording')} named above could not be read; "
            f"{result.recordings} are in {result.folder}. Replace or remove the damaged "
            "ones, and give the same command again"
        )


def frames_stats(
    folder: Positional[Path], out: Path | None = None, json: bool = False, sample: int | None = None
) -> None:
    """Measure a folder of frames, warn of what looks wrong, and draw contact sheets.

    Look at the sheets: a blue face or an orange sky means that red and blue are swapped. Exit status 1 if training
    would refuse a file; the other files are measured all the same.

    Args:
        folder: The folder of .npy files.
        out: Where contact_sheet.png and mean_images.png go; beside the folder by default, as FOLDER_stats.
        json: Print JSON instead of a table.
        sample: Measure about this many frames instead of all, for a quick look at a huge dataset.
    """
    stats = vae_training.frame_stats(folder, sample)
    pictures: list[str] = []
    if stats.files:
        target = out or folder.resolve().with_name(f"{folder.resolve().name}_stats")
        pictures.append(str(vae_training.write_contact_sheet(target / "contact_sheet.png", stats)))
        pictures.append(str(vae_training.write_mean_sheet(target / "mean_images.png", stats)))
    if json:
        warnings = vae_training.find_warnings(stats)
        print(dumps({**stats.to_json(), "warnings": warnings, "pictures": pictures}, indent=2))
    else:
        print(vae_training.stats_table(stats))
        print("\nPictures to look at:", ", ".join(pictures) or "none")
        repair = "repair the refused files or move them elsewhere, then: latent-obs frames stats"
        print(f"next: {repair if stats.refused else 'latent-obs train-vae --frames'} {folder}")
    if stats.refused:
        raise SystemExit(1)


def train_vae(config: OmitArgPrefixes[vae_training.TrainConfig], resume: bool = False) -> None:
    """Train a convolutional beta-VAE with cyclical annealing on a folder of frames, and write its encoder folder.

    Ctrl-C leaves a checkpoint and an encoder; --resume goes on.

    Args:
        config: Settings.
        resume: Go on with the run in --out, with its settings; with --learning-rate-schedule constant --epochs may be
            raised.
    """
    vae_training.train(config, resume=resume)


def report(config: OmitArgPrefixes[vae_training.report.ReportConfig]) -> None:
    """Check whether an encoder's latents are worth freezing, before an agent trains on them for days.

    Measured on recordings that training never saw: the information in the latents, reconstructions beside those of
    PCA, how stable latents are, and how well known state (game variables, positions of objects, your own values)
    can be predicted from them. Says whether the training was worth it beside PCA. Writes report.html, one page with a
    verdict and what to try next, and report.json with every number.
    """
    vae_training.report.report(config)


def actions_fit(
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
    from latent_obs.actions import fit_centroids

    check_count("clusters", clusters)
    if out.exists():
        raise InputError(f"out: {out} exists; name another file with --out, or remove it")
    if missing := [str(path) for path in demonstrations if not path.exists()]:
        raise InputError(f"demonstrations: there is no {', '.join(missing)}; name a folder, or .npz and .npy files")
    centroids = fit_centroids(demonstrations, k=clusters, seed=seed, key=key)
    file = centroids.save(out)
    print(f"{len(centroids.vectors)} centroids of {int(centroids.counts.sum()):,} actions: {file}")
    print(f"next: latent-obs train-agent --env MineRL…VectorObf-v0 --env-kwargs actions {file} …")
