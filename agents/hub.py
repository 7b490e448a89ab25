"""Agents on Hugging Face: a run folder pushed with a card, and one loaded from there if its author is trusted."""

import json
from pathlib import Path
from typing import Any

from agents.config import AgentConfig
from latent_obs.encoder.card import in_words, mean_reward, returns_of
from latent_obs.encoder.folder import read_files
from latent_obs.util.errors import InputError, require
from latent_obs.util.hub import Push, card_of, download, hub_address

_TEMPLATE = Path(__file__).parent / "templates" / "card.md.j2"
#: What of a run folder is pushed, besides the agent and its encoder.
_FILES = {"pca.safetensors": "pca.safetensors", "evaluations.jsonl": "evaluations.jsonl"}
_FILES |= {"agent.mp4": "replay.mp4"}  # the name that the hub shows as a video
_PATTERNS = ["config.json", "encoder/*", "best.zip", "last.zip", "pca.safetensors", "evaluations.jsonl"]
PICKLES = (
    "holds pickled settings of Stable-Baselines3, which can run any code when they are loaded: load it only if you "
    "trust its author"
)


def run_folder(run: str | Path, trust: bool = False) -> Path:
    """A run folder, or the local copy of one on Hugging Face ("user/name", also with "@revision").

    Args:
        run: The folder, or the repository.
        trust: Whether to load a repository's agent, which can run code. A local folder needs no trust.

    Raises:
        InputError: It is a repository, and `trust` is False; or the repository cannot be loaded.
        MissingExtraError: huggingface_hub is not installed.
    """
    address = None if Path(run).is_dir() else hub_address(str(run))
    if address is None:
        return Path(run)
    if not trust:
        raise InputError(
            f"trust: there is no folder {str(run)!r} here, and the .zip of an agent on Hugging Face {PICKLES} "
            "(trust=True or --trust)"
        )
    folder = download(address, _PATTERNS)
    if not (folder / "config.json").exists() or not any(folder.glob("*.zip")):
        raise InputError(
            f"the repository {str(run)!r} holds no agent: {folder} lacks config.json, best.zip or last.zip"
        )
    return folder


def agent_push(run: Path, repo_id: str, license: str) -> Push:
    """The files of an agent's run folder, and their card.

    They are the best agent (the last one where there is no best), its encoder, settings, evaluations and video.

    Raises:
        InputError: There is no agent, or a file is damaged.
        EncoderFolderError: Its encoder is damaged.
        MissingExtraError: huggingface_hub is not installed.
    """
    hub = require("huggingface_hub", extra="hub", purpose="write a model card")
    which = next((name for name in ("best", "last") if (run / f"{name}.zip").exists()), None)
    if which is None:
        raise InputError(f"run: {run} has no best.zip and no last.zip; name a run folder of latent-obs train-agent")
    config = AgentConfig.load(run)
    # Without paths of this machine: loading finds the run's own copies.
    own = {"encoder": "encoder", "pca": "pca.safetensors"}
    settings = {**config.to_json(), **{name: file if (run / file).exists() else None for name, file in own.items()}}
    settings["out"] = repo_id.split("/")[1]
    files: dict[str, Path | bytes] = {"config.json": json.dumps(settings, indent=2).encode() + b"\n"}
    files[f"{which}.zip"] = run / f"{which}.zip"
    files |= {there: run / here for here, there in _FILES.items() if (run / here).exists()}
    encoder = run / "encoder"
    if encoder.is_dir():
        files |= {f"encoder/{name}": data for name, data in read_files(encoder).items()}
    returns = returns_of(run)
    data = hub.ModelCardData(
        library_name="latent-obs",
        license=license,
        pipeline_tag="reinforcement-learning",
        tags=["latent-obs", "stable-baselines3", "deep-reinforcement-learning", "reinforcement-learning", config.env],
        model_name=repo_id.split("/")[1],
        eval_results=None if returns is None else [mean_reward(returns, hub)],
    )
    values: dict[str, Any] = {
        "name": repo_id.split("/")[1],
        "repo_id": repo_id,
        "license": license,
        "config": config,
        "title": config.trainer.title,
        "which": which,
        "returns": returns,
        "mean": None if returns is None else in_words(returns) + ("" if returns.error is None else " (standard error)"),
        "video": "replay.mp4" in files,
        "encoder": encoder.is_dir() and config.observation == "latent",
        "pickles": PICKLES,
    }
    notes = [f"{which}.zip {PICKLES}; others have to say --trust or trust=True."]
    if not values["video"]:
        notes.append(f"No video: latent-obs evaluate --run {run} makes one, and evaluation.json.")
    return Push(repo_id, files, lambda commit: card_of(_TEMPLATE, data, {**values, "commit": commit}), notes)
