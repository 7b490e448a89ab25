"""Workers that are really killed: the run goes on with others in their place, and nothing is left of the dead."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.util import _finalizer_registry  # pyright: ignore[reportAttributeAccessIssue]
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import closed_without_a_trace, limited, tiny_architecture

pytest.importorskip("stable_baselines3")

from mortal_env import CRASH, DIE, GO, HANG, RAISE, SIZE, Losing, Mortal
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecMonitor

from latent_obs.errors import InputError
from latent_obs.frozen import FrozenEncoder
from latent_obs.process_vec_env import ProcessVecEnv, WorkerError
from latent_obs.sb3 import VecLatentObservation
from latent_obs.worker_remote import _our_ends

METHODS = [m for m in ("forkserver", "fork", "spawn") if m in multiprocessing.get_all_start_methods()]
#: The quickest one: what it is about is the same in all.
QUICK = "fork" if "fork" in METHODS else METHODS[0]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills processes as POSIX systems do"),
]
Start = Callable[..., ProcessVecEnv]


@pytest.fixture(autouse=True, scope="module")
def preload() -> None:
    multiprocessing.set_forkserver_preload(["latent_obs.env_worker"])


@pytest.fixture
def said() -> list[str]:
    """What was told of replaced workers."""
    return []


@pytest.fixture
def start(tmp_path: Path, said: list[str]) -> Iterator[Start]:
    """Make a vector of `Mortal`s; it is closed in the end, and all must be gone."""

    def make(
        *envs: dict[str, Any], kind: Any = Mortal, start_method: str = QUICK, restarts: int = 20, **kwargs: Any
    ) -> ProcessVecEnv:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        makers: Any = [partial(kind, folder, number, **env) for number, env in enumerate(envs)]
        how = {"close_grace_s": 3.0, "on_restart": said.append, **kwargs}
        made.append(ProcessVecEnv(makers, start_method, restarts=restarts, **how))
        return made[-1]

    with closed_without_a_trace() as made:
        yield make


def step(venv: Any, *actions: int) -> Any:
    return venv.step(np.array(actions))


def shape(observation: Any) -> tuple[int, ...]:
    return observation.shape


def kill(venv: ProcessVecEnv, *numbers: int) -> None:
    for number in numbers:
        os.kill(venv.processes[number].pid or 0, signal.SIGKILL)


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


@pytest.mark.parametrize(("action", "how"), [(CRASH, "code -11 (SIGSEGV)"), (DIE, "(SIGKILL), as when memory runs out")])
def test_what_happened_is_said(start: Start, action: int, how: str):
    venv = start({}, start_method=METHODS[0], on_restart=None)
    venv.reset()
    with pytest.warns(RuntimeWarning, match=rf"worker 0 \(pid {venv.processes[0].pid}\) died .*; another one takes its place"):
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


@pytest.mark.parametrize(
    ("dies", "lives", "end"),
    [("reset", (1, 2), "reset"), ("step", (1, 2), "step"), ("make", (2, 3), "step"), ("reset", (2, 3), "step")],
)
def test_a_game_that_cannot_start_is_an_error(start: Start, said: list[str], dies: str, lives: tuple[int, ...], end: str):
    venv = start({}, {"dies": dies, "lives": lives})

    def play() -> None:
        venv.reset()
        step(venv, GO, GO)
        step(venv, GO, GO)
        step(venv, GO, DIE)
        step(venv, GO, GO)

    with pytest.raises(WorkerError, match=r"worker 1 \(pid \d+\) died .*second one in a row .* no use") as e:
        play()
    assert e.value.died
    assert len(said) == venv.replaced == (1 if 1 in lives else 2)
    with pytest.raises(WorkerError, match="second one in a row"):
        venv.reset()


def test_one_false_start_is_none_too_many(start: Start):
    venv = start({"dies": "reset", "lives": (1, 3, 5)})
    venv.reset()
    for expected in (3, 5):
        step(venv, GO)
        faults = step(venv, DIE)[3][0]["faults"]
        assert venv.reset_infos[0]["faults"] == expected
        assert faults == expected
    assert venv.get_attr("life") == [6]


def test_no_more_than_so_many(start: Start, said: list[str]):
    venv = start({}, {}, restarts=2)
    venv.reset()
    step(venv, DIE, GO)
    step(venv, GO, GO)
    step(venv, GO, DIE)
    step(venv, GO, GO)
    with pytest.raises(WorkerError, match=r"worker 0 .*SIGKILL.* not replaced, as 2 workers were already \(restarts=2\)"):
        step(venv, DIE, GO)
    assert len(said) == venv.replaced == 2


def test_an_error_beside_a_death_is_raised_and_one_can_go_on(start: Start):
    venv = start({}, {}, {})
    venv.reset()
    with pytest.raises(WorkerError, match="environment 1 raised ValueError: a bad value"):
        step(venv, GO, RAISE, DIE)
    assert shape(venv.reset()) == (3, *SIZE)
    assert venv.get_attr("life") == [1, 1, 2]
    with pytest.raises(WorkerError, match="environment 1 raised ValueError"):
        step(venv, DIE, RAISE, GO)
    assert venv.get_attr("steps") == [0, 0, 1], "no answer is taken for another"


def test_methods_and_attributes_of_the_dead_are_errors(start: Start):
    venv = start({}, {})
    venv.reset()
    with pytest.raises(WorkerError, match=r"worker 1 .*SIGKILL"):
        venv.env_method("die", indices=1)
    with pytest.raises(WorkerError, match=r"worker 1 .*SIGKILL"):
        venv.get_attr("colour")
    assert venv.replaced == 0
    _, _, dones, infos = step(venv, GO, GO)
    assert dones.tolist() == [False, True]
    assert infos[1]["faults"] == 1
    assert venv.get_attr("colour") == ["red", "red"]


def test_a_step_before_the_first_reset_has_nothing_to_go_on_from(start: Start):
    venv = start({})
    with pytest.raises(WorkerError, match="SIGKILL"):
        step(venv, DIE)
    assert shape(venv.reset()) == (1, *SIZE)


def test_one_that_hangs_is_ended_where_there_is_a_limit(start: Start):
    venv = start({}, {}, answer_timeout_s=0.4)
    venv.reset()
    begin = time.monotonic()
    _, _, dones, infos = step(venv, HANG, GO)
    assert 0.3 < time.monotonic() - begin < 10
    assert infos[0]["fault"].endswith("gave no answer within 0.4 s, and was ended")
    assert dones.tolist() == [True, False]
    step(venv, GO, GO)
    alone = start({}, restarts=0, answer_timeout_s=0.3)
    alone.reset()
    with pytest.raises(WorkerError, match=r"no answer within 0\.3 s"):
        step(alone, HANG)


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    return False


@pytest.mark.parametrize("start_method", METHODS[:2])
@pytest.mark.parametrize("leaves", ["program", "copy"])
@pytest.mark.parametrize("restarts", [0, 3])
def test_games_of_the_dead_end_too(start: Start, start_method: str, leaves: str, restarts: int):
    venv = start({"leaves": leaves}, {"leaves": leaves}, start_method=start_method, restarts=restarts)
    venv.reset()
    games = venv.get_attr("child")
    if restarts:
        step(venv, GO, DIE)  # "copy" holds the pipe open
        games += venv.get_attr("child", 1)
        assert gone(games[1])
        assert psutil.pid_exists(games[0]), "another worker's game"
    else:
        with pytest.raises(WorkerError, match="SIGKILL"):
            step(venv, GO, DIE)
        assert gone(games[1])
    kill(venv, 0)
    venv.close()
    assert gone(games[0])
    if restarts:
        os.kill(games[2], signal.SIGKILL)  # a worker that ends by itself has its own ways with its game


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


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's list of open files")
@pytest.mark.parametrize("start_method", METHODS[:2])
def test_nothing_piles_up(start: Start, start_method: str):
    venv = start({}, {}, start_method=start_method, restarts=100)
    venv.reset()

    def kept() -> tuple[int, ...]:
        files = len(list(Path("/proc/self/fd").iterdir()))
        return files, len(multiprocessing.active_children()), len(_finalizer_registry), len(_our_ends), len(venv.processes)

    counts: list[tuple[int, ...]] = []
    for _ in range(6):
        step(venv, GO, GO)
        step(venv, GO, DIE)
        counts.append(kept())
    assert set(counts[1:]) == {counts[1]}, counts
    assert venv.replaced == 6


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
        seen = VecMonitor(VecLatentObservation(venv, FrozenEncoder.random(tiny_architecture(), device="cpu"), history=2))
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


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"restarts": -1}, "restarts must be a number of workers, 0 or more, got -1"),
        ({"restarts": True}, "restarts must be"),
        ({"restarts": 1.5}, "restarts must be"),
        ({"answer_timeout_s": 0}, "answer_timeout_s must be seconds, more than 0, or None, got 0"),
        ({"answer_timeout_s": float("nan")}, "answer_timeout_s must be"),
    ],
)
def test_bad_input(tmp_path: Path, kwargs: Any, message: str):
    before = multiprocessing.active_children()
    with pytest.raises(InputError, match=message):
        ProcessVecEnv([partial(Mortal, tmp_path)], **kwargs)  # pyright: ignore[reportArgumentType]
    assert multiprocessing.active_children() == before
