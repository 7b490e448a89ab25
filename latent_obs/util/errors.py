"""Errors that the user can fix, and the checks that raise them; the command line prints them without a traceback.

Each also derives from the built-in class that one would expect, so that a notebook can catch either.
"""

import importlib
import json
import operator
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


class LatentObsError(Exception):
    """Base of every error whose message says what the user can change."""


class InputError(LatentObsError, ValueError):
    """An argument, a file or a space is not what the function needs."""


class EncoderFolderError(LatentObsError, ValueError):
    """An encoder folder is incomplete, damaged, of another format, or gives other latents than it promises."""


class DeviceError(LatentObsError, RuntimeError):
    """A device was asked for that this machine does not have."""


class MissingExtraError(LatentObsError, ImportError):
    """An optional package is not installed, or not in the version that is needed."""


class GameFaultError(LatentObsError, RuntimeError):
    """A game was lost in mid-play: it died, hung, or sent what cannot be read. A restart may help."""


class GameLostError(LatentObsError, RuntimeError):
    """A game was lost so many times in a row that restarting it is no use."""


class TrainingDivergedError(LatentObsError, ArithmeticError):
    """A loss is no longer finite."""


def check_count(name: str, value: object, at_least: int = 1, at_most: int = 2**63 - 1) -> int:
    """The argument `name` as an int; an `InputError` if it is no integer in this range, or a boolean."""
    try:
        count = None if isinstance(value, bool) else operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        count = None
    if count is None or not at_least <= count <= at_most:
        limit = f" and at most {at_most:,}" if count is not None and count > at_most else ""
        raise InputError(f"{name} must be an integer of {at_least} or more{limit}, got {value!r}")
    return count


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Check that an argument is one of a few values; else an `InputError` lists them."""
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")


def check_types(instance: Any) -> None:
    """Check the values of a dataclass against the types of its fields; to be called first in `__post_init__`.

    What stands for a value of the type in JSON, TOML or numpy becomes one: a list becomes a tuple, text a `Path`, a
    number of numpy one of Python. A boolean is no number here. A field whose metadata have a "type" is checked by that.

    Raises:
        InputError: A value is of another type; the message names the field.
    """
    hints = get_type_hints(type(instance))
    for field in fields(instance):
        value, kind = getattr(instance, field.name), field.metadata.get("type", hints[field.name])
        settled = _settled(value, kind)
        check_type(field.name, settled, kind)
        if settled is not value:
            object.__setattr__(instance, field.name, settled)


def _settled(value: Any, kind: Any) -> Any:
    kinds = _alternatives(kind)
    if type(value).__module__ == "numpy" and getattr(value, "shape", ()) != ():
        value = value.tolist()
    if isinstance(value, list | tuple) and not any(get_origin(one) is list for one in kinds):
        inner = next((get_args(one)[0] for one in kinds if get_origin(one) is tuple and get_args(one)), Any)
        entries = tuple(_settled(entry, inner) for entry in value)
        is_same = isinstance(value, tuple) and all(a is b for a, b in zip(entries, value, strict=True))
        return value if is_same else entries
    if isinstance(value, str) and Path in kinds and str not in kinds:
        return Path(value)
    item: Any = value
    is_scalar = type(item).__module__ == "numpy" and getattr(item, "shape", None) == ()
    return item.item() if is_scalar else item


def check_type(name: object, value: Any, kind: Any) -> None:
    """Check a value of any depth against a type, `TypedDict`s included; an `InputError` names what does not fit."""
    import typeguard  # here: worker processes start without it

    kinds = _alternatives(kind)
    try:
        if isinstance(value, bool) and not any(k in (bool, Any) or value in get_args(k) for k in kinds):
            raise typeguard.TypeCheckError("")
        typeguard.check_type(value, kind, collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS)
    except typeguard.TypeCheckError as error:
        where = f" ({one_line(error)})" if isinstance(value, dict | list | tuple) else ""
        expected = " or ".join(_in_words(k) for k in kinds)
        raise InputError(f"{name} must be {expected}, got {one_line(repr(value))}{where}") from None


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or the type alone."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _in_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if kind is NoneType:
        return "None"
    return getattr(kind, "__name__", str(kind)) if not get_args(kind) else str(kind).replace("typing.", "")


def parse_json(text: str | bytes, kind: Any, what: object) -> Any:
    """Parse JSON of a type, such as ``dict[str, Any]`` or a `TypedDict`.

    Args:
        text: The content of a file, or what stands in the metadata of one.
        kind: The type that it must have, see `check_type`.
        what: Where it came from: the first words of the message.

    Raises:
        InputError: It is no JSON, or of another type; the message names the key.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is damaged: it is no JSON ({one_line(error)})") from None
    check_type(what, values, kind)
    return values


def one_line(text: object, at_most: int = 200) -> str:
    """A text in one line, cut to a length: messages of torch have ten lines and name every tensor.

    Example:
        >>> one_line("Error(s) in  loading: Missing key", at_most=16)
        'Error(s) in loa…'
    """
    words = " ".join(str(text).split())
    return words if len(words) <= at_most else f"{words[: at_most - 1]}…"


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional module; a `MissingExtraError` names the extra of latent-obs that installs it.

    Args:
        module: Name of the module, as in an import statement.
        extra: The extra.
        purpose: What it is needed for, to finish the sentence "… is needed to …".
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != package:
            raise
        # Ray admits one version of Gymnasium only, so it is not installed beside what a clone has.
        how = "in a clone, give the command as ./uvw --ray run …" if extra == "ray" else f"uv sync --extra {extra}"
        raise MissingExtraError(
            f"{package!r} is needed to {purpose}, and is not installed. "
            f"Install it with: {how}    (or: pip install 'latent-obs[{extra}]')"
        ) from None
