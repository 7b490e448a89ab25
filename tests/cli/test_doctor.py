"""`latent-obs doctor`: what is missing or broken is found and named, with a command that repairs it."""

import json
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import lazy_loader
import pytest

from latent_obs.encoder.fastest import PLAIN
from latent_obs.minerl import installation
from latent_obs.minerl.installation import Display, JavaVersion
from latent_obs_cli import doctor as module
from latent_obs_cli.doctor import ABILITIES, Finding, abilities, as_text, doctor, healthy, requirements, run_doctor
from tests.support import ROOT

CORE = {"gymnasium": ">=1.1", "numpy": ">=1.26", "tyro": ">=0.9.20"}
EXTRAS = {
    "agents": {"stable-baselines3": ">=2.6", "tensorboard": ">=2.21"},
    "plots": {"matplotlib": ">=3.8"},
    "video": {"av": ">=14"},
    "vizdoom": {"vizdoom": ">=1.3"},
    "all": {},
    "minerl": {},
}
VERSIONS = {name: wanted[2:] for packages in (CORE, *EXTRAS.values()) for name, wanted in packages.items()}
VERSIONS |= {"latent-obs": "0.2.0", "torch": "2.13.0+cpu", "cloudpickle": "3.1.2", "opencv-python": "5.0.0.93"}
VERSIONS |= {"minerl": "0.4.4", "gym": "0.17.3"}
NEW_JAVA = JavaVersion(Path("/usr/bin/java"), "17.0.15", 17)
TRAIN, DOOM, QUICKSTART, PORT, GAME = ABILITIES


