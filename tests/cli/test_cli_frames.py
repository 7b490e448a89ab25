"""The verbs about recordings and actions: frames extract, frames stats, actions fit; on real video, as a user types
them."""

import json
from pathlib import Path

import numpy as np
import pytest

from latent_obs.actions import Centroids
from latent_obs_cli.main import main
from tests.support import CLIPS
from vae_training import get_datasets

pytest.importorskip("av")


def run(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run a command line; its exit status, and what it wrote to stdout and stderr."""
    capfd.readouterr()
    try:
        code = main([str(word) for word in words])
    except SystemExit as error:
        code = int(error.code or 0)
    out, err = capfd.readouterr()
    return code, out, err


def test_from_a_video_to_sheets(capfd: pytest.CaptureFixture[str], tmp_path: Path):
    frames = tmp_path / "frames"
    extract = ["frames", "extract", CLIPS, "--out", frames, "--workers", 1, "--size"]
    code, out, err = run(capfd, *extract, 32)
    assert (code, err) == (0, "")
    assert f"latent-obs train-vae --frames {frames}" in out
    (dataset,) = get_datasets(frames)
    assert dataset.shape == (90, 32, 32, 3)
    before = {file: file.stat().st_mtime_ns for file in frames.rglob("*.npy")}
    assert run(capfd, *extract, 32)[0] == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before, "not made again"
    code, _, err = run(capfd, *extract, 48)
    assert (code, "size" in err) == (2, True)
    code, out, _ = run(capfd, "frames", "stats", frames)
    assert code == 0
    for picture in ("contact_sheet.png", "mean_images.png"):
        assert (tmp_path / "frames_stats" / picture).stat().st_size > 1_000
        assert picture in out
    (frames / "cut.npy").write_bytes(b"\x93NUMPY")
    code, out, _ = run(capfd, "frames", "stats", frames, "--json", "--out", tmp_path / "sheets")
    assert code == 1
    assert "cut.npy" in json.dumps(json.loads(out)["refused"])
    assert (tmp_path / "sheets" / "contact_sheet.png").exists()


def test_centroids_of_demonstrated_actions(capfd: pytest.CaptureFixture[str], tmp_path: Path):
    rng = np.random.default_rng(0)
    centres = rng.uniform(-1, 1, (5, 64))
    actions = (centres[rng.integers(0, 5, 400)] + rng.normal(0, 0.01, (400, 64))).astype(np.float32)
    np.savez(tmp_path / "rendered.npz", **{"action$vector": actions, "reward": np.zeros(400, np.float32)})
    file = tmp_path / "centroids.safetensors"
    code, out, _ = run(capfd, "actions", "fit", "--demonstrations", tmp_path, "--clusters", 5, "--out", file)
    assert code == 0
    assert "5 centroids of 400 actions" in out
    found = Centroids.load(file).vectors
    assert np.abs(found[:, None] - centres[None]).max(-1).min(0).max() < 0.05
