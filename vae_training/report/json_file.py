"""JSON that people can read too: indented, with lists of numbers on one line, and null where a number is not finite."""

import json
import math
import re
from pathlib import Path
from typing import Any

from latent_obs.util.atomic import atomic_write

_NUMBERS = re.compile(r"\[\s+((?:-?[\d.eE+-]+|true|false|null)(?:,\s+(?:-?[\d.eE+-]+|true|false|null))*)\s+\]")


def write_compact_json(path: Path, values: Any) -> Path:
    """Write values to a file that appears whole or not at all.

    Args:
        path: The file.
        values: Plain values; floats are kept to six digits, and those that are not finite become null.
    """
    text = json.dumps(plain(values), indent=2, allow_nan=False, ensure_ascii=False)
    text = _NUMBERS.sub(lambda match: "[" + re.sub(r"\s+", " ", match.group(1)) + "]", text)
    with atomic_write(path) as aside:
        aside.write_text(text + "\n", encoding="utf-8")
    return path


def plain(value: Any) -> Any:
    """Values as JSON can hold them.

    Example:
        >>> plain({"a": (float("nan"), 0.123456789), 1: None})
        {'a': [None, 0.123457], '1': None}
    """
    if isinstance(value, dict):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of numpy's
        value = value.item()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
