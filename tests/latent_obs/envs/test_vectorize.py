"""Several environments by name: in processes or here, as Gymnasium or Stable-Baselines3 takes them, all alike."""

from typing import Any, get_args

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import latent_obs
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.envs.factory import Vectorization
from latent_obs.util.errors import InputError
from latent_obs.wrappers.sb3 import VecLatentObservation
from latent_obs.wrappers.vector import VectorLatentObservation
from tests.support.tiny import LATENT_DIM, tiny_architecture

#: Worker processes import this module by its name, and find the environment registered.
ENV = "test_vectorize:Pixels-v0"
SMALL = "test_vectorize:Tiny-v0"

gym.register("Pixels-v0", entry_point="conftest:limited", kwargs={"kind": "dict", "limit": 3})
gym.register("Tiny-v0", entry_point="conftest:PixelEnv", kwargs={"size": (9, 9)})


def numbers(observation: Any) -> list[np.ndarray[Any, Any]]:
    return [observation[key] for key in sorted(observation)] if isinstance(observation, dict) else [observation]


@pytest.mark.parametrize("vectorization", get_args(Vectorization))
@pytest.mark.parametrize(
    "options", [{}, {"flatten": True, "history": 2}, {"latent_only": True, "pixel_key": "pov"}], ids=str
)
def test_all_ways_show_what_one_environment_shows(encoder: FrozenEncoder, vectorization: Any, options: dict[str, Any]):
    one = latent_obs.make(ENV, encoder, **options)
    venv: Any = latent_obs.make(ENV, encoder, num_envs=2, vectorization=vectorization, **options)
    try:
        is_sb3 = vectorization.startswith("sb3")
        kind: type = VecLatentObservation if is_sb3 else VectorLatentObservation
        assert kind.__name__ == type(venv).__name__
        assert (venv.observation_space if is_sb3 else venv.single_observation_space) == one.observation_space
        assert venv.index == one.index
        if is_sb3:
            venv.seed(0)
        seen = [numbers(venv.reset() if is_sb3 else venv.reset(seed=0)[0])]
        wanted = [numbers(one.reset(seed=0)[0])]
        for _ in range(4):
            seen.append(numbers(venv.step(np.ones(2, int))[0]))
            observation, _, terminated, truncated, _ = one.step(1)
            wanted.append(numbers(one.reset()[0] if terminated or truncated else observation))
        for a, b in zip(seen, wanted, strict=True):
            for of_all, of_one in zip(a, b, strict=True):
                for i in range(2):
                    np.testing.assert_allclose(of_all[i], of_one, atol=1e-5)
    finally:
        venv.close()


def test_the_other_options_reach_the_wrapper(encoder: FrozenEncoder):
    venv = latent_obs.make(
        ENV, encoder, num_envs=1, vectorization="sync", keep_pixels=True, autoreset_mode=AutoresetMode.NEXT_STEP
    )
    assert venv.single_observation_space["pov"].shape == (20, 28, 3)  # as the environment gives it, not resized
    assert venv.single_observation_space["pov_latent"].shape == (LATENT_DIM,)
    assert venv.autoreset_mode is AutoresetMode.NEXT_STEP
    several = latent_obs.make(
        ENV,
        {"pov": [encoder, FrozenEncoder.random(tiny_architecture(), device="cpu")]},
        num_envs=1,
        vectorization="sync",
    )
    assert several.single_observation_space["pov"].shape == (2 * LATENT_DIM,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs must be 1 or more environments, got 0"),
        ({"num_envs": 2.0}, "num_envs must be"),
        ({"num_envs": 2, "vectorization": "threads"}, "must be one of sync, async, sb3-sync, sb3-async, got 'threads'"),
        ({"num_envs": 2, "colour": "red"}, "does not take the arguments"),
        ({"num_envs": 2, "pixel_key": "nothing"}, "'nothing' is not in the observation"),
        ({"num_envs": 2, "vectorization": "sync", "keep_pixels": True, "flatten": True}, "choose one of them"),
    ],
)
def test_bad_arguments(encoder: FrozenEncoder, arguments: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        latent_obs.make(ENV, encoder, **arguments)


def test_frames_far_too_small_are_refused(encoder: FrozenEncoder):
    with pytest.raises(InputError, match=r"frames of 9x9, far smaller than the 16x16"):
        latent_obs.make(SMALL, encoder, num_envs=2, vectorization="sync")
