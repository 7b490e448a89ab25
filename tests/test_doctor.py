"""`latent-obs doctor`: each thing that may be missing or broken is found, named, and answered with a command that mends it."""

import dataclasses
import json
import re
import subprocess
import sys
import tomllib
import types
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

import latent_obs
from latent_obs.minerl_game import installation
from latent_obs.minerl_game.installation import Display, JavaVersion
from latent_obs_cli import doctor as room
from latent_obs_cli.doctor import ABILITIES, Finding, abilities, as_json, as_text, doctor, healthy, run_doctor

ROOT = Path(latent_obs.__file__).parents[1]
VERSIONS = {
    "latent-obs": "0.1.0", "torch": "2.13.0+cpu", "gymnasium": "1.4.0", "numpy": "2.4.6", "pillow": "13.0.0",
    "safetensors": "0.8.0", "tqdm": "4.70.1", "tyro": "1.0.17", "stable-baselines3": "2.9.2", "rich": "15.0.0",
    "tensorboard": "2.21.0", "vizdoom": "1.3.2", "av": "18.1.0", "matplotlib": "3.11.2", "huggingface-hub": "2.4.0",
    "scikit-image": "0.26.0", "sb3-contrib": "2.9.2", "pygame-ce": "2.5.6", "rliable": "1.2.0", "psutil": "7.1.3",
    "scikit-learn": "1.9.1", "opencv-python": "5.0.0.93", "cloudpickle": "3.1.2", "minerl": "0.4.4", "gym": "0.17.3",
}  # fmt: skip


