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

from latent_obs.encoder import Crop
from latent_obs.util.errors import InputError, check_choice, check_count
from latent_obs.util.words import counted

Frames = NDArray[np.uint8]
Layout = Literal["HWC", "CHW"]
Filter = Literal["bilinear", "box", "bicubic", "lanczos"]

# RGBX, not RGBA: Pillow would weight the colors by an alpha channel.
_PILLOW_MODES = {3: "RGB", 4: "RGBX"}
_DARK = 127  # a space of uint8 that allows no value above this is no picture's
_MOST_STACKED = 64  # frames, or channels of them
_MOST_ENLARGED = 1.5  # 60x80 to 64x64 is a resize like any other; 64 to 128 is a blur that no training frame had
_FLATTEN = (
    "latent_obs.make and wrap take its parts by themselves; here put FeatureObservation(env) around the environment "
    "first. pixel_key= names the picture, such as 'camera/left' in a Dict of Dicts or '0' in a Tuple, if it has several"
)
_RENDER = (
    "Take the picture that the environment draws: render=True in latent_obs.make, --render in fit, frames record "
    "and train-agent, or Gymnasium's AddRenderObservation around an environment made with render_mode='rgb_array'"
)


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
        advice = _unstack(shape, self.channels) or "Convert the frames, or train an encoder on frames of this kind"
        raise InputError(
            f"{what} has shape {tuple(shape)}, and this encoder takes frames of "
            f"{counted(self.channels, 'channel')}: expected (height, width, {self.channels}) or "
            f"({self.channels}, height, width). {advice}"
        )

    def check_space(
        self, space: spaces.Space[Any], what: str = "observation space", within: spaces.Dict | None = None
    ) -> Layout:
        """The layout of a pixel space; an `InputError` if it is no uint8 Box of a shape that the contract can read.

        Args:
            space: The space.
            what: What it is the space of.
            within: The Dict that it is an entry of.
        """
        if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or not _is_bright(space):
            raise InputError(
                f"{what} must be a uint8 Box (values 0 to 255), got {brief(space)}. {way_out(space, within)}"
            )
        return self.layout_of(space.shape, what)

    def convert(self, frames: NDArray[Any], layout: Layout | None = None, what: str = "frames") -> Frames:
        """Crop and resize frames to the contract's size.

        Args:
            frames: uint8 (N, H, W, C), (N, C, H, W), or (N, H, W) for grey; any strides, read-only or not.
            layout: "HWC" or "CHW"; found from the shape if not given.
            what: What the frames are, for the error message.

        Returns:
            uint8 (N, height, width, channels), C-contiguous and writable; `frames` itself if they are that already.
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
        if key not in space.spaces and is_nested(space):
            raise InputError(f"pixel_key {key!r} is no entry of the observation: {sorted(space.spaces)}. {_FLATTEN}")
        check_choice("pixel_key", key, sorted(space.spaces))
        contract.check_space(space.spaces[key], f"observation[{key!r}]", space)
        return key
    images = {k: s for k, s in space.spaces.items() if isinstance(s, spaces.Box) and is_image(s)}
    fitting = sorted(k for k, s in images.items() if contract.channels in (s.shape[0], s.shape[-1]))
    fitting = [k for k in fitting if _is_bright(images[k])] or fitting  # not a mask of zeros and ones
    if len(fitting) > 1:
        raise InputError(f"pixel_key must name one of several images that the encoder could take: {fitting}")
    if not fitting:
        raise InputError(
            f"no pixels in the observation: no entry is a uint8 Box of (height, width, {contract.channels}) "
            f"({brief(space)}). {way_out(space)}"
        )
    return fitting[0]


def is_image(space: spaces.Box) -> bool:
    """Whether a Box looks like a picture; a map of 3x3 tiles does not."""
    return space.dtype == np.uint8 and len(space.shape) == 3 and sorted(space.shape)[1] >= 8


def parts_of(space: spaces.Space[Any]) -> dict[str, tuple[tuple[Any, ...], Any]]:
    """The parts of a space that are no Dict or Tuple, each with the keys that lead to it, by these keys as a name.

    Example:
        >>> parts_of(spaces.Dict(left=spaces.Tuple([spaces.Discrete(2)])))
        {'left/0': (('left', 0), Discrete(2))}
    """
    found: dict[str, tuple[tuple[Any, ...], Any]] = {}

    def collect(part: spaces.Space[Any], path: tuple[Any, ...]) -> None:
        if isinstance(part, spaces.Dict | spaces.Tuple):
            for key, inner in part.spaces.items() if isinstance(part, spaces.Dict) else enumerate(part.spaces):
                collect(inner, (*path, key))
            return
        name = "/".join(map(str, path)) or "observation"
        if name in found:
            raise InputError(f"two entries of the observation, {found[name][0]} and {path}, are both named {name!r}")
        found[name] = path, part

    collect(space, ())
    return found


def part_at(observation: Any, path: tuple[Any, ...]) -> Any:
    """The part of an observation that some keys lead to."""
    for key in path:
        observation = observation[key]
    return observation


def is_nested(space: spaces.Space[Any]) -> bool:
    """Whether an observation is a Tuple, or a Dict with a Dict or Tuple in it."""
    inner = space.spaces.values() if isinstance(space, spaces.Dict) else ()
    return isinstance(space, spaces.Tuple) or any(isinstance(part, spaces.Dict | spaces.Tuple) for part in inner)


def way_out(space: spaces.Space[Any], within: spaces.Dict | None = None) -> str:
    """Advise what to do with an observation, or an entry `within` a Dict, that holds no picture that can be read."""
    if within is None and isinstance(space, spaces.Dict):
        advice = [way_out(entry, space) for entry in space.spaces.values()]
        return next((one for one in advice if one != _RENDER), _RENDER)
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return _FLATTEN
    if not isinstance(space, spaces.Box) or len(space.shape) < 2 or sorted(space.shape)[-2] < 8:
        return _RENDER
    if space.dtype != np.uint8 or not _is_bright(space):
        key = next((key for key, entry in within.spaces.items() if entry is space), None) if within else None
        return _rescale(space, key)
    return _unstack(space.shape) or _RENDER


def _unstack(shape: tuple[int, ...], channels: int = 3) -> str:
    """The advice for frames that seem to be several, along the first axis or as channels; "" if they do not."""
    if len(shape) not in (3, 4):
        return ""
    axis = shape[0] if len(shape) == 4 or shape[-1] > shape[0] else shape[-1]
    if axis > _MOST_STACKED or (len(shape) == 3 and axis in (1, 3)):
        return ""
    count = axis // channels if len(shape) == 3 and axis % channels == 0 else axis
    return (
        f"If it is a stack of {count} frames, take it away (FrameStackObservation); history={count} (--history in "
        f"train-agent) shows an agent the latents of {count} frames"
    )


def _is_bright(space: spaces.Box) -> bool:
    """Whether the bounds are those of a picture, and not of zeros and ones, which would be black to an encoder."""
    return bool(space.high.size) and int(space.high.max()) > _DARK


def _rescale(space: spaces.Box, key: str | None) -> str:
    """The advice for a picture whose values are no bytes from 0 to 255."""
    low, high = float(space.low.min()), float(space.high.max())
    said = f"It declares values from {low:g} to {high:g}. Rescale them"
    if not np.isfinite([low, high]).all() or low == high:
        said, low, high = f"{said} (here from 0 to 1)", 0.0, 1.0
    old = "o" if key is None else f"o[{key!r}]"
    shifted = f"({old}.astype(float) - {low:g})" if low else old  # in float, as an int8 would overflow
    new = f"({shifted} * {255 / (high - low)!r}).round().astype('uint8')"
    box = f"Box(0, 255, {space.shape}, 'uint8')"
    if key is not None:
        new = f"{{**o, {key!r}: {new}}}"
        box = f"Dict({{**env.observation_space.spaces, {key!r}: gymnasium.spaces.{box}}})"
    return f"{said}: gymnasium.wrappers.TransformObservation(env, lambda o: {new}, gymnasium.spaces.{box})"


def brief(space: spaces.Space[Any]) -> str:
    """A space in a few words: without the bounds of a Box, which prints them all if they differ."""
    if isinstance(space, spaces.Dict):
        return ", ".join(f"{key}: {brief(entry)}" for key, entry in space.spaces.items())
    return f"Box{space.shape} {space.dtype}" if isinstance(space, spaces.Box) else " ".join(str(space).split())
