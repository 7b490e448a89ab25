"""Spaces of the old Gym, MineRL's own kinds among them, as Gymnasium spaces, and their values back and forth.

Old spaces are told apart by the names of their classes, so that nothing here imports gym: any version of it will do.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from latent_obs.util.errors import InputError


class Enum(spaces.Discrete):
    """A `Discrete` whose entries have names, such as the items that can be crafted.

    Args:
        names: One per entry, in order.
        default: The entry that does nothing or stands for nothing; the first one when not given.

    Attributes:
        names: The names.
        default: Index of the default entry.

    Example:
        >>> craft = Enum(["none", "planks", "torch"], default="none")
        >>> craft.index("torch"), craft.names[1], int(craft.n)
        (2, 'planks', 3)
        >>> craft
        Enum('none', 'planks', 'torch')
    """

    def __init__(
        self, names: Sequence[str], default: str | None = None, seed: int | np.random.Generator | None = None
    ) -> None:
        self.names = tuple(str(name) for name in names)
        if len(set(self.names)) != len(self.names):
            raise InputError(f"the names of an Enum must differ, got {self.names}")
        if default is not None and default not in self.names:
            raise InputError(f"the default {default!r} of an Enum must be one of its names {self.names}")
        self.default = 0 if default is None else self.names.index(default)
        super().__init__(len(self.names), seed=seed)

    def index(self, name: str) -> int:
        """Index of a name.

        Raises:
            InputError: There is no such entry.
        """
        try:
            return self.names.index(name)
        except ValueError:
            raise InputError(f"{name!r} is none of {', '.join(self.names)}") from None

    def __repr__(self) -> str:
        return f"Enum({', '.join(map(repr, self.names))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Enum) and self.names == other.names and self.default == other.default

    def __hash__(self) -> int:
        return hash((self.names, self.default))


@dataclass(frozen=True)
class Converted:
    """A space of the old Gym as Gymnasium's, with the way of its values to and fro.

    Attributes:
        space: Gymnasium's space.
        from_old: A value that the old environment gave, as a value of `space`: arrays are fresh, C-contiguous and
            writable; numbers a little out of their bounds (an obfuscated vector can be) are clipped to them.
        to_old: A value of `space` (checked on the way; InputError) as the old environment wants it.
    """

    space: spaces.Space[Any]
    from_old: Callable[[Any], Any]
    to_old: Callable[[Any], Any]


def convert_space(old: Any, what: str = "space") -> Converted:
    """Gymnasium's twin of a space of the old Gym.

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
        f"{what} is {old!r} of the type {type(old).__module__}.{type(old).__name__}, which has no counterpart in Gymnasium: "
        f"expected one of {', '.join(_KINDS)}. Put an old-Gym wrapper around the environment that gives one of these"
    )


