"""The page of a report: the verdict first, then tables and pictures with a sentence each on how to read them."""

import base64
import html
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latent_obs.util.atomic import atomic_write
from latent_obs.util.errors import require
from vae_training.report import page as pictures
from vae_training.report.encoder import Frames, Reconstruct, ReportModel, to_uint8
from vae_training.report.findings import Finding
from vae_training.report.metrics.latents import Latents
from vae_training.report.metrics.stability import BRIGHTNESS_LEVELS, Stability
from vae_training.training.logs import Picture, grid, save_picture

if TYPE_CHECKING:
    from vae_training.report.metrics.reconstruction import Reconstruction, Scores
    from vae_training.report.probes.scores import Score
    from vae_training.report.probes.table import ProbeTable
    from vae_training.report.run import ReportResult, Work

_BLUE, _ORANGE, _GREEN, _GREY, _LIGHT = "#2563eb", "#ea580c", "#15803d", "#6b7280", "#cbd5e1"
_COLOURS = (_BLUE, _ORANGE, _GREEN, _GREY, "#9333ea", "#0891b2")
_SHEET = 1_100  # pixels, the width of a sheet, about, so that small frames can be seen


def frames_above(path: Path, frames: Frames, methods: Sequence[Reconstruct]) -> Path:
    """Frames in the first row, and what each method makes of them in the rows below.

    Args:
        path: The PNG to write.
        frames: uint8 (n, H, W, C), some eight.
        methods: Frames to float images.
    """
    return save(path, [frames, *(to_uint8(method(frames)) for method in methods)])


def save(path: Path, rows: Sequence[Frames]) -> Path:
    """Rows of images as a PNG, enlarged by a whole number so that one sees them."""
    width = max(len(row) for row in rows) * rows[0].shape[2]
    save_picture(path, grid(rows, scale=max(1, min(8, round(_SHEET / width)))))
    return path


def interpolations(path: Path, model: ReportModel, frames: Frames, steps: int = 9) -> Path:
    """From one frame to another through the latent space, a row for each pair.

    Args:
        path: The PNG to write.
        model: Encoder and decoder.
        frames: uint8 (2 * n, H, W, C): the first of each pair, then the seconds.
        steps: Images between the frames, ends included; the frames themselves stand at both ends of a row.
    """
    means = model.means(frames)
    half = len(frames) // 2
    rows: list[Frames] = []
    for i in range(half):
        share = np.linspace(0, 1, steps, dtype=np.float32)[:, None]
        between = to_uint8(model.decode((1 - share) * means[i] + share * means[half + i]))
        rows.append(np.concatenate([frames[i : i + 1], between, frames[half + i : half + i + 1]]))
    return save(path, rows)


