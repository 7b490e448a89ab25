"""Agents on Hugging Face: a run folder pushed with a card, and one loaded from there if its author is trusted."""

import io
import json
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

from agents.config import AgentConfig
from latent_obs.encoder.card import in_words, mean_reward, returns_of
from latent_obs.encoder.folder import read_files
from latent_obs.util.errors import InputError, one_line, require
from latent_obs.util.hub import Push, card_of, download, hub_address

_TEMPLATE = Path(__file__).parent / "templates" / "card.md.j2"
#: What of a run folder is pushed, besides the agent and its encoder.
_FILES = {"pca.safetensors": "pca.safetensors", "evaluations.jsonl": "evaluations.jsonl"}
_FILES |= {"agent.mp4": "replay.mp4"}  # the name that the hub shows as a video
_PATTERNS = ["config.json", "encoder/*", "best.zip", "last.zip", "pca.safetensors"]
_PATH = re.compile(r'"(?:/|~|file:)')  # in JSON
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
    # Without paths and addresses of this place: loading finds the run's own copies. Arguments of the environment that
    # name a path are left out. The others are shown before the push, because an API key looks like any other text.
    kept = {name: value for name, value in config.env_kwargs.items() if not _PATH.search(json.dumps(value))}
    own = {"encoder": "encoder", "pca": "pca.safetensors"}
    settings = {**config.to_json(), **{name: file if (run / file).exists() else None for name, file in own.items()}}
    settings |= {"out": repo_id.split("/")[1], "env_kwargs": kept, "address": None}
    files: dict[str, Path | bytes] = {"config.json": json.dumps(settings, indent=2).encode() + b"\n"}
    files[f"{which}.zip"] = _without_replay(run / f"{which}.zip")
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
    if kept:
        notes.append(f"config.json shows these arguments of the environment: {json.dumps(kept)}")
    if left := sorted(config.env_kwargs.keys() - kept.keys()):
        notes.append(f"Arguments of the environment with paths of this machine are left out: {', '.join(left)}.")
    if not values["video"]:
        notes.append(f"No video: latent-obs evaluate --run {run} makes one, and evaluation.json.")
    return Push(repo_id, files, lambda commit: card_of(_TEMPLATE, data, {**values, "commit": commit}), notes)


def _without_replay(file: Path) -> Path | bytes:
    """An agent's .zip; without the replay buffer, which is large, of no use to others and full of observations."""
    try:
        with zipfile.ZipFile(file) as archive:
            kept = [entry for entry in archive.infolist() if not entry.filename.startswith("replay/")]
            if len(kept) == len(archive.infolist()):
                return file
            with zipfile.ZipFile(copy := io.BytesIO(), "w") as smaller:
                for entry in kept:
                    smaller.writestr(entry, archive.read(entry))
            return copy.getvalue()
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{file} is damaged: {one_line(error)}. Restore it from a copy") from None
