"""train(): what a run leaves, that it can be stopped and resumed at any step without a trace, and what it refuses."""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import picture, random_frames, tiny_cvae
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from latent_obs.errors import DeviceError, InputError, TrainingDivergedError
from latent_obs.frozen import FrozenEncoder
from latent_obs.interrupt import GracefulStop
from vae_training.checkpoint import load_checkpoint
from vae_training.config import TrainConfig
from vae_training.cvae import CVAE, Losses, gaussian_kl_nats
from vae_training.evaluate import evaluate
from vae_training.logs import RunLog, read_log
from vae_training.pictures import grid, reconstruct, reconstruction_sheet, traversal_sheet
from vae_training.schedule import CyclicalBeta
from vae_training.train import TrainResult, schedule_of, train

#: The module; its name in the package is that of the function.
TRAIN = importlib.import_module("vae_training.train")

#: Steps of an epoch of `config_for`: 48 frames to train on (24 are held out), in batches of 20, 20 and 8.
STEPS = 3
Step = Callable[[CVAE, torch.Tensor, torch.optim.Optimizer], Losses]
TINY: dict[str, Any] = {
    "latent_dim": 6, "widths": (4, 8), "strides": (2, 2), "batch_size": 20, "batch_freeze": 0, "half_beta_cycle": 1,
    "device": "cpu", "tensorboard": False,
}  # fmt: skip


def config_for(frames: Path, out: Path, **kwargs: Any) -> TrainConfig:
    return TrainConfig(**{"frames": frames, "out": out, "epochs": 2, **TINY, **kwargs})


def run(config: TrainConfig, resume: bool = False) -> TrainResult:
    return train(config, resume=resume, progress_bar=False, say=lambda _: None)


@pytest.fixture(autouse=True)
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
    for name in ("encoder", "decoder", "selfcheck"):
        same_tensors(one / "encoder" / f"{name}.safetensors", other / "encoder" / f"{name}.safetensors")
    assert story(one) == story(other)
    pictures = [f.name for f in sorted((one / "reconstructions").iterdir())]
    assert pictures == [f.name for f in sorted((other / "reconstructions").iterdir())]
    for name in pictures:
        assert (one / "reconstructions" / name).read_bytes() == (other / "reconstructions" / name).read_bytes()


def test_a_run_leaves_what_it_promises(frames_folder: Path, tmp_path: Path):
    out = tmp_path / "runs" / "one"
    result = run(config_for(frames_folder, out))
    assert sorted(f.name for f in out.iterdir()) == [
        "checkpoints", "config.json", "encoder", "log.jsonl", "reconstructions",
    ]  # fmt: skip
    assert (result.run, result.encoder, result.steps) == (out, out / "encoder", 2 * STEPS)
    assert not result.interrupted
    assert result.images_per_second > 0
    assert TrainConfig.load(out) == config_for(frames_folder, out)
    rows = read_log(out)
    losses, held_out = [r for r in rows if "loss/total" in r], [r for r in rows if "held_out/kl_nats" in r]
    assert [r["step"] for r in losses] == list(range(1, 2 * STEPS + 1))
    assert [r["step"] for r in held_out] == [STEPS, 2 * STEPS]
    for row in losses:
        expected = row["loss/reconstruction"] + row["schedule/beta"] * row["loss/kl_nats"]
        assert row["loss/total"] == pytest.approx(expected, rel=1e-5)
        assert row["speed/images_per_second"] > 0
        assert 0 <= row["speed/data_wait_share"] <= 1
    for row in held_out:
        expected = row["held_out/reconstruction"] + row["held_out/kl_nats"]  # at the wanted beta of 1, whatever beta was
        assert row["held_out/loss_at_fixed_beta"] == pytest.approx(expected)
    for epoch in (1, 2):
        with Image.open(out / "reconstructions" / f"epoch_{epoch:03d}.png") as image:
            assert image.size == (10 * 34 - 2, 2 * 34 - 2)  # ten frames above ten reconstructions, twice as large
    encoder = FrozenEncoder.load(out, device="cpu")
    about = encoder.provenance
    assert [f["file"] for f in about["trained_on"]] == ["recording_0.npy", "recording_1.npy"]
    assert [f["frames"] for f in about["trained_on"]] == [24, 24]
    assert about["settings"] == json.loads((out / "config.json").read_text())
    assert about["step"] == 2 * STEPS
    assert about["schedule"] == {"fixed_beta": 1.0, "half_cycle_steps": STEPS, "freeze_steps": 0}
    assert about["held_out"]["loss_at_fixed_beta"] == pytest.approx(held_out[-1]["held_out/loss_at_fixed_beta"])
    model = tiny_cvae()
    load_checkpoint(out / "checkpoints" / "latest.safetensors", model)
    frames = random_frames(3)
    with torch.inference_mode():
        expected = model.encode(torch.from_numpy(frames).permute(0, 3, 1, 2) / 255)[0].numpy()
    np.testing.assert_allclose(encoder(frames), expected, atol=1e-5)


