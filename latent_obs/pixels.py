"""The pixel contract: one definition of the frames that the encoder takes, used in training, recording and wrapping.

It fixes channel order, layout, dtype, crop and resize rule. What it cannot convert is rejected, with what was found.
Needs numpy and Pillow only, so that a worker process can import it without torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image

from latent_obs.util.errors import InputError, check_choice, check_count

Frames = NDArray[np.uint8]
Layout = Literal["HWC", "CHW"]
Crop = Literal["none", "center-square"]
Filter = Literal["bilinear", "box", "bicubic", "lanczos"]

# RGBX, not RGBA: Pillow would weight the colors by an alpha channel.
_PILLOW_MODES = {3: "RGB", 4: "RGBX"}
_MOST_ENLARGED = 1.5  # 60x80 to 64x64 is a resize like any other; 64 to 128 is a blur that no training frame had


@dataclass(frozen=True)
class PixelContract:
    """What a frame must look like for the encoder, and how any frame is converted.

    Attributes:
        height: Rows of the encoder's frames.
        width: Columns.
        channels: Values per pixel: 3 is RGB in this order, 1 is grey, any other number is passed on unchanged.
        resize_filter: Pillow's filter; its support is scaled with the reduction, so that it antialiases.
        crop: "none" squeezes another aspect ratio into the frame; "center-square" cuts the longer side.

    Example:
        >>> contract = PixelContract(64, 64, 3)
        >>> contract.convert(np.zeros((2, 240, 320, 3), np.uint8)).shape
        (2, 64, 64, 3)
    """

    height: int
    width: int
    channels: int
    resize_filter: Filter = "bilinear"
    crop: Crop = "none"

    def __post_init__(self) -> None:
        for name in ("height", "width", "channels"):
            check_count(name, getattr(self, name))
        check_choice("resize_filter", self.resize_filter, get_args(Filter))
        check_choice("crop", self.crop, get_args(Crop))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.height, self.width, self.channels

    def layout_of(self, shape: tuple[int, ...], what: str) -> Layout:
        """Whether frames of this shape are HWC or CHW; (H, W) counts as (H, W, 1).

        The channel axis is the last one if it has as many entries as the contract has channels, else the first.
        """
        if (len(shape) == 2 and self.channels == 1) or (len(shape) == 3 and shape[2] == self.channels):
            return "HWC"
        if len(shape) == 3 and shape[0] == self.channels:
            return "CHW"
        raise InputError(
            f"{what} has shape {tuple(shape)}, and this encoder takes frames of {self.channels} channel(s): expected "
            f"(height, width, {self.channels}) or ({self.channels}, height, width). Convert the frames, or train an "
            "encoder on frames of this kind"
        )

    def check_space(self, space: spaces.Space[Any], what: str = "observation space") -> Layout:
        """The layout of a pixel space; an `InputError` if it is no uint8 Box of a shape that the contract can read."""
        if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
            raise InputError(
                f"{what} must be a uint8 Box (values 0 to 255), got {brief(space)}: remove a wrapper that scales it"
            )
        return self.layout_of(space.shape, what)

    def convert(self, frames: NDArray[Any], layout: Layout | None = None, what: str = "frames") -> Frames:
        """Crop and resize frames to the contract's size.

        Args:
            frames: uint8 (N, H, W, C), (N, C, H, W), or (N, H, W) for grey; any strides, read-only or not.
            layout: "HWC" or "CHW"; found from the shape if not given.
            what: What the frames are, for the error message.

        Returns:
            uint8 (N, height, width, channels), C-contiguous and writable: `frames` itself if they are that already.
        """
        frames = np.asarray(frames)
        if frames.dtype != np.uint8:
            raise InputError(f"{what} must be uint8 (values 0 to 255), got {frames.dtype}")
        layout = layout or self.layout_of(frames.shape[1:], what)
        if frames.ndim == 3:
            frames = frames[..., None]
        if layout == "CHW":
            frames = np.moveaxis(frames, 1, -1)
        if frames.ndim != 4 or frames.shape[-1] != self.channels:
            raise InputError(f"{what} has shape {frames.shape}, expected (N, height, width, {self.channels})")
        if self.crop == "center-square":
            height, width = frames.shape[1:3]
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            frames = frames[:, top : top + side, left : left + side]
        if frames.shape[1:3] == (self.height, self.width):
            return np.require(frames, requirements=("C", "W"))
        out = np.empty((len(frames), *self.shape), np.uint8)
        for i, frame in enumerate(frames):
            self._resize(frame, out[i])
        return out

    def _resize(self, frame: Frames, out: Frames) -> None:
        """Resize one (H, W, C) frame into `out`."""
        size, resample = (self.width, self.height), Image.Resampling[self.resize_filter.upper()]
        mode = _PILLOW_MODES.get(self.channels)
        if mode:
            frame = np.ascontiguousarray(frame)
            image = Image.frombuffer(mode, (frame.shape[1], frame.shape[0]), frame, "raw", mode, 0, 1)
            out[:] = np.asarray(image.resize(size, resample))
            return
        for channel in range(self.channels):  # Pillow has no images of two, five, or twelve channels
            image = Image.fromarray(np.ascontiguousarray(frame[..., channel]))
            out[..., channel] = np.asarray(image.resize(size, resample))

    def refuse_blur(self, shape: tuple[int, ...], layout: Layout, what: str) -> None:
        """Reject frames of a shape so small that, enlarged, they look unlike all that an encoder was trained on."""
        height, width = shape[:2] if layout == "HWC" else shape[1:]
        if height * _MOST_ENLARGED < self.height or width * _MOST_ENLARGED < self.width:
            raise InputError(
                f"{what} has frames of {height}x{width}, far smaller than the {self.height}x{self.width} that this "
                "encoder was trained on. Make the environment with a higher resolution, or train an encoder for it"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values for `config.json`, with the fixed parts of the contract spelled out."""
        colour = {1: "grey", 3: "RGB"}.get(self.channels, "as recorded")
        fixed = {"layout": "HWC", "dtype": "uint8", "scale": "1/255 on the device", "library": "pillow"}
        return {**asdict(self), "colour": colour, **fixed}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "PixelContract":
        """The contract that `to_json` described; an `InputError` if this version cannot keep a part of it."""
        if values.get("crop") == "centre-square":  # as older folders spell it
            values = {**values, "crop": "center-square"}
        fields: dict[str, Any] = {name: values.get(name) for name in cls.__dataclass_fields__}
        contract = cls(**fields)
        if contract.to_json() != dict(values):
            raise InputError(f"pixel contract must be {contract.to_json()} in this version, got {dict(values)}")
        return contract


