"""FrameSkip: keys are held, turns and recipes happen once, and it stops with the frame that ends the episode."""

import copy
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from latent_obs.actions import FrameSkip
from latent_obs.util.errors import InputError
from tests.support.action_envs import CAMERA, CODED, KEYED, Coded, Recorder, keyed_noop, same


@pytest.mark.parametrize("frames", [1, 5])
def test_keys_are_held_and_turns_and_recipes_happen_once(frames: int):
    env = FrameSkip(Recorder(KEYED), frames)
    env.reset(seed=0)
    action = {**keyed_noop(), "attack": 1, "camera": np.array([0, 10], np.float32), "craft": 2, "place": 0}
    kept = copy.deepcopy(action)
    _, reward, terminated, truncated, info = env.step(action)
    assert same(action, kept)
    given = env.get_wrapper_attr("taken")
    assert len(given) == frames
    assert same(given[0], action)
    assert all(same(one, {**keyed_noop(), "attack": 1}) for one in given[1:])
    assert (reward, terminated, truncated, info) == (sum(range(1, frames + 1)), False, False, {"step": frames})
    assert env.once == ("camera", "craft", "place")


def test_after_the_first_frame_it_is_the_environments_own_noop():
    env = FrameSkip(Coded(KEYED, noop={**keyed_noop(), "craft": 1, "jump": 1}), 3)
    env.reset(seed=0)
    env.step({**keyed_noop(), "craft": 2})
    assert [(one["craft"], one["jump"]) for one in env.get_wrapper_attr("taken")] == [(2, 0), (1, 0), (1, 0)]


@pytest.mark.parametrize(
    ("space", "action"),
    [
        (spaces.Discrete(3), np.int64(2)),
        (CODED, {"vector": np.array([1, 0, 0.5], np.float32)}),
        (spaces.Dict(wheel=CAMERA, gear=spaces.Discrete(5)), {"gear": 3, "wheel": np.ones(2, np.float32)}),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 2])),
        (spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)]), (1, 0)),
    ],
)
def test_other_actions_are_repeated(space: spaces.Space[Any], action: Any):
    env = FrameSkip(Recorder(space), 3)
    env.reset(seed=0)
    env.step(action)
    given = env.get_wrapper_attr("taken")
    assert len(given) == 3
    assert all(same(one, action) for one in given)
    assert env.once == ()


@pytest.mark.parametrize("how", ["terminated", "truncated"])
@pytest.mark.parametrize("ends_at", [1, 3, 4, 5])
def test_it_stops_with_the_frame_that_ends_the_episode(how: str, ends_at: int):
    inner = Recorder(spaces.Discrete(2), ends_at, how)
    env = FrameSkip(inner, 4)
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(1)
    stops = min(ends_at, 4)
    assert (len(inner.taken), info, reward) == (stops, {"step": stops}, sum(range(1, stops + 1)))
    assert (terminated, truncated) == ((how != "truncated", how != "terminated") if ends_at <= 4 else (False, False))


def test_wrong_skips():
    for wrong in (0, 1.5, "4"):
        with pytest.raises(InputError, match="frames"):
            FrameSkip(Recorder(KEYED), wrong)  # pyright: ignore[reportArgumentType]
    env = FrameSkip(Recorder(KEYED), 2)
    with pytest.raises(InputError, match="jump"):
        env.step({**keyed_noop(), "jump": 2})
    assert env.get_wrapper_attr("taken") == []
