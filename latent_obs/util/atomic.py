"""Atomic writes: a file appears whole or not at all."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write to a temporary file that replaces `path` if the block ends without an error, and is removed otherwise.

    It is in the same folder, which is made if needed, and keeps the suffix of `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Always the same name: what a killed process left is overwritten, and does not pile up.
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield temporary
        temporary.chmod(0o644)  # safetensors makes private files
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")
