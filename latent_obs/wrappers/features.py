"""`FeatureObservation`: an observation of any shape as pixels beside float32 numbers, each of which has a name.

What an agent of Stable-Baselines3 can take is flat: no Dict within a Dict, no Tuple, no text. The pixels stay as they
are (`LatentObservation` and `VecLatentObservation` see to them), and everything else becomes numbers of the size of 1:

================================================  ====================================
================================= A value of the space                              becomes
 named ================================================  ====================================
================================= Box of whole numbers from 0 (counts)              log(1+x)/log(65): one stack of 64
 inventory/log
                                                  items is 1
Box of whole numbers 0 and 1, MultiBinary         itself                                life/on_fire
Box of floats, -180 to 180 or 0 to 360 (degrees)  sine and cosine                       compass/angle (sin), … (cos)
Box of floats within -10 to 10                    itself                                vector
Box of other numbers                              each divided by its largest bound     equipped_items/mainhand/damage
Box of numbers bounded by 1e9 or more, or not     itself (for VecNormalize)             location/xpos
Enum                                              one-hot                               equipped_items/…/type=iron_axe
Discrete                                          one-hot                               weapon=0, weapon=1, …
MultiDiscrete                                     one-hot, one after the other          keys[0]=0, keys[0]=1, keys[1]=0
… Text                                              nothing: listed in `left_out`         chat
Dict, Tuple                                       what is in it, by key or place        inventory/…, position/0
Sequence, Graph, OneOf, …                         refused: InputError
================================================  ====================================
=================================

Needs no torch, so that worker processes can make the numbers.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from latent_obs.envs.old_spaces import Enum
from latent_obs.pixels import is_image
from latent_obs.util.errors import InputError

Features = NDArray[np.float32]
Numbers = NDArray[np.float64]
Write = Callable[[Any, Features], None]

STACK = 64  # items: Minecraft's full stack, at which a count becomes 1
NARROW = 10.0  # bounds up to here are near enough to 1 for a network
BOUNDLESS = 1e9  # a bound from here on says nothing: ViZDoom and others declare the largest float for "any number"
_FULL_TURNS = ((-180.0, 180.0), (0.0, 360.0))


class Part(NamedTuple):
    """Neighbouring numbers of a rule that are named and made alike.

    Attributes:
        suffix: What follows the name of the entry, such as "=iron_axe" or " (sin)".
        width: How many numbers.
        meaning: What was done to them, in words.
    """

    suffix: str
    width: int
    meaning: str


@dataclass(frozen=True)
class Rule:
    """How the values of one space become numbers.

    Attributes:
        parts: What the numbers are, in order.
        low: The least that each can be, float32 (width,).
        high: The most.
        compile: Given the place of the first number, the function that writes a value's numbers into a vector there.

    Example:
        >>> rule = one_hot(Enum(["none", "log"]), "held")
        >>> rule.names, rule.width
        (('=none', '=log'), 2)
        >>> vector = np.zeros(3, np.float32)
        >>> rule.compile(1)(1, vector)
        >>> vector.tolist()
        [0.0, 0.0, 1.0]
    """

    parts: tuple[Part, ...]
    low: Features
    high: Features
    compile: Callable[[int], Write]

    @property
    def names(self) -> tuple[str, ...]:
        """What follows the entry's name, one per part."""
        return tuple(part.suffix for part in self.parts)

    @property
    def width(self) -> int:
        """How many numbers the rule gives."""
        return sum(part.width for part in self.parts)


def rule_for(space: spaces.Space[Any], where: str) -> Rule | None:
    """The rule for a space; None for a text, which is no number.

    Args:
        space: Any space but a Dict or a Tuple.
        where: What it is the space of, for messages.

    Raises:
        InputError: No rule fits.

    Example:
        >>> rule = rule_for(spaces.Box(0, 2304, (), np.int32), "inventory/log")
        >>> rule.parts
        (Part(suffix='', width=1, meaning='log(1+count)/log(65)'),)
        >>> rule.low, rule.high
        (array([0.], dtype=float32), array([1.85...], dtype=float32))
    """
    if isinstance(space, spaces.Text):
        return None
    if isinstance(space, spaces.Discrete):
        return one_hot(space, where)
    if isinstance(space, spaces.MultiDiscrete):
        return one_hots(space, where)
    if isinstance(space, spaces.MultiBinary):
        return flags(space, where)
    if isinstance(space, spaces.Box):
        low, high = _bounds(space)
        if space.dtype.kind != "f" and not (low < 0).any():
            return counts(space, where) if (high > 1).any() else flags(space, where)
        if space.dtype.kind == "f" and any(((low == a) & (high == b)).all() for a, b in _FULL_TURNS):
            return degrees(space, where)
        return numbers(space, where)
    raise InputError(
        f"{where} is a {type(space).__name__}, of which no vector of a fixed length can be made: {space}. Replace or drop it "
        "with a TransformObservation or FilterObservation beneath"
    )


