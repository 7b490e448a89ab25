"""train_agent stopped, by a signal, by Ctrl-C or by a game that fails: the agent is saved, and nothing is left
running."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.support import ROOT

pytest.importorskip("stable_baselines3")

from agents.config import AgentConfig
from agents.store import load_agent
from agents.training import train_agent
from tests.support.agent_runs import train
from tests.support.side_env import SIDE, SideEnv, tiny


def test_environments_are_closed_when_training_fails(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    open_now: set[int] = set()
    init, step = SideEnv.__init__, SideEnv.step
    count = 0

    def make(self: SideEnv, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        open_now.add(id(self))

    def fail(self: SideEnv, action: Any) -> Any:
        nonlocal count
        count += 1
        if count > 20:
            raise RuntimeError("the game crashed")
        return step(self, action)

    monkeypatch.setattr(SideEnv, "__init__", make)
    monkeypatch.setattr(SideEnv, "close", lambda self: open_now.discard(id(self)))
    monkeypatch.setattr(SideEnv, "step", fail)
    handlers = signal.getsignal(signal.SIGINT), torch.get_num_threads()
    with pytest.raises(RuntimeError, match="the game crashed"):
        train(tiny(encoder=encoder_folder, out=tmp_path / "run"))
    assert not open_now
    assert (signal.getsignal(signal.SIGINT), torch.get_num_threads()) == handlers


@pytest.mark.parametrize(("exact", "saved"), [(True, 32), (False, 50)])
def test_a_stop_that_was_asked_for_saves_the_agent(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: bool, saved: int
):
    step, count = SideEnv.step, 0

    def interrupt(self: SideEnv, action: Any) -> Any:
        nonlocal count
        count += 1
        if count == 50:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, action)

    monkeypatch.setattr(SideEnv, "step", interrupt)
    said: list[str] = []
    config = tiny(
        encoder=encoder_folder, out=tmp_path / "run", steps=1_000, eval_every=0, exact_resume=exact, checkpoint_every=32
    )
    result = train_agent(config, say=said.append)
    assert result.interrupted
    assert result.steps == saved
    assert load_agent(result.run, "last", device="cpu").num_timesteps == saved
    assert "Stopped at step 50" in said[-1]
    assert f"from step {saved} with: latent-obs train-agent --out {result.run} --resume" in said[-1]


def test_ctrl_c_saves_the_agent_and_leaves_no_process_behind(encoder_folder: Path, tmp_path: Path):
    run, log = tmp_path / "run", tmp_path / "log.txt"
    words = (
        f"train-agent --env {SIDE} --encoder {encoder_folder} --out {run} --envs 2 --n-steps 64 --batch-size 64 --n-epochs 1 "
        "--net-arch 8 --steps 100000000 --eval-every 128 --eval-episodes 2 --checkpoint-every 128 --device cpu"
    )
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "latent_obs_cli.main", *words.split()],
            stdout=file,
            stderr=file,
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    children: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 120
        while not (run / "best.zip").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert (run / "best.zip").exists(), log.read_text()
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 4  # two to train in, two to evaluate in, and the server they are forked from
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
        assert process.wait(30) == 0, log.read_text()
        assert psutil.wait_procs(children, timeout=10)[1] == []
    finally:
        for child in [*children, process]:
            if child.is_running() if isinstance(child, psutil.Process) else child.poll() is None:
                child.kill()
        process.wait(10)
    text = log.read_text()
    assert "Stopped at step" in text
    assert f"latent-obs train-agent --out {run} --resume" in text
    assert "Traceback" not in text
    steps = load_agent(run, "last", device="cpu").num_timesteps
    assert steps >= 128
    result = train(AgentConfig(out=run, steps=steps + 128, workers="serial"), resume=True)
    assert result.steps >= steps + 128
    assert not result.interrupted
