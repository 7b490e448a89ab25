"""`latent_obs.rllib`: what runners of RLlib sample, and statistics that they share."""

import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import VectorizeMode, spaces
from gymnasium.vector import AutoresetMode

pytest.importorskip("ray.rllib")
from ray.rllib.algorithms.ppo import PPOConfig  # pyright: ignore[reportMissingImports]
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner  # pyright: ignore[reportMissingImports]
from ray.rllib.env.single_agent_episode import SingleAgentEpisode  # pyright: ignore[reportMissingImports]
from ray.tune.registry import register_env  # pyright: ignore[reportMissingImports]

import latent_obs
from agents.normalization import LatentNormalize as LatentVecNormalize
from latent_obs import FrozenEncoder
from latent_obs.rllib import EncodePixels, LatentNormalize, env_creator
from latent_obs.util.errors import EncoderFolderError, InputError
from tests.support.side_env import SIDE
from tests.support.tiny import LATENT_DIM

pytestmark = pytest.mark.ray


def config_of(encoder: Path, **runners: Any) -> Any:
    register_env("latent-obs", env_creator)
    config = PPOConfig().environment("latent-obs", env_config={"env": SIDE, "encoder": str(encoder), "kind": "dict"})
    return config.env_runners(num_envs_per_env_runner=3, **runners).debugging(seed=5)


def test_a_runner_samples_what_plain_environments_show(encoder_folder: Path):
    config = config_of(encoder_folder, gym_env_vectorize_mode=VectorizeMode.VECTOR_ENTRY_POINT)
    config.environment(env_config={**config.env_config, "latent_only": True})
    runner = SingleAgentEnvRunner(config=config, worker_index=2, num_workers=2)
    episodes = runner.sample(num_timesteps=3 * 20, explore=True)
    seeds = (np.random.SeedSequence(5 + 2).generate_state(3) >> 1).tolist()
    for number, seed in enumerate(seeds):
        plain = latent_obs.make(SIDE, encoder_folder, kind="dict", latent_only=True, device="cpu")
        for episode, has_ended in zip(episodes[number::3], (True, True, False), strict=True):
            shown = [plain.reset(seed=seed)[0]]
            rewards, terminated = [], False
            for action in episode.get_actions():
                observation, reward, terminated, _, _ = plain.step(action)
                shown.append(observation)
                rewards.append(reward)
            np.testing.assert_allclose(episode.get_observations(), shown, rtol=1e-4, atol=1e-5)
            assert list(episode.get_rewards()) == rewards
            assert (len(episode), episode.is_terminated, terminated) == (8 if has_ended else 4, has_ended, has_ended)
            seed = None
        plain.close()
    runner.stop()


def test_pixels_of_all_episodes_are_encoded_in_one_batch(encoder_folder: Path, monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    encode = FrozenEncoder.encode

    def counted(self: FrozenEncoder, frames: Any) -> Any:
        sizes.append(len(frames))
        return encode(self, frames)

    monkeypatch.setattr(FrozenEncoder, "encode", counted)
    connector = EncodePixels(str(encoder_folder), "cpu")
    image = spaces.Box(0, 255, (16, 16, 3), np.uint8)
    connector.input_observation_space = spaces.Dict(pov=image, clock=spaces.Box(0, 9, (1,)))
    frames = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    episodes = [SingleAgentEpisode(observations=[{"pov": frame, "clock": np.ones(1)}], infos=[{}]) for frame in frames]
    connector(batch={}, episodes=episodes, rl_module=None)
    shown = [episode.get_observations(-1) for episode in episodes]
    latents = FrozenEncoder.load(encoder_folder, "cpu")(frames)
    assert sizes[0] == 4
    np.testing.assert_allclose([one["pov"] for one in shown], latents, rtol=1e-4, atol=1e-5)
    assert all(one["clock"] == 1 for one in shown)
    assert connector.observation_space["pov"].shape == (LATENT_DIM,)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED, "SameStep"])
