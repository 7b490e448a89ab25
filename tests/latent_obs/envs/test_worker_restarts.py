"""Workers that are really killed: the run goes on with others in their place, as if nothing but a truncation had
been."""

# ruff: noqa: F401, F811  # fixtures are imported, and arguments have their names

import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.tiny import limited, tiny_architecture

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecMonitor

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.envs.workers import ProcessVecEnv
from latent_obs.wrappers.sb3 import VecLatentObservation
from tests.support.mortal_env import CRASH, DIE, GO, SIZE, Losing, Mortal
from tests.support.mortal_workers import METHODS, Start, kill, preload, said, shape, start, step

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills processes as POSIX systems do"),
]


@pytest.mark.parametrize("start_method", METHODS)
def test_a_worker_killed_in_a_step_ends_its_episode_as_a_truncation(start: Start, said: list[str], start_method: str):
    venv, twin = start({}, {}, start_method=start_method), start({}, {}, start_method=start_method)
    venv.seed(5)
    twin.seed(5)
    first = venv.reset()
    np.testing.assert_array_equal(first, twin.reset())
    last = step(venv, GO, GO)[0]
    step(twin, GO, GO)
    pid = venv.processes[1].pid
    got, wanted = step(venv, GO, DIE), step(twin, GO, GO)
    for mine, theirs in zip(got[:3], wanted[:3], strict=True):
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine[0], theirs[0])  # of the environment that nothing happened to
    assert got[3][0] == wanted[3][0]
    observation, rewards, dones, infos = got
    assert (rewards[1], dones.tolist()) == (0.0, [False, True])
    info = infos[1]
    assert sorted(info) == ["TimeLimit.truncated", "fault", "faults", "terminal_observation"]
    np.testing.assert_array_equal(info["terminal_observation"], last[1])
    assert info["fault"] == f"worker 1 (pid {pid}) died with exit code -9 (SIGKILL), as when memory runs out"
    assert (info["TimeLimit.truncated"], info["faults"]) == (True, 1)
    assert said == [f"{info['fault']}; another one takes its place (1 of at most 20)"]
    assert venv.replaced == 1
    assert venv.get_attr("life") == [1, 2]
    # The new episode: of a seed of its own, the same in every run.
    seed = venv.reset_infos[1]["seed"]
    assert seed not in (None, 5, 6)
    expected, _ = Mortal(Path(venv.get_attr("folder")[0]), 9).reset(seed=seed)
    np.testing.assert_array_equal(observation[1], expected)
    later = [step(venv, GO, GO) for _ in range(4)]
    assert [dones.tolist() for _, _, dones, _ in later] == [[False] * 2, [True, False], [False] * 2, [False, True]]
    assert all("fault" not in info for _, _, _, infos in later for info in infos)


def test_the_same_kills_give_the_same_story(start: Start):
    def story() -> list[Any]:
        venv = start({}, {})
        venv.seed(3)
        told: list[Any] = [venv.reset()]
        for actions in [(GO, GO), (GO, DIE), (GO, GO), (GO, DIE), (DIE, GO), (GO, GO)]:
            told += [*step(venv, *actions)[:3], [info["seed"] for info in venv.reset_infos]]
        return told

    one, other = story(), story()
    np.testing.assert_equal(one, other)
    assert len({seeds[1] for seeds in one[4::4]}) == 3, "another seed for each worker"


def test_without_a_seed_the_new_worker_draws_its_own(start: Start):
    venv = start({})
    venv.reset()
    step(venv, DIE)
    assert venv.reset_infos[0]["seed"] is None


@pytest.mark.parametrize(
    ("action", "how"), [(CRASH, "code -11 (SIGSEGV)"), (DIE, "(SIGKILL), as when memory runs out")]
)
def test_what_happened_is_said(start: Start, action: int, how: str):
    venv = start({}, start_method=METHODS[0], on_restart=None)
    venv.reset()
    with pytest.warns(
        RuntimeWarning, match=rf"worker 0 \(pid {venv.processes[0].pid}\) died .*; another one takes its place"
    ):
        _, _, _, infos = step(venv, action)
    assert infos[0]["fault"].endswith(how)


