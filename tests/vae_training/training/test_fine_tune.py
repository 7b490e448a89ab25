"""Training that starts from an encoder: its weights and layers, and what is refused."""

import dataclasses
import shutil
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
from tests.support.training_runs import config_for, module_frames, run, same_run
from vae_training.training.config import TrainConfig
from vae_training.training.export import export_encoder
from vae_training.training.trainer import put_weights, with_layers_of


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {**load_file(folder / "encoder.safetensors"), **load_file(folder / "decoder.safetensors")}


def close(one: Path, other: Path) -> bool:
    a, b = tensors(one), tensors(other)
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


@pytest.fixture(scope="module")
def trained(module_frames: Path) -> Path:
    out = module_frames.parent / "trained"
    run(config_for(module_frames, out, standardize=True, linear_path=True, widths=(4, 6)))
    return out


@pytest.mark.parametrize("source", ["run", "encoder", "checkpoint"])
def test_it_begins_with_the_weights_and_layers(trained: Path, module_frames: Path, tmp_path: Path, source: str):
    start = trained if source == "run" else trained / "encoder"
    if source == "checkpoint":
        start = Path(shutil.copytree(trained, tmp_path / "trained"))
        (start / "encoder" / "decoder.safetensors").unlink()
        sums = [
            s
            for s in (start / "encoder" / "SHA256SUMS").read_text().splitlines()
            if not s.endswith("decoder.safetensors")
        ]
        (start / "encoder" / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    # The layers are not said again: latent size, widths, bottleneck, linear path and standardizing are the encoder's.
    given = TrainConfig(
        frames=module_frames,
        out=tmp_path / "out",
        start_from=start,
        epochs=1,
        batch_size=20,
        batch_freeze=0,
        device="cpu",
        tensorboard=False,
        salience=0.0,
        learning_rate=1e-12,
    )
    result = run(given)
    assert close(result.encoder, trained / "encoder")
    saved = TrainConfig.load(tmp_path / "out")
    assert (saved.latent_dim, saved.widths, saved.bottleneck, saved.linear_path) == (6, (4, 6), "dense", True)
    assert saved.start_from == start
    frames = np.load(module_frames / "0.npy")
    np.testing.assert_allclose(
        FrozenEncoder.load(result.encoder, device="cpu")(frames),
        FrozenEncoder.load(trained, device="cpu")(frames),
        atol=1e-4,
    )


def test_a_fine_tuning_is_resumed_without_its_source(trained: Path, module_frames: Path, tmp_path: Path):
    source = Path(shutil.copytree(trained, tmp_path / "source"))
    for name in ("whole", "parts"):
        config = dataclasses.replace(
            TrainConfig.load(trained), frames=module_frames, out=tmp_path / name, start_from=source, epochs=2
        )
        if name == "whole":
            run(config)
            continue
        run(dataclasses.replace(config, epochs=1))
        shutil.rmtree(source)
        run(config, resume=True)
    same_run(tmp_path / "whole", tmp_path / "parts")
    assert not close(tmp_path / "whole" / "encoder", trained / "encoder")


def test_other_layers_and_frames_are_refused(trained: Path, module_frames: Path, tmp_path: Path):
    given: dict[str, Any] = {"start_from": trained, "epochs": 1, "device": "cpu", "tensorboard": False}
    for changes, told in (
        ({"latent_dim": 9}, "latent_dim is 6 in"),
        ({"widths": (8, 8)}, r"widths is \(4, 6\) in"),
        ({"preset": "small"}, "leave --preset out"),
    ):
        with pytest.raises(InputError, match=told):
            run(TrainConfig(module_frames, tmp_path / "out", **{**given, **changes}))
        assert not (tmp_path / "out").exists()
    other = tmp_path / "other"
    other.mkdir()
    np.save(other / "a.npy", np.stack([picture(0, step, 32, 32) for step in range(24)]))
    with pytest.raises(InputError, match=r"an encoder of frames \(16, 16, 3\), and these are of \(32, 32, 3\)"):
        run(TrainConfig(other, tmp_path / "out", **given))
    with pytest.raises(EncoderFolderError, match="there is no encoder folder"):
        run(TrainConfig(module_frames, tmp_path / "out", **{**given, "start_from": tmp_path / "nowhere"}))
    bare = export_encoder(
        tmp_path / "bare" / "encoder", tiny_cvae(), np.zeros((2, *IMG_SHAPE), np.uint8), with_decoder=False
    )
    with pytest.raises(InputError, match=r"no decoder\.safetensors and no checkpoints"):
        put_weights(bare, tiny_cvae())
    with pytest.raises(InputError, match="other layers"):
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
    with pytest.raises(InputError, match="pixel contract of its own"):
        with_layers_of(TrainConfig(), cropped)


assert module_frames  # a fixture
