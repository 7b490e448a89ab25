"""Vector environments of an agent: the same latents with and without processes; and what is rejected before any
starts.
"""

import dataclasses
import signal
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from agents.envs import load_encoder, make_vec_env, with_normalization
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.envs.factory import _GameOfItsOwn
from latent_obs.envs.sb3_bridge import ProcessVecEnv
from latent_obs.util.errors import DeviceError, EncoderFolderError, InputError
from tests.support.side_env import SIDE, tiny
from tests.support.tiny import LATENT_DIM, picture, random_frames


def play(venv: VecEnv, steps: int = 10) -> list[Any]:
    """Observations, rewards and last observations of fixed actions."""
    story: list[Any] = [venv.reset()]
    for step in range(steps):
        observation, rewards, dones, infos = venv.step(np.full(venv.num_envs, step % 2))
        story += [observation, rewards, dones, [info.get("terminal_observation") for info in infos]]
    return story


@pytest.mark.integration
def test_processes_see_what_this_process_sees(encoder: FrozenEncoder):
    config, before = tiny(env=SIDE, seed=3), signal.getsignal(signal.SIGINT)
    serial = make_vec_env(config, encoder)
    processes = make_vec_env(dataclasses.replace(config, workers="processes"), encoder)
    try:
        assert isinstance(processes.unwrapped, ProcessVecEnv)
        assert not isinstance(serial.unwrapped, ProcessVecEnv)
        assert processes.observation_space == serial.observation_space
        one, other = play(serial), play(processes)
        np.testing.assert_equal(one, other)
        assert any(last is not None for last in one[4::4][7])
        assert processes.env_method("sigint_handler") == [str(signal.SIG_IGN)] * 2  # the parent decides when they stop
        assert serial.env_method("sigint_handler") == [str(signal.getsignal(signal.SIGINT))] * 2
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        serial.close()
        processes.close()


@pytest.mark.integration
def test_no_worker_imports_torch(encoder: FrozenEncoder, tmp_path: Path):
    scripted = {"folder": str(tmp_path), "size": 16}
    config = tiny(env="tests.support.scripted_env:Scripted-v0", workers="processes", env_kwargs=scripted)
    venv = with_normalization(config, make_vec_env(config, encoder), training=True)
    try:
        venv.reset()
        for _ in range(6):  # into the second episode
            venv.step(np.zeros(2, np.int64))
        for module in ("torch", "stable_baselines3"):
            assert venv.env_method("imports", module) == [False, False], module
    finally:
        venv.close()


def test_an_agent_sees_what_the_environment_draws(encoder: FrozenEncoder):
    env = {"env": "tests.support.stranger_envs:Stranger/Odd-v0", "env_kwargs": {"kind": "numbers"}}
    with pytest.raises(InputError, match="--render"):
        make_vec_env(tiny(**env), encoder)
    venv = make_vec_env(tiny(**env, render=True), encoder)
    np.testing.assert_allclose(np.asarray(venv.reset())[1], encoder(picture(0, 0)), atol=1e-5)


def test_returns_are_those_of_a_monitor_around_each(encoder: FrozenEncoder):
    def episodes(venv: VecEnv) -> list[Any]:
        venv.reset()
        infos = [venv.step(np.zeros(2, np.int64))[3] for _ in range(200)]
        return [[info.get("episode") for info in both] for both in infos]

    kwargs = {"length": 99, "reward": 0.1}  # sums of which differ in single precision
    monitored = DummyVecEnv([lambda: Monitor(gym.make("Side-v0", **kwargs))] * 2)
    monitored.seed(4)
    counted = episodes(make_vec_env(tiny(env_kwargs=kwargs, seed=4), encoder))
    expected = episodes(monitored)
    ends = [one for both in counted for one in both if one is not None]
    assert len(ends) == 4
    for one in (*ends, *(one for both in expected for one in both if one is not None)):
        assert one.pop("t") >= 0
    assert counted == expected
    assert {type(value) for one in ends for value in one.values()} == {float, int}  # as a log can write them


