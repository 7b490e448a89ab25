"""A CVAE trained by the workers of Ray Train, one of which is killed: the run of one process."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.training_runs import (
    config_for,
    log_every_step,
    module_frames,
    run,
    same_up_to_rounding,
)

pytestmark = pytest.mark.ray

SCRIPT = """
import json, os, signal, sys
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from vae_training import TrainConfig, train
from vae_training.training import trainer

config = TrainConfig.from_json(json.loads(sys.argv[1]))

def work():
    first, step = not (config.out / "config.json").exists(), trainer.Trainer.step
    def watched(self, batch):
        if first and os.environ["RANK"] == "1" and self.progress.step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch)
    trainer.Trainer.step, trainer._SAVE_EVERY_SECONDS, trainer._LOG_EVERY_STEPS = watched, 0.0, 1
    train(config, resume=not first, progress_bar=False)

ray.init(num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, _temp_dir=sys.argv[2])
TorchTrainer(
    work,
    scaling_config=ScalingConfig(num_workers=2),
    run_config=RunConfig(name="vae", storage_path=sys.argv[2], failure_config=FailureConfig(max_failures=1)),
).fit()
"""


@pytest.mark.usefixtures("log_every_step")
def test_workers_of_ray_are_one_process(module_frames: Path, tmp_path: Path):
    out = tmp_path / "ray"
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:  # a short name
        words = [sys.executable, "-c", SCRIPT, json.dumps(config_for(module_frames, out).to_json()), folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        done = subprocess.run(words, capture_output=True, text=True, timeout=900, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "from step 4 on" in done.stdout + done.stderr
    run(config_for(module_frames, tmp_path / "one"))
    same_up_to_rounding(out, tmp_path / "one")