def test_reconstructions_get_better(frames_folder: Path, tmp_path: Path):
    config = config_for(frames_folder, tmp_path / "out", epochs=12, beta=0.01, learning_rate=5e-3)
    run(config)
    rows = read_log(tmp_path / "out")
    errors = [r["loss/reconstruction"] for r in rows if "loss/reconstruction" in r]
    held_out = [r["held_out/reconstruction"] for r in rows if "held_out/reconstruction" in r]
    assert np.mean(errors[-3:]) < 0.5 * np.mean(errors[:3])
    assert held_out[-1] < 0.7 * held_out[0]


@pytest.mark.parametrize(("freeze", "half"), [(0, 1), (1, 2), (2, 0)])
def test_the_log_has_beta_as_the_schedule_says(frames_folder: Path, tmp_path: Path, freeze: int, half: int):
    config = config_for(frames_folder, tmp_path / "out", epochs=6, beta=2.5, batch_freeze=freeze, half_beta_cycle=half)
    run(config)
    beta = CyclicalBeta(2.5, half * STEPS, freeze * STEPS)
    assert schedule_of(config, STEPS) == beta
    rows = [r for r in read_log(tmp_path / "out") if "schedule/beta" in r]
    # Row n tells of the n-th step, which is number n - 1 counted from 0.
    assert [r["schedule/beta"] for r in rows] == [beta(step) for step in range(6 * STEPS)]
    best = tmp_path / "out" / "checkpoints" / "best.safetensors"
    assert best.exists() is (half > 0)


def test_each_step_is_compute_apply_gradients_on_a_batch(
    frames_folder: Path, tmp_path: Path, around_step: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    sizes: list[int] = []
    betas: list[float] = []
    around_step(lambda _, x: sizes.append(len(x)))
    step = torch.optim.Adam.step
    taken: list[int] = []
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, *a: taken.append(1) or step(self, *a))
    loss = CVAE.compute_loss
    monkeypatch.setattr(CVAE, "compute_loss", lambda self, x: betas.append(self.beta) or loss(self, x))
    run(config_for(frames_folder, tmp_path / "out", epochs=3))
    assert sizes == [20, 20, 8] * 3
    assert len(taken) == 3 * STEPS
    assert betas == [CyclicalBeta(1.0, STEPS)(s) for s in range(3 * STEPS)]


@pytest.mark.parametrize(("held_out", "trained"), [(None, {0, 50}), (2, {0})])
def test_held_out_recordings_are_never_trained_on(
    frames_folder: Path, tmp_path: Path, around_step: Callable[..., None], held_out: int | None, trained: set[int]
):
    seen: set[int] = set()
    around_step(lambda _, x: seen.update((x[:, 0, 0, 0] * 255).round().int().tolist()))
    run(config_for(frames_folder, tmp_path / "out", epochs=4, held_out=held_out))
    assert seen == trained


def test_an_epoch_is_a_new_sample_of_every_file(frames_folder: Path, tmp_path: Path, around_step: Callable[..., None]):
    batches: list[NDArray[Any]] = []
    around_step(lambda _, x: batches.append(x.numpy().copy()))
    run(config_for(frames_folder, tmp_path / "out", super_batch=20, dataset_weights=(3.0, 1.0), epochs=3))
    assert [len(b) for b in batches] == [20] * 3
    for b in batches:
        files = (b[:, 0, 0, 0] * 255).round().astype(int)
        assert np.bincount(files, minlength=51)[[0, 50]].tolist() == [15, 5]
    assert not np.array_equal(batches[0], batches[1])


