"""Every backend and precision gives what the network itself gives, in memory of its own."""

import copy
import math
import pickle
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_obs.encoder.architecture import Architecture, Bottleneck, Encoder
from latent_obs.encoder.fast_cpu import FoldedEncoder, PackedLayer, pack_layers
from latent_obs.encoder.fastest import PLAIN, Backend, Precision, Way, candidates
from latent_obs.encoder.frozen import BFLOAT16_TOLERANCE, FrozenEncoder, encoding_times
from latent_obs.encoder.openvino import MOST_COMPILED, OpenVinoNetwork, rounded_up
from latent_obs.pixels import Frames
from latent_obs.util.device import torch_threads
from latent_obs.util.errors import DeviceError, InputError, MissingExtraError
from tests.support.tiny import LATENT_DIM, random_frames, tiny_architecture, tiny_cvae
from vae_training.model.cvae import images_to_tensor
from vae_training.training.export import export_encoder

#: Allowed differences to the network in float64, of the largest latent.
TOLERANCE = {"float32": 1e-5, "bfloat16": BFLOAT16_TOLERANCE}
BACKENDS: tuple[Backend, ...] = ("torch", "openvino")
KINDS: list[tuple[Backend, Precision]] = [(b, p) for b in BACKENDS for p in ("float32", "bfloat16")]

each_kind = pytest.mark.parametrize(("backend", "precision"), KINDS)


def tiny_encoder(backend: Backend, precision: Precision = "float32") -> FrozenEncoder:
    return FrozenEncoder.random(tiny_architecture(), device="cpu", backend=backend, precision=precision)


def in_float64(encoder: FrozenEncoder, frames: Frames) -> Any:
    """The definition: pixels over 255 through `Encoder.mean`."""
    network = copy.deepcopy(encoder._network).double()
    with torch.inference_mode():
        return network.mean(torch.from_numpy(frames).permute(0, 3, 1, 2).double() / 255).numpy()


def assert_close(latents: Any, wanted: Any, precision: str) -> None:
    np.testing.assert_allclose(latents, wanted, rtol=0, atol=TOLERANCE[precision] * np.abs(wanted).max())


LAYERS = st.fixed_dictionaries(
    {
        "bottleneck": st.sampled_from(get_args(Bottleneck)),
        "standardize": st.booleans(),
        "components": st.sampled_from([0, 3]),
        "first_activation": st.booleans(),
        "strides": st.sampled_from([(2, 2), (4, 2), (2, 1), (2,)]),
        "img_shape": st.sampled_from([(16, 16, 1), (17, 24, 3), (16, 16, 5)]),
    }
)


@given(layers=LAYERS, count=st.integers(1, 5), kind=st.sampled_from(KINDS))
@settings(max_examples=25, deadline=None)
def test_every_architecture_gives_what_the_network_gives(layers: Any, count: int, kind: tuple[Backend, Precision]):
    layers = {"widths": (4, 6)[: len(layers["strides"])], **layers}
    area = math.prod(Architecture(**{**layers, "latent_dim": 9, "bottleneck": "dense"}).stages[-1].size_out)
    learned = 6 if layers["bottleneck"] == "dense" else 2 * area
    architecture = Architecture(**layers, latent_dim=layers["components"] + learned)
    shape, rng = architecture.img_shape, np.random.default_rng(5)
    # Frames that differ little, as those of one place do.
    frames = (rng.integers(60, 180, shape) + rng.integers(-8, 9, (20, *shape))).astype(np.uint8)
    network = Encoder(architecture)
    if network.standard is not None:
        network.standard.measure(torch.from_numpy(frames).permute(0, 3, 1, 2) / 255)
    weights, (backend, precision) = network.state_dict(), kind
    encoder = FrozenEncoder(architecture, weights, device="cpu", backend=backend, precision=precision)
    assert_close(encoder.encode(frames[:count]), in_float64(encoder, frames[:count]), kind[1])


@each_kind
def test_the_same_alone_and_in_any_batch(backend: Backend, precision: Precision):
    encoder = tiny_encoder(backend, precision)
    frames = random_frames(1025)
    together = encoder.encode(frames)
    assert together.shape == (1025, LATENT_DIM)
    for count in (1, 7, 9):
        assert_close(encoder.encode(frames[:count]), together[:count], precision)
        assert_close(encoder.encode(frames[-count:]), together[-count:], precision)
    assert encoder.encode(frames[:0]).shape == (0, LATENT_DIM)
    encoder.warm_up(size for size in (9, 5000))
    assert_close(encoder.encode(frames[:9]), together[:9], precision)


