"""Schedules, optimizer, average, precision, free bits, presets and early stopping, each against an oracle."""

import copy
import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from latent_obs.encoder.architecture import Architecture
from latent_obs.encoder.networks import Encoder
from latent_obs.util.errors import InputError
from tests.support.tiny import IMG_SHAPE, LATENT_DIM, random_frames, tiny_cvae
from tests.support.training_runs import (
    STEPS,
    TRAIN,
    config_for,
    log_every_step,
    module_frames,
    run,
    same_run,
    same_tensors,
)
from vae_training.data.loader import Batch
from vae_training.model.beta import ConstantBeta, CyclicalBeta, MonotonicBeta
from vae_training.model.cvae import gaussian_kl_nats, images_to_tensor
from vae_training.model.losses import ClassicObjective
from vae_training.model.presets import PRESETS, encoder_flops, encoder_parameters, layers_of
from vae_training.training.config import TrainConfig
from vae_training.training.logs import read_log
from vae_training.training.optim import GradientStep, LearningRate, WeightAverage, make_optimizer

QUICK = settings(max_examples=40, deadline=None)
CPU = torch.device("cpu")


def batch(count: int = 5, seed: int = 0) -> Batch:
    return Batch(torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)))


@given(fixed=st.floats(0, 10), rise=st.integers(0, 20), freeze=st.integers(0, 20), step=st.integers(0, 200))
@QUICK
def test_monotonic_is_the_first_rise_of_the_cycles_and_stays(fixed: float, rise: int, freeze: int, step: int):
    once, cycles = MonotonicBeta(fixed, rise, freeze), CyclicalBeta(fixed, rise, freeze)
    assert once(step) == (cycles(step) if step < freeze + 2 * rise else fixed)
    assert once(step) <= once(step + 1) <= fixed
    assert once.is_comparable(step) is (step >= freeze + rise)
    assert not once.is_comparable(step) or once(step) == fixed
    assert cycles.is_comparable(step) is cycles.is_cycle_end(step)
    assert not once.is_cycle_end(step)
    constant = ConstantBeta(fixed, freeze)
    assert constant(step) == (0.0 if step < freeze else fixed)
    assert constant.is_comparable(step) is (step >= freeze)


@pytest.mark.parametrize("kwargs", [{"ramp_steps": -1}, {"ramp_steps": 1, "freeze_steps": -1}])
def test_schedules_are_checked(kwargs: dict[str, Any]):
    with pytest.raises(InputError, match=list(kwargs)[-1]):
        MonotonicBeta(1.0, **kwargs)


@pytest.mark.parametrize(
    ("schedule", "best_epochs"), [("constant", {2, 3, 4, 5}), ("monotonic", {4, 5}), ("cyclical", {5})]
)
def test_only_comparable_epochs_may_be_the_best(
    module_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str, best_epochs: set[int]
):
    looked: list[int] = []
    original = TRAIN.evaluate

    def falling(*args: Any, **kwargs: Any) -> Any:  # so that each moment that counts is a new best one
        looked.append(1)
        return dataclasses.replace(original(*args, **kwargs), loss_at_fixed_beta=100.0 - len(looked))

    monkeypatch.setattr(TRAIN, "evaluate", falling)
    saved: set[int] = set()
    save = TRAIN.Run._save
    monkeypatch.setattr(
        TRAIN.Run,
        "_save",
        lambda self, name: (saved.add(self.progress.step) if name[0] == "b" else None, save(self, name)),
    )
    run(config_for(module_frames, tmp_path / "out", epochs=5, batch_freeze=1, half_beta_cycle=2, schedule=schedule))
    assert saved == {epoch * STEPS for epoch in best_epochs}


