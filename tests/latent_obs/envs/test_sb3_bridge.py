"""GymnasiumVecEnv: the same results, step for step, as DummyVecEnv's of the same environments, also under agents."""

from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.error import AlreadyPendingCallError
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics
from gymnasium.wrappers.vector import RecordEpisodeStatistics as RecordVectorStatistics
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.envs.sb3_bridge import GymnasiumVecEnv, infos_by_environment
from latent_obs.util.errors import InputError
from latent_obs.wrappers.sb3 import VecLatentObservation
from latent_obs.wrappers.vector import VectorLatentObservation
from tests.support.counting_env import (
    BOTH,
    MODES,
    OUT,
    OVER,
    SCRIPTS,
    Counting,
    Episode,
    Kind,
    assert_same,
    assert_same_story,
    kept,
    makers,
    place,
    sync,
    worked,
)
from tests.support.tiny import PixelKind, limited

#: From Python 3.12 on, forking a process with threads is warned of.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("kind", "copy"), [("box", True), ("dict", False), ("tuple", False), ("discrete", False)])
def test_the_same_as_dummy_vec_env(mode: AutoresetMode, kind: Kind, copy: bool):
    bridge = GymnasiumVecEnv(sync(mode, kind=kind, copy=copy))
    assert assert_same_story(DummyVecEnv(makers(kind=kind)), bridge) >= 20


SCRIPT = st.lists(st.tuples(st.integers(1, 4), st.sampled_from([OVER, OUT, BOTH])), min_size=1, max_size=4)


@given(scripts=st.lists(SCRIPT, min_size=1, max_size=5), mode=st.sampled_from(MODES))
@settings(max_examples=20, deadline=None)
def test_the_same_whatever_the_episodes(scripts: list[list[Episode]], mode: AutoresetMode):
    assert_same_story(DummyVecEnv(makers(scripts)), GymnasiumVecEnv(sync(mode, scripts)), 8)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("mode", "shared_memory"), [(MODES[0], True), (MODES[0], False), (AutoresetMode.NEXT_STEP, True)], ids=str
)
def test_worker_processes_give_the_same(mode: AutoresetMode, shared_memory: bool):
    bridge = GymnasiumVecEnv(worked(mode, copy=False, shared_memory=shared_memory))
    try:
        assert assert_same_story(DummyVecEnv(makers(SCRIPTS[:2])), bridge) >= 10
    finally:
        bridge.close()


@pytest.mark.parametrize("mode", MODES)
def test_wrappers_around_it_and_inside_it_give_the_same(mode: AutoresetMode):
    for wrap in (partial(VecNormalize, gamma=0.5), partial(VecFrameStack, n_stack=3), VecMonitor):
        assert assert_same_story(wrap(DummyVecEnv(makers())), wrap(GymnasiumVecEnv(sync(mode)))) >= 20
    wrapped: list[Callable[[], Any]] = [lambda make=make: RecordEpisodeStatistics(make()) for make in makers()]
    bridge = GymnasiumVecEnv(SyncVectorEnv(wrapped, autoreset_mode=mode))
    assert assert_same_story(DummyVecEnv(wrapped), bridge) >= 20
    assert bridge.env_is_wrapped(RecordEpisodeStatistics) == [True] * 3


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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["box", "dict"])
def test_latents_around_it_and_inside_it_are_the_same(mode: AutoresetMode, kind: PixelKind, encoder: FrozenEncoder):
    games = [partial(limited, kind, 100 * i, 1 + i) for i in range(3)]
    for bridge in (
        VecLatentObservation(GymnasiumVecEnv(SyncVectorEnv(games, autoreset_mode=mode, copy=False)), encoder),
        GymnasiumVecEnv(VectorLatentObservation(SyncVectorEnv(games, autoreset_mode=mode, copy=False), encoder)),
    ):
        assert assert_same_story(VecLatentObservation(DummyVecEnv(games), encoder), bridge) >= 14 + 6 + 4


def test_infos_by_environment():
    mask = np.array([False, True])
    infos = {"_a": np.array([1, 2]), "__a": mask, "b": {"c": [5, 6]}, "_b": mask, "d": [1, 2, 3]}
    assert infos_by_environment(infos, 2) == [{"d": [1, 2, 3]}, {"_a": 2, "b": {"c": 6}, "d": [1, 2, 3]}]


class Arrays(VectorEnv[Any, Any, Any]):
    """A vector environment without single ones: its own buffers, and infos without masks."""

    metadata = {"autoreset_mode": "SameStep"}  # noqa: RUF012

    num_envs = 2

    def __init__(self) -> None:
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
        infos = {"wind": self.wind, "map": "plain", "final_obs": self.last}
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
    assert venv.reset_infos == [{}, {}]
    venv.reset()
    assert venv.reset_infos == [{"map": "plain"}] * 2
    assert not venv.has_attr("wind")
    assert venv.env_is_wrapped(Monitor) == [False, False]
    with pytest.raises(InputError):
        venv.env_method("add", 1)


@pytest.mark.integration
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
        assert (venv.metadata["render_fps"], venv.render_mode) == (7, "rgb_array")
        venv.reset()  # and they are alive
    finally:
        venv.close()


