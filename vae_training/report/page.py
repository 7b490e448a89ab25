"""The one page writer: a jinja2 template becomes a single HTML file that carries its pictures and videos."""

import base64
from pathlib import Path
from typing import Any

import jinja2

from latent_obs.util.atomic import atomic_write

_TEMPLATES = Path(__file__).parent / "templates"
_MEDIA = {".png": "image/png", ".mp4": "video/mp4"}


def write_html(target: Path, template: Path, values: dict[str, Any]) -> Path:
    """Write a page.

    Args:
        target: The HTML file; it appears whole or not at all.
        template: It may extend `base.html.j2`. All values are escaped. Beyond jinja's own filters there are `data_uri`
            (a .png or .mp4 file), `digits` (a small error) and `percent` (a share).
        values: What the template shows, and functions that it calls.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _TEMPLATES]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "data_uri": _data_uri,
        "digits": lambda value: f"{value:.5f}" if value < 0.1 else f"{value:.3f}",
        "percent": lambda share: f"{100 * share:.1f}%",
    }
    text = environment.get_template(template.name).render(values)
    with atomic_write(target) as aside:
        aside.write_text(text, encoding="utf-8")
    return target


def _data_uri(media: Path) -> str:
    return f"data:{_MEDIA[media.suffix]};base64,{base64.b64encode(media.read_bytes()).decode('ascii')}"
