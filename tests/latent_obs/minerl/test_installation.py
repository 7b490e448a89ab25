"""What is installed for MineRL, found without importing it, and the errors when something is missing."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import latent_obs
from latent_obs.minerl import installation
from latent_obs.minerl.installation import (
    GAME_JAR,
    JavaVersion,
    check_client,
    check_game,
    display,
    find_java,
    how_to_get_display,
    how_to_get_java,
)
from latent_obs.util.errors import InputError, MissingExtraError

JAVA_8 = """echo 'Picked up JAVA_TOOL_OPTIONS: -Dx.version="9"
openjdk version "1.8.0_392"
OpenJDK 64-Bit Server VM (Temurin)(build 25.392-b08, mixed mode)' >&2"""
JAVA_17 = """echo 'openjdk version "17.0.15" 2025-04-15' >&2"""
Program = Callable[[str, str], Path]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Write a shell script into the only folder of the PATH, and return its file."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def write(name: str, body: str) -> Path:
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)
        return file

    return write


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Install packages, which must not be imported, in the only site-packages of this process; give their folders."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setattr(sys, "path", [str(site), *(p for p in sys.path if "site-packages" not in p)])
    monkeypatch.delitem(sys.modules, "minerl", raising=False)

    def write(name: str, version: str) -> Path:
        package, metadata = site / name, site / f"{name}-{version}.dist-info"
        package.mkdir()
        (package / "__init__.py").write_text("raise AssertionError('imported')\n")
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        importlib.invalidate_caches()
        return package

    importlib.invalidate_caches()
    return write


@pytest.mark.parametrize(
    ("body", "text", "major"),
    [
        (JAVA_8, "1.8.0_392", 8),
        (JAVA_17, "17.0.15", 17),
        ("echo 'java version 9-ea'", "9-ea", 9),
        ("echo 'Unable to locate a Java Runtime.' >&2; exit 1", "Unable to locate a Java Runtime.", None),
        (JAVA_17 + "\nexit 3", 'openjdk version "17.0.15" 2025-04-15 (exit status 3)', None),
        ("printf '\\377\\n' >&2", "\N{REPLACEMENT CHARACTER} (exit status 0)", None),
        ("while :; do :; done", "0.3 seconds", None),
    ],
)
def test_the_java_of_the_path(program: Program, body: str, text: str, major: int | None):
    assert find_java() is None
    file = program("java", body)
    java = find_java(timeout=0.3 if "while" in body else 10)
    assert java is not None
    assert (java.path, java.major) == (file, major)
    assert text in str(java)
    file.write_bytes(b"\x7fELF no more")  # no program
    assert find_java() != java


@pytest.mark.parametrize(
    ("minerl", "gym", "found"),
    [
        ("0.4.4", "0.19.0", None),
        (None, "0.26.2", "minerl.* not installed"),
        ("1.0.2", "0.17.3", r"minerl 1\.0\.2 is installed, expected 0\.4\.4"),
        ("0.4.4", None, "gym is not installed"),
        ("0.4.4", "0.20.0", r"gym 0\.20\.0 is installed"),
        ("0.4.4", "dev", "gym dev is installed"),
    ],
)
def test_versions_of_the_client(
    install: Callable[[str, str], Path], minerl: str | None, gym: str | None, found: str | None
):
    for name, version in (("minerl", minerl), ("gym", gym)):
        if version is not None:
            install(name, version)
    if found is None:
        check_client()
    else:
        with pytest.raises(InputError if minerl else MissingExtraError, match=rf"{found}.*--extra minerl.*minerl\.md"):
            check_client()


def test_check_game_from_nothing_to_a_start(
    install: Callable[[str, str], Path], program: Program, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("MINERL_HEADLESS", raising=False)
    monkeypatch.setenv("DISPLAY", "")
    java, jar, screen = "no java", "no .*jar", "DISPLAY is not set"

    def check_missing(*words: str) -> None:
        with pytest.raises(InputError, match=".*".join(["cannot be started here", *words, r"minerl\.md", "port="])):
            check_game()

    check_missing(java, "minerl, which is not installed", screen)
    game = install("minerl", "0.4.4") / "Malmo" / "Minecraft"
    game.mkdir(parents=True)
    check_missing(java, jar, screen)
    program("java", JAVA_17)
    check_missing(r"Java 17\.0\.15", jar, screen)
    program("java", JAVA_8)
    check_missing(jar, screen)
    (game / GAME_JAR).parent.mkdir(parents=True)
    (game / GAME_JAR).touch()
    check_missing(screen)
    monkeypatch.setenv("DISPLAY", ":1")
    check_game()
    monkeypatch.setenv("MINERL_HEADLESS", "1")
    check_missing("no xvfb-run")
    program("xvfb-run", "")
    check_game()
    monkeypatch.setattr(sys, "platform", "win32")
    assert display().usable


@pytest.mark.parametrize(
    ("platform", "distribution", "command"),
    [
        ("linux", "ubuntu", "$ sudo apt install openjdk-8-jdk"),
        ("darwin", "", "$ brew install --cask temurin@8"),
        ("win32", "", "$ winget install"),
    ],
)
def test_next_steps(monkeypatch: pytest.MonkeyPatch, program: Program, platform: str, distribution: str, command: str):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(installation.platform, "freedesktop_os_release", lambda: {"ID": distribution})
    assert command in how_to_get_java(None)
    assert "PATH" not in how_to_get_java(None)
    assert "first on the PATH" in how_to_get_java(JavaVersion(Path("/usr/bin/java"), "17.0.15", 17))
    monkeypatch.setattr(sys, "platform", "linux")
    assert "apt" not in how_to_get_display()
    program("apt-get", "")
    assert how_to_get_display() == "$ sudo apt install xvfb xauth\n$ export MINERL_HEADLESS=1"


def test_nothing_heavy_is_imported(tmp_path: Path):
    root = Path(latent_obs.__file__).parents[1]
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "import latent_obs.minerl.installation\n"
        "heavy = {'torch', 'numpy', 'gymnasium', 'gym', 'minerl'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], timeout=900, check=True, cwd=tmp_path)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="minerl 0.4.4 cannot be installed there")
def test_the_client_is_installed_where_the_tests_run():
    check_client()  # without it the tests of MineRL are skipped
