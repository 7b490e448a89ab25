"""What holds an encoder can be copied, pickled and sent to another process, and shows the same there."""

import copy
import pickle
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.wrappers.sb3 import VecLatentObservation
from latent_obs.wrappers.single import LatentObservation
from latent_obs.wrappers.vector import VectorLatentObservation
from tests.support.tiny import limited

MAKERS: list[Any] = [partial(limited, "box", 10 * i, 3) for i in range(2)]


def wrapped(encoder: FrozenEncoder, number: int = 0) -> gym.Env[Any, Any]:
    return LatentObservation(MAKERS[number](), encoder, history=2)


def single(encoder: FrozenEncoder) -> Any:
    env = wrapped(encoder)
    env.reset(seed=0)
    return env, lambda it: it.step(1)[0]


def vector(encoder: FrozenEncoder) -> Any:
    venv = VectorLatentObservation(SyncVectorEnv(MAKERS), encoder, history=2)
    venv.reset(seed=0)
    return venv, lambda it: it.step(np.ones(2, int))[0]


def vec_env(encoder: FrozenEncoder) -> Any:
    venv = VecLatentObservation(DummyVecEnv(MAKERS), encoder, history=2)
    venv.reset()
    return venv, lambda it: it.step(np.ones(2, int))[0]


HOLDERS = {"LatentObservation": single, "VectorLatentObservation": vector, "VecLatentObservation": vec_env}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_goes_on_as_the_original_would(encoder: FrozenEncoder, holder: str, way: str):
    original, step = HOLDERS[holder](encoder)
    step(original)
    other = copy.deepcopy(original) if way == "deepcopy" else pickle.loads(pickle.dumps(original))
    assert (other.encoder is encoder) is (way == "deepcopy")  # weights are shared in a process, and carried to another
    for _ in range(4):  # over the end of an episode
        np.testing.assert_allclose(step(other), step(original), atol=1e-6)


def test_copies_do_not_share_their_history(encoder: FrozenEncoder):
    original, step = single(encoder)
    other = copy.deepcopy(original)
    before = step(copy.deepcopy(original))
    for _ in range(2):
        step(other)
    np.testing.assert_array_equal(step(original), before)


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_wrappers_work_inside_worker_processes(encoder: FrozenEncoder, method: str):
    makers: list[Any] = [partial(wrapped, encoder, number) for number in range(2)]
    here: Any = DummyVecEnv(makers)
    there: Any = SubprocVecEnv(makers, start_method=method)
    gymnasium = AsyncVectorEnv(makers, context=method)
    try:
        here.seed(0)
        there.seed(0)
        wanted: Any = here.reset()
        np.testing.assert_allclose(there.reset(), wanted, atol=1e-6)
        np.testing.assert_allclose(gymnasium.reset(seed=0)[0], wanted, atol=1e-6)
        np.testing.assert_allclose(there.step(np.ones(2, int))[0], here.step(np.ones(2, int))[0], atol=1e-6)
    finally:
        there.close()
        gymnasium.close()
