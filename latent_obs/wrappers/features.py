"""`FeatureObservation`: turn everything of an observation but its pixels into named float32 numbers.

Agents of Stable-Baselines3 take flat observations: no Dict within a Dict, no Tuple, no text. Pixels are unchanged
(`LatentObservation` encodes them), and every other value becomes numbers of about the size of 1:

===========================================  ===========================================  ==========================
A value of the space                         becomes                                      named
===========================================  ===========================================  ==========================
Box of whole numbers from 0 (counts)         log(1+x)/log(65): a stack of 64 items is 1   inventory/log
Box of whole numbers 0 and 1, MultiBinary    itself                                       life/on_fire
Box of floats, -180 to 180 or 0 to 360       sine and cosine of the angle in degrees      compass/angle (sin), … (cos)
Box of floats within -10 to 10               itself                                       vector
Box of other numbers                         each divided by its largest bound            mainhand/damage
Box of numbers bounded by 1e9 or more        itself (for VecNormalize)                    location/xpos
Discrete, Enum                               one-hot                                      weapon=0, type=iron_axe
MultiDiscrete                                one-hot, one after the other                 keys[0]=0, keys[0]=1, …
Text, and other spaces of texts              nothing: listed in `left_out`                chat
Dict, Tuple                                  its parts, by key or place                   inventory/…, position/0
Sequence, Graph, OneOf, …                    an InputError
===========================================  ===========================================  ==========================

Needs no torch.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from latent_obs.envs.border import own
from latent_obs.envs.old_gym import Enum
from latent_obs.pixels import is_image, part_at, parts_of
from latent_obs.util.errors import InputError

Numbers = NDArray[np.float64]

STACK = 64  # items: Minecraft's full stack, at which a count becomes 1
NARROW = 10.0  # bounds up to here are near enough to 1 for a network
BOUNDLESS = 1e9  # a bound from here on says nothing: ViZDoom and others declare the largest float for "any number"
#: The entry that holds all numbers in the grouped form.
GROUP = "features"
_FULL_TURNS = ((-180.0, 180.0), (0.0, 360.0))
#: The meanings of numbers that are more than divided.
_COUNT, _SINE, _COSINE = f"log(1+count)/log({1 + STACK})", "sine of the angle", "cosine of the angle"


@dataclass(frozen=True)
class Slot:
    """Where in a vector a number, or a row of numbers of one kind, is found.

    Attributes:
        name: What it is, such as "inventory/log" or "equipped_items/mainhand/type=iron_axe".
        start: Place of its first number.
        stop: Place after its last.
        meaning: What was done to it; not compared.
        entry: The entry of the Dict observation that holds it, "" if the observation is no Dict; not compared.
    """

    name: str
    start: int
    stop: int
    meaning: str = field(default="", compare=False)
    entry: str = field(default="", compare=False)


def lay_out(parts: Iterable[tuple[str, int, str, str]]) -> tuple[Slot, ...]:
    """Slots one after the other; a part is (name, number of values, meaning, entry)."""
    slots: list[Slot] = []
    for name, width, meaning, entry in parts:
        start = slots[-1].stop if slots else 0
        slots.append(Slot(name, start, start + width, meaning, entry))
    return tuple(slots)


def describe(index: Sequence[Slot], left_out: Sequence[str] = ()) -> str:
    """An index as a table to read.

    Example:
        >>> print(describe([Slot("latent", 0, 32, "mean"), Slot("inventory/log", 32, 33, "log(1+count)/log(65)")]))
         0:32  latent         mean
        32:33  inventory/log  log(1+count)/log(65)
    """
    digits = len(str(index[-1].stop)) if index else 1
    longest = max((len(slot.name) for slot in index), default=0)
    rows = [f"{s.start:>{digits}}:{s.stop:<{digits}}  {s.name:<{longest}}  {s.meaning}".rstrip() for s in index]
    return "\n".join([*rows, *(f"left out: {name}" for name in left_out)])


def needs_features(space: spaces.Space[Any]) -> bool:
    """Whether Stable-Baselines3 cannot take an observation space, and `FeatureObservation` has to come first."""
    if isinstance(space, spaces.Dict):
        # torch names its modules after the keys, and takes no dot.
        return any(
            "." in key or isinstance(inner, spaces.Dict) or needs_features(inner) for key, inner in space.spaces.items()
        )
    if isinstance(space, spaces.Discrete):
        return int(space.start) != 0
    if isinstance(space, spaces.MultiDiscrete):
        return len(space.shape) != 1 or bool(np.any(space.start))
    return not (isinstance(space, spaces.Box | spaces.MultiBinary) and space.shape)


class _Leaf(NamedTuple):
    """A part of an observation that becomes numbers."""

    read: Callable[[Any], Any]  # gives its numbers unscaled, (width,), angles twice; or a single one
    parts: list[tuple[str, int, str]]  # what follows the name, how many numbers that names, and their meaning
    low: Numbers  # (width,)
    high: Numbers
    divisor: Numbers


def _leaf(name: str, space: spaces.Space[Any]) -> _Leaf:
    """How a part of the observation is flattened, scaled and named; an `InputError` if it cannot be numbers."""
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return _choices(name, space)
    if not isinstance(space, spaces.Box | spaces.MultiBinary):
        raise InputError(
            f"{name} is a {type(space).__name__}, of which no vector of a fixed length can be made: {space}. "
            "Drop it with a FilterObservation beneath"
        )
    shape, floats = space.shape or (), np.dtype(space.dtype).kind == "f"
    bounds = (space.low, space.high) if isinstance(space, spaces.Box) else (0.0, 1.0)
    low, high = (np.broadcast_to(bound, shape).reshape(-1).astype(float) for bound in bounds)
    size, largest, unscaled = len(low), np.maximum(np.abs(low), np.abs(high)), np.ones(len(low))
    is_angle = floats and any(((low == a) & (high == b)).all() for a, b in _FULL_TURNS)

    def read(value: Any) -> Numbers:
        array = np.asarray(value, np.float64)
        if array.shape != shape:
            raise InputError(f"{name} has shape {array.shape}, but its space declares {shape}")
        array = array.reshape(-1)
        return np.concatenate([array, array]) if is_angle else array

    if is_angle:
        ones = np.ones(2 * size)
        return _Leaf(read, [(" (sin)", size, _SINE), (" (cos)", size, _COSINE)], -ones, ones, ones)
    # One number: `float` is quick, and checks that it is one.
    quick = float if isinstance(space, spaces.Box) and shape == () else read
    if not floats and not (low < 0).any() and (high > 1).any():
        return _Leaf(quick, [("", size, _COUNT)], low, high, unscaled)
    kept = (largest <= NARROW) & floats | (largest == 0) | (largest >= BOUNDLESS)
    divisor = np.where(kept, 1.0, largest)
    meaning = "each divided by its largest bound, if over 10"
    if len(set(divisor)) <= 1:
        meaning = "unchanged" if (divisor == 1).all() else f"divided by {divisor[0]:.10g}"
    return _Leaf(quick, [("", size, meaning)], low, high, divisor)


def _choices(name: str, space: spaces.Discrete | spaces.MultiDiscrete) -> _Leaf:
    """One-hot numbers, one choice after the other."""

    def read(value: Any) -> Any:
        if not space.contains(value):
            raise InputError(f"{name} is {value}, which its space does not contain: {space}")
        return spaces.flatten(space, value)

    suffixes: list[str] = []
    if isinstance(space, spaces.Discrete):
        labels = space.names if isinstance(space, Enum) else range(int(space.start), int(space.start + space.n))
        suffixes += [f"={label}" for label in labels]
    else:
        for place in np.ndindex(space.shape):
            first, at = int(space.start[place]), ",".join(map(str, place))
            suffixes += [f"[{at}]={label}" for label in range(first, first + int(space.nvec[place]))]
    ones = np.ones(len(suffixes))
    return _Leaf(read, [(suffix, 1, "1 if it is, else 0") for suffix in suffixes], np.zeros_like(ones), ones, ones)


class FeatureObservation(gym.ObservationWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Turn all of an observation but its pixels into float32 numbers under flat names; the module's table says how.

    Put it around the environment first, and `LatentObservation` around it (or `VecLatentObservation` around a vector of
    them).

    Args:
        env: The environment.
        pixel_key: An entry to treat as pixels although its shape is not that of an image, by its flat name.
        grouped: All numbers in one vector, "features" beside the pixels (or alone if there are none), which is cheaper
            to send from a worker process. Otherwise one vector per entry, such as "inventory/log" (1,).

    Attributes:
        index: Where each number is, in the vector of all of them: the grouped one, or that of the entries in order.
        left_out: Names of values that cannot be numbers.

    Raises:
        InputError: The observation holds something of which no numbers can be made (a Sequence, a Graph, …), two
            entries would get one name, or, in a step, a value is not what its space declares.

    Example:
        >>> miner = gym.Env()
        >>> miner.observation_space = spaces.Dict(inventory=spaces.Dict(log=spaces.Box(0, 2304, (), np.int32)))
        >>> FeatureObservation(miner).observation({"inventory": {"log": np.array(64, np.int32)}})
        {'inventory/log': array([1.], dtype=float32)}
    """

    def __init__(self, env: gym.Env[Any, Any], *, pixel_key: str | None = None, grouped: bool = False) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, pixel_key=pixel_key, grouped=grouped)
        gym.ObservationWrapper.__init__(self, own(env))
        space = env.observation_space
        alone = not isinstance(space, spaces.Dict | spaces.Tuple)
        named = _by_name(space)
        if pixel_key is not None and (alone or pixel_key not in named):
            found = "is no Dict" if alone else f"has the entries {sorted(named)}"
            raise InputError(f"pixel_key {pixel_key!r} is not in the observation, which {found}")
        images = {name: inner for name, (_, inner) in named.items() if name == pixel_key or _is_pixels(inner, alone)}
        if pixel_key is not None and images[pixel_key].dtype != np.uint8:
            raise InputError(f"pixel_key {pixel_key!r} must name a uint8 Box, got {images[pixel_key]}")
        others = {name: named[name] for name in sorted(named.keys() - images.keys())}
        self.left_out = tuple(name for name, (_, inner) in others.items() if _is_text(inner))
        leaves = {name: _leaf(name, inner) for name, (_, inner) in others.items() if name not in self.left_out}
        if not images and not leaves:
            raise InputError(f"the observation holds neither pixels nor numbers: {space}")
        grouped = (grouped or alone) and bool(leaves)
        if grouped and GROUP in images:
            raise InputError(f"an image of the observation is named {GROUP!r}, as the vector of all numbers would be")
        self._images = {name: named[name][0] for name in images}
        self._is_vector = grouped and not images
        self._is_image = alone and bool(images)  # the whole observation, which is passed on
        parts: list[tuple[str, int, str, str]] = []
        self._entries: dict[str, slice] = {}  # which numbers each entry holds
        self._reads: list[tuple[tuple[Any, ...], int | slice, Callable[[Any], Any]]] = []
        start = 0
        for name, leaf in leaves.items():
            entry = "" if self._is_vector else GROUP if grouped else name
            parts += [(name + suffix, width, meaning, entry) for suffix, width, meaning in leaf.parts]
            self._entries[name] = of = slice(start, start + len(leaf.low))
            self._reads.append((named[name][0], start if leaf.read is float else of, leaf.read))
            start = of.stop
        self.index = lay_out(parts)
        # The formulas of all leaves together, so that a few array operations apply them to a whole observation.
        meanings = np.repeat([part[2] for part in parts], [part[1] for part in parts]) if parts else np.zeros(0)
        self._counts, self._sines, self._cosines = (np.flatnonzero(meanings == m) for m in (_COUNT, _SINE, _COSINE))
        bounds = [np.stack([leaf.low, leaf.high, leaf.divisor]) for leaf in leaves.values()]
        low, high, self._divisors = np.concatenate([np.zeros((3, 0)), *bounds], axis=1)
        self._low, self._high = self._scaled(low), self._scaled(high)
        if grouped:
            self._entries = {GROUP: slice(0, start)}
        low, high = _float32(self._low), _float32(self._high)
        boxes = {name: spaces.Box(low[of], high[of], dtype=np.float32) for name, of in self._entries.items()}
        self.observation_space = spaces.Dict({**images, **boxes})
        if self._is_image:
            self.observation_space = space
        elif self._is_vector:
            self.observation_space = boxes[GROUP]

    def _scaled(self, numbers: Numbers) -> Numbers:
        """Numbers divided, and logarithms of counts."""
        scaled = numbers / self._divisors
        # The first item counts for more than the fortieth.
        scaled[self._counts] = np.log1p(np.maximum(scaled[self._counts], 0.0)) / math.log1p(STACK)
        return scaled

    def observation(self, observation: Any) -> Any:
        """The observation as numbers, in new float32 arrays, and its pixels, which are passed on."""
        if self._is_image:
            return observation
        numbers = np.empty(len(self._divisors))
        try:
            for path, place, read in self._reads:
                numbers[place] = read(part_at(observation, path))
            entries = {name: part_at(observation, path) for name, path in self._images.items()}
        except InputError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            what = f"{type(error).__name__}: {error}"
            raise InputError(f"the observation is not what its space declares ({what})") from error
        numbers = self._scaled(numbers)
        if self._sines.size:
            angles = numbers[self._sines]
            angles = np.radians(np.where(np.abs(angles) < BOUNDLESS, angles, np.nan))
            numbers[self._sines], numbers[self._cosines] = np.sin(angles), np.cos(angles)
        vector = _float32(np.minimum(np.maximum(numbers, self._low), self._high))
        if self._is_vector:
            return vector
        return {**entries, **{name: vector[of] for name, of in self._entries.items()}}


def _by_name(space: spaces.Space[Any]) -> dict[str, tuple[tuple[Any, ...], Any]]:
    """`parts_of` a space by names without dots, which torch refuses in the names of modules."""
    parts = parts_of(space)
    named = {name.replace(".", "_"): part for name, part in parts.items()}
    if len(named) < len(parts):
        raise InputError(f"two entries of the observation have one name, if its dots are underscores: {sorted(parts)}")
    return named


def _float32(numbers: Numbers) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # a float64 beyond the reach of float32 becomes infinite
        return numbers.astype(np.float32)


def _is_text(space: spaces.Space[Any]) -> bool:
    """Whether values are texts, as those of `Text` are and of MiniGrid's own space of missions."""
    return space.dtype is not None and np.dtype(space.dtype).kind == "U"


def _is_pixels(space: spaces.Space[Any], alone: bool) -> bool:
    """Whether a space is an image; if it is the whole observation, it may be grey and have no channel axis."""
    if not isinstance(space, spaces.Box):
        return False
    return is_image(space) or (alone and space.dtype == np.uint8 and len(space.shape) == 2 and min(space.shape) >= 8)
