"""Recording ViZDoom: interrupts and kills of a real game, and what its engine reports of the frames."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from latent_obs.envs.factory import is_vizdoom, make_pixel_env
from vae_training.data.frames import get_datasets
from vae_training.data.rows import load_rows
from vae_training.recording.recorder import RecordConfig, record
from vae_training.recording.state import StateReader, boxes_of

pytest.importorskip("vizdoom")

VIZDOOM = """
import sys
from pathlib import Path
from vae_training.recording.recorder import RecordConfig, record
out, frames, frames_per_file = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
record(RecordConfig("VizdoomBasic-v1", out, frames=frames, frames_per_file=frames_per_file, size=32))
print("returned")
"""


@contextlib.contextmanager
def recorder(out: Path, frames: int, frames_per_file: int = 150) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", VIZDOOM, str(out), str(frames), str(frames_per_file)]
    # A session of its own: signals go to the game's process as well, as a terminal's do.
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, cwd=out)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(path: Path, process: subprocess.Popen[str], size: int = 0) -> None:
    until = time.monotonic() + 900
    while not path.exists() or path.stat().st_size < size:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.integration
def test_vizdoom_interrupted_killed_and_finished(tmp_path: Path):
    """Ctrl-C, then kill -9, then to the end: every file is valid and the numbers add up."""
    with recorder(tmp_path, 1_000_000) as process:
        wait_for(tmp_path / "VizdoomBasic-v1_001.npy.part", process)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=900)
    assert (process.returncode, err) == (0, ""), (out, err)
    assert "returned" in out
    kept = sum(len(f) for f in get_datasets(tmp_path))
    assert f"{kept:,} of 1,000,000" in out
    assert not list(tmp_path.glob("*.part"))
    files = len(get_datasets(tmp_path))

    part = tmp_path / f"VizdoomBasic-v1_{files:03d}.npy.part"
    with recorder(tmp_path, 1_000_000, frames_per_file=1_000_000) as process:
        wait_for(part, process, size=100_000)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=900)
    total = kept + (part.stat().st_size - 128) // (32 * 32 * 3) + 150 + 37

    with recorder(tmp_path, total) as process:
        out, err = process.communicate(timeout=900)
    assert (process.returncode, err) == (0, ""), (out, err)
    killed = part.with_suffix("")
    assert any(str(killed) in line and "no rows" in line for line in out.splitlines())
    for file in tmp_path.glob("*.npy"):  # all but the one that was killed have a row for each frame
        assert (load_rows(file) == {}) == (file == killed)
    datasets = get_datasets(tmp_path)
    assert sum(len(f) for f in datasets) == total
    assert [len(f) for f in datasets[-2:]] == [150, 37]
    assert not list(tmp_path.glob("*.part"))
    manifest = json.loads((tmp_path / "recording.json").read_text())
    assert manifest["frames"] == total
    assert [manifest["files"][Path(str(f.filename)).name]["seed"] for f in datasets] == list(range(len(datasets)))


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some episodes of ViZDoom Basic, with all that its engine reports."""
    home = tmp_path_factory.mktemp("basic")
    with contextlib.chdir(home):
        record(RecordConfig("VizdoomBasic-v1", home / "with", frames=800, frames_per_file=500, size=64, frame_skip=4))
    return home


def test_what_the_engine_reports_changes_no_frame(basic: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(basic)
    config = RecordConfig(
        "VizdoomBasic-v1", basic / "without", frames=800, frames_per_file=500, frame_skip=4, state=False
    )
    record(config)
    files = sorted((basic / "with").glob("*.npy"))
    assert len(files) == 2
    for file in files:
        other = basic / "without" / file.name
        assert file.read_bytes() == other.read_bytes()
        assert np.load(file).reshape(len(np.load(file)), -1).max(axis=1).min() > 0  # no black last pictures
        rows, plain = load_rows(file), load_rows(other)
        assert set(plain) == {"action", "reward", "terminated", "truncated", "acted", "first"}
        for name, column in plain.items():
            np.testing.assert_array_equal(column, rows[name], name)


def test_the_observation_space_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(make_pixel_env("VizdoomBasic-v1")) as env:
        assert is_vizdoom(env)
        before = env.observation_space
        read = StateReader(env, "screen")
        observation, _ = env.reset(seed=0)
        assert env.observation_space == before
        assert observation in before
        values = read(observation)
        # The game's own list has the same number under the same name.
        (ammo,) = observation["gamevariables"]
        assert values["state$AMMO2"] == ammo == 50
        assert not any(name.startswith("observation$") for name in values)
        # Of another view no places are known.
        assert not any(name.startswith("object$") for name in StateReader(env, "automap")(observation))


def test_the_box_is_around_what_is_drawn(basic: Path):
    """The bricks are brown and the monster is not: in its rows the least brown columns of the picture are those of its
    box."""
    found: list[bool] = []
    for file in sorted((basic / "with").glob("*.npy")):
        frames, boxes = np.load(file).astype(int), load_rows(file)["object$Cacodemon"].astype(float) * 64
        for frame, (_, x, y, width, height) in zip(frames, boxes, strict=True):
            if width < 4 or abs(x - 32) < 8:  # cut by the edge, or near the flash of the weapon
                continue
            rows = frame[round(y - height / 4) : round(y + height / 4)]
            bluest = int(np.argmax((rows[..., 2] - rows[..., 0]).mean(axis=0)))
            found.append(x - width / 2 - 1 <= bluest <= x + width / 2)
    assert len(found) > 200
    assert np.mean(found) > 0.97


def thing(name: str, x: int, y: int, width: int, height: int, category: str = "Monster") -> SimpleNamespace:
    return SimpleNamespace(object_name=name, object_category=category, x=x, y=y, width=width, height=height)


def test_the_largest_of_a_class_and_no_effects():
    found = boxes_of(
        [
            thing("Imp", 0, 0, 10, 10),
            thing("Imp", 160, 60, 32, 24),
            thing("Clip", 319, 0, 1, 240),
            thing("DoomPlayer", 100, 100, 99, 99, "Self"),
            thing("Blood", 1, 1, 9, 9, "Gibs"),
            thing("BulletPuff", 1, 1, 9, 9, "Explosive"),
            thing("Fog", 1, 1, 9, 9, "SFX"),
        ],
        (320, 240),
    )
    assert {name: [round(float(n), 5) for n in box] for name, box in found.items()} == {
        "object$Imp": [1, 0.55, 0.3, 0.1, 0.1],
        "object$Clip": [1, 0.99844, 0.5, 0.00313, 1],
    }
    assert all(box.dtype == np.float32 for box in found.values())