@each_kind
def test_latents_are_memory_of_their_own(backend: Backend, precision: Precision):
    encoder = tiny_encoder(backend, precision)
    batches = [random_frames(count, seed=count) for count in (3, 3, 2, 1030, 3)]
    latents = [encoder.encode(frames) for frames in batches]  # kept, as a rollout buffer does
    tensors = [encoder.encode(frames, as_tensor=True) for frames in batches]
    for frames, latent, tensor in zip(batches, latents, tensors, strict=True):
        assert latent.dtype == np.float32
        assert latent.flags.c_contiguous
        assert latent.flags.writeable
        assert tensor.dtype == torch.float32
        assert_close(latent, in_float64(encoder, frames), precision)
        np.testing.assert_allclose(tensor.numpy(), latent, atol=1e-6)
        latent[:] = 0
        head = torch.nn.Linear(LATENT_DIM, 1)
        head(tensor).sum().backward()  # a tensor of inference mode could not be saved for the backward pass
    np.testing.assert_array_equal(batches[-1], random_frames(3, seed=3))


@each_kind
def test_loaded_and_pickled(encoder_folder: Path, backend: Backend, precision: Precision):
    encoder = FrozenEncoder.load(encoder_folder, device="cpu", backend=backend, precision=precision)
    frames = random_frames(4)
    latents = encoder.encode(frames)
    assert_close(latents, in_float64(encoder, frames), precision)
    assert (backend != "torch") == ("openvino" in repr(encoder))
    assert (precision != "float32") == ("bfloat16" in repr(encoder))
    again: FrozenEncoder = pickle.loads(pickle.dumps(encoder))
    assert (again.backend, again.precision) == (backend, precision)
    np.testing.assert_array_equal(again.encode(frames), latents)


