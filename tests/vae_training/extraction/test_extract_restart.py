"""Extraction that is interrupted, killed or short of disk: what is there is whole, and the next run goes on."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_obs.util.errors import InputError
from tests.support import ROOT
from tests.support.fake_recordings import Fake, fakes
from tests.vae_training.extraction.conftest import Place
from vae_training.data.frames import DiskFullError, get_datasets
from vae_training.extraction.index import FrameFolder

SCRIPT = """
import importlib, sys
from pathlib import Path
import vae_training.extraction.worker
assert "torch" not in sys.modules, "what workers need starts without torch"
e = importlib.import_module("vae_training.extraction.extractor")
from tests.support.fake_recordings import fakes
source, out, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
e.find_recordings = lambda paths, **_: (fakes(source, 4, waits=True), [])
config = e.ExtractConfig((source,), out, size=16, workers=workers, frames_per_file=30)
print(e.extract(config, progress_bar=False))
"""


@pytest.fixture
def whole(place: Place, tmp_path: Path) -> dict[str, bytes]:
    """The files of an extraction that nothing disturbed."""
    place.recordings = fakes(place.source, 4)
    place.extract(out=tmp_path / "whole", frames_per_file=30)
    return {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}


def wait_until(condition: Any, process: subprocess.Popen[str] | None = None) -> None:
    until = time.monotonic() + 900
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


def is_writing(out: Path) -> bool:
    """Whether a part of a recording is there. By os.walk: Path.glob raises if a folder that it has found is removed."""
    walked = os.walk(out)
    return any(".extracting-" in folder and name.endswith(".part") for folder, _, names in walked for name in names)


@contextlib.contextmanager
def half_done(place: Place, workers: int) -> Iterator[subprocess.Popen[str]]:
    """A process that has finished a recording, and waits in the middle of another one."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", SCRIPT, str(place.source), str(place.out), str(workers)]
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, cwd=ROOT)
    try:
        wait_until(lambda: list(place.out.glob("*.npy")), process)
        wait_until(lambda: is_writing(place.out), process)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def group_is_gone(group: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, 0)
        return False
    return True


def times(place: Place) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in place.out.glob("*.npy")}


@pytest.mark.integration
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_run_again(place: Place, whole: dict[str, bytes], workers: int):
    with half_done(place, workers) as process:
        process.kill()  # the parent only: workers, which are in the middle of a recording, notice
        process.communicate()
        wait_until(lambda: group_is_gone(process.pid))
    finished = times(place)
    assert 0 < len(finished) < len([name for name in whole if name.endswith(".npy")])
    for file in finished:
        assert (place.out / file.replace(".npy", ".rows.npz")).exists()
        assert (place.out / file).read_bytes() == whole[file]
    result = place.extract(frames_per_file=30)
    assert 0 < result.skipped < 4
    assert place.contents() == whole
    assert times(place).items() >= finished.items()


@pytest.mark.integration
def test_interrupted_with_workers_and_run_again(place: Place, whole: dict[str, bytes]):
    with half_done(place, workers=2) as process:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it, to the workers as well
        (place.source / "go").touch()
        out, err = process.communicate(timeout=900)
    assert (process.returncode, err) == (0, ""), (out, err)
    assert "interrupted=True" in out
    place.extract(frames_per_file=30)
    assert place.contents() == whole


@pytest.mark.parametrize("moment", [1, 5, 16])
def test_interrupted_in_this_process(
    place: Place, whole: dict[str, bytes], moment: int, monkeypatch: pytest.MonkeyPatch
):
    """At any of the 16 chunks: it does not wait for the end of the recording."""
    read, chunks = [0], Fake.chunks

    def interrupted_chunks(self: Fake) -> Iterator[Any]:
        for chunk in chunks(self):
            read[0] += 1
            if read[0] == moment:
                signal.raise_signal(signal.SIGINT)
            yield chunk

    with monkeypatch.context() as patch:
        patch.setattr(Fake, "chunks", interrupted_chunks)
        result = place.extract(frames_per_file=30)
    assert (result.interrupted, result.recordings) == (True, {1: 0, 5: 1, 16: 3}[moment])
    assert not list(place.out.glob(".*"))
    place.extract(frames_per_file=30)
    assert place.contents() == whole


