"""`latent-obs compare`: the study of its options, and what it makes by itself."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("stable_baselines3")

from agents.compare import Study, Task, load_study
from agents.compare.study import study_from
from latent_obs.encoder.folder import read_encoder_folder
from latent_obs.encoder.pca import PCA
from latent_obs.envs.factory import make_pixel_env
from latent_obs.util.errors import InputError
from latent_obs_cli.compare import CompareConfig, prepare, study_of
from tests.support import ROOT
from tests.support.side_env import SIDE


def test_the_study_of_one_environment():
    config = CompareConfig(
        env="here:Side-v0", encoder=Path("e"), frames=Path("f"), arms=("pixels", "latent"), seeds=(4,)
    )
    study = study_of(config)
    assert study.tasks == {"Side-v0": Task("here:Side-v0", encoder=Path("e"), frames=Path("f"))}
    assert (study.arms, study.seeds, study.steps, study.settings) == (("pixels", "latent"), (4,), 150_000, {})
    study = study_of(CompareConfig(steps=10, episodes=9, frame_skip=4, latent_only=True))
    assert (study.steps, study.episodes, study.settings) == (10, 9, {"frame_skip": 4, "latent_only": True})


def test_the_study_of_the_benchmarks_is_valid(encoder_folder: Path):
    study = load_study(ROOT / "benchmarks" / "study.toml")
    config = study.config("take-cover", "pixels", 0, Path("out"))
    assert (len(study.tasks), config.net_arch, config.history, config.steps) == (5, (64, 64), 3, 150_000)
    assert study.observation("pca-motion") == "pca-latent"


def test_what_is_missing_is_made_once_and_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Frames, encoder and principal components of a task that names none; an interrupted stage goes on."""
    sizes: dict[str, Any] = {"widths": [4, 8], "latent_dim": 16, "epochs": 1, "batch_size": 8}
    study = Study(
        {"a b": Task(SIDE)},
        ("pixels", "latent", "pca-latent", "moving"),
        arm_settings={"moving": {"observation": "pca-latent"}},
        motion={"moving": 3},
        settings={"env_kwargs": {"length": 5}},
        record={"frames": 60, "frames_per_file": 20, "size": 16},
        vae={"device": "cpu", **sizes},
    )
    folder = tmp_path / "prepared" / "a-b"

    def interrupted(*args: Any, **settings: Any) -> Any:
        signal.raise_signal(signal.SIGINT)  # Ctrl-C before there is a frame
        return make_pixel_env(*args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr("vae_training.recording.recorder.make_pixel_env", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(study, tmp_path)
    before = json.loads((folder / "seconds.json").read_text())["frames"]
    made = prepare(study, tmp_path).tasks["a b"]
    stages = json.loads((folder / "seconds.json").read_text())
    assert (before["finished"], stages["frames"]["finished"]) == (False, True)
    assert stages["frames"]["seconds"] > before["seconds"] > 0
    assert made.encoder_seconds == pytest.approx(stages["frames"]["seconds"] + stages["encoder"]["seconds"])
    assert made.encoder is not None
    assert made.pca is not None
    assert made.encoder.is_relative_to(folder)
    read = read_encoder_folder(made.encoder)
    assert (read.contract.shape, PCA.load(made.pca).contract) == ((16, 16, 3), read.contract)
    assert PCA.load(made.pca).latent_dim <= 16
    moving = made.arms["moving"]["pca"]
    assert (PCA.load(moving).provenance["motion"], PCA.load(made.pca).provenance.get("motion")) == (3, None)
    whole = study_from(Study({"a b": made}, study.arms, arm_settings=study.arm_settings).to_json(), tmp_path)
    seen = {arm: whole.config("a b", arm, 0, Path("out")).pca for arm in ("pca-latent", "moving", "latent")}
    assert seen == {"pca-latent": made.pca, "moving": moving, "latent": None}

    changed = {file: file.stat().st_mtime_ns for file in (made.encoder / "encoder.safetensors", made.pca, moving)}
    assert prepare(study, tmp_path).tasks["a b"] == made
    assert {file: file.stat().st_mtime_ns for file in changed} == changed


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        ({"vae": {"epoch": 3}}, "vae.*epoch"),
        ({"vae": {"out": "x"}}, "vae.*out"),
        ({"vae": {"latent_dim": 2}, "motion": {"pca-latent": 3}}, "motion.*latent_dim"),
        ({"record": {"frame": 3}}, "record.*frame"),
    ],
)
def test_settings_of_a_stage_are_checked(tmp_path: Path, tables: dict[str, Any], named: str):
    task = Task(SIDE, frames=tmp_path if "vae" in tables else None)
    with pytest.raises(InputError, match=named):
        prepare(Study({"a": task}, ("pixels", "latent", "pca-latent"), **tables), tmp_path / "o")


def test_nothing_is_made_that_nothing_needs(tmp_path: Path, encoder_folder: Path):
    own = {"own": {"observation": "latent", "encoder": encoder_folder}}
    for study in (
        Study({"t": Task("Side-v0")}, ("pixels", "random-latent")),
        Study({"t": Task("Side-v0")}, ("own",), arm_settings=own),
        Study({"t": Task("Side-v0", encoder=encoder_folder, pca=tmp_path / "p")}),
    ):
        assert prepare(study, tmp_path / "out") == study
    assert not (tmp_path / "out").exists()
