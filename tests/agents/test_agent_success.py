"""What counts as a success: the rules against the games' own files, and in play."""

import os
import re
import struct
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from agents.config import AgentConfig
from agents.evaluation import _KNOWN, EpisodeSuccess, SuccessRule, evaluate_random, evaluation_env, play, success_rule
from latent_obs.util.errors import InputError
from tests.support.side_env import SideEnv, tiny


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


def test_basic_ends_early_only_by_the_kill():
    settings, script = scenario("basic")
    assert (settings["living_reward"], settings["episode_timeout"]) == ("-1", "300")
    assert script.count("Exit_Normal") == 1
    assert re.search(r"script 4 \(void\)\s*\{\s*reward = reward \+ 106\.0;\s*Exit_Normal", script)
    assert re.search(r"SetThingSpecial\(target_id, ACS_ExecuteAlways, 4\)", script)
    rule = _KNOWN["VizdoomBasic"]
    assert rule.is_success(106 - 263 - 25, truncated=False), "a late kill after five shots"
    assert not rule.is_success(-300, truncated=True)


@pytest.mark.parametrize(
    ("name", "env"), [("predict_position", "VizdoomPredictPosition"), ("my_way_home", "VizdoomMyWayHome")]
)
def test_a_reward_of_one_and_a_small_one_for_living(name: str, env: str):
    settings, script = scenario(name)
    assert re.search(r"script 3\s*\(void\)\s*\{\s*reward = 1\.0;\s*Exit_Normal", script)
    living, limit = float(settings["living_reward"]), int(settings["episode_timeout"])
    rule = _KNOWN[env]
    assert rule.is_success(1 + living * limit, truncated=False)
    assert not rule.is_success(0.0, truncated=False)
    assert not rule.is_success(living * limit, truncated=True)


def test_the_corridor_pays_for_the_way_and_for_the_vest():
    settings, script = scenario("deadly_corridor")
    assert re.search(r"armour_x = 1312\.0", script)
    assert re.search(r"reward = GetActorX\(0\)\+armour_reward", script)
    assert re.search(r"armour_reward = 1000\.0;\s*Exit_Normal", script)
    assert settings["death_penalty"] == "100"
    assert not _KNOWN["VizdoomDeadlyCorridor"].is_success(1312.0, truncated=False)


def test_the_vest_of_the_corridor_in_play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    vizdoom: Any = pytest.importorskip("vizdoom")
    monkeypatch.chdir(tmp_path)
    game = vizdoom.DoomGame()
    game.load_config(str(Path(vizdoom.__file__).parent / "scenarios" / "deadly_corridor.cfg"))
    game.set_window_visible(False)
    game.set_doom_config_path(os.devnull)
    game.set_doom_skill(1)
    game.init()
    try:
        game.send_game_command("god")  # six monsters stand beside the way
        totals = [0.0]
        while not game.is_episode_finished() and len(totals) < 400:
            game.make_action([0, 0, 0, 1, 0, 0, 0])
            totals.append(game.get_total_reward())
        assert game.is_episode_finished()
        vest = int(np.argmax(np.diff(totals)))  # the step after which it is there
        assert totals[vest + 1] - totals[vest] > 900
        assert totals[vest] > 1200, "as far as it goes"
        rule = _KNOWN["VizdoomDeadlyCorridor"]
        assert not rule.is_success(totals[vest], truncated=False)
        assert rule.is_success(totals[-1], truncated=False)
    finally:
        game.close()


def test_basic_in_play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("vizdoom")
    monkeypatch.chdir(tmp_path)
    config = tiny(env="VizdoomBasic-v1", frame_skip=4, latent_only=True, envs=2)
    played = evaluate_random(config, episodes=16, seed=3)
    assert played.successes == tuple(length < 75 for length in played.lengths), "75 steps of 4 tics are the time-out"
    assert played.successes is not None
    assert 0 < sum(played.successes) < 16
    assert all(r >= -182 for r, won in zip(played.returns, played.successes, strict=True) if won)
    other = evaluate_random(config, episodes=16, seed=3, success_return=50)
    assert other.successes == tuple(r >= 50 for r in played.returns)


def test_minerls_thresholds_are_upstreams_own():
    pytest.importorskip("minerl")
    from latent_obs.minerl.client import minerl_specs
    from latent_obs.minerl.registration import register_minerl

    register_minerl()
    asked = 0
    for env_id, entry in minerl_specs().items():
        spec = entry._kwargs["env_spec"]
        rule = success_rule(AgentConfig(env=env_id))
        if "Treechop" in env_id or "Navigate" in env_id:
            asked += 1
            assert rule is not None
            least = rule.least_return
            assert least is not None
            assert spec.determine_success_from_rewards([1.0, least - 1.0])
            assert not spec.determine_success_from_rewards([1.0, least - 2.0])
        elif "Basalt" in env_id or "Survival" in env_id or "ObtainTest" in env_id:
            assert rule is None
    assert asked == 10


