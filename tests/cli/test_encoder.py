"""`latent-obs encoder`: a network of timm as an encoder that report, compare and train-agent take like any other."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from agents.compare import Study, Task
from agents.compare.study import study_from
from agents.envs import fit_components, load_encoder
from latent_obs.encoder.folder import read_encoder_folder
from latent_obs.util.errors import EncoderFolderError, InputError
from latent_obs_cli.compare import prepare
from latent_obs_cli.main import main
from tests.support.agent_runs import train
from tests.support.side_env import SIDE, tiny
from tests.support.timm_weights import random_weights
from tests.support.tiny import picture
from vae_training.training.initialization import put_weights

for package in ("timm", "skimage", "sklearn", "matplotlib"):
    pytest.importorskip(package)

NAME = "test_resnet.r160_in1k"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights(NAME, tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four recordings of 80 frames, with what is known of each."""
    folder, rng = tmp_path_factory.mktemp("frames"), np.random.default_rng(0)
    for number in range(4):
        steps = rng.permutation(80) / 8
        np.save(folder / f"{number}.npy", np.stack([picture(number, step, 16, 16) for step in steps]))
        np.savez(folder / f"{number}.rows.npz", **{"state$STEP": steps.astype(np.float32), "first": np.arange(80) == 0})
    return folder


@pytest.fixture(scope="module")
def made(weights: Path, frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "resnet"
    words = ["--frames", frames, "--pca", 8, "--layer", 1, "--weights", weights, "--device", "cpu", "--out", out]
    assert main(["encoder", f"timm:{NAME}", *map(str, words)]) == 0
    return out


def test_the_encoder_knows_the_training_part_of_its_frames(
    made: Path, frames: Path, capsys: pytest.CaptureFixture[str]
):
    read = read_encoder_folder(made)
    assert [part["file"] for part in read.provenance["trained_on"]] == ["0.npy", "1.npy", "2.npy"]
    assert (read.provenance["frames"], read.latent_dim, read.contract.shape) == (240, 8, (16, 16, 3))
    assert main(["encoder", f"timm:{NAME}", "--frames", str(frames), "--out", str(made)]) == 2
    assert "exists" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["encoder", "resnet18", "--frames", str(frames), "--out", "x"])
    assert "timm:" in capsys.readouterr().err


def test_a_report_on_it(made: Path):
    assert main(["report", str(made), "--quick", "--device", "cpu"]) == 0
    found = json.loads((made / "report" / "report.json").read_text())
    page = (made / "report" / "report.html").read_text()
    assert found["frames"]["certainly_unseen"]
    assert [part["file"] for part in found["frames"]["held_out"]] == ["3.npy"]
    assert {result["representation"] for result in found["probes"]["results"]} == {"latent", "PCA"}
    assert found["latents"]["components"] == 8
    assert not any(grade["key"] == "information.nats" for grade in found["grades"])
    assert found["command"] is None
    assert f"timm:{NAME}" in page
    assert found["worth"] is None, "neither pictures nor known values could be measured"


def test_an_agent_on_it_and_the_baselines_of_its_size(made: Path, frames: Path, tmp_path: Path):
    train(tiny(encoder=made, out=tmp_path / "run"))
    copy = read_encoder_folder(tmp_path / "run" / "encoder")
    assert copy.checksums == read_encoder_folder(made).checksums
    with pytest.warns(UserWarning, match="instead of 8"):  # as many are asked for
        fit_components(frames, made)
    random = load_encoder(tiny(encoder=made, observation="random-latent"))
    assert random is not None
    assert random.contract.shape == (16, 16, 3)
    with pytest.raises(EncoderFolderError, match=NAME):
        put_weights(made, None)  # pyright: ignore[reportArgumentType]


def test_an_arm_of_a_study(weights: Path, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    values: dict[str, Any] = {
        "tasks": {"side": {"env": SIDE, "frames": str(frames)}},
        "arms": ["pixels", "resnet"],
        "arm_settings": {"resnet": {"observation": "latent", "encoder": f"timm:{NAME}"}},
        "timm": {"resnet": {"layer": 0, "pca": 4, "weights": weights.name, "device": "cpu"}},
    }
    study = study_from(values, weights.parent)
    made = prepare(study, tmp_path)
    config = made.config("side", "resnet", 0, Path("out"))
    folder = tmp_path / "prepared" / "side" / "timm-resnet" / "encoder"
    assert config.encoder == folder
    assert read_encoder_folder(folder).latent_dim == 4
    assert made.config("side", "pixels", 0, Path("out")).encoder is None
    assert study_from(made.to_json(), Path("/elsewhere")) == made

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr("latent_obs.encoder.pretrained.timm_encoder", fail)
    assert prepare(study, tmp_path) == made
    assert prepare(made, tmp_path) == made


@pytest.mark.parametrize(
    ("encoder", "timm", "named"),
    [
        ("timm:test_resnett", {}, "timm:test_resnet"),
        (f"timm:{NAME}", {"layers": 1}, r"timm\.resnet.*layers"),
        (f"timm:{NAME}", {"name": "x"}, r"timm\.resnet.*name"),
    ],
)
def test_mistakes_in_a_study_are_found_before_anything_is_made(
    tmp_path: Path, encoder: str, timm: dict[str, Any], named: str
):
    own = {"resnet": {"observation": "latent", "encoder": encoder}}
    study = Study({"t": Task(SIDE)}, ("latent", "resnet"), arm_settings=own, timm={"resnet": timm})
    with pytest.raises(InputError, match=named):
        prepare(study, tmp_path / "out")
    assert not (tmp_path / "out" / "prepared").exists()


def test_the_encoder_of_a_task_is_a_folder():
    with pytest.raises(InputError, match=r"tasks\.t\.encoder"):
        Study({"t": Task(SIDE, encoder=Path(f"timm:{NAME}"))}, ("latent",))
    with pytest.raises(InputError, match="an arm in timm"):
        Study({"t": Task(SIDE)}, ("pixels",), timm={"latent": {}})
