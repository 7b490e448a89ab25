"""`latent-obs doctor`: what is installed, what is missing and how to get it; exit status 1 if something is broken.

The packages and versions that are needed come from the metadata of latent-obs itself. As installations may be broken,
nothing heavy is imported at the top.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from latent_obs.minerl import installation
from latent_obs.util.errors import LatentObsError, MissingExtraError

Status = Literal["ok", "optional", "missing", "wrong"]
MARKS = {"ok": "ok", "optional": "--", "missing": "no", "wrong": "!!"}
LEGEND = "ok: found.  --: not found, and optional.  no: not found, and needed by something that is.  !!: needs repair."
_CORE = ("Python", "core packages", "torch")
ABILITIES = {  # by what one wants to do: the findings that must be ok for it
    "train a CVAE, encode frames": _CORE,
    "train and play ViZDoom": (*_CORE, "agents", "cloudpickle", "vizdoom"),
    "run the quickstart": (*_CORE, "agents", "cloudpickle", "vizdoom", "video", "plots"),
    "use MineRL's spaces, its data, and a running game by port": (*_CORE, "minerl", "cloudpickle", "opencv"),
    "start MineRL's game here": (*_CORE, "minerl", "cloudpickle", "opencv", "Java 8", "built game", "display"),
}
_SEPARATE = ("torch", "minerl", "gym", "cloudpickle", "opencv-python")  # packages with a check of their own
_REINSTALL_TORCH = "$ uv pip install --torch-backend auto --reinstall-package torch torch"


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: What was checked.
        status: "ok"; "optional" (not found, and not needed); "missing" (something that is installed needs it); or
            "wrong" (broken, or needed by everything).
        found: What was found, in words.
        next_step: How to repair it; lines that begin with "$ " are commands.
        group: The heading it stands under.
    """

    name: str
    status: Status
    found: str
    next_step: str = ""
    group: str = ""


def doctor() -> list[Finding]:
    """Check this machine and this installation. A check that fails is a finding, too."""
    checks = {"This machine": _machine, "PyTorch": _torch, "Packages": _packages, "MineRL": _minerl}
    findings: list[Finding] = []
    for group, check in checks.items():
        try:
            findings.extend(dataclasses.replace(finding, group=group) for finding in check())
        except Exception as error:
            found = f"could not be checked: {type(error).__name__}: {error}"
            findings.append(Finding(group, "wrong", found, "Please report this.", group))
    return findings


def abilities(findings: Sequence[Finding]) -> dict[str, list[str]]:
    """What can be done with this installation, and for each the findings that prevent it."""
    good = {finding.name for finding in findings if finding.status == "ok"}
    return {what: [need for need in needs if need not in good] for what, needs in ABILITIES.items()}


def healthy(findings: Sequence[Finding]) -> bool:
    """Whether nothing is broken, and everything is found that the core needs."""
    return all(finding.status != "wrong" for finding in findings)


def as_text(findings: Sequence[Finding]) -> str:
    """The findings for a terminal, each in a line with its remedy below, so that commands can be copied."""
    lines: list[str] = []
    column = max(len(finding.name) for finding in findings)
    for group, members in itertools.groupby(findings, lambda finding: finding.group):
        lines += ["", group]
        for finding in members:
            lines.append(f"  {MARKS[finding.status]}  {finding.name:<{column}}  {finding.found}")
            lines += [f"      {step}" for step in finding.next_step.splitlines()]
    lines += ["", "What this installation can do"]
    for what, lacks in abilities(findings).items():
        lines.append(f"  {what}: {'no, because of ' + ', '.join(lacks) if lacks else 'yes'}")
    return "\n".join([*lines[1:], "", LEGEND])