def find_pixel_key(space: spaces.Dict, contract: PixelContract, key: str | None = None) -> str:
    """The entry of a Dict space that holds pixels that the contract can read; an `InputError` if not one alone does.

    `key` is the entry to use, and needed only if there are several.
    """
    if key is not None:
        check_choice("pixel_key", key, sorted(space.spaces))
        contract.check_space(space.spaces[key], f"observation[{key!r}]")
        return key
    images = {k: s.shape for k, s in space.spaces.items() if isinstance(s, spaces.Box) and is_image(s)}
    fitting = sorted(k for k, shape in images.items() if contract.channels in (shape[0], shape[-1]))
    if len(fitting) > 1:
        raise InputError(f"pixel_key must name one of several images that the encoder could take: {fitting}")
    if not fitting:
        listed = ", ".join(f"{k}: {brief(s)}" for k, s in space.spaces.items())
        raise InputError(
            f"no pixels in the observation: no entry is a uint8 Box of (height, width, {contract.channels}) "
            f"({listed}). Wrap the environment so that it gives its picture (Gymnasium's AddRenderObservation does)"
        )
    return fitting[0]


def is_image(space: spaces.Box) -> bool:
    """Whether a Box looks like a picture; a map of 3x3 tiles does not."""
    return space.dtype == np.uint8 and len(space.shape) == 3 and sorted(space.shape)[1] >= 8


def brief(space: spaces.Space[Any]) -> str:
    """A space in a few words; a Box with different bounds in each entry prints them all otherwise."""
    return f"{type(space).__name__}{space.shape or ''} {space.dtype or ''}".strip()