@pytest.mark.integration
def test_vizdoom_in_two_processes_gives_the_latents_of_its_frames(encoder: FrozenEncoder):
    pytest.importorskip("vizdoom")
    config = tiny(env="VizdoomBasic-v1", frame_skip=4, workers="processes", latent_only=True)
    latents = make_vec_env(config, encoder)
    frames = make_vec_env(dataclasses.replace(config, observation="pixels", workers="serial"), encoder)
    try:
        seen, pictures = play(latents, 3), play(frames, 3)
    finally:
        latents.close()
        frames.close()
    for latent, frame in zip(seen[:1] + seen[1::4], pictures[:1] + pictures[1::4], strict=True):
        assert latent.shape == (2, LATENT_DIM)
        assert latent.dtype == np.float32
        assert frame.std() > 5  # a game, not a black frame
        np.testing.assert_allclose(latent, encoder.encode(frame), atol=1e-5)
    assert not np.array_equal(seen[0][0], seen[0][1]), "two environments, two seeds"


def test_the_same_seed_is_the_same_and_another_is_not(encoder: FrozenEncoder):
    def first(seed: int | None) -> Any:
        venv = make_vec_env(tiny(seed=1), encoder, envs=3, seed=seed)
        assert venv.num_envs == 3
        return venv.reset()

    np.testing.assert_equal(first(None), first(1))
    assert not np.array_equal(first(None), first(2))
    np.testing.assert_equal(first(1)[1], first(2)[0])  # seed, seed + 1 …


def test_what_a_dict_becomes(encoder: FrozenEncoder):
    config = tiny(env_kwargs={"kind": "dict"})
    whole = make_vec_env(config, encoder)
    assert isinstance(whole.observation_space, spaces.Dict)
    observation = whole.reset()
    assert isinstance(observation, dict)
    assert {k: v.shape for k, v in observation.items()} == {"pov": (2, LATENT_DIM), "clock": (2, 1)}
    alone = make_vec_env(dataclasses.replace(config, latent_only=True), encoder)
    assert isinstance(alone.observation_space, spaces.Box)
    np.testing.assert_array_equal(alone.reset(), observation["pov"])
    pixels = make_vec_env(dataclasses.replace(config, latent_only=True, observation="pixels"), encoder)
    frames = pixels.reset()
    assert isinstance(frames, np.ndarray)
    assert frames.shape == (2, 16, 16, 3)
    np.testing.assert_allclose(encoder.encode(frames), observation["pov"], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"env": "CartPole-v1"}, "uint8"),
        ({"env_kwargs": {"actions": "dict"}}, "actions"),
        ({"env_kwargs": {"actions": "unbounded"}}, "TransformAction"),
        ({"env_kwargs": {"actions": "whole"}}, "TransformAction"),
        ({"algorithm": "sac", "env_kwargs": {"actions": "huge"}}, "TransformAction"),
        ({"algorithm": "recurrent-ppo", "env_kwargs": {"actions": "keys"}}, r"\(ppo\)"),
        ({"algorithm": "qr-dqn", "env_kwargs": {"actions": "multi"}}, "ppo, recurrent-ppo"),
        ({"env": "Syde-v0"}, "Side-v0"),
        ({"env_kwargs": {"color": 3}}, "color"),
        ({"env_kwargs": {"kind": "grey"}}, r"\(16, 16, 1\)"),
        ({"env_kwargs": {"kind": "dict"}, "pixel_key": "clock"}, "clock"),
    ],
)
def test_an_unsuitable_environment_is_an_input_error(encoder: FrozenEncoder, settings: dict[str, Any], named: str):
    off_policy = {"n_steps": None, "n_epochs": None} if settings.get("algorithm") in ("qr-dqn", "sac") else {}
    with pytest.raises(InputError, match=named):
        make_vec_env(tiny(**off_policy, **settings), encoder)


def test_the_encoder_of_each_kind_of_agent(encoder_folder: Path, encoder: FrozenEncoder):
    frames = random_frames(3)
    trained = load_encoder(tiny(encoder=encoder_folder))
    assert trained is not None
    np.testing.assert_array_equal(trained.encode(frames), encoder.encode(frames))
    assert load_encoder(tiny(observation="pixels")) is None
    pixels = load_encoder(tiny(observation="pixels", encoder=encoder_folder))
    assert pixels is not None
    assert pixels.contract == encoder.contract  # the pixel agent sees frames of the same size
    with pytest.raises(InputError, match="encoder"):
        load_encoder(tiny())
    with pytest.raises(EncoderFolderError, match="nowhere"):
        load_encoder(tiny(encoder=Path("nowhere/at/all")))
    with pytest.raises(DeviceError, match="cuda:63"):
        load_encoder(tiny(encoder=encoder_folder, device="cuda:63"))


