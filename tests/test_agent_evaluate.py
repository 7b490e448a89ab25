"""Evaluations: the numbers against numpy, the same seed the same episodes, and what is refused."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("stable_baselines3")

from conftest import random_frames
from test_agent_envs import tiny

from agents.evaluate import Evaluation, evaluate_agent, evaluate_random, evaluation_env
from agents.store import load_agent
from agents.train import train_agent
from agents.video import film
from latent_obs.errors import EncoderFolderError, InputError
from vae_training.cvae import CVAE
from vae_training.export import export_encoder

returns = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20)


def evaluation(values: list[float]) -> Evaluation:
    return Evaluation(tuple(values), (1,) * len(values))


def quiet(text: str) -> None:
    """Where messages go that a test does not read."""


@pytest.fixture(scope="module")
def run(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An agent that learnt a little: its last weights are better than its first, which stand in as `best`."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    config = tiny(
        encoder=encoder_folder, out=folder, envs=4, n_steps=64, batch_size=64, n_epochs=8, steps=1_500, learning_rate=3e-3,
        gamma=0.5, eval_every=0,
    )  # fmt: skip
    train_agent(config, say=quiet)
    first = folder.with_name("first")
    train_agent(tiny(encoder=encoder_folder, out=first, steps=1, n_steps=1, batch_size=2, eval_every=0), say=quiet)
    for name in ("best.zip", "best.json"):
        shutil.copy(first / name, folder / name)
    return folder


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copied"))


@given(returns)
def test_mean_and_standard_error(values: list[float]):
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    assert evaluation(values).mean == pytest.approx(mean, abs=1e-6)
    assert evaluation(values).standard_error == pytest.approx(math.sqrt(variance / len(values)), abs=1e-6)


@given(returns, returns)
def test_sigmas_are_welchs_t(one: list[float], other: list[float]):
    a, b = np.array(one), np.array(other)
    error = math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    sigmas = evaluation(one).sigmas_above(evaluation(other))
    if error > 1e-6:
        assert sigmas == pytest.approx((a.mean() - b.mean()) / error, rel=1e-6, abs=1e-6)
        assert evaluation(other).sigmas_above(evaluation(one)) == pytest.approx(-sigmas)


def test_sigmas_where_nothing_varies():
    assert evaluation([1.0, 1.0]).sigmas_above(evaluation([0.0, 0.0])) == math.inf
    assert evaluation([0.0, 0.0]).sigmas_above(evaluation([1.0, 1.0])) == -math.inf
    assert evaluation([1.0, 1.0]).sigmas_above(evaluation([1.0, 1.0])) == 0


def test_one_episode_has_no_standard_error_and_proves_nothing():
    assert math.isnan(evaluation([3.0]).standard_error)
    assert math.isnan(evaluation([3.0]).sigmas_above(evaluation([1.0, 2.0])))
    assert math.isnan(evaluation([1.0, 2.0]).sigmas_above(evaluation([3.0])))


def test_the_same_seed_plays_the_same_episodes(run: Path):
    once = evaluate_agent(run, episodes=6, which="last", seed=11, deterministic=True)
    assert once == evaluate_agent(run, episodes=6, which="last", seed=11, deterministic=True)
    assert once == evaluate_agent(run, episodes=6, which="last", seed=11), "deterministic as in the settings"
    assert once.lengths == (8,) * 6
    assert all(0 <= r <= 8 and r == int(r) for r in once.returns), "the game's own rewards"


def test_best_and_last_are_two_agents(run: Path):
    best, last = (evaluate_agent(run, episodes=20, which=which) for which in ("best", "last"))
    assert evaluate_agent(run, episodes=20) == best
    assert last.sigmas_above(best) > 3


def test_a_random_policy_is_at_chance_and_of_its_seed(run: Path):
    config = tiny(encoder=run / "encoder")
    chance = evaluate_random(config, episodes=40, seed=5)
    assert chance.mean == pytest.approx(4, abs=4 * math.sqrt(2 / 40)), "8 steps at one half; a standard deviation of 1.4"
    assert len(set(chance.returns)) > 2
    assert chance == evaluate_random(config, episodes=40, seed=5)
    assert chance != evaluate_random(config, episodes=40, seed=6)


def test_a_random_policy_needs_no_gpu(run: Path):
    config = tiny(encoder=run / "encoder", env_kwargs={"kind": "dict"}, device="cuda:63")
    assert evaluate_random(config, episodes=2).lengths == (8, 8)


def test_a_grey_game_from_training_to_the_film(tmp_path: Path):
    model = CVAE((16, 16, 1), 6, widths=(4, 8), strides=(2, 2))
    encoder = export_encoder(tmp_path / "encoder", model, random_frames(4, (16, 16, 1)), provenance={})
    config = tiny(encoder=encoder, out=tmp_path / "run", env_kwargs={"kind": "grey"})
    train_agent(config, say=quiet)
    assert evaluate_agent(config.out, episodes=2).lengths == (8, 8)
    assert evaluate_random(config, episodes=2).lengths == (8, 8)
    pytest.importorskip("av")
    assert film(config.out, episodes=1, seconds=0)[0].stat().st_size > 1_000


def test_every_environment_plays_equally_many(encoder_folder: Path):
    venv = evaluation_env(tiny(encoder=encoder_folder, envs=8), episodes=20, seed=0)
    assert venv.num_envs == 4
    assert not venv.training
    assert not venv.norm_reward
    assert evaluation_env(tiny(encoder=encoder_folder, envs=8), episodes=3, seed=0).num_envs == 3
    assert evaluation_env(tiny(encoder=encoder_folder, envs=1), episodes=3, seed=0).num_envs == 1


def test_evaluating_leaves_the_run_as_it_was(run: Path):
    before = {f: f.read_bytes() for f in run.rglob("*") if f.is_file()}
    evaluate_agent(run, episodes=2)
    assert {f: f.read_bytes() for f in run.rglob("*") if f.is_file()} == before


@pytest.mark.parametrize("episodes", [0, -1])
def test_no_episodes(run: Path, episodes: int):
    with pytest.raises(InputError, match="episodes must be 1 or more"):
        evaluate_agent(run, episodes=episodes)
    with pytest.raises(InputError, match="episodes must be 1 or more"):
        evaluate_random(tiny(), episodes=episodes)


def test_no_run_and_no_such_agent(run: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"missing holds no agent.*train-agent"):
        evaluate_agent(tmp_path / "missing")
    with pytest.raises(InputError, match=r"no agent .*third\.zip; found \['best', 'last'\]"):
        evaluate_agent(run, which="third")
    with pytest.raises(InputError, match=r"no agent .*best\.zip; train one"):
        load_agent(tmp_path, "best")


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip_in(name: bytes) -> Any:
    def flip(data: bytes) -> bytes:
        place = data.index(name) + len(name) + 200  # in the contents of that entry
        return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]

    return flip


@pytest.mark.parametrize("damage", [cut, lambda data: b"", lambda data: b"no zip", flip_in(b"policy.pth"), flip_in(b"data")])
def test_a_damaged_agent_is_one_clear_error(copied: Path, damage: Any):
    file = copied / "best.zip"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match=r"best\.zip cannot be loaded, it may be damaged"):
        evaluate_agent(copied, episodes=1)


@pytest.mark.parametrize("text", [None, "", "{}", '{"returns": null, "observations": null}', "[]"])
def test_damaged_statistics_are_one_clear_error(copied: Path, text: str | None):
    file = copied / "best.json"
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    with pytest.raises(InputError, match=r"best\.json"):
        evaluate_agent(copied, episodes=1)


def test_a_damaged_encoder_is_one_clear_error(copied: Path):
    file = copied / "encoder" / "encoder.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(EncoderFolderError, match=r"encoder\.safetensors is damaged"):
        evaluate_agent(copied, episodes=1)


def test_statistics_decide_what_the_agent_sees(copied: Path):
    good = evaluate_agent(copied, episodes=20, which="last")
    values = json.loads((copied / "last.json").read_text())
    values["observations"]["mean"] = [1e3] * len(values["observations"]["mean"])
    (copied / "last.json").write_text(json.dumps(values))
    assert good.sigmas_above(evaluate_agent(copied, episodes=20, which="last")) > 3, "every latent looks the same now"