def test_patience_ends_the_run_and_resuming_does_not_go_on(
    module_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    losses = iter([5.0, 4.0, 4.5, 3.0, 3.5, 3.2, 1.0])
    original = TRAIN.evaluate
    monkeypatch.setattr(
        TRAIN,
        "evaluate",
        lambda *a, **k: dataclasses.replace(original(*a, **k), loss_at_fixed_beta=next(losses, 9.0)),
    )
    config = config_for(module_frames, tmp_path / "out", epochs=9, schedule="constant", patience=2)
    result = run(config)
    assert result.stopped_early
    assert not result.interrupted
    assert result.steps == 6 * STEPS  # 3.0 was the best, and two were no better
    again = run(TrainConfig(out=config.out), resume=True)
    assert (again.steps, again.stopped_early) == (6 * STEPS, True)
    assert run(TrainConfig(out=config.out, patience=5), resume=True).steps == 9 * STEPS  # more patience


def test_learning_rate_against_torch():
    rate = LearningRate(0.1, "cosine", total_steps=30, warm_up_steps=4)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 26)
    for step in range(4, 30):
        assert rate(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        cosine.step()
    assert [rate(s) for s in range(4)] == pytest.approx([0.02, 0.04, 0.06, 0.08])
    assert LearningRate(0.1)(10**9) == 0.1
    with pytest.raises(InputError, match="warm_up_steps 9 leave nothing"):
        LearningRate(0.1, "cosine", total_steps=9, warm_up_steps=9)


def test_a_cosine_cannot_get_more_epochs(module_frames: Path, tmp_path: Path):
    run(config_for(module_frames, tmp_path / "out", learning_rate_schedule="cosine"))
    with pytest.raises(InputError, match="learning rate falls to 0"):
        run(TrainConfig(out=tmp_path / "out", epochs=7), resume=True)


@pytest.mark.usefixtures("log_every_step")
def test_clipping_that_never_clips_changes_nothing(module_frames: Path, tmp_path: Path):
    run(config_for(module_frames, tmp_path / "a"))
    run(config_for(module_frames, tmp_path / "b", clip_norm=1e9))  # another way through the code
    same_tensors(*(tmp_path / name / "checkpoints" / "latest.safetensors" for name in "ab"))
    assert all("optimizer/gradient_norm" in r for r in read_log(tmp_path / "b") if "loss/total" in r)


def test_one_step_against_plain_pytorch():
    model = tiny_cvae(beta=0.5)
    plain = copy.deepcopy(model)
    objective = ClassicObjective(model)
    optimizer = make_optimizer(objective.parameters(), "adamw", learning_rate=1.0, weight_decay=0.1, device=CPU)
    step = GradientStep(objective, optimizer, LearningRate(0.01, warm_up_steps=1), clip_norm=0.3)
    other = torch.optim.AdamW(plain.parameters(), lr=0.005, weight_decay=0.1)
    torch.manual_seed(1)
    step(batch(), 0)
    torch.manual_seed(1)
    plain.compute_loss(batch().images).total.backward()
    norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.3)
    other.step()
    assert step.gradient_norm is not None
    assert step.gradient_norm == norm
    assert norm > 0.3
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_loss_that_is_not_finite_moves_neither_weights_nor_average(clip_norm: float | None):
    model = tiny_cvae()
    objective, average = ClassicObjective(model), WeightAverage(model, 0.5)
    optimizer = make_optimizer(objective.parameters(), "adam", learning_rate=0.1, weight_decay=0, device=CPU)
    step = GradientStep(objective, optimizer, LearningRate(0.1), clip_norm=clip_norm, average=average)
    before = copy.deepcopy((model.state_dict(), average.state().state_dict()))
    bad = batch()
    bad.images[0, 0, 0, 0] = float("nan")
    assert not torch.isfinite(step(bad, 0).total)
    for state, then in zip((model.state_dict(), average.state().state_dict()), before, strict=True):
        assert all(torch.equal(state[name], then[name]) for name in then)


