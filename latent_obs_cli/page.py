"""The one-page summary of a quickstart: a single HTML file that carries its pictures and its video."""

import html
from dataclasses import dataclass
from pathlib import Path

from latent_obs.atomic import written_aside
from vae_training.html_page import document, embedded


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
        f"<h2>{html.escape(s.title)}</h2><p>{html.escape(s.text)}</p>{embedded(s.media, s.title) if s.media else ''}"
        for s in sections
    )
    page = document(
        title,
        f'<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p><table class="numbers">{rows}</table>'
        f"{body}<h2>Go on</h2><pre>{html.escape(chr(10).join(commands))}</pre>",
    )
    with written_aside(target) as aside:
        aside.write_text(page, encoding="utf-8")
    return target