def run_doctor(words: Sequence[str]) -> None:
    """Parse `latent-obs doctor` without tyro, which may be missing, and report. Exits 1 if something is broken."""
    parser = argparse.ArgumentParser(prog="latent-obs doctor", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON, for other programs")
    wants_json = parser.parse_args(list(words)).json
    findings = doctor()
    if wants_json:
        report = {
            "latent_obs": installation.version_of("latent-obs"),
            "healthy": healthy(findings),
            "findings": [dataclasses.asdict(finding) for finding in findings],
            "abilities": {what: {"can": not lacks, "lacks": lacks} for what, lacks in abilities(findings).items()},
        }
        print(json.dumps(report, indent=2))
    else:
        print(as_text(findings))
    if not healthy(findings):
        sys.exit(1)


def requirements() -> dict[str, dict[str, str]]:
    """The packages that latent-obs asks for, with their versions such as ">=2.4"; by extra, "" for the core.

    Raises:
        PackageNotFoundError: latent-obs itself is not installed.
    """
    from packaging.requirements import Requirement

    extras: list[str] = metadata.metadata("latent-obs").get_all("Provides-Extra") or []
    wanted: dict[str, dict[str, str]] = {name: {} for name in ("", *extras)}
    for line in metadata.requires("latent-obs") or []:
        requirement = Requirement(line)
        for extra, packages in wanted.items():
            of_extra = requirement.marker is not None and "extra" in str(requirement.marker)
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            if applies and of_extra == bool(extra) and requirement.name not in ("latent-obs", *_SEPARATE):
                packages[requirement.name] = str(requirement.specifier)
    return wanted


def _machine() -> Iterable[Finding]:
    found = f"{platform.python_version()} ({sys.executable})"
    step = "It must be 3.11 or newer.\n$ uv venv --clear --python 3.11\n$ uv sync"
    yield _judged("Python", sys.version_info >= (3, 11), found, "wrong", step)
    yield Finding("system", "ok", f"{platform.platform()}, {os.cpu_count()} CPU cores (tested on Linux only)")


def _torch() -> Iterable[Finding]:
    version = installation.version_of("torch")
    if version is None:
        yield Finding("torch", "wrong", "not installed", _sync())
        return
    with warnings.catch_warnings(record=True) as caught:  # torch warns of drivers that are too old, and of unknown GPUs
        warnings.simplefilter("always")
        try:
            torch = importlib.import_module("torch")
            gpus = _gpus(torch)
        except Exception as error:  # a missing library, a GPU that this build has no code for
            found = f"{version}, but it cannot be used: {type(error).__name__}: {_first_line(error)}"
            yield Finding("torch", "wrong", found, _REINSTALL_TORCH)
            return
    cuda, hip = torch.version.cuda, torch.version.hip
    build = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "the CPU or Apple's MPS"
    yield Finding("torch", "ok", f"{version}, built for {build}")
    otherwise: Status = "optional"
    found, step = "; ".join(gpus) or "none seen; everything runs on the CPU, more slowly", ""
    if not gpus and _has_nvidia_driver():
        otherwise = "wrong" if cuda else "missing"
        why = _first_line(caught[-1].message) if caught else f"it is built for {build}"
        found = f"there is an NVIDIA driver, but torch cannot use it: {why}"
        step = f"Check that nvidia-smi works, then install the build for its driver:\n{_REINSTALL_TORCH}"
    yield _judged("GPU", bool(gpus), found, otherwise, step)
    yield _encoding()


def _encoding() -> Finding:
    from latent_obs.encoder.architecture import Architecture
    from latent_obs.encoder.fastest import best
    from latent_obs.encoder.frozen import encoding_times

    try:
        times = encoding_times(Architecture((64, 64, 3), 256, (64, 128), (4, 2), "spatial"))
    except Exception as error:
        return Finding(
            "encoding", "missing", f"cannot be measured: {type(error).__name__}: {_first_line(error)}", _sync()
        )
    listed = ", ".join(f"{way.backend} in {way.precision} {time:.1f} ms" for way, time in times.items())
    taken = best({way: time for way, time in times.items() if way.precision == "float32"})
    return Finding("encoding", "ok", f"8 frames of 64x64 on the CPU: {listed}; 'auto' is {taken.backend}")


def _has_nvidia_driver() -> bool:
    return Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None


def _gpus(torch: Any) -> list[str]:
    """The GPUs that torch computes on, each tried."""
    found = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        torch.ones(2, device=f"cuda:{i}").sum().item()
        seen = torch.cuda.get_device_properties(i)
        found.append(f"cuda:{i} {seen.name}, {seen.total_memory / 2**30:.0f} GiB")
    return [*found, "mps, Apple's"] if torch.backends.mps.is_available() else found


def _packages() -> Iterable[Finding]:
    try:
        wanted = requirements()
    except metadata.PackageNotFoundError:
        yield Finding("core packages", "wrong", "latent-obs is not installed", _sync())
        return
    for extra, packages in wanted.items():
        if extra not in ("all", "minerl"):
            good, bad = _compared(packages)
            status: Status = "wrong" if not extra else "missing" if good else "optional"
            if extra == "vizdoom" and not bad and (error := _import_error("vizdoom.gymnasium_wrapper")):
                status, bad = "wrong", [f"{', '.join(good)} does not start: {error}"]
            yield _judged(extra or "core packages", not bad, ", ".join(bad or good), status, _sync(extra))
    if any(map(installation.version_of, ("cloudpickle", "stable-baselines3", "gym"))):
        good, bad = _compared({"cloudpickle": ">=2.2"})
        step = f"Older ones fail on Python 3.11, whatever gym asks for.\n$ {_pip('install')} 'cloudpickle>=2.2'"
        yield _judged("cloudpickle", not bad, ", ".join(good + bad), "wrong", step)


def _compared(packages: dict[str, str]) -> tuple[list[str], list[str]]:
    """Packages that fit, and those that do not, each with its version in words."""
    from packaging.specifiers import SpecifierSet

    good, bad = [], []
    for package, wanted in packages.items():
        version = installation.version_of(package)
        if version is not None and SpecifierSet(wanted).contains(version, prereleases=True):
            good.append(f"{package} {version}")
        else:
            bad.append(f"{package} {version or 'is not installed'} (needs {wanted or 'any version'})")
    return good, bad


def _minerl() -> Iterable[Finding]:
    version = installation.minerl_version()
    needed: Status = "missing" if version else "optional"
    step = f"$ uv sync --extra minerl --reinstall-package minerl\nWithout uv sync, follow {installation.RECIPE}."
    try:
        installation.check_client()
    except LatentObsError as error:
        yield Finding("minerl", "optional" if isinstance(error, MissingExtraError) else "wrong", str(error), step)
    else:
        error = _import_error("minerl")
        if error and any(library in error for library in ("libGL", "libgthread")):  # opencv-python's
            step = "$ sudo apt install libgl1 libglib2.0-0"
        found = f"{version}" + (f", but it cannot be imported: {error}" if error else "")
        yield _judged("minerl", error is None, found, "wrong", step)
    kinds = ("opencv-python", "opencv-contrib-python", "opencv-python-headless", "opencv-contrib-python-headless")
    versions = {name: version for name in kinds if (version := installation.version_of(name))}
    text = ", ".join(f"{name} {version}" for name, version in versions.items()) or "not installed"
    if len(versions) > 1:
        keep, *others = versions
        step = f"$ {_pip('uninstall')} {' '.join(others)}\n$ {_pip('install --force-reinstall')} --no-deps {keep}"
        yield Finding("opencv", "wrong", f"{text}: they overwrite each other's files, only one may be installed", step)
    else:
        yield _judged("opencv", bool(versions), text, needed, f"$ {_pip('install')} opencv-python")
    java, jar, screen = installation.find_java(), installation.game_jar(), installation.display()
    fits = java is not None and java.major == installation.JAVA
    yield _judged("Java 8", fits, str(java or "no java on the PATH"), needed, installation.how_to_get_java(java))
    built = jar is not None and jar.is_file()
    step = f"{installation.RECIPE} explains how to build it. A game that runs already (port=…) needs none of this."
    yield _judged("built game", built, str(jar) if built else "not built", needed, step)
    yield _judged("display", screen.usable, screen.found, needed, installation.how_to_get_display())


def _judged(name: str, fits: bool, found: str, otherwise: Status, next_step: str) -> Finding:
    return Finding(name, "ok", found) if fits else Finding(name, otherwise, found, next_step)


def _sync(extra: str = "") -> str:
    """How to install the core or an extra: from a clone by uv, or by pip."""
    if extra == "ray":
        why = "It admits one version of Gymnasium, so it needs an environment of its own. In a clone:"
        return f"{why}\n$ ./uvw --ray run latent-obs doctor"
    uv = "./uvw" if shutil.which("uv") is None and Path("uvw").is_file() else "uv"
    option, target = (f" --extra {extra}", f"'.[{extra}]'") if extra else ("", ".")
    return f"$ {uv} sync{option}\n$ {_pip('install')} -c constraints.txt {target}    # instead, without uv sync"


def _pip(words: str) -> str:
    """A pip command for this environment; uv makes environments without pip."""
    has_pip = importlib.util.find_spec("pip") is not None
    return f"{sys.executable} -m pip {words}" if has_pip else f"uv pip {words} --python {sys.executable}"


def _import_error(module: str) -> str | None:
    """The last line of the error when a module is imported in a process of its own; None if it can be."""
    command = [sys.executable, "-W", "ignore", "-c", f"import {module}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]


def _first_line(message: object) -> str:
    return str(message).partition("\n")[0]
