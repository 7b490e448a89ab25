"""What an agent did, in words and numbers: names by the games, probabilities and values by the policies."""

import contextlib
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

pytest.importorskip("stable_baselines3")

from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.play.policy import PlayPolicy, action_names, choices_of, decide, describe
from latent_obs.actions import DiscreteActions, MultiDiscreteActions
from latent_obs.envs.factory import make_pixel_env
from latent_obs.util.errors import InputError


class Numbers(gym.Env[Any, Any]):
    """Random numbers to see; nothing that is done matters."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.action_space = space
        self.observation_space = spaces.Box(-1.0, 1.0, (4,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.normal(size=4).clip(-1, 1).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.reset()[0], 0.0, False, False, {}


def decided(algorithm: Any, space: spaces.Space[Any], **settings: Any) -> tuple[Any, Any, Any, Any]:
    """The model, what it saw, what it did, and the decision."""
    venv = DummyVecEnv([lambda: Numbers(space)])
    model = algorithm("MlpPolicy", venv, policy_kwargs={"net_arch": [8]}, device="cpu", seed=0, **settings)
    with torch.no_grad():  # far from evenly, which a fresh policy is
        for parameter in model.policy.parameters():
            parameter.mul_(3)
    seen = venv.reset()
    names = action_names(venv.envs[0])
    actions, _, decision = decide(model, seen, None, True, True, names)
    return model, model.policy.obs_to_tensor(seen)[0], actions[0], decision


def test_a_policys_probabilities():
    model, seen, action, decision = decided(PPO, spaces.Discrete(5))
    expected = torch.softmax(model.policy.action_net(model.policy.mlp_extractor(seen)[0]), 1)[0].tolist()
    np.testing.assert_allclose(decision.levels, expected, atol=1e-6)
    assert decision.texts == tuple(f"{p:.0%}" for p in expected)
    assert decision.chosen == tuple(i == action for i in range(5))
    assert int(action) == int(np.argmax(expected))


@pytest.mark.parametrize("kind", ["DQN", "QRDQN"])
def test_values_of_actions(kind: str):
    algorithm = DQN if kind == "DQN" else pytest.importorskip("sb3_contrib").QRDQN
    model, seen, action, decision = decided(algorithm, spaces.Discrete(4), buffer_size=10)
    of_net = model.q_net(seen)[0] if kind == "DQN" else model.policy.quantile_net(seen)[0].mean(dim=0)
    values = of_net.tolist()
    assert decision.texts == tuple(f"{v:.3g}" for v in values)
    assert (decision.levels[int(np.argmax(values))], decision.levels[int(np.argmin(values))]) == (1.0, 0.0)
    assert decision.chosen[int(np.argmax(values))]
    assert int(action) == int(np.argmax(values))


@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_numbers_are_shown_by_their_bounds(algorithm: Any):
    space = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))
    _, _, action, decision = decided(algorithm, space)
    assert decision.signed
    np.testing.assert_allclose(decision.levels, action / [2.0, 1.0], atol=1e-6)
    assert decision.texts == tuple(f"{a:+.2f}" for a in action)


def test_numbers_without_bounds_are_shown_by_the_largest():
    decision = describe(spaces.Box(-np.inf, np.inf, (3,)), np.array([1.0, -4.0, 0.0]), None, ("a", "b", "c"))
    assert decision.levels == (0.25, -1.0, 0.0)
    zero = describe(spaces.Box(-np.inf, np.inf, (2,)), np.zeros(2), None, ("a", "b"))
    assert zero.levels == (0.0, 0.0)


def test_buttons_and_choices():
    model, seen, action, decision = decided(PPO, spaces.MultiBinary(3))
    expected = torch.sigmoid(model.policy.action_net(model.policy.mlp_extractor(seen)[0]))[0].tolist()
    np.testing.assert_allclose(decision.levels, expected, atol=1e-6)
    assert decision.chosen == tuple(p > 0.5 for p in expected) == tuple(map(bool, action))
    model, seen, action, decision = decided(PPO, spaces.MultiDiscrete([2, 5]))
    logits = model.policy.action_net(model.policy.mlp_extractor(seen)[0])[0]
    expected = [torch.softmax(part, 0).max().item() for part in logits.split([2, 5])]
    np.testing.assert_allclose(decision.levels, expected, atol=1e-6)
    assert decision.texts == tuple(str(n) for n in action)


def test_vizdooms_buttons_and_combinations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("vizdoom")
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(make_pixel_env("VizdoomBasic-MultiBinary-v1")) as env:
        assert action_names(env) == ("move left", "move right", "attack")
    with contextlib.closing(make_pixel_env("VizdoomBasic-v1", max_buttons_pressed=2)) as env:
        names = action_names(env)
        assert len(names) == env.action_space.n  # pyright: ignore[reportAttributeAccessIssue]
        assert names[0] == "nothing"
        env.reset(seed=0)
        env.step(names.index("move left + attack"))
        assert env.get_wrapper_attr("game").get_last_action() == [1, 0, 1]


def test_names_and_choices_of_this_projects_actions():
    env = gym.Env()
    env.action_space = spaces.Dict(attack=spaces.Discrete(2), forward=spaces.Discrete(2))
    named = DiscreteActions(env, [{"forward": 1}, {"attack": 1}])
    assert action_names(gym.wrappers.TimeLimit(named, 5)) == ("noop", "forward", "attack")
    assert choices_of(named) is None
    env.action_space = spaces.Dict(camera=spaces.Box(-180.0, 180.0, (2,)), jump=spaces.Discrete(2))
    wrapped = MultiDiscreteActions(env)
    choices = choices_of(wrapped)
    assert choices is not None
    decision = describe(wrapped.action_space, np.array([1, 5, 10]), None, action_names(wrapped), choices)
    assert decision.names == ("jump", "camera pitch", "camera yaw")
    assert decision.texts == (choices[0][1], choices[1][5], choices[2][10]) == ("1", "0", "10")


def test_meanings_as_ataris_have_them_and_numbers_for_the_rest():
    env: Any = Numbers(spaces.Discrete(2))
    assert action_names(env) == ("0", "1")
    env.names = ["only one"]  # something else's
    assert action_names(env) == ("0", "1")
    env.get_action_meanings = lambda: ["NOOP", "FIRE"]
    assert action_names(env) == ("NOOP", "FIRE")


def test_a_policy_without_an_environment_of_its_own_says_so():
    policy = PlayPolicy(PPO("MlpPolicy", Numbers(spaces.Discrete(2)), device="cpu"), lambda env: env)
    with pytest.raises(InputError, match="begin"):
        policy.make_env()
    with pytest.raises(InputError, match="begin"):
        policy(np.zeros(4, np.float32))
    env = gym.wrappers.TimeLimit(Numbers(spaces.Discrete(2)), 3)
    assert policy.play(env, seed=0) == 0
