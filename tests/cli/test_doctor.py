"""`latent-obs doctor`: each thing that may be missing or broken is found, named, and answered with a command that mends
it."""

# ruff: noqa: F401, F811  # fixtures are imported, and arguments have their names

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latent_obs.minerl import installation
from latent_obs.minerl.installation import Display
from latent_obs_cli import doctor as room
from latent_obs_cli.doctor import ABILITIES, abilities, doctor, healthy
from tests.support.doctored_machine import (
    DOOM,
    GAME,
    NEW_JAVA,
    PORT,
    TRAIN,
    Machine,
    by_name,
    lacking,
    machine,
    printed,
    words_of,
)


def test_everything_is_there(machine: Machine, capsys: pytest.CaptureFixture[str]):
    machine.gpus = ["NVIDIA H200"]
    machine.torch.version.cuda = "12.8"
    findings = doctor()
    assert {finding.name: finding.status for finding in findings if finding.status != "ok"} == {}
    assert not any(finding.next_step for finding in findings)
    assert by_name(findings)["GPU"].found == "cuda:0 NVIDIA H200, 139 GiB"
    assert not any(abilities(findings).values())
    code, out = printed([], capsys)
    assert code == 0
    for what in ABILITIES:
        assert f"  {what}: yes\n" in out


def test_every_ability_needs_things_that_are_looked_at(machine: Machine):
    looked_at = set(by_name(doctor()))
    for what, needs in ABILITIES.items():
        assert set(needs) <= looked_at, what


def with_version(name: str, version: str) -> Callable[[Machine], None]:
    return lambda machine: machine.versions.update({name: version})


def with_(**values: Any) -> Callable[[Machine], None]:
    return lambda machine: vars(machine).update(values)


