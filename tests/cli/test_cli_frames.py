"""The verbs about recordings and actions: frames extract, frames stats, actions fit; on real video, as a user types
them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from latent_obs.actions import Centroids
from latent_obs_cli.main import main
from tests.support import CLIPS
from vae_training import get_datasets

pytest.importorskip("av")


def run(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capfd.readouterr()
    try:
        code = main([str(word) for word in words])
    except SystemExit as error:
        code = int(error.code or 0)
    out, err = capfd.readouterr()
    return code, out, err


def test_from_a_video_to_sheets(capfd: pytest.CaptureFixture[str], tmp_path: Path):
    frames = tmp_path / "frames"
    code, out, err = run(capfd, "frames", "extract", CLIPS, "--out", frames, "--size", 32, "--workers", 1)
    assert (code, err) == (0, "")
    assert "90 frames" in out
    assert f"next: latent-obs train-vae --frames {frames}" in out
    (dataset,) = get_datasets(frames)
    assert dataset.shape == (90, 32, 32, 3)
    code, out, _ = run(capfd, "frames", "extract", CLIPS, "--out", frames, "--size", 32, "--workers", 1)
    assert code == 0
    assert "1 of 1 recordings already" in out
    code, _, err = run(capfd, "frames", "extract", CLIPS, "--out", frames, "--size", 48)
    assert code == 2
    assert err.startswith("latent-obs frames extract:")
    assert "size 32" in err
    code, out, _ = run(capfd, "frames", "stats", frames)
    assert code == 0
    for picture in ("contact_sheet.png", "mean_images.png"):
        assert (tmp_path / "frames_stats" / picture).stat().st_size > 1_000
        assert picture in out
    (frames / "cut.npy").write_bytes(b"\x93NUMPY")
    code, out, _ = run(capfd, "frames", "stats", frames, "--json", "--out", tmp_path / "sheets")
    assert code == 1
    told = json.loads(out)
    assert "cut.npy" in json.dumps(told["refused"])
    assert (tmp_path / "sheets" / "contact_sheet.png").exists()


@pytest.mark.parametrize("verb", ["extract", "stats"])
def test_what_is_not_there(capfd: pytest.CaptureFixture[str], tmp_path: Path, verb: str):
    words = ["frames", verb, tmp_path / "nowhere", *(["--out", tmp_path / "out"] if verb == "extract" else [])]
    code, _, err = run(capfd, *words)
    assert code == 2
    assert "nowhere" in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_centroids_of_demonstrated_actions(capfd: pytest.CaptureFixture[str], tmp_path: Path):
    pytest.importorskip("scipy")
    rng = np.random.default_rng(0)
    centres = rng.uniform(-1, 1, (5, 64))
    actions = (centres[rng.integers(0, 5, 400)] + rng.normal(0, 0.01, (400, 64))).astype(np.float32)
    np.savez(tmp_path / "rendered.npz", **{"action$vector": actions, "reward": np.zeros(400, np.float32)})
    file = tmp_path / "centroids.safetensors"
    words = ["actions", "fit", "--demonstrations", tmp_path, "--clusters", 5, "--out", file]
    code, out, _ = run(capfd, *words)
    assert code == 0
    assert "5 centroids of 400 actions" in out
    found = Centroids.load(file).vectors
    assert np.abs(found[:, None] - centres[None]).max(-1).min(0).max() < 0.05
    before = file.read_bytes()
    code, _, err = run(capfd, *words)
    assert code == 2
    assert "is there already" in err
    assert file.read_bytes() == before
    code, _, err = run(
        capfd, "actions", "fit", "--demonstrations", tmp_path / "none", "--out", tmp_path / "c.safetensors"
    )
    assert code == 2
    assert "there is no" in err


def test_a_reader_that_has_seen_enough_is_no_error():
    code = "import sys; from latent_obs_cli.main import main; sys.exit(main(['train-vae', '--help']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