def test_items_that_end_minerls_tasks():
    pytest.importorskip("minerl")
    from latent_obs.minerl.client import minerl_specs

    for env_id, item in (
        ("MineRLObtainDiamond-v0", "diamond"),
        ("MineRLObtainIronPickaxeVectorObf-v0", "iron_pickaxe"),
    ):
        spec: Any = minerl_specs()[env_id]._kwargs["env_spec"]
        while hasattr(spec, "env_to_wrap"):  # what is obfuscated
            spec = spec.env_to_wrap
        rewards = {entry["type"]: entry["reward"] for entry in spec.reward_schedule}
        rule = success_rule(AgentConfig(env=env_id))
        assert rule is not None
        everything = sum(rewards.values())
        assert rule.is_success(everything, truncated=False)
        assert not rule.is_success(everything - rewards[item], truncated=False)
    assert success_rule(AgentConfig(env="MineRLObtainDiamondDense-v0")) is None, "64 cobblestones would do"


def test_the_order_of_the_rules():
    gym.register("VizdoomBasic-v77", entry_point="side_env:SideEnv", reward_threshold=5.0)
    try:
        assert success_rule(AgentConfig(env="VizdoomBasic-v77")) == SuccessRule(
            5.0, "the environment's reward_threshold"
        )
        assert success_rule(AgentConfig(env="VizdoomBasic-v77"), 7) == SuccessRule(7.0, "as was asked for")
    finally:
        del gym.registry["VizdoomBasic-v77"]
    assert success_rule(AgentConfig(env="VizdoomBasic-v1")) is _KNOWN["VizdoomBasic"]
    assert success_rule(AgentConfig(env="some.module:VizdoomMyWayHome-MultiBinary-v1")) is _KNOWN["VizdoomMyWayHome"]
    for env in (
        "VizdoomHealthGathering-v1",
        "VizdoomDefendCenter-v1",
        "VizdoomBasicOther-v1",
        "Nothing-v0",
        "not an id",
    ):
        assert success_rule(AgentConfig(env=env)) is None


def test_a_time_out_that_looks_like_a_kill_is_not_judged():
    config = AgentConfig(env="VizdoomBasic-v1", env_kwargs={"treat_episode_timeout_as_truncation": False})
    assert success_rule(config) is None


@pytest.mark.parametrize("least", [float("nan"), float("inf")])
def test_a_return_that_is_no_number(least: float):
    with pytest.raises(InputError, match="must be a number"):
        success_rule(AgentConfig(), least)


class SaysSo(SideEnv):
    """Says itself that an episode was a success: those of an even number."""

    episodes = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        if terminated:
            self.episodes += 1
            info["is_success"] = np.bool_(self.episodes % 2 == 0)
        return observation, reward, terminated, truncated, info


class Constant:
    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        return np.zeros(len(observation), int), state


@pytest.mark.parametrize(("overrule", "expected"), [(False, (False, True, False)), (True, (True, True, True))])
def test_the_environments_own_word_counts_unless_overruled(overrule: bool, expected: tuple[bool, ...]):
    venv = EpisodeSuccess(VecMonitor(DummyVecEnv([SaysSo])), SuccessRule(-1.0, "always"), overrule=overrule)
    assert play(Constant(), venv, 3).successes == expected


def test_time_outs_and_ends():
    venv = EpisodeSuccess(
        VecMonitor(DummyVecEnv([lambda: gym.wrappers.TimeLimit(SideEnv(length=4), 3), lambda: SideEnv(length=4)])),
        SuccessRule(None, "ended early"),
    )
    assert play(Constant(), venv, 4).successes == (False, True, False, True)


def test_an_agents_environments_judge_by_the_games_own_rewards(encoder_folder: Path):
    venv = evaluation_env(tiny(encoder=encoder_folder, env_kwargs={"reward": 10.0}), 12, seed=0, success_return=40.0)
    played = play(Constant(), venv, 12)
    assert played.successes == tuple(r >= 40 for r in played.returns)
    assert played.success_rate not in (0.0, 1.0, None)
    venv = evaluation_env(tiny(encoder=encoder_folder), 4, seed=0)
    assert play(Constant(), venv, 4).successes is None
