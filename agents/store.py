"""What an agent's run folder holds, and how it is written: aside, then renamed.

    runs/agent/
    ├── config.json            settings
    ├── encoder/               a copy of the encoder folder
    ├── best.zip, last.zip     agents, as Stable-Baselines3 saves them, with their state (and last, its replay buffer)
    inside ├── checkpoints/           step_000050000.zip …, if asked for
    ├── evaluations.jsonl      mean return by step
    └── logs/                  progress.json (a line per update), progress.csv, TensorBoard

Stable-Baselines3's .zip files hold pickled settings: load only those that you trust.
"""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from agents.config import AgentConfig
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.atomic import atomic_write
from latent_obs.util.errors import InputError

REPLAY_FOLDER = "replay/"


def write_replay(archive: zipfile.ZipFile, model: OffPolicyAlgorithm) -> None:
    """Write the filled part of a buffer's arrays, and where the next step goes, into an open archive."""
    buffer = model.replay_buffer
    assert buffer is not None
    filled = buffer.buffer_size if buffer.full else buffer.pos
    _write(archive, "position", np.array([buffer.pos, int(buffer.full), buffer.buffer_size]))
    for name, array in _arrays(buffer):
        _write(archive, name, array[:filled])


def read_replay(archive: zipfile.ZipFile, model: OffPolicyAlgorithm) -> None:
    """Fill a model's buffer with what `write_replay` wrote.

    Raises:
        InputError: The archive holds none, or one of another size or other spaces.
    """
    buffer = model.replay_buffer
    assert buffer is not None
    try:
        pos, full, size = (int(n) for n in _read(archive, "position"))
        stored = {name: _read(archive, name) for name, _ in _arrays(buffer)}
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{archive.filename} has no replay buffer that can be read: {error}") from None
    filled = size if full else pos
    if size != buffer.buffer_size:
        raise InputError(
            f"{archive.filename} has a replay buffer of {size:,} steps an environment, not {buffer.buffer_size:,}"
        )
    for name, array in _arrays(buffer):
        if stored[name].shape != (filled, *array.shape[1:]) or stored[name].dtype != array.dtype:
            raise InputError(
                f"{archive.filename}: {name} in the replay buffer is {stored[name].dtype}{stored[name].shape}, expected "
                f"{array.dtype}{(filled, *array.shape[1:])}"
            )
        array[:filled] = stored[name]
    buffer.pos, buffer.full = pos, bool(full)


def _arrays(buffer: ReplayBuffer) -> Iterator[tuple[str, NDArray[Any]]]:
    """Its arrays by name; those of a Dict observation one by one."""
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        value = getattr(buffer, name)
        if isinstance(value, dict):
            yield from ((f"{name}/{key}", array) for key, array in value.items())
        else:
            yield name, value


