"""train(): it can be stopped, killed and resumed at any step without a trace, and never saves ruined weights."""

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import TrainingDivergedError
from latent_obs.util.interrupt import GracefulStop
from tests.support.tiny import random_frames, tiny_cvae
from tests.support.training_runs import (
    STEPS,
    around_step,
    config_for,
    log_every_step,
    module_frames,
    poison,
    run,
    same_run,
    start,
    story,
    uninterrupted,
)
from vae_training.training.checkpoint import load_checkpoint
from vae_training.training.config import TrainConfig
from vae_training.training.logs import read_log

pytestmark = pytest.mark.usefixtures("log_every_step")


@pytest.mark.parametrize("first", [1, 2, 3])
def test_more_epochs_later_are_the_same_as_at_once(
    module_frames: Path, uninterrupted: Path, tmp_path: Path, first: int
):
    out = tmp_path / "out"
    run(config_for(module_frames, out, epochs=first))
    torch.manual_seed(99)
    result = run(TrainConfig(out=out, epochs=4), resume=True)
    assert result.steps == 4 * STEPS
    same_run(out, uninterrupted)


@pytest.mark.parametrize(
    ("number", "stops"),
    [(signal.SIGINT, stops) for stops in [(0,), (1,), (2,), (4,), (5,), (11,), (1, 1, 6)]] + [(signal.SIGTERM, (4,))],
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
    for stop in stops:  # in the step of this number, counted from where it goes on
        around_step(lambda call, _, stop=stop: os.kill(os.getpid(), number) if call == stop else None)
        result = run(config_for(module_frames, out, epochs=4), resume=done > 0)
        done += stop + 1
        assert result.interrupted or done == 4 * STEPS  # after the very last step nothing is left to interrupt
        assert result.steps == done  # the step under way was finished, and no other begun
        assert FrozenEncoder.load(result.encoder, device="cpu").latent_dim == 6
    around_step(lambda *_: None)
    result = run(config_for(module_frames, out, epochs=4), resume=True)
    assert not result.interrupted
    same_run(out, uninterrupted)


def test_resuming_a_finished_run_changes_nothing(module_frames: Path, uninterrupted: Path, tmp_path: Path):
    out = tmp_path / "out"
    run(config_for(module_frames, out, epochs=4))
    assert run(TrainConfig(out=out), resume=True).steps == 4 * STEPS
    same_run(out, uninterrupted)


def test_ctrl_c_leaves_a_checkpoint_and_an_encoder(module_frames: Path, tmp_path: Path):
    config = config_for(module_frames, tmp_path / "out", epochs=10_000)
    process = start(config, rows=8)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert "Stopped at step" in output
    assert "--resume" in output
    steps = max(int(r["step"]) for r in read_log(config.out))
    assert load_checkpoint(config.out / "checkpoints" / "latest.safetensors", tiny_cvae()).step == steps
    assert FrozenEncoder.load(config.out, device="cpu")(random_frames(2)).shape == (2, 6)
    assert not list(config.out.rglob(".*"))


def test_killed_and_resumed_is_the_same_as_never_killed(module_frames: Path, tmp_path: Path):
    config = config_for(module_frames, tmp_path / "out", epochs=10_000)
    process = start(config, rows=3 * (STEPS + 1) + 2)  # three whole epochs, and a bit
    process.kill()
    process.communicate(timeout=60)
    with (config.out / "log.jsonl").open("a") as log:
        log.write('{"step": 99999, "loss/to')  # the kill came in the middle of a line
    reached = load_checkpoint(config.out / "checkpoints" / "latest.safetensors", tiny_cvae()).step
    assert reached >= 2 * STEPS
    epochs = reached // STEPS + 2
    assert run(TrainConfig(out=config.out, epochs=epochs), resume=True).steps == epochs * STEPS
    keys = [(row["step"], "loss/total" in row) for row in read_log(config.out)]
    assert len(set(keys)) == len(keys)
    assert [step for step, is_loss in keys if is_loss] == list(range(1, epochs * STEPS + 1))
    for leftover in (config.out / "reconstructions").glob(
        "epoch_*.png"
    ):  # of epochs that the resumed run did not reach
        if int(leftover.stem.split("_")[1]) > epochs:
            leftover.unlink()
    run(config_for(module_frames, tmp_path / "whole", epochs=epochs))
    same_run(config.out, tmp_path / "whole")


def test_a_run_killed_before_its_first_checkpoint_can_be_resumed(
    module_frames: Path, uninterrupted: Path, tmp_path: Path
):
    config = config_for(module_frames, tmp_path / "out", epochs=4)
    config.out.mkdir()
    (config.out / "config.json").write_text(json.dumps(config.to_json()))
    (config.out / "log.jsonl").write_text('{"step": 1, "loss/total": 3.0}\n')
    run(config, resume=True)  # else the folder would be good for nothing: neither with --resume nor without
    same_run(config.out, uninterrupted)


@pytest.mark.parametrize("at", [STEPS + 1, 2 * STEPS - 1, 2 * STEPS])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    module_frames: Path, uninterrupted: Path, tmp_path: Path, around_step: Callable[..., None], at: int
):
    out = tmp_path / "out"
    around_step(poison(at))
    with pytest.raises(TrainingDivergedError, match=rf"step {at} .*learning rate 0\.001.*learning-rate") as error:
        run(config_for(module_frames, out, epochs=4))
    assert isinstance(error.value, ArithmeticError)
    assert str(out / "checkpoints") in str(error.value)
    progress = load_checkpoint(out / "checkpoints" / "latest.safetensors", tiny_cvae())
    assert progress.step == at // STEPS * STEPS
    assert all(torch.isfinite(t).all() for t in load_file(out / "checkpoints/latest.safetensors").values())
    assert not (out / "encoder").exists()
    around_step(lambda *_: None)
    run(TrainConfig(out=out), resume=True)  # the batch was bad, not the run
    same_run(out, uninterrupted)


