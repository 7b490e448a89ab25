"""train(): what it refuses, before anything is written."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_obs.util.errors import DeviceError, InputError
from tests.support.training_runs import config_for, log_every_step, module_frames, run, uninterrupted
from vae_training.training.config import TrainConfig

pytestmark = pytest.mark.usefixtures("log_every_step")


def test_a_folder_that_is_not_empty_is_left_alone(frames_folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    run(config_for(frames_folder, out, epochs=1))  # an empty one will do
    before = {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}
    with pytest.raises(InputError, match=r"out is not empty.*--resume.*--out"):
        run(config_for(frames_folder, out))
    assert {f: f.read_bytes() for f in out.rglob("*") if f.is_file()} == before


def test_a_file_in_place_of_the_run_folder(frames_folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(InputError, match="out"):
        run(config_for(frames_folder, out))
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"latent_dim": 7}, "latent_dim is 6.*7"),
        ({"beta": 2.0}, "beta is 1.0.*2.0"),
        ({"learning_rate": 0.5}, "learning_rate"),
        ({"batch_size": 10}, "batch_size is 20.*10"),
        ({"seed": 3}, "seed"),
        ({"super_batch": 200}, "super_batch"),
        ({"held_out": 2}, "held_out"),
        ({"half_beta_cycle": 2}, "half_beta_cycle"),
        ({"widths": (4, 9)}, "widths"),
        ({"dataset_weights": (1.0, 2.0)}, "dataset_weights"),
    ],
)
def test_what_decided_the_weights_cannot_change_on_resume(uninterrupted: Path, change: dict[str, Any], named: str):
    with pytest.raises(InputError, match=named):
        run(TrainConfig(out=uninterrupted, **change), resume=True)


def test_resuming_nothing(tmp_path: Path):
    with pytest.raises(InputError, match="no training run"):
        run(TrainConfig(out=tmp_path / "nothing"), resume=True)


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"super_batch": 49}, InputError, r"super_batch 49.*48 frames.*--super-batch 48"),
        ({"widths": (), "strides": (), "bottleneck": "spatial"}, InputError, "latent_dim 6.*multiple of 64"),
        ({"dataset_weights": (1.0, 2.0, 3.0)}, InputError, "weight"),
        ({"held_out": 3}, InputError, "held_out 3"),
        ({"device": "cuda:99"}, DeviceError, "cuda:99"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    frames_folder: Path, tmp_path: Path, change: dict[str, Any], error: type[Exception], named: str
):
    with pytest.raises(error, match=named):
        run(config_for(frames_folder, tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"batch_freeze": -1},
        {"half_beta_cycle": -1},
        {"seed": -1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"beta": -1.0},
        {"beta": float("inf")},
        {"super_batch": 10},
    ],
)
def test_settings_are_checked_by_name(change: dict[str, Any]):
    with pytest.raises(InputError, match=next(iter(change))):
        TrainConfig(**change)


@given(
    latent_dim=st.integers(1, 999),
    widths=st.lists(st.integers(1, 99), max_size=3).map(tuple),
    beta=st.floats(0, 1e9),
    learning_rate=st.floats(1e-9, 10),
    super_batch=st.none() | st.integers(128, 10**6),
    scale=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_settings_survive_json(
    latent_dim: int, widths: tuple[int, ...], beta: float, learning_rate: float, super_batch: int | None, scale: bool
):
    config = TrainConfig(
        Path("a/b"),
        Path("c"),
        latent_dim,
        widths=widths,
        beta=beta,
        learning_rate=learning_rate,
        super_batch=super_batch,
        scale_losses=scale,
    )
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
    "checkpoint_steps": (None, 100),
    "compile": ("auto", "on"),
}


def test_settings_of_earlier_versions_load_at_their_defaults(tmp_path: Path):
    config = TrainConfig(out=tmp_path, latent_dim=64)
    saved = {**config.to_json(), **{name: default for name, (default, _) in REMOVED.items()}}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert TrainConfig.load(tmp_path) == config
    assert set(TrainConfig.REMOVED) == set(REMOVED)


@pytest.mark.parametrize(("name", "value"), [(name, other) for name, (_, other) in REMOVED.items()])
def test_settings_of_earlier_versions_are_named_at_other_values(tmp_path: Path, name: str, value: Any):
    (tmp_path / "config.json").write_text(json.dumps({**TrainConfig(out=tmp_path).to_json(), name: value}))
    with pytest.raises(InputError, match=f"{name} is {value!r}"):
        TrainConfig.load(tmp_path)
