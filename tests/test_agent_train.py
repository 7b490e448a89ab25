"""train_agent: it learns, leaves what it promises, goes on where it stopped, and never touches the encoder."""

import csv
import dataclasses
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

pytest.importorskip("stable_baselines3")

from conftest import IMG_SHAPE, picture
from side_env import SIDE, SideEnv, tiny
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize

import agents.train as train_module
import agents.training_callback as callback_module
from agents.config import AgentConfig
from agents.envs import load_encoder, make_vec_env, with_normalization
from agents.evaluate import Evaluation, evaluate_agent, evaluate_random
from agents.store import agent_state, load_agent, restore_statistics, save_agent
from agents.train import AgentResult, train_agent
from agents.training_callback import read_evaluations
from latent_obs.errors import DeviceError, EncoderFolderError, InputError
from latent_obs.frozen import FrozenEncoder


def quiet(text: str) -> None:
    """Where messages go that a test does not read."""


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def weights_of(run: Path, name: str = "last") -> dict[str, Any]:
    return {k: v.numpy() for k, v in load_agent(run, name, device="cpu").policy.state_dict().items()}


def train(config: AgentConfig, **kwargs: Any) -> AgentResult:
    return train_agent(config, say=quiet, progress_bar=False, **kwargs)


@pytest.fixture(scope="module")
def finished(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 64 steps with two evaluations; tests copy it before they change it."""
    run = tmp_path_factory.mktemp("agents") / "run"
    train(tiny(encoder=encoder_folder, out=run))
    return run


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copied"))


@pytest.mark.parametrize("observation", ["latent", "random-latent"])
def test_ppo_learns_on_latents(encoder_folder: Path, tmp_path: Path, observation: Any):
    config = tiny(
        encoder=encoder_folder, out=tmp_path / "run", observation=observation, envs=4, n_steps=64, batch_size=64, n_epochs=8,
        steps=3_000, learning_rate=3e-3, gamma=0.5, eval_every=1_000, eval_episodes=8, seed=1,
    )  # fmt: skip
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
        "config.json", "encoder", "best.zip", "last.zip", "evaluations.jsonl", "logs",
    }  # fmt: skip
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
def test_every_kind_of_agent_trains_resumes_and_is_evaluated(encoder_folder: Path, tmp_path: Path, kind: str, observation: Any):
    encoder = encoder_folder if observation == "latent" else None
    config = tiny(
        encoder=encoder, out=tmp_path / "run", observation=observation, env_kwargs={"kind": kind}, steps=16, n_steps=8,
        batch_size=16, eval_every=0,
    )  # fmt: skip
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
    start = {k: v.copy() for k, v in weights_of(train(tiny(encoder=encoder_folder, out=tmp_path / "a", steps=32)).run).items()}
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
        tiny(env="Story-v0", encoder=encoder_folder, out=tmp_path / "run", env_kwargs={"size": IMG_SHAPE[:2]}, steps=16,
             n_steps=8, batch_size=16, eval_every=0, normalize_observation="off")
    )  # fmt: skip
    # Eight steps are two whole episodes of three in each of two environments, asked for one at a time …
    last = [latent for latent in asked if len(latent) == 1]
    stories = [encoder(picture(episode, 3, *IMG_SHAPE[:2])) for episode in (0, 1) for _ in range(2)]
    np.testing.assert_allclose(np.concatenate(last), stories, atol=1e-5)
    # … and the values of the rollout's end, of both environments at once.
    (end,) = [latent for latent in asked if len(latent) == 2]
    np.testing.assert_allclose(end, [encoder(picture(2, 2, *IMG_SHAPE[:2]))] * 2, atol=1e-5)


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
    [({"seed": 3}, "seed"), ({"learning_rate": 0.1}, "learning_rate"), ({"env": "Story-v0"}, "env"), ({"envs": 4}, "envs")],
)  # fmt: skip
def test_what_decided_the_agent_cannot_change_on_resume(finished: Path, change: dict[str, Any], named: str):
    before = files_of(finished)
    with pytest.raises(InputError, match=f"^{named} is"):
        train(AgentConfig(**{"out": finished, **change}), resume=True)
    assert files_of(finished) == before


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


def test_resuming_nothing(tmp_path: Path):
    with pytest.raises(InputError, match="holds no agent"):
        train(AgentConfig(out=tmp_path / "run"), resume=True)


def test_environments_are_closed_when_training_fails(encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    open_now: set[int] = set()
    init, step = SideEnv.__init__, SideEnv.step
    count = 0

    def make(self: SideEnv, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        open_now.add(id(self))

    def fail(self: SideEnv, action: Any) -> Any:
        nonlocal count
        count += 1
        if count > 20:
            raise RuntimeError("the game crashed")
        return step(self, action)

    monkeypatch.setattr(SideEnv, "__init__", make)
    monkeypatch.setattr(SideEnv, "close", lambda self: open_now.discard(id(self)))
    monkeypatch.setattr(SideEnv, "step", fail)
    handlers = signal.getsignal(signal.SIGINT), torch.get_num_threads()
    with pytest.raises(RuntimeError, match="the game crashed"):
        train(tiny(encoder=encoder_folder, out=tmp_path / "run"))
    assert not open_now
    assert (signal.getsignal(signal.SIGINT), torch.get_num_threads()) == handlers


@pytest.mark.parametrize(("exact", "saved"), [(True, 32), (False, 50)])
def test_a_stop_that_was_asked_for_saves_the_agent(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: bool, saved: int
):
    step, count = SideEnv.step, 0

    def interrupt(self: SideEnv, action: Any) -> Any:
        nonlocal count
        count += 1
        if count == 50:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, action)

    monkeypatch.setattr(SideEnv, "step", interrupt)
    said: list[str] = []
    config = tiny(
        encoder=encoder_folder, out=tmp_path / "run", steps=1_000, eval_every=0, exact_resume=exact, checkpoint_every=32
    )
    result = train_agent(config, say=said.append)
    assert result.interrupted
    assert result.steps == saved
    assert load_agent(result.run, "last", device="cpu").num_timesteps == saved
    assert "Stopped at step 50" in said[-1]
    assert f"from step {saved} with: latent-obs train-agent --out {result.run} --resume" in said[-1]


def test_ctrl_c_saves_the_agent_and_leaves_no_process_behind(encoder_folder: Path, tmp_path: Path):
    run, log = tmp_path / "run", tmp_path / "log.txt"
    words = (
        f"train-agent --env {SIDE} --encoder {encoder_folder} --out {run} --envs 2 --n-steps 64 --batch-size 64 --n-epochs 1 "
        "--net-arch 8 --steps 100000000 --eval-every 128 --eval-episodes 2 --checkpoint-every 128 --device cpu"
    )
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "latent_obs_cli.main", *words.split()], stdout=file, stderr=file, env=environment,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    children: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 120
        while not (run / "best.zip").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert (run / "best.zip").exists(), log.read_text()
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 4  # two to train in, two to evaluate in, and the server they are forked from
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
        assert process.wait(30) == 0, log.read_text()
        assert psutil.wait_procs(children, timeout=10)[1] == []
    finally:
        for child in [*children, process]:
            if child.is_running() if isinstance(child, psutil.Process) else child.poll() is None:
                child.kill()
        process.wait(10)
    text = log.read_text()
    assert "Stopped at step" in text
    assert f"latent-obs train-agent --out {run} --resume" in text
    assert "Traceback" not in text
    steps = load_agent(run, "last", device="cpu").num_timesteps
    assert steps >= 128
    result = train(AgentConfig(out=run, steps=steps + 128, workers="serial"), resume=True)
    assert result.steps >= steps + 128
    assert not result.interrupted
