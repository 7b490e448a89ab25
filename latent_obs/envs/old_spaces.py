"""Convert spaces of the old Gym, MineRL's own kinds among them, to Gymnasium spaces, and their values back and forth.

Old spaces are recognized by the names of their classes, so that nothing here imports gym: any version of it works.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from latent_obs.util.errors import InputError, check_choice


class Enum(spaces.Discrete):
    """A `Discrete` whose entries have names, such as the items that can be crafted.

    Args:
        names: One per entry, in order.
        default: The entry that does nothing or stands for nothing; the first one when not given. The attribute
            `default` is its index.

    Example:
        >>> craft = Enum(["none", "planks", "torch"], default="none")
        >>> craft.index("torch"), craft.names[1], int(craft.n)
        (2, 'planks', 3)
    """

    def __init__(
        self, names: Sequence[str], default: str | None = None, seed: int | np.random.Generator | None = None
    ) -> None:
        self.names = tuple(str(name) for name in names)
        if len(set(self.names)) != len(self.names):
            raise InputError(f"names of an Enum must differ, got {self.names}")
        check_choice("default", default, (None, *self.names))
        self.default = 0 if default is None else self.names.index(default)
        super().__init__(len(self.names), seed=seed)

    def index(self, name: str) -> int:
        """Index of a name; an InputError if there is none."""
        check_choice("name", name, self.names)
        return self.names.index(name)

    def __repr__(self) -> str:
        return f"Enum({', '.join(map(repr, self.names))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Enum) and self.names == other.names and self.default == other.default

    def __hash__(self) -> int:
        return hash((self.names, self.default))


@dataclass(frozen=True)
class Converted:
    """A space of the old Gym as Gymnasium's, with the conversion of its values in both directions.

    `from_old` gives fresh, C-contiguous and writable arrays, and clips numbers to their bounds, as an obfuscated vector
    may be a little outside of them. `to_old` checks a value of `space` (InputError).
    """

    space: spaces.Space[Any]
    from_old: Callable[[Any], Any]
    to_old: Callable[[Any], Any]


def convert_space(old: Any, what: str = "space") -> Converted:
    """Convert a space of the old Gym to Gymnasium's.

    Args:
        old: The space: Box, Discrete, MultiDiscrete, MultiBinary, Tuple, Dict, or MineRL's Enum, DiscreteRange and
            Text.
        what: What it is the space of, for messages.

    Raises:
        InputError: It is of another kind.
    """
    names = [kind.__name__ for kind in type(old).__mro__]
    for name, convert in _KINDS.items():
        if name in names:
            return convert(old, what)
    raise InputError(
        f"{what} space {old!r} has no counterpart in Gymnasium: expected one of {', '.join(_KINDS)}. Change it with a "
        "wrapper of the old Gym"
    )


def noop_of(space: spaces.Space[Any]) -> Any:
    """The value of an action space that does nothing: zeros (or the bound nearest to zero), the default of an `Enum`.

    Example:
        >>> noop_of(spaces.Dict(jump=spaces.Discrete(2), craft=Enum(["log", "none"], default="none")))
        {'jump': 0, 'craft': 1}
    """
    match space:
        case Enum():
            return space.default
        case spaces.Discrete():
            return int(min(max(0, space.start), space.start + space.n - 1))
        case spaces.Box():
            return np.asarray(np.clip(np.zeros(space.shape, space.dtype), space.low, space.high), space.dtype)
        case spaces.MultiDiscrete() | spaces.MultiBinary():
            return np.zeros(space.shape, space.dtype)
        case spaces.Dict():
            return {key: noop_of(inner) for key, inner in space.spaces.items()}
        case spaces.Tuple():
            return tuple(noop_of(inner) for inner in space.spaces)
        case spaces.Text():
            return ""
    raise InputError(f"space must be a Box, Discrete, Dict, … to have an action that does nothing, got {space}")


def _box(old: Any, what: str) -> Converted:
    dtype = np.dtype(old.dtype)
    low, high = np.asarray(old.low, dtype), np.asarray(old.high, dtype)
    space = spaces.Box(low, high, tuple(old.shape), dtype.type)
    is_picture = dtype == np.uint8 and space.shape != ()
    clips = not is_picture and (np.isfinite(low).any() or np.isfinite(high).any())

    def check_shape(value: NDArray[Any]) -> None:
        if value.shape != space.shape:
            raise InputError(f"{what} has shape {value.shape}, and its space declares {space.shape}: {space}")

    def from_old(value: Any) -> NDArray[Any]:
        array = np.asarray(value)
        check_shape(array)
        # Always a copy: a frame of MineRL's is a read-only, flipped view.
        return np.array(np.minimum(np.maximum(array, low), high) if clips else array, dtype, order="C")

    def to_old(value: Any) -> NDArray[Any]:
        array = _array(value)
        if array.dtype.kind not in ("biu" if dtype.kind in "biu" else "biuf"):
            raise InputError(f"{what} must be {dtype} numbers of shape {space.shape}, got {value!r}")
        check_shape(array)
        if dtype.kind == "f":
            with np.errstate(over="ignore"):  # what is too large is so as infinity, too
                array = array.astype(dtype, copy=False)
        if not (np.greater_equal(array, low).all() and np.less_equal(array, high).all()):  # False for NaN too
            raise InputError(f"{what} must lie in {space}, got {array.tolist()}")
        return array.astype(dtype, copy=False)

    return Converted(space, from_old, to_old)


def _array(value: Any) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError:  # rows of different lengths
        return np.asarray(None)


def _whole_number(value: Any, numbers: range, what: str) -> int:
    """Check a whole number: Python's, numpy's or in an array of one."""
    try:
        number = operator.index(value.item() if isinstance(value, np.ndarray) and value.size == 1 else value)
    except TypeError:
        number = None
    if number is None or number not in numbers:
        raise InputError(f"{what} must be a whole number from {numbers[0]} to {numbers[-1]}, got {value!r}")
    return number


def _discrete(old: Any, what: str) -> Converted:
    n, start = int(old.n), int(getattr(old, "begin", getattr(old, "start", 0)))  # MineRL's DiscreteRange has `begin`
    numbers = range(start, start + n)
    return Converted(spaces.Discrete(n, start=start), np.int64, lambda value: _whole_number(value, numbers, what))


def _enum(old: Any, what: str) -> Converted:
    names = [str(name) for name in old.values]
    places = {name: np.int64(i) for i, name in enumerate(names)}

    def from_old(value: Any) -> np.int64:
        check_choice(what, str(value), names)
        return places[str(value)]

    return Converted(
        Enum(names, str(old.default)), from_old, lambda value: names[_whole_number(value, range(len(names)), what)]
    )


def _multi(old: Any, what: str) -> Converted:
    binary = not hasattr(old, "nvec")
    space: spaces.Space[Any] = spaces.MultiBinary(old.n) if binary else spaces.MultiDiscrete(np.asarray(old.nvec))

    def to_old(value: Any) -> NDArray[Any]:
        array = _array(value)
        if array.dtype.kind not in "iub" or not space.contains(array.astype(np.int64)):
            raise InputError(f"{what} must be a value of {space}, got {value!r}")
        return array.astype(space.dtype)

    return Converted(space, lambda value: np.array(value, space.dtype), to_old)


def _text(old: Any, what: str) -> Converted:
    if getattr(old, "shape", None) not in (None, 1, (), (1,)):
        raise InputError(f"{what} is {old!r}, several texts at once; only a single one has a counterpart in Gymnasium")
    longest = int(getattr(old, "max_length", getattr(old, "MAX_STR_LEN", 4096)))
    printable = "".join(map(chr, range(32, 127))) + "\n\t"

    def from_old(value: Any) -> str:
        text = str(value.item() if isinstance(value, np.ndarray) else value)[:longest]
        return "".join(character if character in printable else "?" for character in text)

    def to_old(value: Any) -> str:
        if not isinstance(value, str) or len(value) > longest or not set(value) <= set(printable):
            raise InputError(f"{what} must be a text of at most {longest} characters of ASCII, got {value!r}")
        return value

    return Converted(spaces.Text(max_length=longest, min_length=0, charset=printable), from_old, to_old)


def _dict(old: Any, what: str) -> Converted:
    inner = {str(key): convert_space(space, f"{what}[{key!r}]") for key, space in old.spaces.items()}

    def from_old(value: Mapping[str, Any]) -> dict[str, Any]:
        if missing := [key for key in inner if key not in value]:
            raise InputError(f"{what} lacks the entries {missing}, which its space declares; it has {sorted(value)}")
        return {key: each.from_old(value[key]) for key, each in inner.items()}

    def to_old(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping) or value.keys() != inner.keys():
            got = sorted(map(str, value)) if isinstance(value, Mapping) else repr(value)
            raise InputError(f"{what} must be a dictionary with exactly the entries {sorted(inner)}, got {got}")
        return {key: each.to_old(value[key]) for key, each in inner.items()}

    return Converted(spaces.Dict({key: each.space for key, each in inner.items()}), from_old, to_old)


def _tuple(old: Any, what: str) -> Converted:
    inner = [convert_space(space, f"{what}[{i}]") for i, space in enumerate(old.spaces)]

    def from_old(value: Sequence[Any]) -> tuple[Any, ...]:
        if len(value) != len(inner):
            raise InputError(f"{what} has {len(value)} parts, and its space declares {len(inner)}")
        return tuple(each.from_old(part) for each, part in zip(inner, value, strict=True))

    def to_old(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, Sequence | np.ndarray) or len(value) != len(inner):
            raise InputError(f"{what} must be {len(inner)} values, got {value!r}")
        return tuple(each.to_old(part) for each, part in zip(inner, value, strict=True))

    return Converted(spaces.Tuple([each.space for each in inner]), from_old, to_old)


# In this order: MineRL's Enum and DiscreteRange derive from Discrete.
_KINDS: dict[str, Callable[[Any, str], Converted]] = {
    "Enum": _enum,
    "Dict": _dict,
    "Tuple": _tuple,
    "Box": _box,
    "Discrete": _discrete,
    "MultiDiscrete": _multi,
    "MultiBinary": _multi,
    "Text": _text,
}
