"""What is installed for MineRL, found without importing it; and what is said when something is missing."""

import importlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import latent_obs
from latent_obs.minerl import installation
from latent_obs.minerl.installation import (
    Display,
    JavaVersion,
    check_client,
    check_game,
    client_error,
    display,
    find_java,
    game_jar,
    game_problems,
    gym_version,
    how_to_get_display,
    how_to_get_java,
    java_version,
    minecraft_dir,
    minerl_version,
    numbers,
    version_of,
)
from latent_obs.util.errors import InputError, LatentObsError, MissingExtraError

JAVA_8 = """echo 'openjdk version "1.8.0_392"
OpenJDK Runtime Environment (Temurin)(build 1.8.0_392-b08)
OpenJDK 64-Bit Server VM (Temurin)(build 25.392-b08, mixed mode)' >&2"""
JAVA_17 = """echo 'openjdk version "17.0.15" 2025-04-15' >&2"""
Program = Callable[[str, str], Path]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Write a shell script, and tell the folder to have on the PATH."""

    def write(name: str, body: str) -> Path:
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)
        return file.parent

    return write


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty site-packages, the only one that this process finds anything in."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [str(folder), *(p for p in sys.path if "site-packages" not in p)])
    monkeypatch.delitem(sys.modules, "minerl", raising=False)
    importlib.invalidate_caches()
    return folder


def install(site: Path, name: str, version: str) -> Path:
    """As pip leaves a package; one that must not be imported."""
    package, metadata = site / name.replace("-", "_"), site / f"{name.replace('-', '_')}-{version}.dist-info"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')\n")
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    importlib.invalidate_caches()
    return package


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ('openjdk version "1.8.0_392"\nOpenJDK Runtime Environment (build 1.8.0_392-b08)', ("1.8.0_392", 8)),
        ('java version "1.8.0_351"\nJava(TM) SE Runtime Environment (build 1.8.0_351-b10)', ("1.8.0_351", 8)),
        ('openjdk version "17.0.15" 2025-04-15\n', ("17.0.15", 17)),
        ('openjdk version "9-ea"', ("9-ea", 9)),
        ('openjdk version "22-internal" 2024-03-19', ("22-internal", 22)),
        ('openjdk version "21" 2023-09-19 LTS', ("21", 21)),
        ("java version 11.0.2 2019-01-15", ("11.0.2", 11)),
        ('java version "1.5.0"\ngij (GNU libgcj) version 4.4.7', ("1.5.0", 5)),
        ('Picked up JAVA_TOOL_OPTIONS: -Dx.version="9"\nopenjdk version "1.8.0_41"', ("1.8.0_41", 8)),
        ('Picked up _JAVA_OPTIONS: -Xmx1g\r\nopenjdk version "1.8.0_282"\r\nEclipse OpenJ9 VM', ("1.8.0_282", 8)),
        ("Unable to locate a Java Runtime.", None),
        ("", None),
    ],
)
def test_a_version_in_what_java_says(said: str, version: tuple[str, int] | None):
    assert java_version(said) == version


def test_java_of_the_path(program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    folder = program("java", JAVA_8)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk-17"))  # the launch script does not look there
    assert find_java() == JavaVersion(folder / "java", "1.8.0_392", 8)
    program("java", JAVA_17)
    assert str(find_java()) == f"Java 17.0.15 ({folder / 'java'})"
    assert find_java(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("echo 'Unable to locate a Java Runtime.' >&2; exit 1", "Unable to locate a Java Runtime. (exit status 1)"),
        (JAVA_8 + "\nexit 3", 'openjdk version "1.8.0_392" (exit status 3)'),
        ("exit 0", "nothing said (exit status 0)"),
        ("printf '\\377\\n' >&2", "\N{REPLACEMENT CHARACTER} (exit status 0)"),
        ("exec sleep 60", "no answer in 0.3 seconds"),
    ],
)
def test_a_java_that_does_not_work(program: Program, body: str, text: str):
    java = find_java(str(program("java", body)), timeout=0.3 if "sleep" in body else 10)
    assert java is not None
    assert (java.major, java.text) == (None, text)
    assert text in str(java)


def test_a_java_that_is_no_program(program: Program):
    folder = program("java", "")
    (folder / "java").write_bytes(b"\x7fELF no more")
    java = find_java(str(folder))
    assert java is not None
    assert java.major is None
    assert "format" in java.text


def test_versions_come_from_metadata(site: Path, tmp_path: Path):
    assert [minerl_version(), gym_version(), minecraft_dir(), game_jar()] == [None] * 4
    package = install(site, "minerl", "0.4.4")
    install(site, "gym", "0.17.3")
    install(site, "Opencv-Python-headless", "4.10")
    assert [minerl_version(), gym_version()] == ["0.4.4", "0.17.3"]
    assert version_of("opencv-python-headless") == "4.10"
    assert version_of("opencv-python") is None
    assert minecraft_dir() is None, "a minerl without its game"
    game = package / "Malmo" / "Minecraft"
    game.mkdir(parents=True)
    assert minecraft_dir() == game
    assert game_jar() == game / "build" / "libs" / "MalmoMod-0.37.0-fat.jar"


def test_another_environment_can_be_asked_about(tmp_path: Path):
    (other := tmp_path / "other").mkdir()
    path = [str(other)]
    assert [minerl_version(path), gym_version(path), minecraft_dir(path), game_jar(path)] == [None] * 4
    (install(other, "minerl", "1.0.2") / "Malmo" / "Minecraft").mkdir(parents=True)
    assert minerl_version(path) == "1.0.2"
    assert game_jar(path) == other / "minerl" / "Malmo" / "Minecraft" / installation.GAME_JAR


def test_numbers_of_a_version():
    assert numbers("2.13.0+cpu") == (2, 13, 0)
    assert numbers("0.9.20") > numbers("0.9.3")
    assert numbers("dev") == ()


def one_line(error: BaseException) -> str:
    assert isinstance(error, LatentObsError)
    assert "\n" not in str(error)
    return str(error)


@pytest.mark.parametrize("gym", ["0.13.1", "0.17.3", "0.19.0"])
def test_a_client_that_fits(site: Path, gym: str):
    install(site, "minerl", "0.4.4")
    install(site, "gym", gym)
    check_client()


@pytest.mark.parametrize(
    ("minerl", "gym", "kind", "said"),
    [
        (None, None, MissingExtraError, ["'minerl' is needed to", "not installed"]),
        (None, "0.26.2", MissingExtraError, ["'minerl' is needed to", "not installed"]),
        ("1.0.2", "0.23.1", InputError, ["minerl 1.0.2 is installed", "expected 0.4.4"]),
        ("0.3.7", "0.17.3", InputError, ["minerl 0.3.7 is installed", "expected 0.4.4"]),
        ("0.4.4", None, InputError, ["gym is not installed", "expected 0.17.3"]),
        ("0.4.4", "0.26.2", InputError, ["gym 0.26.2 is installed", "expected 0.17.3"]),
        ("0.4.4", "0.20.0", InputError, ["gym 0.20.0 is installed", ">=0.13.1,<0.20"]),
        ("0.4.4", "0.13.0", InputError, ["gym 0.13.0 is installed", ">=0.13.1,<0.20"]),
    ],
)
def test_a_client_that_does_not(
    site: Path, minerl: str | None, gym: str | None, kind: type[Exception], said: list[str]
):
    for name, version in (("minerl", minerl), ("gym", gym)):
        if version is not None:
            install(site, name, version)
    with pytest.raises(kind) as error:
        check_client()
    text = one_line(error.value)
    assert all(words in text for words in [*said, "uv sync --extra minerl", "pip", "docs/minerl.md"]), text
    assert str(client_error(minerl, gym)) == text


NO_DISPLAY = Display(False, "none")
SCREEN = Display(True, "DISPLAY=:0")
GOOD = JavaVersion(Path("/jdk8/bin/java"), "1.8.0_392", 8)
NEW = JavaVersion(Path("/usr/bin/java"), "17.0.15", 17)
MUTE = JavaVersion(Path("/usr/bin/java"), "no answer in 10 seconds", None)


def test_what_keeps_a_game_from_being_started(tmp_path: Path):
    jar = tmp_path / "game.jar"
    jar.touch()
    assert game_problems(GOOD, jar, SCREEN) == []
    (java,) = game_problems(NEW, jar, SCREEN)
    assert all(words in java for words in ("Java 8", "17.0.15", "/usr/bin/java"))
    (java,) = game_problems(MUTE, jar, SCREEN)
    assert all(words in java for words in ("Java 8", "no answer in 10 seconds", "/usr/bin/java"))
    problems = game_problems(None, tmp_path / "other.jar", NO_DISPLAY)
    assert [word in problem for word, problem in zip(["no java", "other.jar", "display"], problems, strict=True)] == [
        True
    ] * 3
    assert "minerl, which is not installed" in game_problems(GOOD, None, SCREEN)[0]


def test_check_game_from_nothing_to_a_start(
    site: Path, program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("MINERL_HEADLESS", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    game = install(site, "minerl", "0.4.4") / "Malmo" / "Minecraft"
    game.mkdir(parents=True)

    def problem() -> str:
        with pytest.raises(InputError) as error:
            check_game()
        text = one_line(error.value)
        assert all(words in text for words in ("docs/minerl.md", "port=", "latent-obs doctor"))
        return text

    text = problem()
    assert text.startswith("MineRL's game cannot be started here: no java on the PATH")
    assert "also: the game is not built" in text
    assert "a display" in text

    program("java", "echo 'openjdk version \"17.0.15\"' >&2")
    text = problem()
    assert f"Java 17.0.15 ({tmp_path / 'bin' / 'java'})" in text.partition("(also")[0]
    program("java", "echo 'openjdk version \"1.8.0_392\"' >&2")
    text = problem()
    assert text.startswith("MineRL's game cannot be started here: the game is not built")
    assert "also: the game needs a display" in text

    (jar := game / installation.GAME_JAR).parent.mkdir(parents=True)
    jar.touch()
    text = problem()
    assert "here: the game needs a display" in text
    assert "(also" not in text
    monkeypatch.setenv("MINERL_HEADLESS", "1")
    assert "no xvfb-run" in problem()
    program("xvfb-run", "")
    check_game()


@pytest.mark.parametrize(
    ("environ", "platform", "usable", "found"),
    [
        ({}, "linux", False, "DISPLAY is not set"),
        ({"DISPLAY": ""}, "linux", False, "DISPLAY is not set"),
        ({"DISPLAY": ":1"}, "linux", True, "DISPLAY=:1"),
        ({"DISPLAY": ":1", "MINERL_HEADLESS": "1", "PATH": "/nowhere"}, "linux", False, "no xvfb-run"),
        ({"MINERL_HEADLESS": "0"}, "linux", False, "DISPLAY is not set"),
        ({}, "darwin", True, "desktop"),
        ({}, "win32", True, "desktop"),
    ],
)
def test_displays(environ: Mapping[str, str], platform: str, usable: bool, found: str):
    screen = display(environ, platform)
    assert screen.usable is usable
    assert found in screen.found


def test_a_virtual_display(program: Program):
    folder = program("xvfb-run", "")
    assert display({"MINERL_HEADLESS": "1", "PATH": str(folder)}, "linux").usable


@pytest.mark.parametrize(
    ("platform", "distribution", "command"),
    [
        ("linux", "ubuntu", "$ sudo apt install openjdk-8-jdk"),
        ("linux", "debian", "$ conda install -c conda-forge openjdk=8"),
        ("linux", "arch", "$ conda install -c conda-forge openjdk=8"),
        ("darwin", None, "$ brew install --cask temurin@8"),
        ("win32", None, "$ winget install"),
    ],
)
def test_how_to_get_java(platform: str, distribution: str | None, command: str):
    steps = how_to_get_java(None, platform, distribution)
    assert command in steps
    assert "PATH" not in steps
    assert ("Debian has no Java 8" in steps) == (distribution == "debian")
    assert "first on the PATH" in how_to_get_java(NEW, platform, distribution)
    assert how_to_get_java(NEW)


def test_how_to_get_a_display(program: Program, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(program("apt-get", "")))
    assert how_to_get_display() == "$ sudo apt install xvfb xauth\n$ export MINERL_HEADLESS=1"
    monkeypatch.setenv("PATH", "/nowhere")
    assert "apt" not in how_to_get_display()


def test_nothing_heavy_is_imported(tmp_path: Path):
    root = Path(latent_obs.__file__).parents[1]
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "from latent_obs.minerl.installation import *\n"
        "from latent_obs.util.errors import LatentObsError\n"
        "for check in (check_client, check_game):\n"
        "    try:\n        check()\n    except LatentObsError:\n        pass\n"
        "heavy = {'torch', 'numpy', 'gymnasium', 'gym', 'minerl'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], timeout=60, check=True, cwd=tmp_path)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="minerl 0.4.4 cannot be installed there")
def test_the_client_is_installed_where_the_tests_run():
    # Without it the tests of MineRL are passed over, and nobody would notice.
    check_client()