@pytest.mark.parametrize("epochs", [1, 3])
def test_weights_that_a_step_ruined_are_never_saved_as_good(module_frames: Path, tmp_path: Path, epochs: int):
    # One step an epoch: the loss of the last step is still finite when it is taken, and only the weights after it are
    # not.
    out = tmp_path / "out"
    config = config_for(module_frames, out, epochs=epochs, batch_size=48, learning_rate=1e30)
    with pytest.raises(TrainingDivergedError, match="step"):
        run(config)
    assert not (out / "encoder").exists()
    weights = load_file(out / "checkpoints" / "latest.safetensors")  # the one from before the first step
    assert all(torch.isfinite(w).all() for name, w in weights.items() if name.startswith("model/"))
    assert not (out / "checkpoints" / "best.safetensors").exists()


def test_the_first_signal_asks_and_the_second_interrupts():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with GracefulStop() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGTERM)  # asked twice, still no interruption
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_outside_the_main_thread_signals_stay_as_they_are():
    found: list[Any] = []

    def work() -> None:
        with GracefulStop() as stop:
            found.append((stop.requested, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, signal.getsignal(signal.SIGINT))]


@pytest.mark.parametrize("stop", [1, 4])
def test_draws_go_on_where_they_were_stopped(
    module_frames: Path, tmp_path: Path, around_step: Callable[..., None], stop: int
):
    """What is drawn follows from settings, step and super-batch size; all of them are in the run folder."""
    settings = {"epochs": 3, "dataset_weights": (2.0, 1.0), "super_batch": 30}
    run(config_for(module_frames, tmp_path / "whole", **settings))
    around_step(lambda call, _: os.kill(os.getpid(), signal.SIGINT) if call == stop else None)
    assert run(config_for(module_frames, tmp_path / "out", **settings)).interrupted
    around_step(lambda *_: None)
    run(TrainConfig(out=tmp_path / "out"), resume=True)
    same_run(tmp_path / "out", tmp_path / "whole")
