"""train(): what it refuses before anything is written, frames that changed since, and a disk that is full."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latent_obs.util.errors import DeviceError, InputError
from tests.support.tiny import picture, tiny_cvae
from tests.support.training_runs import PREAMBLE, around_step, config_for, module_frames, run, same_run
from vae_training.data.frames import get_datasets, identify
from vae_training.training.checkpoint import load_checkpoint, save_checkpoint
from vae_training.training.config import TrainConfig


@pytest.fixture
def begun(frames_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "out").mkdir()  # an empty folder is accepted
    run(config_for(frames_folder, tmp_path / "out", epochs=1))
    return frames_folder, tmp_path / "out"


def contents(folder: Path) -> dict[Path, bytes]:
    return {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_a_folder_that_is_not_empty_and_a_file_are_left_alone(begun: tuple[Path, Path], tmp_path: Path):
    frames, out = begun
    before = contents(out)
    with pytest.raises(InputError, match="--out"):
        run(config_for(frames, out))
    assert contents(out) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="--out"):
        run(config_for(frames, tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(InputError, match="nothing"):
        run(TrainConfig(out=tmp_path / "nothing"), resume=True)


def test_a_run_in_progress_is_not_run_twice(module_frames: Path, tmp_path: Path, around_step: Callable[..., None]):
    config = config_for(module_frames, tmp_path / "out", epochs=1)
    refused: list[InputError] = []

    def second(call: int, _: object) -> None:
        for resume in (False, True) if call == 0 else ():
            with pytest.raises(InputError, match="out") as error:
                run(config, resume)
            refused.append(error.value)

    around_step(second)
    run(config)
    assert len(refused) == 2
    assert str(os.getpid()) in str(refused[1])
    run(config, True)  # nothing holds it any more


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"super_batch": 49}, InputError, "super_batch"),
        ({"widths": (), "strides": (), "bottleneck": "spatial"}, InputError, "latent_dim"),
        ({"dataset_weights": (1.0, 2.0, 3.0)}, InputError, "weight"),
        ({"device": "cuda:99"}, DeviceError, "cuda:99"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    frames_folder: Path, tmp_path: Path, change: dict[str, Any], error: type[Exception], named: str
):
    with pytest.raises(error, match=named):
        run(config_for(frames_folder, tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


def test_a_fingerprint_sees_what_was_changed_anywhere(tmp_path: Path):
    frames = np.random.default_rng(0).integers(0, 256, (400, 64, 64, 3), np.uint8)
    seen: set[str] = set()
    file = tmp_path / "a.npy"
    for start, end in [(0, 0), (0, 1), (399, 400), *((n, n + 25) for n in range(25, 375, 50))]:
        changed = frames.copy()
        changed[start:end] ^= 255
        np.save(file, changed)
        seen.add(str(identify(get_datasets(tmp_path), [])["training"][0]["fingerprint"]))
    assert len(seen) == 3 + 7  # each of them another one
    np.save(file, frames)
    assert identify(get_datasets(tmp_path), [])["training"][0]["fingerprint"] in seen  # the same frames, the same one


@pytest.mark.parametrize("what", ["changed", "removed", "added"])
def test_other_frames_are_refused_on_resume(begun: tuple[Path, Path], what: str):
    frames, out = begun
    before = contents(out)
    file = frames / "recording_1.npy"
    if what == "changed":
        array = np.load(file)
        array[12] ^= 1
        np.save(file, array)
    elif what == "removed":
        file.unlink()
    else:
        file = frames / "recording_9.npy"
        np.save(file, np.stack([picture(9, step, 16, 16) for step in range(24)]))
    with pytest.raises(InputError, match=file.name):
        run(TrainConfig(out=out, epochs=2), resume=True)
    assert contents(out) == before


def test_a_moved_folder_is_accepted_and_other_frames_of_the_same_names_are_not(
    begun: tuple[Path, Path], tmp_path: Path
):
    frames, out = begun
    for name in ("moved", "other"):
        shutil.copytree(frames, tmp_path / name)
    for file in (tmp_path / "other").iterdir():
        np.save(file, 255 - np.load(file))
    with pytest.raises(InputError, match="recording_0"):
        run(TrainConfig(frames=tmp_path / "other", out=out, epochs=2), resume=True)
    run(TrainConfig(frames=tmp_path / "moved", out=out, epochs=2), resume=True)
    run(config_for(frames, tmp_path / "whole"))
    same_run(out, tmp_path / "whole")


def test_a_single_recording_keeps_its_split(tmp_path: Path):
    (tmp_path / "frames").mkdir()
    np.save(tmp_path / "frames" / "one.npy", np.stack([picture(0, step, 16, 16) for step in range(200)]))
    (tmp_path / "frames" / "frames.shard-1-of-2.json").write_text('{"recordings": {}, "complete": true}')
    said: list[str] = []
    for name, epochs in (("whole", [2]), ("parts", [1, 2])):
        for i, last in enumerate(epochs):
            run(config_for(tmp_path / "frames", tmp_path / name, epochs=last, batch_size=90), i > 0, said.append)
    same_run(tmp_path / "whole", tmp_path / "parts")
    assert sum("last 20 frames" in text for text in said) == 3
    assert sum("--shard 2/2 has not finished" in text for text in said) == 3


def test_a_checkpoint_that_does_not_fit_the_settings_is_refused(begun: tuple[Path, Path]):
    out = begun[1]
    settings = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**settings, "widths": [4, 12]}))
    with pytest.raises(InputError, match=r"latest\.safetensors"):
        run(TrainConfig(out=out, epochs=2), resume=True)


LIMITED = f"""{PREAMBLE}
import resource
t._LOG_EVERY_STEPS = 20
from latent_obs.util.errors import LatentObsError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    t.train(TrainConfig.from_json(json.loads(sys.argv[1])), resume=True, progress_bar=False)
except LatentObsError as error:
    print(error)
    sys.exit(2)
"""


@pytest.mark.integration
def test_a_checkpoint_that_cannot_be_written_keeps_the_last_one(module_frames: Path, tmp_path: Path):
    out = tmp_path / "out"
    run(config_for(module_frames, out, epochs=1))
    latest = out / "checkpoints" / "latest.safetensors"
    before, config = latest.read_bytes(), config_for(module_frames, out, epochs=3)
    command = [sys.executable, "-c", LIMITED, json.dumps(config.to_json()), str(len(before) - 1000)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 2, done.stderr
    assert "--resume" in done.stdout
    assert "Traceback" not in done.stderr
    assert latest.read_bytes() == before
    run(TrainConfig(out=out, epochs=3), resume=True)
    run(config_for(module_frames, tmp_path / "whole", epochs=3))
    same_run(out, tmp_path / "whole")
