"""The runs of a comparison: processes that are started, shared out, stopped and gone on with, and what each leaves."""

import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import ROOT

pytest.importorskip("stable_baselines3")

from agents import read_evaluations, train_agent
from agents.compare import Study, Task, collect, compare, saved_study
from agents.compare import runs as engine
from agents.compare.runs import FINISHED, Planned, check_same, plan_runs, run_all
from agents.compare.worker import metered, run_job, stop_with_parent
from latent_obs.util.atomic import folder_lock, write_json
from latent_obs.util.errors import InputError
from tests.support.side_env import SIDE, tiny

STAND_IN = ("-S", str(ROOT / "tests" / "support" / "compare_stand_in.py"))
Runs = Callable[..., list[Planned]]


def quiet(text: str) -> None:
    """Where messages go that a test does not read."""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runs:
    """Plans runs of a process that does as its arm is called: the real one takes seconds to start."""
    monkeypatch.setattr(engine, "WORKER", STAND_IN)
    monkeypatch.setattr(engine, "_PAUSE_S", 0.02)

    def planned(*arms: str, seeds: tuple[int, ...] = (0,), **settings: Any) -> list[Planned]:
        variants = {arm: {"observation": "random-latent"} for arm in arms}
        return plan_runs(
            Study({"t": Task("Side-v0")}, arms, seeds, 64, settings=settings, arm_settings=variants), tmp_path
        )

    return planned


def numbers(run: Planned) -> dict[str, Any]:
    return json.loads(run.file(".json").read_text())


def happens(condition: Callable[[], bool]) -> bool:
    """Wait until something is so; False if it does not happen."""
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@contextlib.contextmanager
def stopped_when(ready: Callable[[], bool]) -> Iterator[None]:
    """Send this process what Ctrl-C sends, once something is so."""
    thread = threading.Thread(target=lambda: (happens(ready), os.kill(os.getpid(), signal.SIGINT)))
    thread.start()
    try:
        yield
    finally:
        thread.join()


