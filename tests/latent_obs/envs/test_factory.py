"""`make` and `env_maker`: environments by name, here or in processes, as Gymnasium or Stable-Baselines3 takes them."""

import traceback
from pathlib import Path
from typing import Any, get_args

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import latent_obs
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.envs.factory import Vectorization, env_maker
from latent_obs.envs.faults import CheckedEnv, RestartOnFault
from latent_obs.envs.sb3_bridge import infos_by_environment
from latent_obs.util.errors import GameLostError, InputError
from tests.support.tiny import LATENT_DIM, tiny_architecture

#: Registered here and not in the workers, to which the registration is sent.
ENV, SMALL, BROKEN = "FactoryTests/Pixels-v0", "FactoryTests/Tiny-v0", "FactoryTests/Broken-v0"
WRONG = "FactoryTests/Wrong-v0"

gym.register(ENV, entry_point="tests.support.tiny:limited", kwargs={"kind": "dict", "limit": 3})
gym.register(SMALL, entry_point="tests.support.tiny:PixelEnv", kwargs={"size": (9, 9)})
gym.register(WRONG, entry_point="tests.support.scripted_env:Wrong", disable_env_checker=True)
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
@pytest.mark.parametrize("vectorization", get_args(Vectorization))
def test_an_environment_that_raises_or_hangs_costs_its_episode(
    encoder: FrozenEncoder, tmp_path: Path, vectorization: Any
):
    arguments = {"folder": tmp_path, "size": 16, "latent_only": True, "step_deadline_s": 0.5}
    venv = latent_obs.make(BROKEN, encoder, num_envs=2, vectorization=vectorization, **arguments)
    try:
        venv.reset()
        faults: list[Any] = []
        for _ in range(22):
            infos = venv.step(np.zeros(2, int))[-1]
            if not vectorization.startswith("sb3"):
                infos = infos_by_environment(infos.get("final_info", {}), 2)
            faults.append([info.get("fault") for info in infos])
        assert faults[9] == ["RuntimeError: the engine is gone"] * 2
        assert all("step_deadline_s" in fault for fault in faults[19])
        assert not any(fault for i, both in enumerate(faults) for fault in both if i not in (9, 19))
    finally:
        venv.close()


def test_ten_faults_in_a_row_are_the_end_with_the_last_ones_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    env = env_maker(BROKEN, folder=tmp_path, fails=("raise", "raise"))()
    with pytest.raises(GameLostError) as caught:  # noqa: PT012
        for faults in range(99):
            assert env.reset()[1]["faults"] == faults
            while "fault" not in env.step(0)[-1]:
                pass
    assert faults == 10
    assert sum(pauses) < 15
    assert "in step" in "".join(traceback.format_exception(caught.value))
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("wrong", "vectorization"),
    [(wrong, None) for wrong in ("reward", "rewards", "shape", "dtype", "nan", "missing", "choice")]
    + [(wrong, way) for wrong in ("rewards", "shape") for way in get_args(Vectorization)],
)
def test_what_no_agent_can_learn_from_is_named(encoder: FrozenEncoder, wrong: str, vectorization: Any):
    number = None if vectorization is None else 1
    arguments = {"num_envs": None if number is None else 2, "vectorization": vectorization or "sync"}
    env = latent_obs.make(WRONG, encoder, flatten=True, wrong=wrong, **arguments)
    try:
        env.reset()
        step = [0, 1] if number else 1
        with pytest.raises(InputError) as caught:  # noqa: PT012
            for _ in range(9):
                env.step(step)
        for named in (
            "environment 1" if number else "",
            WRONG,
            "step 3",
            "reward" if "reward" in wrong else "observation",
        ):
            assert named in str(caught.value)
    finally:
        env.close()


def test_the_rewards_of_ones_own_vector_are_checked_as_well(encoder: FrozenEncoder):
    venv = gym.make_vec(WRONG, 2, vectorization_mode="sync", wrong="reward")
    env = latent_obs.VectorLatentObservation(venv, encoder)
    env.reset()
    env.step([1, 0])
    env.step([1, 0])
    with pytest.raises(InputError, match=r"environment 0, step 3 .*nan"):
        env.step([1, 0])


def test_a_number_beyond_its_bounds_is_logged_once(caplog: pytest.LogCaptureFixture):
    env = CheckedEnv(gym.make(WRONG, wrong="far"))
    env.reset()
    for _ in range(5):
        env.step(1)
    [message] = caplog.messages
    assert all(named in message for named in (WRONG, "step 3", "compass", "7.0"))


def test_a_maker_makes_environments_that_are_made_anew():
    env = env_maker(ENV, limit=5)()
    assert isinstance(env, RestartOnFault)
    assert env.remake is not None
    for made in (env.env, env.remake()):
        assert made.get_wrapper_attr("_max_episode_steps") == 5
