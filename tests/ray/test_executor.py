"""Extraction and comparisons on a cluster of two nodes: the results of one machine, also if a node is lost."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from latent_obs.util.errors import InputError, MissingExtraError
from latent_obs.util.ray import RayExecutor, connect
from tests.support import ROOT
from tests.support.fake_recordings import fakes
from tests.support.side_env import SIDE
from tests.vae_training.extraction.conftest import Place, place
from tests.vae_training.extraction.test_extract_restart import is_writing, wait_until

pytestmark = pytest.mark.ray
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}

SCRIPT = """
import sys
from pathlib import Path
from tests.support.fake_recordings import fakes
from vae_training.extraction import extractor
source, out, address = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
extractor.find_recordings = lambda paths, **_: (fakes(source, 4, waits=True), [])
# By default there would be a third task as long as a lost node counts, and Ray could run the two that wait first.
config = extractor.ExtractConfig((source,), out, size=16, frames_per_file=30, engine="ray", address=address, workers=2)
print(extractor.extract(config))
"""


def dies() -> None:
    os._exit(1)


def fails(text: str) -> None:
    raise FileNotFoundError(2, text)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head node that runs no tasks, and two nodes with a CPU each. Nothing of it is left afterwards.

    It asks for no token, and the user has one, which Ray would send if it were asked to, and the tasks would be lost.
    """
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # short, as the names of sockets in it are limited
    made = cluster_utils.Cluster()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("HOME", folder)
        patch.setenv("RAY_TMPDIR", folder)  # not `temp_dir`: the head writes its address into the default folder
        (Path(folder) / ".ray").mkdir()
        (Path(folder) / ".ray" / "auth_token").write_text("0123456789" * 4)
        try:
            made.add_node(**{**NODE, "num_cpus": 0})
            for _ in range(2):
                made.add_node(**NODE)
            yield made
        finally:
            made.shutdown()
            wait_until(lambda: not with_words(folder))
            shutil.rmtree(folder)


