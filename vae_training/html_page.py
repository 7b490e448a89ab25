"""A self-contained HTML page: its style, its pictures and its videos are in the one file, and nothing is fetched."""

import base64
import html
from pathlib import Path

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1f2937; }
h1 { margin-bottom: .2rem; } h2 { margin: 2.2rem 0 .2rem; } .lead { color: #4b5563; margin-top: 0; }
img, video { max-width: 100%; border-radius: 4px; margin-top: .5rem; } img { image-rendering: pixelated; }
table { border-collapse: collapse; margin: .8rem 0; } td, th { padding: .25rem .9rem .25rem 0; text-align: left; }
pre { background: #f3f4f6; padding: .8rem 1rem; border-radius: 4px; overflow-x: auto; font-size: 14px; }
.numbers td + td { text-align: right; font-variant-numeric: tabular-nums; }
"""


def document(title: str, body: str, style: str = "") -> str:
    """A whole page.

    Args:
        title: Its title, any text.
        body: HTML, with all text in it escaped already.
        style: CSS beyond `STYLE`.
    """
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}{style}</style></head>'
        f"<body>{body}</body></html>\n"
    )


def embedded(media: Path, title: str) -> str:
    """A .png or .mp4 file as an element that carries its bytes.

    Args:
        media: The file.
        title: What it shows, for those who cannot see it.
    """
    data = base64.b64encode(media.read_bytes()).decode("ascii")
    if media.suffix == ".mp4":
        return f'<video controls loop autoplay muted playsinline src="data:video/mp4;base64,{data}"></video>'
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'
