"""Shards: processes that extract parts of the same recordings to one folder give the files of one run."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_obs.util.errors import InputError
from tests.support import ROOT
from tests.support.fake_recordings import Fake, fakes
from tests.vae_training.extraction.conftest import Place
from tests.vae_training.extraction.test_extract_restart import wait_until
from vae_training.data.frames import get_datasets, split_held_out
from vae_training.data.stats import find_warnings, frame_stats
from vae_training.extraction import extractor
from vae_training.extraction.extractor import ExtractConfig
from vae_training.extraction.index import FrameFolder
from vae_training.extraction.readers.base import Damaged

SCRIPT = """
import importlib, sys
from pathlib import Path
e = importlib.import_module("vae_training.extraction.extractor")
from tests.support.fake_recordings import fakes
source, out, shard = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
e.find_recordings = lambda paths, **_: (fakes(source, 12, waits=True), [])
print(e.extract(e.ExtractConfig((source,), out, size=16, workers=1, frames_per_file=30, shard=shard)))
"""


def arrays(folder: Path) -> dict[str, bytes]:
    """The frames and rows; indexes are not those of one run."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".npy", ".npz")}


def recordings_of(folder: Path) -> dict[str, Any]:
    files = [json.loads(file.read_text())["recordings"] for file in sorted(folder.glob("frames*.json"))]
    assert sum(map(len, files)) == len({name for file in files for name in file}), "each is of one shard"
    return {name: entry for file in files for name, entry in file.items()}


@pytest.mark.integration
def test_three_processes_one_killed_give_the_files_of_one_run(place: Place, tmp_path: Path):
    place.recordings = fakes(place.source, 12)
    place.extract(out=tmp_path / "whole", frames_per_file=30)

    def start(shard: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SCRIPT, str(place.source), str(place.out), shard]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)

    processes = {shard: start(shard) for shard in ("1/3", "2/3", "3/3")}
    try:
        # Each waits in the middle of its first recording but for clip 0, which the third has finished.
        for i, (clip, process) in enumerate(zip((3, 8, 1), processes.values(), strict=True), 1):
            pattern = f".extracting.shard-{i}-of-3-*/tmp*/clip-{clip}/*.part"
            wait_until(lambda pattern=pattern: list(place.out.glob(pattern)), process)
        assert sorted(file.name for file in place.out.glob("*.npy")) == ["clip-0_000.npy", "clip-0_001.npy"]
        processes["3/3"].send_signal(signal.SIGKILL)
        processes["3/3"].communicate()
        assert list(place.out.glob(".extracting.shard-3-of-3-*")), "what it leaves"
        processes["3/3"] = start("3/3")
        (place.source / "go").touch()
        said = {shard: process.communicate(timeout=900)[0] for shard, process in processes.items()}
        assert [process.returncode for process in processes.values()] == [0, 0, 0], said
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    assert arrays(place.out) == arrays(tmp_path / "whole")
    assert recordings_of(place.out) == recordings_of(tmp_path / "whole")
    assert sorted(file.name for file in place.out.glob("*.json")) == [f"frames.shard-{i}-of-3.json" for i in (1, 2, 3)]
    assert not list(place.out.glob(".*"))


def test_readers_see_all_shards(place: Place):
    place.recordings = fakes(place.source, 8)
    place.extract(shard="1/2", frames_per_file=30)
    assert any("2/2" in line for line in place.said)
    assert any("2/2" in warning for warning in find_warnings(frame_stats(place.out)))
    place.extract(shard="2/2", frames_per_file=30)
    assert not any("2/2" in warning for warning in find_warnings(frame_stats(place.out)))
    datasets = get_datasets(place.out)
    assert sum(map(len, datasets)) == sum(range(40, 120, 10))
    held_out = split_held_out(datasets, 1)[1]  # of a recording in four files, by whichever shard
    assert [len(piece) for piece in held_out] == [30, 30, 30, 20]


