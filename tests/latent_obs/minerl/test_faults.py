"""MineRL's environments when their game dies, hangs or sends nonsense: against each fault that the stand-in has."""

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback

import latent_obs
from latent_obs.envs import faults as faults_module
from latent_obs.envs.faults import RestartOnFault
from latent_obs.minerl import installation
from latent_obs.minerl.client import make_client
from latent_obs.minerl.env import MineRLEnv
from latent_obs.util.errors import GameFaultError, GameLostError, InputError
from tests.support import ROOT
from tests.support.minerl_games import find, fingerprint, picture_of, record_pictures
from tests.support.minerl_server import Fault, StandInGame, World

TASK = "MineRLTreechop-v0"
#: The message of each fault in a step.
STEP_FAULTS: dict[Fault, str] = {
    "drop": "the game closed the connection",
    "crash": "the game closed the connection",
    "hang": r"no answer within 0\.5 s",
    "short": "a picture of 6144 bytes, expected 12288",
    "bad-json": "JSONDecodeError",
}


@pytest.fixture
def game() -> Iterator[StandInGame]:
    with StandInGame(revive_after_s=0.02) as game:
        yield game


def raw(game: StandInGame, env_id: str = TASK, fault: str = "", **kwargs: Any) -> MineRLEnv:
    """With a short deadline where a hang is to come, and an ample one otherwise."""
    step, reset = 0.5 if fault == "hang" else 20.0, 1.5 if fault == "hang-reset" else 20.0
    return MineRLEnv(
        make_client(env_id), port=game.port, **{"step_deadline_s": step, "reset_deadline_s": reset, **kwargs}
    )


def restarting(game: StandInGame, env_id: str = TASK, fault: str = "", most_in_a_row: int = 8) -> RestartOnFault:
    """It waits long enough for the game to be back at the first attempt."""
    return RestartOnFault(raw(game, env_id, fault), first_pause_s=0.2, most_in_a_row=most_in_a_row)


def turn(env: gym.Env[Any, Any], degrees: float) -> Any:
    """A step after which the picture is another one."""
    return env.step({**env.get_wrapper_attr("noop"), "camera": np.array([0.0, degrees], np.float32)})


def second_episode(env: gym.Env[Any, Any]) -> list[Any]:
    """What is seen in the episode after the one that is under way."""
    return [env.reset()[0]["pov"], turn(env, 20)[0]["pov"], turn(env, 20)[0]["pov"]]


@pytest.mark.parametrize(("fault", "message"), STEP_FAULTS.items())
def test_a_fault_in_a_step_is_a_truncation_with_the_last_real_observation(
    game: StandInGame, fault: Fault, message: str
):
    with closing(restarting(game, fault=fault)) as env:
        env.reset(seed=9)
        turn(env, 30)
        expected = second_episode(env)
        env.reset(seed=9)
        last = turn(env, 30)[0]["pov"]
        np.testing.assert_array_equal(last, picture_of(game.world))
        game.fail_next(fault)
        observation, reward, terminated, truncated, info = turn(env, 30)
        np.testing.assert_array_equal(observation["pov"], last, strict=True)
        assert not np.shares_memory(observation["pov"], last)
        assert observation in env.observation_space
        assert (reward, terminated, truncated) == (0.0, False, True)
        assert info.pop("faults") == 1
        assert re.match(rf"{TASK} .*localhost:{game.port}.* step 2 .*{message}", info.pop("fault"))
        assert info == {}
        np.testing.assert_array_equal(second_episode(env), expected)  # as if nothing had happened
        assert turn(env, 1)[-1] == {}
        assert env.reset(seed=1)[1] == {"faults": 1}


def test_by_itself_the_environment_raises(game: StandInGame):
    with closing(raw(game, render_mode="rgb_array")) as env:
        last = env.reset(seed=1)[0]["pov"]
        game.fail_next("crash")
        with pytest.raises(GameFaultError, match=TASK):
            turn(env, 10)
        np.testing.assert_array_equal(env.render(), last)
        with pytest.raises(gym.error.ResetNeeded):
            turn(env, 10)
        game.revive()
        np.testing.assert_array_equal(env.reset(seed=1)[0]["pov"], last)
        turn(env, 10)