def _write(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    with archive.open(f"{REPLAY_FOLDER}{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def _read(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(f"{REPLAY_FOLDER}{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


_STATE = "latent_obs.json"


def save_agent(
    run: Path, name: str, model: BaseAlgorithm, *, notes: Mapping[str, Any] | None = None, replay: bool = False
) -> None:
    """Write `<name>.zip`: one file, so that an agent, its statistics and its replay buffer are always of the same step.

    Args:
        run: The run folder.
        name: "best", "last" or a checkpoint's.
        model: The agent.
        notes: Plain values to keep in its state.
        replay: Keep its replay buffer, if it has one.
    """
    normalize = model.get_vec_normalize_env()
    state = {
        "steps": model.num_timesteps,
        "algorithm": type(model).__name__,
        "observation_space": _line(model.observation_space),
        "action_space": _line(model.action_space),
        **_statistics(normalize),
        **(notes or {}),
    }
    with atomic_write(run / f"{name}.zip") as aside:
        model.save(aside)
        with zipfile.ZipFile(aside, "a") as archive:
            archive.writestr(_STATE, json.dumps(state))
            if replay and isinstance(model, OffPolicyAlgorithm):
                write_replay(archive, model)


def load_agent(run: Path, name: str, **kwargs: Any) -> BaseAlgorithm:
    """Load `<name>.zip`, an agent of the run's algorithm; without its replay buffer (`restore_replay`).

    Args:
        run: The run folder.
        name: "best", "last", or a checkpoint's step.
        **kwargs: Passed to the algorithm's `load`.

    Raises:
        InputError: There is no such agent, or the file is damaged.
    """
    file = agent_file(run, name)
    algorithm = AgentConfig.load(run).trainer if (run / "config.json").exists() else AgentConfig().trainer
    try:
        return algorithm.load_class().load(file, **kwargs)
    except Exception as error:  # zipfile, pickle and torch each have their own, and a truncated file fails an assertion
        raise InputError(f"{file} cannot be loaded, it may be damaged: {error}") from None


def agent_file(run: Path, name: str) -> Path:
    """The .zip of an agent.

    Raises:
        InputError: There is no such agent.
    """
    file = run / f"{name}.zip"
    if not file.exists() and str(name).isdecimal():
        file = checkpoint_file(run, int(name))
    if not file.exists():
        there = sorted(f.stem for f in [*run.glob("*.zip"), *run.glob("checkpoints/*.zip")]) if run.is_dir() else []
        raise InputError(
            f"there is no agent {file}" + (f"; found {there}" if there else "; train one with latent-obs train-agent")
        )
    return file


def checkpoint_file(run: Path, step: int) -> Path:
    """Where a checkpoint that is kept lies."""
    return run / "checkpoints" / f"step_{step:09d}.zip"


def keep_checkpoint(run: Path, step: int, keep: int) -> None:
    """Copy the last agent, without its replay buffer, to `checkpoints/`, of which the newest `keep` stay (-1: all)."""
    if keep == 0:
        return
    _copy_archive(run / "last.zip", checkpoint_file(run, step), lambda name: not name.startswith(REPLAY_FOLDER))
    if keep > 0:
        for old in sorted((run / "checkpoints").glob("step_*.zip"))[:-keep]:
            old.unlink()


def _copy_archive(source: Path, target: Path, wanted: Callable[[str], bool]) -> None:
    with atomic_write(target) as aside, zipfile.ZipFile(source) as old, zipfile.ZipFile(aside, "w") as new:
        for item in filter(lambda item: wanted(item.filename), old.infolist()):
            with old.open(item) as reader, new.open(item.filename, "w", force_zip64=True) as writer:
                shutil.copyfileobj(reader, writer)


def agent_state(run: Path, name: str) -> dict[str, Any]:
    """The state of `<name>.zip`: steps, spaces, running statistics and notes.

    Raises:
        InputError: There is no such agent, or its state cannot be read.
    """
    file = agent_file(run, name)
    try:
        with zipfile.ZipFile(file) as archive:
            state = json.loads(archive.read(_STATE))
        if not isinstance(state, dict):
            raise TypeError(f"expected an object, found {type(state).__name__}")
        return state
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{file} has no state of latent-obs in it ({error}); expected an agent that latent-obs train-agent wrote"
        ) from None


def restore_statistics(run: Path, name: str, normalize: VecNormalize) -> None:
    """Put the running statistics of `<name>.zip` back.

    Raises:
        InputError: They cannot be read, or are of other observations than these environments'.
    """
    state = agent_state(run, name)
    try:
        normalize.ret_rms = _from_json(state["returns"])
        if not normalize.norm_obs:
            return
        stored, is_dict = state["observations"], isinstance(normalize.obs_rms, dict)
        statistics = {k: _from_json(v) for k, v in stored.items()} if is_dict else _from_json(stored)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the running statistics in {agent_file(run, name)} cannot be read: {error}") from None
    if _shapes(statistics) != _shapes(normalize.obs_rms):
        raise InputError(
            f"{agent_file(run, name)} was trained on {state.get('observation_space')}, and would see "
            f"{_line(normalize.observation_space)} here. Use the environment and the encoder that it was trained with"
        )
    normalize.obs_rms = statistics  # pyright: ignore[reportAttributeAccessIssue]


def restore_replay(run: Path, name: str, model: BaseAlgorithm) -> None:
    """Put the replay buffer of `<name>.zip` back into an off-policy agent that has its environments.

    Raises:
        InputError: There is none in it, or it does not fit.
    """
    if isinstance(model, OffPolicyAlgorithm):
        with zipfile.ZipFile(agent_file(run, name)) as archive:
            read_replay(archive, model)


def check_spaces(run: Path, name: str, model: BaseAlgorithm, venv: VecEnv) -> None:
    """Refuse environments whose actions are not the agent's (`restore_statistics` looks at the observations).

    Raises:
        InputError: Naming both.
    """
    if model.action_space != venv.action_space:
        raise InputError(
            f"{agent_file(run, name)} was trained with the actions {_line(model.action_space)}, and these environments have "
            f"{_line(venv.action_space)}. Use the environment that it was trained with, made with the same arguments"
        )


def keep_file(source: Path, target: Path) -> Path:
    """Copy a file or an encoder folder into a run; the copy appears whole or not at all."""
    if not target.exists() and source.resolve() != target.resolve():
        aside = target.with_name(f".{target.name}-copy")
        shutil.rmtree(aside, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, aside)
        else:
            shutil.copy(source, aside)
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


def _shapes(statistics: Any) -> Any:
    return (
        {k: np.shape(v.mean) for k, v in statistics.items()}
        if isinstance(statistics, dict)
        else np.shape(statistics.mean)
    )


def _line(space: Any) -> str:
    return " ".join(str(space).split())


def fingerprint(encoder: FrozenEncoder | None) -> str | None:
    """SHA-256 of an encoder's weights and of the frames that it takes; None for no encoder.

    Example:
        >>> from latent_obs.encoder.architecture import Architecture
        >>> one, two = (FrozenEncoder.random(Architecture((16, 16, 3), 8), seed=seed, device="cpu") for seed in (0, 1))
        >>> fingerprint(one) == fingerprint(one), fingerprint(one) == fingerprint(two)
        (True, False)
    """
    if encoder is None:
        return None
    digest = hashlib.sha256(repr(encoder.contract).encode())
    for name, tensor in sorted(encoder._network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_encoder(run: Path, name: str, encoder: FrozenEncoder | None) -> None:
    """Refuse another encoder than the agent was trained with.

    Raises:
        InputError: It is another one.
    """
    trained, given = agent_state(run, name).get("encoder"), fingerprint(encoder)
    if trained is not None and trained != given:
        source = "no encoder" if encoder is None else encoder.path or encoder
        raise InputError(
            f"agent {name!r} of {run} was trained with an encoder whose fingerprint is {trained[:12]}…, and {source} has "
            f"{(given or 'none')[:12]}…: its latents mean something else to the agent. Put the encoder back that was copied "
            f"to {run / 'encoder'} when it was trained, or train again with --encoder"
        )


def encoder_of(run: Path, name: str) -> Path | None:
    """The encoder folder that an agent was trained with; None where it has none.

    It is `encoder/` of the run, except for agents saved before the run's encoder was exchanged by the removed command
    `latent-obs alternate`: their encoder is one of those in `encoders/`.

    Raises:
        InputError: There are encoders, and the agent was trained with none of them.
        EncoderFolderError: The only encoder is damaged.
    """
    present = run / "encoder"
    folders = [f for f in [present, *sorted(run.glob("encoders/*"), reverse=True)] if f.is_dir()]
    if len(folders) < 2 or AgentConfig.load(run).observation != "latent":
        return present if present in folders else None  # one: loading the agent checks it
    wanted = agent_state(run, name).get("encoder")
    for folder in folders:
        if wanted in (None, fingerprint(FrozenEncoder.load(folder, device="cpu"))):
            return folder
    raise InputError(f"agent {name!r} of {run} was trained with none of the encoders {', '.join(map(str, folders))}")