def test_a_shard_that_was_interrupted_has_not_finished(place: Place, monkeypatch: pytest.MonkeyPatch):
    place.recordings = fakes(place.source, 8)
    place.extract(shard="1/2")
    run_tasks = extractor.run_tasks

    def one_only(*args: Any) -> Generator[Any]:
        yield next(run_tasks(*args))

    with monkeypatch.context() as patch:
        patch.setattr(extractor, "run_tasks", one_only)
        assert place.extract(shard="2/2").interrupted
    for said in (place.said, find_warnings(frame_stats(place.out))):
        assert "--shard 2/2 has not finished" in said[-1]
    assert not any("next:" in line for line in place.said)
    place.extract(shard="2/2")
    assert "next:" in place.said[-1]
    assert not any("finished" in warning for warning in find_warnings(frame_stats(place.out)))


@pytest.mark.parametrize("first", ["1/2", "2/2"])
def test_names_that_collide_are_those_of_one_run(place: Place, tmp_path: Path, first: str):
    """Whatever is finished already: after a kill, and in another shard."""
    place.source.mkdir(exist_ok=True)
    names = ["a b", "a-b", "A-b", "x", "x_000", "free"]
    for name in names:
        (place.source / f"{name}.fake").write_text(name)
    place.recordings = [Fake(name, place.source / f"{name}.fake", seed=i, frames=40) for i, name in enumerate(names)]
    place.extract(out=tmp_path / "whole", frames_per_file=30)
    place.extract(shard=first, frames_per_file=30)
    place.extract(shard={"1/2": "2/2", "2/2": "1/2"}[first], frames_per_file=30)
    assert arrays(place.out) == arrays(tmp_path / "whole")
    every = place.recordings
    shutil.rmtree(place.out)
    for finished in range(1, len(every)):
        place.recordings = every
        place.extract(frames_per_file=30)
        index = place.index
        kept = dict(list(index["recordings"].items())[:finished])
        (place.out / "frames.json").write_text(json.dumps({**index, "recordings": kept}))
        files = {part[kind] for entry in kept.values() for part in entry["files"] for kind in ("file", "rows")}
        for file in arrays(place.out).keys() - files:
            (place.out / file).unlink()
        place.extract(frames_per_file=30)
        assert arrays(place.out) == arrays(tmp_path / "whole")


def test_one_that_goes_on_and_recordings_that_are_added(place: Place):
    place.extract(shard="1/2")
    place.extract(shard="2/2")
    place.recordings = fakes(place.source, 6)
    results = [place.extract(shard=shard) for shard in ("1/2", "2/2", "1/2")]
    assert sum(result.new_frames for result in results) == 70 + 80 + 90
    assert results[2].skipped == results[2].recordings == results[0].recordings
    # Found from one folder above, where other names are in other shards.
    place.recordings = [Fake(f"in/{each.name}", each.source, seed=i) for i, each in enumerate(place.recordings)]
    assert sum(place.extract(shard=shard).skipped for shard in ("1/2", "2/2")) == 6
    assert len(get_datasets(place.out)) == 6


def test_a_name_that_another_shard_has_taken(place: Place):
    """By a recording that is not found any more."""
    for name, shard in (("a-b", "1/2"), ("a b", "2/2")):
        (place.source / f"{name}.fake").write_text(name)
        place.recordings = [Fake(name, place.source / f"{name}.fake")]
        assert place.extract(shard=shard).new_frames == 50
    assert len(get_datasets(place.out)) == 2


def test_more_shards_than_recordings_and_damaged_ones(place: Place):
    place.recordings[1] = Fake("clip 1", place.source / "clip 1.fake", breaks_at=32)
    place.damaged = [Damaged("x", place.source / "x.fake", "it lacks an end")]
    results = [place.extract(shard=f"{i}/9") for i in range(1, 10)]
    assert sorted(bad.name for result in results for bad in result.damaged) == ["clip 1", "x"]
    assert sum(result.recordings for result in results) == 2
    assert "not finished" not in place.said[-1]
    assert len(list(place.out.glob("frames.shard-*-of-9.json"))) == 9


