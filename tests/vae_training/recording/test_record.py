"""Recording: whole, reproducible files from any pixel environment, through interrupts and restarts."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from latent_obs.util.atomic import folder_lock
from latent_obs.util.errors import InputError
from tests.support import ROOT
from tests.support.tiny import picture
from vae_training.data.frames import DiskFullError, get_datasets
from vae_training.data.rows import load_rows
from vae_training.recording.recorder import RecordConfig, find_pixels, record

EPISODE = 7


class Counter(gym.Env):
    """Says in its pixels which episode and step it is; the last picture of an episode is black, as ViZDoom's is.

    Red is the seed of the last seeded reset, green the episode since then, blue the step; below is the action.
    """

    def __init__(self, layout: str = "HWC", side: int = 16, end: str = "black") -> None:
        self.layout, self.side, self.end = layout, side, end
        shape = {"HWC": (side, side, 3), "CHW": (3, side, side), "grey": (side, side)}[layout.removeprefix("dict ")]
        box = spaces.Box(0, 255, shape, np.uint8)
        depth = spaces.Box(0, 255, (side, side, 1), np.uint8)
        self.observation_space = spaces.Dict(pov=box, depth=depth) if layout.startswith("dict") else box
        self.action_space = spaces.Discrete(200)
        self.tag = [0, 0, 0]

    def _observe(self, action: int, black: bool = False) -> Any:
        frame = np.zeros((self.side, self.side, 3), np.uint8)
        frame[:] = [0, 0, 0] if black else [n % 255 + 1 for n in self.tag]
        frame[self.side // 2 :] = 0 if black else action
        frame = np.ascontiguousarray(frame[::-1])[::-1]  # MineRL's are such views, read-only with a negative stride
        frame.flags.writeable = False
        if self.layout.endswith("CHW"):
            frame = np.moveaxis(frame, -1, 0)
        elif self.layout == "grey":
            frame = frame[..., 0]
        depth = np.zeros((self.side, self.side, 1), np.uint8)
        return {"pov": frame, "depth": depth} if "dict" in self.layout else frame

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.tag = [seed, 0, 0] if seed is not None else [self.tag[0], self.tag[1] + 1, 0]
        return self._observe(0), {}

    def step(self, action):
        self.tag[2] += 1
        over = self.tag[2] == EPISODE
        info = {"error": "the game was lost"} if over and self.end == "lost" else {}
        return self._observe(int(action) + 1, black=over and self.end == "black"), 0.0, over, False, info


gym.register("test/Counter-v0", lambda **kwargs: Counter(**kwargs))


def config(out: Path, **changes: Any) -> RecordConfig:
    return RecordConfig(
        **{"env": "test/Counter-v0", "out": out, "frames": 30, "frames_per_file": 12, "size": 16, **changes}
    )


def tags(file: np.ndarray) -> list[tuple[int, ...]]:
    """(seed, episode, step) of each frame."""
    return [tuple(int(n) - 1 for n in frame[0, 0]) for frame in file]


def test_each_file_is_a_recording_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert record(config(tmp_path / "images", seed=40)) == tmp_path / "images"
    files = get_datasets(tmp_path / "images")
    assert [Path(str(f.filename)).name for f in files] == [f"test-Counter-v0_00{i}.npy" for i in range(3)]
    assert [f.shape for f in files] == [(12, 16, 16, 3), (12, 16, 16, 3), (6, 16, 16, 3)]
    for i, file in enumerate(files):
        # Every frame but the black ones, from a reset with the file's own seed.
        expected = [(40 + i, episode, step) for episode in range(2) for step in range(EPISODE)]
        assert tags(file) == expected[: len(file)]
    assert capsys.readouterr().err == ""  # no progress bar where nobody watches
    manifest = json.loads((tmp_path / "images" / "recording.json").read_text())
    assert manifest["frames"] == 30
    assert [entry["frames"] for entry in manifest["files"].values()] == [12, 12, 6]
    first = manifest["files"]["test-Counter-v0_000.npy"]
    assert (first["env"], first["policy"], first["seed"], first["size"]) == ("test/Counter-v0", "sticky", 40, 16)
    assert manifest["versions"]["numpy"] == np.__version__
    made = {f"test-Counter-v0_00{i}{end}" for i in range(3) for end in (".npy", ".rows.npz")}
    assert {p.name for p in (tmp_path / "images").iterdir()} == {"recording.json", *made}
    record(config(tmp_path / "again", seed=41, frames=12))
    np.testing.assert_array_equal(get_datasets(tmp_path / "again")[0], files[1])
    assert (actions(files[0]) != actions(files[1])).any()


def actions(file: np.ndarray) -> np.ndarray:
    """Action before each frame; 0 after a reset."""
    return np.asarray(file[:, -1, 0, 0], int)


@pytest.mark.parametrize(("policy", "low", "high"), [("random", 0, 0.05), ("sticky", 0.6, 0.85)])
def test_policies(tmp_path: Path, policy: str, low: float, high: float):
    record(config(tmp_path, policy=policy, stickiness=0.75, frames=700, frames_per_file=700))
    (file,) = get_datasets(tmp_path)
    chosen = actions(file)
    both = (chosen[1:] > 0) & (chosen[:-1] > 0)
    assert low <= (chosen[1:] == chosen[:-1])[both].mean() <= high


def test_started_again_it_goes_on(tmp_path: Path):
    record(config(tmp_path, frames=10))
    record(config(tmp_path, frames=30))
    files = get_datasets(tmp_path)
    assert [len(f) for f in files] == [10, 12, 8]
    assert [tags(f)[0] for f in files] == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]
    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    record(config(tmp_path, frames=30))
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before
    with pytest.raises(InputError, match=r"\(16, 16, 3\).*\(8, 8, 3\)"):
        record(config(tmp_path, frames=60, size=8))
    assert [len(f) for f in get_datasets(tmp_path)] == [10, 12, 8]
    entries = json.loads((tmp_path / "recording.json").read_text())["files"]
    assert [entry["frames"] for entry in entries.values()] == [10, 12, 8]


@pytest.mark.parametrize(("layout", "size"), [("HWC", None), ("CHW", 8), ("dict CHW", 16)])
def test_layouts_and_sizes(tmp_path: Path, layout: str, size: int | None):
    record(config(tmp_path, env_kwargs={"layout": layout}, size=size, frames=9))
    (file,) = get_datasets(tmp_path)
    assert file.shape == (9, size or 16, size or 16, 3)
    assert tags(file) == [(0, 0, step) for step in range(7)] + [(0, 1, 0), (0, 1, 1)]


def test_pixels_are_gray_or_another_entry_and_not_those_of_a_lost_game(tmp_path: Path):
    for layout, key in (("grey", None), ("dict HWC", "depth")):
        record(config(tmp_path / layout, env_kwargs={"layout": layout}, pixel_key=key, frames=9))
        assert get_datasets(tmp_path / layout)[0].shape == (9, 16, 16, 1)
    with pytest.raises(InputError, match=r"pixel_key.*'sight'"):
        record(config(tmp_path / "b", env_kwargs={"layout": "dict HWC"}, pixel_key="sight"))
    record(config(tmp_path / "lost", env_kwargs={"end": "lost"}, frames=9))
    assert [step for _, _, step in tags(get_datasets(tmp_path / "lost")[0])] == [0, 1, 2, 3, 4, 5, 6, 0, 1]


@pytest.mark.parametrize("kind", ["box", "dict"])
def test_every_picture_of_an_environment_that_writes_them_into_one_array(tmp_path: Path, kind: str):
    import tests.support.stranger_envs  # registers it  # noqa: F401

    record(config(tmp_path, env="Stranger/OneBuffer-v0", env_kwargs={"kind": kind}, frames=20, frames_per_file=20))
    expected = [picture(i // 4, i % 4, 16, 16) for i in range(20)]
    np.testing.assert_array_equal(get_datasets(tmp_path)[0], expected)


def test_spaces_without_pixels():
    image = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    for space, name in (
        (spaces.Discrete(3), "observation"),
        (spaces.Box(0, 1, (64, 64, 3)), "uint8"),
        (spaces.Box(0, 1, (64, 64, 3), np.uint8), "0 to 255"),
        (spaces.Dict(a=spaces.Discrete(2)), "observation"),
        (spaces.Dict(left=image, right=image), "pixel_key"),
    ):
        with pytest.raises(InputError, match=name):
            find_pixels(space, None)
    assert find_pixels(spaces.Dict(left=image, right=image), "right") == ("right", 3)
    assert find_pixels(spaces.Box(0, 255, (84, 84, 4), np.uint8), None) == (None, 4)


def test_what_cannot_be_recorded_leaves_nothing_behind(tmp_path: Path):
    for changes, name in (
        ({"env": "VizdoomBasik-v1"}, "VizdoomBasic"),
        ({"env": "CartPole-v1"}, "no picture.*--render"),
        ({"agent": tmp_path / "a.zip"}, "agent"),
    ):
        with pytest.raises(InputError, match=name):
            record(config(tmp_path / "images", **changes))
        assert not (tmp_path / "images").exists()
    (tmp_path / "images").write_text("hello")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for out in ("images", "loop", "loop/inside"):
        with pytest.raises(InputError, match="out "):
            record(config(tmp_path / out))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frames", None),
        ("size", 0),
        ("policy", "wise"),
        ("stickiness", float("nan")),
        ("seed", -1),
        *((name, 10**20) for name in ("frames", "frames_per_file", "size", "frame_skip", "seed")),
        ("env", ""),
    ],
)
def test_wrong_settings(tmp_path: Path, name: str, value: Any):
    with pytest.raises(InputError, match=name):
        config(tmp_path, **{name: value})


@pytest.mark.integration
# An interrupt between open() and its `with` leaves a file for the collector to close; nothing can be done about that.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupted_at_any_moment(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Whenever Ctrl-C comes, valid files are left, and the next call goes on from them."""
    rng = np.random.default_rng(0)
    for i in range(12):
        folder = tmp_path / str(i)
        # As the terminal does it: some milliseconds in, when record() has taken over what Ctrl-C means.
        old = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.03, 0.12))
            record(config(folder, frames=300, frames_per_file=3))
        except KeyboardInterrupt:
            pytest.fail("record() did not return")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        kept = sum(len(f) for f in get_datasets(folder)) if list(folder.glob("*.npy")) else 0
        assert not list(folder.glob("*.part"))
        for file in folder.glob("*.npy"):
            assert len(load_rows(file)["acted"]) == len(np.load(file, mmap_mode="r"))
        assert kept < 300  # it did stop: all of them take a second
        assert f"{kept} of 300" in capsys.readouterr().out


