"""The files in an agent's run folder.

    runs/agent/
    ├── config.json            settings
    ├── encoder/               a copy of the encoder folder
    ├── best.zip, last.zip     agents in Stable-Baselines3's format, with their state (and last, its replay buffer)
    ├── evaluations.jsonl      mean return by step
    ├── evaluation.json        numbers of `latent-obs evaluate`
    └── logs/                  progress.json (a line per update), progress.csv, TensorBoard

Files are written atomically, config.json first: from then on the run can be resumed. Stable-Baselines3's .zip files
hold pickled settings: load only those that you trust.
"""

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from agents.config import AgentConfig
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.pixels import brief
from latent_obs.util.atomic import atomic_write
from latent_obs.util.errors import InputError

_STATE = "latent_obs.json"


def save_agent(
    run: Path, name: str, model: BaseAlgorithm, *, notes: Mapping[str, Any] | None = None, replay: bool = False
) -> None:
    """Write `<name>.zip`: one file, so that an agent, its statistics and its replay buffer are always of the same step.

    `notes` are plain values to add to its state; with `replay` its replay buffer, if it has one, is included.
    """
    state: dict[str, Any] = {"steps": model.num_timesteps, "algorithm": type(model).__name__}
    state |= {key: " ".join(str(getattr(model, key)).split()) for key in ("observation_space", "action_space")}
    state |= {"returns": None, "observations": None, **(notes or {})}
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        state["returns"] = _to_json(normalize.ret_rms)
        if normalize.norm_obs:
            state["observations"] = _to_json(normalize.obs_rms)
    with atomic_write(run / f"{name}.zip") as aside:
        model.save(aside)
        with zipfile.ZipFile(aside, "a") as archive:
            archive.writestr(_STATE, json.dumps(state))
            if replay and isinstance(model, OffPolicyAlgorithm) and (buffer := model.replay_buffer) is not None:
                filled = buffer.buffer_size if buffer.full else buffer.pos
                arrays = {"position": np.array([buffer.pos, int(buffer.full), buffer.buffer_size])}
                arrays |= {key: array[:filled] for key, array in _replay_arrays(buffer).items()}
                for key, array in arrays.items():
                    with archive.open(f"replay/{key}.npy", "w", force_zip64=True) as file:
                        np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def load_agent(run: Path, name: str, **kwargs: Any) -> BaseAlgorithm:
    """Load an agent of the run's algorithm, without its replay buffer; `kwargs` are those of the algorithm's `load`.

    The checksums of everything in the file are verified first.
    """
    file = agent_file(run, name)
    config = AgentConfig.load(run) if (run / "config.json").exists() else AgentConfig()
    agent = config.trainer.load_class()
    with _opened(file) as archive:
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {damaged} does not match")
        return agent.load(file, **kwargs)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    """Open an agent's .zip; whatever is raised inside the block means that it is not usable: an `InputError`."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # zipfile, zlib, pickle and torch each have their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{file} is damaged, or not an agent of this run: {reason}. Train a new agent") from None


def agent_file(run: Path, name: str) -> Path:
    """The .zip of the agent "best" or "last", or of a step, if an earlier version kept it in `checkpoints/`."""
    files = {f.stem.removeprefix("step_").lstrip("0"): f for f in run.glob("checkpoints/*.zip")}
    files |= {f.stem: f for f in run.glob("[!.]*.zip")}  # not what a killed run was writing
    if name not in files:
        raise InputError(
            f"there is no agent {run / name}.zip; found {sorted(files)}. latent-obs train-agent trains one"
        )
    return files[name]


def agent_state(run: Path, name: str) -> dict[str, Any]:
    """The state of an agent: steps, spaces, running statistics and notes."""
    with _opened(agent_file(run, name)) as archive:
        return dict(json.loads(archive.read(_STATE)))


def restore_statistics(run: Path, name: str, normalize: VecNormalize, model: BaseAlgorithm | None = None) -> None:
    """Put the running statistics of an agent back; rejects environments with other observations or actions."""
    file, state = agent_file(run, name), agent_state(run, name)
    if model is not None and model.action_space != normalize.action_space:
        raise InputError(
            f"{file} was trained with the actions {brief(model.action_space)}, and these environments have "
            f"{brief(normalize.action_space)}. Use the environment of its training, made with the same arguments"
        )
    try:
        normalize.ret_rms = _from_json(state["returns"])
        if not normalize.norm_obs:
            return
        statistics = _from_json(state["observations"])
        fits = _shapes(statistics) == _shapes(normalize.obs_rms)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the running statistics in {file} cannot be read: {error}") from None
    if not fits:
        raise InputError(
            f"{file} was trained on {state.get('observation_space')}, and would see "
            f"{brief(normalize.observation_space)} here. Use the environment and the encoder that it was trained with"
        )
    normalize.obs_rms = statistics


def restore_replay(run: Path, name: str, model: BaseAlgorithm) -> None:
    """Put the replay buffer back into an off-policy agent whose environments are set, and which must fit it."""
    if not isinstance(model, OffPolicyAlgorithm):
        return
    file, buffer = agent_file(run, name), model.replay_buffer
    assert buffer is not None
    with _opened(file) as archive:

        def stored(key: str) -> NDArray[Any]:
            with archive.open(f"replay/{key}.npy") as entry:
                return np.lib.format.read_array(entry, allow_pickle=False)

        pos, full, size = (int(n) for n in stored("position"))
        if size != buffer.buffer_size:
            raise ValueError(f"it holds {size:,} steps an environment, not {buffer.buffer_size:,}")
        filled = size if full else pos
        for key, array in _replay_arrays(buffer).items():
            found = stored(key)
            if found.shape != (filled, *array.shape[1:]) or found.dtype != array.dtype:
                raise ValueError(f"{key} is {found.dtype}{found.shape}, expected {array.dtype}{array.shape[1:]}")
            array[:filled] = found
    buffer.pos, buffer.full = pos, bool(full)


def _replay_arrays(buffer: ReplayBuffer) -> dict[str, NDArray[Any]]:
    """The arrays of a buffer by name; those of a Dict observation one by one."""
    arrays: dict[str, NDArray[Any]] = {}
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        value = getattr(buffer, name)
        arrays |= {f"{name}/{key}": array for key, array in value.items()} if isinstance(value, dict) else {name: value}
    return arrays


def _to_json(rms: Any) -> dict[str, Any]:
    """Running statistics, or those of each entry, as plain values."""
    if isinstance(rms, dict):
        return {key: _to_json(own) for key, own in rms.items()}
    return {"mean": np.asarray(rms.mean).tolist(), "var": np.asarray(rms.var).tolist(), "count": float(rms.count)}


def _from_json(values: dict[str, Any]) -> Any:
    if "count" not in values or isinstance(values["count"], dict):
        return {key: _from_json(own) for key, own in values.items()}
    rms = RunningMeanStd()
    rms.mean, rms.var, rms.count = np.asarray(values["mean"]), np.asarray(values["var"]), values["count"]
    return rms


def _shapes(rms: Any) -> Any:
    return {key: own.mean.shape for key, own in rms.items()} if isinstance(rms, dict) else rms.mean.shape


def fingerprint(encoder: FrozenEncoder | None) -> str | None:
    """SHA-256 of an encoder's weights and of the frames that it takes; None for no encoder."""
    if encoder is None:
        return None
    digest = hashlib.sha256(repr(encoder.contract).encode())
    for name, tensor in sorted(encoder._network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_encoder(run: Path, name: str, encoder: FrozenEncoder | None) -> None:
    """Reject another encoder than the one that the agent was trained with."""
    trained, given = agent_state(run, name).get("encoder"), fingerprint(encoder)
    if trained is not None and trained != given:
        raise InputError(
            f"encoder: agent {name!r} of {run} was trained with another encoder than {encoder and encoder.path} (the "
            f"fingerprint was {trained[:12]}…, and is {(given or 'none')[:12]}…), so its latents have another meaning. "
            f"Put the first one back into {run / 'encoder'}, or train a new agent"
        )


def encoder_of(run: Path, name: str) -> Path | None:
    """The encoder folder that an agent was trained with; None if it has none.

    It is `encoder/` of the run, or, in runs of the former command `latent-obs alternate`, one of those in `encoders/`.

    Raises:
        InputError: There are several encoders, and the agent was trained with none of them.
    """
    folders = [f for f in [run / "encoder", *sorted(run.glob("encoders/*"), reverse=True)] if f.is_dir()]
    if len(folders) < 2:
        return folders[0] if folders else None  # loading the agent checks it
    wanted = agent_state(run, name).get("encoder")
    for folder in folders:
        if wanted in (None, fingerprint(FrozenEncoder.load(folder, device="cpu"))):
            return folder
    raise InputError(f"encoder: agent {name!r} of {run} was trained with none of {', '.join(map(str, folders))}")
