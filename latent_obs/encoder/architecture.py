"""The encoder and the decoder of the CVAE, and the description of their layers for an image of a given size.

`Architecture` is the one description that both networks, `config.json` and the command line share.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latent_obs.encoder import Bottleneck as Bottleneck
from latent_obs.encoder.components import Standard
from latent_obs.pixels import Frames
from latent_obs.util.errors import InputError, check_count, check_types

_MAP = {"dense": 4, "spatial": 8}  # side of the last map; 8x8 keeps small moving things that a 4x4 map loses
_USUAL_LATENT = 256
_CERTAIN = -20.0  # log-variance of principal components, which are measured and not inferred
_UNCERTAIN = 20.0  # largest log-variance: frames unlike those of the training could have any, and its exp be infinite
#: Largest values; what is beyond is a slip or a damaged file, and would take all memory.
_AT_MOST = {"img_shape": 2**16, "latent_dim": 2**20, "widths": 2**16, "strides": 2**10}


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

    Without `widths` and `strides` each stage halves the image, rounded down, until the map is about 4x4 (dense) or 8x8
    (spatial), and has 32, 64, 128, 256, 256 … channels. `for_frames` chooses a latent size that fits as well.

    Attributes:
        img_shape: (height, width, channels) of the encoder's frames.
        latent_dim: Number of values in the latent vector.
        widths: Output channels of each convolution.
        strides: Stride of each convolution; as long as `widths`.
        bottleneck: "dense": flatten, then one linear layer. "spatial": a small map of means, flattened (in the order
            channel, row, column) to `latent_dim` values.
        first_activation: Whether a ReLU follows the first convolution, as in some encoders of earlier versions.
        components: How many values of the latent, the first ones, are the frame's coordinates along the largest
            principal components of the training frames. The convolutions see and decode what these leave; see
            `Standard`.
        standardize: Whether the convolutions see pixels minus the training frames' mean picture, divided by their
            spread, and decode in these units. With components they always do.

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
    components: int = 0
    standardize: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        for name, at_most in _AT_MOST.items():
            value = getattr(self, name)
            for count in value if isinstance(value, tuple) else (value,):
                if check_count(name, count) > at_most:
                    raise InputError(f"{name} must be at most {at_most:,}, got {count:,}")
        if not self.strides:
            object.__setattr__(self, "strides", (2,) * (len(self.widths) or _halvings(self.img_shape, self.bottleneck)))
        if not self.widths:
            object.__setattr__(self, "widths", tuple(min(32 * 2**i, 256) for i in range(len(self.strides))))
        if len(self.widths) != len(self.strides):
            raise InputError(f"widths {self.widths} and strides {self.strides} must be equally many")
        if not 0 <= self.components < self.latent_dim:
            raise InputError(
                f"components must be 0 or more and less than latent_dim {self.latent_dim}, got {self.components}"
            )
        # Raise if a map shrinks to nothing, or the latent does not fit it.
        _ = self.latent_map if self.bottleneck == "spatial" else self.stages

    @classmethod
    def for_frames(
        cls,
        img_shape: tuple[int, int, int],
        latent_dim: int | None = None,
        *,
        widths: tuple[int, ...] = (),
        strides: tuple[int, ...] = (),
        bottleneck: Bottleneck = "spatial",
        components: int | None = None,
        **more: Any,
    ) -> "Architecture":
        """The layers that training takes for frames of any size; what is not given is chosen.

        The latent has 256 values, or with a spatial bottleneck as near to that as the size of the map allows: twice as
        many as the map has cells at least, so that there are components. Half of a dense latent are components; of a
        spatial one, as many as the map has cells, if that leaves any value.

        Example:
            >>> architecture = Architecture.for_frames((84, 84, 3))
            >>> architecture.strides, architecture.latent_dim, architecture.components, architecture.latent_map
            ((4, 2), 300, 100, (2, 10, 10))
        """
        if not (widths or strides):  # lower error for less work than strides of 2 alone, measured at 64x64
            usual = {("spatial", 3): ((64, 128), (4, 2)), ("dense", 4): ((32, 64, 128), (4, 2, 2))}
            widths, strides = usual.get((bottleneck, _halvings(img_shape, bottleneck)), ((), ()))
        strides = strides or (2,) * (len(widths) or _halvings(img_shape, bottleneck))
        layers: dict[str, Any] = {"widths": widths, "strides": strides, **more}
        area = math.prod(cls(img_shape, _USUAL_LATENT, **layers).stages[-1].size_out) if bottleneck == "spatial" else 1
        if latent_dim is None:
            latent_dim = area * max(1 if components == 0 else 2, round(_USUAL_LATENT / area))
        if components is None:
            components = latent_dim // 2 if bottleneck == "dense" else area if latent_dim > area else 0
        return cls(img_shape, latent_dim, bottleneck=bottleneck, components=components, **layers)

    @property
    def learned(self) -> int:
        """How many values of the latent the convolutions give: those after the components."""
        return self.latent_dim - self.components

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The convolutions, from the image to the map."""
        stages: list[Stage] = []
        height, width, channels = self.img_shape
        for i, (out, stride) in enumerate(zip(self.widths, self.strides, strict=True)):
            # Stride 2 has kernel 4: an exact halving, and every input pixel is seen equally often (no checkerboard).
            kernel, padding = (3, 1) if stride == 1 else (2 * stride, stride // 2)
            if min(height, width) + 2 * padding < kernel:
                raise InputError(
                    f"img_shape {self.img_shape} is too small for strides {self.strides}: before convolution {i + 1} "
                    f"only {height}x{width} values are left, fewer than its kernel of {kernel}. Use "
                    f"{f'the first {i} strides' if i else 'larger frames, or smaller strides'}"
                )
            rows, columns = ((n + 2 * padding - kernel) // stride + 1 for n in (height, width))
            left_out = ((height + 2 * padding - kernel) % stride, (width + 2 * padding - kernel) % stride)
            stages.append(Stage(channels, out, (height, width), (rows, columns), kernel, stride, padding, left_out))
            height, width, channels = rows, columns, out
        return tuple(stages)

    @property
    def latent_map(self) -> tuple[int, int, int]:
        """(channels, height, width) of the learned values of a spatial latent; an `InputError` if they do not fit."""
        height, width = self.stages[-1].size_out
        area = height * width
        channels, rest = divmod(self.learned, area)
        if rest or not channels:
            near = self.components + area * max(1, round(self.learned / area))
            besides = f" besides {self.components} components" if self.components else ""
            raise InputError(
                f"latent_dim {self.latent_dim}: a spatial bottleneck of {height}x{width} holds a multiple of {area} "
                f"values{besides}, such as {near} in all. Choose such a number, or bottleneck='dense'"
            )
        return channels, height, width

    def to_json(self) -> dict[str, Any]:
        """Plain values for `config.json`; `from_json` reads them back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Architecture":
        """The architecture that `to_json` described; an `InputError` if a field is missing, unknown or invalid."""
        # Older folders do not name them, or spell one in the British way.
        values = {"components": 0, "standardize": values.get("standardise", False), **values}
        values.pop("standardise", None)
        if values.pop("linear_path", False):
            raise InputError("it has a linear path, which this version cannot read: train the encoder again")
        if set(values) != set(cls.__dataclass_fields__):
            raise InputError(f"architecture has fields {sorted(values)}, expected {sorted(cls.__dataclass_fields__)}")
        return cls(**values)


def _halvings(img_shape: tuple[int, ...], bottleneck: Bottleneck) -> int:
    """How many stages of stride 2 lead near to the map of a bottleneck, rather to a larger one; one at least."""
    height, width = img_shape[:2]
    if min(height, width) < 2:
        raise InputError(f"img_shape {img_shape}: frames of {height}x{width} are too small, expected 2x2 or more")
    wanted = math.floor(math.log2(math.sqrt(height * width) / _MAP[bottleneck]) + 0.4)
    return max(1, min(wanted, int(math.log2(min(height, width)))))


class Encoder(nn.Module):
    """q(z|x): frames to the mean and log-variance of a diagonal Gaussian.

    Input: float32 (N, C, H, W) in [0, 1]. Outputs: two float32 (N, latent_dim), the principal components first.

    Example:
        >>> encoder = Encoder(Architecture((32, 32, 3), latent_dim=8))
        >>> mean, logvar = encoder(torch.zeros(5, 3, 32, 32))
        >>> tuple(mean.shape), tuple(logvar.shape)
        ((5, 8), (5, 8))
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.standard = _standard(architecture)
        self.convolutions = nn.Sequential()
        for i, stage in enumerate(architecture.stages):
            sizes = stage.kernel, stage.stride, stage.padding
            self.convolutions.append(nn.Conv2d(stage.channels_in, stage.channels_out, *sizes))
            if i > 0 or architecture.first_activation:
                self.convolutions.append(nn.ReLU(inplace=True))
        # Two heads rather than one of twice the width: the agent needs the mean alone, so the other is never computed.
        self.mean_head, self.logvar_head = self._head(), self._head()

    def _head(self) -> nn.Module:
        last = self.architecture.stages[-1]
        if self.architecture.bottleneck == "dense":
            return nn.Linear(last.channels_out * math.prod(last.size_out), self.architecture.learned)
        return nn.Conv2d(last.channels_out, self.architecture.latent_map[0], kernel_size=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, each (N, latent_dim)."""
        coordinates, h = self._features(x)
        logvar = self.logvar_head(h).flatten(1).clamp(max=_UNCERTAIN)
        if coordinates is not None:
            logvar = torch.cat([torch.full_like(coordinates, _CERTAIN), logvar], 1)
        return self._mean(coordinates, h), logvar

    def mean(self, x: Tensor) -> Tensor:
        """The mean alone, (N, latent_dim): what an agent sees."""
        return self._mean(*self._features(x))

    @torch.inference_mode()
    def mean_of_frames(self, frames: Frames) -> NDArray[np.float32]:
        """The mean, float32 (N, latent_dim), of uint8 (N, H, W, C): the definition that faster forms compare with."""
        x = torch.from_numpy(frames).to(next(self.parameters()).device)
        return self.mean(x.permute(0, 3, 1, 2).float().div_(255)).cpu().numpy()

    def _features(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        coordinates, x = (None, x) if self.standard is None else self.standard(x)
        h = self.convolutions(x)  # (N, C', H', W')
        return coordinates, h.flatten(1) if self.architecture.bottleneck == "dense" else h

    def _mean(self, coordinates: Tensor | None, h: Tensor) -> Tensor:
        mean = self.mean_head(h).flatten(1)
        return mean if coordinates is None else torch.cat([coordinates, mean], 1)


class Decoder(nn.Module):
    """p(x|z): a latent vector to the image it stands for; the mirror of `Encoder`.

    Input: float32 (N, latent_dim). Output: float32 (N, C, H, W), nominally in [0, 1] (the last layer is linear, so that
    black and white pixels have a gradient; clamp before showing it).
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.standard = _standard(architecture)
        last = architecture.stages[-1]
        self.map_shape = (last.channels_out, *last.size_out)
        if architecture.bottleneck == "dense":
            self.stem: nn.Module = nn.Linear(architecture.latent_dim, math.prod(self.map_shape))
        else:
            self.stem = nn.Conv2d(architecture.latent_map[0], last.channels_out, kernel_size=3, padding=1)
        self.convolutions = nn.Sequential()
        for stage in reversed(architecture.stages):
            sizes = stage.kernel, stage.stride, stage.padding, stage.output_padding
            self.convolutions.append(nn.ReLU(inplace=True))
            self.convolutions.append(nn.ConvTranspose2d(stage.channels_out, stage.channels_in, *sizes))

    def forward(self, z: Tensor) -> Tensor:
        """Image of each latent, (N, C, H, W)."""
        components = self.architecture.components
        coordinates, learned = (z[:, :components], z[:, components:]) if components else (None, z)
        if self.architecture.bottleneck == "spatial":
            h = self.stem(learned.unflatten(1, self.architecture.latent_map))
        else:
            if self.standard is not None and coordinates is not None:
                z = torch.cat([self.standard.alike(coordinates), learned], 1)
            h = self.stem(z).unflatten(1, self.map_shape)
        x = self.convolutions(h)
        return x if self.standard is None else self.standard.undo(coordinates, x)


def _standard(architecture: Architecture) -> Standard | None:
    needed = architecture.standardize or architecture.components
    return Standard(architecture.img_shape, architecture.components) if needed else None
