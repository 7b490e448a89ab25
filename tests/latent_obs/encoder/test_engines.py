"""The engines behind `FrozenEncoder.encode` all give what the network itself gives, in memory of their own."""

import copy
import pickle
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import encode_flops

from latent_obs.encoder.architecture import Architecture, Bottleneck
from latent_obs.encoder.fast_cpu import FoldedEncoder, PackedLayer, pack_layers
from latent_obs.encoder.frozen import BFLOAT16_TOLERANCE, Backend, FrozenEncoder, Precision
from latent_obs.encoder.networks import Encoder
from latent_obs.encoder.openvino import MOST_SIZES, OpenVinoEngine, PreparedSizes, rounded_up
from latent_obs.pixels import Frames
from latent_obs.util.device import torch_threads
from latent_obs.util.errors import DeviceError, InputError, MissingExtraError
from tests.support.tiny import LATENT_DIM, random_frames, tiny_architecture, tiny_cvae
from vae_training.training.export import export_encoder

#: Allowed differences to the network in float64, of the largest latent.
TOLERANCE = {"float32": 1e-5, "bfloat16": BFLOAT16_TOLERANCE}
ENGINES: list[tuple[Backend, Precision]] = [(b, p) for b in get_args(Backend) for p in get_args(Precision)]

each_engine = pytest.mark.parametrize(("backend", "precision"), ENGINES)


def in_float64(encoder: FrozenEncoder, frames: Frames) -> Any:
    """The definition: pixels over 255 through `Encoder.mean`."""
    with torch.inference_mode():
        return (
            copy.deepcopy(encoder._network)
            .double()
            .mean(torch.from_numpy(frames).permute(0, 3, 1, 2).double() / 255)
            .numpy()
        )


def assert_close(latents: Any, wanted: Any, precision: str) -> None:
    np.testing.assert_allclose(latents, wanted, rtol=0, atol=TOLERANCE[precision] * np.abs(wanted).max())


def dim_frames(count: int, shape: tuple[int, ...]) -> Frames:
    """Frames that differ little, as those of one place do."""
    rng = np.random.default_rng(5)
    return (rng.integers(60, 180, shape) + rng.integers(-8, 9, (count, *shape))).astype(np.uint8)


