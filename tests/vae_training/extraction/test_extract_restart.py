"""Extraction that is interrupted, killed, short of disk or in company: what is there is whole, and the next run goes
on."""

# ruff: noqa: F401, F811  # the fixture is imported, and arguments have its name

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_obs.util.errors import InputError
from tests.support import ROOT
from tests.vae_training.extraction.test_extract import Place, place
from tests.vae_training.extraction.test_extract_fakes import Fake, fakes
from vae_training.data.frames import get_datasets
from vae_training.extraction.index import FrameFolder

SCRIPT = """
import importlib, sys
from pathlib import Path
e = importlib.import_module("vae_training.extraction.extractor")  # the module, not the function of that name
from tests.vae_training.extraction.test_extract_fakes import fakes
source, out, workers, pause_s = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
e.find_recordings = lambda paths, vpt: (fakes(source, 4, pause_s=pause_s), [])
config = e.ExtractConfig((source,), out, size=16, workers=workers, frames_per_file=30)
print(e.extract(config))
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@contextlib.contextmanager
def extraction(place: Any, workers: int, pause_s: float) -> Iterator[subprocess.Popen[str]]:
    arguments = [str(place.source), str(place.out), str(workers), str(pause_s)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_until(condition: Any, process: subprocess.Popen[str] | None = None) -> None:
    until = time.monotonic() + 300
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


def begun(place: Any) -> bool:
    """Whether a recording is finished, and another one has begun."""
    return bool(list(place.out.glob("*.npy"))) and bool(list(place.out.glob(".extracting-*/*/*.part")))


def uninterrupted(place: Any, tmp_path: Path, **changes: Any) -> dict[str, bytes]:
    place.recordings = fakes(place.source, 4)
    place.extract(out=tmp_path / "whole", frames_per_file=30, **changes)
    return contents(tmp_path / "whole")


def group_is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_run_again(place: Place, tmp_path: Path, workers: int):
    whole = uninterrupted(place, tmp_path)
    with extraction(place, workers, pause_s=0.15) as process:
        wait_until(lambda: begun(place), process)
        process.kill()  # the parent only: workers have to notice
        process.communicate()
        wait_until(lambda: group_is_gone(process.pid))
    finished = {f.name: f.stat().st_mtime_ns for f in place.out.glob("*.npy")}
    assert 0 < len(finished) < len([name for name in whole if name.endswith(".npy")])
    for file in finished:
        assert (place.out / file.replace(".npy", ".rows.npz")).exists()
        assert (place.out / file).read_bytes() == whole[file]
    result = place.extract(frames_per_file=30)
    assert 0 < result.skipped < 4
    assert contents(place.out) == whole
    assert {f.name: f.stat().st_mtime_ns for f in place.out.glob("*.npy")}.items() >= finished.items()


def test_workers_that_are_at_it_for_long_leave_with_their_parent(place: Place):
    psutil = pytest.importorskip("psutil")
    with extraction(place, 2, pause_s=50) as process:
        parent = psutil.Process(process.pid)
        wait_until(lambda: len(parent.children(recursive=True)) >= 4, process)  # two of them are multiprocessing's own
        time.sleep(0.5)
        process.kill()
        process.wait()
        began = time.monotonic()
        wait_until(lambda: group_is_gone(process.pid))
        assert time.monotonic() - began < 25


@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_and_run_again(place: Place, tmp_path: Path, workers: int):
    whole = uninterrupted(place, tmp_path)
    with extraction(place, workers, pause_s=0.15) as process:
        wait_until(lambda: begun(place), process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it, to the workers as well
        out, err = process.communicate(timeout=900)
    assert (process.returncode, err) == (0, ""), (out, err)
    assert "interrupted: " in out
    assert "interrupted=True" in out
    assert not list(place.out.glob(".*"))
    place.extract(frames_per_file=30)
    assert contents(place.out) == whole


def test_workers_do_not_matter(place: Place, tmp_path: Path):
    whole = uninterrupted(place, tmp_path, stride=2, drop_duplicates=1.0)
    result = place.extract(frames_per_file=30, stride=2, drop_duplicates=1.0, workers=2)
    assert (result.recordings, result.failed) == (4, ())
    assert contents(place.out) == whole


@pytest.mark.parametrize("moved", [0, 1, 2, 4])
def test_killed_between_a_whole_recording_and_its_entry(
    place: Place, tmp_path: Path, moved: int, monkeypatch: pytest.MonkeyPatch
):
    """The files of a recording are moved one by one, and the index is written after that: killed in between, all goes
    on."""
    whole = uninterrupted(place, tmp_path)
    add, replace = FrameFolder.add, Path.replace

    class Killed(BaseException):
        pass

    def killed_add(self: FrameFolder, name: str, entry: Any, staged: Path) -> None:
        if name != "clip 1":
            return add(self, name, entry, staged)
        count = 0

        def killed_replace(path: Path, to: Path) -> Path:
            nonlocal count
            if count == moved or to.name == "frames.json":
                raise Killed
            count += 1
            return replace(path, to)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed_replace)
            return add(self, name, entry, staged)

    with monkeypatch.context() as patch:
        patch.setattr(FrameFolder, "add", killed_add)
        with pytest.raises(Killed):
            place.extract(frames_per_file=30)
    assert list(place.index["recordings"]) == ["clip 0"]
    for file in place.out.glob("*.npy"):
        assert file.with_suffix(".rows.npz").exists()
    assert place.extract(frames_per_file=30).skipped == 2
    assert contents(place.out) == whole


def test_finished_recordings_are_not_read_again(place: Place, monkeypatch: pytest.MonkeyPatch):
    place.extract()
    before = contents(place.out)
    monkeypatch.setattr(Fake, "chunks", lambda self: pytest.fail("read again"))
    result = place.extract()
    assert (result.skipped, result.new_frames, result.frames, result.interrupted) == (3, 0, 150, False)
    assert contents(place.out) == before
    place.recordings = [Fake("in/clip 1", place.source / "clip 1.fake", seed=1)]  # found from one folder above
    assert place.extract().skipped == 1
    assert any("in/clip 1 is in " in text for text in place.said)


def test_more_recordings_later(place: Place):
    place.extract()
    place.recordings = fakes(place.source, 4)
    result = place.extract()
    assert (result.skipped, result.new_frames, result.recordings) == (3, 70, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 24}, r"begun with size 16, now it is 24.*--size"),
        ({"stride": 2}, "begun with stride 1"),
        ({"drop_duplicates": 0.5}, r"drop_duplicates None.*Give --drop-duplicates as before"),
        ({"limit": 3}, "limit"),
        ({"gui": "drop"}, "gui 'keep', now it is 'drop'"),
    ],
)
def test_other_settings(place: Place, changes: dict, message: str):
    place.extract()
    before = contents(place.out)
    with pytest.raises(InputError, match=message):
        place.extract(**changes)
    assert contents(place.out) == before


def test_a_source_that_changed(place: Place):
    place.extract()
    (place.source / "clip 1.fake").write_text("another one")
    with pytest.raises(InputError, match=r"clip 1 \(clip 1.fake\) has changed since.*remove clip-1.npy"):
        place.extract()
    (place.out / "clip-1.npy").unlink()
    (place.out / "clip-1.rows.npz").unlink()
    assert place.extract().skipped == 2
    assert place.index["recordings"]["clip 1"]["fingerprint"] == place.recordings[1].fingerprint()


def test_a_file_that_changed_or_went_missing(place: Place):
    place.extract(frames_per_file=20)
    before = contents(place.out)
    for name in ("clip-1_001.npy", "clip-2_000.rows.npz"):
        (place.out / name).unlink()
    times = {f.name: f.stat().st_mtime_ns for f in place.out.glob("*.npy")}
    assert place.extract(frames_per_file=20).skipped == 1
    assert contents(place.out) == before
    assert {f.name: f.stat().st_mtime_ns for f in place.out.glob("*.npy")}.items() >= times.items()
    np.save(place.out / "clip-0_000.npy", np.zeros((3, 16, 16, 3), np.uint8))
    with pytest.raises(InputError, match=r"clip-0_000.npy has shape \(3, 16, 16, 3\), and frames.json says 20 frames"):
        place.extract(frames_per_file=20)
    (place.out / "clip-0_000.npy").write_bytes(before["clip-0_000.npy"][:-5])
    with pytest.raises(InputError, match=r"clip-0_000.npy is not a whole .npy file"):
        place.extract(frames_per_file=20)


def test_index_that_is_damaged(place: Place):
    place.extract()
    (place.out / "frames.json").write_text("{}")
    with pytest.raises(InputError, match=r"frames.json cannot be read as the index"):
        place.extract()


@pytest.mark.parametrize("where", ["frames", "rows", "index"])
def test_full_disk(place: Place, monkeypatch: pytest.MonkeyPatch, where: str):
    place.recordings = fakes(place.source)
    pwrite, write = os.pwrite, FrameFolder.write

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    def full_pwrite(fd: int, data: Any, at: int) -> int:
        return full() if at > 768 * 45 else pwrite(fd, data, at)

    def full_write(self: FrameFolder) -> None:
        if "clip 1" in self.entries:
            full()
        write(self)

    with monkeypatch.context() as patch:
        if where == "frames":  # of the second recording; the first has 40
            patch.setattr("vae_training.data.npy_writer.os.pwrite", full_pwrite)
        elif where == "rows":
            patch.setattr("numpy.lib.format.write_array", full)
        else:
            patch.setattr(FrameFolder, "write", full_write)
        with pytest.raises(
            InputError, match=r"no room left on the disk.*finished recordings are.*the same command"
        ) as error:
            place.extract()
    assert "whole frames are kept" not in str(error.value)
    if where != "rows":
        assert [len(file) for file in get_datasets(place.out)] == {"frames": [40], "index": [40, 50]}[where]
    assert not list(place.out.rglob("*.part"))
    assert place.extract().recordings == 3
    assert not list(place.out.glob(".*"))


def test_a_worker_that_dies_is_named(place: Place):
    deadly, fine = place.source / "deadly", fakes(place.source, 4)
    deadly.write_text("")
    place.recordings = [*fine[:1], Fake("clip 1", place.source / "clip 1.fake", seed=1, dies_at=32), *fine[2:]]
    result = place.extract(workers=2)
    assert [failed.name for failed in result.failed] == ["clip 1"]
    assert (result.recordings, result.damaged, result.interrupted) == (3, (), False)
    assert not list(place.out.glob(".*"))
    deadly.unlink()
    assert place.extract(workers=2).recordings == 4


@pytest.mark.parametrize("workers", [1, 2])
def test_what_workers_raise_is_raised_here(place: Place, workers: int):
    place.recordings = fakes(place.source, 2, bug=True)
    with pytest.raises(ZeroDivisionError, match="a mistake"):
        place.extract(workers=workers)
    assert place.names() == ["frames.json"]


def test_one_extraction_at_a_time(place: Place):
    with (
        FrameFolder(place.out, {}),
        pytest.raises(InputError, match="another process extracts frames to this folder"),
    ):
        place.extract()


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_interrupted_here_at_any_moment(place: Place, tmp_path: Path, delay_s: float):
    whole = uninterrupted(place, tmp_path)
    place.recordings = fakes(place.source, 4, pause_s=0.02)
    threading.Timer(0.03 + delay_s, lambda: signal.raise_signal(signal.SIGINT)).start()
    result = place.extract(frames_per_file=30)
    assert result.interrupted
    assert not list(place.out.glob(".*"))
    place.extract(frames_per_file=30)
    assert contents(place.out) == whole


def test_an_interrupt_does_not_wait_for_the_end_of_a_recording(place: Place):
    place.recordings = fakes(place.source, 1, pause_s=0.15)
    threading.Timer(0.1, lambda: signal.raise_signal(signal.SIGINT)).start()
    result = place.extract()
    assert (result.interrupted, result.recordings) == (True, 0)


def test_what_workers_need_starts_without_torch():
    code = "import sys, vae_training.extraction.pool; assert 'torch' not in sys.modules, 'torch'"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=900, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
