"""AgentConfig: what it refuses, what it writes, what a resumed run may change, and how its words are parsed."""

import dataclasses
import inspect
import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest

pytest.importorskip("stable_baselines3")

from agents.config import ALGORITHMS, HYPERPARAMETERS, NOT_ITS_OWN, AgentConfig, AlgorithmName
from latent_obs.util.errors import InputError

#: Something other than the default for every setting.
OTHERS: dict[str, Any] = {
    "algorithm": "recurrent-ppo",
    "pca": Path("runs/p"),
    "learning_rate_schedule": "linear",
    "clip_range_schedule": "cosine",
    "lstm_size": 8,
    "checkpoint_every": 5,
    "keep_checkpoints": 2,
    "exact_resume": True,
    "env": "Other-v0",
    "encoder": Path("runs/e"),
    "out": Path("runs/o"),
    "observation": "pixels",
    "steps": 7,
    "envs": 3,
    "workers": "serial",
    "frame_skip": 2,
    "env_kwargs": {"a": True, "b": 1, "c": 0.5, "d": "x"},
    "pixel_key": "pov",
    "latent_only": True,
    "flatten": True,
    "history": 4,
    "standardize": True,
    "precision": "bfloat16",
    "backend": "openvino",
    "watch_drift": False,
    "learning_rate": 1e-2,
    "n_steps": 16,
    "batch_size": 24,
    "n_epochs": 2,
    "gamma": 0.9,
    "gae_lambda": 0.8,
    "ent_coef": 0.0,
    "clip_range": 0.1,
    "net_arch": (5,),
    "normalize_reward": False,
    "normalize_observation": "off",
    "latent_deviation": 0.7,
    "eval_every": 9,
    "eval_episodes": 3,
    "deterministic": False,
    "seed": 4,
    "device": "cpu",
}
#: The same of an algorithm that keeps a replay buffer.
OFF_POLICY: dict[str, Any] = {
    "algorithm": "qr-dqn",
    "buffer_size": 300,
    "learning_starts": 5,
    "train_freq": 3,
    "gradient_steps": -1,
    "tau": 0.5,
    "target_update_interval": 7,
    "exploration_fraction": 0.3,
    "exploration_final_eps": 0.2,
    "n_quantiles": 9,
}
EVERY = {**OFF_POLICY, **OTHERS}


def with_one(name: str) -> AgentConfig:
    """Default settings but for one, of an algorithm that has it."""
    algorithm = "ppo" if name not in HYPERPARAMETERS or name in ALGORITHMS["ppo"].defaults else ALGORITHM_WITH[name]
    return AgentConfig(**{"algorithm": algorithm, name: EVERY[name]})


ALGORITHM_WITH: dict[str, Any] = {"lstm_size": "recurrent-ppo", **dict.fromkeys(OFF_POLICY, "qr-dqn")}


def test_every_setting_has_another_value_here():
    names = [f.name for f in dataclasses.fields(AgentConfig)]
    assert set(EVERY) == set(names)
    default = AgentConfig()
    assert all(EVERY[name] != getattr(default, name) for name in names)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"envs": 0}, "envs"),
        ({"n_steps": 0}, "n_steps"),
        ({"history": 0}, "history"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 1}, "batch"),
        ({"n_epochs": 0}, "n_epochs"),
        ({"eval_episodes": 0}, "eval_episodes"),
        ({"eval_every": -1}, "eval_every"),
        ({"seed": -1}, "seed"),
        ({"frame_skip": 0}, "frame_skip"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": -1e-3}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"learning_rate": math.inf}, "learning_rate"),
        ({"gamma": 0.0}, "gamma"),
        ({"gamma": 1.01}, "gamma"),
        ({"gamma": math.nan}, "gamma"),
        ({"gae_lambda": 1.5}, "gae_lambda"),
        ({"clip_range": 0.0}, "clip_range"),
        ({"ent_coef": math.nan}, "ent_coef"),
        ({"net_arch": (64, 0)}, "net_arch"),
        ({"checkpoint_every": -1}, "checkpoint_every"),
        ({"keep_checkpoints": -2}, "keep_checkpoints"),
        ({"algorithm": "dqn", "gradient_steps": 0}, "gradient_steps"),
        ({"algorithm": "dqn", "exploration_fraction": 1.5}, "exploration_fraction"),
        ({"algorithm": "sac", "tau": 0.0}, "tau"),
        ({"algorithm": "sac", "ent_coef": -1.0}, "ent_coef"),
        ({"algorithm": "qr-dqn", "n_quantiles": 0}, "n_quantiles"),
        ({"envs": 1, "n_steps": 1, "batch_size": 2}, "one sample"),
        ({"envs": 1, "n_steps": 17, "batch_size": 8}, "one sample"),
    ],
)
def test_what_cannot_be_is_refused_by_name(settings: dict[str, Any], named: str):
    with pytest.raises(InputError, match=named):
        AgentConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"gamma": 1.0},
        {"eval_every": 0},
        {"envs": 1, "n_steps": 16, "batch_size": 8},
        {"ent_coef": 0.0},
        {"net_arch": ()},
    ],
)
def test_what_can_be_is_taken(settings: dict[str, Any]):
    AgentConfig(**settings)