def prior_samples(path: Path, model: ReportModel, *, count: int = 20, seed: int = 0) -> Path:
    """What the decoder makes of latents drawn from the prior, in two rows."""
    z = np.random.default_rng(seed).standard_normal((count, model.architecture.latent_dim)).astype(np.float32)
    images = to_uint8(model.decode(z))
    return save(path, [images[: count // 2], images[count // 2 :]])


def error_map(path: Path, errors: NDArray[np.float64]) -> Path:
    """Where the error is, (H, W) mean squared errors as colours."""
    figure, axes = _figure(5.0, 3.8)
    shown = axes.imshow(errors, cmap="magma", vmin=0)
    axes.set(xticks=[], yticks=[], title="Mean squared error by place")
    axes.grid(visible=False)
    figure.colorbar(shown, ax=axes, shrink=0.85)
    return _save(figure, path)


def kl_bars(path: Path, latents: Latents) -> Path:
    """Nats of each dimension, the most informative first."""
    order = latents.by_information
    nats = np.array(latents.kl_nats_by_dimension)[order]
    colours = [_BLUE if latents.active[i] else _LIGHT for i in order]
    figure, axes = _figure(8.0, 3.2)
    axes.bar(np.arange(len(order)), nats, color=colours, width=0.85)
    axes.set(xlabel="dimension, in the order of what it tells", ylabel="KL [nats]", xlim=(-0.7, len(order) - 0.3))
    axes.set_title(f"{latents.kl_nats:.1f} nats; {latents.active_units} of {len(order)} dimensions active (blue)")
    if len(order) <= 40:
        axes.set_xticks(np.arange(len(order)), [str(i) for i in order], fontsize=7)
    return _save(figure, path)


def aggregate_posterior(path: Path, latents: Latents) -> Path:
    """Mean and standard deviation of each dimension over all frames, beside the prior's 0 and 1."""
    order = np.arange(latents.latent_dim)
    figure, axes = _figure(8.0, 3.0)
    axes.axhspan(-1, 1, color=_LIGHT, alpha=0.4, lw=0, label="the prior, mean ± standard deviation")
    axes.errorbar(
        order,
        latents.aggregate_mean,
        yerr=latents.aggregate_std,
        fmt="o",
        color=_BLUE,
        ms=3,
        lw=1,
        label="the latents, mean ± standard deviation",
    )
    axes.set(xlabel="dimension", xlim=(-0.7, latents.latent_dim - 0.3))
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return _save(figure, path)


def correlation_map(path: Path, latents: Latents) -> Path:
    """Correlations of the means, the most informative dimensions first; at most 64 of them."""
    order = latents.by_information[:64]
    matrix = np.array(latents.correlation)[np.ix_(order, order)]
    figure, axes = _figure(5.2, 4.4)
    shown = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.grid(visible=False)
    if len(order) <= 40:
        axes.set_xticks(np.arange(len(order)), [str(i) for i in order], fontsize=6, rotation=90)
        axes.set_yticks(np.arange(len(order)), [str(i) for i in order], fontsize=6)
    axes.set_title("Correlation of the means")
    figure.colorbar(shown, ax=axes, shrink=0.85)
    return _save(figure, path)


def probe_bars(path: Path, table: Mapping[str, Mapping[str, tuple[float, float, float]]], ylabel: str) -> Path:
    """Probe scores of the latents and of the baselines, with intervals.

    Args:
        path: The PNG to write.
        table: For each target, for each representation: score, and the low and high end of its interval.
        ylabel: What a score is.
    """
    names = list(dict.fromkeys(name for scores in table.values() for name in scores))
    figure, axes = _figure(8.0, 1.3 + 0.24 * len(table) * (len(names) + 1))
    height = 0.8 / len(names)
    for k, name in enumerate(names):
        places, values, below, above = [], [], [], []
        for i, scores in enumerate(table.values()):
            if name in scores:
                score, low, high = scores[name]
                places.append(i + (k - (len(names) - 1) / 2) * height)
                values.append(max(score, 0.0))
                below.append(max(0.0, values[-1] - max(low, 0.0)))
                above.append(max(0.0, high - values[-1]))
        axes.barh(places, values, height=0.9 * height, color=_COLOURS[k % len(_COLOURS)], label=name)
        axes.errorbar(values, places, xerr=[below, above], fmt="none", ecolor="black", lw=0.8, capsize=1.5)
    axes.set_yticks(range(len(table)), list(table), fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.02), xlabel=ylabel)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return _save(figure, path)


def traversals(path: Path, model: ReportModel, frame: Frames, sample: Frames) -> Path:
    """What single dimensions stand for: the sheet of `vae_training.traversal_sheet`."""
    from vae_training.training.logs import traversal_sheet

    sheet: Picture = traversal_sheet(model.cvae, frame, sample=sample, latents=min(8, model.architecture.latent_dim))
    save_picture(path, sheet)
    return path


def _figure(width: float, height: float) -> tuple[Any, Any]:
    require("matplotlib", extra="report", purpose="draw the plots of a report")
    from matplotlib.figure import Figure  # not pyplot: no display and no global state

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure: Any, target: Path) -> Path:
    with atomic_write(target) as aside:
        figure.savefig(aside, format="png")
    return target


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
    target: Path,
    *,
    title: str,
    lead: str,
    verdict: str,
    findings: Sequence[Finding],
    facts: dict[str, str],
    parts: Sequence[Part],
    footer: str,
) -> Path:
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
    with atomic_write(target) as aside:
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
    return (
        f'<h3>{html.escape(picture.title)}</h3><p class="how">{html.escape(picture.how)}</p><figure>{element}</figure>'
    )


_NAMES = {
    "encoder": "this encoder",
    "pca": "PCA of as many dimensions",
    "mean image": "one mean image",
    "autoencoder": "autoencoder",
}
_INTERPOLATIONS = 4
_SHOWN_TARGETS = 40
_METRICS = {"r2": "R²", "auroc": "AUROC", "balanced_accuracy": "balanced accuracy"}


