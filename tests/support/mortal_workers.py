"""Mortal environments in processes that may be replaced, and how they are killed; the tests of restarts share them."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.tiny import closed_without_a_trace

pytest.importorskip("stable_baselines3")

from latent_obs.envs.workers import ProcessVecEnv
from tests.support.mortal_env import Mortal

METHODS = [m for m in ("forkserver", "fork", "spawn") if m in multiprocessing.get_all_start_methods()]
#: The quickest one: what it is about is the same in all.
QUICK = "fork" if "fork" in METHODS else METHODS[0]
Start = Callable[..., ProcessVecEnv]


@pytest.fixture(autouse=True, scope="module")
def preload() -> None:
    multiprocessing.set_forkserver_preload(["latent_obs.envs.env_worker"])


@pytest.fixture
def said() -> list[str]:
    """What was told of replaced workers."""
    return []


@pytest.fixture
def start(tmp_path: Path, said: list[str]) -> Iterator[Start]:
    """Make a vector of `Mortal`s; it is closed in the end, and all must be gone."""

    def make(
        *envs: dict[str, Any], kind: Any = Mortal, start_method: str = QUICK, restarts: int = 20, **kwargs: Any
    ) -> ProcessVecEnv:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        makers: Any = [partial(kind, folder, number, **env) for number, env in enumerate(envs)]
        how = {"close_grace_s": 3.0, "on_restart": said.append, **kwargs}
        made.append(ProcessVecEnv(makers, start_method, restarts=restarts, **how))
        return made[-1]

    with closed_without_a_trace() as made:
        yield make


def step(venv: Any, *actions: int) -> Any:
    return venv.step(np.array(actions))


def shape(observation: Any) -> tuple[int, ...]:
    return observation.shape


def kill(venv: ProcessVecEnv, *numbers: int) -> None:
    for number in numbers:
        os.kill(venv.processes[number].pid or 0, signal.SIGKILL)
