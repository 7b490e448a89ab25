"""What only a CUDA GPU can show; run with `-m gpu` on a machine that has one."""

import os
import pickle
import threading
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from latent_obs.encoder.architecture import Architecture, Bottleneck
from latent_obs.encoder.fastest import Precision
from latent_obs.encoder.folder import RELATIVE_TOLERANCE
from latent_obs.encoder.frozen import BFLOAT16_TOLERANCE, FrozenEncoder
from latent_obs.pixels import Frames, PixelContract
from latent_obs.util.device import resolve_device
from latent_obs.util.errors import DeviceError, TrainingDivergedError
from tests.support.tiny import IMG_SHAPE, random_frames
from tests.support.training_runs import config_for, log_every_step, module_frames, run
from vae_training.data.loader import Batch
from vae_training.model.cvae import CVAE
from vae_training.model.losses import VAELoss
from vae_training.training.logs import read_log
from vae_training.training.optim import make_adam, resolve_precision

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
    pytest.mark.usefixtures("log_every_step"),
]


def test_auto_is_the_gpu_and_one_too_many_is_an_error():
    assert resolve_device("auto").type == "cuda"
    with pytest.raises(DeviceError, match="device"):
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


ALLOWED = {"float32": RELATIVE_TOLERANCE, "bfloat16": BFLOAT16_TOLERANCE}


def on_both(precision: Precision = "float32", **architecture: Any) -> tuple[FrozenEncoder, FrozenEncoder]:
    """The same random encoder in float32 on the CPU, and on the GPU."""
    layers = Architecture((64, 64, 3), **{"latent_dim": 256, "widths": (16, 32, 64), **architecture})
    return (
        FrozenEncoder.random(layers, device="cpu"),
        FrozenEncoder.random(layers, device="cuda", precision=precision),
    )


def noise(count: int, seed: int = 0) -> Frames:
    return random_frames(count, (64, 64, 3), seed)


def assert_near(got: Any, wanted: Any, precision: str) -> None:
    np.testing.assert_allclose(got, wanted, atol=ALLOWED[precision] * np.abs(wanted).max(), rtol=0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("bottleneck", get_args(Bottleneck))
@pytest.mark.parametrize("extras", [{}, {"standardize": True, "linear_path": True}])
def test_latents_of_any_number_of_frames_are_those_of_the_cpu(
    precision: Precision, bottleneck: Bottleneck, extras: dict[str, Any]
):
    on_cpu, on_gpu = on_both(precision, bottleneck=bottleneck, **extras)
    for count in (8, 9, 1, 300):
        frames = noise(count, seed=count)
        assert_near(on_gpu.encode(frames), on_cpu.encode(frames), precision)


def test_latents_kept_are_not_overwritten_by_later_calls():
    on_cpu, on_gpu = on_both()
    batches = [noise(8, seed=seed) for seed in range(20)]
    arrays = [on_gpu.encode(frames) for frames in batches]
    tensors = [on_gpu.encode(frames, as_tensor=True) for frames in batches]  # nothing waits in between
    for frames, array, tensor in zip(batches, arrays, tensors, strict=True):
        assert tensor.device == on_gpu.device
        wanted = on_cpu.encode(frames)
        assert_near(array, wanted, "float32")
        assert_near(tensor.cpu().numpy(), wanted, "float32")


def test_tensors_on_the_gpu_are_fit_for_learning_and_for_inference_mode():
    on_cpu, on_gpu = on_both()
    frames, head = noise(8), torch.nn.Linear(256, 1, device="cuda")
    head(on_gpu.encode(frames, as_tensor=True)).sum().backward()
    assert head.weight.grad is not None
    assert_near(head.weight.grad[0].cpu().numpy(), on_cpu.encode(frames).sum(0), "float32")
    fresh = on_both()[1]
    with torch.inference_mode():
        assert_near(fresh.encode(frames, as_tensor=True).cpu().numpy(), on_cpu.encode(frames), "float32")
        assert_near(on_gpu.encode(frames), on_cpu.encode(frames), "float32")
    assert_near(fresh.encode(frames), on_cpu.encode(frames), "float32")


def test_a_tensor_is_right_on_the_callers_own_stream():
    on_cpu, on_gpu = on_both()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        sums = [on_gpu.encode(noise(8, seed=seed), as_tensor=True).sum(0) for seed in range(20)]
    stream.synchronize()
    for seed, total in enumerate(sums):
        np.testing.assert_allclose(total.cpu().numpy(), on_cpu.encode(noise(8, seed=seed)).sum(0), atol=0.05)


def test_threads_may_share_an_encoder_on_the_gpu():
    on_cpu, on_gpu = on_both()
    wrong: list[int] = []

    def work(number: int) -> None:
        frames = noise(5 + number, seed=number)
        wanted = on_cpu.encode(frames)
        for _ in range(100):
            if np.abs(on_gpu.encode(frames) - wanted).max() > RELATIVE_TOLERANCE * np.abs(wanted).max():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_memory_of_the_gpu_stays_flat():
    _, on_gpu = on_both()
    batches = [noise(count) for count in (8, 9, 16)]
    for frames in batches:
        on_gpu.encode(frames)
    before = torch.cuda.memory_allocated()
    for call in range(3_000):
        on_gpu.encode(batches[call % 3], as_tensor=bool(call % 2))
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + (1 << 20)


def test_an_encoder_on_the_gpu_is_pickled_and_refuses_a_fork():
    _, on_gpu = on_both("bfloat16")
    frames = noise(8)
    again: FrozenEncoder = pickle.loads(pickle.dumps(on_gpu))
    np.testing.assert_allclose(again.encode(frames), on_gpu.encode(frames), atol=1e-6)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            on_gpu.encode(frames)
        except DeviceError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as said:
        assert "CUDA was initialized in its parent" in said.read()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_another_module_on_the_gpu(precision: Precision):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 4, 4),
            torch.nn.BatchNorm2d(16),
            torch.nn.ReLU(),
            torch.nn.Dropout(),
            torch.nn.AdaptiveAvgPool2d(2),
        )
    contract = PixelContract(64, 64, 3)
    settings: dict[str, Any] = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.3)}
    on_cpu = FrozenEncoder.from_module(module, contract, device="cpu", **settings)
    on_gpu = FrozenEncoder.from_module(module, contract, device="cuda", precision=precision, **settings)
    for count in (1, 8, 300):
        assert_near(on_gpu.encode(noise(count)), on_cpu.encode(noise(count)), precision)


