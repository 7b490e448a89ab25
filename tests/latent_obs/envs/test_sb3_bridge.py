"""GymnasiumVecEnv: the same story, step for step, as DummyVecEnv's of the same environments."""

from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics
from gymnasium.wrappers.vector import DictInfoToList
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.envs.sb3_bridge import infos_by_environment
from latent_obs.wrappers.vector import VectorLatentObservation
from tests.support.tiny import PixelKind, limited

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize

from latent_obs.envs.sb3_bridge import GymnasiumVecEnv
from latent_obs.wrappers.sb3 import VecLatentObservation
from tests.support.counting_env import (
    BOTH,
    MODES,
    OUT,
    OVER,
    SCRIPTS,
    Episode,
    Kind,
    assert_same,
    assert_same_story,
    kept,
    makers,
    sync,
    worked,
)

#: From Python 3.12 on, forking a process with threads is warned of.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["box", "dict", "tuple", "discrete"])
@pytest.mark.parametrize("copy", [True, False])
def test_the_same_as_dummy_vec_env(mode: AutoresetMode, kind: Kind, copy: bool):
    bridge = GymnasiumVecEnv(sync(mode, kind=kind, copy=copy))
    assert assert_same_story(DummyVecEnv(makers(kind=kind)), bridge) >= 20


SCRIPT = st.lists(st.tuples(st.integers(1, 4), st.sampled_from([OVER, OUT, BOTH])), min_size=1, max_size=4)


@given(scripts=st.lists(SCRIPT, min_size=1, max_size=5), mode=st.sampled_from(MODES))
@settings(max_examples=60, deadline=None)
def test_the_same_whatever_the_episodes(scripts: list[list[Episode]], mode: AutoresetMode):
    assert_same_story(DummyVecEnv(makers(scripts)), GymnasiumVecEnv(sync(mode, scripts)), 8)


@pytest.mark.parametrize("mode", MODES)
def test_worker_processes_tell_the_same(mode: AutoresetMode):
    bridge = GymnasiumVecEnv(worked(mode, copy=False))
    try:
        assert assert_same_story(DummyVecEnv(makers(SCRIPTS[:2])), bridge) >= 10
    finally:
        bridge.close()


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_worker_processes_without_shared_memory_tell_the_same(mode: AutoresetMode):
    bridge = GymnasiumVecEnv(worked(mode, shared_memory=False))
    try:
        assert assert_same_story(DummyVecEnv(makers(SCRIPTS[:2])), bridge) >= 10
    finally:
        bridge.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "wrap",
    [partial(VecNormalize, gamma=0.5), partial(VecFrameStack, n_stack=3), VecMonitor],
    ids=["normalize", "stack", "monitor"],
)
def test_sb3_wrappers_around_it_tell_the_same(wrap: Callable[[VecEnv], VecEnv], mode: AutoresetMode):
    assert assert_same_story(wrap(DummyVecEnv(makers())), wrap(GymnasiumVecEnv(sync(mode)))) >= 20


@pytest.mark.parametrize("mode", MODES)
def test_statistics_of_the_single_environments_arrive(mode: AutoresetMode):
    wrapped: list[Callable[[], Any]] = [lambda make=make: RecordEpisodeStatistics(make()) for make in makers()]
    bridge = GymnasiumVecEnv(SyncVectorEnv(wrapped, autoreset_mode=mode))
    assert assert_same_story(DummyVecEnv(wrapped), bridge) >= 20
    assert bridge.env_is_wrapped(RecordEpisodeStatistics) == [True] * 3


def test_infos_that_come_as_a_list_tell_the_same():
    # DictInfoToList leaves out keys that begin with an underscore.
    one, other = DummyVecEnv(makers()), GymnasiumVecEnv(DictInfoToList(sync()))
    one.reset()
    other.reset()
    logs: list[Any] = []
    for _ in range(5):
        a, b = one.step(np.zeros(3, int))[3], other.step(np.zeros(3, int))[3]
        for info, listed in zip(a, b, strict=True):
            assert set(info) - {"_own"} == set(listed)
            assert_same(info.get("terminal_observation"), listed.get("terminal_observation"))
            assert info["half"] == listed["half"]
            logs.append((info["log"], listed["log"]))
    assert len(logs) == 15
    assert all(log == listed for log, listed in logs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["box", "dict"])
def test_nothing_returned_is_written_over(mode: AutoresetMode, kind: Kind):
    truth = list(islice(kept(DummyVecEnv(makers(kind=kind))), 9))
    found = list(islice(kept(GymnasiumVecEnv(sync(mode, kind=kind, copy=False))), 9))
    for (observation, infos), (other, others) in zip(truth[1:], found[1:], strict=True):
        assert_same(observation, other)
        assert_same(list(infos), others)
        for part in other.values() if isinstance(other, dict) else [other]:
            assert part.flags.writeable


class Resetting(gym.vector.VectorWrapper):
    """Shows all of them 500 higher after a reset, also those that were not reset."""

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, Any]:
        observation, infos = self.env.reset(seed=seed, options=options)
        return observation + 500, infos


def test_a_reset_of_some_leaves_the_others_as_the_step_gave_them():
    venv = GymnasiumVecEnv(Resetting(sync(AutoresetMode.DISABLED)))
    venv.reset()
    observation, _, dones, _ = venv.step(np.zeros(3, int))
    assert dones.tolist() == [True, False, False]
    assert isinstance(observation, np.ndarray)
    assert observation.tolist() == [[500, 501, 500, 500], [1, 0, 1, 0], [2, 0, 1, 0]]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["box", "dict"])
def test_latents_around_it_and_inside_it_tell_the_same(mode: AutoresetMode, kind: PixelKind, encoder: FrozenEncoder):
    games = [partial(limited, kind, 100 * i, 1 + i) for i in range(3)]
    for bridge in (
        VecLatentObservation(GymnasiumVecEnv(SyncVectorEnv(games, autoreset_mode=mode, copy=False)), encoder),
        GymnasiumVecEnv(VectorLatentObservation(SyncVectorEnv(games, autoreset_mode=mode, copy=False), encoder)),
    ):
        assert assert_same_story(VecLatentObservation(DummyVecEnv(games), encoder), bridge) >= 14 + 6 + 4


def test_infos_by_environment():
    mask = np.array([False, True])
    assert infos_by_environment(
        {"_a": np.array([1, 2]), "__a": mask, "b": {"c": [5, 6]}, "_b": mask, "d": [1, 2, 3]}, 2
    ) == [
        {"d": [1, 2, 3]},
        {"_a": 2, "b": {"c": 6}, "d": [1, 2, 3]},
    ]
