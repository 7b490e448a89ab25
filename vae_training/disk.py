"""A disk that is full, told in plain words."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from latent_obs.errors import LatentObsError

_FULL = {errno.ENOSPC: "No space left on device", errno.EDQUOT: "Disk quota exceeded", errno.EFBIG: "File too large"}


class DiskFullError(LatentObsError, OSError):
    """Something could not be written because the disk, the quota or the largest file size is used up."""

    def __str__(self) -> str:
        return str(self.args[0])


@contextlib.contextmanager
def disk_full_is_told(what: Path, then: str) -> Iterator[None]:
    """Turn the errors of a full disk inside the block into one that says what to do.

    Args:
        what: The file or folder that is written.
        then: What is safe, and how to go on.

    Raises:
        DiskFullError: The disk is full. Other errors pass.

    Example:
        >>> with disk_full_is_told(Path("run"), "Free some space."):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
            ...
        vae_training.disk.DiskFullError: run: No space left on device. Free some space.
    """
    try:
        yield
    except DiskFullError:
        raise
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFullError(f"{what}: {_FULL[error.errno]}. {then}") from error
    except SafetensorError as error:  # it has the system's words, and no number
        text = str(error)
        found = next((words for code, words in _FULL.items() if f"os error {code})" in text or words in text), None)
        if found is None:
            raise
        raise DiskFullError(f"{what}: {found}. {then}") from error
