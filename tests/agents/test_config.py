"""AgentConfig: which values it rejects, how it is saved, what may change on resume, and the command line."""

import dataclasses
import inspect
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

pytest.importorskip("stable_baselines3")

from agents.config import ALGORITHMS, HYPERPARAMETERS, NOT_ITS_OWN, AgentConfig, AlgorithmName
from latent_obs.util.errors import InputError

#: Another value than the default for every setting.
OTHERS: dict[str, Any] = {"algorithm": "recurrent-ppo", "observation": "pixels", "env": "Other-v0"}
OTHERS |= {"out": Path("runs/o"), "render": True, "log": "wandb"}
OTHERS |= {"encoder": Path("runs/e"), "pca": Path("runs/p"), "env_kwargs": {"a": True, "b": 1, "c": 0.5, "d": "x"}}
OTHERS |= {"steps": 7, "envs": 3, "workers": "serial", "frame_skip": 2, "pixel_key": "pov", "latent_only": True}
OTHERS |= {"flatten": True, "history": 4, "precision": "bfloat16", "backend": "openvino", "seed": 4, "device": "cpu"}
OTHERS |= {"learning_rate": 1e-2, "learning_rate_schedule": "linear", "n_steps": 16, "batch_size": 24, "n_epochs": 2}
OTHERS |= {"gamma": 0.9, "ent_coef": 0.0, "net_arch": (5,), "normalize_reward": False, "normalize_observation": "off"}
OTHERS |= {"latent_deviation": 0.7, "eval_every": 9, "eval_episodes": 3, "deterministic": False, "checkpoint_every": 5}
#: With this engine, the rest of `OTHERS` would not be valid.
CLUSTER: dict[str, Any] = {"engine": "rllib", "runners": 4, "address": "auto"}
OFF_POLICY: dict[str, Any] = {"algorithm": "qr-dqn", "buffer_size": 300, "learning_starts": 5, "train_freq": 3}
OFF_POLICY |= {"gradient_steps": -1, "target_update_interval": 7}
OFF_POLICY |= {"exploration_fraction": 0.3, "exploration_final_eps": 0.2}
EVERY = {**OFF_POLICY, **CLUSTER, **OTHERS}
Parse = Callable[[str], AgentConfig]


def test_every_setting_has_another_value_here():
    default = dataclasses.asdict(AgentConfig())
    assert EVERY.keys() == default.keys()
    assert all(EVERY[name] != default[name] for name in default)


INVALID: dict[str, list[Any]] = {
    "steps": [0, -1],
    "eval_every": [-1],
    "learning_rate": [0.0, math.nan, math.inf],
    "exploration_fraction": [-0.1, 1.5, math.nan],
    "batch_size": [0, 1],
    "gamma": [0.0, 1.01, math.nan],
    "ent_coef": [-1.0, math.nan, "auto"],
    "net_arch": [(64, 0)],
    "gradient_steps": [0, -2],
    "normalize_observation": [True, "all"],
    "algorithm": ["a2c"],
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_value_is_rejected_by_name(name: str):
    algorithm = "dqn" if name in OFF_POLICY and name != "algorithm" else "ppo"
    for value in INVALID[name]:
        with pytest.raises(InputError, match=name):
            AgentConfig(**{"algorithm": algorithm, name: value})


def test_a_batch_of_one_sample_and_a_setting_of_another_algorithm_are_rejected():
    few: list[dict[str, Any]] = [{"n_steps": 1, "batch_size": 2}, {"n_steps": 17, "batch_size": 8}]
    for samples in few:
        with pytest.raises(InputError, match="n_steps"):
            AgentConfig(envs=1, **samples)
    with pytest.raises(InputError, match="n_epochs"):
        AgentConfig(algorithm="dqn", n_epochs=3)
    AgentConfig(gamma=1.0, envs=1, n_steps=16, batch_size=8, net_arch=())  # at the edge


def test_what_rllib_does_not_train_is_rejected():
    wrong: dict[str, dict[str, Any]] = {"engine": {"algorithm": "dqn"}, "net_arch": {"net_arch": ()}}
    wrong |= {"pixels": {"observation": "pixels"}}
    for name, settings in wrong.items():
        with pytest.raises(InputError, match=name):
            AgentConfig(engine="rllib", **settings)
    AgentConfig(engine="rllib", envs=9, runners=3).check_runners()
    uneven = AgentConfig(engine="rllib", envs=8, runners=3)
    for config in (uneven, AgentConfig(runners=2), AgentConfig(address="auto")):
        with pytest.raises(InputError, match="runners"):
            config.check_runners()


def test_runners_of_a_resumed_run_share_its_environments():
    saved = AgentConfig(engine="rllib", envs=12, runners=4)
    for given in (AgentConfig(engine="rllib", runners=6), AgentConfig(runners=6)):
        resumed = given.resumed_from(saved)
        assert (resumed.envs, resumed.runners) == (12, 6)
        resumed.check_runners()


@pytest.mark.parametrize("algorithm", get_args(AlgorithmName))
@pytest.mark.parametrize("observation", ["latent", "pixels"])
def test_settled_settings_are_those_of_the_algorithm(algorithm: AlgorithmName, observation: Any):
    config = AgentConfig(algorithm=algorithm, observation=observation, gamma=0.5).settled()
    given = {name for name in HYPERPARAMETERS if getattr(config, name) is not None}
    assert given == set(ALGORITHMS[algorithm].defaults)
    assert config.gamma == 0.5
    assert config.settled() == config
    assert config.hyperparameters == {name: getattr(config, name) for name in given}
    constructor = inspect.signature(config.trainer.load_class()).parameters
    assert given - set(NOT_ITS_OWN) <= set(constructor)
    removed = {"gae_lambda": 0.95, "clip_range": 0.2, "tau": 0.005 if algorithm == "sac" else 1.0}
    assert all(constructor[name].default == value for name, value in removed.items() if name in constructor)


@pytest.mark.parametrize(
    "config", [AgentConfig(), AgentConfig(**OTHERS), AgentConfig(**CLUSTER), AgentConfig(**OFF_POLICY).settled()]
)
def test_settings_survive_json(config: AgentConfig):
    assert AgentConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_saved_settings_of_other_versions():
    saved = AgentConfig(steps=5).to_json()
    with pytest.raises(InputError, match="reward_scale"):
        AgentConfig.from_json({**saved, "reward_scale": 2.0})
    removed = {"standardise": False, "tau": 0.5, "lstm_size": None, "clip_range": 0.1, "exact_resume": None}
    assert AgentConfig.from_json({**saved, **removed}) == AgentConfig(steps=5)
    with pytest.raises(InputError, match="standardise"):
        AgentConfig.from_json({**saved, "standardise": True})


def test_a_run_is_read_from_where_it_is_now(tmp_path: Path):
    with pytest.raises(InputError, match="no agent"):
        AgentConfig.load(tmp_path)
    saved = AgentConfig(out=Path("elsewhere"), steps=5).to_json()
    for text in ("{", "[]", json.dumps({**saved, "steps": "x"})):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InputError, match=r"config\.json"):
            AgentConfig.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert AgentConfig.load(tmp_path) == AgentConfig(out=tmp_path, steps=5)