@pytest.mark.parametrize("components", [0, 2])
def test_a_network_that_bfloat16_ruins_is_rejected(tmp_path: Path, components: int):
    model: Any = tiny_cvae(components=components)
    model.measure(images_to_tensor(torch.from_numpy(random_frames(20))))
    last, head = model.encoder.convolutions[-2], model.encoder.mean_head
    with torch.no_grad():  # each channel has a twin, which the head subtracts: what is left is far smaller than both
        last.weight[1::2] = last.weight[::2] + 1e-4
        last.bias[1::2] = last.bias[::2]
        head.weight.copy_(torch.where(torch.arange(head.in_features) // 16 % 2 == 0, 1.0, -1.0))
    folder = export_encoder(tmp_path / "encoder", model, random_frames(4))
    FrozenEncoder.load(folder, device="cpu")
    with pytest.raises(DeviceError, match="bfloat16"):
        FrozenEncoder.load(folder, device="cpu", precision="bfloat16")


@pytest.mark.parametrize(
    "wrong", [{"backend": "tensorrt"}, {"precision": "float16"}, {"backend": "openvino", "device": "cuda"}]
)
def test_unknown_settings_are_rejected(encoder_folder: Path, wrong: dict[str, Any]):
    with pytest.raises(InputError, match=next(iter(wrong))):
        FrozenEncoder.load(encoder_folder, **{"device": "cpu", **wrong})


# The fastest way

SLOW = dict.fromkeys((Way(b, p) for b, p in KINDS), 1.0) | {PLAIN: 5.0, Way("torch", "bfloat16"): 30.0}  # pyright: ignore[reportArgumentType]


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[Way, float]:
    """Milliseconds that a measurement is to find, instead of those of this machine; nothing is remembered yet."""
    found = dict(SLOW)
    monkeypatch.setattr("latent_obs.encoder.fastest._WORTH", 0.9)
    monkeypatch.setattr("latent_obs.encoder.fastest._SLOW", 1.25)
    monkeypatch.setattr("latent_obs.encoder.fastest._measured", {})
    monkeypatch.setattr(
        "latent_obs.encoder.fastest.milliseconds", lambda ways, shape: {way: found[way] for way in ways}
    )
    return found


def test_auto_takes_the_fastest_and_remembers_it(times: dict[Way, float]):
    encoder = FrozenEncoder.random(tiny_architecture(), device="cpu")
    assert (encoder.backend, encoder.precision) == ("openvino", "float32")
    times[Way("openvino", "float32")] = 100.0
    assert FrozenEncoder.random(tiny_architecture(), device="cpu").backend == "openvino"  # measured once
    other = Architecture((16, 16, 3), 7, (4,), (2,))
    assert FrozenEncoder.random(other, device="cpu").backend == "torch"
    assert pickle.loads(pickle.dumps(encoder)).backend == "openvino"
    assert_close(encoder.encode(random_frames(3)), in_float64(encoder, random_frames(3)), "float32")


def test_a_little_faster_is_not_enough_to_leave_torch(times: dict[Way, float]):
    times[Way("openvino", "float32")] = 0.95 * times[PLAIN]
    assert FrozenEncoder.random(tiny_architecture(), device="cpu").backend == "torch"


def test_a_slow_way_that_is_asked_for_is_taken_and_warned_of_once(times: dict[Way, float]):
    settings: dict[str, Any] = {"device": "cpu", "backend": "torch", "precision": "bfloat16"}
    with pytest.warns(UserWarning, match="30"):
        encoder = FrozenEncoder.random(tiny_architecture(), **settings)
    assert (encoder.backend, encoder.precision) == ("torch", "bfloat16")
    FrozenEncoder.random(tiny_architecture(), **settings)  # a second warning would be an error
    FrozenEncoder.random(tiny_architecture(), device="cpu", precision="bfloat16")  # OpenVINO's is fast


def test_what_does_not_work_is_not_taken(monkeypatch: pytest.MonkeyPatch, times: dict[Way, float]):
    def broken(*_: object) -> None:
        raise ImportError("a library is missing")

    with monkeypatch.context() as patch:  # it compiles at its first call
        patch.setattr(OpenVinoNetwork, "_compile", broken)
        assert FrozenEncoder.random(Architecture((16, 16, 3), 5, (4,), (2,)), device="cpu").backend == "torch"
    monkeypatch.setattr("latent_obs.encoder.frozen.OpenVinoNetwork", broken)
    times[Way("openvino", "float32")] = 0.1
    assert FrozenEncoder.random(tiny_architecture(), device="cpu").backend == "torch"
    with pytest.raises(ImportError):
        tiny_encoder("openvino")
    assert [way.backend for way in candidates("auto", "auto", torch.device("cuda"))] == ["torch"]


def test_times_are_measured_in_every_way():
    times = encoding_times(tiny_architecture())
    assert {Way(b, p) for b, p in KINDS} == set(times)  # pyright: ignore[reportArgumentType]
    assert all(0 < time < 60_000 for time in times.values())


# OpenVINO


def test_openvino_is_on_the_cpu_and_named_if_it_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert FrozenEncoder.random(tiny_architecture(), backend="openvino").device == torch.device("cpu")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match="openvino"):
        tiny_encoder("openvino")


def test_openvino_computes_with_torchs_threads_whenever_they_change():
    encoder, frames = tiny_encoder("openvino"), random_frames(3)
    with torch_threads(1):
        expected = encoder.encode(frames)
    with torch_threads(2):
        np.testing.assert_allclose(encoder.encode(frames), expected, atol=1e-5)
    assert isinstance(encoder._compute, OpenVinoNetwork)
    models = [encoder._compute.compiled(3, threads)[0].get_compiled_model() for threads in (1, 2)]
    assert [model.get_property("INFERENCE_NUM_THREADS") for model in models] == [1, 2]
    assert encoder._compute.compiled.cache_info().misses == 2


def test_openvino_compiles_few_sizes_and_keeps_the_last_used():
    encoder = tiny_encoder("openvino")
    assert isinstance(encoder._compute, OpenVinoNetwork)
    compiled = encoder._compute.compiled
    encoder.warm_up([9])
    for count in (9, 10, 9, *range(11, 17), 9):
        encoder.encode(random_frames(count))
    assert compiled.cache_info().misses == 5  # 9, 10, 12, 14 and 16
    first = compiled(9, torch.get_num_threads())
    for count in range(17, 120):
        encoder.encode(random_frames(count))
        if count % 7 == 0:
            encoder.encode(random_frames(9))
    assert compiled.cache_info().currsize == MOST_COMPILED
    assert compiled(9, torch.get_num_threads()) is first


@given(st.integers(1, 5000))
def test_sizes_are_rounded_up_by_a_quarter_at_most(count: int):
    size = rounded_up(count)
    assert count <= size <= max(count, 1.25 * count)
    assert rounded_up(size) == size


# Packed layers on the CPU


def packed_layers(encoder: FrozenEncoder) -> list[bool]:
    network: Any = encoder._compute
    return [isinstance(layer, PackedLayer) for layer in [*network.convolutions, network.mean_head]]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_layers_are_packed_on_the_cpu():
    assert all(packed_layers(tiny_encoder("torch")))
    folded = FoldedEncoder(Encoder(Architecture((16, 16, 3), 6, (4, 8), (2, 2), components=3)).requires_grad_(False))
    modules = dict(folded.named_modules())
    packed = pack_layers(folded, (16, 16, 3))
    assert all(isinstance(layer, PackedLayer) for layer in (packed.coordinates, packed.shown))
    assert dict(folded.named_modules()) == modules


@pytest.mark.parametrize("fault", ["raises", "differs"])
def test_if_packing_fails_the_layers_stay_plain(monkeypatch: pytest.MonkeyPatch, fault: str):
    frames = random_frames(3)
    expected = tiny_encoder("torch").encode(frames)

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        if fault == "raises":
            raise RuntimeError("mkldnn bf16 path needs avx512")
        return self._operator(x, *self._arguments) * 1.001

    monkeypatch.setattr(PackedLayer, "forward", forward)
    encoder = tiny_encoder("torch")
    assert not any(packed_layers(encoder))
    np.testing.assert_allclose(encoder.encode(frames), expected, atol=1e-5)