def counts(space: spaces.Box, where: str) -> Rule:
    """Whole numbers from 0: their logarithm, so that the first log counts for more than the fortieth; one stack is
    1.
    """
    unit = math.log1p(STACK)

    def one(count: float) -> float:
        return math.log1p(0.0 if count < 0 else count) / unit

    def many(array: Numbers) -> Numbers:
        return np.log1p(np.maximum(array, 0.0)) / unit

    return _elementwise(space, where, f"log(1+count)/log({1 + STACK})", one, many)


def flags(space: spaces.Box | spaces.MultiBinary, where: str) -> Rule:
    """Zeros and ones: as they are."""
    return _elementwise(space, where, "0 or 1, as it is", float, _unchanged)


def numbers(space: spaces.Box, where: str) -> Rule:
    """Other numbers: each divided by its largest bound, unless that is near to 1 already or says nothing."""
    low, high = _bounds(space)
    largest = np.maximum(np.abs(low), np.abs(high))
    near = (largest <= NARROW) & (space.dtype.kind == "f") | (largest == 0)
    scale = np.where(near | (largest >= BOUNDLESS), 1.0, largest)
    if (scale == 1.0).all():
        # A float64 beyond float32's reach becomes infinite; on an array alone can that be had without a warning.
        loose = bool((largest >= BOUNDLESS).any())
        return _elementwise(space, where, "as it is", None if loose else float, _unchanged)
    meaning = (
        f"divided by {scale[0]:.10g}" if (scale == scale[0]).all() else "each divided by its largest bound, if over 10"
    )
    divisor = float(scale[0])
    one = (lambda number: number / divisor) if scale.size == 1 else None
    return _elementwise(space, where, meaning, one, lambda array: array / scale)


def degrees(space: spaces.Box, where: str) -> Rule:
    """Angles of a full turn: sine and cosine, so that 179 and -179 degrees are neighbours."""
    shape, size = space.shape, math.prod(space.shape)
    parts = (Part(" (sin)", size, "sine of the angle"), Part(" (cos)", size, "cosine of the angle"))

    def compile(start: int) -> Write:
        if shape == ():

            def write_one(value: Any, out: Features) -> None:
                angle = float(value)
                angle = math.radians(angle) if -BOUNDLESS < angle < BOUNDLESS else math.nan
                out[start] = math.sin(angle)
                out[start + 1] = math.cos(angle)

            return write_one
        middle, stop = start + size, start + 2 * size

        def write(value: Any, out: Features) -> None:
            angles = _array(value, shape, where)
            angles = np.radians(np.where(np.abs(angles) < BOUNDLESS, angles, np.nan))
            out[start:middle] = np.sin(angles)
            out[middle:stop] = np.cos(angles)

        return write

    return Rule(parts, np.full(2 * size, -1, np.float32), np.full(2 * size, 1, np.float32), compile)


def one_hot(space: spaces.Discrete, where: str) -> Rule:
    """One of several kinds: a one in the place of that kind, zeros in the others."""
    first, count = int(space.start), int(space.n)
    labels: Sequence[Any] = space.names if isinstance(space, Enum) else range(first, first + count)

    def compile(start: int) -> Write:
        stop = start + count

        def write(value: Any, out: Features) -> None:
            place = int(value) - first
            if not 0 <= place < count:
                raise InputError(f"{where} is {value}, and its space declares {first} to {first + count - 1}")
            out[start:stop] = 0.0
            out[start + place] = 1.0

        return write

    return Rule(
        tuple(Part(f"={label}", 1, "1 if it is, else 0") for label in labels),
        np.zeros(count, np.float32),
        np.ones(count, np.float32),
        compile,
    )


def one_hots(space: spaces.MultiDiscrete, where: str) -> Rule:
    """Several choices: the one-hot vectors of all of them."""
    shape = space.shape
    sizes, firsts = space.nvec.reshape(-1).astype(np.int64), np.broadcast_to(space.start, shape).reshape(-1)
    offsets, total = np.cumsum(sizes) - sizes, int(sizes.sum())
    parts = tuple(
        Part(f"[{','.join(map(str, place))}]={int(firsts[i]) + k}", 1, "1 if it is, else 0")
        for i, place in enumerate(np.ndindex(shape))
        for k in range(int(sizes[i]))
    )

    def compile(start: int) -> Write:
        starts, stop = start + offsets, start + total

        def write(value: Any, out: Features) -> None:
            places = np.asarray(value)
            if places.shape != shape:
                raise InputError(f"{where} has shape {places.shape}, and its space declares {shape}")
            places = places.reshape(-1).astype(np.int64) - firsts
            if ((places < 0) | (places >= sizes)).any():
                raise InputError(f"{where} is {value}, which is out of what its space declares: {space}")
            out[start:stop] = 0.0
            out[starts + places] = 1.0

        return write

    return Rule(parts, np.zeros(total, np.float32), np.ones(total, np.float32), compile)