def test_disk_full_while_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pwrite = os.pwrite

    def full(fd: int, data: Any, at: int) -> int:
        if at > 768 * 9:
            raise OSError(28, "No space left on device")
        return pwrite(fd, data, at)

    monkeypatch.setattr("vae_training.data.npy_writer.os.pwrite", full)
    with pytest.raises(DiskFullError, match=tmp_path.name):
        record(config(tmp_path))
    monkeypatch.undo()
    assert [len(f) for f in get_datasets(tmp_path)] == [9]
    assert load_rows(tmp_path / "test-Counter-v0_000.npy")["first"].tolist() == [True, *[False] * 6, True, False]
    assert json.loads((tmp_path / "recording.json").read_text())["frames"] == 9
    record(config(tmp_path))
    assert [len(f) for f in get_datasets(tmp_path)] == [9, 12, 9]


KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from tests.vae_training.recording.test_record import Counter, config
from vae_training.recording import recorder

out, moment = Path(sys.argv[1]), sys.argv[2]
step = Counter.step

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def killed_step(self, action):
    if self.tag[0] == 2:  # in the third file
        if moment == "play":
            die()
        elif moment == "rows":
            np.lib.format.write_array = die
        elif moment == "manifest":
            recorder._write_manifest = die
    return step(self, action)

