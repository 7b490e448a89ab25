"""train(): what a run leaves, what it trains on, and that a seed reproduces it."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from latent_obs.encoder.frozen import FrozenEncoder
from tests.support.tiny import random_frames, tiny_cvae
from tests.support.training_runs import (
    STEPS,
    TRAIN,
    around_step,
    config_for,
    log_every_step,
    module_frames,
    run,
    same_run,
    story,
)
from vae_training.model.beta import CyclicalBeta
from vae_training.model.cvae import CVAE
from vae_training.training.checkpoint import load_checkpoint
from vae_training.training.config import TrainConfig
from vae_training.training.logs import read_log
from vae_training.training.trainer import schedule_of

pytestmark = pytest.mark.usefixtures("log_every_step")


def test_a_run_leaves_what_it_promises(frames_folder: Path, tmp_path: Path):
    out = tmp_path / "runs" / "one"
    result = run(config_for(frames_folder, out))
    assert sorted(f.name for f in out.iterdir()) == [
        "checkpoints",
        "config.json",
        "encoder",
        "log.jsonl",
        "reconstructions",
    ]
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
        expected = (
            row["held_out/reconstruction"] + row["held_out/kl_nats"]
        )  # at the wanted beta of 1, whatever beta was
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


def test_the_encoder_has_the_best_of_the_cycle_ends(
    module_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
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
