"""GymnasiumVecEnv under agents: what PPO and DQN store of its story, and what they log of its episodes."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics
from gymnasium.wrappers.vector import RecordEpisodeStatistics as RecordVectorStatistics

pytest.importorskip("stable_baselines3")

from stable_baselines3 import DQN, PPO
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecMonitor, VecNormalize

from latent_obs.envs.sb3_bridge import GymnasiumVecEnv
from tests.support.counting_env import MODES, OUT, SCRIPTS, makers, place, sync

STATISTICS = pytest.mark.skipif(gym.__version__ < "1.4", reason="Gymnasium counted wrongly")


class Seen(KVWriter):
    """What an agent logs."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.rows.append(dict(key_values))

    def close(self) -> None:
        pass


def ppo(venv: VecEnv, **kwargs: Any) -> PPO:
    return PPO("MlpPolicy", venv, n_steps=12, batch_size=12, n_epochs=1, seed=0, device="cpu", gamma=0.5, **kwargs)


def assert_observed(observations: Any, actions: Any, last: bool = False) -> None:
    """(steps, environments, 4) are what the environments sent before, or as the last of, each step."""
    for step, i in np.ndindex(*observations.shape[:2]):
        episode, at = place(SCRIPTS[i], step)
        acted = actions[step, i, 0] if last else actions[step - 1, i, 0] if at else 0
        assert observations[step, i].tolist() == [i, episode, at + last, acted], (step, i)


@pytest.mark.parametrize("wrap", [pytest.param("vector", marks=STATISTICS), "single", "monitor"])
def test_the_mean_return_is_logged(wrap: str):
    make = {"single": lambda make: RecordEpisodeStatistics(make())}.get(wrap, lambda make: make())
    vector_env: Any = SyncVectorEnv([partial(make, one) for one in makers()], autoreset_mode=AutoresetMode.SAME_STEP)
    venv = GymnasiumVecEnv(RecordVectorStatistics(vector_env) if wrap == "vector" else vector_env)
    model = ppo(VecMonitor(venv) if wrap == "monitor" else venv)
    seen = Seen()
    model.set_logger(Logger(None, [seen]))
    model.learn(36)
    told = [(one["r"], one["l"]) for one in model.ep_info_buffer or ()]
    lengths, returns = [], []
    for step in range(12):  # in the order in which they end
        for i, script in enumerate(SCRIPTS):
            episode, at = place(script, step)
            if at + 1 == script[episode % len(script)][0]:
                lengths.append(at + 1)
                returns.append(sum(i + episode / 8 + s / 64 for s in range(1, at + 2)))
    assert [length for _, length in told] == lengths
    np.testing.assert_allclose([r for r, _ in told], returns, atol=1e-5)
    assert seen.rows[-1]["rollout/ep_rew_mean"] == pytest.approx(np.mean(returns), abs=1e-5)
    assert seen.rows[-1]["rollout/ep_len_mean"] == np.mean(lengths)


@pytest.mark.parametrize("mode", MODES)
def test_ppo_stores_what_the_environments_sent_and_bootstraps_from_last_observations(mode: AutoresetMode):
    model = ppo(GymnasiumVecEnv(sync(mode, copy=False)), learning_rate=0.0)
    model.learn(36)
    buffer = model.rollout_buffer
    buffer_of = {name: getattr(buffer, name).reshape(3, 12, -1).swapaxes(0, 1) for name in ("observations", "actions")}
    assert_observed(buffer_of["observations"], buffer_of["actions"])
    time_outs = 0
    for step, i in np.ndindex(12, 3):
        episode, at = place(SCRIPTS[i], step)
        length, end = SCRIPTS[i][episode % len(SCRIPTS[i])]
        reward = i + episode / 8 + (at + 1) / 64
        if at + 1 == length and end == OUT:
            time_outs += 1
            last = torch.tensor([[i, episode, at + 1, buffer_of["actions"][step, i, 0]]])
            reward += 0.5 * model.policy.predict_values(last).item()
        assert buffer.rewards[step, i] == pytest.approx(reward, abs=1e-4)
        assert buffer.episode_starts[step, i] == (at == 0)
    assert time_outs == 3 + 0 + 2


@pytest.mark.parametrize("mode", MODES)
def test_dqn_stores_what_the_environments_sent(mode: AutoresetMode):
    model = DQN(
        "MlpPolicy",
        GymnasiumVecEnv(sync(mode, copy=False)),
        learning_starts=30,
        buffer_size=900,
        batch_size=8,
        train_freq=4,
        target_update_interval=60,
        seed=0,
        device="cpu",
    )
    before = [weight.clone() for weight in model.policy.parameters()]
    model.learn(300)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))
    memory: Any = model.replay_buffer
    assert memory.pos == 100
    assert_observed(memory.observations[:100], memory.actions)
    assert_observed(memory.next_observations[:100], memory.actions, last=True)
    for step, i in np.ndindex(100, 3):
        episode, at = place(SCRIPTS[i], step)
        length, end = SCRIPTS[i][episode % len(SCRIPTS[i])]
        assert memory.rewards[step, i] == np.float32(i + episode / 8 + (at + 1) / 64)
        assert memory.dones[step, i] == (at + 1 == length)
        assert memory.timeouts[step, i] == (at + 1 == length and end == OUT)


@pytest.mark.parametrize("wrappers", [VecMonitor, pytest.param(RecordVectorStatistics, marks=STATISTICS)])
def test_ppo_learns_what_make_vec_makes(wrappers: Any):
    vector_env = gym.make_vec(
        "CartPole-v1", 4, vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}
    )
    if wrappers is VecMonitor:
        venv: VecEnv = VecNormalize(VecMonitor(GymnasiumVecEnv(vector_env)))
    else:
        venv = VecFrameStack(GymnasiumVecEnv(RecordVectorStatistics(vector_env)), 2)
    model, seen = ppo(venv), Seen()
    model.set_logger(Logger(None, [seen]))
    model.learn(400)
    assert seen.rows[-1]["rollout/ep_rew_mean"] == pytest.approx(
        seen.rows[-1]["rollout/ep_len_mean"]
    )  # 1 for each step
    assert 8 < seen.rows[-1]["rollout/ep_len_mean"] < 100
    venv.close()
    assert vector_env.closed
