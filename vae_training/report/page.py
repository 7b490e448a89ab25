"""Pages and their pictures: a jinja2 template becomes one HTML file that carries plots of numbers, and frames."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from latent_obs.util.atomic import atomic_write
from latent_obs.util.errors import require
from vae_training.report.encoder import Floats, Frames, Reconstruct, ReportModel
from vae_training.report.findings import Numbers
from vae_training.report.metrics.latents import Latents
from vae_training.report.metrics.reconstruction import Measured
from vae_training.report.probes.probes import ProbeResult, ProbeTable
from vae_training.training.logs import grid, save_picture, traversal_sheet

BLUE, ORANGE, GREEN, GREY, LIGHT = "#2563eb", "#ea580c", "#15803d", "#6b7280", "#cbd5e1"
_COLORS = (BLUE, ORANGE, GREEN, GREY, "#9333ea", "#0891b2")
_TEMPLATES = Path(__file__).parent / "templates"
_MEDIA = {".png": "image/png", ".mp4": "video/mp4"}
_SHEET = 1_100  # pixels, about the width of a sheet
_INTERPOLATIONS, _STEPS = 4, 9
_PRIOR_SAMPLES = 20
_MOST_TARGETS = 40
_MOST_NAMED = 40  # dimensions, with a number each beside a plot


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

    def data_uri(media: Path) -> str:
        return f"data:{_MEDIA[media.suffix]};base64,{base64.b64encode(media.read_bytes()).decode('ascii')}"

    environment.filters |= {
        "data_uri": data_uri,
        "digits": lambda value: f"{value:.5f}" if value < 0.1 else f"{value:.3f}",
        "percent": lambda share: f"{100 * share:.1f}%",
    }
    text = environment.get_template(template.name).render(values)
    with atomic_write(target) as aside:
        aside.write_text(text, encoding="utf-8")
    return target


def figure(
    width: float, height: float, *, rows: int = 1, columns: int = 1, extra: str = "report", **options: Any
) -> tuple[Any, Any]:
    """A matplotlib figure of `width` x `height` inches, without a display or global state.

    `extra` is named by the error where matplotlib is missing; `options` are those of `Figure.subplots`.

    Returns:
        The figure, and its only axes or an array of them.
    """
    require("matplotlib", extra=extra, purpose="draw plots")
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = made.subplots(rows, columns, **options)
    for panel in np.ravel(axes):
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
        panel.set_axisbelow(True)
    return made, axes


def save_figure(made: Any, target: Path) -> Path:
    """Write a figure as a PNG, whole or not at all."""
    with atomic_write(target) as aside:
        made.savefig(aside, format="png")
    return target


def draw_pictures(
    folder: Path,
    model: ReportModel,
    frames: Frames,
    numbers: Numbers,
    *,
    methods: Mapping[str, Reconstruct],
    errors: Measured | None,
    seed: int,
) -> dict[str, Path]:
    """Draw everything that was measured on held-out frames, and return the PNG file of each picture by its name.

    `methods` reconstruct frames, and those but the mean image are shown; `errors` are the encoder's by frame.
    """
    latents, reconstruction, order = numbers.latents, numbers.reconstruction, numbers.latents.by_information
    plots = {"kl": _kl_bars(latents), "aggregate": _aggregate_posterior(latents)}
    plots["correlation"] = _image(
        np.array(latents.correlation)[np.ix_(order[:64], order[:64])],
        "Correlation of the means",
        names=order if len(order) <= _MOST_NAMED else (),
        cmap="RdBu_r",
        vmin=-1,
        vmax=1,
        interpolation="nearest",
    )
    sheets: dict[str, Sequence[Frames]] = {}
    if numbers.probes is not None:
        plots["probes"] = _probe_bars(numbers.probes)
    if reconstruction is not None and errors is not None:
        plots["error_map"] = _image(errors.error_map, "Mean squared error by place", cmap="magma", vmin=0)
        shown = [method for name, method in methods.items() if name != "mean image"]
        for name, chosen in (("worst", reconstruction.worst), ("best", reconstruction.best)):
            sheets[name] = [frames[chosen], *(_to_uint8(method(frames[chosen])) for method in shown)]
        rng, dim = np.random.default_rng(seed), model.architecture.latent_dim
        pairs = frames[rng.permutation(len(frames))[: 2 * min(_INTERPOLATIONS, len(frames) // 2)]]
        sheets["interpolations"] = [_interpolation(model, pair) for pair in pairs.reshape(-1, 2, *frames.shape[1:])]
        sheets["prior"] = np.split(_to_uint8(model.decode(rng.standard_normal((_PRIOR_SAMPLES, dim)))), 2)
    drawn = {name: save_figure(made, folder / f"{name}.png") for name, made in plots.items()}
    for name, rows in sheets.items():
        drawn[name] = folder / f"{name}.png"
        scale = round(_SHEET / (max(map(len, rows)) * frames.shape[2]))
        save_picture(drawn[name], grid(rows, scale=max(1, min(8, scale))))
    if errors is not None:
        drawn["traversals"] = folder / "traversals.png"
        middle, count = frames[int(np.argsort(errors.mse)[len(frames) // 2])], min(8, latents.latent_dim)
        save_picture(drawn["traversals"], traversal_sheet(model.cvae, middle, sample=frames[:512], latents=count))
    return drawn


def probe_columns(table: ProbeTable) -> dict[str, dict[str, ProbeResult]]:
    """Results by column and target; columns are titled "latent, linear", "latent, network", "pixels (CNN)"."""
    columns: dict[str, dict[str, ProbeResult]] = {}
    titles = {"linear": ", linear", "mlp": ", network", "cnn": ""}
    for representation in table.representations:
        for head, title in titles.items():
            found = {r.target: r for r in table.results if (r.representation, r.head) == (representation, head)}
            if found:
                columns[f"{representation}{title}"] = found
    return columns


def _interpolation(model: ReportModel, pair: Frames) -> Frames:
    """From one frame to another through the latent space, with the frames themselves at both ends."""
    one, other = model.means(pair)
    share = np.linspace(0, 1, _STEPS, dtype=np.float32)[:, None]
    return np.concatenate([pair[:1], _to_uint8(model.decode((1 - share) * one + share * other)), pair[1:]])


def _to_uint8(images: Floats) -> Frames:
    return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)


def _image(values: Any, title: str, *, names: Sequence[int] = (), **options: Any) -> Any:
    """Values (rows, columns) in colors, with a scale beside them; `options` are those of `imshow`."""
    made, axes = figure(5.2, 4.4)
    shown = axes.imshow(values, **options)
    axes.grid(visible=False)
    axes.set_xticks(range(len(names)), names, fontsize=6, rotation=90)
    axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.set_title(title)
    made.colorbar(shown, ax=axes, shrink=0.85)
    return made


def _kl_bars(latents: Latents) -> Any:
    order = latents.by_information
    made, axes = figure(8.0, 3.2)
    colors = [BLUE if latents.active[i] else LIGHT for i in order]
    axes.bar(range(len(order)), np.array(latents.kl_nats_by_dimension)[order], color=colors, width=0.85)
    axes.set(xlabel="dimension, the most informative first", ylabel="KL [nats]", xlim=(-0.7, len(order) - 0.3))
    axes.set_title(f"{latents.kl_nats:.1f} nats; {latents.active_units} of {len(order)} dimensions active (blue)")
    if len(order) <= _MOST_NAMED:
        axes.set_xticks(range(len(order)), order, fontsize=7)
    return made


def _aggregate_posterior(latents: Latents) -> Any:
    made, axes = figure(8.0, 3.0)
    axes.axhspan(-1, 1, color=LIGHT, alpha=0.4, lw=0, label="the prior, mean ± standard deviation")
    means, stds, label = latents.aggregate_mean, latents.aggregate_std, "the latents, mean ± standard deviation"
    axes.errorbar(range(latents.latent_dim), means, yerr=stds, fmt="o", color=BLUE, ms=3, lw=1, label=label)
    axes.set(xlabel="dimension", xlim=(-0.7, latents.latent_dim - 0.3))
    made.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return made


def _probe_bars(table: ProbeTable) -> Any:
    """Scores of linear heads and of the CNN, with intervals, for each target."""
    targets = table.targets[:_MOST_TARGETS]
    columns = {title: found for title, found in probe_columns(table).items() if not title.endswith("network")}
    made, axes = figure(8.0, 1.3 + 0.24 * len(targets) * (len(columns) + 1))
    height = 0.8 / len(columns)
    for k, (title, found) in enumerate(columns.items()):
        there = [i for i, target in enumerate(targets) if target in found]
        places = [i + (k - (len(columns) - 1) / 2) * height for i in there]
        results = [found[targets[i]] for i in there]
        values = np.array([result.main.value for result in results]).clip(0)  # 0 or less is drawn as 0
        low, high = np.array([result.interval for result in results]).clip(0).T
        axes.barh(places, values, height=0.9 * height, color=_COLORS[k % len(_COLORS)], label=title)
        ends = np.abs([values - low, high - values])
        axes.errorbar(values, places, xerr=ends, fmt="none", ecolor="black", lw=0.8, capsize=1.5)
    axes.set_yticks(range(len(targets)), targets, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.02), xlabel="score (0 or less is drawn as 0)")
    made.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return made
