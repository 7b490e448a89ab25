"""Numbers with their nouns, lists of names, and sentences in lines of the terminal's width."""

import shutil
import textwrap
from collections.abc import Sequence


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun in singular or plural.

    Example:
        >>> counted(1, "file"), counted(2_000, "file"), counted(2, "process", "processes")
        ('1 file', '2,000 files', '2 processes')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and how many more there are.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def wrapped(text: str, indent: str = "") -> str:
    """A sentence in lines of the terminal's width, 100 where there is none; `indent` begins all but the first."""
    width = min(120, shutil.get_terminal_size((100, 24)).columns)
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
