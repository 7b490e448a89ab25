"""`latent-obs doctor` on the machine as it is: this one, one with nothing installed, and what the project itself asks
for."""

import dataclasses
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import latent_obs
from latent_obs_cli import doctor as room
from latent_obs_cli.doctor import Finding, as_json
from tests.support.doctored_machine import TRAIN

ROOT = Path(latent_obs.__file__).parents[1]


def test_the_versions_asked_for_are_those_of_the_project():
    file = ROOT / "pyproject.toml"
    if not file.exists():
        pytest.skip("not in a clone")
    project = tomllib.loads(file.read_text())["project"]

    def least(requirements: list[str]) -> dict[str, str]:
        return dict(r.split(">=") for r in requirements if ">=" in r)  # pandas is bound from above only

    assert least(project["dependencies"]) == {**room.CORE, **room.TORCH}
    for extra, (packages, _) in room.EXTRAS.items():
        asked = least(project["optional-dependencies"][extra])
        assert packages == {package: version for package, version in asked.items() if package not in room.CORE}


def python(*options: str) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from latent_obs_cli.doctor import run_doctor\nassert 'torch' not in sys.modules\nrun_doctor(['--json'])\n"
    )
    return subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


def test_where_nothing_is_installed():
    done = python("-S", "-W", "error")  # no site-packages
    assert done.stderr == ""
    assert done.returncode == 1
    report = json.loads(done.stdout)
    status = {finding["name"]: finding["status"] for finding in report["findings"]}
    assert [status[name] for name in ("Python", "torch", "core packages", "agents", "minerl")] == [
        "ok",
        "wrong",
        "wrong",
        "optional",
        "optional",
    ]
    assert not any(ability["can"] for ability in report["abilities"].values())


def test_this_machine_as_it_is():
    done = python()
    assert done.stderr == ""
    report = json.loads(done.stdout)
    findings = {finding["name"]: Finding(**finding) for finding in report["findings"]}
    assert not [f.found for f in findings.values() if "could not be looked at" in f.found]
    assert findings["core packages"].status == findings["torch"].status == "ok"
    assert report["abilities"][TRAIN] == {"can": True, "lacks": []}
    assert all(finding.next_step for finding in findings.values() if finding.status in ("missing", "wrong"))
    assert as_json([dataclasses.replace(f) for f in findings.values()])["findings"] == report["findings"]


def test_imports_are_tried_in_a_process_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_one.py").write_text("import no_such_module_here\n")
    (tmp_path / "dying_one.py").write_text("import os; os._exit(7)\n")
    assert room._import_error("json") is None
    assert room._import_error("broken_one") == "ModuleNotFoundError: No module named 'no_such_module_here'"
    assert room._import_error("dying_one") == "exit status 7"


@pytest.mark.parametrize(
    ("body", "driver"),
    [
        (
            "echo 'NVIDIA H200, 570.86'; echo 'NVIDIA A2, 570.86'",
            "NVIDIA H200 (driver 570.86); NVIDIA A2 (driver 570.86)",
        ),
        ("echo 'NVIDIA-SMI has failed'; exit 9", None),
    ],
)
def test_what_the_driver_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, driver: str | None):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert room._nvidia() == driver or (driver is None and Path("/dev/nvidiactl").exists())