class Machine:
    """A machine on which everything is installed, to take things away from."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.versions = dict(VERSIONS)
        self.java: JavaVersion | None = JavaVersion(Path("/jdk8/bin/java"), "1.8.0_392", 8)
        self.jar: Path | None = folder / "game.jar"
        self.jar.touch()
        self.screen = Display(True, "DISPLAY=:0")
        self.import_errors: dict[str, str] = {}
        self.driver: str | None = None
        self.gpu_error: Exception | None = None
        self.gpu_warning: str | None = None
        self.gpus: list[str] = []
        self.torch = types.SimpleNamespace(
            version=types.SimpleNamespace(cuda=None, hip=None),
            backends=types.SimpleNamespace(mps=types.SimpleNamespace(is_built=lambda: False, is_available=lambda: False)),
            cuda=types.SimpleNamespace(
                is_available=self._cuda_is_available,
                device_count=lambda: len(self.gpus),
                get_device_properties=lambda i: types.SimpleNamespace(name=self.gpus[i], total_memory=139 * 2**30),
            ),
            ones=self._ones,
        )
        pip = types.ModuleType("pip")
        pip.__spec__ = ModuleSpec("pip", None)
        monkeypatch.setitem(sys.modules, "pip", pip)
        monkeypatch.setitem(sys.modules, "torch", self.torch)
        monkeypatch.setattr(installation, "version_of", lambda name, path=None: self.versions.get(name))
        monkeypatch.setattr(installation, "find_java", lambda: self.java)
        monkeypatch.setattr(installation, "game_jar", lambda: self.jar)
        monkeypatch.setattr(installation, "display", lambda: self.screen)
        monkeypatch.setattr(room, "_import_error", lambda module: self.import_errors.get(module))
        monkeypatch.setattr(room, "_nvidia", lambda: self.driver)
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
        monkeypatch.setenv("PATH", str(folder / "nothing"))
        monkeypatch.chdir(folder)

    def _cuda_is_available(self) -> bool:
        if self.gpu_warning is not None:
            warnings.warn(self.gpu_warning, stacklevel=2)
        return bool(self.gpus)

    def _ones(self, size: int, device: str) -> Any:
        if self.gpu_error is not None:
            raise self.gpu_error
        return types.SimpleNamespace(sum=lambda: types.SimpleNamespace(item=lambda: 2.0))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    assert len({finding.name for finding in findings}) == len(findings), "each name once"
    return {finding.name: finding for finding in findings}


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = 0
    try:
        run_doctor(words)
    except SystemExit as error:
        code = int(error.code or 0)
    out, err = capsys.readouterr()
    assert err == ""
    return code, out


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


def lacking(*names: str) -> Callable[[Machine], None]:
    def change(machine: Machine) -> None:
        for name in names:
            machine.versions.pop(name, None)

    return change


def with_version(name: str, version: str) -> Callable[[Machine], None]:
    return lambda machine: machine.versions.update({name: version})


def with_(**values: Any) -> Callable[[Machine], None]:
    return lambda machine: vars(machine).update(values)


NEW_JAVA = JavaVersion(Path("/usr/bin/java"), "17.0.15", 17)
GAME, PORT, DOOM, TRAIN = (
    "start MineRL's game here", "use MineRL's spaces, its data, and a running game by port", "train and play ViZDoom",
    "train a CVAE, encode frames",
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "name", "status", "said", "step", "lost"),
    [
        (lacking("torch"), "torch", "wrong", "not installed: torch", "$ uv sync\n", TRAIN),
        (with_version("torch", "2.3.1"), "torch", "wrong", "torch 2.3.1 (needs 2.4 or newer)", "$ uv sync\n", TRAIN),
        (lacking("tyro"), "core packages", "wrong", "not installed: tyro", "$ pip install -c constraints.txt . ", TRAIN),
        (with_version("numpy", "1.21"), "core packages", "wrong", "numpy 1.21 (needs 1.26", "$ uv sync\n", TRAIN),
        (lacking("stable-baselines3"), "agents", "optional", "not installed: stable", "$ uv sync --extra agents", DOOM),
        (lacking("tensorboard"), "agents", "missing", "not installed: tensorboard", "$ uv sync --extra agents", DOOM),
        (lacking("vizdoom"), "vizdoom", "optional", "vizdoom", "$ pip install -c constraints.txt '.[vizdoom]'", DOOM),
        (
            with_(import_errors={"vizdoom.gymnasium_wrapper": "libX"}),
            "vizdoom", "wrong", "it does not start: libX", "$ pip install --force-reinstall --no-deps vizdoom==1.3.2", DOOM,
        ),
        (lacking("av"), "video", "optional", "av (to film", "$ uv sync --extra video", "run the quickstart"),
        (with_version("av", "12"), "video", "missing", "av 12 (needs 14", "$ uv sync --extra video", "run the quickstart"),
        (lacking("matplotlib"), "plots", "optional", "matplotlib", "$ uv sync --extra plots", "run the quickstart"),
        (lacking("huggingface-hub"), "hub", "optional", "huggingface-hub", "$ uv sync --extra hub", None),
        (
            with_version("opencv-python-headless", "4.11"),
            "opencv", "wrong", "opencv-python 5.0.0.93, opencv-python-headless 4.11: they overwrite",
            "$ pip uninstall -y opencv-python-headless\n$ pip install --force-reinstall --no-deps opencv-python==5.0.0.93",
            PORT,
        ),
        (lacking("opencv-python"), "opencv", "missing", "not installed", "$ pip install opencv-python", PORT),
        (with_version("cloudpickle", "1.6.0"), "cloudpickle", "wrong", "1.6.0", "$ pip install 'cloudpickle>=2.2'", PORT),
        (with_version("cloudpickle", "1.6.0"), "cloudpickle", "wrong", "Python 3.11", "'cloudpickle>=2.2'", DOOM),
        (lacking("minerl"), "minerl", "optional", "not installed", "$ uv sync --extra minerl\n", PORT),
        (with_version("minerl", "1.0.2"), "minerl", "wrong", "1.0.2, expected 0.4.4", "$ uv sync --extra minerl\n", PORT),
        (with_version("gym", "0.26.2"), "gym", "wrong", "0.26.2, expected 0.17.3", "$ pip install --no-deps gym==0.17.3", PORT),
        (lacking("gym"), "gym", "wrong", "not installed, expected 0.17.3", "$ uv sync --extra minerl\n", PORT),
        (with_(java=None), "Java 8", "missing", "no java on the PATH", "openjdk", GAME),
        (with_(java=NEW_JAVA), "Java 8", "missing", "Java 17.0.15 (/usr/bin/java)", "first on the PATH", GAME),
        (with_(jar=Path("/none.jar")), "built game", "missing", "not built", "docs/minerl.md", GAME),
        (with_(screen=Display(False, "none here")), "display", "missing", "none here", "MINERL_HEADLESS=1", GAME),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_its_remedy(
    machine: Machine, change: Callable[[Machine], None], name: str, status: str, said: str, step: str, lost: str | None,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
):  # fmt: skip
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
        (with_(driver="an NVIDIA driver", cuda="13.0", gpu_warning="The NVIDIA driver is too old\nmore"), "wrong",
         "an NVIDIA driver, but torch cannot use it: The NVIDIA driver is too old", REINSTALL),
        (with_(driver="an NVIDIA driver", cuda="13.0"), "wrong", "torch does not say why", REINSTALL),
        (with_(cuda="13.0", gpu_warning="No NVIDIA driver"), "optional", "none seen", ""),
        (with_(cuda="12.8", gpus=["A", "B"]), "ok", "cuda:0 A, 139 GiB; cuda:1 B, 139 GiB", ""),
        (with_(cuda="11.8", gpus=["A"], gpu_error=RuntimeError("CUDA error: no kernel image\nCompile with …")), "wrong",
         "cannot be used: CUDA error: no kernel image", REINSTALL),
    ],
)  # fmt: skip
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


@pytest.mark.parametrize("error", [ImportError("libcudart.so.12: cannot open"), OSError("broken"), RuntimeError("numpy")])
def test_a_torch_that_cannot_be_imported(machine: Machine, monkeypatch: pytest.MonkeyPatch, error: Exception):
    def fails(name: str) -> None:
        raise error

    monkeypatch.setattr(room.importlib, "import_module", fails)
    findings = by_name(doctor())
    assert "GPU" not in findings
    assert findings["torch"].status == "wrong"
    assert f"but it cannot be imported: {type(error).__name__}: {error}" in findings["torch"].found
    assert findings["torch"].next_step == REINSTALL


@pytest.mark.parametrize("name", ["find_java", "game_jar", "display", "minerl_version", "version_of", "how_to_get_display"])
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


def words_of(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("width", [60, 80, 100])
def test_text_and_json_agree(machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int):
    lacking("vizdoom", "av", "gym", "tqdm")(machine)
    machine.java, machine.driver = NEW_JAVA, "an NVIDIA driver"
    monkeypatch.setenv("COLUMNS", str(width))
    code, text = printed([], capsys)
    code_json, out = printed(["--json"], capsys)
    assert code == code_json == 1
    report = json.loads(out)
    assert report["healthy"] is False
    assert report["latent_obs"] == "0.1.0"
    assert [Finding(**finding) for finding in report["findings"]] == doctor()
    position = 0
    for finding in report["findings"]:
        mark = {"ok": "ok", "optional": "--", "missing": "no", "wrong": "!!"}[finding["status"]]
        shown = words_of(f"{mark} {finding['name']} {finding['found']} {finding['next_step']}")
        position = words_of(text).index(shown, position) + len(shown)
        assert finding["status"] in ("ok", "optional") or finding["next_step"], finding
        for step in finding["next_step"].splitlines():
            assert not step.startswith("$ ") or f"      {step}\n" in text, "commands stay in one line"
    for what, ability in report["abilities"].items():
        assert ability["can"] == (not ability["lacks"])
        shown = "yes" if ability["can"] else f"no, because of {', '.join(ability['lacks'])}"
        assert f"{what}: {shown}" in words_of(text)
    for line in text.splitlines():
        assert len(line) <= width or line.startswith("      $ ") or max(map(len, line.split())) > width - 22, line
    assert "\x1b" not in text


def test_colours_change_nothing_else(machine: Machine):
    machine.java = NEW_JAVA
    findings = [*doctor(), Finding("odd", "wrong", "found")]
    coloured = as_text(findings, colour=True)
    assert all(code in coloured for code in ("\x1b[32mok", "\x1b[2m--", "\x1b[33mno", "\x1b[31m!!"))
    assert re.sub(r"\x1b\[\d+m", "", coloured) == as_text(findings)


def test_commands_are_for_this_very_environment(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    lacking("av", "opencv-python")(machine)

    def steps() -> tuple[str, str]:
        findings = by_name(doctor())
        return findings["video"].next_step, findings["opencv"].next_step

    assert steps() == (
        "$ uv sync --extra video\n$ pip install -c constraints.txt '.[video]'    # instead, without uv sync",
        "$ pip install opencv-python",
    )
    monkeypatch.delenv("VIRTUAL_ENV")
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    assert steps()[1] == f"$ {sys.executable} -m pip install opencv-python"
    monkeypatch.setitem(sys.modules, "pip", None)  # as uv makes environments
    assert steps()[1] == f"$ uv pip install --python {sys.prefix} opencv-python"
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    assert steps()[1] == "$ uv pip install opencv-python"
    machine.versions.update({"opencv-python": "4.11", "opencv-contrib-python": "4.12"})
    assert steps()[1] == (
        "$ uv pip uninstall opencv-contrib-python\n$ uv pip install --reinstall --no-deps opencv-python==4.11"
    )
    (tmp_path / "uvw").touch()
    assert steps()[0].startswith("$ ./uvw sync --extra video\n$ ./uvw pip install -c")


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


def test_words_that_are_not_understood(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        run_doctor(["--jason"])
    assert left.value.code == 2
    assert "--jason" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        run_doctor(["--help"])
    assert left.value.code == 0
    out = words_of(capsys.readouterr().out)
    assert "latent-obs doctor" in out
    assert "--json" in out
    assert "the command that mends it" in out


def python(*options: str) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from latent_obs_cli.doctor import run_doctor\nassert 'torch' not in sys.modules\nrun_doctor(['--json'])\n"
    )
    return subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_where_nothing_is_installed():
    done = python("-S", "-W", "error")  # no site-packages
    assert done.stderr == ""
    assert done.returncode == 1
    report = json.loads(done.stdout)
    status = {finding["name"]: finding["status"] for finding in report["findings"]}
    assert [status[name] for name in ("Python", "torch", "core packages", "agents", "minerl")] == [
        "ok", "wrong", "wrong", "optional", "optional",
    ]  # fmt: skip
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
        ("echo 'NVIDIA H200, 570.86'; echo 'NVIDIA A2, 570.86'", "NVIDIA H200 (driver 570.86); NVIDIA A2 (driver 570.86)"),
        ("echo 'NVIDIA-SMI has failed'; exit 9", None),
    ],
)  # fmt: skip
def test_what_the_driver_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, driver: str | None):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert room._nvidia() == driver or (driver is None and Path("/dev/nvidiactl").exists())
