"""train_agent: it learns, leaves what it promises, never touches the encoder, and refuses what will not do before it
writes."""

# ruff: noqa: F401, F811  # fixtures are imported, and arguments have their names

import csv
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize

import agents.training as callback_module
import agents.training as train_module
from agents.config import AgentConfig
from agents.envs import load_encoder
from agents.evaluation import Evaluation, evaluate_agent, evaluate_random
from agents.store import agent_state, load_agent
from agents.training import AgentResult, read_evaluations, train_agent
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import DeviceError, EncoderFolderError, InputError
from tests.support.agent_runs import files_of, finished, train, weights_of
from tests.support.side_env import tiny
from tests.support.tiny import IMG_SHAPE, picture


@pytest.mark.parametrize("observation", ["latent", "random-latent"])
def test_ppo_learns_on_latents(encoder_folder: Path, tmp_path: Path, observation: Any):
    config = tiny(
        encoder=encoder_folder,
        out=tmp_path / "run",
        observation=observation,
        envs=4,
        n_steps=64,
        batch_size=64,
        n_epochs=8,
        steps=3_000,
        learning_rate=3e-3,
        gamma=0.5,
        eval_every=1_000,
        eval_episodes=8,
        seed=1,
    )
    result = train(config)
    agent, chance = evaluate_agent(result.run, episodes=30), evaluate_random(config, episodes=30)
    assert chance.mean == pytest.approx(4, abs=1), "half of 8 steps"
    assert agent.sigmas_above(chance) > 5
    assert agent.mean > 6
    assert result.best_return > 6


