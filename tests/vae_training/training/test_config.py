"""Settings of training: checked by name, saved as JSON, and those of earlier versions."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_obs.util.errors import InputError
from vae_training.training.config import TrainConfig


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"patience": 0},
        {"batch_freeze": -1},
        {"half_beta_cycle": -1},
        {"seed": -1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"beta": -1.0},
        {"beta": float("inf")},
        {"super_batch": 10},
        {"schedule": "square"},
        {"learning_rate_schedule": "square"},
        {"precision": "float16"},
        {"augment": 1.1},
        {"augment": float("nan")},
        {"patience": 2, "half_beta_cycle": 0},
        {"held_out": "x"},
        {"held_out": 0},
        {"batch_freeze": float("nan")},
        {"latent_dim": "8"},
        {"widths": None},
        {"widths": [4, "x"]},
        {"frames": 5},
        {"components": "no"},
    ],
)
def test_settings_are_checked_by_name(change: dict[str, Any]):
    with pytest.raises(InputError, match=next(iter(change))):
        TrainConfig(**change)


@given(
    latent_dim=st.integers(1, 999),
    widths=st.lists(st.integers(1, 99), max_size=3).map(tuple),
    beta=st.floats(0, 1e9),
    super_batch=st.none() | st.integers(128, 10**6),
    start_from=st.none() | st.just(Path("a/run")),
)
@settings(max_examples=40, deadline=None)
def test_settings_survive_json(
    latent_dim: int, widths: tuple[int, ...], beta: float, super_batch: int | None, start_from: Path | None
):
    more: dict[str, Any] = {"beta": beta, "super_batch": super_batch, "start_from": start_from}
    config = TrainConfig(Path("a/b"), Path("c"), latent_dim, widths=widths, **more)
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(InputError, match="colour"):
        TrainConfig.from_json({**config.to_json(), "colour": 1})


#: Settings of earlier versions: the default that each had in a saved config.json, and another value.
REMOVED: dict[str, tuple[Any, Any]] = {
    "motion": (0.0, 1.0),
    "hard_pixels": (0.0, 0.5),
    "edges": (0.0, 1.0),
    "scales": (0.0, 2.0),
    "ramp": ("linear", "cosine"),
    "block_frames": (1, 32),
    "preset": (None, "small"),
    "warm_up_steps": (0, 50),
    "clip_norm": (None, 100.0),
    "first_activation": (False, True),
    "optimizer": ("adam", "adamw"),
    "weight_decay": (0.0, 0.1),
    "free_bits": (0.0, 0.5),
    "inverse_dynamics": (0.0, 1.0),
    "next_latent": (0.0, 1.0),
    "reward": (0.0, 0.5),
    "salience": (0.0, 1.0),
    "linear_path": (False, True),
    "standardize": (True, False),
    "standardise": (True, False),
}
#: Settings whose value does not matter any more.
IGNORED = {
    "checkpoint_steps": 100,
    "checkpoint_minutes": 1.0,
    "compile": "on",
    "allow_added_files": True,
    "tensorboard": False,
    "ema": 0.9,
}


def load(folder: Path, **more: Any) -> TrainConfig:
    saved = {**TrainConfig(out=folder, latent_dim=64).to_json(), **more}
    (folder / "config.json").write_text(json.dumps(saved))
    return TrainConfig.load(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "3", "[" * 100_000, '{"out": "x", "widths": null}', '{"out": 3}'])
def test_a_file_of_settings_that_is_damaged_is_refused_by_name(tmp_path: Path, text: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        TrainConfig.load(tmp_path)


def test_settings_of_earlier_versions_load_at_their_defaults(tmp_path: Path):
    config = load(tmp_path, **{name: default for name, (default, _) in REMOVED.items()}, **IGNORED, objective="acting")
    assert config == TrainConfig(out=tmp_path, latent_dim=64)
    assert set(TrainConfig.REMOVED) == {*REMOVED, *IGNORED}


@pytest.mark.parametrize(("name", "value"), [(name, other) for name, (_, other) in REMOVED.items()])
def test_settings_of_earlier_versions_are_refused_by_name_at_other_values(tmp_path: Path, name: str, value: Any):
    with pytest.raises(InputError, match=name):
        load(tmp_path, **{name: value})


def test_the_classic_objective_of_earlier_versions_is_the_loss_of_today(tmp_path: Path):
    assert load(tmp_path, objective="classic", salience=1.0, reward=1.0) == load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"latent_dim": 7},
        {"beta": 2.0},
        {"super_batch": 200},
        {"widths": (4, 9)},
        {"dataset_weights": (1.0, 2.0)},
        {"learning_rate_schedule": "constant"},
    ],
)
def test_what_decides_the_weights_cannot_change_on_resume(change: dict[str, Any]):
    with pytest.raises(InputError, match=next(iter(change))):
        TrainConfig(**change).resumed_from(TrainConfig())


def test_what_may_change_on_resume():
    changes: dict[str, Any] = {"epochs": 99, "patience": 3, "frames": Path("moved"), "device": "cpu"}
    saved: dict[str, Any] = {"seed": 5, "learning_rate_schedule": "constant"}
    assert TrainConfig(**changes).resumed_from(TrainConfig(**saved)) == TrainConfig(**saved, **changes)
