"""train(): what a run leaves, what it trains on, and that a seed reproduces it."""

import dataclasses
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

from latent_obs.encoder.architecture import Architecture
from latent_obs.encoder.frozen import FrozenEncoder
from latent_obs.util.errors import InputError
from tests.support.tiny import picture, random_frames, tiny_cvae
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
from vae_training.model.cvae import CVAE, gaussian_kl_nats
from vae_training.training.checkpoint import load_checkpoint
from vae_training.training.config import TrainConfig
from vae_training.training.logs import read_log
from vae_training.training.trainer import Trainer, evaluate, schedule_of

pytestmark = pytest.mark.usefixtures("log_every_step")


def test_a_run_leaves_what_it_promises(frames_folder: Path, tmp_path: Path):
    out = tmp_path / "runs" / "one"
    result = run(config_for(frames_folder, out))
    assert {f.name for f in out.iterdir()} == {"checkpoints", "config.json", "encoder", "log.jsonl", "reconstructions"}
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
        assert row["optimizer/learning_rate"] == 1e-3
        assert row["speed/images_per_second"] > 0
        assert 0 <= row["speed/data_wait_share"] <= 1
    for row in held_out:  # at the wanted beta of 1, whatever beta was
        expected = row["held_out/reconstruction"] + row["held_out/kl_nats"]
        assert row["held_out/loss_at_fixed_beta"] == pytest.approx(expected)
    for epoch in (1, 2):
        with Image.open(out / "reconstructions" / f"epoch_{epoch:03d}.png") as image:
            # Six frames above six reconstructions, twice as large, and the names of both rows.
            assert image.width == 6 * 34 - 2
            assert image.height > 2 * 34 - 2
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


@pytest.mark.parametrize("size", [(84, 84), (60, 80)])
def test_frames_of_any_size_train_with_the_default_layers(tmp_path: Path, size: tuple[int, int]):
    (tmp_path / "frames").mkdir()
    recordings = [np.stack([picture(number, step, *size) for step in range(6)]) for number in range(2)]
    for number, frames in enumerate(recordings):
        np.save(tmp_path / "frames" / f"{number}.npy", frames)
    said: list[str] = []
    config = TrainConfig(
        tmp_path / "frames", tmp_path / "out", epochs=1, batch_size=6, device="cpu", learning_rate_schedule="constant"
    )
    result = run(config, say=said.append)
    encoder, saved = FrozenEncoder.load(result.encoder, device="cpu"), TrainConfig.load(tmp_path / "out")
    assert encoder.architecture is not None
    assert encoder.architecture == Architecture.for_frames((*size, 3), standardize=True)
    assert (saved.latent_dim, saved.widths) == (encoder.latent_dim, encoder.architecture.widths)
    assert any(f"{encoder.latent_dim} latents" in text for text in said)
    assert encoder(recordings[0]).shape == (6, encoder.latent_dim)
    assert FrozenEncoder.random(encoder.architecture, device="cpu").encode(recordings[0]).shape == (
        6,
        encoder.latent_dim,
    )
    run(TrainConfig(out=tmp_path / "out", epochs=2), resume=True)
    another = TrainConfig(tmp_path / "frames", tmp_path / "fine", start_from=result.encoder, epochs=1, batch_size=6)
    assert run(another).steps == 1


def test_reconstructions_get_better(frames_folder: Path, tmp_path: Path):
    more: dict[str, Any] = {"precision": "bfloat16"}
    run(config_for(frames_folder, tmp_path / "out", epochs=12, beta=0.01, learning_rate=5e-3, **more))
    rows = read_log(tmp_path / "out")
    errors = [r["loss/reconstruction"] for r in rows if "loss/reconstruction" in r]
    held_out = [r["held_out/reconstruction"] for r in rows if "held_out/reconstruction" in r]
    assert np.mean(errors[-3:]) < 0.5 * np.mean(errors[:3])
    assert held_out[-1] < 0.7 * held_out[0]


def test_the_log_has_beta_as_the_schedule_says(frames_folder: Path, tmp_path: Path):
    config = config_for(frames_folder, tmp_path / "out", epochs=5, beta=2.5, batch_freeze=1, half_beta_cycle=2)
    run(config)
    beta = CyclicalBeta(2.5, 2 * STEPS, STEPS)
    assert schedule_of(config, STEPS) == beta
    rows = [r for r in read_log(tmp_path / "out") if "schedule/beta" in r]
    assert [r["schedule/beta"] for r in rows] == [beta(step) for step in range(5 * STEPS)]


