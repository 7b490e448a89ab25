"""GymnasiumVecEnv: a vector environment whose story it cannot tell is refused when it is wrapped, and told why."""

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.async_vector_env import _async_worker
from gymnasium.wrappers.vector import DictInfoToList, NormalizeReward
from gymnasium.wrappers.vector import RecordEpisodeStatistics as RecordVectorStatistics

from latent_obs.util.errors import InputError

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.vec_env import DummyVecEnv

from latent_obs.envs.sb3_bridge import GymnasiumVecEnv
from tests.support.counting_env import SCRIPTS, Counting, makers, sync, worked

#: From Python 3.12 on, forking a process with threads is warned of.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: gym.make("CartPole-v1"), "takes a gymnasium.vector.VectorEnv, got gymnasium.wrappers"),
        (lambda: DummyVecEnv(makers()), "VectorEnv, got stable_baselines3"),
        (lambda: gym.make_vec("CartPole-v1", 2, vectorization_mode="vector_entry_point"), "NEXT_STEP.*SAME_STEP"),
        (lambda: RecordVectorStatistics(sync(AutoresetMode.NEXT_STEP)), "NEXT_STEP.*SAME_STEP"),
        (
            lambda: RecordVectorStatistics(sync(AutoresetMode.DISABLED)),
            "RecordEpisodeStatistics .* DISABLED.*VecMonitor",
        ),
        (
            lambda: DictInfoToList(NormalizeReward(sync(AutoresetMode.DISABLED))),
            "NormalizeReward .* DISABLED.*VecNormalize",
        ),
        (lambda: SyncVectorEnv([partial(Strange, spaces.Text(3))]), "observation spaces that are .*, got Text"),
        (
            lambda: SyncVectorEnv([partial(Strange, spaces.Dict(a=spaces.Dict(b=spaces.Discrete(2))))]),
            "holds no other, got Dict",
        ),
        (
            lambda: SyncVectorEnv([partial(Counting, 0, SCRIPTS[0], "box", spaces.Tuple([spaces.Discrete(2)]))]),
            "takes action spaces that are",
        ),
    ],
)
def test_what_cannot_be_told_is_refused(make: Callable[[], Any], match: str):
    with pytest.raises(InputError, match=match):
        GymnasiumVecEnv(make())


def test_statistics_of_an_older_gymnasium_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gym, "__version__", "1.3.0")
    with pytest.raises(InputError, match=r"RecordEpisodeStatistics of gymnasium 1.3.0 .* SAME_STEP"):
        GymnasiumVecEnv(RecordVectorStatistics(sync()))
    GymnasiumVecEnv(sync())


class Strange(Counting):
    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__(0, SCRIPTS[0])
        self.observation_space = space


@pytest.mark.parametrize("mode", [None, "sometimes"])
def test_a_vector_environment_must_say_when_it_resets(mode: Any):
    vector_env = sync()
    vector_env.metadata["autoreset_mode"] = mode
    with pytest.raises(InputError, match=f"should be a gymnasium.vector.AutoresetMode.* got .*{mode}"):
        GymnasiumVecEnv(vector_env)


@pytest.mark.parametrize("kwargs", [{"shared_memory": False}, {"worker": _async_worker}])
def test_workers_that_may_not_know_that_they_were_reset_are_refused(kwargs: dict[str, Any]):
    vector_env = worked(AutoresetMode.NEXT_STEP, **kwargs)
    try:
        with pytest.raises(InputError, match="with shared memory"):
            GymnasiumVecEnv(vector_env)
    finally:
        vector_env.close()
