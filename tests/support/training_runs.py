"""Tiny training runs, and how two of them are compared; the tests of train() share them."""

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.tiny import picture
from vae_training.model.cvae import CVAE, Losses
from vae_training.training.config import TrainConfig
from vae_training.training.logs import read_log
from vae_training.training.trainer import TrainResult, train

#: The module; its name in the package is that of the function.
TRAIN = importlib.import_module("vae_training.training.trainer")

#: Steps of an epoch of `config_for`: 48 frames to train on (24 are held out), in batches of 20, 20 and 8.
STEPS = 3
Step = Callable[[CVAE, torch.Tensor, torch.optim.Optimizer], Losses]
#: `checkpoint_minutes` by which a checkpoint is written after each step.
EVERY_STEP = 1e-9
TINY: dict[str, Any] = {
    "salience": 0.0,
    "bottleneck": "dense",
    "standardize": False,
    "beta": 1.0,
    "latent_dim": 6,
    "widths": (4, 8),
    "strides": (2, 2),
    "batch_size": 20,
    "batch_freeze": 0,
    "half_beta_cycle": 1,
    "device": "cpu",
    "tensorboard": False,
}


def config_for(frames: Path, out: Path, **kwargs: Any) -> TrainConfig:
    return TrainConfig(**{"frames": frames, "out": out, "epochs": 2, **TINY, **kwargs})


def run(config: TrainConfig, resume: bool = False) -> TrainResult:
    return train(config, resume=resume, progress_bar=False, say=lambda _: None)


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
    same_tensors(one / "checkpoints" / "latest.safetensors", other / "checkpoints" / "latest.safetensors")
    assert [f.name for f in sorted((one / "checkpoints").iterdir())] == [
        f.name for f in sorted((other / "checkpoints").iterdir())
    ]
    best = "checkpoints/best.safetensors"
    if (one / best).exists():
        same_tensors(one / best, other / best)
    for name in ("encoder", "decoder", "selfcheck", "statistics"):
        same_tensors(one / "encoder" / f"{name}.safetensors", other / "encoder" / f"{name}.safetensors")
    assert story(one) == story(other)
    pictures = [f.name for f in sorted((one / "reconstructions").iterdir())]
    assert pictures == [f.name for f in sorted((other / "reconstructions").iterdir())]
    for name in pictures:
        assert (one / "reconstructions" / name).read_bytes() == (other / "reconstructions" / name).read_bytes()


SCRIPT = """
import importlib, json, sys
from vae_training.training.config import TrainConfig
t = importlib.import_module("vae_training.training.trainer")
t._LOG_EVERY_STEPS = 1
t.train(TrainConfig.from_json(json.loads(sys.argv[1])), progress_bar=False)
"""


def start(config: TrainConfig, rows: int) -> subprocess.Popen[str]:
    """Train in a process of its own, until its log has this many rows."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(config.to_json())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 90
    while len(read_log(config.out)) < rows:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.01)
    return process


def poison(at: int) -> Callable[[int, torch.Tensor], object]:
    return lambda call, x: x.fill_(float("nan")) if call == at else None


@pytest.fixture
def log_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TRAIN, "_LOG_EVERY_STEPS", 1)


@pytest.fixture
def around_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int, torch.Tensor], object]], None]:
    """Have a function called before each gradient step, with the number of the call (from 0) and the batch."""
    original = CVAE.compute_apply_gradients

    def install(before: Callable[[int, torch.Tensor], object]) -> None:
        calls = [0]

        def watched(self: CVAE, x: torch.Tensor, optimizer: torch.optim.Optimizer) -> Losses:
            before(calls[0], x)
            calls[0] += 1
            return original(self, x, optimizer)

        monkeypatch.setattr(CVAE, "compute_apply_gradients", watched)

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
