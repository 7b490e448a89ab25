"""`latent-obs doctor`: what is installed, what is missing, the command that mends it, and what can be done now.

It is for installations that lack something, so it needs the standard library only; torch is imported to look for GPUs.
"""

import argparse
import contextlib
import dataclasses
import importlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from latent_obs.minerl import installation
from latent_obs.util.device import cores

Status = Literal["ok", "optional", "missing", "wrong"]
MARKS = {"ok": ("ok", 32), "optional": ("--", 2), "missing": ("no", 33), "wrong": ("!!", 31)}  # and colour
ABOUT = "Tell what is installed, what is missing, the command that mends it, and what can be done now."
LEGEND = (
    "ok: there.  --: not there, needed only for what it says.  no: something that is there needs it.  !!: to be mended."
)

CORE = {"gymnasium": "1.1", "numpy": "1.26", "pillow": "10.3", "safetensors": "0.4.5", "tqdm": "4.66", "tyro": "0.9.20"}
TORCH = {"torch": "2.4"}
EXTRAS = {  # extra: its packages, the one that it is about first, and what they are for
    "agents": (
        {"stable-baselines3": "2.6", "sb3-contrib": "2.6", "rich": "13", "tensorboard": "2.21"},
        "to train agents",
    ),
    "vizdoom": ({"vizdoom": "1.3"}, "for the 3D game of the quickstart"),
    "video": ({"av": "14"}, "to film agents"),
    "watch": ({"pygame-ce": "2.5"}, "to watch agents in a window"),
    "compare": ({"rliable": "1.2", "psutil": "5.9", "matplotlib": "3.8"}, "to compare agents over tasks and seeds"),
    "plots": ({"matplotlib": "3.8"}, "to draw learning curves"),
    "report": ({"matplotlib": "3.8", "scikit-image": "0.24", "scikit-learn": "1.5"}, "to report on an encoder"),
    "hub": ({"huggingface-hub": "0.24"}, "to load encoders by Hugging Face repository id"),
}
OPENCV = ("opencv-python", "opencv-contrib-python", "opencv-python-headless", "opencv-contrib-python-headless")
CLOUDPICKLE = {"cloudpickle": "2.2"}  # older ones cannot pickle functions of Python 3.11, and gym 0.17.3 asks for one
_CORE = ("Python", "core packages", "torch")
_MINERL = (*_CORE, "minerl", "gym", "cloudpickle", "opencv")
ABILITIES = {  # what one wants to do: the findings that must be ok for it, as far as there are such
    "train a CVAE, encode frames": _CORE,
    "train and play ViZDoom": (*_CORE, "agents", "cloudpickle", "vizdoom"),
    "run the quickstart": (*_CORE, "agents", "cloudpickle", "vizdoom", "video", "plots"),
    "use MineRL's spaces, its data, and a running game by port": _MINERL,
    "start MineRL's game here": (*_MINERL, "Java 8", "built game", "display"),
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What.
        status: "ok"; "optional" (not there, and needed only for what it says); "missing" (something that is there needs
            it for all it can do); or "wrong" (broken, or the core cannot do without it).
        found: What was found, in words.
        next_step: How to mend it; lines that begin with "$ " are commands.
        group: The heading it stands under.
    """

    name: str
    status: Status
    found: str
    next_step: str = ""
    group: str = ""


def doctor() -> list[Finding]:
    """Look at this machine and this installation; a check that fails is a finding too."""
    extras = {extra: partial(_extra, extra) for extra in EXTRAS}
    groups: dict[str, dict[str, Callable[[], Iterable[Finding]]]] = {
        "This machine": {"Python": _python, "system": _machine},
        "PyTorch": {"torch": _torch},
        "Packages": {"core packages": _core, **extras, "opencv": _opencv, "cloudpickle": _cloudpickle},
        "MineRL": {"minerl": _minerl, "Java 8": _java, "built game": _game, "display": _display},
    }
    findings: list[Finding] = []
    for group, name, check in ((group, *check) for group, checks in groups.items() for check in checks.items()):
        try:
            found = list(check())
        except Exception as error:
            report = "A mistake of latent-obs doctor: please report it, with the output of\n$ latent-obs doctor --json"
            found = [Finding(name, "wrong", f"could not be looked at: {type(error).__name__}: {error}", report)]
        findings += [dataclasses.replace(finding, group=group) for finding in found]
    return findings


def abilities(findings: Sequence[Finding]) -> dict[str, list[str]]:
    """What can be done with this installation, and for each the findings that stand against it."""
    faults = {finding.name for finding in findings if finding.status != "ok"}
    return {what: [need for need in needs if need in faults] for what, needs in ABILITIES.items()}


def healthy(findings: Sequence[Finding]) -> bool:
    """Whether nothing is broken, and all is there that the core needs."""
    return all(finding.status != "wrong" for finding in findings)


def as_text(findings: Sequence[Finding], *, width: int = 100, colour: bool = False) -> str:
    """The findings for a terminal; commands are never wrapped, so that they can be copied."""
    wrap = partial(textwrap.wrap, width=width, break_long_words=False, break_on_hyphens=False)
    lines, margin = [""], " " * 6
    column = max((len(finding.name) for finding in findings), default=0)
    for before, finding in zip([None, *findings], findings, strict=False):
        if before is None or before.group != finding.group:
            lines += ["", finding.group]
        mark, code = MARKS[finding.status]
        head = f"  {mark}  {finding.name:<{column}}  "
        first, *rest = wrap(finding.found, initial_indent=head, subsequent_indent=" " * len(head))
        painted = f"\x1b[{code}m{mark}\x1b[0m" if colour else mark
        lines += [first.replace(mark, painted, 1), *rest]
        for step in finding.next_step.splitlines():
            lines += (
                [margin + step]
                if step.startswith("$ ")
                else wrap(step, initial_indent=margin, subsequent_indent=margin)
            )
    lines += ["", "What this installation can do"]
    for what, lacks in abilities(findings).items():
        can = f"no, because of {', '.join(lacks)}" if lacks else "yes"
        lines += wrap(f"{what}: {can}", initial_indent="  ", subsequent_indent=margin)
    return "\n".join([*lines[2:], "", *wrap(LEGEND)])


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The same for other programs."""
    return {
        "latent_obs": installation.version_of("latent-obs"),
        "healthy": healthy(findings),
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "abilities": {what: {"can": not lacks, "lacks": lacks} for what, lacks in abilities(findings).items()},
    }


def run_doctor(words: Sequence[str]) -> None:
    """Parse `latent-obs doctor`, and report; without tyro, which may be what is missing.

    Raises:
        SystemExit: With status 1 where something is to be mended.
    """
    parser = argparse.ArgumentParser(prog="latent-obs doctor", description=ABOUT)
    parser.add_argument("--json", action="store_true", help="print JSON, for other programs")
    wants_json = parser.parse_args(list(words)).json
    findings = doctor()
    if wants_json:
        print(json.dumps(as_json(findings), indent=2))
    else:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        print(as_text(findings, width=min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120), colour=colour))
    if not healthy(findings):
        sys.exit(1)


