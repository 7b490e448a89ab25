"""Scenes of one coloured shape whose factors are known and independent: what disentanglement is measured on.

Each scene is given by whole numbers, one per factor; f is such a number as a share of its range, 0 for the first value
and 1 for the last (½ where a factor has a single value):

    position_x, position_y   centre at ¼ + f/2 of the picture's width (height); y points down
    size                     a disc of radius (0.08 + 0.07 f) of the picture's side; the other shapes have the same area
    shape                    disc, square, triangle, cross
    hue                      240° · f of the colour circle, red to blue
    orientation              turned clockwise by 120° · f - 60°
    background               dark, of hue 240° · f; grey where it has a single value

The part of a shape in front of its middle is dark, so that its orientation can be seen whatever its symmetry. Ranges of
hue and orientation stop short of a full turn, because no single latent can follow a circle; `circular=True` closes
them. Made after dSprites (Matthey et al. 2017) and 3D Shapes (Burgess & Kim 2018), with edges that are smooth.
"""

import colorsys
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latent_obs.util.atomic import write_json
from latent_obs.util.errors import InputError
from vae_training.data.npy_writer import NpyWriter
from vae_training.data.rows import rows_file_of, save_rows

Frames = NDArray[np.uint8]
Values = NDArray[np.int64]
Floats = NDArray[np.floating]

SHAPES = ("disc", "square", "triangle", "cross")
_CHUNK = 64  # scenes drawn at once: their arrays stay in the processor's cache
_WRITE_CHUNK = 1024
_SMALLEST = 16
_MOST_VALUES = 360
_HUES_DEGREES = 0.0, 240.0
_TURNS_DEGREES = -60.0, 60.0
_DARK = np.float32(0.35)  # brightness of a shape's front part
_FRONT = np.float32(0.25)  # where that part begins, in disc radii before the middle
_GREY = 40.0
_ARM = np.float32(1 / 3)  # half the width of a cross's bar, in half its length
_SIN_60, _COS_60 = np.float32(0.75**0.5), np.float32(0.5)
# In radii of the disc that has the same area: half a side; the inner radius (area 3√3 times its square); half a bar's
# length.
_SQUARE = np.float32((np.pi / 4) ** 0.5)
_TRIANGLE = np.float32((np.pi / 27**0.5) ** 0.5)
_CROSS = np.float32((np.pi / (8 / 3 - 4 / 9)) ** 0.5)


@dataclass(frozen=True)
class Factor:
    """Something that varies by itself.

    Attributes:
        name: Its name.
        values: Number of its values, 0 to `values - 1`.
        ordered: Whether neighbouring values look alike, as with a position and unlike a shape.
    """

    name: str
    values: int
    ordered: bool = True


