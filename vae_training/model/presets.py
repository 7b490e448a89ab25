"""Named sizes of network for 64x64 frames, and what each costs: FLOPs and parameters in closed form."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from latent_obs.encoder.architecture import Architecture, Bottleneck
from latent_obs.util.errors import InputError

Preset = Literal["small", "base", "large"]


class Layers(NamedTuple):
    """Widths and strides of a network's convolutions, as `Architecture` takes them."""

    widths: tuple[int, ...]
    strides: tuple[int, ...]


#: Down to a 4x4 map (dense), or to 8x8 (spatial). A first stride of 4 gives a spatial one lower error and the same
#: probes for two thirds of the work (benchmarks/ablation.py, "size").
PRESETS: dict[Preset, dict[Bottleneck, Layers]] = {
    "small": {"dense": Layers((16, 32, 64, 128), (2, 2, 2, 2)), "spatial": Layers((32, 64), (4, 2))},
    "base": {"dense": Layers((32, 64, 128, 256), (2, 2, 2, 2)), "spatial": Layers((64, 128), (4, 2))},
    "large": {"dense": Layers((64, 128, 256, 512), (2, 2, 2, 2)), "spatial": Layers((128, 256), (4, 2))},
}
_SIZE = (64, 64)


def layers_of(
    img_shape: tuple[int, int, int],
    bottleneck: Bottleneck,
    preset: Preset | None,
    widths: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Layers:
    """Widths and strides that a preset gives, for `Architecture`; those given explicitly come first.

    Args:
        img_shape: (height, width, channels) of the frames.
        bottleneck: "dense" or "spatial".
        preset: A name in `PRESETS`; None is "base" for 64x64, and leaves other sizes to `Architecture`, which halves
            them.
        widths: Output channels of each convolution; when given, the preset is not used.
        strides: Stride of each convolution; likewise.

    Raises:
        InputError: A preset for frames of another size than 64x64, or a name that is none.

    Example:
        >>> layers_of((64, 64, 3), "spatial", "small")
        Layers(widths=(32, 64), strides=(4, 2))
        >>> layers_of((64, 64, 3), "spatial", "small", widths=(8, 8))
        Layers(widths=(8, 8), strides=())
    """
    if preset is not None and preset not in PRESETS:
        raise InputError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    fits = img_shape[:2] == _SIZE
    if widths or strides or (preset is None and not fits):
        return Layers(tuple(widths), tuple(strides))
    if not fits:
        raise InputError(
            f"the preset {preset!r} is for frames of 64x64, and these are {img_shape[0]}x{img_shape[1]}; give --widths "
            "(and --strides) instead, or leave --preset out, and the layers follow the image size"
        )
    return PRESETS[preset or "base"][bottleneck]


def encoder_flops(architecture: Architecture) -> int:
    """Floating-point operations to encode one frame as an agent does: the mean, and nothing of the decoder.

    A multiplication and an addition count as two, as in `torch.utils.flop_counter`; biases and activations are left
    out. A convolution to h x w takes ``2 h w k² c_in c_out``, a linear layer ``2 n_in n_out``.

    Example:
        >>> encoder_flops(Architecture((64, 64, 3), latent_dim=32))
        53739520
    """
    flops = 0
    for stage in architecture.stages:
        height, width = stage.size_out
        flops += 2 * height * width * stage.kernel**2 * stage.channels_in * stage.channels_out
    return flops + 2 * _mean_head_weights(architecture) * (
        architecture.map_size[0] * architecture.map_size[1] if architecture.bottleneck == "spatial" else 1
    )


def encoder_parameters(architecture: Architecture, *, mean_only: bool = False) -> int:
    """Weights and biases of the encoder.

    Args:
        architecture: Its layers.
        mean_only: Leave out the head of the log-variance, which an agent never computes.

    Example:
        >>> encoder_parameters(Architecture((64, 64, 3), latent_dim=32))
        952352
    """
    count = sum(s.kernel**2 * s.channels_in * s.channels_out + s.channels_out for s in architecture.stages)
    biases = architecture.latent_dim if architecture.bottleneck == "dense" else architecture.latent_map[0]
    return count + (1 if mean_only else 2) * (_mean_head_weights(architecture) + biases)


def _mean_head_weights(architecture: Architecture) -> int:
    channels = architecture.stages[-1].channels_out
    if architecture.bottleneck == "spatial":
        return channels * architecture.latent_map[0]  # a convolution of kernel 1
    height, width = architecture.map_size
    return channels * height * width * architecture.latent_dim