def measured_encoder(
    architecture: Architecture, frames: Frames, backend: Backend, precision: Precision
) -> FrozenEncoder:
    """Random weights, with the mean picture and spread of the frames where it standardizes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = Encoder(architecture)
    if network.standard is not None:
        network.standard.measure(torch.from_numpy(frames).permute(0, 3, 1, 2) / 255)
    return FrozenEncoder(architecture, network.state_dict(), device="cpu", backend=backend, precision=precision)


@given(
    bottleneck=st.sampled_from(get_args(Bottleneck)),
    standardize=st.booleans(),
    linear_path=st.booleans(),
    first_activation=st.booleans(),
    strides=st.sampled_from([(2, 2), (4, 2), (2, 1), (2,)]),
    shape=st.sampled_from([(16, 16), (17, 24)]),
    channels=st.sampled_from([1, 3, 5]),
    count=st.integers(1, 5),
    engine=st.sampled_from(ENGINES),
)
@settings(max_examples=40, deadline=None)
def test_every_architecture_gives_what_the_network_gives(
    bottleneck: Bottleneck,
    standardize: bool,
    linear_path: bool,
    first_activation: bool,
    strides: tuple[int, ...],
    shape: tuple[int, int],
    channels: int,
    count: int,
    engine: tuple[Backend, Precision],
):
    widths = (4, 6)[: len(strides)]
    height, width = Architecture((*shape, channels), 6, widths, strides).map_size
    latent_dim = 6 if bottleneck == "dense" else 2 * height * width
    architecture = Architecture(
        (*shape, channels), latent_dim, widths, strides, bottleneck, first_activation, linear_path, standardize
    )
    frames = dim_frames(20, (*shape, channels))
    encoder = measured_encoder(architecture, frames, *engine)
    assert_close(encoder.encode(frames[:count]), in_float64(encoder, frames[:count]), engine[1])


@each_engine
def test_edges_are_padded_as_in_the_network(backend: Backend, precision: Precision):
    # Padding is a black frame's pixels without `standardize`, and the mean picture's with it: never the other.
    architecture = Architecture((16, 16, 3), 64, (4, 8), (2, 1), "spatial", standardize=True)
    frames = np.full((2, 16, 16, 3), 200, np.uint8)
    frames[1] = 100
    encoder = measured_encoder(architecture, frames, backend, precision)
    assert_close(encoder.encode(frames), in_float64(encoder, frames), precision)


@each_engine
def test_the_same_alone_and_in_any_batch(backend: Backend, precision: Precision):
    encoder = FrozenEncoder.random(tiny_architecture(), device="cpu", backend=backend, precision=precision)
    frames = random_frames(1025)
    together = encoder.encode(frames)
    assert together.shape == (1025, LATENT_DIM)
    for count in (1, 2, 7, 9, 33):
        assert_close(encoder.encode(frames[:count]), together[:count], precision)
        assert_close(encoder.encode(frames[-count:]), together[-count:], precision)
    assert encoder.encode(frames[:0]).shape == (0, LATENT_DIM)


@each_engine
def test_latents_are_memory_of_their_own(backend: Backend, precision: Precision):
    encoder = FrozenEncoder.random(tiny_architecture(), device="cpu", backend=backend, precision=precision)
    batches = [random_frames(count, seed=count) for count in (3, 3, 2, 3)]
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
    np.testing.assert_array_equal(batches[-1], random_frames(3, seed=3))


@pytest.mark.parametrize("backend", get_args(Backend))
def test_tensors_are_fit_for_learning(backend: Backend):
    encoder = FrozenEncoder.random(tiny_architecture(), device="cpu", backend=backend)
    frames = random_frames(1030)
    tensor = encoder.encode(frames, as_tensor=True)
    assert tensor.device == encoder.device
    np.testing.assert_allclose(tensor.numpy(), encoder.encode(frames), atol=1e-6)
    head = torch.nn.Linear(LATENT_DIM, 1)
    head(
        encoder.encode(frames[:5], as_tensor=True)
    ).sum().backward()  # one of inference mode could not be kept for this
    assert head.weight.grad is not None
    with torch.inference_mode():
        assert encoder.encode(frames[:0], as_tensor=True).shape == (0, LATENT_DIM)
        np.testing.assert_allclose(encoder.encode(frames[:3], as_tensor=True).numpy(), tensor[:3].numpy(), atol=1e-5)


@each_engine
def test_nothing_but_the_mean_is_computed(backend: Backend, precision: Precision):
    weights = dict(tiny_cvae().encoder.state_dict())
    for name in weights:
        if name.startswith("logvar_head"):
            weights[name] = torch.full_like(weights[name], float("nan"))
    encoder = FrozenEncoder(tiny_architecture(), weights, device="cpu", backend=backend, precision=precision)
    assert np.isfinite(encoder.encode(random_frames(3))).all()


@pytest.mark.parametrize("bottleneck", get_args(Bottleneck))
def test_operations_are_those_of_the_mean(bottleneck: Bottleneck):
    architecture = Architecture((32, 32, 3), 64, (8, 16), (2, 2), bottleneck)
    folded = FoldedEncoder(Encoder(architecture).requires_grad_(False))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        folded(torch.zeros(3, 32, 32, 3, dtype=torch.uint8))
    assert counter.get_total_flops() == 3 * encode_flops(architecture)


@each_engine
def test_pickled_and_copied(backend: Backend, precision: Precision):
    encoder = FrozenEncoder.random(tiny_architecture(), seed=4, device="cpu", backend=backend, precision=precision)
    frames = random_frames(3)
    again: FrozenEncoder = pickle.loads(pickle.dumps(encoder))
    assert (again.backend, again.precision) == (backend, precision)
    np.testing.assert_array_equal(again.encode(frames), encoder.encode(frames))
    assert copy.deepcopy(encoder) is encoder


@each_engine
def test_a_folder_is_checked_and_loaded(encoder_folder: Path, backend: Backend, precision: Precision):
    encoder = FrozenEncoder.load(encoder_folder, device="cpu", backend=backend, precision=precision)
    frames = random_frames(4)
    assert_close(encoder.encode(frames), in_float64(encoder, frames), precision)
    assert (backend != "torch") == ("openvino" in repr(encoder))
    assert (precision != "float32") == ("bfloat16" in repr(encoder))


def test_a_network_that_bfloat16_ruins_is_refused(tmp_path: Path):
    model: Any = tiny_cvae()
    last, head = model.encoder.convolutions[-2], model.encoder.mean_head
    with torch.no_grad():  # each channel has a twin, which the head subtracts: what is left is far smaller than both
        last.weight[1::2] = last.weight[::2] + 1e-4
        last.bias[1::2] = last.bias[::2]
        head.weight.copy_(torch.where(torch.arange(head.in_features) // 16 % 2 == 0, 1.0, -1.0))
    folder = export_encoder(tmp_path / "encoder", model, random_frames(4))
    FrozenEncoder.load(folder, device="cpu")
    with pytest.raises(DeviceError, match=r"bfloat16 differ.*use precision='float32'"):
        FrozenEncoder.load(folder, device="cpu", precision="bfloat16")


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        ({"backend": "tensorrt"}, InputError, "torch, openvino.*'tensorrt'"),
        ({"precision": "float16"}, InputError, "float32, bfloat16.*'float16'"),
        ({"backend": "openvino", "device": "cuda"}, InputError, "computes on the CPU.*'cuda'"),
    ],
)
def test_what_is_not_there_is_an_error(
    encoder_folder: Path, settings: dict[str, Any], error: type[Exception], named: str
):
    with pytest.raises(error, match=named):
        FrozenEncoder.random(tiny_architecture(), **{"device": "cpu", **settings})
    with pytest.raises(error, match=named):
        FrozenEncoder.load(encoder_folder, **{"device": "cpu", **settings})


def test_openvino_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"latent-obs\[openvino\]"):
        FrozenEncoder.random(tiny_architecture(), device="cpu", backend="openvino")


def test_openvino_is_on_the_cpu_where_the_device_is_free(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert FrozenEncoder.random(tiny_architecture(), backend="openvino").device == torch.device("cpu")


def openvino_engine(encoder: FrozenEncoder) -> OpenVinoEngine:
    assert isinstance(encoder._engine, OpenVinoEngine)
    return encoder._engine


def test_openvino_computes_with_torchs_threads_whenever_they_change():
    encoder = FrozenEncoder.random(tiny_architecture(), device="cpu", backend="openvino")
    frames, sizes = random_frames(3), openvino_engine(encoder)._sizes
    with torch_threads(1):
        expected = encoder.encode(frames)
    with torch_threads(2):
        np.testing.assert_allclose(encoder.encode(frames), expected, atol=1e-5)
    used = [c.request.get_compiled_model().get_property("INFERENCE_NUM_THREADS") for c in sizes._prepared.values()]
    assert used == [1, 2]


def test_openvino_compiles_few_sizes():
    encoder = FrozenEncoder.random(tiny_architecture(), device="cpu", backend="openvino")
    sizes = openvino_engine(encoder)._sizes
    encoder.warm_up([9])
    wanted = sizes.get(9, torch.get_num_threads())
    for count in (9, 10, 9, *range(11, 17), 9):
        encoder.encode(random_frames(count))
    assert {size for size, _ in sizes._prepared} == {9, 10, 12, 14, 16}
    assert sizes.get(9, torch.get_num_threads()) is wanted
    for count in range(17, 200):
        encoder.encode(random_frames(count))
    assert len(sizes) == MOST_SIZES


@given(st.integers(1, 5000))
def test_sizes_are_rounded_up_by_a_quarter_at_most(count: int):
    size = rounded_up(count)
    assert count <= size <= max(count, 1.25 * count)
    assert rounded_up(size) == size


def test_the_size_used_longest_ago_is_dropped():
    made: list[tuple[int, int]] = []
    sizes = PreparedSizes(lambda size, variant: made.append((size, variant)), most=2)
    for count, variant in ((1, 0), (2, 0), (1, 0), (3, 0), (1, 0), (2, 0), (2, 1)):
        sizes.get(count, variant)
    assert made == [(1, 0), (2, 0), (3, 0), (2, 0), (2, 1)]


@pytest.mark.parametrize("sizes", [[0], [-1], [2.5], [True], ["8"]])
def test_warming_up_needs_counts(encoder: FrozenEncoder, sizes: Any):
    with pytest.raises(InputError, match="batch_sizes"):
        encoder.warm_up(sizes)


@each_engine
def test_warmed_up_or_not_the_latents_are_the_same(backend: Backend, precision: Precision):
    encoder = FrozenEncoder.random(tiny_architecture(), device="cpu", backend=backend, precision=precision)
    frames = random_frames(9)
    expected = encoder.encode(frames)
    encoder.warm_up(size for size in (9, 5000))
    assert_close(encoder.encode(frames), expected, precision)


def packed_layers(encoder: FrozenEncoder) -> list[bool]:
    network: Any = encoder._compute
    layers = [*network.convolutions, network.mean_head]
    return [isinstance(layer, PackedLayer) for layer in layers]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_layers_are_packed_on_the_cpu():
    assert all(packed_layers(FrozenEncoder.random(tiny_architecture(), device="cpu")))


@pytest.mark.parametrize("fault", ["raises", "differs", "is missing"])
def test_where_packing_fails_the_layers_stay_plain(monkeypatch: pytest.MonkeyPatch, fault: str):
    frames = random_frames(3)
    expected = FrozenEncoder.random(tiny_architecture(), device="cpu").encode(frames)

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        if fault == "raises":
            raise RuntimeError("mkldnn bf16 path needs avx512")
        return self._operator(x, *self._arguments) * 1.001

    if fault == "is missing":
        monkeypatch.setattr(torch.ops, "mkldnn", object())
    else:
        monkeypatch.setattr(PackedLayer, "forward", forward)
    encoder = FrozenEncoder.random(tiny_architecture(), device="cpu")
    assert not any(packed_layers(encoder))
    np.testing.assert_allclose(encoder.encode(frames), expected, atol=1e-5)


def test_packing_leaves_the_network_as_it_was():
    architecture = Architecture((16, 16, 3), 6, (4, 8), (2, 2), linear_path=True)
    folded = FoldedEncoder(Encoder(architecture).requires_grad_(False))
    modules = dict(folded.named_modules())
    result = pack_layers(folded, (16, 16, 3))
    assert dict(folded.named_modules()) == modules
    assert isinstance(result.linear, PackedLayer)