def _elementwise(
    space: spaces.Box | spaces.MultiBinary,
    where: str,
    meaning: str,
    one: Callable[[float], float] | None,
    many: Callable[[Numbers], Numbers],
) -> Rule:
    """A rule that makes one number of each: `one` for a single value (much the faster), `many` for an array of them."""
    shape, size = space.shape, math.prod(space.shape)
    bounds = _bounds(space) if isinstance(space, spaces.Box) else (np.zeros(size), np.ones(size))
    low, high = (many(bound) for bound in bounds)
    least, most = (float(low[0]), float(high[0])) if shape == () else (0.0, 0.0)

    def compile_one(start: int) -> Write:
        single = one or float

        def write(value: Any, out: Features) -> None:
            number = single(float(value))
            out[start] = least if number < least else most if number > most else number

        return write

    def compile_many(start: int) -> Write:
        stop = start + size

        def write(value: Any, out: Features) -> None:
            array = np.minimum(np.maximum(many(_array(value, shape, where)), low), high)
            with np.errstate(over="ignore"):
                out[start:stop] = array

        return write

    with np.errstate(over="ignore"):
        bounds = low.astype(np.float32), high.astype(np.float32)
    return Rule((Part("", size, meaning),), *bounds, compile_one if shape == () and one is not None else compile_many)


def _array(value: Any, shape: tuple[int, ...], where: str) -> Numbers:
    """A value as a flat float64 array, or what is wrong with it: assigning it would spread a single number over all."""
    array = np.asarray(value, np.float64)
    if array.shape != shape:
        raise InputError(f"{where} has shape {array.shape}, and its space declares {shape}")
    return array.reshape(-1)


def _bounds(space: spaces.Box) -> tuple[Numbers, Numbers]:
    return space.low.reshape(-1).astype(np.float64), space.high.reshape(-1).astype(np.float64)


def _unchanged(array: Numbers) -> Numbers:
    return array


#: The entry that holds all numbers in the grouped form.
GROUP = "features"

_Visit = Callable[[Any, Features, dict[str, Any]], None]


@dataclass(frozen=True)
class Slot:
    """Where in a vector a number, or a row of numbers of one kind, is found.

    Attributes:
        name: What it is, such as "inventory/log" or "equipped_items/mainhand/type=iron_axe".
        start: Place of its first number.
        stop: Place after its last.
        meaning: What was done to it; not compared.
        entry: The entry of the Dict observation that holds it, "" where the observation is no Dict; not compared.

    Example:
        >>> Slot("inventory/log", 0, 1).shifted(32)
        Slot(name='inventory/log', start=32, stop=33, meaning='', entry='')
    """

    name: str
    start: int
    stop: int
    meaning: str = field(default="", compare=False)
    entry: str = field(default="", compare=False)

    def shifted(self, by: int) -> "Slot":
        """The slot in a vector that has `by` more numbers before it."""
        return replace(self, start=self.start + by, stop=self.stop + by)


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
    """Whether Stable-Baselines3 could not take an observation space as it is, and `FeatureObservation` has to come
    first.

    Example:
        >>> log = spaces.Box(0, 2304, (), np.int32)
        >>> needs_features(spaces.Dict(inventory=spaces.Dict(log=log)))
        True
        >>> needs_features(spaces.Dict(pov=spaces.Box(0, 255, (64, 64, 3), np.uint8), vector=spaces.Box(-1, 1, (9,))))
        False
    """
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