@pytest.mark.parametrize("name", list(EVERY))
def test_a_resumed_run_changes_only_what_may_change(name: str):
    algorithm: Any = "qr-dqn" if name in OFF_POLICY else "ppo"
    engine: Any = {"engine": "rllib"} if name in ("runners", "address") else {}
    given = AgentConfig(**{"algorithm": algorithm, **engine, name: EVERY[name]})
    saved = AgentConfig(algorithm=given.algorithm if name != "algorithm" else "ppo", **engine).settled()
    if name in AgentConfig.CHANGEABLE_ON_RESUME:
        assert given.resumed_from(saved) == dataclasses.replace(saved, **{name: EVERY[name]})
    else:
        with pytest.raises(InputError, match=f"^{name} "):
            given.resumed_from(saved)
    saved = given.settled()
    assert AgentConfig().resumed_from(saved) == saved, "a setting at its default counts as not given"


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Parse:
    """The settings that `latent-obs train-agent` would train with."""
    import agents
    from latent_obs_cli.main import main

    seen: list[AgentConfig] = []
    monkeypatch.setattr(agents, "train_agent", lambda config, resume=False: seen.append(config))

    def parsed(words: str) -> AgentConfig:
        assert main(["train-agent", *words.split()]) == 0
        return seen.pop()

    return parsed


def test_words_become_settings(parse: Parse):
    words = "--env A-v0 --encoder e/f --observation random-latent --frame-skip 2 --net-arch 8 4 --latent-only --steps 9"
    settings: dict[str, Any] = {"env": "A-v0", "encoder": Path("e/f"), "observation": "random-latent", "frame_skip": 2}
    expected = AgentConfig(**settings, net_arch=(8, 4), latent_only=True, steps=9)
    assert parse(words) == parse(f"ppo {words}") == expected
    assert parse("") == AgentConfig()
    words = "--env-kwargs flag True off False count 3 minus -2 share 0.5 tiny 1e-3 name rgb_array"
    kwargs = {"flag": True, "off": False, "count": 3, "minus": -2, "share": 0.5, "tiny": 1e-3, "name": "rgb_array"}
    assert repr(parse(words).env_kwargs) == repr(kwargs)


@pytest.mark.parametrize("words", ["dqn", "--algorithm=dqn"])
def test_an_algorithm_has_its_own_options(parse: Parse, words: str):
    assert parse(f"{words} --buffer-size 300") == AgentConfig(algorithm="dqn", buffer_size=300)
    with pytest.raises(SystemExit):
        parse(f"{words} --n-epochs 3")
    with pytest.raises(SystemExit):
        parse("--buffer-size 300")


@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_help_shows_the_options_of_the_algorithm_with_its_defaults(
    parse: Parse, algorithm: AlgorithmName, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        parse(f"{algorithm} --help")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    others = {"algorithm", *HYPERPARAMETERS} - ALGORITHMS[algorithm].defaults.keys()
    shown = {field.name for field in dataclasses.fields(AgentConfig)} - others
    assert all(f"--{name.replace('_', '-')} " in text or f"--{name.replace('_', '-')}, " in text for name in shown)
    assert not any(f"--{name.replace('_', '-')} " in text for name in others)
    assert "Discount per agent step. (default: 0.99)" in text
