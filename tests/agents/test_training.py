"""train_agent: it learns, writes its files, leaves the encoder unchanged, and rejects invalid input."""

import contextlib
import csv
import dataclasses
import json
import math
import signal
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch
from gymnasium import spaces

pytest.importorskip("stable_baselines3")

from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import agents.training
from agents.config import AgentConfig, AlgorithmName
from agents.envs import load_encoder, make_vec_env
from agents.evaluation import Evaluation, evaluate_agent, evaluate_random
from agents.play.policy import load_policy
from agents.schedules import Schedule
from agents.store import agent_state, load_agent
from agents.training import AgentResult, DriftCallback, read_evaluations, train_agent
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.encoder.pca import PCA
from latent_obs.util.errors import DeviceError, EncoderFolderError, InputError
from latent_obs.wrappers.drift import DriftMonitor
from latent_obs.wrappers.sb3 import VecLatentObservation
from tests.support.agent_runs import algorithm_config, files_of, finished, train, weights_of  # noqa: F401  (a fixture)
from tests.support.drift_cases import latents_like_training, picture_encoder, quiet, smooth  # noqa: F401  (a fixture)
from tests.support.side_env import SideEnv, tiny
from tests.support.tiny import LATENT_DIM, limited, picture, random_frames, tiny_cvae
from vae_training.training.export import export_encoder, measure_latents

# ruff: noqa: F811  (arguments are named like the fixtures)


ON_POLICY: dict[str, Any] = {"n_steps": 64, "batch_size": 64, "n_epochs": 8, "learning_rate": 5e-3}
OFF_POLICY: dict[str, Any] = {"buffer_size": 5_000, "learning_starts": 100, "learning_rate": 3e-3}
EXPLORING: dict[str, Any] = {**OFF_POLICY, "exploration_fraction": 0.5, "gradient_steps": 4}


@pytest.mark.integration
@pytest.mark.parametrize(
    ("algorithm", "steps", "settings"),
    [
        ("ppo", 1_200, ON_POLICY),
        ("recurrent-ppo", 1_200, ON_POLICY),
        ("dqn", 700, EXPLORING),
        ("qr-dqn", 700, EXPLORING),
        ("sac", 900, {**OFF_POLICY, "gradient_steps": 1}),
    ],
)
def test_every_algorithm_learns(
    algorithm: AlgorithmName, steps: int, settings: dict[str, Any], encoder_folder: Path, tmp_path: Path
):
    common: dict[str, Any] = {"encoder": encoder_folder, "envs": 4, "gamma": 0.3, "eval_every": 0, "seed": 1}
    config = algorithm_config(algorithm, out=tmp_path / "run", steps=steps, **common, **settings)
    train(config)
    assert type(load_agent(config.out, "last")) is config.trainer.load_class()
    agent, chance = evaluate_agent(config.out, episodes=20, device="cpu"), evaluate_random(config, episodes=20)
    assert chance.mean == pytest.approx(4, abs=1), "half of 8 steps"
    assert agent.sigmas_above(chance) > 5