def test_the_first_step_is_a_plain_pytorch_step(frames_folder: Path, tmp_path: Path, around_step: Callable[..., None]):
    batches: list[torch.Tensor] = []
    states: list[torch.Tensor] = []
    around_step(lambda _, x: (batches.append(x.clone()), states.append(torch.get_rng_state())))
    run(config_for(frames_folder, tmp_path / "out", epochs=1, schedule="constant"))
    assert [len(x) for x in batches] == [20, 20, 8]
    torch.manual_seed(0)
    model = CVAE((16, 16, 3), 6, 1.0, widths=(4, 8), strides=(2, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for x, state in zip(batches, states, strict=True):
        torch.set_rng_state(state)
        model.compute_apply_gradients(x, optimizer)
    saved = load_file(tmp_path / "out" / "checkpoints" / "latest.safetensors")
    assert all(torch.equal(value, saved[f"model/{name}"]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("held_out", "trained"), [(None, {0, 50}), (2, {0})])
def test_held_out_recordings_are_never_trained_on(
    frames_folder: Path, tmp_path: Path, around_step: Callable[..., None], held_out: int | None, trained: set[int]
):
    seen: set[int] = set()
    around_step(lambda _, x: seen.update((x[:, 0, 0, 0] * 255).round().int().tolist()))
    run(config_for(frames_folder, tmp_path / "out", epochs=1, held_out=held_out))
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


def rig(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Have the held-out losses of the epochs be these, and then those that they are."""
    original, left = TRAIN.evaluate, iter(losses)

    def rigged(*args: Any, **kwargs: Any) -> Any:
        held_out = original(*args, **kwargs)
        return dataclasses.replace(held_out, loss_at_fixed_beta=next(left, held_out.loss_at_fixed_beta))

    monkeypatch.setattr(TRAIN, "evaluate", rigged)


def test_the_encoder_has_the_best_of_the_cycle_ends(
    module_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rig(monkeypatch, [9.0, 3.0, 1.0, 5.0])  # the lowest at a step where beta was on its way up
    out = tmp_path / "out"
    run(config_for(module_frames, out, epochs=4))
    assert FrozenEncoder.load(out, device="cpu").provenance["step"] == 2 * STEPS
    best, exported = load_file(out / "checkpoints/best.safetensors"), load_file(out / "encoder/encoder.safetensors")
    assert all(torch.equal(best[f"model/encoder.{name}"], value) for name, value in exported.items())
    latest = load_file(out / "checkpoints/latest.safetensors")
    assert not torch.equal(latest["model/encoder.mean_head.bias"], exported["mean_head.bias"])


@pytest.mark.parametrize(("schedule", "best_epochs"), [("monotonic", {4, 5}), ("cyclical", {5})])
def test_only_comparable_epochs_may_be_the_best(
    module_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str, best_epochs: set[int]
):
    rig(monkeypatch, [5.0, 4.0, 3.0, 2.0, 1.0])  # so that each moment that counts is a new best one
    saved: set[int] = set()
    save = Trainer._save

    def watched(self: Trainer, name: str) -> None:
        if name == "best":
            saved.add(self.progress.step)
        save(self, name)

    monkeypatch.setattr(Trainer, "_save", watched)
    run(config_for(module_frames, tmp_path / "out", epochs=5, batch_freeze=1, half_beta_cycle=2, schedule=schedule))
    assert saved == {epoch * STEPS for epoch in best_epochs}


def test_patience_ends_the_run_and_resuming_does_not_go_on(
    module_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rig(monkeypatch, [5.0, 4.0, 4.5, 3.0, 3.5, 3.2, 1.0] + [9.0] * 9)
    config = config_for(module_frames, tmp_path / "out", epochs=9, schedule="constant", patience=2)
    result = run(config)
    assert (result.stopped_early, result.interrupted) == (True, False)
    assert result.steps == 6 * STEPS  # 3.0 was the best, and two were no better
    again = run(TrainConfig(out=config.out), resume=True)
    assert (again.steps, again.stopped_early) == (6 * STEPS, True)
    assert run(TrainConfig(out=config.out, patience=5), resume=True).steps == 9 * STEPS  # more patience


def test_a_cosine_falls_to_0_and_cannot_get_more_epochs(module_frames: Path, tmp_path: Path):
    run(config_for(module_frames, tmp_path / "out", learning_rate_schedule="cosine"))
    rates = [r["optimizer/learning_rate"] for r in read_log(tmp_path / "out") if "loss/total" in r]
    assert rates == pytest.approx([1e-3 * (1 + np.cos(np.pi * step / 6)) / 2 for step in range(6)])
    with pytest.raises(InputError, match="epochs"):
        run(TrainConfig(out=tmp_path / "out", epochs=7), resume=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # of torch
def test_compiled_resumes_to_the_bit_and_is_near_eager(
    module_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(TRAIN, "compiles_on", lambda _: True)
        for name, epochs in (("whole", (4,)), ("parts", (2, 4))):
            for i, last in enumerate(epochs):
                run(config_for(module_frames, tmp_path / name, epochs=last), resume=i > 0)
    same_run(tmp_path / "whole", tmp_path / "parts")
    run(config_for(module_frames, tmp_path / "eager", epochs=4))
    one, two = (load_file(tmp_path / n / "checkpoints/latest.safetensors") for n in ("whole", "eager"))
    assert all(torch.allclose(one[k].float(), two[k].float(), atol=1e-3) for k in one if k.startswith("model"))


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