def with_words(text: str) -> list[psutil.Process]:
    """Processes with a text in their command line."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(text in word for word in process.cmdline()):
                found.append(process)
    return found


@contextlib.contextmanager
def when(ready: Callable[[], object], act: Callable[[], object]) -> Iterator[None]:
    """Do something in a thread as soon as something is so."""
    thread = threading.Thread(target=lambda: (wait_until(ready), act()))
    thread.start()
    try:
        yield
    finally:
        thread.join()


def lose_a_node(cluster: Any, words: str = "") -> None:
    """Kill a node, that of a process with such words if they are given.

    The caller adds another one afterwards, which only the main thread can.
    """
    above = (
        [word for one in with_words(words) for parent in one.parents() for word in parent.cmdline()] if words else []
    )
    nodes = sorted(cluster.worker_nodes, key=lambda node: any(node.node_id in word for word in above))
    cluster.remove_node(nodes[-1], allow_graceful=False)


def test_calls_run_on_the_nodes_and_raise_what_they_would_here(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("latent_obs.util.ray.RETRIES", 0)  # a process takes seconds to start
    with connect(cluster.address) as ray:
        with RayExecutor(ray, tmp_path) as pool:
            assert pool.at_once == 2
            assert list(pool.map(pow, (2, 3), (5, 2))) == [32, 9]
            assert pool.submit(os.getcwd).result() == str(Path.cwd())
            with pytest.raises(FileNotFoundError, match="gone") as raised:
                pool.submit(fails, "gone").result()
            assert raised.value.errno == 2
            with pytest.raises(BrokenExecutor):
                pool.submit(dies).result()
            next(tmp_path.glob(".shared-*")).unlink()  # as on a node with another file system
            with pytest.raises(InputError, match=str(tmp_path)):
                pool.submit(pow, 2, 5).result()
        assert not list(tmp_path.iterdir())
        with (
            RayExecutor(ray, tmp_path, [tmp_path / "recordings"]) as pool,
            pytest.raises(InputError, match="recordings"),
        ):
            pool.submit(pow, 2, 5).result()
        with pytest.raises(InputError, match="3 CPUs"):
            RayExecutor(ray, tmp_path, cpus=3)


def test_extraction_gives_the_bytes_of_one_machine_also_if_a_node_is_lost(place: Place, tmp_path: Path, cluster: Any):
    place.recordings = fakes(place.source, 6)
    place.extract(out=tmp_path / "here", frames_per_file=30)
    here = {file.name: file.read_bytes() for file in (tmp_path / "here").iterdir()}
    place.recordings = fakes(place.source, 6, waits=True)

    def lose() -> None:
        lose_a_node(cluster)
        (place.source / "go").touch()

    def both_write() -> bool:
        return bool(list(place.out.glob("*.npy"))) and len(list(place.out.glob(".extracting-*/tmp*/*/*.part"))) == 2

    with when(both_write, lose):
        result = place.extract(engine="ray", address=cluster.address, frames_per_file=30, workers=None)
    cluster.add_node(**NODE)
    assert (result.recordings, result.damaged, result.interrupted) == (6, (), False)
    assert place.contents() == here


def test_ctrl_c_keeps_what_is_finished_and_leaves_nothing(place: Place, tmp_path: Path, cluster: Any):
    place.recordings = fakes(place.source, 4)
    place.extract(out=tmp_path / "here", frames_per_file=30)
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", SCRIPT, str(place.source), str(place.out), cluster.address]
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, cwd=ROOT)
    wait_until(lambda: list(place.out.glob("*.npy")) and is_writing(place.out), process)
    os.killpg(process.pid, signal.SIGINT)
    (place.source / "go").touch()  # a task ends when the chunk that it waits for is read
    out, err = process.communicate(timeout=900)
    assert (process.returncode, "interrupted=True" in out) == (0, True), (out, err)
    assert not list(place.out.glob(".*"))
    place.extract(frames_per_file=30)
    assert place.contents() == {file.name: file.read_bytes() for file in (tmp_path / "here").iterdir()}


def test_a_study_gives_the_numbers_of_one_machine_also_if_a_node_is_lost(cluster: Any, tmp_path: Path):
    from agents.compare import Results, Study, Task, compare

    sizes = {"envs": 2, "n_steps": 32, "batch_size": 64, "n_epochs": 1, "eval_episodes": 2, "checkpoint_every": 256}
    slow = tmp_path / "slow"  # so that an interrupt, and a lost node, find the run at work
    settings = {"workers": "serial", "device": "cpu", "env_kwargs": {"slow": str(slow)}, **sizes}
    study = Study({"side": Task(SIDE)}, ("random-latent",), (0,), 4096, 4, evaluations=2, settings=settings)

    def made(out: Path, **where: Any) -> Results:
        return compare(study, out, jobs=1, threads=1, say=lambda text: None, **where)

    def numbers(results: Results) -> list[Any]:
        assert results.missing == {}
        (run,) = results.runs["side"]["random-latent"]
        rows = [{**row, "seconds": 0} for row in run["evaluations"]]
        return [rows, run["final"]["returns"], results.random["side"]]

    folder = tmp_path / "there" / "runs" / "side" / "random-latent" / "seed_0"

    def saved() -> object:
        return (folder / "evaluations.jsonl").exists()

    def interrupt() -> None:
        slow.touch()
        os.kill(os.getpid(), signal.SIGINT)

    def lose() -> None:
        lose_a_node(cluster, str(folder))
        slow.unlink()

    there = {"engine": "ray", "address": cluster.address}
    with when(saved, interrupt), pytest.raises(KeyboardInterrupt):
        made(tmp_path / "there", **there)
    assert not with_words(str(tmp_path))
    assert not folder.with_name("seed_0.json").exists()
    usage = folder.with_name("seed_0.usage.json")
    before = usage.read_text()
    with when(lambda: usage.read_text() != before, lose):
        results = made(tmp_path / "there", **there)
    cluster.add_node(**NODE)
    assert results.runs["side"]["random-latent"][0]["attempts"] == 3
    assert numbers(results) == numbers(made(tmp_path / "here"))


def test_a_dead_address(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("latent_obs.util.ray._ANSWER_SECONDS", 1.0)
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9"), connect("127.0.0.1:9"):
        pass
    for address in ("nonsense", "ray://127.0.0.1:9"):
        with pytest.raises(InputError, match=address), connect(address):
            pass


def test_rllib_needs_its_version_of_gymnasium(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.4.0")
    with pytest.raises(MissingExtraError, match=r"gymnasium.*1\.4\.0"), connect("127.0.0.1:9", rllib=True):
        pass