class FeatureLayout:
    """What `FeatureObservation` does, for one observation space and without an environment.

    Args:
        space: The observation space.
        pixel_key: An entry of the Dict observation to leave alone as pixels although its shape is not a picture's.
        grouped: All numbers in one vector.

    Attributes:
        space: The space of what `convert` gives.
        index: Where each number is, in the vector of all of them: the grouped one, or that of the entries in order.
        left_out: Names of what can be no number.
        convert: Turns an observation; its arrays are fresh in each call, but for the pixels, which are handed on.

    Raises:
        InputError: The space has something of which no numbers can be made, or two entries would get one name.

    Example:
        >>> layout = FeatureLayout(spaces.Dict(compass=spaces.Dict(angle=spaces.Box(-180, 180, ()))), grouped=True)
        >>> [slot.name for slot in layout.index]
        ['compass/angle (sin)', 'compass/angle (cos)']
        >>> layout.convert({"compass": {"angle": 90.0}}).round(3).tolist()
        [1.0, 0.0]
    """

    def __init__(self, space: spaces.Space[Any], pixel_key: str | None = None, grouped: bool = False) -> None:
        alone = not isinstance(space, spaces.Dict | spaces.Tuple)
        leaves = _by_name(space)
        if pixel_key is not None:
            _check_pixel_key(pixel_key, {} if alone else leaves)
        self._pixels = {name: s for name, s in leaves.items() if name == pixel_key or _is_pixels(s, alone)}
        rules = {name: rule_for(leaves[name], name) for name in sorted(leaves.keys() - self._pixels.keys())}
        self._rules = {name: rule for name, rule in rules.items() if rule is not None}
        self.left_out = tuple(name for name, rule in rules.items() if rule is None)
        if not self._pixels and not self._rules:
            raise InputError(f"the observation holds neither pixels nor numbers: {space}")
        ends = list(itertools.accumulate((rule.width for rule in self._rules.values()), initial=0))
        self._starts, self._width = dict(zip(self._rules, ends, strict=False)), ends[-1]
        self._grouped = (grouped or alone) and bool(self._rules)
        if self._grouped and GROUP in self._pixels:
            raise InputError(
                f"the vector of all numbers goes by {GROUP!r}, and an image of the observation does already"
            )
        #: The observation is this vector and nothing else.
        self._vector = self._grouped and not self._pixels
        self.index = tuple(self._slots())
        self.space: spaces.Space[Any] = space if alone and self._pixels else self._new_space()
        self.convert: Callable[[Any], Any] = (
            _same if alone and self._pixels else self._converter(self._visit(space, ()))
        )

    def _slots(self) -> Iterator[Slot]:
        for name, rule in self._rules.items():
            entry = name if not self._grouped else "" if self._vector else GROUP
            start = self._starts[name]
            for part in rule.parts:
                yield Slot(name + part.suffix, start, start + part.width, part.meaning, entry)
                start += part.width

    def _new_space(self) -> spaces.Space[Any]:
        boxes = {name: spaces.Box(rule.low, rule.high, dtype=np.float32) for name, rule in self._rules.items()}
        if self._grouped:
            low, high = np.concatenate([(rule.low, rule.high) for rule in self._rules.values()], axis=1)
            boxes = {GROUP: spaces.Box(low, high, dtype=np.float32)}
        return boxes[GROUP] if self._vector else spaces.Dict({**self._pixels, **boxes})

    def _visit(self, space: spaces.Space[Any], path: tuple[Any, ...]) -> _Visit | None:
        """A function that puts a value of the space where it belongs; None where there is nothing to do."""
        if isinstance(space, spaces.Dict | spaces.Tuple):
            inner = [(key, self._visit(part, (*path, key))) for key, part in _parts_of(space)]
            return _all_of([(key, visit) for key, visit in inner if visit is not None])
        name = _name(path)
        if name in self._pixels:
            return _kept(name)
        if name not in self._rules:
            return None
        if self._grouped:
            return _into_vector(self._rules[name].compile(self._starts[name]))
        return _apart(name, self._rules[name].compile(0), self._rules[name].width)

    def _converter(self, visit: _Visit | None) -> Callable[[Any], Any]:
        assert visit is not None
        width, grouped, vector_only = self._width, self._grouped, self._vector
        keys = tuple(self.space.spaces) if isinstance(self.space, spaces.Dict) else ()

        def convert(observation: Any) -> Any:
            vector = np.empty(width, np.float32)
            entries: dict[str, Any] = dict.fromkeys(keys)
            try:
                visit(observation, vector, entries)
            except InputError:
                raise
            except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
                what = f"{type(error).__name__}: {error}"
                raise InputError(f"the observation is not what its space declares ({what})") from error
            if vector_only:
                return vector
            if grouped:
                entries[GROUP] = vector
            return entries

        return convert


def _into_vector(write: Write) -> _Visit:
    return lambda value, vector, entries: write(value, vector)


def _apart(name: str, write: Write, width: int) -> _Visit:
    def visit(value: Any, vector: Features, entries: dict[str, Any]) -> None:
        entries[name] = out = np.empty(width, np.float32)
        write(value, out)

    return visit