@pytest.mark.parametrize(
    ("change", "name", "status", "said", "step", "lost"),
    [
        (lacking("torch"), "torch", "wrong", "not installed: torch", "$ uv sync\n", TRAIN),
        (with_version("torch", "2.3.1"), "torch", "wrong", "torch 2.3.1 (needs 2.4 or newer)", "$ uv sync\n", TRAIN),
        (
            lacking("tyro"),
            "core packages",
            "wrong",
            "not installed: tyro",
            "$ pip install -c constraints.txt . ",
            TRAIN,
        ),
        (with_version("numpy", "1.21"), "core packages", "wrong", "numpy 1.21 (needs 1.26", "$ uv sync\n", TRAIN),
        (lacking("stable-baselines3"), "agents", "optional", "not installed: stable", "$ uv sync --extra agents", DOOM),
        (lacking("tensorboard"), "agents", "missing", "not installed: tensorboard", "$ uv sync --extra agents", DOOM),
        (lacking("vizdoom"), "vizdoom", "optional", "vizdoom", "$ pip install -c constraints.txt '.[vizdoom]'", DOOM),
        (
            with_(import_errors={"vizdoom.gymnasium_wrapper": "libX"}),
            "vizdoom",
            "wrong",
            "it does not start: libX",
            "$ pip install --force-reinstall --no-deps vizdoom==1.3.2",
            DOOM,
        ),
        (lacking("av"), "video", "optional", "av (to film", "$ uv sync --extra video", "run the quickstart"),
        (
            with_version("av", "12"),
            "video",
            "missing",
            "av 12 (needs 14",
            "$ uv sync --extra video",
            "run the quickstart",
        ),
        (lacking("matplotlib"), "plots", "optional", "matplotlib", "$ uv sync --extra plots", "run the quickstart"),
        (lacking("huggingface-hub"), "hub", "optional", "huggingface-hub", "$ uv sync --extra hub", None),
        (
            with_version("opencv-python-headless", "4.11"),
            "opencv",
            "wrong",
            "opencv-python 5.0.0.93, opencv-python-headless 4.11: they overwrite",
            "$ pip uninstall -y opencv-python-headless\n$ pip install --force-reinstall --no-deps opencv-python==5.0.0.93",
            PORT,
        ),
        (lacking("opencv-python"), "opencv", "missing", "not installed", "$ pip install opencv-python", PORT),
        (
            with_version("cloudpickle", "1.6.0"),
            "cloudpickle",
            "wrong",
            "1.6.0",
            "$ pip install 'cloudpickle>=2.2'",
            PORT,
        ),
        (with_version("cloudpickle", "1.6.0"), "cloudpickle", "wrong", "Python 3.11", "'cloudpickle>=2.2'", DOOM),
        (lacking("minerl"), "minerl", "optional", "not installed", "$ uv sync --extra minerl\n", PORT),
        (
            with_version("minerl", "1.0.2"),
            "minerl",
            "wrong",
            "1.0.2, expected 0.4.4",
            "$ uv sync --extra minerl\n",
            PORT,
        ),
        (
            with_version("gym", "0.26.2"),
            "gym",
            "wrong",
            "0.26.2, expected 0.17.3",
            "$ pip install --no-deps gym==0.17.3",
            PORT,
        ),
        (lacking("gym"), "gym", "wrong", "not installed, expected 0.17.3", "$ uv sync --extra minerl\n", PORT),
        (with_(java=None), "Java 8", "missing", "no java on the PATH", "openjdk", GAME),
        (with_(java=NEW_JAVA), "Java 8", "missing", "Java 17.0.15 (/usr/bin/java)", "first on the PATH", GAME),
        (with_(jar=Path("/none.jar")), "built game", "missing", "not built", "docs/minerl.md", GAME),
        (with_(screen=Display(False, "none here")), "display", "missing", "none here", "MINERL_HEADLESS=1", GAME),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(
    machine: Machine,
    change: Callable[[Machine], None],
    name: str,
    status: str,
    said: str,
    step: str,
    lost: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(sys, "platform", "linux")
    change(machine)
    findings = doctor()
    finding = by_name(findings)[name]
    assert finding.status == status
    assert said in finding.found
    assert step in finding.next_step
    also = {"report", "compare"} if name == "plots" else set()  # they draw, too
    assert {f.name for f in findings if f.status != "ok"} - {"GPU"} == {name} | also
    assert healthy(findings) == (status != "wrong")
    assert [what for what, lacks in abilities(findings).items() if name in lacks] == [
        what for what, needs in ABILITIES.items() if name in needs
    ]
    assert lost is None or abilities(findings)[lost] == [name]
    code, out = printed([], capsys)
    assert code == (1 if status == "wrong" else 0)
    assert lost is None or f"{lost}: no, because of {name}" in words_of(out)


def test_without_minerl_its_game_is_optional(machine: Machine):
    lacking("minerl", "gym", "opencv-python")(machine)
    machine.java, machine.jar, machine.screen = NEW_JAVA, None, Display(False, "none")
    findings = by_name(doctor())
    assert {"gym", "built game", "opencv"} & set(findings) == set()
    assert {findings[name].status for name in ("minerl", "Java 8", "display")} == {"optional"}
    assert abilities(list(findings.values()))[GAME] == ["minerl", "Java 8", "display"]
    assert healthy(list(findings.values()))


@pytest.mark.parametrize(
    ("error", "step"),
    [
        ("ImportError: libGL.so.1: cannot open shared object file", "$ sudo apt install libgl1 libglib2.0-0"),
        ("ModuleNotFoundError: No module named 'lxml'", "$ uv sync --extra minerl --reinstall-package minerl"),
    ],
)
def test_a_minerl_that_cannot_be_imported(machine: Machine, error: str, step: str):
    machine.import_errors["minerl"] = error
    finding = by_name(doctor())["minerl"]
    assert finding.status == "wrong"
    assert finding.found == f"0.4.4, but it cannot be imported: {error}"
    assert finding.next_step.splitlines()[0] == step


REINSTALL = "$ uv pip install --torch-backend auto --reinstall-package torch torch"


@pytest.mark.parametrize(
    ("change", "status", "said", "step"),
    [
        (with_(), "optional", "none seen; everything runs on the CPU", ""),
        (with_(driver="NVIDIA H200"), "missing", "NVIDIA H200, but this torch is built for the CPU only", REINSTALL),
        (
            with_(driver="an NVIDIA driver", cuda="13.0", gpu_warning="The NVIDIA driver is too old\nmore"),
            "wrong",
            "an NVIDIA driver, but torch cannot use it: The NVIDIA driver is too old",
            REINSTALL,
        ),
        (with_(driver="an NVIDIA driver", cuda="13.0"), "wrong", "torch does not say why", REINSTALL),
        (with_(cuda="13.0", gpu_warning="No NVIDIA driver"), "optional", "none seen", ""),
        (with_(cuda="12.8", gpus=["A", "B"]), "ok", "cuda:0 A, 139 GiB; cuda:1 B, 139 GiB", ""),
        (
            with_(cuda="11.8", gpus=["A"], gpu_error=RuntimeError("CUDA error: no kernel image\nCompile with …")),
            "wrong",
            "cannot be used: CUDA error: no kernel image",
            REINSTALL,
        ),
    ],
)
def test_gpus(machine: Machine, change: Callable[[Machine], None], status: str, said: str, step: str):
    change(machine)
    machine.torch.version.cuda = getattr(machine, "cuda", None)
    findings = by_name(doctor())
    assert findings["GPU"].status == status
    assert said in findings["GPU"].found
    assert step in findings["GPU"].next_step
    assert "\n" not in findings["GPU"].found
    build = f"CUDA {machine.torch.version.cuda}" if machine.torch.version.cuda else "the CPU only"
    assert findings["torch"].found == f"torch 2.13.0+cpu, built for {build}"


@pytest.mark.parametrize(
    "error", [ImportError("libcudart.so.12: cannot open"), OSError("broken"), RuntimeError("numpy")]
)
def test_a_torch_that_cannot_be_imported(machine: Machine, monkeypatch: pytest.MonkeyPatch, error: Exception):
    def fails(name: str) -> None:
        raise error

    monkeypatch.setattr(room.importlib, "import_module", fails)
    findings = by_name(doctor())
    assert "GPU" not in findings
    assert findings["torch"].status == "wrong"
    assert f"but it cannot be imported: {type(error).__name__}: {error}" in findings["torch"].found
    assert findings["torch"].next_step == REINSTALL


@pytest.mark.parametrize(
    "name", ["find_java", "game_jar", "display", "minerl_version", "version_of", "how_to_get_display"]
)
def test_a_check_that_crashes_is_a_finding(
    machine: Machine, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def crash(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("a bug")

    if name != "version_of":
        monkeypatch.setattr(installation, name, crash)
    else:
        monkeypatch.setattr(room, "_fit", crash)
    findings = doctor()
    crashed = [f for f in findings if f.found == "could not be looked at: ZeroDivisionError: a bug"]
    assert crashed
    assert {f.status for f in crashed} == {"wrong"}
    assert all("$ latent-obs doctor --json" in f.next_step for f in crashed)
    assert not healthy(findings)
    assert {f.name for f in findings if f not in crashed} >= {"Python", "system"}
    code, _ = printed([], capsys)
    assert code == 1
