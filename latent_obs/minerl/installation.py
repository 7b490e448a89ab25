"""What is installed for MineRL, and what must be said when something is missing; without importing minerl or gym.

MineRL 0.4.4 has two halves: a Python client (spaces, data, the wire to a game), and a game of its own that runs on Java
8. `check_client` is about the first; `check_game` is about starting the second on this machine, which a game that runs
already (port=…) does not need.

    $ java -version          # what MineRL's launch script runs: the java of the PATH; JAVA_HOME changes nothing
"""

import importlib.util
import os
import platform as host
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

from latent_obs.util.errors import InputError, LatentObsError, MissingExtraError

MINERL = "0.4.4"
GYM = ((0, 13, 1), (0, 20))  # what minerl 0.4.4 asks for: from the first, below the second
GYM_TO_INSTALL = "0.17.3"
JAVA = 8
GAME_JAR = Path("build", "libs", "MalmoMod-0.37.0-fat.jar")
RECIPE = "docs/minerl.md"


@dataclass(frozen=True)
class JavaVersion:
    """A `java` on the PATH.

    Attributes:
        path: The program.
        text: Its version as it tells it, such as "1.8.0_392"; where it tells none, what it says instead.
        major: 8 for "1.8.0_392", 17 for "17.0.15"; None where it tells no version.
    """

    path: Path
    text: str
    major: int | None

    def __str__(self) -> str:
        return f"Java {self.text} ({self.path})" if self.major else f"{self.path}, which tells no version: {self.text}"


@dataclass(frozen=True)
class Display:
    """Whether the game has somewhere to open its window.

    Attributes:
        usable: It has.
        found: What was found, in words.
    """

    usable: bool
    found: str


def java_version(said: str) -> tuple[str, int] | None:
    """Version and major version in what `java -version` says; None where it says none.

    Example:
        >>> java_version('openjdk version "1.8.0_392"')
        ('1.8.0_392', 8)
        >>> java_version('openjdk version "17.0.15" 2025-04-15')
        ('17.0.15', 17)
    """
    # The line that begins with "<vendor> version"; others may stand above it (JAVA_TOOL_OPTIONS) and below it.
    found = re.search(r'^\s*\w+ version "?((?:1\.)?(\d+)[^"\s]*)', said, re.MULTILINE)
    return (found[1], int(found[2])) if found else None


def find_java(path: str | None = None, *, timeout: float = 10.0) -> JavaVersion | None:
    """The `java` that MineRL's launch script would run.

    Args:
        path: Folders to look in, as in the environment variable PATH; that of this process by default.
        timeout: Seconds after which it is given up.

    Returns:
        What was found; None where there is no such program.
    """
    program = shutil.which("java", path=path)
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "-version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return JavaVersion(Path(program), f"no answer in {timeout:g} seconds", None)
    except OSError as error:
        return JavaVersion(Path(program), error.strerror or str(error), None)
    said = (done.stderr + b"\n" + done.stdout).decode(errors="replace")
    version = java_version(said) if done.returncode == 0 else None
    if version is None:
        first = next((line.strip() for line in said.splitlines() if line.strip()), "nothing said")
        return JavaVersion(Path(program), f"{first} (exit status {done.returncode})", None)
    return JavaVersion(Path(program), *version)


def version_of(distribution: str, path: Sequence[str] | None = None) -> str | None:
    """Version of an installed distribution, from its metadata; None where it is not installed.

    Args:
        distribution: Its name, such as "opencv-python".
        path: Folders to look in, as in `sys.path`, which is the default.
    """
    where = sys.path if path is None else list(path)
    context = metadata.DistributionFinder.Context(name=distribution, path=where)
    found = next(iter(metadata.distributions(context=context)), None)
    return found.version if found is not None else None


def numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with, to compare it by.

    Example:
        >>> numbers("0.17.3") < numbers("0.20.0rc1")
        True
    """
    leading = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, leading[0].split("."))) if leading else ()


def minerl_version(path: Sequence[str] | None = None) -> str | None:
    """Version of the minerl that is installed, or None."""
    return version_of("minerl", path)


def gym_version(path: Sequence[str] | None = None) -> str | None:
    """Version of the gym (not gymnasium) that is installed, or None."""
    return version_of("gym", path)


def minecraft_dir(path: Sequence[str] | None = None) -> Path | None:
    """The game's folder inside the minerl that is installed; None where there is none."""
    spec = importlib.util.find_spec("minerl") if path is None else PathFinder.find_spec("minerl", list(path))
    for package in (spec.submodule_search_locations or []) if spec is not None else []:
        folder = Path(package) / "Malmo" / "Minecraft"
        if folder.is_dir():
            return folder
    return None


def game_jar(path: Sequence[str] | None = None) -> Path | None:
    """Where the built game is, or would be; None without minerl."""
    folder = minecraft_dir(path)
    return folder / GAME_JAR if folder is not None else None


def display(environ: Mapping[str, str] | None = None, platform: str | None = None) -> Display:
    """Whether the game can open a window, judged as the launch script does.

    Args:
        environ: Environment variables; those of this process by default.
        platform: As `sys.platform`, which is the default.
    """
    environ = os.environ if environ is None else environ
    platform = sys.platform if platform is None else platform
    if platform in ("win32", "darwin"):
        return Display(True, "the desktop's")
    if environ.get("MINERL_HEADLESS") == "1":  # then the script asks for xvfb-run, whatever DISPLAY says
        program = shutil.which("xvfb-run", path=environ.get("PATH", os.defpath))
        if program is None:
            return Display(False, "MINERL_HEADLESS=1, but there is no xvfb-run on the PATH")
        return Display(True, f"virtual, by {program} (MINERL_HEADLESS=1)")
    if environ.get("DISPLAY"):
        return Display(True, f"DISPLAY={environ['DISPLAY']}")
    return Display(False, "none: DISPLAY is not set, and MINERL_HEADLESS=1 (a virtual one, by xvfb-run) neither")


