"""A run killed with SIGKILL at any moment, in the middle of a checkpoint too, and resumed, equals the run never
killed."""

import json
import subprocess
import sys
from pathlib import Path

from tests.support.training_runs import EVERY_STEP, config_for, module_frames, same_run

# A process that starts one child after another, so that torch is imported once; each child is killed, the last one is
# not.
SCRIPT = """
import dataclasses, importlib, json, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import vae_training.training.checkpoint as checkpoint
from vae_training.training.config import TrainConfig
t = importlib.import_module("vae_training.training.trainer")
t._LOG_EVERY_STEPS = 1
config = TrainConfig.from_json(json.loads(sys.argv[1]))
save_file, replace = checkpoint.save_file, Path.replace

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def plan(how, at):
    calls = [0]
    def save(tensors, file, metadata):
        calls[0] += 1
        save_file(tensors, file, metadata)
        if calls[0] == at and how == "half":
            os.truncate(file, os.path.getsize(file) // 2)
            die()
        if calls[0] == at and how == "whole":
            die()
    def renamed(self, target):
        done = replace(self, target)
        if calls[0] == at and how == "renamed" and str(target).endswith(".safetensors"):
            die()
        return done
    checkpoint.save_file, Path.replace = save, renamed

def child(config, how="", at=0):
    number = os.fork()
    if number == 0:
        try:
            if how:
                plan(how, at)
            t.train(config, resume=config.out.exists() and any(config.out.iterdir()), progress_bar=False, say=lambda _: None)
        except BaseException as error:
            print("child failed:", type(error).__name__, error, flush=True)
            os._exit(1)
        os._exit(0)
    return number

def end(number):
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])

began = time.monotonic()
assert end(child(dataclasses.replace(config, out=config.out.with_name("whole")))) == 0
length = time.monotonic() - began
kills = []
for how, at in [("half", 1), ("renamed", 1), ("renamed", 1), ("renamed", 1), ("half", 4), ("whole", 2), ("renamed", 3)]:
    kills.append(end(child(config, how, at)))
dice = random.Random(int(sys.argv[2]))
for _ in range(4):
    number = child(config)
    time.sleep(dice.uniform(0.02, 0.6) * length)
    os.kill(number, signal.SIGKILL)
    kills.append(end(number))
assert end(child(config)) == 0
print(json.dumps(kills))
"""


def test_killed_at_any_moment_and_resumed_is_the_same(module_frames: Path, tmp_path: Path):
    every = {"ema": 0.9, "learning_rate_schedule": "cosine", "warm_up_steps": 4, "clip_norm": 1.0, "patience": 3}
    config = config_for(module_frames, tmp_path / "killed", epochs=6, checkpoint_minutes=EVERY_STEP, **every)
    command = [sys.executable, "-c", SCRIPT, json.dumps(config.to_json()), "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    kills = json.loads(done.stdout.splitlines()[-1])
    assert kills[:7] == [-9] * 7  # each of these was killed where it was meant to be
    same_run(tmp_path / "killed", tmp_path / "whole")
