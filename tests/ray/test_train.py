"""`train_agent` with RLlib: the same network and run folder as with Stable-Baselines3, and runners that are lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch

pytest.importorskip("ray.rllib")

from ray.rllib.algorithms.ppo import PPOConfig  # pyright: ignore[reportMissingImports]
from stable_baselines3.common.vec_env import VecNormalize

from agents.config import AgentConfig
from agents.envs import load_encoder, make_vec_env, with_normalization
from agents.rllib import NormalizeRewards, check_spaces, parameter_pairs, ppo_settings
from agents.store import agent_state, load_agent
from agents.training import new_model, read_evaluations, train_agent
from latent_obs.util.errors import InputError
from tests.support.agent_runs import train
from tests.support.side_env import SIDE, SideEnv, tiny
from tests.support.tiny import LATENT_DIM

pytestmark = pytest.mark.ray
ray: Any = sys.modules["ray"]


def rllib_config(**settings: Any) -> AgentConfig:
    return tiny(**{"env": SIDE, "engine": "rllib", "envs": 4, **settings})


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Ray on this machine, with two CPUs; its address."""
    ray.init("local", num_cpus=2, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def trained(cluster: str, encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run of two runners, the first of which is killed after the first evaluation, and what was said."""
    run, said = tmp_path_factory.mktemp("rllib") / "run", []

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 2:
            processes = psutil.Process().children(recursive=True)
            next(one for one in processes if one.cmdline()[0].startswith("ray::SingleAgentEnvRunner")).kill()

    # Those with which Stable-Baselines3 learns in as many steps, in tests/agents/test_training.py.
    learning: dict[str, Any] = {"n_steps": 64, "batch_size": 64, "n_epochs": 8, "learning_rate": 5e-3, "gamma": 0.3}
    often: dict[str, Any] = {"runners": 2, "steps": 1_200, "eval_every": 256, "checkpoint_every": 256}
    train_agent(rllib_config(encoder=encoder_folder, out=run, **learning, **often), progress_bar=False, say=say)
    return run, said


@pytest.mark.parametrize("actions", ["two", "multi", "box"])
def test_both_networks_give_the_same_actions_and_values(actions: str, encoder_folder: Path, tmp_path: Path):
    config = rllib_config(encoder=encoder_folder, out=tmp_path, env_kwargs={"actions": actions}, net_arch=(16, 8))
    venv = with_normalization(config, make_vec_env(config, load_encoder(config), envs=1), training=True)
    model: Any = new_model(config, venv, "cpu")
    own: Any = {"default_policy": (venv.observation_space, venv.action_space)}
    module = ppo_settings(config.settled(), model, PPOConfig()).get_rl_module_spec(spaces=own).build()
    with torch.no_grad():
        for parameter, ours in parameter_pairs(module, model.policy):
            parameter.copy_(ours.normal_())
    observations = torch.randn(5, LATENT_DIM)
    out = module.forward_train({"obs": observations})
    distribution = model.policy.get_distribution(observations).distribution
    expected = {
        "two": lambda: distribution.logits,
        "multi": lambda: torch.cat([one.logits for one in distribution], 1),
        "box": lambda: torch.cat([distribution.mean, distribution.stddev.log()], 1),
    }[actions]()
    found = out["action_dist_inputs"]
    if actions != "box":  # torch's logits are normalized
        sizes = [2] if actions == "two" else [2, 3]
        found = torch.cat([one.log_softmax(1) for one in found.split(sizes, 1)], 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    values = module.compute_values({"obs": observations})
    torch.testing.assert_close(values, model.policy.predict_values(observations)[:, 0], rtol=1e-5, atol=1e-5)
    venv.close()


def test_rewards_are_divided_by_the_deviation_of_all_returns(rng: np.random.Generator):
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.vec_env import DummyVecEnv

    normalize = VecNormalize(DummyVecEnv([SideEnv]), norm_obs=False, gamma=0.5)
    connector = NormalizeRewards(normalize)
    rewards, expected = rng.normal(3, 2, 40), []
    total = 0.0
    for reward in rewards:
        total = 0.5 * total + reward
        expected.append(total)
    for part, ends in ((rewards[:15], False), (rewards[15:], True)):
        steps: dict[str, Any] = {"observations": [0] * (len(part) + 1), "actions": [0] * len(part)}
        steps |= {"rewards": list(part), "terminated": ends, "len_lookback_buffer": 0}
        episode = SingleAgentEpisode(id_="a", **steps)
        connector(batch={}, episodes=[episode.to_numpy()], rl_module=None)
    assert normalize.ret_rms.var == pytest.approx(np.var(expected), rel=1e-2)
    assert episode.get_rewards() == pytest.approx(rewards[15:] / np.sqrt(normalize.ret_rms.var), rel=1e-5)
    assert connector.returns == {}, "the episode has ended"


@pytest.mark.parametrize("settings", [{"kind": "dict"}, {"actions": "keys"}])
def test_environments_that_it_does_not_take(settings: dict[str, str], encoder_folder: Path, tmp_path: Path):
    config = rllib_config(encoder=encoder_folder, out=tmp_path, env_kwargs=settings)
    venv = make_vec_env(config, load_encoder(config), envs=1)
    with pytest.raises(InputError, match="engine rllib"):
        check_spaces(config, venv)
    venv.close()


def test_a_run_goes_on_without_a_killed_runner(trained: tuple[Path, list[str]]):
    run, said = trained
    assert any("1 of 2 runners" in line for line in said), said
    rows = read_evaluations(run)
    assert rows[-1]["step"] >= 1_200
    assert all(set(row["lengths"]) == {8} for row in rows)
    state, model = agent_state(run, "last"), load_agent(run, "last", device="cpu")
    assert state["steps"] == model.num_timesteps == rows[-1]["step"]
    # What a killed runner has seen since the last merge is lost, and the first observation of an episode is no step.
    assert state["observations"]["count"] == pytest.approx(state["steps"] * 9 / 8, rel=0.25)
    assert state["returns"]["count"] == pytest.approx(state["steps"], abs=1)
    assert np.isfinite(state["observations"]["mean"]).all()
    moments = model.policy.optimizer.state_dict()["state"]
    assert len(moments) == len(list(model.policy.parameters()))
    assert {float(moment["step"]) for moment in moments.values()} != {0.0}
    log = next((run / "logs").rglob("progress.csv")).read_text()
    assert "rollout/ep_rew_mean" in log
    assert "train/value_loss" in log
    assert str(rows[-1]["step"]) in log
    assert {path.name for path in run.iterdir()} == {
        "config.json",
        "encoder",
        "best.zip",
        "last.zip",
        "logs",
        "evaluations.jsonl",
    }


_WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
from agents import load_policy
from latent_obs_cli.main import main
run, out = sys.argv[1:]
assert main(["evaluate", "--run", run, "--episodes", "20", "--device", "cpu", "--no-video"]) == 0
assert main(["frames", "record", "--agent", run, "--frames", "64", "--out", out, "--size", "None"]) == 0
load_policy(run, "last", device="cpu")
"""


def test_a_run_folder_needs_no_ray(trained: tuple[Path, list[str]], tmp_path: Path):
    run = shutil.copytree(trained[0], tmp_path / "run")
    subprocess.run([sys.executable, "-c", _WITHOUT_RAY, str(run), str(tmp_path / "frames")], check=True, timeout=900)
    scores = json.loads((run / "evaluation.json").read_text())["agent"]
    assert scores["mean_return"] > 6, "chance gets 4 of 8"


def test_a_run_is_resumed_by_another_process(trained: tuple[Path, list[str]], cluster: str):
    run, _ = trained
    before = agent_state(run, "last")
    words = ["train-agent", "--out", str(run), "--resume", "--steps", "1300", "--runners", "1", "--address", cluster]
    code = "import sys; from latent_obs_cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"from step {before['steps']}" in done.stdout.replace(",", "")
    after = agent_state(run, "last")
    assert after["steps"] >= 1_300
    assert after["observations"]["count"] > before["observations"]["count"]
    assert json.loads((run / "config.json").read_text())["runners"] == 1


def test_an_environment_that_runners_do_not_know(cluster: str, encoder_folder: Path, tmp_path: Path):
    gym.register("OnlyHere-v0", entry_point=lambda **_: SideEnv(), disable_env_checker=True)
    config = rllib_config(env="OnlyHere-v0", encoder=encoder_folder, out=tmp_path / "run")
    with pytest.raises(InputError, match="OnlyHere-v0") as caught:
        train(config)
    assert "\n" not in str(caught.value)


def test_an_environment_that_fails_ends_training(
    cluster: str, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("agents.rllib._MOST_FAILURES", 1)  # Ray needs a minute for each
    config = rllib_config(env_kwargs={"reward": "much"}, encoder=encoder_folder, out=tmp_path / "run")
    with pytest.raises(InputError, match="TypeError"):
        train(config)


def test_ctrl_c_ends_waiting_for_cpus(cluster: str, encoder_folder: Path, tmp_path: Path):
    def say(line: str) -> None:
        if "2 free CPUs for 4 runners" in line:
            threading.Timer(5.0, os.kill, (os.getpid(), signal.SIGINT)).start()

    config = rllib_config(runners=4, encoder=encoder_folder, out=tmp_path / "run")
    result = train_agent(config, progress_bar=False, say=say)
    assert (result.interrupted, result.steps) == (True, 0)
