"""The layers of the network for an image of a given size.

`Architecture` is the one description that the encoder, the decoder, `config.json` and the command line share.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from latent_obs.util.errors import InputError, check_choice, check_count

Bottleneck = Literal["dense", "spatial"]

_MAP = {"dense": 4, "spatial": 8}  # side of the last map; 8x8 keeps small moving things that a 4x4 map loses
_FIRST_WIDTH, _LAST_WIDTH = 32, 256
#: Names that fields have in older encoder folders.
_RENAMED = {"standardise": "standardize"}


@dataclass(frozen=True)
class Stage:
    """One strided convolution, and the transposed one that undoes it; sizes are (height, width) in pixels."""

    channels_in: int
    channels_out: int
    size_in: tuple[int, int]
    size_out: tuple[int, int]
    kernel: int
    stride: int
    padding: int  # zeros added on each side
    output_padding: tuple[int, int]  # which the transposed convolution adds to restore `size_in` exactly


@dataclass(frozen=True)
class Architecture:
    """Layers of a convolutional encoder and its mirrored decoder.

    Without `widths` and `strides` the image must be square, and its side a power of two: each stage halves it, down to
    a 4x4 map (dense) or 8x8 (spatial), with 32, 64, 128, 256, 256 … channels. With both given, any size works.

    Attributes:
        img_shape: (height, width, channels) of the encoder's frames.
        latent_dim: Number of values in the latent vector.
        widths: Output channels of each convolution.
        strides: Stride of each convolution; as long as `widths`.
        bottleneck: "dense": flatten, then one linear layer. "spatial": a small map of means, flattened (in the order
            channel, row, column) to `latent_dim` values.
        first_activation: Whether a ReLU follows the first convolution; by default none does.
        linear_path: Whether a linear map from the pixels to the means, and one back, runs beside the convolutions.
            Training starts it at the principal components of the frames, so that the convolutions learn the rest.
        standardize: Whether the convolutions see pixels minus the training frames' mean picture, divided by their
            spread, and decode in these units. It helps if frames differ little from each other.

    Example:
        >>> Architecture((64, 64, 3), latent_dim=32).widths
        (32, 64, 128, 256)
        >>> Architecture((64, 64, 3), latent_dim=256, bottleneck="spatial").latent_map
        (4, 8, 8)
    """

    img_shape: tuple[int, int, int]
    latent_dim: int
    widths: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    bottleneck: Bottleneck = "dense"
    first_activation: bool = False
    linear_path: bool = False
    standardize: bool = False

    def __post_init__(self) -> None:
        if len(self.img_shape) != 3:
            raise InputError(f"img_shape must be (height, width, channels), got {self.img_shape!r}")
        img_shape = tuple(check_count("each entry of img_shape", n) for n in self.img_shape)
        latent_dim = check_count("latent_dim", self.latent_dim)
        check_choice("bottleneck", self.bottleneck, get_args(Bottleneck))
        widths, strides = tuple(self.widths), tuple(self.strides)
        strides = strides or ((2,) * len(widths) if widths else self._default_strides())
        widths = widths or tuple(min(_FIRST_WIDTH * 2**i, _LAST_WIDTH) for i in range(len(strides)))
        if len(widths) != len(strides):
            raise InputError(f"widths {widths} and strides {strides} must be equally many, one for each convolution")
        values = {
            "img_shape": img_shape,
            "latent_dim": latent_dim,
            "widths": tuple(check_count("each of widths", n) for n in widths),
            "strides": tuple(check_count("each of strides", n) for n in strides),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        # Raise if a map shrinks to nothing, or the latent does not fit it.
        _ = self.latent_map if self.bottleneck == "spatial" else self.stages

    def _default_strides(self) -> tuple[int, ...]:
        """Halve a power of two down to the map of the bottleneck."""
        height, width, _ = self.img_shape
        target = _MAP[self.bottleneck]
        if height != width or height & (height - 1) or height < 2 * target:
            near = max(2 * target, 2 ** round(math.log2(max(height, width, 2))))
            raise InputError(
                f"img_shape {self.img_shape}: without widths and strides, a {self.bottleneck} CVAE needs a square "
                f"image whose side is a power of two, {2 * target} or more. Resize the frames to {near}x{near}"
            )
        return (2,) * int(math.log2(height // target))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The convolutions, from the image to the map."""
        stages: list[Stage] = []
        height, width, channels = self.img_shape
        for i, (out, stride) in enumerate(zip(self.widths, self.strides, strict=True)):
            # Stride 2 has kernel 4: an exact halving, and every input pixel is seen equally often (no checkerboard).
            kernel, padding = (3, 1) if stride == 1 else (2 * stride, stride // 2)
            size = tuple((n + 2 * padding - kernel) // stride + 1 for n in (height, width))
            if min(size) < 1 or min(height, width) + 2 * padding < kernel:
                raise InputError(
                    f"img_shape {self.img_shape} is too small for strides {self.strides}: before convolution {i + 1} "
                    f"only {height}x{width} values are left, fewer than its kernel of {kernel}. Use at most {i} stages"
                )
            restored = [(m - 1) * stride - 2 * padding + kernel for m in size]
            output_padding = (height - restored[0], width - restored[1])
            size_in, size_out = (height, width), (size[0], size[1])
            stages.append(Stage(channels, out, size_in, size_out, kernel, stride, padding, output_padding))
            (height, width), channels = size_out, out
        return tuple(stages)

    @property
    def map_size(self) -> tuple[int, int]:
        """(height, width) of the map that the bottleneck gets."""
        return self.stages[-1].size_out

    @property
    def latent_map(self) -> tuple[int, int, int]:
        """(channels, height, width) of the spatial latent; an `InputError` if `latent_dim` does not fit."""
        height, width = self.map_size
        area = height * width
        channels, rest = divmod(self.latent_dim, area)
        if rest or not channels:
            fits = sorted({max(1, channels) * area, (channels + 1) * area})
            raise InputError(
                f"latent_dim {self.latent_dim}: a spatial bottleneck of {height}x{width} holds a multiple of {area} "
                f"values, such as {' or '.join(map(str, fits))}. Choose one of these, or bottleneck='dense'"
            )
        return channels, height, width

    def to_json(self) -> dict[str, Any]:
        """Plain values for `config.json`; `from_json` reads them back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Architecture":
        """The architecture that `to_json` described; an `InputError` if a field is missing, unknown or out of range."""
        values = {_RENAMED.get(name, name): value for name, value in values.items()}
        values = {"linear_path": False, "standardize": False, **values}  # older folders do not name them
        known = set(cls.__dataclass_fields__)
        if set(values) != known:
            raise InputError(f"architecture has fields {sorted(values)}, expected {sorted(known)}")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)
