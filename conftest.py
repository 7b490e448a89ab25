"""Runs the snippets of README.md and docs/*.md as they are written: each block is a test, a page's blocks run in order.

A page runs in a folder of its own, which holds only what the page has made, and its Python blocks share their names. A
page that uses "the encoder of [first run](…)" finds that encoder in runs/doom, and its frames in
frames/doom. What it names of tests/recordings is there. A comment right before a block changes how it is run:

    <!-- not run: the reason -->        the block is a skipped test, and pytest lists the reason
    <!-- file: catch.py -->             the block is written to this file
    <!-- run with: 100_000 -> 500 -->   the text on the left is replaced, because it would take long
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from sybil import Document, Example, Region, Sybil

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch; as in tests/conftest.py

#: Modules whose examples cannot be collected without Ray, which has an environment of its own.
collect_ignore = [] if find_spec("ray") else ["latent_obs/rllib.py", "agents/rllib.py"]

BLOCK = re.compile(r"^(?:<!-- ([a-z ]+): (.+) -->\n+)?```(\S*).*\n((?:.*\n)*?)```$", re.MULTILINE)
NOT_RUN = {"", "text", "toml", "{toctree}", "{eval-rst}"}
RECORDINGS = Path(__file__).parent / "tests" / "recordings"
HAS_ENCODER = "the encoder of [first run]("


def blocks(document: Document) -> Iterator[Region]:
    """Find the blocks of a page that are code."""
    for match in BLOCK.finditer(document.text):
        how, what, language, code = match.groups()
        if how not in (None, "not run", "file", "run with") or language not in {"python", "sh", *NOT_RUN}:
            raise ValueError(f"{document.path}: a block of {language!r} after a comment {how!r}, which has no meaning")
        if language in ("python", "sh"):
            yield Region(match.start(3), match.end(), (how, what, language, code), run)


def run(example: Example) -> None:
    """Run a block."""
    how, what, language, code = example.parsed
    if how == "not run":
        pytest.skip(f"{Path(example.path).name}, line {example.line}: {what}")
    if how == "file":
        Path(what).write_text(code)
        return
    if how == "run with":
        left, _, right = what.partition(" -> ")
        assert left in code, f"{left!r} is not in the block"
        code = code.replace(left, right)
    if language == "python":
        exec(compile("\n" * example.line + code, example.path, "exec"), example.namespace)
    else:
        for line in code.replace("\\\n", " ").splitlines():
            run_line(line)


def run_line(line: str) -> None:
    """Run a line of a shell: `latent-obs` in this process, which is quicker and has its settings limited."""
    from latent_obs_cli.main import main

    words = shlex.split(line, comments=True)
    if words[:1] == ["latent-obs"]:
        assert main(words[1:]) == 0, line
    elif words:
        subprocess.run(["bash", "-euc", line], check=True, timeout=900)


@pytest.fixture(scope="module")
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The folder that a page runs in, with less work than the page asks for."""
    document: Document = request.node.documents[0]
    document.namespace["__name__"] = "__main__"  # classes of a page are pickled by value, as those of a script
    with pytest.MonkeyPatch.context() as patch:
        limit_the_work(patch)
        if HAS_ENCODER in " ".join(document.text.split()):
            folder = tmp_path_factory.mktemp("page") / "page"
            shutil.copytree(first_run(tmp_path_factory), folder)
        else:
            folder = tmp_path_factory.mktemp("page")
        for recording in RECORDINGS.glob("*-*"):
            if recording.name in document.text:
                (folder / recording.name).symlink_to(recording)
        patch.chdir(folder)
        patch.setattr(sys, "path", [str(folder), *sys.path])  # as for a script in the folder
        yield


def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with frames/doom and runs/doom, which the worker processes of pytest-xdist make once for all."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "first-run"
    with FileLock(f"{folder}.lock"), pytest.MonkeyPatch.context() as patch:
        if not folder.exists():
            folder.mkdir()
            patch.chdir(folder)
            run_line("latent-obs frames record --env VizdoomBasic-v1 --frame-skip 4 --out frames/doom")
            run_line("latent-obs train-vae --frames frames/doom --out runs/doom")
    return folder


def limit_the_work(patch: pytest.MonkeyPatch) -> None:
    """Let the snippets do little of all that they ask for."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.base_class import BaseAlgorithm

    import agents.evaluation
    import latent_obs.envs.factory
    from agents import AgentConfig
    from vae_training import RecordConfig, TrainConfig
    from vae_training.report import ReportConfig

    def limit(kind: Any, **limits: Callable[[Any], Any]) -> None:
        check = kind.__post_init__

        def limited(config: Any) -> None:
            for name, few in limits.items():
                object.__setattr__(config, name, few(getattr(config, name)))
            check(config)

        patch.setattr(kind, "__post_init__", limited)

    limit(RecordConfig, frames=some, frames_per_file=lambda frames: min(frames, 100))
    limit(TrainConfig, epochs=lambda _: 1)
    limit(ReportConfig, quick=lambda _: True, probes=lambda _: False)
    limit(AgentConfig, steps=some, envs=lambda _: 2, eval_episodes=lambda _: 2, workers=lambda _: "serial")
    play, vector, setup_learn = agents.evaluation.play, latent_obs.envs.factory._make_vector, BaseAlgorithm._setup_learn
    patch.setattr(agents.evaluation, "play", lambda policy, venv, episodes, *a, **k: play(policy, venv, 4, *a, **k))
    patch.setattr(latent_obs.envs.factory, "_make_vector", lambda id_, encoder, _, *a: vector(id_, encoder, 2, *a))
    patch.setattr(BaseAlgorithm, "_setup_learn", lambda model, steps, *a, **k: setup_learn(model, some(steps), *a, **k))
    patch.setattr(PPO.__init__, "__defaults__", tuple(128 if v == 2048 else v for v in PPO.__init__.__defaults__ or ()))
    patch.setattr("agents.play.show._MOST_SECONDS", 1)  # of a video


def some(count: int) -> int:
    """Few of many, but more of more, so that a command that continues an earlier one has something to do."""
    return count if count <= 512 else 256 + count // 2_000


pytest_collect_file = Sybil([blocks], patterns=["README.md", "docs/*.md"], fixtures=["page"]).pytest()