@pytest.mark.parametrize(
    ("fault", "message", "faults"),
    [
        ("drop-reset", "the game closed the connection", 2),
        ("crash-reset", "the game closed the connection", 2),
        ("hang-reset", "no answer within 1.5 s", 1),
        ("busy", "", 1),  # minerl asks again a second later
    ],
)
def test_a_fault_in_a_reset_is_tried_again_with_the_same_seed(
    game: StandInGame, fault: Fault, message: str, faults: int, caplog: pytest.LogCaptureFixture
):
    with closing(restarting(game, fault=fault)) as env:
        game.fail_next(fault, faults)
        observation, info = env.reset(seed=4)
        np.testing.assert_array_equal(observation["pov"], picture_of(game.world))
        assert game.seeds == [4]
        assert info == {"faults": faults if message else 0}
        assert turn(env, 1)[2:] == (False, False, {})
    assert sum("while an episode began" in line and message in line for line in caplog.messages) == info["faults"]


def test_a_fault_in_the_steps_of_basalts_own_reset_counts_as_one(game: StandInGame):
    """Minerl does nothing for 30 steps there, and takes a lost game for a death: it would begin an unseeded world."""
    with closing(restarting(game, "MineRLBasaltFindCave-v0")) as env:
        game.fail_next("drop")
        observation, info = env.reset(seed=4)
        np.testing.assert_array_equal(observation["pov"], picture_of(game.world))
        assert game.seeds[-1] == 4
        assert info == {"faults": 1}


def test_a_game_that_stays_away_is_given_up(game: StandInGame):
    game.revive_after_s = None
    with closing(restarting(game, most_in_a_row=3)) as env:
        env.reset(seed=1)
        game.crash()
        assert turn(env, 1)[3]
        with pytest.raises(GameLostError, match="3 times in a row"):
            env.reset()
        game.revive()
        assert env.reset()[1] == {"faults": 3}


def test_an_empty_picture_is_the_one_before(game: StandInGame):
    with closing(restarting(game, "MineRLObtainDiamondVectorObf-v0")) as env:
        first, info = env.reset(seed=3)
        assert info == {"faults": 0}
        for missing in (1, 2):
            game.fail_next("empty", missing)
            for _ in range(missing):
                observation, _, terminated, truncated, info = env.step(env.action_space.sample())
                np.testing.assert_array_equal(observation["pov"], first["pov"])
                assert not np.shares_memory(observation["pov"], first["pov"])
                assert observation in env.observation_space
                assert (terminated, truncated, info) == (False, False, {"frame_missing": True})
            first, *_, info = env.step(env.action_space.sample())
            np.testing.assert_array_equal(first["pov"], picture_of(game.world))
            assert info == {}


@pytest.mark.parametrize(("env_id", "missing"), [(TASK, 4), ("MineRLBasaltFindCave-v0", 33)])
def test_an_episode_begins_when_there_is_a_picture(
    game: StandInGame, env_id: str, missing: int, monkeypatch: pytest.MonkeyPatch
):
    draw, draws = World.frame, itertools.count()
    with closing(raw(game, env_id)) as env:
        env.reset(seed=1)
        turn(env, 40)
        monkeypatch.setattr(World, "frame", lambda world: b"" if next(draws) < missing else draw(world))
        observation, info = env.reset(seed=1)
        np.testing.assert_array_equal(observation["pov"], picture_of(game.world))
        assert info == {}
        env.reset_deadline_s = 0.3
        monkeypatch.setattr(World, "frame", lambda world: b"")
        with pytest.raises(GameFaultError, match=r"while an episode began: TimeoutError: no answer within 0\.3 s"):
            env.reset()


