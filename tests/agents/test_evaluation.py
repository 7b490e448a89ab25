"""Evaluations: the numbers against numpy and scipy, the same seed the same episodes, and what counts as a success.

The rules of success are compared with the games' own files.
"""

import contextlib
import dataclasses
import json
import math
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from agents.config import AgentConfig
from agents.evaluation import (
    _KNOWN,
    EpisodeSuccess,
    Evaluation,
    SuccessRule,
    bootstrap_interval,
    evaluate_agent,
    evaluate_random,
    evaluation_env,
    play,
    success_rule,
    wilson_interval,
)
from agents.play.policy import load_policy
from agents.play.show import film
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import InputError
from tests.support.agent_runs import files_of, finished, train  # noqa: F401  (a fixture)
from tests.support.side_env import SideEnv, tiny
from tests.support.tiny import random_frames
from vae_training.model.cvae import CVAE
from vae_training.training.export import export_encoder

# ruff: noqa: F811  (an argument is named like the fixture)

returns = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20)


def evaluation(values: list[float]) -> Evaluation:
    return Evaluation(tuple(values), (1,) * len(values))


class Constant:
    """A policy that always takes the first action, and records what `play` passes to it."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, Any]] = []

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        self.seen.append((state, episode_start.tolist()))
        return np.zeros(len(observation), int), len(self.seen)


@pytest.fixture(scope="module")
def run(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An agent that has learnt a little as `last`; an untrained one takes the place of `best`."""
    home = tmp_path_factory.mktemp("evaluated")
    settings: dict[str, Any] = {"n_steps": 64, "batch_size": 64, "n_epochs": 8, "learning_rate": 3e-3, "gamma": 0.5}
    train(tiny(encoder=encoder_folder, out=home / "run", envs=4, steps=700, eval_every=0, **settings))
    train(tiny(encoder=encoder_folder, out=home / "first", steps=1, n_steps=1, batch_size=2, eval_every=0))
    shutil.copy(home / "first" / "best.zip", home / "run" / "best.zip")
    return home / "run"


@settings(max_examples=30)
@given(returns, returns)
def test_mean_standard_error_and_sigmas_are_numpys(one: list[float], other: list[float]):
    a, b = np.array(one), np.array(other)
    assert evaluation(one).mean == pytest.approx(a.mean(), abs=1e-6)
    assert evaluation(one).standard_error == pytest.approx(a.std(ddof=1) / math.sqrt(len(a)), abs=1e-6)
    error = math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    if error > 1e-6:
        sigmas = evaluation(one).sigmas_above(evaluation(other))
        assert sigmas == pytest.approx((a.mean() - b.mean()) / error, rel=1e-6, abs=1e-6)


def test_sigmas_of_returns_that_do_not_vary():
    for one, other, sigmas in (1, 0, math.inf), (0, 1, -math.inf), (1, 1, 0):
        assert evaluation([one, one]).sigmas_above(evaluation([other, other])) == sigmas
    assert math.isnan(evaluation([1.0]).sigmas_above(evaluation([1.0, 2.0]))), "one episode has no standard error"


@settings(deadline=None, max_examples=4)
@given(st.integers(0, 1_000), st.integers(15, 60), st.sampled_from(["normal", "exponential"]))
def test_a_bootstrap_interval_is_scipys(seed: int, count: int, kind: str):
    stats = pytest.importorskip("scipy.stats")
    values = getattr(np.random.default_rng(seed), kind)(size=count)
    low, high = bootstrap_interval(tuple(values.tolist()))
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    error = values.std() / math.sqrt(count)  # the ends themselves vary by some 3% of it
    assert (low, high) == bootstrap_interval(tuple(values.tolist())), "the same values give the same interval"
    assert low == pytest.approx(theirs.low, abs=0.2 * error)
    assert high == pytest.approx(theirs.high, abs=0.2 * error)


@settings(deadline=None)
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_is_scipys(counts: tuple[int, int]):
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.binomtest(*counts).proportion_ci(method="wilson")
    assert wilson_interval(*counts) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_all_numbers_are_in_the_json():
    one, three = Evaluation((5.0,), (7,)), Evaluation((1.0, 2.0, 9.0), (3, 4, 5), (False, True, True))
    for played in (one, three):
        back = json.loads(json.dumps(played.to_json(), allow_nan=False))
        assert (back["returns"], back["mean_return"]) == (list(played.returns), played.mean)
    assert one.to_json()["standard_error"] is None
    numbers = three.to_json()
    assert (numbers["median_return"], numbers["least_return"], numbers["most_return"]) == (2.0, 1.0, 9.0)
    assert numbers["success_rate"] == pytest.approx(2 / 3)
    assert numbers["success_rate_95"] == list(wilson_interval(2, 3))
    assert numbers["mean_return_95"] == list(bootstrap_interval(three.returns))
    assert one.success_rate is None
    assert "nan" not in one.details()
    assert "2 of 3 episodes, 67%" in three.details()


