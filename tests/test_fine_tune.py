"""Training that starts from an encoder: its weights and layers, old and new frames by links, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import IMG_SHAPE, picture, tiny_cvae
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from training_runs import config_for, module_frames, run, same_run

from latent_obs.errors import EncoderFolderError, InputError
from latent_obs.folder import read_encoder_folder, write_encoder_folder
from latent_obs.frozen import FrozenEncoder
from latent_obs.pixels import PixelContract
from vae_training.config import TrainConfig
from vae_training.datasets import get_datasets
from vae_training.export import export_encoder
from vae_training.export_aligned import export_aligned, frames_of, picture_error
from vae_training.fine_tune import check_can_start_from, fine_tune_settings, mix_frames, put_weights, settings_of
from vae_training.rows import rows_file_of, save_rows
from vae_training.split import split_held_out
from vae_training.transitions import Transitions


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {**load_file(folder / "encoder.safetensors"), **load_file(folder / "decoder.safetensors")}


def close(one: Path, other: Path) -> bool:
    a, b = tensors(one), tensors(other)
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


@pytest.fixture(scope="module")
def trained(module_frames: Path) -> Path:
    out = module_frames.parent / "trained"
    run(config_for(module_frames, out, standardise=True, linear_path=True, widths=(4, 6)))
    return out


@pytest.mark.parametrize("source", ["run", "encoder", "checkpoint"])
def test_it_begins_with_the_weights_and_layers(trained: Path, module_frames: Path, tmp_path: Path, source: str):
    start = trained if source == "run" else trained / "encoder"
    if source == "checkpoint":
        start = Path(shutil.copytree(trained, tmp_path / "trained"))
        (start / "encoder" / "decoder.safetensors").unlink()
        sums = [s for s in (start / "encoder" / "SHA256SUMS").read_text().splitlines() if not s.endswith("decoder.safetensors")]
        (start / "encoder" / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    check_can_start_from(start)
    # The layers are not said again: latent size, widths, bottleneck, linear path and standardising are the encoder's.
    given = TrainConfig(
        frames=module_frames, out=tmp_path / "out", start_from=start, epochs=1, batch_size=20, batch_freeze=0, device="cpu",
        tensorboard=False, salience=0.0, learning_rate=1e-12,
    )  # fmt: skip
    result = run(given)
    assert close(result.encoder, trained / "encoder")
    saved = TrainConfig.load(tmp_path / "out")
    assert (saved.latent_dim, saved.widths, saved.bottleneck, saved.linear_path) == (6, (4, 6), "dense", True)
    assert saved.start_from == start
    frames = np.load(module_frames / "0.npy")
    np.testing.assert_allclose(
        FrozenEncoder.load(result.encoder, device="cpu")(frames), FrozenEncoder.load(trained, device="cpu")(frames), atol=1e-4
    )


def test_a_fine_tuning_is_resumed_without_its_source(trained: Path, module_frames: Path, tmp_path: Path):
    source = Path(shutil.copytree(trained, tmp_path / "source"))
    for name in ("whole", "parts"):
        config = dataclasses.replace(
            settings_of(read_encoder_folder(trained)), frames=module_frames, out=tmp_path / name, start_from=source, epochs=2
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
    bare = export_encoder(tmp_path / "bare" / "encoder", tiny_cvae(), np.zeros((2, *IMG_SHAPE), np.uint8), with_decoder=False)
    with pytest.raises(InputError, match=r"no decoder\.safetensors and no checkpoints"):
        check_can_start_from(bare)
    with pytest.raises(InputError, match="other layers"):
        put_weights(trained, tiny_cvae())
    read = read_encoder_folder(trained)
    cropped = write_encoder_folder(
        tmp_path / "cropped", architecture=read.architecture, contract=PixelContract(16, 16, 3, crop="centre-square"),
        encoder=read.encoder, selfcheck=read.selfcheck, decoder=read.decoder(),
    )  # fmt: skip
    with pytest.raises(InputError, match="pixel contract of its own"):
        check_can_start_from(cropped)


def test_settings_come_from_the_encoder(trained: Path, encoder_folder: Path):
    assert settings_of(read_encoder_folder(trained)) == TrainConfig.load(trained)
    plain = settings_of(read_encoder_folder(encoder_folder))  # it tells none
    assert (plain.latent_dim, plain.widths, plain.bottleneck, plain.salience) == (6, (4, 8), "dense", 1.0)


def recordings(folder: Path, names: list[str], frames: int = 12) -> list[Path]:
    folder.mkdir(parents=True)
    for i, name in enumerate(names):
        np.save(folder / name, np.stack([picture(i, step, 16, 16) for step in range(frames)]))
    return [folder / name for name in names]


def test_frames_are_mixed_by_links(tmp_path: Path, trained: Path):
    old = recordings(tmp_path / "old", ["b.npy", "a.npy", "held.npy"])
    new = recordings(tmp_path / "new", ["0.npy", "z.npy", "1.npy"])
    acted = np.arange(12) < 11
    save_rows(rows_file_of(new[0]), {"action": np.arange(12) % 2, "reward": np.ones(12, np.float32), "acted": acted})
    mixed = mix_frames(tmp_path / "mixed", old[:2], new[:2], [old[2], new[2]], new_share=0.75)
    assert all(link.is_symlink() for link in mixed.folder.iterdir())
    training, held_out = split_held_out(get_datasets(mixed.folder), mixed.held_out)
    assert [Path(str(d.filename)).name for d in training] == ["b.npy", "a.npy", "0.npy", "z.npy"]  # pyright: ignore[reportAttributeAccessIssue]
    assert [Path(str(d.filename)).name for d in held_out] == ["held.npy", "1.npy"]  # pyright: ignore[reportAttributeAccessIssue]
    assert mixed.weights == (0.125, 0.125, 0.375, 0.375)
    following = list(Transitions([training[2]], acts=True).column("action"))
    np.testing.assert_array_equal(following[0], (np.arange(12) % 2)[:11])  # the rows beside the file that is linked
    assert mix_frames(tmp_path / "mixed", old[:2], new[:2], [old[2], new[2]], new_share=0.75) == mixed, "again: the same"
    alone = mix_frames(tmp_path / "alone", old[:2], new[:2], [new[2]], new_share=1.0)
    assert len(list(alone.folder.iterdir())) == 3
    result = run(
        fine_tune_settings(settings_of(read_encoder_folder(trained)), mixed, trained, tmp_path / "run", epochs=1, device="cpu")
    )
    shares = json.loads((tmp_path / "run" / "config.json").read_text())
    assert shares["learning_rate"] == TrainConfig.load(trained).learning_rate / 4
    assert shares["schedule"] == "constant"
    assert result.steps > 0


@given(old=st.integers(0, 5), new=st.integers(1, 5), share=st.floats(0.05, 0.95))
@settings(max_examples=10, deadline=None)
def test_shares_add_up(tmp_path_factory: pytest.TempPathFactory, old: int, new: int, share: float):
    folder = tmp_path_factory.mktemp("mixed")
    files = [Path(f"/nowhere/{i}.npy") for i in range(old + new + 1)]
    mixed = mix_frames(folder / "mixed", files[:old], files[old:-1], files[-1:], new_share=share)
    if old:
        assert len(mixed.weights) == old + new
        assert sum(mixed.weights) == pytest.approx(1)
        assert sum(mixed.weights[old:]) == pytest.approx(share)
    else:
        assert mixed.weights == ()


def test_frames_that_cannot_be_mixed(tmp_path: Path):
    a, b, c = (Path(f"/x/{name}.npy") for name in "abc")
    for old, new, held_out, share, told in (
        ([a], [], [b], 0.5, "0 new"),
        ([a], [b], [], 0.5, "0 held out"),
        ([a], [Path("/y/a.npy")], [c], 0.5, r"twice: \['a.npy'\]"),
        ([a], [b], [c], 1.5, "must be above 0"),
    ):
        with pytest.raises(InputError, match=told):
            mix_frames(tmp_path / "mixed", old, new, held_out, new_share=share)
        assert not (tmp_path / "mixed").exists()


def test_an_aligned_encoder_says_where_it_came_from(trained: Path, module_frames: Path, tmp_path: Path):
    config = config_for(
        module_frames, tmp_path / "tuned", standardise=True, linear_path=True, widths=(4, 6), start_from=trained
    )
    run(config)
    datasets = get_datasets(module_frames)
    quality = export_aligned(tmp_path / "aligned", tmp_path / "tuned", trained / "encoder", [datasets[:2]], datasets[2:],
                             provenance={"note": "mine"})  # fmt: skip
    read = read_encoder_folder(tmp_path / "aligned")
    assert read.provenance["note"] == "mine"
    assert read.provenance["settings"]["start_from"] == str(trained)
    told = read.provenance["aligned_to"]
    assert (told["frames"], told["held_out_frames"], told["ridge"]) == (48, 24, 1e-3)
    assert told["median_after"] == quality.to_json()["median_after"]
    assert np.nanmedian(quality.after) > np.nanmedian(quality.before)
    assert picture_error(tmp_path / "aligned", datasets) == pytest.approx(picture_error(tmp_path / "tuned", datasets), rel=0.02)
    other = export_encoder(tmp_path / "other", tiny_cvae(), np.zeros((2, *IMG_SHAPE), np.uint8))
    with pytest.raises(InputError, match="other layers"):
        export_aligned(tmp_path / "no", other, trained / "encoder", [datasets[:2]], datasets[2:])
    assert not (tmp_path / "no").exists()
    assert len(frames_of(datasets, 7)) == 7


assert module_frames  # a fixture
