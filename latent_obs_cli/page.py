"""The one-page summary of a quickstart: a single HTML file that carries its pictures and its video."""

import base64
import html
from dataclasses import dataclass
from pathlib import Path

from latent_obs.atomic import written_aside


@dataclass(frozen=True)
class Section:
    """A heading, a few sentences, and a picture or video.

    Attributes:
        title: The heading.
        text: What one sees and how to read it.
        media: A .png or .mp4 file, embedded in the page.
    """

    title: str
    text: str
    media: Path | None = None


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1f2937; }
h1 { margin-bottom: .2rem; } h2 { margin: 2.2rem 0 .2rem; } .lead { color: #4b5563; margin-top: 0; }
img, video { max-width: 100%; border-radius: 4px; margin-top: .5rem; } img { image-rendering: pixelated; }
table { border-collapse: collapse; margin: .8rem 0; } td, th { padding: .25rem .9rem .25rem 0; text-align: left; }
pre { background: #f3f4f6; padding: .8rem 1rem; border-radius: 4px; overflow-x: auto; font-size: 14px; }
.numbers td + td { text-align: right; font-variant-numeric: tabular-nums; }
"""


def write_page(
    target: Path, *, title: str, lead: str, results: dict[str, str], sections: list[Section], commands: list[str]
) -> Path:
    """Write the page.

    Args:
        target: The HTML file; it appears whole or not at all.
        title: Its heading.
        lead: What it shows, in a sentence.
        results: Name and value of each result, for the table at the top.
        sections: What to look at.
        commands: Commands to go on with.
    """
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in results.items())
    body = "".join(
        f"<h2>{html.escape(s.title)}</h2><p>{html.escape(s.text)}</p>{_embed(s.media, s.title) if s.media else ''}"
        for s in sections
    )
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>'
        f'<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p><table class="numbers">{rows}</table>'
        f"{body}<h2>Go on</h2><pre>{html.escape(chr(10).join(commands))}</pre></body></html>\n"
    )
    with written_aside(target) as aside:
        aside.write_text(page, encoding="utf-8")
    return target


def _embed(media: Path, title: str) -> str:
    data = base64.b64encode(media.read_bytes()).decode("ascii")
    if media.suffix == ".mp4":
        return f'<video controls loop autoplay muted playsinline src="data:video/mp4;base64,{data}"></video>'
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'
