"""`make` and `env_maker`: environments by name, here or in processes, as Gymnasium or Stable-Baselines3 takes them."""

from functools import partial
from typing import Any, get_args

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import latent_obs
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.envs.factory import Vectorization, env_maker, has_layer, make_pixel_env
from latent_obs.envs.faults import LastRealFrame, RestartOnFault
from latent_obs.util.errors import InputError
from tests.support.tiny import LATENT_DIM, tiny_architecture

#: Registered here and not in the workers, to which the registration is sent.
ENV, SMALL, BROKEN = "FactoryTests/Pixels-v0", "FactoryTests/Tiny-v0", "FactoryTests/Broken-v0"

gym.register(ENV, entry_point="tests.support.tiny:limited", kwargs={"kind": "dict", "limit": 3})
gym.register(SMALL, entry_point="tests.support.tiny:PixelEnv", kwargs={"size": (9, 9)})
gym.register(BROKEN, entry_point="tests.support.scripted_env:Faulty", disable_env_checker=True)


def numbers(observation: Any) -> list[np.ndarray[Any, Any]]:
    return [observation[key] for key in sorted(observation)] if isinstance(observation, dict) else [observation]


@pytest.mark.integration
@pytest.mark.parametrize("vectorization", get_args(Vectorization))
@pytest.mark.parametrize(
    "options", [{"flatten": True, "history": 2}, {"latent_only": True, "pixel_key": "pov"}], ids=str
)
def test_all_ways_show_what_one_environment_shows(encoder: FrozenEncoder, vectorization: Any, options: dict[str, Any]):
    one = latent_obs.make(ENV, encoder, **options)
    venv: Any = latent_obs.make(ENV, encoder, num_envs=2, vectorization=vectorization, **options)
    try:
        is_sb3 = vectorization.startswith("sb3")
        assert type(venv).__name__ == ("VecLatentObservation" if is_sb3 else "VectorLatentObservation")
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
    venv = latent_obs.make(ENV, encoder, num_envs=1, keep_pixels=True, autoreset_mode=AutoresetMode.NEXT_STEP)
    assert venv.single_observation_space["pov"].shape == (20, 28, 3)  # in the environment's size, not resized
    assert venv.single_observation_space["pov_latent"].shape == (LATENT_DIM,)
    assert venv.autoreset_mode is AutoresetMode.NEXT_STEP
    both = {"pov": [encoder, FrozenEncoder.random(tiny_architecture(), device="cpu")]}
    several = latent_obs.make(ENV, both, num_envs=1)
    assert several.single_observation_space["pov"].shape == (2 * LATENT_DIM,)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_envs": 0}, "num_envs"),
        ({"num_envs": 2, "vectorization": "threads"}, "vectorization"),
        ({"num_envs": 2, "colour": "red"}, "colour"),
        ({"num_envs": 2, "pixel_key": "nothing"}, "nothing"),
        ({"num_envs": 2}, "9x9"),
        ({"num_envs": 2, "keep_pixels": True, "flatten": True}, "keep_pixels"),
    ],
)
def test_bad_arguments(encoder: FrozenEncoder, arguments: dict[str, Any], named: str):
    with pytest.raises(InputError, match=named):
        latent_obs.make(SMALL if named == "9x9" else ENV, encoder, **arguments)


@pytest.mark.integration
def test_an_environment_that_raises_costs_its_episode(encoder: FrozenEncoder, tmp_path: Any):
    size = {"folder": tmp_path, "size": 16}
    venv = latent_obs.make(BROKEN, encoder, num_envs=2, vectorization="sb3-async", latent_only=True, **size)
    try:
        venv.reset()
        faults: list[Any] = []
        for _ in range(12):
            infos = venv.step(np.zeros(2, int))[3]
            faults.append([info.get("fault") for info in infos])
        assert faults[9] == ["RuntimeError: the engine is gone"] * 2
        assert not any(faults[8] + faults[10] + faults[11])
    finally:
        venv.close()


def test_a_maker_makes_environments_that_are_made_anew():
    env = env_maker(ENV, limit=5)()
    assert isinstance(env, RestartOnFault)
    assert env.remake is not None
    for made in (env.env, env.remake()):
        assert made.get_wrapper_attr("_max_episode_steps") == 5


@pytest.mark.integration
def test_vizdoom_is_known_by_its_class_however_its_id_is_spelled(encoder: FrozenEncoder):
    doom = pytest.importorskip("vizdoom.gymnasium_wrapper.gymnasium_env_defns").VizdoomScenarioEnv
    basic: dict[str, Any] = {"scenario_config_file": "basic.cfg", "max_buttons_pressed": 1}
    gym.register("FactoryTests/Mine-v0", entry_point=doom, kwargs=basic)
    gym.register("VizdoomNone-v0", entry_point="tests.support.tiny:PixelEnv")
    last: list[Any] = []
    for env_id in ("vizdoom.gymnasium_wrapper:VizdoomBasic-v1", "FactoryTests/Mine-v0"):
        made: list[Any] = [env_maker(env_id, frame_skip=50)(), latent_obs.make(env_id, encoder, frame_skip=50)]
        for env in (*made, latent_obs.wrap(gym.make(env_id, frame_skip=50), encoder)):
            env.reset(seed=1)
            steps = [env.step(0) for _ in range(6)]  # 300 tics: the time-out
            observation, _, terminated, truncated, _ = steps[-1]
            assert (terminated, truncated) == (False, True)
            np.testing.assert_equal(observation, steps[-2][0])  # the last real picture, not the black one after it
            last.append(has_layer(env, LastRealFrame))
            env.close()
    assert last == [True] * 6
    assert not has_layer(make_pixel_env("VizdoomNone-v0"), LastRealFrame)
    del gym.registry["FactoryTests/Mine-v0"], gym.registry["VizdoomNone-v0"]


@pytest.mark.parametrize("env_id", ["no.such.module:CartPole-v1", "tests.support.tiny:CardPole-v1", "CartPole-v99"])
def test_an_id_that_is_not_found_is_named(env_id: str, encoder: FrozenEncoder):
    for make_it in (make_pixel_env, env_maker, partial(latent_obs.make, encoder=encoder, num_envs=2)):
        with pytest.raises(InputError, match=env_id.rpartition(":")[2]):
            make_it(env_id)