@pytest.mark.parametrize("algorithm", get_args(AlgorithmName))
@pytest.mark.parametrize("observation", ["latent", "pixels"])
def test_settled_settings_name_what_the_algorithm_has_and_nothing_else(algorithm: AlgorithmName, observation: Any):
    config = AgentConfig(algorithm=algorithm, observation=observation, gamma=0.5).settled()
    given = {name for name in HYPERPARAMETERS if getattr(config, name) is not None}
    assert given == set(ALGORITHMS[algorithm].defaults)
    assert config.gamma == 0.5
    assert config.settled() == config
    assert config.hyperparameters == {name: getattr(config, name) for name in given}
    constructor = inspect.signature(config.trainer.load_class()).parameters
    assert given - set(NOT_ITS_OWN) <= set(constructor)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "dqn", "n_epochs": 3}, "DQN has no n_epochs, which is of PPO, RecurrentPPO; leave it out"),
        ({"buffer_size": 9}, "PPO has no buffer_size, which is of DQN, QR-DQN, SAC"),
        ({"algorithm": "sac", "clip_range_schedule": "linear"}, "clip_range_schedule is of PPO, RecurrentPPO"),
        ({"algorithm": "ppo", "ent_coef": "auto"}, "ent_coef 'auto' is of SAC"),
        ({"algorithm": "a2c"}, "algorithm must be one of ppo, .*sac, got 'a2c'"),
    ],
)
def test_a_setting_of_another_algorithm_is_refused_with_whose_it_is(settings: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        AgentConfig(**settings)


@pytest.mark.parametrize("config", [AgentConfig(), AgentConfig(**OTHERS), AgentConfig(**OFF_POLICY).settled()])
def test_settings_survive_json(config: AgentConfig):
    assert AgentConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_settings_of_a_newer_version_are_refused_by_name():
    with pytest.raises(InputError, match="reward_scale"):
        AgentConfig.from_json({**AgentConfig().to_json(), "reward_scale": 2.0})


def test_a_moved_run_is_read_from_where_it_lies_now(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(AgentConfig(out=Path("elsewhere"), steps=5).to_json()))
    assert AgentConfig.load(tmp_path) == AgentConfig(out=tmp_path, steps=5)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"steps": 5}', json.dumps({**AgentConfig().to_json(), "steps": "x"})])
def test_settings_that_cannot_be_read_are_one_clear_error(tmp_path: Path, text: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        AgentConfig.load(tmp_path)


def test_a_folder_without_an_agent(tmp_path: Path):
    with pytest.raises(InputError, match="holds no agent"):
        AgentConfig.load(tmp_path)


def test_the_arguments_of_the_environment_include_frame_skip():
    assert AgentConfig(env_kwargs={"a": 1}).all_env_kwargs == {"a": 1}
    assert AgentConfig(env_kwargs={"a": 1}, frame_skip=4).all_env_kwargs == {"a": 1, "frame_skip": 4}


@pytest.mark.parametrize("name", list(EVERY))
def test_a_resumed_run_changes_only_what_may_change(name: str):
    given = with_one(name)
    saved = AgentConfig(algorithm=given.algorithm if name != "algorithm" else "ppo").settled()
    if name in AgentConfig.CHANGEABLE_ON_RESUME:
        assert given.resumed_from(saved) == dataclasses.replace(saved, **{name: EVERY[name]})
    else:
        with pytest.raises(InputError, match=f"^{name} is .* in the run to resume"):
            given.resumed_from(saved)


@pytest.mark.parametrize("name", list(EVERY))
def test_a_setting_left_at_its_default_is_as_it_was(name: str):
    saved = with_one(name).settled()
    assert AgentConfig().resumed_from(saved) == saved
    assert saved.resumed_from(saved) == saved


def parse(words: str, monkeypatch: pytest.MonkeyPatch) -> AgentConfig:
    """The settings that `latent-obs train-agent` would train with."""
    import agents
    from latent_obs_cli.main import main

    seen: list[AgentConfig] = []
    monkeypatch.setattr(agents, "train_agent", lambda config, resume=False: seen.append(config))
    assert main(["train-agent", *words.split()]) == 0
    (config,) = seen
    return config


def test_arguments_of_the_environment_keep_their_types(monkeypatch: pytest.MonkeyPatch):
    words = "--env-kwargs flag True off False count 3 minus -2 share 0.5 tiny 1e-3 name rgb_array"
    kwargs = parse(words, monkeypatch).env_kwargs
    assert kwargs == {
        "flag": True,
        "off": False,
        "count": 3,
        "minus": -2,
        "share": 0.5,
        "tiny": 1e-3,
        "name": "rgb_array",
    }
    assert {k: type(v) for k, v in kwargs.items()} == {
        "flag": bool,
        "off": bool,
        "count": int,
        "minus": int,
        "share": float,
        "tiny": float,
        "name": str,
    }


def test_words_become_settings(monkeypatch: pytest.MonkeyPatch):
    words = "--env A-v0 --encoder e/f --observation random-latent --frame-skip 2 --net-arch 8 4 --latent-only --steps 9"
    assert parse(words, monkeypatch) == AgentConfig(
        env="A-v0",
        encoder=Path("e/f"),
        observation="random-latent",
        frame_skip=2,
        net_arch=(8, 4),
        latent_only=True,
        steps=9,
    )
    assert parse("", monkeypatch) == AgentConfig()
