"""Tiny training runs, and how two of them are compared; the tests of train() share them."""

import functools
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.tiny import picture
from vae_training.data.loader import Batch
from vae_training.model.cvae import Losses
from vae_training.training.config import TrainConfig
from vae_training.training.logs import RunLog, read_log
from vae_training.training.trainer import Trainer, TrainResult, train

#: The module of `train`.
TRAIN = importlib.import_module("vae_training.training.trainer")
#: Steps of an epoch of `config_for`: 48 frames to train on (24 are held out), in batches of 20, 20 and 8.
STEPS = 3
TINY: dict[str, Any] = {
    "bottleneck": "dense",
    "beta": 1.0,
    "components": 0,
    "latent_dim": 6,
    "widths": (4, 8),
    "strides": (2, 2),
    "batch_size": 20,
    "augment": 0.0,
    "learning_rate": 1e-3,
    "learning_rate_schedule": "constant",
    "batch_freeze": 0,
    "half_beta_cycle": 1,
    "device": "cpu",
}
#: Everything that a loss can have.
EVERYTHING: dict[str, Any] = {"augment": 0.5, "components": 2}


def config_for(frames: Path, out: Path, **kwargs: Any) -> TrainConfig:
    return TrainConfig(**{"frames": frames, "out": out, "epochs": 2, **TINY, **kwargs})


def run(config: TrainConfig, resume: bool = False, say: Callable[[str], object] = lambda _: None) -> TrainResult:
    """Train without a progress bar and without TensorBoard, which takes seconds to import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TRAIN, "RunLog", functools.partial(RunLog, tensorboard=False))
        return train(config, resume=resume, progress_bar=False, say=say)


def same_tensors(one: Path, other: Path) -> None:
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def story(out: Path) -> list[dict[str, float]]:
    """The log without what depends on the clock."""
    return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in read_log(out)]


def same_run(one: Path, other: Path) -> None:
    """Two runs ended with the same weights, optimizer, random state, log, pictures and encoder, bit by bit."""
    assert story(one) == story(other)
    for pattern in ("checkpoints/*", "reconstructions/*", "encoder/*.safetensors"):
        names = [f.relative_to(one) for f in sorted(one.glob(pattern))]
        assert names == [f.relative_to(other) for f in sorted(other.glob(pattern))]
        for name in names:
            if name.suffix == ".safetensors":
                same_tensors(one / name, other / name)
            else:
                assert (one / name).read_bytes() == (other / name).read_bytes()


def same_up_to_rounding(one: Path, other: Path) -> None:
    """Two runs with every step logged took the same steps, up to the rounding of sums."""
    for row, expected in zip(story(one), story(other), strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    a, b = (load_file(out / "checkpoints" / "latest.safetensors") for out in (one, other))
    assert a.keys() == b.keys()
    assert (a["rng/cpu"] == b["rng/cpu"]).all()
    for name in a:
        if name.startswith("model/"):
            np.testing.assert_allclose(a[name].numpy(), b[name].numpy(), atol=2e-5, rtol=0, err_msg=name)


#: Start of a script that trains in a process of its own, with every step logged.
PREAMBLE = """
import dataclasses, functools, hashlib, importlib, json, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from vae_training.training.config import TrainConfig
t = importlib.import_module("vae_training.training.trainer")
t.RunLog = functools.partial(t.RunLog, tensorboard=False)
t._LOG_EVERY_STEPS = 1
"""
_TRAIN_SCRIPT = f"{PREAMBLE}\nt.train(TrainConfig.from_json(json.loads(sys.argv[1])), progress_bar=False)\n"


def start(config: TrainConfig, rows: int) -> subprocess.Popen[str]:
    """Train in a process of its own, until its log has this many rows."""
    command = [sys.executable, "-c", _TRAIN_SCRIPT, json.dumps(config.to_json())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 900
    while len(read_log(config.out)) < rows:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.01)
    return process


def torchrun(
    script: Path, *arguments: str, processes: int = 2, options: Sequence[str] = ("--standalone",), before: str = ""
) -> subprocess.Popen[str]:
    """Start a script in several processes, by a command that begins with the words of `before`."""
    launch = [*before.split(), sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [*launch, "--master-port", "0", *options, str(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},  # as in docs/machines.md
    )


@pytest.fixture
def log_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TRAIN, "_LOG_EVERY_STEPS", 1)


@pytest.fixture
def save_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TRAIN, "_SAVE_EVERY_SECONDS", 0.0)


@pytest.fixture
def around_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int, torch.Tensor], object]], None]:
    """Have a function called before each gradient step, with the number of the call (from 0) and the images."""
    original = Trainer.step

    def install(before: Callable[[int, torch.Tensor], object]) -> None:
        calls = [0]

        def watched(self: Trainer, batch: Batch) -> Losses:
            before(calls[0], batch.images)
            calls[0] += 1
            return original(self, batch)

        monkeypatch.setattr(Trainer, "step", watched)

    return install


@pytest.fixture(scope="module")
def module_frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("module") / "frames"
    folder.mkdir()
    for number in range(3):
        np.save(folder / f"{number}.npy", np.stack([picture(number, step, 16, 16) for step in range(24)]))
    return folder


@pytest.fixture(scope="module")
def uninterrupted(module_frames: Path) -> Path:
    """Four epochs without a stop: two cycles."""
    out = module_frames.parent / "uninterrupted"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TRAIN, "_LOG_EVERY_STEPS", 1)
        run(config_for(module_frames, out, epochs=4))
    return out