def lay_out(work: "Work", result: "ReportResult", training_mse: float | None) -> Path:
    """Draw the pictures and write the page.

    Args:
        work: What was measured, and with what.
        result: What it says.
        training_mse: Error on training frames; None where it was not measured.
    """
    architecture, provenance = work.model.architecture, work.model.provenance
    settings = provenance.get("settings") or {}
    facts = {
        "folder": str(work.model.folder.path),
        "eats": "x".join(map(str, architecture.img_shape)),
        "latent": f"{architecture.latent_dim} values, {architecture.bottleneck} bottleneck",
        "trained": ", ".join(
            [f"{key.replace('_', ' ')} {settings[key]}" for key in ("beta", "epochs", "seed") if key in settings]
            + ([f"{provenance['training_seconds']:,.0f} s"] if provenance.get("training_seconds") else [])
        )
        or "not told by the folder",
        "measured on": f"{len(work.sample.frames):,} frames of {_files(work.recordings.held_out)}",
        "baselines fitted on": f"{len(work.training.frames):,} frames of {_files(work.recordings.training)}",
    }
    folder = result.page.parent / "pictures"
    return write_report_page(
        result.page,
        title="What the latents keep",
        lead=work.recordings.how,
        verdict=result.headline,
        findings=result.findings,
        facts=facts,
        parts=list(_parts(work, result, training_mse, folder)),
        footer=f"Made by latent-obs report on {time.strftime('%Y-%m-%d')} in {sum(work.seconds.values()):.0f} s; all "
        "numbers are "
        f"in {result.json.name}, beside this page.",
    )


def _parts(work: "Work", result: "ReportResult", training_mse: float | None, folder: Path) -> Iterator[Part]:
    if result.probes is not None:
        yield _probes(result.probes, folder)
    if result.reconstruction is not None:
        yield _reconstruction(work, result.reconstruction, training_mse, folder)
    yield _latents(result.latents, folder)
    if work.model.has_decoder:
        yield _decoded(work, folder)
    yield _stability(result.stability)
    if result.disentanglement is not None:
        yield _disentanglement(result.disentanglement)
    if result.not_measured:
        yield Part(
            "Not measured",
            "The verdict says nothing about these.",
            Table(("what", "why"), [(name, why) for name, why in result.not_measured.items()]),
        )


def _reconstruction(work: "Work", found: "Reconstruction", training_mse: float | None, folder: Path) -> Part:
    how = (
        f"Each of {found.frames:,} held-out frames is encoded to its mean latent and decoded. MSE: mean squared error of a "
        "value in "
        "0 to 1, less is better. PSNR: the same in decibels, more is better. SSIM: likeness of structure, 1 is identical. "
        "An encoder "
        "should beat PCA of its size clearly; the mean image is the floor."
    )
    rows = [_row(_NAMES[name], scores) for name, scores in found.scores.items()]
    if training_mse is not None:
        rows.append(("this encoder, training frames", _digits(training_mse), "", "", "", ""))
    if notes := "; ".join(f"{_NAMES[name]}: {note}" for name, note in found.notes.items()):
        how += f" {notes[0].upper()}{notes[1:]}."
    methods = [method for name, method in work.methods.items() if name in ("encoder", "pca", "autoencoder")]
    below = ", ".join(_NAMES[name] for name in work.methods if name in ("encoder", "pca", "autoencoder"))
    frames = work.sample.frames
    return Part(
        "Reconstruction",
        how,
        Table(("", "MSE", "PSNR [dB]", "SSIM", "median MSE", "worst MSE"), rows),
        [
            Shown(
                pictures.frames_above(folder / "worst.png", frames[found.worst], methods),
                "Worst frames",
                "The worst first, of those that follow each other only one. Top row: the frames. Below, row by row: "
                f"{below}. "
                "What is missing here is missing from the latent, or was too small to count.",
            ),
            Shown(
                pictures.frames_above(folder / "best.png", frames[found.best], methods),
                "Best frames",
                "The best first, in the same rows. Often these are plain walls or sky.",
            ),
            Shown(
                pictures.error_map(folder / "error_map.png", work.measured["encoder"].error_map),
                "Where the error is",
                "Mean over all held-out frames. Bright places are drawn worst: usually where things move or edges lie.",
                plot=True,
            ),
        ],
    )


