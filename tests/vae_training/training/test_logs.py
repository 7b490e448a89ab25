"""What training shows: logs and pictures."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.tiny import random_frames, tiny_cvae
from vae_training.model.cvae import CVAE
from vae_training.training.logs import RunLog, grid, read_log, reconstruct, reconstruction_sheet, traversal_sheet


def test_a_log_of_a_killed_run_goes_on_where_the_checkpoint_was(tmp_path: Path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a": 2.0}\n{"step": 3, "a": 3.0}\n{"st')
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2, 3]
    with RunLog(tmp_path, from_step=2, tensorboard=False) as log:
        log.write(3, {"a": 30.0})
        assert read_log(tmp_path)[-1] == {"step": 3, "a": 30.0}  # there at once
    assert read_log(tmp_path) == [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}, {"step": 3, "a": 30.0}]
    assert read_log(tmp_path / "nowhere") == []


def test_without_tensorboard_there_is_a_log_and_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    with RunLog(tmp_path) as log:
        assert "--extra logs" in log.note
        log.write(1, {"a": 1.0})
        log.picture(1, "b", np.zeros((4, 4, 3), np.uint8))
    assert read_log(tmp_path) == [{"step": 1, "a": 1.0}]


def test_tensorboard_has_the_same_numbers(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path) as log:
        for step in range(1, 4):
            log.write(step, {"loss/total": step / 3})
        log.picture(3, "held_out/reconstructions", np.zeros((4, 4, 3), np.uint8))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("loss/total")
    assert [s.step for s in scalars] == [1, 2, 3]
    np.testing.assert_allclose([s.value for s in scalars], [row["loss/total"] for row in read_log(tmp_path)], rtol=1e-6)
    assert len(events.Images("held_out/reconstructions")) == 1


def only_latent(model: CVAE, latent: int | None) -> CVAE:
    """Have the mean of one latent follow the frames strongly, and everything else in q(z|x) be constant."""
    weights = model.state_dict()
    for name in ("encoder.mean_head.weight", "encoder.mean_head.bias", "encoder.logvar_head.weight"):
        weights[name].zero_()
    weights["encoder.logvar_head.bias"].zero_()
    if latent is not None:
        weights["encoder.mean_head.weight"][latent].normal_(generator=torch.Generator().manual_seed(0))
    weights["decoder.stem.weight"] *= 30
    return model


def _named(columns: int) -> int:
    """Pixels that a name takes above a row of images of 16 pixels."""
    images = random_frames(columns, (16, 16, 3))
    return len(grid([images], names=["a"])) - len(grid([images]))


@pytest.mark.parametrize("channels", [1, 12])
def test_pictures(channels: int):
    model = CVAE((16, 16, channels), 6, widths=(4, 8), strides=(2, 2))
    frames = random_frames(5, (16, 16, channels))
    with torch.inference_mode():
        mean, _ = model.encode(torch.from_numpy(frames).permute(0, 3, 1, 2) / 255)
        decoded = model.decode(mean).clamp(0, 1).permute(0, 2, 3, 1).numpy() * 255
    assert np.abs(reconstruct(model, frames) - decoded).max() <= 0.51
    sheet = reconstruction_sheet(model, frames)[_named(5) :]
    shown = {1: frames[0].repeat(3, axis=-1)}.get(channels, frames[0, :, :, -3:])
    np.testing.assert_array_equal(sheet[:32:2, :32:2], shown)
    sheet = traversal_sheet(model, frames[0], sample=frames, latents=2, steps=4)
    assert sheet.shape == (2 * 34 - 2 + 2 * _named(5), 5 * 34 - 2, 3)


def test_a_traversal_begins_with_the_latent_that_changes_the_picture_most():
    model, frames = only_latent(tiny_cvae(), 4), random_frames(40)
    sheet = traversal_sheet(model, frames[0], sample=frames, latents=2, steps=3).astype(int)
    line = _named(4)
    strongest, silent = sheet[line : line + 32], sheet[2 * line + 34 :]
    first, last, change = strongest[:, :32], strongest[:, 68:100], strongest[:, 102:]
    assert np.abs(first - last).max() > 5
    assert change.max() == 255
    assert np.corrcoef(change.ravel(), np.abs(first - last).ravel())[0, 1] > 0.99
    np.testing.assert_array_equal(silent[:, :32], silent[:, 68:100])  # its range in the sample is a point
    assert not silent[:, 102:].any()


def test_grid_places_each_image():
    images = random_frames(3, (4, 6, 3))
    sheet = grid([images, images[:1]], scale=1)
    assert sheet.shape == (10, 22, 3)
    np.testing.assert_array_equal(sheet[:4, 8:14], images[1])
    np.testing.assert_array_equal(sheet[6:, :6], images[0])
    assert (sheet[4:6] == sheet[4, 0]).all()
    named = grid([images, images[:1]], scale=1, names=["abc"])
    np.testing.assert_array_equal(named[-10:], sheet)
    assert len(np.unique(named[:-10])) > 2, "there is a text"


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from vae_training.training.logs import RunLog
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    with RunLog(Path(sys.argv[1])) as log:
        for step in range(3):
            log.picture(step, "noise", np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8))
except OSError as error:
    print(error.errno)
"""


@pytest.mark.integration
def test_a_full_disk_under_tensorboard_is_an_error_of_the_caller(tmp_path: Path):
    pytest.importorskip("tensorboard")
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(errno.EFBIG)]
    assert "Traceback" not in done.stderr


def test_a_name_that_is_not_utf_8_has_no_tensorboard_log_and_a_note(tmp_path: Path):
    pytest.importorskip("tensorboard")
    run = tmp_path / os.fsdecode(b"run-\xff")
    run.mkdir()
    with RunLog(run) as log:
        log.write(1, {"loss/total": 2.0})
        assert "TensorBoard" in log.note
    assert read_log(run) == [{"step": 1, "loss/total": 2.0}]


@pytest.mark.parametrize("line", ["{", "[1]", "3", '{"step": "x"}', "{}", "\udcff"])
def test_damaged_rows_of_a_log_are_left_out(tmp_path: Path, line: str):
    text = f'{{"step": 1}}\n{line}\n{{"step": 2}}\n{{"st'
    (tmp_path / "log.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    assert read_log(tmp_path) == [{"step": 1}, {"step": 2}]
