"""Metrics of train-vae and train-agent at wandb, offline by the real package: all of them, in one run after resume."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("wandb")

from latent_obs.util.atomic import is_unused
from latent_obs.util.errors import InputError, MissingExtraError
from latent_obs.util.tracking import Tracker
from tests.support.agent_runs import train
from tests.support.side_env import tiny
from tests.support.training_runs import config_for, run
from vae_training.training.logs import read_log


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    wandb.teardown()  # it reads the variables once in a process
    for name, value in (("MODE", "offline"), ("DIR", str(tmp_path)), ("SILENT", "true"), ("PROJECT", "tests")):
        monkeypatch.setenv(f"WANDB_{name}", value)


def sent(folder: Path) -> dict[str, bytes]:
    """What is to be sent of each attempt, by the file's name."""
    return {str(file): file.read_bytes() for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"))}


def test_a_training_of_the_vae_and_its_resumption(frames_folder: Path, tmp_path: Path):
    config = config_for(frames_folder, tmp_path / "vae", epochs=1, log="wandb")
    run(config)
    (first,) = sent(tmp_path).values()
    rows = read_log(config.out)
    assert rows
    for name, value in rows[-1].items():
        assert name == "step" or (name.encode() in first and json.dumps(value).encode() in first)
    run(config_for(frames_folder, config.out, epochs=2), resume=True)
    files = sent(tmp_path)
    name = (config.out / "log_name").read_text()
    assert [Path(file).name for file in files] == 2 * [f"run-{name}.wandb"]
    assert name.startswith("vae-")


def test_a_training_of_an_agent(encoder_folder: Path, tmp_path: Path):
    config = tiny(encoder=encoder_folder, out=tmp_path / "agent", log="wandb")
    train(config)
    (data,) = sent(tmp_path).values()
    for name in (b"eval/mean_return", b"train/loss", b"rollout/ep_rew_mean"):
        assert name in data
    assert b"time/iterations" not in data


@pytest.mark.parametrize("service", ["wandb", "trackio"])
def test_a_service_that_cannot_be_used_leaves_no_run(
    frames_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: Any
):
    error: type[Exception] = MissingExtraError
    if service == "wandb":
        error = InputError
        monkeypatch.setattr("wandb.init", lambda **_: 1 / 0)
    else:
        monkeypatch.setitem(sys.modules, "trackio", None)
    runs: list[tuple[Any, Any]] = [
        (run, config_for(frames_folder, tmp_path / "vae", log=service)),
        (train, tiny(observation="pixels", out=tmp_path / "agent", log=service)),
    ]
    for start, config in runs:
        with pytest.raises(error, match=service):
            start(config)
        assert is_unused(config.out)


def test_a_run_folder_of_any_name_can_log(tmp_path: Path):
    folder = tmp_path / "lr=1e-3: a#b, c's"
    folder.mkdir()
    with Tracker("wandb", folder, {}) as tracker:
        tracker.log({"loss": 1.0}, 1)
    assert (folder / "log_name").read_text().startswith("lr-1e-3--a-b--c-s-")


@pytest.mark.parametrize(
    ("why", "hint"), [("No API key configured. Use `wandb login`", True), ("no such project", False)]
)
def test_only_who_cannot_log_in_is_shown_the_way_without_an_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str, hint: bool
):
    def init(**_: object) -> None:
        raise RuntimeError(why)

    monkeypatch.setattr("wandb.init", init)
    with pytest.raises(InputError) as error:
        Tracker("wandb", tmp_path, {})
    assert ("WANDB_MODE" in str(error.value)) == hint


def test_a_run_killed_before_its_settings_were_written_begins_again(frames_folder: Path, tmp_path: Path):
    runs: list[tuple[Any, Any]] = [
        (run, config_for(frames_folder, tmp_path / "vae", epochs=1, log="wandb")),
        (train, tiny(observation="pixels", out=tmp_path / "agent", log="wandb")),
    ]
    for start, config in runs:
        config.out.mkdir()
        (config.out / "log_name").write_text(f"{config.out.name}-killed")
        start(config)
        assert (config.out / "log_name").read_text() == f"{config.out.name}-killed"