@pytest.mark.integration
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
        with pytest.raises(InputError, match="step_async"):
            venv.step_wait()
        venv.close()
        venv.close()


@pytest.mark.parametrize(
    ("space", "given", "sum_of_two"),
    [
        (spaces.Discrete(5), np.array([[3], [4]], np.int32), [3, 4]),
        (spaces.MultiBinary(3), np.array([[True, True, False], [False, False, True]]), [2, 1]),
        (spaces.Box(-9, 9, (2, 2), np.float32), np.arange(8, dtype=np.float64).reshape(2, 4), [6, 22]),
    ],
    ids=["discrete", "multi-binary", "box"],
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
    for wrong in (np.zeros((3, 9)), "left"):
        with pytest.raises(InputError, match="actions"):
            venv.step(wrong)  # type: ignore[arg-type]


def test_seeds_and_options_are_used_once():
    venv = GymnasiumVecEnv(sync())
    venv.set_options([{"level": 2, "map": np.ones(2)} for _ in range(3)])
    assert venv.seed(np.int64(40)) == [40, 41, 42]  # type: ignore[arg-type]
    venv.reset()
    assert [(info["level"], info["seed"]) for info in venv.reset_infos] == [(2, 40), (2, 41), (2, 42)]
    venv.reset()
    assert [(info["level"], info["seed"]) for info in venv.reset_infos] == [(0, -1)] * 3
    assert len(set(venv.seed())) == 3
    for options in ([{"level": 2}] * 2, [{"level": 2}, {"level": 2}, {"level": 3}]):
        with pytest.raises(InputError, match="options"):
            venv.set_options(options)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: gym.make("CartPole-v1"), "vector_env"),
        (lambda: RecordVectorStatistics(sync(AutoresetMode.NEXT_STEP)), "autoreset_mode.*SAME_STEP"),
        (lambda: sync(AutoresetMode.DISABLED), "autoreset_mode .*DISABLED"),
        (lambda: SyncVectorEnv([partial(Strange, spaces.Dict(a=spaces.Dict(b=spaces.Discrete(2))))]), "observation"),
        (
            lambda: SyncVectorEnv(
                [partial(Counting, 0, SCRIPTS[0], "box", spaces.Tuple([spaces.Discrete(2)]))],
                autoreset_mode=AutoresetMode.SAME_STEP,
            ),
            "action space",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[[], Any], named: str):
    with pytest.raises(InputError, match=named):
        GymnasiumVecEnv(make())


def test_statistics_of_an_older_gymnasium_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gym, "__version__", "1.3.0")
    with pytest.raises(InputError, match="RecordEpisodeStatistics"):
        GymnasiumVecEnv(RecordVectorStatistics(sync()))
    GymnasiumVecEnv(sync())


class Strange(Counting):
    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__(0, SCRIPTS[0])
        self.observation_space = space


@pytest.mark.integration
def test_workers_that_may_not_know_that_they_were_reset_are_refused():
    vector_env = worked(AutoresetMode.NEXT_STEP, shared_memory=False)
    try:
        with pytest.raises(InputError, match="autoreset_mode"):
            GymnasiumVecEnv(vector_env)
    finally:
        vector_env.close()


@pytest.mark.skipif(gym.__version__ < "1.4", reason="Gymnasium counted wrongly")
def test_statistics_of_a_wrapper_around_the_vector_arrive():
    def ended(venv: VecEnv) -> list[Any]:
        venv.reset()
        steps = [venv.step(np.zeros(3, int))[3] for _ in range(12)]
        return [(info["episode"]["r"], info["episode"]["l"]) for infos in steps for info in infos if "episode" in info]

    found, expected = ended(GymnasiumVecEnv(RecordVectorStatistics(sync()))), ended(VecMonitor(DummyVecEnv(makers())))
    assert len(found) >= 10
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_ppo_stores_what_the_environments_sent_and_bootstraps_from_last_observations(mode: AutoresetMode):
    venv = GymnasiumVecEnv(sync(mode, copy=False))
    model = PPO("MlpPolicy", venv, 0.0, n_steps=12, batch_size=12, n_epochs=1, seed=0, device="cpu", gamma=0.5)
    model.learn(36)
    buffer = model.rollout_buffer
    buffer_of = {name: getattr(buffer, name).reshape(3, 12, -1).swapaxes(0, 1) for name in ("observations", "actions")}
    time_outs = 0
    for step, i in np.ndindex(12, 3):
        episode, at = place(SCRIPTS[i], step)
        acted = buffer_of["actions"][step - 1, i, 0] if at else 0
        assert buffer_of["observations"][step, i].tolist() == [i, episode, at, acted]
        length, end = SCRIPTS[i][episode % len(SCRIPTS[i])]
        reward = i + episode / 8 + (at + 1) / 64
        if at + 1 == length and end == OUT:
            time_outs += 1
            last = torch.tensor([[i, episode, at + 1, buffer_of["actions"][step, i, 0]]])
            reward += 0.5 * model.policy.predict_values(last).item()
        assert buffer.rewards[step, i] == pytest.approx(reward, abs=1e-4)
        assert buffer.episode_starts[step, i] == (at == 0)
    assert time_outs == 3 + 0 + 2
