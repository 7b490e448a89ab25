"""A machine on which everything is installed, to take things away from; the tests of the doctor share it."""

import sys
import types
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from latent_obs.minerl import installation
from latent_obs.minerl.installation import Display, JavaVersion
from latent_obs_cli import doctor as room
from latent_obs_cli.doctor import Finding, run_doctor

VERSIONS = {
    "latent-obs": "0.1.0",
    "torch": "2.13.0+cpu",
    "gymnasium": "1.4.0",
    "numpy": "2.4.6",
    "pillow": "13.0.0",
    "safetensors": "0.8.0",
    "tqdm": "4.70.1",
    "tyro": "1.0.17",
    "stable-baselines3": "2.9.2",
    "rich": "15.0.0",
    "tensorboard": "2.21.0",
    "vizdoom": "1.3.2",
    "av": "18.1.0",
    "matplotlib": "3.11.2",
    "huggingface-hub": "2.4.0",
    "scikit-image": "0.26.0",
    "sb3-contrib": "2.9.2",
    "pygame-ce": "2.5.6",
    "rliable": "1.2.0",
    "psutil": "7.1.3",
    "scikit-learn": "1.9.1",
    "opencv-python": "5.0.0.93",
    "cloudpickle": "3.1.2",
    "minerl": "0.4.4",
    "gym": "0.17.3",
}


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
            backends=types.SimpleNamespace(
                mps=types.SimpleNamespace(is_built=lambda: False, is_available=lambda: False)
            ),
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


def words_of(text: str) -> str:
    return " ".join(text.split())


def lacking(*names: str) -> Callable[[Machine], None]:
    def change(machine: Machine) -> None:
        for name in names:
            machine.versions.pop(name, None)

    return change


NEW_JAVA = JavaVersion(Path("/usr/bin/java"), "17.0.15", 17)
GAME, PORT, DOOM, TRAIN = (
    "start MineRL's game here",
    "use MineRL's spaces, its data, and a running game by port",
    "train and play ViZDoom",
    "train a CVAE, encode frames",
)