def test_other_autoreset_modes_are_rejected(mode: Any, encoder_folder: Path):
    with pytest.raises(InputError, match="autoreset_mode"):
        env_creator({"env": SIDE, "encoder": encoder_folder, "num_envs": 2, "autoreset_mode": mode})


def test_what_is_missing_is_named(tmp_path: Path):
    with pytest.raises(EncoderFolderError, match=f"node {platform.node()}.*{tmp_path / 'none'}"):
        env_creator({"env": SIDE, "encoder": tmp_path / "none", "num_envs": 2})
    with pytest.raises(InputError, match="encoder"):
        env_creator({"env": SIDE})


def test_without_a_vector_there_is_a_warning_and_one_environment(encoder_folder: Path):
    with pytest.warns(UserWarning, match="VECTOR_ENTRY_POINT"):
        env = env_creator({"env": SIDE, "encoder": encoder_folder})
    assert env.reset(seed=0)[0].shape == (LATENT_DIM,)
    env.close()


def runner_of(rng: np.random.Generator, **settings: Any) -> LatentNormalize:
    connector = LatentNormalize(latents=4, **settings)
    connector.input_observation_space = spaces.Box(-np.inf, np.inf, (6,), np.float32)
    return connector


def shown_by(connector: LatentNormalize, observations: Any, explore: bool = True) -> Any:
    episodes = [SingleAgentEpisode(observations=[one], infos=[{}]) for one in observations]
    connector(batch={}, episodes=episodes, rl_module=None, explore=explore)
    return np.array([episode.get_observations(-1) for episode in episodes])


def test_statistics_of_all_runners_are_those_of_one_pass(rng: np.random.Generator):
    driver, *runners = [runner_of(rng) for _ in range(4)]
    seen = []
    for _ in range(3):
        for number, runner in enumerate(runners):
            for _ in range(5):
                batch = rng.normal(number, [1, 2, 3, 4, 5, 6], (2 + number, 6))
                seen.append(batch)
                shown_by(runner, batch)
        merged = driver.merge_states([runner.get_state() for runner in runners])
        for connector in (driver, *runners):
            connector.set_state(merged)
    everything = np.concatenate(seen)
    for connector in (driver, *runners):
        mean, variance, count = connector.statistics
        np.testing.assert_allclose(mean, everything.mean(0), rtol=1e-4)
        np.testing.assert_allclose(variance, everything.var(0), rtol=1e-4)
        assert count == pytest.approx(len(everything), abs=0.01)


def test_it_normalizes_as_with_stable_baselines3_and_evaluations_add_nothing(rng: np.random.Generator):
    from stable_baselines3.common.running_mean_std import RunningMeanStd
    from stable_baselines3.common.vec_env import DummyVecEnv

    from tests.support.action_envs import Recorder

    mean, variance = rng.normal(size=6), rng.uniform(1, 4, 6)
    connector = runner_of(rng, deviation=0.7, statistics=(mean, variance, 100.0))
    batch = rng.normal(0, 3, (5, 6)).astype(np.float32)

    class Vectors(Recorder):
        def __init__(self) -> None:
            super().__init__(spaces.Discrete(2))
            self.observation_space = spaces.Box(-np.inf, np.inf, (6,), np.float32)

    normalize = LatentVecNormalize(DummyVecEnv([Vectors]), {None: 4}, 0.7)
    normalize.obs_rms = RunningMeanStd(shape=(6,))
    normalize.obs_rms.mean, normalize.obs_rms.var = mean, variance
    expected: Any = normalize.normalize_obs(batch)
    np.testing.assert_allclose(shown_by(connector, batch, explore=False), expected, rtol=1e-5)
    assert connector.statistics[2] == 100.0
    with pytest.raises(InputError, match="vectors"):
        LatentNormalize().input_observation_space = spaces.Box(0, 1, (3, 3))
