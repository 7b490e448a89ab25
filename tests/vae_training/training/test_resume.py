"""train() can be stopped, killed and resumed at any step without a trace, and never saves ruined weights."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import TrainingDivergedError
from tests.support.tiny import random_frames, tiny_cvae
from tests.support.training_runs import (
    EVERYTHING,
    PREAMBLE,
    STEPS,
    around_step,
    config_for,
    log_every_step,
    module_frames,
    run,
    same_run,
    save_every_step,
    start,
    uninterrupted,
)
from vae_training.model.cvae import CVAE
from vae_training.training.checkpoint import load_checkpoint
from vae_training.training.config import TrainConfig
from vae_training.training.logs import read_log
from vae_training.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("log_every_step")


def stopping(at: int, number: signal.Signals = signal.SIGINT) -> Callable[[int, torch.Tensor], object]:
    """Send a signal in the step of this number, counted from where the run goes on."""
    return lambda call, _: os.kill(os.getpid(), number) if call == at else None


def test_more_epochs_later_are_the_same_as_at_once(module_frames: Path, uninterrupted: Path, tmp_path: Path):
    out = tmp_path / "out"
    run(config_for(module_frames, out, epochs=1))
    torch.manual_seed(99)
    assert run(TrainConfig(out=out, epochs=4), resume=True).steps == 4 * STEPS
    same_run(out, uninterrupted)
    said: list[str] = []
    assert run(TrainConfig(out=out), resume=True, say=said.append).steps == 4 * STEPS  # a finished run stays as it is
    assert sum("--epochs" in line for line in said) == 1
    same_run(out, uninterrupted)


@pytest.mark.parametrize(
    ("number", "stops"), [(signal.SIGINT, (0,)), (signal.SIGINT, (1, 1, 6)), (signal.SIGTERM, (11,))]
)
def test_stopped_at_any_step_and_resumed_is_the_same(
    module_frames: Path,
    uninterrupted: Path,
    tmp_path: Path,
    around_step: Callable[..., None],
    stops: tuple[int, ...],
    number: signal.Signals,
):
    out, done = tmp_path / "out", 0
    for stop in stops:
        around_step(stopping(stop, number))
        result = run(config_for(module_frames, out, epochs=4), resume=done > 0)
        done += stop + 1
        assert result.interrupted or done == 4 * STEPS  # after the last step nothing is left to interrupt
        assert result.steps == done  # the current step was finished, and no other begun
        assert FrozenEncoder.load(result.encoder, device="cpu").latent_dim == 6
    around_step(lambda *_: None)
    result = run(config_for(module_frames, out, epochs=4), resume=True)
    assert not result.interrupted
    same_run(out, uninterrupted)


@pytest.fixture(scope="module")
def everything(module_frames: Path) -> Path:
    """Three epochs with everything that a loss can have."""
    out = module_frames.parent / "everything"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vae_training.training.trainer._LOG_EVERY_STEPS", 1)
        run(config_for(module_frames, out, epochs=3, **EVERYTHING))
    return out


def test_a_loss_with_everything_is_resumed_the_same(
    module_frames: Path, everything: Path, tmp_path: Path, around_step: Callable[..., None]
):
    out = tmp_path / "out"
    around_step(stopping(1))
    assert run(config_for(module_frames, out, epochs=3, **EVERYTHING)).interrupted
    around_step(lambda *_: None)
    torch.manual_seed(1234)
    assert run(TrainConfig(out=out), resume=True).steps == 3 * STEPS
    same_run(out, everything)


class Killed(BaseException):
    """The end of a process, as far as the disk is concerned: nothing is written any more."""


@pytest.mark.usefixtures("save_every_step")
def test_a_killed_run_with_everything_goes_on_as_it_would_have(
    module_frames: Path, everything: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    step, config = Trainer.step, config_for(module_frames, tmp_path / "killed", epochs=3, **EVERYTHING)

    def dying(self: Trainer, batch: Any) -> Any:
        if self.progress.step == 5:
            raise Killed
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", dying)
        with pytest.raises(Killed):
            run(config)
    assert load_checkpoint(config.out / "checkpoints" / "latest.safetensors", tiny_cvae(components=2)).step == 5
    run(TrainConfig(out=config.out), resume=True)
    same_run(config.out, everything)


# A process that starts one child after another, so that torch is imported once; each child is killed, except for the
# last one.
KILLS = f"""{PREAMBLE}
import vae_training.training.checkpoint as checkpoint
t._SAVE_EVERY_SECONDS = 0.0
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
            resume = config.out.exists() and any(config.out.iterdir())
            t.train(config, resume=resume, progress_bar=False, say=lambda _: None)
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
for how, at in [("half", 1), ("renamed", 1), ("half", 4), ("whole", 2), ("renamed", 3)]:
    kills.append(end(child(config, how, at)))
