"""Files that appear whole or not at all: written aside, then renamed."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well, and is removed when it does not.

    Args:
        path: The file to write or replace.

    Yields:
        The file to write to; it keeps the ending of `path`.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with atomic_write(file) as aside:
        ...     _ = aside.write_text("whole")
        >>> file.read_text()
        'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Always the same name: what a killed process left is used again, and does not pile up.
    aside = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield aside
        aside.chmod(0o644)  # safetensors makes private files
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
    """Write JSON aside and rename it into place."""
    with atomic_write(path) as aside:
        aside.write_text(json.dumps(values, indent=2) + "\n")