def gone(pids: list[int]) -> bool:
    """Whether these processes end."""

    def ended(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return happens(lambda: all(map(ended, pids)))


def test_runs_share_the_cores_and_finished_ones_are_not_made_again(stand_in: Runs):
    runs, said = stand_in("good", "good of another", seeds=(0, 1)), []
    assert run_all(runs[:2], jobs=1, say=quiet) == {}
    before = [numbers(run)["began"] for run in runs[:2]]
    assert run_all(runs, jobs=2, threads=3, say=said.append) == {}
    assert [numbers(run)["began"] for run in runs[:2]] == before
    moments = [(numbers(run)["began"], 1) for run in runs] + [(numbers(run)["ended"], -1) for run in runs]
    at_once = [sum(change for _, change in sorted(moments)[: i + 1]) for i in range(len(moments))]
    assert max(at_once) <= 2
    assert {numbers(run)["threads"] for run in runs[2:]} == {"3"}
    for run in runs[2:]:
        assert sum(run.name in line for line in said) == 2, "when it begins, and when it ends"
    assert any(" left, about " in line for line in said)


def test_a_run_that_fails_is_reported_with_its_reason_and_the_others_go_on(stand_in: Runs, tmp_path: Path):
    runs, said = stand_in("crash", "good", "mistake"), []
    failures = run_all(runs, jobs=1, say=said.append)
    assert set(failures) == {"t, crash, seed 0", "t, mistake, seed 0"}
    assert failures["t, mistake, seed 0"] == "no such game"
    for part in ("exit status 1", "something / that it said last"):
        assert part in failures["t, crash, seed 0"]
    assert [run.arm for run in runs if run.is_finished] == ["random policy", "good"]
    assert sum("FAILED" in line and "seed_0.log" in line for line in said) == 2
    variants = {arm: {"observation": "random-latent"} for arm in ("crash", "good", "mistake")}
    study = Study({"t": Task("Side-v0")}, tuple(variants), (0,), 64, arm_settings=variants)
    missing = collect(study, tmp_path).missing
    assert missing.keys() == failures.keys()
    assert missing["t, mistake, seed 0"] == "failed: no such game"


def test_other_settings_are_refused_before_anything_starts(stand_in: Runs):
    settings = {
        **stand_in("good")[1].signature(),
        "precision": "float32",
        "backend": "torch",
    }  # as earlier versions wrote
    write_json(stand_in("good")[1].file(".json"), {"settings": settings})
    check_same(stand_in("good")[1])
    runs = stand_in("good of another", "good", history=2)
    with pytest.raises(InputError, match="history was 1, is now 2"):
        run_all(runs, jobs=1, say=quiet)
    with pytest.raises(InputError, match="jobs"):
        run_all(runs, say=quiet, jobs=0)
    with pytest.raises(InputError, match="threads"):
        run_all(runs, say=quiet, threads=0)
    assert not runs[1].file(".log").exists()


@pytest.mark.integration
def test_ctrl_c_stops_all_and_the_same_call_goes_on(stand_in: Runs):
    runs = stand_in("slow", "slow of another")

    def ready() -> bool:
        logs = [run.file(".log") for run in runs[1:]]
        return all(log.exists() and "ready" in log.read_text() for log in logs)

    with stopped_when(ready), pytest.raises(KeyboardInterrupt):
        run_all(runs, jobs=2, say=quiet)
    pids = [pid for run in runs[1:] for pid in json.loads(run.file(".note").read_text())["pids"]]
    assert len(pids) == 4
    assert gone(pids), "they, and what they started"
    assert not any(run.is_finished for run in runs[1:])
    assert not any(run.file(".failed.json").exists() for run in runs)
    assert run_all(runs, jobs=2, say=quiet) == {}
    assert all(run.is_finished for run in runs)


@pytest.mark.integration
def test_a_run_that_does_not_stop_is_killed(stand_in: Runs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine, "_GRACE_S", 0.3)
    run = stand_in("stubborn")[1]
    with stopped_when(run.file(".note").exists), pytest.raises(KeyboardInterrupt):
        run_all([run], jobs=1, say=quiet)
    assert gone(json.loads(run.file(".note").read_text())["pids"])


def test_a_folder_is_worked_in_by_one_at_a_time(tmp_path: Path):
    study = Study({"t": Task("Side-v0")}, ("random-latent",), (0,), 64)
    with folder_lock(tmp_path), pytest.raises(InputError, match=str(os.getpid())):
        compare(study, tmp_path, say=quiet)
    assert not list(tmp_path.iterdir())


def test_runs_under_way_are_reported(stand_in: Runs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine, "_FIRST_REPORT_S", 0.0)
    run, said = stand_in("talks")[1], list[str]()
    run_all([run], jobs=1, say=said.append)
    assert any(run.name in line and "half way" in line for line in said), said


@pytest.mark.integration
def test_a_run_whose_starter_is_gone_stops(tmp_path: Path):
    noted = tmp_path / "noted"
    starter = os.fork()
    if starter == 0:
        run = os.fork()
        if run == 0:
            with contextlib.suppress(BaseException):
                signal.signal(signal.SIGTERM, lambda *_: (noted.write_text("stopped"), os._exit(0)))
                stop_with_parent(os.getppid())
                time.sleep(60)
        time.sleep(0.3)
        os._exit(0)
    os.waitpid(starter, 0)
    assert happens(noted.exists)


def test_costs_are_those_of_all_processes_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "usage.json"
    work = "import time; b = b'x' * 120_000_000\nwhile time.process_time() < 0.6: pass"
    monkeypatch.setattr("agents.compare.worker._LONGEST_PAUSE_S", 0.1)
    write_json(file, [{"wall_seconds": 7.0}])
    with metered(file):
        own = getattr(psutil.Process().memory_full_info(), "pss", 0) / 1e6 or psutil.Process().memory_info().rss / 1e6
        psutil.Popen([sys.executable, "-S", "-c", work]).wait()
    earlier, entry = json.loads(file.read_text())
    assert earlier == {"wall_seconds": 7.0}
    assert entry["cpu_seconds"] >= 0.5
    assert entry["wall_seconds"] > 0.6
    assert own + 90 < entry["peak_memory_mb"] < own + 300
    assert "environments" in entry["memory_how"]


def test_a_run_leaves_its_numbers_and_goes_on_where_it_stopped(encoder_folder: Path, tmp_path: Path):
    config = tiny(env=SIDE, encoder=encoder_folder, out=tmp_path / "seed_0", checkpoint_every=32)
    job: dict[str, Any] = {name: str(tmp_path / f"seed_0.{name}.json") for name in ("result", "usage", "failed")}
    job |= {"kind": "train", "task": "t", "arm": "latent", "seed": 0, "episodes": 3, "settings": {"a": 1}}
    job |= {"config": config.to_json(), "threads": 1, "jobs": 1, "parent": os.getppid()}
    train_agent(dataclasses.replace(config, steps=32), progress_bar=False, say=quiet)
    (before,) = read_evaluations(config.out)
    assert run_job(job) == FINISHED
    values = json.loads(Path(job["result"]).read_text())
    rows = values["evaluations"]
    assert [row["step"] for row in rows] == [32, 64]
    assert rows[0] == json.loads(json.dumps(before)), "gone on with, not begun again"
    assert 0 < rows[0]["seconds"] < rows[1]["seconds"] == values["training_seconds"]
    assert values["steps_per_second"] == pytest.approx(64 / values["training_seconds"])
    assert len(values["final"]["returns"]) == 3
    assert values["final"]["mean"] == pytest.approx(sum(values["final"]["returns"]) / 3)
    assert (values["settings"], values["observation"], values["attempts"]) == ({"a": 1}, "latent", 1)
    assert values["cpu_seconds"] > 0
    assert values["peak_memory_mb"] > 50
    assert "torch" in values["versions"]


@pytest.mark.integration
def test_a_study_from_end_to_end(encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").write_text("raise ImportError('a folder of the user hides the package')")
    monkeypatch.chdir(tmp_path)
    half_begun = tmp_path / "out" / "runs" / "side" / "latent" / "seed_0" / "half.part"  # stopped before a checkpoint
    half_begun.parent.mkdir(parents=True)
    half_begun.touch()
    sizes = {"envs": 2, "n_steps": 16, "batch_size": 32, "n_epochs": 1, "eval_episodes": 2}
    settings = {"workers": "serial", "device": "cpu", **sizes}
    task = Task(SIDE, encoder=encoder_folder)
    study = Study({"side": task}, ("latent",), (0,), 64, episodes=4, evaluations=2, settings=settings)
    results = compare(study, tmp_path / "out", jobs=2, say=quiet)
    assert results.missing == {}
    assert not half_begun.exists()
    (run,) = results.runs["side"]["latent"]
    assert [row["step"] for row in run["evaluations"]] == [32, 64]
    assert len(results.random["side"]) == len(run["final"]["returns"]) == 4
    assert saved_study(tmp_path / "out") == study
    assert collect(saved_study(tmp_path / "out"), tmp_path / "out").to_json() == results.to_json()
    with pytest.raises(InputError, match=r"study\.json"):
        saved_study(tmp_path)
