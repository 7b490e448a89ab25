"""`latent-obs compare`: its options, what it makes by itself, and how it ends."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("rliable.metrics")

from agents.compare import Study, Task
from agents.compare import statistics as intervals
from agents.compare.runs import plan_runs
from latent_obs.encoder.folder import read_encoder_folder
from latent_obs.encoder.pca import read_pca
from latent_obs.util.atomic import write_json
from latent_obs.util.errors import InputError
from latent_obs_cli.compare import prepare
from latent_obs_cli.main import main
from tests.support.compare_cases import results_of
from tests.support.side_env import SIDE

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    """Run `latent-obs compare`; its exit status, and what it wrote."""

    def run(*words: str) -> tuple[int, str, str]:
        try:
            code = main(["compare", *words])
        except SystemExit as error:
            code = int(error.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A folder with the numbers of a study whose last run is missing."""
    results = results_of({"t": {"pixels": [1, 2, 3], "random-latent": [5, 6, 7]}})
    out = tmp_path / "out"
    for run in plan_runs(results.study, out)[:-1]:
        values = {"final": {"returns": [0.0, 0.0]}} if run.kind == "random" else results.runs["t"][run.arm][run.seed]
        write_json(run.file(".json"), values | {"settings": run.signature()})
    write_json(out / "study.json", results.study.to_json())
    return out


def test_a_page_of_what_is_finished(call: Call, finished: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 100)
    code, out, err = call("--page-only", "--out", str(finished))
    assert (code, err) == (0, "")
    assert "random-latent: at equal steps not below pixels on 1 of 1 task (above on 1)" in out
    assert "1 run(s) have no numbers" in out
    page = (finished / "compare.html").read_text()
    assert "t, random-latent, seed 2" in page
    assert json.loads((finished / "compare.json").read_text())["summary"]["tasks"]["t"]["arms"]["pixels"]["seeds"] == [
        0,
        1,
        2,
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--page-only"], "holds no comparison"),
        (["--page-only", "--study", "s.toml"], "reads no --study s.toml: leave one out"),
        (["--seed", "3"], "--seeds"),
        (["--observation", "pixels"], "--arms"),
        (["--study", "no.toml"], "there is no study no.toml"),
        (["--study", "no.toml", "--frame-skip", "4"], "leave out frame_skip"),
        (["--study", "no.toml", "--seeds", "3"], "leave out --arms, --seeds"),
        (["--arms", "pixel"], "arm 'pixel': expected one of"),
        (["--arms", "pixels", "--jobs", "0"], "jobs must be 1 or more"),
        (["--arms", "pixels", "--gamma", "7"], "gamma must be"),
    ],
)
def test_mistakes_are_one_line(call: Call, tmp_path: Path, words: list[str], says: str):
    code, _, err = call("--out", str(tmp_path / "out"), *words)
    assert code not in (0, 1)
    assert says in err
    assert "Traceback" not in err


def test_help_tells_of_the_study_file(call: Call):
    code, out, _ = call("--help")
    assert code == 0
    for word in ("--study", "--seeds", "--arms", "--jobs", "--page-only", "--frame-skip"):
        assert word in out


def test_what_is_missing_is_made_once_and_noted(tmp_path: Path):
    """Frames, encoder and principal components of a task that names none, by the study's own settings of these
    stages."""
    small: dict[str, Any] = {
        "widths": [4, 8],
        "latent_dim": 16,
        "epochs": 2,
        "batch_size": 8,
        "device": "cpu",
    }
    study = Study(
        {"a b": Task(SIDE)},
        ("pixels", "latent", "pca-latent"),
        settings={"env_kwargs": {"length": 5}},
        record={"frames": 60, "frames_per_file": 20, "size": 16},
        vae=small,
    )
    said: list[str] = []
    made = prepare(study, tmp_path, say=said.append).tasks["a b"]
    assert made.encoder is not None
    assert made.pca is not None
    assert made.encoder.is_relative_to(tmp_path / "prepared" / "a-b")
    read = read_encoder_folder(made.encoder)
    assert (read.contract.shape, read_pca(made.pca).contract) == ((16, 16, 3), read.contract)
    assert read_pca(made.pca).latent_dim <= 16
    assert json.loads((tmp_path / "prepared" / "a-b" / "frames" / "recording.json").read_text())
    stages = json.loads((tmp_path / "prepared" / "a-b" / "seconds.json").read_text())
    assert made.encoder_seconds == pytest.approx(stages["frames"]["seconds"] + stages["encoder"]["seconds"])
    assert stages["encoder"]["seconds"] > 0
    assert len(said) == 4

    changed = {file: file.stat().st_mtime_ns for file in (made.encoder / "encoder.safetensors", made.pca)}
    assert prepare(study, tmp_path, say=said.append).tasks["a b"] == made
    assert {file: file.stat().st_mtime_ns for file in changed} == changed
    assert len(said) == 5, "only how long the encoder took"


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"vae": {"epoch": 3}}, r"\[vae\] has 'epoch': there is none of that name.*epochs"),
        ({"vae": {"out": "x"}}, r"\[vae\] has 'out': is decided by the study"),
        ({"record": {"frame": 3}}, r"\[record\] has 'frame'"),
    ],
)
def test_settings_of_a_stage_that_there_are_not(tmp_path: Path, tables: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        prepare(
            Study({"a": Task(SIDE, frames=tmp_path if "vae" in tables else None)}, ("pixels", "latent"), **tables),
            tmp_path / "o",
        )


def test_nothing_is_made_that_nothing_needs(tmp_path: Path, encoder_folder: Path):
    own = {"own": {"observation": "latent", "encoder": encoder_folder}}
    for study in (
        Study({"t": Task("Side-v0")}, ("pixels", "random-latent")),
        Study({"t": Task("Side-v0")}, ("own",), arm_settings=own),
        Study({"t": Task("Side-v0", encoder=encoder_folder, pca=tmp_path / "p")}),
    ):
        assert prepare(study, tmp_path / "out") == study
    assert not (tmp_path / "out").exists()
