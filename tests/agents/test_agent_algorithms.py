"""Every algorithm by the same settings: it learns, is evaluated, and goes on, to the bit, from where it was killed."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from tests.support import ROOT

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from agents.config import ALGORITHMS, AgentConfig, AlgorithmName
from agents.envs import load_encoder, make_vec_env, with_normalization
from agents.evaluation import evaluate_agent
from agents.schedules import Schedule
from agents.store import agent_state, load_agent, restore_replay
from agents.training import AgentResult, loaded_model, part_seed, read_evaluations, train_agent
from latent_obs.util.errors import InputError
from tests.support.side_env import SIDE, SideEnv, tiny
from tests.support.tiny import random_frames, tiny_cvae
from vae_training.training.export import export_encoder

NAMES = get_args(AlgorithmName)
OFF_POLICY = ("dqn", "qr-dqn", "sac")


def of(algorithm: AlgorithmName, **settings: Any) -> AgentConfig:
    """Settings of a tiny agent of an algorithm."""
    values: dict[str, Any] = {"algorithm": algorithm, "env_kwargs": {"actions": "box" if algorithm == "sac" else "two"}}
    if algorithm in OFF_POLICY:
        values |= {"n_steps": None, "n_epochs": None, "buffer_size": 100, "learning_starts": 20, "batch_size": 16}
    if algorithm == "recurrent-ppo":
        values["lstm_size"] = 8
    return tiny(**{**values, **settings})


def train(config: AgentConfig, **kwargs: Any) -> AgentResult:
    return train_agent(config, say=lambda _: None, progress_bar=False, **kwargs)


def everything(run: Path, name: str = "last") -> dict[str, Any]:
    """All that decides how an agent goes on: weights, optimizers, statistics, replay buffer."""
    config = AgentConfig.load(run)
    config = dataclasses.replace(config, encoder=run / "encoder")
    venv = with_normalization(config, make_vec_env(config, load_encoder(config)), training=True)
    model = loaded_model(config, venv) if name == "last" else load_agent(run, name)
    values: dict[str, Any] = {"steps": model.num_timesteps, **numbers(model)}
    state = agent_state(run, name)
    values |= {"returns": state["returns"], "observations": state["observations"]}
    if name == "last" and isinstance(model, OffPolicyAlgorithm):
        buffer = model.replay_buffer
        assert buffer is not None
        arrays = {k: v for k, v in vars(buffer).items() if isinstance(v, np.ndarray)}
        values |= {"replay": arrays, "position": (buffer.pos, buffer.full)}
    return values


def numbers(model: BaseAlgorithm) -> dict[str, Any]:
    return {name: part for name, part in model.get_parameters().items() if part is not None}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return bool(np.array_equal(a, b))


@pytest.mark.parametrize("algorithm", NAMES)
def test_every_algorithm_trains_is_evaluated_and_goes_on(
    algorithm: AlgorithmName, encoder_folder: Path, tmp_path: Path
):
    config = of(algorithm, encoder=encoder_folder, out=tmp_path / "run")
    assert train(config).steps == 64
    assert AgentConfig.load(tmp_path / "run") == dataclasses.replace(config, encoder=encoder_folder).settled()
    assert type(load_agent(tmp_path / "run", "best")) is config.trainer.load_class()
    assert len(evaluate_agent(tmp_path / "run", episodes=4, device="cpu").returns) == 4
    assert train(AgentConfig(out=tmp_path / "run", steps=96), resume=True).steps == 96
    assert [row["step"] for row in read_evaluations(tmp_path / "run")] == [32, 64, 96]


@pytest.mark.parametrize("algorithm", NAMES)
@pytest.mark.parametrize("at", [10, 45, 70])
def test_killed_and_resumed_is_the_same_as_never_killed(
    algorithm: AlgorithmName, at: int, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`at`: before the first checkpoint, between two, and after an evaluation that is not at a checkpoint."""
    settings: dict[str, Any] = {
        "encoder": encoder_folder,
        "steps": 96,
        "checkpoint_every": 32,
        "eval_every": 48,
        "n_steps": 8,
        "batch_size": 16,
        "learning_rate_schedule": "linear",
        "deterministic": False,
        "seed": 3,
    }
    if algorithm in OFF_POLICY:
        settings["n_steps"] = None
    whole, killed = (of(algorithm, out=tmp_path / name, **settings) for name in ("whole", "killed"))
    train(whole)
    step, count = SideEnv.step, 0

    def die(self: SideEnv, action: Any) -> Any:
        nonlocal count
        count += 1
        if count == at:
            raise KeyboardInterrupt  # nothing is saved on its way
        return step(self, action)

    with monkeypatch.context() as patch:
        patch.setattr(SideEnv, "step", die)
        with pytest.raises(KeyboardInterrupt):
            train(killed)
    before = agent_state(killed.out, "last")["steps"]
    assert before == (0 if at == 10 else 32)
    assert train(AgentConfig(out=killed.out), resume=True).steps == 96
    for name in ("last", "best"):
        assert same(everything(whole.out, name), everything(killed.out, name)), name
    rows = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_evaluations(c.out)] for c in (whole, killed)
    ]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == [48, 96]