@pytest.mark.integration
def test_workers_do_not_matter_and_one_that_dies_is_named(place: Place, whole: dict[str, bytes]):
    # It dies when it has written frames, which must not be in the way of its second try.
    deadly, fine = place.source / "deadly", fakes(place.source, 4)
    deadly.write_text("")
    place.recordings = [*fine[:1], Fake("clip 1", place.source / "clip 1.fake", seed=1, dies_at=48), *fine[2:]]
    result = place.extract(workers=2, frames_per_file=30)
    assert [failed.name for failed in result.damaged] == ["clip 1"]
    assert (result.recordings, result.interrupted) == (3, False)
    assert not list(place.out.glob(".*"))
    deadly.unlink()
    assert place.extract(workers=2, frames_per_file=30).recordings == 4
    assert place.contents() == whole


@pytest.mark.parametrize("moved", [0, 1, 4])
def test_killed_between_a_whole_recording_and_its_entry(
    place: Place, whole: dict[str, bytes], moved: int, monkeypatch: pytest.MonkeyPatch
):
    """A recording's files are moved one by one, and the index is written after that: the next run finishes this."""
    add, replace, count = FrameFolder.add, Path.replace, [0]

    class Killed(BaseException):
        pass

    def killed_add(self: FrameFolder, name: str, entry: Any, staged: Path) -> None:
        def killed_replace(path: Path, to: Path) -> Path:
            if count[0] == moved or to.name == "frames.json":
                raise Killed
            count[0] += 1
            return replace(path, to)

        with monkeypatch.context() as inner:
            if name == "clip 1":
                inner.setattr(Path, "replace", killed_replace)
            add(self, name, entry, staged)

    with monkeypatch.context() as patch:
        patch.setattr(FrameFolder, "add", killed_add)
        with pytest.raises(Killed):
            place.extract(frames_per_file=30)
    assert list(place.index["recordings"]) == ["clip 0"]
    for file in place.out.glob("*.npy"):
        assert file.with_suffix(".rows.npz").exists()
    assert place.extract(frames_per_file=30).skipped == 2
    assert place.contents() == whole


def test_finished_recordings_are_not_read_again(place: Place, monkeypatch: pytest.MonkeyPatch):
    place.extract()
    before = place.contents()
    with monkeypatch.context() as patch:
        patch.setattr(Fake, "chunks", lambda self: pytest.fail("read again"))
        result = place.extract()
        assert (result.skipped, result.new_frames, result.frames, result.interrupted) == (3, 0, 150, False)
        assert place.contents() == before
        place.recordings = [Fake("in/clip 1", place.source / "clip 1.fake", seed=1)]  # found from one folder above
        assert place.extract().skipped == 1
    place.recordings = fakes(place.source, 4)
    result = place.extract()
    assert (result.skipped, result.new_frames, result.recordings) == (3, 70, 4)


def test_a_part_with_a_slash_in_its_name_is_known_when_it_is_found_from_one_folder_above(place: Place):
    for name in ("all/clips/walk", "in/all/clips/walk"):
        place.recordings = [Fake(name, place.source / "clip 0.fake", part="clips/walk")]
        assert place.extract().recordings == 1


def test_other_settings(place: Place):
    place.extract()
    before = place.contents()
    for name, value in (("size", 24), ("drop_duplicates", 0.5), ("gui", "drop")):
        with pytest.raises(InputError, match=name):
            place.extract(**{name: value})
    assert place.contents() == before


def test_a_source_that_changed(place: Place):
    place.extract()
    (place.source / "clip 1.fake").write_text("another one")
    with pytest.raises(InputError, match="clip 1"):
        place.extract()
    (place.out / "clip-1.npy").unlink()
    (place.out / "clip-1.rows.npz").unlink()
    assert place.extract().skipped == 2
    assert place.index["recordings"]["clip 1"]["fingerprint"] == place.recordings[1].fingerprint()


