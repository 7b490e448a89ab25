"""The shape of the network: which layers an image of a given size gets, and why a size is refused.

`Architecture` is the one description that the encoder, the decoder, `config.json` and the command line share.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from latent_obs.util.errors import InputError

Bottleneck = Literal["dense", "spatial"]

_DENSE_MAP = 4  # the classic flattens a 4x4 map
_SPATIAL_MAP = 8  # 8x8 keeps small moving things that a 4x4 map loses
_FIRST_WIDTH, _LAST_WIDTH = 32, 256


@dataclass(frozen=True)
class Stage:
    """One strided convolution, and the transposed one that undoes it.

    Attributes:
        channels_in: Channels before the convolution.
        channels_out: Channels after it.
        size_in: (height, width) before it, in pixels.
        size_out: (height, width) after it.
        kernel: Side of the square kernel.
        stride: Step of the kernel.
        padding: Zeros added on each side.
        output_padding: (height, width) that the transposed convolution adds to come back to `size_in` exactly.
    """

    channels_in: int
    channels_out: int
    size_in: tuple[int, int]
    size_out: tuple[int, int]
    kernel: int
    stride: int
    padding: int
    output_padding: tuple[int, int]


#: Names that fields have in older encoder folders.
_RENAMED = {"standardise": "standardize"}


@dataclass(frozen=True)
class Architecture:
    """Layers of a convolutional encoder and its mirrored decoder.

    Without `widths` and `strides` the image must be square with a power of two as side: each stage halves it, down to a
    4x4 map (dense) or 8x8 (spatial), with 32, 64, 128, 256, 256 … channels. With both given, any height and width work.

    Attributes:
        img_shape: (height, width, channels) of the frames that the encoder eats.
        latent_dim: Number of values in the latent vector.
        widths: Output channels of each convolution.
        strides: Stride of each convolution; as long as `widths`.
        bottleneck: "dense": flatten, then one linear layer. "spatial": a small map of means, flattened (in the order
            channel, row, column) to `latent_dim` values.
        first_activation: Whether the first convolution is followed by a ReLU. It is not, by design.
        linear_path: Whether a linear map from the pixels to the means, and one back, runs beside the convolutions.
            Training starts it as the principal components of the frames, so that the convolutions learn what those
            leave.
        standardize: Whether the convolutions see pixels minus the training frames' mean picture, over their spread, and
            make pictures in these units. Frames of one place differ little, and the rest is then no small correction to
            learn.

    Example:
        >>> Architecture((64, 64, 3), latent_dim=32).widths
        (32, 64, 128, 256)
        >>> Architecture((64, 64, 3), latent_dim=256, bottleneck="spatial").latent_map
        (4, 8, 8)
        >>> Architecture((60, 80, 3), latent_dim=8, widths=(16, 32), strides=(2, 2)).map_size
        (15, 20)
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
        if len(self.img_shape) != 3 or any(not _is_count(n) for n in self.img_shape):
            raise InputError(
                f"img_shape must be (height, width, channels), three positive integers, got {self.img_shape!r}"
            )
        if not _is_count(self.latent_dim):
            raise InputError(f"latent_dim must be a positive integer, got {self.latent_dim!r}")
        if self.bottleneck not in ("dense", "spatial"):
            raise InputError(f"bottleneck must be 'dense' or 'spatial', got {self.bottleneck!r}")
        widths, strides = tuple(self.widths), tuple(self.strides)
        if not strides:
            strides = (2,) * len(widths) if widths else self._default_strides()
        if not widths:
            widths = tuple(min(_FIRST_WIDTH * 2**i, _LAST_WIDTH) for i in range(len(strides)))
        if len(widths) != len(strides) or not widths:
            raise InputError(f"widths {widths} and strides {strides} must have one entry per convolution, equally many")
        if any(not _is_count(n) for n in (*widths, *strides)):
            raise InputError(f"widths {widths} and strides {strides} must be positive integers")
        object.__setattr__(self, "img_shape", tuple(int(n) for n in self.img_shape))
        object.__setattr__(self, "latent_dim", int(self.latent_dim))
        object.__setattr__(self, "widths", tuple(int(n) for n in widths))
        object.__setattr__(self, "strides", tuple(int(n) for n in strides))
        _ = self.stages  # raises where a map shrinks to nothing
        if self.bottleneck == "spatial":
            _ = self.latent_map

    def _default_strides(self) -> tuple[int, ...]:
        """Halve a power of two down to the map of the bottleneck."""
        height, width, _ = self.img_shape
        target = _SPATIAL_MAP if self.bottleneck == "spatial" else _DENSE_MAP
        if height != width or height & (height - 1) or height < 2 * target:
            near = max(2 * target, 2 ** round(math.log2(max(height, width, 2))))
            raise InputError(
                f"img_shape {self.img_shape}: without layer widths and strides of its own, a {self.bottleneck} CVAE needs a "
                f"square image whose side is a power of two, {2 * target} or more. Resize the frames to "
                f"{near}x{near}, or give widths and strides, such as widths=(32, 64), strides=(2, 2)"
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
                    f"img_shape {self.img_shape} is too small for strides {self.strides}: before convolution {i + 1} only "
                    f"{height}x{width} values are left, fewer than its kernel of {kernel}. Use at most {i} strided stages"
                )
            undone = tuple((m - 1) * stride - 2 * padding + kernel for m in size)
            stages.append(
                Stage(
                    channels,
                    out,
                    (height, width),
                    (size[0], size[1]),
                    kernel,
                    stride,
                    padding,
                    (height - undone[0], width - undone[1]),
                )
            )
            (height, width), channels = size, out
        return tuple(stages)

    @property
    def map_size(self) -> tuple[int, int]:
        """(height, width) of the map that the bottleneck gets."""
        return self.stages[-1].size_out

    @property
    def latent_map(self) -> tuple[int, int, int]:
        """(channels, height, width) of the spatial latent; its product is `latent_dim`.

        Raises:
            InputError: `latent_dim` is not a multiple of the map's area.
        """
        height, width = self.map_size
        channels, rest = divmod(self.latent_dim, height * width)
        if rest or not channels:
            area = height * width
            fits = sorted({max(1, self.latent_dim // area) * area, (self.latent_dim // area + 1) * area})
            raise InputError(
                f"latent_dim {self.latent_dim}: a spatial bottleneck of {height}x{width} holds a multiple of {area} values, "
                f"such as {' or '.join(map(str, fits))}. Choose one of these, or bottleneck='dense'"
            )
        return channels, height, width

    def to_json(self) -> dict[str, Any]:
        """Plain values for `config.json`; `Architecture.from_json` reads them back."""
        return {
            "img_shape": list(self.img_shape),
            "latent_dim": self.latent_dim,
            "widths": list(self.widths),
            "strides": list(self.strides),
            "bottleneck": self.bottleneck,
            "first_activation": self.first_activation,
            "linear_path": self.linear_path,
            "standardize": self.standardize,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Architecture":
        """The architecture that `to_json` described.

        Raises:
            InputError: A field is missing, unknown or out of range.
        """
        known = set(cls.__dataclass_fields__)
        values = {_RENAMED.get(name, name): value for name, value in values.items()}
        values = {"linear_path": False, "standardize": False, **values}  # older folders do not name them
        if set(values) != known:
            raise InputError(f"architecture has fields {sorted(values)}, expected {sorted(known)}")
        height, width, channels = values["img_shape"]
        return cls(
            img_shape=(height, width, channels),
            latent_dim=values["latent_dim"],
            widths=tuple(values["widths"]),
            strides=tuple(values["strides"]),
            bottleneck=values["bottleneck"],
            first_activation=bool(values["first_activation"]),
            linear_path=bool(values["linear_path"]),
            standardize=bool(values["standardize"]),
        )


def _is_count(value: object) -> bool:
    """Whether a value is a positive whole number (numpy's included, booleans not)."""
    return not isinstance(value, bool) and hasattr(value, "__index__") and value.__index__() > 0  # pyright: ignore
