"""Small datasets with several episodes, written by the packages that define their formats."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
import zarr
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from zarr.storage import LocalStore, ZipStore


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write_minari(
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    episodes: list[dict[str, Any]],
    data_format: str = "hdf5",
    **options: Any,
) -> Path:
    """The folder of the dataset "test/pixels-v0", below the folder that MINARI_DATASETS_PATH names.

    An episode has `observations` and `actions`; its rewards are 0, 1, 2, ... and it is terminated at its end.
    """
    buffers: list[EpisodeBuffer] = []
    for episode in episodes:
        steps = len(next(iter(_leaves(episode["actions"]))))
        ends = [False] * (steps - 1) + [True]
        buffers.append(
            EpisodeBuffer(
                **episode, rewards=[*map(float, range(steps))], terminations=ends, truncations=[False] * steps
            )
        )
    with pytest.warns(UserWarning, match="None"):  # that it does not know the author, and so on
        dataset = minari.create_dataset_from_buffers(
            "test/pixels-v0",
            buffers,
            observation_space=observation_space,
            action_space=action_space,
            data_format=data_format,
            **options,
        )
    return Path(dataset.storage.data_path)


def _leaves(values: Any) -> list[Any]:
    if isinstance(values, dict | tuple):
        inner = values.values() if isinstance(values, dict) else values
        return [leaf for each in inner for leaf in _leaves(each)]
    return [values]


def write_robomimic(file: Path, demos: Mapping[str, Mapping[str, Any]], base: str = "data") -> Path:
    """An HDF5 file of demonstrations; a demonstration has arrays by name ("obs/agentview_image", "actions")."""
    with h5py.File(file, "w") as handle:
        for demo, arrays in demos.items():
            for name, values in arrays.items():
                handle.create_dataset(f"{base}/{demo}/{name}", data=values, chunks=True, compression="gzip")
    return file


def write_zarr(path: Path, data: Mapping[str, Any], ends: Any, zarr_format: Any = 2, chunk: int = 4) -> Path:
    """A replay buffer as diffusion-policy lays it out, in a folder, or in a file if its name ends on .zip."""
    store = ZipStore(path, mode="w") if path.suffix == ".zip" else LocalStore(path)
    group = zarr.create_group(store, zarr_format=zarr_format)
    for name, values in {
        **{f"data/{name}": values for name, values in data.items()},
        "meta/episode_ends": ends,
    }.items():
        values = np.asarray(values)
        array = group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=(chunk, *values.shape[1:]))
        array[...] = values
    store.close()
    return path
