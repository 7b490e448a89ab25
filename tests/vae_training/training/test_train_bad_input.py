"""train(): frames that changed since, frames that teach nothing, and a disk that is full."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import InputError
from tests.support.tiny import picture, tiny_cvae
from tests.support.training_runs import config_for, module_frames, run, same_run, same_tensors
from vae_training.data.frames import get_datasets, identify
from vae_training.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from vae_training.training.config import TrainConfig
from vae_training.training.trainer import train

MORE: dict[str, Any] = {"epochs": 2}


@pytest.fixture
def begun(frames_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    run(config_for(frames_folder, tmp_path / "out", epochs=1))
    return frames_folder, tmp_path / "out"


def test_a_fingerprint_sees_what_was_made_anew_anywhere(tmp_path: Path):
    frames = np.random.default_rng(0).integers(0, 256, (400, 64, 64, 3), np.uint8)
    seen: set[str] = set()
    for number, (start, end) in enumerate([(0, 0), (0, 1), (399, 400), *((n, n + 25) for n in range(25, 375, 25))]):
        changed = frames.copy()
        changed[start:end] ^= 255
        folder = tmp_path / str(number)
        folder.mkdir()
        np.save(folder / "a.npy", changed)
        seen.add(identify(get_datasets(folder), [])["training"][0]["fingerprint"])
    assert len(seen) == 3 + 14  # each of them another one
    np.save(tmp_path / "0" / "a.npy", frames)
    assert (
        identify(get_datasets(tmp_path / "0"), [])["training"][0]["fingerprint"] in seen
    )  # the same frames, the same one


def test_changed_frames_are_refused(begun: tuple[Path, Path]):
    frames, out = begun
    before = {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}
    file = frames / "recording_1.npy"
    array = np.load(file)
    array[12] ^= 1
    np.save(file, array)
    with pytest.raises(InputError, match=r"recording_1\.npy in .* changed since"):
        run(TrainConfig(out=out, **MORE), resume=True)
    assert {f: f.read_bytes() for f in out.rglob("*") if f.is_file()} == before


def test_missing_frames_are_refused(begun: tuple[Path, Path]):
    (begun[0] / "recording_0.npy").unlink()
    with pytest.raises(InputError, match=r"trained on recording_0\.npy, not in"):
        run(TrainConfig(out=begun[1], **MORE), resume=True)


def test_other_frames_of_the_same_names_are_refused_and_a_moved_folder_is_not(begun: tuple[Path, Path], tmp_path: Path):
    frames, out = begun
    for name in ("moved", "other"):
        shutil.copytree(frames, tmp_path / name)
    for file in (tmp_path / "other").iterdir():
        np.save(file, 255 - np.load(file))
    with pytest.raises(InputError, match="changed since"):
        run(TrainConfig(frames=tmp_path / "other", out=out, **MORE), resume=True)
    run(TrainConfig(frames=tmp_path / "moved", out=out, **MORE), resume=True)
    run(config_for(frames, tmp_path / "whole"))
    same_run(out, tmp_path / "whole")


def test_added_frames_need_leave_and_what_was_held_out_stays_so(begun: tuple[Path, Path]):
    frames, out = begun
    np.save(frames / "recording_9.npy", np.stack([picture(9, step, 16, 16) for step in range(24)]))
    with pytest.raises(InputError, match=r"recording_9\.npy came to .*--allow-added-files"):
        run(TrainConfig(out=out, **MORE), resume=True)
    run(TrainConfig(out=out, allow_added_files=True, **MORE), resume=True)
    about = FrozenEncoder.load(out, device="cpu").provenance
    assert [f["file"] for f in about["trained_on"]] == ["recording_0.npy", "recording_1.npy", "recording_9.npy"]
    run(TrainConfig(out=out, epochs=3), resume=True)  # now they belong to it


def test_a_single_recording_keeps_its_split(tmp_path: Path):
    (tmp_path / "frames").mkdir()
    np.save(tmp_path / "frames" / "one.npy", np.stack([picture(0, step, 16, 16) for step in range(200)]))
    said: list[str] = []
    for name, epochs in (("whole", [2]), ("parts", [1, 2])):
        for i, last in enumerate(epochs):
            config = config_for(tmp_path / "frames", tmp_path / name, epochs=last)
            train(config, resume=i > 0, progress_bar=False, say=said.append)
    same_run(tmp_path / "whole", tmp_path / "parts")
    assert (
        sum("one recording only: its last 20 frames are held out, and the 2 before them" in text for text in said) == 3
    )


def test_frames_that_are_all_equal_are_refused(tmp_path: Path):
    (tmp_path / "frames").mkdir()
    for number in range(3):
        np.save(tmp_path / "frames" / f"{number}.npy", np.full((300, 16, 16, 3), 7, np.uint8))
    with pytest.raises(InputError, match=r"all 600 frames to train on .* are the same picture"):
        run(config_for(tmp_path / "frames", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    odd = np.full((300, 16, 16, 3), 7, np.uint8)
    odd[271, 3, 3, 0] = 8  # one value of one frame, that a sample would miss
    np.save(tmp_path / "frames" / "1.npy", odd)
    run(config_for(tmp_path / "frames", tmp_path / "out", epochs=1))


def test_fewer_frames_than_a_batch_are_told(module_frames: Path, tmp_path: Path):
    said: list[str] = []
    train(config_for(module_frames, tmp_path / "out", batch_size=128, epochs=1), progress_bar=False, say=said.append)
    assert any("48 frames, fewer than a batch of 128" in text and "--batch-size (such as 6)" in text for text in said)


def test_another_architecture_in_the_checkpoint_is_refused(module_frames: Path, tmp_path: Path):
    out = tmp_path / "out"
    run(config_for(module_frames, out, epochs=1))
    settings = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**settings, "widths": [4, 12]}))
    with pytest.raises(InputError, match=r"latest\.safetensors does not fit this run's architecture"):
        run(TrainConfig(out=out, **MORE), resume=True)


def test_a_checkpoint_without_its_average_is_refused(module_frames: Path, tmp_path: Path):
    out = tmp_path / "out"
    run(config_for(module_frames, out, epochs=1))
    settings = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**settings, "ema": 0.9}))
    with pytest.raises(InputError, match="does not fit"):
        run(TrainConfig(out=out, ema=0.9, **MORE), resume=True)


LIMITED = """
import json, resource, sys
from vae_training.training.config import TrainConfig
from vae_training.data.frames import identify
from vae_training.data.frames import get_datasets
from vae_training.training.trainer import train
from latent_obs.util.errors import LatentObsError
limit = int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    train(TrainConfig.from_json(json.loads(sys.argv[1])), resume=sys.argv[3] == "resume", progress_bar=False)
except LatentObsError as error:
    print("told:", error)
    sys.exit(2)