def test_a_file_that_changed_or_went_missing(place: Place):
    place.extract(frames_per_file=20)
    before = place.contents()
    for name in ("clip-1_001.npy", "clip-2_000.rows.npz"):
        (place.out / name).unlink()
    left = times(place)
    assert place.extract(frames_per_file=20).skipped == 1
    assert place.contents() == before
    assert times(place).items() >= left.items()
    np.save(place.out / "clip-0_000.npy", np.zeros((3, 16, 16, 3), np.uint8))
    other = (place.out / "clip-0_000.npy").read_bytes()
    for name, content in (
        ("clip-0_000.npy", other),
        ("clip-0_000.npy", before["clip-0_000.npy"][:-5]),
        ("frames.json", b"{}"),
    ):
        (place.out / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            place.extract(frames_per_file=20)


@pytest.mark.parametrize("where", ["header", "frames", "rows", "index"])
def test_full_disk(place: Place, monkeypatch: pytest.MonkeyPatch, where: str):
    pwrite, write = os.pwrite, FrameFolder.write

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    def full_pwrite(fd: int, data: Any, at: int) -> int:
        return full() if where == "header" or at > 768 * 45 else pwrite(fd, data, at)

    def full_write(self: FrameFolder) -> None:
        if "clip 1" in self.entries:
            full()
        write(self)

    with monkeypatch.context() as patch:
        if where in ("header", "frames"):  # of the second recording; the first has 40
            patch.setattr("vae_training.data.npy_writer.os.pwrite", full_pwrite)
        elif where == "rows":
            patch.setattr("numpy.lib.format.write_array", full)
        else:
            patch.setattr(FrameFolder, "write", full_write)
        with pytest.raises(DiskFullError, match=place.out.name):
            place.extract()
    if where in ("frames", "index"):
        assert [len(file) for file in get_datasets(place.out)] == {"frames": [40], "index": [40, 50]}[where]
    assert not list(place.out.rglob("*.part"))
    assert place.extract().recordings == 3
    assert not list(place.out.glob(".*"))


def test_one_extraction_at_a_time(place: Place):
    with FrameFolder.open(place.out, {}), pytest.raises(InputError, match=str(os.getpid())):
        place.extract()


@pytest.mark.parametrize("where", ["entry", "index"])
def test_nothing_in_a_folder_names_a_path_outside(place: Place, where: str):
    """Of names, links and values that no run has written, none is followed, and no file outside is touched."""
    outside, file = place.source.parent / "outside", {"file": "y.npy", "rows": "y.rows.npz"}
    (outside / "y").mkdir(parents=True)

    def entry_of(names: dict[str, Any]) -> dict[str, Any]:
        written = place.index["recordings"]["clip 0"]
        return {**written, "files": [{"frames": 1, **names}]}

    def stage(folder: Path, names: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for at in (folder, folder.parent):
            for name in ("x.npy", "x.rows.npz", "y.npy", "y.rows.npz"):
                (at / name).write_bytes(b"precious")
        (folder / "entry.json").write_text(json.dumps([folder.name, entry_of(names), [16, 16, 3]]))

    def not_ours() -> dict[Path, bytes]:
        files = [path for path in place.source.parent.rglob("*") if place.out not in path.parents and path.is_file()]
        return {path: path.read_bytes() for path in files}

    place.extract()
    stage(outside / "y", file)
    before = not_ours()
    for names in (
        {"file": "../x.npy", "rows": "x.rows.npz"},
        {"file": "x.npy", "rows": "../x.rows.npz"},
        {"file": str(outside / "x.npy"), "rows": "x.rows.npz"},
        {"file": "..", "rows": "...rows.npz"},
        {"file": 5, "rows": None},
        {"file": "x.npy", "rows": "x.rows.npz", "frames": "1"},
    ):
        if where == "entry":
            stage(place.out / ".extracting-1" / "x", names)
            (place.out / ".extracting-2").symlink_to(outside, target_is_directory=True)
            (place.out / ".extracting-1" / "y").symlink_to(outside / "y", target_is_directory=True)
            assert place.extract().recordings == 3
            (place.out / ".extracting-2").unlink()
            assert not list(place.out.glob(".*"))
        else:
            place.extract()
            index = place.index
            changed = {**index, "recordings": {**index["recordings"], "x": entry_of(names)}}
            (place.out / "frames.json").write_text(json.dumps(changed))
            with pytest.raises(InputError, match=r"frames\.json"):
                place.extract()
            (place.out / "frames.json").write_text(json.dumps(index))
        assert not_ours() == before


UNGUARDED = """
import sys
from pathlib import Path
from vae_training import ExtractConfig, extract
print("begun")
result = extract(ExtractConfig((Path(sys.argv[1]),), Path(sys.argv[2]), size=16, workers=2))
print(result.frames, result.damaged)
"""


@pytest.mark.integration
def test_a_script_without_a_main_guard(tmp_path: Path):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.zeros((10, 16, 16, 3), np.uint8))
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    command = [sys.executable, str(script), str(tmp_path), str(tmp_path.parent / "out")]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("begun") == 1
    assert "30 ()" in done.stdout
