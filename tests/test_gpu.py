"""What only a CUDA GPU can show; run with `-m gpu` on a machine that has one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import IMG_SHAPE, random_frames
from safetensors.torch import load_file
from training_runs import config_for, log_every_step, module_frames, run

from latent_obs.architecture import Architecture
from latent_obs.device import resolve_device
from latent_obs.errors import DeviceError, TrainingDivergedError
from latent_obs.frozen import FrozenEncoder
from latent_obs.selfcheck import RELATIVE_TOLERANCE
from vae_training.batch import Batch
from vae_training.cvae import CVAE
from vae_training.logs import read_log
from vae_training.objective import ClassicObjective
from vae_training.optimisation import make_optimizer
from vae_training.precision import resolve_precision

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
    pytest.mark.usefixtures("log_every_step"),
]


def test_auto_is_the_gpu_and_one_too_many_is_an_error():
    assert resolve_device("auto").type == "cuda"
    with pytest.raises(DeviceError, match="numbered from 0"):
        resolve_device(f"cuda:{torch.cuda.device_count()}")


def test_latents_agree_with_the_cpu_alone_and_in_a_batch():
    architecture = Architecture((64, 64, 3), latent_dim=32)
    frames = np.random.default_rng(0).integers(0, 256, (1024, 64, 64, 3), np.uint8)
    on_cpu = FrozenEncoder.random(architecture, device="cpu")(frames)
    encoder = FrozenEncoder.random(architecture, device="cuda")
    on_gpu = encoder(frames)
    assert isinstance(on_gpu, np.ndarray)
    allowed = RELATIVE_TOLERANCE * np.abs(on_cpu).max()
    np.testing.assert_allclose(on_gpu, on_cpu, atol=allowed, rtol=0)
    np.testing.assert_allclose(encoder(frames[7]), on_gpu[7], atol=allowed, rtol=0)


def test_training_runs_resumes_and_its_encoder_loads_on_either_device(module_frames: Path, tmp_path: Path):
    out = tmp_path / "out"
    run(config_for(module_frames, out, device="cuda", epochs=1))
    run(config_for(module_frames, out, device="cuda", epochs=2), resume=True)
    frames = random_frames(4, IMG_SHAPE)
    on_gpu, on_cpu = (FrozenEncoder.load(out, device=device)(frames) for device in ("cuda", "cpu"))
    np.testing.assert_allclose(on_gpu, on_cpu, atol=RELATIVE_TOLERANCE * max(1.0, float(np.abs(on_cpu).max())), rtol=0)


@pytest.mark.parametrize("compile", ["off", "on"])
def test_bfloat16_fused_and_compiled_training_learns_and_resumes(module_frames: Path, tmp_path: Path, compile: str):
    settings = {"device": "cuda", "beta": 0.01, "learning_rate": 5e-3, "clip_norm": 10.0, "ema": 0.9, "compile": compile}
    out = tmp_path / "out"
    run(config_for(module_frames, out, epochs=6, **settings))
    run(config_for(module_frames, out, epochs=12, **settings), resume=True)
    errors = [r["loss/reconstruction"] for r in read_log(out) if "loss/reconstruction" in r]
    assert np.mean(errors[-3:]) < 0.6 * np.mean(errors[:3])


def test_bfloat16_losses_are_near_float32_on_the_gpu():
    model = CVAE((64, 64, 3), 32).to("cuda")
    batch = Batch(torch.rand(64, 3, 64, 64, device="cuda"))
    assert resolve_precision("auto", torch.device("cuda", 0)) in (torch.bfloat16, torch.float32)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        losses = ClassicObjective(model, dtype=dtype)(batch)
        assert losses.total.dtype == losses.kl.dtype == torch.float32
        results.append([losses.reconstruction.item(), losses.kl.item()])
    assert results[0] == pytest.approx(results[1], rel=0.02)


def test_the_optimiser_is_fused_and_ruined_weights_are_never_saved(module_frames: Path, tmp_path: Path):
    weight = torch.nn.Parameter(torch.zeros(3, device="cuda"))
    optimizer = make_optimizer([weight], "adamw", learning_rate=0.1, weight_decay=0.0, device=weight.device)
    assert optimizer.defaults["fused"]
    out = tmp_path / "out"
    with pytest.raises(TrainingDivergedError):  # no step looks at its loss at once here
        run(config_for(module_frames, out, device="cuda", epochs=3, learning_rate=1e30))
    weights = load_file(out / "checkpoints" / "latest.safetensors")
    assert all(torch.isfinite(w).all() for name, w in weights.items() if name.startswith("model/"))
