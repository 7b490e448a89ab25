"""`--help` of every verb: quick, as nothing heavy is imported, and with the defaults that hold."""

import re
import subprocess
import sys

import pytest

from latent_obs_cli.main import VERBS
from tests.support import ROOT

HEAVY = ("torch", "stable_baselines3", "gymnasium", "numpy", "matplotlib")
CODE = """
import sys
from latent_obs_cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as error:
    code = error.code
print("imported:", *sorted(set({heavy!r}) & sys.modules.keys()))
sys.exit(code)
"""


def help_of(verb: str) -> str:
    """What `verb --help` prints in a process of its own, and what it imported."""
    command = [sys.executable, "-c", CODE.format(heavy=HEAVY), *verb.split(), "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_imports_nothing_heavy(verb: str):
    assert help_of(verb).endswith("imported:\n")


def test_the_defaults_of_an_algorithm_and_whole_paragraphs():
    text = help_of("train-agent dqn")
    for option, default in (("net-arch", "128 128"), ("learning-rate", "0.0005"), ("train-freq", "1")):
        (own,) = re.findall(rf"--{option} .*?\(default:\s*([^)]*?)\)", text, re.DOTALL)
        assert re.sub(r"[\s│]+", " ", own).strip() == default
    text = help_of("frames record")
    lines = [line.strip("│ ") for line in text.splitlines()]
    alone = [line for line in lines if re.fullmatch(r"\w+", line)]  # a word that a kept line break left on its line
    assert not alone