def test_the_random_encoder_depends_on_the_seed(encoder_folder: Path, encoder: FrozenEncoder):
    def latents(seed: int, folder: Path | None = None) -> NDArray[np.float32]:
        made = load_encoder(tiny(observation="random-latent", encoder=folder, seed=seed))
        assert made is not None
        assert folder is None or made.architecture == encoder.architecture
        return made(random_frames(2, (64, 64, 3)))

    np.testing.assert_array_equal(latents(5), latents(5))
    assert not np.allclose(latents(5), latents(6), rtol=0.1)
    assert not np.allclose(latents(5, encoder_folder), latents(6, encoder_folder), rtol=0.1)


@pytest.mark.parametrize("kind", ["box", "dict"])
@pytest.mark.parametrize("how", ["off", "together"])
@pytest.mark.parametrize("observation", ["latent", "pixels"])
def test_numbers_are_normalized_and_pixels_are_not(encoder: FrozenEncoder, kind: str, how: Any, observation: Any):
    config = tiny(env_kwargs={"kind": kind}, normalize_observation=how, observation=observation)
    venv = with_normalization(config, make_vec_env(config, encoder), training=True)
    seen: Any = venv.reset()
    for _ in range(3):  # the clock is 0, its mean, at first
        seen = venv.step(np.zeros(2, np.int64))[0]
    raw: Any = venv.get_original_obs()
    first, first_raw = (seen["pov"], raw["pov"]) if isinstance(seen, dict) else (seen, raw)
    assert np.array_equal(first, first_raw) is (observation == "pixels" or how == "off")
    assert first.dtype == (np.uint8 if observation == "pixels" else np.float32)
    if isinstance(seen, dict):
        assert np.array_equal(seen["clock"], raw["clock"]) is (how == "off")


def test_rewards_are_scaled_in_training_only(encoder: FrozenEncoder):
    training = with_normalization(tiny(), make_vec_env(tiny(), encoder), training=True)
    judging = with_normalization(tiny(), make_vec_env(tiny(), encoder), training=False)
    plain = with_normalization(tiny(normalize_reward=False), make_vec_env(tiny(), encoder), training=True)
    rewards = []
    for venv in (training, judging, plain):
        venv.reset()
        rewards.append(np.array([venv.step(np.zeros(2, np.int64))[1] for _ in range(8)]))
    assert set(rewards[1].ravel()) == {0.0, 1.0}
    np.testing.assert_array_equal(rewards[2], rewards[1])
    assert not np.allclose(rewards[0], rewards[1])
    assert not judging.norm_reward
    assert judging.ret_rms.count == pytest.approx(1e-4), "statistics do not move outside training"


def test_the_folder_that_games_race_for_is_there_before_one_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # ViZDoom makes it where it runs; of games that start together one may find it made a moment ago, and die. The race
    # is rare, so the test is that the folder exists before.
    class Game:
        def is_running(self) -> bool:
            return False

    class Starts(gym.Env[Any, Any]):
        observation_space = spaces.Discrete(2)
        action_space = spaces.Discrete(2)
        game = Game()

        def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
            assert (tmp_path / "_vizdoom").is_dir()
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # the game inherits it
            return 0, {}

    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    _GameOfItsOwn(Starts()).reset()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("kind", ["box", "dict"])
def test_an_agent_on_pixels_sees_the_last_frames(kind: str):
    config = tiny(observation="pixels", env_kwargs={"kind": kind}, history=3)
    one = make_vec_env(tiny(observation="pixels", env_kwargs={"kind": kind}), None)
    venv = make_vec_env(config, None)
    entry = lambda value: value["pov"] if kind == "dict" else value  # noqa: E731
    frames, stacks = [entry(one.reset())], [entry(venv.reset())]
    assert entry(venv.observation_space).shape == (*frames[0].shape[1:3], 9) if kind == "box" else True
    ended = 0
    for step in range(1, 12):
        frames.append(entry(one.step(np.zeros(2, np.int64))[0]))
        observation, _, dones, infos = venv.step(np.zeros(2, np.int64))
        stacks.append(entry(observation))
        if dones.any():
            last = entry(infos[0]["terminal_observation"])
            assert last.shape == stacks[-1].shape[1:]
            np.testing.assert_array_equal(last[..., :3], frames[-3][0])
            assert not stacks[-1][..., :6].any(), "an episode begins with nothing before it"
            ended = step
        elif step - ended >= 2:
            np.testing.assert_array_equal(stacks[-1], np.concatenate(frames[-3:], axis=-1))
    assert ended