KILLED = """
import json, os, random, signal, sys, time
from tests.support import tests.support.side_env
import torch
from agents.config import AgentConfig
from agents.training import train_agent
torch.set_num_threads(1)
config = AgentConfig.from_json(json.loads(sys.argv[1]))
dice, codes = random.Random(1), []
for attempt in range(5):
    child = os.fork()
    if child == 0:
        train_agent(config, resume=(config.out / "config.json").exists(), progress_bar=False, say=lambda _: None)
        os._exit(0)
    if attempt < 4:
        time.sleep(dice.uniform(0.1, 0.6))
        os.kill(child, signal.SIGKILL)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""


@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_a_process_killed_at_any_moment_goes_on_the_same(
    algorithm: AlgorithmName, encoder_folder: Path, tmp_path: Path
):
    settings: dict[str, Any] = {
        "encoder": encoder_folder,
        "steps": 1_600,
        "checkpoint_every": 64,
        "eval_every": 256,
        "env": SIDE,
    }
    whole, killed = (of(algorithm, out=tmp_path / name, **settings) for name in ("whole", "killed"))
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(killed.to_json())],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout.splitlines()[-1])
    assert codes[-1] == 0
    assert -signal.SIGKILL in codes
    train(whole)
    assert same(everything(whole.out), everything(killed.out))


@pytest.mark.parametrize("algorithm", NAMES)
def test_the_same_seed_gives_the_same_agent(algorithm: AlgorithmName, encoder_folder: Path, tmp_path: Path):
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        train(of(algorithm, encoder=encoder_folder, out=tmp_path / name, seed=seed, eval_every=0))
    one, again, other = (everything(tmp_path / name) for name in ("one", "same", "other"))
    assert same(one, again)
    assert not same(one["policy"], other["policy"])


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        ("dqn", {"learning_rate": 3e-3, "learning_starts": 100, "exploration_fraction": 0.5, "gradient_steps": 4}),
        (
            "qr-dqn",
            {
                "learning_rate": 3e-3,
                "learning_starts": 100,
                "exploration_fraction": 0.5,
                "gradient_steps": 4,
                "n_quantiles": 8,
            },
        ),
        ("sac", {"learning_rate": 3e-3, "learning_starts": 100, "gradient_steps": 1}),
        ("recurrent-ppo", {"learning_rate": 5e-3, "n_steps": 64, "batch_size": 64, "n_epochs": 8}),
    ],
)
def test_it_learns(algorithm: AlgorithmName, settings: dict[str, Any], encoder_folder: Path, tmp_path: Path):
    off = {"buffer_size": 5_000} if algorithm in OFF_POLICY else {}
    config = of(
        algorithm,
        encoder=encoder_folder,
        out=tmp_path / "run",
        envs=4,
        steps=1_600,
        gamma=0.3,
        eval_every=0,
        seed=1,
        **off,
        **settings,
    )
    train(config)
    assert evaluate_agent(config.out, episodes=20, device="cpu").mean > 6.5, "half of 8 steps is chance"


@pytest.mark.parametrize(
    ("algorithm", "actions", "able"),
    [
        ("sac", "two", "ppo, recurrent-ppo, dqn, qr-dqn"),
        ("dqn", "box", "ppo, recurrent-ppo, sac"),
        ("qr-dqn", "multi", "ppo, recurrent-ppo"),
    ],
)
def test_actions_that_it_cannot_take(
    algorithm: AlgorithmName, actions: str, able: str, encoder_folder: Path, tmp_path: Path
):
    config = of(algorithm, encoder=encoder_folder, out=tmp_path / "run", env_kwargs={"actions": actions})
    title = ALGORITHMS[algorithm].title
    with pytest.raises(InputError, match=rf"^{title} cannot take the actions of Side-v0, .*can: --algorithm {able}$"):
        train(config)
    assert not config.out.exists()


@pytest.mark.parametrize("algorithm", ["ppo", "recurrent-ppo"])
def test_several_choices_at_once(algorithm: AlgorithmName, encoder_folder: Path, tmp_path: Path):
    train(of(algorithm, encoder=encoder_folder, out=tmp_path / "run", env_kwargs={"actions": "multi"}))


def test_the_replay_buffer_of_a_dict_observation_comes_back(encoder_folder: Path, tmp_path: Path):
    config = of("dqn", encoder=encoder_folder, out=tmp_path / "run", env_kwargs={"kind": "dict"}, eval_every=0)
    train(config)
    assert train(AgentConfig(out=config.out, steps=96), resume=True).steps == 96
    with zipfile.ZipFile(config.out / "last.zip") as archive:
        names = [n for n in archive.namelist() if n.startswith("replay/")]
        stored = np.lib.format.read_array(archive.open("replay/rewards.npy"), allow_pickle=False)
    assert "replay/observations/clock.npy" in names
    assert "replay/next_observations/pov.npy" in names
    assert stored.shape == (48, 2)
    assert not any(n.startswith("replay/") for n in zipfile.ZipFile(config.out / "best.zip").namelist())


def test_a_replay_buffer_of_another_size_is_refused(encoder_folder: Path, tmp_path: Path):
    config = of("dqn", encoder=encoder_folder, out=tmp_path / "run", eval_every=0)
    train(config)
    other = dataclasses.replace(config, buffer_size=50)
    venv = with_normalization(other, make_vec_env(other, load_encoder(other)), training=True)
    model = ALGORITHMS["dqn"].load_class()("MlpPolicy", venv, buffer_size=50)  # pyright: ignore[reportCallIssue]
    with pytest.raises(InputError, match=r"last\.zip has a replay buffer of 50 steps an environment, not 25"):
        restore_replay(config.out, "last", model)
    with pytest.raises(InputError, match=r"best\.zip has no replay buffer"):
        restore_replay(config.out, "best", model)


@pytest.mark.parametrize(("keep", "kept"), [(0, []), (2, [64, 96]), (-1, [32, 64, 96])])
def test_checkpoints_that_are_kept(keep: int, kept: list[int], encoder_folder: Path, tmp_path: Path):
    config = of(
        "dqn",
        encoder=encoder_folder,
        out=tmp_path / "run",
        steps=96,
        checkpoint_every=32,
        keep_checkpoints=keep,
        eval_every=0,
    )
    train(config)
    files = sorted((config.out / "checkpoints").glob("*")) if kept else []
    assert [f.name for f in files] == [f"step_{step:09d}.zip" for step in kept]
    assert (config.out / "checkpoints").exists() is bool(kept)
    for step in kept:
        assert load_agent(config.out, str(step)).num_timesteps == step
        assert len(evaluate_agent(config.out, which=str(step), episodes=2, device="cpu").returns) == 2


def test_until_stops_at_a_checkpoint_and_schedules_go_on(encoder_folder: Path, tmp_path: Path):
    settings: dict[str, Any] = {
        "encoder": encoder_folder,
        "steps": 96,
        "learning_rate_schedule": "linear",
        "checkpoint_every": 32,
    }
    whole, parts = (of("ppo", out=tmp_path / name, eval_every=0, **settings) for name in ("whole", "parts"))
    train(whole)
    result = train(parts, until=40)
    assert (result.steps, result.interrupted) == (64, True), "the next update after so many steps"
    assert train(AgentConfig(out=parts.out), resume=True).steps == 96
    assert same(everything(whole.out), everything(parts.out))


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_schedules_reach_the_optimizer(shape: Any, encoder_folder: Path, tmp_path: Path):
    config = of(
        "ppo",
        encoder=encoder_folder,
        out=tmp_path / "run",
        learning_rate=0.01,
        learning_rate_schedule=shape,
        clip_range=0.3,
        clip_range_schedule=shape,
        eval_every=0,
    )
    train(config)
    model: Any = load_agent(config.out, "last")
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(Schedule(0.01, shape)(0.0))
    assert model.clip_range(0.5) == pytest.approx(0.3 * {"constant": 1, "linear": 0.5, "cosine": 0.5}[shape])


def test_a_run_without_any_reward_says_so(encoder_folder: Path, tmp_path: Path):
    for reward, said_so in ((0.0, True), (1.0, False)):
        said: list[str] = []
        config = tiny(encoder=encoder_folder, out=tmp_path / str(reward), env_kwargs={"reward": reward})
        train_agent(config, say=said.append, progress_bar=False)
        assert ("No step of this run gave any reward" in said[-1]) is said_so


def test_another_encoder_is_refused(encoder_folder: Path, other_encoder: Path, tmp_path: Path):
    run = tmp_path / "run"
    train(tiny(encoder=encoder_folder, out=run))
    shutil.rmtree(run / "encoder")
    shutil.copytree(other_encoder, run / "encoder")
    with pytest.raises(InputError, match=r"agent 'last' of .* was trained with an encoder whose fingerprint is"):
        train(AgentConfig(out=run, steps=96), resume=True)
    with pytest.raises(InputError, match=r"agent 'best' of .* was trained with an encoder whose fingerprint is"):
        evaluate_agent(run, episodes=2, device="cpu")


@pytest.fixture(scope="module")
def other_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_encoder(
        tmp_path_factory.mktemp("other") / "encoder", tiny_cvae(seed=5), random_frames(6), provenance={}
    )


def test_part_seeds_differ_by_step_and_purpose():
    seeds = {
        part_seed(seed, step, purpose) for seed in range(5) for step in range(0, 50_000, 1_000) for purpose in (0, 1)
    }
    assert len(seeds) == 5 * 50 * 2
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_statistics_of_other_observations_are_refused(encoder_folder: Path, tmp_path: Path):
    from agents.store import restore_statistics

    config = tiny(encoder=encoder_folder, out=tmp_path / "run")
    train(config)
    other = dataclasses.replace(config, history=2)
    venv = with_normalization(other, make_vec_env(other, load_encoder(other)), training=False)
    assert isinstance(venv, VecNormalize)
    with pytest.raises(InputError, match=r"last\.zip was trained on Box.*\(6,\).*and would see Box.*\(12,\)"):
        restore_statistics(config.out, "last", venv)