def test_principal_components_of_a_folder_of_frames(frames_folder: Path, tmp_path: Path):
    config = tiny(observation="pca-latent", pca=frames_folder, out=tmp_path / "run", steps=32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these frames vary in fewer directions than 256
        train(config)
        expected = PCA.fit(frames_folder, 256)
    frames_folder.rename(tmp_path / "aside")  # the run has its own
    np.testing.assert_array_equal(PCA.load(config.out / "pca.safetensors").components, expected.components)
    assert train(AgentConfig(out=config.out, steps=64), resume=True).steps == 64
    assert evaluate_agent(config.out, episodes=2, device="cpu").lengths == (8, 8)


@pytest.mark.parametrize(("algorithm", "kind"), [("dqn", "box"), ("sac", "dict")])
def test_off_policy_agents_on_pixels(tmp_path: Path, algorithm: AlgorithmName, kind: str):
    pixels: dict[str, Any] = {"observation": "pixels", "history": 2, "out": tmp_path / "run", "steps": 32}
    actions = "box" if algorithm == "sac" else "two"
    config = algorithm_config(algorithm, **pixels, env_kwargs={"kind": kind, "actions": actions})
    train(config)
    assert train(AgentConfig(out=config.out, steps=64), resume=True).steps == 64
    assert evaluate_agent(config.out, episodes=2).lengths == (8, 8)
    policy = load_policy(config.out, "last", device="cpu")
    arguments: dict[str, Any] = dict(config.env_kwargs)
    env = gym.make("Side-v0", **arguments)
    policy.begin(env)
    assert env.action_space.contains(policy(env.reset(seed=0)[0]))


@pytest.mark.integration
@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_actions_that_do_not_begin_at_zero(algorithm: AlgorithmName, encoder_folder: Path, tmp_path: Path):
    shifted: dict[str, Any] = {"encoder": encoder_folder, "env_kwargs": {"actions": "shifted"}}
    config = algorithm_config(algorithm, out=tmp_path / "run", **shifted)
    train(config)  # the environment checks what it is given
    assert load_agent(config.out, "last").action_space == spaces.Discrete(2)
    assert evaluate_agent(config.out, episodes=2, device="cpu").lengths == (8, 8)
    policy = load_policy(config.out, "last", device="cpu")
    env = gym.make("Side-v0", actions="shifted")
    policy.begin(env)
    observation, _ = env.reset(seed=0)
    done: set[int] = set()
    for _ in range(40):
        done.add(policy(observation))
    assert done <= {-1, 0}
    assert -1 in done or algorithm == "dqn"


@pytest.mark.integration
def test_the_wrapper_that_the_error_names_makes_an_unbounded_action_learnable(encoder_folder: Path, tmp_path: Path):
    def bounded() -> Any:
        return gym.wrappers.TransformAction(SideEnv(actions="unbounded"), lambda a: 9 * a, spaces.Box(-1, 1, (2,)))

    entry: Any = bounded
    gym.register("Bounded-v0", entry_point=entry, disable_env_checker=True)
    try:
        assert train(tiny(env="Bounded-v0", encoder=encoder_folder, out=tmp_path / "run", eval_every=0)).steps == 64
    finally:
        del gym.registry["Bounded-v0"]


def test_a_run_leaves_its_files_and_leaves_none_open(encoder_folder: Path, tmp_path: Path):
    open_files = lambda: {f.path for f in psutil.Process().open_files()}  # noqa: E731
    said: list[str] = []
    config, before = tiny(encoder=encoder_folder, out=tmp_path / "run"), open_files()
    result, run = train_agent(config, say=said.append), tmp_path / "run"
    assert not open_files() - before
    rows = read_evaluations(run)
    assert result == AgentResult(run, 64, result.steps_per_second, max(r["mean_return"] for r in rows), False)
    assert result.steps_per_second > 0
    expected = {"config.json", "encoder", "best.zip", "last.zip", "evaluations.jsonl", "logs"}
    assert {f.name for f in run.iterdir()} == expected
    chosen = dataclasses.replace(
        config.settled(), backend="torch", precision="float32"
    )  # a resumed run encodes as before
    assert AgentConfig.load(run) == chosen
    assert [(r["step"], len(r["returns"])) for r in rows] == [(32, 2), (64, 2)]
    assert all(r["mean_return"] == pytest.approx(np.mean(r["returns"])) for r in rows)
    assert files_of(run / "encoder") == files_of(encoder_folder)
    model = load_agent(run, "last", device="cpu")
    assert isinstance(model, PPO)
    assert (model.num_timesteps, model.gamma, model.n_steps) == (64, 0.99, 16)
    state = agent_state(run, "last")
    assert state["steps"] == 64
    assert np.shape(state["observations"]["mean"]) == model.observation_space.shape == (6,)
    logs = run / "logs" / "from_000000000"
    table = list(csv.DictReader((logs / "progress.csv").read_text().splitlines()))
    assert [int(float(r["time/total_timesteps"])) for r in table] == [32, 64]
    assert len((logs / "progress.json").read_text().splitlines()) == len(table)
    assert list(logs.glob("events.out.tfevents*"))
    assert f"--run {run}" in said[-1]


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

    monkeypatch.setattr(agents.training, "play", play)
    result = train(tiny(encoder=encoder_folder, out=tmp_path / "run", steps=128))
    assert [r["mean_return"] for r in read_evaluations(result.run)] == [1.0, 5.0, 3.0, 5.0]
    assert result.best_return == 5.0
    best = weights_of(result.run, "best")
    np.testing.assert_equal(best, played[1])
    for other in (played[0], played[2], played[3], weights_of(result.run)):
        assert any(not np.array_equal(values, other[name]) for name, values in best.items())
    assert agent_state(result.run, "best")["steps"] == load_agent(result.run, "best").num_timesteps == 64


def test_training_stops_when_two_evaluations_in_a_row_are_good(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = tiny(encoder=encoder_folder, out=tmp_path / "run", steps=320, eval_every=32)
    returns = iter([5.0, 1.0, 5.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    monkeypatch.setattr("agents.training.play", lambda *_: Evaluation((next(returns),), (8,)))
    result = train_agent(config, stop_at_return=5.0, say=lambda _: None)
    assert (result.steps, result.interrupted) == (128, False)
    assert load_agent(config.out, "last", device="cpu").num_timesteps == 128
    assert [row["step"] for row in read_evaluations(config.out)] == [32, 64, 96, 128]
    said: list[str] = []
    assert train_agent(config, resume=True, stop_at_return=5.0, say=said.append).steps == 128
    assert len(said) == 1, "nothing to do"
    assert train_agent(config, resume=True, say=lambda _: None).steps == 320


def test_a_signal_during_the_evaluation_that_ends_training_is_not_lost(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def play(*_: object) -> Evaluation:
        if read_evaluations(config.out):
            signal.raise_signal(signal.SIGTERM)
        return Evaluation((5.0,), (8,))

    config = tiny(encoder=encoder_folder, out=tmp_path / "run", steps=320, eval_every=32)
    monkeypatch.setattr("agents.training.play", play)
    first, again = (train_agent(config, resume=r, stop_at_return=5.0, say=lambda _: None) for r in (False, True))
    assert (first.steps, first.interrupted) == (64, True)
    assert (again.steps, again.interrupted) == (64, False)


@pytest.mark.parametrize(
    ("observation", "kind", "shape"),
    [("random-latent", "dict", None), ("random-latent", "box", (512,)), ("pixels", "box", (6, 64, 64))],
)
def test_every_kind_of_observation_is_trained_on_resumed_and_evaluated(
    tmp_path: Path, observation: Any, kind: str, shape: tuple[int, ...] | None
):
    settings: dict[str, Any] = {"steps": 16, "n_steps": 8, "batch_size": 16, "eval_every": 0, "history": 2}
    config = tiny(out=tmp_path / "run", observation=observation, env_kwargs={"kind": kind}, **settings)
    assert math.isnan(train(config).best_return)
    assert train(dataclasses.replace(config, steps=32), resume=True).steps == 32
    assert load_agent(config.out, "last").observation_space.shape == shape
    assert evaluate_agent(config.out, episodes=2).lengths == (8, 8)
    assert read_evaluations(config.out) == []


def test_training_leaves_the_encoder_the_same_to_the_bit(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    encoder = FrozenEncoder.load(encoder_folder, device="cpu")
    before = {k: v.clone() for k, v in encoder._network.state_dict().items()}
    folder = files_of(encoder_folder)
    monkeypatch.setattr(agents.training, "load_encoder", lambda _: encoder)
    result = train(tiny(encoder=encoder_folder, out=tmp_path / "run"))
    assert not encoder._network.training
    for name, tensor in encoder._network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
        assert not tensor.requires_grad
    assert files_of(encoder_folder) == files_of(result.run / "encoder") == folder


def test_a_time_out_bootstraps_from_the_encoded_last_frame(
    encoder_folder: Path, encoder: FrozenEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[Any] = []
    values = ActorCriticPolicy.predict_values

    def spy(self: ActorCriticPolicy, obs: Any) -> torch.Tensor:
        asked.append(obs.numpy().copy())
        return values(self, obs)

    monkeypatch.setattr(ActorCriticPolicy, "predict_values", spy)
    settings: dict[str, Any] = {"steps": 16, "n_steps": 8, "batch_size": 16, "eval_every": 0}
    story: dict[str, Any] = {"env": "Story-v0", "normalize_observation": "off"}
    train(tiny(encoder=encoder_folder, out=tmp_path / "run", **story, **settings))
    # Eight steps are two whole episodes of three in each of two environments, asked for one at a time …
    last = [latent for latent in asked if len(latent) == 1]
    stories = [encoder(picture(episode, 3)) for episode in (0, 1) for _ in range(2)]
    np.testing.assert_allclose(np.concatenate(last), stories, atol=1e-5)
    # … and the values of the rollout's end, of both environments at once.
    (end,) = [latent for latent in asked if len(latent) == 2]
    np.testing.assert_allclose(end, [encoder(picture(2, 2))] * 2, atol=1e-5)


def test_the_schedule_reaches_the_optimizer_with_several_choices_at_once(encoder_folder: Path, tmp_path: Path):
    schedule: dict[str, Any] = {"learning_rate": 0.01, "learning_rate_schedule": "linear"}
    config = tiny(
        encoder=encoder_folder, out=tmp_path / "run", eval_every=0, env_kwargs={"actions": "multi"}, **schedule
    )
    train(config)
    model: Any = load_agent(config.out, "last")
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(Schedule(0.01, "linear")(0.0))


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"env": "Syde-v0"}, InputError),
        ({"encoder": None}, InputError),
        ({"observation": "pixels"}, InputError),  # 16x16 frames, the encoder's, are too small for a CNN
        ({"encoder": Path("nowhere/at/all")}, EncoderFolderError),
        ({"device": "cuda:63"}, DeviceError),
    ],
)
def test_invalid_input_is_rejected_before_anything_is_written(
    encoder_folder: Path, finished: Path, tmp_path: Path, settings: dict[str, Any], error: type[Exception]
):
    before = files_of(finished)
    with pytest.raises(InputError, match="out"):  # a folder that is not empty
        train(tiny(**{"encoder": encoder_folder, **settings, "out": finished}))
    assert files_of(finished) == before
    with pytest.raises(error):
        train(tiny(**{"encoder": encoder_folder, "out": tmp_path / "run", **settings}))
    assert not (tmp_path / "run").exists()


def test_history_repeats_the_first_latent_and_bfloat16_is_near(encoder_folder: Path):
    def first(**settings: Any) -> Any:
        config = tiny(encoder=encoder_folder, **settings)
        return make_vec_env(config, load_encoder(config)).reset()

    one = first()
    assert one.shape == (2, LATENT_DIM)
    np.testing.assert_array_equal(first(history=3), np.tile(one, 3))
    assert 0 < np.abs(one - first(precision="bfloat16")).max() < 0.03 * np.abs(one).max()


@pytest.mark.parametrize(
    ("has_statistics", "settings", "logged"),
    [(True, {}, True), (False, {}, False), (True, {"observation": "random-latent"}, False)],
)
def test_drift_is_logged_for_trained_encoders_with_statistics(
    has_statistics: bool, settings: dict[str, Any], logged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("agents.training.DriftMonitor", partial(DriftMonitor, least_frames=8, window=64))
    model = tiny_cvae()
    statistics = measure_latents(model, [random_frames(300) // 8]) if has_statistics else None  # of dark noise
    encoder = export_encoder(tmp_path / "encoder", model, random_frames(4), statistics=statistics)
    said: list[str] = []
    config = tiny(encoder=encoder, out=tmp_path / "run", eval_every=0, **settings)
    train_agent(config, say=said.append, progress_bar=False)
    warned = any("frames record" in text for text in said)
    log = next((config.out / "logs").rglob("progress.csv")).read_text()
    assert warned is ("drift/share_outside" in log.splitlines()[0]) is logged


def learn(algorithm: str, encoder: FrozenEncoder, monitor: DriftMonitor, folder: Path, given: bool = True) -> Any:
    """The rows that Stable-Baselines3's own agents log with a `DriftCallback`."""
    venv = DummyVecEnv([partial(limited, "box", 100 * i, 9) for i in range(2)])
    latents = VecLatentObservation(venv, encoder, monitor=monitor if given else None)
    model: BaseAlgorithm
    if algorithm == "ppo":
        model = PPO("MlpPolicy", latents, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
    else:
        model = DQN("MlpPolicy", latents, learning_starts=50, buffer_size=500, seed=0, device="cpu")
    with contextlib.closing(configure(str(folder), ["json"])) as logger:
        model.set_logger(logger)
        model.learn(320, DriftCallback(monitor), log_interval=1)
    return [json.loads(line) for line in (folder / "progress.json").read_text().splitlines()]


@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_the_callback_logs_the_monitors_numbers(picture_encoder: FrozenEncoder, tmp_path: Path, algorithm: str):
    monitor = quiet(picture_encoder, reconstruct_every=5)
    rows = [row for row in learn(algorithm, picture_encoder, monitor, tmp_path) if "drift/share_outside" in row]
    assert len(rows) >= 5
    report = monitor.report()
    for name in ("share_outside", "mean_shift", "reconstruction_ratio"):
        assert all(math.isfinite(row.get(f"drift/{name}", 0)) for row in rows)
        assert rows[-1][f"drift/{name}"] == pytest.approx(getattr(report, name), rel=0.2)
    assert len({row["drift/mean_shift"] for row in rows}) > 1
    assert report.frames >= 320 + 2  # every step's frames, the first ones, and the last ones of episodes


def test_a_monitor_that_no_wrapper_has_is_an_input_error(picture_encoder: FrozenEncoder, tmp_path: Path):
    with pytest.raises(InputError, match="monitor"):
        learn("ppo", picture_encoder, quiet(picture_encoder), tmp_path, given=False)