def test_the_average_against_numpy(module_frames: Path, tmp_path: Path):
    model = torch.nn.Linear(3, 2)
    average = WeightAverage(model, 0.6)
    expected = model.weight.detach().numpy().copy()
    for n in range(12):
        with torch.no_grad():
            model.weight += 1.0
        average.update()
        decay = min(0.6, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * model.weight.detach().numpy()
        np.testing.assert_allclose(average.model.weight.numpy(), expected, rtol=1e-6)
    out = tmp_path / "out"
    run(config_for(module_frames, out, ema=0.9))
    best, exported = load_file(out / "checkpoints/best.safetensors"), load_file(out / "encoder/encoder.safetensors")
    assert all(torch.equal(best[f"ema/module.encoder.{name}"], value) for name, value in exported.items())
    assert not torch.equal(best["model/encoder.mean_head.bias"], exported["mean_head.bias"])


@given(free_bits=st.floats(0.01, 2), scale=st.booleans(), seed=st.integers(0, 99))
@QUICK
def test_free_bits_against_numpy(free_bits: float, scale: bool, seed: int):
    model, x = tiny_cvae(seed=seed % 3, beta=1.5, scale_losses=scale), batch(seed=seed)
    with torch.no_grad():
        # Some dimensions above it, some below.
        model.state_dict()["encoder.mean_head.bias"].copy_(torch.linspace(0, 3, LATENT_DIM))
        mean, logvar = model.encode(x.images)
        losses = ClassicObjective(model, free_bits=free_bits)(x)
    kl = gaussian_kl_nats(mean, logvar).numpy().mean(0)
    penalty = np.maximum(kl, free_bits).sum() / (LATENT_DIM if scale else 1)
    assert losses.kl.item() == pytest.approx(kl.sum() / (LATENT_DIM if scale else 1), rel=1e-4)
    assert losses.total.item() == pytest.approx(losses.reconstruction.item() + 1.5 * penalty, rel=1e-4)


def test_a_dimension_below_the_free_bits_is_not_pressed():
    model = tiny_cvae(beta=1000.0)
    losses = ClassicObjective(model, free_bits=1e6)(batch())
    (losses.total - losses.reconstruction).backward()
    assert all(p.grad is None or not p.grad.any() for p in model.encoder.parameters())


def test_bfloat16_is_near_float32_and_its_losses_are_float32(module_frames: Path, tmp_path: Path):
    model, seen = tiny_cvae(), []
    model.encoder.convolutions.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    results: list[list[float]] = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        losses = ClassicObjective(model, dtype=dtype)(batch())
        terms = (losses.total, losses.reconstruction, losses.kl)
        assert all(term.dtype == torch.float32 for term in terms)
        results.append([term.item() for term in terms])
    assert seen == [torch.float32, torch.bfloat16]
    assert results[0] == pytest.approx(results[1], rel=0.03)
    assert results[0] != results[1]
    with torch.no_grad():  # logvar that exp() in bfloat16 would round by 0.4%
        weights = model.state_dict()
        for name in ("logvar_head.weight", "mean_head.weight", "mean_head.bias"):
            weights[f"encoder.{name}"].zero_()
        weights["encoder.logvar_head.bias"].fill_(5.0)
        kl = ClassicObjective(model, dtype=torch.bfloat16)(batch()).kl.item()
    assert kl == pytest.approx(LATENT_DIM * 0.5 * (np.exp(5.0) - 1 - 5.0), rel=1e-6)
    run(config_for(module_frames, tmp_path / "out", precision="bfloat16", epochs=1))


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)  # of torch itself
def test_compiled_resumes_to_the_bit_and_is_near_eager(
    module_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr("vae_training.training.trainer.compiles_on", lambda _: True)
        for name, epochs in (("whole", (4,)), ("parts", (2, 4))):
            for i, last in enumerate(epochs):
                run(config_for(module_frames, tmp_path / name, epochs=last), resume=i > 0)
    same_run(tmp_path / "whole", tmp_path / "parts")
    run(config_for(module_frames, tmp_path / "eager", epochs=4))
    one, two = (load_file(tmp_path / n / "checkpoints/latest.safetensors") for n in ("whole", "eager"))
    assert all(torch.allclose(one[k].float(), two[k].float(), atol=1e-3) for k in one if k.startswith("model"))


def test_what_cannot_be_compiled_goes_uncompiled(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda function, **_: broken)
    said: list[str] = []
    torch.manual_seed(0)
    losses = ClassicObjective(tiny_cvae(), compile=True, fall_back=said.append)(batch())
    torch.manual_seed(0)
    assert losses.total == ClassicObjective(tiny_cvae())(batch()).total
    assert "goes on without" in said[0]


architectures = [
    *(
        Architecture((64, 64, 3), 256 if bottleneck == "spatial" else 32, *layers, bottleneck)
        for by_bottleneck in PRESETS.values()
        for bottleneck, layers in by_bottleneck.items()
    ),
    Architecture((60, 80, 1), 7, (5, 9, 4), (3, 1, 2)),
    Architecture((32, 32, 2), 128, (6, 8), (2, 2), "spatial", True),
]


@pytest.mark.parametrize("architecture", architectures, ids=str)
def test_flops_and_parameters_against_torch(architecture: Architecture):
    encoder = Encoder(architecture)
    height, width, channels = architecture.img_shape
    with FlopCounterMode(display=False) as counter:
        encoder.mean(torch.zeros(1, channels, height, width))
    assert encoder_flops(architecture) == counter.get_total_flops()
    assert encoder_parameters(architecture) == sum(p.numel() for p in encoder.parameters())
    unused = sum(p.numel() for p in encoder.logvar_head.parameters())
    assert encoder_parameters(architecture, mean_only=True) == encoder_parameters(architecture) - unused


def test_presets_are_as_the_help_says():
    text = re.sub(r"\s+", " ", inspect.getsource(TrainConfig))
    for name, by_bottleneck in PRESETS.items():
        dense = Architecture((64, 64, 3), 32, *by_bottleneck["dense"])
        spatial = Architecture((64, 64, 3), 256, *by_bottleneck["spatial"], "spatial")
        numbers = [f"{encoder_flops(a) / 1e6:.1f}, {encoder_parameters(a) / 1e6:.2f}" for a in (dense, spatial)]
        assert f"{name} {numbers[0]} ({numbers[1]})" in text
        assert layers_of((64, 64, 3), "dense", name) == by_bottleneck["dense"]
    assert PRESETS["base"]["dense"].widths == Architecture((64, 64, 3), 32).widths
    assert layers_of((64, 64, 3), "spatial", None) == PRESETS["base"]["spatial"]
    assert layers_of((32, 32, 3), "spatial", None) == ((), ())
    assert layers_of((64, 64, 3), "spatial", "large", strides=(2, 2)) == ((), (2, 2))
    assert layers_of((16, 16, 3), "dense", "small", (4, 8), (2, 2)) == ((4, 8), (2, 2))
    with pytest.raises(InputError, match="64x64, and these are 16x16"):
        layers_of((16, 16, 3), "dense", "small")
    with pytest.raises(InputError, match="preset"):
        TrainConfig(preset="huge")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": "square"},
        {"optimizer": "sgd"},
        {"precision": "float16"},
        {"free_bits": -1.0},
        {"weight_decay": -1.0},
        {"clip_norm": 0.0},
        {"ema": 1.0},
        {"patience": 0},
        {"warm_up_steps": -1},
        {"checkpoint_minutes": -1.0},
        {"patience": 2, "half_beta_cycle": 0},
    ],
)
def test_settings_are_checked_by_name(change: dict[str, Any]):
    with pytest.raises(InputError, match=next(iter(change))):
        TrainConfig(**change)