number = child(config)
time.sleep(random.Random(0).uniform(0.02, 0.6) * length)
os.kill(number, signal.SIGKILL)
kills.append(end(number))
assert end(child(config)) == 0
print(json.dumps(kills))
"""


@pytest.mark.integration
def test_killed_at_any_moment_and_resumed_is_the_same(module_frames: Path, tmp_path: Path):
    config = config_for(module_frames, tmp_path / "killed", epochs=3, learning_rate_schedule="cosine", patience=3)
    command = [sys.executable, "-c", KILLS, json.dumps(config.to_json())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])[:5] == [-9] * 5  # each was killed where it was meant to be
    same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.integration
def test_ctrl_c_leaves_a_checkpoint_and_an_encoder(module_frames: Path, tmp_path: Path):
    config = config_for(module_frames, tmp_path / "out", epochs=10_000)
    process = start(config, rows=8)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert "--resume" in output
    steps = max(int(r["step"]) for r in read_log(config.out))
    assert load_checkpoint(config.out / "checkpoints" / "latest.safetensors", tiny_cvae()).step == steps
    assert FrozenEncoder.load(config.out, device="cpu")(random_frames(2)).shape == (2, 6)
    assert not list(config.out.rglob(".*"))


def test_rows_of_steps_that_were_lost_are_logged_once(
    module_frames: Path, uninterrupted: Path, tmp_path: Path, around_step: Callable[..., None]
):
    def dying(call: int, _: object) -> None:
        if call == 3 * STEPS + 2:  # the last checkpoint is two steps old
            raise Killed

    out = tmp_path / "out"
    around_step(dying)
    with pytest.raises(Killed):
        run(config_for(module_frames, out, epochs=4))
    with (out / "log.jsonl").open("a") as log:
        log.write('{"step": 99999, "loss/to')  # the kill came in the middle of a line
    around_step(lambda *_: None)
    run(TrainConfig(out=out), resume=True)
    same_run(out, uninterrupted)


def test_a_run_killed_before_its_first_checkpoint_can_be_resumed(
    module_frames: Path, uninterrupted: Path, tmp_path: Path
):
    config = config_for(module_frames, tmp_path / "out", epochs=4)
    config.out.mkdir()
    (config.out / "config.json").write_text(json.dumps(config.to_json()))
    (config.out / "log.jsonl").write_text('{"step": 1, "loss/total": 3.0}\n')
    run(config, resume=True)
    same_run(config.out, uninterrupted)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    module_frames: Path, uninterrupted: Path, tmp_path: Path, around_step: Callable[..., None]
):
    out = tmp_path / "out"
    around_step(lambda call, x: x.fill_(float("nan")) if call == STEPS + 1 else None)
    with pytest.raises(TrainingDivergedError, match="--learning-rate") as error:
        run(config_for(module_frames, out, epochs=4))
    assert str(out / "checkpoints") in str(error.value)
    progress = load_checkpoint(out / "checkpoints" / "latest.safetensors", tiny_cvae(standardize=True))
    assert progress.step == STEPS
    assert all(torch.isfinite(t).all() for t in load_file(out / "checkpoints/latest.safetensors").values())
    assert not (out / "encoder").exists()
    around_step(lambda *_: None)
    run(TrainConfig(out=out), resume=True)  # the batch was bad, not the run
    same_run(out, uninterrupted)


def test_weights_that_a_step_ruined_are_never_saved_as_good(module_frames: Path, tmp_path: Path):
    # One step an epoch: the loss of the last step is still finite, and only the weights after it are not.
    out = tmp_path / "out"
    with pytest.raises(TrainingDivergedError):
        run(config_for(module_frames, out, epochs=1, batch_size=48, learning_rate=1e30))
    assert not (out / "encoder").exists()
    weights = load_file(out / "checkpoints" / "latest.safetensors")  # the one from before the first step
    assert all(torch.isfinite(w).all() for name, w in weights.items() if name.startswith("model/"))
    assert not (out / "checkpoints" / "best.safetensors").exists()


def test_draws_go_on_where_they_were_stopped(module_frames: Path, tmp_path: Path, around_step: Callable[..., None]):
    settings = {"epochs": 3, "dataset_weights": (2.0, 1.0), "super_batch": 30}
    run(config_for(module_frames, tmp_path / "whole", **settings))
    around_step(stopping(1))
    assert run(config_for(module_frames, tmp_path / "out", **settings)).interrupted
    around_step(lambda *_: None)
    run(TrainConfig(out=tmp_path / "out"), resume=True)
    same_run(tmp_path / "out", tmp_path / "whole")
