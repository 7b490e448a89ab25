"""Scripted environments in processes, and how often each was closed; the tests of ProcessVecEnv share them."""

import multiprocessing
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("stable_baselines3")

from latent_obs.envs.workers import ProcessVecEnv
from tests.support.scripted_env import Scripted
from tests.support.tiny import closed_without_a_trace

METHODS = [m for m in ("forkserver", "fork", "spawn") if m in multiprocessing.get_all_start_methods()]


def closed(folder: Path) -> dict[int, str]:
    """How often each environment was closed, in letters."""
    return {int(file.name.split("-")[1]): file.read_text() for file in folder.glob("closed-*")}


@pytest.fixture(autouse=True, scope="module")
def preload() -> None:
    multiprocessing.set_forkserver_preload(["latent_obs.envs.env_worker"])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ProcessVecEnv]]:
    """Make a `ProcessVecEnv` of `Scripted`s, each with its own fault; it is closed in the end, and all must be gone."""

    def make(*faults: str, start_method: str = METHODS[0], close_grace_s: float = 5.0, size: int = 8) -> ProcessVecEnv:
        makers: Any = [partial(Scripted, tmp_path, number, fault, size) for number, fault in enumerate(faults)]
        made.append(ProcessVecEnv(makers, start_method, close_grace_s=close_grace_s))
        return made[-1]

    with closed_without_a_trace() as made:
        yield make
