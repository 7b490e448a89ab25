"""What a long stage says while it works: messages that appear at once, and how far it has come."""

import sys
from typing import Any

from tqdm import tqdm  # that of tqdm.auto for notebooks has another `display`

_FIRST_LINE_S, _LEAST_OFTEN_S = 5.0, 60.0


def print_now(text: str) -> None:
    """Print a message at once, also into a file or a pipe, which would keep it back for minutes."""
    print(text, flush=True)


class ProgressBar(tqdm):
    """A bar in a terminal; elsewhere, as in a log file, a line of text now and then, on the standard error stream.

    A line has the percentage, the rate and the time left. The first comes after five seconds, later ones ever more
    rarely, up to one a minute. Use it in a `with` block, or around an iterable, like `tqdm`, which it is.

    Args:
        iterable: What to go through; None where `update` counts.
        shown: True for the bar, False for nothing; None for the bar in a terminal, and lines elsewhere.
            In a notebook both are a bar in the output of the cell.
        settings: Those of `tqdm`: total, initial, unit, desc.

    Example:
        >>> with ProgressBar(total=2, unit="frame", desc="record", shown=False) as progress:
        ...     _ = progress.update(2)
    """

    def __init__(self, iterable: Any = None, *, shown: bool | None = None, **settings: Any) -> None:
        self._as_lines = shown is None and not sys.stderr.isatty()
        self._in_notebook, self._shown_bar = shown is not False and notebook_shell() is not None, None
        self._as_lines = self._as_lines and not self._in_notebook
        if self._as_lines:
            settings |= {"delay": _FIRST_LINE_S, "mininterval": _FIRST_LINE_S, "maxinterval": _LEAST_OFTEN_S}
        super().__init__(iterable, disable=shown is False, **settings)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Show how far it has come."""
        if self._in_notebook:
            self._update_output()
            return True
        if not self._as_lines:
            return super().display(msg, pos)
        self.mininterval = min(_LEAST_OFTEN_S, 2 * self.mininterval)
        meter = {**self.format_dict, "ncols": None, "bar_format": _LINE if self.total else _LINE_WITHOUT_TOTAL}
        print(self.format_meter(**meter), file=sys.stderr, flush=True)
        return True

    def _update_output(self) -> None:
        """Replace the bar in the cell's output: carriage returns would fill a saved notebook with every state of it."""
        from IPython.display import display  # pyright: ignore[reportMissingImports]

        meter = {**self.format_dict, "ncols": None, "bar_format": "{l_bar}{bar:20}{r_bar}" if self.total else None}
        bar = {"text/plain": self.format_meter(**meter)}
        if self._shown_bar is None:
            self._shown_bar: Any = display(bar, raw=True, display_id=True)
        else:
            self._shown_bar.update(bar, raw=True)

    def close(self) -> None:
        """Remove it from the bars that are shown."""
        if self._in_notebook and not self.disable:
            self._update_output()  # the last state
            self._as_lines = True  # nothing goes to the standard error stream
        if self._as_lines and not self.disable:
            self.disable = True
            self._decr_instances(self)  # pyright: ignore[reportAttributeAccessIssue]
        super().close()


_LINE = "{desc}: {percentage:.0f}% of {total_fmt} {unit}s, {rate_fmt}, {remaining} left{postfix}"
_LINE_WITHOUT_TOTAL = "{desc}: {n_fmt} {unit}s, {rate_fmt}{postfix}"


def notebook_shell() -> Any:
    """The shell of IPython inside a Jupyter kernel; None elsewhere, also in IPython's own terminal."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell if hasattr(shell, "kernel") else None
