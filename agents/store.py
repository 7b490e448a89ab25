"""What an agent's run folder holds, and how it is written: aside, then renamed.

    runs/agent/
    ├── config.json            settings
    ├── encoder/               a copy of the encoder folder
    ├── best.zip, last.zip     agents, as Stable-Baselines3 saves them
    ├── best.json, last.json   running statistics of rewards and observations (VecNormalize)
    ├── evaluations.jsonl      mean return by step
    └── logs/                  progress.json, progress.csv, TensorBoard

Stable-Baselines3's .zip files hold pickled settings: load only those that you trust.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from latent_obs.atomic import write_json, written_aside
from latent_obs.errors import InputError


def save_agent(run: Path, name: str, model: BaseAlgorithm) -> None:
    """Write `<name>.zip` and its statistics."""
    normalize = model.get_vec_normalize_env()
    with written_aside(run / f"{name}.zip") as aside:
        model.save(aside)
        # The two belong together: the statistics go first, and the agent's rename makes them count.
        write_json(run / f"{name}.json", {"steps": model.num_timesteps, **_statistics(normalize)})


def load_agent(run: Path, name: str, **kwargs: Any) -> PPO:
    """Load `<name>.zip`.

    Args:
        run: The run folder.
        name: "best" or "last".
        **kwargs: Passed to `PPO.load`.

    Raises:
        InputError: There is no such agent, or the file is damaged.
    """
    file = run / f"{name}.zip"
    if not file.exists():
        there = sorted(f.stem for f in run.glob("*.zip")) if run.is_dir() else []
        raise InputError(
            f"there is no agent {file}" + (f"; found {there}" if there else "; train one with latent-obs train-agent")
        )
    try:
        return PPO.load(file, **kwargs)
    except Exception as error:  # zipfile, pickle and torch each have their own, and a truncated file fails an assertion
        raise InputError(f"{file} cannot be loaded, it may be damaged: {error}") from None


def restore_statistics(run: Path, name: str, normalize: VecNormalize) -> None:
    """Put the running statistics of `<name>.json` back."""
    file = run / f"{name}.json"
    try:
        values = json.loads(file.read_text())
        normalize.ret_rms = _from_json(values["returns"])
        if normalize.norm_obs:
            stored = values["observations"]
            is_dict = isinstance(normalize.obs_rms, dict)
            normalize.obs_rms = {k: _from_json(v) for k, v in stored.items()} if is_dict else _from_json(stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}, the running statistics of {name}.zip, cannot be read: {error}") from None


def keep_encoder(source: Path, run: Path) -> Path:
    """Copy an encoder folder into a run; the copy appears whole or not at all."""
    target = run / "encoder"
    if not target.exists() and source.resolve() != target.resolve():
        aside = run / ".encoder-copy"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside)
        aside.rename(target)
    return target


def _statistics(normalize: VecNormalize | None) -> dict[str, Any]:
    if normalize is None:
        return {"returns": None, "observations": None}
    observations: Any = None
    if normalize.norm_obs:
        rms = normalize.obs_rms
        observations = {k: _to_json(v) for k, v in rms.items()} if isinstance(rms, dict) else _to_json(rms)
    return {"returns": _to_json(normalize.ret_rms), "observations": observations}


def _to_json(rms: RunningMeanStd) -> dict[str, Any]:
    return {"mean": np.asarray(rms.mean).tolist(), "var": np.asarray(rms.var).tolist(), "count": float(rms.count)}


def _from_json(values: dict[str, Any]) -> RunningMeanStd:
    rms = RunningMeanStd(shape=np.shape(values["mean"]))
    rms.mean, rms.var, rms.count = np.asarray(values["mean"]), np.asarray(values["var"]), values["count"]
    return rms