class Endless(SideEnv):
    """Has no end and no time limit."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return (*super().step(action)[:2], False, False, {})


def test_an_environment_without_a_time_limit_is_cut_and_counted(
    encoder_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("agents.evaluation._MOST_STEPS", 50)
    entry: Any = Endless
    gym.register("Endless-v0", entry_point=entry, disable_env_checker=True)
    try:
        config = tiny(env="Endless-v0", encoder=encoder_folder)
        played = evaluate_random(config, episodes=4)
        assert (played.lengths, played.cut, played.to_json()["cut"]) == ((50,) * 4, 4, 4)
        assert "4 episodes cut" in str(played)
        assert sum("max_episode_steps" in record.message for record in caplog.records) == 1
        limited = evaluate_random(dataclasses.replace(config, env_kwargs={"max_episode_steps": 60}), episodes=2)
        assert (limited.lengths, limited.cut) == ((60, 60), 0)
    finally:
        del gym.registry["Endless-v0"]
    ends = evaluate_random(tiny(encoder=encoder_folder), episodes=2)
    assert (ends.lengths, ends.cut) == ((8, 8), 0)


def test_environments_states_and_starts_of_episodes(encoder_folder: Path):
    policy = Constant()
    play(policy, evaluation_env(tiny(encoder=encoder_folder, envs=1), 2, seed=0), 2)
    assert [state for state, _ in policy.seen] == [None, *range(1, 16)]
    assert [starts for _, starts in policy.seen] == [[step % 8 == 0] for step in range(16)]
    venv = evaluation_env(tiny(encoder=encoder_folder, envs=8), episodes=3, seed=0)
    assert (venv.num_envs, venv.training, venv.norm_reward) == (3, False, False)


def test_the_command_prints_and_writes_the_numbers(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from latent_obs_cli.main import main

    words = f"evaluate --run {run} --episodes 6 --which last --no-video --success-return 6 --json {tmp_path / 'n.json'}"
    assert main([*words.split(), "--device", "cpu"]) == 0
    played = evaluate_agent(run, episodes=6, which="last", success_return=6)
    assert played.successes == tuple(r >= 6 for r in played.returns)
    out = capsys.readouterr().out
    assert f"mean return {played}\n" in out
    assert played.details().splitlines()[-1] in out
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert numbers["agent"] == json.loads(json.dumps(played.to_json()))
    assert numbers["random_policy"]["episodes"] == 6
    assert numbers["env"] == "Side-v0"
    for words, named in (["--json", str(tmp_path)], str(tmp_path)), (["--episodes", "0"], "episodes"):
        assert main(["evaluate", "--run", str(run), "--no-video", *words]) == 2
        assert named in capsys.readouterr().err


def test_the_seed_decides_the_episodes_and_the_agent_the_returns(run: Path):
    before = files_of(run)
    last = evaluate_agent(run, episodes=10, which="last", seed=11)
    assert last == evaluate_agent(run, episodes=10, which="last", seed=11)
    assert last.lengths == (8,) * 10
    assert last.mean > 5.5, "chance is 4"
    # Sampled actions: an untrained agent's are at chance, while its most likely ones may be good by luck.
    best, again, other = (evaluate_agent(run, episodes=10, seed=seed, deterministic=False) for seed in (11, 11, 12))
    assert best == again != other
    assert last.sigmas_above(best) > 3, "best is untrained here"
    assert files_of(run) == before


def test_a_random_policy_is_at_chance_and_depends_on_its_seed(run: Path):
    config = tiny(encoder=run / "encoder", device="cuda:63")  # it needs no device
    chance = evaluate_random(config, episodes=40, seed=5)
    assert chance.mean == pytest.approx(4, abs=4 * math.sqrt(2 / 40)), "8 steps at one half; a deviation of 1.4"
    assert len(set(chance.returns)) > 2
    assert chance == evaluate_random(config, episodes=40, seed=5)
    assert chance != evaluate_random(config, episodes=40, seed=6)


def test_a_gray_game_is_trained_on_evaluated_and_filmed(tmp_path: Path):
    model = CVAE((16, 16, 1), 6, widths=(4, 8), strides=(2, 2))
    encoder = export_encoder(tmp_path / "encoder", model, random_frames(4, (16, 16, 1)), provenance={})
    config = tiny(encoder=encoder, out=tmp_path / "run", env_kwargs={"kind": "grey"}, eval_every=0)
    train(config)
    assert evaluate_agent(config.out, episodes=2).lengths == (8, 8)
    assert evaluate_random(config, episodes=2).lengths == (8, 8)
    pytest.importorskip("av")
    assert film(config.out, episodes=1, seconds=0)[0].stat().st_size > 1_000


def scenario(name: str) -> tuple[dict[str, str], str]:
    """Settings and script of an installed ViZDoom scenario."""
    vizdoom = pytest.importorskip("vizdoom")
    folder = Path(vizdoom.__file__).parent / "scenarios"
    settings = dict(re.findall(r"^\s*(\w+)\s*=\s*(.+?)\s*$", (folder / f"{name}.cfg").read_text(), re.MULTILINE))
    data = (folder / f"{name}.wad").read_bytes()
    count, start = struct.unpack("<ii", data[4:12])
    for i in range(count):
        place, size, lump = struct.unpack("<ii8s", data[start + 16 * i : start + 16 * i + 16])
        if lump.rstrip(b"\0") == b"SCRIPTS":
            return settings, data[place : place + size].decode("latin1")
    raise AssertionError(f"{name}.wad has no script")


def test_the_rules_are_those_of_vizdooms_scripts():
    for name in ("predict_position", "my_way_home"):
        settings, script = scenario(name)
        assert re.search(r"script 3\s*\(void\)\s*\{\s*reward = 1\.0;\s*Exit_Normal", script)
        living, limit = float(settings["living_reward"]), int(settings["episode_timeout"])
        rule = _KNOWN[f"{name}.cfg"]
        assert rule.is_success(1 + living * limit, truncated=False)
        assert not rule.is_success(living * limit, truncated=True)
    settings, script = scenario("deadly_corridor")  # pays for the way and for the vest
    assert re.search(r"armour_x = 1312\.0", script)
    assert re.search(r"reward = GetActorX\(0\)\+armour_reward", script)
    assert re.search(r"armour_reward = 1000\.0;\s*Exit_Normal", script)
    assert settings["death_penalty"] == "100"
    rule = _KNOWN["deadly_corridor.cfg"]
    assert not rule.is_success(1312.0, truncated=False)
    assert rule.is_success(1312.0 + 1000.0 - 100.0, truncated=False)


def test_basic_in_play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("vizdoom")
    monkeypatch.chdir(tmp_path)
    config = tiny(env="VizdoomBasic-v1", frame_skip=4, latent_only=True, envs=2)
    played = evaluate_random(config, episodes=8, seed=3)
    assert played.successes == tuple(length < 75 for length in played.lengths), "75 steps of 4 tics are the time-out"
    assert played.successes is not None
    assert 0 < sum(played.successes) < 8
    assert all(r >= -182 for r, won in zip(played.returns, played.successes, strict=True) if won)


def test_minerls_thresholds_are_upstreams_own():
    pytest.importorskip("minerl")
    from latent_obs.minerl.client import minerl_specs
    from latent_obs.minerl.env import register_minerl

    register_minerl()
    specs: dict[str, Any] = {env_id: entry._kwargs["env_spec"] for env_id, entry in minerl_specs().items()}
    asked = {env_id: spec for env_id, spec in specs.items() if "Treechop" in env_id or "Navigate" in env_id}
    assert len(asked) == 10
    for env_id, spec in asked.items():
        rule = success_rule(AgentConfig(env=env_id))
        assert rule is not None
        assert rule.least_return is not None
        assert spec.determine_success_from_rewards([1.0, rule.least_return - 1.0])
        assert not spec.determine_success_from_rewards([1.0, rule.least_return - 2.0])
    for env_id, item in (
        ("MineRLObtainDiamond-v0", "diamond"),
        ("MineRLObtainIronPickaxeVectorObf-v0", "iron_pickaxe"),
    ):
        spec = specs[env_id]
        while hasattr(spec, "env_to_wrap"):  # the obfuscated task
            spec = spec.env_to_wrap
        rewards = {entry["type"]: entry["reward"] for entry in spec.reward_schedule}
        rule, everything = success_rule(AgentConfig(env=env_id)), sum(rewards.values())
        assert rule is not None
        assert rule.is_success(everything, truncated=False)
        assert not rule.is_success(everything - rewards[item], truncated=False)
    assert success_rule(AgentConfig(env="MineRLObtainDiamondDense-v0")) is None, "64 cobblestones would do"


def test_the_order_of_the_rules():
    gym.register("VizdoomBasic-v77", entry_point="tests.support.side_env:SideEnv", reward_threshold=5.0)
    try:
        for given_return, expected in ((None, 5.0), (7, 7.0)):
            rule = success_rule(AgentConfig(env="VizdoomBasic-v77"), given_return)
            assert rule is not None
            assert rule.least_return == expected
    finally:
        del gym.registry["VizdoomBasic-v77"]
    for env in ("Nothing-v0", "not an id", "no.such.module:VizdoomBasic-v1"):
        assert success_rule(AgentConfig(env=env)) is None


def test_the_rules_of_vizdoom_go_by_the_scenario_and_not_by_the_name():
    doom = pytest.importorskip("vizdoom.gymnasium_wrapper.gymnasium_env_defns").VizdoomScenarioEnv
    way_home: dict[str, Any] = {"scenario_config_file": "my_way_home.cfg"}
    entry = f"{doom.__module__}:{doom.__name__}"
    gym.register("Mine-v0", entry_point=entry, kwargs=way_home)
    gym.register("VizdoomBasicMine-v0", entry_point="tests.support.side_env:SideEnv")
    try:
        for env in ("Mine-v0", "vizdoom.gymnasium_wrapper:VizdoomMyWayHome-MultiBinary-v1", "VizdoomMyWayHome-v1"):
            assert success_rule(AgentConfig(env=env)) is _KNOWN["my_way_home.cfg"]
        assert success_rule(AgentConfig(env="VizdoomBasic-v1", env_kwargs=way_home)) is _KNOWN["my_way_home.cfg"]
        assert success_rule(AgentConfig(env="VizdoomBasic-v1")) is _KNOWN["basic.cfg"]
        for env in ("VizdoomHealthGathering-v1", "VizdoomBasicMine-v0"):
            assert success_rule(AgentConfig(env=env)) is None
    finally:
        del gym.registry["Mine-v0"], gym.registry["VizdoomBasicMine-v0"]
    time_out_looks_like_a_kill: dict[str, Any] = {"treat_episode_timeout_as_truncation": False}
    assert success_rule(AgentConfig(env="VizdoomBasic-v1", env_kwargs=time_out_looks_like_a_kill)) is None


def test_a_return_to_reach_is_a_finite_number():
    for least in (math.nan, math.inf):
        with pytest.raises(InputError, match="success_return"):
            evaluate_random(AgentConfig(), success_return=least)


class SaysSo(SideEnv):
    """Puts `is_success` itself: every second episode is one."""

    episodes = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        if terminated:
            self.episodes += 1
            info["is_success"] = np.bool_(self.episodes % 2 == 0)
        return observation, reward, terminated, truncated, info


def test_the_environments_own_judgement_counts_unless_overruled():
    for overrules, expected in (False, (False, True, False)), (True, (True, True, True)):
        venv = EpisodeSuccess(VecMonitor(DummyVecEnv([SaysSo])), SuccessRule(-1.0, "always", overrules))
        assert play(Constant(), venv, 3).successes == expected


def test_time_outs_ends_and_the_games_own_rewards(encoder_folder: Path):
    makers = [lambda: gym.wrappers.TimeLimit(SideEnv(length=4), 3), lambda: SideEnv(length=4)]
    venv = EpisodeSuccess(VecMonitor(DummyVecEnv(makers)), SuccessRule(None, "ended early"))
    assert play(Constant(), venv, 4).successes == (False, True, False, True)
    venv = evaluation_env(tiny(encoder=encoder_folder, env_kwargs={"reward": 10.0}), 12, seed=0, success_return=40.0)
    played = play(Constant(), venv, 12)
    assert played.successes == tuple(r >= 40 for r in played.returns)
    assert played.success_rate not in (0.0, 1.0, None)
    assert play(Constant(), evaluation_env(tiny(encoder=encoder_folder), 4, seed=0), 4).successes is None


def test_a_loaded_policy_plays_as_well_as_the_agent_and_a_plain_load_does_not(finished: Path):
    ours: Any = load_policy(finished, deterministic=True, device="cpu")
    with contextlib.closing(ours.make_env()) as env:
        evaluated = evaluate_agent(finished, episodes=1, seed=0, deterministic=True, device="cpu")
        assert ours.play(env, seed=0) == ours.play(env, seed=0) == evaluated.returns[0]
        observation, _ = env.reset(seed=1)
        ours.reset()
        assert ours(observation) in (0, 1)
    latent = FrozenEncoder.load(finished / "encoder", device="cpu")(observation)
    plain = PPO.load(finished / "best.zip", device="cpu")
    seen = torch.as_tensor(latent)[None]
    normalized = torch.as_tensor(ours._venv.normalize_obs(latent[None]))
    one, other = (plain.policy.predict_values(x) for x in (seen, normalized))
    assert not torch.allclose(one, other, atol=1e-3)