# --- how to install
# -----------------------------------------------------------------------------------------------------------
def _uv(words: str) -> str:
    """A uv command for the project's environment; `uv pip` for this very one."""
    known = [os.environ.get("VIRTUAL_ENV"), os.environ.get("CONDA_PREFIX"), str(Path(".venv").resolve())]
    here = f" --python {sys.prefix}" if words.startswith("pip") and sys.prefix not in known else ""
    return f"{'uv' if shutil.which('uv') or not Path('uvw').is_file() else './uvw'} {words}{here}"


def _pip(words: str) -> str:
    """A pip command for this very environment, as one has to type it."""
    if importlib.util.find_spec("pip") is None:  # uv makes environments without it
        return _uv("pip " + words.replace(" -y", "").replace("--force-reinstall", "--reinstall"))
    active = sys.prefix in (os.environ.get("VIRTUAL_ENV"), os.environ.get("CONDA_PREFIX"))
    return f"pip {words}" if active else f"{sys.executable} -m pip {words}"


def _install(extra: str = "") -> str:
    sync, what = (f"sync --extra {extra}", f"'.[{extra}]'") if extra else ("sync", ".")
    return f"$ {_uv(sync)}\n$ {_pip(f'install -c constraints.txt {what}')}    # instead, without uv sync"


def _fit(packages: dict[str, str]) -> tuple[bool, str]:
    """Whether these packages are there and new enough, and their versions in words."""
    versions = {package: installation.version_of(package) for package in packages}
    there = {package: version for package, version in versions.items() if version is not None}
    old = {
        package for package in there if installation.numbers(there[package]) < installation.numbers(packages[package])
    }
    said = ", ".join(f"{p} {v}" + (f" (needs {packages[p]} or newer)" if p in old else "") for p, v in there.items())
    absent = ", ".join(package for package in packages if package not in there)
    return not absent and not old, said + ("; " if said and absent else "") + (
        f"not installed: {absent}" if absent else ""
    )


