"""Two processes on one model, started by torchrun: the run of one process with the doubled batch."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from latent_obs.util.errors import InputError
from tests.support.tiny import picture
from tests.support.training_runs import EVERY_STEP, TRAIN, config_for, run
from vae_training.data.loader import BatchParts
from vae_training.training.config import TrainConfig
from vae_training.training.logs import read_log

SCRIPT = """
import hashlib, importlib, json, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from latent_obs.util.errors import LatentObsError
from vae_training.training.config import TrainConfig
t = importlib.import_module("vae_training.training.trainer")
t._LOG_EVERY_STEPS = 1
settings, resume, die_at = json.loads(sys.argv[1])
step = t.Run.step
def watched(self, batch):
    global model
    model = self.model
    if os.environ["RANK"] == "1" and self.progress.step == die_at:
        os._exit(7)
    return step(self, batch)
t.Run.step = watched
try:
    t.train(TrainConfig.from_json(settings), resume=resume, progress_bar=False)
except LatentObsError as error:
    print("told:", error, flush=True)
    os._exit(2)
weights = torch.cat([p.detach().flatten() for p in model.parameters()])
digest = hashlib.sha256(weights.numpy().tobytes()).hexdigest()
Path(sys.argv[0]).with_name(f"weights_{os.environ['RANK']}.txt").write_text(digest)
sys.stdout.flush()
os._exit(0)  # gloo's threads at times abort an interpreter that ends by itself
"""


@pytest.fixture(scope="module")
def many_frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "frames"
    folder.mkdir()
    for number in range(3):
        np.save(folder / f"{number}.npy", np.stack([picture(number, step, 16, 16) for step in range(34)]))
    return folder


def torchrun(config: TrainConfig, *, resume: bool = False, die_at: int = -1) -> subprocess.CompletedProcess[str]:
    script = config.out.with_name("script.py")
    script.write_text(SCRIPT)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "0",
        "--standalone",
        str(script),
        json.dumps([config.to_json(), resume, die_at]),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


@pytest.fixture(scope="module")
def pair(many_frames: Path) -> tuple[Path, str]:
    """Three epochs of 67 frames by two processes, in batches of 2 x 8; of the last one of an epoch they get two and
    one."""
    out = many_frames.parent / "pair"
    done = torchrun(config_for(many_frames, out, epochs=3, batch_size=8, super_batch=67, scale_losses=True, ema=0.9))
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def curve(out: Path, name: str) -> list[float]:
    return [row[name] for row in read_log(out) if name in row]


def test_two_processes_are_one_with_the_doubled_batch(many_frames: Path, pair: tuple[Path, str], tmp_path: Path):
    single = tmp_path / "single"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TRAIN, "_LOG_EVERY_STEPS", 1)
        run(config_for(many_frames, single, epochs=3, batch_size=16, super_batch=67, scale_losses=True, ema=0.9))
    for name in ("loss/total", "loss/reconstruction", "loss/kl_nats", "schedule/beta", "held_out/loss_at_fixed_beta"):
        np.testing.assert_allclose(curve(pair[0], name), curve(single, name), rtol=1e-4, err_msg=name)
    assert len(curve(single, "loss/total")) == 15
    one, two = (load_file(out / "checkpoints" / "latest.safetensors") for out in (single, pair[0]))
    assert one.keys() == two.keys()
    for name in one:
        if not name.startswith("optimizer"):
            np.testing.assert_allclose(one[name].numpy(), two[name].numpy(), atol=2e-5, rtol=0, err_msg=name)
    assert (one["rng/cpu"] == two["rng/cpu"]).all()


def test_both_end_with_the_same_weights_and_process_0_alone_prints(pair: tuple[Path, str]):
    one, two = ((pair[0].with_name(f"weights_{rank}.txt")).read_text() for rank in (0, 1))
    assert len(one) == 64
    assert one == two
    assert pair[1].count("Training on 2 file(s)") == 1
    assert "batches of 2 x 8" in pair[1]
    assert pair[1].count("Encoder:") == 1


def test_another_number_of_processes_cannot_go_on(pair: tuple[Path, str]):
    with pytest.raises(InputError, match=r"trained by 2 process\(es\), and now there are 1"):
        run(TrainConfig(out=pair[0], epochs=9), resume=True)


def test_a_process_that_dies_ends_the_run_with_a_message(many_frames: Path, tmp_path: Path):
    config = config_for(many_frames, tmp_path / "pair", epochs=3, batch_size=8)
    began = time.monotonic()
    died = torchrun(config, die_at=7)
    assert died.returncode != 0
    assert time.monotonic() - began < 60
    assert re.search(r"told: process 0 of 2 stops, because another one of this run has ended.*--resume", died.stdout)
    assert not [
        p
        for p in psutil.process_iter(["cmdline"])
        if str(config.out.with_name("script.py")) in (p.info["cmdline"] or [])
    ]


@pytest.mark.slow
def test_after_a_death_the_resumed_run_is_the_same(many_frames: Path, pair: tuple[Path, str], tmp_path: Path):
    config = config_for(
        many_frames,
        tmp_path / "pair",
        epochs=3,
        batch_size=8,
        super_batch=67,
        scale_losses=True,
        ema=0.9,
        checkpoint_minutes=EVERY_STEP,
    )
    assert torchrun(config, die_at=7).returncode != 0
    assert torchrun(config, resume=True).returncode == 0
    one, two = (load_file(out / "checkpoints" / "latest.safetensors") for out in (pair[0], config.out))
    assert all((one[name] == two[name]).all() for name in one)


@pytest.mark.slow
def test_a_mistake_is_told_once(many_frames: Path, tmp_path: Path):
    done = torchrun(config_for(many_frames, tmp_path / "out", batch_size=8, super_batch=10_000))
    assert done.returncode != 0
    assert done.stdout.count("told: super_batch 10,000 is more than the 68 frames") == 1
    assert not (tmp_path / "out").exists()


@given(size=st.integers(1, 60), batch=st.integers(1, 20), ranks=st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_parts_make_up_each_batch(size: int, batch: int, ranks: int):
    parts = [BatchParts(size, batch, rank, ranks) for rank in range(ranks)]
    assert {len(p) for p in parts} == {-(-size // batch)}
    for number in range(len(parts[0])):
        first, total = number * batch, min(batch, size - number * batch)
        seen: list[int] = []
        for part in parts:
            share, places = part.shares[number], part.places[part.rows[number]].tolist()
            assert share.total == total
            assert places == list(range(first + share.start, first + share.start + share.count))
            assert share.weight == pytest.approx((share.count if share.weight else 0) * ranks / total)
            seen += places if share.weight else []
        assert seen == list(range(first, first + total))
        assert sum(p.shares[number].weight for p in parts) == pytest.approx(ranks)
