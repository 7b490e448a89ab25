"""What all wrappers of actions have in common, on tiny environments, and their no-op."""

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as check_gymnasium

from latent_obs.actions import (
    CentroidActions,
    Centroids,
    DiscreteActions,
    FrameSkip,
    MultiDiscreteActions,
    VectorActions,
    noop_action,
    sb3_actions,
)
from latent_obs.util.errors import InputError
from tests.support.action_envs import CODE, KEYED, Coded, Recorder, keyed_noop, same, taken

EYE = Centroids(np.eye(3, dtype=np.float32), np.array([3, 2, 1]), 0.0)
WRAPPED: dict[str, Callable[[], gym.Env[Any, Any]]] = {
    "discrete": lambda: DiscreteActions(Recorder(KEYED), [{}, {"forward": 1}, {"camera": (0, 10)}], always="attack"),
    "curated": lambda: sb3_actions(Recorder(KEYED)),
    "multi": lambda: MultiDiscreteActions(Recorder(KEYED)),
    "vector": lambda: VectorActions(Coded()),
    "centroids": lambda: CentroidActions(Coded(), EYE),
    "skip": lambda: MultiDiscreteActions(FrameSkip(Recorder(KEYED), 3)),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_the_checkers_of_gymnasium_and_sb3_pass(name: str):
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version.*")
        check_gymnasium(gym.wrappers.TimeLimit(WRAPPED[name](), 20), skip_render_check=True)
        sb3.check_env(gym.wrappers.TimeLimit(WRAPPED[name](), 20), skip_render_check=True)


@pytest.mark.parametrize("name", WRAPPED)
def test_the_noop_and_what_the_inner_environment_gets(name: str):
    env = WRAPPED[name]()
    env.reset(seed=0)
    noop = env.get_wrapper_attr("noop")
    assert env.action_space.contains(noop)
    assert same(taken(env, noop), noop_action(env.unwrapped))
    assert same(noop_action(env), noop)
    # Actions that nobody else holds: again the same, though the environment changed all that it was given.
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(20)]
    before = copy.deepcopy(actions)
    first = [taken(env, action) for action in actions]
    again = [taken(env, action) for action in actions]
    assert all(map(same, first, again))
    assert all(map(np.array_equal, before, actions))


@pytest.mark.parametrize("name", WRAPPED)
def test_it_is_recorded_how_each_was_made(name: str):
    env = WRAPPED[name]()
    assert isinstance(env, gym.utils.RecordConstructorArgs)
    again = type(env)(env.env, **env._saved_kwargs)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    assert again.action_space == env.action_space
    assert again.get_wrapper_attr("names") == env.get_wrapper_attr("names")
    pickle.dumps(env._saved_kwargs)


def test_the_noop_comes_through_wrappers_that_keep_the_action_space():
    env = gym.wrappers.TimeLimit(Coded(), 5)
    noop = noop_action(env)
    np.testing.assert_array_equal(noop["vector"], CODE)
    noop["vector"][:] = 7
    np.testing.assert_array_equal(noop_action(env)["vector"], CODE)
    with pytest.raises(InputError, match="noop"):
        noop_action(Coded(noop={"vector": CODE + 9}))


class Rescaled(gym.ActionWrapper[Any, Any, Any]):
    """Changes the vector's meaning and has no `noop`."""

    def __init__(self, env: gym.Env[Any, Any], space: spaces.Space[Any]) -> None:
        super().__init__(env)
        self.action_space = space

    def action(self, action: Any) -> Any:
        return action


def test_a_noop_of_another_action_space_is_not_taken():
    scaled = spaces.Dict(vector=spaces.Box(-2.0, 2.0, (3,), np.float32))
    with pytest.raises(InputError, match="noop: Rescaled"):
        noop_action(Rescaled(Coded(), scaled))
    inner = Coded(KEYED, noop={**keyed_noop(), "jump": 1})
    assert noop_action(inner)["jump"] == 1
    assert noop_action(Rescaled(inner, spaces.Dict(jump=spaces.Discrete(2)))) == {"jump": 0}