def test_training_runs_resumes_and_its_encoder_loads_on_either_device(module_frames: Path, tmp_path: Path):
    out = tmp_path / "out"
    run(config_for(module_frames, out, device="cuda", epochs=1))
    run(config_for(module_frames, out, device="cuda", epochs=2), resume=True)
    frames = random_frames(4, IMG_SHAPE)
    on_gpu, on_cpu = (FrozenEncoder.load(out, device=device)(frames) for device in ("cuda", "cpu"))
    np.testing.assert_allclose(on_gpu, on_cpu, atol=RELATIVE_TOLERANCE * max(1.0, float(np.abs(on_cpu).max())), rtol=0)


@pytest.mark.parametrize("compiled", [False, True])
def test_bfloat16_fused_and_compiled_training_learns_and_resumes(
    module_frames: Path, tmp_path: Path, compiled: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vae_training.training.trainer.compiles_on", lambda _: compiled)
    settings = {"device": "cuda", "beta": 0.01, "learning_rate": 5e-3}
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
        losses = VAELoss(model, dtype=dtype)(batch.images, batch.noise)
        assert losses.total.dtype == losses.kl.dtype == torch.float32
        results.append([losses.reconstruction.item(), losses.kl.item()])
    assert results[0] == pytest.approx(results[1], rel=0.02)


def test_the_optimiser_is_fused_and_ruined_weights_are_never_saved(module_frames: Path, tmp_path: Path):
    weight = torch.nn.Parameter(torch.zeros(3, device="cuda"))
    optimizer = make_adam([weight], 0.1, weight.device)
    assert optimizer.defaults["fused"]
    out = tmp_path / "out"
    with pytest.raises(TrainingDivergedError):  # no step looks at its loss at once here
        run(config_for(module_frames, out, device="cuda", epochs=3, learning_rate=1e30))
    weights = load_file(out / "checkpoints" / "latest.safetensors")
    assert all(torch.isfinite(w).all() for name, w in weights.items() if name.startswith("model/"))
