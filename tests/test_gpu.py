"""What only a CUDA GPU can show; run with `-m gpu` on a machine that has one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import IMG_SHAPE, random_frames
from training_runs import config_for, log_every_step, module_frames, run

from latent_obs.architecture import Architecture
from latent_obs.device import resolve_device
from latent_obs.errors import DeviceError
from latent_obs.frozen import FrozenEncoder
from latent_obs.selfcheck import RELATIVE_TOLERANCE

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