def _import_error(module: str) -> str | None:
    """The last line of what goes wrong when a module is imported in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", f"import {module}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    return None if done.returncode == 0 else (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]


# --- the checks
# ---------------------------------------------------------------------------------------------------------------
def _judged(name: str, fits: bool, found: str, otherwise: Status, next_step: str) -> Finding:
    return Finding(name, "ok", found) if fits else Finding(name, otherwise, found, next_step)


def _python() -> Iterable[Finding]:
    fits = sys.version_info >= (3, 11)
    found = f"{platform.python_version()} ({sys.executable})" + ("" if fits else ", needs 3.11 or newer")
    yield _judged("Python", fits, found, "wrong", f"$ {_uv('venv --clear --python 3.11')}\n$ {_uv('sync')}")


def _machine() -> Iterable[Finding]:
    name = platform.freedesktop_os_release()["PRETTY_NAME"] if Path("/etc/os-release").exists() else platform.platform()
    tested = "" if sys.platform == "linux" else "; tested on Linux only"
    yield Finding("system", "ok", f"{name}, {platform.machine()}{tested}")
    yield Finding("CPU cores", "ok", f"{cores()} for this process")
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        with contextlib.suppress(OSError, ValueError):  # a container's limit, where there is one
            memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
        yield Finding("memory", "ok", f"{memory / 2**30:.1f} GiB")
    free = shutil.disk_usage(".").free
    step = "Make room, or work on another disk: a quickstart writes 0.2 GB"
    yield _judged("free disk", free > 1e9, f"{free / 1e9:.1f} GB in {Path.cwd()}", "missing", step)


def _torch() -> Iterable[Finding]:
    fit, said = _fit(TORCH)
    if not fit:
        return [Finding("torch", "wrong", said, _install())]
    mend = f"$ {_uv('pip install')} --torch-backend auto --reinstall-package torch torch"
    with warnings.catch_warnings(record=True) as caught:  # torch warns of drivers that are too old, and of unknown GPUs
        warnings.simplefilter("always")
        try:
            torch = importlib.import_module("torch")
        except Exception as error:  # a missing library, a broken installation
            return [
                Finding("torch", "wrong", f"{said}, but it cannot be imported: {type(error).__name__}: {error}", mend)
            ]
        cuda, hip, mps = torch.version.cuda, torch.version.hip, torch.backends.mps
        build = (
            f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "Apple's MPS" if mps.is_built() else "the CPU only"
        )
        first = Finding("torch", "ok", f"{said}, built for {build}")
        try:
            gpus = _gpus(torch)
        except Exception as error:  # such as a GPU that this build has no code for
            return [first, Finding("GPU", "wrong", f"cannot be used: {str(error).partition(chr(10))[0]}", mend)]
    if gpus:
        return [first, Finding("GPU", "ok", "; ".join(gpus))]
    if (driver := _nvidia()) is None:
        return [first, Finding("GPU", "optional", "none seen; everything runs on the CPU, more slowly")]
    if cuda is None:
        return [first, Finding("GPU", "missing", f"{driver}, but this torch is built for {build}", mend)]
    why = str(caught[-1].message).partition("\n")[0] if caught else "torch does not say why"
    step = f"See that nvidia-smi works; then take the build that fits the driver:\n{mend}"
    return [first, Finding("GPU", "wrong", f"{driver}, but torch cannot use it: {why}", step)]


def _gpus(torch: Any) -> list[str]:
    """The GPUs that torch computes on, each tried."""
    found = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        torch.ones(2, device=f"cuda:{i}").sum().item()
        seen = torch.cuda.get_device_properties(i)
        found.append(f"cuda:{i} {seen.name}, {seen.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        found.append("mps, Apple's")
    return found


def _nvidia() -> str | None:
    """NVIDIA's GPUs as the driver tells them, whatever torch can do with them; None where there is no driver."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=True)
        if done.stdout.strip():
            return "; ".join(" (driver ".join(line.rsplit(", ", 1)) + ")" for line in done.stdout.strip().splitlines())
    return "an NVIDIA driver" if Path("/dev/nvidiactl").exists() else None


def _core() -> Iterable[Finding]:
    yield _judged("core packages", *_fit(CORE), "wrong", _install())