def noop_of(space: spaces.Space[Any]) -> Any:
    """The value of an action space that does nothing: no key pressed, no turn, nothing crafted.

    Zeros for numbers (or the bound nearest to zero), the default of an `Enum`, and so on inwards.

    Example:
        >>> noop_of(spaces.Dict(jump=spaces.Discrete(2), craft=Enum(["log", "none"], default="none")))
        {'jump': 0, 'craft': 1}
    """
    if isinstance(space, Enum):
        return space.default
    if isinstance(space, spaces.Discrete):
        return int(min(max(0, space.start), space.start + space.n - 1))
    if isinstance(space, spaces.Box):
        return np.asarray(np.clip(np.zeros(space.shape, space.dtype), space.low, space.high), space.dtype)
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        return np.zeros(space.shape, space.dtype)
    if isinstance(space, spaces.Dict):
        return {key: noop_of(inner) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(noop_of(inner) for inner in space.spaces)
    if isinstance(space, spaces.Text):
        return ""
    raise InputError(f"it is not known which action of {space} does nothing; expected a Box, Discrete, Dict, …")


def _box(old: Any, what: str) -> Converted:
    dtype = np.dtype(old.dtype)
    low, high = np.asarray(old.low, dtype), np.asarray(old.high, dtype)
    space = spaces.Box(low, high, tuple(old.shape), dtype.type)
    shape = space.shape

    def check_shape(value: NDArray[Any]) -> None:
        if value.shape != shape:
            raise InputError(f"{what} has shape {value.shape}, and its space declares {shape}: {space}")

    if shape == ():
        least, most = low.item(), high.item()

        def scalar(value: Any) -> NDArray[Any]:
            try:
                number = value.item()
            except AttributeError:  # a plain number
                number = value
            return np.array(least if number < least else most if number > most else number, dtype)

        from_old: Callable[[Any], Any] = scalar
    elif dtype == np.uint8 or not (np.isfinite(low).any() or np.isfinite(high).any()):

        def copied(value: Any) -> NDArray[Any]:
            array = np.array(value, dtype, order="C")  # always a copy: MineRL's frame is a read-only, flipped view
            check_shape(array)
            return array

        from_old = copied
    else:

        def clipped(value: Any) -> NDArray[Any]:
            array = np.array(value, dtype, order="C")
            check_shape(array)
            np.maximum(array, low, out=array)
            np.minimum(array, high, out=array)
            return array

        from_old = clipped

    def to_old(value: Any) -> NDArray[Any]:
        array = _array(value)
        if array.dtype.kind not in ("biu" if dtype.kind in "biu" else "biuf"):
            raise InputError(f"{what} must be {dtype} numbers of shape {shape}, got {value!r}")
        check_shape(array)
        if dtype.kind == "f" and array.dtype != dtype:
            with np.errstate(over="ignore"):  # what is too large is so as infinity, too
                array = array.astype(dtype, copy=False)
        if not (np.greater_equal(array, low).all() and np.less_equal(array, high).all()):  # False for NaN too
            raise InputError(f"{what} must lie between {_least(low)} and {_most(high)}, got {array.tolist()}")
        return array.astype(dtype, copy=False)

    return Converted(space, from_old, to_old)


def _array(value: Any) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError:  # rows of different lengths
        return np.asarray(None)


def _least(low: NDArray[Any]) -> Any:
    return low.flat[0].item() if (low == low.flat[0]).all() else low.tolist()


_most = _least


def _whole(value: Any) -> int | None:
    """A whole number, Python's, numpy's or in an array of one; None for anything else."""
    if type(value) is int:  # by far the most frequent
        return value
    try:
        return operator.index(value.item() if isinstance(value, np.ndarray) and value.size == 1 else value)
    except TypeError:
        return None


def _discrete(old: Any, what: str) -> Converted:
    n, start = int(old.n), int(getattr(old, "begin", getattr(old, "start", 0)))  # MineRL's DiscreteRange has `begin`
    end = start + n

    def to_old(value: Any) -> int:
        number = _whole(value)
        if number is None:
            raise InputError(f"{what} must be a whole number from {start} to {end - 1}, got {value!r}")
        if not start <= number < end:
            raise InputError(f"{what} must be a whole number from {start} to {end - 1}, got {number}")
        return number

    return Converted(spaces.Discrete(n, start=start), lambda value: np.int64(value), to_old)


def _enum(old: Any, what: str) -> Converted:
    names = [str(name) for name in old.values]
    space = Enum(names, str(old.default))
    places = {name: np.int64(i) for i, name in enumerate(names)}

    def from_old(value: Any) -> np.int64:
        try:
            return places[str(value)]
        except KeyError:
            raise InputError(f"{what} is {value!r}, which is none of {', '.join(names)}") from None

    def to_old(value: Any) -> str:
        number = _whole(value)
        if number is None:
            raise InputError(
                f"{what} must be a whole number from 0 to {len(names) - 1}, got {value!r}"
                + (f"; {value!r} is {places[value]}" if isinstance(value, str) and value in places else "")
            )
        if not 0 <= number < len(names):
            raise InputError(
                f"{what} must be a whole number from 0 to {len(names) - 1} ({', '.join(names)}), got {number}"
            )
        return names[number]

    return Converted(space, from_old, to_old)


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
    shape = getattr(old, "shape", None)
    if shape not in (None, 1, (), (1,)):
        raise InputError(f"{what} is {old!r}, several texts at once; only a single one has a counterpart in Gymnasium")
    longest = int(getattr(old, "max_length", getattr(old, "MAX_STR_LEN", 4096)))
    printable = "".join(map(chr, range(32, 127))) + "\n\t"
    space = spaces.Text(max_length=longest, min_length=0, charset=printable)

    def from_old(value: Any) -> str:
        text = str(value.item() if isinstance(value, np.ndarray) else value)[:longest]
        return "".join(character if character in printable else "?" for character in text)

    def to_old(value: Any) -> str:
        if not isinstance(value, str) or len(value) > longest or not set(value) <= set(printable):
            raise InputError(f"{what} must be a text of at most {longest} characters of ASCII, got {value!r}")
        return value

    return Converted(space, from_old, to_old)


def _dict(old: Any, what: str) -> Converted:
    inner = {str(key): convert_space(space, f"{what}[{key!r}]") for key, space in old.spaces.items()}
    readers = [(key, each.from_old) for key, each in inner.items()]
    writers = [(key, each.to_old) for key, each in inner.items()]

    def from_old(value: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return {key: read(value[key]) for key, read in readers}
        except KeyError as error:
            raise InputError(
                f"{what} lacks the entry {error}, which its space declares; it has {sorted(value)}"
            ) from None

    def to_old(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping) or value.keys() != inner.keys():
            got = sorted(map(str, value)) if isinstance(value, Mapping) else repr(value)
            raise InputError(f"{what} must be a dictionary with exactly the entries {sorted(inner)}, got {got}")
        return {key: write(value[key]) for key, write in writers}

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
