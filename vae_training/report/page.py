"""The page of a report: the verdict first, then tables and pictures with a sentence each on how to read them."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latent_obs.atomic import written_aside
from vae_training.html_page import document, embedded
from vae_training.report.finding import Finding

_STYLE = """
h3 { margin: 1.4rem 0 .2rem; } p { margin: .3rem 0 .6rem; } .scroll { overflow-x: auto; }
th { color: #4b5563; font-weight: 600; } tr { border-bottom: 1px solid #e5e7eb; } .numbers th + th { text-align: right; }
.headline { font-size: 1.15rem; font-weight: 600; margin: 1rem 0; } .finding { padding: .5rem .9rem; margin: .5rem 0;
  border-left: 5px solid; border-radius: 4px; background: #f9fafb; } .finding p { margin: 0; }
.bad { border-color: #dc2626; } .warning { border-color: #f59e0b; } .good { border-color: #16a34a; }
.try { color: #4b5563; } .how { color: #4b5563; font-size: .95rem; } img.plot { image-rendering: auto; }
figure { margin: .4rem 0 1rem; overflow-x: auto; } .fine { color: #6b7280; font-size: .85rem; }
"""
_MARKS = {"bad": "✗ Problem", "warning": "! Look at", "good": "✓ Good"}


@dataclass(frozen=True)
class Table:
    """A table of results.

    Attributes:
        heads: Names of the columns; the first is that of what the rows are.
        rows: Text of the cells, row by row.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Shown:
    """A picture with a title of its own.

    Attributes:
        file: A PNG.
        title: What it shows.
        how: How to read it, in a sentence.
        plot: Whether it is a plot (drawn smoothly when resized) and not frames.
    """

    file: Path
    title: str
    how: str
    plot: bool = False


@dataclass(frozen=True)
class Part:
    """A part of the page.

    Attributes:
        title: Its heading.
        how: How to read it, in a few sentences.
        table: Its numbers, if any.
        pictures: Its pictures.
    """

    title: str
    how: str
    table: Table | None = None
    pictures: Sequence[Shown] = ()


def write_report_page(
    target: Path, *, title: str, lead: str, verdict: str, findings: Sequence[Finding], facts: dict[str, str],
    parts: Sequence[Part], footer: str,
) -> Path:  # fmt: skip
    """Write the page.

    Args:
        target: The HTML file; it appears whole or not at all.
        title: Its heading.
        lead: What was measured on what, in a sentence or two.
        verdict: The verdict in a sentence.
        findings: What it rests on, the worst first.
        facts: Name and value of what describes the encoder.
        parts: The parts below.
        footer: How the page was made.
    """
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in facts.items())
    body = (
        f'<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p>'
        f'<p class="headline">{html.escape(verdict)}</p>{"".join(map(_finding, findings))}'
        f'<h2>The encoder</h2><div class="scroll"><table>{rows}</table></div>'
        f'{"".join(map(_part, parts))}<p class="fine">{html.escape(footer)}</p>'
    )
    with written_aside(target) as aside:
        aside.write_text(document(title, body, _STYLE), encoding="utf-8")
    return target


def _finding(finding: Finding) -> str:
    suggestion = f'<p class="try">Next: {html.escape(finding.suggestion)}.</p>' if finding.suggestion else ""
    return (
        f'<div class="finding {finding.level}"><p><b>{_MARKS[finding.level]}: {html.escape(finding.topic)}.</b> '
        f"{html.escape(finding.sentence)}</p>{suggestion}</div>"
    )


def _part(part: Part) -> str:
    table = "" if part.table is None else _table(part.table)
    how = f'<p class="how">{html.escape(part.how)}</p>'
    return f"<h2>{html.escape(part.title)}</h2>{how}{table}{''.join(map(_shown, part.pictures))}"


def _table(table: Table) -> str:
    heads = "".join(f"<th>{html.escape(h)}</th>" for h in table.heads)
    rows = "".join(f"<tr>{''.join(f'<td>{html.escape(c)}</td>' for c in row)}</tr>" for row in table.rows)
    return f'<div class="scroll"><table class="numbers"><tr>{heads}</tr>{rows}</table></div>'


def _shown(picture: Shown) -> str:
    element = embedded(picture.file, picture.title)
    if picture.plot:
        element = element.replace("<img ", '<img class="plot" ', 1)
    return f'<h3>{html.escape(picture.title)}</h3><p class="how">{html.escape(picture.how)}</p><figure>{element}</figure>'