@pytest.mark.parametrize("start_method", METHODS[:2])
def test_killed_between_two_steps_and_all_at_once(start: Start, start_method: str):
    venv = start({}, {}, {"reward": 3.0}, start_method=start_method)
    venv.reset()
    before = step(venv, GO, GO, GO)
    kill(venv, 1)
    venv.processes[1].join(5)
    _, rewards, dones, infos = step(venv, GO, GO, GO)
    assert (rewards.tolist(), dones.tolist()) == ([1.5, 0.0, 3.0], [False, True, False])
    step(venv, GO, GO, GO)
    kill(venv, 0, 1, 2)
    observation, rewards, dones, infos = step(venv, GO, GO, GO)
    assert (rewards.tolist(), dones.tolist()) == ([0.0] * 3, [True] * 3)
    assert [info["faults"] for info in infos] == [1, 2, 1]
    assert (observation.shape, observation.dtype, rewards.dtype, dones.dtype) == ((3, *SIZE), np.uint8, float, bool)
    assert rewards.dtype == before[1].dtype
    assert venv.get_attr("life") == [2, 3, 2]
    assert not step(venv, GO, GO, GO)[2].any()


@pytest.mark.parametrize("reward", [1.5, 2, np.float32(1.5), np.int16(3)])
def test_rewards_keep_their_type(start: Start, reward: Any):
    venv = start({"reward": reward}, {"reward": reward})
    venv.reset()
    kind = step(venv, GO, GO)[1].dtype
    assert step(venv, DIE, GO)[1].dtype == kind
    assert step(venv, GO, GO)[1].dtype == kind
    assert step(venv, DIE, DIE)[1].dtype == kind


@pytest.mark.parametrize("start_method", METHODS)
def test_killed_in_a_reset(start: Start, said: list[str], start_method: str):
    venv = start({}, {"dies": "reset", "lives": (1,)}, start_method=start_method)
    venv.seed(5)
    venv.set_options([{"level": 3}, {"level": 4}])
    observation = venv.reset()
    assert shape(observation) == (2, *SIZE)
    assert [{key: info[key] for key in ("seed", "options", "life", "faults")} for info in venv.reset_infos] == [
        {"seed": 5, "options": {"level": 3}, "life": 1, "faults": 0},
        {"seed": 6, "options": {"level": 4}, "life": 2, "faults": 1},
    ]
    assert len(said) == 1
    assert not step(venv, GO, GO)[2].any()
    kill(venv, 0)
    venv.reset()  # unseeded: not the first episode all over again
    assert venv.reset_infos[0]["seed"] not in (None, 5)
    assert venv.reset_infos[0]["options"] is None
    assert venv.reset_infos[1]["seed"] is None


def test_the_new_worker_is_as_the_old_one_was(start: Start):
    venv = start({}, {})
    venv.set_attr("colour", "blue", indices=1)
    venv.set_attr("colour", "green", indices=1)
    venv.set_options({"level": 7})
    venv.reset()
    step(venv, GO, DIE)
    assert venv.get_attr("colour") == ["red", "green"]
    assert venv.get_attr("level") == [7, 7]
    assert venv.reset_infos[1]["options"] == {"level": 7}
    venv.seed(11)  # for the next reset, whatever happens before
    step(venv, GO, GO)
    step(venv, GO, DIE)
    venv.reset()
    assert [info["seed"] for info in venv.reset_infos] == [11, 12]


def test_lost_games_are_counted_through(start: Start):
    venv = start({}, kind=Losing)
    venv.reset()
    seen: list[Any] = []
    for action in (GO, GO, GO, DIE, GO, GO, GO, GO, DIE, GO, GO):
        _, _, _, infos = step(venv, action)
        seen.append(infos[0].get("faults"))
        if "faults" in infos[0]:
            assert venv.reset_infos[0]["faults"] == infos[0]["faults"]
    assert seen == [None, 1, None, 2, None, 3, None, 4, 5, None, 6]


class Killer(BaseCallback):
    """Kills a worker every so many steps, whatever it is doing."""

    def __init__(self, venv: ProcessVecEnv) -> None:
        super().__init__()
        self.venv, self.kills, self.faults = venv, 0, 0

    def _on_step(self) -> bool:
        self.faults += sum("fault" in info for info in self.locals["infos"])
        if self.n_calls % 10 == 0 and self.n_calls <= 30:
            kill(self.venv, self.kills % 2)
            self.kills += 1
        return True


def test_ppo_learns_through_kills(said: list[str]):
    makers: Any = [partial(limited, "box", number, 7) for number in range(2)]
    venv = ProcessVecEnv(makers, restarts=20, on_restart=said.append)
    try:
        seen = VecMonitor(
            VecLatentObservation(venv, FrozenEncoder.random(tiny_architecture(), device="cpu"), history=2)
        )
        model = PPO("MlpPolicy", seen, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        killer = Killer(venv)
        model.learn(128, killer)
        assert model.num_timesteps == 128
        assert killer.kills == killer.faults == len(said) == venv.replaced == 3
        assert all(np.isfinite(value.numpy()).all() for value in model.policy.state_dict().values())
        assert any((value != before[name]).any() for name, value in model.policy.state_dict().items())
        assert np.isfinite(model.rollout_buffer.returns).all()
    finally:
        venv.close()
