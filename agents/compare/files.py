"""Reading JSON that another process may be writing, or may have left half-way."""

import json
from pathlib import Path
from typing import Any


def read_json(file: Path) -> Any:
    """What a JSON file holds; None where there is none, or where it cannot be read.

    Example:
        >>> read_json(Path("no such file")) is None
        True
    """
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None
