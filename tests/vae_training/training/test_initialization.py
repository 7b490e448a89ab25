"""Weights begin as what is measured on the frames, or as those of an encoder; and which encoders are refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from latent_obs.encoder.folder import read_encoder_folder, write_encoder_folder
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.pixels import PixelContract
from latent_obs.util.errors import EncoderFolderError, InputError
from tests.support.tiny import IMG_SHAPE, picture, tiny_cvae
from tests.support.training_runs import EVERYTHING, config_for, module_frames, run, same_run
from vae_training.data.frames import get_datasets
from vae_training.training.config import TrainConfig
from vae_training.training.export import export_encoder
from vae_training.training.initialization import put_weights, start_from_data, with_layers_of


def begun(frames: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """The weights before the first step."""
    config, model = config_for(frames, Path("out"), **settings), tiny_cvae(components=2)
    torch.manual_seed(np.random.default_rng().integers(1000))  # what was drawn before does not matter
    start_from_data(config, model, get_datasets(frames))
    return model.state_dict()


def test_what_is_measured_is_a_function_of_frames_and_seed(module_frames: Path):
    one, two = (begun(module_frames, **EVERYTHING) for _ in range(2))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert one["decoder.standard.mean"].mean() > 0.3
    assert (one["encoder.standard.basis"].norm(dim=1) > 0.5).all()


def close(one: Path, other: Path) -> bool:
    files = ("encoder.safetensors", "decoder.safetensors")
    a, b = ({k: v for name in files for k, v in load_file(folder / name).items()} for folder in (one, other))
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


@pytest.fixture(scope="module")
def trained(module_frames: Path) -> Path:
    out = module_frames.parent / "trained"
    run(config_for(module_frames, out, components=2, widths=(4, 6)))
    return out


@pytest.mark.parametrize("source", ["run", "encoder", "checkpoint"])
def test_training_starts_with_the_weights_and_layers(trained: Path, module_frames: Path, tmp_path: Path, source: str):
    start = trained if source == "run" else trained / "encoder"
    if source == "checkpoint":
        start = Path(shutil.copytree(trained, tmp_path / "trained"))
        (start / "encoder" / "decoder.safetensors").unlink()
        sums = (start / "encoder" / "SHA256SUMS").read_text().splitlines(keepends=True)
        (start / "encoder" / "SHA256SUMS").write_text("".join(s for s in sums if "decoder" not in s))
    # Layers that are not given are those of the encoder.
    given: dict[str, Any] = {"epochs": 1, "batch_size": 20, "learning_rate": 1e-12, "device": "cpu"}
    result = run(TrainConfig(module_frames, tmp_path / "out", start_from=start, **given))
    assert close(result.encoder, trained / "encoder")
    saved = TrainConfig.load(tmp_path / "out")
    assert (saved.latent_dim, saved.widths, saved.bottleneck, saved.components) == (6, (4, 6), "dense", 2)
    assert saved.start_from == start
    frames = np.load(module_frames / "0.npy")
    one, other = (FrozenEncoder.load(folder, device="cpu")(frames) for folder in (result.encoder, trained))
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_fine_tuning_is_resumed_without_its_source(trained: Path, module_frames: Path, tmp_path: Path):
    source = Path(shutil.copytree(trained, tmp_path / "source"))
    config = replace(TrainConfig.load(trained), frames=module_frames, start_from=source, epochs=2)
    run(replace(config, out=tmp_path / "whole"))
    run(replace(config, out=tmp_path / "parts", epochs=1))
    shutil.rmtree(source)
    run(replace(config, out=tmp_path / "parts"), resume=True)
    same_run(tmp_path / "whole", tmp_path / "parts")
    assert not close(tmp_path / "whole" / "encoder", trained / "encoder")


def test_other_layers_and_frames_are_refused(trained: Path, module_frames: Path, tmp_path: Path):
    other, out = tmp_path / "other", tmp_path / "out"
    other.mkdir()
    np.save(other / "a.npy", np.stack([picture(0, step, 32, 32) for step in range(24)]))
    for frames, changes, error, named in (
        (module_frames, {"latent_dim": 9}, InputError, "latent_dim"),
        (module_frames, {"widths": (8, 8)}, InputError, "widths"),
        (module_frames, {"start_from": tmp_path / "nowhere"}, EncoderFolderError, "nowhere"),
        (other, {}, InputError, "start_from"),
    ):
        with pytest.raises(error, match=named):
            run(TrainConfig(frames, out, **{"start_from": trained, "epochs": 1, "device": "cpu", **changes}))
        assert not out.exists()


def test_encoders_that_cannot_be_started_from_are_refused(trained: Path, tmp_path: Path):
    sample = np.zeros((2, *IMG_SHAPE), np.uint8)
    bare = export_encoder(tmp_path / "bare" / "encoder", tiny_cvae(), sample, with_decoder=False)
    with pytest.raises(InputError, match="decoder"):
        put_weights(bare, tiny_cvae())
    with pytest.raises(InputError, match="layers"):
        put_weights(trained, tiny_cvae())
    read = read_encoder_folder(trained)
    cropped = write_encoder_folder(
        tmp_path / "cropped",
        architecture=read.architecture,
        contract=PixelContract(16, 16, 3, crop="center-square"),
        encoder=read.encoder,
        selfcheck=read.selfcheck,
        decoder=read.decoder(),
    )
    with pytest.raises(InputError, match="pixel contract"):
        with_layers_of(TrainConfig(), cropped)


@pytest.mark.parametrize(
    ("recorded", "given", "expected"),
    [
        (lambda names: {"files": dict.fromkeys(names)}, {}, 0.3),
        (lambda names: {"files": dict.fromkeys(names[1:])}, {}, 0.5),  # a demonstration was put beside them
        (lambda names: {"files": None}, {}, 0.5),
        (lambda _: None, {}, 0.5),
        (lambda names: {"files": dict.fromkeys(names)}, {"augment": 0.7}, 0.7),
    ],
)
def test_demonstrations_are_augmented_more_than_frames_that_were_recorded_in_the_environment(
    module_frames: Path, tmp_path: Path, recorded: Callable[[list[str]], Any], given: dict[str, Any], expected: float
):
    frames = Path(shutil.copytree(module_frames, tmp_path / "frames"))
    (frames / "recording.json").write_text(json.dumps(recorded(sorted(file.name for file in frames.glob("*.npy")))))
    constant = {"learning_rate_schedule": "constant", "augment": None}
    run(config_for(frames, tmp_path / "out", **{**constant, **given}))
    assert TrainConfig.load(tmp_path / "out").augment == expected
    (frames / "recording.json").unlink()  # it is chosen once
    run(config_for(frames, tmp_path / "out", **constant, epochs=3), resume=True)
    assert TrainConfig.load(tmp_path / "out").augment == expected