class Machine:
    """A machine on which everything is installed, to take things away from."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.versions = dict(VERSIONS)
        self.java: JavaVersion | None = JavaVersion(Path("/jdk8/bin/java"), "1.8.0_392", 8)
        self.jar: Path | None = folder / "game.jar"
        self.jar.touch()
        self.screen = Display(True, "DISPLAY=:0")
        self.import_errors: dict[str, str] = {}
        self.driver = False
        self.gpus: list[str] = []
        self.cuda: str | None = None
        self.gpu_warning: str | None = None
        pip = types.ModuleType("pip")
        pip.__spec__ = ModuleSpec("pip", None)
        monkeypatch.setitem(sys.modules, "pip", pip)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(module, "requirements", lambda: {"": CORE, **EXTRAS})
        monkeypatch.setattr(module, "_import_error", lambda name: self.import_errors.get(name))
        monkeypatch.setattr(module, "_has_nvidia_driver", lambda: self.driver)
        monkeypatch.setattr(module, "_gpus", self._gpus)
        monkeypatch.setattr("latent_obs.encoder.frozen.encoding_times", lambda _: {PLAIN: 1.5})
        monkeypatch.setattr(module.importlib, "import_module", self._torch)
        monkeypatch.setattr(installation, "version_of", lambda name, path=None: self.versions.get(name))
        monkeypatch.setattr(installation, "find_java", lambda: self.java)
        monkeypatch.setattr(installation, "game_jar", lambda: self.jar)
        monkeypatch.setattr(installation, "display", lambda: self.screen)

    def _torch(self, name: str) -> Any:
        if name in self.import_errors:
            raise ImportError(self.import_errors[name])
        return types.SimpleNamespace(version=types.SimpleNamespace(cuda=self.cuda, hip=None))

    def _gpus(self, torch: Any) -> list[str]:
        if self.gpu_warning is not None:
            warnings.warn(self.gpu_warning, stacklevel=2)
        return self.gpus


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def found() -> dict[str, Finding]:
    findings = doctor()
    assert len({finding.name for finding in findings}) == len(findings), "each name once"
    return {finding.name: finding for finding in findings}


def exit_status(*words: str) -> int:
    try:
        run_doctor(words)
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def test_everything_is_there(machine: Machine, capsys: pytest.CaptureFixture[str]):
    machine.gpus, machine.cuda = ["cuda:0 NVIDIA H200, 139 GiB"], "12.8"
    findings = found()
    assert {finding.status for finding in findings.values()} == {"ok"}
    assert not any(finding.next_step for finding in findings.values())
    assert set().union(*ABILITIES.values()) <= findings.keys()
    assert not any(abilities(list(findings.values())).values())
    assert exit_status() == 0
    assert capsys.readouterr().out.count(": yes\n") == len(ABILITIES)


def without(*names: str) -> Callable[[Machine], None]:
    def change(machine: Machine) -> None:
        machine.versions = {name: version for name, version in machine.versions.items() if name not in names}

    return change


def version(**versions: str) -> Callable[[Machine], None]:
    return lambda machine: machine.versions.update({name.replace("_", "-"): v for name, v in versions.items()})


def with_(**values: Any) -> Callable[[Machine], None]:
    return lambda machine: vars(machine).update(values)


@pytest.mark.parametrize(
    ("change", "name", "status", "said", "step", "prevented"),
    [
        (without("torch"), "torch", "wrong", "not installed", "$ uv sync\n", TRAIN),
        (with_(import_errors={"torch": "libX\n"}), "torch", "wrong", "libX", "--reinstall-package torch", TRAIN),
        (without("tyro"), "core packages", "wrong", "tyro", "-c constraints.txt . ", TRAIN),
        (version(numpy="1.21"), "core packages", "wrong", "numpy 1.21 (needs >=1.26)", "$ uv sync\n", TRAIN),
        (without("tensorboard"), "agents", "missing", "tensorboard", "$ uv sync --extra agents", DOOM),
        (with_(import_errors={"vizdoom.gymnasium_wrapper": "libX"}), "vizdoom", "wrong", "libX", "vizdoom", DOOM),
        (version(av="12"), "video", "optional", "av 12 (needs >=14)", "$ uv sync --extra video", QUICKSTART),
        (version(cloudpickle="1.6.0"), "cloudpickle", "wrong", "1.6.0", "'cloudpickle>=2.2'", DOOM),
        (version(opencv_python_headless="4.11"), "opencv", "wrong", "4.11", "uninstall opencv-python-headless\n", PORT),
        (without("minerl"), "minerl", "optional", "minerl", "$ uv sync --extra minerl", PORT),
        (version(minerl="1.0.2"), "minerl", "wrong", "1.0.2", "$ uv sync --extra minerl", PORT),
        (with_(import_errors={"minerl": "libGL.so.1: no such file"}), "minerl", "wrong", "libGL", "apt install", PORT),
        (with_(java=NEW_JAVA), "Java 8", "missing", "17.0.15", "PATH", GAME),
        (with_(jar=Path("/none.jar")), "built game", "missing", "not built", "docs/minerl.md", GAME),
        (with_(screen=Display(False, "none here")), "display", "missing", "none here", "MINERL_HEADLESS=1", GAME),
        (with_(driver=True), "GPU", "missing", "NVIDIA", "--reinstall-package torch", None),
        (with_(driver=True, cuda="13.0", gpu_warning="too old\nx"), "GPU", "wrong", "too old", "nvidia-smi", None),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(
    machine: Machine,
    change: Callable[[Machine], None],
    name: str,
    status: str,
    said: str,
    step: str,
    prevented: str | None,
    capsys: pytest.CaptureFixture[str],
):
    change(machine)
    findings = found()
    finding = findings[name]
    assert finding.status == status
    assert said in finding.found
    assert step in finding.next_step
    assert "\n" not in finding.found
    others = {other.name for other in findings.values() if other.status != "ok"} - {name, "GPU"}
    assert others <= ({"opencv", "Java 8", "built game", "display"} if name == "minerl" else set())
    assert healthy(list(findings.values())) == (status != "wrong")
    assert prevented is None or name in abilities(list(findings.values()))[prevented]
    assert exit_status() == (1 if status == "wrong" else 0)
    out = capsys.readouterr().out
    assert prevented is None or f"{prevented}: no, because of" in out
    for line in finding.next_step.splitlines():
        assert not line.startswith("$ ") or f"{line}\n" in out, "commands stay in one line"


def test_without_minerl_its_game_is_optional(machine: Machine):
    without("minerl", "gym", "opencv-python")(machine)
    machine.java, machine.jar, machine.screen = NEW_JAVA, None, Display(False, "none")
    findings = found()
    needed = ("minerl", "opencv", "Java 8", "built game", "display")
    assert {findings[name].status for name in needed} == {"optional"}
    assert set(abilities(list(findings.values()))[GAME]) == set(needed)
    assert healthy(list(findings.values()))


def test_a_check_that_fails_is_a_finding(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    def crash(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(installation, "find_java", crash)
    failed = [finding for finding in doctor() if "ZeroDivisionError: a bug" in finding.found]
    assert failed
    assert {finding.status for finding in failed} == {"wrong"}
    assert found()["Python"].status == "ok"


def test_json_holds_the_findings(machine: Machine, capsys: pytest.CaptureFixture[str]):
    without("vizdoom", "tyro")(machine)
    assert exit_status("--jason") == 2
    capsys.readouterr()
    assert exit_status("--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["latent_obs"], report["healthy"]) == ("0.2.0", False)
    findings = [Finding(**finding) for finding in report["findings"]]
    assert findings == doctor()
    assert report["abilities"][DOOM] == {"can": False, "lacks": ["core packages", "vizdoom"]}
    assert all(finding.found in as_text(findings) for finding in findings)


def test_what_is_asked_for_comes_from_the_metadata(monkeypatch: pytest.MonkeyPatch):
    lines = ["numpy>=1.26", "torch>=2.4", 'av>=14; extra == "video"', 'latent-obs[video]; extra == "all"']
    lines.append('sb3-contrib>=2.6; python_version < "3" and extra == "video"')
    monkeypatch.setattr(module.metadata, "requires", lambda name: lines)
    extras = types.SimpleNamespace(get_all=lambda name: ["all", "video"])
    monkeypatch.setattr(module.metadata, "metadata", lambda name: extras)
    assert requirements() == {"": {"numpy": ">=1.26"}, "all": {}, "video": {"av": ">=14"}}


def in_a_process(*options: str, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    code = f"import sys\nsys.path[:0] = [{str(ROOT)!r}, {str(path)!r}]\nfrom latent_obs_cli.doctor import run_doctor\n"
    code += "assert 'torch' not in sys.modules\nrun_doctor(['--json'])\n"
    return subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.integration
def test_where_next_to_nothing_is_installed_and_on_this_machine(tmp_path: Path):
    # Without lazy_loader nothing of the project starts.
    (tmp_path / "lazy_loader").symlink_to(Path(str(lazy_loader.__file__)).parent)
    done = in_a_process("-S", "-W", "error", path=tmp_path)  # no site-packages
    assert (done.returncode, done.stderr) == (1, "")
    report = json.loads(done.stdout)
    status = {finding["name"]: finding["status"] for finding in report["findings"]}
    assert (status["Python"], status["torch"], status["minerl"]) == ("ok", "wrong", "optional")
    assert not any(ability["can"] for ability in report["abilities"].values())

    done = in_a_process()
    assert done.stderr == ""
    findings = {finding["name"]: Finding(**finding) for finding in json.loads(done.stdout)["findings"]}
    assert not [f.found for f in findings.values() if "could not be checked" in f.found]
    assert findings["torch"].status == "ok"
    assert all(finding.next_step for finding in findings.values() if finding.status in ("missing", "wrong"))


def test_imports_are_tried_in_a_process_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_one.py").write_text("import no_such_module_here\n")
    (tmp_path / "dying_one.py").write_text("import os; os._exit(7)\n")
    assert module._import_error("json") is None
    assert "no_such_module_here" in (module._import_error("broken_one") or "")
    assert "7" in (module._import_error("dying_one") or "")