def _latents(found: "Latents", folder: Path) -> Part:
    rows = [
        ("information, at most", f"{found.kl_nats:.1f} nats"),
        ("active dimensions", f"{found.active_units} of {found.latent_dim}"),
        ("effective dimensions", f"{found.effective_dimensions:.1f}"),
        ("mean absolute correlation of active dimensions", f"{found.mean_abs_correlation:.2f}"),
        ("largest absolute mean", f"{max(map(abs, found.aggregate_mean)):.2f}"),
        ("standard deviations", f"{min(found.aggregate_std):.2f} to {max(found.aggregate_std):.2f}"),
        ("largest absolute skewness", f"{max(map(abs, found.aggregate_skew)):.2f}"),
    ]
    if found.strongest_pair:
        i, j, r = found.strongest_pair
        rows.insert(4, ("strongest correlation", f"{r:.2f} (dimensions {i:.0f} and {j:.0f})"))
    return Part(
        "Latents",
        "What the encoder tells of a frame, over all held-out frames. A dimension is active if its mean varies "
        "by more "
        "than 0.01 (variance; Burda et al. 2016). Effective dimensions: over how many directions the variance of the means is "
        "spread. Means, standard deviations and skewness are those of the aggregate posterior; the prior has 0, 1 and 0.",
        Table(("", ""), rows),
        [
            Shown(
                pictures.kl_bars(folder / "kl.png", found),
                "Information of each dimension",
                "KL from the prior in nats: how much a dimension tells of the frame, at most. Bars near zero are "
                "unused.",
                plot=True,
            ),
            Shown(
                pictures.aggregate_posterior(folder / "aggregate.png", found),
                "Where the latents lie",
                "Dots and bars inside the grey band look like the prior. An agent that gets others should have its "
                "observations normalized.",
                plot=True,
            ),
            Shown(
                pictures.correlation_map(folder / "correlation.png", found),
                "Correlation of dimensions",
                "Away from the diagonal, white is best: each dimension tells something of its own.",
                plot=True,
            ),
        ],
    )


