"""What all pages share: self-contained HTML from templates, and plots that a phone shows well, by day and by night."""

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape

from latent_obs.util.atomic import atomic_write
from latent_obs.util.colors import COLORS
from latent_obs.util.errors import require
from latent_obs.util.words import counted

_TEMPLATES = Path(__file__).parent / "templates"
_MEDIA = {".png": "image/png", ".mp4": "video/mp4"}
_WIDTH = 4.6  # inches of every plot: at 420 pixels, a phone's width, its texts of 10 points are 12 pixels high
_OPTION = re.compile(r"--[a-z][\w-]*")
_NUMBER = re.compile(r"[-−+±<]?\s*\d|–$")  # how a cell of numbers begins
NEUTRAL = COLORS["neutral"]


def write_html(target: Path, template: Path, values: dict[str, Any]) -> Path:
    """Write a page.

    Args:
        target: The HTML file; it appears whole or not at all.
        template: It may extend `base.html.j2`. All values are escaped. Beyond jinja's own filters there are `data_uri`
            (a .png or .mp4 file), `digits` (a small error), `percent` (a share), `counted` (a number with its noun),
            `numeric_columns` (the places of columns with numbers, in rows of cells) and `options` (sets options of the
            command line in code), and the table `colors`.
        values: What the template shows, and functions that it calls.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _TEMPLATES]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )

    def data_uri(media: Path) -> str:
        return f"data:{_MEDIA[media.suffix]};base64,{base64.b64encode(media.read_bytes()).decode('ascii')}"

    environment.filters |= {
        "counted": counted,
        "data_uri": data_uri,
        "numeric_columns": _numeric_columns,
        "options": lambda text: Markup(_OPTION.sub(r"<code>\g<0></code>", str(escape(text)))),
        "digits": lambda value: f"{value:.5f}" if value < 0.1 else f"{value:.3f}",
        "percent": lambda share: f"{100 * share:.1f}%",
    }
    environment.globals["colors"] = COLORS
    text = environment.get_template(template.name).render(values)
    with atomic_write(target) as aside:
        aside.write_text(text, encoding="utf-8")
    return target


def _numeric_columns(rows: Sequence[Sequence[Any]]) -> set[int]:
    """Places of the columns with numbers; the first column has names."""
    columns = list(zip(*rows, strict=True))
    return {i for i, cells in enumerate(columns) if i and any(_NUMBER.match(str(cell)) for cell in cells)}


def figure(height: float, *, rows: int = 1, columns: int = 1, extra: str = "report", **options: Any) -> tuple[Any, Any]:
    """A matplotlib figure as wide as all others and `height` inches high, without a display or global state.

    Its ground is transparent and its texts are of a gray that is readable on white and on black.

    Args:
        height: Inches.
        rows: Of axes.
        columns: Of axes.
        extra: What to install, for the error where matplotlib is missing.
        options: Those of `Figure.subplots`.

    Returns:
        The figure, and its only axes or an array of them.
    """
    require("matplotlib", extra=extra, purpose="draw plots")
    from matplotlib.figure import Figure

    made = Figure(figsize=(_WIDTH, height), dpi=180, layout="constrained")
    axes = made.subplots(rows, columns, **options)
    for panel in np.ravel(axes):
        paint_axes(panel)
        panel.grid(color=NEUTRAL, alpha=0.25)
        panel.set_axisbelow(True)
    return made, axes


def paint_axes(axes: Any) -> None:
    """Give axes the color of all texts and frames."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(NEUTRAL)
    axes.tick_params(which="both", colors=NEUTRAL)
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title, axes.yaxis.offsetText, axes.xaxis.offsetText):
        text.set_color(NEUTRAL)
    axes.title.set_size(11)


def legend_above(made: Any, axes: Any, columns: int = 2) -> None:
    """Name what is drawn in `axes` above the plot, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        options = {"frameon": False, "labelcolor": NEUTRAL, "fontsize": 9.5, "handlelength": 1.6, "columnspacing": 1.2}
        made.legend(handles, labels, loc="outside upper center", ncols=columns, **options)


def save_figure(made: Any, target: Path) -> Path:
    """Write a figure as a PNG, whole or not at all."""
    with atomic_write(target) as aside:
        made.savefig(aside, format="png", transparent=True)
    return target