def test_the_same_seed_gives_the_same_run_and_another_does_not(frames_folder: Path, tmp_path: Path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(time.time_ns() % 1000)  # what was drawn before does not matter
        run(config_for(frames_folder, tmp_path / name, seed=seed))
    same_run(tmp_path / "a", tmp_path / "b")
    assert story(tmp_path / "a") != story(tmp_path / "c")


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


@pytest.mark.parametrize("first", [1, 2, 3])
def test_more_epochs_later_are_the_same_as_at_once(module_frames: Path, uninterrupted: Path, tmp_path: Path, first: int):
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
    module_frames: Path, uninterrupted: Path, tmp_path: Path, around_step: Callable[..., None], stops: tuple[int, ...],
    number: signal.Signals,
):  # fmt: skip
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


def test_the_encoder_has_the_best_of_the_cycle_ends(module_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    results = iter([9.0, 3.0, 1.0, 5.0, 0.5, 4.0])  # the lowest at steps where beta was on its way up
    original = TRAIN.evaluate

    def rigged(*args: Any, **kwargs: Any) -> Any:
        held_out = original(*args, **kwargs)
        loss = next(results, held_out.loss_at_fixed_beta)
        return type(held_out)(loss, held_out.reconstruction, held_out.kl_nats, held_out.active_latents)

    monkeypatch.setattr(TRAIN, "evaluate", rigged)
    out = tmp_path / "out"
    run(config_for(module_frames, out, epochs=6))
    assert FrozenEncoder.load(out, device="cpu").provenance["step"] == 2 * STEPS
    best, exported = load_file(out / "checkpoints/best.safetensors"), load_file(out / "encoder/encoder.safetensors")
    assert all(torch.equal(best[f"model/encoder.{name}"], value) for name, value in exported.items())
    latest = load_file(out / "checkpoints/latest.safetensors")
    assert not torch.equal(latest["model/encoder.mean_head.bias"], exported["mean_head.bias"])


SCRIPT = """
import importlib, json, sys
from vae_training.config import TrainConfig
t = importlib.import_module("vae_training.train")
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
    for leftover in (config.out / "reconstructions").glob("epoch_*.png"):  # of epochs that the resumed run did not reach
        if int(leftover.stem.split("_")[1]) > epochs:
            leftover.unlink()
    run(config_for(module_frames, tmp_path / "whole", epochs=epochs))
    same_run(config.out, tmp_path / "whole")


def test_a_run_killed_before_its_first_checkpoint_can_be_resumed(module_frames: Path, uninterrupted: Path, tmp_path: Path):
    config = config_for(module_frames, tmp_path / "out", epochs=4)
    config.out.mkdir()
    (config.out / "config.json").write_text(json.dumps(config.to_json()))
    (config.out / "log.jsonl").write_text('{"step": 1, "loss/total": 3.0}\n')
    run(config, resume=True)  # else the folder would be good for nothing: neither with --resume nor without
    same_run(config.out, uninterrupted)


def poison(at: int) -> Callable[[int, torch.Tensor], object]:
    return lambda call, x: x.fill_(float("nan")) if call == at else None


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
    # One step an epoch: the loss of the last step is still finite when it is taken, and only the weights after it are not.
    out = tmp_path / "out"
    config = config_for(module_frames, out, epochs=epochs, batch_size=48, learning_rate=1e30)
    with pytest.raises(TrainingDivergedError, match="step"):
        run(config)
    assert not (out / "encoder").exists()
    weights = load_file(out / "checkpoints" / "latest.safetensors")  # the one from before the first step
    assert all(torch.isfinite(w).all() for name, w in weights.items() if name.startswith("model/"))
    assert not (out / "checkpoints" / "best.safetensors").exists()


def test_a_folder_that_is_not_empty_is_left_alone(frames_folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    run(config_for(frames_folder, out, epochs=1))  # an empty one will do
    before = {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}
    with pytest.raises(InputError, match=r"out is not empty.*--resume.*--out"):
        run(config_for(frames_folder, out))
    assert {f: f.read_bytes() for f in out.rglob("*") if f.is_file()} == before


def test_a_file_in_place_of_the_run_folder(frames_folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(InputError, match="out"):
        run(config_for(frames_folder, out))
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"latent_dim": 7}, "latent_dim is 6.*7"),
        ({"beta": 2.0}, "beta is 1.0.*2.0"),
        ({"learning_rate": 0.5}, "learning_rate"),
        ({"batch_size": 10}, "batch_size is 20.*10"),
        ({"seed": 3}, "seed"),
        ({"bottleneck": "spatial"}, "bottleneck"),
        ({"super_batch": 200}, "super_batch"),
        ({"held_out": 2}, "held_out"),
        ({"half_beta_cycle": 2}, "half_beta_cycle"),
        ({"widths": (4, 9)}, "widths"),
        ({"dataset_weights": (1.0, 2.0)}, "dataset_weights"),
    ],
)
def test_what_decided_the_weights_cannot_change_on_resume(uninterrupted: Path, change: dict[str, Any], named: str):
    with pytest.raises(InputError, match=named):
        run(TrainConfig(out=uninterrupted, **change), resume=True)


def test_resuming_nothing(tmp_path: Path):
    with pytest.raises(InputError, match="no training run"):
        run(TrainConfig(out=tmp_path / "nothing"), resume=True)


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"super_batch": 49}, InputError, r"super_batch 49.*48 frames.*--super-batch 48"),
        ({"widths": (), "strides": (), "bottleneck": "spatial"}, InputError, "latent_dim 6.*multiple of 64"),
        ({"dataset_weights": (1.0, 2.0, 3.0)}, InputError, "weight"),
        ({"held_out": 3}, InputError, "held_out 3"),
        ({"device": "cuda:99"}, DeviceError, "cuda:99"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    frames_folder: Path, tmp_path: Path, change: dict[str, Any], error: type[Exception], named: str
):
    with pytest.raises(error, match=named):
        run(config_for(frames_folder, tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0}, {"batch_size": 0}, {"batch_freeze": -1}, {"half_beta_cycle": -1}, {"seed": -1},
        {"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"beta": -1.0}, {"beta": float("inf")},
        {"super_batch": 10},
    ],
)  # fmt: skip
def test_settings_are_checked_by_name(change: dict[str, Any]):
    with pytest.raises(InputError, match=next(iter(change))):
        TrainConfig(**change)


@given(
    latent_dim=st.integers(1, 999),
    widths=st.lists(st.integers(1, 99), max_size=3).map(tuple),
    beta=st.floats(0, 1e9),
    learning_rate=st.floats(1e-9, 10),
    super_batch=st.none() | st.integers(128, 10**6),
    scale=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_settings_survive_json(
    latent_dim: int, widths: tuple[int, ...], beta: float, learning_rate: float, super_batch: int | None, scale: bool
):
    config = TrainConfig(
        Path("a/b"), Path("c"), latent_dim, widths=widths, beta=beta, learning_rate=learning_rate,
        super_batch=super_batch, scale_losses=scale,
    )  # fmt: skip
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(InputError, match="colour"):
        TrainConfig.from_json({**config.to_json(), "colour": 1})


def test_a_log_of_a_killed_run_goes_on_where_the_checkpoint_was(tmp_path: Path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a": 2.0}\n{"step": 3, "a": 3.0}\n{"st')
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2, 3]
    with RunLog(tmp_path, from_step=2, tensorboard=False) as log:
        log.write(3, {"a": 30.0})
        assert read_log(tmp_path)[-1] == {"step": 3, "a": 30.0}  # there at once
    assert read_log(tmp_path) == [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}, {"step": 3, "a": 30.0}]
    assert read_log(tmp_path / "nowhere") == []


def test_without_tensorboard_there_is_a_log_and_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    with RunLog(tmp_path) as log:
        assert "--extra logs" in log.note
        log.write(1, {"a": 1.0})
        log.picture(1, "b", np.zeros((4, 4, 3), np.uint8))
    assert read_log(tmp_path) == [{"step": 1, "a": 1.0}]


def test_tensorboard_has_the_same_numbers(frames_folder: Path, tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "out"
    run(config_for(frames_folder, out, tensorboard=True))
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    rows = [r for r in read_log(out) if "loss/total" in r]
    scalars = events.Scalars("loss/total")
    assert [s.step for s in scalars] == [r["step"] for r in rows]
    np.testing.assert_allclose([s.value for s in scalars], [r["loss/total"] for r in rows], rtol=1e-6)
    assert len(events.Images("held_out/reconstructions")) == 2


@pytest.mark.parametrize("scale_losses", [False, True])
def test_evaluate_against_numpy(scale_losses: bool):
    model, frames = tiny_cvae(beta=7.0, scale_losses=scale_losses), random_frames(300)
    model.beta = 0.0  # the beta in force does not matter
    torch.manual_seed(0)
    before = torch.get_rng_state()
    held_out = evaluate(model, frames, beta=2.0)
    assert evaluate(model, frames, beta=2.0) == held_out
    assert torch.equal(torch.get_rng_state(), before)
    with torch.inference_mode():
        x = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
        mean, logvar = model.encode(x)
        kl = gaussian_kl_nats(mean, logvar).sum(1).mean().item() / (6 if scale_losses else 1)
        through_the_mean = (model.decode(mean) - x).square().sum().item() / 300 / (768 if scale_losses else 1)
    assert held_out.kl_nats == pytest.approx(kl, rel=1e-4)
    assert held_out.reconstruction == pytest.approx(through_the_mean, rel=0.2)
    assert held_out.reconstruction != pytest.approx(through_the_mean, rel=1e-6)  # a sample, as in training
    assert held_out.loss_at_fixed_beta == pytest.approx(held_out.reconstruction + 2.0 * held_out.kl_nats)
    assert held_out.active_latents == (mean.numpy().var(axis=0) > 0.01).sum()


def only_latent(model: CVAE, latent: int | None) -> CVAE:
    """Have the mean of one latent follow the frames strongly, and everything else in q(z|x) say nothing."""
    weights = model.state_dict()
    for name in ("encoder.mean_head.weight", "encoder.mean_head.bias", "encoder.logvar_head.weight"):
        weights[name].zero_()
    weights["encoder.logvar_head.bias"].zero_()
    if latent is not None:
        weights["encoder.mean_head.weight"][latent].normal_(generator=torch.Generator().manual_seed(0))
    weights["decoder.stem.weight"] *= 30
    return model


def test_active_latents_are_those_that_move():
    frames = random_frames(64)
    assert evaluate(only_latent(tiny_cvae(), None), frames, beta=1.0).active_latents == 0
    assert evaluate(only_latent(tiny_cvae(), 2), frames, beta=1.0).active_latents == 1


@pytest.mark.parametrize("channels", [1, 3, 4, 12])
def test_pictures(channels: int):
    model = CVAE((16, 16, channels), 6, widths=(4, 8), strides=(2, 2))
    frames = random_frames(5, (16, 16, channels))
    with torch.inference_mode():
        mean, _ = model.encode(torch.from_numpy(frames).permute(0, 3, 1, 2) / 255)
        decoded = model.decode(mean).clamp(0, 1).permute(0, 2, 3, 1).numpy() * 255
    assert np.abs(reconstruct(model, frames) - decoded).max() <= 0.51
    sheet = reconstruction_sheet(model, frames)
    assert sheet.shape == (2 * 34 - 2, 5 * 34 - 2, 3)
    shown = {1: frames[0].repeat(3, axis=-1)}.get(channels, frames[0, :, :, -3:])
    np.testing.assert_array_equal(sheet[:32:2, :32:2], shown)
    assert traversal_sheet(model, frames[0], sample=frames, latents=2, steps=4).shape == (2 * 34 - 2, 4 * 34 - 2, 3)


def test_a_traversal_begins_with_the_latent_that_says_most():
    model, frames = only_latent(tiny_cvae(), 4), random_frames(40)
    sheet = traversal_sheet(model, frames[0], sample=frames, latents=2, steps=3)
    strongest, silent = sheet[:32].astype(int), sheet[34:]
    assert np.abs(strongest[:, :32] - strongest[:, 68:]).max() > 5
    np.testing.assert_array_equal(silent[:, :32], silent[:, 68:])  # its range in the sample is a point


def test_grid_places_each_image():
    images = random_frames(3, (4, 6, 3))
    sheet = grid([images, images[:1]], scale=1)
    assert sheet.shape == (10, 22, 3)
    np.testing.assert_array_equal(sheet[:4, 8:14], images[1])
    np.testing.assert_array_equal(sheet[6:, :6], images[0])
    assert (sheet[4:6] == 255).all()
    assert (sheet[6:, 6:] == 255).all()


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