def _extra(extra: str) -> Iterable[Finding]:
    packages, purpose = EXTRAS[extra]
    fit, said = _fit(packages)
    if not fit:
        begun = installation.version_of(next(iter(packages))) is not None
        return [Finding(extra, "missing" if begun else "optional", f"{said} ({purpose})", _install(extra))]
    error = _import_error("vizdoom.gymnasium_wrapper") if extra == "vizdoom" else None
    step = f"$ {_pip('install --force-reinstall')} --no-deps {said.replace(' ', '==')}"
    return [_judged(extra, error is None, said + (f", but it does not start: {error}" if error else ""), "wrong", step)]


def _opencv() -> Iterable[Finding]:
    there = {package: version for package in OPENCV if (version := installation.version_of(package))}
    said = ", ".join(f"{package} {version}" for package, version in there.items())
    keep, *others = there or ["opencv-python"]  # the first: minerl asks for opencv-python by name
    again = f"{_pip('install --force-reinstall')} --no-deps {keep}=={there.get(keep)}"
    if others:
        found = f"{said}: they overwrite each other's files, only one may be installed"
        yield Finding("opencv", "wrong", found, f"$ {_pip('uninstall -y')} {' '.join(others)}\n$ {again}")
    elif there or installation.minerl_version():
        yield _judged(
            "opencv", bool(there), said or "not installed, minerl needs it", "missing", f"$ {_pip('install')} {keep}"
        )


def _cloudpickle() -> Iterable[Finding]:
    if any(map(installation.version_of, ("cloudpickle", "stable-baselines3", "gym"))):
        fit, said = _fit(CLOUDPICKLE)
        why = (
            ""
            if fit
            else "; older ones fail on Python 3.11, in worker processes (gym's wish for one <1.7 can be ignored)"
        )
        step = f"$ {_pip('install')} 'cloudpickle>={CLOUDPICKLE['cloudpickle']}'"
        yield _judged("cloudpickle", fit, said + why, "wrong", step)


def _minerl() -> Iterable[Finding]:
    minerl, gym = installation.minerl_version(), installation.gym_version()
    sync, recipe = f"$ {_uv('sync --extra minerl')}", f"Without uv sync it takes a recipe: {installation.RECIPE}"
    if minerl is None:
        found = "not installed; the extra minerl brings Minecraft as an environment, and its recordings"
        return [Finding("minerl", "optional", found, f"{sync}\n{recipe}")]
    if minerl != installation.MINERL:
        return [Finding("minerl", "wrong", f"{minerl}, expected {installation.MINERL}", f"{sync}\n{recipe}")]
    if not installation.gym_fits(gym):
        found = f"{gym or 'not installed'}, expected {installation.GYM_TO_INSTALL}: minerl runs with gym >=0.13.1,<0.20 only"
        step = f"{sync}\n$ {_pip('install')} --no-deps gym=={installation.GYM_TO_INSTALL}    # instead, without uv sync"
        return [Finding("minerl", "ok", minerl), Finding("gym", "wrong", found, step)]
    error = _import_error("minerl")
    step = f"{sync} --reinstall-package minerl\n{recipe}"
    if error and any(library in error for library in ("libGL", "libgthread")):  # opencv-python's
        step = "$ sudo apt install libgl1 libglib2.0-0"
    found = minerl + (f", but it cannot be imported: {error}" if error else "")
    return [_judged("minerl", error is None, found, "wrong", step), Finding("gym", "ok", f"{gym}, beside gymnasium")]


def _for_game(name: str, fits: bool, found: str, step: str) -> Iterable[Finding]:
    yield _judged(name, fits, found, "missing" if installation.minerl_version() else "optional", step)


def _java() -> Iterable[Finding]:
    java = installation.find_java()
    fits = java is not None and java.major == installation.JAVA
    return _for_game("Java 8", fits, str(java or "no java on the PATH"), installation.how_to_get_java(java))


def _game() -> Iterable[Finding]:
    jar = installation.game_jar()
    if jar is None:
        return []
    step = f"{installation.RECIPE} tells how to build it; a game that runs already (port=…) needs no such things"
    found = str(jar) if jar.is_file() else f"not built: there is no {installation.GAME_JAR} in minerl's Malmo/Minecraft"
    return _for_game("built game", jar.is_file(), found, step)


def _display() -> Iterable[Finding]:
    screen = installation.display()
    return _for_game("display", screen.usable, screen.found, installation.how_to_get_display())
