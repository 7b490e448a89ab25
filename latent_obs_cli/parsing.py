"""Options of a verb, parsed by tyro from the parameters of its function and from their docstrings."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import tyro


def parse_and_call(function: Callable[..., Any], prog: str, words: Sequence[str], *conf: Any) -> None:
    """Call a function with the options that were given; ends the process if they are wrong, or after --help.

    Args:
        function: Its parameters are the options, and its docstring is the help.
        prog: The command, as help shows it.
        words: What follows it on the command line.
        *conf: Further markers of `tyro.conf`.
    """
    # Tyro's own keeps the line breaks that docstrings have in the source. It is no public name: without it help has
    # these breaks, and all else is the same.
    with contextlib.suppress(ImportError):
        from tyro import _strings

        _strings.remove_single_line_breaks = _paragraphs
    tyro.cli(function, prog=prog, args=words, config=(tyro.conf.CascadeSubcommandArgs, *conf))


def _paragraphs(text: str) -> str:
    r"""A docstring without its line breaks, except for those between paragraphs.

    Example:
        >>> _paragraphs("At most\n    10,000 frames.\n\nAll else.")
        'At most 10,000 frames.\n\nAll else.'
    """
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n")).strip()