def _decoded(work: "Work", folder: Path) -> Part:
    frames, model = work.sample.frames, work.model
    rng = np.random.default_rng(work.config.seed)
    count = min(_INTERPOLATIONS, len(frames) // 2)
    ends = frames[rng.permutation(len(frames))[: 2 * count]]
    middle = int(np.argsort(work.measured["encoder"].mse)[len(frames) // 2]) if "encoder" in work.measured else 0
    return Part(
        "What the decoder makes of latents",
        "The decoder only serves to look: an agent never uses it.",
        None,
        [
            Shown(
                pictures.traversals(folder / "traversals.png", model, frames[middle], frames[:512]),
                "Traversals",
                "Each row moves one of the most informative dimensions from its 1st to its 99th percentile and leaves the "
                "others "
                "as they are in one frame. A row in which nothing moves tells little.",
            ),
            Shown(
                pictures.interpolations(folder / "interpolations.png", model, ends),
                "Interpolations",
                "From one held-out frame (left end) to another (right end) in equal steps through the latents. Good "
                "latents pass "
                "through pictures that could be frames.",
            ),
            Shown(
                pictures.prior_samples(folder / "prior.png", model, seed=work.config.seed),
                "Samples from the prior",
                "Latents drawn at random. With a small beta these need not look like frames, and an agent does not mind.",
            ),
        ],
    )


def _stability(found: Stability) -> Part:
    rows = [(f"one pixel {name}", _percent(value), "") for name, value in found.shift_by_direction.items()]
    rows += [
        ("one pixel, mean of the four", _percent(found.shift), _percent(found.shift_pixels)),
        (f"brightness ± {BRIGHTNESS_LEVELS} of 255", _percent(found.brightness), _percent(found.brightness_pixels)),
    ]
    if found.neighbours is not None and found.neighbors_pixels is not None:
        rows.append(
            (f"next frame ({found.pairs:,} pairs)", _percent(found.neighbours), _percent(found.neighbors_pixels))
        )
    return Part(
        "Stability",
        "How far a small change moves the latent, as a share of the mean distance between two held-out frames at "
        "random: 100% would be as different as an unrelated frame. Beside it the same share of the pixels. A latent should "
        "move "
        "less than the pixels do, but it has to move: an agent must see small steps too.",
        Table(("change", "of the latent", "of the pixels"), rows),
    )


def _probes(found: "ProbeTable", folder: Path) -> Part:
    """The table of probes and their bars; baselines by their linear heads."""
    columns = [
        (name, head)
        for name in found.representations
        for head in ("linear", "mlp", "cnn")
        if any((r.representation, r.head) == (name, head) for r in found.results)
    ]
    titles = [name if head == "cnn" else f"{name}, {'network' if head == 'mlp' else head}" for name, head in columns]
    rows: list[list[str]] = []
    for target in found.targets:
        cells = {(r.representation, r.head): r.main for r in found.results if r.target == target}
        metric = next(iter(cells.values())).metric
        kept = found.keeps(target)
        shown = [f"{cells[column].value:.2f}" if column in cells else "" for column in columns]
        rows.append([target, _METRICS.get(metric, metric), *shown, kept.verdict])
    drawn = [(column, title) for column, title in zip(columns, titles, strict=True) if column[1] != "mlp"]
    bars = {
        target: {
            title: _ends(r.main)
            for column, title in drawn
            for r in found.results
            if (r.target, (r.representation, r.head)) == (target, column)
        }
        for target in found.targets[:_SHOWN_TARGETS]
    }
    left_out = "".join(f" {name}: {why}." for name, why in list(found.left_out.items())[:10])
    return Part(
        "Probes: what an agent can read from the latents",
        "Small heads learn on training recordings to read what is known "
        "of the "
        "state, and are scored on held-out ones. R²: 1 is perfect, 0 is guessing. AUROC: 1 is perfect, 0.5 is guessing. "
        "Balanced "
        "accuracy: 1 is perfect. The network on the pixels tells what a frame shows at all; what it reads and a linear head "
        "on the "
        "latents does not was lost, or is tangled where a small network reads it. The latents should beat PCA and the random "
        f"encoder.{f' Note: {found.note}.' if found.note else ''}{f' Left out:{left_out}' if left_out else ''}",
        Table(("known value", "score", *titles, "the latents"), rows),
        [
            Shown(
                pictures.probe_bars(folder / "probes.png", bars, "score (0 or less is drawn as 0)"),
                "Probes side by side",
                "Longer is better; guessing gets 0 in R², and 0.5 in AUROC. Thin lines: 95% intervals, from resampling "
                f"{found.resampled}. Blue is this "
                "encoder.",
                plot=True,
            )
        ],
    )


def _disentanglement(found: dict[str, Any]) -> Part:
    names = {
        "mig": "MIG",
        "sap": "SAP",
        "dci_disentanglement": "DCI, disentanglement",
        "dci_completeness": "DCI, completeness",
        "dci_informativeness": "DCI, informativeness",
        "beta_vae": "beta-VAE score",
        "factor_vae": "FactorVAE score",
    }
    guess = {"beta_vae": found["chance"], "factor_vae": found["chance"]}
    rows = [(text, f"{found[key]:.3f}", f"{guess.get(key, 0.0):.2f}") for key, text in names.items()]
    return Part(
        "Disentanglement",
        "Whether each latent stands for one factor of the scenes, by published scores; 1 is best. An "
        "agent does "
        "not need it, except for informativeness: whether the factors are told at all.",
        Table(("score", "", "a guess gets"), rows),
    )


def _ends(score: "Score") -> tuple[float, float, float]:
    """A score with the ends of its interval; the score itself where there is none."""
    low, high = (score.value if end is None else end for end in (score.low, score.high))
    return score.value, low, high


def _row(name: str, scores: "Scores") -> tuple[str, ...]:
    similar = "too small" if scores.ssim is None else f"{scores.ssim:.3f}"
    return (
        name,
        _digits(scores.mse),
        f"{scores.psnr_db:.1f}",
        similar,
        _digits(scores.mse_median),
        _digits(scores.mse_worst),
    )


def _digits(value: float) -> str:
    return f"{value:.5f}" if value < 0.1 else f"{value:.3f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _files(datasets: list[Any]) -> str:
    names = [Path(str(getattr(d, "filename", None) or "an array")).name for d in datasets]
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 5 else ", ".join(names[:5])