Counter.step = killed_step
recorder.record(config(out))
"""


@pytest.mark.integration
@pytest.mark.parametrize("moment", ["play", "rows", "manifest"])
def test_the_next_run_puts_right_what_a_killed_one_left(tmp_path: Path, moment: str):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), moment], capture_output=True, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    for frames in (1, 30):  # even where there is nothing to record
        record(config(tmp_path, frames=frames))
        manifest = json.loads((tmp_path / "recording.json").read_text())
        counts = {Path(str(file.filename)).name: len(file) for file in get_datasets(tmp_path)}
        assert {name: entry["frames"] for name, entry in manifest["files"].items()} == counts
        assert manifest["frames"] == sum(counts.values())
        assert not list(tmp_path.glob(".*"))
    assert manifest["frames"] == 30


def test_one_recording_at_a_time(tmp_path: Path):
    with folder_lock(tmp_path), pytest.raises(InputError, match=str(os.getpid())):
        record(config(tmp_path))
    record(config(tmp_path))


def test_a_manifest_that_is_damaged(tmp_path: Path):
    for i, content in enumerate(("{", "[]", '{"files": {"x": 5}}', '{"files": []}')):
        (tmp_path / "recording.json").write_text(content)
        record(config(tmp_path, frames=3 * (i + 1)))
        assert json.loads((tmp_path / "recording.json").read_text())["frames"] >= 3


def test_an_environment_in_hand_is_recorded_as_a_registered_one_and_stays_open(tmp_path: Path):
    record(config(tmp_path / "made"))
    closed: list[bool] = []
    env = Counter()
    env.close = lambda: closed.append(True)
    for frames in (12, 30):  # the same call goes on
        record(config(tmp_path / "own", env="mine", frames=frames), env=env)
    made, own = (get_datasets(tmp_path / name) for name in ("made", "own"))
    assert [Path(str(d.filename)).name for d in own] == ["mine_000.npy", "mine_001.npy", "mine_002.npy"]
    assert list(map(tags, own)) == list(map(tags, made))
    assert not closed
    with pytest.raises(InputError, match="frame_skip"):
        record(config(tmp_path / "own", env="mine", frame_skip=4), env=env)
    with pytest.raises(InputError, match="policy"):
        record(config(tmp_path / "own", env="mine", agent=tmp_path), env=env)
