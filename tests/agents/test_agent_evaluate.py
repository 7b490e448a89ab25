"""Evaluations: the numbers against numpy, the same seed the same episodes, and what is refused."""

import json
import math
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("stable_baselines3")

from agents.evaluation import (
    Evaluation,
    bootstrap_interval,
    evaluate_agent,
    evaluate_random,
    evaluation_env,
    play,
    wilson_interval,
)
from agents.play.video import film
from agents.store import agent_state, load_agent
from agents.training import train_agent
from latent_obs.util.errors import EncoderFolderError, InputError
from tests.support.side_env import tiny
from tests.support.tiny import random_frames
from vae_training.model.cvae import CVAE
from vae_training.training.export import export_encoder

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
        encoder=encoder_folder,
        out=folder,
        envs=4,
        n_steps=64,
        batch_size=64,
        n_epochs=8,
        steps=1_500,
        learning_rate=3e-3,
        gamma=0.5,
        eval_every=0,
    )
    train_agent(config, say=quiet)
    first = folder.with_name("first")
    train_agent(tiny(encoder=encoder_folder, out=first, steps=1, n_steps=1, batch_size=2, eval_every=0), say=quiet)
    shutil.copy(first / "best.zip", folder / "best.zip")
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


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1_000), st.integers(15, 60), st.sampled_from(["normal", "exponential"]))
def test_a_bootstrap_interval_is_scipys(seed: int, count: int, kind: str):
    stats = pytest.importorskip("scipy.stats")
    values = getattr(np.random.default_rng(seed), kind)(size=count)
    low, high = bootstrap_interval(tuple(values.tolist()))
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    error = values.std() / math.sqrt(count)  # by how much the ends themselves vary is some 3% of it
    assert low == pytest.approx(theirs.low, abs=0.2 * error)
    assert high == pytest.approx(theirs.high, abs=0.2 * error)


def test_a_bootstrap_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        low, high = bootstrap_interval(tuple(rng.exponential(size=50)), resamples=1_000)
        held += low <= 1 <= high
    assert 0.88 <= held / 300 <= 0.98


def test_a_bootstrap_interval_is_always_the_same_and_none_of_one_value():
    assert bootstrap_interval((1.0, 2.0, 5.0)) == bootstrap_interval((1.0, 2.0, 5.0))
    assert bootstrap_interval((4.0,) * 5) == (4.0, 4.0)
    assert all(map(math.isnan, bootstrap_interval((1.0,))))


@settings(deadline=None)
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_is_scipys(counts: tuple[int, int]):
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.binomtest(*counts).proportion_ci(method="wilson")
    assert wilson_interval(*counts) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize("counts", [(0, 0), (3, 2), (-1, 2)])
def test_a_share_of_nothing(counts: tuple[int, int]):
    with pytest.raises(InputError, match="is no share"):
        wilson_interval(*counts)


def test_all_numbers_are_told_and_json_can_hold_them():
    one, three = Evaluation((5.0,), (7,)), Evaluation((1.0, 2.0, 9.0), (3, 4, 5), (False, True, True))
    for played in (one, three):
        back = json.loads(json.dumps(played.to_json(), allow_nan=False))
        assert back["returns"] == list(played.returns)
        assert back["mean_return"] == played.mean
    assert one.to_json()["standard_error"] is None
    numbers = three.to_json()
    assert (numbers["median_return"], numbers["least_return"], numbers["most_return"]) == (2.0, 1.0, 9.0)
    assert numbers["success_rate"] == pytest.approx(2 / 3)
    assert numbers["success_rate_95"] == list(wilson_interval(2, 3))
    assert numbers["mean_return_95"] == list(bootstrap_interval(three.returns))
    assert one.success_rate is one.success_interval is None
    assert "success" not in one.details()
    assert "nan" not in one.details()
    assert "success in 2 of 3 episodes, 67%" in three.details()


