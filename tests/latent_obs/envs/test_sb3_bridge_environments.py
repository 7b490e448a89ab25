"""GymnasiumVecEnv: its environments are reached one by one; actions, seeds and options arrive, and errors come back."""

from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import AlreadyPendingCallError
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from latent_obs.util.errors import InputError

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.monitor import Monitor

from latent_obs.envs.sb3_bridge import GymnasiumVecEnv
from tests.support.counting_env import OUT, SCRIPTS, Counting, assert_same, kept, sync, worked

#: From Python 3.12 on, forking a process with threads is warned of.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


class Arrays(VectorEnv[Any, Any, Any]):
    """A vector environment without single ones: its own buffers, last observations in one array, infos without
    masks."""

    metadata = {"autoreset_mode": "SameStep"}  # noqa: RUF012

    def __init__(self, silent: bool = False) -> None:
        self.num_envs, self.silent = 2, silent
        self.single_observation_space = spaces.Box(0, 99, (1,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = spaces.Box(0, 99, (2, 1), np.float32)
        self.action_space = spaces.MultiDiscrete([2, 2])
        self.lent, self.last, self.wind = np.zeros((2, 1)), np.zeros((2, 1)), np.zeros(2, np.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.lent[:, 0] = 0, 10
        return self.lent, {"map": "plain"}

    def step(self, actions: Any) -> Any:
        self.lent += 1
        self.wind[:] = self.lent[:, 0]
        ends = self.lent[:, 0] % 3 == 0
        self.last[:] = self.lent
        self.lent[ends] -= 3
        infos = {"wind": self.wind, "map": "plain"} | ({} if self.silent else {"final_obs": self.last})
        return self.lent, np.ones(2, np.float64), ends, np.zeros(2, bool), infos


def test_a_vector_environment_without_single_ones():
    venv = GymnasiumVecEnv(Arrays())
    steps = list(islice(kept(venv), 4))
    assert [observation[:, 0].tolist() for observation, _ in steps] == [[0, 10], [1, 11], [2, 9], [0, 10]]
    assert all(observation.dtype == np.float32 for observation, _ in steps)
    assert steps[2][1][0] == {"wind": 2.0, "map": "plain", "TimeLimit.truncated": False}
    assert_same(steps[2][1][1]["terminal_observation"], np.array([12], np.float32))
    assert steps[3][1][0]["terminal_observation"].tolist() == [3]
    assert "terminal_observation" not in steps[3][1][1]
    assert venv.reset_infos == [{}, {}], (
        "both began again in the middle of a step, which tells nothing of the new beginning"
    )
    venv.reset()
    assert venv.reset_infos == [{"map": "plain"}] * 2
    assert venv.get_attr("lent", 0)[0] is venv.vector_env.lent  # type: ignore[attr-defined]
    assert (venv.has_attr("wind"), venv.has_attr("sun")) == (True, False)
    assert venv.env_is_wrapped(Monitor) == [False, False]
    with pytest.raises(AttributeError):
        venv.get_attr("sun")
    with pytest.raises(InputError, match="keeps no single environments"):
        venv.env_method("add", 1)
    quiet = GymnasiumVecEnv(Arrays(silent=True))
    quiet.reset()
    quiet.step(np.zeros(2, int))
    with pytest.raises(InputError, match=r"environment 1 ended .*final_obs"):
        quiet.step(np.zeros(2, int))


@pytest.mark.parametrize("make", [sync, worked], ids=["sync", "async"])
def test_environments_are_reached_one_by_one(make: Callable[[], Any]):
    venv = GymnasiumVecEnv(make())
    count = venv.num_envs
    try:
        assert venv.get_attr("number") == list(range(count))
        assert venv.get_attr("number", [1, 0]) == [1, 0]
        venv.set_attr("difficulty", [7, 7], indices=1)  # a list is one value
        assert venv.get_attr("difficulty")[:2] == [1, [7, 7]]
        venv.set_attr("difficulty", 2)
        assert venv.get_attr("difficulty") == [2] * count
        assert venv.env_method("add", 10, b=5) == [15 + i for i in range(count)]
        assert venv.env_method("add", 10, indices=[1, -count, 1]) == [11, 10, 11]
        with pytest.raises(IndexError):
            venv.env_method("add", 10, indices=count)
        assert (venv.has_attr("number"), venv.has_attr("sun")) == (True, False)
        with pytest.raises(AttributeError, match="sun"):
            venv.get_attr("sun")
        with pytest.raises(AttributeError, match="sun"):
            venv.env_method("sun", indices=0)
        assert venv.env_is_wrapped(Monitor) == [False] * count
        assert [image[0, 0, 0] for image in venv.get_images() if image is not None] == list(range(count))
        picture = venv.render("rgb_array")
        assert picture is not None
        assert picture.shape == (4, 6, 3) if count > 2 else (2, 6, 3)
        assert venv.unwrapped is venv
        assert (venv.metadata["render_fps"], venv.render_mode) == (7, "rgb_array")
        venv.reset()  # and they are alive
    finally:
        venv.close()


def test_wrappers_in_worker_processes_are_seen():
    venv = GymnasiumVecEnv(
        AsyncVectorEnv([lambda: Monitor(Counting(0, SCRIPTS[0]))], autoreset_mode="SameStep", context="fork")
    )
    try:
        assert venv.env_is_wrapped(Monitor) == [True]
        assert venv.env_is_wrapped(gym.wrappers.TimeLimit, 0) == [False]
    finally:
        venv.close()


@pytest.mark.filterwarnings("ignore:.*ERROR")
def test_an_error_in_some_of_the_workers_is_raised():
    venv = GymnasiumVecEnv(worked())
    try:
        with pytest.raises(LookupError, match="boom"):
            venv.env_method("explode", indices=1)
        assert venv.get_attr("number", 0) == [0]
    finally:
        venv.vector_env.close(terminate=True)


def test_a_step_under_way_is_dropped_by_a_reset_and_by_closing():
    one, other = GymnasiumVecEnv(worked()), GymnasiumVecEnv(sync(scripts=SCRIPTS[:2]))
    for venv in (one, other):
        venv.reset()
        venv.step_async(np.zeros(2, int))
        if venv is one:  # they are at work
            with pytest.raises(AlreadyPendingCallError):
                venv.get_attr("number", 1)
        observation = venv.reset()
        assert isinstance(observation, np.ndarray)
        assert observation[:, 2].tolist() == [0, 0]
        with pytest.raises(InputError, match="none was begun"):
            venv.step_wait()
        venv.step_async(np.zeros(2, int))
        venv.close()
        venv.close()


@pytest.mark.parametrize(
    ("space", "given", "sum_of_two"),
    [
        (spaces.Discrete(5), np.array([[3], [4]], np.int32), [3, 4]),
        (spaces.MultiDiscrete([3, 4]), [[1, 2], [2, 3]], [3, 5]),
        (spaces.MultiBinary(3), np.array([[True, True, False], [False, False, True]]), [2, 1]),
        (spaces.Box(-9, 9, (2, 2), np.float32), np.arange(8, dtype=np.float64).reshape(2, 4), [6, 22]),
    ],
    ids=["discrete", "multi-discrete", "multi-binary", "box"],
)
def test_actions_arrive(space: spaces.Space[Any], given: Any, sum_of_two: list[int]):
    seen: list[Any] = []

    class Watched(Counting):
        def step(self, action: Any) -> Any:
            seen.append(action)
            assert self.action_space.contains(action)
            return super().step(action)

    venv = GymnasiumVecEnv(
        SyncVectorEnv([partial(Watched, 0, [(3, OUT)], "box", space)] * 2, autoreset_mode="SameStep")
    )
    venv.reset()
    observation = venv.step(given)[0]
    assert isinstance(observation, np.ndarray)
    assert observation[:, 3].tolist() == sum_of_two
    assert len(seen) == 2
    for wrong in (np.zeros((3, 9)), np.zeros(2, complex), "left"):
        with pytest.raises(InputError, match=r"actions for 2 environments of .* should be"):
            venv.step(wrong)  # type: ignore[arg-type]


def test_options_are_the_same_for_all():
    venv = GymnasiumVecEnv(sync())
    venv.set_options([{"level": 2, "map": np.ones(2)} for _ in range(3)])
    venv.reset()
    assert [info["level"] for info in venv.reset_infos] == [2, 2, 2]
    venv.reset()
    assert [info["level"] for info in venv.reset_infos] == [0, 0, 0]
    for options in ([{"level": 2}] * 2, [{"level": 2}, {"level": 2}, {"level": 3}]):
        with pytest.raises(InputError, match="3 environments with the same options"):
            venv.set_options(options)


def test_seeds_are_used_once():
    venv = GymnasiumVecEnv(sync())
    assert venv.seed(np.int64(40)) == [40, 41, 42]  # type: ignore[arg-type]
    venv.reset()
    assert [info["seed"] for info in venv.reset_infos] == [40, 41, 42]
    venv.reset()
    assert [info["seed"] for info in venv.reset_infos] == [-1, -1, -1]
    assert len(set(venv.seed())) == 3