def test_the_shape_of_frames_at_their_own_size_is_that_of_the_first_recording(place: Place, tmp_path: Path):
    """In each shard, as in one run; those of another shape are damaged, and the first of shard 1 is one of them."""
    sources = [each.source for each in fakes(place.source, 6)]
    place.recordings = [
        Fake(f"clip {i}", source, seed=i, breaks_at=0 if i == 0 else None, shape=(30 + 2 * (i == 3), 40))
        for i, source in enumerate(sources)
    ]
    whole = place.extract(out=tmp_path / "whole", size=None)
    results = [place.extract(shard=f"{i}/3", size=None) for i in (1, 2, 3)]
    assert sorted(bad.name for result in results for bad in result.damaged) == ["clip 0", "clip 3"]
    assert {bad.name for bad in whole.damaged} == {"clip 0", "clip 3"}
    assert arrays(place.out) == arrays(tmp_path / "whole")


def test_shards_of_other_shapes(place: Place):
    """As when the first recording was replaced between the starts of two shards that have finished nothing yet."""
    place.recordings = fakes(place.source, 9)
    place.extract(shard="1/3")
    other = place.out / "frames.shard-3-of-3.json"
    index = json.loads((place.out / "frames.shard-1-of-3.json").read_text())
    other.write_text(json.dumps({**index, "shape": [24, 24, 3], "frames": 0, "recordings": {}}))
    with pytest.raises(InputError, match=r"frames\.shard-\d-of-3\.json.*size"):
        place.extract(shard="2/3")
    assert not (place.out / "frames.shard-2-of-3.json").exists()


def test_shards_that_begin_at_the_same_time_with_other_settings(place: Place, monkeypatch: pytest.MonkeyPatch):
    """Neither sees the other at first; the one that writes its index last does, and takes it back."""
    place.recordings = fakes(place.source, 5)
    settle = FrameFolder.settle_shape

    def while_another_begins(self: FrameFolder, shape: tuple[int, ...]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(FrameFolder, "settle_shape", settle)
            place.extract(shard="2/2", stride=2)
        settle(self, shape)

    with monkeypatch.context() as patch:
        patch.setattr(FrameFolder, "settle_shape", while_another_begins)
        with pytest.raises(InputError, match="stride"):
            place.extract(shard="1/2")
    assert [file.name for file in place.out.glob("frames*.json")] == ["frames.shard-2-of-2.json"]
    assert place.extract(shard="1/2", stride=2).recordings + place.extract(shard="2/2", stride=2).recordings == 5


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "1/0", "-1/3", "1/3/3", "one of three", "1.0/3", "", "²/3"])
def test_no_shards(place: Place, shard: str):
    with pytest.raises(InputError, match="shard"):
        ExtractConfig((place.source,), place.out, shard=shard)


def test_a_folder_that_was_begun_otherwise(place: Place, tmp_path: Path):
    place.extract(shard="1/3")
    before = place.contents()
    for shard in (None, "1/4", "1/2"):
        with pytest.raises(InputError, match=r"--shard i/3.*out"):
            place.extract(shard=shard)
    with pytest.raises(InputError, match="stride"):
        place.extract(shard="2/3", stride=3)
    whole = tmp_path / "whole"
    place.extract(out=whole)
    with pytest.raises(InputError, match=r"without --shard.*out"):
        place.extract(shard="1/3", out=whole)
    assert place.contents() == before
    (place.out / "frames.shard-1-of-3.json").write_text("{}")
    with pytest.raises(InputError, match=r"frames\.shard-1-of-3\.json"):
        place.extract(shard="2/3")


def test_a_shard_that_is_started_twice(place: Place):
    settings = ExtractConfig((place.source,), place.out, size=16).settings()
    with FrameFolder.open(place.out, settings, place.said.append, (1, 3)):
        with pytest.raises(InputError, match=rf"shard-1-of-3.*{os.getpid()}"):
            place.extract(shard="1/3")
        place.extract(shard="2/3")
    assert np.all([file.name[0] != "." for file in place.out.iterdir()])