def test_what_a_policy_remembers_is_carried_on_and_it_is_told_of_new_episodes(encoder_folder: Path):
    told: list[tuple[Any, Any]] = []

    class Remembers:
        def predict(
            self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
        ) -> Any:
            told.append((state, episode_start.tolist()))
            return np.zeros(len(observation), int), len(told)

    play(Remembers(), evaluation_env(tiny(encoder=encoder_folder, envs=1), 2, seed=0), 2)
    assert [state for state, _ in told] == [None, *range(1, 16)]
    assert [starts for _, starts in told] == [[step % 8 == 0] for step in range(16)]


def test_an_agents_success_and_its_json(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from latent_obs_cli.main import main

    words = f"evaluate --run {run} --episodes 6 --which last --no-video --success-return 6 --json {tmp_path / 'n.json'}"
    assert main([*words.split(), "--device", "cpu"]) == 0
    played = evaluate_agent(run, episodes=6, which="last", success_return=6)
    assert played.successes == tuple(r >= 6 for r in played.returns)
    out = capsys.readouterr().out
    assert f"mean return {played}\n" in out
    assert played.details().splitlines()[-1] in out
    assert "what a success is: a return of 6 or more: as was asked for" in out
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert numbers["agent"] == json.loads(json.dumps(played.to_json()))
    assert numbers["random_policy"]["episodes"] == 6
    assert numbers["env"] == "Side-v0"
    assert main(["evaluate", "--run", str(run), "--json", str(tmp_path)]) == 2
    assert "is a folder; name a file" in capsys.readouterr().err


def test_the_same_seed_plays_the_same_episodes(run: Path):
    once = evaluate_agent(run, episodes=6, which="last", seed=11, deterministic=True)
    assert once == evaluate_agent(run, episodes=6, which="last", seed=11, deterministic=True)
    assert once == evaluate_agent(run, episodes=6, which="last", seed=11), "deterministic as in the settings"
    assert once.lengths == (8,) * 6
    assert all(0 <= r <= 8 and r == int(r) for r in once.returns), "the game's own rewards"


def test_best_and_last_are_two_agents(run: Path):
    # Drawn actions: those of first weights are at chance then, while their most likely ones may be good by luck.
    best, last = (evaluate_agent(run, episodes=20, which=which, deterministic=False) for which in ("best", "last"))
    assert evaluate_agent(run, episodes=20, deterministic=False) == best
    assert last.sigmas_above(best) > 3


def test_a_random_policy_is_at_chance_and_of_its_seed(run: Path):
    config = tiny(encoder=run / "encoder")
    chance = evaluate_random(config, episodes=40, seed=5)
    assert chance.mean == pytest.approx(4, abs=4 * math.sqrt(2 / 40)), (
        "8 steps at one half; a standard deviation of 1.4"
    )
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


@pytest.mark.parametrize(
    "damage", [cut, lambda data: b"", lambda data: b"no zip", flip_in(b"policy.pth"), flip_in(b"data")]
)
def test_a_damaged_agent_is_one_clear_error(copied: Path, damage: Any):
    file = copied / "best.zip"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match=r"best\.zip cannot be loaded, it may be damaged"):
        evaluate_agent(copied, episodes=1)


def with_state(file: Path, text: str | None) -> None:
    """Write a .zip again with another state in it, or none."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name != "latent_obs.json"}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in {**members, **({} if text is None else {"latent_obs.json": text})}.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("text", [None, "", "{}", '{"returns": null, "observations": null}', "[]"])
def test_damaged_statistics_are_one_clear_error(copied: Path, text: str | None):
    with_state(copied / "best.zip", text)
    with pytest.raises(InputError, match=r"best\.zip"):
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
    values = agent_state(copied, "last")
    values["observations"]["mean"] = [1e3] * len(values["observations"]["mean"])
    with_state(copied / "last.zip", json.dumps(values))
    assert good.sigmas_above(evaluate_agent(copied, episodes=20, which="last")) > 3, "every latent looks the same now"
