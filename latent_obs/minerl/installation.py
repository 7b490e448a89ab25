"""What is installed for MineRL, and what is missing; found without importing minerl or gym.

MineRL 0.4.4 has two halves: a Python client (`check_client`), and a game that runs on Java 8 (`check_game`). A game
that runs already (port=…) needs the first only.
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from latent_obs.util.errors import InputError, MissingExtraError

MINERL = "0.4.4"
JAVA = 8
GAME_JAR = Path("build", "libs", "MalmoMod-0.37.0-fat.jar")
RECIPE = "docs/minerl.md"


@dataclass(frozen=True)
class JavaVersion:
    """A `java` on the PATH; where it reports no version, `major` is None and `text` is what it reports instead."""

    path: Path
    text: str
    major: int | None

    def __str__(self) -> str:
        return f"Java {self.text} ({self.path})" if self.major else f"{self.path}, without a version: {self.text}"


@dataclass(frozen=True)
class Display:
    """Whether the game can open its window, and what was found, in words."""

    usable: bool
    found: str


def find_java(timeout: float = 10.0) -> JavaVersion | None:
    """Find the `java` that MineRL's launch script would run: that of the PATH, whatever JAVA_HOME is."""
    program = shutil.which("java")
    if program is None:
        return None
    try:
        done = subprocess.run([program, "-version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout)
    except (subprocess.TimeoutExpired, OSError) as error:
        return JavaVersion(Path(program), f"no answer ({error})", None)
    printed = (done.stderr + b"\n" + done.stdout).decode(errors="replace")
    # The line that begins with "<vendor> version"; others may stand above it (JAVA_TOOL_OPTIONS) and below it.
    found = re.search(r'^\s*\w+ version "?((?:1\.)?(\d+)[^"\s]*)', printed, re.MULTILINE)
    if found is None or done.returncode != 0:
        first = next((line.strip() for line in printed.splitlines() if line.strip()), "no output")
        return JavaVersion(Path(program), f"{first} (exit status {done.returncode})", None)
    return JavaVersion(Path(program), found[1], int(found[2]))


def version_of(distribution: str) -> str | None:
    """Version of an installed distribution, such as "opencv-python", from its metadata; None without it."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def minerl_version() -> str | None:
    """Version of the minerl that is installed, or None."""
    return version_of("minerl")


def game_jar() -> Path | None:
    """Where the built game is, or would be; None without minerl."""
    spec = importlib.util.find_spec("minerl")
    for package in (spec.submodule_search_locations or []) if spec is not None else []:
        folder = Path(package) / "Malmo" / "Minecraft"
        if folder.is_dir():
            return folder / GAME_JAR
    return None


def display() -> Display:
    """Whether the game can open a window, judged as the launch script does."""
    if sys.platform in ("win32", "darwin"):
        return Display(True, "the desktop's")
    if os.environ.get("MINERL_HEADLESS") == "1":  # then the script calls xvfb-run, whatever DISPLAY is
        program = shutil.which("xvfb-run")
        if program is None:
            return Display(False, "MINERL_HEADLESS=1, but there is no xvfb-run on the PATH")
        return Display(True, f"virtual, by {program} (MINERL_HEADLESS=1)")
    if os.environ.get("DISPLAY"):
        return Display(True, f"DISPLAY={os.environ['DISPLAY']}")
    return Display(False, "none: DISPLAY is not set, and MINERL_HEADLESS=1 (a virtual one, by xvfb-run) neither")


def how_to_get_java(java: JavaVersion | None) -> str:
    """How to install Java 8 here, where `find_java` found `java`; lines that begin with "$ " are commands."""
    system = sys.platform
    if system == "linux" and Path("/etc/os-release").exists():
        system = platform.freedesktop_os_release()["ID"]
    commands = {
        "darwin": "$ brew install --cask temurin@8",
        "win32": "$ winget install EclipseAdoptium.Temurin.8.JDK",
        "ubuntu": "$ sudo apt install openjdk-8-jdk",
    }
    temurin = "Take Temurin 8 (https://adoptium.net/temurin/releases/?version=8), or with conda:"
    step = commands.get(system, f"{temurin}\n$ conda install -c conda-forge openjdk=8")
    if java is None:
        return step
    choose = " (sudo update-alternatives --config java)" if system in ("debian", "ubuntu") else ""
    return f"{step}\nThen have it first on the PATH{choose}: java -version must print 1.8. JAVA_HOME has no effect."


def how_to_get_display() -> str:
    """How to get a display on a Linux machine without one; lines that begin with "$ " are commands."""
    get = "$ sudo apt install xvfb xauth" if shutil.which("apt-get") else "Install xvfb-run (package xvfb), then:"
    return f"{get}\n$ export MINERL_HEADLESS=1"


def check_client() -> None:
    """Check that minerl and gym are installed, in versions that run together.

    Raises:
        MissingExtraError: minerl is not installed.
        InputError: It is, but in another version than 0.4.4, or with a gym that it does not run with.
    """
    minerl, gym = minerl_version(), version_of("gym")
    install = f"uv sync --extra minerl    (pip needs a recipe of its own: {RECIPE})"
    if minerl is None:
        python = "" if sys.version_info < (3, 12) else " It needs Python 3.11."
        raise MissingExtraError(
            f"'minerl' is needed to use MineRL, and is not installed.{python} Install it: {install}"
        )
    if minerl != MINERL:
        raise InputError(f"minerl {minerl} is installed, expected {MINERL}. Install it with: {install}")
    numbers = tuple(map(int, re.findall(r"\d+", gym or "")[:3]))
    if not (0, 13, 1) <= numbers < (0, 20):
        found = f"gym {gym} is installed" if gym else "gym is not installed"
        needed = f"expected 0.17.3 (minerl {MINERL} needs gym >=0.13.1,<0.20)"
        raise InputError(f"{found}, {needed}. Install it with: {install}")


def check_game() -> None:
    """Check that MineRL's game can be started on this machine; not needed for a game that runs already.

    Raises:
        InputError: It cannot be; the message names all that is missing.
    """
    java, jar, screen = find_java(), game_jar(), display()
    problems = []
    if java is None or java.major != JAVA:
        problems.append(f"it runs on Java {JAVA}, and on the PATH is {java or 'no java'}")
    if jar is None:
        problems.append("it comes with minerl, which is not installed")
    elif not jar.is_file():
        problems.append(f"it is not built, there is no {jar}")
    if not screen.usable:
        problems.append(f"it needs a display, found {screen.found}")
    if problems:
        raise InputError(
            f"MineRL's game cannot be started here: {'; '.join(problems)}. {RECIPE} explains how to build it, and "
            "latent-obs doctor how to get what is missing; a game that runs already can be used with port=…"
        )