@contextmanager
def process(port: int = 0) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A stand-in in a process of its own, and its port."""
    command = [sys.executable, "-m", "tests.support.minerl_server", "--port", str(port)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as server:
        try:
            assert server.stdout is not None
            listening = int(server.stdout.readline().split()[-1])
            yield server, listening
        finally:
            server.kill()


@pytest.mark.integration
def test_a_game_that_is_killed_and_started_again():
    with process() as (server, port):
        env = latent_obs.make_minerl(TASK, port=port, step_deadline_s=5.0)
        find(env, RestartOnFault).first_pause_s = 0.01
        env.reset(seed=1)
        last = env.step(1)[0]["pov"]
        server.send_signal(signal.SIGKILL)
        server.wait()
        observation, *outcome, info = env.step(1)
    np.testing.assert_array_equal(observation["pov"], last)
    assert (outcome, info["faults"]) == ([0.0, False, True], 1)
    with process(port), closing(env):
        assert env.reset(seed=2)[1] == {"faults": 1}
        assert env.step(1)[2:] == (False, False, {})


def test_bad_arguments(monkeypatch: pytest.MonkeyPatch):
    make = latent_obs.make_minerl
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(InputError, match=f"port.* 127.0.0.1:{port}"):
        make(TASK, port=port, host="127.0.0.1")
    wrongs: list[dict[str, Any]] = [{"port": 0}, {"port": 65536}, {"step_deadline_s": 0}]
    wrongs.append({"reset_deadline_s": float("nan")})
    for wrong in wrongs:
        with pytest.raises(InputError, match=next(iter(wrong))):
            make(TASK, **wrong)
    monkeypatch.setattr(installation, "find_java", lambda: None)
    with pytest.raises(InputError, match="no java"):
        make(TASK)


def test_a_server_of_another_protocol_is_no_game():
    def serve(server: socket.socket) -> None:
        for _ in range(2):  # the greeting, and the reset
            connection, _ = server.accept()
            with connection, suppress(OSError):  # it may hang up before it has heard everything
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                while connection.recv(4096):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        client, port = make_client(TASK), server.getsockname()[1]
        env = MineRLEnv(client, port=port, host="127.0.0.1", reset_deadline_s=60.0)
        with closing(env), pytest.raises(GameFaultError, match="1213486160 bytes"):
            env.reset()
        thread.join(5)


@pytest.mark.parametrize("fault", ["none", "crash", "hang"])
def test_closing_is_quiet_and_for_good(game: StandInGame, fault: Any):
    env = raw(game, fault=fault)
    env.reset()
    game.revive_after_s = None
    if fault != "none":
        game.fail_next(fault)
        with pytest.raises(GameFaultError):
            turn(env, 1)
    env.close()
    env.close()
    assert game.alive is (fault != "crash")  # a game that was there before stays
    with pytest.raises(gym.error.ClosedEnvironmentError, match="was closed"):
        env.reset()


class Watch(BaseCallback):
    """Keeps the infos that an agent of Stable-Baselines3 gets, and the pictures of its rollouts."""

    def __init__(self) -> None:
        super().__init__()
        self.infos: list[dict[str, Any]] = []
        self.seen: set[bytes] = set()

    def _on_step(self) -> bool:
        self.infos += self.locals["infos"]
        return True

    def _on_rollout_end(self) -> None:
        if isinstance(self.model, PPO):
            self.seen |= set(map(fingerprint, self.model.rollout_buffer.observations.reshape(-1, 64 * 64 * 3)))


#: By the step in which it happens.
TROUBLE: dict[int, Fault] = {20: "drop", 33: "short", 48: "bad-json", 70: "crash", 90: "drop", 100: "empty"}
TROUBLE |= {120: "hang", 121: "drop-reset", 140: "crash", 210: "crash"}


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_training_goes_through_crashes_and_sees_nothing_invented(algorithm: Any, monkeypatch: pytest.MonkeyPatch):
    drawn = record_pictures(monkeypatch)
    with StandInGame(revive_after_s=0.02) as game:
        for step, fault in TROUBLE.items():
            game.schedule(fault, at_step=step)
        env = latent_obs.make_pixel_env(TASK, port=game.port, step_deadline_s=0.5)
        find(env, RestartOnFault).first_pause_s = 0.05
        monkeypatch.setattr(faults_module, "_LONGEST_PAUSE_S", 0.05)
        monkeypatch.setattr(faults_module, "_HEALTHY_STEPS", 10)
        kwargs: dict[str, Any] = {"batch_size": 16, "policy_kwargs": {"net_arch": [8]}, "seed": 1, "device": "cpu"}
        kwargs |= {"n_steps": 64, "n_epochs": 1} if algorithm is PPO else {"buffer_size": 256, "learning_starts": 32}
        flat = gym.wrappers.TransformObservation(
            env, lambda seen: seen["pov"].reshape(-1), spaces.Box(0, 255, (64 * 64 * 3,), np.uint8)
        )
        model = algorithm("MlpPolicy", flat, **kwargs)
        watch = Watch()
        model.learn(256, callback=watch)
        env.close()
    assert model.num_timesteps == 256
    faults = [step for step, info in enumerate(watch.infos) if "fault" in info]
    assert len(faults) >= 8  # five, and a crash at 70, 140 and 210
    for step in faults:
        assert watch.infos[step]["TimeLimit.truncated"] is True
        assert fingerprint(watch.infos[step]["terminal_observation"]) in drawn
    if isinstance(model, DQN):
        memory: Any = model.replay_buffer
        assert (memory.pos, memory.full) == (0, True)  # all 256 are there
        for step in faults:
            np.testing.assert_array_equal(memory.next_observations[step], memory.observations[step])
            assert (memory.rewards[step], memory.dones[step], memory.timeouts[step]) == (0, 1, 1)
        for frames in (memory.observations, memory.next_observations):
            watch.seen |= set(map(fingerprint, frames[:, 0]))
    assert len(watch.seen) > 30
    assert watch.seen <= drawn