"""


def limited(config: TrainConfig, limit: int, how: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIMITED, json.dumps(config.to_json()), str(limit), how]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_no_room_for_a_checkpoint_keeps_the_last_one(module_frames: Path, tmp_path: Path):
    out = tmp_path / "out"
    run(config_for(module_frames, out, epochs=1))
    before = (out / "checkpoints" / "latest.safetensors").read_bytes()
    done = limited(config_for(module_frames, out, epochs=3), len(before) - 1000, "resume")
    assert done.returncode == 2, done.stderr
    assert ".safetensors: File too large. The last good checkpoint is kept" in done.stdout
    assert "Traceback" not in done.stderr
    assert (out / "checkpoints" / "latest.safetensors").read_bytes() == before
    run(TrainConfig(out=out, epochs=3), resume=True)
    run(config_for(module_frames, tmp_path / "whole", epochs=3))
    same_run(out, tmp_path / "whole")


def test_a_disk_that_is_full_keeps_the_last_checkpoint(module_frames: Path, tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], check=False).returncode
    ):
        pytest.skip("needs leave to mount a small file system")
    try:
        config = config_for(module_frames, disk / "out", epochs=1)
        run(config)
        latest = disk / "out" / "checkpoints" / "latest.safetensors"
        before = latest.read_bytes()
        with (disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
            filler.writelines([bytes(4096)] * 1000)
        with pytest.raises(OSError, match="No space left on device") as error:
            run(TrainConfig(out=config.out, epochs=2), resume=True)
        assert "go on with --resume" in str(error.value)
        assert latest.read_bytes() == before
        (disk / "filler").unlink()
        run(TrainConfig(out=config.out, epochs=2), resume=True)
        run(config_for(module_frames, tmp_path / "whole", epochs=2))
        same_run(config.out, tmp_path / "whole")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_older_checkpoints_can_still_be_gone_on_with(module_frames: Path, tmp_path: Path):
    out = tmp_path / "out"
    run(config_for(module_frames, out, epochs=1))
    latest, model = out / "checkpoints" / "latest.safetensors", tiny_cvae()
    optimizer = torch.optim.Adam(model.parameters())
    progress = load_checkpoint(latest, model, optimizer)
    save_checkpoint(latest, model, optimizer, progress)  # without what is known of the frames
    assert isinstance(progress, Progress)
    run(TrainConfig(out=out, **MORE), resume=True)
    run(config_for(module_frames, tmp_path / "whole"))
    same_tensors(latest, tmp_path / "whole" / "checkpoints" / "latest.safetensors")
