"""Errors that the user can fix, and the checks that raise them; the command line prints them without a traceback.

Each also derives from the built-in class that one would expect, so that a notebook can catch either.
"""

import importlib
import operator
from collections.abc import Collection
from types import ModuleType


class LatentObsError(Exception):
    """Base of every error whose message says what the user can change."""


class InputError(LatentObsError, ValueError):
    """An argument, a file or a space is not what the function needs."""


class EncoderFolderError(LatentObsError, ValueError):
    """An encoder folder is incomplete, damaged, of another format, or gives other latents than it promises."""


class DeviceError(LatentObsError, RuntimeError):
    """A device was asked for that this machine does not have."""


class MissingExtraError(LatentObsError, ImportError):
    """An optional package is not installed."""


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
        raise MissingExtraError(
            f"{package!r} is needed to {purpose}, and is not installed. "
            f"Install it with: uv sync --extra {extra}    (or: pip install 'latent-obs[{extra}]')"
        ) from None
