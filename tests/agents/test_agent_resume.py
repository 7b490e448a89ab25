"""A run of train_agent that is resumed: it goes on where it stopped, with all that it knew, and as the agent that it
was."""

# ruff: noqa: F401, F811  # fixtures are imported, and arguments have their names

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

import agents.training as callback_module
import agents.training as train_module
from agents.config import AgentConfig
from agents.envs import make_vec_env, with_normalization
from agents.evaluation import Evaluation, evaluate_agent
from agents.store import agent_state, load_agent, restore_statistics, save_agent
from agents.training import read_evaluations
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import InputError
from tests.support.agent_runs import copied, files_of, finished, train, weights_of
from tests.support.side_env import tiny


@pytest.mark.parametrize("kind", ["box", "dict"])
def test_running_statistics_come_back_exactly(encoder: FrozenEncoder, tmp_path: Path, kind: str):
    config = tiny(env_kwargs={"kind": kind})

    def normalized() -> VecNormalize:
        return with_normalization(config, make_vec_env(config, encoder), training=True)

    venv = normalized()
    model = PPO(
        "MultiInputPolicy" if kind == "dict" else "MlpPolicy", venv, n_steps=16, batch_size=32, n_epochs=1, device="cpu"
    )
    model.learn(64)
    save_agent(tmp_path, "last", model)
    again = normalized()
    restore_statistics(tmp_path, "last", again)

    def numbers(v: VecNormalize) -> list[Any]:
        observations = v.obs_rms if isinstance(v.obs_rms, dict) else {"": v.obs_rms}
        rms = {"returns": v.ret_rms, **observations}
        return [(name, r.mean, r.var, r.count) for name, r in sorted(rms.items())]

    assert venv.ret_rms.count > 64
    for (name, *one), (other_name, *other) in zip(numbers(venv), numbers(again), strict=True):
        assert name == other_name
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
            assert np.shape(a) == np.shape(b)
    again.reset()
    again.step(np.zeros(2, np.int64))  # they can be updated
    assert again.ret_rms.count == venv.ret_rms.count + 2


def test_a_resumed_run_goes_on(copied: Path):
    best_before = (copied / "best.zip").read_bytes()
    rows = read_evaluations(copied)
    count = agent_state(copied, "last")["observations"]["count"]
    loaded: list[BaseAlgorithm] = []
    original = train_module.loaded_model

    def spy(config: AgentConfig, venv: VecNormalize) -> BaseAlgorithm:
        model = original(config, venv)
        assert model.num_timesteps == 64
        for name, values in weights_of(copied).items():
            np.testing.assert_array_equal(model.policy.state_dict()[name].numpy(), values)
        assert model.get_vec_normalize_env() is venv
        assert venv.obs_rms.count == count  # pyright: ignore[reportAttributeAccessIssue]
        loaded.append(model)
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "loaded_model", spy)
        result = train(AgentConfig(out=copied, steps=128), resume=True)
    assert len(loaded) == 1
    assert result.steps == 128
    assert load_agent(copied, "last", device="cpu").num_timesteps == 128
    assert read_evaluations(copied)[:2] == rows
    assert [r["step"] for r in read_evaluations(copied)] == [32, 64, 96, 128]
    after = agent_state(copied, "last")
    assert after["steps"] == 128
    # 2 first observations and 2 per step pair, on top of what there was
    assert after["observations"]["count"] == pytest.approx(count + 64 + 2)
    assert {f.name for f in (copied / "logs").iterdir()} == {"from_000000000", "from_000000064"}
    assert AgentConfig.load(copied).steps == 128
    improved = max(r["mean_return"] for r in read_evaluations(copied)[2:]) > max(r["mean_return"] for r in rows)
    assert ((copied / "best.zip").read_bytes() != best_before) is improved


def test_a_resumed_run_keeps_an_agent_that_was_better(copied: Path, monkeypatch: pytest.MonkeyPatch):
    best = (copied / "best.zip").read_bytes()
    monkeypatch.setattr(callback_module, "play", lambda *_, **__: Evaluation((-1.0, -1.0), (8, 8)))
    result = train(AgentConfig(out=copied, steps=96), resume=True)
    assert result.best_return == max(r["mean_return"] for r in read_evaluations(copied)) >= 0
    assert (copied / "best.zip").read_bytes() == best


def test_resuming_a_finished_run_changes_nothing(copied: Path):
    rows, before = read_evaluations(copied), weights_of(copied)
    result = train(AgentConfig(out=copied), resume=True)  # steps left at their default: not given
    assert (result.steps, result.interrupted) == (64, False)
    assert read_evaluations(copied) == rows
    for name, values in weights_of(copied).items():
        np.testing.assert_array_equal(values, before[name])


def test_resuming_twice_with_the_same_words(encoder_folder: Path, tmp_path: Path):
    config = tiny(encoder=encoder_folder, out=tmp_path / "run", steps=32, eval_every=0)
    train(config)
    for steps in (64, 96):
        assert train(dataclasses.replace(config, steps=steps), resume=True).steps == steps


def test_without_evaluations_best_is_the_last_agent(encoder_folder: Path, tmp_path: Path):
    config = tiny(encoder=encoder_folder, out=tmp_path / "run", steps=32, eval_every=0)
    train(config)
    train(dataclasses.replace(config, steps=64), resume=True)
    assert load_agent(tmp_path / "run", "best", device="cpu").num_timesteps == 64


def test_a_run_outlives_the_encoder_folder_it_was_given(encoder_folder: Path, tmp_path: Path):
    given = Path(shutil.copytree(encoder_folder, tmp_path / "given"))
    for observation in ("latent", "random-latent"):
        train(tiny(encoder=given, out=tmp_path / observation, observation=observation, steps=32))
    shutil.rmtree(given)
    for observation in ("latent", "random-latent"):
        moved = (tmp_path / observation).rename(tmp_path / f"moved-{observation}")
        assert len(evaluate_agent(moved, episodes=2).returns) == 2
        assert train(AgentConfig(out=moved, steps=64), resume=True).steps == 64


def test_a_run_killed_before_its_first_agent_was_saved_can_be_resumed(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = tiny(encoder=encoder_folder, out=tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(PPO, "learn", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert (tmp_path / "run" / "config.json").exists()
    assert train(config, resume=True).steps == 64


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 3}, "seed"),
        ({"learning_rate": 0.1}, "learning_rate"),
        ({"env": "Story-v0"}, "env"),
        ({"envs": 4}, "envs"),
    ],
)
def test_what_decided_the_agent_cannot_change_on_resume(finished: Path, change: dict[str, Any], named: str):
    before = files_of(finished)
    with pytest.raises(InputError, match=f"^{named} is"):
        train(AgentConfig(**{"out": finished, **change}), resume=True)
    assert files_of(finished) == before


def test_resuming_nothing(tmp_path: Path):
    with pytest.raises(InputError, match="holds no agent"):
        train(AgentConfig(out=tmp_path / "run"), resume=True)