def test_a_run_leaves_what_it_promises(encoder_folder: Path, tmp_path: Path):
    said: list[str] = []
    config = tiny(encoder=encoder_folder, out=tmp_path / "run")
    result = train_agent(config, say=said.append)
    run = tmp_path / "run"
    rows = read_evaluations(run)
    assert result == AgentResult(run, 64, result.steps_per_second, max(r["mean_return"] for r in rows), False)
    assert result.steps_per_second > 0
    assert {f.name for f in run.iterdir()} == {
        "config.json",
        "encoder",
        "best.zip",
        "last.zip",
        "evaluations.jsonl",
        "logs",
    }
    assert AgentConfig.load(run) == config.settled()

    assert [r["step"] for r in rows] == [32, 64]
    for row in rows:
        returns: Any = row["returns"]
        assert len(returns) == 2
        assert row["mean_return"] == pytest.approx(np.mean(returns))
        assert row["standard_error"] == pytest.approx(np.std(returns, ddof=1) / math.sqrt(2))

    assert files_of(run / "encoder") == files_of(encoder_folder)
    FrozenEncoder.load(run / "encoder", device="cpu")
    model = load_agent(run, "last", device="cpu")
    assert isinstance(model, PPO)
    assert (model.num_timesteps, model.gamma, model.n_steps) == (64, 0.99, 16)
    assert model.observation_space.shape == (6,)
    statistics = agent_state(run, "last")
    assert statistics["steps"] == 64
    assert np.shape(statistics["observations"]["mean"]) == (6,)
    assert statistics["observations"]["count"] > 64
    assert np.shape(statistics["returns"]["mean"]) == ()

    (logs,) = (run / "logs").iterdir()
    assert logs.name == "from_000000000"
    with (logs / "progress.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [int(float(r["time/total_timesteps"])) for r in table] == [32, 64]
    assert len((logs / "progress.json").read_text().splitlines()) == len(table)
    assert list(logs.glob("events.out.tfevents*"))
    text = "\n".join(said)
    assert "Side-v0" in text
    assert f"latent-obs evaluate --run {run}" in text


def test_the_log_files_are_closed(encoder_folder: Path, tmp_path: Path):
    before = {f.path for f in psutil.Process().open_files()}
    train(tiny(encoder=encoder_folder, out=tmp_path / "run"))
    assert not {f.path for f in psutil.Process().open_files()} - before


def test_the_best_agent_is_the_one_of_the_best_evaluation(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    returns = iter([1.0, 5.0, 3.0, 5.0])
    played: list[dict[str, Any]] = []

    def play(policy: PPO, venv: VecNormalize, *_: Any, **__: Any) -> Evaluation:
        training = policy.get_vec_normalize_env()
        assert training is not None
        assert venv.obs_rms is training.obs_rms, "judged on observations as it is trained on"
        played.append({k: v.clone().numpy() for k, v in policy.policy.state_dict().items()})
        mean = next(returns)
        return Evaluation((mean, mean), (8, 8))

    monkeypatch.setattr(callback_module, "play", play)
    result = train(tiny(encoder=encoder_folder, out=tmp_path / "run", steps=128))
    assert [r["mean_return"] for r in read_evaluations(result.run)] == [1.0, 5.0, 3.0, 5.0]
    assert result.best_return == 5.0
    best, last = weights_of(result.run, "best"), weights_of(result.run)
    for name, values in best.items():
        np.testing.assert_array_equal(values, played[1][name])
    for other in (played[0], played[2], played[3], last):
        assert any(not np.array_equal(values, other[name]) for name, values in best.items())
    assert load_agent(result.run, "best", device="cpu").num_timesteps == 64
    assert agent_state(result.run, "best")["steps"] == 64


def test_the_same_seed_gives_the_same_agent_and_another_does_not(encoder_folder: Path, finished: Path, tmp_path: Path):
    same = weights_of(train(tiny(encoder=encoder_folder, out=tmp_path / "same")).run)
    other = weights_of(train(tiny(encoder=encoder_folder, out=tmp_path / "other", seed=7)).run)
    for name, values in weights_of(finished).items():
        np.testing.assert_array_equal(values, same[name])
    assert any(not np.array_equal(values, other[name]) for name, values in same.items())


@pytest.mark.parametrize("kind", ["box", "dict"])
@pytest.mark.parametrize("observation", ["latent", "random-latent", "pixels"])
def test_every_kind_of_agent_trains_resumes_and_is_evaluated(
    encoder_folder: Path, tmp_path: Path, kind: str, observation: Any
):
    encoder = encoder_folder if observation == "latent" else None
    config = tiny(
        encoder=encoder,
        out=tmp_path / "run",
        observation=observation,
        env_kwargs={"kind": kind},
        steps=16,
        n_steps=8,
        batch_size=16,
        eval_every=0,
    )
    assert math.isnan(train(config).best_return)
    assert train(dataclasses.replace(config, steps=32), resume=True).steps == 32
    assert evaluate_agent(tmp_path / "run", episodes=2).lengths == (8, 8)
    assert not (tmp_path / "run" / "evaluations.jsonl").exists()


def test_the_encoder_is_the_same_to_the_bit_after_training(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loaded: list[FrozenEncoder] = []
    before: list[dict[str, torch.Tensor]] = []

    def spy(config: AgentConfig) -> FrozenEncoder | None:
        encoder = load_encoder(config)
        assert encoder is not None
        loaded.append(encoder)
        before.append({k: v.clone() for k, v in encoder._network.state_dict().items()})
        return encoder

    folder = files_of(encoder_folder)
    monkeypatch.setattr(train_module, "load_encoder", spy)
    start = {
        k: v.copy()
        for k, v in weights_of(train(tiny(encoder=encoder_folder, out=tmp_path / "a", steps=32)).run).items()
    }
    result = train(tiny(encoder=encoder_folder, out=tmp_path / "b", steps=128))
    assert any(not np.array_equal(v, start[k]) for k, v in weights_of(result.run).items()), "the policy did change"
    for encoder, weights in zip(loaded, before, strict=True):
        assert not encoder._network.training
        for name, tensor in encoder._network.state_dict().items():
            assert torch.equal(tensor, weights[name]), name
            assert not tensor.requires_grad
    assert files_of(encoder_folder) == folder
    assert files_of(result.run / "encoder") == folder


def test_a_time_out_bootstraps_from_the_encoded_last_frame(
    encoder_folder: Path, encoder: FrozenEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[Any] = []
    values = ActorCriticPolicy.predict_values

    def spy(self: ActorCriticPolicy, obs: Any) -> torch.Tensor:
        asked.append(obs.numpy().copy())
        return values(self, obs)

    monkeypatch.setattr(ActorCriticPolicy, "predict_values", spy)
    train(
        tiny(
            env="Story-v0",
            encoder=encoder_folder,
            out=tmp_path / "run",
            env_kwargs={"size": IMG_SHAPE[:2]},
            steps=16,
            n_steps=8,
            batch_size=16,
            eval_every=0,
            normalize_observation="off",
        )
    )
    # Eight steps are two whole episodes of three in each of two environments, asked for one at a time …
    last = [latent for latent in asked if len(latent) == 1]
    stories = [encoder(picture(episode, 3, *IMG_SHAPE[:2])) for episode in (0, 1) for _ in range(2)]
    np.testing.assert_allclose(np.concatenate(last), stories, atol=1e-5)
    # … and the values of the rollout's end, of both environments at once.
    (end,) = [latent for latent in asked if len(latent) == 2]
    np.testing.assert_allclose(end, [encoder(picture(2, 2, *IMG_SHAPE[:2]))] * 2, atol=1e-5)


def test_a_folder_that_is_not_empty_is_left_alone(encoder_folder: Path, finished: Path, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, finished):
        before = files_of(out)
        with pytest.raises(InputError, match=r"is not empty.*--resume"):
            train(tiny(encoder=encoder_folder, out=out))
        assert files_of(out) == before


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"env": "Syde-v0"}, InputError),
        ({"env": "CartPole-v1"}, InputError),
        ({"encoder": None}, InputError),
        ({"observation": "pixels"}, InputError),  # 16x16 frames, as the encoder eats, are too small for a CNN
        ({"encoder": Path("nowhere/at/all")}, EncoderFolderError),
        ({"device": "cuda:63"}, DeviceError),
        ({"device": "tpu9"}, DeviceError),
    ],
)
def test_what_will_not_do_is_refused_before_anything_is_written(
    encoder_folder: Path, tmp_path: Path, settings: dict[str, Any], error: type[Exception]
):
    with pytest.raises(error):
        train(tiny(**{"encoder": encoder_folder, "out": tmp_path / "run", **settings}))
    assert not (tmp_path / "run").exists()
