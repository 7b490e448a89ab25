"""What `latent-obs doctor` prints: the same as text, in colours and as JSON, with commands for this very
environment."""

# ruff: noqa: F401, F811  # fixtures are imported, and arguments have their names

import json
import re
import sys
from pathlib import Path

import pytest

from latent_obs_cli.doctor import Finding, as_text, doctor, run_doctor
from tests.support.doctored_machine import NEW_JAVA, Machine, by_name, lacking, machine, printed, words_of


@pytest.mark.parametrize("width", [60, 80, 100])
def test_text_and_json_agree(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
):
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
