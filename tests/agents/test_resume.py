"""Runs that are killed, stopped or resumed give the same agent, to the bit, as runs that are not."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from tests.support import ROOT

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import agents.training
from agents.config import AgentConfig, AlgorithmName
from agents.envs import load_encoder, make_vec_env, with_normalization
from agents.evaluation import Evaluation, evaluate_agent
from agents.store import agent_state, load_agent
from agents.training import AgentResult, loaded_model, part_seed, read_evaluations, train_agent
from latent_obs.util.atomic import LOCK_FILE, folder_lock
from latent_obs.util.errors import InputError
from tests.support.agent_runs import algorithm_config, copied, files_of, finished, train, weights_of  # noqa: F401
from tests.support.side_env import SIDE, SideEnv, tiny

# ruff: noqa: F811  (arguments are named like the fixtures)

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    "OMP_NUM_THREADS": "1",
}


def everything(run: Path, name: str = "last") -> dict[str, Any]:
    """All that decides how an agent continues: weights, optimizers, statistics, replay buffer."""
    config = dataclasses.replace(AgentConfig.load(run), encoder=run / "encoder")
    venv = with_normalization(config, make_vec_env(config, load_encoder(config)), training=True)
    model = loaded_model(config, venv) if name == "last" else load_agent(run, name)
    state = agent_state(run, name)
    values = {"steps": model.num_timesteps, "model": model.get_parameters()}
    values |= {"statistics": (state["returns"], state["observations"])}
    if name == "last" and isinstance(model, OffPolicyAlgorithm):
        buffer = model.replay_buffer
        assert buffer is not None
        arrays = {k: v for k, v in vars(buffer).items() if isinstance(v, np.ndarray)}
        values |= {"replay": arrays, "position": (buffer.pos, buffer.full)}
    return values


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(np.array_equal(a, b))


def die_at(patch: pytest.MonkeyPatch, at: int, die: Callable[[], object]) -> None:
    """Call `die` in a step of an environment, counted over all of them."""
    step, count = SideEnv.step, itertools.count(1)

    def dying(self: SideEnv, action: Any) -> Any:
        if next(count) == at:
            die()
        return step(self, action)

    patch.setattr(SideEnv, "step", dying)


def interrupt() -> None:
    raise KeyboardInterrupt  # not handled: nothing is saved


@pytest.mark.parametrize(
    ("algorithm", "at"), [("ppo", 10), ("ppo", 45), ("recurrent-ppo", 70), ("dqn", 45), ("qr-dqn", 70), ("sac", 70)]
)
def test_a_killed_and_resumed_run_is_the_same(
    algorithm: AlgorithmName, at: int, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`at`: before the first checkpoint, between two, and after an evaluation that is not at a checkpoint."""
    settings: dict[str, Any] = {"encoder": encoder_folder, "steps": 96, "checkpoint_every": 32, "eval_every": 48}
    settings |= {"learning_rate_schedule": "linear", "deterministic": False, "seed": 3}
    if algorithm in ("ppo", "recurrent-ppo"):
        settings |= {"n_steps": 8, "batch_size": 16}
    whole, killed = (algorithm_config(algorithm, out=tmp_path / name, **settings) for name in ("whole", "killed"))
    train(whole)
    with monkeypatch.context() as patch:
        die_at(patch, at, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(killed)
    assert agent_state(killed.out, "last")["steps"] == (0 if at == 10 else 32)
    assert train(AgentConfig(out=killed.out), resume=True).steps == 96
    for name in ("last", "best"):
        assert same(everything(whole.out, name), everything(killed.out, name)), name
    rows = [read_evaluations(config.out) for config in (whole, killed)]
    for row in (*rows[0], *rows[1]):
        assert row.pop("seconds") > 0
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == [48, 96]
    assert len(evaluate_agent(killed.out, episodes=2, device="cpu").returns) == 2


KILLED = """
import json, os, random, signal, sys, time
import tests.support.side_env
import torch._dynamo  # optimizers import it, which takes long: once here, not in each child
from agents.config import AgentConfig
from agents.training import train_agent
torch.set_num_threads(1)
dice = random.Random(1)
for config in map(AgentConfig.from_json, map(json.loads, sys.argv[1:])):
    last = config.out / "last.zip"
    written = lambda: last.stat().st_mtime_ns if last.exists() else 0
    for attempt in range(3):
        before, child = written(), os.fork()
        if child == 0:
            train_agent(config, resume=(config.out / "config.json").exists(), progress_bar=False, say=lambda _: None)
            os._exit(0)
        while attempt < 2 and written() == before:  # until it has made a checkpoint
            time.sleep(0.01)
        if attempt < 2:
            time.sleep(dice.uniform(0, 0.1))
            os.kill(child, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.integration
def test_a_process_killed_at_any_moment_continues_the_same(encoder_folder: Path, tmp_path: Path):
    """Two kills of each algorithm: one with a replay buffer, one without."""
    settings: dict[str, Any] = {"encoder": encoder_folder, "steps": 256, "checkpoint_every": 64, "eval_every": 128}
    algorithms: tuple[AlgorithmName, ...] = ("ppo", "dqn")
    killed = [algorithm_config(name, out=tmp_path / f"killed {name}", **settings) for name in algorithms]
    words = [sys.executable, "-c", KILLED, *(json.dumps(config.to_json()) for config in killed)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(-signal.SIGKILL), str(-signal.SIGKILL), "0"] * 2
    for config in killed:
        whole = dataclasses.replace(config, out=tmp_path / f"whole {config.algorithm}")
        train(whole)
        assert same(everything(whole.out), everything(config.out))


BEGUN = """
import json, os, pathlib, signal, sys
import tests.support.side_env
import torch._dynamo
from agents.config import AgentConfig
from agents.training import train_agent
torch.set_num_threads(1)
config = AgentConfig.from_json(json.loads(sys.argv[1]))
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")

def trained(count=None):
    # In a process of its own, which is killed when it touches a file of the run for the count-th time.
    child = os.fork()
    if child == 0:
        left = [count]
        def kill(event, words):
            if event in EVENTS and isinstance(words[0], (str, os.PathLike)) and config.out.name in str(words[0]):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        if count is not None:
            sys.addaudithook(kill)
        # As the messages say: go on with --resume where there is a run, else give the same command again.
        train_agent(config, resume=(config.out / "config.json").exists(), progress_bar=False, say=lambda _: None)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

for count in range(1, int(sys.argv[2]), 2):
    print(trained(count), trained(), sep="\\n")
    ended = config.out.rename(config.out.with_name(f"ended {count}"))
    assert not [f for f in ended.rglob(".*")], list(ended.rglob(".*"))
"""


@pytest.mark.integration
def test_a_run_killed_as_it_begins_begins_again_or_goes_on(encoder_folder: Path, tmp_path: Path):
    """Killed at every other operation on a file, of the first 28: the lock, the settings, the encoder, the agent."""
    config = tiny(encoder=encoder_folder, out=tmp_path / "killed-run", steps=32, eval_every=0)
    words = [sys.executable, "-c", BEGUN, json.dumps(config.to_json()), "28"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    statuses = [int(status) for status in done.stdout.split()]
    assert set(statuses[::2]) == {-signal.SIGKILL}
    assert set(statuses[1::2]) == {0}, done.stderr
    whole = dataclasses.replace(config, out=tmp_path / "whole")
    train(whole)
    for ended in tmp_path.glob("ended *"):
        assert same(everything(ended)["model"], everything(whole.out)["model"]), ended


def test_a_run_is_trained_by_one_process_at_a_time(copied: Path, encoder_folder: Path, tmp_path: Path):
    for run, resume in ((copied, True), (tmp_path / "new", False)):
        run.mkdir(exist_ok=True)
        before = files_of(run)
        with folder_lock(run), pytest.raises(InputError, match=f"{run.name}.*{os.getpid()}"):
            train(tiny(encoder=encoder_folder, out=run), resume=resume)
        assert files_of(run) == before
    train(tiny(encoder=encoder_folder, out=tmp_path / "new", steps=32))
    assert not (tmp_path / "new" / LOCK_FILE).exists()


def test_a_run_that_has_lost_its_last_agent_does_not_begin_anew(copied: Path):
    (copied / "last.zip").unlink()
    with pytest.raises(InputError, match=r"last\.zip"):
        train(AgentConfig(out=copied), resume=True)


def test_a_line_that_was_cut_by_a_kill_is_left_out_and_another_damage_named(copied: Path):
    file, rows = copied / "evaluations.jsonl", read_evaluations(copied)
    file.write_text(file.read_text() + '{"step": 96, "mean_re')
    assert read_evaluations(copied) == rows
    assert train(AgentConfig(out=copied, steps=96), resume=True).steps == 96
    assert [row["step"] for row in read_evaluations(copied)] == [32, 64, 96]
    file.write_text("{\n" + file.read_text())
    with pytest.raises(InputError, match=r"evaluations\.jsonl"):
        read_evaluations(copied)


def test_another_seed_gives_another_agent(encoder_folder: Path, finished: Path, tmp_path: Path):
    train(tiny(encoder=encoder_folder, out=tmp_path / "other", seed=7))
    assert not same(everything(finished)["model"], everything(tmp_path / "other")["model"])


def test_seeds_of_parts_differ_by_step_and_purpose():
    seeds = [part_seed(s, step, purpose) for s in range(5) for step in range(0, 50_000, 1_000) for purpose in (0, 1)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_a_resumed_run_continues(copied: Path):
    count = lambda: agent_state(copied, "last")["observations"]["count"]  # noqa: E731
    best_before, rows, counted = (copied / "best.zip").read_bytes(), read_evaluations(copied), count()
    assert train(AgentConfig(out=copied, steps=128), resume=True).steps == 128
    assert load_agent(copied, "last", device="cpu").num_timesteps == 128
    assert read_evaluations(copied)[:2] == rows
    assert [r["step"] for r in read_evaluations(copied)] == [32, 64, 96, 128]
    assert count() == pytest.approx(counted + 64 + 2)
    assert {f.name for f in (copied / "logs").iterdir()} == {"from_000000000", "from_000000064"}
    assert AgentConfig.load(copied).steps == 128
    improved = max(r["mean_return"] for r in read_evaluations(copied)[2:]) > max(r["mean_return"] for r in rows)
    assert ((copied / "best.zip").read_bytes() != best_before) is improved


def test_a_resumed_run_keeps_an_agent_that_was_better(copied: Path, monkeypatch: pytest.MonkeyPatch):
    best = (copied / "best.zip").read_bytes()
    monkeypatch.setattr(agents.training, "play", lambda *_: Evaluation((-1.0, -1.0), (8, 8)))
    result = train(AgentConfig(out=copied, steps=96), resume=True)
    assert result.best_return == max(r["mean_return"] for r in read_evaluations(copied)) >= 0
    assert (copied / "best.zip").read_bytes() == best


def test_resuming_a_finished_run_changes_nothing(copied: Path):
    rows, before, files = read_evaluations(copied), weights_of(copied), files_of(copied)
    with pytest.raises(InputError, match="learning_rate"):  # what decided the agent cannot change
        train(AgentConfig(out=copied, learning_rate=0.1), resume=True)
    assert files_of(copied) == files
    said: list[str] = []
    result = train_agent(AgentConfig(out=copied), resume=True, say=said.append)  # steps at their default: not given
    best = max(row["mean_return"] for row in rows)
    assert result == AgentResult(copied, 64, 0.0, best, False)
    assert (len(said), files_of(copied)) == (1, files)
    assert "--steps" in said[0]
    (copied / "evaluations.jsonl").write_text(json.dumps(rows[0]) + "\n")  # killed before its last evaluation
    assert train(AgentConfig(out=copied), resume=True).steps == 64
    assert [row["step"] for row in read_evaluations(copied)] == [32, 64]
    np.testing.assert_equal(weights_of(copied), before)


def test_a_run_does_not_need_the_given_encoder_folder_and_without_evaluations_its_best_agent_is_the_last(
    encoder_folder: Path, tmp_path: Path
):
    given = Path(shutil.copytree(encoder_folder, tmp_path / "given"))
    train(tiny(encoder=given, out=tmp_path / "run", observation="random-latent", steps=32, eval_every=0))
    shutil.rmtree(given)
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert len(evaluate_agent(moved, episodes=2).returns) == 2
    assert train(AgentConfig(out=moved, steps=64), resume=True).steps == 64
    assert load_agent(moved, "best", device="cpu").num_timesteps == 64


@pytest.mark.parametrize(("every", "saved"), [(32, 32), (0, 50)])
def test_a_signal_stops_the_run_saves_the_agent_and_closes_the_environments(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, saved: int
):
    closed: list[int] = []
    monkeypatch.setattr(SideEnv, "close", lambda self: closed.append(self.steps))
    die_at(monkeypatch, 50, lambda: os.kill(os.getpid(), signal.SIGTERM))
    said: list[str] = []
    config = tiny(encoder=encoder_folder, out=tmp_path / "run", steps=1_000, checkpoint_every=every, eval_every=500)
    handler = signal.getsignal(signal.SIGTERM)
    result = train_agent(config, say=said.append)
    assert (result.interrupted, result.steps) == (True, saved)
    assert load_agent(result.run, "last", device="cpu").num_timesteps == saved
    assert f"--out {result.run} --resume" in said[-1]
    assert len(closed) == 2 * (1 + 2)  # those that were checked, those of training and those of evaluations
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.integration
def test_ctrl_c_saves_the_agent_and_leaves_no_process_behind(encoder_folder: Path, tmp_path: Path):
    run, log = tmp_path / "run", tmp_path / "log.txt"
    words = (
        f"train-agent --env {SIDE} --encoder {encoder_folder} --out {run} --envs 2 --n-steps 64 --batch-size 64 "
        "--n-epochs 1 --net-arch 8 --steps 100000000 --eval-every 128 --eval-episodes 2 --checkpoint-every 128 "
        "--device cpu"
    )
    with log.open("w") as file:
        command = [sys.executable, "-m", "latent_obs_cli.main", *words.split()]
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
        process = subprocess.Popen(command, env=ENVIRONMENT, start_new_session=True, **streams)
    children: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 900
        while not (run / "best.zip").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert (run / "best.zip").exists(), log.read_text()
        assert "Training PPO" in log.read_text()  # at once, although it is a file
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 4  # two to train in, two to evaluate in, and the server that they are forked from
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
        assert process.wait(900) == 0, log.read_text()
        assert psutil.wait_procs(children, timeout=60)[1] == []
    finally:
        for child in children:
            if child.is_running():
                child.kill()
        process.kill()
        process.wait(60)
    assert "Traceback" not in log.read_text()
    steps = load_agent(run, "last", device="cpu").num_timesteps
    assert steps >= 128
    result = train(AgentConfig(out=run, steps=steps + 128, workers="serial"), resume=True)
    assert result.steps >= steps + 128
    assert not result.interrupted