def how_to_get_java(java: JavaVersion | None, platform: str | None = None, distribution: str | None = None) -> str:
    """How to come to a Java 8 here; lines that begin with "$ " are commands.

    Args:
        java: What `find_java` found instead.
        platform: As `sys.platform`, which is the default.
        distribution: ID of a Linux distribution as in /etc/os-release, by default this one's.
    """
    platform = sys.platform if platform is None else platform
    if platform == "linux" and distribution is None and Path("/etc/os-release").exists():
        distribution = host.freedesktop_os_release()["ID"]
    conda = "$ conda install -c conda-forge openjdk=8"
    if platform == "darwin":
        steps = ["$ brew install --cask temurin@8"]
    elif platform == "win32":
        steps = ["$ winget install EclipseAdoptium.Temurin.8.JDK"]
    elif distribution == "ubuntu":
        steps = ["$ sudo apt install openjdk-8-jdk"]
    else:
        none = "Debian has no Java 8 of its own any more; take" if distribution == "debian" else "Take"
        steps = [f"{none} Temurin 8 (https://adoptium.net/temurin/releases/?version=8), or with conda:", conda]
    if java is not None:
        choose = " (sudo update-alternatives --config java)" if distribution in ("debian", "ubuntu") else ""
        steps.append(f"Then have it first on the PATH{choose}: java -version must say 1.8. JAVA_HOME changes nothing.")
    return "\n".join(steps)


def how_to_get_display() -> str:
    """How to come to a display on a Linux machine without one; lines that begin with "$ " are commands."""
    has_apt = shutil.which("apt-get") is not None
    get = (
        "$ sudo apt install xvfb xauth"
        if has_apt
        else "Install xvfb-run, which most distributions have as xvfb, and then"
    )
    return f"{get}\n$ export MINERL_HEADLESS=1"


def gym_fits(version: str | None) -> bool:
    """Whether minerl 0.4.4 runs with this version of gym.

    Example:
        >>> gym_fits("0.17.3"), gym_fits("0.26.2"), gym_fits(None)
        (True, False, False)
    """
    return version is not None and GYM[0] <= numbers(version) < GYM[1]


def client_error(minerl: str | None, gym: str | None) -> LatentObsError | None:
    """The error that these versions of minerl and gym deserve; None where they run together."""
    if minerl is None:
        return MissingExtraError(
            "'minerl' is needed to use MineRL, and is not installed. "
            + (
                ""
                if sys.version_info < (3, 12)
                else f"On Python {host.python_version()} it cannot be: make an environment of 3.11. "
            )
            + f"Install it with: uv sync --extra minerl    (pip needs a recipe of its own: {RECIPE})"
        )
    mend = f"Install the two that fit with: uv sync --extra minerl    (pip needs a recipe of its own: {RECIPE})"
    if minerl != MINERL:
        return InputError(
            f"minerl {minerl} is installed, expected {MINERL}: other versions have other tasks and spaces. {mend}"
        )
    if not gym_fits(gym):
        found = f"gym {gym} is installed" if gym is not None else "gym is not installed"
        return InputError(
            f"{found}, expected {GYM_TO_INSTALL} (minerl {MINERL} runs with gym >=0.13.1,<0.20 only). {mend}"
        )
    return None


def game_problems(java: JavaVersion | None, jar: Path | None, screen: Display) -> list[str]:
    """What keeps MineRL's game from being started, most basic first; nothing where it can be.

    Args:
        java: As `find_java` gives it.
        jar: As `game_jar` gives it.
        screen: As `display` gives it.
    """
    problems = []
    if java is None:
        problems.append(f"no java on the PATH, and the game runs on Java {JAVA}")
    elif java.major != JAVA:
        problems.append(f"the game runs on Java {JAVA}, and the java of the PATH is {java}")
    if jar is None:
        problems.append("the game comes with minerl, which is not installed")
    elif not jar.is_file():
        problems.append(f"the game is not built, there is no {jar}")
    if not screen.usable:
        problems.append(f"the game needs a display, found {screen.found}")
    return problems


def check_client() -> None:
    """See that minerl and gym are installed, in versions that run together.

    Raises:
        MissingExtraError: minerl is not installed.
        InputError: It is, but in another version than 0.4.4, or with a gym that it does not run with.
    """
    error = client_error(minerl_version(), gym_version())
    if error is not None:
        raise error


def check_game() -> None:
    """See that MineRL's game can be started on this machine; not needed for a game that runs already.

    Raises:
        InputError: It cannot be; the message names the first thing that is missing, and the others after it.
    """
    problems = game_problems(find_java(), game_jar(), display())
    if problems:
        also = f" (also: {'; '.join(problems[1:])})" if problems[1:] else ""
        raise InputError(
            f"MineRL's game cannot be started here: {problems[0]}{also}. {RECIPE} tells how to build and start it, and "
            "latent-obs doctor how to come by what is missing; a game that runs already can be used with port=…"
        )