class FactorScenes:
    """A generator of RGB scenes with known, independent factors (see this module's docstring for what each one does).

    Attributes:
        factors: The factors that vary, in the order of the columns of `values`; one with a single value is not among
            them.
        size: Height and width of a scene in pixels.

    Args:
        size: Height and width in pixels.
        positions: Number of values of `position_x`, and of `position_y`.
        sizes: Number of values of `size`.
        shapes: The first so many of `SHAPES`.
        hues: Number of values of `hue`.
        orientations: Number of values of `orientation`.
        backgrounds: Number of values of `background`.
        circular: Let hues and orientations go all the way round.

    Raises:
        InputError: A number is out of range, or nothing varies.

    Example:
        >>> scenes = FactorScenes(positions=8, shapes=2)
        >>> [(factor.name, factor.values) for factor in scenes.factors]
        [('position_x', 8), ('position_y', 8), ('size', 6), ('shape', 2), ('hue', 8), ('orientation', 12)]
        >>> frames, values = scenes.sample(5, np.random.default_rng(0))
        >>> frames.shape, frames.dtype.name, values.shape
        ((5, 64, 64, 3), 'uint8', (5, 6))
    """

    # The numbers of values stay below MIG's 20 bins, which could not tell more of them apart.
    def __init__(
        self,
        size: int = 64,
        *,
        positions: int = 16,
        sizes: int = 6,
        shapes: int = len(SHAPES),
        hues: int = 8,
        orientations: int = 12,
        backgrounds: int = 1,
        circular: bool = False,
    ) -> None:
        self.size = _checked("size", size, _SMALLEST, 4096)
        self.circular = bool(circular)
        self._arguments = {
            "size": size,
            "positions": positions,
            "sizes": sizes,
            "shapes": shapes,
            "hues": hues,
            "orientations": orientations,
            "backgrounds": backgrounds,
            "circular": self.circular,
        }
        self._counts = {
            "position_x": _checked("positions", positions, 1, _MOST_VALUES),
            "position_y": positions,
            "size": _checked("sizes", sizes, 1, _MOST_VALUES),
            "shape": _checked("shapes", shapes, 1, len(SHAPES)),
            "hue": _checked("hues", hues, 1, _MOST_VALUES),
            "orientation": _checked("orientations", orientations, 1, _MOST_VALUES),
            "background": _checked("backgrounds", backgrounds, 1, _MOST_VALUES),
        }
        self.factors = tuple(Factor(name, n, name != "shape") for name, n in self._counts.items() if n > 1)
        if not self.factors:
            raise InputError(
                "nothing varies in these scenes: give at least one factor two values or more, such as positions=16"
            )
        self._column = {factor.name: i for i, factor in enumerate(self.factors)}

    def sample_values(self, n: int, rng: np.random.Generator) -> Values:
        """Draw scenes without drawing them: each factor evenly among its values, independent of the others.

        Args:
            n: Number of scenes.
            rng: Source of randomness.

        Returns:
            int64 (n, factors), column k from 0 to `factors[k].values - 1`.
        """
        _checked("n", n, 1, None)
        return rng.integers(0, [factor.values for factor in self.factors], (n, len(self.factors)))

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Frames, Values]:
        """Draw scenes at random.

        Args:
            n: Number of scenes.
            rng: Source of randomness.

        Returns:
            (frames, values): uint8 (n, size, size, 3) and int64 (n, factors).
        """
        values = self.sample_values(n, rng)
        return self.render(values), values

    def render(self, values: NDArray[np.integer]) -> Frames:
        """Draw scenes; the same values always give the same pixels.

        Args:
            values: int (N, factors), column k from 0 to `factors[k].values - 1`.

        Returns:
            uint8 (N, size, size, 3), RGB.

        Raises:
            InputError: The values are of another shape or type, or out of range.

        Example:
            >>> scenes = FactorScenes(32)
            >>> frames = scenes.render(np.zeros((2, 6), int))
            >>> frames.shape, bool((frames[0] == frames[1]).all())
            ((2, 32, 32, 3), True)
        """
        values = self._checked_values(values)
        frames = np.empty((len(values), self.size, self.size, 3), np.uint8)
        kinds = self._values_of("shape", values)
        for kind in np.unique(kinds):
            scenes = np.flatnonzero(kinds == kind)
            for i in range(0, len(scenes), _CHUNK):
                chunk = scenes[i : i + _CHUNK]
                frames[chunk] = self._draw(int(kind), values[chunk])
        return frames

    def write(
        self, folder: str | os.PathLike[str], *, frames: int = 10_000, files: int = 10, seed: int = 0
    ) -> list[Path]:
        """Write scenes as frame files that `latent-obs train-vae --frames FOLDER` opens.

            folder/
            ├── scenes.json              factors, arguments and seed: what made the others
            ├── scenes_000.npy           uint8 (N, size, size, 3)
            └── scenes_000.rows.npz      factor$<name>, int64 (N,), of each factor that varies

        Args:
            folder: Where to; made where it is missing.
            frames: Number of scenes in all.
            files: Number of frame files; training holds out whole files, so make it two or more.
            seed: Of the scenes; the same seed and arguments give the same files.

        Returns:
            The frame files.

        Raises:
            InputError: A file is there already, fewer scenes than files are asked for, or the disk is full.
        """
        folder = Path(folder)
        _checked("files", files, 1, 1000)
        _checked("frames", frames, files, None)
        _checked("seed", seed, 0, None)
        paths = [folder / f"scenes_{i:03d}.npy" for i in range(files)]
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file, expected a folder to write scenes to")
        if present := [path for path in paths if path.exists()]:
            raise InputError(f"{present[0]} exists already and is never overwritten; choose another folder")
        factors = [{"name": f.name, "values": f.values, "ordered": f.ordered} for f in self.factors]
        made_of = {"arguments": self._arguments, "factors": factors, "frames": frames, "files": files, "seed": seed}
        write_json(folder / "scenes.json", made_of)
        for i, path in enumerate(paths):
            values = self.sample_values(frames // files + (i < frames % files), np.random.default_rng([seed, i]))
            writer = NpyWriter(path, (self.size, self.size, 3))
            try:
                with writer:
                    for first in range(0, len(values), _WRITE_CHUNK):
                        writer.append(self.render(values[first : first + _WRITE_CHUNK]))
                save_rows(rows_file_of(path), {f"factor${f.name}": values[:, k] for k, f in enumerate(self.factors)})
            except BaseException:  # Ctrl-C as well: frames without their rows are of no use
                path.unlink(missing_ok=True)
                raise
        return paths

    def _draw(self, kind: int, values: Values) -> Frames:
        """Draw scenes of one shape: (n, size, size, 3)."""
        side = self.size
        centre_x, centre_y = (side * (0.25 + 0.5 * self._share(f"position_{axis}", values)) for axis in "xy")
        radius = side * (0.08 + 0.07 * self._share("size", values))
        angle = np.deg2rad(self._degrees("orientation", values, _TURNS_DEGREES))
        pixel = np.arange(side) + 0.5
        x, y = pixel - centre_x[:, None], pixel - centre_y[:, None]  # (n, side)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        # In the shape's own axes, in pixels: u to its right, v towards its front, which looks up when it is not turned.
        u = (x * cos).astype(np.float32)[:, None, :] + (y * sin).astype(np.float32)[:, :, None]
        v = (x * sin).astype(np.float32)[:, None, :] - (y * cos).astype(np.float32)[:, :, None]
        radii = radius.astype(np.float32)[:, None, None]
        inside = _inside(kind, u, v, radii)
        front = inside * _covered(radii * _FRONT - v)
        bright = self._colours("hue", values, 1.0, 1.0)[:, None, None]
        behind = self._colours("background", values, 0.6, 0.25)[:, None, None]
        mixed = (1 - inside)[..., None] * behind
        mixed += (inside - front + _DARK * front)[..., None] * bright
        return np.rint(mixed, out=mixed).astype(np.uint8)

    def _colours(self, name: str, values: Values, saturation: float, brightness: float) -> Floats:
        """Colours of scenes, (n, 3) from 0 to 255."""
        if name == "background" and self._counts[name] == 1:
            return np.full((len(values), 3), _GREY, np.float32)
        hues = self._degrees(name, values, _HUES_DEGREES) / 360
        return 255 * np.array([colorsys.hsv_to_rgb(hue, saturation, brightness) for hue in hues], np.float32)

    def _degrees(self, name: str, values: Values, span: tuple[float, float]) -> NDArray[np.float64]:
        """A factor as an angle, (n,): over the span, or all around where the factor is circular."""
        if self.circular and name in self._column:
            return 360.0 * self._values_of(name, values) / self._counts[name]
        return span[0] + (span[1] - span[0]) * self._share(name, values)

    def _share(self, name: str, values: Values) -> NDArray[np.float64]:
        """A factor as a share of its range, (n,)."""
        last = self._counts[name] - 1
        return self._values_of(name, values) / last if last else np.full(len(values), 0.5)

    def _values_of(self, name: str, values: Values) -> Values:
        return values[:, self._column[name]] if name in self._column else np.zeros(len(values), np.int64)

    def _checked_values(self, values: NDArray[np.integer]) -> Values:
        values = np.asarray(values)
        if values.ndim != 2 or values.shape[1] != len(self.factors) or values.dtype.kind not in "iu":
            raise InputError(
                f"values must be whole numbers of shape (N, {len(self.factors)}), a column for each of "
                f"{', '.join(self._column)}; got {values.dtype} of shape {values.shape}"
            )
        for k, factor in enumerate(self.factors):
            if len(values) and not 0 <= values[:, k].min() <= values[:, k].max() < factor.values:
                raise InputError(
                    f"values of {factor.name} (column {k}) must be from 0 to {factor.values - 1}, got "
                    f"{values[:, k].min()} to {values[:, k].max()}"
                )
        return values.astype(np.int64, copy=False)

    def __repr__(self) -> str:
        return f"FactorScenes({', '.join(f'{name}={value}' for name, value in self._arguments.items())})"


def _covered(distance: Floats) -> Floats:
    """The share of a pixel inside a straight edge, when its middle is so many pixels outside."""
    return np.clip(np.float32(0.5) - distance, 0, 1)


def _inside(kind: int, u: Floats, v: Floats, radius: Floats) -> Floats:
    """The share of a pixel inside a shape with the area of a disc of the radius; products are for the corners."""
    flat, upright = np.abs(u), np.abs(v)
    match SHAPES[kind]:
        case "disc":
            return _covered(np.sqrt(u * u + v * v) - radius)
        case "square":
            return _covered(flat - radius * _SQUARE) * _covered(upright - radius * _SQUARE)
        case "triangle":  # with equal sides, one corner in front
            inner, lean, rise = radius * _TRIANGLE, u * _SIN_60, v * _COS_60
            return _covered(lean + rise - inner) * _covered(rise - lean - inner) * _covered(-v - inner)
        case _:  # a cross of two bars
            long = radius * _CROSS
            short = long * _ARM
            lying = _covered(flat - long) * _covered(upright - short)
            standing = _covered(flat - short) * _covered(upright - long)
            return lying + standing - lying * standing


def _checked(name: str, value: int, low: int, high: int | None) -> int:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | np.integer)
        or value < low
        or (high is not None and value > high)
    ):
        expected = f"from {low} to {high}" if high is not None else f"of {low} or more"
        raise InputError(f"{name} must be a whole number {expected}, got {value!r}")
    return int(value)