def _kept(name: str) -> _Visit:
    def visit(value: Any, vector: Features, entries: dict[str, Any]) -> None:
        entries[name] = value

    return visit


def _all_of(parts: list[tuple[Any, _Visit]]) -> _Visit:
    def visit(value: Any, vector: Features, entries: dict[str, Any]) -> None:
        for key, inner in parts:
            inner(value[key], vector, entries)

    return visit


def _same(observation: Any) -> Any:
    return observation


def _parts_of(space: spaces.Dict | spaces.Tuple) -> Iterable[tuple[Any, spaces.Space[Any]]]:
    return space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)


def _name(path: tuple[Any, ...]) -> str:
    """The flat name of what is found by these keys; without dots, which torch refuses in the names of modules."""
    return "/".join(map(str, path)).replace(".", "_") or "observation"


def _by_name(space: spaces.Space[Any]) -> dict[str, spaces.Space[Any]]:
    """All that is no Dict or Tuple, by its flat name.

    Raises:
        InputError: Two would have the same.
    """
    found: dict[str, tuple[tuple[Any, ...], spaces.Space[Any]]] = {}

    def collect(part: spaces.Space[Any], path: tuple[Any, ...]) -> None:
        if isinstance(part, spaces.Dict | spaces.Tuple):
            for key, inner in _parts_of(part):
                collect(inner, (*path, key))
            return
        name = _name(path)
        if name in found:
            raise InputError(
                f"two entries of the observation, {found[name][0]} and {path}, would both be named {name!r}"
            )
        found[name] = path, part

    collect(space, ())
    return {name: part for name, (_, part) in found.items()}


def _is_pixels(space: spaces.Space[Any], alone: bool) -> bool:
    """Whether a space is a picture; where the whole observation is one, it may be grey and have no channel axis."""
    if not isinstance(space, spaces.Box):
        return False
    return is_image(space) or (alone and space.dtype == np.uint8 and len(space.shape) == 2 and min(space.shape) >= 8)


def _check_pixel_key(key: str, leaves: dict[str, spaces.Space[Any]]) -> None:
    if not leaves:
        raise InputError(f"pixel_key {key!r} was given, but the observation is no Dict")
    if key not in leaves:
        raise InputError(f"pixel_key {key!r} is not in the observation, whose entries are {sorted(leaves)}")
    space = leaves[key]
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        raise InputError(f"pixel_key {key!r} must name a uint8 Box (values 0 to 255), got {space}")


class FeatureObservation(gym.ObservationWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Turn all of an observation but its pixels into float32 numbers under flat names; the module's table says how.

    Put it around the environment first, and `LatentObservation` around it (or `VecLatentObservation` around a vector of
    them).

    Args:
        env: The environment.
        pixel_key: An entry to leave alone as pixels although its shape is not a picture's, by its flat name.
        grouped: All numbers in one vector, "features" beside the pixels (alone where there are none): what a worker
            process had better send. Otherwise one vector an entry, such as "inventory/log" (1,).

    Attributes:
        index: Where each number is, in the vector of all of them.
        left_out: Names of what can be no number.

    Raises:
        InputError: The observation holds something of which no numbers can be made (a Sequence, a Graph, …), two
            entries would get one name, or, in a step, a value is not what its space declares.

    Example:
        >>> class Miner(gym.Env):
        ...     observation_space = spaces.Dict(inventory=spaces.Dict(log=spaces.Box(0, 2304, (), np.int32)))
        ...     def reset(self, *, seed=None, options=None):
        ...         return {"inventory": {"log": np.array(64, np.int32)}}, {}
        >>> env = FeatureObservation(Miner())
        >>> env.reset()[0]
        {'inventory/log': array([1.], dtype=float32)}
        >>> print(env.describe())
        0:1  inventory/log  log(1+count)/log(65)
    """

    def __init__(self, env: gym.Env[Any, Any], *, pixel_key: str | None = None, grouped: bool = False) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, pixel_key=pixel_key, grouped=grouped)
        if not isinstance(env, gym.Env):
            raise InputError(
                f"FeatureObservation wraps a gymnasium.Env, got {type(env).__module__}.{type(env).__name__}"
            )
        gym.ObservationWrapper.__init__(self, env)
        layout = FeatureLayout(env.observation_space, pixel_key, grouped)
        self.observation_space = layout.space
        self.index, self.left_out = layout.index, layout.left_out
        self._convert = layout.convert

    def observation(self, observation: Any) -> Any:
        """The observation as numbers, float32, and pixels."""
        return self._convert(observation)

    def describe(self) -> str:
        """The index as a table to read, one line a slot."""
        return describe(self.index, self.left_out)
