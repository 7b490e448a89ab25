"""The replay buffer of an off-policy agent as plain arrays in its .zip: no pickle, and no copy of what was never filled."""

import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from latent_obs.errors import InputError

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
        raise InputError(f"{archive.filename} has a replay buffer of {size:,} steps an environment, not {buffer.buffer_size:,}")
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
