"""What a long command says while it works: messages that appear at once, how far a stage is, and the time left."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Self

from tqdm import tqdm  # that of tqdm.auto for notebooks has another `display`

_FIRST_LINE_S, _LINES_APART_S = 5.0, 10.0
_PACE = (0.5, 4.0)  # how much faster or slower than its estimates a command can be believed to be
_LEAST_SHARE = 0.02  # of a bar, from which its rate says more than the estimate: the first steps are slow
_stages: "Stages | None" = None  # not a context variable: tqdm shows bars from a thread of its own, too


def print_now(text: str) -> None:
    """Print a message at once, also into a file or a pipe, which would keep it back for minutes."""
    print(text, flush=True)


class Stages:
    """The stages of one command: inside the `with` block every `ProgressBar` shows the time left of the whole.

    The time left is that of the present stage, by its bar where it has one, and the estimates of the later stages. The
    estimates are corrected by how long the work has taken so far. If no bar has shown anything for ten seconds, a line
    with the time left is written to the standard error stream.

    Args:
        seconds: The estimate of each stage by its name, in order. It may be changed while earlier stages run.

    Example:
        >>> with Stages({"record": 20.0, "train": 40.0}) as stages:
        ...     with stages.stage("record"):
        ...         left = stages.left()
        >>> 50 < left <= 60
        True
    """

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self.seconds = dict(seconds)
        self.bar: ProgressBar | None = None  # the outermost bar of the present stage
        self.shown = time.monotonic()
        self._name, self._began = "", self.shown
        self._expected = self._taken = 0.0  # of the stages that are over
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show_now_and_then, daemon=True)
        self._outer: Stages | None = None

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Work on a stage. It counts from now on, and a stage that had ended already counts as over at once."""
        self._name, self._began = name, time.monotonic()
        yield
        self._expected += self.seconds.pop(name)
        self._taken += time.monotonic() - self._began
        self._name = ""

    def left(self) -> float:
        """Seconds left of the whole."""
        estimate, elapsed = self.seconds.get(self._name, 0.0), time.monotonic() - self._began
        bar, present = self.bar, None
        if bar is not None and bar.total and bar.n - bar.initial > _LEAST_SHARE * bar.total:
            present = (time.time() - bar.start_t) * (bar.total - bar.n) / (bar.n - bar.initial)
        taken, expected = self._taken, self._expected
        if self._name and present is not None:
            taken, expected = taken + elapsed + present, expected + estimate
        pace = min(max(taken / expected, _PACE[0]), _PACE[1]) if expected > 0 else 1.0
        if present is None:
            present = max(0.0, pace * estimate - elapsed)
        later = self.seconds.copy()  # at once, as another thread may call this while a stage ends
        later.pop(self._name, None)
        return present + pace * sum(later.values())

    def __str__(self) -> str:
        return f"{tqdm.format_interval(self.left())} left in all"

    def __enter__(self) -> Self:
        global _stages
        self._outer, _stages = _stages, self
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        global _stages
        _stages = self._outer
        self._ended.set()
        self._thread.join()

    def _show_now_and_then(self) -> None:
        while not self._ended.wait(min(1.0, _LINES_APART_S / 4)):
            if self._name and time.monotonic() - self.shown >= _LINES_APART_S:
                self.shown = time.monotonic()
                write = tqdm.write if sys.stderr.isatty() else print  # above the bars of a terminal
                stream = sys.stderr if notebook_shell() is None else sys.stdout  # a notebook shows the former in red
                write(f"{self._name}: {self}", file=stream)
                stream.flush()


class ProgressBar(tqdm):
    """A bar in a terminal; elsewhere, as in a log file, a line of text every ten seconds, on standard error.

    A line has the percentage, the rate and the time left; inside a block of `Stages` the time left of the whole, too.
    The first line comes after five seconds. Use it in a `with` block, or around an iterable, like `tqdm`, which it is.

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
        self._in_notebook, self._shown_bar = shown is not False and notebook_shell() is not None, None
        self._as_lines = shown is None and not self._in_notebook and not sys.stderr.isatty()
        self._stages, self._next_line = _stages, 0.0
        if self._as_lines:
            settings |= {"delay": _FIRST_LINE_S, "mininterval": _FIRST_LINE_S / 5, "miniters": 0}
        super().__init__(iterable, disable=shown is False, **settings)
        if self._stages is not None and self._stages.bar is None and not self.disable:
            self._stages.bar = self

    @property
    def format_dict(self) -> dict[str, Any]:
        """What a meter shows."""
        values = dict(super().format_dict)
        if self._stages is not None:
            values["postfix"] = ", ".join(filter(None, (str(self._stages), values["postfix"])))
        return values

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Show how far it has come."""
        now = time.monotonic()
        if self._stages is not None:
            self._stages.shown = now
        if self._in_notebook:
            self._update_output()
            return True
        if not self._as_lines:
            return super().display(msg, pos)
        if now >= self._next_line:
            self._next_line = now + _LINES_APART_S
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
        if self._stages is not None and self._stages.bar is self:
            self._stages.bar = None
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
