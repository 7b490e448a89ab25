"""`make` and `env_maker`: environments by name, here or in processes, as Gymnasium or Stable-Baselines3 takes them."""

import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import AddRenderObservation

import latent_obs
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.envs.factory import Vectorization, env_maker, find_spec, has_layer, make_pixel_env
from latent_obs.envs.faults import CheckedEnv, LastRealFrame, RestartOnFault
from latent_obs.envs.sb3_bridge import infos_by_environment
from latent_obs.util.errors import GameLostError, InputError
from latent_obs.wrappers.features import FeatureObservation
from latent_obs.wrappers.single import LatentObservation
from latent_obs.wrappers.vector import VectorLatentObservation
from tests.support.stranger_envs import Odd
from tests.support.tiny import LATENT_DIM, picture, tiny_architecture
from vae_training.recording.recorder import RecordConfig, record

#: Registered here and not in the workers, to which the registration is sent.
ENV, SMALL, BROKEN = "FactoryTests/Pixels-v0", "FactoryTests/Tiny-v0", "FactoryTests/Broken-v0"
ODD, WRONG = "Stranger/Odd-v0", "FactoryTests/Wrong-v0"

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


KEYS = {"mission": "image", "nested": "sight/left", "two": "sight/right", "tuple": "0"}


@pytest.mark.parametrize("kind", list(KEYS))
@pytest.mark.parametrize("latent_only", [False, True])
def test_parts_of_an_observation_are_found_where_they_are(
    encoder: FrozenEncoder, tmp_path: Path, kind: str, latent_only: bool
):
    key = KEYS[kind]
    how: dict[str, Any] = {"latent_only": latent_only, "pixel_key": key if kind == "two" else None}
    for env in (latent_obs.make(ODD, encoder, kind=kind, **how), latent_obs.wrap(Odd(kind), encoder, **how)):
        shown = env.reset(seed=0)[0]
        np.testing.assert_allclose(shown if latent_only else shown[key], encoder(picture(0, 0)), atol=1e-5)
    for vectorization in ("sync", "sb3-sync"):
        venv = latent_obs.make(ODD, encoder, kind=kind, num_envs=1, vectorization=vectorization, **how)
        shown = venv.reset()
        shown = shown if vectorization == "sb3-sync" else shown[0]
        np.testing.assert_allclose((shown if latent_only else shown[key])[0], encoder(picture(0, 0)), atol=1e-5)
    record(RecordConfig(ODD, tmp_path, frames=8, size=None, env_kwargs={"kind": kind}, pixel_key=key))
    np.testing.assert_array_equal(np.load(next(tmp_path.glob("*.npy")))[3], picture(0, 3))


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("two", "pixel_key"),
        ("stack", "history=4"),
        ("stacks", "history=4"),
        ("tiles", "render=True"),
        ("numbers", "render=True"),
        ("zero-one", "TransformObservation"),
        ("zero-one floats", "TransformObservation"),
    ],
)
def test_the_same_way_out_is_named_everywhere(encoder: FrozenEncoder, tmp_path: Path, kind: str, named: str):
    ways: list[Callable[[], Any]] = [
        lambda: latent_obs.make(ODD, encoder, kind=kind),
        lambda: latent_obs.make(ODD, encoder, kind=kind, latent_only=True),
        lambda: latent_obs.make(ODD, encoder, kind=kind, num_envs=2),
        lambda: latent_obs.make(ODD, encoder, kind=kind, num_envs=2, vectorization="sb3-sync"),
        lambda: latent_obs.wrap(Odd(kind), encoder),
        lambda: LatentObservation(Odd(kind), encoder),
        lambda: VectorLatentObservation(SyncVectorEnv([partial(Odd, kind)]), encoder),
        lambda: record(RecordConfig(ODD, tmp_path / "frames", frames=8, env_kwargs={"kind": kind})),
    ]
    for way in ways:
        with pytest.raises(InputError, match=named) as error:
            way()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["nested", "tuple"])
def test_parts_within_parts_need_a_wrapper_that_is_named(encoder: FrozenEncoder, kind: str):
    for way in (
        lambda: LatentObservation(Odd(kind), encoder),
        lambda: LatentObservation(Odd(kind), encoder, pixel_key=KEYS[kind]),
        lambda: VectorLatentObservation(SyncVectorEnv([partial(Odd, kind)]), encoder),
    ):
        with pytest.raises(InputError, match=r"FeatureObservation.*pixel_key="):
            way()
    env = LatentObservation(FeatureObservation(Odd(kind)), encoder)
    np.testing.assert_allclose(env.reset()[0][KEYS[kind]], encoder(picture(0, 0)), atol=1e-5)


def test_an_environment_without_pixels_shows_what_it_draws(encoder: FrozenEncoder, tmp_path: Path):
    venv = latent_obs.make(ODD, encoder, kind="numbers", num_envs=2, render=True)
    one = latent_obs.make(ODD, encoder, kind="numbers", render=True)
    by_hand = latent_obs.wrap(AddRenderObservation(Odd("numbers", "rgb_array")), encoder)
    np.testing.assert_allclose(venv.reset()[0][1], encoder(picture(0, 0)), atol=1e-5)
    for env in (one, by_hand):
        env.reset()
        np.testing.assert_allclose(env.step(0)[0], encoder(picture(0, 1)), atol=1e-5)
    record(RecordConfig(ODD, tmp_path, frames=4, size=None, env_kwargs={"kind": "numbers"}, render=True))
    np.testing.assert_array_equal(np.load(next(tmp_path.glob("*.npy")))[3], picture(0, 3))
    with pytest.raises(InputError, match="render"):
        latent_obs.make(ENV, encoder, render=True)  # it draws nothing


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
    faults = 0
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


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("CartPol-v1", r"'CartPol-v1' is registered\. Did you mean CartPole-v\d, .*\? If a module"),
        ("CartPole-v99", r"'CartPole-v99' is registered\. Did you mean CartPole-v\d, .*\? If a module"),
        ("NoSuchThing-v0", r"is registered\. gymnasium\.pprint_registry\(\) lists all\. If a module"),
        ("Nowhere/Pong-v5", r"is registered \(Namespace Nowhere not found.*\)\. "),
    ],
)
def test_only_names_that_look_alike_are_suggested(env_id: str, message: str):
    with pytest.raises(InputError, match=message):
        find_spec(env_id)


@pytest.mark.parametrize("env_id", ["no.such.module:CartPole-v1", "tests.support.tiny:CardPole-v1", "CartPole-v99"])
def test_an_id_that_is_not_found_is_named(env_id: str, encoder: FrozenEncoder):
    for make_it in (make_pixel_env, env_maker, partial(latent_obs.make, encoder=encoder, num_envs=2)):
        with pytest.raises(InputError, match=env_id.rpartition(":")[2]):
            make_it(env_id)
