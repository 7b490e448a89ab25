"""Errors that are the user's to mend; the command line prints them without a traceback.

Each also derives from the built-in that one would expect, so that a notebook can catch either.
"""

import importlib
from types import ModuleType


class LatentObsError(Exception):
    """Base of every error whose message tells the user what to change."""


class InputError(LatentObsError, ValueError):
    """An argument, a file or a space is not what the function needs."""


class EncoderFolderError(LatentObsError, ValueError):
    """An encoder folder is incomplete, damaged, of another format, or gives other latents than it promises."""


class DeviceError(LatentObsError, RuntimeError):
    """A device was asked for that this machine does not have."""


class MissingExtraError(LatentObsError, ImportError):
    """An optional package is not installed."""


class GameFaultError(LatentObsError, RuntimeError):
    """A game was lost in mid-play: it died, hung, or sent what cannot be read. A restart may mend it."""


class GameLostError(LatentObsError, RuntimeError):
    """A game was lost so many times in a row that restarting it is no use."""


class TrainingDivergedError(LatentObsError, ArithmeticError):
    """A loss is no longer finite."""


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional module, or say which extra brings it.

    Args:
        module: Name of the module, as in an import statement.
        extra: The extra of ``latent-obs`` that installs it.
        purpose: What it is needed for, to finish the sentence "… is needed to …".

    Returns:
        The module.

    Raises:
        MissingExtraError: It is not installed.

    Example:
        >>> require("json", extra="none", purpose="read JSON").loads("[1]")
        [1]
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(
            f"{module.split('.')[0]!r} is needed to {purpose}, and is not installed. "
            f"Install it with: uv sync --extra {extra}    (or: pip install 'latent-obs[{extra}]')"
        ) from None
